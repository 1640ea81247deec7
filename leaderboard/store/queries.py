"""Questions to the store, answered as plain rows. Samples of two runs side by side are in `paired_samples`; nothing
here judges.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from leaderboard.commands import advised, ingest_command
from leaderboard.errors import DeletedRun, LeaderboardError, UnknownRun
from leaderboard.readers import asked
from leaderboard.readers.asked import CONTROL_OF_REVISION, REVISION
from leaderboard.readers.edited import is_service
from leaderboard.readers.ran_on import ComputePlace, RanOn, sql_gpu
from leaderboard.readers.records import BASELINE
from leaderboard.readers.safe_json import mapping
from leaderboard.store import decisions
from leaderboard.store.database import Store
from leaderboard.store.writer import now


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
    engine: str | None = None
    gpu: str | None = None

    @property
    def place(self) -> ComputePlace:
        """Where it was made."""
        return ComputePlace(self.engine, self.gpu)

    @property
    def may_be_baseline(self) -> bool:
        """Whether the run is of the model as it is, as far as its files say."""
        return self.recipe_name == BASELINE or (self.origin != "recipe" and self.edited is not True)


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


_OF_RUNS = {
    "failure": "CASE WHEN status = 'failed' THEN concat_ws(': ', failure_kind, failure_reason) || coalesce(' (' ||"
    " failure_where || ')', '') END",
    "gpu": sql_gpu("runs"),
}
"""What of a `RunRow` is no column."""


def runs(store: Store, models: Iterable[str] | None = None, and_run: str | None = None) -> list[RunRow]:
    """Runs, earliest first, each with the path where it lies now: all, or those of some models (by key or own name) and
    those whose id begins with `and_run`.
    """
    names = [field.name for field in fields(RunRow)]
    columns = ", ".join(_OF_RUNS.get(name, name) for name in names)
    some = "" if models is None else " WHERE model_key IN (SELECT unnest($1)) OR model_name IN (SELECT unnest($1))"
    if models is not None and and_run:
        some += " OR starts_with(run_id, $2)"
    rows = store.connection.execute(
        f"SELECT {columns} FROM runs JOIN variants USING (variant_id){some} ORDER BY started NULLS LAST,"
        " coalesce(former_id, run_id), run_id",
        [] if models is None else [list(models), *([and_run] if and_run else [])],
    ).fetchall()
    return [_run_row(store, dict(zip(names, row))) for row in rows]


def _run_row(store: Store, values: dict[str, Any]) -> RunRow:
    """A `RunRow`, of which a store has ten thousand: its own way of setting 30 fields takes most of the time."""
    values["path"] = store.places.resolved_text(values["path"])
    row = object.__new__(RunRow)
    row.__dict__.update(values)
    return row


def ran_on(store: Store, run_ids: list[str]) -> dict[str, RanOn]:
    """run_id -> where the run was made, of some runs."""
    names = ", ".join(RanOn._fields)
    rows = store.connection.execute(
        f"SELECT run_id, {names} FROM runs WHERE run_id IN (SELECT unnest($1))", [run_ids]
    ).fetchall()
    return {run_id: RanOn._make(said) for run_id, *said in rows}


class ForeignRuns(NamedTuple):
    """Runs that nobody of ours made. scorer: the harness with its version, or the service that answered lm-eval."""

    scorer: str
    models: tuple[str, ...]
    runs: int


def foreign_runs(store: Store, run_ids: Iterable[str]) -> list[ForeignRuns]:
    """Which of these runs are of another harness, or of a service, by scorer."""
    rows = store.rows(
        "SELECT origin, backend, versions, model_name FROM runs JOIN variants USING (variant_id) WHERE run_id IN"
        " (SELECT unnest(?)) AND origin <> 'recipe' ORDER BY model_name",
        [sorted(run_ids)],
    )
    models: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row["origin"] != "plain":
            version = mapping(json.loads(row["versions"] or "{}")).get(row["origin"])
            models[f"{row['origin']} {version}" if version else row["origin"]].append(row["model_name"])
        elif row["backend"] and is_service(row["backend"]):
            models[f"lm-eval by the service {row['backend']}"].append(row["model_name"])
    return [ForeignRuns(scorer, tuple(dict.fromkeys(names)), len(names)) for scorer, names in sorted(models.items())]


def superseded_runs(store: Store) -> set[str]:
    """The failed runs whose `spec_id` a run has completed."""
    rows = store.connection.execute(
        "SELECT run_id FROM runs WHERE status <> 'complete' AND spec_id <> '' AND spec_id IN (SELECT spec_id FROM runs"
        " WHERE status = 'complete')"
    ).fetchall()
    return {run_id for (run_id,) in rows}


def run_tasks(store: Store, run_ids: list[str] | None = None) -> dict[str, list[RunTaskRow]]:
    """run_id -> its tasks, by name; of all runs or of some."""
    found: dict[str, list[RunTaskRow]] = defaultdict(list)
    for row in _rows_of(store, RunTaskRow._fields, "run_tasks", "true", "run_id, task", run_ids):
        task = RunTaskRow._make(row)
        found[task.run_id].append(task)
    return found


def runs_of_task(store: Store, task: str) -> set[str]:
    """The ids of the runs that scored a task."""
    return {row["run_id"] for row in store.rows("SELECT DISTINCT run_id FROM run_tasks WHERE task = ?", [task])}


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


def control_runs(store: Store, run_ids: list[str] | None = None) -> dict[str, dict[str, list[str]]]:
    """run_id of a recipe's run, of all or of some -> name of a control -> run_ids of that control of the recipe, on the
    same model, dtype and settings, the latest in the store first. Names in order. The budget of a control is that of a
    recipe's edit by one revision of its methods, and it is a control of runs by that one alone.
    """
    some = "" if run_ids is None else " AND r.run_id IN (SELECT unnest($1))"
    rows = store.rows(
        "SELECT r.run_id, cv.control, c.run_id AS control_run, r.asked, c.asked AS control_asked FROM runs r JOIN"
        " variants v USING (variant_id) JOIN variants cv ON cv.model_key = v.model_key AND cv.control_of = v.recipe_id"
        " AND cv.dtype IS NOT DISTINCT FROM v.dtype JOIN runs c ON c.variant_id = cv.variant_id AND c.settings_id IS"
        " NOT DISTINCT FROM r.settings_id WHERE r.status = 'complete' AND c.status = 'complete' AND v.control IS NULL"
        f" AND cv.control IS NOT NULL{some} ORDER BY r.run_id, cv.control, c.rowid DESC",
        [] if run_ids is None else [run_ids],
    )
    found: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        if asked.words(row["asked"]).get(REVISION) != asked.words(row["control_asked"]).get(CONTROL_OF_REVISION):
            continue
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
    Raises `UnknownRun`, `DeletedRun` for one that was taken off the board.
    """
    rows = _beginning(store, "run_id", run_id) or _beginning(store, "former_id", run_id)
    if not run_id or not rows:
        if told := deleted_words(store, run_id):
            raise DeletedRun(told)
        listed = advised(store.path, "runs", "list")
        raise UnknownRun(f"no run {run_id or '(none named)'} in the leaderboard: {listed} shows their ids")
    if len(rows) > 1 and not rows[0]["run_id"].startswith(run_id):
        raise UnknownRun(f"several runs had the id {run_id} in an earlier version: name one by its folder")
    if len(rows) > 1 and rows[0]["run_id"] != run_id:
        raise UnknownRun(f"more than one run begins with {run_id}: give more of it")
    return rows[0] | {"path": str(store.places.resolved(rows[0]["path"]))}


