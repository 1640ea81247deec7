"""What one run is, once read: plain frozen values between the files and the database."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from leaderboard.readers.ran_on import NOWHERE, RanOn
from leaderboard.readers.receipt import ReceiptCalibration, ReceiptMatrix
from leaderboard.readers.samples import Samples

BASELINE = "baseline"  # the recipe of runs of the model as it is
NO_FILTER = "none"


@dataclass(frozen=True)
class ReportedScore:
    """One aggregate as lm-eval reported it. `score` is None where it was not finite: `reported` says what it was."""

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
    is_group: bool
    bound: float | None = None  # by how much one document counts at most


@dataclass(frozen=True)
class TaskRun:
    """How one task was run: what decides comparability, and its samples (None where none were logged).

    identity: a digest of the task's configuration, code and data, from the receipt; config_hash: of its configuration,
    from the results file (`task_identity`). subset: which of its documents were scored, None for all.
    """

    task: str
    version: str | None
    num_fewshot: int | None
    chat_template_hash: str | None
    system_instruction_hash: str | None
    generation_arguments: str | None
    output_type: str | None
    cluster_by: str | None
    samples: Samples | None
    documents_hash: str | None = None
    log_likelihoods: int = 0
    log_likelihoods_hash: str | None = None
    calibration_overlap: int = 0
    overlap_example: str | None = None
    identity: str | None = None
    config_hash: str | None = None
    subset: str | None = None
    sample_count: int | None = None  # as the results file says, whether samples were logged or not

    @property
    def documents(self) -> int | None:
        """How many documents were scored, counted once however many filters there are."""
        return None if self.samples is None else self.samples.distinct


@dataclass(frozen=True)
class RunVariant:
    """A base model under a recipe. `model_key` names the base model, and with it the board."""

    variant_id: str
    model_key: str
    model_name: str
    recipe_name: str
    recipe_label: str
    pretrained: str | None = None
    revision: str | None = None
    identity: str | None = None
    model_type: str | None = None
    parameters: int | None = None
    dtype: str | None = None
    recipe_id: str | None = None
    recipe_summary: str | None = None
    recipe_source: str | None = None
    recipe_resolved: str | None = None
    control: str | None = None
    control_of: str | None = None
    digest_before: str | None = None
    digest_after: str | None = None


@dataclass(frozen=True)
class Run:
    """Everything that one run directory, or one results file with its samples, says."""

    run_id: str
    path: Path
    origin: str
    status: str
    variant: RunVariant
    tasks: list[TaskRun]
    scores: list[ReportedScore]
    files: list[str]
    failure_kind: str | None = None
    failure_reason: str | None = None
    failure_where: str | None = None
    spec_id: str | None = None
    settings_id: str | None = None
    command: str | None = None
    started: datetime | None = None
    finished: datetime | None = None
    seconds: str | None = None
    backend: str | None = None
    device: str | None = None
    batch_size: str | None = None
    lm_eval_version: str | None = None
    transformers_version: str | None = None
    torch_version: str | None = None
    versions: str | None = None
    settings: str | None = None
    seeds: str | None = None
    warnings: list[str] = field(default_factory=list)
    request_cache: bool | None = None  # whether answers may have come from a cache; None: the files do not say
    totals: str | None = None
    parameters_before: int | None = None
    parameters_after: int | None = None
    matrices: list[ReceiptMatrix] = field(default_factory=list)
    calibrations: list[ReceiptCalibration] = field(default_factory=list)
    asked: str | None = None  # JSON of `asked.asked_of`: what runs of one recipe may differ in
    former_id: str | None = None  # by the formula of earlier versions, where that gives another
    edited: bool | None = None  # None: the files do not say
    ran_on: RanOn = NOWHERE


class Rejection(NamedTuple):
    """What could not be taken, and why."""

    path: Path
    reason: str
