"""`lm_eval audit`: from a model's name to a page of findings, by ordinary runs."""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from harness_ext.cli.audit import KINDS, RECIPES, in_full, on_samples, too_few_tokens
from harness_ext.cli.smaller_claims import TRAINING_ITEMS
from harness_ext.recipe.recipe import GROUPS, shipped_names
from harness_ext.runs.python_api import load_recipe
from harness_ext.runs.run_result import RunResult
from harness_ext.storage.rundir import FinishedRun
from tests.harness_ext.cli.calling import called

call = partial(called, "audit")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


DEMO = ("--model_args", "pretrained=demo", "--device", "cpu", "--limit", "4")


def test_every_kind_of_recipe_that_edits_at_once_is_asked() -> None:
    recipes = [load_recipe(one.asked) for one in RECIPES]
    assert {recipe.group for recipe in recipes} == {"truncation", "components", "calibrated", "search"}
    assert all(load_recipe(one.in_full).name == recipe.name for one, recipe in zip(RECIPES, recipes, strict=True))
    assert {*KINDS, "controls"} == set(GROUPS)


@pytest.mark.parametrize("name", ["random-subspace:seed=3", "bottom-k", "noise", "identity", "baseline"])
def test_a_control_is_no_recipe_to_audit(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A control that is controlled by a control says nothing, and a gain of one would be none."""
    assert call(monkeypatch, *DEMO, "--recipe", "laser", name) == 2
    said = capsys.readouterr().err
    assert f"error: {name}: a control is no recipe to audit" in said and "--control" not in said
    assert not Path("results").exists()


@pytest.mark.slow
def test_a_recipe_of_ones_own_from_run_to_page_and_again_from_what_is_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *DEMO, "--recipe", "laser") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("Is there anything to gain here?\n") and "The unedited model: demo" in shown
    assert "From the weights alone\n  laser: " in shown and "score      audit_text: word_perplexity" in shown
    folders = {path.name for path in Path("results/demo").iterdir()}
    assert len(folders) == 3 and sum("random-subspace" in name for name in folders) == 1
    assert call(monkeypatch, *DEMO, "--recipe", "laser", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["task"] for row in rows} >= {"audit_facts", "audit_text", "pronoun_bias"}
    assert {path.name for path in Path("results/demo").iterdir()} == folders


def test_a_recipe_that_fails_is_told_and_ends_with_a_mistake(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, Any] = {}

    def failing(**given: Any) -> RunResult:
        asked.update(given)
        receipt = {"recipe": {"label": "svd"}, "warnings": [], "failure": {"reason": "it broke"}}
        return RunResult((FinishedRun(Path("run"), receipt),), (), Path("leaderboard.duckdb"))

    monkeypatch.setattr("harness_ext.runs.python_api.run", failing)
    assert call(monkeypatch, *DEMO, "--recipe", "svd") == 2
    shown = capsys.readouterr().out
    assert "failed     it broke" in shown and "Nothing can be said" in shown
    assert asked["tasks"] == ["audit"] and asked["controls"] == ["random-subspace"] and asked["limit"] == 4
    assert [recipe.label for recipe in asked["recipes"]] == ["svd"]


@pytest.mark.parametrize("name", shipped_names())
def test_every_shipped_recipe_can_learn_from_the_samples(name: str) -> None:
    """Also what heals it."""
    for step in load_recipe(on_samples(name)).steps:
        if step.calibration is not None:
            share = -(-step.calibration.samples // len(step.calibration.tasks))
            assert all(share <= TRAINING_ITEMS[task] for task in step.calibration.tasks)


@pytest.mark.parametrize(
    ("asked", "taken"),
    [
        ("laser:keep.rank=2", "laser:keep.rank=2"),
        ("asvd:calibration.task=audit_text,calibration.samples=8", None),
        ("asvd:calibration.samples=200", None),
        ("svd:heal={steps: 2, documents: 8, task: audit_text}", None),
        (
            "asvd:calibration.seed=3",
            "asvd:calibration.seed=3,calibration.task=[audit_text,audit_facts,audit_commonsense],"
            "calibration.samples=96",
        ),
    ],
)
def test_documents_that_are_named_stay(asked: str, taken: str | None) -> None:
    assert on_samples(asked) == (taken or asked)


def test_a_file_that_asks_for_fewer_documents_gets_no_more(tmp_path: Path) -> None:
    place = tmp_path / "own.yaml"
    place.write_text(
        "name: own\nsummary: Ours.\nsteps:\n  - method: feature_space\n    matrices: [all]\n"
        "    keep: {param_fraction: 0.8}\n"
        "    calibration: {samples: 12}\n"
    )
    assert on_samples(str(place)).endswith(
        "own.yaml:calibration.task=[audit_text,audit_facts,audit_commonsense],calibration.samples=12"
    )


def test_the_command_in_full_names_recipes_by_their_defaults() -> None:
    args = argparse.Namespace(
        model_args={"pretrained": "a b", "dtype": "float16"},
        device="cuda",
        batch_size="16",
        recipe=["asvd", "svd:keep.rank=2"],
    )
    asked = [RECIPES[1].asked, *map(on_samples, args.recipe)]
    command = in_full([load_recipe(one) for one in asked], args)
    assert "--model_args 'pretrained=a b,dtype=float16'" in command and "--device cuda" in command
    assert "--recipe eigenprune asvd svd:keep.rank=2 --control random-subspace" in command


@pytest.mark.parametrize(
    ("name", "tokens", "told"),
    [("input_second_moment", 2238, 1), ("input_second_moment", 11008, 0), ("input_mean", 10, 0)],
)
def test_too_few_tokens_for_a_wide_matrix_are_told(name: str, tokens: int, told: int) -> None:
    shapes = [{"shape": [4096, 4096]}, {"shape": [4096, 11008]}, {"shape": [11008, 4096]}]
    found = too_few_tokens({"statistics": [{"name": name, "tokens": tokens}], "matrices": shapes})
    assert len(found) == told and all("2,238 tokens" in text and "11,008 inputs" in text for text in found)


def test_a_model_must_be_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch) == 2
    assert "--model_args" in capsys.readouterr().err


@pytest.mark.slow
def test_all_recipes_of_the_audit_give_findings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, Any] = {}
    assert call(monkeypatch, *DEMO, "--json") == 0
    for row in json.loads(capsys.readouterr().out):
        asked.setdefault(row["recipe"].partition(":")[0], row)
    assert {"laser", "eigenprune", "svd-llm", "zero-sum"} <= set(asked)
