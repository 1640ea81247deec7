"""What a comparison keeps of itself, so that a board can say how many documents it needs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leaderboard import statistics as stats
from leaderboard.compare import needs
from leaderboard.compare.needs import Levels, Needs

ALONE = Levels(0.05, 0.025)


def clipped_values(
    differences: np.ndarray, margin: float, bound: float, clusters: np.ndarray | None, weights: np.ndarray | None
) -> tuple[np.ndarray, float]:
    """The values of the clipped rule, in its plainest form."""
    sizes = np.ones(len(differences)) if weights is None else weights
    z = sizes * margin + np.clip(differences, -bound * sizes, bound * sizes)
    if clusters is not None:
        z, sizes = stats.cluster_sums(z, clusters), stats.cluster_sums(sizes, clusters)
    leaning = float(np.sum(sizes**3) / np.sum(sizes**2))
    return z, max(leaning * (bound - margin), -float(z.min()))


def clipped(differences: np.ndarray, margin: float, bound: float, **more: Any) -> Needs:
    """Needs of the clipped rule."""
    return needs.of_clipped(clipped_values, differences, margin, bound, **more)


class TestClaims:
    """Which verdict is nearest."""

    def test_nothing_changed(self) -> None:
        found = needs.lacking(needs.of_flips(stats.Flips(4, 4, 100), 0.02), 100, ALONE)
        assert found is not None and found.claim == "within" and 1850 < found.documents < 2050

    def test_a_difference_beyond_the_margin_is_to_be_confirmed(self) -> None:
        found = needs.lacking(needs.of_flips(stats.Flips(6, 2, 30), 0.02), 30, ALONE)
        assert found is not None and found.claim == "difference" and 100 < found.documents < 150

    def test_where_those_documents_are_there_the_difference_seen_counts(self) -> None:
        nearer = needs.of_flips(stats.Flips(68, 32, 2000), 0.02)  # 1.8 points of 5 % flips
        found = needs.lacking(nearer, 2000, Levels(0.05, 0.0005))
        assert found is not None and found.claim == "difference" and 2500 < found.documents < 2700
        nearer = needs.of_flips(stats.Flips(130, 100, 3000), 0.02)  # 1 point of 7.7 % flips
        wide = needs.lacking(nearer, 4500, Levels(0.05, 0.0005))
        assert wide is not None and wide.claim == "within as seen" and 4500 < wide.documents < 5000

    def test_close_is_not_more_than_there_is(self) -> None:
        found = needs.lacking(needs.of_flips(stats.Flips(20, 8, 200), 0.02), 2000, ALONE)
        assert found is not None and found.documents <= 2000

    def test_no_flips_are_not_taken_for_none(self) -> None:
        few, many = (needs.of_flips(stats.Flips(0, 0, count), 0.02) for count in (20, 2000))
        assert few.variance == pytest.approx(1 / 21) and many.variance == pytest.approx(1 / 2001)
        assert few.difference == many.difference == ()
        found = needs.lacking(few, 20, ALONE)
        assert found is not None and 149 < found.documents < 1300

    def test_nothing_is_said_without_a_variance(self) -> None:
        found = needs.of_mean(math.nan, 0.0, 0.02)
        assert needs.lacking(found, 10, ALONE) is None and needs.detectable(found, 10, 0.025) is None
        assert needs.to_json(found) is None and needs.from_json(None) is None

    def test_nothing_is_said_of_one_independent_unit(self) -> None:
        one = (
            clipped(np.array([0.3]), 0.05, 1.0),
            clipped(np.array([0.3, -0.1, 0.0]), 0.05, 1.0, clusters=np.zeros(3)),
        )
        weighted = clipped(np.array([3.0]), 0.05, 1.0, weights=np.array([50.0]))
        for found in (*one, weighted):
            assert needs.to_json(found) is None
            assert needs.lacking(found, 3, ALONE) is None and needs.detectable(found, 3, 0.025) is None


class TestMeans:
    """Metrics of which the variance is known."""

    def test_both_bounds_are_met(self) -> None:
        found = needs.lacking(needs.of_mean(4.0, 0.0, 0.2), 30, ALONE)
        assert found == (math.ceil(8.5638 * 4 / 0.04), "within")

    def test_a_best_value_in_the_middle_is_confirmed_by_what_its_test_is_about(self) -> None:
        found = needs.lacking(needs.of_mean(4.0, -0.5, 0.2).of_distance(0.3), 30, ALONE)
        assert found == (math.ceil(7.8489 * 4 / 0.09), "difference")
        assert needs.lacking(needs.of_mean(4.0, -0.5, 0.2).of_distance(0.0), 30, ALONE) is None

    def test_a_perplexity_is_shown_in_its_own_units(self) -> None:
        found = needs.of_mean(0.04, 0.0, 0.02)._replace(base_score=20.0)
        size = 2.8016 * 0.2 / 10
        assert needs.detectable(found, 100, 0.025) == pytest.approx(20 * math.expm1(size), rel=1e-4)
        bits = needs.of_mean(0.04, 0.0, 0.02)._replace(unit=1 / math.log(2))
        assert needs.detectable(bits, 100, 0.025) == pytest.approx(size / math.log(2), rel=1e-4)
        assert needs.detectable(found._replace(variance=1e9), 2, 0.025) is None


class TestClipped:
    """The rule for skewed and bounded differences."""

    def test_until_collapses_are_excluded_only_worse_can_be_said(self) -> None:
        for drop, documents in ((0.5, math.ceil(7.8489 * 0.01 / 0.25)), (-0.5, 93)):
            found = needs.lacking(needs.of_mean(0.01, drop, 0.2)._replace(enough=93), 30, ALONE)
            assert found == (documents, "difference")
        assert needs.lacking(needs.of_mean(0.01, 0.0, 0.2)._replace(enough=93), 30, ALONE) == (93, "within")

    def test_sides_are_recentred_at_the_truth_hoped_for(self) -> None:
        differences = np.random.default_rng(1).normal(-0.01, 0.1, 500)
        found, drop = clipped(differences, 0.05, 1.0), -float(np.mean(differences))
        assert [side.distance for side in found.within] == pytest.approx([0.05, 0.05])
        assert [side.distance for side in found.as_seen] == pytest.approx([0.05 - drop, 0.05 + drop])
        assert [side.distance for side in found.difference] == pytest.approx([abs(drop)])
        assert found.variance == pytest.approx(np.var(differences, ddof=1)) and not found.beyond

    def test_a_bad_tail_needs_more_on_its_own_side(self) -> None:
        generator = np.random.default_rng(2)
        collapsing = np.where(generator.random(2000) < 0.05, -generator.uniform(0.3, 1.0, 2000), 0.0)
        found = clipped(collapsing - collapsing.mean(), 0.05, 1.0)
        losing, gaining = (stats.documents_for((side,), 0.05) for side in found.within)
        assert losing is not None and gaining is not None and losing > gaining

    def test_clusters_count_their_documents(self) -> None:
        alone = np.random.default_rng(3).normal(0, 0.1, 200)
        one = needs.lacking(clipped(alone, 0.05, 1.0), 1, ALONE)
        four = needs.lacking(clipped(np.repeat(alone, 4), 0.05, 1.0, clusters=np.repeat(np.arange(200), 4)), 1, ALONE)
        assert one is not None and four is not None and four.documents == pytest.approx(4 * one.documents, abs=4)

    def test_weights_of_texts_change_nothing_where_they_are_equal(self) -> None:
        changes = np.random.default_rng(4).normal(0, 0.1, 200)
        plain = needs.lacking(clipped(changes, 0.05, 1.0), 1, ALONE)
        weighted = clipped(changes * 50, 0.05, 1.0, weights=np.full(200, 50.0))
        assert needs.lacking(weighted, 1, ALONE) == plain
        assert weighted.variance == pytest.approx(clipped(changes, 0.05, 1.0).variance)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 60),
    st.integers(0, 60),
    st.integers(120, 5000),
    st.sampled_from([0.005, 0.02, 0.1, 0.5]),
    st.sampled_from([ALONE, Levels(0.002, 0.0001)]),
)
def test_the_store_keeps_everything(lost: int, gained: int, count: int, margin: float, levels: Levels) -> None:
    made = needs.of_flips(stats.Flips(lost, gained, count), margin)
    kept = needs.from_json(needs.to_json(made))
    assert kept is not None and kept.beyond == made.beyond
    before, after = needs.lacking(made, count, levels), needs.lacking(kept, count, levels)
    if before is None or after is None:
        assert before is after
    else:
        assert after.documents == pytest.approx(before.documents, rel=1e-3, abs=2)


def test_the_store_keeps_the_clipped_rule() -> None:
    made = clipped(np.random.default_rng(5).standard_t(2.5, 400) * 0.1, 0.05, 1.0)
    text = needs.to_json(made)
    kept = needs.from_json(text)
    assert kept is not None and text is not None and len(text) < 600
    first, second = (needs.lacking(found, 400, ALONE) for found in (made, kept))
    assert first is not None and second is not None and second.claim == first.claim
    assert second.documents == pytest.approx(first.documents, abs=2)
