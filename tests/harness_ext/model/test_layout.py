"""Choosing matrices by the words of a recipe. That each slice is what the forward pass uses is checked family by
family, in test_architectures.py.
"""

from __future__ import annotations

import pytest

from harness_ext.errors import UserError
from harness_ext.model.architectures import architecture_named
from harness_ext.model.layout import GROUPS, ROLES, Layout
from harness_ext.model.weights import Weights
from harness_ext.recipe.schema import Step

LLAMA = {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 24}
LLAMA_SHAPES = {
    f"model.layers.{layer}.{name}.weight": shape
    for layer in range(12)
    for name, shape in {
        "self_attn.q_proj": (24, 24),
        "self_attn.k_proj": (12, 24),
        "self_attn.v_proj": (12, 24),
        "self_attn.o_proj": (24, 24),
        "mlp.gate_proj": (40, 24),
        "mlp.up_proj": (40, 24),
        "mlp.down_proj": (24, 40),
        "input_layernorm": (24,),
    }.items()
}


def step(matrices: list[str], layers: list[int | str] | None = None, *, per_head: bool = False) -> Step:
    return Step(
        method="identity", matrices=tuple(matrices), layers=None if layers is None else tuple(layers), per_head=per_head
    )


def chosen(*arguments, **options) -> list[tuple[int | None, str | None]]:
    return [(matrix.layer, matrix.role) for matrix in Layout(LLAMA, LLAMA_SHAPES).select(step(*arguments, **options))]


def test_groups_cover_the_roles() -> None:
    assert {role for _, role in chosen(["attn"])} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert {role for _, role in chosen(["mlp"])} == {"gate_proj", "up_proj", "down_proj"}
    assert set(GROUPS) == {"attn", "mlp", "mixer", "experts", "all"}


@pytest.mark.parametrize("model_type", ["llama", "deepseek_v3", "lfm2"])
def test_every_role_is_in_one_of_attn_mlp_and_mixer_and_in_all(model_type: str) -> None:
    architecture = architecture_named(model_type)
    assert architecture is not None
    shapes = {f"model.layers.0.{slot.name}.weight": (24, 24) for slot in architecture.slots}
    layout = Layout({**LLAMA, "model_type": model_type}, shapes)
    groups = [{matrix.role for matrix in layout._matching(group)} for group in ("attn", "mlp", "mixer")]
    assert sum(map(len, groups)) == len(layout.roles) and set().union(*groups) == set(layout.roles)
    assert {matrix.role for matrix in layout.select(step(["all"]))} == set(layout.roles)
    assert set(layout.roles) <= set(ROLES)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([0], [0]),
        ([-1], [11]),
        (["-3:"], [9, 10, 11]),
        (["2:4", 11], [2, 3, 11]),
        ([":2"], [0, 1]),
        (["3"], [3]),
        (["-2:-1"], [10]),
    ],
)
def test_layers_take_numbers_negatives_and_ranges(layers: list[int | str], expected: list[int]) -> None:
    assert [layer for layer, _ in chosen(["q_proj"], layers)] == expected


def test_globs_name_parameters_and_keep_their_roles() -> None:
    assert chosen(["model.layers.1.*_proj.weight"])[0] == (1, "q_proj")
    assert chosen(["*.11.mlp.up_proj.weight", "up_proj"], [11]) == [(11, "up_proj")]


def test_mistakes_are_reported_together_with_the_nearest() -> None:
    with pytest.raises(UserError) as caught:
        chosen(["up_prj", "lm_head.weight"], [12])
    text = str(caught.value)
    assert "did you mean 'up_proj'?" in text and "'lm_head.weight' matches no" in text
    assert "12 is outside 0 to 11" in text


@pytest.mark.parametrize("given", ["1:1", "5:2", "12:14"])
def test_a_range_that_holds_no_layer_is_refused(given: str) -> None:
    with pytest.raises(UserError, match=f"layers: '{given}' holds none of 0 to 11: a range ends before its second"):
        chosen(["up_proj"], [given])


def test_an_unknown_architecture_works_through_globs_and_says_so() -> None:
    layout = Layout({"model_type": "novel"}, {"blocks.0.mixer.weight": (4, 5), "norm.weight": (4,)})
    assert [matrix.parameter for matrix in layout.select(step(["*.mixer.weight"]))] == ["blocks.0.mixer.weight"]
    with pytest.raises(
        UserError,
        match=r"roles of a novel are unknown: use globs on parameter names, such as 'blocks\.\*\.mixer\.weight'",
    ):
        layout.select(step(["q_proj"]))


def test_a_role_that_the_family_lacks_is_named() -> None:
    shapes = {"transformer.h.0.attn.c_attn.weight": (24, 72), "transformer.h.0.mlp.c_fc.weight": (24, 40)}
    with pytest.raises(UserError, match="no gate_proj here; it has q_proj, k_proj, v_proj, up_proj"):
        Layout({"model_type": "gpt2", "n_head": 4, "n_embd": 24}, shapes).select(step(["gate_proj"]))


def test_a_key_names_its_part(make_lm, family: str, tmp_path) -> None:
    weights = Weights(make_lm(family).model, tmp_path)
    for part in weights.layout.select(step(["all"], per_head=True)):
        assert weights.layout.select(step([part.key])) == (part,)
