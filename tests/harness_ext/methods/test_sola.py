"""Prime units beside whitened truncation, against float64 numpy by Cholesky, and its laws, from a matrix to a plan."""

from __future__ import annotations

import json

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness_ext.editing.controls import NoControl, control_recipe
from harness_ext.editing.plan import plan
from harness_ext.errors import RecipeError, UserError
from harness_ext.methods import Edit
from harness_ext.methods.budget import Keep
from harness_ext.methods.sola import prime_of, sola
from harness_ext.model.checkpoint import read_checkpoint
from harness_ext.recipe.recipe import parse_recipe
from harness_ext.runs.factored_export import Destination, export_factored_recipe
from tests.harness_ext.search.plain_search import documents_for, drawing

CASES = st.tuples(st.integers(3, 12), st.integers(3, 12), st.integers(0, 2**31), st.booleans())
IN_MLP = ("gate_proj", "up_proj", "down_proj")


class Case:
    """A matrix `[m, n]`, inputs of 40 tokens, and a third of its rows or of its columns prime."""

    def __init__(self, rows: int, columns: int, seed: int, by_rows: bool) -> None:
        generator = numpy.random.default_rng(seed)
        self.by_rows = by_rows
        self.weight = generator.standard_normal((rows, columns))
        self.inputs = generator.standard_normal((columns, columns)) @ generator.standard_normal((columns, 40))
        self.moment = self.inputs @ self.inputs.T / 40
        units = rows if by_rows else columns
        self.prime = generator.permutation(units) < units // 3
        light = [rows, columns]
        light[0 if by_rows else 1] -= int(self.prime.sum())
        self.light = tuple(light)

    def edit(self, keep: Keep, dtype: torch.dtype = torch.float64) -> Edit:
        mask = torch.tensor(self.prime)
        return sola(
            torch.tensor(self.weight, dtype=dtype),
            input_second_moment=torch.tensor(self.moment),
            prime_units=mask[:, None] if self.by_rows else mask[None],
            keep=keep,
        )

    def reference(self, rank: int) -> numpy.ndarray:
        """`[W S]_k S^-1` of the light part, S a Cholesky factor of the second moment of what it sees."""
        found, light = self.weight.copy(), ~self.prime
        seen = self.moment if self.by_rows else self.moment[light][:, light]
        root = numpy.linalg.cholesky(seen)
        part = self.weight[light] if self.by_rows else self.weight[:, light]
        u, s, vh = numpy.linalg.svd(part @ root, full_matrices=False)
        cut = (u[:, :rank] * s[:rank]) @ vh[:rank] @ numpy.linalg.inv(root)
        if self.by_rows:
            found[light] = cut
        else:
            found[:, light] = cut
        return found


@given(CASES, st.floats(0.05, 1))
@settings(deadline=None, max_examples=60)
def test_the_light_part_is_whitened_and_the_prime_part_stays(case, share: float) -> None:
    one = Case(*case)
    rank = max(1, round(share * min(one.light)))
    found = one.edit(Keep(rank=rank))
    weight = found.weight().numpy()
    numpy.testing.assert_allclose(weight, one.reference(rank), atol=1e-6 * abs(one.weight).max())
    stays = weight[one.prime] if one.by_rows else weight[:, one.prime]
    numpy.testing.assert_allclose(stays, one.weight[one.prime] if one.by_rows else one.weight[:, one.prime], atol=1e-12)
    assert found.rank == min(*one.weight.shape, int(one.prime.sum()) + rank)
    assert numpy.linalg.matrix_rank(weight) <= found.rank


@given(CASES, st.floats(0.45, 1))
@settings(deadline=None, max_examples=60)
def test_the_budget_is_of_all_numbers(case, share: float) -> None:
    one = Case(*case)
    (rows, columns), (light_rows, light_columns) = one.weight.shape, one.light
    dense = rows * columns - light_rows * light_columns
    found = one.edit(Keep(param_fraction=share))
    rank = max(1, int((share * rows * columns - dense) / (light_rows + light_columns) + 1e-9))
    numpy.testing.assert_allclose(found.weight().numpy(), one.reference(rank), atol=1e-6 * abs(one.weight).max())
    # what is stored: the prime rows or columns, and two factors of the rest, or the rest where that is smaller
    numbers = min(rows * columns, dense + rank * (light_rows + light_columns))
    assert (rows * columns if found.numbers is None else found.numbers) == (
        numbers if one.prime.any() else found.numbers or rows * columns
    )
    if one.prime.any() and rank > 1:
        assert numbers <= share * rows * columns + 1e-6


