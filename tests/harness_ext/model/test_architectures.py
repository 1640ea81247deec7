"""Every family on a tiny random model of its own. What a role is, the forward pass says: outputs are disturbed row by
row, and where the attention or the MLP shows it tells query from key from value.

None of these checks knows a family's layout, so an entry that is wrong cannot be right by the same mistake.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from harness_ext.calibration import collect
from harness_ext.calibration.context import DocumentBatches
from harness_ext.calibration.documents import LabelledDocument
from harness_ext.editing.plan import plan
from harness_ext.errors import UserError
from harness_ext.model.architectures import ATTENTION, MLP
from harness_ext.model.checkpoint import Checkpoint, read_checkpoint
from harness_ext.model.geometry import Ranges
from harness_ext.model.layout import Layout, Matrix
from harness_ext.model.renames import as_loaded
from harness_ext.model.safetensors_header import StoredTensor
from harness_ext.model.weights import Weights, model_digest
from harness_ext.recipe.recipe import parse_recipe
from harness_ext.recipe.schema import Step

TOKENS = torch.arange(3, 9)
MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe")
# Layer 1 is a mixture in every mixture; layer 2 of one of them is dense.
GATED = {"llama", "llama-biased", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", *MIXTURES}
# Their attention takes the softmax in float32 of scores masked in the model's dtype: in float64 a padded row overflows
# to NaN.
EAGER = ("gemma2", "bloom")


def no_documents(calibration):
    pytest.fail("no document was to be asked for")


def step(matrices: list[str], layers: list[int | str] | None = None, *, per_head: bool = False) -> Step:
    return Step(
        method="identity", matrices=tuple(matrices), layers=None if layers is None else tuple(layers), per_head=per_head
    )


def load(folder: Path, dtype: torch.dtype = torch.float64):
    from transformers import AutoModelForCausalLM

    # The default computes experts by a grouped product, which knows no float64; models without experts take no notice.
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, experts_implementation="eager").eval()


@pytest.fixture(scope="module")
def model(make_model, every_family: str):
    """A tiny model in float64, shared by the tests of one family; they leave it as it was."""
    return load(make_model(every_family, dtype="float64"))


@pytest.fixture
def weights(model, tmp_path: Path) -> Iterator[Weights]:
    found = Weights(model, tmp_path)
    yield found
    found.restore()


def places(ranges: Ranges | None, full: int) -> list[int]:
    return [place for start, stop in ranges or ((0, full),) for place in range(start, stop)]


def rows_of(matrix: Matrix) -> list[int]:
    return places(matrix.rows, matrix.full_shape[0])


def modules_only(matrices: Sequence[Matrix]) -> list[Matrix]:
    return [matrix for matrix in matrices if matrix.expert is None]


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.stack([TOKENS, TOKENS + 7])).logits


def observed(
    model, module: str, batch: int = 2, disturb: Callable[[], Any] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and outputs of a module on a batch of one prompt, `[batch, t, n]` and `[batch, t, m]`."""
    seen: list[torch.Tensor] = []
    handles = [
        model.get_submodule(module).register_forward_hook(
            lambda module, args, output: seen.extend((args[0].detach().clone(), output.detach().clone()))
        )
    ]
    handles += [disturb()] if disturb else []
    with torch.no_grad():
        model(TOKENS.expand(batch, -1))
    for handle in handles:
        handle.remove()
    return seen[0].view(batch, len(TOKENS), -1), seen[1].view(batch, len(TOKENS), -1)


def moved_inputs(
    model, source: Matrix, rows: list[int], position: int, sink: Matrix, amount: float = 0.5
) -> torch.Tensor:
    """How the input of `sink` moves, `[row, t, n]`, when one output of `source`'s module is raised at one position:
    another one in each example of the batch.
    """

    def disturb():
        def hook(module, args, output):
            changed = output.clone().view(len(rows), len(TOKENS), -1)
            changed[torch.arange(len(rows)), position, torch.tensor(rows)] += amount
            return changed.view(output.shape)

        return model.get_submodule(source.module).register_forward_hook(hook)

    return observed(model, sink.module, len(rows), disturb)[0] - observed(model, sink.module, len(rows))[0]


