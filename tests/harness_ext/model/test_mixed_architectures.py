"""Latent attention, layers without attention, experts in every layout and blocks that layers share, each on a tiny
random model of its own: roles as the forward pass shows them, edits as they are written, plans and checkpoints.

A role is proved by what its outputs move: an entry that is wrong cannot be right by the same mistake.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from harness_ext.calibration import collect
from harness_ext.calibration.context import DocumentBatches
from harness_ext.calibration.documents import CalibrationSet, LabelledDocument
from harness_ext.calibration.sinks import SeenTokens
from harness_ext.editing.learning import stages
from harness_ext.editing.plan import plan
from harness_ext.errors import UserError
from harness_ext.model.checkpoint import read_checkpoint
from harness_ext.model.layout import Matrix
from harness_ext.model.slices import places
from harness_ext.model.weights import Weights, model_digest
from harness_ext.recipe.recipe import parse_recipe

TOKENS = torch.arange(3, 9)
POSITION = 2
# What the outputs of a role go into, among the matrices of its own module.
FEEDS = {
    "q_a_proj": {"q_b_proj", "o_proj"},
    "kv_a_proj": {"kv_b_proj", "o_proj"},
    **{role: {"o_proj"} for role in ("q_proj", "k_proj", "v_proj", "q_b_proj", "kv_b_proj")},
    "in_proj": {"out_proj"},
    **{role: {"down_proj"} for role in ("gate_proj", "up_proj")},
    **{role: set() for role in ("o_proj", "out_proj", "down_proj")},
}
# Felt at their own position and nowhere else; the others are felt later as well, and never earlier.
AT_ONCE = ("q_a_proj", "q_b_proj", "q_proj", "gate_proj", "up_proj")
# A head's norm, or a rotation, hides which row of a query moved; of these each row has its own column of the next one.
ROW_BY_ROW = ("gate_proj", "up_proj")
DOCUMENTS = [
    LabelledDocument("t", context, answer, context)
    for context, answer in [("w1 w2 w3", " w4"), ("w5 w6 w7 w8 w9", " w10 w11"), ("w2 w9", " w3"), ("w12 w13", " w16")]
]


def documents(calibration) -> list[CalibrationSet]:
    return [CalibrationSet("t", "train", 0, tuple(DOCUMENTS))]


def no_documents(calibration):
    pytest.fail("no document was to be asked for")


def load(folder: Path, dtype: torch.dtype = torch.float64):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, experts_implementation="eager").eval()


@pytest.fixture(scope="module")
def model(make_model, mixed: str):
    """A tiny model in float64, shared by the tests of one family; they leave it as it was."""
    return load(make_model(mixed, dtype="float64"))


@pytest.fixture
def weights(model, tmp_path: Path):
    found = Weights(model, tmp_path)
    yield found
    found.restore()


def select(weights: Weights, words: str) -> tuple[Matrix, ...]:
    return weights.layout.select(parse_recipe(f"identity:{words}").steps[0])


def rows_of(matrix: Matrix) -> list[int]:
    return places(matrix.rows or ((0, matrix.full_shape[0]),))


def parent(matrix: Matrix) -> str:
    return matrix.module.rpartition(".")[0]


def inputs_of(model, modules: Sequence[str], batch: int, change: Callable[[], Any] | None = None) -> dict[str, Any]:
    """What goes into each module on a batch of one prompt, `[batch, t, n]`: at its first call."""
    seen: dict[str, torch.Tensor] = {}

    def watch(name: str):
        def hook(module, args, output):
            seen.setdefault(name, args[0].detach().reshape(batch, len(TOKENS), -1).clone())

        return model.get_submodule(name).register_forward_hook(hook)

    handles = [watch(name) for name in dict.fromkeys(modules)] + ([change()] if change else [])
    with torch.no_grad():
        model(TOKENS.expand(batch, -1), use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


def moves_of(model, source: Matrix, sinks: Sequence[Matrix], amount: float = 0.5) -> dict[str, torch.Tensor]:
    """How the input of every sink moves, `[row, t, n]`, when one output of the source is raised at one position:
    another one in each example of the batch.
    """
    rows = rows_of(source)

    def change():
        def hook(module, args, output):
            changed = output.clone().view(len(rows), len(TOKENS), -1)
            changed[torch.arange(len(rows)), POSITION, torch.tensor(rows)] += amount
            return changed.view(output.shape)

        return model.get_submodule(source.module).register_forward_hook(hook)

    names = [sink.module for sink in sinks]
    before, after = inputs_of(model, names, len(rows)), inputs_of(model, names, len(rows), change)
    return {name: after[name] - before[name] for name in names}


def touched(moves: torch.Tensor, axis: int) -> set[int]:
    """The positions (axis 1) or columns (axis 2) that move in any example."""
    return set((moves.abs().amax(dim=(0, 3 - axis)) > 1e-9).nonzero().flatten().tolist())


@pytest.mark.slow
def test_a_role_feeds_what_its_name_says_from_its_position_on(model, weights: Weights) -> None:
    known = [matrix for matrix in weights.layout.matrices if matrix.expert is None]
    assert known
    for source in known:
        siblings = [matrix for matrix in known if parent(matrix) == parent(source) and matrix.role != source.role]
        moved = moves_of(model, source, siblings)
        fed = {matrix.role for matrix in siblings if touched(moved[matrix.module], 1)}
        assert fed == FEEDS[source.role] & {matrix.role for matrix in siblings}, source.key
        for name in {matrix.module for matrix in siblings if matrix.role in fed}:
            found = touched(moved[name], 1)
            assert found == {POSITION} if source.role in AT_ONCE else min(found) >= POSITION, source.key


def test_a_row_of_gate_and_up_feeds_its_own_column_and_only_the_gate_is_bent(model, weights: Weights) -> None:
    known = [matrix for matrix in weights.layout.matrices if matrix.expert is None]
    for source in (matrix for matrix in known if matrix.role in ROW_BY_ROW):
        (sink,) = (matrix for matrix in known if parent(matrix) == parent(source) and matrix.role == "down_proj")
        once, twice = (moves_of(model, source, [sink], amount)[sink.module] for amount in (0.5, 1.0))
        for column, moves in enumerate(once):
            assert touched(moves[None], 2) <= {column}
        assert touched(once, 2)
        alone = not any(parent(matrix) == parent(source) and matrix.role == "gate_proj" for matrix in known)
        straight = bool((twice - 2 * once).abs().amax() < 1e-9)
        assert straight == (source.role == "up_proj" and not alone), source.key


def test_a_part_is_what_multiplies_the_input_and_a_shift_moves_exactly_its_rows(model, weights: Weights) -> None:
    for part in (matrix for matrix in weights.layout.matrices if matrix.expert is None):
        seen: list[torch.Tensor] = []

        def hook(module, args, output, seen=seen):
            seen.extend((args[0].detach().clone(), output.detach().clone()))

        handle = model.get_submodule(part.module).register_forward_hook(hook)
        with torch.no_grad():
            model(TOKENS[None], use_cache=False)
            bias = getattr(model.get_submodule(part.module), "bias", None)
            expected = seen[0] @ weights.read(part).T + (0 if bias is None else bias[rows_of(part)])
            torch.testing.assert_close(seen[1][..., rows_of(part)], expected)
            weights.shift_bias(part, torch.ones(part.shape[0], dtype=torch.float64))
            moved = model.get_submodule(part.module)(seen[0]) - seen[1]
        handle.remove()
        weights.restore()
        exact = torch.zeros_like(moved)
        exact[..., rows_of(part)] = 1
        torch.testing.assert_close(moved, exact)
        assert (getattr(model.get_submodule(part.module), "bias", None) is None) == (bias is None)


def test_no_stage_of_a_sequential_step_feeds_itself(weights: Weights) -> None:
    for stage in stages([matrix for matrix in weights.layout.matrices if matrix.expert is None]):
        for matrix in stage:
            fed = {other.role for other in stage if parent(other) == parent(matrix)}
            assert not FEEDS[matrix.role] & fed


# Experts


def activation(model, opened: dict[str, torch.Tensor]) -> torch.Tensor:
    """What an expert makes of its opening projections, from the papers' formulas."""
    kind = model.config.model_type
    if kind == "gpt_oss":
        gate, up = opened["gate_proj"].clamp(max=7.0), opened["up_proj"].clamp(-7.0, 7.0)
        return (up + 1) * gate * torch.sigmoid(1.702 * gate)
    if kind == "nemotron_h":
        return torch.relu(opened["up_proj"]).square()
    return torch.nn.functional.silu(opened["gate_proj"]) * opened["up_proj"]


