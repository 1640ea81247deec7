"""Statistics against references that share nothing with it: one document at a time, no padding, no hooks on outputs,
all in float64.
"""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass

import numpy
import pytest
import torch
from torch.nn.functional import cross_entropy

from harness_ext.calibration import collect, observed
from harness_ext.calibration.context import DocumentBatches
from harness_ext.calibration.documents import LabelledDocument
from harness_ext.errors import UserError, VariantFailed
from harness_ext.methods import Svd
from harness_ext.recipe.recipe import parse_recipe

# Prompts of different lengths, so that padding matters; answers of one and of two tokens.
DOCUMENTS = [
    LabelledDocument("t", context, answer, str(number))
    for number, (context, answer) in enumerate(
        [
            ("w1 w2 w3", " w4"),
            ("w5 w6 w7 w8 w9", " w10 w11"),
            ("w2 w9", " w3"),
            ("w12 w13 w14 w15", " w16"),
            ("w20 w21 w22", " w23 w24"),
        ]
    )
]


@dataclass
class Seen:
    """What one document does at one matrix: inputs `[t, n]`, gradients of its loss at the outputs `[t, m]`, and whether
    the token gets there at all `[t]`, as it may not with an expert.
    """

    inputs: torch.Tensor
    gradients: torch.Tensor
    there: torch.Tensor


