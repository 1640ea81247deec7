"""Gates of runs without samples, by their two scores alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from leaderboard.gate import formats, table
from tests.leaderboard.gate.gating import gated, row, two, without_samples


class TestUnpaired:
    """A policy may decide by the two scores alone; its row says so."""

    @pytest.mark.parametrize(
        ("count", "lost", "margin", "verdict"),
        [
            (300, 90, 0.05, "FAIL"),
            (300, 0, 0.06, "PASS"),
            (300, 0, 0.02, "UNDECIDED"),
            (300, 6, 0.04, "UNDECIDED"),
            (2_000, 60, 0.04, "WARN"),
        ],
    )
    def test_words(self, made: Any, kit: Any, count: int, lost: int, margin: float, verdict: str) -> None:
        candidate, base = without_samples(made, kit, count, lost)
        report = gated(candidate, base, margin=margin, allow_unpaired=True)
        found = row(report)
        assert (found.verdict, found.unpaired, found.documents) == (verdict, True, count)
        assert found.drop == pytest.approx(lost / count) and found.drop_low is not None and found.drop_high is not None
        assert found.drop_low < found.drop < found.drop_high
        assert any(note.startswith("decided unpaired, as the policy allows: delta ") for note in found.notes)
        for text in (table.render(report), formats.markdown(report), formats.junit(report), report.to_json()):
            assert "unpaired" in text

    def test_lower_is_better(self, made: Any, kit: Any) -> None:
        candidate, base = without_samples(made, kit, 300, 90, higher_is_better={"acc": False})
        found = row(gated(candidate, base, margin=0.05, allow_unpaired=True))
        assert found.verdict == "PASS" and found.drop == pytest.approx(-0.3)

    @pytest.mark.slow
    def test_a_task_with_samples_is_decided_as_ever(self, made: Any, kit: Any) -> None:
        base, laser = two(made, *kit.pair(300, 150, lost=3))
        assert row(gated(laser, base, allow_unpaired=True)) == row(gated(laser, base))

    def test_a_floor_holds_without_samples(self, made: Any, kit: Any) -> None:
        candidate, base = without_samples(made, kit, 300, 90)
        found = row(gated(candidate, base, allow_unpaired=True, margin=0.9, tasks={"sums": {"floor": 0.8}}))
        assert found.verdict == "FAIL" and found.reasons[0] == "0.6 is below the floor of 0.8"

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"metric": "loss"}, "a results file has no standard error of this metric"),
            ({"metadata": {"best_value": {"acc": 0.5}}}, "only scores that are means of documents between 0 and 1"),
            ({"shots": 5}, "few-shot examples differ"),
        ],
    )
    def test_what_the_scores_do_not_carry_stays_incomparable(
        self, made: Any, kit: Any, options: dict[str, Any], words: str
    ) -> None:
        before, after = kit.pair(300, 270, **{name: value for name, value in options.items() if name != "shots"})
        after.shots = options.get("shots", 0)
        base = made.plain({"sums": before}, folder="base", samples=False)
        candidate = made.plain({"sums": after}, folder="edited", samples=False, config={"recipe": "laser"})
        found = row(gated(candidate, base, allow_unpaired=True))
        assert found.verdict == "INCOMPARABLE" and any(words in reason for reason in found.reasons), found.reasons

    def test_a_suite_is_of_pairs_only(self, made: Any, kit: Any) -> None:
        candidate, base = without_samples(made, kit, 300, 0)
        found = row(gated(candidate, base, allow_unpaired=True, suites={"all": {"weights": {"sums": 1}}}), "all")
        assert found.verdict == "INCOMPARABLE" and "sums cannot be compared" in found.reasons[0]

    def test_a_truly_lossy_model_seldom_passes(self, made: Any, kit: Any) -> None:
        """The drop is as large as the margin in 60 tasks: at 5 % each, hardly more than three pass."""
        generator = np.random.default_rng(0)

        def tasks(share: float) -> dict[str, Any]:
            draws = generator.random((60, 150)) < share
            return {f"t{number}": kit.Task({"acc": draw.astype(float).tolist()}) for number, draw in enumerate(draws)}

        base = made.plain(tasks(0.8), folder="base", samples=False)
        candidate = made.plain(tasks(0.7), folder="edited", samples=False, config={"recipe": "laser"})
        report = gated(candidate, base, margin=0.1, allow_unpaired=True)
        assert len(report.rows) == 60 and sum(found.verdict == "PASS" for found in report.rows) <= 7
