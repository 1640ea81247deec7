"""May these two runs of a task be compared, and with which reservations? Answers are sentences for the board.

Only inside one harness and one comparability key: task (its configuration, code and data, as far as both runs say) and
version, few-shot examples, the set of documents, chat template, system instruction, generation arguments, metric,
filter. Other differences (versions, dtype, device, backend, batch size) allow the comparison and are named beside it.
Engine and GPU belong to the key too, but what they forbid depends on what else was measured: `hardware`.

Two tasks of one name are the same where their identities are. Where a run's files hold none, the digests of the
configurations decide, if one version of lm-eval wrote both. Where that is not known either, it is no obstacle; it is
said where one of the two has an identity.
"""

from __future__ import annotations

import json
from functools import cache

from leaderboard.metrics import GOLD_LOG_LIKELIHOOD
from leaderboard.readers.asked import dequantized
from leaderboard.readers.task_identity import differing_parts
from leaderboard.readers.weights_digest import weights_differ
from leaderboard.store import queries
from leaderboard.store.database import Store
from leaderboard.store.queries import RunRow, RunTaskRow, ScoreRow

_KEY = {
    "version": "task version",
    "num_fewshot": "few-shot examples",
    "chat_template_hash": "chat template",
    "system_instruction_hash": "system instruction",
    "generation_arguments": "generation arguments",
}
_AROUND = ("chat_template_hash", "system_instruction_hash")
_OF_METRIC = {
    "higher_is_better": "whether higher is better",
    "best_value": "the best value",
    "margin": "the task's own margin",
    "bound": "the task's bound of a document",
}
RESERVATIONS = {
    "lm_eval_version": "lm-eval",
    "transformers_version": "transformers",
    "torch_version": "torch",
    "dtype": "dtype",
    "device": "device",
    "backend": "backend",
    "batch_size": "batch size",
}


UNKNOWN_TASK = 2
_LM_EVAL = frozenset({"recipe", "plain"})


def key(task: RunTaskRow) -> tuple[object, ...]:
    """What two runs of a task must have in common, task identity apart: equal for them, and hashable."""
    return task.task, _documents(task), *(getattr(task, name) for name in _KEY)


def asked_the_same(first: RunTaskRow, second: RunTaskRow) -> bool:
    """Whether two runs ran one task, in one form, on the same documents, as far as they say."""
    return key(first) == key(second) and task_difference(first, second) is None


def key_differences(
    baseline: tuple[RunRow, RunTaskRow, ScoreRow | None], recipe: tuple[RunRow, RunTaskRow, ScoreRow]
) -> list[str]:
    """Why a run cannot be another's baseline on a task, as far as it shows without a look at their samples."""
    (base_run, base_task, base_score), (run, task, _) = baseline, recipe
    found = [*_harnesses_differ(base_run, run), *_differences(base_task, task)]
    if _documents(base_task) != _documents(task):
        found.append("documents differ" + _subsets(base_task, task))
    if base_score is None or base_score.score is None:
        found.append("it has no such score")
    if _other_weights(base_run, run):
        found.append("it began from other weights")
    return found


def harness(run: RunRow) -> str:
    """Which harness scored a run: `lm-eval`, or the name of another."""
    return "lm-eval" if run.origin in _LM_EVAL else run.origin


def _harnesses_differ(baseline: RunRow, run: RunRow) -> list[str]:
    """Two harnesses ask and score a task of one name in their own ways."""
    first, second = harness(baseline), harness(run)
    return [] if first == second else [f"another harness: baseline {first}, this run {second}"]


def settings_distance(baseline: RunRow, run: RunRow) -> tuple[bool, bool, int]:
    """How far a baseline's settings are from a run's, 0 for the same: as a whole, the dtype, and how many of those that
    are named beside a comparison.
    """
    differing = sum(getattr(baseline, name) != getattr(run, name) for name in RESERVATIONS)
    return baseline.settings_id != run.settings_id, baseline.dtype != run.dtype, differing