@given(CASES)
@settings(deadline=None, max_examples=30)
def test_at_full_rank_nothing_changes(case) -> None:
    one = Case(*case)
    whole = one.edit(Keep(rank=min(one.light))).weight().numpy()
    numpy.testing.assert_allclose(whole, one.weight, atol=1e-8 * abs(one.weight).max())


@given(CASES)
@settings(deadline=None, max_examples=30)
def test_of_all_light_parts_of_the_rank_it_loses_least(case) -> None:
    """Of outputs, against plain truncation of the same part: what the prime units add is the same in both."""
    one = Case(*case)
    rank = max(1, min(one.light) // 2)
    light = ~one.prime
    part = one.weight[light] if one.by_rows else one.weight[:, light]
    u, s, vh = numpy.linalg.svd(part, full_matrices=False)
    plain = one.weight.copy()
    where = (light, slice(None)) if one.by_rows else (slice(None), light)
    plain[where] = u[:, :rank] * s[:rank] @ vh[:rank]
    found = one.edit(Keep(rank=rank)).weight().numpy()
    lost = [numpy.linalg.norm((one.weight - each) @ one.inputs) for each in (found, plain)]
    assert lost[0] <= lost[1] * (1 + 1e-9) + 1e-9


def test_prime_units_are_those_of_the_largest_magnitude() -> None:
    magnitude, generator = torch.tensor([1.0, 5, 2, 5, 0, 3, 4]), torch.Generator()
    assert prime_of(magnitude, 7, 0.5, generator).nonzero().flatten().tolist() == [1, 3, 6]
    assert int(prime_of(magnitude, 7, 0.01, generator).sum()) == 1
    assert not prime_of(magnitude, 7, 0, generator).any() and not prime_of(magnitude[:1], 1, 0.9, generator).any()
    drawn = [prime_of(None, 7, 0.5, generator.manual_seed(seed)).tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and sum(drawn[2]) == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("by_rows", [True, False])
def test_it_takes_weights_of_any_precision(dtype: torch.dtype, by_rows: bool) -> None:
    one = Case(8, 12, 5, by_rows)
    found = one.edit(Keep(rank=3), dtype)
    assert found.left.dtype == found.right.dtype == dtype
    off = numpy.linalg.norm(found.weight().double().numpy() - one.reference(3))
    assert off <= 20 * torch.finfo(dtype).eps * numpy.linalg.norm(one.weight)


def test_prime_units_that_take_more_than_the_budget_are_refused() -> None:
    with pytest.raises(UserError, match=r"its prime units take 33.3% .* lower prime, or keep more"):
        Case(9, 12, 0, True).edit(Keep(param_fraction=0.3))


# As a recipe.


def applied_to(lm, specification: str):
    return lm.apply(parse_recipe(specification), drawing(documents_for(lm)))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_without_prime_units_it_is_svd_llm(make_lm, family: str) -> None:
    lm = make_lm(family)
    where = "matrices=[q_proj,k_proj,mlp],keep.param_fraction=0.6"
    applied_to(lm, f"svd-llm:{where}")
    wanted = {name: value.clone() for name, value in lm.model.state_dict().items()}
    lm.undo()
    records = applied_to(lm, f"sola:{where},prime=0").records
    for name, value in lm.model.state_dict().items():
        torch.testing.assert_close(value, wanted[name])
    assert all(record.decomposition is None for record in records)


def test_the_same_units_stay_in_all_matrices_of_an_mlp_and_values_stay(make_lm) -> None:
    lm = make_lm("llama")
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    records = applied_to(lm, "sola:keep.param_fraction=0.5").records
    after = lm.model.state_dict()
    assert {record.role for record in records} == {"q_proj", "k_proj", *IN_MLP}
    for layer in {record.layer for record in records}:
        own = {record.role: record.name for record in records if record.layer == layer}
        units = before[own["down_proj"]].shape[1]
        same = [
            (before[own[role]] - after[own[role]]).abs().amax(0 if role == "down_proj" else 1) < 1e-6 for role in IN_MLP
        ]
        assert torch.equal(same[0], same[1]) and torch.equal(same[0], same[2])
        assert int(same[0].sum()) == int(0.15 * units)
    assert all(torch.equal(before[name], after[name]) for name in before if "v_proj" in name or "o_proj" in name)


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
@pytest.mark.parametrize("budget", ["keep.param_fraction=0.5", "keep.param_fraction=0.9", "keep.rank=3"])
def test_plan_and_receipt_count_the_same_and_the_budget_is_kept(make_lm, family: str, budget: str) -> None:
    lm = make_lm(family)
    recipe = parse_recipe(f"sola:{budget}")
    records = {(record.name, record.part): record for record in lm.apply(recipe, drawing(documents_for(lm))).records}
    planned = plan(recipe, read_checkpoint(lm.loaded_from))
    assert {(item.matrix.parameter, item.matrix.part) for item in planned.matrices} == set(records)
    assert planned.parameters_after == lm.totals()["parameters_after"]
    for item in planned.matrices:
        record = records[item.matrix.parameter, item.matrix.part]
        assert (item.rank_after, item.parameters_after) == (record.rank_after, record.parameters_after)
        assert "rank" in budget or record.parameters_after <= float(budget[-3:]) * record.parameters_before


def test_its_control_draws_as_many_units_at_random(make_lm) -> None:
    lm = make_lm("llama")
    recipe = parse_recipe("sola:keep.param_fraction=0.5")
    draw = drawing(documents_for(lm))
    receipt = {"matrices": [record.to_json() for record in lm.apply(recipe, draw).records]}
    lm.undo()
    control = control_recipe("random-subspace:seed=4", recipe, receipt)
    (step,) = control.steps
    assert (step.seed, step.parameters["ranking"], step.keep) == (4, "random", recipe.steps[0].keep)
    drawn = [record.to_json() for record in lm.apply(control, draw).records]
    for ours, theirs in zip(receipt["matrices"], drawn, strict=True):
        assert [ours[key] for key in ("name", "rank_after", "parameters_after")] == [
            theirs[key] for key in ("name", "rank_after", "parameters_after")
        ]
        assert (ours["digest_after"] == theirs["digest_after"]) == (ours["role"] not in IN_MLP)
    with pytest.raises(NoControl, match="which no rank of the whole stands for"):
        control_recipe("bottom-k", recipe, receipt)
    assert control_recipe("noise", recipe, receipt).control == "noise"
    plain = control_recipe("random-subspace", parse_recipe("sola:prime=0"), receipt)
    assert {step.method for step in plain.steps} == {"random_subspace"}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ("factored=true", "two factors of the whole would hold more numbers than it counts"),
        ("keep.format=pifa", "makes it of several pieces"),
        ("heal.steps=5", "would no longer leave the prime units of sola as they are"),
        ("prime=1", "less than 1"),
        ("ranking=obs", "ranking"),
    ],
)
def test_what_it_cannot_be_is_refused(changes: str, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        parse_recipe(f"sola:{changes}")


def test_it_is_not_exported_as_factors(tmp_path) -> None:
    recipe = parse_recipe("sola")
    with pytest.raises(UserError, match="one pair of factors of the whole would hold more numbers"):
        export_factored_recipe(
            recipe, Destination(tmp_path / "out", "factored"), {"pretrained": "demo"}, None, [], None
        )


@pytest.mark.parametrize(
    ("family", "changes", "told"),
    [
        ("llama", "matrices=[gate_proj]", "add down_proj to matrices, or set prime=0"),
        ("mixtral", "matrices=[mlp]", "units of experts cannot be prime"),
        ("llama", "keep.param_fraction=0.1", "lower prime, or keep more"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_by_plan_and_run(make_lm, family: str, changes: str, told: str) -> None:
    recipe, lm = parse_recipe(f"sola:{changes}"), make_lm(family)
    with pytest.raises(UserError, match=told):
        plan(recipe, read_checkpoint(lm.loaded_from))
    with pytest.raises(UserError, match=told):
        lm.apply(recipe, drawing(documents_for(lm)))


@pytest.mark.slow
def test_a_run_and_its_control_are_stored_with_what_they_hold(demo_run, tmp_path) -> None:
    ran = demo_run("--recipe", "sola:calibration.samples=16", "--control", "random-subspace")
    assert ran.code == 0, ran.err
    found = [json.loads(path.read_text()) for path in tmp_path.glob("results/demo/*/receipt.json")]
    sizes = {one["recipe"]["label"]: one["totals"]["parameters_after"] for one in found if one["matrices"]}
    assert len(sizes) == 2 and len(set(sizes.values())) == 1
    for one in found:
        saved = sum(row["parameters_before"] - row["parameters_after"] for row in one["matrices"])
        assert one["totals"]["parameters_after"] == one["totals"]["parameters_before"] - saved