def expert_calls(model, names: Sequence[str]) -> dict[str, tuple[torch.Tensor, ...]]:
    """By module of experts: tokens `[t, n]`, chosen experts and shares `[t, k]`, and what comes out `[t, n]`."""
    seen: dict[str, tuple[torch.Tensor, ...]] = {}
    handles = []
    for name in names:

        def hook(module, args, output, name=name):
            seen[name] = tuple(value.detach().clone() for value in (*args, output))

        handles.append(model.get_submodule(name).register_forward_hook(hook))
    with torch.no_grad():
        model(TOKENS.expand(2, -1), use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


def test_an_expert_computes_with_its_own_matrices_and_biases(model, weights: Weights) -> None:
    experts = [matrix for matrix in weights.layout.matrices if matrix.expert is not None]
    if not experts:
        pytest.skip("no experts")
    parameters = dict(model.named_parameters())

    def product(matrix: Matrix, x: torch.Tensor) -> torch.Tensor:
        bias = parameters.get(f"{matrix.parameter}_bias")
        return weights.read(matrix) @ x + (0 if bias is None else bias[matrix.expert, rows_of(matrix)].detach())

    for name, (inputs, chosen, shares, outputs) in expert_calls(model, [item.module for item in experts]).items():
        own = {(item.expert, item.role): item for item in experts if item.module == name}
        assert {expert for expert, _ in own} == set(range(4))
        expected = torch.zeros_like(outputs)
        for token, x in enumerate(inputs):
            for expert, share in zip(chosen[token].tolist(), shares[token], strict=True):
                opened = {
                    role: product(own[expert, role], x) for role in ("gate_proj", "up_proj") if (expert, role) in own
                }
                expected[token] += share * product(own[expert, "down_proj"], activation(model, opened))
        torch.testing.assert_close(outputs, expected)


def test_the_svd_of_one_expert_is_the_truncation_of_that_expert_alone(make_lm, mixed: str) -> None:
    lm = make_lm(mixed)
    experts = [matrix for matrix in lm.weights.layout.matrices if matrix.expert == 2]
    if not experts:
        pytest.skip("no experts")
    before = {name: value.detach().clone() for name, value in lm.model.named_parameters()}
    for matrix in experts[-3:]:
        dense = lm.weights.read(matrix)
        u, s, vh = torch.linalg.svd(dense.double(), full_matrices=False)
        words = f"svd:matrices=['{matrix.role} expert 2'],layers=[{matrix.layer}],keep.rank=3"
        (record,) = lm.apply(parse_recipe(words), no_documents).records
        assert (record.name, record.shape, record.rank_after) == (matrix.parameter, matrix.shape, 3)
        wanted = ((u[:, :3] * s[:3]) @ vh[:3]).to(dense.dtype)
        torch.testing.assert_close(lm.weights.read(matrix), wanted, atol=1e-5, rtol=1e-4)
        changed = {name: value.detach() != before[name] for name, value in lm.model.named_parameters()}
        assert [name for name, where in changed.items() if where.any()] == [matrix.parameter]
        where = changed[matrix.parameter]
        own = where[2].T if matrix.stored_transposed else where[2]
        assert not where[[0, 1, 3]].any() and set(own.any(1).nonzero().flatten().tolist()) <= set(rows_of(matrix))
        lm.undo()
        assert all(torch.equal(value, before[name]) for name, value in lm.model.named_parameters())


def test_a_shift_of_an_experts_bias_is_put_into_its_own_rows(make_model, tmp_path: Path) -> None:
    model = load(make_model("gpt_oss", dtype="float64"))
    weights = Weights(model, tmp_path)
    for matrix in (item for item in weights.layout.matrices if item.layer == 1 and item.expert == 3):
        before = weights.digest()
        bias = dict(model.named_parameters())[f"{matrix.parameter}_bias"]
        expected = bias.detach().clone()
        shift = torch.arange(1, matrix.shape[0] + 1, dtype=torch.float64)
        expected[3, rows_of(matrix)] += shift
        weights.shift_bias(matrix, shift)
        assert torch.equal(bias, expected)
        weights.restore()
        assert weights.digest() == before and not weights.added_biases


def test_what_an_expert_with_biases_sees_makes_up_for_a_lost_mean(make_lm) -> None:
    """`sfsd` on gpt-oss: weight and bias of the very expert are edited, and tokens of others are as they were."""
    lm = make_lm("gpt_oss")
    (matrix,) = select(lm.weights, "matrices=['down_proj expert 1'],layers=[1]")
    before = {name: value.detach().clone() for name, value in lm.model.named_parameters()}
    recipe = parse_recipe("sfsd:matrices=['down_proj expert 1'],layers=[1],keep.rank=3")
    (record,) = lm.apply(recipe, documents).records
    assert record.bias_shift
    after = dict(lm.model.named_parameters())
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        matrix.parameter,
        f"{matrix.parameter}_bias",
    }
    for name in (matrix.parameter, f"{matrix.parameter}_bias"):
        assert torch.equal(before[name][[0, 2, 3]], after[name][[0, 2, 3]])


