"""The result on a real model: its sweep holds every recipe, and its page is made of the stored figures."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

import harness_ext
from harness_ext.recipe.recipe import parse_recipe, shipped_names
from harness_ext.sweeps.sweep_file import read_sweep


@pytest.fixture(scope="module")
def real(repository: Path) -> ModuleType:
    """The script beside the result."""
    spec = importlib.util.spec_from_file_location("real_result", repository / "results" / "real" / "real.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["real_result"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_recipe_is_in_the_sweep_at_its_default_and_at_its_budgets(real: ModuleType) -> None:
    found = [parse_recipe(written) for written in real.recipes()]
    assert len({recipe.recipe_id for recipe in found}) == len(found)
    counts = Counter(recipe.name for recipe in found)
    left_out = {name for name in shipped_names() if parse_recipe(name).group == "controls"} - {"identity"}
    assert counts.keys() == set(shipped_names()) - left_out
    assert (counts["laser"], counts["eigenprune"], counts["svd"], counts["svd-llm"], counts["sfsd"]) == (1, 3, 3, 6, 9)


def test_the_sweep_that_is_shown_is_the_one_that_is_run(real: ModuleType, repository: Path) -> None:
    stored = json.loads(real.SWEEP.read_text(encoding="utf-8"))
    made = real.sweep_file(stored["tasks"])
    stored["run"].pop("include_path", None), made["run"].pop("include_path", None)
    assert stored == made
    assert read_sweep(real.SWEEP).name == "real"


def test_the_page_is_made_of_the_stored_figures(real: ModuleType) -> None:
    if not real.FIGURES.exists():
        pytest.skip("nothing is measured yet: `make real` does it")
    assert (real.HERE / "README.md").read_text(encoding="utf-8") == real.render(real.stored())


def test_what_only_some_seeds_say_is_not_said_of_a_recipe(real: ModuleType) -> None:
    def row(name: str, verdicts: list[str], beats: list[str]) -> object:
        return real.Row(name, False, 0.8, 1.0, {"t": [0.5] * len(verdicts)}, {"t": verdicts}, {"t": beats})

    base = real.Row("baseline", False, 1.0, 0.0, {"t": [0.4]}, {"t": ["baseline"]}, {"t": []})
    said = real.summary(
        [
            base,
            row("both", ["better", "better"], ["better", "better"]),
            row("some", ["better", "undecided"], ["better", "better"]),
            row("alike", ["better", "better"], ["better", "same"]),
            row("harm", ["worse", "collapsed"], ["worse", "worse"]),
        ]
    )
    assert said == (
        "- `t` (0.4 unedited): better and beating its control: `both` (0.5); better, as its control may be: `alike`"
        " (0.5); 1 of 4 are worse."
    )


@pytest.mark.slow
def test_rows_are_of_a_recipe_over_its_seeds(real: ModuleType, tmp_path: Path) -> None:
    recipes = ["svd", "svd-llm:calibration.samples=8", "svd-llm:calibration.samples=8,calibration.seed=1"]
    settings = {"limit": 16, "batch_size": 16, "device": "cpu", "output_path": str(tmp_path)}
    harness_ext.run(
        model_args="pretrained=demo", tasks="int_mult", recipes=recipes, controls="random-subspace", **settings
    )
    rows = real.measured(tmp_path)
    seeds = {(row.recipe, row.control): len(row.scores["int_mult"]) for row in rows}
    learned = "svd-llm:calibration.samples=8"
    # Both seeds ask for the same ranks, and so for the same control, which each has.
    assert seeds == {
        ("baseline", False): 1,
        ("svd", False): 1,
        ("svd", True): 1,
        (learned, False): 2,
        (learned, True): 2,
    }
    (of_svd,) = (row for row in rows if (row.recipe, row.control) == ("svd", False))
    receipts = [json.loads(path.read_text()) for path in tmp_path.glob("demo/*/receipt.json")]
    (receipt,) = (one for one in receipts if one["recipe"]["label"] == "svd")
    totals = receipt["totals"]
    assert of_svd.kept == round(totals["parameters_after"] / totals["parameters_before"], 3) < 1
    assert len(of_svd.beats["int_mult"]) == 1 and "| `svd` | 75% |" in real.table(rows)
    real.summary(rows)
