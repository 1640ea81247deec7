"""Statistics: what a method needs to know about how the model uses its matrices, gathered in one streaming pass over
calibration documents.

Only the statistics that a method names are gathered. They see documents that are padded on the left, so that the
answers of a batch stand at the same positions and a counterfactual input is that of the same place in another prompt.
So does the model, unless it would count the padding as tokens (`COUNTS_PADDING`). Losses are per document, so the batch
size changes nothing but speed.

Gradients are those at the outputs of modules, reduced as the backward pass reaches each and then let go; weights get
none. A pass holds the factors, or the second moments, of the matrices it works on; matrices are taken in groups that
fit `FACTOR_BYTES`, one pass a group, so that memory stays bounded for any model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness_ext.calibration.batches import PaddedBatch, batches_of, summed_loss
from harness_ext.calibration.context import DocumentBatches
from harness_ext.calibration.observed import ObservedModule, WatchedMatrix
from harness_ext.errors import UserError, VariantFailed
from harness_ext.methods.statistic_registry import (
    AnyStatistic,
    registered_statistics,
    statistics_among,
)
from harness_ext.model.layout import Matrix

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM
    from torch import Tensor, nn

    from harness_ext.methods import Svd

FACTOR_BYTES = 2 << 30


def gather(
    lm: HFLM,
    matrices: Sequence[Matrix],
    names: frozenset[str],
    documents: DocumentBatches,
    decompose: Callable[[Matrix], Svd],
) -> dict[str, dict[str, Tensor]]:
    """Gather the named statistics of every matrix over all documents; keyed by `Matrix.key`, then by statistic, with
    the tokens seen under `SEEN`. An expert that saw nothing to go by is left out.

    Sink tokens (`sink_tokens`) are in the statistics that are registered so.

    decompose: gives the factors of a matrix, called once each. documents.advance is told the number of documents done.

    Raises UserError where a batch of one cannot give what is asked (some statistics compare documents of a
    batch), and VariantFailed where the loss is not finite.
    """
    check_pairs(names, Counter(document.task for document in documents.documents), documents.size)
    batches = list(batches_of(lm, documents.documents, documents.size))
    backward = any(item.needs_gradients for item in statistics_among(names))
    gathered: dict[str, dict[str, Tensor]] = {}
    for group in groups(matrices, names):
        watched = [WatchedMatrix(matrix, _start(names, matrix, decompose)) for matrix in group]
        _one_pass(lm, watched, batches, documents.advance, backward=backward)
        for item in watched:
            if not item.tokens and item.matrix.expert is None:
                raise UserError(
                    f"{item.matrix.parameter} is used by this model without a call of its layer, so nothing can be"
                    " learned about it: leave it out of matrices, or choose a method that needs no calibration"
                )
            if (found := item.results()) is not None:
                gathered[item.matrix.key] = found
            # A result may be another tensor, as large as what it was made from.
            item.statistics.clear()
    return gathered


def check_pairs(names: frozenset[str], documents: Mapping[str, int], batch_size: int) -> None:
    """Raise UserError where a method compares documents with one another and some would stand alone. documents: how
    many, by task.
    """
    if not any(item.compares_documents for item in statistics_among(names)):
        return
    if batch_size < 2:
        raise UserError(
            "this method compares each calibration document with the next of its batch: set calibration.batch_size to 2"
            " or more"
        )
    alone = [task for task, count in documents.items() if count < 2]
    if alone:
        raise UserError(
            f"this method compares each calibration document with another of its task, and {' and '.join(alone)} would"
            " give only one: raise calibration.samples"
        )


def _start(names: frozenset[str], matrix: Matrix, decompose: Callable[[Matrix], Svd]) -> dict[str, AnyStatistic]:
    registered = registered_statistics()
    chosen = [registered[name] for name in sorted(names)]
    return {item.name: item.make(decompose(matrix)) if item.needs_components else item.make() for item in chosen}


def held_bytes(shape: tuple[int, int], names: frozenset[str]) -> int:
    """What a pass holds for one matrix `[m, n]`: the numbers of its statistics in fp64, and factors in fp32 where one
    of them is of components.
    """
    rows, columns = shape
    chosen = statistics_among(names)
    factors = 4 * min(rows, columns) * (rows + columns) if any(item.needs_components for item in chosen) else 0
    return factors + 8 * sum(item.numbers(shape) for item in chosen)


def groups(matrices: Sequence[Matrix], names: frozenset[str]) -> Iterator[list[Matrix]]:
    """The matrices in runs of which one pass holds no more than `FACTOR_BYTES`; a larger one is a run by itself."""
    group: list[Matrix] = []
    held = 0
    for matrix in matrices:
        size = held_bytes(matrix.shape, names)
        if group and held + size > FACTOR_BYTES:
            yield group
            group, held = [], 0
        group.append(matrix)
        held += size
    if group:
        yield group


def _one_pass(
    lm: HFLM,
    watched: Sequence[WatchedMatrix],
    batches: Sequence[PaddedBatch],
    progress: Callable[[int], Any],
    *,
    backward: bool,
) -> None:
    import torch

    modules = dict(lm.model.named_modules())
    observed: dict[str, ObservedModule] = {}
    for item in watched:
        observed.setdefault(item.matrix.module, ObservedModule(item.matrix.module, [], backward)).items.append(item)
    with ExitStack() as stack:
        stack.enter_context(frozen(lm.model))
        stack.enter_context(torch.set_grad_enabled(backward))
        for module in observed.values():
            for name in module.items[0].matrix.modules:
                stack.callback(modules[name].register_forward_hook(module.called).remove)
        # Of documents of one token, nothing would be left.
        alone = all(bool((batch.mask.sum(1) <= 1).all()) for batch in batches)
        embedded: list[Tensor] = []
        if backward:
            stack.callback(lm.model.get_input_embeddings().register_forward_hook(_begin_here(embedded)).remove)
        rest = _Rest(list(observed.values()))
        if not backward and _may_be_stopped(lm.model):
            for module in observed.values():
                for name in module.items[0].matrix.modules:
                    stack.callback(modules[name].register_forward_hook(rest.stop_before).remove)
        for batch in batches:
            for module in observed.values():
                real = batch.mask.bool()
                module.begin(real, torch.zeros_like(real) if alone else batch.first)
            embedded.clear()
            loss = rest.loss_unless_stopped(lm, batch)
            if loss is not None:
                _require_finite(loss, lm)
                if backward:
                    torch.autograd.grad(loss, embedded)
            progress(batch.tokens.shape[0])


def _require_finite(loss: Tensor, lm: HFLM) -> None:
    import torch

    if torch.isfinite(loss):
        return
    in_float64 = lm.model.dtype == torch.float64
    hint = "; in float64 the attention of some models cannot take padding: load the model in float32"
    raise VariantFailed(
        "non_finite_loss",
        "the calibration loss is not finite: the model or a prompt is broken; nothing was edited"
        + (hint if in_float64 else ""),
    )


class _Enough(Exception):
    """Ends a forward pass of which the rest is asked by nobody."""


@dataclass
class _Rest:
    """What comes after the last watched module of a forward pass: done once, for the first batch, which shows that each
    is called once and that the loss is finite. In edits made one matrix after another, half of all work is such a rest.
    """

    observed: Sequence[ObservedModule]
    needless: bool = False

    def stop_before(self, *_: object) -> None:
        """A forward hook, behind the one that watches."""
        if self.needless and all(module.calls for module in self.observed):
            raise _Enough

    def loss_unless_stopped(self, lm: HFLM, batch: PaddedBatch) -> Tensor | None:
        """The loss of a batch; None where the pass was ended before it."""
        try:
            loss = summed_loss(lm, batch)
        except _Enough:
            return None
        self.needless = all(module.calls == 1 for module in self.observed)
        return loss


def _may_be_stopped(model: nn.Module) -> bool:
    """Whether a forward pass may end in the middle: not where weights are moved in and out around each module, nor
    where a module is called once for every part of a text.
    """
    chunked = getattr(getattr(model, "config", None), "chunk_size_feed_forward", 0)
    return not chunked and getattr(model, "hf_device_map", None) is None


def _begin_here(embedded: list[Tensor]) -> Callable[..., Tensor]:
    """A forward hook that makes a module's output the place where the backward pass ends: all that follows gets
    gradients, without any for the weights.
    """

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_(True))
        # Some models change what they get from it in place, which a leaf does not let them.
        return embedded[-1].clone()

    return hook


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No gradients for the weights: only those of activations are wanted, and they alone should take memory."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
