"""A person's walk through the pages, by clicks alone: what was chosen stays chosen, in the boxes and in the URL.

Run with `-m browser`; skipped where Chromium or Playwright is absent (`CHROMIUM` names another executable).
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest

from leaderboard.ingest import ingest
from tests.leaderboard.app.driving import downloaded, watched

pytestmark = pytest.mark.browser
WAIT_MS = 30_000
OLD, NEW = "google/gemma-2b", "small"
PAGES = (
    *(
        "Leaderboard",
        "Compare",
        "Flips",
        "Size and score",
        "History",
        "Across models",
        "Layers",
        "Run",
        "Claims",
        "Sweeps",
        "Models",
    ),
)


@pytest.fixture
def database(made: Any, kit: Any) -> Path:
    """Two models with a recipe and its control each; the one with the shorter name was run last."""
    for place, (model, year) in enumerate(((OLD, 2026), (NEW, 2027))):
        mult, total = kit.pair(400, 200, gained=60 + place), kit.pair(400, 100, gained=40)
        control = kit.pair(400, 200, gained=5)
        folder = f"{model.rpartition('/')[2]}-control"
        when = {"model": model, "started": f"{year}-01-01T00:00:00Z"}
        made.run("baseline", {"int_mult": mult[0], "int_sum": total[0]}, **when)
        made.run("laser", {"int_mult": mult[1], "int_sum": total[1]}, **when)
        written = made.run(
            "laser+random-subspace", {"int_mult": control[1], "int_sum": total[0]}, folder=folder, **when
        )
        receipt = json.loads((written / "receipt.json").read_text())
        receipt["recipe"] |= {"control": "random-subspace", "control_of": kit.sha("laser")}
        (written / "receipt.json").write_text(json.dumps(receipt))
        made.run("svd", {"int_mult": control[1], "int_sum": total[0]}, **when)
    path: Path = made.root / "leaderboard.duckdb"
    ingest([made.root], path)
    return path


def parameters(page: Any) -> dict[str, list[str]]:
    return parse_qs(urlparse(page.url).query)


def settled(page: Any) -> None:
    """Wait until the page's script has run, and anything that it asked for at its end."""
    page.wait_for_timeout(400)
    page.wait_for_selector('[data-testid="stApp"][data-test-script-state="notRunning"]', timeout=WAIT_MS)
    page.wait_for_timeout(400)
    page.wait_for_selector('[data-testid="stApp"][data-test-script-state="notRunning"]', timeout=WAIT_MS)


def go(page: Any, title: str) -> None:
    """Click an entry of the menu."""
    page.get_by_test_id("stTopNavLink").filter(has_text=title).first.click()
    settled(page)


def chosen(page: Any, label: str) -> str:
    """What a box shows."""
    return str(page.get_by_role("combobox", name=label).first.input_value())


def pick(page: Any, label: str, option: str) -> None:
    """Choose in a box."""
    page.get_by_role("combobox", name=label).first.click()
    page.get_by_role("option", name=option, exact=True).click()
    settled(page)


def test_a_model_of_a_link_stays_over_every_click(address: str, database: Path, page: Any) -> None:
    outside, dialogs = watched(page)
    page.goto(f"{address}/?model={OLD}")
    settled(page)
    for title in (*PAGES, *reversed(PAGES)):
        go(page, title)
        assert parameters(page)["model"] == [OLD], (title, page.url)
    go(page, "Size and score")
    assert OLD in page.get_by_test_id("stMain").inner_text() or chosen(page, "Model") == OLD
    assert outside == [] and dialogs == []


def test_model_and_task_chosen_by_hand_travel_and_come_back_by_the_link(
    address: str, database: Path, page: Any
) -> None:
    page.goto(address)
    settled(page)
    page.get_by_role("link", name="Open the board").nth(1).click()
    settled(page)
    assert parameters(page)["model"] == [OLD]
    pick(page, "Model", NEW)
    pick(page, "Rank by", "int_sum")
    page.wait_for_url("**task=int_sum**", timeout=WAIT_MS)
    for title in ("Compare", "History", "Leaderboard", "Models", "Leaderboard"):
        go(page, title)
        found = parameters(page)
        assert (found["model"], found["task"]) == ([NEW], ["int_sum"]), title
    link = page.url
    other = page.context.browser.new_page()
    other.goto(link)
    settled(other)
    assert (chosen(other, "Model"), chosen(other, "Rank by")) == (NEW, "int_sum")
    other.close()


