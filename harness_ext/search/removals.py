"""Removals of singular components on trial: made for the length of a measurement, and kept only where the measured loss
of the calibration documents falls, and that of no task among them rises by more than `HARM`. The mean alone would let
one task pay for another, and that no task may lose at all forbids every removal where one is known by heart.

Nothing is written to the model: a removal is `y - W_removed (x - x_mean)` at the output, by a hook, which is the edit
that is made at last. Means are those of the model before the first removal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from harness_ext.calibration.context import DocumentBatches
from harness_ext.calibration.loss import MeasuredLoss, measured_loss, require_finite_loss
from harness_ext.calibration.observed import part_of
from harness_ext.methods.eigenprune import without
from harness_ext.model.layout import Matrix
from harness_ext.model.weights import with_part, with_shift

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM
    from torch import Tensor, nn

    from harness_ext.methods import Svd


class RemovalCandidate(NamedTuple):
    """One component, and by how much its removal is predicted to change the loss, in nats."""

    effect: float
    key: str
    component: int


@dataclass(frozen=True)
class EditedSite:
    """Where removals are tried: matrices of a model, the mean input `[n]` of each by `Matrix.key`, and what decomposes
    one.
    """

    lm: HFLM
    matrices: Sequence[Matrix]
    means: Mapping[str, Tensor]
    decompose: Callable[[Matrix], Svd]


@dataclass
class RemovalTrials:
    """Removals that stand, and what was tried on top of them.

    removed: the components that stand removed, `[r]`, bool, by `Matrix.key`. loss: the calibration loss with
    these; found_as: without. log: a row of plain data for the model as it was found, and one for each trial.
    """

    site: EditedSite
    documents: DocumentBatches
    removed: dict[str, Tensor] = field(init=False)
    loss: MeasuredLoss = field(init=False)
    found_as: MeasuredLoss = field(init=False)
    log: list[dict[str, Any]] = field(init=False)
    _factors: dict[tuple[str, int], tuple[Tensor, Tensor]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        import torch

        self.removed = {matrix.key: torch.zeros(min(matrix.shape), dtype=torch.bool) for matrix in self.site.matrices}
        self.loss = self.found_as = require_finite_loss(self._measured())
        self.log = []
        self._tell({}, 0.0, self.loss, accepted=True)

    @property
    def made(self) -> int:
        """How many trials were made."""
        return len(self.log) - 1

    def attempt(self, group: Sequence[RemovalCandidate], least: float = 0.0) -> bool:
        """Remove these as well, and keep that if the loss falls, by `least` nats or more, and no task is harmed
        beside the model as it was found; whether it was kept.
        """
        trial = {key: marks.clone() for key, marks in self.removed.items()}
        removes: dict[str, list[int]] = {}
        for candidate in group:
            trial[candidate.key][candidate.component] = True
            removes.setdefault(candidate.key, []).append(candidate.component)
        with self.standing(trial):
            found = self._measured(self.loss)
        fall = self.loss.mean - found.mean
        whole = found.documents == self.loss.documents
        accepted = whole and fall > 0 and fall >= least and not found.harms(self.found_as)
        self._tell(removes, sum(candidate.effect for candidate in group), found, accepted=accepted)
        if accepted:
            self.removed, self.loss = trial, found
            count = sum(int(marks.sum()) for marks in trial.values())
            self.documents.progress.found(
                f"best loss {found.mean:.4g} nats (before {self.found_as.mean:.4g}), {count} removed"
            )
        self.documents.advance(1)
        return accepted

    def _measured(self, beside: MeasuredLoss | None = None) -> MeasuredLoss:
        return measured_loss(self.site.lm, self.documents.documents, self.documents.size, beside)

    def _tell(
        self, removes: Mapping[str, list[int]], predicted: float | None, found: MeasuredLoss, *, accepted: bool
    ) -> None:
        self.log.append(
            {
                "number": len(self.log),
                "removes": dict(removes),
                "predicted": predicted,
                "loss": found.mean if math.isfinite(found.mean) else None,
                "documents": found.documents,
                "accepted": accepted,
            }
        )

    @contextmanager
    def standing(self, removed: Mapping[str, Tensor] | None = None) -> Iterator[None]:
        """The model computes as if these components were removed (those that stand, unless given) and their mean output
        kept.
        """
        marked = self.removed if removed is None else removed
        modules = dict(self.site.lm.model.named_modules())
        with ExitStack() as stack:
            for matrix in self.site.matrices:
                if bool(marked[matrix.key].any()):
                    mean = self.site.means[matrix.key]
                    hook = _subtract(matrix, *self._removed_factors(matrix, marked[matrix.key]), mean)
                    stack.callback(modules[matrix.module].register_forward_hook(hook).remove)
            yield

    def _removed_factors(self, matrix: Matrix, marks: Tensor) -> tuple[Tensor, Tensor]:
        """Left `[m, k]` and right `[k, n]` of the marked components; held, since a trial needs few of them, many times
        over.
        """
        import torch

        components: list[int] = marks.nonzero()[:, 0].tolist()
        missing = [component for component in components if (matrix.key, component) not in self._factors]
        if missing:
            svd = self.site.decompose(matrix)
            for component in missing:
                left = (svd.u[:, component] * svd.s[component]).clone()
                self._factors[matrix.key, component] = left, svd.vh[component].clone()
        held = [self._factors[matrix.key, component] for component in components]
        return torch.stack([left for left, _ in held], dim=1), torch.stack([right for _, right in held])

    def confirm(self) -> None:
        """Measure what stands once more, as it would be written: with weights and biases rounded to the model's dtype.
        Where that is no better than the model as it was found, or harms a task, nothing stays removed.

        A layer that an earlier step left as two low-rank ones is measured as in any other trial.
        """
        if not any(bool(marks.any()) for marks in self.removed.values()):
            return
        with _written(self.site, self.removed):
            found = self._measured()
        accepted = found.mean < self.found_as.mean and not found.harms(self.found_as)
        marked = {key: marks.nonzero()[:, 0].tolist() for key, marks in self.removed.items() if bool(marks.any())}
        self._tell(marked, None, found, accepted=accepted)
        if accepted:
            self.loss = found
        else:
            self.removed = {key: marks.zero_() for key, marks in self.removed.items()}
            self.loss = self.found_as


def _subtract(matrix: Matrix, left: Tensor, right: Tensor, mean: Tensor) -> Callable[..., Any]:
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


@contextmanager
def _written(site: EditedSite, removed: Mapping[str, Tensor]) -> Iterator[None]:
    """The model holds the weights and biases that the removal would write, in place of its own."""
    import torch

    def put(module: nn.Module, name: str, value: Tensor) -> None:
        aside.setdefault((module, name), module._parameters[name])
        module._parameters[name] = torch.nn.Parameter(value, requires_grad=False)

    aside: dict[tuple[nn.Module, str], nn.Parameter | None] = {}
    try:
        for matrix in site.matrices:
            module = site.lm.model.get_submodule(matrix.module)
            weight = module._parameters.get(matrix.parameter.rpartition(".")[2])
            if weight is None or not bool(removed[matrix.key].any()):
                continue
            svd = site.decompose(matrix)
            edit = without(svd, removed[matrix.key].to(svd.s.device), site.means[matrix.key].to(svd.s.device))
            put(module, matrix.parameter.rpartition(".")[2], with_part(weight, matrix, edit.weight()))
            assert edit.bias_shift is not None
            bias = module._parameters.get("bias")
            own = weight.new_zeros(matrix.full_shape[0]) if bias is None else bias.detach().clone()
            put(module, "bias", with_shift(own, matrix, edit.bias_shift))
        yield
    finally:
        for (module, name), value in aside.items():
            module._parameters[name] = value
