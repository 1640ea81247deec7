"""The standing check: a recipe that changes nothing must not change a score.

`identity` decomposes and recomposes every matrix at full rank. Its answers' log-likelihoods may differ from the
baseline's by rounding; by more, and something between decomposition and scoring is broken, and every other recipe's
result with it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from harness_ext.storage.rundir import FinishedRun

# Log-likelihoods of short answers; measured differences are some 1e-5 in fp32 and some 1e-2 in half precision, whose
# weights are rounded once more.
TOLERANCE: Mapping[str, float] = {"float64": 1e-6, "float32": 1e-3}
_HALF_PRECISION = 0.25
_Request = tuple[str, str, str, str, int]
"""Task, document, prompt, filter, and which of the document's requests."""


def largest_difference(baseline: FinishedRun, other: FinishedRun) -> float:
    """The largest difference between two runs' log-likelihoods of the same request, in nats; infinite where the
    requests differ.
    """
    ours, theirs = _likelihoods(baseline.path), _likelihoods(other.path)
    if {key: len(values) for key, values in ours.items()} != {key: len(values) for key, values in theirs.items()}:
        return math.inf
    return max(
        (abs(value - its) for key, values in ours.items() for value, its in zip(values, theirs[key], strict=True)),
        default=0.0,
    )


def tolerance(run: FinishedRun) -> float:
    """The difference that rounding explains, for the dtype of the run's model."""
    return TOLERANCE.get(str(run.receipt["model"]["dtype"]), _HALF_PRECISION)


def _likelihoods(folder: Path) -> dict[_Request, list[float]]:
    """The log-likelihoods of each request, sorted: a task may hold a document more than once, in no order that
    counts.
    """
    found: dict[_Request, list[float]] = {}
    for key, value in _logged(folder):
        found.setdefault(key, []).append(value)
    return {key: sorted(values) for key, values in found.items()}


def _logged(folder: Path) -> Iterator[tuple[_Request, float]]:
    for path in sorted(folder.glob("samples_*.jsonl")):
        task = path.name.removeprefix("samples_").rpartition("_")[0]
        for line in path.read_text(encoding="utf-8").splitlines():
            sample = json.loads(line)
            for place, response in enumerate(sample["filtered_resps"]):
                if isinstance(response, (list, tuple)) and response:
                    yield (
                        (task, sample["doc_hash"], sample["prompt_hash"], sample["filter"], place),
                        float(response[0]),
                    )
