"""What a search learns about its documents besides their answers: statistics of matrices, in the forms that it asks.

Statistics of the unedited model that take no gradients are shared with ordinary steps and other searches of the
session; those of a model in which edits stand are gathered anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from harness_ext.calibration.by_layer import (
    Learned,
    LearnedComponents,
    Statistics,
    gathered,
    no_components,
    walk_through,
)
from harness_ext.calibration.collect import gather, groups, needs_backward
from harness_ext.calibration.context import DocumentBatches, StepContext
from harness_ext.calibration.kept import about_statistics, at_hand, walked
from harness_ext.calibration.layer_change import LayerChange, layer_changes
from harness_ext.search.standing_edits import StandingEdits

if TYPE_CHECKING:
    from torch import Tensor

    from harness_ext.calibration.documents import LabelledDocument
    from harness_ext.methods import Svd
    from harness_ext.model.layout import Matrix


@dataclass
class SearchStatistics:
    """Statistics of a search's documents. matrices: all that the search may choose from. standing: the edits that stand
    in the model. passes: forward passes that were made over all documents, parts of it counted as such;
    backward_passes: how many of them went back too.
    """

    context: StepContext
    matrices: Sequence[Matrix]
    documents: Sequence[LabelledDocument]
    standing: StandingEdits
    passes: float = 0.0
    backward_passes: int = 0

    def __post_init__(self) -> None:
        self.lm = self.context.model.lm

    def gather(
        self,
        matrices: Sequence[Matrix],
        names: frozenset[str],
        components: Callable[[Matrix], Svd] | LearnedComponents = no_components,
        part: Sequence[int] | None = None,
    ) -> dict[str, dict[str, Tensor]]:
        """Statistics of matrices on the documents, of the model as it stands, as a method would be given them.
        components: what statistics of components are of. part: the places of the documents, all unless given.
        """
        batches = self._batches
        if part is not None:
            batches = replace(batches, documents=[self.documents[place] for place in part])
        self._count_passes(names, components, len(batches.documents) / len(self.documents))
        return gathered(self.lm, matrices, names, batches, components)

    def at_hand(self, names: frozenset[str]) -> Statistics | None:
        """Statistics of all matrices of the unedited model that take no gradients, as an ordinary step learns them and
        for it and later recipes as well, read when asked for; None where they cannot be had: edits stand, or there is
        no room. They are then to be gathered.
        """
        walk = walk_through(self.lm, self.matrices, names, self._batches, no_components)
        if walk is None or walk.backward or self.standing.notes:
            return None
        return at_hand(self.context.model, walk, self.matrices, self._shared(names))

    def _shared(self, names: frozenset[str]) -> Sequence[str]:
        """All that shared statistics depend on. A pass is counted whether or not they are there already: a record does
        not depend on what else a session runs.
        """
        self._count_passes(names, None)
        return about_statistics(self.context.model, names, self._batches)

    def gather_in_parts(self, matrices: Sequence[Matrix], names: frozenset[str]) -> Iterator[Learned]:
        """As `gather`, in parts that fit together: what one part holds is let go before the next is asked for. Those of
        the unedited model that take no gradients are shared as `at_hand` says.
        """
        walk = walk_through(self.lm, matrices, names, self._batches, no_components)
        if walk is not None and not walk.backward and not self.standing.notes:
            yield from walked(self.context.model, walk, matrices, self._shared(names))
            return
        self._count_passes(names, None)
        if walk is not None:
            yield from walk.as_it_is(matrices)
            return
        for group in groups(matrices, names):
            yield group, gather(self.lm, group, names, self._batches, no_components)

    def gather_from_the_last(self, matrices: Sequence[Matrix], names: frozenset[str]) -> Iterator[Learned]:
        """Statistics of the unedited model, without gradients, of the last matrices first, in parts that fit together;
        edits of these may stand when the next are asked for.
        """
        self._count_passes(names, None)
        walk = walk_through(self.lm, matrices, names, self._batches, no_components)
        if walk is not None:
            yield from walk.from_the_last(matrices)
            return
        for group in groups(list(reversed(matrices)), names):
            yield group, gather(self.lm, group, names, self._batches, no_components)

    def layer_changes(self) -> dict[int, LayerChange]:
        """How far each layer that holds some of the matrices turns its hidden states, by its number, as the model
        stands. Raises UserError where the layers cannot be told.
        """
        self.passes += 1
        return layer_changes(self.lm, self.matrices, self._batches)

    @property
    def _batches(self) -> DocumentBatches:
        calibration = self.context.step.calibration
        assert calibration is not None, "a search has calibration documents"
        return DocumentBatches(self.documents, calibration.batch_size, progress=self.context.progress)

    def _count_passes(self, names: frozenset[str], components: object, share: float = 1.0) -> None:
        self.passes += share * (2 if isinstance(components, LearnedComponents) else 1)
        self.backward_passes += needs_backward(names)
