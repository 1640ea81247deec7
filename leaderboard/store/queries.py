"""Questions to the store, answered as plain rows. All SQL of the readers is here; nothing here judges.

Sums and joins happen in SQL, p-values do not (DuckDB has no binomial or normal distribution).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from leaderboard.errors import LeaderboardError, UnknownRun
from leaderboard.readers.records import BASELINE
from leaderboard.store import decisions
from leaderboard.store.database import Store
from leaderboard.store.writer import now

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class RunRow:
    """A run with its variant, as the board needs it."""

    run_id: str
    spec_id: str | None
    settings_id: str | None
    status: str
    origin: str
    failure: str | None
    path: str
    started: datetime | None
    warnings: str
    model_key: str
    model_name: str
    identity: str | None
    recipe_name: str
    recipe_label: str
    control: str | None
    digest_before: str | None
    digest_after: str | None
    parameters_before: int | None
    parameters_after: int | None
    backend: str | None
    device: str | None
    dtype: str | None
    batch_size: str | None
    lm_eval_version: str | None
    transformers_version: str | None
    torch_version: str | None
    recipe_id: str | None = None
    asked: str | None = None
    edited: bool | None = None

    @property
    def may_be_baseline(self) -> bool:
        """Whether the run is of the model as it is, as far as its files say."""
        return self.recipe_name == BASELINE or (self.origin == "plain" and self.edited is not True)


class RunTaskRow(NamedTuple):
    """How a run's task was run."""

    run_id: str
    task: str
    version: str | None
    num_fewshot: int | None
    chat_template_hash: str | None
    system_instruction_hash: str | None
    generation_arguments: str | None
    documents: int | None
    documents_hash: str | None
    calibration_overlap: int
    overlap_example: str | None
    cluster_by: str | None
    identity: str | None = None
    config_hash: str | None = None
    subset: str | None = None
    sample_count: int | None = None

    @property
    def document_count(self) -> int | None:
        """The documents scored: of the samples, or as the results file says."""
        return self.sample_count if self.documents is None else self.documents


class ScoreRow(NamedTuple):
    """One reported score."""

    run_id: str
    task: str
    metric: str
    filter: str
    score: float | None
    reported: str
    stderr: float | None
    higher_is_better: bool | None
    best_value: float | None
    margin: float | None
    is_primary: bool
    bound: float | None = None


def runs(store: Store) -> list[RunRow]:
    """All runs, earliest first, each with the path where it lies now."""
    rows = store.rows(
        "SELECT run_id, spec_id, settings_id, status, origin, path, started, warnings, model_key, model_name, identity,"
        " recipe_name, recipe_label, control, digest_before, digest_after, parameters_before, parameters_after,"
        " backend, device, dtype, batch_size, lm_eval_version, transformers_version, torch_version, recipe_id, asked,"
        " edited, CASE WHEN status = 'failed' THEN concat_ws(': ', failure_kind, failure_reason) ||"
        " coalesce(' (' || failure_where || ')', '') END AS failure FROM runs JOIN variants USING (variant_id) ORDER BY"
        " started NULLS LAST, coalesce(former_id, run_id), run_id"
    )
    return [RunRow(**row | {"path": str(store.places.resolved(row["path"]))}) for row in rows]


def run_tasks(store: Store, run_ids: list[str] | None = None) -> dict[str, list[RunTaskRow]]:
    """run_id -> its tasks, by name; of all runs or of some."""
    found: dict[str, list[RunTaskRow]] = defaultdict(list)
    for row in _rows_of(store, RunTaskRow._fields, "run_tasks", "true", "run_id, task", run_ids):
        task = RunTaskRow._make(row)
        found[task.run_id].append(task)
    return found


def _rows_of(
    store: Store, columns: Sequence[str], table: str, condition: str, order: str, run_ids: list[str] | None
) -> list[tuple[Any, ...]]:
    """Bare tuples, because a board reads a hundred thousand. Every argument but `run_ids` is ours."""
    some = "" if run_ids is None else " AND run_id IN (SELECT unnest($1))"
    return store.connection.execute(
        f"SELECT {', '.join(columns)} FROM {table} WHERE {condition}{some} ORDER BY {order}",
        [] if run_ids is None else [run_ids],
    ).fetchall()


def scores(store: Store, run_ids: list[str] | None = None) -> dict[tuple[str, str], list[ScoreRow]]:
    """(run_id, task) -> its scores in reported order, groups left out; of all runs or of some."""
    found: dict[tuple[str, str], list[ScoreRow]] = defaultdict(list)
    for row in _rows_of(store, ScoreRow._fields, "scores", "NOT is_group", "rowid", run_ids):
        score = ScoreRow._make(row)
        found[score.run_id, score.task].append(score)
    return found


