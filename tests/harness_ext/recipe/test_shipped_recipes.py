"""Every shipped recipe, from the command to the receipt, on the embedded model and on small real ones."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from harness_ext.recipe.recipe import parse_recipe, shipped_names
from harness_ext.recipe.schema import Step
from leaderboard.readers.receipt import MatrixRecord, ReceiptTotals


@pytest.mark.slow
def test_every_shipped_recipe_runs_on_one_task(demo_run, tmp_path: Path) -> None:
    """On one task alone: the number of calibration documents asked for by default must be one that a small task has."""
    ran = demo_run("--recipe", *shipped_names(), limit=8)
    assert ran.code == 0, ran.err
    found = [json.loads(path.read_text()) for path in tmp_path.glob("results/demo/*/receipt.json")]
    assert {receipt["recipe"]["label"] for receipt in found} == set(shipped_names())
    assert {receipt["status"] for receipt in found} == {"complete"}
    assert len({receipt["recipe_id"] for receipt in found}) == len(found)


MILD = {"fraction": 0.2, "density": 0.95, "relative_error": 0.02, "threshold": 0.1}


def mildly(name: str) -> str:
    """The recipe at a setting at which a sound model stays sound, with few documents."""
    changes: dict[str, Any] = {}
    for step in parse_recipe(name).steps:
        changes |= {key: value for key, value in MILD.items() if key in type(step).model_fields}
        changes |= {"keep.energy" if step.keep.energy else "keep.rank_fraction": 0.99} if step.keep else {}
        changes |= {"calibration.samples": 8, "calibration.batch_size": 4} if step.calibration else {}
        changes |= {
            key: value
            for key, value in {"fractions": "[0.99]", "param_fraction": 0.95, "tolerance": 0.5}.items()
            if step.is_search and key in type(step).model_fields
        }
        changes |= {"search.rounds": 1, "search.at_once": 4} if step.search else {}
        brief = {
            "keep_ratio": 0.99,
            "keeping_epochs": 1,
            "pruning_times": 1,
            "pruning_epochs": 1,
            "post_epochs": 1,
            "added_rank": 1,
        }
        changes |= {f"training.{key}": value for key, value in brief.items()} if step.training else {}
    return f"{name}:{','.join(f'{key}={value}' for key, value in changes.items())}" if changes else name


def check_matrices(rows: list[dict[str, Any]], steps: tuple[Step, ...]) -> None:
    """Every field of every row is there and can be true."""
    assert rows
    for row in rows:
        assert set(row) == MatrixRecord.model_fields.keys()
        step = steps[row["step"]]
        assert (
            (row["method"] == step.method or step.is_search)
            and row["role"]
            and row["layer"] is not None
            and row["name"]
        )
        assert 0 <= row["rank_after"] <= row["rank_before"] == min(row["shape"])
        assert row["parameters_before"] == math.prod(row["shape"]) >= row["parameters_after"] >= 0
        assert 0 <= row["energy_kept"] < 1.2 and 0 <= row["relative_error"] < 1.05 and row["seconds"] >= 0
        assert all(len(row[key]) == 64 for key in ("digest_before", "digest_after"))
        assert row["relative_error"] == 0 or row["digest_after"] != row["digest_before"]


@pytest.mark.slow
def test_every_shipped_recipe_runs_mildly_on_a_real_model(lm_eval, real_model: Path, tmp_path: Path) -> None:
    recipes = {mildly(name): parse_recipe(mildly(name)) for name in shipped_names()}
    arguments = (
        "--model",
        "hf",
        "--model_args",
        f"pretrained={real_model},dtype=float32",
        "--tasks",
        "int_mult,pronoun_bias",
        "--limit",
        16,
        "--batch_size",
        16,
        "--device",
        "cpu",
    )
    ran = lm_eval("run", *arguments, "--recipe", *recipes)
    assert ran.code == 0, ran.err
    receipts = {
        receipt["recipe"]["label"]: (receipt, path.parent)
        for path in tmp_path.glob("results/*/*/receipt.json")
        if (receipt := json.loads(path.read_text()))
    }
    assert set(receipts) == set(recipes)
    baseline = receipts["baseline"][0]["weights"]["digest_before"]
    for label, (receipt, folder) in receipts.items():
        recipe = recipes[label]
        assert (receipt["status"], receipt["failure"], receipt["weights"]["digest_before"]) == (
            "complete",
            None,
            baseline,
        )
        # A search may find nothing that is worth doing.
        nothing = recipe.is_baseline or any(not record["chosen"] for record in receipt["searches"])
        assert (receipt["weights"]["digest_after"] == baseline) == nothing
        assert set(receipt["seeds"]) == {"python", "numpy", "torch", "fewshot"} and set(receipt["versions"]) >= {
            "python",
            "lm_eval",
            "torch",
            "transformers",
            "lm_eval_recipes",
        }
        # A bias made where there was none may outweigh what is saved.
        kinds = {key for key in receipt["totals"] if "tokens_per_second" not in key}
        assert (
            kinds == {name for name in ReceiptTotals.model_fields if "tokens_per_second" not in name}
            and 0 < receipt["totals"]["parameters_after"] < 1.05 * receipt["totals"]["parameters_before"]
        )
        if not nothing:
            check_matrices(receipt["matrices"], recipe.steps)
        learned = {hashed for used in receipt["calibration"] for hashed in used["documents"]}
        assert bool(learned) == any(step.calibration or step.contrast for step in recipe.steps)
        for used in receipt["calibration"]:
            assert (
                len(used["documents"]) == used["samples"]
                and used["seed"] == 0
                and used["split"] in ("train", "shipped")
            )
        (results,) = folder.glob("results_*.json")
        scores = [
            value
            for of_task in json.loads(results.read_text())["results"].values()
            for value in of_task.values()
            if isinstance(value, float)
        ]
        assert len(scores) >= 6 and all(math.isfinite(value) for value in scores)
        for path in folder.glob("samples_*.jsonl"):
            assert not learned & {json.loads(line)["doc_hash"] for line in path.read_text().splitlines()}


def test_every_recipe_says_what_it_does_in_a_sentence() -> None:
    for recipe in map(parse_recipe, shipped_names()):
        assert recipe.summary.endswith("."), recipe.name


def test_the_list_says_what_each_needs(lm_eval) -> None:
    listed = " ".join(lm_eval("recipes").out.split())
    for name, needs in [
        ("svd-llm", "needs texts"),
        ("fwsvd", "needs labelled documents"),
        ("basis-selection", "needs training"),
        ("laser-rmt", "needs nothing;"),
        ("contrast-projection", "needs nothing, its texts are shipped"),
    ]:
        entry = listed[listed.index(f"{name} {parse_recipe(name).summary[:10]}") :]
        assert needs in entry[: entry.index("]")], name
