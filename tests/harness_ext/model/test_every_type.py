"""Every causal model that transformers knows, as a tiny one: its roles, declared or inferred, and what a recipe does.

What a role is, the forward pass says, as in `test_architectures`: outputs are disturbed, and where the attention or the
MLP shows it tells query from key from value, one head from another, and gate from up.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch

import harness_ext as recipes
from harness_ext.cli.plan import plan_lines
from harness_ext.editing.plan import plan
from harness_ext.errors import UserError
from harness_ext.model.architectures import ATTENTION, MLP
from harness_ext.model.built import module_classes, shared_parameters
from harness_ext.model.checkpoint import Checkpoint, StoredTensor
from harness_ext.model.digests import model_digest
from harness_ext.model.inference import infer
from harness_ext.model.layout import Layout, Matrix
from harness_ext.model.renames import as_loaded
from harness_ext.recipe.recipe import parse_recipe
from harness_ext.recipe.schema import Step

from ... import architecture_table
from ...tiny_models import NOT_BUILT, causal_types, outputs, tiny_config, tiny_model

TOKENS = torch.arange(3, 9)
# One of each kind in the quick tests: heads that are joined, transposed weights, names of another convention, a
# recurrence beside attention, fused matrices in four parts.
QUICK = ("olmo2", "bert", "recurrent_gemma", "codegen")
# A learned sink takes a share of what the first position attends to, so that it feels its own key.
SINKS = ("flint", "granite_swa", "gpt_oss", "granitemoe_swa", "inkling2_text", "mimo_v2_flash")
# Values pass a filter that depends on them.
FILTERED = ("inkling2_text",)
# The middle of the MLP is normalised and rounded, so that nothing in it is straight.
BENT = ("bitnet",)
# Positions before the prompt, or several streams of it, that attend in ways of their own.
OWN_STREAMS = ("cpmant", "prophetnet")
# Recipes that cannot learn of a type, and what they say.
LEARNS_NOTHING = {
    "cpmant": dict.fromkeys(("asvd", "fwsvd"), "positions where the documents have 16 tokens"),
    "prophetnet": dict.fromkeys(("asvd", "fwsvd"), "positions where the documents have 16 tokens"),
    "hrm_text": {"fwsvd": "no gradient reaches"},
    "reformer": {"fwsvd": "no gradient reaches"},
    "llama4": dict.fromkeys(("asvd", "fwsvd"), "what an expert of this architecture sees is unknown"),
    "llama4_text": dict.fromkeys(("asvd", "fwsvd"), "what an expert of this architecture sees is unknown"),
    "longcat_flash": dict.fromkeys(("asvd", "fwsvd"), "what an expert of this architecture sees is unknown"),
    "xlnet": dict.fromkeys(("asvd", "fwsvd"), "the model reads -1 at once"),
}
DOCUMENTS = [("w1 w2 w3", " w4"), ("w5 w6 w7 w8", " w9"), ("w3 w9", " w11 w12"), ("w7 w1", " w2")]


@pytest.fixture(
    scope="module",
    params=[name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in causal_types()],
)
def model_type(request: pytest.FixtureRequest) -> str:
    """Each type in turn; in the quick tests a few."""
    if request.param in NOT_BUILT:
        pytest.skip(NOT_BUILT[request.param])
    return request.param


@pytest.fixture(scope="module")
def model(model_type: str):
    """A tiny model of the type, in float64 where that runs; the tests leave it as it was."""
    found = tiny_model(model_type)
    try:
        outputs(found.double())
    except RuntimeError:
        found.float()
    return found


@pytest.fixture(scope="module")
def tokenizer(make_model):
    """Of the tiny models: fewer words than any of them knows."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(make_model("llama"))


@pytest.fixture
def layout(model) -> Layout:
    return layout_of(model)


def layout_of(model) -> Layout:
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    return Layout(model.config.to_dict(), shapes, shared_parameters(model), module_classes(model))


def step(matrices: list[str], layer: int, *, per_head: bool = True) -> Step:
    return Step(method="identity", matrices=tuple(matrices), layers=(layer,), per_head=per_head)


