"""A data set of a task that is not ours, out of reach: which task, which data set, what to do; and no other exception touched."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from harness_ext.errors import UserError
from harness_ext.unloadable import named

FILE = """
task: far_away
dataset_path: nobody/nothing
dataset_name: part
test_split: test
output_type: loglikelihood
doc_to_text: question
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
metadata: {version: 1.0}
"""
MESSAGE = r"task far_away: its data set cannot be loaded \(.*nobody/nothing.*\)\. .* `datasets\.load_dataset\('nobody/nothing', 'part'\)`, .* HF_HOME=DIR"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "far_away.yaml").write_text(FILE, encoding="utf-8")
    return tmp_path


def test_the_task_and_its_data_set_are_named(folder: Path) -> None:
    from lm_eval.tasks import TaskManager

    with pytest.raises(UserError, match=MESSAGE), named():
        TaskManager(include_path=str(folder), include_defaults=False).load(["far_away"])


@pytest.mark.parametrize("recipe", [[], ["--recipe", "laser"]])
def test_the_command_says_it_in_one_line(folder: Path, recipe: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from harness_ext.cli import main

    arguments = ["run", "--model", "hf", "--model_args", "pretrained=demo", "--tasks", "far_away", "--include_path", str(folder), "--device", "cpu", "--output_path", str(folder / "out")]
    monkeypatch.setattr(sys, "argv", ["lm_eval", *arguments, *recipe])
    with pytest.raises(SystemExit) as left:
        main()
    errors = capsys.readouterr().err
    assert left.value.code == 2 and "error: task far_away: " in errors and "Traceback" not in errors


@pytest.mark.parametrize("error", [KeyError("x"), ConnectionError("Couldn't reach a model"), UserError("ours")])
def test_other_exceptions_pass_unchanged(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, named():
        raise error
    assert caught.value is error
