"""The unedited model beside the edited one: what is learned of both is what two whole models would show."""

from __future__ import annotations

import copy

import pytest
import torch

from harness_ext.calibration.by_layer import LayerWalk, walk_through
from harness_ext.calibration.collect import needs_originals
from harness_ext.calibration.context import DocumentBatches
from harness_ext.calibration.documents import LabelledDocument
from harness_ext.editing.learning import stages
from harness_ext.methods import Svd
from harness_ext.recipe.recipe import parse_recipe
from tests.harness_ext.search.plain_search import documents_for, drawing

TEXTS = [("w1 w2 w3 w4", " w5"), ("w6 w7", " w8 w9"), ("w3 w1 w2 w8 w9 w5 w4", " w1"), ("w9 w8 w7 w6 w5", " w4 w3")]
DOCUMENTS = [LabelledDocument("t", context, answer, context) for context, answer in TEXTS]
NAMES = frozenset({"input_second_moment", "input_cross_moment", "input_mean_with_sinks", "original_input_mean"})


def inputs_of(model: torch.nn.Module, lm, module: str) -> torch.Tensor:
    """What a module is handed of every real token, document by document, in a plain pass of its own."""
    seen: list[torch.Tensor] = []
    hook = model.get_submodule(module).register_forward_pre_hook(
        lambda _, args: seen.append(args[0].reshape(-1, args[0].shape[-1]))
    )
    with torch.no_grad():
        for context, answer in TEXTS:
            model(torch.tensor([lm.tok_encode(context + answer)[:-1]]), use_cache=False)
    hook.remove()
    return torch.cat(seen).double()


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 3])
def test_both_streams_are_those_of_two_models(make_lm, size: int) -> None:
    lm = make_lm("llama", dtype="float64")
    unedited = copy.deepcopy(lm.model)
    matrices = lm.weights.layout.select(parse_recipe("identity").steps[0])

    def no_factors(matrix) -> Svd:
        raise AssertionError(matrix)

    walk = walk_through(lm, matrices, NAMES, DocumentBatches(DOCUMENTS, size), no_factors)
    assert walk is not None
    layers = list(walk.stack.layers)
    seen = 0
    for stage, found in walk.as_edited(matrices, stages):
        for matrix in stage:
            before, after = inputs_of(unedited, lm, matrix.module), inputs_of(lm.model, lm, matrix.module)
            assert len(before) == len(after)
            wanted = {
                "input_cross_moment": before.T @ after / len(before),
                "input_second_moment": after.T @ after / len(after),
                "input_mean_with_sinks": after.mean(0),
                "original_input_mean": before.mean(0),
            }
            for name, value in wanted.items():
                torch.testing.assert_close(
                    found[matrix.key][name], value, rtol=1e-6, atol=1e-7 * float(value.abs().max())
                )  # inputs come in fp32
            seen += 1
        with torch.no_grad():
            for matrix in stage:
                lm.weights.replace(matrix, 0.7 * lm.weights.read(matrix))
    assert seen == len(matrices) and list(walk.stack.layers) == layers


def test_experts_are_refused(make_lm) -> None:
    from harness_ext.errors import UserError

    lm = make_lm("mixtral", dtype="float64")
    matrices = [matrix for matrix in lm.weights.layout.matrices if matrix.expert is not None]
    walk = walk_through(lm, matrices, NAMES, DocumentBatches(DOCUMENTS, 2), lambda matrix: None)
    if walk is None:
        pytest.skip("no plain stack here")
    with pytest.raises(UserError, match=r"holds experts, .*choose a method"):
        list(walk.as_edited(matrices, stages))


def test_sfsd_is_the_anchored_kernel_with_no_anchor_on_one_runner(make_lm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both edit stage by stage on `LayerWalk.as_edited`, `sfsd` without the second stream that it has no use for; where
    the ridge vanishes, an anchor of 0 leaves the weights as they are, and centred with its bias it is `sfsd`.
    """
    lm = make_lm("llama", dtype="float64")
    walked, as_edited = [], LayerWalk.as_edited
    monkeypatch.setattr(
        LayerWalk, "as_edited", lambda walk, *given: (walked.append(walk.names), as_edited(walk, *given))[1]
    )
    documents = documents_for(lm, 24)
    found = []
    for name in ("sfsd:keep.rank=3", "aa-svd:keep.rank=3,anchor=0,ridge=1e-10,centred=true,bias=true"):
        recipe = parse_recipe(name)
        lm.apply(recipe, drawing(documents))
        matrices = lm.weights.layout.select(recipe.steps[0])
        found.append([value for one in matrices for value in (lm.weights.values(one), lm.weights.bias_of(one))])
        lm.undo()
    assert [needs_originals(names) for names in walked] == [False, True]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * float(one.abs().max()))