def deletions(store: Store) -> list[dict[str, Any]]:
    """The runs that are off the board now, earliest deletion first: run_id, path, logged_at, reason."""
    return store.rows(
        "SELECT run_id, path, logged_at, reason FROM (SELECT *, rowid AS number, row_number() OVER (PARTITION BY"
        " run_id ORDER BY rowid DESC) AS place FROM deletions) WHERE place = 1 AND deleted ORDER BY number"
    )


def deleted_at(store: Store, place: Path) -> list[str]:
    """The ids of the runs that are off the board and whose folder this is, or whose results file."""
    where = place.resolve()
    folders = [(row["run_id"], store.places.resolved(row["path"]).resolve()) for row in deletions(store)]
    return [run_id for run_id, own in folders if own in (where, where.parent)]


def deleted_words(store: Store, run_id: str) -> str:
    """That the run whose id begins so was taken off the board, when and why, and the commands that bring it back; empty
    where no such run, or several, were.
    """
    found = [row for row in deletions(store) if run_id and row["run_id"].startswith(run_id)]
    if len(found) != 1 or store.path is None:
        return ""
    (row,) = found
    restore = advised(store.path, "runs", "restore", row["run_id"][:12])
    ingest = ingest_command(store.path, store.places.resolved(row["path"]))
    return (
        f"run {row['run_id']} was taken off the board on {row['logged_at']:%Y-%m-%d %H:%M} UTC: {row['reason']}. Its"
        f" files stay; {restore} brings it back, or lets `{ingest}` do so later where they are out of reach"
    )


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