def test_what_is_ticked_leads_on_with_its_recipe(address: str, database: Path, page: Any) -> None:
    page.goto(f"{address}/board?model={OLD}")
    settled(page)
    tick(page, row=1)
    page.get_by_role("link", name="Compare with baseline and control").click()
    settled(page)
    found = parameters(page)
    assert (found["model"], found["recipe"]) == ([OLD], ["laser"])
    go(page, "Flips")
    assert parameters(page)["recipe"] == ["laser"]


def tick(page: Any, row: int) -> None:
    """Tick a row of the board's table, which is a canvas, until its links are there."""
    table = page.locator('[data-testid="stDataFrame"]').first
    for _ in range(6):
        box = table.bounding_box()
        if box is not None:
            page.mouse.click(box["x"] + 20, box["y"] + 31 * row + 16)
            settled(page)
        if page.get_by_role("link", name="Run").count() > 1:
            return


def test_from_the_first_page_to_a_report(address: str, database: Path, page: Any) -> None:
    """Open, pick a model, sort, filter, compare a recipe with its control, read flips, copy the link, open it in a new
    session, export the report and open that file.
    """
    outside, dialogs = watched(page)
    page.goto(address)
    settled(page)
    assert "2 models" in page.get_by_test_id("stMain").inner_text()
    page.get_by_role("link", name="Open the board").first.click()
    settled(page)
    assert chosen(page, "Model") == NEW
    sort(page, column=3)
    page.get_by_role("button", name="Filter").click()
    page.get_by_role("textbox", name="Search").fill("las")
    page.keyboard.press("Enter")
    settled(page)
    page.keyboard.press("Escape")
    assert parameters(page)["find"] == ["las"]
    tick(page, row=1)
    page.get_by_role("link", name="Compare with baseline and control").click()
    settled(page)
    said = page.get_by_test_id("stMain").inner_text()
    assert "Against the baseline" in said and "control random-subspace" in said
    go(page, "Flips")
    assert "gained of 400 documents" in page.get_by_test_id("stMain").inner_text()
    assert chosen(page, "Task") in ("int_mult", "int_sum")
    link = page.url
    other = page.context.browser.new_context().new_page()
    other.goto(link)
    settled(other)
    other.get_by_text("gained of 400 documents").first.wait_for(timeout=WAIT_MS)
    assert other.url == link
    go(other, "Leaderboard")
    saved = downloaded(other, "Report, one HTML file")
    assert saved.suggested_filename == "report.html"
    file = database.parent / "report.html"
    saved.save_as(file)
    other.goto(file.as_uri())
    assert other.locator("table").first.get_by_text("laser").first.is_visible()
    other.context.close()
    assert outside == [] and dialogs == []


def sort(page: Any, column: int) -> None:
    """Click the head of a column of the board's table."""
    box = page.locator('[data-testid="stDataFrame"]').first.bounding_box()
    page.mouse.click(box["x"] + 90 * column, box["y"] + 16)
    settled(page)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious_on_any_page(address: str, database: Path, page: Any, theme: str) -> None:
    found = importlib.util.find_spec("axe_playwright_python")
    if found is None or found.origin is None:
        pytest.skip("axe-playwright-python is not installed")
    axe = (Path(found.origin).parent / "axe.min.js").read_text(encoding="utf-8")
    page.emulate_media(color_scheme=theme)
    page.goto(f"{address}/?model={NEW}")
    settled(page)
    faults = {}
    for title in PAGES:
        go(page, title)
        page.evaluate(axe)
        there = page.evaluate(
            "axe.run().then(found => found.violations.filter(one => ['serious', 'critical'].includes(one.impact))"
            ".map(one => [one.id, one.nodes.map(node => node.html.slice(0, 200) + node.any.map(a => a.message))]))"
        )
        if there:
            faults[title] = there
    assert faults == {}


def test_the_keyboard_alone_reaches_everything(address: str, database: Path, page: Any) -> None:
    page.goto(f"{address}/board?model={NEW}")
    settled(page)
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                "() => { const e = document.activeElement; return e.getAttribute('aria-label') || e.innerText ||"
                " e.getAttribute('data-testid') || e.tagName }"
            )
        )
    said = "\n".join(reached)
    for name in ("Models", "Compare", "Claims", "Model", "Rank by", "Filter", "Share", "Table"):
        assert name in said, (name, reached)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_sticks_out_and_the_table_comes_first(
    address: str, database: Path, page: Any, width: int, theme: str
) -> None:
    page.emulate_media(color_scheme=theme)
    page.set_viewport_size({"width": width, "height": 900})
    for place in ("/", f"/board?model={OLD}"):
        page.goto(address + place)
        settled(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, place
    box = page.locator('[data-testid="stDataFrame"]').first.bounding_box()
    assert box["y"] <= (330 if width == 1280 else 430)
