"""What a user meets where a search finds nothing: a sentence, an honest receipt, and no control, recipe or export."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from harness_ext.editing.controls import NoControl, control_recipe
from harness_ext.editing.warnings import found_nothing, left_unedited, receipt_warnings
from harness_ext.methods.search_registry import SearchResult
from harness_ext.recipe.recipe import parse_recipe, recipe_from
from harness_ext.search.runner import found_nothing as sentence_of
from tests.harness_ext.search.plain_search import documents_for, drawing

SMALL = "fractions=[0.01],calibration.samples=8"
WORSE = "every edit that it tried was worse than the unedited model on its 8 calibration documents"
NOTHING = {
    f"laser-search:{SMALL},matrices=[o_proj]": f"laser_search found nothing: {WORSE}",
    f"laser-gradient:{SMALL},matrices=[o_proj],top=1": f"laser_gradient found nothing: {WORSE}",
    "laser-compose:fractions=[0.01],calibration.samples=4": (
        "laser_compose found nothing: no edit that it tried answered more of its 4 calibration documents right"
    ),
    f"sfsd-surgical:{SMALL},matrices=[down_proj]": (
        "sfsd_surgical found nothing: at every rank that it tried its 8 calibration documents were answered worse"
    ),
    "zero-sum:calibration.samples=4,param_fraction=1.0": (
        "zero_sum found nothing: its budget, param_fraction 1, asks for no smaller matrix"
    ),
    "ablation-prune:calibration.samples=4,fraction=0.001": (
        "ablation_prune found nothing: no component promises to lower the loss of its 4 calibration documents, or its"
        " fraction is less than one component"
    ),
}


@pytest.mark.slow
def test_a_run_says_so_and_nothing_is_made_of_it(demo_run, lm_eval, tmp_path: Path) -> None:
    ran = demo_run("--recipe", *NOTHING, "--control", "random-subspace", "shuffled-labels", "noise", limit=4)
    assert ran.code == 0, ran.err
    told = ran.err.splitlines()
    found = {}
    for path in tmp_path.glob("results/demo/*/receipt.json"):
        receipt = json.loads(path.read_text())
        found[receipt["recipe"]["label"]] = (path.parent, receipt)
    assert set(found) == {"baseline", *NOTHING}
    for label, sentence in NOTHING.items():
        place, receipt = found[label]
        (warning,) = [warning for warning in receipt["warnings"] if "found nothing" in warning]
        assert warning.startswith(sentence) and warning.endswith("; the variant is the unedited model")
        assert f"{label}: {warning}" in told
        assert any(line.startswith(f"{label}: done in") and "; nothing edited, " in line for line in told)
        assert receipt["weights"]["digest_after"] == receipt["weights"]["digest_before"]
        refused = [line for line in told if line.startswith(f"{label}+")]
        assert len(refused) == 3 and all(
            ": not run, since the recipe edited nothing: its variant is the unedited model" in line for line in refused
        )
        if receipt["searches"]:
            shown = lm_eval("recipes", "show", "--from", place)
            assert shown.code == 2 and not shown.out and f"has no recipe to show: {sentence}" in shown.err
    label = next(iter(NOTHING))
    ran = lm_eval(
        "export", "--model_args", "pretrained=demo", "--recipe", f"{label},calibration.task=int_mult", "--out", "edited"
    )
    assert ran.code == 2 and f"there is nothing to export: {NOTHING[label]}" in ran.err, ran.err
    assert "Traceback" not in ran.err and not (tmp_path / "edited").exists()


@pytest.mark.slow
def test_of_several_steps_the_others_stay(demo_run, lm_eval, tmp_path: Path) -> None:
    search = parse_recipe(f"laser-search:{SMALL},matrices=[o_proj],calibration.task=int_mult").resolved()["steps"]
    steps = [{"method": "truncate_svd", "matrices": ["down_proj"], "keep": {"rank": 60}}, *search]
    (tmp_path / "two.yaml").write_text(yaml.safe_dump({"name": "two", "steps": steps}))
    ran = demo_run("--recipe", "two.yaml", "--control", "noise", limit=4)
    assert ran.code == 0, ran.err
    (sentence,) = {line for line in ran.err.splitlines() if "found nothing" in line}
    assert sentence.startswith(f"two: laser_search found nothing: {WORSE}")
    assert sentence.endswith("; this step changed nothing") and "two+noise: done" in ran.err
    (place,) = tmp_path.glob("results/demo/two-*")
    (step,) = yaml.safe_load(lm_eval("recipes", "show", "--from", place).out)["steps"]
    assert step["method"] == "truncate_svd"
    ran = lm_eval("export", "--model_args", "pretrained=demo", "--recipe", "two.yaml", "--out", "edited")
    assert ran.code == 0 and f"warning: {sentence.removeprefix('two: ')}" in ran.err, ran.err


def test_a_search_of_another_package_that_gives_no_reason_is_told_all_the_same(make_lm, monkeypatch) -> None:
    lm = make_lm("llama")
    recipe = parse_recipe("laser-search:fractions=[0.5],matrices=[o_proj]")
    monkeypatch.setattr("harness_ext.search.laser.SearchResult", lambda steps, **_: SearchResult(()))
    applied = lm.apply(recipe, drawing(documents_for(lm)))
    lm.undo()
    (sentence,) = found_nothing(recipe, applied)
    assert sentence == "laser_search found nothing: it chose no edit after 3 trials; the variant is the unedited model"
    # As receipts of before have it.
    assert sentence_of({"method": "laser_search", "chosen": []}) == "laser_search found nothing: it chose no edit"
    assert left_unedited(recipe, applied)
    # The same weights, measured in batches of other shapes in half precision.
    applied.losses[0]["after"] = applied.losses[0]["before"] + 0.006
    assert not [warning for warning in receipt_warnings(recipe, applied) if "raised the loss" in warning]
    receipt = {"matrices": [record.to_json() for record in applied.records], "searches": applied.searches}
    for control in ("random-subspace", "shuffled-labels", "noise"):
        with pytest.raises(NoControl, match="the recipe edited nothing"):
            control_recipe(control, recipe, receipt)


def test_what_edits_without_looking_is_never_called_unedited(make_lm) -> None:
    lm = make_lm("llama")
    recipe = recipe_from({"name": "all", "steps": [{"method": "identity", "matrices": ["o_proj"]}]}, origin="all")
    applied = lm.apply(recipe, drawing([]))
    lm.undo()
    assert not left_unedited(recipe, applied) and found_nothing(recipe, applied) == []
