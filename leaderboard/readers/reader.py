"""Reading one run, found by `discovery`, into a `Run`. Nothing here touches a database."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from leaderboard.errors import Unreadable
from leaderboard.readers.asked import asked_of
from leaderboard.readers.discovery import ARCHIVE, Candidate, date_of
from leaderboard.readers.edited import of_receipt
from leaderboard.readers.foreign.formats import run_of_archive, run_of_json
from leaderboard.readers.gold_answer import gold_score
from leaderboard.readers.orphan_samples import WARNING, read_task
from leaderboard.readers.ran_on import ran_on_of
from leaderboard.readers.receipt import Receipt, ReceiptFailure, ReceiptFile, read_receipt, shown, storable, utc
from leaderboard.readers.records import NO_FILTER, ReportedScore, Run, TaskRun
from leaderboard.readers.results import Environment, Results, read_results, results_in
from leaderboard.readers.run_id import with_id
from leaderboard.readers.safe_json import canonical, clean, load_json, mapping, optional_text
from leaderboard.readers.samples import Samples, documents_hash, log_likelihoods
from leaderboard.readers.samples_reader import LOG_LIKELIHOOD_OUTPUTS, SampleForm, SamplesReader
from leaderboard.readers.variants import (
    plain_variant,
    plain_variant_id,
    receipt_variant,
    receipt_variant_id,
    samples_variant,
)


def read_runs(candidate: Candidate, reader: SamplesReader | None = None) -> list[Run]:
    """Read what was found, whole: one run, or the several that an old results file may hold; `reader` speeds it up
    where runs of the same documents are read. Raises `Unreadable` with the reason; nothing else escapes for any content
    of the files.
    """
    reader = reader or SamplesReader()
    try:
        return [_with_gold(run) for run in _read_runs(candidate, reader)]
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror}") from error


def _read_runs(candidate: Candidate, reader: SamplesReader) -> list[Run]:
    if candidate.receipt is not None:
        return [_receipt_run(candidate, candidate.receipt, reader)]
    if candidate.path.suffix == ARCHIVE:
        return [run_of_archive(candidate.path)]
    if candidate.results is None:
        return [_samples_run(candidate, reader)]
    data = load_json(candidate.results)
    foreign = run_of_json(data, candidate, candidate.results)
    if foreign is not None:
        return [foreign]
    runs = [_plain_run(candidate, results, reader) for results in results_in(data, candidate.results)]
    return [*runs, *_unclaimed(candidate, runs, reader)]


def _with_gold(run: Run) -> Run:
    """The run with what follows from its responses beside what lm-eval reported, which is no part of its id."""
    found = [score for task in run.tasks for score in gold_score(task.task, task.samples)]
    return replace(run, scores=[*run.scores, *found]) if found else run


def _unclaimed(candidate: Candidate, runs: list[Run], reader: SamplesReader) -> Iterator[Run]:
    """Undated samples beside a results file that has no such task: runs of their own."""
    if candidate.results is None or date_of(candidate.results) is not None:
        return
    claimed = {
        _samples_of(candidate, task.task, [task.task for task in run.tasks]) for run in runs for task in run.tasks
    }
    for file in candidate.samples:
        if file not in claimed:
            yield _samples_run(Candidate(file, None, None, (file,)), reader)


def _samples_of(candidate: Candidate, task: str, tasks: Sequence[str]) -> Path | None:
    """The samples file of a task. Without a date its name ends in the task's, of which the longest that fits is
    meant.
    """
    date = date_of(candidate.results) if candidate.results else None
    if date is not None:
        return candidate.samples_by_name.get(f"samples_{task}_{date}.jsonl")
    for file in candidate.samples:
        if (
            max((name for name in tasks if file.stem == name or file.stem.endswith(f"_{name}")), key=len, default=None)
            == task
        ):
            return file
    return None


def _receipt_run(candidate: Candidate, path: Path, reader: SamplesReader) -> Run:
    receipt, raw = read_receipt(path)
    run = _as_receipt_says(candidate, receipt, raw)
    former = receipt_variant_id(receipt)
    if receipt.failure is not None and receipt.status == "failed":
        return with_id(_failed(run, receipt.failure, receipt), None, former)
    if candidate.results is None:
        raise Unreadable("the receipt says complete, but there is no results_*.json beside it")
    _check_as_written(candidate, receipt)
    results, *others = read_results(candidate.results)
    if others:
        raise Unreadable("results_*.json is of before lm-eval 0.4, which no receipt can lie beside")
    learned = _learned(receipt)
    tasks = [
        replace(_with_overlap(task, learned), identity=_identity(receipt, task.task))
        for task in _task_runs(results, candidate, reader)
    ]
    whole = replace(_with_environment(run, results.environment), tasks=tasks, scores=results.scores)
    known = with_id(whole, results.contents, former)
    if results.as_written is None:
        return known
    return _known_as(known, with_id(whole, results.as_written.contents, former))


def _as_receipt_says(candidate: Candidate, receipt: Receipt, raw: Mapping[str, Any]) -> Run:
    """The run without its id, tasks and scores. raw: the receipt as written, for what is only shown."""
    known = of_receipt(receipt)
    return Run(
        run_id="",
        path=candidate.path,
        origin="recipe",
        status=receipt.status,
        variant=receipt_variant(receipt, known),
        tasks=[],
        scores=[],
        files=_names(candidate),
        spec_id=clean(receipt.spec_id),
        settings_id=receipt.settings_id and clean(receipt.settings_id),
        command=clean(canonical(receipt.command)),
        started=utc(receipt.started),
        finished=utc(receipt.finished),
        seconds=shown(raw.get("seconds")),
        backend=receipt.model.backend and clean(receipt.model.backend),
        device=receipt.model.device and clean(receipt.model.device),
        versions=shown(raw.get("versions")),
        settings=shown(raw.get("settings")),
        asked=asked_of(
            raw.get("settings"),
            receipt.recipe.revisions,
            receipt.recipe.control_of_revisions,
            receipt.model.dequantized_from,
        ),
        seeds=shown(raw.get("seeds")),
        warnings=[clean(warning) for warning in (*receipt.warnings, *known.warnings)],
        totals=shown(raw.get("totals")),
        parameters_before=receipt.totals.parameters_before if receipt.totals else receipt.model.parameters,
        parameters_after=receipt.totals.parameters_after if receipt.totals else None,
        matrices=[storable(matrix) for matrix in receipt.matrices],
        calibrations=[storable(used) for used in receipt.calibration],
        edited=known.edited,
        ran_on=ran_on_of(receipt.ran_on),
    )


def _failed(run: Run, failure: ReceiptFailure, receipt: Receipt) -> Run:
    """The run with why it failed. It has a row on the board for every task that it was asked for."""
    return replace(
        run,
        failure_kind=clean(failure.kind),
        failure_reason=clean(failure.reason),
        failure_where=failure.where and clean(failure.where),
        tasks=[TaskRun(clean(str(task)), None, None, None, None, None, None, None, None) for task in receipt.tasks],
    )


def _check_as_written(candidate: Candidate, receipt: Receipt) -> None:
    """Raise `Unreadable` where a file is not the one that the receipt lists: cut, changed, or of another run."""
    listed = {file.name: file for file in receipt.files}
    for path in filter(None, (candidate.results, *candidate.samples)):
        written = listed.get(path.name)
        if not listed or (written is not None and _is_as_written(path, written)):
            continue
        what = "is none of the run's files" if written is None else "is not as it was written"
        raise Unreadable(f"{path.name} {what} (receipt.json lists them): the same command makes the run anew")


def _is_as_written(path: Path, written: ReceiptFile) -> bool:
    if path.stat().st_size != written.bytes:
        return False
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            hasher.update(block)
    return hasher.hexdigest() == written.sha256


def _plain_run(candidate: Candidate, results: Results, reader: SamplesReader) -> Run:
    environment = results.environment
    run = Run(
        run_id="",
        path=candidate.path,
        origin="plain",
        status="complete",
        variant=plain_variant(environment),
        tasks=_task_runs(results, candidate, reader),
        scores=results.scores,
        files=_names(candidate),
        settings=environment.settings,
        asked=environment.asked,
        started=_from_timestamp(environment.date),
        warnings=list(environment.editedness.warnings),
        edited=environment.editedness.edited,
    )
    run = _with_environment(run, environment)
    known = with_id(run, results.contents, plain_variant_id(environment))
    if results.as_written is None:
        return known
    raw = results.as_written.environment
    written = replace(run, settings=raw.settings, variant=plain_variant(raw))
    return _known_as(known, with_id(written, results.as_written.contents, plain_variant_id(raw)))


def _known_as(run: Run, written: Run) -> Run:
    """The run, and the id that it had while secrets were part of its settings."""
    return run if run.run_id == written.run_id else replace(run, former_id=written.run_id)


def _samples_run(candidate: Candidate, reader: SamplesReader) -> Run:
    read = [read_task(file, reader) for file in candidate.samples]
    run = Run(
        run_id="",
        path=candidate.path,
        origin="plain",
        status="complete",
        variant=samples_variant(clean(candidate.path.parent.name or "unnamed model")),
        tasks=[task for task, _ in read],
        scores=[score for _, scores in read for score in scores],
        files=_names(candidate),
        settings=canonical({"samples_only": True}),
        warnings=[WARNING],
    )
    return with_id(run, None)


def _with_environment(run: Run, environment: Environment) -> Run:
    return replace(
        run,
        backend=run.backend or environment.backend,
        device=run.device or environment.device,
        batch_size=environment.batch_size,
        lm_eval_version=environment.lm_eval_version,
        transformers_version=environment.transformers_version,
        torch_version=environment.torch_version,
        request_cache=environment.request_cache,
    )


def _task_runs(results: Results, candidate: Candidate, reader: SamplesReader) -> list[TaskRun]:
    environment = results.environment
    by_task: dict[str, list[ReportedScore]] = defaultdict(list)
    for score in results.scores:
        by_task[score.task].append(score)
    tasks = []
    for task, settings in results.tasks.items():
        file = _samples_of(candidate, task, list(results.tasks))
        scores = by_task[task]
        filters = {score.filter for score in scores}
        form = SampleForm(
            task,
            frozenset(score.metric for score in scores),
            settings.cluster_by,
            filters.pop() if len(filters) == 1 else NO_FILTER,
        )
        samples = reader.read(file, form) if file else None
        if samples is not None:
            _check_whole(task, samples, settings.sample_count)
        run = TaskRun(
            task=task,
            version=settings.version,
            num_fewshot=settings.num_fewshot,
            chat_template_hash=environment.chat_template_hash,
            system_instruction_hash=environment.system_instruction_hash,
            generation_arguments=settings.generation_arguments,
            output_type=settings.output_type,
            cluster_by=settings.cluster_by,
            samples=samples,
            documents_hash=documents_hash(samples) if samples is not None else None,
            config_hash=settings.config_hash,
            subset=settings.subset,
            sample_count=settings.likely_count,
        )
        if samples and settings.output_type in LOG_LIKELIHOOD_OUTPUTS:
            count, fingerprint = log_likelihoods(samples)
            run = replace(run, log_likelihoods=count, log_likelihoods_hash=fingerprint)
        tasks.append(run)
    return tasks


def _check_whole(task: str, samples: Samples, expected: int | None) -> None:
    if expected is not None and samples.distinct < expected:
        raise Unreadable(f"the samples of {task} are incomplete: {samples.distinct} of {expected} documents")


class _Learned(NamedTuple):
    """The documents that a recipe learned from or was chosen on: lm-eval's hashes, and digests of what is asked."""

    documents: frozenset[str]
    contents: frozenset[str]