# Plans, checkpoints, and what cannot be done


def test_a_plan_from_headers_is_what_applying_does_and_the_edit_comes_back_from_disk(
    make_model, make_lm, mixed: str, tmp_path: Path
) -> None:
    lm = make_lm(mixed)
    stored = read_checkpoint(str(make_model(mixed)))
    recipe = parse_recipe("svd:matrices=[all],keep.rank=2")
    planned = plan(recipe, stored)
    digest = lm.weights.digest()
    before = {name: value.detach().clone() for name, value in lm.model.named_parameters()}
    applied = lm.apply(recipe, no_documents)
    assert [(item.matrix.key, item.matrix.shape, item.rank_after) for item in planned.matrices] == [
        (f"{record.name} {record.part or ''}".strip(), record.shape, record.rank_after) for record in applied.records
    ]
    assert all(record.role is not None and record.layer is not None for record in applied.records)
    totals = lm.totals()
    assert (planned.parameters, planned.parameters_after) == (totals["parameters_before"], totals["parameters_after"])
    edited = {record.name for record in applied.records}
    assert {name for name, value in lm.model.named_parameters() if not torch.equal(value, before[name])} == edited
    lm.model.save_pretrained(tmp_path)
    assert sorted(read_checkpoint(str(tmp_path)).tensors) == sorted(stored.tensors)
    assert model_digest(load(tmp_path, torch.float32)) == lm.weights.digest()
    lm.undo()
    assert lm.weights.digest() == digest


