"""Registering from outside: what the decorators refuse, and what is known of a statistic without gathering it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import harness_ext.calibration
import harness_ext.methods
import harness_ext.search
from harness_ext.calibration import statistic
from harness_ext.calibration.collect import check_pairs, held_bytes
from harness_ext.errors import UserError
from harness_ext.methods import method, registered_methods, registry, search_registry, statistic_registry
from harness_ext.methods.registry import HEALED, MASKED, PRIMED, SEARCHED, SHARED, TRAINED, TRIED, sink_use
from harness_ext.methods.search_registry import registered_searches
from harness_ext.methods.statistic_registry import registered_statistics, statistics_among
from harness_ext.search import SearchResult, search


@pytest.fixture(autouse=True)
def as_they_were() -> Iterator[None]:
    """What a test registers is gone afterwards."""
    everything = [registered_methods(), registered_searches(), registered_statistics()]
    yield
    for module, known in zip((registry, search_registry, statistic_registry), everything, strict=True):
        module._registry.clear()
        module._registry.update(known)


class Nothing:
    """A statistic of nothing."""

    def update(self, inputs: Any, gradients: Any, real: Any) -> None:
        """Take in nothing."""

    def result(self) -> None:
        """There is none."""


def test_what_gathering_takes_is_what_the_classes_say() -> None:
    kinds: dict[str, set[str]] = {}
    for name, item in registered_statistics().items():
        kinds.setdefault(item.needs, set()).add(name)
    assert kinds == {
        "inputs": {
            "far_input_mean",
            "input_magnitude",
            "input_mean",
            "input_mean_with_sinks",
            "input_second_moment",
            "input_second_moment_by_halves",
            "input_second_moment_diagonal",
        },
        "originals": {"input_cross_moment", "original_input_mean"},
        "contrasts": {"contrast_differences"},
        "gradients": {"batch_gradients", "fisher_information", "gradient_second_moment"},
        "components": {"counterfactual_effects", "ablation_effects", "singular_value_gradients"},
    }
    assert {name for name, item in registered_statistics().items() if item.needs_gradients} == (
        kinds["gradients"] | kinds["components"]
    )


@pytest.mark.parametrize(
    ("names", "held"),
    [
        ({"input_mean"}, 8 * 7),
        ({"input_mean", "input_second_moment"}, 8 * (7 + 49)),
        ({"fisher_information"}, 8 * 7),
        # Sixteen gradients in fp32.
        ({"batch_gradients"}, 16 * 4 * 5 * 7),
        # The factors [5, 5], [5] and [5, 7] are held once for both.
        ({"ablation_effects", "singular_value_gradients"}, 4 * 5 * (5 + 7) + 8 * (5 + 5)),
        ({"trained_left", "trained_right"}, 0),
    ],
)
def test_bytes_held_for_a_matrix(names: set[str], held: int) -> None:
    assert held_bytes((5, 7), frozenset(names)) == held


def test_a_method_asks_for_a_new_statistic_by_the_name_of_an_argument() -> None:
    statistic(name="nothing_seen", needs="gradients", numbers=lambda shape: 3)(Nothing)

    @method(summary="Nothing.")
    def asking(weight: Any, /, *, nothing_seen: Any, share: float = 0.5) -> Any: ...

    asked = registered_methods()["asking"]
    assert asked.statistics == asked.engine_arguments == {"nothing_seen"} and [*asked.parameters] == ["share"]
    assert asked.needs == "labelled documents" and not asked.contrasts
    assert held_bytes((5, 7), asked.statistics) == 24


def test_a_statistic_that_compares_documents_needs_two_in_a_batch() -> None:
    statistic(name="next_one", needs="inputs", compares_documents=True)(Nothing)
    check_pairs(frozenset({"input_mean"}), {"t": 1}, 1)
    with pytest.raises(UserError, match="batch_size to 2"):
        check_pairs(frozenset({"next_one"}), {"t": 4}, 1)


def test_whether_sink_tokens_belong_in_a_statistic_is_said_of_every_one() -> None:
    assert sink_use([*registered_statistics(), *SEARCHED, *TRAINED, *HEALED, *SHARED, *TRIED, *MASKED, *PRIMED]) == {
        "ablation_effects": "left out of its mean",
        "accepted_components": "left out of its mean",
        "batch_gradients": "counted",
        "contrast_differences": "counted",
        "counterfactual_effects": "counted",
        "far_input_mean": "alone",
        "fisher_information": "counted",
        "gradient_second_moment": "counted",
        "healed_left": "counted",
        "healed_right": "counted",
        "input_cross_moment": "counted",
        "input_magnitude": "counted",
        "input_mean": "left out",
        "input_mean_with_sinks": "counted",
        "input_second_moment": "counted",
        "input_second_moment_by_halves": "counted",
        "input_second_moment_diagonal": "counted",
        "kept_units": "counted",
        "original_input_mean": "counted",
        "prime_units": "counted",
        "removed_components": "left out of its mean",
        "shared_left": "counted",
        "shared_right": "counted",
        "singular_value_gradients": "counted",
        "trained_left": "counted",
        "trained_right": "counted",
    }
    with pytest.raises(ValueError, match="give sinks as one of"):
        statistic(name="seen", needs="inputs", sinks="somewhat")(Nothing)  # type: ignore[arg-type]


@pytest.mark.parametrize("changes", [{"name": "two words"}, {"needs": "luck"}])
def test_a_statistic_that_cannot_be_asked_for_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="give the name of an argument, and needs as one of"):
        statistic(**{"name": "seen", "needs": "inputs", **changes})


def test_a_class_that_gathers_nothing_is_refused() -> None:
    with pytest.raises(TypeError, match="statistic 'seen': int has no update and no result"):
        statistic(name="seen", needs="inputs")(int)  # type: ignore[type-var]


def test_a_name_that_is_taken_is_refused() -> None:
    with pytest.raises(ValueError, match=r"already registered by harness_ext\.calibration\.statistics"):
        statistic(name="input_mean", needs="inputs")(Nothing)

    def laser_search(evaluator: Any, /) -> SearchResult: ...

    with pytest.raises(ValueError, match=r"already registered by harness_ext\.search\.laser"):
        search(summary="Another.", trials=lambda shapes, settings: 1)(laser_search)
    assert [item.make.__module__ for item in statistics_among(["input_mean"])] == ["harness_ext.calibration.statistics"]


def test_what_gives_other_weights_than_it_first_did_says_so() -> None:
    everything = {**registered_methods(), **registered_searches()}
    assert {name: item.revision for name, item in everything.items() if item.revision != 1} == {
        "ablation_prune": 2,
        "allocate_ranks": 2,
        "contrast_projection": 2,
        "eigenprune": 2,
        "eigenprune_greedy": 2,
        "laser_compose": 2,
        "laser_gradient": 2,
        "laser_search": 2,
        "lems": 2,
        "sfsd_surgical": 2,
        "zero_sum": 2,
        "zero_sum_staged": 2,
    }


def test_a_statistic_may_be_asked_for_by_one_value_of_a_setting() -> None:
    def choosing(weight: Any, /, *, input_mean: Any = None, input_magnitude: Any, about: str = "zero") -> Any: ...

    def registered(**uses: tuple[str, str]) -> Any:
        method(summary="Nothing.")(registry.only_if(**uses)(choosing))
        return registered_methods()["choosing"]

    asked = registered(input_mean=("about", "mean"))
    assert asked.with_settings({"about": "zero"}).gathered == {"input_magnitude"}
    assert asked.with_settings({"about": "zero"}).engine_arguments == {"input_magnitude"}
    assert asked.with_settings({"about": "mean"}) == asked
    with pytest.raises(TypeError, match="only_if names a statistic and a setting that it has"):
        registered(input_mean=("above", "mean"))
    with pytest.raises(TypeError, match="'input_magnitude' needs a default for settings that do not use it"):
        registered(input_magnitude=("about", "mean"))


@pytest.mark.parametrize("revision", [0, -1, 1.5, "2", True, None])
def test_a_revision_is_a_whole_number_from_one_on(revision: Any) -> None:
    with pytest.raises(ValueError, match="revision must be a whole number from 1 on, not"):
        method(summary="Nothing.", revision=revision)
    with pytest.raises(ValueError, match="revision must be a whole number from 1 on, not"):
        search(summary="Nothing.", trials=lambda shapes, settings: 1, revision=revision)


def test_a_search_cannot_take_the_name_of_a_method() -> None:
    @search(summary="Nothing.", trials=lambda shapes, settings: 1)
    def identity(evaluator: Any, /) -> SearchResult: ...

    with pytest.warns(UserWarning, match="the search identity of .* is left out: a method has that name"):
        search_registry._load_all.__wrapped__()
    assert "identity" not in registered_searches()


@pytest.mark.parametrize("package", [harness_ext.calibration, harness_ext.methods, harness_ext.search])
def test_the_names_for_outsiders_are_there(package: Any) -> None:
    assert [name for name in package.__all__ if not hasattr(package, name)] == []
    with pytest.raises(AttributeError, match="no_such_name"):
        package.no_such_name  # noqa: B018
