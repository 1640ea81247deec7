"""Every shipped recipe, from the command to the receipt, on the embedded model and on small real ones."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from harness_ext.recipe.recipe import GROUPS, parse_recipe, shipped_names
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


MILD = {"fraction": 0.2, "density": 0.95, "relative_error": 0.02, "threshold": 0.1, "unit_fraction": 0.95}
NOT_OF_EVERY_EDIT = {"rows_kept", "columns_kept", "columns_of_step", "sharing", "counted_as"}
"""Fields of a row that are absent where they say nothing."""


def mildly(name: str) -> str:
    """The recipe at a setting at which a sound model stays sound, with few documents."""
    changes: dict[str, Any] = {}
    for step in parse_recipe(name).steps:
        changes |= {key: value for key, value in MILD.items() if getattr(step, key, None) is not None}
        changes |= {"keep.energy" if step.keep.energy else "keep.rank_fraction": 0.99} if step.keep else {}
        changes |= {"calibration.samples": 8, "calibration.batch_size": 4} if step.calibration else {}
        changes |= {
            key: value
            for key, value in {"fractions": "[0.99]", "param_fraction": 0.95, "tolerance": 0.5}.items()
            if step.is_search and key in type(step).model_fields
        }
        if "param_fraction" in changes:
            changes.pop("fractions", None)  # which it chooses from
        changes |= {"heal.steps": 2, "heal.documents": 8} if step.healing else {}
        changes |= {"search.rounds": 1, "search.at_once": 4} if step.search else {}
        changes |= {"masks.unit_fraction": 0.95} if step.masks else {}
        changes |= {"masks.steps": 2} if step.masks and step.masks.steps else {}
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
        assert set(row) - NOT_OF_EVERY_EDIT == MatrixRecord.model_fields.keys() - NOT_OF_EVERY_EDIT
        step = steps[row["step"]]
        assert (
            (row["method"] == step.method or step.is_search)
            and row["role"]
            and row["layer"] is not None
            and row["name"]
        )
        assert 0 <= row["rank_after"] <= row["rank_before"] == min(row["shape"])
        # Rows that go take their biases along, and both counts have them.
        biases = {0, row["shape"][0]} if "rows_kept" in row else {0}
        assert row["parameters_before"] - math.prod(row["shape"]) in biases
        assert row["parameters_before"] >= row["parameters_after"] >= 0
        assert 0 <= row["energy_kept"] < 1.2 and 0 <= row["relative_error"] < 1.05 and row["seconds"] >= 0
        assert all(re.fullmatch("blake3:[0-9a-f]{64}", row[key]) for key in ("digest_before", "digest_after"))
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


IDS = {
    "ablation-prune": "60f11f2fe6cea40263f6c0bffa1fac7ec970e34f9c1f38c1e72b58ee6aeff8d5",
    "asvd": "21fd3a10755eb1f3abb7f4636ad695c3aa8ab1c72acb205f3e90cc3aa0a011d0",
    "baseline": "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945",
    "basis-selection": "3c663a398d1108f18103090c4c8c774e4214bb597af437ec8b45a3bcb0c6aa30",
    "bottom-k": "f65da13cfeca2a9630ddef062e0160458e7d662f25861e42f3212f3e581b8c11",
    "contrast-projection": "2761bfc18b8c87fcee5d59bd6409b9b6d8e422bfd5f0ae75d620f749a2fcc47f",
    "eigenprune": "70b53f5d09353bbbef9c4c4b6c6c25b79387eee35dca0c087c45d76173af0b1f",
    "eigenprune-greedy": "af1bbac5c34067a20fd2b0aa4d007cb94a3e05e4c943c8889009fb5dbdc5ff21",
    "fwsvd": "55e6823551abf69e203dc002cf2e3a28da7e51964263fb06259873d3a1d5d64c",
    "identity": "30f8c4388fddb24373e4a7ebcb8e210a6e2c07a2427d5fddf7a1f1a62a7c817a",
    "laser": "0c5ce0b018d303543c9f3bcdd462acdf3b54a3addc11476c0ddaa4f6a8e22def",
    "laser-compose": "0bed5f72a5b31f1d1d85aa93524b126b2b702a8a59eb2f27b16a05ac220432c0",
    "laser-gradient": "22c16f259a523ed348f28cfb97abf9b8351800cc6be9ef317a2afd440fab3652",
    "laser-rmt": "f0159f2afef42b77cf36b2059e50d607a2d2575eae7ad9428495be99b7b6e679",
    "laser-search": "c394af779ee2109a080648dbca521a2220597d0c3ab0193ba161821de298c5b7",
    "magnitude": "c48a865f98d1475e054987d7f868c97f05d65792f0dc32fa91c430952186bff0",
    "noise": "68b4d9d7c2a79e92a645ca4019b4e2a81b5f3b25bb6c291f574c1dfbd9058f7c",
    "random-subspace": "72a3ac6abefc5bdf0367aea6c344ffea427d6e2d4cd493d8146b895569bd6db1",
    "sfsd": "40b8cfe180ce6eec73e066644b9cb53f0ebd7ea7642f3de7de8a9f37240ccb2f",
    "sfsd-released": "339d7ff68281ab26bf1e0f85f491ef3ec3730959b25945646fe856906eb4b26b",
    "sfsd-surgical": "04d5281aff81ab1f0584cf2c2ea04fba1485d4bda5526b88c34469658ccadea3",
    "svd": "f646fcf0c695d474176471b8ec3903c703b29b6c2add9b2f5cea11064391c8a0",
    "svd-llm": "f5ce43fccbaeccb5b8adbe2ee6d5539c7f05f55814778bfe0618aa82d7f79531",
    "swift": "557f99455e3b9e8029361381fca7de7003221f9c0441130921bc1948f4aed808",
    "wanda": "7afa62a9ad8c15a08d26141138e8e752af679db8fa99a5ffdc0f84c7c30a5f3b",
    "zero-sum": "1872c752ce0e8577c468cf17a613ffb2eeda586b757d6597d63c07c5692c2480",
}
"""What the first release shipped: stored runs are known by these, so an id may come but never change."""


def test_ids_of_shipped_recipes_do_not_change() -> None:
    assert {name: parse_recipe(name).recipe_id for name in IDS} == IDS


def test_every_recipe_says_what_it_does_in_twelve_words() -> None:
    for recipe in map(parse_recipe, shipped_names()):
        assert recipe.summary.endswith(".") and len(recipe.summary.split()) <= 12, recipe.name
        assert recipe.group, recipe.name


def test_the_list_has_a_line_a_recipe_under_its_heading(lm_eval) -> None:
    blocks = lm_eval("recipes").out.strip().split("\n\n")
    headings, entries = zip(*[block.split("\n", 1) for block in blocks[:-1]], strict=True)
    assert list(headings) == [group.upper() for group in GROUPS if group]
    listed = [
        (heading.lower(), line) for heading, block in zip(headings, entries, strict=True) for line in block.split("\n")
    ]
    assert sorted(line.split()[0] for _, line in listed) == shipped_names()
    for group, line in listed:
        recipe = parse_recipe(line.split()[0])
        assert group == recipe.group and len(line) <= 80 and line.endswith(recipe.summary)
    assert len({line.index(parse_recipe(line.split()[0]).summary) for _, line in listed}) == 1


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("svd-llm", "texts"),
        ("fwsvd", "labelled documents"),
        ("basis-selection", "training"),
        ("laser-rmt", "nothing"),
        ("contrast-projection", "nothing, its texts are shipped"),
        ("baseline", "nothing"),
    ],
)
def test_show_says_what_a_recipe_needs_and_its_caveats(name: str, needs: str, lm_eval, tmp_path: Path) -> None:
    shown = lm_eval("recipes", "show", name).out
    assert shown.splitlines()[0] == f"# needs {needs}"
    (tmp_path / "again.yaml").write_text(shown)
    again, recipe = parse_recipe(str(tmp_path / "again.yaml")), parse_recipe(name)
    assert (again.caveats, again.group, again.recipe_id) == (recipe.caveats, recipe.group, recipe.recipe_id)
    assert bool(recipe.caveats) == (name != "baseline")


def test_a_heading_is_what_the_recipe_says() -> None:
    from harness_ext.recipe.recipe import shipped_headings

    recipes = [parse_recipe(name) for name in shipped_names()]
    assert shipped_headings() == [(recipe.name, recipe.summary, recipe.group) for recipe in recipes]
