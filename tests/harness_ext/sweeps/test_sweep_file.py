"""The sweep file: every mistake at once, lists that multiply, and what the words of its flags become."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest

from harness_ext.errors import UserError
from harness_ext.lm_eval_adapter.subcommand import add_run_arguments
from harness_ext.sweeps.recipe_lists import multiplied
from harness_ext.sweeps.run_flags import words
from harness_ext.sweeps.sweep_file import read_sweep, sweep_from
from harness_ext.sweeps.told_secrets import place_mistakes_here

PLAIN: dict[str, Any] = {
    "name": "low-rank",
    "models": [{"pretrained": "demo"}],
    "tasks": ["int_mult"],
    "recipes": ["laser"],
}


def mistakes(**changes: Any) -> list[str]:
    """The sentences about a file that differs from a good one in this."""
    with pytest.raises(UserError) as caught:
        sweep_from({**PLAIN, **changes}, "sweep.yaml")
    first, *rest = str(caught.value).splitlines()
    assert first == "sweep sweep.yaml cannot be used:"
    return [line.removeprefix("  - ") for line in rest]


def test_ten_mistakes_are_told_at_once() -> None:
    told = mistakes(
        name="low rank",
        modls=[],
        models=[{"pretrained": "demo", "gpu": 1, "model_args": {"token": "hf_x", "dtype": "float32"}}],
        tasks=[],
        recipes=["laserr", "svd:keep.rank=two"],
        controls=["random"],
        run={"batch_sise": 3, "num_fewshot": "x", "tasks": "int_mult"},
        cells={"timeout": "4 hours", "retries": -1},
        slurm={"partitoin": "gpu"},
    )
    for place in (
        *("name", "modls", "models.0.gpu", "tasks", "recipes.0", "recipes.1", "controls.0", "run.batch_sise"),
        *(
            "run.num_fewshot",
            "run.tasks",
            "cells.timeout",
            "cells.retries",
            "slurm.partitoin",
            "models.0.model_args.token",
        ),
        *("models.0.model_args.token", "models.0.model_args.dtype"),
    ):
        assert sum(line.startswith(f"{place}:") for line in told) == 1, (place, told)
    assert "did you mean 'gpus'?" in next(line for line in told if line.startswith("models.0.gpu"))
    assert "hf_x" not in "\n".join(told)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"exclude": [{"model": "*70B"}]}, "exclude.0: fits no pair"),
        ({"models": [{"pretrained": "demo"}, {"pretrained": "demo"}]}, "models.1: is the same as models.0"),
        ({"recipes": ["baseline"], "controls": ["noise"]}, "controls: take the budget of a recipe"),
        (
            {"models": [{"pretrained": "x", "model": "vllm", "model_args": {"tensor_parallel_size": 4}}]},
            "models.0.gpus: 1 are fewer than tensor_parallel_size=4 needs",
        ),
        (
            {
                "models": [
                    {
                        "pretrained": "x",
                        "model": "vllm",
                        "gpus": 2,
                        "model_args": {"tensor_parallel_size": 2, "data_parallel_size": 2},
                    }
                ]
            },
            "models.0.gpus: 2 are fewer than tensor_parallel_size=2 times data_parallel_size=2 needs",
        ),
        (
            {"models": [{"pretrained": "x", "model": "vllm", "model_args": {"tensor_parallel_size": "four"}}]},
            "models.0.model_args.tensor_parallel_size: tensor_parallel_size=four must be a whole number from 1",
        ),
        (
            {"models": [{"pretrained": "x", "model": "vllm", "model_args": {"tensor_parallel_size": "4"}}]},
            "models.0.gpus: 1 are fewer than tensor_parallel_size=4 needs",
        ),
        (
            {"models": [{"pretrained": "x", "model": "sglang", "model_args": {"mem_fraction_static": 80}}]},
            "models.0.model_args.mem_fraction_static: mem_fraction_static=80 must be a number from 0 to 1",
        ),
        (
            {"models": [{"pretrained": "x", "model": "vllm", "model_args": {"max_model_len": -5}}]},
            "models.0.model_args.max_model_len: max_model_len=-5 must be a whole number of tokens, 0 or more",
        ),
        ({"models": [{"pretrained": "demo", "gpus": True}]}, "models.0.gpus: should be a whole number (found true)"),
        ({"recipes": [f"svd:keep.rank=[{','.join(map(str, range(1, 200)))}],seed=[{'1,' * 199}2]"]}, "at most 10,000"),
    ],
)
def test_what_only_the_whole_file_shows(changes: dict[str, Any], told: str) -> None:
    assert any(told in line for line in mistakes(**changes))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"models": ["demo"]}, "models.0: should be a mapping: write {pretrained: demo}"),
        ({"models": "demo"}, "models: should be a list: write [{pretrained: demo}]"),
        ({"models": [7]}, "models.0: should be a mapping, such as {pretrained: VALUE} (found 7)"),
        ({"cells": 3}, "cells: should be a mapping, such as {timeout: 4h} (found 3)"),
        ({"cells": {"timeout": 4}}, "cells.timeout: write a number and s, m, h or d, such as 90m or 4h (found 4)"),
        ({"cells": {"retries": "two"}}, "cells.retries: should be a whole number (found 'two')"),
        ({"tasks": "int_mult"}, "tasks: should be a list: write [int_mult]"),
        ({"tasks": [5]}, 'tasks.0: should be a text: write "5"'),
        ({"recipes": []}, "recipes: list should have at least 1 item, and has none"),
        ({"recipes": ["svd:keep.rank_fraction=[]"]}, "rank_fraction: should be a number (found an empty list)"),
        ({"run": None}, "run: should be a mapping, such as {limit: 100} (found nothing)"),
    ],
)
def test_types_are_told_in_words_of_the_file(changes: dict[str, Any], told: str) -> None:
    assert any(told in line for line in mistakes(**changes)), mistakes(**changes)


def test_every_secret_is_told_by_its_key_with_the_other_mistakes() -> None:
    hidden = "invented-secret"
    told = mistakes(
        output_path=f"s3://key:{hidden}/x@bucket/x",
        tasks=[],
        models=[{"pretrained": "demo", "model_args": {"hub_options": {"token": hidden}, "api_key": hidden}}],
        recipes=[f"laser:password={hidden}"],
        controls=[f"token={hidden}"],
        run={
            "hf_hub_log_args": f"hub_results_org=me,token={hidden}",
            "wandb_args": {"project": "x", "api_key": hidden},
            "metadata": {"hf_token": hidden, "pad_token": "x", "list": [{"auth": hidden}]},
            "gen_kwargs": f"base_url=https://me:{hidden}@host",
            "num_fewshot": f"token={hidden}",
            "limit": 0.5,
        },
        slurm={"account": f"token={hidden}"},
    )
    for place in (
        *("output_path", "models.0.model_args.hub_options.token", "models.0.model_args.api_key", "recipes.0"),
        *("controls.0", "run.hf_hub_log_args", "run.wandb_args.api_key", "run.metadata.hf_token", "slurm.account"),
        *("run.metadata.list.0.auth", "run.gen_kwargs", "run.num_fewshot"),
    ):
        lines = [line for line in told if line.startswith(f"{place}: ") and "holds" in line]
        assert len(lines) == 1 and "in the environment" in lines[0], (place, told)
    assert any(line.startswith("tasks: ") for line in told)
    assert "WANDB_API_KEY" in next(line for line in told if line.startswith("run.wandb_args"))
    assert hidden not in "".join(told) and "pad_token" not in "".join(told)


def test_a_place_that_this_machine_cannot_reach_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    (told,) = place_mistakes_here({**PLAIN, "output_path": "gs://b/x"})
    assert told == "output_path: gs://b/x needs a package that is not installed: pip install 'gcsfs'"
    assert list(place_mistakes_here(PLAIN)) == list(place_mistakes_here({"output_path": "memory://x"})) == []


def test_a_model_may_do_without_a_gpu() -> None:
    assert sweep_from({**PLAIN, "models": [{"pretrained": "demo", "gpus": 0}]}, "sweep.yaml").models[0].gpus == 0


def test_a_file_that_is_none(tmp_path: Path) -> None:
    for text, told in (
        ("- a list", "must be a mapping"),
        ("name: &x a\nmodels: *x", "aliases"),
        ("name: [", "not valid YAML"),
    ):
        (tmp_path / "sweep.yaml").write_text(text)
        with pytest.raises(UserError, match=told):
            read_sweep(tmp_path / "sweep.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        read_sweep(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("entry", "recipes"),
    [
        ("laser", ["laser"]),
        ("svd:keep.rank=[4,8]", ["svd:keep.rank=4", "svd:keep.rank=8"]),
        ("laser:layers=[0,1]", ["laser:layers=[0,1]"]),
        ("laser:layers=[0,1],keep.rank=[2,3]", ["laser:layers=[0,1],keep.rank=2", "laser:layers=[0,1],keep.rank=3"]),
        ("laser:layers=[-2:]", ["laser:layers=[-2:]"]),
        ("svd:keep.rank=[4]", ["svd:keep.rank=4"]),
    ],
)
def test_lists_multiply_where_a_setting_takes_none(entry: str, recipes: list[str]) -> None:
    assert list(multiplied(entry)) == recipes


def test_two_lists_multiply_in_order() -> None:
    assert list(multiplied("svd-llm:keep.param_fraction=[0.8,0.6],calibration.samples=[8,16]")) == [
        f"svd-llm:keep.param_fraction={share},calibration.samples={count}"
        for share in ("0.8", "0.6")
        for count in (8, 16)
    ]


def test_pairs_are_excluded_by_patterns() -> None:
    sweep = sweep_from(
        {
            **PLAIN,
            "models": [{"pretrained": "a/x-8B"}, {"pretrained": "a/x-70B"}],
            "recipes": ["laser", "laser-search", "svd:keep.rank=[2,4]", "baseline"],
            "exclude": [{"model": "*70B", "recipe": "laser-search"}, {"recipe": "svd:keep.rank=4"}],
        },
        "x",
    )
    small, large = map(sweep.recipes_of, sweep.models)
    assert small == ["laser", "laser-search", "svd:keep.rank=2"]
    assert large == ["laser", "svd:keep.rank=2"]


def test_flags_say_on_a_command_line_what_the_file_says() -> None:
    parser = argparse.ArgumentParser()
    add_run_arguments(parser)
    run = {"batch_size": 16, "num_fewshot": 0, "apply_chat_template": True, "write_out": False, "limit": 0.5}
    parsed = parser.parse_args(words(run))
    assert (parsed.batch_size, parsed.num_fewshot, parsed.limit) == ("16", 0, 0.5)
    assert parsed.apply_chat_template is True
