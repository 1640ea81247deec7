"""Ranks of an allocator for groups that share a basis, and for what is truncated beside prime units: against the
formulas in numpy, the budget counted in the model, from the search to its control.
"""

from __future__ import annotations

import math
from typing import Any

import numpy
import pytest

from harness_ext.editing.controls import control_recipe
from harness_ext.editing.plan import plan
from harness_ext.errors import RecipeError, UserError
from harness_ext.methods.allocation import Spectrum, least_error, scaled
from harness_ext.model.checkpoint import read_checkpoint
from harness_ext.recipe.recipe import parse_recipe, recipe_from
from tests.harness_ext.search.test_allocate_ranks import inputs_of
from tests.harness_ext.search.test_searches import documents_for, drawing, found_by

SHARED = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
RULES = ("uniform", "d-rank", "svd-llm-v2", "least-error", "marchenko-pastur")
FACTORISATIONS = ("basis_sharing", "sola")


def selected(lm: Any) -> list[Any]:
    return list(lm.weights.layout.select(parse_recipe("svd").steps[0]))


def groups_by_hand(matrices: list[Any], size: int) -> list[list[Any]]:
    """Consecutive layers of a shared role, so many at a time; every other matrix by itself."""
    groups = [[matrix] for matrix in matrices if matrix.role not in SHARED]
    for role in SHARED:
        own = sorted((matrix for matrix in matrices if matrix.role == role), key=lambda matrix: matrix.layer)
        groups += [own[start : start + size] for start in range(0, len(own), size)]
    return groups


def singular(weight: numpy.ndarray, inputs: numpy.ndarray, tokens: int) -> list[float]:
    """Of `W X / sqrt(tokens)`, X `[n, N]`."""
    values = numpy.linalg.svd(weight @ inputs / math.sqrt(tokens), compute_uv=False)
    return values[: min(weight.shape)].tolist()


def of_groups(lm: Any, documents: Any, size: int) -> tuple[dict[str, Spectrum], dict[str, list[str]]]:
    """The spectra of groups, by the first of each: all matrices on all inputs of the group; and who is in which."""
    spectra, members = {}, {}
    for group in groups_by_hand(selected(lm), size):
        weight = numpy.vstack([lm.weights.read(matrix).double().numpy() for matrix in group])
        seen = [inputs_of(lm, matrix.module, documents).T for matrix in group]
        values = singular(weight, numpy.hstack(seen), seen[0].shape[1])
        spectra[group[0].key] = Spectrum(weight.shape, values, group[0].role, seen[0].shape[1])
        members[group[0].key] = [matrix.key for matrix in group]
    return spectra, members


def of_light_parts(lm: Any, documents: Any, share: float) -> dict[str, Spectrum]:
    """The spectra of what is beside prime units, those of the largest mean of |h|."""
    spectra, prime = {}, {}
    for matrix in selected(lm):
        if matrix.role == "down_proj":
            magnitude = abs(inputs_of(lm, matrix.module, documents)).mean(0)
            prime[matrix.layer] = numpy.argsort(-magnitude)[: int(share * len(magnitude))]
    for matrix in selected(lm):
        weight, seen = lm.weights.read(matrix).double().numpy(), inputs_of(lm, matrix.module, documents).T
        if matrix.role == "down_proj":
            weight, seen = (numpy.delete(one, prime[matrix.layer], axis) for one, axis in ((weight, 1), (seen, 0)))
        elif matrix.role in MLP:
            weight = numpy.delete(weight, prime[matrix.layer], 0)
        beside = math.prod(matrix.shape) - weight.size
        values = singular(weight, seen, seen.shape[1])
        spectra[matrix.key] = Spectrum(weight.shape, values, matrix.role, seen.shape[1], beside)
    return spectra


def effective_rank(values: list[float]) -> float:
    shares = numpy.square(values) / numpy.square(values).sum()
    return float(numpy.exp(-(shares[shares > 0] * numpy.log(shares[shares > 0])).sum()))


def d_rank_by_hand(spectra: dict[str, Spectrum], share: float) -> dict[str, float]:
    """`k = sqrt(R / w) P / sum sqrt(R w)`, P what the kind may keep less what stays of it."""
    wanted = {}
    for kind in {one.kind for one in spectra.values()}:
        own = {key: one for key, one in spectra.items() if one.kind == kind}
        stays = sum(one.beside for one in own.values())
        numbers = share * (sum(math.prod(one.shape) for one in own.values()) + stays) - stays
        total = sum(math.sqrt(effective_rank(one.values) * sum(one.shape)) for one in own.values())
        for key, one in own.items():
            wanted[key] = math.sqrt(effective_rank(one.values) / sum(one.shape)) * numbers / total
    return wanted


def ranks_by_hand(spectra: dict[str, Spectrum], rule: str, share: float) -> dict[str, int]:
    return (
        least_error(spectra, share) if rule == "least-error" else scaled(spectra, d_rank_by_hand(spectra, share), share)
    )


