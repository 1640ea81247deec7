"""What is known of every model at a glance: how many runs, how many of each verdict, the best recipe of each task and
what it breaks, and which runs failed.

Stored verdicts answer where they still hold (`stored_verdicts`); only the models whose runs, pin or judging code
changed since are judged.

Notable choices:
- *Better* is of three kinds: it beats its controls too, it has no control, or is not shown to beat one.
- The best of a task is the largest improvement among runs that beat their controls; where there is none, among those
  that have no control. A gain that a control shows too is never the best.
- Controls are in no count. Of further metrics nothing is said. Failed runs are left out once a run of the same
  `spec_id` has completed, as on the board.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from leaderboard.board import stored_verdicts
from leaderboard.board.board import judge_ahead
from leaderboard.board.cell import Cell
from leaderboard.board.standings import ALONE, AS_CONTROL, BEATS, KINDS
from leaderboard.compare.collapse import COLLAPSED
from leaderboard.compare.contents import Effects
from leaderboard.readers.records import BASELINE
from leaderboard.store.database import Store
from leaderboard.store.families import shown_names


class BestOfTask(NamedTuple):
    """The best run of a task. improvement: positive, delta: recipe minus baseline; both in the metric's units. kind:
    `beats`, or `alone` where no control was run. breaks: the tasks that the same run makes worse or collapses.
    """

    task: str
    recipe: str
    run_id: str
    improvement: float
    delta: float
    kind: str
    breaks: tuple[str, ...] = ()


class FailedRun(NamedTuple):
    """A run without a result, and why."""

    run_id: str
    name: str
    reason: str


class ModelSummary(NamedTuple):
    """A model at a glance. runs: those that a board shows, controls and baselines among them; recipes: distinct edited
    ones without controls; tasks: those that a completed run has. parameters, architecture, dtype: None where no run
    says; several dtypes are listed. newest: when its latest run was started. counts: kind -> cells of primary metrics,
    every one of `standings.KINDS` given. best: by task, in order of name. judged: false where there was no time to, and
    then `counts` and `best` say nothing.
    """

    model_key: str
    name: str
    runs: int
    recipes: int
    tasks: int
    parameters: int | None
    architecture: str | None
    dtype: str | None
    newest: datetime | None
    counts: Mapping[str, int]
    best: Sequence[BestOfTask]
    failed: Sequence[FailedRun]
    judged: bool = True


def summaries(store: Store, known: Effects | None = None, *, seconds: float | None = None) -> dict[str, ModelSummary]:
    """model_key -> what is known of the model, of all models, by name. known: as of `board`. seconds: begin to judge no
    further runs after so long.
    """
    outdated = stored_verdicts.outdated(store)
    boards = _judged(store, list(outdated), known, seconds) if outdated else {}
    cells = [cell for cells in boards.values() for cell in cells]
    store.connection.execute(f"CREATE OR REPLACE TEMP TABLE glance AS {_CELLS}", [list(outdated), *_columns(cells)])
    names = shown_names(store)
    counts, best, failed = _counts(store), _best(store), _failed(store)
    found = {
        row["model_key"]: ModelSummary(
            name=names[row["model_key"]],
            counts=dict.fromkeys(KINDS, 0) | counts.get(row["model_key"], {}),
            best=best.get(row["model_key"], []),
            failed=failed.get(row["model_key"], []),
            judged=row["model_key"] not in outdated or row["model_key"] in boards,
            **row,
        )
        for row in store.rows(_MODELS)
    }
    return dict(sorted(found.items(), key=lambda item: (item[1].name, item[0])))


def _judged(store: Store, models: Sequence[str], known: Effects | None, seconds: float | None) -> dict[str, list[Cell]]:
    return judge_ahead(store, models, math.inf if seconds is None else seconds, known).boards


_COLUMNS = {
    "model_key": "VARCHAR",
    "run_id": "VARCHAR",
    "task": "VARCHAR",
    "verdict": "VARCHAR",
    "label": "VARCHAR",
    "improvement": "DOUBLE",
    "delta": "DOUBLE",
    "beats_controls": "BOOLEAN",
}
"""Columns of the stored verdicts that count here, and their types."""
_LENT = ", ".join(f"unnest(${i}::{kind}[]) AS {name}" for i, (name, kind) in enumerate(_COLUMNS.items(), start=2))
_CELLS = f"""
SELECT d.*, v.control IS NOT NULL AS is_control, CASE
    WHEN d.verdict <> 'better' THEN d.verdict
    WHEN d.beats_controls IS NULL THEN '{ALONE}'
    WHEN d.beats_controls THEN '{BEATS}' ELSE '{AS_CONTROL}' END AS kind
