"""What a board needs of a store, read once."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from leaderboard import noise, queries
from leaderboard.effect import Effect
from leaderboard.noise import Floor
from leaderboard.queries import PairedSamples, RunRow, ScoreRow, TaskRow
from leaderboard.store import Store

Effects = dict[Hashable, Effect]  # found before, by `pairing.effect_key`


@dataclass(frozen=True)
class Contents:
    """The store's rows, by run."""

    runs: list[RunRow]
    tasks: dict[str, list[TaskRow]]
    scores: dict[tuple[str, str], list[ScoreRow]]
    counts: dict[tuple[str, str, str, str], int]
    pinned: dict[str, str]
    names: dict[str, str]
    samples: PairedSamples
    floors: dict[tuple[str, str, str, str], list[Floor]]
    effects: Effects

    def task(self, run_id: str, task: str) -> TaskRow | None:
        """How a run's task was run."""
        return next((row for row in self.tasks.get(run_id, ()) if row.task == task), None)

    def score(self, run_id: str, task: str, metric: str, filter_name: str) -> ScoreRow | None:
        """One score of a run."""
        rows = self.scores.get((run_id, task), ())
        return next((row for row in rows if (row.metric, row.filter) == (metric, filter_name)), None)

    def primary(self, run_id: str, task: str) -> ScoreRow | None:
        """The score of a task that the board shows."""
        return next((row for row in self.scores.get((run_id, task), ()) if row.is_primary), None)

    def noise_floor(self, run: RunRow, score: ScoreRow, baseline: RunRow) -> float | None:
        """The share of answers that change at another batch size, for comparisons of this score with a baseline run; None where it was not measured."""
        return noise.rate(self.floors.get((run.model_key, score.task, score.metric, score.filter), []), baseline.run_id)


def read_contents(store: Store, known: Effects | None = None) -> Contents:
    """What was found before may be handed on as `known`, which grows. All runs that a board shows: failed ones only where the same specification has not completed since."""
    runs = queries.runs(store)
    complete = {run.spec_id for run in runs if run.status == "complete" and run.spec_id}
    shown = [run for run in runs if run.status == "complete" or run.spec_id not in complete]
    return Contents(
        shown,
        queries.run_tasks(store),
        queries.scores(store),
        queries.sample_counts(store),
        queries.pinned_baselines(store),
        display_names(runs),
        PairedSamples(store),
        noise.floors(store),
        {} if known is None else known,
    )


def display_names(runs: Iterable[RunRow]) -> dict[str, str]:
    """model_key -> the name shown, with part of its identity where two models bear one name."""
    names = {run.model_key: (run.model_name, run.identity or run.model_key) for run in runs}
    shared = [name for name, _ in names.values()]
    return {key: name if shared.count(name) == 1 else f"{name} ({identity[:8]})" for key, (name, identity) in names.items()}
