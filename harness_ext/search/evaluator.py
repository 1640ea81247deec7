"""The evaluator: where a search tries edits out on calibration documents, and where every trial is written down.

A trial changes no weight. Alternatives for one matrix run side by side (`harness_ext.search.suffix_replay`); what a
search has taken on stands in the model as substituted parameters, the model's own put aside untouched, until the
evaluator is closed. An alternative that can no longer matter is dropped in the middle of its documents: a search says
when that is, and only where it is certain.

Trials are kept in the resume state as they are made, so that a killed search goes on where it stopped, with the same
trials.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from harness_ext.calibration.context import StepContext
from harness_ext.calibration.kept import about_losses
from harness_ext.errors import VariantFailed
from harness_ext.model.seeding import generator_for
from harness_ext.model.weights import values_of
from harness_ext.ranks.group import current
from harness_ext.search.candidates import Alternatives, Nested, as_computed
from harness_ext.search.packing import in_tokens
from harness_ext.search.resumable_trials import MadeTrials, ResumableTrials, trial_key
from harness_ext.search.scoring import batches_by_length
from harness_ext.search.shared_passes import ScoredPart, SharedTrial, scores_of_all
from harness_ext.search.standing_edits import StandingEdits
from harness_ext.search.statistics import SearchStatistics
from harness_ext.search.suffix_replay import Replay
from harness_ext.search.trials import (
    NOT_RUN,
    Hopeless,
    Partial,
    Trial,
    scored,
    told_setting,
    trial_of,
)

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from harness_ext.calibration.documents import LabelledDocument
    from harness_ext.model.layout import Matrix
    from harness_ext.progress import Stage
    from harness_ext.search.scoring import Batch

ALTERNATIVES = 8
"""About as many as one pass has: LASER's grid."""
BATCHES = 16
SMALLEST_BATCH = 64
"""Tokens of a batch before it is repeated for each alternative."""
TOKENS_PER_DOCUMENT = 256
"""Tokens of one pass for each document of `calibration.batch_size`, those of all alternatives together: lowering it
lowers the memory that a pass takes.
"""


