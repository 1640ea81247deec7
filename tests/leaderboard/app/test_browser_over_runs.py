"""History, across models, layers and the run's page in a real Chromium: links restore views, boxes write them, rows
lead on, nothing sticks out.

Run with `-m browser`; skipped where Chromium or Playwright is absent (`CHROMIUM` names another executable).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from leaderboard.ingest import ingest
from leaderboard.store.database import open_store
from leaderboard.store.pins import choose
from tests.leaderboard.app.driving import chromium_page, downloaded, watched

pytestmark = pytest.mark.browser
WAIT_MS = 30_000
HOSTILE = "<img src=x onerror=alert(1)> ![x](http://example.org/x.png) [l](http://example.org)"
PAGES = {"history": "How to read this", "across": "How to read this", "layers": "How to read this", "run": "All scores"}


@pytest.fixture
def database(made: Any, kit: Any) -> Path:
    """One recipe on two models, and one whose name tries to be markup; a pin and a blessing with such a reason."""
    for place, model in enumerate(("tiny", "small")):
        before, after = (
            kit.Task({"acc": values}, log_likelihoods=kit.likelihoods(400, seed + 10 * place))
            for seed, values in enumerate(kit.binary(400, 200, gained=60))
        )
        made.run("baseline", {"int_mult": before}, model=model)
        made.run("laser", {"int_mult": after}, model=model)
    made.run(
        HOSTILE,
        {"int_mult": kit.Task({"acc": [0.5] * 400})},
        folder="hostile",
        log=[{"epoch": i, "loss": 1 / (i + 1), "note": HOSTILE} for i in range(3)],
    )
    path: Path = made.root / "leaderboard.duckdb"
    ingest([made.root], path)
    choose(path, str(made.root / "tiny" / "baseline-0123456789"), HOSTILE)
    choose(path, str(made.root / "tiny" / "laser-0123456789"), "reviewed")
    return path


@pytest.fixture
def page() -> Iterator[Any]:
    """A browser page that fails the test for a dialog or a request that leaves the machine."""
    with chromium_page(height=1400) as opened:
        outside, dialogs = watched(opened)
        yield opened
    assert outside == [] and dialogs == []


def run_id(database: Path, folder: str) -> str:
    with open_store(database) as store:  # waits where the server holds the file
        (found,) = store.rows("SELECT run_id FROM runs WHERE path LIKE ? ORDER BY path LIMIT 1", [f"%{folder}%"])
    return str(found["run_id"])


def pick(page: Any, label: str, option: str) -> None:
    """Choose in a box."""
    page.get_by_role("combobox", name=label).first.click()
    page.get_by_role("option", name=option, exact=True).click()


def test_links_restore_views_and_boxes_write_them(address: str, database: Path, page: Any) -> None:
    # A bare link fills in what it shows; a full one restores it.
    page.goto(f"{address}/history")
    page.wait_for_url("**/history?model=*&recipe=*&task=int_mult&spacing=*", timeout=WAIT_MS)
    page.goto(f"{address}/history?model=tiny&recipe=laser&task=int_mult&spacing=evenly")
    page.get_by_text("laser: 1 run, score 0.6500").first.wait_for(timeout=WAIT_MS)
    page.get_by_text("2 decisions (upright lines)").first.wait_for(timeout=WAIT_MS)
    pick(page, "Recipe", "baseline")
    page.wait_for_url("**recipe=baseline**", timeout=WAIT_MS)

    page.goto(f"{address}/across?task=int_mult&least=2")
    page.get_by_text("laser: better on 2 of 2 models; up on 2, down on 0").first.wait_for(timeout=WAIT_MS)
    pick(page, "On at least so many models", "1")
    page.wait_for_url("**least=1**", timeout=WAIT_MS)
    page.get_by_text("2 recipes on 2 models").first.wait_for(timeout=WAIT_MS)

    page.goto(f"{address}/layers?model=tiny&task=int_mult&measure=runs")
    page.get_by_text("2 runs edited 1 place").first.wait_for(timeout=WAIT_MS)
    pick(page, "Colour shows", "least rank kept")
    page.wait_for_url("**measure=least+rank+kept**", timeout=WAIT_MS)

    # A row leads to its run, and the run to its history.
    tick(page, row=1)
    page.wait_for_url("**/run?run=*", timeout=WAIT_MS)
    page.get_by_text("All scores").wait_for(timeout=WAIT_MS)
    page.goto(f"{address}/run?run={run_id(database, 'tiny/laser')}")
    page.get_by_role("link", name="Its history").click()
    page.get_by_text("laser: 1 run, score 0.6500").first.wait_for(timeout=WAIT_MS)
    assert "recipe=laser" in page.url and "model=tiny" in page.url


def tick(page: Any, row: int) -> None:
    """Tick a row of the page's last table, which is a canvas: again, should the page have moved meanwhile."""
    table = page.locator('[data-testid="stDataFrame"]').last
    for _ in range(8):
        table.scroll_into_view_if_needed(timeout=WAIT_MS)
        page.wait_for_timeout(700)
        box = table.bounding_box()
        if box is not None:
            page.mouse.click(box["x"] + 20, box["y"] + 35 * row + 17)
            page.wait_for_timeout(1500)
        if "/run?" in page.url:
            return


def test_hostile_names_are_text_and_plots_have_words(address: str, database: Path, page: Any) -> None:
    for query, words in (
        ("history?model=tiny&recipe=laser", "Decisions"),
        ("across?task=int_mult&least=1", "How to read"),
        ("layers?model=tiny", "All edits"),
        (f"run?run={run_id(database, 'tiny/hostile')}", "Log of the training"),
    ):
        page.goto(f"{address}/{query}")
        page.get_by_text(words).first.wait_for(timeout=WAIT_MS)
        page.locator('[data-testid="stVegaLiteChart"] canvas, [data-testid="stVegaLiteChart"] svg').first.wait_for(
            timeout=WAIT_MS
        )
        assert page.locator('img[src="x"], a[href^="http://example.org"], img[src*="example.org"]').count() == 0
        labels = page.eval_on_selector_all(
            '[data-testid="stVegaLiteChart"] [aria-label]', "found => found.map(one => one.getAttribute('aria-label'))"
        )
        assert any(label and len(label) > 40 for label in labels), labels


def test_downloads_are_what_is_shown(address: str, page: Any) -> None:
    page.goto(f"{address}/across?task=int_mult&least=2")
    page.get_by_text("All 2 runs").wait_for(timeout=WAIT_MS)
    page.wait_for_timeout(1500)  # the first view writes the URL and is drawn again
    file = downloaded(page, "CSV")
    assert file.suggested_filename == "recipes-across-models.csv"
    text = Path(file.path()).read_text()
    assert text.splitlines()[1].startswith("laser,int_mult,False,2,2,2,0")


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_sticks_out(address: str, database: Path, page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    for name, last in PAGES.items():
        page.goto(f"{address}/{name}" + (f"?run={run_id(database, 'tiny/hostile')}" if name == "run" else ""))
        page.get_by_text(last).first.wait_for(timeout=WAIT_MS)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
