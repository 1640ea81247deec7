"""`lm_eval noise`: two runs of the unedited model through the ordinary path, and the floor that verdicts show."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

MODEL = ("--model", "hf", "--model_args", "pretrained=demo", "--device", "cpu", "--limit", 24)


def receipts(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("results/demo/*/receipt.json"))]


@pytest.mark.slow
def test_two_runs_are_made_stored_and_shown_beside_verdicts(lm_eval, tmp_path: Path) -> None:
    ran = lm_eval("noise", *MODEL, "--tasks", "int_mult,pronoun_bias", "--batch_size", 8, "--other_batch_size", 24)
    assert ran.code == 0, ran.err
    assert (
        "batch size 8 against 24, nothing edited:" in ran.out
        and "int_mult, acc: " in ran.out
        and "log-likelihoods differ by up to" in ran.out
    )
    assert ran.err.count("loading demo") == 1, "one model serves both sizes"
    found = receipts(tmp_path)
    assert [receipt["recipe"]["label"] for receipt in found] == ["baseline", "baseline"]
    assert {receipt["settings"]["batch_size"] for receipt in found} == {"8", "24"}
    assert (
        len({receipt["weights"]["digest_after"] for receipt in found}) == 1
        and len({receipt["spec_id"] for receipt in found}) == 2
    )
    sizes = [
        json.loads(path.read_text())["config"]["batch_size"] for path in tmp_path.glob("results/demo/*/results_*.json")
    ]
    assert sorted(map(int, sizes)) == [8, 24]

    again = lm_eval("noise", *MODEL, "--tasks", "int_mult,pronoun_bias", "--batch_size", 8, "--other_batch_size", 24)
    assert again.out == ran.out and again.err.count("kept from") == 2

    shown = lm_eval(
        "run", *MODEL, "--tasks", "int_mult,pronoun_bias", "--batch_size", 8, "--recipe", "laser", "--details"
    )
    assert "baseline: kept from" in shown.err and "noise floor" in shown.out


@pytest.mark.slow
def test_a_run_is_really_scored_at_its_own_size(lm_eval, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness_ext.lm_eval_adapter import evaluate

    seen: list[int] = []
    before = evaluate.evaluate
    monkeypatch.setattr(evaluate, "evaluate", lambda lm, *rest: seen.append(lm.batch_size) or before(lm, *rest))
    assert lm_eval("noise", *MODEL, "--tasks", "int_mult", "--batch_size", 3).code == 0
    assert seen == [3, 12]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--batch_size", "auto"), "--batch_size auto is no number of documents"),
        (
            ("--batch_size", "8", "--other_batch_size", "8"),
            "--other_batch_size 8 must be a number of documents other than",
        ),
        (("--other_batch_size", "0"), "--other_batch_size 0 must be"),
        (("--tasks", "int_mullt"), "did you mean int_mult"),
        (("--model", "vllm"), "the package vllm, which is not installed"),
        (("--model", "local-completions"), "the backend 'local-completions'"),
    ],
)
def test_what_makes_no_sense_is_said_before_anything_is_loaded(
    lm_eval, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    ran = lm_eval("noise", *MODEL, "--tasks", "int_mult", *arguments)
    assert ran.code == 2 and words in ran.err, ran.err
    assert "Traceback" not in ran.err and not list(tmp_path.glob("results/demo/*"))


@pytest.mark.slow
def test_gate_is_a_command_of_lm_eval(lm_eval, tmp_path: Path) -> None:
    assert lm_eval("run", *MODEL, "--tasks", "int_mult", "--batch_size", 24, "--recipe", "identity").code == 0
    (tmp_path / "gate.yaml").write_text("tasks: {int_mult: {critical: true}}\n")
    (candidate,) = (tmp_path / "results" / "demo").glob("identity-*")
    ran = lm_eval("gate", "--policy", "gate.yaml", "--candidate", candidate)
    assert (
        ran.code == 3 and "against base: baseline, the same settings" in ran.out and "UNDECIDED, exit code 3" in ran.out
    ), ran.err
    assert lm_eval("baseline", "set", candidate, "--reason", "works").code == 0
    ran = lm_eval("gate", "--policy", "gate.yaml", "--candidate", candidate, "--baseline", "blessed")
    assert ran.code == 0 and "the same as the baseline, to the bit" in ran.out
    ran = lm_eval("gate", "--policy", "gate.yaml", "--candidate", "nothing")
    assert (
        ran.code == 2
        and "error: candidate nothing is neither a path nor a run in results/leaderboard.duckdb: `lm_eval runs list`"
        in ran.err
    )
