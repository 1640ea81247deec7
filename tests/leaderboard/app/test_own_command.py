"""The command of one run alone: what our own parser makes of it is that run."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pytest

from leaderboard.app.own_command import is_own, own_command

WHOLE = [
    "lm_eval", "run", "--model", "hf", "--model_args", "pretrained=demo", "--recipe", "laser", "svd:keep.rank=4",
    "--tasks", "int_mult,int_sum", "--recipe=my files/own.yaml:seed=1", "--contr", "random-subspace", "noise:seed=2",
    "--rec", "eigenprune", "--limit", "20",
]  # fmt: skip
OTHERS = ["lm_eval", "run", "--model", "hf", "--model_args", "pretrained=demo", "--tasks", "int_mult,int_sum"]


@pytest.mark.parametrize(
    ("label", "control", "recipe", "controls"),
    [
        ("laser", None, "laser", None),
        ("svd:keep.rank=4", None, "svd:keep.rank=4", None),
        ("eigenprune", None, "eigenprune", None),
        ("mine:seed=1", None, "my files/own.yaml:seed=1", None),
        ("baseline", None, "baseline", None),
        ("laser+random-subspace", "random-subspace", "laser", ["random-subspace"]),
        ("svd:keep.rank=4+noise:seed=2", "noise", "svd:keep.rank=4", ["noise:seed=2"]),
        ("mine:seed=1+noise:seed=2", "noise", "my files/own.yaml:seed=1", ["noise:seed=2"]),
    ],
)
def test_the_parser_reads_this_run_alone(
    monkeypatch: pytest.MonkeyPatch, label: str, control: str | None, recipe: str, controls: list[str] | None
) -> None:
    from harness_ext.cli import RecipesCLI

    words = own_command(WHOLE, label, control)
    assert words is not None and words[: len(OTHERS)] == OTHERS and not is_own(WHOLE, words)
    monkeypatch.setattr(sys, "argv", words)
    parsed = RecipesCLI().parse_args()
    assert (parsed.recipe, parsed.control) == ([recipe], controls)
    monkeypatch.setattr(sys, "argv", WHOLE)
    whole = vars(RecipesCLI().parse_args())
    assert {k: v for k, v in vars(parsed).items() if k not in ("recipe", "control")} == {
        k: v for k, v in whole.items() if k not in ("recipe", "control")
    }


def test_what_is_parsed_bears_the_label_of_the_run() -> None:
    from harness_ext.recipe.recipe import parse_recipe

    for label in ("laser", "svd:keep.rank=4", "baseline"):
        words = own_command(WHOLE, label, None)
        assert words is not None and parse_recipe(words[-1]).label == label


@pytest.mark.parametrize(
    ("recipes", "label", "control"),
    [
        (["a.yaml", "b.yaml"], "mine", None),
        (["laser"], "svd", None),
        (["laser"], "laser+noise", "noise"),
        (["laser"], "laser:matrices=down_proj", None),
    ],
)
def test_no_command_rather_than_a_wrong_one(recipes: Sequence[str], label: str, control: str | None) -> None:
    assert own_command(["lm_eval", "run", "--recipe", *recipes], label, control) is None


def test_recipes_of_a_configuration_file_go_by_their_label() -> None:
    words = ["lm_eval", "run", "--config", "run.yaml"]
    assert own_command(words, "laser:layers=0", None) == [*words, "--recipe", "laser:layers=0"]


def test_a_command_of_one_run_is_its_own() -> None:
    words = ["lm_eval", "run", "--tasks", "int_mult", "--recipe", "laser"]
    own = own_command(words, "laser", None)
    assert own == words and is_own(words, own)
