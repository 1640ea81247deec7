"""Components in whole models: what is written, counted and put back, and which models are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from harness_ext.calibration.sinks import SEEN
from harness_ext.editing.controls import NoControl, control_recipe
from harness_ext.editing.plan import plan
from harness_ext.errors import UserError
from harness_ext.model.checkpoint import read_checkpoint
from harness_ext.recipe.recipe import Recipe, parse_recipe, recipe_from
from tests.harness_ext.conftest import UNROTATED
from tests.harness_ext.search.plain_search import documents_for, drawing
from tests.tiny_models import outputs

UNITS, LEFT = 40, 32


def matrices_of(lm: Any) -> dict[str, torch.Tensor]:
    return {matrix.key: lm.weights.values(matrix) for matrix in lm.weights.layout.matrices}


def sliced(lm: Any) -> int:
    """The parameters of the model without the rows, columns and biases that are zero because units went."""
    count = sum(value.numel() for value in lm.model.parameters())
    for matrix in lm.weights.layout.matrices:
        value, bias = lm.weights.values(matrix), lm.weights.bias_of(matrix)
        if matrix.role in ("gate_proj", "up_proj"):
            gone = int((~value.any(1)).sum())
            count -= gone * (value.shape[1] + (bias is not None))
        if matrix.role == "down_proj":
            count -= int((~value.any(0)).sum()) * value.shape[0]
    return count


@pytest.mark.parametrize(
    "family", ["llama", "gpt2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("opt", "gpt_neox", "phi3"))]
)
def test_units_leave_every_matrix_of_the_mlp_and_come_back(make_lm: Any, family: str) -> None:
    lm = make_lm(family)
    before, logits, digest = matrices_of(lm), outputs(lm.model), lm.weights.digest()
    applied = lm.apply(parse_recipe("modegpt-mlp"), drawing(documents_for(lm, 8)))
    assert applied.losses[0]["after"] is not None and not torch.equal(outputs(lm.model), logits)
    for layer in range(lm.weights.layout.layers):
        own = {matrix.role: matrix for matrix in lm.weights.layout.matrices if matrix.layer == layer}
        kept = lm.weights.values(own["down_proj"]).any(0)
        assert int(kept.sum()) == LEFT
        for role in {"gate_proj", "up_proj"} & own.keys():
            value, bias = lm.weights.values(own[role]), lm.weights.bias_of(own[role])
            assert torch.equal(value, before[own[role].key] * kept[:, None])
            assert bias is None or torch.equal(bias.ne(0), kept)
    for record in applied.records:
        reads = record.role == "down_proj"
        assert (record.columns_kept, record.rows_kept) == ((LEFT, None) if reads else (None, LEFT))
        assert record.parameters_after * UNITS == record.parameters_before * LEFT and record.decomposition == (
            "refitted" if reads else None
        )
    assert lm.totals()["parameters_after"] == sliced(lm)
    assert any("widths changed" in note and f"{LEFT} of {UNITS}" in note for note in applied.notes)
    lm.undo()
    assert lm.weights.digest() == digest and torch.equal(outputs(lm.model), logits)


def _steps(*steps: dict[str, Any]) -> Recipe:
    own = [{"method": "mlp_select", "matrices": ["down_proj"], **step} for step in steps]
    return recipe_from({"name": "several", "steps": own}, origin="several")


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "steps",
    [
        ({"unit_fraction": 0.8, "ranking": "random"}, {"unit_fraction": 0.6, "ranking": "random", "seed": 1}),
        ({"unit_fraction": 0.5}, {"unit_fraction": 0.8, "ranking": "random", "seed": 2, "refit": False}),
        ({"unit_fraction": 0.5}, {"unit_fraction": 1.0}),
        ({"unit_fraction": 0.8}, {"unit_fraction": 0.5}, {"unit_fraction": 0.9, "ranking": "random"}),
    ],
)
def test_units_that_either_of_two_steps_takes_are_counted_once(make_lm: Any, family: str, steps: Any) -> None:
    """As many numbers as the model has without the rows and columns that are zero in it."""
    lm = make_lm(family)
    digest = lm.weights.digest()
    applied = lm.apply(_steps(*steps), drawing(documents_for(lm, 6)))
    assert lm.totals()["parameters_after"] == sliced(lm) < lm.totals()["parameters_before"]
    last = {record.name: record for record in applied.records if record.role == "down_proj"}
    for matrix in lm.weights.layout.matrices:
        if matrix.role == "down_proj":
            left = int(lm.weights.values(matrix).any(0).sum())
            assert last[matrix.parameter].columns_kept == left <= UNITS * min(step["unit_fraction"] for step in steps)
    lm.undo()
    assert lm.weights.digest() == digest


def held(lm: Any) -> int:
    """The parameters of the model, of each matrix without rows and columns of zeros, and as two factors of the rank
    that its numbers have where that is smaller.
    """
    count = sliced(lm)
    for matrix in lm.weights.layout.matrices:
        value = lm.weights.values(matrix)
        value = value[value.any(1)][:, value.any(0)].double()
        rank = int(torch.linalg.matrix_rank(value, rtol=1e-5))
        count -= value.numel() - min(value.numel(), rank * sum(value.shape))
    return count


_RANKS = {"method": "truncate_svd", "matrices": ["up_proj", "gate_proj"], "keep": {"rank": 3}}
_WIDER = {"method": "truncate_svd", "matrices": ["mlp"], "keep": {"rank": 6}}
_HALF = {"unit_fraction": 0.5}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "steps",
    [
        (_RANKS, _HALF),
        (_HALF, _RANKS),
        (_RANKS, _WIDER),
        (_WIDER, _HALF, _RANKS),
        (_RANKS, {"method": "identity", "matrices": ["mlp"]}),
    ],
)
def test_a_later_step_gives_nothing_back_that_an_earlier_one_left_out(make_lm: Any, family: str, steps: Any) -> None:
    """In whatever order, as many numbers as the matrices have that are there in the end, and a plan says no fewer."""
    lm = make_lm(family)
    if family == "gpt2":
        steps = [step | {"matrices": ["up_proj"]} if step is _RANKS else step for step in steps]
    recipe = _steps(*steps)
    lm.apply(recipe, drawing(documents_for(lm, 6)))
    assert lm.totals()["parameters_after"] == held(lm) < lm.totals()["parameters_before"]
    planned = plan(recipe, read_checkpoint(lm.loaded_from))
    assert planned.is_upper_bound and planned.parameters_after >= held(lm)


def test_what_a_later_step_makes_of_full_rank_counts_as_such(make_lm: Any) -> None:
    lm = make_lm("llama")
    lm.apply(_steps(_RANKS, {"method": "magnitude", "matrices": ["mlp"], "density": 0.5}), drawing([]))
    assert lm.totals()["parameters_after"] == lm.totals()["parameters_before"]


def test_a_rank_stays_where_the_stored_numbers_are_rounded(make_lm: Any) -> None:
    lm = make_lm("llama", dtype="bfloat16")
    applied = lm.apply(_steps(_RANKS, _WIDER), drawing([]))
    last = {record.name: record.rank_after for record in applied.records}
    assert {rank for name, rank in last.items() if "down_proj" not in name} == {3}
    assert {rank for name, rank in last.items() if "down_proj" in name} == {6}


def test_a_unit_that_was_zero_before_is_no_unit_that_went(make_lm: Any) -> None:
    lm = make_lm("llama")
    first = next(matrix for matrix in lm.weights.layout.matrices if matrix.role == "up_proj")
    with torch.no_grad():
        lm.model.get_parameter(first.parameter)[:3] = 0.0
    applied = lm.apply(
        _steps({"unit_fraction": 1.0}, {"unit_fraction": 0.95, "seed": 3, "ranking": "random"}),
        drawing(documents_for(lm, 6)),
    )
    kept = {record.rows_kept for record in applied.records if record.name == first.parameter}
    assert kept == {None, int(0.95 * UNITS)}


@pytest.mark.parametrize("steps", [(0.5, 0.8), (0.8, 0.5), (0.6, 0.6)])
def test_a_plan_of_two_steps_counts_the_larger_share(make_lm: Any, steps: Any) -> None:
    lm = make_lm("llama")
    recipe = _steps(*({"unit_fraction": share} for share in steps))
    lm.apply(recipe, drawing(documents_for(lm, 6)))
    assert plan(recipe, read_checkpoint(lm.loaded_from)).parameters_after == lm.totals()["parameters_after"]


def test_heads_that_either_of_two_steps_takes_are_counted_once(make_lm: Any) -> None:
    lm = make_lm("llama")
    steps = [{**step, "seed": seed} for seed, one in enumerate(("random", "random")) for step in _masked(one)]
    lm.apply(recipe_from({"name": "several", "steps": steps}, origin="several"), drawing(documents_for(lm, 6)))
    size, gone = sum(value.numel() for value in lm.model.parameters()), 0
    for matrix in lm.weights.layout.matrices:
        value = lm.weights.values(matrix)
        gone += int((~value.any(0 if matrix.role in ("o_proj", "down_proj") else 1)).sum()) * (
            value.shape[0] if matrix.role in ("o_proj", "down_proj") else value.shape[1]
        )
    assert lm.totals()["parameters_after"] == size - gone < size


def _masked(start: str) -> list[dict[str, Any]]:
    masks = {"start": start, "steps": 0, "unit_fraction": 0.7}
    return [{"method": "policy_prune", "matrices": ["o_proj", "down_proj"], "masks": masks}]


def test_a_plan_counts_what_the_receipt_counts(make_model: Any, make_lm: Any) -> None:
    for family in ("llama", "gpt2"):
        lm = make_lm(family)
        recipe = parse_recipe("a3-mlp:unit_fraction=0.5")
        lm.apply(recipe, drawing(documents_for(lm, 4)))
        planned = plan(recipe, read_checkpoint(str(make_model(family))))
        assert planned.parameters_after == lm.totals()["parameters_after"]
        assert planned.bytes_after == lm.totals()["bytes_after"]


def test_everything_kept_is_the_model_itself(make_lm: Any) -> None:
    lm = make_lm("gpt2")
    digest = lm.weights.digest()
    applied = lm.apply(parse_recipe("obs-mlp:unit_fraction=1.0"), drawing(documents_for(lm, 4)))
    assert lm.weights.digest() == digest and not applied.notes
    assert all(one.parameters_after == one.parameters_before for one in applied.records)


def test_units_are_chosen_again_layer_by_layer_where_a_step_is_sequential(make_lm: Any) -> None:
    lm = make_lm("llama")
    documents = documents_for(lm, 8)
    found = []
    for sequential in ("false", "true"):
        lm.apply(parse_recipe(f"modegpt-mlp:unit_fraction=0.5,sequential={sequential}"), drawing(documents))
        found.append(matrices_of(lm))
        lm.undo()
    same = [bool(torch.equal(value, found[1][key])) for key, value in found[0].items() if "mlp" in key]
    assert any(same) and not all(same)


def test_half_precision_models_keep_their_dtype(make_lm: Any) -> None:
    lm = make_lm("llama", dtype="bfloat16")
    lm.apply(parse_recipe("modegpt-mlp"), drawing(documents_for(lm, 4)))
    assert {value.dtype for value in lm.model.parameters()} == {torch.bfloat16}
    assert bool(torch.isfinite(outputs(lm.model)).all())


@pytest.mark.parametrize(
    ("family", "matrices", "why"),
    [
        ("mixtral", "[down_proj]", "units of experts cannot be chosen"),
        ("llama", "[all]", r"edits the MLP of a layer as a whole.*set matrices=\[down_proj\]"),
        ("gpt2", "[up_proj]", r"set matrices=\[down_proj\]"),
    ],
)
def test_what_is_no_mlp_of_its_own_is_refused(make_lm: Any, family: str, matrices: str, why: str) -> None:
    lm = make_lm(family)
    with pytest.raises(UserError, match=why):
        lm.apply(parse_recipe(f"modegpt-mlp:matrices={matrices}"), drawing(documents_for(lm, 2)))


@pytest.mark.parametrize("family", ["llama", pytest.param("gpt_neox", marks=pytest.mark.slow)])
def test_values_leave_heads_and_a_plan_counts_them(make_lm: Any, family: str) -> None:
    lm = make_lm(family)
    recipe, digest = parse_recipe("a3-ov:unit_fraction=0.5"), lm.weights.digest()
    applied = lm.apply(recipe, drawing(documents_for(lm, 6)))
    heads = lm.weights.layout.heads
    for record in applied.records:
        queries = record.role == "o_proj"
        kept = record.columns_kept if queries else record.rows_kept
        assert kept == (heads.queries if queries else heads.key_values) * (heads.width // 2)
    size = lm.totals()["parameters_after"]
    planned = plan(recipe, read_checkpoint(lm.loaded_from))
    assert planned.parameters_after == size < planned.parameters
    lm.undo()
    assert lm.weights.digest() == digest
    # All of them: the very model.
    lm.apply(parse_recipe("a3-ov:unit_fraction=1.0"), drawing(documents_for(lm, 6)))
    assert lm.weights.digest() == digest


@pytest.mark.parametrize("family", ["llama", "gpt2", pytest.param("opt", marks=pytest.mark.slow)])
def test_values_mixed_by_themselves_leave_heads_and_a_plan_counts_them(make_lm: Any, family: str) -> None:
    lm = make_lm(family)
    recipe, digest, logits = parse_recipe("modegpt-vo:unit_fraction=0.5"), lm.weights.digest(), outputs(lm.model)
    before = sum(value.numel() for value in lm.model.parameters())
    applied = lm.apply(recipe, drawing(documents_for(lm, 6)))
    heads, lost = lm.weights.layout.heads, 0
    left = torch.arange(heads.width) < heads.width // 2
    for matrix in [one for one in lm.weights.layout.matrices if one.role in ("v_proj", "o_proj")]:
        value, made = lm.weights.values(matrix), matrix.role == "v_proj"
        stays = left.tile(heads.key_values if made else heads.queries)
        assert not (value[~stays] if made else value[:, ~stays]).any()
        lost += int((~stays).sum()) * value.shape[1 if made else 0]
        bias = lm.weights.bias_of(matrix) if made else None
        if bias is not None:
            assert not bias[~stays].any()
            lost += int((~stays).sum())
    assert {(one.role, one.rows_kept is None, one.columns_kept is None) for one in applied.records} == {
        ("v_proj", False, True),
        ("o_proj", True, False),
    }
    size = lm.totals()["parameters_after"]
    assert size == before - lost == plan(recipe, read_checkpoint(lm.loaded_from)).parameters_after
    assert not torch.equal(outputs(lm.model), logits)
    lm.undo()
    assert lm.weights.digest() == digest


def test_the_bias_of_keys_counts_in_what_coordinates_are_chosen_by(make_lm: Any) -> None:
    lm = make_lm("gpt2")
    keys = next(one for one in lm.weights.layout.matrices if (one.role, one.layer) == ("k_proj", 0))
    ((start, _),) = keys.rows
    with torch.no_grad():
        lm.model.get_parameter(keys.parameter)[:, start] = 0.0
        lm.model.get_parameter(keys.bias)[start] = 100.0
        lm.model.get_parameter(keys.parameter)[0, start] = 1e-6
    lm.apply(parse_recipe("modegpt-qk:unit_fraction=0.25"), drawing(documents_for(lm, 4)))
    assert lm.weights.values(keys)[0].any()


def test_every_matrix_may_have_a_share_of_its_own(make_lm: Any) -> None:
    lm = make_lm("llama")
    first, second, *_ = [one.key for one in lm.weights.layout.matrices if one.role == "down_proj"]

    def recipe(shares: Any) -> Any:
        step = {"method": "mlp_select", "matrices": [first, second], "unit_fraction": shares}
        return recipe_from({"name": "by-layer", "steps": [step]}, origin="by-layer")

    wanted = recipe({first: 0.5, second: 1.0})
    applied = lm.apply(wanted, drawing(documents_for(lm, 4)))
    kept = {one.name: one.columns_kept for one in applied.records if one.role == "down_proj"}
    assert list(kept.values()) == [UNITS // 2, None]
    assert plan(wanted, read_checkpoint(lm.loaded_from)).parameters_after == lm.totals()["parameters_after"]
    lm.undo()
    with pytest.raises(UserError, match="unit_fraction has no share for"):
        lm.apply(recipe({first: 0.5}), drawing(documents_for(lm, 4)))
    for wrong in ({first: 1.5}, 0, "all", [0.5]):
        with pytest.raises(UserError, match="unit_fraction: give a share above 0 and at most 1, or a mapping"):
            recipe(wrong)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "phi", "gpt_neox"])
def test_coordinates_leave_queries_and_keys_and_a_plan_counts_them(make_lm: Any, family: str) -> None:
    lm = make_lm(family)
    recipe, digest, logits = parse_recipe("modegpt-qk:unit_fraction=0.5"), lm.weights.digest(), outputs(lm.model)
    applied = lm.apply(recipe, drawing(documents_for(lm, 6)))
    heads, own = lm.weights.layout.heads, {one.role: one for one in lm.weights.layout.matrices if one.layer == 0}
    # Half of the pairs that turn, and half of what does not: of 4 and 2 where a part of 6 turns.
    left = {"llama": heads.width // 4 * 2, "gpt2": heads.width // 2}.get(family, 2 + 1)
    for record in applied.records:
        assert record.rows_kept == left * (heads.queries if record.role == "q_proj" else heads.key_values)
        lost, biased = record.shape[0] - record.rows_kept, family not in ("llama", "gptj")
        assert record.parameters_before - record.parameters_after == lost * (record.shape[1] + biased)
        assert record.bias_shift == biased
    keys = lm.weights.values(own["k_proj"]).any(1).reshape(heads.key_values, heads.width)
    queries = lm.weights.values(own["q_proj"]).any(1).reshape(heads.key_values, -1, heads.width)
    assert torch.equal(queries, keys[:, None].expand_as(queries)) and bool((keys.sum(1) == left).all())
    if family == "llama":
        assert torch.equal(*keys.chunk(2, dim=1))
    assert plan(recipe, read_checkpoint(lm.loaded_from)).parameters_after == lm.totals()["parameters_after"]
    assert not torch.equal(outputs(lm.model), logits)
    lm.undo()
    assert lm.weights.digest() == digest


@pytest.mark.parametrize("family", ["llama", "gptj", "phi", "gpt_neox"])
def test_scores_of_the_kept_coordinates_are_those_that_a_smaller_head_has(make_lm: Any, family: str) -> None:
    """Dropped pairs add nothing to any score at any position: with them the two models would differ."""
    lm = make_lm(family)
    lm.apply(parse_recipe("modegpt-qk:unit_fraction=0.5"), drawing(documents_for(lm, 6)))
    edited = outputs(lm.model)
    for layer in range(lm.weights.layout.layers):
        own = {one.role: one for one in lm.weights.layout.matrices if one.layer == layer}
        gone = ~lm.weights.values(own["k_proj"]).any(1)
        lm.weights.replace(own["k_proj"], lm.weights.values(own["k_proj"]) + 3.0 * gone[:, None])
    torch.testing.assert_close(outputs(lm.model), edited)


def mixing(fraction: float) -> Recipe:
    """`a3`'s step for queries and keys alone."""
    step = {"method": "mix_scores", "matrices": ["k_proj"], "unit_fraction": fraction, "ridge": 1e-9}
    return recipe_from({"name": "mixed", "steps": [step]}, origin="mixed")


