"""What single experts see: against the model's own gradients of its weights, document by document, and what happens to
experts that see nothing or cannot take an edit.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from harness_ext.calibration import collect
from harness_ext.calibration.batches import batches_of
from harness_ext.calibration.context import DocumentBatches
from harness_ext.calibration.documents import CalibrationSet, LabelledDocument
from harness_ext.calibration.observed import ModuleWatch, WatchedMatrix
from harness_ext.editing.edit_matrix import UNSEEN
from harness_ext.editing.plan import plan
from harness_ext.editing.warnings import receipt_warnings
from harness_ext.errors import UserError
from harness_ext.methods import Svd
from harness_ext.model.checkpoint import read_checkpoint
from harness_ext.recipe.recipe import parse_recipe

MIXTURES = (
    "mixtral",
    "gpt_oss",
    "qwen2_moe",
    "qwen3_moe",
    "deepseek_v3",
    "qwen3_next",
    "nemotron_h",
    "granitemoehybrid",
    "jamba",
    "lfm2_moe",
)
QUICK = ("mixtral", "gpt_oss")
DOCUMENTS = [
    LabelledDocument("t", context, answer, context)
    for context, answer in [
        ("w1 w2 w3", " w4"),
        ("w5 w6 w7 w8 w9", " w10 w11"),
        ("w2 w9", " w3"),
        ("w12 w13 w14 w15", " w16"),
        ("w20 w21", " w23"),
    ]
]


@pytest.fixture(params=[name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MIXTURES])
def mixture(request: pytest.FixtureRequest) -> str:
    """Each mixture in turn; in the quick tests one."""
    return request.param


def documents(calibration) -> list[CalibrationSet]:
    return [CalibrationSet("t", "train", 0, tuple(DOCUMENTS))]


def no_documents(calibration):
    pytest.fail("no document was to be asked for")


def decompose(lm):
    return lambda matrix: Svd(*torch.linalg.svd(lm.weights.read(matrix), full_matrices=False))


def select(lm, words: str):
    return lm.weights.layout.select(parse_recipe(f"identity:{words}").steps[0])


def own_rows(matrix, values: torch.Tensor) -> torch.Tensor:
    """Of values that are kept as the expert's weight is, those of the matrix, `[out, in]`."""
    seen = values.T if matrix.stored_transposed else values
    return seen if matrix.rows is None else torch.cat([seen[start:stop] for start, stop in matrix.rows])


def gradients_of_weights(lm, parameter: str) -> list[torch.Tensor]:
    """The gradient of each document's loss, one at a time and unpadded, with respect to the whole parameter, `[experts,
    out, in]`.
    """
    found = []
    weight = dict(lm.model.named_parameters())[parameter]
    for document in DOCUMENTS:
        context, answer = (lm.tok_encode(text.strip()) for text in (document.context, document.answer))
        loss = cross_entropy(
            lm.model(torch.tensor([context + answer[:-1]])).logits[0, -len(answer) :], torch.tensor(answer)
        )
        found.append(torch.autograd.grad(loss, weight)[0])
    return found


@pytest.mark.parametrize("words", ["matrices=[experts],layers=[1]", "matrices=['*.layers.1.*.experts.*up_proj']"])
def test_the_fisher_information_of_an_expert_is_that_of_its_weights_gradient(make_lm, mixture: str, words: str) -> None:
    lm = make_lm(mixture, dtype="float64")
    matrices = select(lm, words)
    found = collect.gather(lm, matrices, frozenset({"fisher_information"}), DocumentBatches(DOCUMENTS, 3), no_documents)
    gradients = {
        parameter: gradients_of_weights(lm, parameter) for parameter in {matrix.parameter for matrix in matrices}
    }
    assert len(matrices) in (4, 8, 12)
    for matrix in matrices:
        expected = torch.stack(
            [own_rows(matrix, gradient[matrix.expert]).square().sum(0) for gradient in gradients[matrix.parameter]]
        ).mean(0)
        if matrix.key in found:
            torch.testing.assert_close(found[matrix.key]["fisher_information"], expected, rtol=1e-4, atol=1e-9)
        else:
            assert not expected.any()