def _learned(receipt: Receipt) -> _Learned:
    used = receipt.calibration
    resolved = receipt.recipe.resolved
    chosen_on = resolved.get("chosen_on") if isinstance(resolved, dict) else None
    known = {hashed for hashed in chosen_on if isinstance(hashed, str)} if isinstance(chosen_on, list) else set()
    return _Learned(
        frozenset(known.union(*(one.documents for one in used))),
        frozenset(known.union(*(one.contents for one in used))),
    )


def _with_overlap(task: TaskRun, learned: _Learned) -> TaskRun:
    """Mark a task that scores documents its own recipe was calibrated or chosen on, in whatever form."""
    documents = (task.samples or Samples()).documents
    both = {document.doc_hash for document in documents if document.doc_hash in learned.documents}
    if learned.contents:
        both |= {
            document.doc_hash
            for document in documents
            if document.doc_hash not in both
            and document.contents is not None
            and not learned.contents.isdisjoint(document.contents.digests(task.num_fewshot))
        }
    return replace(task, calibration_overlap=len(both), overlap_example=min(both)) if both else task


def _identity(receipt: Receipt, task: str) -> str | None:
    return optional_text(mapping(receipt.tasks.get(task)).get("identity"))


def _names(candidate: Candidate) -> list[str]:
    return [clean(file.name) for file in (candidate.receipt, candidate.results, *candidate.samples) if file is not None]


def _from_timestamp(seconds: float | None) -> datetime | None:
    try:
        return None if seconds is None else datetime.fromtimestamp(seconds, timezone.utc).replace(tzinfo=None)
    except (OverflowError, OSError, ValueError):
        return None
