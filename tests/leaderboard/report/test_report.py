"""The report: one file that stands alone, in which everything from outside is text."""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from leaderboard.__main__ import main
from leaderboard.errors import LeaderboardError
from leaderboard.ingest import ingest
from leaderboard.report.command import _write
from leaderboard.report.contents import Report, read_report
from leaderboard.report.html import as_html
from leaderboard.report.markdown import as_markdown_report
from leaderboard.report.plots import interval_plot, size_plot
from leaderboard.report.svg import standalone
from leaderboard.report.words import commands, sentences, share
from leaderboard.terminal.marks import words_of

HOSTILE = "x\"'><script>alert(1)</script> javascript:alert(2) \u202eevil\u202c | `@all` [l](http://example.org)"
VOID = {"meta", "input", "wbr", "link", "br", "img"}


class Page(HTMLParser):
    """A document's elements with their attributes, and the text within each kind; fails where tags do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.texts[tag][-1] += data

    def all(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        return [found for name, found in self.elements if name == tag and wanted.items() <= found.items()]


@pytest.fixture
def database(made: Any, kit: Any) -> Path:
    """A model with a better, a worse and a hostile recipe on two tasks, the first with a control, and a failed run."""
    mult, total = kit.pair(400, 200, gained=60), kit.pair(300, 100, lost=40)
    made.run("baseline", {"int_mult": mult[0], "int_sum": total[0]})
    made.run("laser", {"int_mult": mult[1], "int_sum": total[0]})
    made.run("svd:rank=2", {"int_mult": mult[0], "int_sum": total[1]}, folder="svd")
    made.run(HOSTILE, {"int_mult": mult[1]}, folder="hostile")
    made.failed("wanda", {"int_mult": mult[1]}, folder="failed")
    path: Path = made.root / "leaderboard.duckdb"
    assert not ingest([made.root], path).rejected
    return path


@pytest.fixture
def report(database: Path) -> Report:
    return read_report([], database)


@pytest.mark.slow
def test_the_board_is_a_table_with_heads(report: Report) -> None:
    page = Page(as_html(report))
    board = page.texts["table"][0]
    for said in ("laser", "+0.150", "\u2212" + "0.133", "score 0.500", "better, no control run", "100"):
        assert said in board, said
    assert len(page.all("th", scope="row")) >= 8 and page.all("th", scope="col")
    assert page.all("th", scope="col")[0]["aria-sort"] == "ascending"
    assert len(page.texts["caption"]) == len(page.texts["table"])
    assert "Of 4 recipes" in page.texts["p"][0] and "1 is worse on" in page.texts["p"][0]
    assert "Best by mean rank: " in page.texts["p"][0]
    assert "3 weights are NaN" in " ".join(page.texts["li"])


@pytest.mark.slow
def test_nothing_is_asked_for_and_nothing_else_may_run(report: Report) -> None:
    text = as_html(report)
    page = Page(text)
    for tag in ("img", "link", "iframe", "object", "base", "form", "use", "image"):
        assert page.all(tag) == [], tag
    assert all((found.get("href") or "").startswith("#") for tag, found in page.elements if "href" in found)
    assert not any(name.startswith("on") or name in ("style", "src") for _, found in page.elements for name in found)
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"] or ""
    assert policy.startswith("default-src 'none';")
    for tag in ("style", "script"):
        (inner,) = page.texts[tag]
        digest = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not re.search(r"@import|url\(", page.texts["style"][0])


@pytest.mark.slow
def test_names_are_text(report: Report) -> None:
    text = as_html(report)
    page = Page(text)
    assert len(page.all("script")) == 1 and "alert" not in page.texts["script"][0]
    assert "\u202e" not in text and "\u202c" not in text
    assert "<script>alert(1)</script>" in page.texts["table"][0]
    ids = [found["id"] for _, found in page.elements if found.get("id")]
    assert len(ids) == len(set(ids)) and all(re.fullmatch(r"[a-z]+(-\d+)?", name or "") for name in ids)


@pytest.mark.slow
def test_pictures_have_titles_and_words(report: Report) -> None:
    page = Page(as_html(report))
    pictures = page.all("svg")
    assert len(pictures) == 2 and all(found["role"] == "img" for found in pictures)
    for drawn in page.texts["svg"]:
        assert "tiny" in drawn and re.search(r"n \d+", drawn) and f"{report.made:%b %Y}" in drawn
    assert any("From svd:rank=2" in said for said in page.texts["desc"])
    assert any(said == "laser: +0.150 [+0.113, +0.185], better, no control run" for said in page.texts["title"])


@pytest.mark.slow
def test_every_number_of_a_task_is_there(report: Report) -> None:
    text = " ".join(Page(as_html(report)).texts["details"])
    assert "0.6500" in text and "0 / 60" in text and "< 0.0001" in text and "+0.150 [+0.113, +0.185]" in text
    assert "q 0.0000" not in text and "n 400" in text


@pytest.mark.slow
def test_how_it_was_made(report: Report) -> None:
    page = Page(as_html(report))
    assert any(said.startswith("lm_eval run --recipe") for said in page.texts["code"])
    badges = page.texts["ul"][0]
    for said in ("1K parameters", "llama", "dtype float32", "n 300 to 400", "no limit", "5 runs", "2 Jan 2026"):
        assert said in badges, (said, badges)


@pytest.mark.slow
def test_markdown_says_the_same(report: Report) -> None:
    text = as_markdown_report(report)
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert table[0].startswith("| Rank | Recipe | `int_mult` | `int_sum` |")
    assert any(line.startswith("| 1 | `laser` | \u2605 \u25b4 +0.150 |") for line in table), table
    assert "\u202e" not in text and "`wanda` failed: " in text
    outside = re.sub(r"(`+)(?:.*?[^`])\1(?!`)", "", text)  # without code spans
    for sign in ("<script", "@all", "http://", "[l]"):
        assert sign not in outside, sign
    columns = {
        len(re.sub(r"\\\|", "", line).split("|"))
        for line in table[: table.index(next(r for r in table if "---" in r)) + 5]
    }
    assert len(columns) == 1


@pytest.mark.slow
def test_runs_are_compared_with_the_first(database: Path, made: Any) -> None:
    report = read_report(["tiny/svd:rank=2", "laser"], database)
    assert report.title == "1 run against svd:rank=2" and len(report.runs) == 2
    assert "+0.150" in as_html(report) and "+0.133" in as_html(report)
    by_path = read_report(
        [str(made.root / "tiny" / "baseline-0123456789"), str(next((made.root / "tiny").glob("laser*")))], database
    )
    assert by_path.title == "1 run against baseline"


def test_one_run_is_compared_with_its_baseline(database: Path) -> None:
    report = read_report(["laser"], database)
    assert report.title == "laser on tiny" and {run.row.recipe_label for run in report.runs} == {"baseline", "laser"}


@pytest.mark.slow
def test_without_a_database_runs_are_read_from_their_folders(made: Any, database: Path) -> None:
    database.unlink()
    folders = [str(next((made.root / "tiny").glob(f"{name}*"))) for name in ("baseline", "laser")]
    assert read_report(folders, database).title == "1 run against baseline"
    with pytest.raises(LeaderboardError, match=r"leaderboard\.duckdb"):
        read_report([], database)


@pytest.mark.slow
def test_a_picture_in_a_file_of_its_own_has_its_colours(database: Path) -> None:
    report = read_report([], database)
    drawings = [drawn for plot in (interval_plot, size_plot) if "<svg" in (drawn := plot(report, "int_mult"))]
    assert drawings
    for drawn in drawings:
        picture = standalone(drawn)
        classes = {name for listed in re.findall(r'class="([^"]+)"', drawn) for name in listed.split()} - {"undecided"}
        (style,) = re.findall(r"<style>(.*)</style>", picture)
        assert classes and all(f".{name}" in style for name in classes) and picture.count("<svg") == 1
        assert all(f"{name}:" in style for name in re.findall(r"var\((--[a-z-]+)\)", style))


@pytest.mark.slow
@pytest.mark.parametrize("names", [["nothing"], ["laser", "laser"], ["laser", "wanda"]])
def test_what_cannot_be_reported_is_said(names: list[str], database: Path) -> None:
    with pytest.raises(LeaderboardError, match="nothing|each once|failed run"):
        read_report(names, database)


@pytest.mark.slow
def test_the_command_writes_where_it_is_told(
    database: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "board.html"
    assert main(["report", "--database", str(database), "--out", str(out)]) == 0
    assert out.read_text(encoding="utf-8").startswith("<!DOCTYPE html>") and "kB, 5 runs" in capsys.readouterr().err
    assert main(["report", "tiny", "--markdown", "--database", str(database)]) == 0
    assert capsys.readouterr().out.startswith("## `tiny: recipes against their baseline`")
    assert main(["report", "--database", str(database), "--out", str(tmp_path / "no" / "x.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")] == []


def test_a_read_only_folder_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "write_text", refused)
    monkeypatch.setattr(Path, "unlink", refused)  # as such a disk does, though nothing is there
    with pytest.raises(LeaderboardError, match=r"^--out \S+x\.html cannot be written: Read-only file system$"):
        _write(tmp_path / "x.html", "text")


@pytest.mark.slow
def test_it_needs_neither_torch_nor_the_rest(repository: Path) -> None:
    code = (
        "import sys; import leaderboard.report.command, leaderboard.report.contents, leaderboard.report.html,"
        " leaderboard.report.markdown; print([name for name in ('torch', 'transformers', 'lm_eval', 'harness_ext',"
        " 'streamlit', 'altair') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.slow
def test_fifty_runs_are_small_and_many_still_open(made: Any, kit: Any) -> None:
    """60 rows on three tasks in far less than 2 MB; a plot draws the first sixty rows."""
    pairs = {name: kit.pair(40, 20, lost=1, gained=3) for name in ("a_task", "b_task", "c_task")}
    made.run("baseline", {name: pair[0] for name, pair in pairs.items()})
    for number in range(70):
        made.run(f"laser:rank={number}", {name: pair[1] for name, pair in pairs.items()}, folder=f"laser-{number}")
    path = made.root / "leaderboard.duckdb"
    assert not ingest([made.root], path).rejected
    text = as_html(read_report([], path))
    assert len(text.encode()) < 600_000
    page = Page(text)
    assert "The first 60 rows by rank" in " ".join(page.texts["p"])
    assert max(drawn.count("laser:") for drawn in page.texts["svg"]) <= 2 * 62


def test_a_share_near_all_is_not_written_as_all() -> None:
    assert [share(kept) for kept in (1.0, 0.9997, 0.996, 0.994, 0.55, 0.0312, None)] == [
        "100 %", "100 %", "99.6 %", "99 %", "55 %", "3.12 %", ""
    ]  # fmt: skip


def test_a_command_is_shown_without_what_a_sweep_adds_for_itself(report: Report) -> None:
    typed = ("lm_eval", "run", "--recipe", "svd", "--manifest", "cells/a b/manifest.json", "--device", "cpu")
    (made,) = commands(replace(report, runs=(report.runs[0]._replace(command=typed),)))
    assert made.command == "lm_eval run --recipe svd --device cpu"


def test_what_is_better_as_its_control_may_be_is_told_apart(report: Report) -> None:
    """A control itself has none to beat: it is plainly better."""

    def told(**changes: Any) -> str:
        cells = [replace(cell, **changes) if cell.recipe == "laser" else cell for cell in report.cells]
        return "".join("".join(parts) for parts in sentences(replace(report, cells=tuple(cells))))

    (laser,) = [cell for cell in report.cells if cell.recipe == "laser" and cell.verdict == "better"]
    control = replace(laser, control="noise", verdict="undecided")
    assert "2 more are better than the baseline, with no control to tell why." in told()
    assert "1 more is better than the baseline, but not shown to beat a control." in told(against_controls=(control,))
    assert words_of(laser) == "better, no control run" and words_of(replace(laser, control="noise")) == "better"


def test_settings_stand_beside_a_name_that_several_rows_share(database: Path, made: Any, kit: Any) -> None:
    def heads() -> list[str]:
        page = Page(as_html(read_report([], database)))
        scopes = [head["scope"] for head in page.all("th")]
        return page.texts["th"][: scopes.index("row")]

    assert heads().index("Settings") == len(heads()) - 1
    made.run("svd:rank=3", {"int_mult": kit.pair(400, 200, lost=30)[1]}, folder="other")
    assert not ingest([made.root], database).rejected
    assert heads().index("Settings") == 1 and heads().count("Settings") == 1
