"""The standing check: a recipe that changes nothing must not change a score.

`identity` decomposes and recomposes every matrix at full rank. Its answers' log-likelihoods may differ from the
baseline's by rounding; by more, and something between decomposition and scoring is broken, and every other recipe's
result with it.

What rounding explains is said for each request: the noise of its tokens, which is independent and so grows with the
root of their number, and one step between neighbouring numbers of the dtype at the size of the log-likelihood, since
the model's dtype is what a log-likelihood is summed in. In bfloat16 that step is 1 at -225.

In dtypes of two bytes a rare answer goes beyond: rounding tips an attention to another token, and what follows is
another text. So there one answer in 500 may, and one where there are fewer, by up to ten times. Measured on
SmolLM2-135M in bfloat16: one of 1,400 answers moved by 1.8 times of what is allowed, 3.2 nats over 7 tokens, while the
same weights in float64 gave it as before, to 0.001; in another order of 7,000 answers none did.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from harness_ext.storage.rundir import FinishedRun

# Noise of one token's log-likelihood. Measured: some 1e-5 in fp32; in bf16, on SmolLM2-135M, 0.05 on average and up to
# 0.25, for its logits are rounded to an eighth.
TOLERANCE: Mapping[str, float] = {"float64": 1e-6, "float32": 1e-3, "float16": 0.25}
_BFLOAT16 = 0.5
_MANTISSA_BITS: Mapping[str, int] = {"float64": 52, "float32": 23, "float16": 10}
_BFLOAT16_BITS = 7
_TWO_BYTES = ("float16", "bfloat16")
_ONE_IN = 500
_FEWEST = 20
"""Answers of which one may go beyond."""
_TIMES = 10.0
_Request = tuple[str, str, str, str, int]
"""Task, document, prompt, filter, and which of the document's requests."""


class ScoredAnswer(NamedTuple):
    """log_likelihood: in nats. tokens: of the text, estimated from its words and characters, for no tokenizer is at
    hand.
    """

    log_likelihood: float
    tokens: float


class Deviation(NamedTuple):
    """The request whose log-likelihood moved most by what rounding allows. difference, allowed, log_likelihood (of the
    baseline): in nats. beyond: how many of the answers moved further than theirs allows. outliers: how many of them
    rounding may tip over.
    """

    difference: float
    allowed: float
    log_likelihood: float
    task: str | None
    beyond: int = 0
    outliers: int = 0

    @property
    def explained(self) -> bool:
        """Whether rounding explains it, and all others."""
        return self.difference <= self.allowed or (
            self.beyond <= self.outliers and self.difference <= _TIMES * self.allowed
        )


def worst_deviation(baseline: FinishedRun, other: FinishedRun) -> Deviation:
    """Of two runs of the same requests, by their dtype; infinite where the requests differ, zero where no answer has a
    log-likelihood.
    """
    dtype = str(other.receipt["model"]["dtype"])
    nothing = Deviation(0.0, TOLERANCE.get(dtype, _BFLOAT16), 0.0, None)
    found = _differences(baseline.path, other.path)
    if found is None:
        return nothing._replace(difference=math.inf)
    deviations = [
        Deviation(difference, allowed_difference(answer, dtype), answer.log_likelihood, task)
        for task, answer, difference in found
    ]
    worst = max(deviations, key=lambda one: one.difference / one.allowed, default=nothing)
    beyond = sum(one.difference > one.allowed for one in deviations)
    return worst._replace(beyond=beyond, outliers=_outliers(len(deviations), dtype))


def _outliers(answers: int, dtype: str) -> int:
    return max(1, answers // _ONE_IN) if dtype in _TWO_BYTES and answers >= _FEWEST else 0


def largest_difference(baseline: FinishedRun, other: FinishedRun) -> float:
    """The largest difference between two runs' log-likelihoods of the same request, in nats; infinite where the
    requests differ.
    """
    found = _differences(baseline.path, other.path)
    return math.inf if found is None else max((difference for *_, difference in found), default=0.0)


def allowed_difference(answer: ScoredAnswer, dtype: str) -> float:
    """The difference in nats that rounding explains, of one answer of a model in this dtype."""
    noise = TOLERANCE.get(dtype, _BFLOAT16) * math.sqrt(max(1.0, answer.tokens))
    size = abs(answer.log_likelihood)
    if not 0 < size < math.inf:
        return noise
    _, exponent = math.frexp(size)
    return noise + math.ldexp(1.0, exponent - 1 - _MANTISSA_BITS.get(dtype, _BFLOAT16_BITS))


def _differences(baseline: Path, other: Path) -> list[tuple[str, ScoredAnswer, float]] | None:
    """Task, the baseline's answer and how far the other's lies from it; None where the requests differ."""
    ours, theirs = _answers(baseline), _answers(other)
    if {key: len(values) for key, values in ours.items()} != {key: len(values) for key, values in theirs.items()}:
        return None
    return [
        (key[0], answer, _distance(answer.log_likelihood, its.log_likelihood))
        for key, values in ours.items()
        for answer, its in zip(values, theirs[key], strict=True)
    ]


def _distance(first: float, second: float) -> float:
    """Infinite where one is no finite number and the other is not the same."""
    return 0.0 if str(first) == str(second) else abs(first - second) if math.isfinite(first - second) else math.inf


def _answers(folder: Path) -> dict[_Request, list[ScoredAnswer]]:
    """The answers to each request, sorted: a task may hold a document more than once, in no order that counts."""
    found: dict[_Request, list[ScoredAnswer]] = {}
    for key, value in _logged(folder):
        found.setdefault(key, []).append(value)
    return {key: sorted(values) for key, values in found.items()}


def _logged(folder: Path) -> Iterator[tuple[_Request, ScoredAnswer]]:
    for path in sorted(folder.glob("samples_*.jsonl")):
        task = path.name.removeprefix("samples_").rpartition("_")[0]
        for line in path.read_text(encoding="utf-8").splitlines():
            sample = json.loads(line)
            for place, response in enumerate(sample["filtered_resps"]):
                if isinstance(response, (list, tuple)) and response:
                    yield (
                        (task, sample["doc_hash"], sample["prompt_hash"], sample["filter"], place),
                        ScoredAnswer(float(response[0]), _tokens(_text(sample, place))),
                    )


def _text(sample: Mapping[str, Any], place: int) -> str:
    """What a request asked the likelihood of: its last text."""
    arguments = sample.get("arguments")
    request = arguments.get(f"gen_args_{place}") if isinstance(arguments, dict) else None
    texts = [value for value in request.values() if isinstance(value, str)] if isinstance(request, dict) else []
    return texts[-1] if texts else ""


def _tokens(text: str) -> float:
    return max(len(text.split()), len(text.encode()) / 4)