def touched(moves: torch.Tensor, axis: int) -> set[int]:
    """The positions (axis 0) or columns (axis 1) of one example, `[t, n]`, that move."""
    return set((moves.abs().amax(dim=1 - axis) > 1e-7).nonzero().flatten().tolist())


def served(heads: Sequence[Matrix], number: int, outputs: Sequence[Matrix]) -> list[list[int]]:
    """The columns of the output projection, for each query head that a head serves."""
    share = len(outputs) // len(heads)
    return [places(part.columns, part.full_shape[1]) for part in outputs[number * share : (number + 1) * share]]


def test_roles_are_those_that_the_family_has(weights: Weights, every_family: str) -> None:
    roles = ATTENTION + MLP
    expected = roles if every_family in GATED else tuple(role for role in roles if role != "gate_proj")
    assert weights.layout.roles == expected
    assert weights.layout.layers == 3
    assert {(matrix.layer, matrix.role) for matrix in weights.layout.matrices} == {
        (layer, role) for layer in range(3) for role in expected
    }


def test_no_two_roles_share_a_row(weights: Weights) -> None:
    """And together they cover the parameter."""
    for name in {matrix.parameter for matrix in weights.layout.matrices}:
        parts = [
            matrix for matrix in weights.layout.matrices if matrix.parameter == name and matrix.expert in (None, 0)
        ]
        assert sorted(row for part in parts for row in rows_of(part)) == list(range(parts[0].full_shape[0]))


@pytest.mark.parametrize("per_head", [False, True])
def test_a_part_is_what_multiplies_the_input(model, weights: Weights, per_head: bool) -> None:
    """`y = W x + b` on the rows of the part; for a head of the output projection, the sum over heads."""
    for part in modules_only(weights.layout.select(step(["all"], [1], per_head=per_head))):
        if part.columns is not None:
            continue
        inputs, outputs = observed(model, part.module)
        bias = getattr(model.get_submodule(part.module), "bias", None)
        expected = inputs @ weights.read(part).T + (0 if bias is None else bias[rows_of(part)])
        torch.testing.assert_close(outputs[..., rows_of(part)], expected)
    for whole in weights.layout.select(step(["o_proj"], [1])):
        inputs, outputs = observed(model, whole.module)
        bias = getattr(model.get_submodule(whole.module), "bias", None)
        heads = weights.layout.select(step(["o_proj"], [1], per_head=True))
        expected = sum(inputs[..., places(head.columns, 0)] @ weights.read(head).T for head in heads)
        torch.testing.assert_close(outputs, expected + (0 if bias is None else bias))


@pytest.mark.parametrize("per_head", [False, True])
def test_editing_a_part_moves_exactly_its_rows(model, weights: Weights, per_head: bool) -> None:
    for part in modules_only(weights.layout.select(step(["all"], [1], per_head=per_head))):
        before = observed(model, part.module)[1]
        weights.replace(part, 2 * weights.read(part))
        moves = observed(model, part.module)[1] - before
        weights.restore()
        assert touched(moves.flatten(0, 1), 1) == set(rows_of(part)), part.key


def test_a_shift_of_the_bias_moves_exactly_its_rows(model, weights: Weights) -> None:
    """Also where the layer had no bias: it gets one, and loses it again."""
    for part in modules_only(weights.layout.select(step(["all"], [1]))):
        before = observed(model, part.module)[1]
        had_bias = model.get_submodule(part.module).bias is not None
        weights.shift_bias(part, torch.ones(part.shape[0], dtype=torch.float64))
        moves = observed(model, part.module)[1] - before
        weights.restore()
        expected = torch.zeros_like(moves)
        expected[..., rows_of(part)] = 1
        torch.testing.assert_close(moves, expected)
        assert (model.get_submodule(part.module).bias is not None) == had_bias


def test_a_query_is_felt_at_its_own_position_by_its_own_head(model, weights: Weights) -> None:
    heads, outputs = (weights.layout.select(step([role], [1], per_head=True)) for role in ("q_proj", "o_proj"))
    assert len(heads) == len(outputs) == 4
    for number, head in enumerate(heads):
        (columns,) = served(heads, number, outputs)
        for moves in moved_inputs(model, head, rows_of(head), 2, outputs[0]):
            assert touched(moves, 0) == {2}
            assert touched(moves, 1) == set(columns)


