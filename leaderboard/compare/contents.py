"""What a board needs of a store, read once."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from functools import cached_property

from leaderboard.compare import collapse, comparability, hardware
from leaderboard.compare.effect import Effect
from leaderboard.compare.hardware import Elsewhere
from leaderboard.readers import asked
from leaderboard.store import noise_floor, queries
from leaderboard.store.answer_samples import AnswerSamples
from leaderboard.store.database import Store
from leaderboard.store.families import shown_names
from leaderboard.store.noise_floor import Floor, Floors
from leaderboard.store.paired_samples import PairedSamples, SampleCounts
from leaderboard.store.queries import Calibrated, RunRow, RunTaskRow, ScoreRow

Effects = dict[Hashable, Effect]  # found before, by `pairing.effect_key`


@dataclass(frozen=True)
class Contents:
    """The store's rows, by run."""

    runs: list[RunRow]
    tasks: dict[str, list[RunTaskRow]]
    scores: dict[tuple[str, str], list[ScoreRow]]
    counts: SampleCounts
    pinned: dict[str, str]
    names: dict[str, str]
    samples: PairedSamples
    answers: AnswerSamples
    floors: Floors
    effects: Effects
    controls: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    calibrated: dict[str, Calibrated] = field(default_factory=dict)
    learned_of_scored: dict[tuple[str, str], int] = field(default_factory=dict)

    def fetch(self, pairs: set[tuple[str, str]]) -> None:
        """Read what will be asked of these pairs of (baseline, recipe's run) at once."""
        self.samples.fetch(pairs)
        self.answers.fetch(pairs)

    def task(self, run_id: str, task: str) -> RunTaskRow | None:
        """How a run's task was run."""
        return self._task_of.get((run_id, task))

    def score(self, run_id: str, task: str, metric: str, filter_name: str) -> ScoreRow | None:
        """One score of a run."""
        rows = self.scores.get((run_id, task), ())
        return next((row for row in rows if (row.metric, row.filter) == (metric, filter_name)), None)

    def primary(self, run_id: str, task: str) -> ScoreRow | None:
        """The score of a task that the board shows."""
        return self._primary_of.get((run_id, task))

    def of_task(self, run_id: str, task: str) -> list[ScoreRow]:
        """All scores of a run's task."""
        return self.scores.get((run_id, task), [])

    def controls_of(self, run: RunRow, task: RunTaskRow, score: ScoreRow) -> list[RunRow]:
        """The run of each control of a recipe's run that a score of the task is to be compared with: the latest that
        was asked the same, else the latest that has the task. Of those that `hardware` lets be compared, such as were
        made where the run was come first.
        """
        chosen = []
        for candidates in self.controls.get(run.run_id, {}).values():
            rows = [row for run_id in candidates if (row := self.task(run_id, task.task)) is not None]
            fitting = [row for row in rows if comparability.asked_the_same(row, task)]
            chosen += self._nearest_made([self._run_of[row.run_id] for row in fitting or rows], run, score)
        return chosen

    def _nearest_made(self, controls: list[RunRow], run: RunRow, score: ScoreRow) -> list[RunRow]:
        """The first of these that was made where the run was, else the first that may be compared for all that; no
        more than one.
        """
        here = [control for control in controls if hardware.same_place(control, run)]
        if here or not controls:
            return here[:1]
        apart = ((control, self.hardware(control, run, score)) for control in controls)
        return [control for control, found in apart if found is not None and found.is_measured][:1]

    def revision_notes(self, run: RunRow) -> tuple[str, ...]:
        """Whether a later run of the same recipe and settings was made by another revision of its methods."""
        own, later = asked.revision_of(run.asked), self._latest_revision.get(_recipe_of(run), "")
        if run.recipe_id is None or run.control is not None or own == later:
            return ()
        return (
            f"a later run of this recipe is by {later} of its methods, this one by {own}: it gives other weights now",
        )

    @cached_property
    def _latest_revision(self) -> dict[Hashable, str]:
        return {_recipe_of(run): asked.revision_of(run.asked) for run in self.runs if run.status == "complete"}

    @cached_property
    def _rates(self) -> dict[Hashable, float | None]:
        return {}

    @cached_property
    def _run_of(self) -> dict[str, RunRow]:
        return {run.run_id: run for run in self.runs}

    @cached_property
    def _task_of(self) -> dict[tuple[str, str], RunTaskRow]:
        return {(row.run_id, row.task): row for rows in self.tasks.values() for row in rows}

    @cached_property
    def _primary_of(self) -> dict[tuple[str, str], ScoreRow]:
        return {place: row for place, rows in self.scores.items() for row in reversed(rows) if row.is_primary}

    def by_model(self, wanted: set[str] | None) -> dict[str, list[RunRow]]:
        """model_key -> its runs, earliest first, of all models or those wanted (by key, name shown or own name)."""
        found: dict[str, list[RunRow]] = {}
        for run in self.runs:
            if wanted is None or wanted & {run.model_key, self.names[run.model_key], run.model_name}:
                found.setdefault(run.model_key, []).append(run)
        return found

    def run_ids(self, wanted: set[str] | None) -> list[str]:
        """The runs of all models, or of those wanted."""
        return [run.run_id for runs in self.by_model(wanted).values() for run in runs]

    def noise_floor(self, run: RunRow, score: ScoreRow, baseline: RunRow) -> float | None:
        """The share of answers that flip when rounding alone changes, for comparisons of this score with a
        baseline run; None where it was not measured.
        """
        measured = self.floors_of(run, score)
        if not measured:
            return None
        key = (id(measured), baseline.run_id, run.engine, run.gpu)  # most cells of a board ask the same
        if key not in self._rates:
            self._rates[key] = hardware.noise_floor(measured, baseline, run)
        return self._rates[key]

    def floors_of(self, run: RunRow, score: ScoreRow) -> list[Floor]:
        """What was measured of a score's metric on the run's model, wherever."""
        return self.floors.get((run.model_key, score.task, score.metric, score.filter), [])

    def hardware(self, baseline: RunRow, run: RunRow, score: ScoreRow) -> Elsewhere | None:
        """How far it forbids a comparison of the score that the two runs were made in two places; None where they were
        not, as far as is known.
        """
        if hardware.same_place(baseline, run):
            return None
        return hardware.elsewhere(self.floors_of(run, score), baseline, run)


