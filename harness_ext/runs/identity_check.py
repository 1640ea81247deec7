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


def largest_difference(baseline: FinishedRun, other: FinishedRun) -> float:
    """The largest difference between two runs' log-likelihoods of the same request, in nats; infinite where the
    requests differ.
    """
    ours, theirs = dict(_likelihoods(baseline.path)), dict(_likelihoods(other.path))
    if ours.keys() != theirs.keys():
        return math.inf
    return max((abs(value - theirs[key]) for key, value in ours.items()), default=0.0)


def tolerance(run: FinishedRun) -> float:
    """The difference that rounding explains, for the dtype of the run's model."""
    return TOLERANCE.get(str(run.receipt["model"]["dtype"]), _HALF_PRECISION)


def _likelihoods(folder: Path) -> Iterator[tuple[tuple[str, str, str, int], float]]:
    for path in sorted(folder.glob("samples_*.jsonl")):
        task = path.name.removeprefix("samples_").rpartition("_")[0]
        for line in path.read_text(encoding="utf-8").splitlines():
            sample = json.loads(line)
            for place, response in enumerate(sample["filtered_resps"]):
                if isinstance(response, (list, tuple)) and response:
                    yield (task, sample["doc_hash"], sample["filter"], place), float(response[0])
