"""The page in a real Chromium: it loads without reaching anywhere else, links lead to runs, a busy database keeps the
view.

Run with `-m browser`; skipped where Chromium or Playwright is absent (`CHROMIUM` names another executable).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from leaderboard.ingest import ingest
from leaderboard.store.database import open_for_writing_unlocked

pytestmark = pytest.mark.browser
WAIT_MS = 20_000


@pytest.fixture
def database(made: Any, kit: Any) -> Path:
    """A board with one recipe on two tasks, and one whose name tries to be markup."""
    mult, total = kit.pair(400, 200, gained=60), kit.pair(30, 10, lost=1)
    made.run("baseline", {"int_mult": mult[0], "int_sum": total[0]})
    made.run("laser", {"int_mult": mult[1], "int_sum": total[1]})
    made.failed("<img src=x onerror=alert(1)>", {"int_mult": mult[1]}, folder="failed")
    path: Path = made.root / "leaderboard.duckdb"
    ingest([made.root], path)
    return path


def test_the_page_in_a_browser(address: str, database: Path, page: Any) -> None:
    outside, dialogs = [], []
    page.on(
        "request",
        lambda request: (
            outside.append(request.url) if "127.0.0.1" not in request.url and request.url.startswith("http") else None
        ),
    )
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))

    # The model is in the URL, though nobody chose it: a saved link stays with it.
    page.goto(f"{address}/board")
    page.wait_for_url("**/board?model=tiny", timeout=WAIT_MS)

    # A filter comes from the URL, and a change of it goes there.
    page.goto(f"{address}/board?tasks=int_mult&view=All+results")
    page.get_by_text("Click a recipe's name").wait_for(timeout=WAIT_MS)
    page.get_by_role("button", name="Filter").click()
    page.get_by_role("button", name="Clear all").first.click()
    page.wait_for_url(lambda url: "tasks=" not in url, timeout=WAIT_MS)
    for _ in range(3):  # the list of tasks, and the filter around it
        page.keyboard.press("Escape")
        page.wait_for_timeout(300)

    # A click on a recipe leads to its run, which has a URL of its own.
    click_recipe(page, row=3)
    page.wait_for_url("**/run?*run=*", timeout=WAIT_MS)
    page.get_by_text("Receipt", exact=True).wait_for(timeout=WAIT_MS)
    where = page.url
    page.goto(where)
    page.get_by_text("on tiny").first.wait_for(timeout=WAIT_MS)

    # Back, and a busy database keeps what was shown.
    page.goto(f"{address}/board")
    page.get_by_text("Click a head to sort").wait_for(timeout=WAIT_MS)
    writer = open_for_writing_unlocked(database).connection  # waits where the server holds the file
    try:
        writer.execute(
            "INSERT INTO baselines (model_key, run_id, pinned_at, reason) VALUES ('k', 'r', now()::TIMESTAMP, 'x')"
        )
        writer.execute("CHECKPOINT")
        page.get_by_text("The database is busy: showing data of").wait_for(timeout=WAIT_MS)
        page.get_by_text("Click a head to sort").wait_for(timeout=WAIT_MS)
    finally:
        writer.close()
    page.get_by_text("The database is busy").wait_for(state="detached", timeout=WAIT_MS)

    assert outside == [] and dialogs == []


def click_recipe(page: Any, row: int) -> None:
    """Click the recipe in a row of the table, which is a canvas: again, should the page have moved meanwhile."""
    from playwright.sync_api import Error

    table = page.locator('[data-testid="stDataFrame"]').first
    for _ in range(8):
        try:
            table.scroll_into_view_if_needed(timeout=WAIT_MS)
            page.wait_for_timeout(500)
            box = table.bounding_box()
        except Error:
            # Streamlit replaced the table while it was being looked at.
            box = None
        if box is None:
            page.wait_for_timeout(1000)
            continue
        page.mouse.click(box["x"] + 240, box["y"] + 35 * row + 17)
        page.wait_for_timeout(1500)
        if "/run?" in page.url:
            return
