"""The time that a command will still take, by the baseline's scoring and by what was learned so far."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from harness_ext.demo import demo_path
from harness_ext.editing.plan import TOKENS, plan_of_loaded
from harness_ext.model.checkpoint import read_checkpoint
from harness_ext.model.renames import as_loaded
from harness_ext.recipe.recipe import parse_recipe
from harness_ext.runs.time_left import TimeLeft, Work, expected_work, learning_tokens
from tests.harness_ext.test_progress import Clock

WORK = {"a": Work(1000.0), "a+noise": Work(), "b": Work(1000.0, 1000.0), "b+noise": Work(), "c": Work()}
BASELINE: dict[str, Any] = {
    "seconds": {"evaluate": 10.0},
    "speed": [{"phase": "scoring", "tokens_per_second": 100.0, "length": float(TOKENS)}],
}

# An audit of SmolLM2-135M-Instruct on two cores: what each variant learns and decomposes, and its seconds.
AUDITED = {
    "laser": (Work(0, 91), 4.4),
    "laser+random-subspace": (Work(0, 91), 4.2),
    "eigenprune": (Work(36_864, 38), 22.6),
    "eigenprune+random-subspace": (Work(0, 38), 4.4),
    "svd-llm": (Work(18_432, 10_456), 90.9),
    "svd-llm+random-subspace": (Work(0, 10_456), 19.8),
    "zero-sum": (Work(61_440, 20_912), 99.1),
    "zero-sum+random-subspace": (Work(12_288, 10_456), 55.2),
    "laser-search": (Work(13_107, 273), 21.3),
}


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
    # One that takes longer than expected lengthens itself, and the others only when it is done.
    assert left.seconds() == pytest.approx(0.25 * 50 + 10 + 30 + 10 + 10)
    left.finished("a", reused=False)
    # It took four times as long; what was expected counts as much as two of the five.
    pace = (12 + 40) / (12 + 10)
    assert left.seconds() == pytest.approx(10 + (10 + pace * 20) + 10 + 10)
    # A control that is not made is waited for no longer, and what was there before tells nothing of the pace.
    left.finished("b", reused=True)
    assert left.seconds() == pytest.approx(20)
    left.finished("b+noise", reused=False)
    left.finished("c", reused=False)
    assert not left.seconds()


def test_documents_to_learn_from_are_taken_to_be_as_long_as_the_scored_ones(clock: Clock) -> None:
    left = TimeLeft(WORK, clock)
    left.scored({**BASELINE, "speed": [{**BASELINE["speed"][0], "length": TOKENS / 4}]})
    assert left.seconds() == pytest.approx(50 + 2 * 10 / 4 + 10)


def test_what_is_told_of_a_whole_command_is_steady_and_roughly_right(clock: Clock) -> None:
    left = TimeLeft({label: work for label, (work, _) in AUDITED.items()}, clock)
    speed = {"phase": "scoring", "tokens_per_second": 503.7, "length": 9.7}
    left.scored({"seconds": {"evaluate": 4.2}, "speed": [speed]})
    end, told = clock.now + sum(seconds for _, seconds in AUDITED.values()), []
    for place, (label, (_, seconds)) in enumerate(AUDITED.items()):
        done = clock.now + seconds
        while clock.now < done:
            told.append((place, left.seconds(), end - clock.now))
            clock.now += 4
        clock.now = done
        left.finished(label, reused=False)
    assert not left.seconds()
    for place, expected, truth in told:
        # Of the last seconds nothing is known but that they are few.
        assert place < 2 or truth / 2 < expected < 2 * truth or max(expected, truth) < 20
    assert all(after < 1.5 * before for (_, before, _), (_, after, _) in itertools.pairwise(told))


def test_a_baseline_that_measured_no_speed_tells_nothing(clock: Clock) -> None:
    left = TimeLeft(WORK, clock)
    left.scored({"seconds": {"evaluate": 10.0}})
    assert left.seconds() is None


def test_what_recipes_learn_from_is_told_by_their_passes() -> None:
    checkpoint = as_loaded(read_checkpoint(str(demo_path()), "main"))
    recipes = [parse_recipe(name) for name in ("laser", "svd-llm:calibration.samples=10", "zero-sum")]
    work = expected_work(recipes, ["noise"], checkpoint)
    planned = [plan_of_loaded(recipe, checkpoint) for recipe in recipes]
    assert list(work) == [label + end for label in (one.label for one in recipes) for end in ("", "+noise")]
    # The loss before and after, and moments, which are gathered in a pass that has the loss as well.
    assert learning_tokens(planned[0]) == work["laser"].tokens == 0
    assert work["svd-llm:calibration.samples=10"].tokens == pytest.approx(3 * 10 * 64, rel=0.4)
    assert work["zero-sum"].tokens > 5 * 160 * 64 and work["laser+noise"].tokens == 0
    assert 0 < work["zero-sum+noise"].tokens < work["zero-sum"].tokens
    # A control decomposes what its recipe does, and once what that does for its search and for what it found.
    assert 0 < work["laser"].edits == work["laser+noise"].edits
    assert work["svd-llm:calibration.samples=10+noise"].edits == work["svd-llm:calibration.samples=10"].edits
    assert work["zero-sum"].edits == 2 * work["zero-sum+noise"].edits > 0
