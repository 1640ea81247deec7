"""Training the factors of matrices inside a loaded model whose own weights stay as they are (basis selection,
arXiv:2405.15877; our reconstruction, in the order that its algorithm names).

    W~ = U diag(s) V^T + A B; U and V fixed, A B = 0 at first
    1  s, A and B are trained for `keeping_epochs`
    2  `pruning_times` rounds: of each matrix the fewest bases are kept whose |s| sum to ratio_t of their sum before the
    first round, ratio_t falling to `keep_ratio`; `pruning_epochs` in each
    3  the factors [U sqrt|s|, A] and [sign(s) sqrt|s| V^T; B] are trained as a whole for `post_epochs`

The loss is the mean over a batch's documents of each one's mean cross-entropy, in nats: by default the
language-modelling loss, of all tokens of prompt and right answer, or that of the answer's tokens alone. The optimiser
is AdamW with a constant learning rate, in fp32 whatever the model's dtype (fp64 for fp64); its memory of what stays
survives a pruning, and starts anew with the two factors. There is no dropout.

The order of the documents is drawn for each epoch from the seed. What is done so far is kept after each epoch and every
half minute, and the same command goes on from there to the very same factors.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from harness_ext.calibration.batches import pad, summed_loss
from harness_ext.calibration.collect import frozen
from harness_ext.calibration.context import DocumentBatches
from harness_ext.calibration.documents import LabelledDocument
from harness_ext.errors import UserError, VariantFailed
from harness_ext.model.layout import Matrix, check_not_shared
from harness_ext.recipe.settings import Training
from harness_ext.training.bases import Bases, FactorPair, bases_to_keep, ratios
from harness_ext.training.override import swapped
from harness_ext.training.state import State, as_tensors, from_tensors, optimizer_for

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM
    from torch import Tensor

    from harness_ext.storage.resume import ResumeState

KEEP_SECONDS = 30.0
# Where keeping takes long, no more of the time than this goes into it.
KEEP_SHARE = 0.1
_CHECKPOINT = "training"


class Trained(NamedTuple):
    """factors: `trained_left` and `trained_right` of every matrix, keyed by `Matrix.key`. log: a row for each epoch:
    its stage, loss, and where it begins a round the ratio and the bases kept.
    """

    factors: dict[str, dict[str, Tensor]]
    log: list[dict[str, Any]]


class Epoch(NamedTuple):
    """One pass over the documents. ratio: where a round of pruning comes before it."""

    stage: Literal["keeping", "pruning", "post"]
    ratio: float | None = None


def schedule(settings: Training) -> list[Epoch]:
    """Every epoch, in order."""
    rounds = [
        Epoch("pruning", ratio if first else None)
        for ratio in ratios(settings.keep_ratio, settings.pruning_times)
        for first in (True, *[False] * (settings.pruning_epochs - 1))
    ]
    return [*[Epoch("keeping")] * settings.keeping_epochs, *rounds, *[Epoch("post")] * settings.post_epochs]


def check_trainable(matrices: Sequence[Matrix]) -> None:
    """Raise UserError naming the first matrix of an expert, or of a block that layers share: one call computes all
    experts, and nothing can take the place of a single one meanwhile.
    """
    check_not_shared(matrices, "it cannot be trained")
    for matrix in matrices:
        if matrix.expert is not None:
            raise UserError(f"{matrix.key}: experts cannot be trained; choose matrices outside them, such as attn")


class TrainingPlan(NamedTuple):
    """How matrices are trained. seed: of the order of the documents. start: gives all bases of a matrix, and the new
    ones.
    """

    settings: Training
    seed: int
    start: Callable[[Matrix], Bases]


def train(
    lm: HFLM,
    matrices: Sequence[Matrix],
    documents: DocumentBatches,
    plan: TrainingPlan,
    resume: ResumeState | None = None,
) -> Trained:
    """Train the factors of the matrices, from what was kept in `resume` on. documents.advance is told the number of
    documents done.

    The model is left as it was. Raises UserError where a matrix cannot be trained, and VariantFailed where the loss is
    not finite; what was kept then stays.
    """
    check_trainable(matrices)
    training = _Training(lm, matrices, documents, plan, resume)
    with frozen(lm.model), swapped(lm.model, matrices, training.part):
        training.run()
    return training.result()


class _Training:
    """One training; its arguments are those of `train`."""

    def __init__(
        self,
        lm: HFLM,
        matrices: Sequence[Matrix],
        documents: DocumentBatches,
        plan: TrainingPlan,
        resume: ResumeState | None,
    ) -> None:
        self._lm, self._settings, self._seed, self._work = lm, plan.settings, plan.seed, resume
        self._documents, self._batch_size, self._progress = documents.documents, documents.size, documents.advance
        self._found = documents.progress.found
        self._epochs = schedule(plan.settings)
        kept = resume.tensors(_CHECKPOINT) if resume else None
        if kept is None:
            parts: dict[str, Bases | FactorPair] = {matrix.key: plan.start(matrix) for matrix in matrices}
            self._state = State(parts, optimizer_for(parts, plan.settings))
        else:
            self._state = from_tensors(kept, matrices, plan.start, plan.settings)
            count = len(self._documents)
            self._progress(self._state.epoch * count + min(self._state.batch * self._batch_size, count))
        self._kept_at, self._keeping = time.monotonic(), 0.0

    def part(self, key: str) -> Bases | FactorPair:
        """What takes the place of a matrix at the moment."""
        return self._state.parts[key]

    def run(self) -> None:
        """All that is left of the schedule."""
        import torch

        state = self._state
        with torch.enable_grad():
            for epoch in self._epochs[state.epoch :]:
                if state.batch == 0:
                    self._enter(epoch)
                for batch in list(self._batches(state.epoch))[state.batch :]:
                    self._step(batch)
                    state.batch += 1
                    self._progress(len(batch))
                    self._keep_if_due()
                state.losses.append(state.loss / len(self._documents))
                self._found(f"loss {state.losses[-1]:.4g} nats in epoch {len(state.losses)}, {epoch.stage}")
                state.epoch, state.batch, state.loss = state.epoch + 1, 0, 0.0
                self._keep()

    def result(self) -> Trained:
        """The factors and the log."""
        import torch

        factors = {}
        for key, part in self._state.parts.items():
            pair = part.pair()
            factors[key] = {"trained_left": pair.left.detach(), "trained_right": pair.right.detach()}
            if not all(bool(torch.isfinite(factor).all()) for factor in factors[key].values()):
                raise self._diverged(key)
        return Trained(factors, list(self._log()))

    def _enter(self, epoch: Epoch) -> None:
        if epoch.ratio is not None:
            self._prune(epoch.ratio)
        elif epoch.stage == "post" and any(isinstance(part, Bases) for part in self._state.parts.values()):
            self._state.exchange({key: part.pair() for key, part in self._state.parts.items()}, self._settings)

    def _prune(self, ratio: float) -> None:
        state = self._state
        bases = {key: part for key, part in state.parts.items() if isinstance(part, Bases)}
        if not state.totals:
            state.totals = [float(part.values.detach().double().abs().sum()) for part in bases.values()]
        carried = dict(state.optimizer.state)
        pruned: dict[str, Bases | FactorPair] = {}
        for (key, part), total in zip(bases.items(), state.totals, strict=True):
            places = bases_to_keep(part.values, ratio, total)
            left = part.only(places)
            if moments := carried.pop(part.values, None):
                carried[left.values] = {
                    name: moment[places] if moment.ndim else moment for name, moment in moments.items()
                }
            pruned[key] = left
        state.exchange(pruned, self._settings, carried)
        state.bases.append([len(part.kept) for part in pruned.values() if isinstance(part, Bases)])

    def _batches(self, epoch: int) -> Iterator[list[LabelledDocument]]:
        order = list(self._documents)
        random.Random(f"{self._seed}:{epoch}").shuffle(order)
        for first in range(0, len(order), self._batch_size):
            yield order[first : first + self._batch_size]

    def _step(self, documents: Sequence[LabelledDocument]) -> None:
        import torch

        batch = pad(self._lm, documents)
        if self._settings.loss == "text":
            batch = replace(batch, labels=all_labels(batch.tokens, batch.mask, batch.labels))
        summed = summed_loss(self._lm, batch)
        if not bool(torch.isfinite(summed)):
            raise self._diverged()
        optimizer = self._state.optimizer
        optimizer.zero_grad(set_to_none=True)
        (summed / len(documents)).backward()
        optimizer.step()
        self._state.loss += float(summed.detach())

    def _diverged(self, key: str | None = None) -> VariantFailed:
        place = (
            f"epoch {min(self._state.epoch + 1, len(self._epochs))} of {len(self._epochs)}, after {self._state.batch}"
            " batches"
        )
        return VariantFailed(
            "non_finite_loss",
            f"the training loss is not finite in {place}: lower training.learning_rate (now"
            f" {self._settings.learning_rate:g}); nothing was edited",
            key,
        )

    def _keep_if_due(self) -> None:
        if time.monotonic() - self._kept_at >= max(KEEP_SECONDS, self._keeping / KEEP_SHARE):
            self._keep()

    def _keep(self) -> None:
        if self._work is None:
            return
        started = time.monotonic()
        self._work.keep(_CHECKPOINT, as_tensors(self._state))
        self._kept_at = time.monotonic()
        self._keeping = self._kept_at - started

    def _log(self) -> Iterator[dict[str, Any]]:
        bases = iter(self._state.bases)
        for number, (epoch, loss) in enumerate(zip(self._epochs, self._state.losses, strict=True), start=1):
            row: dict[str, Any] = {"epoch": number, "stage": epoch.stage, "loss": loss}
            if epoch.ratio is not None:
                row |= {"ratio": epoch.ratio, "bases": dict(zip(self._state.parts, next(bases), strict=True))}
            yield row


def all_labels(tokens: Tensor, mask: Tensor, answers: Tensor) -> Tensor:
    """Labels `[b, t]` for every real token: the next one, and at the end the last of the answer. answers: `[b, t]`,
    those of the answer, -100 elsewhere.
    """
    following = tokens.roll(-1, dims=1).masked_fill(mask == 0, -100)
    return answers.where(answers != -100, following)