def pinned_baselines(store: Store) -> dict[str, str]:
    """model_key -> run_id of its pinned baseline, the last pin of each."""
    rows = store.rows("SELECT model_key, run_id FROM baselines ORDER BY rowid")
    return {row["model_key"]: row["run_id"] for row in rows}


def control_runs(store: Store) -> dict[str, dict[str, list[str]]]:
    """run_id of a recipe's run -> name of a control -> run_ids of that control of the recipe, on the same model, dtype
    and settings, the latest in the store first. Names in order.
    """
    rows = store.rows(
        "SELECT r.run_id, cv.control, c.run_id AS control_run FROM runs r JOIN variants v USING (variant_id) JOIN"
        " variants cv ON cv.model_key = v.model_key AND cv.control_of = v.recipe_id AND cv.dtype IS NOT DISTINCT FROM"
        " v.dtype JOIN runs c ON c.variant_id = cv.variant_id AND c.settings_id IS NOT DISTINCT FROM r.settings_id"
        " WHERE r.status = 'complete' AND c.status = 'complete' AND v.control IS NULL AND cv.control IS NOT NULL"
        " ORDER BY r.run_id, cv.control, c.rowid DESC"
    )
    found: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        found.setdefault(row["run_id"], {}).setdefault(row["control"], []).append(row["control_run"])
    return found


def pin_baseline(store: Store, run_id: str, reason: str) -> None:
    """Make a run the baseline of its model from now on; the earlier pin stays on record.

    Raises `UnknownRun`, and `LeaderboardError` for a failed run.
    """
    row = run_details(store, run_id)
    if row["status"] != "complete":
        raise LeaderboardError(f"run {run_id} failed and cannot be a baseline")
    values = {
        "model_key": row["model_key"],
        "run_id": row["run_id"],
        "path": store.places.stored(Path(row["path"])),
        "pinned_at": now(),
        "reason": reason,
    }
    decisions.record(store, "pin", values)


class MetricSamples(NamedTuple):
    """One metric's samples of two runs, paired: arrays of one length in a fixed order, masked where a value is
    missing. copies: how many of them are of a document that was there before; if those are more than a few, `cluster`
    holds copies together.
    """

    baseline: np.ma.MaskedArray
    recipe: np.ma.MaskedArray
    baseline_weight: np.ma.MaskedArray
    recipe_weight: np.ma.MaskedArray
    baseline_parts: np.ma.MaskedArray
    recipe_parts: np.ma.MaskedArray
    cluster: np.ma.MaskedArray
    copies: int = 0


_ARRAYS = MetricSamples._fields[:-1]
_FEW_COPIES = 1.02
"""Copies are no independent documents. They may be taken for such while the variance of a mean, counted as if all its
documents were independent, is too small by at most this factor: with groups of m, sum(m^2) / n."""

_Key = tuple[str, str, str, str, str]  # baseline, recipe's run, task, metric, filter
_SCORES = "sample_scores"
# Files may log copies of one document in any order. Those of two runs are put side by side by their scores.
_IN_ORDER_OF_SCORES = (
    "(SELECT * REPLACE (row_number() OVER (PARTITION BY run_id, task, metric, filter, doc_key ORDER BY value, weight,"
    " parts) AS occurrence) FROM sample_scores WHERE (run_id IN (SELECT unnest($1)) OR run_id IN (SELECT unnest($2)))"
    " AND task IN (SELECT unnest($3)))"
)


def _joined(source: str) -> str:
    """The pairs of samples, from a table of them or a query in its place."""
    return (
        f"FROM (SELECT unnest($1) AS baseline, unnest($2) AS recipe) p JOIN {source} r ON r.run_id = p.recipe JOIN"
        " scores s ON s.run_id = p.recipe AND s.is_primary AND (s.task, s.metric, s.filter) = (r.task, r.metric,"
        f" r.filter) JOIN {source} b ON b.run_id = p.baseline AND (b.task, b.metric, b.filter, b.doc_key, b.occurrence)"
        " = (r.task, r.metric, r.filter, r.doc_key, r.occurrence) "
    )


_PLAIN = (
    "b.value IN (0, 1) AND r.value IN (0, 1) AND b.weight IS NULL AND r.weight IS NULL AND b.parts IS NULL AND r.parts"
    " IS NULL AND r.cluster IS NULL AND s.best_value IS NULL"
)