@pytest.mark.parametrize("rule", ["d-rank", "least-error"])
def test_a_group_has_the_rank_that_the_rule_says_of_its_spectrum(make_lm: Any, rule: str) -> None:
    lm = make_lm("llama", dtype="float64")
    documents = documents_for(lm, 24)
    spectra, members = of_groups(lm, documents, 2)
    expected = ranks_by_hand(spectra, rule, 0.6)
    words = f"least-error:rule={rule},factorisation=basis_sharing,param_fraction=0.6"
    (chosen,) = found_by(lm, words, documents)
    assert (chosen["method"], chosen["layers_in_group"]) == ("basis_sharing", 2)
    assert len(set(expected.values())) > 2
    assert chosen["keep"]["ranks"] == {key: rank for first, rank in expected.items() for key in members[first]}


@pytest.mark.parametrize("rule", ["d-rank", "least-error"])
def test_what_is_beside_prime_units_has_the_rank_that_the_rule_says(make_lm: Any, rule: str) -> None:
    lm = make_lm("llama", dtype="float64")
    documents = documents_for(lm, 24)
    spectra = of_light_parts(lm, documents, 0.15)
    assert {one.kind for one in spectra.values() if one.beside} == set(MLP)
    expected = ranks_by_hand(spectra, rule, 0.6)
    (chosen,) = found_by(lm, f"least-error:rule={rule},factorisation=sola,param_fraction=0.6", documents)
    assert (chosen["method"], chosen["prime"]) == ("sola", 0.15)
    cut = {key: rank for key, rank in chosen["keep"]["ranks"].items() if rank < min(spectra[key].shape)}
    assert cut == expected and len(set(expected.values())) > 2
    # What tells the prime units of an MLP is in the step even where it is not cut.
    assert all("down_proj" in key for key in chosen["keep"]["ranks"] if key not in cut)


@pytest.mark.parametrize("align", [1, 2])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("factorisation", FACTORISATIONS)
def test_the_budget_is_kept_to_the_parameter(make_lm: Any, factorisation: str, rule: str, align: int) -> None:
    """As the receipt counts the model: no more than the share, and no room for another multiple of any piece."""
    lm = make_lm("llama")
    documents = documents_for(lm, 16)
    recipe = parse_recipe(f"least-error:rule={rule},factorisation={factorisation},param_fraction=0.7,align={align}")
    applied = lm.apply(recipe, drawing(documents))
    whole = sum(math.prod(matrix.shape) for matrix in selected(lm))
    totals = lm.totals()
    left = math.floor(0.7 * whole + 1e-9) - (whole - (totals["parameters_before"] - totals["parameters_after"]))
    (chosen,) = applied.searches[0]["chosen"]
    assert left >= 0 and all(rank % align == 0 for rank in chosen["keep"]["ranks"].values())
    planned = plan(recipe, read_checkpoint(lm.loaded_from)).parameters_after
    assert planned - left == totals["parameters_after"]
    if rule in ("uniform", "d-rank", "svd-llm-v2"):
        lm.undo()
        assert _firsts(lm, chosen)
        for key in _firsts(lm, chosen):
            grown = {**chosen["keep"]["ranks"]}
            for other in _group_of(lm, chosen, key):
                grown[other] += align
            again = {"name": "grown", "steps": [{**chosen, "keep": {"ranks": grown}}]}
            lm.apply(recipe_from(again, origin="grown"), drawing(documents))
            assert lm.totals()["parameters_after"] > planned
            lm.undo()


def _group_of(lm: Any, chosen: dict[str, Any], key: str) -> list[str]:
    size = chosen.get("layers_in_group", 1)
    groups = groups_by_hand(selected(lm), size) if size > 1 else [[matrix] for matrix in selected(lm)]
    return next([matrix.key for matrix in group] for group in groups if any(matrix.key == key for matrix in group))


def _firsts(lm: Any, chosen: dict[str, Any]) -> list[str]:
    """One piece of each kind whose rank can grow."""
    found: dict[str, str] = {}
    for matrix in selected(lm):
        rank = chosen["keep"]["ranks"].get(matrix.key)
        if rank is not None and rank + 2 < min(matrix.shape) * 0.8:
            found.setdefault(matrix.role, _group_of(lm, chosen, matrix.key)[0])
    return list(found.values())


