"""Controls: their formulas against numpy, their laws, and that each meets the budget of the recipe it is a control
of.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness_ext.calibration.documents import LabelledDocument, with_answers_of_others
from harness_ext.editing.controls import NoControl, check_control, control_recipe, why_not
from harness_ext.errors import UserError
from harness_ext.linalg.decompose import Decomposer
from harness_ext.methods import Svd
from harness_ext.methods.budget import Keep
from harness_ext.methods.random_edits import bottom_components, noise
from harness_ext.methods.svd import truncate_svd
from harness_ext.recipe.recipe import Recipe, parse_recipe, recipe_from

SHAPES = st.tuples(st.integers(1, 16), st.integers(1, 16), st.integers(0, 2**31))


def random_matrix(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(SHAPES, st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_the_smallest_and_the_largest_components_make_up_the_matrix(shape, share: float) -> None:
    weight = random_matrix(*shape)
    full = min(weight.shape)
    rank = round(share * full)
    svd = Svd(*torch.linalg.svd(weight, full_matrices=False))
    bottom = bottom_components(weight, svd=svd, keep=Keep(rank=rank))
    s = numpy.linalg.svd(weight.numpy(), compute_uv=False)
    assert bottom.rank == rank
    assert float(bottom.weight().norm()) == pytest.approx(numpy.sqrt((s[full - rank :] ** 2).sum()), abs=1e-9)
    torch.testing.assert_close(
        bottom.weight()
        + truncate_svd(
            weight, truncate=Decomposer().truncate, keep=Keep(rank=full - rank), generator=torch.Generator()
        ).weight(),
        weight,
    )


@given(SHAPES, st.floats(0, 3))
@settings(max_examples=40, deadline=None)
def test_noise_moves_a_matrix_exactly_as_far_as_asked(shape, distance: float) -> None:
    weight = random_matrix(*shape)

    def moved(seed: int) -> torch.Tensor:
        return noise(weight, generator=torch.Generator().manual_seed(seed), relative_error=distance).weight()

    assert float((moved(0) - weight).norm()) == pytest.approx(distance * float(weight.norm()), abs=1e-9)
    assert torch.equal(moved(0), moved(0))
    assert distance < 1e-6 or weight.numel() == 1 or not torch.equal(moved(0), moved(1))


def test_noise_has_no_favoured_direction() -> None:
    steps = (
        torch.stack(
            [
                noise(torch.ones(3, 4), generator=torch.Generator().manual_seed(seed), relative_error=1.0).weight() - 1
                for seed in range(3000)
            ]
        )
        .flatten(1)
        .double()
        .numpy()
    )
    numpy.testing.assert_allclose(steps.mean(0), 0, atol=0.08)
    numpy.testing.assert_allclose(steps.T @ steps / len(steps), numpy.eye(12), atol=0.08)


# The exchange of answers.


@given(st.integers(2, 40), st.integers(0, 100))
@settings(max_examples=60, deadline=None)
def test_every_document_gets_the_answer_of_another(count: int, seed: int) -> None:
    documents = [
        LabelledDocument("t", f"question {number}", f"answer {number}", str(number)) for number in range(count)
    ]
    exchanged = with_answers_of_others(documents, str(seed))
    assert [(document.context, document.doc_hash) for document in exchanged] == [
        (document.context, document.doc_hash) for document in documents
    ]
    assert Counter(document.answer for document in exchanged) == Counter(document.answer for document in documents)
    assert all(new.answer != old.answer for new, old in zip(exchanged, documents, strict=True))
    assert exchanged == with_answers_of_others(documents, str(seed))


# At the budget of a receipt.


def no_documents(calibration):
    pytest.fail("no document was to be asked for")


@pytest.mark.parametrize(
    "specification",
    ["svd:keep.energy=0.8", "svd:matrices=[attn],per_head=true,keep.rank=2", "magnitude:density=0.4,matrices=[mlp]"],
)
@pytest.mark.parametrize("name", ["bottom-k", "random-subspace", "noise"])
def test_a_control_meets_the_budget(make_lm, family: str, specification: str, name: str) -> None:
    lm = make_lm(family)
    recipe = parse_recipe(specification)
    receipt = {"matrices": [record.to_json() for record in lm.apply(recipe, no_documents).records]}
    lm.undo()
    if specification.startswith("magnitude") and name != "noise":
        with pytest.raises(NoControl, match="noise can be its control"):
            control_recipe(name, recipe, receipt)
        return
    control = control_recipe(name, recipe, receipt)
    assert (control.control, control.control_of, control.label) == (name, recipe.recipe_id, f"{specification}+{name}")
    records = {(record.name, record.part): record for record in lm.apply(control, no_documents).records}
    lm.undo()
    assert len(records) == len(receipt["matrices"])
    for row in receipt["matrices"]:
        record = records[row["name"], row["part"]]
        if name == "noise":
            assert record.relative_error == pytest.approx(row["relative_error"], rel=1e-4)
        else:
            assert record.rank_after == row["rank_after"]


def test_distances_of_a_matrix_edited_twice_add_up_in_squares() -> None:
    record = {"name": "a.weight", "part": None, "rank_before": 4, "rank_after": 2}
    control = control_recipe(
        "noise", parse_recipe("svd"), {"matrices": [record | {"relative_error": 0.3}, record | {"relative_error": 0.4}]}
    )
    (step,) = control.steps
    assert step.parameters["relative_error"] == pytest.approx(0.5)


def _in_steps(*steps: dict[str, object]) -> Recipe:
    return recipe_from(
        {"name": "steps", "steps": [{"matrices": ["up_proj", "k_proj"], **step} for step in steps]}, origin="-"
    )


def test_a_matrix_truncated_twice_is_as_far_as_one_truncated_once(make_lm) -> None:
    asked: dict[str, dict[str, float]] = {}
    for name, ranks in (("once", (3,)), ("twice", (6, 3))):
        lm = make_lm("llama", dtype="float64")
        recipe = _in_steps(*({"method": "truncate_svd", "keep": {"rank": rank}} for rank in ranks))
        receipt = {"matrices": [record.to_json() for record in lm.apply(recipe, no_documents).records]}
        control = control_recipe("noise", recipe, receipt)
        asked[name] = {step.matrices[0]: step.parameters["relative_error"] for step in control.steps}
    assert asked["twice"] == pytest.approx(asked["once"], rel=1e-6) and len(asked["once"]) == 6


def test_a_matrix_that_was_put_back_has_no_distance(make_lm) -> None:
    lm = make_lm("llama")
    recipe = _in_steps({"method": "truncate_svd", "keep": {"rank": 3}}, {"method": "restore", "matrices": ["up_proj"]})
    receipt = {"matrices": [record.to_json() for record in lm.apply(recipe, no_documents).records]}
    assert all("k_proj" in step.matrices[0] for step in control_recipe("noise", recipe, receipt).steps)


@pytest.mark.parametrize("recipe", ["modegpt-mlp", "policy-prune", "modegpt"])
def test_units_are_drawn_by_the_seed_that_the_control_is_given(recipe: str) -> None:
    matrix = {"step": 0, "name": "a.weight", "part": None, "role": "down_proj", "columns_kept": 3, "shape": [4, 6]}
    chosen = [{"method": "mlp_select", "matrices": ["a.weight"], "unit_fraction": 0.5}]
    receipt = {"matrices": [matrix], "searches": [{"step": 0, "chosen": chosen}] if recipe == "modegpt" else []}
    steps = control_recipe("random-subspace:seed=3", parse_recipe(recipe), receipt).steps
    assert [step.seed for step in steps] == [3]


def test_the_recipe_itself_is_no_control_of_it() -> None:
    for name, recipe in (("laser", "svd"), ("svd", "laser:keep.rank=3"), ("bottom-k", "bottom-k")):
        assert why_not(name, parse_recipe(recipe)) == f"at the ranks that the recipe leaves, {name} is the same edit"
    for name in ("random-subspace", "noise", "identity"):
        for recipe in (name, f"{name}:layers=[-1]"):
            assert why_not(name, parse_recipe(recipe)) == (
                f"the recipe is itself what {name} does, and would be compared with its like"
            )
    for name, recipe in (("random-subspace", "noise"), ("noise", "random-subspace"), ("random-subspace", "bottom-k")):
        assert why_not(name, parse_recipe(recipe)) is None
    for name, recipe in (("identity", "svd"), ("random-subspace", "svd"), ("svd", "svd-llm"), ("noise", "svd")):
        assert why_not(name, parse_recipe(recipe)) is None


def test_masks_that_start_at_random_have_no_first_mask_to_be_controlled_by() -> None:
    with pytest.raises(NoControl, match="random-subspace draws as many units"):
        control_recipe("wanda-sp", parse_recipe("policy-prune:masks.start=random"), {"matrices": []})


@pytest.mark.parametrize("name", ["eigenprune", "sfsd", "baseline", "magnitude"])
def test_what_cannot_be_a_control_is_refused_with_those_that_can(name: str) -> None:
    with pytest.raises(
        UserError,
        match=r"choose from bottom-k, identity, laser, noise, random-subspace, svd, wanda-sp, shuffled-labels",
    ):
        check_control(name)


def test_shuffled_labels_is_the_recipe_with_answers_exchanged() -> None:
    recipe = parse_recipe("eigenprune")
    control = control_recipe("shuffled-labels", recipe, {"matrices": []})
    assert control.recipe_id != recipe.recipe_id and control.control == "shuffled-labels"
    assert [step.calibration.shuffled_labels for step in control.steps] == [True]
    plain = control.steps[0].model_copy(update={"calibration": recipe.steps[0].calibration})
    assert plain == recipe.steps[0]
    with pytest.raises(NoControl, match="learns nothing from calibration documents"):
        control_recipe("shuffled-labels", parse_recipe("laser"), {"matrices": []})


def test_a_run_with_each_control(demo_run, tmp_path: Path) -> None:
    pruned = "ablation-prune:calibration.samples=40"
    ran = demo_run("--recipe", pruned, "laser", "--control", "noise", "bottom-k", "shuffled-labels")
    assert ran.code == 0, ran.err
    assert "laser+shuffled-labels: not run, since the recipe learns nothing" in ran.err
    found = {
        receipt["recipe"]["label"]: receipt
        for receipt in (json.loads(path.read_text()) for path in tmp_path.glob("results/demo/*/receipt.json"))
    }
    assert set(found) == {
        "baseline",
        pruned,
        "laser",
        *(f"{pruned}+{name}" for name in ("noise", "bottom-k", "shuffled-labels")),
        "laser+noise",
        "laser+bottom-k",
    }
    (ours,), (shuffled,) = (found[label]["calibration"] for label in (pruned, f"{pruned}+shuffled-labels"))
    assert (ours["shuffled_labels"], shuffled["shuffled_labels"]) == (False, True)
    assert ours["documents"] == shuffled["documents"]
    digests = [found[label]["weights"]["digest_after"] for label in (pruned, f"{pruned}+shuffled-labels")]
    assert digests[0] != digests[1]


@pytest.mark.slow
def test_one_document_has_nobody_to_change_answers_with(demo_run) -> None:
    ran = demo_run("--recipe", "fwsvd:calibration.samples=1", "--control", "shuffled-labels", limit=4)
    assert ran.code == 2 and "nobody to change answers with" in ran.err and "Traceback" not in ran.err


def test_identity_takes_the_same_matrices(make_lm) -> None:
    lm = make_lm("llama")
    recipe = parse_recipe("svd:matrices=[up_proj],keep.rank=3")
    receipt = {"matrices": [record.to_json() for record in lm.apply(recipe, no_documents).records]}
    lm.undo()
    control = control_recipe("identity", recipe, receipt)
    assert [record.name for record in lm.apply(control, no_documents).records] == [
        record["name"] for record in receipt["matrices"]
    ]
    assert control.label.endswith("+identity") and control.control == "identity"


@pytest.mark.parametrize("name", ["asvd", "svd-llm", "swift", "wanda", "sfsd"])
def test_exchanged_answers_say_nothing_of_what_learns_from_texts(name: str) -> None:
    with pytest.raises(NoControl, match="texts alone"):
        control_recipe("shuffled-labels", parse_recipe(name), {"matrices": []})


def test_a_control_with_settings_has_its_name_and_what_its_budget_was_chosen_on() -> None:
    matrix = {"step": 0, "name": "a.weight", "part": None, "rank_before": 8, "rank_after": 2, "relative_error": 0.5}
    drawn = [{"step": 0, "split": "train", "documents": ["1" * 64], "contents": ["2" * 64]}]
    recipe = parse_recipe("svd").model_copy(update={"chosen_on": ("3" * 64,)})
    learned, searched = (
        {"matrices": [matrix], "calibration": drawn, "searches": found} for found in ([], [{"step": 0}])
    )
    for name in ("noise:seed=2", "bottom-k", "random-subspace:seed=1"):
        control = control_recipe(name, recipe, learned)
        assert (control.label, control.control) == (f"{recipe.label}+{name}", name.partition(":")[0])
        # Documents of steps that learn are drawn again, outside the score; what a search found stays found.
        assert control.chosen_on == ("3" * 64,)
        assert control_recipe(name, recipe, searched).chosen_on == ("1" * 64, "2" * 64, "3" * 64)
        assert control.recipe_id == control_recipe(name, recipe, searched).recipe_id