def test_a_key_is_felt_after_its_position_by_the_heads_it_serves(model, weights: Weights) -> None:
    """The first position sees only itself: whatever its key, its weight is one."""
    heads, outputs = (weights.layout.select(step([role], [1], per_head=True)) for role in ("k_proj", "o_proj"))
    for number, head in enumerate(heads):
        columns = served(heads, number, outputs)
        for moves in moved_inputs(model, head, rows_of(head), 0, outputs[0]):
            assert touched(moves, 0) and 0 not in touched(moves, 0)
            assert touched(moves, 1) == {column for listed in columns for column in listed}


def test_a_value_is_felt_from_its_position_on_in_its_own_place_of_the_heads_it_serves(model, weights: Weights) -> None:
    heads, outputs = (weights.layout.select(step([role], [1], per_head=True)) for role in ("v_proj", "o_proj"))
    for number, head in enumerate(heads):
        columns = served(heads, number, outputs)
        for place, moves in enumerate(moved_inputs(model, head, rows_of(head), 0, outputs[0])):
            assert {0, 1} <= touched(moves, 0)
            assert touched(moves, 1) == {head_columns[place] for head_columns in columns}
            torch.testing.assert_close(moves[0, columns[0][place]], torch.tensor(0.5, dtype=torch.float64))


def test_a_row_of_the_mlp_feeds_its_own_column_of_the_last_matrix(model, weights: Weights, every_family: str) -> None:
    """What the gate multiplies is linear in `up_proj`, and bent in `gate_proj`."""
    matrices = (
        modules_only(weights.layout.select(step(["mlp"], [2 if every_family == "qwen2_moe" else 1])))
        if every_family not in ("mixtral", "qwen3_moe")
        else []
    )
    for source in (matrix for matrix in matrices if matrix.role != "down_proj"):
        (sink,) = (matrix for matrix in matrices if matrix.role == "down_proj")
        once, twice = (moved_inputs(model, source, rows_of(source), 2, sink, amount) for amount in (0.5, 1.0))
        for column, moves in enumerate(once):
            assert touched(moves, 0) == {2} and touched(moves, 1) == {column}
        straight = bool((twice - 2 * once).abs().amax() < 1e-7)
        assert straight == (source.role == "up_proj" and every_family in GATED)


def shapes_of(model) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.named_parameters()}


def bits(model) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[name].view(torch.uint8), other[name].view(torch.uint8)) for name in one
    )


@pytest.mark.slow
def test_identity_changes_nothing_undo_everything_and_a_saved_edit_comes_back(
    make_model, make_lm, every_family: str, tmp_path: Path
) -> None:
    lm = make_lm(every_family)
    before, said = bits(lm.model), logits(lm.model)
    for specification in ("identity", "identity:per_head=true"):
        lm.apply(parse_recipe(specification), no_documents)
        torch.testing.assert_close(logits(lm.model), said, atol=2e-4, rtol=2e-4)
        lm.undo()
        assert same_bits(before, bits(lm.model))
    recipe = parse_recipe("svd:matrices=[all],per_head=true,keep.rank=2")
    planned = plan(recipe, read_checkpoint(str(make_model(every_family))))
    applied = lm.apply(recipe, no_documents)
    edited = logits(lm.model)
    assert (edited - said).abs().max() > 1e-2
    assert [(item.matrix.key, item.matrix.shape, item.rank_after) for item in planned.matrices] == [
        (f"{record.name} {record.part or ''}".strip(), record.shape, record.rank_after) for record in applied.records
    ]
    totals = lm.totals()
    assert (planned.parameters, planned.parameters_after) == (totals["parameters_before"], totals["parameters_after"])
    lm.model.save_pretrained(tmp_path)
    reloaded = load(tmp_path, torch.float32)
    assert model_digest(reloaded) == lm.weights.digest()
    assert torch.equal(logits(reloaded), edited)
    lm.undo()
    assert same_bits(before, bits(lm.model))
    assert torch.equal(logits(lm.model), said)


DOCUMENTS = [
    LabelledDocument("t", context, " w4", str(number)) for number, context in enumerate(["w1 w2 w3", "w5 w6 w7 w8 w9"])
]


