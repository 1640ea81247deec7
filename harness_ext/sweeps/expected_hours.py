"""How long the cells of a sweep may take, told without loading anything.

By receipts of the model's own runs where there are any of as many documents. Else roughly: by those of the sweep's
other models, in proportion to the number of parameters; else by `2 P` operations a token (P parameters; Kaplan et al.
2020, arXiv:2001.08361, section 2.1), for a usual number of tokens a document, at a usual rate. Edits and searches are
not in the rough ones, so that they tell minutes from days and no more.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any, Literal

from harness_ext.demo import demo_path
from harness_ext.errors import UserError
from harness_ext.model.safetensors_header import read_header
from harness_ext.storage.rundir import FinishedRun
from harness_ext.sweeps.sweep_file import SweepFile

TOKENS_OF_A_DOCUMENT = 400
"""Four answers of a hundred tokens each, its question with every one."""
GPU_RATE, CPU_RATE = 50e12, 50e9
"""Operations a second: what a data centre's GPU does in half precision where batches are short, and a few cores."""
_MOST_FILES = 1000
_SIZE_IN_NAME = re.compile(
    r"(?<![A-Za-z0-9.])(?:(\d{1,3})x)?(\d{1,4}(?:\.\d{1,3})?)([bm])(?![A-Za-z0-9])", re.IGNORECASE
)

By = Literal["receipts", "rough"]


@dataclass(frozen=True)
class PastRun:
    """What a receipt tells of a run's time. scored: documents by task. limit: as `--limit`; whether it is known."""

    seconds: float
    parameters: float | None
    scored: Mapping[str, int]
    limit: float | None
    limit_known: bool


@dataclass(frozen=True)
class Workload:
    """What a sweep asks of each variant. kinds: of tasks, by name, as the task index has them (`TASK`, `GROUP`, `TAG`);
    empty where it is not kept. on_gpu: whether cells have GPUs.
    """

    tasks: Sequence[str]
    limit: float | None
    kinds: Mapping[str, str] = field(default_factory=dict)
    on_gpu: bool = True

    @classmethod
    def of(cls, sweep: SweepFile, kinds: Mapping[str, str], *, on_gpu: bool) -> Workload:
        """The workload of a sweep."""
        limit = sweep.run.get("limit")
        return cls(sweep.tasks, float(limit) if isinstance(limit, (int, float)) else None, kinds, on_gpu)

    def is_of(self, run: PastRun) -> bool:
        """Whether a run scored as many documents as a variant will, as far as its receipt tells."""
        if run.limit_known and run.limit != self.limit:
            return False
        plain = all(self.kinds.get(task) == "TASK" for task in self.tasks)
        return not plain or not run.scored or set(run.scored) == set(self.tasks)

    def documents(self, runs: Iterable[PastRun]) -> int | None:
        """How many a variant scores: by runs of the same task, else by the limit at most; None where unknown."""
        known: dict[str, int] = {}
        for run in runs:
            if run.limit_known and run.limit == self.limit:
                known |= run.scored
        whole = self.limit is not None and self.limit >= 1
        counts = [
            known.get(task, int(self.limit or 0) if whole and self.kinds.get(task) == "TASK" else None)
            for task in self.tasks
        ]
        return None if None in counts else sum(count for count in counts if count is not None)


def past_run(run: FinishedRun) -> PastRun:
    """What a run's receipt tells; no seconds where it tells no time. Nothing in it is trusted beyond its form."""
    spent = _mapping(run.receipt.get("seconds"))
    seconds = sum(number for value in spent.values() if (number := _number(value)) is not None)
    settings = _mapping(run.receipt.get("settings"))
    scored = {
        name: int(count)
        for name, told in _mapping(run.receipt.get("tasks")).items()
        if (count := _number(_mapping(told).get("scored"))) is not None
    }
    parameters = _number(_mapping(run.receipt.get("totals")).get("parameters_before"))
    return PastRun(seconds, parameters, scored, _number(settings.get("limit")), "limit" in settings)


def hours_of(
    model: str, variants: int, workload: Workload, runs: Mapping[str, Sequence[PastRun]]
) -> tuple[float | None, By | None]:
    """Hours of so many variants, and what tells them. runs: of each of the sweep's models."""
    own = runs.get(model, ())
    if like := [run.seconds for run in own if workload.is_of(run)]:
        return mean(like) * variants / 3600, "receipts"
    parameters = next((run.parameters for run in own if run.parameters), None) or parameters_of(model)
    if not parameters:
        return None, None
    everything = [run for several in runs.values() for run in several]
    if rates := [run.seconds / run.parameters for run in everything if run.parameters and workload.is_of(run)]:
        return mean(rates) * parameters * variants / 3600, "rough"
    documents = workload.documents(everything)
    if documents is None:
        return None, None
    operations = 2.0 * parameters * TOKENS_OF_A_DOCUMENT * documents
    return operations / (GPU_RATE if workload.on_gpu else CPU_RATE) * variants / 3600, "rough"


def parameters_of(model: str) -> float | None:
    """How many parameters a model has: by the headers of its files where they are on this machine, else by its name
    (`8B`, `8x7B`, `135M`); None where neither tells.
    """
    for folder in _folders(model):
        if count := _stored(folder):
            return count
    sizes = _SIZE_IN_NAME.findall(os.path.basename(model.rstrip("/")))
    if not sizes:
        return None
    times, size, unit = sizes[0]
    return int(times or 1) * float(size) * (1e9 if unit in "bB" else 1e6)


def _folders(model: str) -> list[Path]:
    """Where its files may be: a folder, the embedded model, or what the hub's client keeps, the latest first."""
    if model == "demo" and not Path("demo/config.json").is_file():
        return [demo_path()]
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub") / f"models--{model.replace('/', '--')}" / "snapshots"
    try:
        kept = sorted(cache.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    except OSError:
        kept = []
    return [Path(model).expanduser(), *kept]


def _stored(folder: Path) -> float | None:
    """The numbers in the safetensors files of a folder; None where there are none that can be read."""
    try:
        files = sorted(folder.glob("*.safetensors"))[:_MOST_FILES]
        headers = [read_header(file) for file in files]
    except (OSError, ValueError, UserError):
        return None
    count = 0
    for tensor in (tensor for header in headers for tensor in header.values()):
        size = 1
        for side in tensor.shape:
            size *= side
        count += size
    return float(count) or None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
