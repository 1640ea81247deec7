"""The last runs and their outcomes."""

from __future__ import annotations

from typing import Any

from leaderboard.board.newest import newest
from leaderboard.ingest import ingest
from leaderboard.store.database import open_store


def test_the_newest_come_first_with_what_they_are(made: Any, kit: Any) -> None:
    before, after = kit.pair(400, 200, gained=60)
    made.run("baseline", {"sums": before}, started="2026-01-01T00:00:00Z")
    made.run("laser", {"sums": after}, started="2026-01-02T00:00:00Z")
    made.failed("svd", {"sums": after}, folder="failed", started="2026-01-03T00:00:00Z")
    database = made.root / "leaderboard.duckdb"
    ingest([made.root], database)
    with open_store(database) as store:
        found = newest(store, 2)
    assert [run.name for run in found] == ["svd", "laser"] and found[0].status == "failed"
    (outcome,) = found[1].outcome
    assert (outcome.task, outcome.verdict, outcome.beats_controls) == ("sums", "better", None)
    assert abs((outcome.improvement or 0) - 0.15) < 1e-9
