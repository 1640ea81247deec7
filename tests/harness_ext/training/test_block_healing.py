"""Healing block by block: against a loop of plain torch, the unedited layers it aims at, and an interruption."""

from __future__ import annotations

import copy
import math
import random
from pathlib import Path

import pytest
import torch
from torch.func import functional_call

from harness_ext.calibration.documents import CalibrationSet, LabelledDocument
from harness_ext.editing.controls import control_recipe
from harness_ext.errors import UserError, VariantFailed
from harness_ext.recipe.recipe import parse_recipe
from harness_ext.storage.resume import ResumeState
from harness_ext.training import block_healing
from harness_ext.training.block_healing import rate

DOCUMENTS = tuple(
    LabelledDocument("t", f"w{number} w{number + 1} w{3 * number}"[: 5 + number], f" w{number + 2}", str(number))
    for number in range(5)
)
STEPS = 12
HEAL = f"heal.loss=blocks,heal.steps={STEPS},heal.batch_size=2,heal.learning_rate=0.01,heal.weight_decay=0.01"
SMALL_RATE = 0.0003
"""Where numbers are set against a plain loop's: Adam's step is as large for a gradient of rounding as for any other."""
RECIPE = f"svd:matrices=[down_proj],keep.param_fraction=0.6,{HEAL}"


def documents(calibration) -> list[CalibrationSet]:
    return [CalibrationSet("t", "train", 0, DOCUMENTS)]


def outputs_of(lm, model, layer: int, document: LabelledDocument, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """What a layer makes of one document, without padding, `[t, d]`."""
    seen: list[torch.Tensor] = []

    def keep(module, args, output) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    handle = model.model.layers[layer].register_forward_hook(keep)
    tokens = torch.tensor([lm.tok_encode(document.context + document.answer)])[:, :-1]
    functional_call(model, weights, (tokens,), {"use_cache": False})
    handle.remove()
    return seen[0][0]


def rate_from_its_words(step: int, steps: int) -> float:
    """Up to the whole over a tenth of the steps, then half a turn of a cosine, down to a tenth."""
    up = round(steps / 10)
    if step < up:
        return (step + 1) / up
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - up) / (steps - up)))


def by_plain_loop(lm, unedited, edited, names: list[str]) -> dict[str, torch.Tensor]:
    """Both factors of one matrix a layer, trained one layer after another."""
    drawn = list(DOCUMENTS)
    random.Random("0").shuffle(drawn)
    batches = [drawn[:2], drawn[2:4], drawn[4:]]
    trained: dict[str, torch.Tensor] = {}
    for layer, name in enumerate(names):
        u, s, vh = torch.linalg.svd(edited.get_parameter(name).detach(), full_matrices=False)
        rank = int((s > 1e-9 * s[0]).sum())
        assert rank < len(s)
        root = s[:rank].sqrt()
        left, right = (u[:, :rank] * root).requires_grad_(True), (root[:, None] * vh[:rank]).requires_grad_(True)
        optimizer = torch.optim.AdamW([left, right], lr=SMALL_RATE, weight_decay=0.01)
        draw, order = random.Random(f"0:{layer}"), []
        while len(order) < STEPS:
            order += draw.sample(range(3), 3)
        for step in range(STEPS):
            optimizer.param_groups[0]["lr"] = SMALL_RATE * rate_from_its_words(step, STEPS)
            apart = []
            for document in batches[order[step]]:
                with torch.no_grad():
                    wanted = outputs_of(lm, unedited, layer, document, {})
                apart.append((outputs_of(lm, edited, layer, document, {**trained, name: left @ right}) - wanted) ** 2)
            optimizer.zero_grad()
            torch.cat(apart).mean().backward()
            torch.nn.utils.clip_grad_norm_([left, right], 1.0)
            optimizer.step()
        trained[name] = (left @ right).detach()
    return trained


@pytest.mark.slow
def test_factors_are_those_of_a_plain_loop(make_lm) -> None:
    lm = make_lm("llama", dtype="float64")
    unedited = copy.deepcopy(lm.model)
    lm.apply(parse_recipe(RECIPE.partition(",heal")[0]), documents)
    edited = copy.deepcopy(lm.model)
    lm.undo()
    names = [f"model.layers.{layer}.mlp.down_proj.weight" for layer in range(len(lm.model.model.layers))]
    with torch.enable_grad():
        wanted = by_plain_loop(lm, unedited, edited, names)
    recipe = RECIPE.replace("learning_rate=0.01", f"learning_rate={SMALL_RATE}")
    assert parse_recipe(recipe).recipe_id != parse_recipe(RECIPE).recipe_id
    applied = lm.apply(parse_recipe(recipe), documents)
    for name in names:
        torch.testing.assert_close(lm.model.get_parameter(name).detach(), wanted[name], rtol=1e-7, atol=1e-9)
    assert [record.method for record in applied.records] == ["truncate_svd"] * len(names) + ["heal"] * len(names)
    assert [row["stage"] for row in applied.log] == [f"healing layer {layer}" for layer in range(len(names))]
    assert all(row["last_loss"] < row["first_loss"] for row in applied.log)
    assert {(row["steps"], row["documents"], row["seed"], row["step"]) for row in applied.log} == {(STEPS, 5, 0, 1)}


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 64])
def test_the_rate_rises_and_falls(steps: int) -> None:
    rates = [rate(step, steps) for step in range(steps)]
    assert all(0.1 <= value <= 1 or math.isclose(value, 0.1) for value in rates) and max(rates) == 1
    top = rates.index(1)
    assert rates == [*sorted(rates[:top]), *sorted(rates[top:], reverse=True)]


