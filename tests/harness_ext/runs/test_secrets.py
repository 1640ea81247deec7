"""A token of the command line is written nowhere, and no run depends on it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness_ext.storage import rundir

TOKEN = "hf_inventedINVENTEDinventedINVENTED00"


def _holding(folder: Path, secret: str) -> list[str]:
    return [str(path) for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


@pytest.mark.slow
def test_a_token_is_written_nowhere_and_is_no_part_of_what_was_asked(lm_eval, tmp_path: Path) -> None:
    def run(*model_args: str, recipe: str = "svd"):
        return lm_eval(
            *("run", "--model", "hf", "--model_args", "pretrained=demo", *model_args, "--tasks", "int_mult"),
            *("--limit", 4, "--batch_size", 4, "--device", "cpu", "--recipe", recipe),
            *("--metadata", f'{{"api_key": "{TOKEN}"}}'),
        )

    first = run(f"token={TOKEN}")
    assert first.code == 0, first.err
    again = run("token=another-word")
    assert again.code == 0 and again.err.count("kept from") == 2, again.err
    exported = lm_eval(
        *("export", "--model", "hf", "--model_args", f"pretrained=demo,token={TOKEN}", "--recipe", "svd"),
        *("--out", "edited"),
    )
    assert exported.code == 0, exported.err
    assert not _holding(tmp_path, TOKEN) and not _holding(tmp_path, "another-word")
    assert TOKEN not in first.out + first.err + again.out + again.err + exported.out + exported.err
    (baseline, *_) = rundir.finished_runs(tmp_path / "results" / "demo")
    assert "token=***" in baseline.receipt["command"]
    assert "token" not in baseline.receipt["model"]["model_args"]


@pytest.mark.slow
def test_messages_do_not_repeat_a_token(lm_eval) -> None:
    ran = lm_eval(
        *("run", "--model", "hf", "--model_args", f"pretrained=nowhere/{TOKEN},token={TOKEN}", "--tasks", "int_mult"),
        *("--recipe", "svd", "--device", "cpu"),
    )
    assert ran.code == 2
    assert "nowhere/***" in ran.err and TOKEN not in ran.err


def test_the_configuration_that_lm_eval_prints_has_no_token(lm_eval, tmp_path: Path) -> None:
    asked = {"model_args": {"pretrained": "demo", "token": TOKEN, "proxies": {"https": f"http://me:{TOKEN}@host"}}}
    settings = {**asked, "model": "hf", "tasks": ["no_such_task"], "recipe": ["svd"], "metadata": {"api_key": TOKEN}}
    (tmp_path / "asked.yaml").write_text(json.dumps(settings))
    ran = lm_eval("run", "--config", tmp_path / "asked.yaml")
    assert ran.code == 2 and "no task is called 'no_such_task'" in ran.err
    assert "EvaluatorConfig(config=" in ran.out and TOKEN not in ran.out + ran.err


def test_settings_that_cannot_be_read_are_told_without_a_token(lm_eval) -> None:
    for command in (("run", "--tasks", "int_mult", "--recipe", "svd"), ("recipes", "plan", "svd")):
        ran = lm_eval(*command, "--model_args", f"pretrained=demo,token={TOKEN},proxies={{'https': 'x'}}")
        assert ran.code == 2 and "error: Invalid JSON: pretrained=demo,token=***" in ran.err
        assert TOKEN not in ran.err and "Traceback" not in ran.err
