"""Every shipped recipe, from the command to the receipt, on the embedded model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness_ext.recipe import parse_recipe, shipped_names


@pytest.mark.slow
def test_every_shipped_recipe_runs_on_one_task(demo_run, tmp_path: Path) -> None:
    """On one task alone: the number of calibration documents asked for by default must be one that a small task has."""
    ran = demo_run("--recipe", *shipped_names(), limit=8)
    assert ran.code == 0, ran.err
    found = [json.loads(path.read_text()) for path in tmp_path.glob("results/demo/*/receipt.json")]
    assert {receipt["recipe"]["label"] for receipt in found} == set(shipped_names())
    assert {receipt["status"] for receipt in found} == {"complete"}
    assert len({receipt["recipe_id"] for receipt in found}) == len(found)


def test_every_recipe_says_what_it_does_in_a_sentence() -> None:
    for recipe in map(parse_recipe, shipped_names()):
        assert recipe.summary.endswith("."), recipe.name


def test_the_list_says_what_each_needs(lm_eval) -> None:
    listed = " ".join(lm_eval("recipes").out.split())
    for name, needs in [("svd-llm", "needs texts"), ("fwsvd", "needs labelled documents"), ("basis-selection", "needs training"), ("laser-rmt", "needs nothing;"), ("contrast-projection", "needs nothing, its texts are shipped")]:
        entry = listed[listed.index(f"{name} {parse_recipe(name).summary[:10]}") :]
        assert needs in entry[: entry.index("]")], name