@pytest.mark.parametrize(
    "family",
    ["gpt2", "opt", *(pytest.param(name, marks=pytest.mark.slow) for name in ("bloom", *UNROTATED))],
)
def test_keys_that_need_fewer_dimensions_lose_the_rest_and_no_output_changes(make_lm: Any, family: str) -> None:
    """Where coordinates are chosen instead, it does: what the keys lack lies across all of them."""
    lm = make_lm(family)
    heads, left = lm.weights.layout.heads, lm.weights.layout.heads.width // 2
    for keys in [one for one in lm.weights.layout.matrices if one.role == "k_proj"]:
        random = torch.randn(
            heads.width,
            left,
            generator=torch.Generator().manual_seed(keys.layer),
        )
        flat = torch.block_diag(*[random @ torch.linalg.pinv(random)] * heads.key_values)
        lm.weights.replace(keys, flat @ lm.weights.values(keys))
        if (bias := lm.weights.bias_of(keys)) is not None:
            lm.weights.shift_bias(keys, flat @ bias - bias)
    expected, size = outputs(lm.model), lm.totals()["parameters_before"]
    applied = lm.apply(mixing(left / heads.width), drawing(documents_for(lm, 6)))
    torch.testing.assert_close(outputs(lm.model), expected, rtol=1e-3, atol=1e-4)
    assert {record.rows_kept for record in applied.records} == {left * heads.queries, left * heads.key_values}
    if family == "gpt2":
        assert any(f"c_attn.weight k_proj has {left * heads.key_values} of " in note for note in applied.notes)
    lost = sum(record.parameters_before - record.parameters_after for record in applied.records)
    assert lost > 0 and lm.totals()["parameters_after"] == size - lost
    assert plan(mixing(left / heads.width), read_checkpoint(lm.loaded_from)).parameters_after == size - lost
    lm.undo()
    lm.apply(parse_recipe(f"modegpt-qk:unit_fraction={left / heads.width}"), drawing(documents_for(lm, 6)))
    assert not torch.allclose(outputs(lm.model), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("family", ["gptj", "phi", "gpt_neox"])
def test_keys_that_lack_pairs_and_dimensions_lose_these_where_a_part_turns(make_lm: Any, family: str) -> None:
    lm = make_lm(family)
    heads, rotation = lm.weights.layout.heads, lm.weights.layout.rotation
    assert (heads.width, rotation.width) == (6, 4)
    lacking = torch.eye(6)
    (pair, _), rest = rotation.by_pair(torch.arange(6)[None])[0].tolist(), torch.randn(2, 1)
    lacking[pair] = 0
    lacking[4:, 4:] = rest @ torch.linalg.pinv(rest)
    flat = torch.block_diag(*[lacking] * heads.key_values)
    for keys in [one for one in lm.weights.layout.matrices if one.role == "k_proj"]:
        lm.weights.replace(keys, flat @ lm.weights.values(keys))
        if (bias := lm.weights.bias_of(keys)) is not None:
            lm.weights.shift_bias(keys, flat @ bias - bias)
    expected, size = outputs(lm.model), lm.totals()["parameters_before"]
    applied = lm.apply(mixing(0.5), drawing(documents_for(lm, 6)))
    torch.testing.assert_close(outputs(lm.model), expected, rtol=1e-3, atol=1e-4)
    assert {record.rows_kept for record in applied.records} == {3 * heads.queries, 3 * heads.key_values}
    assert plan(mixing(0.5), read_checkpoint(lm.loaded_from)).parameters_after == lm.totals()["parameters_after"] < size
    lm.undo()
    for recipe in ("a3:unit_fraction=0.5", "modegpt:unit_fraction=0.5"):
        applied = lm.apply(parse_recipe(recipe), drawing(documents_for(lm, 6)))
        edited = outputs(lm.model)
        receipt = {"matrices": [record.to_json() for record in applied.records], "searches": applied.searches}
        size = lm.totals()["parameters_after"]
        lm.undo()
        lm.apply(control_recipe("random-subspace", parse_recipe(recipe), receipt), drawing(documents_for(lm, 6)))
        assert lm.totals()["parameters_after"] == size and not torch.equal(outputs(lm.model), edited)
        lm.undo()


def test_rotated_scores_are_those_of_chosen_coordinates(make_lm: Any) -> None:
    lm = make_lm("llama")
    documents = documents_for(lm, 6)
    lm.apply(parse_recipe("modegpt-qk:unit_fraction=0.5"), drawing(documents))
    expected = lm.weights.digest()
    lm.undo()
    lm.apply(mixing(0.5), drawing(documents))
    assert lm.weights.digest() == expected


def test_a_control_mixes_as_many_dimensions_in_random_directions(make_lm: Any) -> None:
    lm = make_lm("gpt2")
    documents = documents_for(lm, 6)
    applied = lm.apply(mixing(0.5), drawing(documents))
    size, expected = lm.totals()["parameters_after"], outputs(lm.model)
    receipt = {"matrices": [record.to_json() for record in applied.records], "searches": []}
    lm.undo()
    lm.apply(control_recipe("random-subspace", mixing(0.5), receipt), drawing(documents))
    assert lm.totals()["parameters_after"] == size and not torch.equal(outputs(lm.model), expected)


@pytest.mark.parametrize(("family", "why"), [("bamba", "is not known here"), ("qwen3", "are normalised")])
def test_scores_that_a_selection_would_change_otherwise_are_refused(make_lm: Any, family: str, why: str) -> None:
    lm = make_lm(family)
    with pytest.raises(UserError, match=why):
        lm.apply(parse_recipe("modegpt-qk"), drawing(documents_for(lm, 2)))


@pytest.mark.parametrize(
    ("family", "settings", "recipe", "why"),
    [
        ("mpt", {"attn_config": {"clip_qkv": 6}}, "modegpt-vo", r"values off at 6 \(clip_qkv\)"),
        ("mpt", {"attn_config": {"clip_qkv": 6}}, "a3-ov", r"values off at 6 \(clip_qkv\)"),
        ("mpt", {"attn_config": {"clip_qkv": 6}}, "a3", r"values off at 6 \(clip_qkv\)"),
        ("llama", {"clip_qkv": 8.0}, "a3", r"values off at 8 \(clip_qkv\)"),
        ("llama", {"activation_sparsity_pattern": [0.95, 0.0]}, "modegpt-mlp", "how they compare with all others"),
        ("llama", {"activation_sparsity_pattern": 0.5}, "policy-prune", "how they compare with all others"),
    ],
)
def test_settings_that_tie_units_to_each_other_are_refused(
    make_model: Any, family: str, settings: dict[str, Any], recipe: str, why: str
) -> None:
    folder = make_model(family)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))
    with pytest.raises(UserError, match=why):
        plan(parse_recipe(recipe), read_checkpoint(str(folder)))
    unset = dict.fromkeys(settings)
    (folder / "config.json").write_text(json.dumps(config | unset))
    plan(parse_recipe(recipe), read_checkpoint(str(folder)))


