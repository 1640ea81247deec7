"""Statistics of a model as it stands between steps, gathered once a session: for an ordinary step, for a search and the
steps that it finds, and for later recipes that learn the same from the same documents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from harness_ext.calibration.by_layer import LayerWalk, Learned, Statistics
from harness_ext.calibration.collect import gather, groups, held_bytes
from harness_ext.calibration.context import DocumentBatches, EditableModel
from harness_ext.calibration.documents import LabelledDocument
from harness_ext.calibration.sinks import RULE
from harness_ext.methods.registry import sink_use
from harness_ext.model.layout import Matrix

if TYPE_CHECKING:
    from harness_ext.methods import Svd


def about_losses(model: EditableModel, documents: Sequence[LabelledDocument]) -> tuple[str, ...]:
    """All that the losses of documents depend on, and statistics of them as well."""
    return (model.weights.digest(), *(repr(document) for document in documents))


def about_statistics(model: EditableModel, names: frozenset[str], batches: DocumentBatches) -> list[str]:
    """All that these statistics depend on besides the matrix."""
    sinks = [f"{name}: sink tokens {use}" for name, use in sink_use(names).items()]
    return [str(batches.size), RULE, *sinks, *about_losses(model, batches.documents)]


def walked(
    model: EditableModel, walk: LayerWalk, matrices: Sequence[Matrix], about: Sequence[str]
) -> Iterator[Learned]:
    """The matrices in parts, each with its statistics, by a walk where they are not there."""
    return model.statistics_cache.through(about, matrices, walk.in_groups, _expected(matrices, walk.names))


def at_hand(
    model: EditableModel, walk: LayerWalk, matrices: Sequence[Matrix], about: Sequence[str]
) -> Statistics | None:
    """The statistics of all matrices, read when asked for, by a walk where some are not there; None where there is no
    room for all of them.
    """
    return model.statistics_cache.at_hand(about, matrices, walk.in_groups, _expected(matrices, walk.names))


def by_whole_passes(
    model: EditableModel,
    matrices: Sequence[Matrix],
    names: frozenset[str],
    batches: DocumentBatches,
    decompose: Callable[[Matrix], Svd],
) -> Iterator[Learned]:
    """The matrices one by one, each with its statistics, for a model that is no plain stack of layers."""

    def gather_for(group: Sequence[Matrix]) -> Statistics:
        return gather(model.lm, group, names, batches, decompose)

    about = about_statistics(model, names, batches)
    found = model.statistics_cache.gathered(about, matrices, gather_for, lambda missing: groups(missing, names))
    for matrix in matrices:
        yield [matrix], {matrix.key: found[matrix.key]}


def _expected(matrices: Sequence[Matrix], names: frozenset[str]) -> int:
    return sum(held_bytes(matrix.shape, names) for matrix in matrices)
