"""Ranks by a rule, end to end on a small model: what is found is what the formulas say of spectra made by numpy."""

from __future__ import annotations

from typing import Any, get_args

import numpy
import pytest
import torch

from harness_ext.errors import BudgetTooSmall
from harness_ext.methods.allocation import Spectrum, d_rank, least_error, scaled
from harness_ext.model.size import stored_parameters
from harness_ext.search.factorisations import Factorisation
from tests.harness_ext.search.test_searches import documents_for, found_by

FACTORISATIONS = get_args(Factorisation)


def inputs_of(lm: Any, module: str, documents: Any) -> numpy.ndarray:
    """What a module is handed of every token of the documents, `[tokens, n]`."""
    seen: list[torch.Tensor] = []
    handle = lm.model.get_submodule(module).register_forward_hook(
        lambda _, args, output: seen.append(args[0].reshape(-1, args[0].shape[-1]))
    )
    for document in documents:
        context, answer = lm._encode_pair(document.context, document.answer)
        with torch.no_grad():
            lm.model(torch.tensor([(context + answer)[:-1]]))
    handle.remove()
    return torch.cat(seen).double().numpy()


def spectra_of(lm: Any, recipe: Any, documents: Any, *, weights_alone: bool) -> dict[str, Spectrum]:
    found = {}
    for matrix in lm.weights.layout.select(recipe):
        weight = lm.weights.read(matrix).double().numpy()
        inputs = inputs_of(lm, matrix.module, documents)
        outputs = weight if weights_alone else weight @ inputs.T / numpy.sqrt(len(inputs))
        values = numpy.linalg.svd(outputs, compute_uv=False)[: min(matrix.shape)]
        found[matrix.key] = Spectrum(matrix.shape, values.tolist(), matrix.role or "", len(inputs))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("factorisation", ["feature_space", "truncate_svd"])
@pytest.mark.parametrize("rule", ["d-rank", "least-error"])
def test_the_ranks_are_those_of_the_rule(make_lm: Any, factorisation: str, rule: str) -> None:
    from harness_ext.recipe.recipe import parse_recipe

    lm = make_lm("llama")
    documents = documents_for(lm, 24)
    text = f"d-rank:rule={rule},factorisation={factorisation},param_fraction=0.6,value_shift=0.2"
    spectra = spectra_of(lm, parse_recipe(text).steps[0], documents, weights_alone=factorisation == "truncate_svd")
    expected = least_error(spectra, 0.6) if rule == "least-error" else scaled(spectra, d_rank(spectra, 0.6, 0.2), 0.6)
    (chosen,) = found_by(lm, text, documents)
    assert chosen["method"] == factorisation and len(expected) > 2
    assert chosen["keep"]["ranks"] == expected


@pytest.mark.slow
@pytest.mark.parametrize("factorisation", FACTORISATIONS)
def test_any_factorisation_takes_any_rule_within_the_budget(make_lm: Any, factorisation: str) -> None:
    lm = make_lm("llama")
    documents = documents_for(lm, 16)
    from harness_ext.recipe.recipe import parse_recipe

    whole = sum(matrix.shape[0] * matrix.shape[1] for matrix in lm.weights.layout.select(parse_recipe("svd").steps[0]))
    for rule in ("uniform", "d-rank", "least-error", "marchenko-pastur"):
        (chosen,) = found_by(lm, f"d-rank:rule={rule},factorisation={factorisation},param_fraction=0.7", documents)
        shapes = {matrix.key: matrix.shape for matrix in lm.weights.layout.matrices}
        ranks = chosen["keep"]["ranks"]
        saved = sum(
            shapes[key][0] * shapes[key][1] - stored_parameters(shapes[key], rank) for key, rank in ranks.items()
        )
        assert saved >= 0.3 * whole


def test_the_last_blocks_pay_for_all(make_lm: Any) -> None:
    lm = make_lm("llama")
    documents = documents_for(lm, 16)
    for rule in ("uniform", "least-error"):
        (chosen,) = found_by(lm, f"d-rank:rule={rule},param_fraction=0.8,last_blocks=1", documents)
        assert {key.split(".")[2] for key in chosen["keep"]["ranks"]} == {str(lm.weights.layout.layers - 1)}
    with pytest.raises(BudgetTooSmall, match="too small|raise last_blocks"):
        found_by(lm, "d-rank:param_fraction=0.3,last_blocks=1", documents)


def test_the_edge_of_the_noise_is_that_of_the_method(make_lm: Any) -> None:
    """Without a budget, ranks are those that `marchenko_pastur` keeps, where these are smaller than dense."""
    from harness_ext.recipe.recipe import recipe_from

    lm = make_lm("llama")
    chosen = found_by(
        lm, "d-rank:rule=marchenko-pastur,factorisation=truncate_svd,param_fraction=1.0", documents_for(lm, 8)
    )
    ranks = chosen[0]["keep"]["ranks"] if chosen else {}
    kept_by = {"name": "kept", "steps": [{"method": "marchenko_pastur", "matrices": ["all"]}]}
    applied = lm.apply(recipe_from(kept_by, origin="kept"), lambda _: [])
    kept = {record.name: record.rank_after for record in applied.records}
    matrices = [matrix for matrix in lm.weights.layout.matrices if matrix.parameter in kept]
    lm.undo()
    assert len(matrices) == 21 and ranks == {
        matrix.key: kept[matrix.parameter]
        for matrix in matrices
        if kept[matrix.parameter] * sum(matrix.shape) < matrix.shape[0] * matrix.shape[1]
    }