@pytest.mark.parametrize(
    "recipe",
    [
        "svd:matrices=[mlp]",
        "sfsd:matrices=[attn],keep.param_fraction=0.5",
        "svd:matrices=[all],factored=always",
        "svd:matrices=[q_proj],per_head=true,factored=always",
    ],
)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_layer_aimed_at_is_the_one_before_all_edits(make_lm, architecture: str, recipe: str) -> None:
    """With biases that edits made, and factored layers in the place of dense ones."""
    lm = make_lm(architecture)
    place = "model.layers" if architecture == "llama" else "transformer.h"
    before = copy.deepcopy(lm.model.get_submodule(place))
    lm.apply(parse_recipe(recipe), documents)
    for layer, wanted in enumerate(before):
        found = lm.weights.unedited(f"{place}.{layer}").state_dict()
        assert list(found) == list(wanted.state_dict())
        assert all(torch.equal(found[name], value) for name, value in wanted.state_dict().items())
    changed = lm.model.get_submodule(place).state_dict()
    same = [name in changed and torch.equal(changed[name], value) for name, value in before.state_dict().items()]
    assert not all(same)


def test_it_heals_what_sequential_edits_left(make_lm) -> None:
    """Edits with biases, of other matrices besides: the outputs come nearer to the unedited model's."""
    lm = make_lm("llama", dtype="float64")
    unedited = copy.deepcopy(lm.model)
    last = len(lm.model.model.layers) - 1

    def apart() -> float:
        pairs = [
            [outputs_of(lm, model, last, document, {}) for model in (lm.model, unedited)] for document in DOCUMENTS
        ]
        return sum(float((one - other).detach().square().mean()) for one, other in pairs)

    plain = "aa-svd:keep.param_fraction=0.5,centred=true,bias=true"
    lm.apply(parse_recipe(plain), documents)
    before = apart()
    lm.undo()
    applied = lm.apply(
        parse_recipe(f"{plain},{HEAL.replace(str(STEPS), str(60)).replace(str(0.01), str(0.001), 1)}"), documents
    )
    assert apart() < 0.8 * before
    ranks = {record.name: record.rank_after for record in applied.records if record.method == "anchored"}
    assert {record.name: record.rank_after for record in applied.records if record.method == "heal"} == ranks


def test_dense_edits_and_factors_in_turn(make_lm) -> None:
    lm = make_lm("llama")
    for recipe in (
        f"magnitude:matrices=[up_proj],density=0.5,{HEAL}",
        f"svd:matrices=[mlp],{HEAL},heal.order=left-then-right,heal.factors=lora,heal.rank=2",
    ):
        applied = lm.apply(parse_recipe(recipe), documents)
        assert all(row["last_loss"] < row["first_loss"] for row in applied.log) and applied.log
        lm.undo()


def test_the_control_is_trained_alike(make_lm) -> None:
    lm = make_lm("llama")
    recipe = parse_recipe(RECIPE)
    applied = lm.apply(recipe, documents)
    receipt = {"matrices": [record.model_dump() for record in applied.records], "searches": []}
    lm.undo()
    control = control_recipe("random-subspace", recipe, receipt)
    assert control.steps[-1] == recipe.steps[-1]
    trained = lm.apply(control, documents)
    assert [row["stage"] for row in trained.log] == [row["stage"] for row in applied.log]


def test_an_interrupted_healing_goes_on_to_the_very_same_weights(make_lm, tmp_path: Path, monkeypatch) -> None:
    lm = make_lm("llama")
    whole = lm.apply(parse_recipe(RECIPE), documents)
    digest = lm.weights.digest()
    lm.undo()
    through, left = block_healing.call_of, [0]

    def counted(lm, batch):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return through(lm, batch)

    monkeypatch.setattr(block_healing, "call_of", counted)
    left[0] = STEPS + 3
    with pytest.raises(KeyboardInterrupt):
        lm.apply(parse_recipe(RECIPE), documents, None, ResumeState(tmp_path))
    lm.undo()
    left[0] = 10 * STEPS
    resumed = lm.apply(parse_recipe(RECIPE), documents, None, ResumeState(tmp_path))
    layers = len(lm.model.model.layers)
    assert lm.weights.digest() == digest and resumed.log == whole.log
    assert 10 * STEPS - left[0] == (layers - 1) * STEPS, "the first layer is not trained again"


def test_a_rate_that_is_too_large_is_told(make_lm) -> None:
    recipe = parse_recipe(RECIPE.replace("learning_rate=0.01", "learning_rate=1e30"))
    with pytest.raises(VariantFailed, match="not finite in step .* lower its learning_rate"):
        make_lm("llama").apply(recipe, documents)


def test_matrices_outside_the_layers_are_refused(make_lm) -> None:
    recipe = parse_recipe(f"svd:matrices=[model.embed_tokens.weight],keep.rank=2,{HEAL}")
    with pytest.raises(UserError, match=r"heal.loss=blocks trains one layer after another.*set heal.loss=text"):
        make_lm("llama").apply(recipe, documents)
