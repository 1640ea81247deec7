"""A published board in a real Chromium: from the first page to a model's board, a comparison and its documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from leaderboard.ingest import ingest
from leaderboard.postgres.address import PostgresAddress
from leaderboard.postgres.publish import publish
from tests.leaderboard.app.driving import chromium_page, serving, watched
from tests.leaderboard.conftest import Fabricator, Kit

pytestmark = pytest.mark.browser
WAIT_MS = 120_000


def go(page: Any, title: str, place: str, words: str) -> None:
    """Click an entry of the menu, and wait until its page says this."""
    page.get_by_test_id("stTopNavLink").filter(has_text=title).first.click()
    page.wait_for_url(f"**/{place}*", timeout=WAIT_MS)
    says(page, words)


def says(page: Any, words: str) -> None:
    """Wait until the page says this."""
    page.get_by_test_id("stMain").get_by_text(words).first.wait_for(timeout=WAIT_MS)


@pytest.fixture
def published(address: str, kit: Kit, tmp_path: Path) -> str:
    """The address of a published board: one model, a recipe that gains, and its control."""
    made = Fabricator(tmp_path / "results")
    before, after = kit.pair(60, 20, gained=30)
    made.run("baseline", {"sums": before})
    made.run("laser", {"sums": after})
    _, noise = kit.pair(60, 20, lost=10)
    noise.log_likelihoods = kit.likelihoods(60, 2)
    made.run("svd", {"sums": noise})
    database = tmp_path / "results" / "leaderboard.duckdb"
    assert not ingest([made.root], database).rejected
    publish(database, PostgresAddress(address))
    return address


def test_a_published_board_is_walked_through(published: str, tmp_path: Path) -> None:
    (tmp_path / "results").rename(tmp_path / "elsewhere")  # its readers have no run folders
    with serving(published, start_s=120) as url, chromium_page() as page:
        outside, dialogs = watched(page)
        page.goto(url)
        says(page, "1 model, 3 runs")
        page.get_by_role("link", name="Open the board").first.click()
        page.wait_for_url("**/board?*model=tiny*", timeout=WAIT_MS)
        says(page, "better than baseline")
        go(page, "Compare", "compare", "What differs")
        go(page, "Flips", "flips", "of 60 documents")
        go(page, "Sweeps", "sweeps", "not in the board published at postgres://")
        go(page, "Run", "run", "All scores")
        says(page, "not in the run's folder on this machine")
        assert "lm-eval-board-" not in page.content(), "the copy is nobody's to write to"
        assert outside == [] and dialogs == []