@pytest.mark.parametrize("factorisation", FACTORISATIONS)
def test_uniform_is_what_the_method_does_by_itself_and_what_rounding_leaves(make_lm: Any, factorisation: str) -> None:
    """Ranks as by `keep.param_fraction`, or one more; and at the former the same weights to the bit."""
    lm = make_lm("llama")
    documents = documents_for(lm, 16)
    recipe = {"basis_sharing": "basis-sharing", "sola": "sola"}[factorisation]
    own = parse_recipe(f"{recipe}:matrices=[all],keep.param_fraction=0.6")
    lm.apply(own, drawing(documents))
    digest = lm.weights.digest()
    lm.undo()
    even = {}
    pieces = groups_by_hand(selected(lm), 2) if factorisation == "basis_sharing" else [[one] for one in selected(lm)]
    for group in pieces:
        (rows, columns), shape = group[0].shape, [len(group) * group[0].shape[0], group[0].shape[1]]
        if factorisation == "sola" and group[0].role in MLP:
            shape = (
                [rows, columns - int(0.15 * columns)]
                if group[0].role == "down_proj"
                else [rows - int(0.15 * rows), columns]
            )
        numbers = 0.6 * len(group) * rows * columns - (len(group) * rows * columns - math.prod(shape))
        even |= {matrix.key: math.floor(numbers / sum(shape) + 1e-9) for matrix in group}
    step = {**own.steps[0].model_dump(mode="json", exclude_none=True), "keep": {"ranks": even}}
    lm.apply(recipe_from({"name": "even", "steps": [step]}, origin="even"), drawing(documents))
    assert lm.weights.digest() == digest
    lm.undo()
    (chosen,) = found_by(lm, f"least-error:rule=uniform,factorisation={factorisation},param_fraction=0.6", documents)
    assert {chosen["keep"]["ranks"][key] - rank for key, rank in even.items()} <= {0, 1}


@pytest.mark.parametrize("factorisation", FACTORISATIONS)
def test_the_last_blocks_are_grouped_among_themselves(make_lm: Any, factorisation: str) -> None:
    lm = make_lm("llama")
    words = f"least-error:rule=uniform,factorisation={factorisation},param_fraction=0.8,last_blocks=2"
    (chosen,) = found_by(lm, words, documents_for(lm, 16))
    assert {key.split(".")[2] for key in chosen["keep"]["ranks"]} == {"1", "2"}
    if factorisation == "basis_sharing":
        ranks = chosen["keep"]["ranks"]
        assert all(
            ranks[key] == ranks[key.replace("layers.1", "layers.2")]
            for key in ranks
            if "layers.1" in key and key.split(".")[-2] in SHARED
        )


def test_settings_of_both_reach_the_steps(make_lm: Any) -> None:
    lm = make_lm("llama")
    documents = documents_for(lm, 16)
    (groups,) = found_by(lm, "d-rank:factorisation=basis_sharing,layers_in_group=3,value_shift=0.1", documents)
    assert groups["layers_in_group"] == 3
    ranks = groups["keep"]["ranks"]
    assert all(len({rank for key, rank in ranks.items() if role in key}) <= 1 for role in SHARED)
    (light,) = found_by(lm, "d-rank:factorisation=sola,prime=0.3,matrices=[mlp],value_shift=0.0", documents)
    assert light["prime"] == 0.3
    (plain,) = found_by(lm, "least-error:factorisation=sola,prime=0", documents)
    (svd,) = found_by(lm, "least-error", documents)
    assert plain["keep"]["ranks"] == svd["keep"]["ranks"]


def test_the_control_of_prime_units_draws_them_at_random(make_lm: Any) -> None:
    lm = make_lm("llama")
    draw = drawing(documents_for(lm, 16))
    recipe = parse_recipe("least-error:factorisation=sola,param_fraction=0.6")
    applied = lm.apply(recipe, draw)
    receipt = {"matrices": [record.to_json() for record in applied.records], "searches": applied.searches}
    after = lm.totals()["parameters_after"]
    lm.undo()
    control = control_recipe("random-subspace:seed=4", recipe, receipt)
    (step,) = control.steps
    assert (step.method, step.parameters["ranking"], step.seed) == ("sola", "random", 4)
    lm.apply(control, draw)
    assert lm.totals()["parameters_after"] == after


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("d-rank:prime=0.1", "prime: it belongs to the factorisation sola, and feature_space has none; leave it out"),
        ("d-rank:layers_in_group=2,factorisation=sola", "layers_in_group: it belongs to the factorisation basis_shar"),
        (
            "d-rank:factorisation=sola,last_blocks=search",
            "give a number, or choose another factorisation, such as feat",
        ),
        (
            "d-rank:factorisation=basis_sharing,last_blocks=search",
            "last_blocks: a search of them tries edits of single",
        ),
        ("d-rank:factorisation=sola,factored=true", "sola leaves some rows or columns .* leave factored out"),
        ("d-rank:factorisation=sola,heal.steps=4", "the prime units of sola as they are: leave it out, or set prime=0"),
        ("d-rank:factorisation=basis_sharing,heal.steps=4", "those of basis_sharing would no longer be shared"),
        ("strs:factorisation=sola", "'feature_space', 'anchored', .* or 'truncate_svd'"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_read(words: str, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        parse_recipe(words)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("least-error:factorisation=sola,param_fraction=0.1,prime=0.3,matrices=[mlp]", "prime units alone take 0.3"),
        ("least-error:factorisation=sola,matrices=[gate_proj]", "add down_proj to matrices, or set prime=0"),
        ("d-rank:factorisation=basis_sharing,param_fraction=0.01", "too small for a rank of 1"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_by_plan_and_run(make_lm: Any, words: str, told: str) -> None:
    lm = make_lm("llama")
    with pytest.raises(UserError, match=told):
        plan(parse_recipe(words), read_checkpoint(lm.loaded_from))
    with pytest.raises(Exception, match=told):
        lm.apply(parse_recipe(words), drawing(documents_for(lm)))
