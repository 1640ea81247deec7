"""The rows of runs: one Arrow insertion a table for a group of them, samples by the hundred thousand. Their removal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from leaderboard.metrics import GOLD_LOG_LIKELIHOOD
from leaderboard.readers.ran_on import RanOn
from leaderboard.readers.receipt import ReceiptMatrix
from leaderboard.readers.records import ReportedScore, Run, RunVariant, TaskRun
from leaderboard.readers.safe_json import canonical, digest, finite
from leaderboard.readers.samples import Document, SampleOutcome, Samples, SampleScore

if TYPE_CHECKING:
    from leaderboard.store.database import Store

_TABLES = ("runs", "run_tasks", "scores", "samples", "sample_scores", "receipts", "calibrations")

_NAMES = ("model_key", "model_name", "recipe_name", "recipe_label", "control", "control_of")
"""What a variant goes by."""


def insert_runs(store: Store, runs: Sequence[Run], moment: datetime) -> None:
    """Insert runs that the store does not hold, inside the caller's transaction; `moment` is naive UTC."""
    if not runs:
        return
    variants = _variants(store, runs)
    store.insert("runs", _run_columns(store, runs, [variant.variant_id for variant in variants], moment))
    tasks = [task for run in runs for task in run.tasks]
    store.insert(
        "run_tasks",
        {
            "run_id": _ids(runs, "tasks"),
            **_columns(TaskRun, tasks, but="samples"),
            "documents": [task.documents for task in tasks],
        },
    )
    store.insert(
        "scores",
        {"run_id": _ids(runs, "scores"), **_columns(ReportedScore, [score for run in runs for score in run.scores])},
    )
    _insert_matrices(store, runs)
    _insert_calibrations(store, runs)
    _insert_samples(store, runs)
    count = len(runs)
    log: dict[str, Sequence[Any]] = {
        "logged_at": [moment] * count,
        "path": [store.places.stored(run.path) for run in runs],
        "outcome": ["added"] * count,
        "run_id": [run.run_id for run in runs],
        "reason": [None] * count,
    }
    store.insert("ingest_log", log)


def remove_runs(store: Store, run_ids: Sequence[str]) -> None:
    """Delete the rows of runs and what was judged of them, inside the caller's transaction; variants and documents
    stay, which other runs may share.
    """
    some = [list(run_ids)]
    for table in _TABLES:
        store.connection.execute(f"DELETE FROM {table} WHERE run_id IN (SELECT unnest(?))", some)
    for table, other in (
        ("noise_floors", "other_run_id"),
        ("comparisons", "baseline_run"),
        ("verdicts", "baseline_run"),
        ("control_verdicts", "baseline_run"),
    ):
        store.connection.execute(
            f"DELETE FROM {table} WHERE run_id IN (SELECT unnest($1)) OR {other} IN (SELECT unnest($1))", some
        )


def _ids(runs: Sequence[Run], of: str) -> list[str]:
    return [run.run_id for run in runs for _ in getattr(run, of)]


def _variants(store: Store, runs: Sequence[Run]) -> list[RunVariant]:
    """The row of each run's variant, of which new ones are inserted. Equal weights that come under another name, of the
    recipe or of the model, are a row of their own: what a run is called must not depend on which came first.
    """
    ids = list(dict.fromkeys(id_ for run in runs for id_ in (run.variant.variant_id, _own_id(run.variant))))
    rows = store.rows(
        f"SELECT variant_id, {', '.join(_NAMES)} FROM variants WHERE variant_id IN (SELECT unnest(?))", [ids]
    )
    known = {row["variant_id"]: [row[name] for name in _NAMES] for row in rows}
    stored = set(known)
    found, fresh = [], []
    for run in runs:
        variant = run.variant
        if known.setdefault(variant.variant_id, _named(variant)) != _named(variant):
            variant = replace(variant, variant_id=_own_id(variant))
        if variant.variant_id not in stored:
            fresh.append(variant)
        found.append(variant)
    store.insert("variants", _columns(RunVariant, list({variant.variant_id: variant for variant in fresh}.values())))
    return found


def _named(variant: RunVariant) -> list[str | None]:
    return [getattr(variant, name) for name in _NAMES]


def _own_id(variant: RunVariant) -> str:
    return digest([variant.variant_id, *_named(variant)])


def _run_columns(store: Store, runs: Sequence[Run], variants: Sequence[str], moment: datetime) -> dict[str, list[Any]]:
    left_out = {"variant", "tasks", "scores", "matrices", "calibrations", "path", "files", "warnings", "request_cache"}
    left_out.add("ran_on")
    columns = {
        field.name: [getattr(run, field.name) for run in runs] for field in fields(Run) if field.name not in left_out
    }
    columns |= _picked([run.ran_on for run in runs], RanOn._fields)
    return columns | {
        "variant_id": list(variants),
        "path": [store.places.stored(run.path) for run in runs],
        "files": [canonical(run.files) for run in runs],
        "warnings": [canonical(run.warnings) for run in runs],
        "ingested_at": [moment] * len(runs),
    }


class _Logged(NamedTuple):
    """The samples of one task of one run."""

    run_id: str
    task: str
    samples: Samples


