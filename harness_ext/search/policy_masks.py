"""Which units stay, learned from losses under random masks: the loop around `harness_ext.methods.unit_masks`.

A mask is laid on what the matrices that read units are handed, so that no weight is changed. All masks of a step see
the same documents. What is drawn in a step follows from the seed and its number, so that an interrupted search goes on
to the very same masks.

Some documents of each task are held out: neither the statistics that the search starts from nor its losses are of them.
The log says how the unedited model, the first mask and the last do on both.
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from harness_ext.calibration.by_layer import gathered
from harness_ext.calibration.context import DocumentBatches
from harness_ext.calibration.loss import mean_loss
from harness_ext.errors import UserError
from harness_ext.methods.unit_masks import (
    first_probabilities,
    gradient_estimate,
    highest,
    projected,
    stepped,
    wanda_scores,
)
from harness_ext.model.components import UNITS, kind_of, left_of, units_of
from harness_ext.model.seeding import generator_named
from harness_ext.model.slices import places
from harness_ext.training.trainer import KEEP_SECONDS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness_ext.calibration.context import StepContext
    from harness_ext.calibration.documents import LabelledDocument
    from harness_ext.model.layout import Layout, Matrix
    from harness_ext.recipe.settings import Masking

_STATE = "masks"
_SQUARES = "input_second_moment_diagonal"
UNEDITED, FIRST, LAST = "unedited", "first mask", "last mask"


class Share(NamedTuple):
    """Units that share a budget, heads or hidden units. keys: of the matrices that read them. places: among all units
    of the step. left: how many stay.
    """

    keys: Sequence[str]
    places: Sequence[int]
    left: int


@dataclass(frozen=True)
class MaskedUnits:
    """The units that some matrices read, in one row: those of the first matrix, then those of the next. counts: by
    `Matrix.key`, how many each reads.
    """

    matrices: Sequence[Matrix]
    counts: Mapping[str, int]
    shares: Sequence[Share]

    @property
    def total(self) -> int:
        """All of them, N."""
        return sum(self.counts.values())

    @property
    def fractions(self) -> dict[str, float]:
        """Of the units that share a budget with those of a matrix, the part that stays, by `Matrix.key`."""
        return {key: share.left / len(share.places) for share in self.shares for key in share.keys}

    def split(self, values: Tensor) -> dict[str, Tensor]:
        """A value of every unit `[N]`, matrix by matrix."""
        return dict(zip(self.counts, values.split(list(self.counts.values())), strict=True))

    def within_budget(self, values: Tensor) -> Tensor:
        """The probabilities `[N]` nearest to these values whose sums are within the budgets."""
        return self._by_share(values, projected)

    def kept(self, probabilities: Tensor) -> Tensor:
        """The mask `[N]`, bool, of those of the highest probabilities, as many as the budgets say."""
        return self._by_share(probabilities, highest).bool()

    def _by_share(self, values: Tensor, make: Callable[[Tensor, int], Tensor]) -> Tensor:
        import torch

        made = values.clone()
        for share in self.shares:
            own = torch.tensor(share.places)
            made[own] = make(values[own], share.left).to(values)
        return made

    @contextmanager
    def masked(self, model: nn.Module, mask: Tensor) -> Iterator[None]:
        """The matrices read nothing of the units outside the mask `[N]`, bool."""
        modules = dict(model.named_modules())
        with ExitStack() as stack:
            for matrix, own in zip(self.matrices, self.split(mask).values(), strict=True):
                stack.callback(modules[matrix.module].register_forward_pre_hook(_masking(matrix, own)).remove)
            yield


def units_among(layout: Layout, matrices: Sequence[Matrix], settings: Masking) -> MaskedUnits:
    """The units that matrices read: heads and hidden units with a budget each over all layers, or each matrix with its
    own, where that is given. Raises UserError where what is given does not fit these matrices.
    """
    counts = {matrix.key: units_of(layout, matrix) for matrix in matrices}
    starts = itertools.accumulate(counts.values(), initial=0)
    own = {key: range(start, start + count) for (key, count), start in zip(counts.items(), starts, strict=False)}
    if settings.columns is not None:
        left = _units_left(settings.columns, matrices, counts)
        return MaskedUnits(matrices, counts, [Share([key], some, left[key]) for key, some in own.items()])
    kinds: dict[str, list[str]] = {}
    for matrix in matrices:
        kinds.setdefault(kind_of(UNITS, matrix), []).append(matrix.key)
    alike = [(keys, [place for key in keys for place in own[key]]) for keys in kinds.values()]
    shares = [Share(keys, some, left_of(len(some), settings.unit_fraction)) for keys, some in alike]
    return MaskedUnits(matrices, counts, shares)


def _units_left(columns: Mapping[str, int], matrices: Sequence[Matrix], counts: Mapping[str, int]) -> dict[str, int]:
    """How many units each matrix keeps, from its columns."""
    widths = {matrix.key: matrix.shape[1] // counts[matrix.key] for matrix in matrices}
    wrong = [f"{key} is not one of them" for key in columns.keys() - counts.keys()]
    wrong += [f"{key} is missing" for key in counts.keys() - columns.keys()]
    wrong += [
        f"{key} keeps a multiple of {width} columns, {width * counts[key]} at most"
        for key, width in widths.items()
        if key in columns and (columns[key] % width or columns[key] > width * counts[key])
    ]
    if wrong:
        raise UserError(
            f"masks.columns says how many columns the matrices of its step keep: {'; '.join(sorted(wrong))}"
        )
    return {key: columns[key] // width for key, width in widths.items()}


def _masking(matrix: Matrix, kept: Tensor) -> Callable[..., Any]:
    gone = ~kept.repeat_interleave(matrix.shape[1] // len(kept))

    def hook(module: Any, args: tuple[Tensor, ...]) -> tuple[Any, ...]:
        inputs = args[0]
        outside = gone
        if matrix.columns is not None:
            outside = gone.new_zeros(inputs.shape[-1])
            outside[places(matrix.columns)] = gone
        return (inputs.masked_fill(outside.to(inputs.device), 0), *args[1:])

    return hook


class SplitDocuments(NamedTuple):
    """Documents that are learned from, and those that are held out."""

    searched: Sequence[LabelledDocument]
    held_out: Sequence[LabelledDocument]


def split_documents(documents: Sequence[LabelledDocument], settings: Masking, seed: int) -> SplitDocuments:
    """Of each task the share that is held out, drawn by the seed."""
    held: set[int] = set()
    for task in dict.fromkeys(document.task for document in documents):
        own = [place for place, document in enumerate(documents) if document.task == task]
        held.update(random.Random(f"{seed}:held out:{task}").sample(own, settings.held_out_of(len(own))))
    return SplitDocuments(
        [document for place, document in enumerate(documents) if place not in held],
        [document for place, document in enumerate(documents) if place in held],
    )


class MaskSearch:
    """One search for a mask. documents: all of the step's; documents.advance is told the number of steps done. log: a
    row of plain data for the unedited model, for each step, and for the first mask and the last.
    """

    def __init__(self, context: StepContext, units: MaskedUnits, documents: DocumentBatches) -> None:
        step = context.step
        assert step.masks is not None, "a step that learns masks"
        self.log: list[dict[str, Any]] = []
        self._settings, self._seed, self._resume = step.masks, step.seed, context.resume
        self._model, self._units, self._documents = context.model, units, documents
        self._split = split_documents(documents.documents, step.masks, step.seed)
        # Documents that went through the model, and masks that were tried.
        self._run, self._tried = 0, 0
        self._kept_at = time.monotonic()

    def learn(self) -> dict[str, dict[str, Tensor]]:
        """What `policy_prune` asks for, by `Matrix.key`. Raises VariantFailed where a loss is not finite."""
        self._measure(UNEDITED, None)
        probabilities = self._units.within_budget(self._first())
        first = last = self._units.kept(probabilities)
        self._measure(FIRST, first)
        if self._settings.steps:
            last = self._units.kept(self._stepped(probabilities))
            self._measure(LAST, last, exchanged=int((first & ~last).sum()))
        return {key: {"kept_units": own} for key, own in self._units.split(last).items()}

    def _first(self) -> Tensor:
        """Probabilities before the first step, `[N]`, and not yet within the budget."""
        import torch

        units, counts = self._units, self._units.counts
        if self._settings.start == "random":
            return torch.cat([_uniform((count,), f"{self._seed} {key}") for key, count in counts.items()])
        searched = replace(self._documents, documents=self._split.searched)
        found = gathered(self._model.lm, units.matrices, frozenset({_SQUARES}), searched)
        self._run += len(self._split.searched)
        scores = {
            matrix.key: wanda_scores(
                self._model.weights.read(matrix), found[matrix.key][_SQUARES], counts[matrix.key]
            ).cpu()
            for matrix in units.matrices
        }
        return torch.cat([first_probabilities(own, units.fractions[key]) for key, own in scores.items()])

    def _stepped(self, probabilities: Tensor) -> Tensor:
        """All steps of the policy gradient, from what was kept of them on."""
        import torch

        steps, draws = self._settings.steps, self._settings.draws
        kept = self._resume.tensors(_STATE) if self._resume is not None else None
        known = torch.zeros(0, draws + 1, dtype=torch.float64)
        if kept is not None:
            known, probabilities = kept["steps"], kept["probabilities"]
        rows = known.tolist()
        for number, batch in enumerate(self._batches()):
            if number >= len(known):
                masks = _uniform((draws, self._units.total), f"{self._seed} masks {number}") < probabilities
                losses = torch.tensor([self._loss(batch, mask) for mask in masks], dtype=torch.float64)
                rate = self._settings.learning_rate * (1 + math.cos(math.pi * number / steps)) / 2
                gradient = gradient_estimate(losses, masks, probabilities)
                probabilities = self._units.within_budget(stepped(probabilities, gradient, rate))
                rows.append([float(probabilities.sum()), *losses.tolist()])
                self._keep(rows, probabilities)
            self._tell_step(rows[number], len(batch))
        return probabilities

    def _batches(self) -> Iterator[Sequence[LabelledDocument]]:
        """One batch a step; the documents in another order each time that all were seen."""
        size, made = self._documents.size, 0
        for epoch in itertools.count():
            order = list(self._split.searched)
            random.Random(f"{self._seed}:{epoch}").shuffle(order)
            for first in range(0, len(order), size):
                if made == self._settings.steps:
                    return
                yield order[first : first + size]
                made += 1

    def _loss(self, documents: Sequence[LabelledDocument], mask: Tensor | None) -> float:
        lm, size = self._model.lm, self._documents.size
        with nullcontext() if mask is None else self._units.masked(lm.model, mask):
            return mean_loss(lm, documents, size)

    def _keep(self, rows: Sequence[Sequence[float]], probabilities: Tensor) -> None:
        import torch

        if self._resume is not None and time.monotonic() - self._kept_at >= KEEP_SECONDS:
            steps = torch.tensor(rows, dtype=torch.float64)
            self._resume.keep(_STATE, {"steps": steps, "probabilities": probabilities})
            self._kept_at = time.monotonic()

    def _tell_step(self, row: Sequence[float], documents: int) -> None:
        expected, *losses = row
        self._run += documents * len(losses)
        self._tried += len(losses)
        self._tell(
            stage="step", loss=sum(losses) / len(losses), documents=documents, losses=losses, expected_units=expected
        )
        self._documents.advance(1)

    def _measure(self, stage: str, mask: Tensor | None, **more: Any) -> None:
        """Tell how the model does under a mask, on the documents that are learned from and on those held out."""
        searched, held_out = self._split
        losses = [self._loss(some, mask) if some else None for some in self._split]
        self._run += len(searched) + len(held_out)
        self._tell(
            stage=stage,
            loss=losses[0],
            documents=len(searched),
            held_out_loss=losses[1],
            held_out_documents=len(held_out),
            seed=self._seed,
            units=int(mask.sum()) if mask is not None else self._units.total,
            **more,
        )
        self._documents.progress.found(f"loss {losses[0]:.4g} nats, {stage}")

    def _tell(self, **row: Any) -> None:
        passes = round(self._run / len(self._documents.documents), 2)
        self.log.append({"number": len(self.log), **row, "trials": self._tried, "forward_passes": passes})


def _uniform(shape: tuple[int, ...], name: str) -> Tensor:
    import torch

    return torch.rand(shape, generator=generator_named(name), dtype=torch.float64)
