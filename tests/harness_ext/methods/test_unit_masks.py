"""Keep-probabilities of units: the gradient estimate against exact enumeration in float64 numpy, the projection to the
budget against its law and another algorithm, and the rest against the formulas.
"""

from __future__ import annotations

import itertools

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from harness_ext.errors import RecipeError
from harness_ext.linalg.components import Component
from harness_ext.methods.unit_masks import (
    first_probabilities,
    gradient_estimate,
    highest,
    policy_prune,
    projected,
    stepped,
    wanda_scores,
)
from harness_ext.recipe.recipe import parse_recipe
from harness_ext.recipe.settings import Masking

SEEDS = st.integers(0, 2**31)


def masks_of(units: int) -> numpy.ndarray:
    """Every mask of so many units, `[2^u, u]`."""
    return numpy.array(list(itertools.product((0.0, 1.0), repeat=units)))


def chances_of(masks: numpy.ndarray, probabilities: numpy.ndarray) -> numpy.ndarray:
    return numpy.where(masks == 1, probabilities, 1 - probabilities).prod(1)


def exact_gradient(losses: numpy.ndarray, masks: numpy.ndarray, probabilities: numpy.ndarray) -> numpy.ndarray:
    """Of the expected loss, which is linear in each probability: the loss with the unit less that without it."""
    found = []
    for unit in range(masks.shape[1]):
        others = numpy.delete(masks, unit, 1), numpy.delete(probabilities, unit)
        signed = numpy.where(masks[:, unit] == 1, 1.0, -1.0)
        found.append((signed * losses * chances_of(*others)).sum())
    return numpy.array(found)


@pytest.mark.parametrize(("units", "draws"), [(4, 2), (2, 3), (1, 5)])
@given(seed=SEEDS)
@settings(deadline=None, max_examples=5)
def test_the_mean_of_the_estimate_over_all_draws_is_the_gradient(units: int, draws: int, seed: int) -> None:
    made = numpy.random.default_rng(seed)
    masks, probabilities = masks_of(units), made.uniform(0.05, 0.95, units)
    losses = made.standard_normal(len(masks)) * 3 + 10
    chances = chances_of(masks, probabilities)
    mean, squares = numpy.zeros(units), numpy.zeros(units)
    for drawn in itertools.product(range(len(masks)), repeat=draws):
        own = list(drawn)
        estimate = gradient_estimate(
            torch.tensor(losses[own]), torch.tensor(masks[own]).bool(), torch.tensor(probabilities)
        ).numpy()
        mean += chances[own].prod() * estimate
        squares += chances[own].prod() * estimate**2
    numpy.testing.assert_allclose(mean, exact_gradient(losses, masks, probabilities), rtol=1e-9, atol=1e-9)
    # It is an estimate: where losses differ, so do estimates.
    assert (squares > mean**2).all()


def test_what_all_masks_of_a_step_have_in_common_is_in_no_estimate() -> None:
    made = numpy.random.default_rng(1)
    masks, probabilities = torch.tensor(made.random((3, 6)) < 0.5), torch.tensor(made.uniform(0.1, 0.9, 6))
    losses = torch.tensor(made.standard_normal(3))
    torch.testing.assert_close(
        gradient_estimate(losses, masks, probabilities), gradient_estimate(losses + 100.0, masks, probabilities)
    )
    assert not gradient_estimate(torch.full((3,), 2.0).double(), masks, probabilities).any()


def test_units_that_are_certain_stay_as_they_are() -> None:
    probabilities = torch.tensor([0.0, 1.0, 0.5], dtype=torch.float64)
    masks = torch.tensor([[False, True, True], [False, True, False]])
    gradient = gradient_estimate(torch.tensor([1.0, 3.0], dtype=torch.float64), masks, probabilities)
    # (1 - 2) (1 - .5) / .25 + (3 - 2) (0 - .5) / .25
    assert gradient.tolist() == [0.0, 0.0, -4.0]
    torch.testing.assert_close(stepped(probabilities, gradient, 0.1), probabilities + torch.tensor([0, 0, 0.2]))


@given(st.integers(1, 12), SEEDS, st.floats(0.05, 1))
@settings(deadline=None, max_examples=60)
def test_the_projection_is_the_nearest_point_within_the_budget(units: int, seed: int, share: float) -> None:
    made = numpy.random.default_rng(seed)
    values, budget = made.normal(0.5, 0.8, units), max(1, int(share * units))
    found = projected(torch.tensor(values), budget).numpy()
    assert found.min() >= 0 and found.max() <= 1 and found.sum() <= budget + 1e-9
    # The law of a projection onto a convex set, with any of its points.
    for _ in range(20):
        other = made.random(units)
        other *= min(1.0, budget / other.sum())
        assert (values - found) @ (other - found) <= 1e-9
    numpy.testing.assert_allclose(found, by_breakpoints(values, budget), atol=1e-9)
    numpy.testing.assert_allclose(projected(torch.tensor(found), budget), found, atol=1e-9)