def moved(model, source: Matrix, position: int, sink: Matrix, amount: float = 0.5) -> torch.Tensor:
    """How the input of `sink` moves, `[t, n]`, when the outputs of `source` are disturbed at one position, in the first
    call of either.
    """
    seen: list[torch.Tensor] = []
    rows = [row for start, stop in source.rows or ((0, source.full_shape[0]),) for row in range(start, stop)]
    direction = torch.randn(len(rows), generator=torch.Generator().manual_seed(1)) * amount

    def disturb(module, args, output):
        changed = output.clone()
        # A model may put tokens of its own before those of the prompt.
        changed.view(-1, source.full_shape[0])[position - len(TOKENS), rows] += direction.to(output)
        return changed

    def watch(module, args, output):
        seen.append(args[0].detach().clone().reshape(-1, sink.full_shape[1])[-len(TOKENS) :])

    handles = [model.get_submodule(sink.module).register_forward_hook(watch)]
    with torch.no_grad():
        model(input_ids=TOKENS[None])
        calls = len(seen)
        handles.append(model.get_submodule(source.module).register_forward_hook(disturb))
        model(input_ids=TOKENS[None])
    for handle in handles:
        handle.remove()
    assert len(seen) == 2 * calls
    return seen[calls] - seen[0]


def positions(moves: torch.Tensor) -> set[int]:
    return set((moves.abs().amax(dim=1) > 1e-8).nonzero().flatten().tolist())


def columns(moves: torch.Tensor) -> set[int]:
    return set((moves.abs().amax(dim=0) > 1e-8).nonzero().flatten().tolist())


def is_straight(model, source: Matrix, position: int, sink: Matrix) -> bool:
    """Whether twice the disturbance moves the sink twice as far."""
    once, twice = (moved(model, source, position, sink, amount) for amount in (0.5, 1.0))
    return bool((twice - 2 * once).abs().amax() < 1e-5)


def by_layer(matrices: Sequence[Matrix]) -> list[dict[str, Matrix]]:
    """The first matrix of each role in each layer, experts left out."""
    found: dict[int, dict[str, Matrix]] = {}
    for matrix in matrices:
        if matrix.expert is None and matrix.layer is not None and matrix.role is not None:
            found.setdefault(matrix.layer, {}).setdefault(matrix.role, matrix)
    return list(found.values())


def test_attention_roles_are_what_the_forward_pass_makes_of_them(model, model_type: str, layout: Layout) -> None:
    """A query is felt at its own position; a key at later ones, since the first sees only itself; a value from its
    position on.
    """
    if model_type in OWN_STREAMS:
        pytest.skip("attends to more than the prompt")
    for roles in by_layer(layout.matrices):
        if not all(role in roles for role in ATTENTION):
            continue
        query, key, value, output = (roles[role] for role in ATTENTION)
        assert positions(moved(model, query, 2, output)) == {2}
        assert 0 in positions(moved(model, value, 0, output))
        felt = positions(moved(model, key, 0, output))
        assert felt
        if model_type in SINKS:
            assert is_straight(model, value, 0, output) == (model_type not in FILTERED)
            assert not is_straight(model, key, 0, output)
        else:
            assert 0 not in felt


def test_mlp_roles_are_what_the_forward_pass_makes_of_them(model, model_type: str, layout: Layout) -> None:
    """What the gate multiplies is linear in `up_proj`, and bent in `gate_proj`."""
    for roles in by_layer(layout.matrices):
        for role in MLP[:2]:
            if role in roles and "down_proj" in roles:
                assert positions(moved(model, roles[role], 2, roles["down_proj"])) == {2}
                if "gate_proj" in roles and model_type not in BENT:
                    straight = is_straight(model, roles[role], 2, roles["down_proj"])
                    assert straight == (role == "up_proj"), role


def test_heads_that_may_be_edited_are_independent(model, layout: Layout) -> None:
    """A head of queries is felt in its own columns of the output matrix, one of keys or values in those it serves."""
    for layer, roles in enumerate(by_layer(layout.matrices)):
        if not all(role in roles for role in ATTENTION):
            continue
        number = roles["q_proj"].layer
        assert number is not None
        try:
            queries, keys, values, outputs_ = (layout.select(step([role], number)) for role in ATTENTION)
        except UserError as error:
            assert "cannot be edited head by head" in str(error) and "per_head=false" in str(error), layer
            return
        whole = roles["o_proj"]
        own = [set(range(*part.columns[0])) for part in outputs_]
        assert len(queries) == len(outputs_) and len(keys) == len(values)
        for part, expected in zip(queries, own, strict=True):
            assert columns(moved(model, part, 2, whole)) == expected, part.key
        share = len(queries) // len(keys)
        for head, (key, value) in enumerate(zip(keys, values, strict=True)):
            served = set().union(*own[head * share : (head + 1) * share])
            assert columns(moved(model, key, 0, whole)) == served, key.key
            assert columns(moved(model, value, 0, whole)) == served, value.key


