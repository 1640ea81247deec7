"""Cells: how they are cut, what their names depend on, that their commands are ordinary ones; plans."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import pytest

from harness_ext.lm_eval_adapter.subcommand import add_run_arguments
from harness_ext.storage.whole_files import write_record
from harness_ext.sweeps.cells import SweepCell, cells_of, job
from harness_ext.sweeps.plan import expectations, plan_of
from harness_ext.sweeps.sweep_file import sweep_from
from leaderboard.readers.sweep_state import OUTCOME

PLAIN: dict[str, Any] = {
    "name": "low-rank",
    "models": [{"pretrained": "demo"}, {"pretrained": "org/other", "dtype": "bfloat16", "gpus": 2}],
    "tasks": ["int_mult", "int_sum"],
    "recipes": ["laser", "svd:keep.rank=[2,4]", "eigenprune"],
    "controls": ["noise"],
    "run": {"limit": 8},
    "cells": {"recipes_per_cell": 3, "timeout": "2m"},
}


def cells(**changes: Any) -> list[SweepCell]:
    return cells_of(sweep_from({**PLAIN, **changes}, "sweep.yaml"))


def test_cells_are_cut_by_model_and_the_baseline_comes_first() -> None:
    made = cells()
    assert [cell.recipes for cell in made[:3]] == [
        ("baseline",),
        ("laser", "svd:keep.rank=2", "svd:keep.rank=4"),
        ("eigenprune",),
    ]
    assert [cell.after for cell in made[:3]] == [(), (made[0].key,), (made[0].key,)]
    assert [cell.variants for cell in made[:3]] == [1, 6, 2]
    assert [cell.gpus for cell in made] == [1, 1, 1, 2, 2, 2]
    assert len({cell.key for cell in made}) == 6


def test_only_controls_that_a_recipe_can_have_are_counted() -> None:
    asked = {
        "laser": ["shuffled-labels"],  # it learns nothing
        "eigenprune": [],
        "a3-mlp": ["bottom-k", "shuffled-labels"],  # it has no ranks, and learns from texts
        "svd-llm": ["shuffled-labels"],
    }
    controls = ["random-subspace", "bottom-k", "shuffled-labels"]
    made = cells(recipes=list(asked), controls=controls, cells={"recipes_per_cell": 1})
    counted = {cell.recipes[0]: cell.variants for cell in made if cell.after}
    assert counted == {recipe: 1 + len(controls) - len(impossible) for recipe, impossible in asked.items()}


def test_a_cells_name_depends_on_all_that_its_results_depend_on() -> None:
    first = {cell.key for cell in cells()}
    assert first == {
        cell.key for cell in cells(name="renamed", slurm={"partition": "gpu"}, cells={"recipes_per_cell": 3})
    }
    for changes in ({"tasks": ["int_mult"]}, {"run": {"limit": 9}}, {"output_path": "elsewhere"}):
        assert not first & {cell.key for cell in cells(**changes)}, changes
    assert cells(controls=[])[0].key == cells()[0].key  # a baseline has no controls


@pytest.mark.parametrize(
    "arguments",
    [
        {"dtype": "float32"},
        {"max_length": 64, "parallelize": True},
        {"chat_template_args": {"enable_thinking": False}},
        {"think_end_token": "</think>, then"},
        {"revision_like": "123"},
    ],
)
def test_commands_are_ordinary_ones(arguments: dict[str, Any], tmp_path: Path) -> None:
    dtype = {"dtype": arguments["dtype"]} if "dtype" in arguments else {}
    rest = {key: value for key, value in arguments.items() if key != "dtype"}
    sweep = sweep_from({**PLAIN, "models": [{"pretrained": "org/m", **dtype, "model_args": rest}]}, "x")
    made = job(cells_of(sweep)[1], sweep, tmp_path, "results")
    parser = argparse.ArgumentParser()
    add_run_arguments(parser)
    parsed, ours = parser.parse_known_args(made.command[made.command.index("run") + 1 :])
    assert parsed.model_args == {"pretrained": "org/m", **arguments}
    assert parsed.output_path == "results" and parsed.limit == 8
    assert [ours[place + 1] for place, word in enumerate(ours) if word == "--recipe"] == list(
        cells_of(sweep)[1].recipes
    )
    assert made.environment == {"LM_EVAL_SWEEP": "low-rank", "LM_EVAL_SWEEP_CELL": made.cell}
    assert made.timeout_s == 120.0


def test_what_is_done_is_told_by_its_run_folders(tmp_path: Path) -> None:
    sweep = sweep_from({**PLAIN, "output_path": str(tmp_path)}, "x")
    plan = plan_of(sweep, Path())
    run = tmp_path / "demo" / "baseline-0123456789"
    run.mkdir(parents=True)
    receipt = {"status": "complete", "recipe": {"label": "laser"}, "seconds": {"load": 600, "evaluate": 3000}}
    (run / "receipt.json").write_text(json.dumps(receipt))
    cell = plan.cells[0]
    plan.place(cell).mkdir(parents=True)
    write_record(plan.place(cell) / OUTCOME, {"state": "done", "runs": [str(run)], "tries": []})
    assert plan.settled(cell) == "done" and plan.settled(plan.cells[1]) is None
    demo, other = expectations(plan)
    assert (demo.cells, demo.done, demo.variants, demo.there) == (3, 1, 8, 1)
    assert demo.hours == pytest.approx(7.0) and other.hours is None
    (run / "receipt.json").unlink()
    assert plan.settled(cell) is None  # its results are gone, so it runs again


@pytest.mark.parametrize(
    ("changes", "fits"),
    [
        ({}, True),
        ({"settings": {"limit": 8, "batch_size": "1", "num_fewshot": None}}, True),
        ({"settings": {"limit": 4}}, False),
        ({"settings": {"limit": 8, "num_fewshot": 2}}, False),
        ({"settings": {"limit": 8, "batch_size": "16"}}, False),
        ({"recipe_id": "0" * 64}, False),
        ({"status": "failed"}, False),
        ({"files": [{"name": "samples_x.jsonl", "bytes": 3}]}, False),  # it is damaged
        ({"recipe": {"label": "eigenprune"}}, True),
        ({"recipe": {"label": "laser+noise"}}, True),
        ({"recipe": {"label": "laser+bottom-k"}}, False),
    ],
)
def test_only_runs_that_fit_are_there(tmp_path: Path, changes: dict[str, Any], fits: bool) -> None:
    plan = plan_of(sweep_from({**PLAIN, "output_path": str(tmp_path)}, "x"), Path())
    run = tmp_path / "demo" / "some-0123456789"
    run.mkdir(parents=True)
    receipt = {"status": "complete", "recipe": {"label": "laser"}, **changes}
    (run / "receipt.json").write_text(json.dumps(receipt))
    assert [line.there for line in expectations(plan)] == [int(fits), 0]


def test_what_failed_is_not_to_run(tmp_path: Path) -> None:
    plan = plan_of(sweep_from({**PLAIN, "output_path": str(tmp_path)}, "x"), Path())
    plan.place(plan.cells[1]).mkdir(parents=True)
    write_record(plan.place(plan.cells[1]) / OUTCOME, {"state": "failed"})
    demo = expectations(plan, on_gpu=False)[0]
    assert (demo.cells, demo.done, demo.failed, demo.to_run, demo.gpus, demo.variants) == (3, 0, 1, 2, 0, 3)


def test_a_thousand_cells_are_planned_in_a_moment(tmp_path: Path) -> None:
    recipes = [f"svd:keep.rank=[{','.join(map(str, range(1, 39)))}]"]
    models = [{"pretrained": f"org/m{number}"} for number in range(50)]
    began = time.process_time()
    plan = plan_of(
        sweep_from({**PLAIN, "models": models, "recipes": recipes, "cells": {"recipes_per_cell": 2}}, "x"), tmp_path
    )
    assert len(plan.cells) == 1000
    expectations(plan)
    assert time.process_time() - began < 2
