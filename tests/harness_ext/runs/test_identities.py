"""What runs on the embedded model are known by has not changed: results of earlier versions are still found."""

from __future__ import annotations

from importlib.metadata import version

import pytest

VERSIONS = {"lm_eval": "0.4.13", "torch": "2.13.0+cpu", "transformers": "5.23.0"}
SPEC_IDS = {
    "baseline": "52679b0782",
    "laser": "1984188850",
    "eigenprune:fraction=0.1": "1e2b3e2d43",
    "ablation-prune": "d9dd41b756",
    "svd": "9ab475182c",
    "svd-llm": "68023c2f21",
    "laser-search": "dfb94fa1c2",
    "basis-selection": "3b92e42655",
    "contrast-projection": "31f74eac62",
    "sfsd": "c3dd9b3612",
    "asvd": "944320c00a",
}
"""The beginnings of the ids that version 0.1.0 gave."""


def test_spec_ids_of_the_embedded_models_runs(lm_eval, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness_ext.recipe.recipe import parse_recipe
    from harness_ext.runs.spec import RunSpec

    if version("lm_eval") != VERSIONS["lm_eval"]:
        pytest.skip("the configurations of tasks are written out by lm-eval, and belong to its version")
    monkeypatch.setattr("harness_ext.runs.spec.versions", lambda: VERSIONS)
    asked = []
    monkeypatch.setattr("harness_ext.cli.run_recipes.execute", lambda config, report: asked.append((config, report)))
    tasks = "int_mult,int_sum,pronoun_bias,int_mult_clean,int_sum_clean"
    command = ["run", "--model", "hf", "--model_args", "pretrained=demo", "--tasks", tasks, "--recipe", "laser"]
    ran = lm_eval(*command, "--batch_size", "64", "--device", "cpu")
    assert ran.code == 0, ran.err
    spec = RunSpec(*asked[0])
    found = {label: spec.spec_id(spec.resolved(parse_recipe(label)))[:10] for label in SPEC_IDS}
    assert found == SPEC_IDS