def obstacles(
    store: Store, baseline: tuple[RunRow, RunTaskRow, ScoreRow | None], recipe: tuple[RunRow, RunTaskRow, ScoreRow]
) -> tuple[str, ...]:
    """Why the two may not be compared; empty where they may."""
    (base_run, base_task, base_score), (run, task, score) = baseline, recipe
    found = [*_harnesses_differ(base_run, run), *_differences(base_task, task)]
    if task.calibration_overlap:
        found.append(
            f"{task.calibration_overlap} of its calibration documents are among the documents scored here "
            f"(such as {str(task.overlap_example)[:12]}): no score may be chosen on the documents that it reports"
        )
    if base_score is None:
        found.append(f"the baseline has no {score.metric} (filter {score.filter}){_since_when(score)}")
    else:
        found += _metrics_differ(base_score, score)
    if lacking := lacking_samples(base_task, task):
        found += [*_counts_differ(base_task, task), *lacking]
    elif base_task.documents_hash != task.documents_hash:
        differ = _documents_differ(store, base_run.run_id, run.run_id, task.task)
        found.append(differ + _subsets(base_task, task))
    if _other_weights(base_run, run):
        found.append("the run began from other weights than the baseline")
    return tuple(found)


def _since_when(score: ScoreRow) -> str:
    """Why a baseline may lack what is read from samples."""
    if score.metric != GOLD_LOG_LIKELIHOOD:
        return ""
    return ": it was ingested before this was read; `lm_eval ingest --rebuild` reads every run anew"


def lacking_samples(baseline: RunTaskRow, task: RunTaskRow) -> tuple[str, ...]:
    """The obstacle, if it is one, that documents cannot be paired because they were not logged."""
    if baseline.documents is not None and task.documents is not None:
        return ()
    whose = "the baseline" if baseline.documents is None else "this run"
    return (
        f"{whose} logged no samples, so documents cannot be paired: shown, gated only by `allow_unpaired: true`; run it"
        " with --log_samples",
    )


def agreed(baseline: ScoreRow | None, score: ScoreRow) -> ScoreRow:
    """The score with what only the baseline's file says of their metric: direction, best value, margin."""
    if baseline is None:
        return score
    said = {
        name: value
        for name in _OF_METRIC
        if getattr(score, name) is None and (value := getattr(baseline, name)) is not None
    }
    return score._replace(**said) if said else score


def _metrics_differ(baseline: ScoreRow, score: ScoreRow) -> list[str]:
    """What two files say differently of one metric: its two scores are then no scores of one thing."""
    pairs = [(words, getattr(baseline, name), getattr(score, name)) for name, words in _OF_METRIC.items()]
    return [
        f"{words} of {score.metric} differs: baseline {_short(a)}, this run {_short(b)}"
        for words, a, b in pairs
        if a is not None and b is not None and a != b
    ]


def _counts_differ(baseline: RunTaskRow, task: RunTaskRow) -> list[str]:
    a, b = baseline.document_count, task.document_count
    return [] if a is None or b is None or a == b else [f"numbers of documents differ: baseline {a:,}, this run {b:,}"]


def _differences(baseline: RunTaskRow, task: RunTaskRow) -> list[str]:
    pairs = [(words, getattr(baseline, name), getattr(task, name)) for name, words in _KEY.items()]
    task_differs = task_difference(baseline, task)
    return ([task_differs] if task_differs else []) + [
        f"{words} differ: baseline {_short(a)}, this run {_short(b)}" for words, a, b in pairs if a != b
    ]


def rephrased(task: RunTaskRow) -> str | None:
    """What a run put around the prompts of a task, in words."""
    around = [words for name, words in _KEY.items() if name in _AROUND and getattr(task, name)]
    return " and a ".join(around) or None