def test_statistics_are_gathered_at_every_role(make_lm, every_family: str) -> None:
    """Padding must not count, for whatever way a family masks and places its tokens; other statistics are checked on
    every family among the slow tests.
    """
    lm = make_lm(every_family, dtype="float32" if every_family in EAGER else "float64")
    matrices = modules_only(lm.weights.layout.select(step(["all"], [1], per_head=True)))
    gathered = collect.gather(
        lm, matrices, frozenset({"input_mean_with_sinks"}), DocumentBatches(DOCUMENTS, 2), no_documents
    )
    for matrix in matrices:
        seen: list[torch.Tensor] = []
        handle = lm.model.get_submodule(matrix.module).register_forward_hook(
            lambda module, args, output, seen=seen: seen.append(args[0].detach().reshape(-1, args[0].shape[-1]))
        )
        with torch.no_grad():
            for document in DOCUMENTS:
                lm.model(torch.tensor([lm.tok_encode(document.context)]))
        handle.remove()
        expected = torch.cat(seen).mean(0)[places(matrix.columns, matrix.full_shape[1])]
        torch.testing.assert_close(
            gathered[matrix.key]["input_mean_with_sinks"].to(expected), expected, atol=1e-5, rtol=1e-4
        )


# Experts


@pytest.fixture(params=MIXTURES)
def mixture(request: pytest.FixtureRequest, make_model, tmp_path: Path) -> tuple[Any, Weights]:
    """A tiny mixture in float64 and a hand on its weights."""
    found = load(make_model(request.param, dtype="float64"))
    return found, Weights(found, tmp_path)


def expert_call(model) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """What goes into the experts of layer 1 (tokens, the chosen experts, their shares) and what comes out."""
    seen: list[torch.Tensor] = []
    handle = model.model.layers[1].mlp.experts.register_forward_hook(
        lambda module, args, output: seen.extend(value.detach().clone() for value in (*args, output))
    )
    with torch.no_grad():
        model(TOKENS.expand(2, -1))
    handle.remove()
    return seen[0], seen[1], seen[2], seen[3]


def test_an_expert_is_three_matrices_that_compute_what_it_computes(mixture) -> None:
    model, weights = mixture
    inputs, chosen, shares, outputs = expert_call(model)
    matrices = {
        (matrix.role, matrix.expert): weights.read(matrix) for matrix in weights.layout.select(step(["experts"], [1]))
    }
    assert matrices.keys() == {(role, expert) for role in MLP for expert in range(4)}
    expected = torch.zeros_like(outputs)
    for token, x in enumerate(inputs):
        for expert, share in zip(chosen[token].tolist(), shares[token], strict=True):
            gate, up, down = (matrices[role, expert] for role in MLP)
            expected[token] += share * (down @ (torch.nn.functional.silu(gate @ x) * (up @ x)))
    torch.testing.assert_close(outputs, expected)


def test_editing_an_expert_moves_only_the_tokens_sent_to_it(mixture) -> None:
    model, weights = mixture
    _, chosen, _, before = expert_call(model)
    for role in MLP:
        for expert in range(4):
            (part,) = weights.layout.select(step([f"{role} expert {expert}"], [1]))
            weights.replace(part, 2 * weights.read(part))
            moved = (expert_call(model)[3] - before).abs().amax(dim=1) > 1e-9
            weights.restore()
            assert torch.equal(moved, (chosen == expert).any(dim=1))


def test_the_digest_of_an_edited_expert_is_its_own(make_lm) -> None:
    lm = make_lm("mixtral")
    (record,) = lm.apply(parse_recipe("svd:matrices=[up_proj expert 2],layers=[1],keep.rank=2"), no_documents).records
    assert (record.name, record.part, record.shape) == (
        "model.layers.1.mlp.experts.gate_up_proj",
        "up_proj expert 2",
        (40, 24),
    )
    whole = lm.weights.digest_of(record.name)
    assert record.digest_before != record.digest_after == lm.weights.digest_of(record.name, 2) != whole
    untouched = lm.weights.digest_of(record.name, 1)
    lm.undo()
    assert lm.weights.digest_of(record.name, 2) == record.digest_before
    assert lm.weights.digest_of(record.name, 1) == untouched and lm.weights.digest_of(record.name) != whole


