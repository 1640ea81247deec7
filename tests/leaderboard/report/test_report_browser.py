"""The report in a real Chromium without a network: it asks for nothing, sorts, fits, prints, and reads well."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from leaderboard.ingest import ingest
from leaderboard.report.contents import read_report
from leaderboard.report.html import as_html
from tests.leaderboard.app.driving import chromium_page

pytestmark = pytest.mark.browser
FIRST_VALUES = """() => [...document.querySelectorAll('#ranking tbody tr:first-child td:nth-child(2)')].map(
  (one) => one.dataset.s)"""


@pytest.fixture
def report(made: Any, kit: Any, tmp_path: Path) -> Path:
    """The file of a board with a control, four recipes and a hostile name."""
    before, better = kit.pair(400, 200, gained=60)
    _, worse = kit.pair(400, 200, lost=60)
    made.run("baseline", {"int_mult": before})
    made.run("laser", {"int_mult": better})
    made.run("svd:rank=2", {"int_mult": worse}, folder="svd")
    made.run("asvd", {"int_mult": before}, folder="asvd")
    made.run("<img src=x onerror=alert(1)>" + "x" * 90, {"int_mult": before}, folder="hostile")
    path = made.root / "leaderboard.duckdb"
    assert not ingest([made.root], path).rejected
    out = tmp_path / "report.html"
    out.write_text(as_html(read_report([], path)), encoding="utf-8")
    return out


@pytest.fixture
def page(report: Path) -> Iterator[Any]:
    """The open file; the test fails for any request but for it, any dialog and any error of its script."""
    with chromium_page() as opened:
        troubles: list[str] = []
        opened.context.set_offline(True)
        opened.on("request", lambda request: troubles.append(request.url) if request.url != report.as_uri() else None)
        opened.on("dialog", lambda dialog: (troubles.append(dialog.message), dialog.dismiss()))
        opened.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
        opened.on("pageerror", lambda error: troubles.append(str(error)))
        opened.goto(report.as_uri())
        yield opened
    assert troubles == []


def test_it_sorts_by_a_head_and_says_so(page: Any) -> None:
    head = page.locator("#ranking thead th").nth(1)
    assert head.get_attribute("aria-sort") is None
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    values = [float(value) for value in page.evaluate(FIRST_VALUES)]
    assert values == sorted(values, reverse=True) and values[0] > 0 > values[-1]
    head.get_by_role("button").press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert [float(value) for value in page.evaluate(FIRST_VALUES)] == sorted(values)
    assert page.locator("#ranking thead th[aria-sort]").count() == 1


def test_without_scripts_all_is_there(report: Path, page: Any) -> None:
    context = page.context.browser.new_context(java_script_enabled=False, offline=True)
    still = context.new_page()
    still.goto(report.as_uri())
    assert still.locator("#ranking button").count() == 0 and still.get_by_text("laser").first.is_visible()
    assert still.locator("svg").count() >= 1 and still.get_by_text("0 / 60").first.is_visible()
    context.close()


@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_no_fault(page: Any, theme: Any) -> None:
    found = importlib.util.find_spec("axe_playwright_python")
    if found is None or found.origin is None:
        pytest.skip("axe-playwright-python is not installed")
    page.emulate_media(color_scheme=theme)
    session = page.context.new_cdp_session(page)  # the page's own policy would refuse it
    session.send("Page.setBypassCSP", {"enabled": True})
    page.reload()
    page.evaluate((Path(found.origin).parent / "axe.min.js").read_text(encoding="utf-8"))
    for width in (390, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        found_there = "axe.run().then(found => found.violations.map(one => [one.id, one.nodes[0].html]))"
        assert page.evaluate(found_there) == [], width


def test_it_prints_black_on_white(page: Any) -> None:
    page.emulate_media(media="print", color_scheme="dark")
    colours = page.evaluate(
        "() => [getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    assert colours == ["rgb(0, 0, 0)", "rgb(255, 255, 255)"]
    assert page.evaluate("getComputedStyle(document.querySelector('#ranking thead')).display") == "table-header-group"
    assert len(page.pdf(format="A4")) > 5_000
