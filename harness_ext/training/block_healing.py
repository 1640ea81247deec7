"""Healing block by block: each decoder layer that was edited learns to make of its inputs what it made before.

    minimised over the matrices W' of one layer:  mean over tokens of ||f(h; W) - f(h'; W')||^2 / d

h and h' `[t, d]` are what the layer is handed by the unedited model, and by the layers before it as edits and training
have left them; f is the layer with its residual. This is AA-SVD's training of blocks (arXiv:2604.02119), as its
released code has it: AdamW, a rate that rises over the first tenth of the steps and falls along a cosine to a tenth,
gradients of norm at most 1. There a block is trained before the next one is truncated, with its norms; here after all
edits, and the edited matrices alone.

One layer computes at a time, so that no gradient passes through the whole model. What a layer learned is kept when it
is done, and the same command goes on with the next one to the very same factors.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import mean
from typing import TYPE_CHECKING, Any

from harness_ext.calibration.batches import TOKENS_WITH_GRADIENTS, PaddedBatch, call_of, pad
from harness_ext.calibration.collect import frozen
from harness_ext.calibration.unedited_stream import UneditedStream
from harness_ext.model.decoder_stack import device_of
from harness_ext.training.healing import (
    diverged,
    documents_digest,
    factors_by_steps,
    optimizer_over,
    require_finite_factors,
)
from harness_ext.training.override import swapped, wide
from harness_ext.training.trainer import check_trainable

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from harness_ext.calibration.by_layer import LayerWalk, Learned
    from harness_ext.calibration.context import DocumentBatches
    from harness_ext.calibration.hidden_states import States
    from harness_ext.model.layout import Matrix
    from harness_ext.storage.resume import ResumeState
    from harness_ext.training.healing import HealedMatrix, HealingPlan

WARM_UP, LEAST_RATE, LARGEST_GRADIENT = 0.1, 0.1, 1.0
"""The share of the steps over which the rate rises, the share of it at the end, and the norm gradients are cut to."""
_LOSSES = "losses"


def healed_by_blocks(
    walk: LayerWalk,
    matrices: Sequence[Matrix],
    documents: DocumentBatches,
    plan: HealingPlan,
    unedited: Callable[[int], nn.Module],
    resume: ResumeState | None = None,
) -> Iterator[tuple[Learned, dict[str, Any]]]:
    """The matrices layer by layer, with what the method `heal` asks for, and a row for the log. A layer is to be edited
    before the next is asked for.

    unedited: a copy of a layer from before all edits. resume: has a set of tensors for each layer that is done.

    Raises UserError where a matrix cannot be trained, and VariantFailed where the loss is not finite.
    """
    check_trainable(matrices)
    batches = list(_drawn_batches(walk, documents, plan.seed))
    walk = replace(walk, batches=batches, losses={})
    by_layer = walk.by_layer(matrices)
    entering, beside = walk.entering(), UneditedStream(walk, walk.entering())
    about = {
        "documents": len(documents.documents),
        "documents_sha256": documents_digest(documents.documents),
        "seed": plan.seed,
    }
    with walk.progress.stage("healing", max(by_layer) + 1, "layers") as counted:
        for layer in range(max(by_layer) + 1):
            with walk.stack.placed(layer, walk.layers_on):
                beside.come_to(layer, unedited(layer))
                beside.go_on()
                if own := by_layer.get(layer, []):
                    train = partial(_trained, walk, layer, own, plan, entering, beside.states)
                    kept = _kept(resume, f"healing-{layer}", train)
                    row = {**_row(layer, kept[_LOSSES].tolist(), len(batches)), **about}
                    walk.progress.found("mean squared error {first_loss:.4g}, then {last_loss:.4g}".format_map(row))
                    yield (own, _by_matrix(own, kept, device_of(walk.stack.layers[layer]))), row
                walk.run_on(layer, entering)
            counted.advance()


def rate(step: int, steps: int) -> float:
    """The share of the learning rate in one of so many steps, the first of which is 0."""
    rising = max(1, round(WARM_UP * steps))
    if step < rising:
        return (step + 1) / rising
    return LEAST_RATE + (1 - LEAST_RATE) * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising))) / 2


def _trained(
    walk: LayerWalk, layer: int, matrices: Sequence[Matrix], plan: HealingPlan, entering: States, wanted: States
) -> dict[str, Tensor]:
    return _Block(walk, layer, matrices, plan).trained(entering, wanted)


class _Block:
    """The training of one layer's matrices."""

    def __init__(self, walk: LayerWalk, layer: int, matrices: Sequence[Matrix], plan: HealingPlan) -> None:
        self._walk, self._layer, self._matrices, self._plan = walk, layer, matrices, plan
        self._parts: dict[str, HealedMatrix] = {matrix.key: plan.start(matrix) for matrix in matrices}
        self._losses: list[float] = []

    def trained(self, entering: States, wanted: States) -> dict[str, Tensor]:
        """What was learned of each matrix, as `_by_matrix` reads it, and the loss of each step."""
        import torch

        lm, settings = self._walk.lm, self._plan.settings
        places = _order(len(self._walk.batches), settings.steps, f"{self._plan.seed}:{self._layer}")
        with frozen(lm.model), swapped(lm.model, self._matrices, self._parts.__getitem__), torch.enable_grad():
            for factors, steps in factors_by_steps(settings):
                self._train(factors, [places[step] for step in steps], entering, wanted)
        require_finite_factors(self._parts, settings, settings.steps)
        found = {_LOSSES: torch.tensor(self._losses, dtype=torch.float64)}
        for key, part in self._parts.items():
            found |= {f"{key} {name}": value for name, value in part.learned().items()}
        return found

    def _train(self, factors: Sequence[str], places: Sequence[int], entering: States, wanted: States) -> None:
        from torch.nn.utils import clip_grad_norm_
        from torch.optim.lr_scheduler import LambdaLR

        for part in self._parts.values():
            for value in part.trained().values():
                value.requires_grad_(False)
        own = [value for part in self._parts.values() for value in part.trained(factors).values()]
        optimizer = optimizer_over(own, self._plan.settings)
        schedule = LambdaLR(optimizer, lambda step: rate(step, len(places)))
        for place in places:
            optimizer.zero_grad(set_to_none=True)
            self._losses.append(self._loss(self._walk.batches[place], entering[place], wanted[place]))
            clip_grad_norm_(own, LARGEST_GRADIENT)
            optimizer.step()
            schedule.step()

    def _loss(self, batch: PaddedBatch, entering: Tensor, wanted: Tensor) -> float:
        """The mean squared error of one batch, whose gradients go to what is trained."""
        total, numbers = 0.0, int(batch.mask.sum()) * wanted.shape[-1]
        for rows, part in batch.parts(TOKENS_WITH_GRADIENTS):
            made = self._walk.stack.through(self._layer, entering[rows], call_of(self._walk.lm, part))
            real = part.mask.bool().to(made.device)
            loss = (wide(made)[real] - wide(wanted[rows].to(made.device))[real]).square().sum() / numbers
            loss.backward()
            total += float(loss.detach())
        if not math.isfinite(total):
            raise diverged(self._plan.settings, len(self._losses) + 1)
        return total


