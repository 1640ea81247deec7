"""The tolerance of the identity check: it follows dtype, length and size of a log-likelihood."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from harness_ext.runs.identity_check import ScoredAnswer, allowed_difference, largest_difference, worst_deviation
from harness_ext.storage.rundir import FinishedRun

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHORT = " no"


def a_run(folder: Path, answers: Sequence[tuple[str, float]], dtype: str = "bfloat16") -> FinishedRun:
    """A run folder with one document an answer: its text, and its log-likelihood."""
    folder.mkdir()
    lines = [
        {
            "doc_hash": str(place),
            "prompt_hash": str(place),
            "filter": "none",
            "arguments": {"gen_args_0": {"arg_0": "Question:", "arg_1": text}},
            "filtered_resps": [[value, False]],
        }
        for place, (text, value) in enumerate(answers)
    ]
    (folder / "samples_facts_2026.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return FinishedRun(folder, {"model": {"dtype": dtype}})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0.5, 3.0, 31.0, 225.0, 4000.0])
def test_neighbouring_numbers_of_the_dtype_are_rounding(tmp_path: Path, dtype: str, size: float) -> None:
    """Torch's own next number is allowed; ten steps and more than the noise are not."""
    here = torch.tensor(-size, dtype=DTYPES[dtype])
    beyond = torch.nextafter(here, torch.tensor(-math.inf, dtype=DTYPES[dtype]))
    step = abs(float(beyond) - float(here))
    noise = allowed_difference(ScoredAnswer(0.0, 1.0), dtype)
    baseline = a_run(tmp_path / "baseline", [(SHORT, float(here)), (SHORT, -1.0)], dtype)
    assert worst_deviation(baseline, a_run(tmp_path / "near", [(SHORT, float(beyond)), (SHORT, -1.0)], dtype)).explained
    far = a_run(tmp_path / "far", [(SHORT, float(here) - 10 * step - noise), (SHORT, -1.0)], dtype)
    worst = worst_deviation(baseline, far)
    assert not worst.explained and worst.task == "facts" and worst.log_likelihood == float(here)
    assert worst.difference == pytest.approx(10 * step + noise) and worst.allowed == pytest.approx(step + noise)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_answer_of_one_token_is_held_tightly(dtype: str) -> None:
    tolerance = {"float64": 1e-6, "float32": 1e-3, "float16": 0.25}.get(dtype, 0.5)
    allowed = allowed_difference(ScoredAnswer(-1.5, 1.0), dtype)
    assert tolerance <= allowed <= tolerance * 1.04


def test_noise_grows_with_the_text_and_not_with_what_is_asked_beside_it(tmp_path: Path) -> None:
    page = "word " * 1600
    for name, moved in (("long", 10.0), ("longer", 20.0)):
        baseline = a_run(tmp_path / name, [(page, -4000.5), (SHORT, -1.0)], "float16")
        other = a_run(tmp_path / f"{name} edited", [(page, -4000.5 - moved), (SHORT, -1.0)], "float16")
        assert worst_deviation(baseline, other).explained == (moved == 10.0)
    baseline = a_run(tmp_path / "short", [(page, -4000.5), (SHORT, -1.0)], "float16")
    other = a_run(tmp_path / "short edited", [(page, -4000.5), (SHORT, -1.4)], "float16")
    worst = worst_deviation(baseline, other)
    assert not worst.explained and worst.difference == pytest.approx(0.4) and worst.log_likelihood == -1.0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("answers", [2, 19, 20, 999, 1000])
def test_rounding_to_two_bytes_tips_a_rare_answer_over(tmp_path: Path, dtype: str, answers: int) -> None:
    """As many as one in 500, and one of at least 20; by no more than ten times."""
    two_bytes = dtype in ("float16", "bfloat16")
    rare = 0 if not two_bytes or answers < 20 else 2 if answers == 1000 else 1
    allowed = allowed_difference(ScoredAnswer(-1.0, 1.0), dtype)
    baseline = a_run(tmp_path / "baseline", [(SHORT, -1.0)] * answers, dtype)
    for moved in (1, 2, 3):
        for times in (1.5, 9.9, 10.1):
            lines = [(SHORT, -1.0 - allowed * times)] + [(SHORT, -1.0 - allowed * 1.2)] * (moved - 1)
            other = a_run(tmp_path / f"{moved} {times}", (lines + [(SHORT, -1.0)] * answers)[:answers], dtype)
            worst = worst_deviation(baseline, other)
            assert worst.beyond == min(moved, answers)
            assert worst.explained == (moved <= rare and times < 10)


def test_what_is_no_number_is_never_a_rare_answer(tmp_path: Path) -> None:
    values = [(SHORT, -1.0)] * 600
    baseline = a_run(tmp_path / "baseline", values)
    for name, value in (("nan", math.nan), ("inf", -math.inf)):
        assert not worst_deviation(baseline, a_run(tmp_path / name, [(SHORT, value), *values[1:]])).explained


def test_the_worst_is_by_what_is_allowed_and_the_largest_by_itself(tmp_path: Path) -> None:
    baseline = a_run(tmp_path / "a", [(SHORT, -225.0), (SHORT, -1.0)])
    other = a_run(tmp_path / "b", [(SHORT, -226.0), (SHORT, -1.5)])
    assert largest_difference(baseline, other) == 1.0
    assert worst_deviation(baseline, other).difference == 0.5


def test_what_is_no_number_is_never_rounding(tmp_path: Path) -> None:
    values = [math.nan, -math.inf, -1.0]
    runs = [a_run(tmp_path / str(place), [(SHORT, value)]) for place, value in enumerate(values)]
    for first, second in [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)]:
        assert worst_deviation(runs[first], runs[second]).difference == math.inf
        assert largest_difference(runs[first], runs[second]) == math.inf
    for run in runs:
        assert worst_deviation(run, run).difference == 0
    other = a_run(tmp_path / "more", [(SHORT, -1.0), (SHORT, -1.0)])
    assert not worst_deviation(runs[2], other).explained and largest_difference(runs[2], other) == math.inf


def test_answers_without_log_likelihoods_are_no_alarm(tmp_path: Path) -> None:
    runs = []
    for name in ("a", "b"):
        run = a_run(tmp_path / name, [])
        line = {"doc_hash": "0", "prompt_hash": "0", "filter": "none", "filtered_resps": ["42"], "arguments": {}}
        (run.path / "samples_facts_2026.jsonl").write_text(json.dumps(line))
        runs.append(run)
    assert worst_deviation(*runs).explained and largest_difference(*runs) == 0