def test_of_a_mixture_the_operations_of_the_chosen_experts_count(make_lm) -> None:
    """Two of four experts see a token: an edit of all of them saves it half of what it saves in memory."""
    lm = make_lm("mixtral")
    lm.apply(parse_recipe("svd:matrices=[experts],layers=[1],keep.rank=2"), no_documents)
    totals = lm.totals()
    saved = 4 * 3 * (40 * 24 - 2 * (40 + 24))
    assert totals["parameters_before"] - totals["parameters_after"] == saved
    assert totals["flops_per_token_before"] - totals["flops_per_token_after"] == saved
    dense = sum(module.weight.numel() for module in lm.model.modules() if isinstance(module, torch.nn.Linear))
    routers = sum(layer.mlp.gate.weight.numel() for layer in lm.model.model.layers)
    assert totals["flops_per_token_before"] == 2 * (dense + routers + 3 * 2 * 3 * 40 * 24)


def test_a_router_has_no_role_and_a_shared_expert_is_no_expert(mixture) -> None:
    _, weights = mixture
    chosen = weights.layout.select(step(["all"]))
    assert not any(matrix.parameter.endswith((".gate.weight", "shared_expert_gate.weight")) for matrix in chosen)
    assert all(
        ".shared_expert." in matrix.parameter or matrix.layer == 2
        for matrix in modules_only(chosen)
        if matrix.role in MLP
    )


def test_experts_by_key_by_number_by_glob_and_by_group(mixture) -> None:
    _, weights = mixture
    layout = weights.layout
    everything = layout.select(step(["experts"], [0]))
    assert len(everything) == 12
    assert {(matrix.parameter, matrix.expert) for matrix in everything} == {
        (matrix.parameter, matrix.expert) for matrix in layout.select(step(["*.experts.*"], [0]))
    }
    for part in layout.select(step(["all"], per_head=True)):
        assert layout.select(step([part.key])) == (part,)
    (whole,) = layout.select(step(["*.layers.0.*.gate_up_proj expert 3"]))
    assert (whole.role, whole.expert, whole.layer) == (None, 3, 0)
    assert whole.key == "model.layers.0.mlp.experts.gate_up_proj expert 3"
    assert {matrix.role for matrix in layout.select(step(["*.layers.0.*.experts.down_proj"]))} == {"down_proj"}


@pytest.mark.parametrize(
    "pattern",
    [
        "experts",
        "up_proj expert 3",
        "model.layers.0.mlp.experts.gate_up_proj gate_proj expert 3",
        "*.experts.down_proj",
    ],
)
def test_experts_named_where_there_are_none(make_lm, pattern: str) -> None:
    with pytest.raises(UserError, match="names experts, and this model has none; it has q_proj, k_proj"):
        make_lm("llama").weights.layout.select(step([pattern]))


def test_an_expert_beyond_the_last(mixture) -> None:
    with pytest.raises(UserError, match="'up_proj expert 4' matches nothing; the experts of this model are 0 to 3"):
        mixture[1].layout.select(step(["up_proj expert 4"]))


def test_experts_of_an_unknown_architecture_are_found_by_glob() -> None:
    layout = Layout({"model_type": "novel"}, {"blocks.0.experts.in": (3, 4, 5), "blocks.0.conv.weight": (3, 4, 5)})
    assert [(matrix.parameter, matrix.expert, matrix.shape) for matrix in layout.select(step(["*"]))] == [
        ("blocks.0.experts.in", number, (4, 5)) for number in range(3)
    ]


# Checkpoints whose headers are not what is loaded


def test_headers_become_the_parameters_of_the_loaded_model(model, make_model, every_family: str) -> None:
    loaded = as_loaded(read_checkpoint(str(make_model(every_family)))).tensors
    assert {name: tensor.shape for name, tensor in loaded.items()} == shapes_of(model)


def test_a_checkpoint_without_the_base_prefix_is_planned_as_it_is_loaded(make_model, every_family: str) -> None:
    stored = read_checkpoint(str(make_model(every_family)))
    base = next(
        prefix
        for prefix in ("model.", "transformer.", "gpt_neox.")
        if any(name.startswith(prefix) for name in stored.tensors)
    )
    bare = {name.removeprefix(base): tensor for name, tensor in stored.tensors.items()}
    assert as_loaded(Checkpoint("bare", stored.config, bare)).tensors == as_loaded(stored).tensors


