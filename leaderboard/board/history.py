"""One (model, recipe, task) over time: its scores and the unedited model's, what changed from run to run, and what was
decided about them.

Notable choices:
- A history follows names (model, recipe label, task), not identities: it is there to show when what bears a name has
  become something else.
- Every run of the names is in it, failed ones too; only deleted ones are not. Runs without a time come last.
- A change is against the run before it in the same line (recipe or unedited). What either of the two does not say is no
  change; a limit that is not named is none.
- Intervals are of one score by itself: Wilson's where its samples, all of them 0 or 1, say that it is a share of
  documents; otherwise 1.96 of the reported standard errors either way, as far as the metric's values go. Whether two
  runs differ is for paired verdicts to say.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, NamedTuple

from leaderboard import metrics
from leaderboard.compare.effect import reproduces
from leaderboard.readers.asked import revision_of
from leaderboard.readers.ran_on import sql_gpu
from leaderboard.readers.task_identity import differing_parts
from leaderboard.readers.weights_digest import short_digest, weights_differ
from leaderboard.statistics import wilson
from leaderboard.store.database import Store

NORMAL_95 = 1.959964
_ALIKE = {
    "model_key": "model",
    "revision": "model revision",
    "digest_before": "unedited weights",
    "recipe_id": "recipe's steps",
    "methods": "revision of its methods",
    "calibrated": "calibration",
    "digest_after": "weights digest",
    "lm_eval_version": "lm-eval",
    "transformers_version": "transformers",
    "torch_version": "torch",
    "lm_eval_recipes": "lm-eval-recipes",
    "device": "device",
    "gpu": "GPU",
    "gpu_count": "number of GPUs",
    "driver": "GPU driver",
    "ranks": "ranks",
    "engine": "engine",
    "engine_version": "engine version",
    "dtype": "dtype",
    "backend": "backend",
    "batch_size": "batch size",
    "version": "task version",
    "identity": "task's code and data",
    "num_fewshot": "few-shot examples",
    "limit": "limit",
    "documents_hash": "documents",
    "chat_template_hash": "chat template",
    "system_instruction_hash": "system instruction",
    "generation_arguments": "generation arguments",
}
_DIGESTS = ("digest_before", "digest_after")
_HASHES = (
    "recipe_id",
    "identity",
    "documents_hash",
    "chat_template_hash",
    "system_instruction_hash",
    "model_key",
)
_POINTS = f"""
SELECT r.run_id, coalesce(r.started, r.finished) AS moment, r.status, r.path,
    concat_ws(': ', r.failure_kind, r.failure_reason) AS failure, v.recipe_name = 'baseline'
    OR (r.origin <> 'recipe' AND r.edited IS NOT TRUE) AS unedited,
  s.metric, s.filter, s.score, s.reported, s.stderr, t.documents, r.versions, r.settings, r.asked,
  v.model_key, v.revision, v.digest_before, v.recipe_id, v.digest_after, r.lm_eval_version, r.transformers_version,
  r.torch_version, r.device, {sql_gpu("r")} AS gpu, r.gpu_count, r.driver, r.ranks, r.engine, r.engine_version, v.dtype,
  r.backend, r.batch_size,
  t.version, t.identity, t.config_hash, t.subset, c.calibrated, t.num_fewshot,
  t.documents_hash, t.chat_template_hash, t.system_instruction_hash, t.generation_arguments
FROM runs r JOIN variants v USING (variant_id)
LEFT JOIN (SELECT * FROM run_tasks WHERE task = $3) t ON t.run_id = r.run_id
LEFT JOIN (SELECT run_id, string_agg(DISTINCT concat_ws(' ', samples, 'of', task, split, 'seed', seed), ', ' ORDER BY
  concat_ws(' ', samples, 'of', task, split, 'seed', seed)) AS calibrated FROM calibrations GROUP BY run_id) c
  ON c.run_id = r.run_id
LEFT JOIN (SELECT * FROM scores WHERE task = $3 AND is_primary AND NOT is_group) s ON s.run_id = r.run_id
WHERE v.model_name = $1 AND (v.recipe_label = $2 OR v.recipe_name = 'baseline'
    OR (r.origin <> 'recipe' AND r.edited IS NOT TRUE))
  AND (s.metric IS NOT NULL
  OR r.status = 'failed' AND (t.task IS NOT NULL OR NOT EXISTS (SELECT 1 FROM run_tasks a WHERE a.run_id = r.run_id)))
ORDER BY moment NULLS LAST, r.run_id
"""
_SAMPLES = """
SELECT run_id, metric, filter, count(*) AS documents, coalesce(sum(value), 0) AS total,
    bool_and(coalesce(value IN (0, 1), false)) AS binary
