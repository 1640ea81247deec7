"""What a run is known by has not changed: a store of earlier versions and a folder ingested today agree."""

from __future__ import annotations

from typing import Any

from leaderboard.ingest import ingest

RUN_IDS = {"baseline": "c7c4664c6ff50629c84438df72cf0307", "laser": "91844791b49961aa08fd1479bf16eb94"}
"""Those that version 0.1.0 gave."""


def test_run_ids(made: Any, kit: Any, tmp_path: Any) -> None:
    before, after = kit.pair(40, 20, lost=3, gained=5)
    folders = {"baseline": made.run("baseline", {"sums": before}), "laser": made.run("laser", {"sums": after})}
    assert {name: ingest([folder], tmp_path / "s.duckdb").added[0] for name, folder in folders.items()} == RUN_IDS