def test_its_control_draws_as_many_units_at_random(make_lm: Any) -> None:
    lm, recipe = make_lm("llama"), parse_recipe("modegpt-mlp")
    documents = documents_for(lm, 8)
    applied = lm.apply(recipe, drawing(documents))
    own, receipt = matrices_of(lm), {"matrices": [record.to_json() for record in applied.records], "searches": []}
    size = lm.totals()["parameters_after"]
    lm.undo()
    control = control_recipe("random-subspace", recipe, receipt)
    assert (control.steps[0].ranking, control.steps[0].refit) == ("random", True)  # type: ignore[attr-defined]
    assert control.control == "random-subspace" and control.control_of == recipe.recipe_id
    lm.apply(control, drawing(documents))
    assert lm.totals()["parameters_after"] == size
    assert not all(torch.equal(value.any(0), own[key].any(0)) for key, value in matrices_of(lm).items())
    lm.undo()
    with pytest.raises(NoControl, match="takes whole units away"):
        control_recipe("bottom-k", recipe, receipt)
    assert {step.method for step in control_recipe("identity", recipe, receipt).steps} == {"identity"}
    assert control_recipe("noise", recipe, receipt).steps[0].method == "noise"


def test_sinks_are_counted_in_what_units_are_chosen_by(make_lm: Any) -> None:
    from harness_ext.methods import registered_methods
    from harness_ext.methods.registry import sink_use

    assert sink_use(registered_methods()["mlp_select"].statistics) == {"input_second_moment_by_halves": "counted"}
    assert SEEN not in registered_methods()["mlp_select"].statistics


@pytest.mark.slow
def test_a_stored_receipt_says_how_many_rows_and_columns_are_left(demo_run: Any, tmp_path: Path) -> None:
    ran = demo_run("--recipe", "a3-mlp:calibration.samples=8", "--output_path", tmp_path / "out")
    assert ran.code == 0 and "of the parameters kept without what was taken away" in ran.err + ran.out
    stored = [json.loads(path.read_text()) for path in (tmp_path / "out").rglob("receipt.json")]
    (receipt,) = [one for one in stored if one["matrices"]]
    left = {record["role"]: (record.get("rows_kept"), record.get("columns_kept")) for record in receipt["matrices"]}
    assert left == {"down_proj": (None, 409), "gate_proj": (409, None), "up_proj": (409, None)}
