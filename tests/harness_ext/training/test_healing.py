"""Training after an edit: against a loop of plain torch, what stays as it was, and that a control is trained alike."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from harness_ext.calibration.batches import summed_loss
from harness_ext.calibration.documents import CalibrationSet, LabelledDocument
from harness_ext.editing.controls import control_recipe
from harness_ext.editing.edit_stored import needs_a_model
from harness_ext.editing.warnings import receipt_warnings
from harness_ext.errors import RecipeError, UserError
from harness_ext.recipe.recipe import parse_recipe, recipe_from
from harness_ext.recipe.settings import Healing
from harness_ext.storage.resume import ResumeState
from harness_ext.training import healing

DOCUMENTS = tuple(
    LabelledDocument("t", f"w{number} w{number + 1} w{3 * number}", f" w{number + 2}", str(number))
    for number in range(5)
)
QUICK = "heal.steps=5,heal.batch_size=2,heal.learning_rate=0.01"
RECIPE = f"svd:matrices=[down_proj],keep.param_fraction=0.6,{QUICK}"


def documents(calibration) -> list[CalibrationSet]:
    return [CalibrationSet("t", "train", 0, DOCUMENTS)]


def weights_of(lm, applied) -> dict[str, torch.Tensor]:
    names = {record.name for record in applied.records}
    return {name: value.detach().clone() for name, value in lm.model.named_parameters() if name in names}


def by_plain_loop(lm, left: torch.Tensor, right: torch.Tensor, name: str) -> torch.Tensor:
    """Both factors of one matrix trained on all tokens, each document by itself and in its own call of the model."""
    left, right = (value.clone().requires_grad_(True) for value in (left, right))
    optimizer = torch.optim.AdamW([left, right], lr=0.01, weight_decay=0.0)
    batches: list[list[LabelledDocument]] = []
    for epoch in range(2):
        order = list(DOCUMENTS)
        random.Random(f"0:{epoch}").shuffle(order)
        batches += [order[start : start + 2] for start in (0, 2, 4)]
    for batch in batches[:5]:
        losses = []
        for document in batch:
            tokens = torch.tensor([lm.tok_encode(document.context + document.answer)])
            logits = functional_call(lm.model, {name: left @ right}, (tokens[:, :-1],), {"use_cache": False}).logits
            losses.append(cross_entropy(logits[0], tokens[0, 1:]))
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        optimizer.step()
    return (left @ right).detach()


def test_factors_are_those_of_a_plain_loop(make_lm) -> None:
    lm = make_lm("llama", dtype="float64")
    name = "model.layers.1.mlp.down_proj.weight"
    own = RECIPE.replace("down_proj", name)
    lm.apply(parse_recipe(own.partition(",heal")[0]), documents)
    record = lm.applied.records[0] if hasattr(lm, "applied") and lm.applied else None
    edited = lm.model.get_parameter(name).detach().clone()
    u, s, vh = torch.linalg.svd(edited, full_matrices=False)
    rank = int((s > 1e-9 * s[0]).sum())
    assert rank < len(s) and (record is None or record.rank_after == rank)
    root = s[:rank].sqrt()
    with torch.enable_grad():
        wanted = by_plain_loop(lm, u[:, :rank] * root, root[:, None] * vh[:rank], name)
    lm.undo()
    applied = lm.apply(parse_recipe(own), documents)
    # the loss is taken in float32, and the steps move every number by a few hundredths
    torch.testing.assert_close(lm.model.get_parameter(name).detach(), wanted, rtol=1e-5, atol=1e-6)
    assert [record.method for record in applied.records] == ["truncate_svd", "heal"]
    assert [record.rank_after for record in applied.records] == [rank, rank]
    assert applied.records[1].parameters_after == rank * sum(applied.records[1].shape)
    (row,) = applied.log
    assert (row["steps"], row["documents"], row["seed"], row["step"]) == (5, 5, 0, 1)
    assert row["documents_sha256"] == healing.documents_digest(DOCUMENTS)
    (losses,) = applied.losses
    assert losses["after"] < losses["before"]


def test_it_is_the_same_by_its_seed_and_another_by_another(make_lm) -> None:
    lm = make_lm("llama")
    digests = []
    for seed in (0, 0, 1):
        lm.apply(parse_recipe(f"{RECIPE},heal.seed={seed}"), documents)
        digests.append(lm.weights.digest())
        lm.undo()
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("order", ["together", "left-then-right"])
@pytest.mark.parametrize("stops", [[1], [3, 1], [4]])
def test_an_interrupted_healing_goes_on_to_the_very_same_weights(
    make_lm, tmp_path: Path, monkeypatch, order: str, stops: list[int]
) -> None:
    monkeypatch.setattr(healing, "KEEP_SECONDS", 0.0)
    monkeypatch.setattr(healing, "KEEP_SHARE", float("inf"))
    recipe = parse_recipe(f"{RECIPE},heal.order={order},heal.factors=lora,heal.rank=2")
    lm = make_lm("llama")
    whole = lm.apply(recipe, documents)
    digest = lm.weights.digest()
    lm.undo()
    for stop in [*stops, 99]:
        left = [stop]

        def counted(lm, batch, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return summed_loss(lm, batch)

        monkeypatch.setattr(healing, "summed_loss", counted)
        if stop == 99:
            resumed = lm.apply(recipe, documents, None, ResumeState(tmp_path))
        else:
            with pytest.raises(KeyboardInterrupt):
                lm.apply(recipe, documents, None, ResumeState(tmp_path))
            lm.undo()
    assert lm.weights.digest() == digest and resumed.log == whole.log
    assert left[0] == 99 - (5 - sum(stops))


def test_one_step_in_turn_trains_the_left_factor_alone(make_lm) -> None:
    """What the rows of W span stays, and what the columns span does not."""
    lm = make_lm("llama", dtype="float64")
    plain = weights_of(lm, lm.apply(parse_recipe(RECIPE.partition(",heal")[0]), documents))
    lm.undo()
    turn = parse_recipe(RECIPE.replace("steps=5", "steps=1") + ",heal.order=left-then-right")
    for name, healed in weights_of(lm, lm.apply(turn, documents)).items():
        _, s, vh = torch.linalg.svd(plain[name])
        rank = int((s > 1e-9 * s[0]).sum())
        outside = vh[rank:].T
        assert (healed - plain[name]).norm() > 1e-6
        assert (healed @ outside).norm() < 1e-9 * healed.norm()


def test_what_is_added_has_the_rank_asked_for(make_lm) -> None:
    """To a dense matrix, whose zeros go; and to each factor of one of low rank."""
    lm = make_lm("llama", dtype="float64")
    dense = f"magnitude:matrices=[up_proj],density=0.5,{QUICK},heal.rank=2"
    before = weights_of(lm, lm.apply(parse_recipe(dense.partition(",heal")[0]), documents))
    lm.undo()
    applied = lm.apply(parse_recipe(dense), documents)
    for name, healed in weights_of(lm, applied).items():
        s = torch.linalg.svdvals(healed - before[name])
        assert s[1] > 1e-9 and s[2] < 1e-9 * s[0]
    assert all(record.parameters_after == record.parameters_before for record in applied.records)
    weight = torch.randn(9, 12, dtype=torch.float64)
    svd = torch.linalg.svd(weight, full_matrices=False)
    settings, generator = Healing(rank=2, factors="lora"), torch.Generator().manual_seed(0)
    part = healing.from_factors(type("Svd", (), {"u": svd.U, "s": svd.S, "vh": svd.Vh}), 4, settings, generator)
    torch.testing.assert_close(part.factor("left") @ part.factor("right"), (svd.U[:, :4] * svd.S[:4]) @ svd.Vh[:4])
    assert [tuple(value.shape) for value in part.trained().values()] == [(9, 2), (2, 4), (4, 2), (2, 12)]
    assert list(part.trained(["right"])) == ["right.0", "right.1"]


def test_the_control_is_trained_alike(make_lm) -> None:
    lm = make_lm("llama")
    recipe = parse_recipe(RECIPE)
    applied = lm.apply(recipe, documents)
    ranks = {record.name: record.rank_after for record in applied.records}
    receipt = {"matrices": [record.model_dump() for record in applied.records], "searches": []}
    lm.undo()
    control = control_recipe("random-subspace", recipe, receipt)
    assert control.steps[-1] == recipe.steps[-1] and control.steps[0].method == "random_subspace"
    trained = lm.apply(control, documents)
    assert {record.name: record.rank_after for record in trained.records} == ranks
    assert {record.method for record in trained.records} == {"random_subspace", "heal"}
    noise = control_recipe("noise", recipe, receipt)
    moved = {record["name"]: record["relative_error"] for record in receipt["matrices"] if record["method"] != "heal"}
    assert [step.parameters["relative_error"] for step in noise.steps[:-1]] == pytest.approx(list(moved.values()))
    shuffled = control_recipe("shuffled-labels", recipe, receipt)
    assert shuffled.steps[-1].calibration.shuffled_labels


def test_factors_stay_factors(make_lm) -> None:
    lm = make_lm("llama")
    applied = lm.apply(parse_recipe(f"{RECIPE},factored=always"), documents)
    assert {record.stored for record in applied.records} == {"factors"}


def test_a_search_that_found_nothing_leaves_nothing_to_heal(make_lm) -> None:
    lm = make_lm("llama")
    recipe = parse_recipe(f"zero-sum:param_fraction=1.0,matrices=[down_proj],{QUICK}")
    digest = lm.weights.digest()
    applied = lm.apply(recipe, documents)
    assert not applied.records and lm.weights.digest() == digest
    assert any("nothing was edited that heal could train" in note for note in receipt_warnings(recipe, applied))


def test_what_was_not_edited_is_not_healed(make_lm) -> None:
    steps = parse_recipe(RECIPE).resolved()["steps"]
    steps[1]["matrices"] = ["up_proj"]
    recipe = recipe_from({"name": "mine", "steps": steps}, origin="mine")
    with pytest.raises(UserError, match="they edited none of these: up_proj"):
        make_lm("llama").apply(recipe, documents)


def test_the_key_stands_for_a_step() -> None:
    recipe = parse_recipe(RECIPE)
    assert [step.method for step in recipe.steps] == ["truncate_svd", "heal"]
    again = recipe_from(recipe.resolved(), origin="again")
    assert again.recipe_id == recipe.recipe_id != parse_recipe(f"{RECIPE},heal.rank=3").recipe_id
    assert recipe.steps[1].matrices == recipe.steps[0].matrices
    assert parse_recipe("svd:heal.documents=7").steps[1].calibration.samples == 7
    assert "trains, which takes a model that computes" in str(needs_a_model(recipe))


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        ("svd:heal.step=3", "heal.step: unknown key, did you mean 'steps'"),
        ("svd:heal.steps=0", "heal.steps: input should be greater than or equal to 1"),
        ("svd:heal.steps=-1,heal.rank=0", "heal.rank: input should be greater"),
        ("svd:heal.learning_rate=0", "heal.learning_rate: input should be greater than 0"),
        ("svd:heal.order=right", "heal.order: input should be 'together' or 'left-then-right'"),
        ("svd:heal.steps=true", "heal.steps: should be a number"),
        ("svd:order=together", "did you mean 'heal.order'"),
        ("svd:heal=5", "heal: holds keys of its own"),
        ("baseline:heal.steps=5", "it has no steps"),
        ("basis-sharing:heal.steps=5", "those of basis_sharing would no longer be shared"),
    ],
)
def test_what_heal_cannot_be(recipe: str, told: str) -> None:
    with pytest.raises(RecipeError, match=told.replace("(", r"\(")):
        parse_recipe(recipe)


def test_nothing_comes_before_it() -> None:
    step = parse_recipe(RECIPE).resolved()["steps"][1]
    with pytest.raises(RecipeError, match="it trains what earlier steps edited, and there is none before it"):
        recipe_from({"name": "mine", "steps": [step]}, origin="mine")