def test_identity_keeps_what_the_model_says_and_undo_every_bit(make_lm, mixed: str) -> None:
    lm = make_lm(mixed)

    def said() -> torch.Tensor:
        with torch.no_grad():
            return lm.model(torch.stack([TOKENS, TOKENS + 7]), use_cache=False).logits

    before, digest = said(), lm.weights.digest()
    lm.apply(parse_recipe("identity"), no_documents)
    torch.testing.assert_close(said(), before, atol=1e-3, rtol=1e-3)
    lm.undo()
    assert torch.equal(said(), before) and lm.weights.digest() == digest


@pytest.mark.parametrize(
    ("family", "role", "reason"),
    [
        ("deepseek_v3", "o_proj", "its heads are made from one latent that they share"),
        ("qwen3_next", "q_proj", "its query matrix makes a gate for each query as well"),
    ],
)
def test_heads_that_are_not_independent_are_refused_before_anything_is_loaded(
    make_model, make_lm, family: str, role: str, reason: str
) -> None:
    said = f"per_head: {role} of a {family} cannot be edited head by head: {reason}; set per_head=false"
    recipe = parse_recipe(f"svd:matrices=[{role}],per_head=true,keep.rank=2")
    with pytest.raises(UserError, match=said):
        plan(recipe, read_checkpoint(str(make_model(family))))
    with pytest.raises(UserError, match=said):
        make_lm(family).apply(recipe, no_documents)
    # What is not of the attention is whole anyway.
    assert plan(
        parse_recipe("svd:matrices=[mlp],per_head=true,keep.rank=2"), read_checkpoint(str(make_model(family)))
    ).matrices


