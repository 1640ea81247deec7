"""What runs on the embedded model are known by changes with what they depend on, and with nothing else: the same on
every machine and in every folder.
"""

from __future__ import annotations

from importlib.metadata import version

import pytest

VERSIONS = {"lm_eval": "0.4.13", "torch": "2.13.0+cpu", "transformers": "5.23.0"}
SPEC_IDS = {
    "baseline": "78195ceb92",
    "laser": "865ba6f33e",
    "eigenprune:fraction=0.1": "19229c6bc9",
    "ablation-prune": "7e0ad91efc",
    "svd": "0c596fe054",
    "svd-llm": "57021343e1",
    "laser-search": "6a0a024867",
    "basis-selection": "29a7493a4a",
    "contrast-projection": "ffa88a9378",
    "sfsd": "f6d302ef28",
    "asvd": "761a5c2f6a",
}
"""The beginnings of the ids. They change with the model's files, the files of these tasks, lm-eval's defaults, and the
revisions of methods.
"""


def test_spec_ids_of_the_embedded_models_runs(lm_eval, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness_ext.recipe.recipe import parse_recipe
    from harness_ext.runs.spec import RunSpec

    if version("lm_eval") != VERSIONS["lm_eval"]:
        pytest.skip("the configurations of tasks are written out by lm-eval, and belong to its version")
    monkeypatch.setattr("harness_ext.runs.spec.versions", lambda: VERSIONS)
    asked = []
    monkeypatch.setattr(
        "harness_ext.cli.run_recipes.execute", lambda config, report, *_, **__: asked.append((config, report))
    )
    tasks = "int_mult,int_sum,pronoun_bias,int_mult_clean,int_sum_clean"
    command = ["run", "--model", "hf", "--model_args", "pretrained=demo", "--tasks", tasks, "--recipe", "laser"]
    ran = lm_eval(*command, "--batch_size", "64", "--device", "cpu")
    assert ran.code == 0, ran.err
    spec = RunSpec(*asked[0])
    found = {label: spec.spec_id(spec.resolved(parse_recipe(label)))[:10] for label in SPEC_IDS}
    assert found == SPEC_IDS
