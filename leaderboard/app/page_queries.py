"""What the pages ask of the store beyond the board: sizes and speeds of runs, what two runs were, and the documents
that flipped.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, NamedTuple

from leaderboard.metrics import ACC_MUTUAL_INFO
from leaderboard.readers.safe_json import finite
from leaderboard.store.database import Store

# Documents that a page lists at most; how many there are is said beside them.
MOST_DOCUMENTS = 500


class RunFacts(NamedTuple):
    """A run in a list: what it is called, how large its model is before and after the edit, and how fast. None: not
    recorded.

    tokens_per_second: while it was scored, `tokens_per_second_before` that of the baseline by the same process.
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


_SIZES = RunFacts._fields[5:]


def run_facts(store: Store) -> dict[str, RunFacts]:
    """run_id -> its facts, earliest first."""
    rows = store.rows(
        "SELECT run_id, model_key, recipe_label, status, started, totals, coalesce(parameters_before, parameters) AS"
        " parameters FROM runs JOIN variants USING (variant_id) ORDER BY started NULLS LAST, run_id"
    )
    return {row["run_id"]: _facts(row) for row in rows}


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


def two_runs(store: Store, a: str, b: str) -> list[dict[str, Any]]:
    """Everything known of two runs, in this order; shorter where one is not there."""
    found = {
        row["run_id"]: row | {"path": str(store.places.resolved(row["path"]))}
        for row in store.rows("SELECT * FROM runs JOIN variants USING (variant_id) WHERE run_id IN (?, ?)", [a, b])
    }
    return [found[run] for run in (a, b) if run in found]


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


def _in_order(run_ids: str) -> str:
    """The scores of runs, copies of one document counted in the order of their scores (`copy`): those of two runs are
    put side by side by it, since files may log them in any order (`logged`).
    """
    return (
        "(SELECT run_id, doc_key, value, occurrence AS logged, row_number() OVER (PARTITION BY run_id, doc_key ORDER BY"
        f" value, occurrence) AS copy FROM sample_scores WHERE run_id IN {run_ids} AND task = $3 AND metric = $4 AND"
        " filter = $5)"
    )


class Flip(NamedTuple):
    """A document whose score changed. before, after: its scores; answers as stored, JSON; doubled: its log-likelihoods
    hold each choice twice.
    """

    doc_key: str
    occurrence: int
    doc_id: int | None
    before: float
    after: float
    answer_before: str | None
    answer_after: str | None
    target: str | None
    document: str | None
    output_type: str | None
    doubled: bool


def flips(store: Store, baseline: str, run: str, task: str, metric: str, filter_name: str) -> list[Flip]:
    """The documents whose score changed between two comparable runs, the largest changes first; at most
    `MOST_DOCUMENTS`.
    """
    rows = store.rows(
        f"WITH changed AS (SELECT doc_key, r.logged AS occurrence, b.logged, b.value AS before, r.value AS after FROM"
        f" {_in_order('($1)')} b JOIN {_in_order('($2)')} r USING (doc_key, copy) WHERE b.value <> r.value ORDER BY"
        " abs(r.value - b.value) DESC, doc_key, copy LIMIT $6) SELECT"
        " c.doc_key, c.occurrence, t.doc_id, c.before, c.after, s.filtered_responses AS answer_before,"
        " t.filtered_responses AS answer_after, d.target, d.document, (SELECT output_type FROM run_tasks WHERE run_id ="
        " $2 AND task = $3) AS output_type, EXISTS (FROM scores WHERE run_id = $2 AND task = $3 AND metric ="
        " $7) AS doubled FROM changed c LEFT JOIN (SELECT * FROM samples WHERE run_id = $1 AND task = $3"
        " AND filter = $5) s ON (s.doc_key, s.occurrence) = (c.doc_key, c.logged) LEFT JOIN (SELECT * FROM samples"
        " WHERE run_id = $2 AND task = $3 AND filter = $5) t ON (t.doc_key, t.occurrence) = (c.doc_key, c.occurrence)"
        " LEFT JOIN (SELECT doc_key, any_value(target) AS target, any_value(document) AS document FROM docs WHERE task ="
        " $3 GROUP BY doc_key) d ON d.doc_key = c.doc_key ORDER BY abs(c.after - c.before) DESC, c.doc_key, c.occurrence",
        [baseline, run, task, metric, filter_name, MOST_DOCUMENTS, ACC_MUTUAL_INFO],
    )
    return [Flip(**row) for row in rows]


def prompt(store: Store, task: str, doc_key: str) -> str | None:
    """What the model was asked."""
    rows = store.rows("SELECT prompt FROM docs WHERE task = ? AND doc_key = ? LIMIT 1", [task, doc_key])
    return rows[0]["prompt"] if rows else None


class OftenFlipped(NamedTuple):
    """A document and how many of the runs looked at lower and raise its score."""

    doc_key: str
    occurrence: int
    doc_id: int | None
    before: float
    lower: int
    higher: int


def often_flipped(
    store: Store, baseline: str, runs: tuple[str, ...], task: str, metric: str, filter_name: str
) -> list[OftenFlipped]:
    """Every document whose score some of these runs change, those that most change first. The runs are comparable with
    the baseline.
    """
    rows = store.rows(
        "SELECT doc_key, any_value(b.logged) AS occurrence, any_value(doc_id) AS doc_id, any_value(b.value) AS before,"
        " CAST(count(*) FILTER (r.value < b.value) AS INTEGER) AS lower, CAST(count(*) FILTER (r.value > b.value) AS"
        f" INTEGER) AS higher FROM {_in_order('(SELECT unnest($2))')} r JOIN {_in_order('($1)')} b USING (doc_key,"
        " copy) LEFT JOIN (SELECT doc_key, occurrence AS logged, doc_id FROM samples WHERE run_id = $1 AND task = $3"
        " AND filter = $5) s ON (s.doc_key, s.logged) = (b.doc_key, b.logged) WHERE r.value <> b.value GROUP BY doc_key,"
        " copy ORDER BY lower + higher DESC, doc_key, occurrence",
        [baseline, list(runs), task, metric, filter_name],
    )
    return [OftenFlipped(**row) for row in rows]