class PairedSamples:
    """The documents that two runs have in common, metric by metric.

    A query costs some ten milliseconds however little it returns, so `fetch` asks for many pairs at once. Scores of 0
    and 1 come as four counts a task, because nothing else of them enters a test; all others come document by document.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._asked: set[tuple[str, str]] = set()
        self._found: dict[_Key, MetricSamples] = {}

    def of(self, baseline: str, recipe: str, score: ScoreRow) -> MetricSamples | None:
        """The samples of the recipe's score (a primary one) in both runs, in an order that is the same for both; None
        where they share no document.
        """
        if (baseline, recipe) not in self._asked:
            self.fetch([(baseline, recipe)])
        return self._found.get((baseline, recipe, score.task, score.metric, score.filter))

    def fetch(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Read these pairs of (baseline, recipe's run) in place of what was read before."""
        self._asked, self._found = set(pairs), {}
        if not self._asked:
            return
        sides = [list(side) for side in zip(*sorted(self._asked))]
        rows = self._store.rows(
            "SELECT p.baseline, p.recipe, r.task, r.metric, r.filter, count(*) FILTER (b.value = 1 AND r.value = 1) AS"
            " right_in_both, count(*) FILTER (b.value = 1 AND r.value = 0) AS lost, count(*) FILTER (b.value = 0 AND"
            " r.value = 1) AS gained, count(*) FILTER (b.value = 0 AND r.value = 0) AS wrong_in_both,"
            f" bool_and(coalesce({_PLAIN}, false)) AS plain, bool_or(r.occurrence > 0) AS copies {_joined(_SCORES)}"
            " GROUP BY ALL",
            sides,
        )
        keys = {(row["baseline"], row["recipe"], row["task"], row["metric"], row["filter"]): row for row in rows}
        self._found = {key: _from_counts(row) for key, row in keys.items() if row["plain"] and not row["copies"]}
        for copies, source in ((False, _SCORES), (True, _IN_ORDER_OF_SCORES)):
            others = [key for key, row in keys.items() if key not in self._found and row["copies"] == copies]
            if others:
                self._found |= self._documents(others, source)

    def _documents(self, wanted: list[_Key], source: str) -> dict[_Key, MetricSamples]:
        import numpy as np

        pairs = sorted({key[:2] for key in wanted})
        tasks = sorted({key[2:] for key in wanted})
        columns = self._store.columns(
            "SELECT p.baseline AS baseline_run, p.recipe AS recipe_run, r.task, r.metric, r.filter, b.value AS"
            " baseline, r.value AS recipe, b.weight AS baseline_weight, r.weight AS recipe_weight, b.parts AS"
            f" baseline_parts, r.parts AS recipe_parts, r.cluster AS cluster, r.doc_key AS document {_joined(source)}"
            " JOIN (SELECT unnest($3) AS task, unnest($4) AS metric, unnest($5) AS filter) w ON (w.task, w.metric,"
            " w.filter) = (r.task, r.metric, r.filter) ORDER BY p.baseline, p.recipe, r.task, r.metric, r.filter,"
            " r.doc_key, r.occurrence",
            [*(list(side) for side in zip(*pairs)), *(list(side) for side in zip(*tasks))],
        )
        keys = list(
            zip(*(columns[name].tolist() for name in ("baseline_run", "recipe_run", "task", "metric", "filter")))
        )
        starts = [i for i, key in enumerate(keys) if i == 0 or key != keys[i - 1]]
        chosen = set(wanted)
        return {
            keys[start]: _with_copies(
                MetricSamples._make([np.ma.asarray(columns[name][start:end]) for name in _ARRAYS] + [0]),
                columns["document"][start:end],
            )
            for start, end in zip(starts, [*starts[1:], len(keys)])
            if keys[start] in chosen
        }


def _with_copies(samples: MetricSamples, documents: np.ndarray) -> MetricSamples:
    """The samples with what is to be known of documents that occur more than once. documents: the key of each."""
    import numpy as np

    keys = np.ma.getdata(documents).astype(str)
    sizes = np.unique(keys, return_counts=True)[1]
    copies = len(keys) - len(sizes)
    apart = np.ma.getmaskarray(samples.cluster).any()
    if apart and (sizes**2).sum() > _FEW_COPIES * len(keys):
        samples = samples._replace(cluster=np.ma.asarray(keys.astype(object)))
    return samples._replace(copies=int(copies))


def _from_counts(row: dict[str, Any]) -> MetricSamples:
    """Right and wrong answers of two runs from how often each combination occurs."""
    import numpy as np

    counts = [row[name] for name in ("right_in_both", "lost", "gained", "wrong_in_both")]
    missing = np.ma.masked_all(sum(counts), dtype=float)
    texts = np.ma.masked_all(sum(counts), dtype=object)
    baseline, recipe = (
        np.ma.asarray(np.repeat(values, counts)) for values in ([1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0])
    )
    return MetricSamples(baseline, recipe, missing, missing, texts, texts, texts)