def test_what_loading_drops_is_not_counted(make_model) -> None:
    stored = read_checkpoint(str(make_model("gpt2")))
    old = {
        "h.0.attn.bias": StoredTensor((1, 1, 64, 64), "F32"),
        "h.0.attn.masked_bias": StoredTensor((), "F32"),
        "lm_head.weight": StoredTensor((43, 24), "F32"),
    }
    assert as_loaded(Checkpoint("old", stored.config, {**stored.tensors, **old})).tensors == dict(stored.tensors)


def test_a_config_that_leaves_out_its_defaults_is_completed() -> None:
    stored = {
        "model.layers.0.self_attn.q_proj.weight": StoredTensor((2048, 640), "BF16"),
        "model.layers.0.self_attn.k_proj.weight": StoredTensor((1024, 640), "BF16"),
    }
    config = as_loaded(Checkpoint("short", {"model_type": "gemma3_text", "hidden_size": 640}, stored)).config
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]) == (8, 4, 256)


def test_a_config_that_cannot_be_completed_is_named() -> None:
    with pytest.raises(
        UserError,
        match=(
            "short: its config does not say num_attention_heads, num_key_value_heads, and transformers cannot"
            " complete it"
        ),
    ):
        as_loaded(Checkpoint("short", {"model_type": "llama", "hidden_size": 25}, {}))


def test_experts_that_are_not_all_there(make_model) -> None:
    stored = read_checkpoint(str(make_model("mixtral")))
    missing = {
        name: tensor
        for name, tensor in stored.tensors.items()
        if not name.endswith("layers.1.block_sparse_moe.experts.2.w3.weight")
    }
    assert len(missing) == len(stored.tensors) - 1
    with pytest.raises(UserError, match=r"the experts under model.layers.1.mlp.experts are not all there"):
        plan(parse_recipe("svd:matrices=[attn],keep.rank=2"), Checkpoint("torn", stored.config, missing))


@pytest.fixture(scope="module")
def wrapped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Gemma 3 with eyes: the language model inside, and an image tower whose layers and matrices are named
    alike.
    """
    from transformers import AutoModelForCausalLM, Gemma3Config

    text = {
        "vocab_size": 43,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 10,
        "max_position_embeddings": 64,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
    }
    config = Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_index=42,
        boi_token_index=40,
        eoi_token_index=41,
    )
    folder = tmp_path_factory.mktemp("gemma3")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def test_of_a_wrapped_model_the_language_model_is_meant(wrapped: Path, tmp_path: Path) -> None:
    model = load(wrapped)
    weights = Weights(model, tmp_path)
    chosen = weights.layout.select(step(["all"]))
    assert len(chosen) == 3 * 7 and all(".language_model.layers." in matrix.parameter for matrix in chosen)
    assert [matrix.parameter for matrix in weights.layout.select(step(["*vision*.layers.0.self_attn.q_proj.weight"]))]
    said = logits(model)
    weights.replace(chosen[0], 0 * weights.read(chosen[0]))
    assert not torch.equal(logits(model), said)
    weights.restore()
    assert torch.equal(logits(model), said)
    planned = plan(parse_recipe("svd:matrices=[all],keep.rank=2"), read_checkpoint(str(wrapped)))
    assert [item.matrix for item in planned.matrices] == list(chosen)
    assert planned.parameters == sum(value.numel() for value in model.parameters())


def test_a_wrapped_config_that_leaves_out_its_defaults_is_completed(wrapped: Path) -> None:
    config = json.loads((wrapped / "config.json").read_text())
    short = {
        "model_type": "gemma3",
        "vision_config": config["vision_config"],
        "text_config": {"model_type": "gemma3_text", "hidden_size": 24},
    }
    stored = {"language_model.model.layers.0.self_attn.q_proj.weight": StoredTensor((2048, 24), "F32")}
    loaded = as_loaded(Checkpoint("short", short, stored))
    assert set(loaded.tensors) == {"model.language_model.layers.0.self_attn.q_proj.weight"}
    assert (
        len(
            Layout(loaded.config, {name: tensor.shape for name, tensor in loaded.tensors.items()}).select(
                step(["q_proj"], per_head=True)
            )
        )
        == 8
    )
