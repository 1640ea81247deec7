"""What is asked, as an identity: what a variant depends on changes its `spec_id`, and nothing else does."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harness_ext.methods import registry, search_registry
from harness_ext.recipe.recipe import parse_recipe, recipe_from
from harness_ext.recipe.schema import described
from harness_ext.runs.spec import RunSpec

ROWS = [{"q": f"{number} plus 3 is", "a": str(number + 3)} for number in range(30)]
TASK = """
task: NAME
dataset_path: json
dataset_kwargs: {data_files: {test: DIR/test.jsonl, train: DIR/NAME.jsonl}}
test_split: test
training_split: train
output_type: loglikelihood
doc_to_text: "{{q}}"
doc_to_target: "{{a}}"
process_results: !function NAME_scorer.score
metric_list: [{metric: exact, aggregation: mean, higher_is_better: true}]
metadata: {version: 1}
"""
SCORER = "def score(doc, results):\n    return {'exact': 1.0}\n"
GROUP = """
group: both
task: [own, other]
aggregate_metric_list: [{metric: exact, aggregation: !function total.total}]
"""
LEARNS = "svd-llm:calibration.samples=4"
ELSEWHERE = "svd-llm:calibration.samples=4,calibration.task=other"
RECIPES = ("baseline", "laser", LEARNS, ELSEWHERE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two tasks with scorers and training documents of their own, and a group of both."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "tasks"
    folder.mkdir()
    documents(folder / "test.jsonl", "")
    for place, name in enumerate(("own", "other")):
        text = TASK.replace("NAME", name).replace("DIR", str(folder))
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
        (folder / f"{name}_scorer.py").write_text(SCORER, encoding="utf-8")
        documents(folder / f"{name}.jsonl", f"train {place}: ")
    (folder / "both.yaml").write_text(GROUP, encoding="utf-8")
    (folder / "total.py").write_text("def total(values, sizes, weight_by_size):\n    return 1.0\n", encoding="utf-8")
    return folder


def documents(path: Path, prefix: str) -> None:
    path.write_text("".join(json.dumps({**row, "q": prefix + row["q"]}) + "\n" for row in ROWS), encoding="utf-8")


@pytest.fixture
def spec(lm_eval, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunSpec]:
    """What a command asks: `spec("--limit", 5)`."""
    asked = []
    monkeypatch.setattr(
        "harness_ext.cli.run_recipes.execute", lambda config, report, *_, **__: asked.append((config, report))
    )

    def make(*arguments: object, tasks: str = "own") -> RunSpec:
        command = ["run", "--model", "hf", "--model_args", "pretrained=demo", "--tasks", tasks, "--recipe", "laser"]
        ran = lm_eval(*command, "--device", "cpu", "--include_path", folder, *arguments)
        assert ran.code == 0, ran.err
        return RunSpec(*asked[-1])

    return make


def ids(spec: RunSpec) -> dict[str, str]:
    return {label: spec.spec_id(spec.resolved(parse_recipe(label))) for label in RECIPES}


CHANGED: dict[str, tuple[Callable[[Path], object], set[str]]] = {
    "its scorer": (lambda at: (at / "own_scorer.py").write_text(SCORER.replace("1.0", "0.0")), set(RECIPES)),
    "its scored documents": (lambda at: documents(at / "test.jsonl", "new "), set(RECIPES)),
    "documents that a recipe learns from": (lambda at: documents(at / "own.jsonl", "new "), {LEARNS}),
    "documents of another task to learn from": (lambda at: documents(at / "other.jsonl", "new "), {ELSEWHERE}),
    "how another task to learn from asks": (
        lambda at: (at / "other.yaml").write_text((at / "other.yaml").read_text().replace("{{q}}", "{{q}}:")),
        {ELSEWHERE},
    ),
    "nothing": (lambda at: None, set()),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", CHANGED)
def test_a_variant_is_another_where_what_it_depends_on_changed(kind: str, folder: Path, spec) -> None:
    before = ids(spec())
    change, expected = CHANGED[kind]
    change(folder)
    after = ids(spec())
    assert {label for label in RECIPES if before[label] != after[label]} == expected


@pytest.mark.slow
def test_a_group_that_is_summed_up_otherwise_is_asked_otherwise(folder: Path, spec) -> None:
    before = ids(spec(tasks="both"))
    (folder / "total.py").write_text("def total(values, sizes, weight_by_size):\n    return 0.0\n", encoding="utf-8")
    assert not set(before.values()) & set(ids(spec(tasks="both")).values())


@pytest.mark.slow
def test_the_version_of_a_package_that_a_scorer_uses_counts(
    folder: Path, spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = tmp_path / "site-packages"
    (packages / "toolkit-1.0.dist-info").mkdir(parents=True)
    (packages / "toolkit.py").write_text("")
    record = packages / "toolkit-1.0.dist-info" / "METADATA"
    record.write_text("Metadata-Version: 2.1\nName: toolkit\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(packages)
    (folder / "own_scorer.py").write_text("import toolkit\n" + SCORER)
    before = spec()
    identity, found = before.task_settings["own"]["identity"], ids(before)
    record.write_text("Metadata-Version: 2.1\nName: toolkit\nVersion: 1.1\n")
    after = spec()
    assert after.task_settings["own"]["identity"] == identity
    assert not set(found.values()) & set(ids(after).values())
    sys.modules.pop("toolkit", None)


@pytest.mark.slow
def test_the_identity_of_a_task_does_not_depend_on_which_documents_are_scored(spec) -> None:
    whole = spec().task_settings["own"]
    for arguments in (("--limit", 5), ("--samples", '{"own": [3, 1]}')):
        part = spec(*arguments).task_settings["own"]
        assert part["identity"] == whole["identity"] and part["documents"] != whole["documents"]
        assert set(part) == {"version", "config", "documents", "scored", "identity"}


@pytest.mark.slow
def test_the_identity_of_a_task_does_not_depend_on_the_model(spec) -> None:
    identity = spec().task_settings["own"]["identity"]
    for arguments in ("pretrained=demo,dtype=bfloat16", "pretrained=other,trust_remote_code=False"):
        assert spec("--model_args", arguments).task_settings["own"]["identity"] == identity


@pytest.mark.slow
def test_few_shot_documents_count_with_the_shots_of_the_command(folder: Path, spec) -> None:
    def identities() -> list[str]:
        return [spec(*arguments).task_settings["own"]["identity"] for arguments in ((), ("--num_fewshot", 2))]

    before = identities()
    documents(folder / "own.jsonl", "new ")
    after = identities()
    assert before[0] == after[0] and before[1] != after[1]


STEP = {"matrices": ["down_proj"], "calibration": {"samples": 4, "task": ["own"]}}
TWO_STEPS = {
    "name": "two",
    "steps": [
        {"method": "truncate_svd", "matrices": ["o_proj"], "keep": {"rank": 4}},
        {"method": "laser_search", **STEP},
        {"method": "feature_space", "keep": {"rank": 4}, **STEP},
    ],
}


@pytest.mark.slow
def test_a_revision_counts_where_it_is_above_one(spec, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, recipe = spec(), recipe_from(TWO_STEPS, origin="two")
    assert recipe.revisions == {"laser_search": 2}
    found = set()

    def with_revisions(**revisions: int) -> tuple[str, str]:
        for name, revision in revisions.items():
            registered = registry if name in registry._registry else search_registry
            monkeypatch.setitem(registered._registry, name, replace(described(name), revision=revision))
        found.add(recipe.recipe_id)
        return asked.spec_id(recipe), asked.spec_id(parse_recipe("laser"))

    second, laser = with_revisions()
    first, same = with_revisions(laser_search=1)
    assert first != second and same == laser and recipe.revisions == {}
    third, other = with_revisions(truncate_svd=3)
    assert third not in (first, second) and other != laser and recipe.revisions == {"truncate_svd": 3}
    assert with_revisions(laser_search=2)[0] not in (first, second, third)
    assert with_revisions(truncate_svd=1) == (second, laser) and len(found) == 1


@pytest.mark.slow
def test_a_control_is_another_by_the_revision_of_the_recipe_whose_budget_it_has(spec) -> None:
    asked, control = spec(), parse_recipe("random-subspace:keep.rank=3")
    ids = {
        asked.spec_id(control.model_copy(update={"control_of_revisions": revisions}))
        for revisions in ({}, {"eigenprune": 2}, {"eigenprune": 3})
    }
    assert len(ids) == 3 and asked.spec_id(control) in ids


def test_ids_from_before_there_were_revisions(spec, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[dict] = []
    monkeypatch.setattr("harness_ext.runs.spec.digest", lambda value: hashed.append(value) or "0" * 64)
    asked = spec()
    for label in ("baseline", "laser", LEARNS):
        asked.spec_id(asked.resolved(parse_recipe(label)))
        assert set(hashed[-1]) == {"recipe", "made_by", "settings", "tasks", "code", "calibration"}
    asked.spec_id(asked.resolved(parse_recipe("eigenprune:calibration.samples=4")))
    assert hashed[-1]["revisions"] == {"own": {"eigenprune": 2}, "control of": {}}
