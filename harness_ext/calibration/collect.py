"""Statistics: what a method needs to know about how the model uses its matrices, gathered over calibration documents.

Only the statistics that a method names are gathered. Losses are per document, so the batch size changes nothing but
speed.

Gradients are those at the outputs of modules, reduced as the backward pass reaches each and then let go; weights get
none. `gather` runs the whole model: a pass holds the factors, or the second moments, of the matrices it works on, and
matrices are taken in groups that fit `FACTOR_BYTES`, one pass a group, so that memory stays bounded for any model.
`harness_ext.calibration.by_layer` needs one pass for all of them, where the model is a plain stack of layers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from harness_ext.calibration.batches import PaddedBatch, calibration_batches, summed_loss
from harness_ext.calibration.context import DocumentBatches
from harness_ext.calibration.observed import ModuleWatch, NotShared, WatchedMatrix, are_alone, results_of
from harness_ext.errors import UserError, VariantFailed
from harness_ext.methods.statistic_registry import AnyStatistic, registered_statistics, statistics_among
from harness_ext.model.layout import Matrix

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM
    from torch import Tensor, nn

    from harness_ext.methods import Svd

FACTOR_BYTES = 2 << 30
Made = TypeVar("Made")


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

    decompose: gives the factors of a matrix, called once each. documents.progress has a stage for the passes.

    Raises UserError where a batch of one cannot give what is asked (some statistics compare documents of a
    batch), and VariantFailed where the loss is not finite.
    """
    check_pairs(names, Counter(document.task for document in documents.documents), documents.size)
    batches = calibration_batches(lm, documents, names)
    backward, alone = needs_backward(names), are_alone(batches)
    gathered: dict[str, dict[str, Tensor]] = {}
    passes = list(groups(matrices, names))
    with documents.progress.stage("calibrating", len(passes) * len(documents.documents), "documents") as stage:
        for group in passes:

            def run(watched: Sequence[WatchedMatrix], share: bool) -> None:
                watch = ModuleWatch(lm.model, watched, backward=backward, share=share, alone=alone)
                _one_pass(lm, watch, batches, stage.advance, backward=backward)

            gathered |= watched_through(group, names, decompose, run)[0]
    return gathered


def needs_backward(names: frozenset[str]) -> bool:
    """Whether gathering these statistics takes a backward pass."""
    return any(item.needs_gradients for item in statistics_among(names))


def needs_originals(names: frozenset[str]) -> bool:
    """Whether gathering these statistics takes the unedited model beside the edited one."""
    return any(item.needs_originals for item in statistics_among(names))


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


def watched_through(
    group: Sequence[Matrix],
    names: frozenset[str],
    decompose: Callable[[Matrix], Svd],
    run: Callable[[Sequence[WatchedMatrix], bool], Made],
) -> tuple[dict[str, dict[str, Tensor]], Made]:
    """The statistics of some matrices, and what `run` made besides. run: has the model work through all documents with
    the matrices under watch, where the flag says so with sums shared between modules of the same inputs.
    """
    for share in (True, False):
        watched = [WatchedMatrix(matrix, _start(names, matrix, decompose)) for matrix in group]
        try:
            made = run(watched, share)
        except NotShared:
            continue
        return results_of(watched), made
    raise AssertionError("modules that share no sums cannot disagree about them")


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
    watch: ModuleWatch,
    batches: Sequence[PaddedBatch],
    progress: Callable[[int], Any],
    *,
    backward: bool,
) -> None:
    import torch

    with ExitStack() as stack:
        stack.enter_context(frozen(lm.model))
        stack.enter_context(torch.set_grad_enabled(backward))
        stack.enter_context(watch)
        embedded: list[Tensor] = []
        if backward:
            stack.callback(lm.model.get_input_embeddings().register_forward_hook(_begin_here(embedded)).remove)
        rest = Rest(watch)
        if not backward and may_be_stopped(lm.model):
            rest.stop_when_done()
        for batch in batches:
            watch.begin(batch)
            embedded.clear()
            loss = rest.unless_stopped(lambda: summed_loss(lm, batch))  # noqa: B023 - called at once
            if loss is not None:
                require_finite_sum(loss, lm)
                if backward:
                    torch.autograd.grad(loss, embedded)
            progress(batch.tokens.shape[0])


def require_finite_sum(loss: Tensor, lm: HFLM) -> None:
    """Raise VariantFailed where the loss of a batch is not finite."""
    import torch

    if not torch.isfinite(loss):
        raise not_finite(in_float64=lm.model.dtype == torch.float64)


def not_finite(*, in_float64: bool = False) -> VariantFailed:
    """What is to be said of a loss that is not finite."""
    hint = "; in float64 the attention of some models cannot take padding: load the model in float32"
    return VariantFailed(
        "non_finite_loss",
        "the calibration loss is not finite: the model or a prompt is broken; nothing was edited"
        + (hint if in_float64 else ""),
    )


class Enough(Exception):
    """Ends a forward pass of which the rest is asked by nobody."""


@dataclass
class Rest:
    """What comes after the last watched module of a forward pass: done once, for the first batch, which shows that each
    is called once. In edits made one matrix after another, half of all work is such a rest.
    """

    watch: ModuleWatch
    needless: bool = False

    def stop_when_done(self) -> None:
        """End passes behind the last module, by hooks behind those that watch."""
        for module in self.watch.observed:
            self.watch.hook(module, self._stop)

    def _stop(self, *_: object) -> None:
        if self.needless and all(module.calls for module in self.watch.observed):
            raise Enough

    def unless_stopped(self, run: Callable[[], Made]) -> Made | None:
        """What a pass over one batch makes; None where it was ended before that."""
        try:
            made = run()
        except Enough:
            return None
        self.needless = self.watch.called_once
        return made


def may_be_stopped(model: nn.Module) -> bool:
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