def _insert_matrices(store: Store, runs: Sequence[Run]) -> None:
    matrices = [matrix for run in runs for matrix in run.matrices]
    places = [place for run in runs for place in range(len(run.matrices))]
    columns: dict[str, list[Any]] = _picked(matrices, ReceiptMatrix.model_fields) | {
        "shape": [" x ".join(map(str, matrix.shape)) or None for matrix in matrices]
    }
    store.insert("receipts", {"run_id": _ids(runs, "matrices"), "position": places, **columns})


def _insert_calibrations(store: Store, runs: Sequence[Run]) -> None:
    used = [calibration for run in runs for calibration in run.calibrations]
    places = [place for run in runs for place in range(len(run.calibrations))]
    columns = _picked(used, ("step", "task", "split", "samples", "seed")) | {
        "documents": [len(calibration.documents) for calibration in used]
    }
    store.insert("calibrations", {"run_id": _ids(runs, "calibrations"), "position": places, **columns})


def _insert_samples(store: Store, runs: Sequence[Run]) -> None:
    logged = [_Logged(run.run_id, task.task, task.samples) for run in runs for task in run.tasks if task.samples]
    documents = [document for item in logged for document in item.samples.documents]
    answers = {
        name: [value for item in logged for value in getattr(item.samples, name)]
        for name in ("occurrence", "responses", "filtered_responses")
    }
    owners = {
        "run_id": [item.run_id for item in logged for _ in item.samples.documents],
        "task": [item.task for item in logged for _ in item.samples.documents],
    }
    store.insert("samples", owners | _picked(documents, ("filter", "doc_key", "doc_id")) | answers)
    identified = owners | {"occurrence": answers["occurrence"]}
    _insert_sample_scores(store, [value for item in logged for value in item.samples.outcomes], identified, documents)
    _insert_gold(store, logged, identified, documents)
    _insert_new_documents(
        store,
        dict(
            zip(
                reversed([document.doc_key for document in documents]),
                zip(reversed(owners["task"]), reversed(documents)),
            )
        ),
    )


def _insert_sample_scores(
    store: Store, outcomes: Sequence[SampleOutcome], owners: dict[str, list[Any]], documents: Sequence[Document]
) -> None:
    """owners: run, task and occurrence of each sample."""
    for metric in sorted(
        {metric for scores in {id(found.scores): found.scores for found in outcomes}.values() for metric in scores}
    ):
        places = [place for place, found in enumerate(outcomes) if metric in found.scores]
        of_metric = _picked([outcomes[place].scores[metric] for place in places], SampleScore._fields)
        _insert_metric(store, metric, _at(places, owners, documents) | of_metric)


def _insert_gold(
    store: Store, logged: Sequence[_Logged], owners: dict[str, list[Any]], documents: Sequence[Document]
) -> None:
    """The right answers' log-likelihoods, a metric that lm-eval did not write, with their words as weights."""
    values = [value for item in logged for value in item.samples.gold or [None] * len(item.samples)]
    words = [value for item in logged for value in item.samples.gold_words or [None] * len(item.samples)]
    places = [place for place, value in enumerate(values) if value is not None]
    numbers = [finite(values[place]) for place in places]
    columns = _at(places, owners, documents) | {
        "value": numbers,
        "weight": [words[place] for place in places],
        "parts": [None] * len(places),
    }
    _insert_metric(store, GOLD_LOG_LIKELIHOOD, columns)


def _at(places: Sequence[int], owners: dict[str, list[Any]], documents: Sequence[Document]) -> dict[str, list[Any]]:
    if len(places) == len(documents):  # of all samples, which is most common
        return owners | _picked(documents, ("filter", "doc_key", "cluster"))
    of_sample = {name: [column[place] for place in places] for name, column in owners.items()}
    return of_sample | _picked([documents[place] for place in places], ("filter", "doc_key", "cluster"))


def _insert_metric(store: Store, metric: str, columns: dict[str, list[Any]]) -> None:
    store.insert("sample_scores", columns | {"metric": [metric] * len(columns["run_id"])})


def _insert_new_documents(store: Store, documents: dict[str, tuple[str, Document]]) -> None:
    """Prompts are kept once for all variants."""
    if not documents:
        return
    known = store.columns("SELECT doc_key FROM docs WHERE doc_key IN (SELECT unnest(?))", [list(documents)])["doc_key"]
    for key in known.tolist():
        del documents[key]
    tasks, fresh = [task for task, _ in documents.values()], [document for _, document in documents.values()]
    texts = [document.texts() for document in fresh]
    columns = {"task": tasks, **_picked(fresh, ("doc_key", "doc_hash", "prompt_hash", "target_hash"))}
    store.insert("docs", columns | {name: [text[name] for text in texts] for name in ("document", "prompt", "target")})


def _columns(kind: type, rows: Sequence[Any], but: str = "") -> dict[str, list[Any]]:
    return _picked(rows, [field.name for field in fields(kind) if field.name != but])


def _picked(rows: Sequence[Any], names: Iterable[str]) -> dict[str, list[Any]]:
    return {name: [getattr(row, name) for row in rows] for name in names}
