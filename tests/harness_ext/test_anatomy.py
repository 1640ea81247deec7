"""Roles against the forward pass: each slice must be exactly the rows or columns that the model uses for it."""

from __future__ import annotations

import pytest
import torch

from harness_ext.anatomy import GROUPS, ROLES, Anatomy
from harness_ext.errors import UserError
from harness_ext.recipe import Step
from harness_ext.weights import Weights

LLAMA = {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 24}
LLAMA_SHAPES = {
    f"model.layers.{layer}.{name}.weight": shape
    for layer in range(12)
    for name, shape in {
        "self_attn.q_proj": (24, 24), "self_attn.k_proj": (12, 24), "self_attn.v_proj": (12, 24), "self_attn.o_proj": (24, 24),
        "mlp.gate_proj": (40, 24), "mlp.up_proj": (40, 24), "mlp.down_proj": (24, 40), "input_layernorm": (24,),
    }.items()
}


def step(matrices: list[str], layers: list[int | str] | None = None, *, per_head: bool = False) -> Step:
    return Step(method="identity", matrices=tuple(matrices), layers=None if layers is None else tuple(layers), per_head=per_head)


def chosen(*arguments, **options) -> list[tuple[int | None, str | None]]:
    return [(matrix.layer, matrix.role) for matrix in Anatomy(LLAMA, LLAMA_SHAPES).select(step(*arguments, **options))]


def test_groups_cover_the_roles() -> None:
    assert {role for _, role in chosen(["all"])} == set(ROLES)
    assert {role for _, role in chosen(["attn"])} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert {role for _, role in chosen(["mlp"])} == {"gate_proj", "up_proj", "down_proj"}
    assert set(GROUPS) == {"attn", "mlp", "experts", "all"}


@pytest.mark.parametrize(
    ("layers", "expected"),
    [([0], [0]), ([-1], [11]), (["-3:"], [9, 10, 11]), (["2:4", 11], [2, 3, 11]), ([":2"], [0, 1]), (["3"], [3]), (["-2:-1"], [10])],
)
def test_layers_take_numbers_negatives_and_ranges(layers: list[int | str], expected: list[int]) -> None:
    assert [layer for layer, _ in chosen(["q_proj"], layers)] == expected


def test_globs_name_parameters_and_keep_their_roles() -> None:
    assert chosen(["model.layers.1.*_proj.weight"])[0] == (1, "q_proj")
    assert chosen(["*.11.mlp.up_proj.weight", "up_proj"], [11]) == [(11, "up_proj")]


def test_mistakes_are_reported_together_with_the_nearest() -> None:
    with pytest.raises(UserError) as caught:
        chosen(["up_prj", "lm_head.weight"], [12, "x"])
    text = str(caught.value)
    assert "did you mean 'up_proj'?" in text and "'lm_head.weight' matches no" in text
    assert "12 is outside 0 to 11" in text and "'x' is not a number" in text


def test_an_unknown_architecture_works_through_globs_and_says_so() -> None:
    anatomy = Anatomy({"model_type": "novel"}, {"blocks.0.mixer.weight": (4, 5), "norm.weight": (4,)})
    assert [matrix.parameter for matrix in anatomy.select(step(["*.mixer.weight"]))] == ["blocks.0.mixer.weight"]
    with pytest.raises(UserError, match=r"roles of a novel are unknown: use globs on parameter names, such as 'blocks\.\*\.mixer\.weight'"):
        anatomy.select(step(["q_proj"]))


def test_a_role_that_the_family_lacks_is_named() -> None:
    shapes = {"transformer.h.0.attn.c_attn.weight": (24, 72), "transformer.h.0.mlp.c_fc.weight": (24, 40)}
    with pytest.raises(UserError, match="no gate_proj here; it has q_proj, k_proj, v_proj, up_proj"):
        Anatomy({"model_type": "gpt2", "n_head": 4, "n_embd": 24}, shapes).select(step(["gate_proj"]))


def activations(lm, names: list[str]) -> dict[str, torch.Tensor]:
    """The outputs of modules on a fixed prompt."""
    seen: dict[str, torch.Tensor] = {}
    hooks = [lm.model.get_submodule(name).register_forward_hook(lambda module, args, output, name=name: seen.__setitem__(name, output.detach().clone())) for name in names]
    with torch.no_grad():
        lm.model(torch.arange(3, 15).reshape(2, 6))
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("role", ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"])
@pytest.mark.parametrize("per_head", [False, True])
def test_editing_a_part_moves_exactly_its_outputs(make_lm, family: str, role: str, per_head: bool, tmp_path) -> None:
    """Double one part; its rows of the module's output double (biases aside), and no other row of it moves."""
    lm = make_lm(family, dtype="float64")
    weights = Weights(lm.model, tmp_path)
    parts = weights.anatomy.select(step([role], [1], per_head=per_head))
    part = parts[-1]
    before = activations(lm, [part.module])[part.module]
    weights.replace(part, 2 * weights.read(part))
    after = activations(lm, [part.module])[part.module]
    weights.restore()
    moved = (after - before).abs().amax(dim=(0, 1)) > 1e-9
    if part.columns is not None:
        assert bool(moved.all())  # a head of o_proj is a range of its inputs, and reaches every output
        return
    rows = torch.zeros(part.full_shape[0], dtype=torch.bool)
    for start, stop in part.rows or ((0, part.full_shape[0]),):
        rows[start:stop] = True
    assert torch.equal(moved, rows)


@pytest.mark.parametrize("role", ["q_proj", "k_proj", "v_proj"])
def test_a_head_of_a_role_is_the_head_that_attention_uses(make_lm, family: str, role: str, tmp_path) -> None:
    """Removing one head's values changes only the columns of o_proj's input that belong to the query heads it serves."""
    lm = make_lm(family, dtype="float64")
    weights = Weights(lm.model, tmp_path)
    heads = weights.anatomy.select(step([role], [0], per_head=True))
    (output,) = weights.anatomy.select(step(["o_proj"], [0]))
    inputs: list[torch.Tensor] = []
    lm.model.get_submodule(output.module).register_forward_pre_hook(lambda module, args: inputs.append(args[0].detach().clone()))
    tokens = torch.arange(3, 15).reshape(2, 6)
    with torch.no_grad():
        lm.model(tokens)
        weights.replace(heads[1], -0.5 * weights.read(heads[1]))
        lm.model(tokens)
    moved = (inputs[1] - inputs[0]).abs().amax(dim=(0, 1)) > 1e-9
    serves = 4 // len(heads)
    expected = torch.zeros(24, dtype=torch.bool)
    expected[serves * 6 : 2 * serves * 6] = True
    assert torch.equal(moved, expected)


def test_a_key_names_its_part(make_lm, family: str, tmp_path) -> None:
    weights = Weights(make_lm(family).model, tmp_path)
    for part in weights.anatomy.select(step(["all"], per_head=True)):
        assert weights.anatomy.select(step([part.key])) == (part,)
