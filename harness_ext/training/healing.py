"""Training after an edit, as papers on compression have it ("healing", "fine-tuning"): the matrices that earlier steps
of a recipe edited, on calibration documents, while everything else of the model stays as it is.

A matrix that its edit left at a rank at which two factors are smaller is trained as two factors of that rank, from its
truncated decomposition with the singular values split evenly: wholly, or by an addition of low rank to each of them
(LoRA, arXiv:2106.09685). Any other is given an addition of low rank, merged at the end: it is as dense as it was, and
zeros that an edit made in it do not stay. `left-then-right` trains the left factors for half of the steps and then the
right ones, as SVD-LLM does (arXiv:2403.07378); an addition to a dense matrix is trained in both halves.

The loss, its dtype and the order of the documents are those of `harness_ext.training.trainer`; so is the way that an
interrupted training goes on to the very same factors. Training block by block is in
`harness_ext.training.block_healing`.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from harness_ext.calibration.batches import pad, summed_loss
from harness_ext.calibration.collect import frozen
from harness_ext.calibration.context import DocumentBatches
from harness_ext.calibration.documents import LabelledDocument
from harness_ext.errors import VariantFailed
from harness_ext.model.layout import Matrix
from harness_ext.model.size import stored_parameters
from harness_ext.recipe.settings import Healing
from harness_ext.training.override import swapped
from harness_ext.training.trainer import KEEP_SECONDS, KEEP_SHARE, Trained, all_labels, check_trainable

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM
    from torch import Generator, Tensor
    from torch.optim import AdamW

    from harness_ext.methods import Svd
    from harness_ext.storage.resume import ResumeState

_CHECKPOINT = "healing"
LEFT, RIGHT = "left", "right"
_BOTH = (LEFT, RIGHT)


@dataclass(frozen=True)
class HealedMatrix:
    """`W~ = base + L R`, L `[m, r]` and R `[r, n]`; base `[m, n]` only of a dense matrix. additions: by the name of a
    factor, two tensors whose product is added to it; then they are trained, and not the factor.
    """

    left: Tensor
    right: Tensor
    base: Tensor | None = None
    additions: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def factor(self, name: str) -> Tensor:
        """L or R, with what is added to it."""
        own: Tensor = self.left if name == LEFT else self.right
        return own + self.additions[name][0] @ self.additions[name][1] if name in self.additions else own

    def __call__(self, inputs: Tensor) -> Tensor:
        """`x -> W~ x` on inputs `[..., n]`."""
        outputs = inputs @ self.factor(RIGHT).T @ self.factor(LEFT).T
        return outputs if self.base is None else outputs + inputs @ self.base.T

    def trained(self, factors: Sequence[str] = _BOTH) -> dict[str, Tensor]:
        """What the optimiser changes, by name, where these factors are trained; of a dense matrix always both."""
        names = factors if self.base is None else _BOTH
        if not self.additions:
            return {name: self.left if name == LEFT else self.right for name in names}
        return {f"{name}.{place}": value for name in names for place, value in enumerate(self.additions[name])}

    def learned(self) -> dict[str, Tensor]:
        """What the method `heal` asks for."""
        import torch

        return {
            "healed_left": self.factor(LEFT).detach(),
            "healed_right": self.factor(RIGHT).detach(),
            "healed_adds": torch.tensor(self.base is not None),
        }


def is_low_rank(shape: tuple[int, int], rank: int) -> bool:
    """Whether a matrix `[m, n]` of this rank is trained as two factors."""
    return stored_parameters(shape, rank) < shape[0] * shape[1]


def from_factors(svd: Svd, rank: int, settings: Healing, generator: Generator) -> HealedMatrix:
    """A matrix of low rank as it is, from its decomposition. generator: on the CPU; of the additions."""
    root = svd.s[:rank].sqrt()
    # Contiguous, as they are when read back from the disk: products of other layouts are rounded otherwise.
    left, right = (svd.u[:, :rank] * root).contiguous(), (root[:, None] * svd.vh[:rank]).contiguous()
    if settings.factors == "whole":
        return HealedMatrix(left, right)
    additions = {name: _nothing(value, settings.rank, generator) for name, value in ((LEFT, left), (RIGHT, right))}
    return HealedMatrix(left, right, additions=additions)


def from_dense(weight: Tensor, settings: Healing, generator: Generator) -> HealedMatrix:
    """A dense matrix as it is, and an addition that is zero at first."""
    return HealedMatrix(*_nothing(weight, settings.rank, generator), base=weight)


def _nothing(like: Tensor, rank: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Two tensors `[m, q]` and `[q, n]` whose product is zero, as LoRA has them: the first is zero, the second normal
    with variance 1 / n.
    """
    import torch

    rows, columns = like.shape
    drawn = torch.randn(rank, columns, generator=generator, dtype=torch.float64) / max(1, columns) ** 0.5
    return like.new_zeros(rows, rank), drawn.to(like)


