"""Statistics gathered layer by layer are those of whole passes, and take one pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import torch

from harness_ext.calibration import batches, by_layer, statistics
from harness_ext.calibration.collect import gather
from harness_ext.calibration.context import DocumentBatches
from harness_ext.calibration.documents import CalibrationSet, LabelledDocument
from harness_ext.calibration.loss import measured_loss
from harness_ext.editing import learning
from harness_ext.editing.learning import stages
from harness_ext.methods import Svd
from harness_ext.model.decoder_stack import moved_to
from harness_ext.model.typed import pretrained
from harness_ext.recipe.recipe import parse_recipe

TEXTS = [
    ("w1 w2 w3 w4", " w5"),
    ("w6 w7", " w8 w9"),
    ("w3 w1 w2 w8 w9 w5 w4", " w1"),
    ("w2", " w2"),
    ("w9 w8 w7 w6 w5", " w4 w3"),
]
DOCUMENTS = [LabelledDocument("t", context, answer, context) for context, answer in TEXTS]
# Their attention cannot take padding in float64.
EAGER = ("gemma2", "bloom")
INPUTS = frozenset({"input_mean", "input_second_moment", "input_magnitude", "far_input_mean"})
GRADIENTS = frozenset({"fisher_information", "ablation_effects", "singular_value_gradients", "input_mean"})
COMPARED = frozenset({"counterfactual_effects"})


def decompose(lm):
    return lambda matrix: Svd(*torch.linalg.svd(lm.weights.read(matrix), full_matrices=False))


def walk_of(lm, names: frozenset[str], size: int = 3, chosen: str = "identity"):
    matrices = lm.weights.layout.select(parse_recipe(chosen).steps[0])
    walk = by_layer.walk_through(lm, matrices, names, DocumentBatches(DOCUMENTS, size), decompose(lm))
    return matrices, walk


@pytest.fixture
def layer_runs() -> Iterator[Counter[int]]:
    """How many tokens each layer was run on, by its place; filled once a model is given to `counted`."""
    yield Counter()


def counted(lm, runs: Counter[int], stack: ExitStack) -> None:
    layers, _ = by_layer.layers_of(lm.model, lm.weights.layout.matrices)
    for place, layer in enumerate(layers):
        real = type(layer).forward

        def count(*args, _place=place, _layer=layer, _real=real, **kwargs):
            runs[_place] += (args[0] if args else kwargs["hidden_states"]).shape[0]
            return _real(_layer, *args, **kwargs)

        layer.forward = count
        stack.callback(layer.__dict__.pop, "forward")


@pytest.mark.parametrize("names", [INPUTS, GRADIENTS, COMPARED], ids=["inputs", "gradients", "compared"])
def test_statistics_layer_by_layer_are_those_of_whole_passes(make_lm, family: str, names: frozenset[str]) -> None:
    lm = make_lm(family, dtype="float32" if family in EAGER else "float64")
    matrices, walk = walk_of(lm, names)
    assert walk is not None, "every family here is a plain stack"
    whole = gather(lm, matrices, names, DocumentBatches(DOCUMENTS, 3), decompose(lm))
    found = {key: values for _, part in walk.as_it_is(matrices) for key, values in part.items()}
    # An expert may have seen nothing that can be compared.
    assert found.keys() == whole.keys() >= {matrix.key for matrix in matrices if matrix.expert is None}
    for key, values in whole.items():
        assert values.keys() == found[key].keys()
        for name, value in values.items():
            torch.testing.assert_close(found[key][name], value, rtol=1e-6, atol=1e-12)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in lm.model.modules())


@pytest.mark.parametrize("names", [INPUTS, GRADIENTS], ids=["inputs", "gradients"])
def test_a_layer_that_is_edited_on_the_way_changes_nothing_that_comes_after(
    make_lm, plain_family: str, names: frozenset[str]
) -> None:
    """Statistics are of the model as it was, though each layer is spoiled as soon as its own are there."""
    lm = make_lm(plain_family, dtype="float64")
    matrices, walk = walk_of(lm, names)
    whole = gather(lm, matrices, names, DocumentBatches(DOCUMENTS, 3), decompose(lm))
    seen = []
    for part, found in walk.as_it_is(matrices):
        for matrix in part:
            seen.append(matrix.layer)
            for name, value in whole[matrix.key].items():
                torch.testing.assert_close(found[matrix.key][name], value, rtol=1e-6, atol=1e-12)
            lm.weights.replace(matrix, torch.randn(matrix.shape, dtype=torch.float64))
    assert set(seen) == {0, 1, 2}
    lm.undo()


def test_edits_one_after_another_see_what_the_edits_before_them_left(make_lm, plain_family: str) -> None:
    lm = make_lm(plain_family, dtype="float64")
    matrices, walk = walk_of(lm, INPUTS)
    for stage, found in walk.as_edited(matrices, stages):
        now = gather(lm, stage, INPUTS, DocumentBatches(DOCUMENTS, 3), decompose(lm))
        for matrix in stage:
            for name, value in now[matrix.key].items():
                torch.testing.assert_close(found[matrix.key][name], value, rtol=1e-6, atol=1e-12)
            lm.weights.replace(matrix, 0.9 * lm.weights.read(matrix).roll(1, 0))
    lm.undo()


def documents_of(calibration) -> list[CalibrationSet]:
    return [CalibrationSet("t", "train", 0, DOCUMENTS)]


@pytest.mark.parametrize(("recipe", "most"), [("svd-llm", 1), ("asvd", 1), ("wanda", 1), ("fwsvd", 2), ("sfsd", 5)])
def test_learning_takes_one_pass(make_lm, plain_family: str, layer_runs: Counter[int], recipe: str, most: int) -> None:
    """Of each layer: one run for statistics of the model as it is, a second where gradients go back through it, and one
    a stage besides the one that goes on where matrices are edited one after another. Beyond that is one measurement of
    the loss; the other falls off, be it that before the edits or, one after another, that behind them.
    """
    lm = make_lm(plain_family)
    lm.apply(parse_recipe(recipe), documents_of)
    lm.undo()
    with ExitStack() as stack:
        counted(lm, layer_runs, stack)
        # What was learned a moment ago is of this session, and is not learned again.
        lm._statistics_cache = type(lm._statistics_cache)(lm.weights._scratch, limit_bytes=0)
        lm.apply(parse_recipe(recipe), documents_of)
        lm.undo()
    measured = len(DOCUMENTS)
    assert max(layer_runs.values()) <= measured + most * len(DOCUMENTS)
    if recipe != "sfsd":
        assert set(layer_runs.values()) == {measured + most * len(DOCUMENTS)}


@pytest.mark.parametrize("recipe", ["svd-llm", "fwsvd", "sfsd", "eigenprune", "wanda"])
def test_losses_that_fall_off_are_those_that_are_measured(make_lm, plain_family: str, recipe: str) -> None:
    lm = make_lm(plain_family)
    before = measured_loss(lm, DOCUMENTS, 2).mean
    applied = lm.apply(parse_recipe(recipe), documents_of)
    (losses,) = applied.losses
    assert losses["before"] == pytest.approx(before, rel=1e-5)
    assert losses["after"] == pytest.approx(measured_loss(lm, DOCUMENTS, 2).mean, rel=1e-5)
    assert [row["task"] for row in losses["tasks"]] == ["t"] and losses["tasks"][0]["documents"] == len(DOCUMENTS)
    lm.undo()


def test_sums_over_the_same_inputs_are_made_once(make_lm) -> None:
    lm = make_lm("llama")
    matrices, walk = walk_of(lm, INPUTS)
    found = {key: values for _, part in walk.as_it_is(matrices) for key, values in part.items()}
    moments = {matrix.key: found[matrix.key]["input_second_moment"] for matrix in matrices if matrix.layer == 1}
    distinct = {id(value) for value in moments.values()}
    assert len(moments) == 7 and len(distinct) == 4


@pytest.mark.slow
def test_a_model_whose_layers_hand_each_other_more_than_states_takes_whole_passes(make_lm, monkeypatch) -> None:
    lm = make_lm("llama")
    matrices, walk = walk_of(lm, INPUTS)
    assert walk is not None
    other = make_lm("llama")
    layers, _ = by_layer.layers_of(other.model, matrices)
    seen: dict[str, torch.Tensor] = {}
    plain = [layer.forward for layer in layers]

    def first(hidden_states, **kwargs):
        seen["first"] = hidden_states
        return plain[0](hidden_states, **kwargs)

    def last(hidden_states, **kwargs):
        return plain[2](hidden_states + seen["first"], **kwargs)

    layers[0].forward, layers[2].forward = first, last
    _, none = walk_of(other, INPUTS)
    assert none is None
    del layers[0].__dict__["forward"], layers[2].__dict__["forward"]
    by_layer._stacks.pop(layers)
    monkeypatch.setattr(learning, "walk_through", lambda *_: None)
    for recipe in ("svd-llm", "sfsd", "fwsvd"):
        lm.apply(parse_recipe(recipe), documents_of)
        whole = {name: value.detach().clone() for name, value in lm.model.named_parameters()}
        lm.undo()
        monkeypatch.undo()
        lm.apply(parse_recipe(recipe), documents_of)
        for name, value in lm.model.named_parameters():
            torch.testing.assert_close(value, whole[name], rtol=1e-5, atol=1e-6)
        lm.undo()
        monkeypatch.setattr(learning, "walk_through", lambda *_: None)


def test_batches_hold_so_many_tokens_and_no_more(make_lm) -> None:
    lm = make_lm("llama")
    found = list(batches.batches_by_tokens(lm, DOCUMENTS, 16, 12))
    assert [batch.tokens.shape for batch in found] == [(2, 4), (1, 7), (2, 6)]
    assert sum(int(batch.mask.sum()) for batch in found) == sum(
        int(batch.mask.sum()) for batch in batches.batches_by_tokens(lm, DOCUMENTS, 1, 1)
    )
    assert len(list(batches.batches_by_tokens(lm, DOCUMENTS, 1, 1))) == len(DOCUMENTS)


def test_the_loss_asks_for_no_more_logits_than_it_needs(make_lm, plain_family: str) -> None:
    lm = make_lm(plain_family)
    batch = batches.pad(lm, DOCUMENTS[:3])
    shapes = []
    head = pretrained(lm.model).get_output_embeddings()
    handle = head.register_forward_hook(lambda module, args, output: shapes.append(output.shape[1]))
    with torch.no_grad():
        loss = batches.summed_loss(lm, batch)
    handle.remove()
    assert shapes == [2]
    whole = lm.model(**batches.arguments_of(batch)).logits
    torch.testing.assert_close(loss, batches.losses_of_logits(whole, batch).sum())


@pytest.mark.parametrize(("in_fp64", "close"), [(True, 1e-14), (False, 1e-6)])
def test_a_second_moment_is_symmetric_and_that_of_all_tokens(monkeypatch, in_fp64: bool, close: float) -> None:
    """In blocks, of which the last is narrower; and as a GPU that is slow in fp64 makes it."""
    monkeypatch.setattr(statistics, "_multiplies_in_fp64", lambda inputs: in_fp64)
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(4, 3, 50, 600, generator=draw)
    real = torch.rand(4, 3, 50, generator=draw) > 0.3
    moment = statistics.InputSecondMoment()
    for batch, mask in zip(inputs, real, strict=True):
        moment.update(batch, None, mask)
    tokens = inputs[real].double()
    found = moment.result()
    assert torch.equal(found, found.T) and torch.equal(found, moment.result())
    expected = tokens.T @ tokens / len(tokens)
    assert float((found - expected).norm() / expected.norm()) < close


@pytest.mark.parametrize("recipe", ["svd-llm", "sfsd", "fwsvd", "eigenprune"])
def test_one_layer_at_a_time_is_on_the_other_device(
    make_lm, plain_family: str, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no second device here: what is moved where is looked at, and what comes of it."""
    plain = make_lm(plain_family)
    plain.apply(parse_recipe(recipe), documents_of)
    lm = make_lm(plain_family)
    lm.layers_on = other = torch.device("cpu", 1)
    layers, _ = by_layer.layers_of(lm.model, lm.weights.layout.matrices)
    placed: list[int] = []
    places = {id(layer): place for place, layer in enumerate(layers)}

    def to(module: torch.nn.Module, device: torch.device) -> torch.nn.Module:
        (placed.append if device == other else placed.remove)(places[id(module)])
        assert len(placed) <= 1
        return module

    for layer in layers:
        monkeypatch.setattr(layer, "to", to.__get__(layer))

    edited: list[bool] = []
    replace_matrix = lm.weights.replace

    def replace(matrix, weight) -> None:
        edited.append(placed == [matrix.layer])
        replace_matrix(matrix, weight)

    monkeypatch.setattr(lm.weights, "replace", replace)
    lm.apply(parse_recipe(recipe), documents_of)
    assert not placed and edited
    if recipe != "eigenprune":
        # What is decided among all matrices is edited when all is known, where the model is.
        assert all(edited)
    for name, value in lm.model.named_parameters():
        torch.testing.assert_close(value, dict(plain.model.named_parameters())[name], rtol=1e-5, atol=1e-6)


def test_tensors_are_moved_wherever_they_are_nested() -> None:
    there = torch.device("meta")
    mask, cosine, sine = torch.ones(2, 3), torch.ones(1), torch.zeros(1)
    moved = moved_to(there, {"mask": mask, "position": (cosine, sine), "cache": None, "flag": True, "many": [mask]})
    assert moved["mask"].device == moved["position"][1].device == moved["many"][0].device == there
    assert moved["cache"] is None and moved["flag"] is True and isinstance(moved["position"], tuple)


def test_zero_sum_of_one_layer_learns_of_that_layer(make_lm, plain_family: str) -> None:
    """Gradients come down through layers that are not asked about, and have no components."""
    lm = make_lm(plain_family)
    applied = lm.apply(parse_recipe("zero-sum:layers=[1]"), documents_of)
    assert {record.layer for record in applied.records} == {1}
    lm.undo()
