"""Data sets of tasks that are not ours: taken from a local copy, or, out of reach, which task, which data set, what to
do; and no other exception touched.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from harness_ext.errors import UserError
from harness_ext.lm_eval_adapter.local_datasets import loading

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
MESSAGE = (
    r"task far_away: its data set cannot be loaded \(.*nobody/nothing.*\)\. .*"
    r" `datasets\.load_dataset\('nobody/nothing', 'part'\)`, .* HF_HOME=DIR"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "far_away.yaml").write_text(FILE, encoding="utf-8")
    return tmp_path


def test_the_task_and_its_data_set_are_named(folder: Path) -> None:
    from lm_eval.tasks import TaskManager

    with pytest.raises(UserError, match=MESSAGE), loading():
        TaskManager(include_path=str(folder), include_defaults=False).load(["far_away"])


@pytest.mark.parametrize("recipe", [[], ["--recipe", "laser"]])
def test_the_command_says_it_in_one_line(
    folder: Path, recipe: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from harness_ext.cli import main

    arguments = [
        "run",
        "--model",
        "hf",
        "--model_args",
        "pretrained=demo",
        "--tasks",
        "far_away",
        "--include_path",
        str(folder),
        "--device",
        "cpu",
        "--output_path",
        str(folder / "out"),
    ]
    monkeypatch.setattr(sys, "argv", ["lm_eval", *arguments, *recipe])
    with pytest.raises(SystemExit) as left:
        main()
    errors = capsys.readouterr().err
    assert left.value.code == 2 and "error: task far_away: " in errors and "Traceback" not in errors


@pytest.mark.parametrize("error", [KeyError("x"), ConnectionError("Couldn't reach a model"), UserError("ours")])
def test_other_exceptions_pass_unchanged(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, loading():
        raise error
    assert caught.value is error


@pytest.mark.slow
@pytest.mark.parametrize("place", ["part", "."])
@pytest.mark.parametrize("how", ["metadata", "environment"])
@pytest.mark.parametrize("recipe", [[], ["--recipe", "svd"]])
def test_a_local_copy_takes_the_place_of_the_hub(
    folder: Path,
    place: str,
    how: str,
    recipe: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With a folder for the configuration, and in the hub's own layout, where the data set's card tells what a
    configuration is.
    """
    from harness_ext.cli import main

    copy = folder / "data" / "nobody" / "nothing"
    (copy / place).mkdir(parents=True)
    (copy / place / "test.jsonl").write_text(
        "".join(f'{{"question": "{number} + 1 =", "answer": "{number + 1}"}}\n' for number in range(5)),
        encoding="utf-8",
    )
    if place == ".":
        (copy / "README.md").write_text(
            "---\nconfigs:\n- config_name: part\n  data_files:\n  - {split: test, path: test.jsonl}\n---\n",
            encoding="utf-8",
        )
    arguments = [
        "run",
        "--model",
        "hf",
        "--model_args",
        "pretrained=demo",
        "--tasks",
        "far_away",
        "--include_path",
        str(folder),
        "--device",
        "cpu",
        "--output_path",
        str(folder / "out"),
    ]
    if how == "metadata":
        arguments += ["--metadata", json.dumps({"data_dir": str(folder / "data")})]
    else:
        monkeypatch.setenv("LM_EVAL_RECIPES_DATA", str(folder / "data"))
    monkeypatch.setattr(sys, "argv", ["lm_eval", *arguments, *recipe])
    main()
    assert "far_away" in capsys.readouterr().out
    results, *_ = (folder / "out").rglob("results_*.json")
    found = json.loads(results.read_text(encoding="utf-8"))
    assert found["n-samples"]["far_away"] == {"original": 5, "effective": 5}
    assert found["configs"]["far_away"]["dataset_path"] == "nobody/nothing"