def test_experts_by_the_names_that_a_checkpoint_has_for_them(make_model, tmp_path: Path) -> None:
    weights = Weights(load(make_model("deepseek_v3", dtype="float64")), tmp_path)
    whole = select(weights, "matrices=[down_proj],layers=[1]")
    apart = select(weights, "matrices=['model.layers.1.mlp.experts.*.down_proj.weight']")
    assert apart == tuple(matrix for matrix in whole if matrix.expert is not None) and len(apart) == 4
    (one,) = select(weights, "matrices=['model.layers.2.mlp.experts.3.gate_proj.weight']")
    assert (one.key, one.layer) == ("model.layers.2.mlp.experts.gate_up_proj gate_proj expert 3", 2)
    assert one.key in {matrix.key for matrix in select(weights, "matrices=[gate_proj]")}
    with pytest.raises(UserError, match="matches no role, group or 2-D parameter"):
        select(weights, "matrices=['model.layers.2.mlp.experts.4.gate_proj.weight']")


@pytest.mark.parametrize("recipe", ["laser-search", "eigenprune-greedy", "basis-selection", "svd:factored=true"])
def test_what_experts_with_biases_cannot_take_is_refused_before_anything_is_loaded(
    make_model, make_lm, recipe: str
) -> None:
    """A bias of their own lets experts take an edit that moves it, and nothing else."""
    with pytest.raises(UserError, match="expert 0: .*choose matrices outside") as planned:
        plan(parse_recipe(recipe), read_checkpoint(str(make_model("gpt_oss"))))
    with pytest.raises(UserError) as applied:
        make_lm("gpt_oss").apply(parse_recipe(recipe), documents)
    assert str(planned.value) == str(applied.value)


def test_a_model_whose_experts_are_all_handed_every_token_cannot_be_calibrated() -> None:
    from harness_ext.calibration.experts import check_experts
    from harness_ext.model.layout import Layout

    shapes = {
        "model.layers.0.feed_forward.experts.gate_up_proj": (4, 24, 80),
        "model.layers.0.feed_forward.experts.down_proj": (4, 40, 24),
    }
    layout = Layout({"model_type": "llama4_text"}, shapes)
    for words in ("svd:matrices=[experts]", "wanda:matrices=[experts]"):
        step = parse_recipe(words).steps[0]
        matrices = layout.select(step)
        assert {(matrix.role, matrix.shape) for matrix in matrices} == {
            ("gate_proj", (40, 24)),
            ("up_proj", (40, 24)),
            ("down_proj", (24, 40)),
        }
        if step.method == "wanda":
            with pytest.raises(UserError, match="what an expert of this architecture sees is unknown"):
                check_experts(step, matrices)
        else:
            check_experts(step, matrices)


# Blocks that layers share


@pytest.fixture
def shared(make_lm):
    """Zamba: layers 1 and 3 have their attention and MLP in common."""
    return make_lm("zamba", dtype="float64")


