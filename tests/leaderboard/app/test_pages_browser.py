"""Compare, Flips, Size and score in a real Chromium: two rows lead to a comparison, links restore a view, documents are
text, downloads hold what is shown.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import pytest

from leaderboard.ingest import ingest
from tests.leaderboard.app.driving import downloaded, watched

pytestmark = pytest.mark.browser
WAIT_MS = 20_000
HOSTILE = (
    "![x](http://example.org/x.png) <script>alert(1)</script> <img src=x onerror=alert(2)> $\\frac{1}{2}$"
    " [link](http://example.org)"
)
PLOT = '[data-testid="stVegaLiteChart"]'


@pytest.fixture
def database(made: Any, kit: Any) -> Path:
    """A baseline and two recipes on two tasks, with documents and answers that try to be markup."""
    fields = {"question": [f"{i} {HOSTILE}" for i in range(40)]}
    before, after = kit.pair(40, 20, lost=2, gained=5, fields=fields)
    _, svd = kit.pair(40, 20, lost=12, fields=fields)
    svd.log_likelihoods = kit.likelihoods(40, 2)
    total = kit.pair(30, 10, lost=1)
    made.run("baseline", {"int_mult": before, "int_sum": total[0]})
    made.run("laser", {"int_mult": after, "int_sum": total[1]})
    made.run(f"svd:note={HOSTILE}", {"int_mult": svd}, folder="svd")
    path: Path = made.root / "leaderboard.duckdb"
    assert not ingest([made.root], path).rejected
    return path


def run_ids(database: Path) -> dict[str, str]:
    with duckdb.connect(str(database), read_only=True) as connection:
        return dict(
            connection.execute("SELECT recipe_name, run_id FROM runs JOIN variants USING (variant_id)").fetchall()
        )


def test_two_ticked_rows_are_compared(address: str, page: Any, database: Path) -> None:
    ids = run_ids(database)
    page.goto(address)
    page.get_by_text("All results").wait_for(timeout=WAIT_MS)
    for _ in range(8):
        table = page.locator('[data-testid="stDataFrame"]').nth(0)
        page.wait_for_timeout(1500)
        box = table.bounding_box()
        for row in (1, 2):  # the baseline and laser; the first column holds the boxes
            page.mouse.click(box["x"] + 20, box["y"] + 35 * row + 17)
            page.wait_for_timeout(1500)
        if "/compare?" in page.url:
            break
    page.wait_for_url("**/compare?*", timeout=WAIT_MS)
    assert f"a={ids['baseline']}" in page.url and f"b={ids['laser']}" in page.url
    page.get_by_text("What differs in how they were made").wait_for(timeout=WAIT_MS)
    page.locator(PLOT).first.wait_for(timeout=WAIT_MS)


def test_a_link_to_a_comparison_restores_it(address: str, page: Any, database: Path) -> None:
    outside, dialogs = watched(page)
    ids = run_ids(database)
    page.goto(f"{address}/compare?a={ids['svd']}&b={ids['laser']}")
    page.get_by_text("What differs in how they were made").wait_for(timeout=WAIT_MS)
    page.locator(PLOT).nth(1).wait_for(timeout=WAIT_MS)
    page.reload()
    page.get_by_text("1 task: 1 better").first.wait_for(timeout=WAIT_MS)
    assert f"a={ids['svd']}" in page.url and outside == [] and dialogs == []


def test_a_document_is_text(address: str, page: Any, database: Path) -> None:
    outside, dialogs = watched(page)
    page.goto(f"{address}/flips?b={run_ids(database)['laser']}&task=int_mult&show=lost")
    page.get_by_text("2 lost, 5 gained of 40 documents").wait_for(timeout=WAIT_MS)
    code = page.locator('[data-testid="stCode"]').first
    code.wait_for(timeout=WAIT_MS)
    assert HOSTILE in code.inner_text()
    assert page.locator('a[href*="example.org"], img[src*="example.org"], .katex').count() == 0
    assert outside == [] and dialogs == []


def test_the_download_holds_what_is_shown(address: str, page: Any, database: Path) -> None:
    page.goto(f"{address}/flips?b={run_ids(database)['laser']}&task=int_mult&show=lost")
    page.get_by_text("2 lost, 5 gained of 40 documents").wait_for(timeout=WAIT_MS)
    lines = Path(downloaded(page, "CSV").path()).read_text().splitlines()
    assert len(lines) == 3 and all(",lost," in line for line in lines[1:])


def test_plots_have_words_of_their_own(address: str, page: Any, database: Path) -> None:
    page.goto(f"{address}/size?model=tiny&task=int_mult")
    page.locator(PLOT).first.wait_for(timeout=WAIT_MS)
    said = page.get_by_text("by parameters and score").first
    said.wait_for(timeout=WAIT_MS)
    labels = page.evaluate(
        "() => [...document.querySelectorAll('[aria-label]')].map(e => e.getAttribute('aria-label'))"
    )
    assert any(label and "by parameters and score" in label for label in labels), json.dumps(labels)[:2000]


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_sticks_out(address: str, page: Any, database: Path, width: int) -> None:
    ids = run_ids(database)
    page.set_viewport_size({"width": width, "height": 900})
    for place, ready in (
        (f"compare?a={ids['baseline']}&b={ids['laser']}", "What differs"),
        (f"flips?b={ids['laser']}", "Documents that flip"),
        ("size?model=tiny", "All points"),
    ):
        page.goto(f"{address}/{place}")
        page.get_by_text(ready).first.wait_for(timeout=WAIT_MS)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, place
