"""Compare, Flips, Size and score in a real Chromium: two rows lead to a comparison, links restore a view, documents are
text, downloads hold what is shown.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from leaderboard.ingest import ingest
from leaderboard.store.database import open_store
from tests.leaderboard.app.driving import downloaded, watched

pytestmark = pytest.mark.browser
WAIT_MS = 20_000
HOSTILE = (
    "![x](http://example.org/x.png) <script>alert(1)</script> <img src=x onerror=alert(2)> $\\frac{1}{2}$"
    " [link](http://example.org)"
)
CUT_LINKS = """[...document.querySelectorAll('[data-testid="stPageLink-NavLink"] span')]
    .filter(text => text.scrollWidth > text.clientWidth).map(text => text.innerText)"""
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
    with open_store(database) as store:  # waits where the server holds the file
        found = store.rows("SELECT recipe_name, run_id FROM runs JOIN variants USING (variant_id)")
    return {row["recipe_name"]: row["run_id"] for row in found}


def test_two_ticked_rows_are_compared(address: str, page: Any, database: Path) -> None:
    ids = run_ids(database)
    page.goto(f"{address}/board?model=tiny")
    settled(page)
    link = page.get_by_role("link", name="Compare these 2")
    for _ in range(6):
        for row in (1, 2):  # the first column holds the boxes
            box = page.locator('[data-testid="stDataFrame"]').first.bounding_box()
            page.mouse.click(box["x"] + 20, box["y"] + 31 * row + 16)
            settled(page)
        if link.count():
            break
    link.click()
    page.wait_for_url("**/compare?*", timeout=WAIT_MS)
    page.get_by_text("What differs").wait_for(timeout=WAIT_MS)
    page.locator(PLOT).first.wait_for(timeout=WAIT_MS)
    named = {name for name, run_id in ids.items() if f"a={run_id}" in page.url or f"b={run_id}" in page.url}
    assert len(named) == 2 and page.get_by_text("This run", exact=True).count()


def test_a_link_to_a_comparison_restores_it(address: str, page: Any, database: Path) -> None:
    outside, dialogs = watched(page)
    ids = run_ids(database)
    page.goto(f"{address}/compare?a={ids['svd']}&b={ids['laser']}")
    page.get_by_text("What differs").wait_for(timeout=WAIT_MS)
    page.locator(PLOT).first.wait_for(timeout=WAIT_MS)
    page.reload()
    page.get_by_text("better on 1 of 2 tasks; 1 cannot be compared").first.wait_for(timeout=WAIT_MS)
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
    page.wait_for_selector('[aria-label*="by parameters kept and score"]', state="attached", timeout=WAIT_MS)
    labels = page.evaluate(
        "() => [...document.querySelectorAll('[aria-label]')].map(e => e.getAttribute('aria-label'))"
    )
    assert any(label and "1 on the line: laser" in label for label in labels), json.dumps(labels)[:2000]


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_sticks_out(address: str, page: Any, database: Path, width: int) -> None:
    ids = run_ids(database)
    page.set_viewport_size({"width": width, "height": 900})
    for place, ready in (
        (f"compare?a={ids['baseline']}&b={ids['laser']}", "What differs"),
        (f"flips?b={ids['laser']}", "Which documents flip"),
        ("size?model=tiny", "All points"),
        ("", "Newest runs"),
    ):
        page.goto(f"{address}/{place}")
        page.get_by_text(ready).first.wait_for(timeout=WAIT_MS)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, place
    settled(page)
    assert "svd:note=" in page.get_by_text("svd:note=").first.inner_text()
    assert page.evaluate(CUT_LINKS) == []


def settled(page: Any) -> None:
    """Wait until the page's script has run, and what that asked for."""
    for _ in range(2):
        page.wait_for_timeout(400)
        page.wait_for_selector('[data-testid="stApp"][data-test-script-state="notRunning"]', timeout=WAIT_MS)


def test_a_walk_from_a_comparison_to_its_flips_and_on_by_a_link(address: str, page: Any, database: Path) -> None:
    outside, dialogs = watched(page)
    ids = run_ids(database)
    page.goto(f"{address}/compare?run={ids['laser']}")
    settled(page)
    page.get_by_role("combobox", name="Against").click()
    page.get_by_role("option", name="svd").click()
    page.get_by_text("Against svd").first.wait_for(timeout=WAIT_MS)
    settled(page)
    assert f"against={ids['svd']}" in page.url and "against=baseline" in page.url
    page.locator(".lb-table a").first.click()
    page.wait_for_url("**/flips?*", timeout=WAIT_MS)
    page.get_by_text("2 lost, 5 gained of 40 documents").wait_for(timeout=WAIT_MS)
    settled(page)
    page.get_by_role("radio", name="gained").click()
    page.wait_for_url("**show=gained**", timeout=WAIT_MS)
    search = page.get_by_role("textbox", name="Find in prompts and answers")
    search.fill("![X](HTTP")
    search.press("Enter")
    page.wait_for_url("**find=**", timeout=WAIT_MS)
    settled(page)
    other = page.context.browser.new_page()
    other.goto(page.url)
    other.get_by_text("2 lost, 5 gained of 40 documents").wait_for(timeout=WAIT_MS)
    settled(other)
    assert other.get_by_role("textbox", name="Find in prompts and answers").input_value() == "![X](HTTP"
    assert HOSTILE in other.locator('[data-testid="stCode"]').first.inner_text()
    assert other.locator('a[href*="example.org"], img[src*="example.org"]').count() == 0
    other.close()
    assert outside == [] and dialogs == []


def test_another_model_or_run_replaces_the_two_of_a_link(address: str, page: Any, database: Path) -> None:
    ids = run_ids(database)
    page.goto(f"{address}/compare?a={ids['svd']}&b={ids['laser']}")
    page.get_by_text("Against svd").first.wait_for(timeout=WAIT_MS)
    settled(page)
    page.get_by_role("combobox", name="Run (newest first)").click()
    page.get_by_role("option", name="svd").click()
    page.get_by_text("Against the baseline: worse on 1").wait_for(timeout=WAIT_MS)
    settled(page)
    assert f"run={ids['svd']}" in page.url and "a=" not in page.url.partition("?")[2].replace("a=tiny", "")
