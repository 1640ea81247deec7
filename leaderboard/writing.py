"""Putting one `Run` into an open store: in one transaction, through Arrow.

Who is rejected here: a run that is in the store already is a duplicate, not an error; a run whose log-likelihoods equal, to
the bit, those of a run of the same model with other weights is an error (a shared request cache makes every recipe look
lossless), or, where the run says that it used no cache, a warning: an edit may concern nothing that these answers use. Notable choice: it needs *every* log-likelihood task that the two share to be identical, because one cache
serves all of them, and it is waived where the edit is within rounding of the weights' own dtype, or touched no matrix: such
an edit, `identity` above all, may change weights without changing one printed number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from datetime import datetime, timezone
from enum import Enum
from typing import Any

from leaderboard import noise
from leaderboard.cell import BASELINE
from leaderboard.errors import Unreadable
from leaderboard.records import Matrix, Run, Sample, TaskRun
from leaderboard.store import Store
from leaderboard.untrusted import canonical

# Largest relative change of a matrix that rounding to the dtype alone explains: twice its unit in the last place, and for
# float32 what a decomposition and its product in float32 leave behind.
ROUNDING = {"float64": 1e-12, "float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2}
_FEWEST_LOG_LIKELIHOODS = 4


def now() -> datetime:
    """The present as naive UTC, as the store keeps it."""
    return datetime.now(timezone.utc).replace(tzinfo=None)


class Added(Enum):
    """What became of a run."""

    NEW = "added"
    KNOWN = "known already"
    DELETED = "deleted"


def add_run(store: Store, run: Run) -> Added:
    """Store a run, unless it is there already or was deleted. Raises `Unreadable` where it contradicts a stored run."""
    if store.rows("SELECT 1 FROM runs WHERE run_id = ?", [run.run_id]):
        return Added.KNOWN
    if is_deleted(store, run.run_id):
        return Added.DELETED
    with store.transaction():
        if copied := _copied(store, run):
            run = replace(run, warnings=[*run.warnings, copied])
        _insert_run(store, run)
        if run.status == "complete" and run.variant.recipe_name == BASELINE and any(task.samples for task in run.tasks):
            noise.record(store, run.run_id)
        _log(store, str(run.path), "added", run.run_id, None)
    return Added.NEW


def is_deleted(store: Store, run_id: str) -> bool:
    """Whether a run was taken off the board (see `deletion`)."""
    last = store.rows("SELECT deleted FROM deletions WHERE run_id = ? ORDER BY rowid DESC LIMIT 1", [run_id])
    return bool(last and last[0]["deleted"])


def log_rejection(store: Store, path: str, reason: str) -> None:
    """Remember why a path was not taken, once for each new reason."""
    last = store.rows("SELECT reason FROM ingest_log WHERE path = ? AND outcome = 'rejected' ORDER BY logged_at DESC LIMIT 1", [path])
    if not last or last[0]["reason"] != reason:
        _log(store, path, "rejected", None, reason)


def _log(store: Store, path: str, outcome: str, run_id: str | None, reason: str | None) -> None:
    store.insert("ingest_log", _columns([{"logged_at": now(), "path": path, "outcome": outcome, "run_id": run_id, "reason": reason}]))


def _copied(store: Store, run: Run) -> str | None:
    """What is to be said of a run whose every answer is that of a run with other weights; None for any other. Raises `Unreadable` where a cache may have served both."""
    digest = run.variant.digest_after
    mine = {task.task: task for task in run.tasks if task.log_likelihoods >= _FEWEST_LOG_LIKELIHOODS}
    if digest is None or not mine:
        return None
    others = store.rows(
        "SELECT r.run_id, r.path, v.digest_after, v.dtype, t.task, t.log_likelihoods_hash AS hash FROM run_tasks t "
        "JOIN runs r USING (run_id) JOIN variants v USING (variant_id) "
        "WHERE v.model_key = ? AND v.digest_after IS NOT NULL AND v.digest_after <> ? AND t.log_likelihoods >= ?",
        [run.variant.model_key, digest, _FEWEST_LOG_LIKELIHOODS],
    )
    for run_id in sorted({row["run_id"] for row in others}):
        shared = [row for row in others if row["run_id"] == run_id and row["task"] in mine]
        if shared and all(row["hash"] == mine[row["task"]].log_likelihoods_hash for row in shared):
            if _within_rounding(store, run, run_id):
                continue
            tasks = ", ".join(sorted(row["task"] for row in shared))
            finding = f"every log-likelihood of {tasks} equals to the bit that of {shared[0]['path']}, although the weights differ"
            if run.request_cache is False:
                return f"{finding}: what was edited has no part in these answers (an expert that no token is sent to, say), or the edit did not take effect"
            raise Unreadable(f"{finding}: the two were probably served by one request cache. Run it again without --use_cache")
    return None


def _within_rounding(store: Store, run: Run, other_id: str) -> bool:
    """Whether both runs' edits are too small to have to show in a log-likelihood."""
    limit = ROUNDING.get(run.variant.dtype or "float32", ROUNDING["float32"])
    stored = store.rows("SELECT relative_error FROM receipts WHERE run_id = ?", [other_id])
    changes = [matrix.relative_error for matrix in run.matrices] + [row["relative_error"] for row in stored]
    return all(change is not None and change <= limit for change in changes)