def _recipe_of(run: RunRow) -> Hashable:
    """What runs have in common that are of one recipe, on one model, asked for in one way."""
    return run.model_key, run.recipe_id, run.control, run.dtype, run.settings_id


def read_contents(
    store: Store, known: Effects | None = None, *, models: Iterable[str] | None = None, and_run: str | None = None
) -> Contents:
    """What was found before may be handed on as `known`, which grows. All runs that a board shows: failed ones only
    where no run of the same `spec_id` has completed since. Of all models, or of those given (by key, name shown or own
    name) and runs whose id begins with `and_run`.
    """
    names = shown_names(store)
    wanted = None if models is None else set(models)
    keys = None if wanted is None else [*wanted, *(key for key, name in names.items() if name in wanted)]
    superseded = queries.superseded_runs(store)
    shown = [run for run in queries.runs(store, keys, and_run) if run.run_id not in superseded]
    chosen = None if wanted is None else [run.run_id for run in shown]
    return Contents(
        shown,
        queries.run_tasks(store, chosen),
        queries.scores(store, chosen),
        SampleCounts(store, chosen),
        queries.pinned_baselines(store),
        names,
        PairedSamples(store),
        AnswerSamples(store, collapse.BOUND),
        noise_floor.floors(store),
        {} if known is None else known,
        controls=queries.control_runs(store, chosen),
        calibrated=queries.calibrated_on(store, chosen),
        learned_of_scored=queries.learned_of_scored(store, chosen),
    )