FROM sample_scores WHERE task = $1 AND run_id IN (SELECT unnest($2)) GROUP BY ALL
"""
# INCONCLUSIVE: how gates of earlier versions recorded UNDECIDED.
_EVENTS = """
SELECT b.pinned_at AS moment, 'pinned' AS what, b.run_id, b.reason FROM baselines b
WHERE b.model_key IN (SELECT model_key FROM variants WHERE model_name = $1)
UNION ALL
SELECT blessed_at, 'blessed', run_id, reason FROM blessings WHERE model_name = $1 AND recipe_label = $2
UNION ALL
SELECT gated_at, 'gate: ' || if(verdict = 'INCONCLUSIVE', 'UNDECIDED', verdict), candidate, '' FROM gate_runs
WHERE model_name = $1 AND recipe_label = $2
ORDER BY moment, what, run_id
"""


class Change(NamedTuple):
    """One thing that differs from the run before: its name, and what it was and is."""

    what: str
    before: str
    after: str


@dataclass(frozen=True)
class HistoryPoint:
    """One run's score of the task. `score` is None for a run that failed, and for a result that is not a number
    (`reported` says what it was); `low` and `high` are None where nothing says how sure it is.
    """

    run_id: str
    moment: datetime | None
    unedited: bool
    status: str
    failure: str
    metric: str
    filter: str
    score: float | None
    reported: str
    low: float | None
    high: float | None
    documents: int | None
    model_key: str
    changes: tuple[Change, ...] = ()
    subset: str | None = None


class Event(NamedTuple):
    """A decision: a run pinned as the model's baseline, blessed for the recipe, or gated (`what` then bears the
    verdict).
    """

    moment: datetime
    what: str
    run_id: str
    reason: str


class History(NamedTuple):
    """Points of both lines in order of time, and the decisions, earliest first."""

    points: list[HistoryPoint]
    events: list[Event]


class HistorySubject(NamedTuple):
    """What can have a history. `runs` counts those of the recipe itself."""

    model: str
    recipe: str
    task: str
    runs: int


def subjects(store: Store) -> list[HistorySubject]:
    """Every (model, recipe, task) with a score, by name."""
    rows = store.rows(
        "SELECT model_name AS model, recipe_label AS recipe, task, count(DISTINCT run_id) AS runs FROM runs JOIN"
        " variants USING (variant_id) JOIN run_tasks USING (run_id) GROUP BY ALL ORDER BY ALL"
    )
    return [HistorySubject(**row) for row in rows]


def history(store: Store, model: str, recipe: str, task: str) -> History:
    """The history of a recipe (a label; `baseline` for the unedited model alone) on a model (a name) and a task, by its
    primary metric. Empty where there is none.
    """
    rows = store.rows(_POINTS, [model, recipe, task])
    samples = {
        (row["run_id"], row["metric"], row["filter"]): row
        for row in store.rows(_SAMPLES, [task, [row["run_id"] for row in rows]])
    }
    for row in rows:
        row["samples"] = samples.get((row["run_id"], row["metric"], row["filter"]))
    events = [Event(**row) for row in store.rows(_EVENTS, [model, recipe])]
    return History(_with_changes(rows), events)


def _with_changes(rows: Iterable[dict[str, Any]]) -> list[HistoryPoint]:
    points: list[HistoryPoint] = []
    last: dict[bool, dict[str, Any]] = {}
    for row in rows:
        row["lm_eval_recipes"] = _of_json(row["versions"]).get("lm_eval_recipes")
        row["methods"] = revision_of(row["asked"]) if row["recipe_id"] else None
        row["limit"] = _limit(_of_json(row["settings"]).get("limit"))
        before = last.get(row["unedited"])
        points.append(replace(_point(row), changes=() if before is None else tuple(_changes(before, row))))
        last[row["unedited"]] = row
    return points


def _point(row: dict[str, Any]) -> HistoryPoint:
    score, interval = row["score"], _interval(row)
    return HistoryPoint(
        row["run_id"],
        row["moment"],
        row["unedited"],
        row["status"],
        row["failure"] or "",
        row["metric"] or "",
        row["filter"] or "",
        score,
        row["reported"] or "",
        interval.low if interval else None,
        interval.high if interval else None,
        row["documents"],
        row["model_key"],
        subset=row["subset"],
    )


class Interval(NamedTuple):
    """The 95 % interval of one score by itself."""

    low: float
    high: float


def _interval(row: dict[str, Any]) -> Interval | None:
    score, error, documents = row["score"], row["stderr"], _documents_of_share(row)
    if documents is not None:
        limits = wilson(row["samples"]["total"], documents)
        return Interval(float(limits.low), float(limits.high))
    if score is None or error is None:
        return None
    low, high = score - NORMAL_95 * error, score + NORMAL_95 * error
    least, most = metrics.value_range(row["metric"])
    return Interval(max(low, least) if score >= least else low, min(high, most) if score <= most else high)


def _documents_of_share(row: dict[str, Any]) -> int | None:
    """How many documents the score is a share of: all scored 0 or 1, and it their mean. None where it is something
    else, or no samples were logged.
    """
    score, samples = row["score"], row["samples"]
    if score is None or samples is None or not samples["binary"]:
        return None
    return samples["documents"] if reproduces(score, samples["total"] / samples["documents"]) else None


def _changes(before: dict[str, Any], after: dict[str, Any]) -> list[Change]:
    """What differs of what both runs say, and the metric."""
    found = [
        Change(words, _short(name, before[name]), _short(name, after[name]))
        for name, words in _ALIKE.items()
        if _differ(before[name], after[name])
        and (name not in _DIGESTS or weights_differ(str(before[name]), str(after[name])))
    ]
    found += _task_change(before, after)
    metrics = [f"{row['metric']} ({row['filter']})" for row in (before, after) if row["metric"]]
    return found + ([Change("metric", *metrics)] if len(set(metrics)) == 2 else [])


def _task_change(before: dict[str, Any], after: dict[str, Any]) -> list[Change]:
    """That the task's configuration differs, where no identity says what the task was."""
    if (before["identity"] and after["identity"]) or not (before["config_hash"] and after["config_hash"]):
        return []
    parts = differing_parts(before["config_hash"], after["config_hash"])
    return [Change("task's configuration", "", f"another {', '.join(parts)}")] if parts else []


def _differ(before: object, after: object) -> bool:
    return before is not None and after is not None and before != after


def _short(name: str, value: object) -> str:
    text = str(value)
    return short_digest(text) if name in _DIGESTS else text[:12] if name in _HASHES else text


def _limit(value: object) -> str:
    """`10`, whether it was written 10 or 10.0."""
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _of_json(text: str | None) -> dict[str, Any]:
    value = json.loads(text or "{}")
    return value if isinstance(value, dict) else {}
