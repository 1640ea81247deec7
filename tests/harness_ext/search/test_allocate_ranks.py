"""Ranks by a rule, end to end on a small model: what is found is what the formulas say of spectra made by numpy."""

from __future__ import annotations

from typing import Any, get_args

import numpy
import pytest
import torch

from harness_ext.errors import BudgetTooSmall, UserError
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
    text = f"{rule}:factorisation={factorisation},param_fraction=0.6"
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
        (chosen,) = found_by(lm, f"least-error:rule={rule},factorisation={factorisation},param_fraction=0.7", documents)
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
        (chosen,) = found_by(lm, f"least-error:rule={rule},param_fraction=0.8,last_blocks=1", documents)
        assert {key.split(".")[2] for key in chosen["keep"]["ranks"]} == {str(lm.weights.layout.layers - 1)}
    with pytest.raises(BudgetTooSmall, match="too small|raise last_blocks"):
        found_by(lm, "d-rank:param_fraction=0.3,last_blocks=1", documents)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["uniform", "d-rank", "svd-llm-v2", "least-error"])
def test_the_last_blocks_get_what_the_rule_says_of_them_alone(make_lm: Any, rule: str) -> None:
    """Two of three layers, at the share of them that is left of four fifths of the three."""
    from harness_ext.methods.allocation import svd_llm_v2, uniform
    from harness_ext.recipe.recipe import parse_recipe

    lm = make_lm("llama")
    documents = documents_for(lm, 24)
    asked = f"least-error:rule={rule},param_fraction=0.8,last_blocks=2{',value_shift=0.2' * (rule == 'd-rank')}"
    spectra = spectra_of(lm, parse_recipe(asked).steps[0], documents, weights_alone=False)
    cut = {key: one for key, one in spectra.items() if key.split(".")[2] != "0"}
    assert 3 * len(cut) == 2 * len(spectra)
    expected = {
        "uniform": lambda: scaled(cut, uniform(cut), 0.7),
        "d-rank": lambda: scaled(cut, d_rank(cut, 0.7, 0.2), 0.7),
        "svd-llm-v2": lambda: scaled(cut, svd_llm_v2(cut, 0.7), 0.7),
        "least-error": lambda: least_error(cut, 0.7),
    }[rule]()
    (chosen,) = found_by(lm, asked, documents)
    assert chosen["keep"]["ranks"] == expected


@pytest.mark.parametrize("rule", ["uniform", "d-rank", "svd-llm-v2", "least-error", "marchenko-pastur"])
def test_blocks_that_cannot_pay_or_are_not_there_are_told(make_lm: Any, rule: str) -> None:
    lm, documents = make_lm("llama"), documents_for(make_lm("llama"), 8)
    with pytest.raises(
        BudgetTooSmall, match=r"hold 0\.667 of the parameters, and the budget is 0\.5: raise last_blocks"
    ):
        found_by(lm, f"least-error:rule={rule},param_fraction=0.5,last_blocks=1", documents)
    with pytest.raises(UserError, match="last_blocks: 3 layers are asked for, and the chosen matrices are in 2"):
        found_by(lm, f"least-error:rule={rule},layers=[0,2],last_blocks=3", documents)


def test_a_search_of_last_blocks_has_a_budget_to_divide() -> None:
    from harness_ext.errors import RecipeError
    from harness_ext.recipe.recipe import parse_recipe

    with pytest.raises(RecipeError, match="last_blocks: a search of them divides a budget"):
        parse_recipe("least-error:rule=marchenko-pastur,last_blocks=search,param_fraction=1.0")


@pytest.mark.parametrize("name", ["least-error", "strs", "lems"])
def test_what_a_search_gathers_follows_from_its_factorisation(name: str) -> None:
    from harness_ext.recipe.recipe import parse_recipe
    from harness_ext.recipe.schema import statistics_of
    from harness_ext.search.factorisations import STATISTICS

    for factorisation in FACTORISATIONS:
        (step,) = parse_recipe(f"{name}:factorisation={factorisation}").steps
        assert statistics_of(step) == STATISTICS[factorisation]


def test_the_edge_of_the_noise_is_that_of_the_method(make_lm: Any) -> None:
    """Without a budget, ranks are those that `marchenko_pastur` keeps, where these are smaller than dense."""
    from harness_ext.recipe.recipe import recipe_from

    lm = make_lm("llama")
    chosen = found_by(
        lm, "least-error:rule=marchenko-pastur,factorisation=truncate_svd,param_fraction=1.0", documents_for(lm, 8)
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
