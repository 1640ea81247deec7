"""What the pages ask of the store beyond the board: sizes and speeds of runs, and what two runs were."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, NamedTuple

from leaderboard.board.labels import stored_names
from leaderboard.readers.safe_json import finite
from leaderboard.store.database import Store


class RunFacts(NamedTuple):
    """A run in a list: what it is called, how large its model is before and after the edit, and how fast. None: not
    recorded.

    name: the recipe with what tells the run from others of its model. tokens_per_second: while it was scored,
    `tokens_per_second_before` that of the baseline by the same process.
    """

    run_id: str
    model_key: str
    recipe: str
    status: str
    started: datetime | None
    parameters_before: float | None = None
    parameters_after: float | None = None
    bytes_before: float | None = None
    bytes_after: float | None = None
    flops_per_token_before: float | None = None
    flops_per_token_after: float | None = None
    tokens_per_second_before: float | None = None
    tokens_per_second_after: float | None = None
    name: str = ""


_SIZES = tuple(name for name in RunFacts._fields[5:] if name != "name")


def run_facts(store: Store) -> dict[str, RunFacts]:
    """run_id -> its facts, earliest first."""
    rows = store.rows(
        "SELECT run_id, model_key, recipe_label, status, started, totals, coalesce(parameters_before, parameters) AS"
        " parameters FROM runs JOIN variants USING (variant_id) ORDER BY started NULLS LAST, run_id"
    )
    names = stored_names(store)
    return {row["run_id"]: _facts(row)._replace(name=names[row["run_id"]]) for row in rows}


def _facts(row: dict[str, Any]) -> RunFacts:
    totals = json.loads(row["totals"] or "{}")
    totals = totals if isinstance(totals, dict) else {}
    sizes = {name: value for name in _SIZES if (value := finite(totals.get(name))) is not None and value > 0}
    return RunFacts(
        row["run_id"],
        row["model_key"],
        row["recipe_label"],
        row["status"],
        row["started"],
        **({"parameters_before": row["parameters"]} | sizes),
    )


def common_scores(store: Store, a: str, b: str) -> list[dict[str, Any]]:
    """Every metric that both runs report as a finite number: task, metric, filter, before (a), after (b),
    higher_is_better, best_value; groups left out.
    """
    return store.rows(
        "SELECT y.task, y.metric, y.filter, x.score AS before, y.score AS after, y.higher_is_better, y.best_value FROM"
        " scores y JOIN scores x USING (task, metric, filter) WHERE x.run_id = ? AND y.run_id = ? AND NOT x.is_group"
        " AND NOT y.is_group AND x.score IS NOT NULL AND y.score IS NOT NULL ORDER BY y.task, y.metric, y.filter",
        [a, b],
    )