def by_breakpoints(values: numpy.ndarray, budget: float) -> numpy.ndarray:
    """The shift between the two of the places where an entry reaches a bound that the budget lies between."""
    if numpy.clip(values, 0, 1).sum() <= budget:
        return numpy.clip(values, 0, 1)
    places = sorted({0.0, *(place for value in values for place in (value, value - 1) if place > 0)})
    sums = [numpy.clip(values - place, 0, 1).sum() for place in places]
    after = next(number for number, total in enumerate(sums) if total <= budget)
    (low, high), (more, less) = places[after - 1 : after + 1], sums[after - 1 : after + 1]
    return numpy.clip(values - (low + (high - low) * (more - budget) / (more - less)), 0, 1)


def test_steps_find_the_units_that_a_loss_needs() -> None:
    """Two of six units are worth keeping; masks that are drawn tell which."""
    probabilities = torch.full((6,), 1 / 3, dtype=torch.float64)
    worth, generator = torch.tensor([0.0, 1.0, 0, 0, 1.0, 0]), torch.Generator().manual_seed(0)
    for _ in range(300):
        masks = torch.rand(2, 6, generator=generator, dtype=torch.float64) < probabilities
        losses = 2 - (masks * worth).sum(1).double()
        gradient = gradient_estimate(losses, masks, probabilities)
        probabilities = projected(stepped(probabilities, gradient, 0.05), 2)
    assert highest(probabilities, 2).tolist() == [bool(one) for one in worth]


@given(st.integers(1, 6), st.integers(1, 5), SEEDS, st.floats(0.1, 1))
@settings(deadline=None, max_examples=30)
def test_what_it_starts_from_is_the_formula(units: int, width: int, seed: int, share: float) -> None:
    made = numpy.random.default_rng(seed)
    weight, inputs = made.standard_normal((4, units * width)), made.standard_normal((units * width, 30))
    squares = (inputs**2).mean(1)
    scores = wanda_scores(torch.tensor(weight), torch.tensor(squares), units)
    metric = [
        sum(abs(weight[row, column]) * squares[column] ** 0.5 for row in range(4) for column in own) / 4
        for own in numpy.arange(units * width).reshape(units, width)
    ]
    numpy.testing.assert_allclose(scores, metric, rtol=1e-12)
    # Heads that share a key and value are averaged in the paper and added up here: the start is the same.
    for scale in (1.0, 1 / 3):
        own = numpy.array(metric) * scale
        chances = 1 / (1 + numpy.exp(-(own - own.mean()) / (own.std() or 1.0)))
        expected = numpy.clip(chances + share - chances.mean(), 0, 1)
        numpy.testing.assert_allclose(first_probabilities(scores * scale, share), expected, atol=1e-9)


def test_the_highest_stay_and_among_equals_the_first() -> None:
    probabilities = torch.tensor([0.5, 1.0, 0.5, 0.2], dtype=torch.float64)
    assert [highest(probabilities, count).tolist() for count in (0, 2, 4)] == [
        [False] * 4,
        [True, True, False, False],
        [True] * 4,
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_stays_is_untouched_to_the_bit(dtype: torch.dtype) -> None:
    weight, feeding = torch.randn(5, 6).to(dtype), torch.randn(3, 4).to(dtype)
    kept = torch.tensor([True, False, True])
    edit = policy_prune(weight, component=Component({"v_proj": feeding}, {}), kept_units=kept)
    assert edit.values.dtype == dtype and torch.equal(edit.values[:, [0, 1, 4, 5]], weight[:, [0, 1, 4, 5]])
    assert not edit.values[:, 2:4].any() and not edit.unchanged and edit.columns == 4
    beside = edit.beside["v_proj"]
    assert torch.equal(beside.values, feeding * kept[:, None]) and beside.rows == 2
    everything = policy_prune(weight, component=Component({}, {}), kept_units=torch.ones(3).bool())
    assert everything.unchanged and torch.equal(everything.values, weight)
    nothing = policy_prune(weight, component=Component({}, {}), kept_units=torch.zeros(3).bool())
    assert nothing.columns == 0 and not nothing.values.any()


def test_one_mask_a_step_is_refused() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 2"):
        Masking(draws=1)
    with pytest.raises(RecipeError, match=r"masks\.draws"):
        parse_recipe("policy-prune:masks.draws=1")
    with pytest.raises(RecipeError, match=r"masks\.unit_fraction"):
        parse_recipe("policy-prune:unit_fraction=0.5")