@pytest.mark.parametrize("role", ["up_proj", "down_proj"])
def test_what_removing_a_component_of_an_expert_changes_is_in_its_weights_gradient(
    make_lm, mixture: str, role: str
) -> None:
    """What is summed over tokens, `<g, u_i> (v_i . x)`, is `u_i^T G v_i`, without the part of the mean input."""
    lm = make_lm(mixture, dtype="float64")
    matrices = select(lm, f"matrices=[{role}],layers=[1]")
    matrices = [matrix for matrix in matrices if matrix.expert is not None]
    watched = [
        WatchedMatrix(matrix, collect._start(frozenset({"ablation_effects"}), matrix, decompose(lm)))
        for matrix in matrices
    ]
    watch = ModuleWatch(lm.model, watched, backward=True, share=False, alone=False)
    collect._one_pass(lm, watch, list(batches_of(lm, DOCUMENTS, 3)), lambda count: None, backward=True)
    gradients = gradients_of_weights(lm, matrices[0].parameter)
    for item in watched:
        u, _, vh = decompose(lm)(item.matrix)
        gradient = own_rows(item.matrix, sum(gradients)[item.matrix.expert])
        sums = item.statistics["ablation_effects"]._sums
        torch.testing.assert_close(sums[2], torch.einsum("mi,mn,in->i", u, gradient, vh), rtol=1e-4, atol=1e-7)


def test_it_does_not_matter_how_the_model_computes_its_experts(make_lm, mixture: str) -> None:
    lm = make_lm(mixture)
    matrices = select(lm, "matrices=[experts],layers=[1]")
    names = frozenset(
        {"input_mean", "input_mean_with_sinks", "input_second_moment", "counterfactual_effects", "fisher_information"}
    )
    found = {}
    for implementation in ("eager", "batched_mm", "grouped_mm"):
        lm.model.set_experts_implementation(implementation)
        found[implementation] = collect.gather(lm, matrices, names, DocumentBatches(DOCUMENTS, 3), decompose(lm))
    assert found["eager"]
    for other in ("batched_mm", "grouped_mm"):
        torch.testing.assert_close(found[other], found["eager"], rtol=1e-3, atol=1e-5)


def test_an_expert_that_sees_no_token_stays_as_it_was_and_the_receipt_says_so(make_lm, monkeypatch) -> None:
    lm = make_lm("mixtral")
    gate = lm.model.model.layers[1].mlp.gate
    real = gate.forward

    def without_the_third(hidden):
        logits, shares, chosen = real(hidden)
        instead = torch.tensor([[min({0, 1, 3} - set(row))] for row in chosen.tolist()])
        return logits, shares, torch.where(chosen == 2, instead, chosen)

    monkeypatch.setattr(gate, "forward", without_the_third)
    recipe = parse_recipe("svd-llm:matrices=[up_proj],layers=[1],keep.rank=3")
    digest = lm.weights.digest()
    applied = lm.apply(recipe, documents)
    by_expert = {record.part: record for record in applied.records}
    unseen = by_expert.pop("up_proj expert 2")
    assert (unseen.fallback, unseen.rank_after, unseen.relative_error, unseen.parameters_after) == (
        UNSEEN,
        24,
        0.0,
        unseen.parameters_before,
    )
    assert unseen.digest_after == unseen.digest_before
    assert all(
        record.fallback != UNSEEN and record.rank_after == 3 and record.digest_after != record.digest_before
        for record in by_expert.values()
    )
    lossy, *others = receipt_warnings(recipe, applied)
    assert lossy.startswith("feature_space raised the loss of its own")
    assert others == [
        "1 of 4 matrices or heads were left as they were: no calibration document has a token that reached them"
        " (fallback unseen), as happens to experts; a larger calibration.samples may reach them"
    ]
    lm.undo()
    assert lm.weights.digest() == digest


def test_experts_that_compute_something_else_are_refused(make_lm) -> None:
    lm = make_lm("mixtral")
    digest = lm.weights.digest()
    handle = lm.model.model.layers[1].mlp.experts.register_forward_hook(lambda module, args, output: 1.5 * output)
    with pytest.raises(
        UserError,
        match=(
            r"the experts of model.layers.1.mlp.experts do not compute what is known of them.*choose matrices outside"
            r" them"
        ),
    ):
        lm.apply(parse_recipe("wanda:matrices=[up_proj expert 1],layers=[1]"), documents)
    handle.remove()
    assert lm.weights.digest() == digest