def test_the_config_alone_tells_the_same_matrices(model_type: str, layout: Layout) -> None:
    config = tiny_config(model_type).to_dict()
    loaded = as_loaded(Checkpoint("tiny", config, {}))
    shapes = {name: tensor.shape for name, tensor in loaded.tensors.items()}
    assert Layout(loaded.config, shapes, loaded.shared, loaded.modules).matrices == layout.matrices


@pytest.mark.slow
def test_a_plan_says_where_roles_are_inferred(model, model_type: str, layout: Layout) -> None:
    if not layout.roles:
        pytest.skip("has no roles")
    headers = {name: StoredTensor(tuple(value.shape), "F32") for name, value in model.named_parameters()}
    recipe = parse_recipe("svd")
    planned = plan(recipe, Checkpoint("tiny", tiny_config(model_type).to_dict(), headers))
    assert [item.matrix for item in planned.matrices] == list(layout.matrices)
    # Without what it measures.
    said = itertools.takewhile(lambda line: not line.startswith("  time"), plan_lines(planned, "tiny"))
    lines = "\n".join(said)
    assert ("are inferred from the names and classes of its modules" in lines) == layout.inferred
    assert ("by several layers" in lines) == any(matrix.also for matrix in layout.matrices)


def test_a_recipe_edits_the_model_or_is_refused_in_a_sentence(model, layout: Layout) -> None:
    """And identity, undone, leaves it equal to the bit."""
    before, digest = outputs(model), model_digest(model)
    if not layout.roles:
        with pytest.raises(UserError, match="the roles of a .* are unknown: use globs on parameter names, such as"):
            recipes.apply(model, "svd")
        return
    with recipes.apply(model, "identity") as applied:
        assert len(applied.matrices) == len(layout.matrices)
        torch.testing.assert_close(outputs(model), before, atol=2e-2, rtol=2e-2)
    assert model_digest(model) == digest
    with recipes.apply(model, "svd:keep.rank=2") as applied:
        assert len(applied.matrices) == len(layout.matrices)
        inferred = [warning for warning in applied.receipt["warnings"] if "are inferred from the names" in warning]
        assert len(inferred) == layout.inferred
        edited = outputs(model)
        assert bool(torch.isfinite(edited).all()) and not torch.equal(edited, before)
    assert model_digest(model) == digest
    assert torch.equal(outputs(model), before)


def test_a_recipe_that_learns_works_or_is_refused_in_a_sentence(
    model, model_type: str, layout: Layout, tokenizer
) -> None:
    """`asvd` from what goes into the matrices, `fwsvd` from gradients at what comes out."""
    model.float()
    refused = LEARNS_NOTHING.get(model_type, {})
    for recipe in ("asvd", "fwsvd") if layout.roles else ():
        if recipe in refused:
            with pytest.raises(UserError, match=refused[recipe]):
                recipes.apply(model, recipe, tokenizer=tokenizer, documents=DOCUMENTS)
            continue
        with recipes.apply(model, recipe, tokenizer=tokenizer, documents=DOCUMENTS) as applied:
            assert len(applied.matrices) == len(layout.matrices)


def test_a_document_is_read_the_same_in_any_batch(model, model_type: str, tokenizer) -> None:
    """Padded on the side that the type is padded on, as calibration pads it."""
    from harness_ext.calibration.batches import COUNTS_PADDING, batches_of, summed_loss
    from harness_ext.calibration.documents import LabelledDocument
    from harness_ext.lm_eval_adapter.loaded_model import LoadedModel

    if model_type in (*OWN_STREAMS, "xlnet"):
        pytest.skip("no recipe learns of it")
    model.float()
    lm = LoadedModel(model, tokenizer)
    long = ("w1 w2 w3 w5 w6 w7 w8 w9 w3 w11 w7 w1 w4", " w2 w4")
    documents = [LabelledDocument("t", context, answer, context) for context, answer in [*DOCUMENTS, long]]

    def losses(size: int) -> torch.Tensor:
        with torch.no_grad():
            return torch.stack([summed_loss(lm, batch) for batch in batches_of(lm, documents, size)]).sum()

    torch.testing.assert_close(losses(5), losses(1), atol=1e-3, rtol=1e-3)
    if model_type in COUNTS_PADDING:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("harness_ext.calibration.batches.COUNTS_PADDING", frozenset())
            assert abs(float(losses(5) - losses(1))) > 1e-2