@dataclass
class CandidateEvaluator:
    """What a search works with. Nothing that it does here lasts: on leaving the context the model is what it was.

    A search may use, and these stay as they are:

    matrices: those to choose from. documents: labelled, with right answers. step: the search's own, with its `seed` and
    `calibration`. before: the unedited model's trial, over all documents; trials: all that were made, in order.
    parts: set by a search that wants some documents, given by their places, scored by themselves as well.

    weight, standing_weight, truncations, generator: a matrix as it was and as it stands, its truncations at several
    ranks, and what an ordinary step would draw from. statistics: what the documents say of matrices and layers.
    try_out: alternatives for one matrix side by side; try_together: edits of several matrices at once; each makes
    trials. take: let an edit stand while others are tried. as_it_is: the model as it stands now. measure_divergence:
    trials from here on say how far they are from it.

    Everything else is the engine's. lm, weights and decomposer are those of the context; trials are kept in its
    `resume`. stage: is told the number of them made, and the best. resumed: how many an earlier process made.
    """

    context: StepContext
    matrices: tuple[Matrix, ...]
    documents: Sequence[LabelledDocument]
    trials: list[Trial] = field(default_factory=list)
    parts: Sequence[Sequence[int]] = ()
    resumed: int = 0
    earlier_seconds: float = 0.0
    stage: Stage | None = None

    def __post_init__(self) -> None:
        import torch

        model, self.step = self.context.model, self.context.step
        self.lm, self.weights, self.decomposer = model.lm, model.weights, model.decomposer
        assert self.step.calibration is not None, "a search has calibration documents"
        self._budget = TOKENS_PER_DOCUMENT * self.step.calibration.batch_size
        self._best: Trial | None = None
        self._standing = StandingEdits(self.lm.model)
        self.statistics = SearchStatistics(self.context, self.matrices, self.documents, self._standing)
        self._resumable = ResumableTrials(self.context.resume)
        self._earlier_passes = 0.0
        self._references: list[Tensor] = []
        self._questions = in_tokens(self.lm, self.documents, self.matrices)
        self._batches, self._replay = self._arranged([range(len(self.documents))], self._budget)
        self.before = self.as_it_is()
        if not self.before.eligible:
            raise VariantFailed(
                "non_finite_loss",
                "the loss of the unedited model on the calibration documents is not finite: the model or a prompt is"
                " broken; nothing was searched",
            )
        spent = self._replay.passes
        self._batches, self._replay = self._arranged(self._by_difficulty(), self._budget // ALTERNATIVES)
        self._replay.passes = spent
        self._wrong = torch.zeros(len(self.documents))
        self._ran = torch.zeros(len(self.documents))

    def _by_difficulty(self) -> list[list[int]]:
        """Documents that the unedited model gets wrong, then the others. What most edits get wrong is run first: the
        fewer documents are left, the sooner it is certain that an edit is not the best.
        """
        return [
            group
            for group in (
                [place for place, digit in enumerate(self.before.right) if digit == wanted] for wanted in "01"
            )
            if group
        ]

    def _arranged(self, groups: Sequence[Sequence[int]], tokens: int) -> tuple[list[Batch], Replay]:
        """Batches of each group by itself, and the passes over them: enough batches that something can be dropped in
        between, none so small that the pass costs more than its arithmetic.
        """
        whole = sum(len(row.tokens) for question in self._questions for row in question.rows)
        most = min(tokens, max(SMALLEST_BATCH, whole // BATCHES)) if tokens < self._budget else tokens
        batches = [
            batch for group in groups for batch in batches_by_length(self._questions, group, most, self.lm.device)
        ]
        shortest = sorted(range(len(self._questions)), key=lambda place: self._questions[place].width)[:2]
        (probe,) = batches_by_length(self._questions, shortest, 1 << 30, self.lm.device)
        return batches, Replay(self.lm.model, batches, probe, self.matrices, self.weights.layout.matrices)

    @property
    def passes(self) -> float:
        """Forward passes made so far through the whole model over all documents, parts of it counted as such; those of
        an earlier process, and those that gathered statistics, among them.
        """
        return self._replay.passes + self.statistics.passes + self._earlier_passes

    def weight(self, matrix: Matrix) -> Tensor:
        """The matrix as it is in the unedited model, `[m, n]`, in fp32 (fp64)."""
        return self.weights.read(matrix)

    def standing_weight(self, matrix: Matrix) -> Tensor:
        """The matrix as it stands now, `[m, n]`, in fp32 (fp64)."""
        return values_of(self.lm.model.get_parameter(matrix.parameter), matrix)

    def truncations(self, matrix: Matrix, ranks: Sequence[int]) -> Nested:
        """A matrix of the unedited model at several ranks, as `truncate_svd` would leave it. Raises VariantFailed where
        its decomposition does not converge.
        """
        with _converging(matrix):
            left, right = self.decomposer.truncation(self.weight(matrix)).serving(ranks)
        return Nested(left, right, tuple(ranks))

    def generator(self, matrix: Matrix, seed: int | None = None) -> Generator:
        """The generator that an ordinary step of this seed (the search's own unless given) would draw from for this
        matrix.
        """
        return generator_for(self.step.seed if seed is None else seed, matrix)

    @property
    def notes(self) -> list[str]:
        """What the passes had to do without."""
        return self._replay.notes

    def measure_divergence(self) -> None:
        """From here on every trial says how far its predictions of the right answers are from those of the model as it
        stands now (`Batch.divergence`).

        What is compared with, logits at the tokens of the answers, is held in main memory in the model's own dtype, of
        all documents: on every rank, so that any may score any.
        """
        import torch

        with torch.inference_mode(), self._counting("predictions to compare with", len(self._batches)) as stage:
            for place in range(len(self._batches)):
                self._references.append(self._replay.plain(place)[0].cpu())
                stage.advance()

    def as_it_is(self) -> Trial:
        """The model as it stands now, by plain passes."""
        import torch

        with torch.inference_mode(), self._counting("scoring all documents", len(self._batches)) as stage:

            def score(place: int) -> ScoredPart:
                scored = self._scores(place, [0], self._replay.plain(place))
                stage.advance()
                return scored

            parts = scores_of_all(current(), self._replay, len(self._batches), score)
        right, loss = (self._in_order(side)[0] for side in zip(*(part[1:3] for part in parts), strict=True))
        apart = [part.divergence for part in parts if part.divergence is not None]
        return trial_of({}, right, loss, divergence=self._in_order(apart)[0] if apart else None)

    def _scores(self, place: int, some: list[int], logits: Tensor) -> ScoredPart:
        batch = self._batches[place]
        right, loss = batch.score(logits)
        apart = None
        if self._references:
            apart = batch.divergence(logits, self._references[place].to(logits.device)).cpu()
        return ScoredPart(some, right.cpu(), loss.cpu(), apart)

    def _counting(self, what: str, batches: int) -> AbstractContextManager[Stage]:
        return self.context.progress.stage(what, batches, "batches")

    def _in_order(self, parts: Sequence[Tensor]) -> Tensor:
        """Of all documents in their order, `[a, documents]`, from those of each batch."""
        import torch

        places = torch.tensor([place for batch in self._batches for place in batch.places])
        return torch.cat(list(parts), 1)[:, places.argsort()]

    def try_out(
        self,
        matrix: Matrix,
        alternatives: Alternatives,
        settings: Sequence[Mapping[str, Any]],
        hopeless: Hopeless | None = None,
        *,
        once: bool = False,
    ) -> list[Trial]:
        """Try alternatives for one matrix on all documents, on top of what stands. settings: what each is, for the
        record. once: they say all that the alternatives follow from, so that other searches of the session that ask the
        same of the same documents need not make the trials again; without hopeless.

        Trials found in the resume state are not made again.
        """
        import torch

        def make() -> list[Trial]:
            return self._run(
                matrix,
                as_computed(alternatives, self.lm.model.get_parameter(matrix.parameter).dtype),
                settings,
                hopeless,
            )

        asked = [self._standing.notes, matrix.key, list(settings)]
        made = self._kept(asked, self._once(asked, make) if once else make)
        for trial in made:
            self._wrong += torch.tensor([digit == "0" for digit in trial.right])
            self._ran += torch.tensor([digit != NOT_RUN for digit in trial.right])
        return made

    def _kept(self, asked: Any, make: Callable[[], list[Trial]]) -> list[Trial]:
        """Trials that the resume state has, or else made now and kept there, with what they cost. asked: what tells
        them from others.
        """
        key = trial_key(asked)
        earlier = self._resumable.made(key)
        if earlier is not None:
            made = earlier.trials
            self._earlier_passes += earlier.passes
            self.earlier_seconds += earlier.seconds
            self.resumed += len(made)
        else:
            started, passes = time.perf_counter(), self._replay.passes
            made = make()
            cost = self._replay.passes - passes, time.perf_counter() - started
            self._resumable.keep(key, MadeTrials(made, *cost))
        self.trials += made
        self._tell(made)
        return made

    @cached_property
    def _known_trials(self) -> dict[str, tuple[list[Trial], float]]:
        """Trials of the session on these documents, and the passes that they took."""
        model = self.context.model
        return model.statistics_cache.trials.setdefault(about_losses(model, self.documents), {})

    def _once(self, asked: Any, make: Callable[[], list[Trial]]) -> Callable[[], list[Trial]]:
        """Makes trials where the session has not; what they took is counted in each search."""
        key = trial_key([self._budget, bool(self._references), asked])

        def found() -> list[Trial]:
            before = self._replay.passes
            if key in self._known_trials:
                self._replay.passes += self._known_trials[key][1]
            else:
                self._known_trials[key] = make(), self._replay.passes - before
            return self._known_trials[key][0]

        return found

    def _tell(self, made: Sequence[Trial]) -> None:
        """Tell how far the search is, and its best trial so far: the most documents right, then the lowest loss."""
        stage = self.stage or self.context.progress
        eligible = [trial for trial in (self._best, *made) if trial is not None and trial.eligible]
        if eligible:
            best = min(eligible, key=lambda trial: (-trial.score.correct, trial.loss))
            if best is not self._best:
                self._best = best
                stage.found(f"best {scored(best)} right (unedited {scored(self.before)}): {told_setting(best.setting)}")
        stage.advance(len(made))

    def _hardest_first(self) -> list[int]:
        """The places of the batches, those first whose documents the trials so far got wrong most often."""
        share = (self._wrong + 1) / (self._ran + 2)
        return (
            sorted(range(len(self._batches)), key=lambda place: -float(share[list(self._batches[place].places)].mean()))
            if bool(self._ran.any())
            else list(range(len(self._batches)))
        )

    def _run(
        self,
        matrix: Matrix,
        alternatives: Alternatives,
        settings: Sequence[Mapping[str, Any]],
        hopeless: Hopeless | None,
    ) -> list[Trial]:
        import torch

        count, total = len(alternatives), len(self.documents)
        partial = Partial(
            torch.zeros(count, total, dtype=torch.bool),
            torch.zeros(count, total, dtype=torch.float64),
            torch.zeros(total, dtype=torch.bool),
        )
        ran = torch.zeros(count, total, dtype=torch.bool)
        apart = torch.zeros(count, total, dtype=torch.float64) if self._references else None
        active = torch.arange(count)
        order = self._hardest_first()

        def split(place: int, active: Tensor) -> Sequence[Tensor]:
            # Large batches of large documents go in fewer alternatives at a time.
            return active.split(max(1, self._budget // self._batches[place].tokens.numel()))

        def score(place: int, active: Tensor) -> list[ScoredPart]:
            parts = [some.tolist() for some in split(place, active)]
            return [
                self._scores(place, some, self._replay.logits(place, matrix, alternatives.only(some))) for some in parts
            ]

        trial = SharedTrial(current(), self._replay, order, score)
        with torch.inference_mode(), self._counting(f"trying {count}", len(self._batches)) as stage:
            self._replay.prepare(matrix, alternatives.only(split(order[0], active)[0].tolist()))
            for number, place in enumerate(order):
                batch = self._batches[place]
                for part in trial.scores(number, active):
                    rows = torch.tensor(part.some)[:, None]
                    partial.right[rows, list(batch.places)] = part.right
                    partial.loss[rows, list(batch.places)] = part.loss
                    ran[rows, list(batch.places)] = True
                    if apart is not None and part.divergence is not None:
                        apart[rows, list(batch.places)] = part.divergence
                partial.seen[list(batch.places)] = True
                stage.advance()
                if hopeless is not None and not bool(partial.seen.all()):
                    active = active[~hopeless(partial)[active]]
                    if not len(active):
                        break
            trial.forget(number + 1)
        return [
            trial_of(
                setting,
                partial.right[number],
                partial.loss[number],
                ran[number],
                None if apart is None else apart[number],
            )
            for number, setting in enumerate(settings)
        ]

    def try_together(self, edits: Mapping[Matrix, Tensor], setting: Mapping[str, Any]) -> Trial:
        """Try edits `[m, n]` of several matrices at once on all documents."""

        def make() -> list[Trial]:
            try:
                with self._standing.as_before():
                    for matrix, weight in edits.items():
                        self.take(matrix, weight, note=None)
                    found = self.as_it_is()
            finally:
                self._replay.forget()
            return [Trial(setting, found.right, found.loss, found.divergence)]

        (made,) = self._kept([self._standing.notes, setting], make)
        return made

    def take(self, matrix: Matrix, weight: Tensor, shift: Tensor | None = None, *, note: Any) -> None:
        """Let an edit stand in the model; its weight takes the place of an earlier one of the same matrix, its shift
        adds to it. note: names what stands, so that trials on top of it are told from others.
        """
        self._standing.put(matrix, weight, shift, note)
        self._replay.forget(self._replay.depth(matrix))

    def __enter__(self) -> CandidateEvaluator:
        return self

    def __exit__(self, *raised: object) -> None:
        self._standing.remove()
        self._replay.forget()


@contextmanager
def _converging(matrix: Matrix) -> Iterator[None]:
    from harness_ext.linalg.decompose import NotConverged

    try:
        yield
    except NotConverged as error:
        raise VariantFailed("not_converged", str(error), matrix.key) from None
