"""Data sets of tasks that are not ours: taken from a local copy, or, out of reach, which task, which data set, what to
do; and no other exception touched.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

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


CARD = """---
configs:
- config_name: part
  data_files:
  - {split: test, path: part/test-*}
  - {split: dev, path: part/dev-*}
---
"""


def with_examples(folder: Path, files: dict[str, int], card: str = "", *, more: str = "", examples: str = "dev") -> Any:
    """`far_away` with examples from another split, from a copy with so many documents in each of these files."""
    from lm_eval.tasks import TaskManager

    copy = folder / "data" / "nobody" / "nothing"
    (copy / "part").mkdir(parents=True)
    for name, count in files.items():
        rows = [{"question": f"{name} {number}", "answer": "x"} for number in range(count)]
        if name.endswith(".parquet"):
            Dataset.from_list(rows).to_parquet(copy / "part" / name)
        else:
            (copy / "part" / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if card:
        (copy / "README.md").write_text(card, encoding="utf-8")
    (folder / "far_away.yaml").write_text(f"{FILE}{more}fewshot_split: {examples}\n", encoding="utf-8")
    metadata = {"data_dir": str(folder / "data")}
    with loading():
        manager = TaskManager(include_path=str(folder), include_defaults=False, metadata=metadata)
        return manager.load(["far_away"])["tasks"]["far_away"]


HUB = {"dev-00000-of-00001.parquet": 2, "test-00000-of-00001.parquet": 3, "validation-00000-of-00001.parquet": 4}


@pytest.mark.parametrize(
    ("files", "card"),
    [
        ({"dev.jsonl": 2, "test.jsonl": 3}, ""),
        ({"dev.jsonl": 2, "test.jsonl": 3, "validation.jsonl": 4}, ""),
        ({"dev.jsonl": 2, "test.jsonl": 3}, CARD),
        (HUB, CARD),
        (HUB, CARD.replace("configs:", "configs:\n- {config_name: other, data_files: other/*}")),
        (HUB, ""),
        ({"dev-00000-of-00002.jsonl": 1, "dev-00001-of-00002.jsonl": 1, "test.jsonl": 3}, ""),
    ],
)
def test_a_split_is_what_the_card_or_the_files_name_says(files: dict[str, int], card: str, tmp_path: Path) -> None:
    """`datasets` by itself takes a file `dev` for the split `validation`, as MMLU's few-shot examples."""
    task = with_examples(tmp_path, files, card)
    assert len(task.test_docs()) == 3 and len(task.fewshot_docs()) == 2
    assert {row["question"].partition(".")[0].partition("-")[0] for row in task.fewshot_docs()} == {"dev"}
    assert task.config.dataset_path == "nobody/nothing" and task.config.dataset_kwargs is None


def test_other_names_of_the_usual_splits_are_known_as_before(tmp_path: Path) -> None:
    more = "validation_split: validation\ntraining_split: train\n"
    task = with_examples(tmp_path, {"train.jsonl": 4, "dev.jsonl": 2, "test.jsonl": 3}, more=more, examples="train")
    assert [len(task.dataset[split]) for split in ("train", "validation", "test")] == [4, 2, 3]


@pytest.mark.parametrize("card", ["", CARD.replace("  - {split: dev, path: part/dev-*}\n", "")])
def test_a_split_that_is_missing_is_told(card: str, tmp_path: Path) -> None:
    told = (
        r"task far_away: its data set nobody/nothing/part has no split 'dev' in .*nothing.*; it has .*test.* dev\.jsonl"
    )
    with pytest.raises(UserError, match=told):
        with_examples(tmp_path, {"test-00000-of-00001.parquet": 3, "train-00000-of-00001.parquet": 4}, card)
