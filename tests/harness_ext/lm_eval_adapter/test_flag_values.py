"""Values of lm-eval's flags that are told in a sentence, by the command line and by a run's configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import harness_ext
from harness_ext.cli import RecipesCLI
from harness_ext.errors import UserError
from harness_ext.runs.run_config import harness_config, recipe_run_config


@pytest.mark.parametrize(
    ("flag", "value", "told"),
    [
        ("--seed", "x", "--seed: 'x' is no seed: give one whole number for all, or four with commas"),
        ("--seed", "1,2,3,4,5", "--seed: '1,2,3,4,5' is no seed"),
        ("--seed", "-1", "--seed: '-1' gives NumPy the seed -1: it takes 0 to 4294967295"),
        ("--batch_size", "banana", "'banana' is no batch size: give a whole number from 1, auto, or auto:N"),
        ("--batch_size", "0", "'0' is no batch size"),
    ],
)
def test_a_wrong_value_is_a_sentence_with_its_flag(
    capsys: pytest.CaptureFixture[str], flag: str, value: str, told: str
) -> None:
    with pytest.raises(SystemExit) as left:
        RecipesCLI().parser.parse_args(["run", "--tasks", "int_mult", flag, value])
    error = capsys.readouterr().err
    assert left.value.code == 2 and flag in error and told in error and "functools" not in error


@pytest.mark.parametrize(
    ("flag", "value", "read"),
    [
        ("--seed", "7", [7, 7, 7, 7]),
        ("--seed", "1,None,3,4", [1, None, 3, 4]),
        ("--batch_size", "16", "16"),
        ("--batch_size", "auto:4", "auto:4"),
        ("-b", "auto", "auto"),
    ],
)
def test_right_values_are_read_as_lm_eval_reads_them(flag: str, value: str, read: Any) -> None:
    args = RecipesCLI().parser.parse_args(["run", "--tasks", "int_mult", flag, value])
    assert read in (vars(args)["seed"], vars(args).get("batch_size"))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"batch_size": "banana"}, "--batch_size 'banana' is no batch size"),
        ({"limit": float("nan")}, "--limit nan leaves no document to score"),
        ({"device": "banana"}, "--device 'banana' is no device: give cpu, cuda, cuda:N"),
    ],
)
def test_what_comes_by_a_file_or_from_python_is_checked_too(settings: dict[str, Any], told: str) -> None:
    harness = harness_config({"model": "hf", "model_args": {"pretrained": "demo"}, "tasks": ["int_mult"], **settings})
    with pytest.raises(UserError, match=told):
        recipe_run_config(harness, ["laser"], [], ["test"])


def test_a_device_that_is_not_there_is_not_replaced_in_silence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--device cuda:99: this machine has .*; name one that is there, or cpu"):
        harness_ext.run(
            model_args="pretrained=demo", tasks="int_mult", recipes="laser", device="cuda:99", output_path=tmp_path
        )
