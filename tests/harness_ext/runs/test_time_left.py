"""The time that a command will still take, by the baseline's scoring and by what was learned so far."""

from __future__ import annotations

import pytest

from harness_ext.demo import demo_path
from harness_ext.model.checkpoint import read_checkpoint
from harness_ext.model.renames import as_loaded
from harness_ext.recipe.recipe import parse_recipe
from harness_ext.runs.time_left import TimeLeft, expected_work, learning_tokens
from tests.harness_ext.test_progress import Clock

WORK = {"a": 1000.0, "a+noise": 0.0, "b": 2000.0, "b+noise": 0.0, "c": 0.0}
BASELINE = {"seconds": {"evaluate": 10.0}, "speed": [{"phase": "scoring", "tokens_per_second": 100.0}]}


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_scoring_and_learning_are_counted_and_learning_is_corrected_by_what_it_took(clock: Clock) -> None:
    left = TimeLeft(WORK, clock)
    assert left.seconds() is None
    left.scored(BASELINE)
    left.finished("baseline", reused=False)
    # Five are scored for 10 s each, and two learn for 10 s and 20 s.
    assert left.seconds() == pytest.approx(80)
    clock.now += 15
    assert left.seconds() == pytest.approx(65)
    clock.now += 35
    # One that takes longer than expected does not eat into the others, which will take longer as well.
    assert left.seconds() == pytest.approx(10 + (10 + 80) + 10 + 10)
    left.finished("a", reused=False)
    assert left.seconds() == pytest.approx(10 + (10 + 80) + 10 + 10)
    # A control that is not made is waited for no longer, and what was there before tells nothing of the pace.
    left.finished("b", reused=True)
    assert left.seconds() == pytest.approx(20)
    left.finished("b+noise", reused=False)
    left.finished("c", reused=False)
    assert not left.seconds()


def test_a_baseline_that_measured_no_speed_tells_nothing(clock: Clock) -> None:
    left = TimeLeft(WORK, clock)
    left.scored({"seconds": {"evaluate": 10.0}})
    assert left.seconds() is None


def test_what_recipes_learn_from_is_told_by_their_passes() -> None:
    checkpoint = as_loaded(read_checkpoint(str(demo_path()), "main"))
    recipes = [parse_recipe(name) for name in ("laser", "svd-llm:calibration.samples=10", "zero-sum")]
    work = expected_work(recipes, ["noise"], checkpoint)
    assert list(work) == [label + end for label in (one.label for one in recipes) for end in ("", "+noise")]
    # The loss before and after, and moments, which are gathered in a pass that has the loss as well.
    assert learning_tokens(recipes[0], checkpoint) == work["laser"] == 0
    assert work["svd-llm:calibration.samples=10"] == pytest.approx(3 * 10 * 64, rel=0.4)
    assert work["zero-sum"] > 5 * 160 * 64 and work["laser+noise"] == 0 < work["zero-sum+noise"] < work["zero-sum"]