class HealingPlan(NamedTuple):
    """How matrices are healed. seed: of the order of the documents. start: gives a matrix as it is now."""

    settings: Healing
    seed: int
    start: Callable[[Matrix], HealedMatrix]


def factors_by_steps(settings: Healing) -> list[tuple[tuple[str, ...], range]]:
    """Which factors are trained in which steps."""
    steps, half = settings.steps, (settings.steps + 1) // 2
    if settings.order == "together":
        return [(_BOTH, range(steps))]
    return [(names, own) for names, own in (((LEFT,), range(half)), ((RIGHT,), range(half, steps))) if own]


def optimizer_over(values: Sequence[Tensor], settings: Healing) -> AdamW:
    """The optimiser of these tensors, which from now on learn."""
    from torch.optim import AdamW

    learning = [value.requires_grad_(True) for value in values]
    return AdamW(learning, lr=settings.learning_rate, weight_decay=settings.weight_decay)


def require_finite_factors(parts: Mapping[str, HealedMatrix], settings: Healing, steps: int) -> None:
    """Raise VariantFailed naming the first matrix whose factors are not all finite after so many steps."""
    import torch

    for key, part in parts.items():
        values = part.learned().values()
        if not all(bool(torch.isfinite(value).all()) for value in values):
            raise diverged(settings, steps, key)


def diverged(settings: Healing, steps: int, key: str | None = None) -> VariantFailed:
    """What is raised where the loss of a step, or what it left of a matrix, is not finite."""
    return VariantFailed(
        "non_finite_loss",
        f"the loss of healing is not finite in step {steps} of {settings.steps}: lower its learning_rate (now"
        f" {settings.learning_rate:g})",
        key,
    )


def heal_matrices(
    lm: HFLM,
    matrices: Sequence[Matrix],
    documents: DocumentBatches,
    plan: HealingPlan,
    resume: ResumeState | None = None,
) -> Trained:
    """Train the matrices, from what was kept in `resume` on; the log has one row for each half of the steps.
    documents.advance is told the number of documents done.

    The model is left as it was. Raises UserError where a matrix cannot be trained, and VariantFailed where the loss is
    not finite.
    """
    check_trainable(matrices)
    training = _HealingRun(lm, matrices, documents, plan, resume)
    with frozen(lm.model), swapped(lm.model, matrices, training.part):
        training.run()
    return training.result()


def documents_digest(documents: Sequence[LabelledDocument]) -> str:
    """SHA-256 over the hashes of documents, in their order."""
    return hashlib.sha256("\n".join(document.doc_hash for document in documents).encode()).hexdigest()


