"""How many answers flip when rounding alone changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from leaderboard.board.board import board
from leaderboard.ingest import ingest
from leaderboard.store import noise_floor
from leaderboard.store.database import open_store
from leaderboard.terminal.format import flips
from leaderboard.terminal.table import render
from tests.leaderboard.board.judging import recipe_cell


class TestNoiseFloor:
    """Two unedited runs that differ in batch size alone."""

    def floors(self, made: Any, kit: Any, **changes: Any) -> list[Any]:
        before, after = kit.pair(100, 50, lost=3, gained=1)
        made.run("baseline", {"sums": before})
        options = {"config": {"batch_size": 16}, "spec_id": "other", "started": "2026-05-01T00:00:00Z"} | changes
        made.run(
            options.pop("recipe_label", "baseline"), {"sums": options.pop("task", after)}, folder="other", **options
        )
        report = ingest(made.root, None)
        assert report.store is not None and not report.rejected
        return [floor for floors in noise_floor.floors(report.store).values() for floor in floors]

    def test_it_is_measured_when_the_second_is_ingested(self, made: Any, kit: Any) -> None:
        (floor,) = self.floors(made, kit)
        assert (floor.task, floor.metric, floor.documents, floor.flips, floor.rate) == ("sums", "acc", 100, 4, 0.04)
        assert {floor.batch_size, floor.other_batch_size} == {"1", "16"}

    @pytest.mark.slow
    @pytest.mark.parametrize("first", ["baseline", "identity"])
    def test_a_recipe_that_changes_nothing_measures_it(self, made: Any, kit: Any, first: str) -> None:
        """In whichever order the two are ingested, with a store opened in between."""
        before, after = kit.pair(100, 50, lost=3, gained=1)
        places = {
            "baseline": made.run("baseline", {"sums": before}),
            "identity": self.edited(made, after, ["identity"]),
        }
        database = made.root / "board.duckdb"
        for name in (first, *({*places} - {first})):
            ingest([places[name]], database)
        with open_store(database) as store:
            (floor,) = [floor for floors in noise_floor.floors(store).values() for floor in floors]
            assert (floor.documents, floor.flips, floor.batch_size, floor.other_batch_size) == (100, 4, "1", "1")
            assert recipe_cell(board(store), "untouched").noise_floor == 0.04

    @pytest.mark.parametrize(
        "changes",
        [
            {"methods": ["identity", "truncate_svd"]},
            {"methods": []},
            {"methods": ["truncate_svd"], "recipe_label": "identity"},
            {"methods": ["identity"], "config": {"batch_size": 16}},
            {"methods": ["identity"], "weights": {"digest_before": "x", "digest_after": "y"}},
        ],
    )
    def test_any_other_recipe_measures_none(self, made: Any, kit: Any, changes: dict[str, Any]) -> None:
        before, after = kit.pair(100, 50, lost=3, gained=1)
        made.run("baseline", {"sums": before})
        self.edited(made, after, **changes)
        report = ingest(made.root, None)
        assert report.store is not None and not report.rejected and noise_floor.floors(report.store) == {}

    def edited(self, made: Any, task: Any, methods: list[str], recipe_label: str = "untouched", **changes: Any) -> Path:
        folder = made.run(recipe_label, {"sums": task}, **changes)
        receipt = json.loads((folder / "receipt.json").read_text())
        receipt["recipe"]["resolved"] = {"steps": [{"method": method} for method in methods]}
        (folder / "receipt.json").write_text(json.dumps(receipt))
        return folder

    @pytest.mark.slow
    def test_any_other_difference_is_no_noise(self, made: Any, kit: Any, tmp_path: Path) -> None:
        other_shots = kit.pair(100, 50)[1]
        other_shots.shots = 2
        for number, changes in enumerate(
            [
                {"config": {"batch_size": 1}},
                {"config": {"batch_size": 16, "device": "cuda"}, "model": "another"},
                {"recipe_label": "laser"},
                {"task": other_shots},
                {"weights": {"digest_before": "x", "digest_after": "x"}, "variant_id": "other"},
            ]
        ):
            fresh = type(made)(tmp_path / f"results{number}")
            assert self.floors(fresh, kit, **changes) == [], changes

    def test_scores_that_are_not_right_or_wrong_have_none(self, made: Any, kit: Any) -> None:
        tasks = [
            {"sums": kit.Task({"odds": [seed * 0.1 + i for i in range(9)]}, log_likelihoods=kit.likelihoods(9, seed))}
            for seed in (0, 1)
        ]
        made.run("baseline", tasks[0])
        made.run("baseline", tasks[1], folder="other", config={"batch_size": 16}, spec_id="other")
        assert [cell.noise_floor for cell in made.board()] == [None, None]

    @pytest.mark.slow
    def test_the_board_shows_what_exceeds_it(self, made: Any, kit: Any) -> None:
        before, after = kit.pair(400, 200, lost=60, gained=4)
        noisy = kit.pair(400, 200, lost=1, gained=1)[1]
        noisy.log_likelihoods = kit.likelihoods(400, 7)
        made.run("baseline", {"sums": before})
        made.run(
            "baseline",
            {"sums": noisy},
            folder="other",
            config={"batch_size": 16},
            spec_id="other",
            settings_id="other",
            started="2026-05-01T00:00:00Z",
        )
        made.run("laser", {"sums": after})
        cell = recipe_cell(made.board())
        assert cell.noise_floor == pytest.approx(0.005) and cell.flip_rate == pytest.approx(0.16)
        assert "flips 16.0%, noise floor 0.5%: 15.5 points above it" in render(made.board(), width=120)


def test_above_the_floor_is_what_so_few_documents_could_not_show_of_rounding() -> None:
    """None of 20 flipped: with 95 % certainty fewer than 14 of 100 do, since 0.861 ** 20 is 0.05."""
    assert flips(0.05, 0.0, 20) == (
        "flips 5.0%, noise floor 0.0%, or up to 13.9% for all that 20 documents tell: not above it"
    )
    assert flips(0.15, 0.0, 20) == "flips 15.0%, noise floor 0.0%: 15.0 points above it"
    assert flips(0.05, 0.0, 2000) == "flips 5.0%, noise floor 0.0%: 5.0 points above it"
    assert flips(0.01, 0.02, 100) == "flips 1.0%, noise floor 2.0%: not above it"
    assert flips(None, 0.02, 100) is None and flips(0.02, None, 100) is None