class SampleCounts:
    """How many samples bear a metric of a run's task, of all runs or of some; counted when first asked, because a board
    of remembered comparisons never asks.
    """

    def __init__(self, store: Store, run_ids: list[str] | None = None) -> None:
        self._store, self._run_ids = store, run_ids
        self._found: dict[tuple[str, str, str, str], int] | None = None

    def of(self, run_id: str, task: str, metric: str, filter_name: str) -> int:
        """The number of samples."""
        if self._found is None:
            some, parameters = (
                ("", []) if self._run_ids is None else (" WHERE run_id IN (SELECT unnest($1))", [self._run_ids])
            )
            rows = self._store.connection.execute(
                f"SELECT run_id, task, metric, filter, count(*) FROM sample_scores{some} GROUP BY ALL", parameters
            ).fetchall()
            self._found = {(row[0], row[1], row[2], row[3]): row[4] for row in rows}
        return self._found.get((run_id, task, metric, filter_name), 0)


def document_overlap(store: Store, baseline: str, recipe: str, task: str) -> tuple[int, int, bool]:
    """(only in the baseline, only in the recipe's run, whether the documents agree and only prompts or targets
    differ).
    """
    sql = (
        "SELECT DISTINCT s.doc_key, s.occurrence, d.doc_hash FROM samples s JOIN (SELECT DISTINCT doc_key, doc_hash"
        " FROM docs WHERE task = $2) d USING (doc_key) WHERE s.run_id = $1 AND s.task = $2"
    )
    first, second = (
        {(r["doc_key"], r["occurrence"]): r["doc_hash"] for r in store.rows(sql, [run, task])}
        for run in (baseline, recipe)
    )
    same_documents = sorted(first.values()) == sorted(second.values())
    return len(first.keys() - second.keys()), len(second.keys() - first.keys()), same_documents


def run_details(store: Store, run_id: str) -> dict[str, Any]:
    """Everything known of one run (run_id may be shortened if that is unambiguous, and be one of an earlier version).
    Raises `UnknownRun`.
    """
    rows = _beginning(store, "run_id", run_id) or _beginning(store, "former_id", run_id)
    if not run_id or not rows:
        raise UnknownRun(f"no run {run_id or '(none named)'} in the leaderboard: `lm_eval runs list` shows their ids")
    if len(rows) > 1 and not rows[0]["run_id"].startswith(run_id):
        raise UnknownRun(f"several runs had the id {run_id} in an earlier version: name one by its folder")
    if len(rows) > 1 and rows[0]["run_id"] != run_id:
        raise UnknownRun(f"more than one run begins with {run_id}: give more of it")
    return rows[0] | {"path": str(store.places.resolved(rows[0]["path"]))}


def _beginning(store: Store, column: str, run_id: str) -> list[dict[str, Any]]:
    """The first two runs whose id of this kind begins so."""
    return store.rows(
        f"SELECT * FROM runs JOIN variants USING (variant_id) WHERE starts_with({column}, ?) ORDER BY {column} LIMIT 2",
        [run_id],
    )


def run_scores(store: Store, run_id: str) -> list[dict[str, Any]]:
    """All scores of a run as reported, groups included."""
    return store.rows(
        "SELECT task, metric, filter, score, reported, stderr, higher_is_better, best_value, is_primary FROM scores"
        " WHERE run_id = ? ORDER BY task, rowid",
        [run_id],
    )


def run_matrices(store: Store, run_id: str) -> list[dict[str, Any]]:
    """The receipt's matrices in the order they were edited."""
    return store.rows("SELECT * EXCLUDE (run_id, position) FROM receipts WHERE run_id = ? ORDER BY position", [run_id])


def calibrated_on(store: Store) -> dict[str, tuple[str, str, str, str]]:
    """run_id -> the tasks, splits, numbers of documents and seeds of its calibrations, each a list in words."""
    texts = ", ".join(
        f"coalesce(string_agg(DISTINCT CAST({name} AS VARCHAR), ', ' ORDER BY CAST({name} AS VARCHAR)), '')"
        for name in ("task", "split", "samples", "seed")
    )
    rows = store.connection.execute(f"SELECT run_id, {texts} FROM calibrations GROUP BY run_id").fetchall()
    return {row[0]: (row[1], row[2], row[3], row[4]) for row in rows}


def run_calibrations(store: Store, run_id: str) -> list[dict[str, Any]]:
    """What the recipe was calibrated on."""
    return store.rows(
        "SELECT * EXCLUDE (run_id, position) FROM calibrations WHERE run_id = ? ORDER BY position", [run_id]
    )


def rejections(store: Store) -> list[dict[str, Any]]:
    """What ingest could not take, latest first, without paths that were taken later."""
    rows = store.rows(
        "SELECT logged_at, path, reason FROM ingest_log l WHERE outcome = 'rejected' AND NOT EXISTS "
        "(SELECT 1 FROM ingest_log a WHERE a.path = l.path AND a.rowid > l.rowid) ORDER BY l.rowid DESC"
    )
    return [row | {"path": str(store.places.resolved(row["path"]))} for row in rows]