@pytest.mark.parametrize(
    ("recipe", "remedy"),
    [
        ("eigenprune:matrices=[up_proj]", "choose matrices outside them, such as attn"),
        ("eigenprune-greedy:matrices=[experts]", "choose matrices outside them, such as attn"),
        ("sfsd", "set bias=false, which loses the mean output, or choose matrices outside them, such as attn"),
        (
            "contrast-projection",
            "set bias=false, which loses the mean output, or choose matrices outside them, such as attn",
        ),
    ],
)
def test_a_bias_that_experts_cannot_have_is_told_before_the_model_is_touched(
    make_lm, make_model, recipe: str, remedy: str
) -> None:
    said = f"expert 0: .* moves a bias, and experts have none: {remedy}"
    lm = make_lm("mixtral")
    digest = lm.weights.digest()
    with pytest.raises(UserError, match=said):
        lm.apply(parse_recipe(recipe), no_documents)
    assert lm.weights.digest() == digest
    with pytest.raises(UserError, match=said):
        plan(parse_recipe(recipe), read_checkpoint(str(make_model("mixtral"))))
    with pytest.raises(UserError, match="has no bias to shift: experts have none"):
        lm.weights.shift_bias(select(lm, "matrices=[up_proj expert 1],layers=[0]")[0], torch.ones(40))


@pytest.mark.parametrize("recipe", ["asvd", "fwsvd", "wanda", "svd-llm", "swift", "sfsd-released", "sfsd:bias=false"])
def test_calibrated_recipes_run_on_a_mixture_and_are_undone(make_lm, mixture: str, recipe: str) -> None:
    lm = make_lm(mixture)
    digest = lm.weights.digest()
    applied = lm.apply(parse_recipe(recipe), documents)
    experts = [record for record in applied.records if "expert" in (record.part or "")]
    assert any(record.relative_error > 0 for record in experts) and not any(record.bias_shift for record in experts)
    assert all(record.relative_error == 0 for record in experts if record.fallback == UNSEEN)
    lm.undo()
    assert lm.weights.digest() == digest


def test_an_expert_tells_apart_the_pairs_of_which_it_sees_both(make_lm, mixture: str) -> None:
    lm = make_lm(mixture, dtype="float64")
    pairs = [(f"w{number} w{number + 1} w3", f"w{number} w{number + 1} w4") for number in range(5, 17)]
    texts = [text for pair in pairs for text in pair]
    matrices = select(lm, "matrices=[up_proj],layers=[1]")
    found = collect.gather(
        lm,
        matrices,
        frozenset({"contrast_differences"}),
        DocumentBatches([LabelledDocument("c", text, " w0", text) for text in texts], 4),
        no_documents,
    )
    seen: list[tuple[torch.Tensor, set[int]]] = []
    (experts,) = {matrix.module for matrix in matrices if matrix.expert is not None}
    handle = lm.model.get_submodule(experts).register_forward_hook(
        lambda module, args, output: seen.append((args[0][-1].detach(), set(args[1][-1].tolist())))
    )
    for text in texts:
        lm.model(torch.tensor([lm.tok_encode(text)]))
    handle.remove()
    counts = set()
    for matrix in matrices:
        if matrix.expert is None:
            continue
        expected = [
            one - other
            for (one, of_one), (other, of_other) in zip(seen[::2], seen[1::2], strict=True)
            if matrix.expert in of_one & of_other
        ]
        counts.add(len(expected))
        if expected:
            torch.testing.assert_close(
                found[matrix.key]["contrast_differences"], torch.stack(expected), atol=1e-6, rtol=1e-5
            )
        else:
            assert matrix.key not in found
    assert max(counts) > min(counts)


def test_experts_of_an_unknown_architecture_have_no_statistics() -> None:
    from harness_ext.calibration.experts import check_experts
    from harness_ext.model.layout import Layout

    step = parse_recipe("wanda:matrices=['*.experts.in']").steps[0]
    matrices = Layout({"model_type": "novel"}, {"blocks.0.experts.in": (3, 4, 5)}).select(step)
    with pytest.raises(
        UserError, match="blocks.0.experts.in expert 0: what an expert of this architecture sees is unknown"
    ):
        check_experts(step, matrices)