def _insert_run(store: Store, run: Run) -> None:
    if not store.rows("SELECT 1 FROM variants WHERE variant_id = ?", [run.variant.variant_id]):
        store.insert("variants", _columns([asdict(run.variant)]))
    store.insert("runs", _columns([_run_row(run)]))
    store.insert("run_tasks", _columns([_task_row(run, task) for task in run.tasks]))
    store.insert("scores", _columns([{"run_id": run.run_id, **asdict(score)} for score in run.scores]))
    store.insert("receipts", _columns([_matrix_row(run, i, matrix) for i, matrix in enumerate(run.matrices)]))
    store.insert(
        "calibrations",
        _columns([{"run_id": run.run_id, "position": i, **asdict(c), "documents": len(c.documents)} for i, c in enumerate(run.calibrations)]),
    )
    for task in run.tasks:
        if task.samples:
            _insert_samples(store, run.run_id, task, task.samples)


def _run_row(run: Run) -> dict[str, Any]:
    left_out = {"variant", "tasks", "scores", "matrices", "calibrations", "request_cache"}
    row = {field.name: getattr(run, field.name) for field in fields(run) if field.name not in left_out}
    return row | {
        "variant_id": run.variant.variant_id,
        "path": str(run.path),
        "files": canonical(run.files),
        "warnings": canonical(run.warnings),
        "ingested_at": now(),
    }


def _task_row(run: Run, task: TaskRun) -> dict[str, Any]:
    row = {field.name: getattr(task, field.name) for field in fields(task) if field.name != "samples"}
    return row | {"run_id": run.run_id, "documents": task.documents}


def _matrix_row(run: Run, position: int, matrix: Matrix) -> dict[str, Any]:
    return {"run_id": run.run_id, "position": position, **asdict(matrix)}


def _insert_samples(store: Store, run_id: str, task: TaskRun, samples: Sequence[Sample]) -> None:
    count = len(samples)
    store.insert(
        "samples",
        {
            "run_id": [run_id] * count,
            "task": [task.task] * count,
            "filter": [s.filter for s in samples],
            "doc_key": [s.doc_key for s in samples],
            "occurrence": [s.occurrence for s in samples],
            "doc_id": [s.doc_id for s in samples],
            "responses": [s.responses for s in samples],
            "filtered_responses": [s.filtered_responses for s in samples],
        },
    )
    flat = [(s, metric, score) for s in samples for metric, score in s.scores.items()]
    store.insert(
        "sample_scores",
        {
            "run_id": [run_id] * len(flat),
            "task": [task.task] * len(flat),
            "metric": [metric for _, metric, _ in flat],
            "filter": [s.filter for s, _, _ in flat],
            "doc_key": [s.doc_key for s, _, _ in flat],
            "occurrence": [s.occurrence for s, _, _ in flat],
            "cluster": [s.cluster for s, _, _ in flat],
            "value": [score.value for _, _, score in flat],
            "weight": [score.weight for _, _, score in flat],
            "parts": [score.parts for _, _, score in flat],
        },
    )
    _insert_new_documents(store, task.task, samples)


def _insert_new_documents(store: Store, task: str, samples: Sequence[Sample]) -> None:
    """Prompts are kept once for all variants."""
    known = {row["doc_key"] for row in store.rows("SELECT doc_key FROM docs WHERE task = ?", [task])}
    fresh = {s.doc_key: s for s in samples if s.doc_key not in known}
    names = ("doc_key", "doc_hash", "prompt_hash", "target_hash", "document", "prompt", "target")
    columns: dict[str, list[Any]] = {name: [getattr(s, name) for s in fresh.values()] for name in names}
    store.insert("docs", {"task": [task] * len(fresh), **columns})


def _columns(rows: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}