def _drawn_batches(walk: LayerWalk, documents: DocumentBatches, seed: int) -> Iterator[PaddedBatch]:
    """Batches of documents in an order that is drawn once: their hidden states are padded with them."""
    order = list(documents.documents)
    random.Random(f"{seed}").shuffle(order)
    for first in range(0, len(order), documents.size):
        yield pad(walk.lm, order[first : first + documents.size])


def _order(batches: int, steps: int, seed: str) -> list[int]:
    """The batch of each step, in another order each time that all were seen."""
    draw = random.Random(seed)
    found: list[int] = []
    while len(found) < steps:
        found += draw.sample(range(batches), batches)
    return found[:steps]


def _kept(resume: ResumeState | None, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What was made before an interruption, or is made now, and kept."""
    if resume is None:
        return make()
    if (found := resume.tensors(name)) is None:
        found = make()
        resume.keep(name, found)
    return found


def _by_matrix(
    matrices: Sequence[Matrix], kept: Mapping[str, Tensor], device: torch.device
) -> dict[str, dict[str, Tensor]]:
    """What the method `heal` asks for, by `Matrix.key`."""
    return {
        matrix.key: {
            name.removeprefix(f"{matrix.key} "): value.to(device)
            for name, value in kept.items()
            if name.startswith(f"{matrix.key} healed_")
        }
        for matrix in matrices
    }


def _row(layer: int, losses: Sequence[float], batches: int) -> dict[str, Any]:
    """What the log tells of a layer. first_loss, last_loss: the means over as many steps as there are batches."""
    return {
        "number": layer + 1,
        "stage": f"healing layer {layer}",
        "steps": len(losses),
        "mean_squared_error": mean(losses),
        "first_loss": mean(losses[:batches]),
        "last_loss": mean(losses[-batches:]),
    }