def ordinary(inputs: torch.Tensor) -> torch.Tensor:
    """Of one use by one document, `[t, n]`, the tokens that are no sinks: not the first, and no more than six times as
    long as the (lower) median of the others.
    """
    others = inputs[1:]
    norms = others.square().sum(1).sqrt()
    return others[norms <= 6 * norms.sort().values[(len(others) - 1) // 2]]


@pytest.mark.slow
def test_a_shared_block_learns_from_all_its_uses(shared) -> None:
    """Each use has inputs of its own, and sinks of its own: a mean is over the ordinary tokens of all uses."""
    matrices = [matrix for matrix in shared.weights.layout.matrices if matrix.also]
    assert {(matrix.layer, len(matrix.also)) for matrix in matrices} == {(1, 1)} and len(matrices) == 7
    means = frozenset({"input_mean", "input_mean_with_sinks"})
    found = collect.gather(
        shared, matrices, means | {"fisher_information"}, DocumentBatches(DOCUMENTS, 2), no_documents
    )
    forward_only = collect.gather(shared, matrices, means, DocumentBatches(DOCUMENTS, 2), no_documents)
    parameters = dict(shared.model.named_parameters())
    for matrix in matrices:
        squares, inputs = [], []
        handles = [
            shared.model.get_submodule(name).register_forward_hook(
                lambda module, args, output, inputs=inputs: inputs.append(args[0].detach()[0])
            )
            for name in matrix.modules
        ]
        for document in DOCUMENTS:
            context, answer = (shared.tok_encode(text.strip()) for text in (document.context, document.answer))
            logits = shared.model(torch.tensor([context + answer[:-1]]), use_cache=False).logits[0, -len(answer) :]
            loss = torch.nn.functional.cross_entropy(logits, torch.tensor(answer))
            squares.append(torch.autograd.grad(loss, parameters[matrix.parameter])[0].square().sum(0))
        for handle in handles:
            handle.remove()
        assert len(inputs) == 2 * len(DOCUMENTS) and {value.dtype for value in inputs} == {torch.float64}
        expected = torch.stack(squares).mean(0)
        own = found[matrix.key]
        torch.testing.assert_close(own["fisher_information"].double(), expected, rtol=1e-3, atol=1e-8)
        every, kept = torch.cat(inputs), torch.cat([ordinary(value) for value in inputs])
        assert 0 < len(kept) <= len(every) - len(inputs)
        for statistics in (own, forward_only[matrix.key]):
            torch.testing.assert_close(statistics["input_mean"].double(), kept.mean(0), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(
                statistics["input_mean_with_sinks"].double(), every.mean(0), rtol=1e-4, atol=1e-5
            )
            assert SeenTokens.of(statistics)[:2] == (len(every), len(every) - len(kept))


@pytest.mark.slow
def test_a_bias_of_a_shared_block_is_felt_in_all_its_uses_and_taken_back(shared) -> None:
    (matrix,) = select(shared.weights, "matrices=[o_proj]")
    digest = shared.weights.digest()
    shared.weights.shift_bias(matrix, torch.ones(matrix.shape[0]))
    biases = [shared.model.get_submodule(name).bias for name in matrix.modules]
    assert len(biases) == 2 and biases[0] is biases[1] and bool((biases[0] == 1).all())
    shared.weights.restore()
    assert all(shared.model.get_submodule(name).bias is None for name in matrix.modules)
    assert shared.weights.digest() == digest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "why"),
    [
        ("laser-search", "a search cannot try edits of it"),
        ("eigenprune-greedy", "a search cannot try edits of it"),
        ("basis-selection", "it cannot be trained"),
        ("svd:factored=true", "two low-rank layers cannot stand for it"),
    ],
)
def test_what_a_shared_block_cannot_take_is_refused_before_anything_is_loaded(
    shared, make_model, recipe: str, why: str
) -> None:
    said = f"is also the weight of model.layers.3.shared_transf.*: layers share it, and {why}.*a layer has for itself"
    with pytest.raises(UserError, match=said):
        plan(parse_recipe(recipe), read_checkpoint(str(make_model("zamba"))))
    with pytest.raises(UserError, match=said):
        shared.apply(parse_recipe(recipe), documents)
    assert plan(
        parse_recipe(f"{recipe},matrices=[mixer]" if ":" in recipe else f"{recipe}:matrices=[mixer]"),
        read_checkpoint(str(make_model("zamba"))),
    ).matrices
