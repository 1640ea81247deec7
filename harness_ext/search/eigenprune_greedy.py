"""A greedy search for components to remove: candidates to first order, accepted by the loss that is measured (ours).

In each round the ablation effect of every component is measured on the model as edited so far; the best candidates of
all matrices together are removed on trial. Where the loss of the calibration documents falls they stay removed; where
it does not, half as many are tried, down to one, and then the others one by one: the best to first order is often a
large component, for which first order is not enough. The search ends with the first round that accepts nothing.

Nothing is written to the model: a removal is `y - W_removed (x - x_mean)` at the output, by a hook, which is the edit
that is made at last. Means are those of the model before the search.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from harness_ext.calibration.collect import batches_of, gather, part_of, summed_loss
from harness_ext.calibration.context import DocumentBatches
from harness_ext.calibration.documents import LabelledDocument
from harness_ext.errors import VariantFailed
from harness_ext.model.layout import Matrix

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM
    from torch import Tensor

    from harness_ext.methods import Svd
    from harness_ext.recipe.schema import SearchSettings


class _Candidate(NamedTuple):
    """One component, and how much its removal is expected to change the loss."""

    effect: float
    key: str
    component: int


def greedy_search(
    lm: HFLM,
    matrices: Sequence[Matrix],
    documents: DocumentBatches,
    settings: SearchSettings,
    decompose: Callable[[Matrix], Svd],
) -> dict[str, dict[str, Tensor]]:
    """Find `removed_components` `[r]`, bool, and `input_mean` `[n]` of every matrix, keyed by `Matrix.key`.
    documents.advance is told the number of rounds done.

    Raises VariantFailed where the loss is not finite.
    """
    import torch

    quiet = DocumentBatches(documents.documents, documents.size)
    gathered = gather(lm, matrices, frozenset({"input_mean"}), quiet, decompose)
    means = {key: statistics["input_mean"] for key, statistics in gathered.items()}
    removed = {matrix.key: torch.zeros(min(matrix.shape), dtype=torch.bool) for matrix in matrices}

    def loss_without(chosen: Mapping[str, Tensor]) -> float:
        with _removed(lm, matrices, chosen, means, decompose):
            return mean_loss(lm, documents.documents, documents.size)

    loss = loss_without(removed)
    for _ in range(settings.rounds):
        with _removed(lm, matrices, removed, means, decompose):
            effects = gather(lm, matrices, frozenset({"ablation_effects"}), quiet, decompose)
        accepted = _best_trial(removed, _candidates(effects, removed), settings.at_once, loss, loss_without)
        documents.advance(1)
        if accepted is None:
            break
        removed, loss = accepted
    return {key: {"removed_components": removed[key], "input_mean": means[key]} for key in removed}


def mean_loss(lm: HFLM, documents: Sequence[LabelledDocument], batch_size: int) -> float:
    """The mean over documents of the cross-entropy of each one's answer, in nats. Raises VariantFailed where it is not
    finite.
    """
    import torch

    with torch.no_grad():
        total = sum(float(summed_loss(lm, batch)) for batch in batches_of(lm, documents, batch_size))
    if total - total != 0:
        raise VariantFailed(
            "non_finite_loss", "the calibration loss is not finite: the model or a prompt is broken; nothing was edited"
        )
    return total / len(documents)


def _candidates(effects: Mapping[str, Mapping[str, Tensor]], removed: Mapping[str, Tensor]) -> list[_Candidate]:
    """Components still there whose removal should lower the loss, the best first; equal ones in the order of the
    matrices.
    """
    found = [
        _Candidate(float(effect), key, component)
        for key, values in effects.items()
        for component, effect in enumerate(values["ablation_effects"].tolist())
        if effect < 0 and not removed[key][component]
    ]
    return sorted(found, key=lambda candidate: candidate.effect)


def _best_trial(
    removed: Mapping[str, Tensor],
    candidates: Sequence[_Candidate],
    at_once: int,
    loss: float,
    loss_without: Callable[[Mapping[str, Tensor]], float],
) -> tuple[dict[str, Tensor], float] | None:
    """The first set of candidates that lowers the loss, with the loss then; None where none does."""
    for chosen in _sets(candidates[:at_once]):
        trial = {key: marks.clone() for key, marks in removed.items()}
        for candidate in chosen:
            trial[candidate.key][candidate.component] = True
        if (lower := loss_without(trial)) < loss:
            return trial, lower
    return None


def _sets(candidates: Sequence[_Candidate]) -> Iterator[Sequence[_Candidate]]:
    """All of them, the better half, the better quarter and so on down to two, then each by itself."""
    size = len(candidates)
    while size > 1:
        yield candidates[:size]
        size //= 2
    for candidate in candidates:
        yield [candidate]


@contextmanager
def _removed(
    lm: HFLM,
    matrices: Sequence[Matrix],
    removed: Mapping[str, Tensor],
    means: Mapping[str, Tensor],
    decompose: Callable[[Matrix], Svd],
) -> Iterator[None]:
    """The model computes as if the marked components were removed and their mean output kept."""
    modules = dict(lm.model.named_modules())
    with ExitStack() as stack:
        for matrix in matrices:
            if bool(removed[matrix.key].any()):
                stack.callback(
                    modules[matrix.module]
                    .register_forward_hook(_subtract(matrix, removed[matrix.key], means[matrix.key], decompose(matrix)))
                    .remove
                )
        yield


def _subtract(matrix: Matrix, marks: Tensor, mean: Tensor, svd: Svd) -> Callable[..., Any]:
    left, right = (svd.u * svd.s)[:, marks.to(svd.s.device)], svd.vh[marks.to(svd.s.device)]

    def hook(module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        inputs = part_of(args[0], matrix.columns).to(right) - mean.to(right)
        change = ((inputs @ right.T) @ left.T).to(output)
        output = output.clone()
        start = 0
        for low, high in matrix.rows or ((0, matrix.full_shape[0]),):
            output[..., low:high] -= change[..., start : start + high - low]
            start += high - low
        return output

    return hook