class _HealingRun:
    """One training; its arguments are those of `heal_matrices`."""

    def __init__(
        self,
        lm: HFLM,
        matrices: Sequence[Matrix],
        documents: DocumentBatches,
        plan: HealingPlan,
        resume: ResumeState | None,
    ) -> None:
        self._lm, self._plan, self._documents, self._work = lm, plan, documents, resume
        self._parts = {matrix.key: plan.start(matrix) for matrix in matrices}
        self._losses: list[float] = []
        self._stages = factors_by_steps(plan.settings)
        self._kept_at, self._keeping = time.monotonic(), 0.0
        self._kept = resume.tensors(_CHECKPOINT) if resume else None
        if self._kept is not None:
            self._losses = self._kept["losses"].tolist()
            for name, value in self._tensors():
                value.copy_(self._kept[name])

    def part(self, key: str) -> HealedMatrix:
        """What takes the place of a matrix at the moment."""
        return self._parts[key]

    def run(self) -> None:
        """All steps that are left."""
        import torch

        batches = list(self._batches())
        self._documents.advance(sum(map(len, batches[: len(self._losses)])))
        with torch.enable_grad():
            for stage, steps in self._stages:
                if steps.stop <= len(self._losses):
                    continue
                optimizer = self._optimizer(stage)
                for step in range(max(steps.start, len(self._losses)), steps.stop):
                    self._losses.append(self._step(optimizer, batches[step]))
                    self._documents.advance(len(batches[step]))
                    self._keep_if_due(optimizer, last=step + 1 == steps.stop)
        self._documents.progress.found(f"loss {self._losses[-1]:.4g} nats in step {len(self._losses)} of healing")

    def result(self) -> Trained:
        """The factors and the log."""
        require_finite_factors(self._parts, self._plan.settings, len(self._losses) + 1)
        return Trained({key: part.learned() for key, part in self._parts.items()}, list(self._log()))

    def _tensors(self, factors: Sequence[str] = _BOTH) -> Iterator[tuple[str, Tensor]]:
        for key, part in self._parts.items():
            for name, value in part.trained(factors).items():
                yield f"{key}.{name}", value

    def _optimizer(self, factors: Sequence[str]) -> AdamW:
        """AdamW over what is trained in these steps, with the memory that was kept of it."""
        for _, value in self._tensors():
            value.requires_grad_(False)
        own, kept = dict(self._tensors(factors)), self._kept or {}
        optimizer = optimizer_over(list(own.values()), self._plan.settings)
        for name, value in own.items():
            prefix = f"{name}:"
            # The count of steps stays on the CPU, where AdamW wants it.
            memory = {
                moment: kept[prefix + moment] if moment == "step" else kept[prefix + moment].to(value)
                for moment in (full.removeprefix(prefix) for full in kept if full.startswith(prefix))
            }
            if memory:
                optimizer.state[value] = memory
        self._kept = None
        return optimizer

    def _batches(self) -> Iterator[list[LabelledDocument]]:
        """One batch a step; the documents in another order each time that all were seen."""
        size, made, epoch = self._documents.size, 0, 0
        while True:
            order = list(self._documents.documents)
            random.Random(f"{self._plan.seed}:{epoch}").shuffle(order)
            for first in range(0, len(order), size):
                if made == self._plan.settings.steps:
                    return
                yield order[first : first + size]
                made += 1
            epoch += 1

    def _step(self, optimizer: AdamW, documents: Sequence[LabelledDocument]) -> float:
        """The mean loss of the documents before the step, in nats."""
        import torch

        batch = pad(self._lm, documents)
        if self._plan.settings.loss == "text":
            batch = replace(batch, labels=all_labels(batch.tokens, batch.mask, batch.labels))
        loss = summed_loss(self._lm, batch) / len(documents)
        if not bool(torch.isfinite(loss)):
            raise diverged(self._plan.settings, len(self._losses) + 1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    def _keep_if_due(self, optimizer: AdamW, last: bool) -> None:
        waited = time.monotonic() - self._kept_at
        if self._work is None or not (last or waited >= max(KEEP_SECONDS, self._keeping / KEEP_SHARE)):
            return
        import torch

        started = time.monotonic()
        kept: dict[str, Tensor] = {"losses": torch.tensor(self._losses, dtype=torch.float64)}
        for name, value in self._tensors():
            kept[name] = value
            kept |= {f"{name}:{moment}": own for moment, own in optimizer.state.get(value, {}).items()}
        self._work.keep(_CHECKPOINT, kept)
        self._kept_at = time.monotonic()
        self._keeping = self._kept_at - started

    def _log(self) -> Iterator[dict[str, Any]]:
        documents = self._documents.documents
        for number, (factors, steps) in enumerate(self._stages, start=1):
            own = self._losses[steps.start : steps.stop]
            yield {
                "number": number,
                "stage": f"healing {' and '.join(factors)}",
                "steps": len(own),
                "loss": sum(own) / len(own),
                "first_loss": own[0],
                "last_loss": own[-1],
                "documents": len(documents),
                "documents_sha256": documents_digest(documents),
                "seed": self._plan.seed,
            }