FROM (
    SELECT {", ".join(_COLUMNS)} FROM verdicts WHERE is_primary AND model_key NOT IN (SELECT unnest($1::VARCHAR[]))
    UNION ALL SELECT {_LENT}
) d JOIN runs USING (run_id) JOIN variants v USING (variant_id)
"""
_SHOWN = """
(SELECT r.*, v.* EXCLUDE (variant_id) FROM runs r JOIN variants v USING (variant_id)
WHERE r.status = 'complete' OR r.spec_id IS NULL
    OR r.spec_id NOT IN (SELECT spec_id FROM runs WHERE status = 'complete' AND spec_id IS NOT NULL))
"""
_MODELS = f"""
SELECT model_key, count(*) AS runs,
    count(DISTINCT coalesce(recipe_id, recipe_label)) FILTER (control IS NULL AND recipe_name <> '{BASELINE}'
        AND NOT (origin <> 'recipe' AND edited IS DISTINCT FROM true)) AS recipes,
    coalesce(any_value(t.tasks), 0) AS tasks,
    arg_max(coalesce(parameters_before, parameters), (started IS NOT NULL, started)) AS parameters,
    arg_max(model_type, (started IS NOT NULL, started)) AS architecture,
    string_agg(DISTINCT dtype, ', ' ORDER BY dtype) AS dtype, max(started) AS newest
FROM {_SHOWN} LEFT JOIN (
    SELECT model_key, count(DISTINCT task) AS tasks FROM run_tasks JOIN runs r USING (run_id)
    JOIN variants USING (variant_id) WHERE r.status = 'complete' GROUP BY model_key
) t USING (model_key) GROUP BY model_key
"""
_BEST = f"""
WITH best AS (
    SELECT model_key, task, label, run_id, improvement, delta, kind FROM glance
    WHERE NOT is_control AND kind IN ('{BEATS}', '{ALONE}')
    QUALIFY row_number() OVER (PARTITION BY model_key, task ORDER BY kind = '{BEATS}' DESC, improvement DESC, run_id)
        = 1
)
SELECT model_key, task, label, run_id, improvement, delta, kind, (
    SELECT list(DISTINCT w.task ORDER BY w.task) FROM glance w
    WHERE w.run_id = best.run_id AND w.kind IN ('worse', '{COLLAPSED}')
) AS breaks FROM best ORDER BY model_key, task
"""
_FAILED = f"""
SELECT model_key, run_id, coalesce(any_value(label), any_value(recipe_label)) AS label,
    any_value(concat_ws(': ', failure_kind, failure_reason) || coalesce(' (' || failure_where || ')', '')) AS reason
FROM {_SHOWN} LEFT JOIN (SELECT run_id, label FROM glance) USING (run_id)
WHERE status = 'failed' GROUP BY model_key, run_id, started ORDER BY started DESC NULLS LAST, run_id
"""


def _columns(cells: Sequence[Cell]) -> list[list[object]]:
    """What the stored verdicts would hold of these cells, a list a column."""
    return [[getattr(cell, "name" if column == "label" else column) for cell in cells] for column in _COLUMNS]


def _counts(store: Store) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for row in store.rows(
        "SELECT model_key, kind, count(*) AS cells FROM glance WHERE NOT is_control AND kind <> ? GROUP BY ALL",
        [BASELINE],
    ):
        found.setdefault(row["model_key"], {})[row["kind"]] = row["cells"]
    return found


def _best(store: Store) -> dict[str, list[BestOfTask]]:
    found: dict[str, list[BestOfTask]] = {}
    for model_key, *values, breaks in store.connection.execute(_BEST).fetchall():
        found.setdefault(model_key, []).append(BestOfTask._make([*values, tuple(breaks or ())]))
    return found


def _failed(store: Store) -> dict[str, list[FailedRun]]:
    found: dict[str, list[FailedRun]] = {}
    for model_key, *values in store.connection.execute(_FAILED).fetchall():
        found.setdefault(model_key, []).append(FailedRun(*values))
    return found