class Calibrated(NamedTuple):
    """What a run was calibrated on, each a list in words."""

    tasks: str
    splits: str
    samples: str
    seeds: str


def calibrated_on(store: Store, run_ids: list[str] | None = None) -> dict[str, Calibrated]:
    """run_id -> what it was calibrated on, of all runs or of some."""
    texts = ", ".join(
        f"coalesce(string_agg(DISTINCT CAST({name} AS VARCHAR), ', ' ORDER BY CAST({name} AS VARCHAR)), '')"
        for name in ("task", "split", "samples", "seed")
    )
    some = "" if run_ids is None else " WHERE run_id IN (SELECT unnest($1))"
    rows = store.connection.execute(
        f"SELECT run_id, {texts} FROM calibrations{some} GROUP BY run_id", [] if run_ids is None else [run_ids]
    ).fetchall()
    return {row[0]: Calibrated(*row[1:]) for row in rows}


def learned_of_scored(store: Store, run_ids: list[str] | None = None) -> dict[tuple[str, str], int]:
    """(run_id, task) -> how many documents of the task's scored split a run's recipe learned from, which were taken out
    of the score; of all runs or of some.
    """
    some = "" if run_ids is None else " AND run_id IN (SELECT unnest($1))"
    rows = store.connection.execute(
        f"SELECT run_id, task, max(documents) FROM calibrations WHERE split = 'test'{some} GROUP BY run_id, task",
        [] if run_ids is None else [run_ids],
    ).fetchall()
    return {(run_id, task): documents for run_id, task, documents in rows}


def run_calibrations(store: Store, run_id: str) -> list[dict[str, Any]]:
    """What the recipe was calibrated on."""
    return store.rows(
        "SELECT * EXCLUDE (run_id, position) FROM calibrations WHERE run_id = ? ORDER BY position", [run_id]
    )


def rejections(store: Store) -> list[dict[str, Any]]:
    """What ingest could not take, latest first, without paths that were taken later."""
    rows = store.rows(
        "SELECT logged_at, path, reason, outcome = 'rejected' AS rejected FROM ingest_log l WHERE NOT EXISTS"
        " (SELECT 1 FROM ingest_log a WHERE a.path = l.path AND a.rowid > l.rowid) ORDER BY l.rowid"
    )
    last: dict[str, dict[str, Any]] = {}
    for row in rows:  # a path may have been stored in more than one way
        path = store.places.resolved_text(row["path"])
        last.pop(path, None)
        last[path] = row | {"path": path}
    return [row for row in reversed(last.values()) if row.pop("rejected")]