def test_embeddings_heads_norms_and_routers_have_no_role(model, layout: Layout) -> None:
    heads = {model.get_input_embeddings(), model.get_output_embeddings()}
    for matrix in layout.matrices:
        module = model.get_submodule(matrix.module)
        assert module not in heads
        named = (type(module).__name__ + matrix.module.rpartition(".")[2]).lower()
        assert not any(word in named for word in ("embedding", "norm", "router", "lm_head")), matrix.key


def test_at_least_120_types_are_built() -> None:
    types = causal_types()
    assert len(types) >= 189 and set(types) >= set(NOT_BUILT)
    assert len(types) - len(NOT_BUILT) >= 170


@pytest.mark.slow
def test_the_table_of_architectures_is_up_to_date() -> None:
    written = architecture_table.TABLE.read_text(encoding="utf-8")
    assert written == architecture_table.rendered(), "run `python tests/architecture_table.py --write`"


def test_rows_of_the_table(model_type: str) -> None:
    """The default run checks those of the types that it builds."""
    assert f"\n{architecture_table.row_of(model_type).text()}\n" in architecture_table.TABLE.read_text(encoding="utf-8")


# Inference alone


def names(prefix: str, **shapes: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}{name.replace('__', '.')}.weight": shape for name, shape in shapes.items()}


LLAMA = {
    **names("layers.0.attn.", q_proj=(8, 8), k_proj=(4, 8), v_proj=(4, 8), o_proj=(8, 8)),
    **names("layers.0.mlp.", gate_proj=(16, 8), up_proj=(16, 8), down_proj=(8, 16)),
}


def test_roles_from_names_alone() -> None:
    found = infer({**LLAMA, "embed.weight": (9, 8), "lm_head.weight": (9, 8)}, {})
    assert [(role.parameter, role.role, role.layer) for role in found.roles] == [
        (name, name.split(".")[-2], 0) for name in LLAMA
    ]


@pytest.mark.parametrize(
    "changed",
    [
        names("layers.0.attn.", v_proj=(4, 7)),
        names("vision_tower.layers.0.attn.", q_proj=(8, 8), k_proj=(8, 8), v_proj=(8, 8), o_proj=(8, 8)),
        names("layers.0.cross_attn.", q_proj=(8, 8), k_proj=(8, 8), v_proj=(8, 8), o_proj=(8, 8)),
        names("layers.0.router.", fc1=(16, 8), fc2=(8, 16)),
        names("layers.0.self_attn.", gate_proj=(8, 8)),
        names("layers.0.adapter.", up_proj=(16, 8), down_proj=(8, 16)),
    ],
)
def test_what_only_looks_like_a_role_gets_none(changed: dict[str, tuple[int, ...]]) -> None:
    roles = {role.parameter for role in infer({**LLAMA, **changed}, {}).roles}
    assert not roles & (changed.keys() - LLAMA.keys())
    if changed.keys() <= LLAMA.keys():
        assert not any(".attn." in name for name in roles)


def test_a_layer_that_shares_the_keys_of_another_has_the_rest() -> None:
    shared = names("layers.1.attn.", q_proj=(8, 8), o_proj=(8, 8))
    found = infer({**LLAMA, **shared}, {})
    assert [role.role for role in found.roles if role.layer == 1] == ["q_proj", "o_proj"]


def test_stacks_follow_one_another() -> None:
    """Of an encoder and a decoder, and of attention and MLP in lists of their own."""
    two = {f"{stack}.{name}": shape for stack in ("encoder", "decoder") for name, shape in LLAMA.items()}
    found = infer(two, {})
    assert {(role.parameter.split(".")[0], role.layer) for role in found.roles} == {("encoder", 0), ("decoder", 1)}
    assert found.layers == 2
    apart = {
        name.replace("layers.0.attn", "attentions.0").replace("layers.0.mlp", "ffns.0"): LLAMA[name] for name in LLAMA
    }
    assert {role.layer for role in infer(apart, {}).roles} == {0}


def test_a_recurrence_is_no_attention() -> None:
    assert not [role for role in infer({**LLAMA, "layers.0.attn.A_log": (8,)}, {}).roles if role.role in ATTENTION]