def task_difference(baseline: RunTaskRow, task: RunTaskRow) -> str | None:
    """That two runs of a task's name ran two tasks, and in what they differ as far as it is known; None where they ran
    one, or nothing says.
    """
    parts = _config_parts(baseline, task)
    if baseline.identity and task.identity:
        # Examples in the prompt are part of the identity, and told by themselves.
        if baseline.identity == task.identity or (baseline.num_fewshot != task.num_fewshot and not parts):
            return None
        where = "" if parts is None else f": {', '.join(parts)}" if parts else " (its configuration is the same)"
        return f"task code or data differ{where}"
    return f"task code or data differ: {', '.join(parts)}" if parts else None


def same_task_known(baseline: RunTaskRow, task: RunTaskRow) -> int:
    """How sure it is that two runs without a known difference ran one task: 0 by identity, 1 by configuration,
    `UNKNOWN_TASK` where nothing says.
    """
    if baseline.identity and task.identity:
        return 0
    return UNKNOWN_TASK if _config_parts(baseline, task) is None else 1


def task_notes(baseline: RunTaskRow, task: RunTaskRow) -> tuple[str, ...]:
    """What is to be said where only one of two runs says which task it ran."""
    if bool(baseline.identity) == bool(task.identity):
        return ()
    which = "this run" if baseline.identity else "the baseline"
    return (f"warning: {which} does not say which task code and data it used; the other run does",)


def _config_parts(baseline: RunTaskRow, task: RunTaskRow) -> tuple[str, ...] | None:
    known = baseline.config_hash and task.config_hash
    return differing_parts(str(baseline.config_hash), str(task.config_hash)) if known else None


def _short(value: object) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _documents_differ(store: Store, baseline: str, run: str, task: str) -> str:
    only_baseline, only_run, same_documents = queries.document_overlap(store, baseline, run, task)
    if same_documents:
        return f"documents are the same, but {only_run} prompts or targets differ"
    return f"documents differ: {only_baseline} only in the baseline, {only_run} only in this run"


def _documents(task: RunTaskRow) -> str | None:
    """Which documents were scored: a digest of them, or without samples the part of them that was asked for."""
    return task.documents_hash or task.subset


def _subsets(baseline: RunTaskRow, task: RunTaskRow) -> str:
    """` (baseline: all; this run: first 20 of 60 documents)`, where the two say."""
    if baseline.subset == task.subset:
        return ""
    return f" (baseline: {baseline.subset or 'all'}; this run: {task.subset or 'all'})"


def _other_weights(baseline: RunRow, run: RunRow) -> bool:
    """Whether two runs of one model began from different weights: then it is not one model. Where their digests are of
    two kinds, the model's key tells, in which the identity of its checkpoint is. In another dtype a model is another by
    its digest only, unless one of the two was dequantised.
    """
    one_dtype = baseline.dtype == run.dtype or dequantized(baseline.asked) != dequantized(run.asked)
    alike = baseline.model_key == run.model_key and one_dtype
    return alike and weights_differ(baseline.digest_before or None, run.digest_before or None) is True


def reservations(baseline: RunRow, run: RunRow) -> tuple[str, ...]:
    """What differs without forbidding the comparison, and what the run itself warned of."""
    notes = [
        f"warning: {words} differs: baseline {a}, this run {b}"
        for name, words in RESERVATIONS.items()
        if (a := getattr(baseline, name)) and (b := getattr(run, name)) and a != b
    ]
    return (*notes, *own_warnings(run))


def unpaired_notes(run: RunRow, task: RunTaskRow) -> tuple[str, ...]:
    """What is to be said of a score that stands alone: whether it can ever be compared, and the run's own warnings."""
    lacking = ("no samples were logged: shown, gated only by `allow_unpaired: true`",) if task.documents is None else ()
    return (*lacking, *own_warnings(run))


def own_warnings(run: RunRow) -> tuple[str, ...]:
    """The warnings in the run's own receipt."""
    return _warnings(run.warnings or "[]")


@cache
def _warnings(texts: str) -> tuple[str, ...]:
    return tuple(f"warning: {text}" for text in json.loads(texts))
