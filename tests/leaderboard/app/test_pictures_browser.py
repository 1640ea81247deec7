"""A picture of a page, saved: an SVG and a PNG that hold their title, model, task, n and date."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from leaderboard.ingest import ingest
from tests.leaderboard.app.driving import downloaded, watched

pytestmark = pytest.mark.browser
WAIT_MS = 30_000


@pytest.fixture
def database(made: Any, kit: Any) -> Path:
    before, after = kit.pair(40, 20, lost=2, gained=5)
    made.run("baseline", {"int_mult": before})
    made.run("laser", {"int_mult": after})
    path: Path = made.root / "leaderboard.duckdb"
    assert not ingest([made.root], path).rejected
    return path


def test_a_picture_is_saved_as_svg_and_png(address: str, page: Any) -> None:
    outside, dialogs = watched(page)
    page.goto(f"{address}/board?model=tiny&view=Intervals")
    chart = page.locator('[data-testid="stVegaLiteChart"]').first
    chart.locator("svg.marks").wait_for(timeout=WAIT_MS)
    button = page.locator(".save-picture").first
    button.wait_for(timeout=WAIT_MS)
    with page.expect_download(timeout=WAIT_MS) as waiting:
        button.focus()
        page.keyboard.press("Enter")
    root = ElementTree.fromstring(Path(waiting.value.path()).read_text(encoding="utf-8"))
    said = " ".join(root.itertext())
    today = date.today()
    for part in ("95 % interval", "tiny", "int_mult", "n 40", f"{today.day} {today:%b %Y}", "laser"):
        assert part in said, part
    assert re.fullmatch(r"[A-Za-z0-9-]+\.svg", waiting.value.suggested_filename)
    description = root.find("{http://www.w3.org/2000/svg}desc")
    assert description is not None and "1 undecided" in (description.text or "")
    chart.hover()
    with page.expect_download(timeout=WAIT_MS) as waiting:
        page.get_by_role("button", name="Download as PNG").first.evaluate("found => found.click()")
    assert Path(waiting.value.path()).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert outside == [] and dialogs == []


@pytest.mark.parametrize("width", [400, 1280])
def test_no_interval_is_cut(made: Any, kit: Any, address: str, database: Path, page: Any, width: int) -> None:
    tasks = {f"a_task_{i}": kit.pair(40, 20, lost=2, gained=5) for i in range(5)}
    for recipe, side in (("baseline", 0), ("svd:tasks=[" + ",".join(tasks) + "],samples=96", 1)):
        made.run(recipe, {task: pair[side] for task, pair in tasks.items()}, folder=f"long {side}")
    assert not ingest([made.root], database).rejected
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(f"{address}/board?model=tiny&view=Intervals")
    charts = page.locator('[data-testid="stVegaLiteChart"] svg.marks')
    charts.nth(4).wait_for(timeout=WAIT_MS)
    boxes = [chart.bounding_box() for chart in charts.all()]
    assert len(boxes) >= 5
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)
    in_first_row = sum(abs(box["y"] - boxes[0]["y"]) < 5 for box in boxes)
    assert in_first_row == (3 if width == 1280 else 1)
    plots = [chart.locator(".background").first.bounding_box() for chart in charts.all()]
    assert min(plot["width"] for plot in plots) >= 120


def test_a_table_is_shared_in_four_formats_with_its_link(address: str, page: Any) -> None:
    page.goto(f"{address}/size?model=tiny")
    page.locator('[data-testid="stVegaLiteChart"]').first.wait_for(timeout=WAIT_MS)
    text = Path(downloaded(page, "LaTeX").path()).read_text(encoding="utf-8")
    assert r"\toprule" in text and re.search(r"\\caption\{Size and score: model tiny.*\d{4}\}", text)
    body = page.get_by_test_id("stPopoverBody")
    assert "model=tiny" in body.locator("code").inner_text()
    page.goto(f"{address}/board?model=tiny")
    board = Path(downloaded(page, "LaTeX").path()).read_text(encoding="utf-8")
    assert r"Rank & Recipe & int\_mult & " in board and "score 0.500" in board