def without_sinks(seen: Seen) -> numpy.ndarray:
    """The places of the tokens that get there and are no sinks: not the first, and no more than six times as long as
    the median of the others.
    """
    norms = numpy.linalg.norm(seen.inputs.numpy(), axis=1)
    others = sorted(norms[place] for place in range(1, len(norms)) if seen.there[place])
    median = others[(len(others) - 1) // 2] if others else numpy.inf
    return numpy.array(
        [place for place in range(1, len(norms)) if seen.there[place] and norms[place] <= 6 * median], dtype=int
    )


def encode(lm, document: LabelledDocument) -> tuple[torch.Tensor, torch.Tensor]:
    context, answer = (lm.tok_encode(text.strip()) for text in (document.context, document.answer))
    return torch.tensor([context + answer[:-1]]), torch.tensor(answer)


def loss_of(lm, document: LabelledDocument) -> torch.Tensor:
    tokens, answer = encode(lm, document)
    return cross_entropy(lm.model(tokens).logits[0, -len(answer) :], answer)


def observe(lm, matrix, document: LabelledDocument) -> Seen:
    """Add a zero that asks for its gradient to the matrix's output: dL/d(zero) is dL/d(output)."""
    if matrix.expert is not None:
        return observe_expert(lm, matrix, document)
    kept: dict[str, torch.Tensor] = {}

    def hook(module, args, output):
        kept["inputs"] = args[0].detach()
        kept["zero"] = torch.zeros_like(output).requires_grad_(True)
        return output + kept["zero"]

    handle = lm.model.get_submodule(matrix.module).register_forward_hook(hook)
    loss_of(lm, document).backward()
    handle.remove()
    # One document a batch, which some modules see as tokens without a batch.
    inputs, gradient = (value.reshape(-1, value.shape[-1]) for value in (kept["inputs"], kept["zero"].grad))
    return Seen(part(inputs, matrix.columns), part(gradient, matrix.rows), torch.ones(len(inputs), dtype=bool))


def observe_expert(lm, matrix, document: LabelledDocument) -> Seen:
    """The same at one of the products in transformers' own loop over experts, which multiplies the tokens sent to an
    expert with its part of the parameter.
    """
    experts = lm.model.get_submodule(matrix.module)
    own = getattr(experts, matrix.parameter.rpartition(".")[2])[matrix.expert].detach()
    kept: dict[str, torch.Tensor] = {}
    real = torch.nn.functional.linear

    def linear(values, weight, bias=None):
        output = real(values, weight, bias)
        if weight.shape != own.shape or not torch.equal(weight, own):
            return output
        kept.update(inputs=values.detach(), zero=torch.zeros_like(output).requires_grad_(True))
        return output + kept["zero"]

    handle = experts.register_forward_pre_hook(lambda module, args: kept.update(chosen=args[1]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "linear", linear)
        loss_of(lm, document).backward()
    handle.remove()
    # The loop takes the tokens whose first choice the expert is first, then those whose second choice it is.
    order = [
        token for choice in kept["chosen"].T.tolist() for token, chosen in enumerate(choice) if chosen == matrix.expert
    ]
    length = len(kept["chosen"])
    seen = Seen(
        torch.zeros(length, matrix.full_shape[1]).double(),
        torch.zeros(length, matrix.full_shape[0]).double(),
        torch.zeros(length, dtype=bool),
    )
    if order:
        seen.inputs[order], seen.gradients[order], seen.there[order] = kept["inputs"], kept["zero"].grad, True
    return Seen(part(seen.inputs, matrix.columns), part(seen.gradients, matrix.rows), seen.there)


def part(values: torch.Tensor, ranges) -> torch.Tensor:
    return values if ranges is None else values[:, [place for start, stop in ranges for place in range(start, stop)]]


# Their attention takes the softmax in float32 of scores masked in the model's dtype: in float64 a padded row overflows
# to NaN. They are compared in float32, less closely.
EAGER = ("gemma2", "bloom")


def observable(make_lm, family: str, words: str):
    """A model, the matrices that a recipe's words choose in its layer 1, and how closely to compare."""
    lm = make_lm(family, dtype="float32" if family in EAGER else "float64")
    matrices = lm.weights.layout.select(parse_recipe(f"identity:layers=[1],{words}").steps[0])
    return lm, matrices, {"rtol": 5e-3, "atol": 1e-4} if family in EAGER else {"rtol": 2e-4, "atol": 1e-7}


def batches(documents: list, size: int) -> list[list]:
    cut = [documents[start : start + size] for start in range(0, len(documents), size)]
    if len(cut) > 1 and len(cut[-1]) == 1:
        last = cut.pop()
        cut[-1] = cut[-1] + last
    return cut


def reference_effects(lm, matrix, weight: torch.Tensor, documents: list[LabelledDocument], size: int) -> numpy.ndarray:
    """max over documents and tokens of <g, u_i> s_i (v_i . dx), dx by hand: the next document's input at the same
    distance from the end.
    """
    u, s, vh = numpy.linalg.svd(weight.numpy(), full_matrices=False)
    best = numpy.full(len(s), -numpy.inf)
    for batch in batches([observe(lm, matrix, document) for document in documents], size):
        for place, here in enumerate(batch):
            there = batch[(place + 1) % len(batch)]
            for back in range(1, min(len(here.inputs), len(there.inputs)) + 1):
                if not (here.there[-back] and there.there[-back]):
                    continue
                dx = (there.inputs[-back] - here.inputs[-back]).numpy()
                g = here.gradients[-back].numpy()
                best = numpy.maximum(best, [(g @ u[:, i]) * s[i] * (vh[i] @ dx) for i in range(len(s))])
    return best


def decompose(lm):
    return lambda matrix: Svd(*torch.linalg.svd(lm.weights.read(matrix), full_matrices=False))


@pytest.mark.parametrize("role", ["k_proj", "o_proj", "up_proj", "down_proj"])
@pytest.mark.parametrize("per_head", ["false", "true"])
@pytest.mark.parametrize("size", [2, 5])
def test_effects_and_means_equal_the_reference(make_lm, family: str, role: str, per_head: str, size: int) -> None:
    lm, matrices, closeness = observable(make_lm, family, f"matrices=[{role}],per_head={per_head}")
    gathered = collect.gather(
        lm,
        matrices,
        frozenset({"counterfactual_effects", "input_mean"}),
        DocumentBatches(DOCUMENTS, size),
        decompose(lm),
    )
    for matrix in matrices[-2:]:
        expected = reference_effects(lm, matrix, lm.weights.read(matrix), DOCUMENTS, size)
        observed = [observe(lm, matrix, document) for document in DOCUMENTS]
        inputs = torch.cat([seen.inputs[without_sinks(seen)] for seen in observed])
        if numpy.isinf(expected).all() or not len(inputs):
            assert matrix.expert is not None and matrix.key not in gathered
            continue
        numpy.testing.assert_allclose(gathered[matrix.key]["counterfactual_effects"].numpy(), expected, **closeness)
        numpy.testing.assert_allclose(
            gathered[matrix.key]["input_mean"].numpy(),
            inputs.mean(0).numpy(),
            rtol=1e-5,
            atol=max(1e-6, closeness["atol"]),
        )


@pytest.mark.parametrize("role", ["k_proj", "down_proj"])
def test_ablation_effects_equal_the_reference(make_lm, family: str, role: str) -> None:
    """The mean over tokens of <g, u_i> s_i (v_i . (x_mean - x)), summed by hand; x_mean is of those that are no
    sinks.
    """
    lm, matrices, closeness = observable(make_lm, family, f"matrices=[{role}]")
    gathered = collect.gather(
        lm, matrices, frozenset({"ablation_effects"}), DocumentBatches(DOCUMENTS, 2), decompose(lm)
    )
    for matrix in matrices:
        u, s, vh = numpy.linalg.svd(lm.weights.read(matrix).numpy(), full_matrices=False)
        seen = [observe(lm, matrix, document) for document in DOCUMENTS]
        inputs, gradients = (
            numpy.concatenate([getattr(one, name)[one.there].numpy() for one in seen])
            for name in ("inputs", "gradients")
        )
        ordinary = numpy.concatenate([one.inputs.numpy()[without_sinks(one)] for one in seen])
        if not len(ordinary):
            assert matrix.expert is not None and matrix.key not in gathered
            continue
        expected = [
            numpy.mean(
                [
                    (g @ u[:, i]) * s[i] * (vh[i] @ (ordinary.mean(0) - x))
                    for g, x in zip(gradients, inputs, strict=True)
                ]
            )
            for i in range(len(s))
        ]
        numpy.testing.assert_allclose(gathered[matrix.key]["ablation_effects"].numpy(), expected, **closeness)


def test_an_ablation_effect_is_the_slope_of_the_loss_in_the_removal(make_lm) -> None:
    """Remove a thousandth of one component, its mean output kept: the summed loss moves by a thousandth of tokens times
    the effect.
    """
    lm = make_lm("gpt2", dtype="float64")
    (matrix,) = lm.weights.layout.select(parse_recipe("identity:matrices=[up_proj],layers=[1]").steps[0])
    effects = collect.gather(
        lm, [matrix], frozenset({"ablation_effects"}), DocumentBatches(DOCUMENTS, 5), decompose(lm)
    )[matrix.key]["ablation_effects"]
    mean = torch.cat(
        [(seen := observe(lm, matrix, document)).inputs[without_sinks(seen)] for document in DOCUMENTS]
    ).mean(0)
    tokens = sum(encode(lm, document)[0].shape[1] for document in DOCUMENTS)
    weight = lm.weights.read(matrix)
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)

    def loss_without(component: int, share: float) -> float:
        removed = share * s[component] * torch.outer(u[:, component], vh[component])
        lm.weights.replace(matrix, weight - removed)
        lm.weights.shift_bias(matrix, removed @ mean)
        with torch.no_grad():
            loss = sum(float(loss_of(lm, document)) for document in DOCUMENTS)
        lm.weights.restore()
        return loss

    for component in range(4):
        slope = (loss_without(component, 1e-4) - loss_without(component, -1e-4)) / 2e-4
        assert slope == pytest.approx(tokens * float(effects[component]), rel=1e-4, abs=1e-7)


def test_an_effect_is_the_slope_of_the_loss_in_the_corruption(make_lm) -> None:
    """Swap in a small part of the other document's input, for one component and one token: the loss moves by the
    effect.

    On GPT-2, whose every operation stays in float64; a Llama normalises in float32 whatever its dtype.
    """
    lm = make_lm("gpt2", dtype="float64")
    (matrix,) = lm.weights.layout.select(parse_recipe("identity:matrices=[up_proj],layers=[1]").steps[0])
    u, s, vh = torch.linalg.svd(lm.weights.read(matrix), full_matrices=False)
    here, there = (observe(lm, matrix, document) for document in (DOCUMENTS[0], DOCUMENTS[3]))
    dx = there.inputs[-2] - here.inputs[-2]

    def corrupted_loss(component: int, amount: float) -> float:
        def hook(module, args, output):
            output = output.clone()
            output[0, -2] += amount * u[:, component] * s[component] * (vh[component] @ dx)
            return output

        handle = lm.model.get_submodule(matrix.module).register_forward_hook(hook)
        with torch.no_grad():
            loss = float(loss_of(lm, DOCUMENTS[0]))
        handle.remove()
        return loss

    for component in range(4):
        effect = float((here.gradients[-2] @ u[:, component]) * s[component] * (vh[component] @ dx))
        slope = (corrupted_loss(component, 1e-5) - corrupted_loss(component, -1e-5)) / 2e-5
        assert slope == pytest.approx(effect, rel=1e-5, abs=1e-9)


def test_matrices_taken_in_several_passes_give_the_same(make_lm, monkeypatch) -> None:
    lm = make_lm("llama")
    matrices = lm.weights.layout.select(parse_recipe("identity:matrices=[attn]").steps[0])
    names = frozenset({"counterfactual_effects", "input_mean"})
    at_once = collect.gather(lm, matrices, names, DocumentBatches(DOCUMENTS, 5), decompose(lm))
    monkeypatch.setattr(collect, "FACTOR_BYTES", 6000)
    assert len(list(collect.groups(matrices, names))) > 3
    in_parts = collect.gather(lm, matrices, names, DocumentBatches(DOCUMENTS, 5), decompose(lm))
    for key, values in at_once.items():
        for name, value in values.items():
            torch.testing.assert_close(in_parts[key][name], value)


def test_the_gradients_of_two_layers_are_never_there_together(make_lm, monkeypatch, plain_family: str) -> None:
    """When those of a layer are reduced, those of the layers above are gone; nor are inputs kept beyond their use."""
    from torch.multiprocessing.reductions import StorageWeakRef

    lm = make_lm(plain_family)
    matrices = lm.weights.layout.select(parse_recipe("identity").steps[0])
    held: dict[int, list[StorageWeakRef]] = {}
    layers: list[int] = []
    real = observed.ObservedModule._show

    def watch(self, module, seen, gradient) -> None:
        layer = self.items[0].matrix.layer
        assert all(
            reference.expired() for other, references in held.items() if other != layer for reference in references
        )
        held.setdefault(layer, []).append(StorageWeakRef(gradient.untyped_storage()))
        layers.append(layer)
        real(self, module, seen, gradient)

    monkeypatch.setattr(observed.ObservedModule, "_show", watch)
    collect.gather(lm, matrices, frozenset({"fisher_information"}), DocumentBatches(DOCUMENTS[:2], 2), decompose(lm))
    assert layers == sorted(layers, reverse=True) and set(layers) == {0, 1, 2}
    assert all(parameter.grad is None for parameter in lm.model.parameters())


@pytest.mark.parametrize("size", [1, 2, 5])
def test_padding_changes_no_statistic(make_lm, plain_family: str, size: int) -> None:
    """One document at a time there is none; whatever the padding holds, the statistics are the same."""
    lm = make_lm(plain_family, dtype="float64")
    matrices = lm.weights.layout.select(parse_recipe("identity").steps[0])
    names = frozenset(
        {
            "input_mean",
            "input_magnitude",
            "input_second_moment",
            "input_second_moment_diagonal",
            "fisher_information",
            "ablation_effects",
        }
    )
    alone = collect.gather(lm, matrices, names, DocumentBatches(DOCUMENTS, 1), decompose(lm))
    for pad in (0, 17):
        lm.tokenizer.pad_token_id = pad
        for key, values in collect.gather(lm, matrices, names, DocumentBatches(DOCUMENTS, size), decompose(lm)).items():
            torch.testing.assert_close(values, alone[key], rtol=1e-4, atol=1e-6)


def test_gathering_leaves_no_trace(make_lm) -> None:
    lm = make_lm("gpt2")
    digest = lm.weights.digest()
    matrices = lm.weights.layout.select(parse_recipe("identity").steps[0])
    collect.gather(lm, matrices, frozenset({"input_mean"}), DocumentBatches(DOCUMENTS, 2), decompose(lm))
    assert lm.weights.digest() == digest
    assert all(parameter.requires_grad and parameter.grad is None for parameter in lm.model.parameters())
    assert not any(module._forward_hooks for module in lm.model.modules())


@pytest.mark.slow
def test_inputs_are_let_go_of_without_the_collector(make_lm) -> None:
    """Those of a large model's layer would fill memory until it runs."""
    lm = make_lm("llama")
    matrices = lm.weights.layout.select(parse_recipe("identity").steps[0])
    seen: list[weakref.ref] = []

    def note(_: object, args: tuple[torch.Tensor, ...]) -> None:
        seen.append(weakref.ref(args[0]))

    modules = [lm.model.get_submodule(matrix.module) for matrix in matrices]
    hooks = [module.register_forward_pre_hook(note) for module in modules]
    gc.collect()
    gc.disable()
    try:
        collect.gather(lm, matrices, frozenset({"input_magnitude"}), DocumentBatches(DOCUMENTS, 2), decompose(lm))
        assert len(seen) >= len(matrices) and not any(reference() is not None for reference in seen)
    finally:
        gc.enable()
        for hook in hooks:
            hook.remove()


def test_a_batch_of_one_has_no_counterfactual(make_lm) -> None:
    lm = make_lm("llama")
    matrices = lm.weights.layout.select(parse_recipe("identity:matrices=[k_proj]").steps[0])
    with pytest.raises(UserError, match="set calibration.batch_size to 2 or more"):
        collect.gather(
            lm, matrices, frozenset({"counterfactual_effects"}), DocumentBatches(DOCUMENTS, 1), decompose(lm)
        )


def test_a_loss_that_is_not_finite_stops_before_any_edit(make_lm) -> None:
    lm = make_lm("llama")
    with torch.no_grad():
        lm.model.model.norm.weight.fill_(float("inf"))
    matrices = lm.weights.layout.select(parse_recipe("identity:matrices=[k_proj]").steps[0])
    with pytest.raises(VariantFailed, match="calibration loss is not finite"):
        collect.gather(lm, matrices, frozenset({"input_mean"}), DocumentBatches(DOCUMENTS, 2), decompose(lm))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_pass_ends_behind_the_last_matrix_that_is_watched(make_lm, monkeypatch, family: str) -> None:
    """To the bit what whole passes give; the head is computed for the first batch alone, whose loss is checked."""
    lm = make_lm(family)
    matrices = lm.weights.layout.select(parse_recipe("identity:layers=[0]").steps[0])
    names = frozenset({"input_mean", "input_second_moment"})
    heads = []
    handle = lm.model.get_output_embeddings().register_forward_hook(lambda *_: heads.append(1))

    def gathered():
        heads.clear()
        found = collect.gather(lm, matrices, names, DocumentBatches(DOCUMENTS, 1), decompose(lm))
        return found, len(heads)

    ended, needed = gathered()
    monkeypatch.setattr(collect, "may_be_stopped", lambda model: False)
    whole, every = gathered()
    handle.remove()
    assert (needed, every) == (1, len(DOCUMENTS))
    assert ended.keys() == whole.keys() != set()
    for key, statistics in whole.items():
        assert statistics.keys() == ended[key].keys()
        assert all(torch.equal(value, ended[key][name]) for name, value in statistics.items())
    assert not any(module._forward_hooks for module in lm.model.modules())


def test_a_pass_goes_on_where_modules_are_moved_or_called_in_parts(make_lm) -> None:
    model = make_lm("llama").model
    assert collect.may_be_stopped(model)
    model.hf_device_map = {"": "cpu"}
    assert not collect.may_be_stopped(model)
    del model.hf_device_map
    model.config.chunk_size_feed_forward = 8
    assert not collect.may_be_stopped(model)
