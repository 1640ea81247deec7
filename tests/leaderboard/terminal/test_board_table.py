"""The board in the terminal: order, marks and numbers of the page, whole names, and notes told once."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from leaderboard.board.cell import Cell
from leaderboard.board.standings import standings
from leaderboard.terminal.board_notes import MOST_NOTES, facts, notes
from leaderboard.terminal.board_table import SIGNS, BoardLook, broken, render_board
from leaderboard.terminal.format import KEPT
from leaderboard.terminal.marks import cell_text

COLOURS = re.compile(r"\x1b\[[\d;]*m")
LONG = "eigenprune:fraction=0.1,calibration.samples=160,calibration.task=arc_easy"


def cell(recipe: str, task: str, verdict: str, improvement: float | None = None, **rest: Any) -> Cell:
    about = {"run_id": f"run of {recipe}", "metric": "acc", "n": 100, "parameters_kept": 0.5} | rest
    return Cell(
        "tiny", recipe, about.pop("run_id"), task, about.pop("metric"), "none", about.pop("n"), 0.5, 0.25, verdict,
        improvement=improvement, delta=improvement, **about,
    )  # fmt: skip


def beside(one: Cell, verdict: str) -> Cell:
    pair = replace(one, verdict=verdict, control="noise", baseline_run=f"run of {one.recipe}+noise")
    return replace(one, against_controls=(pair,))


def board(recipes: int, tasks: int) -> list[Cell]:
    """Of all kinds, in turn."""
    kinds = [("better", 0.3), ("worse", -0.2), ("same", 0.001), ("undecided", 0.05), ("collapsed", -0.5)]
    names = [f"a_task_of_number_{number}" for number in range(tasks)]
    cells = [cell("baseline", task, "baseline") for task in names]
    for number in range(recipes):
        for place, task in enumerate(names):
            verdict, gain = kinds[(number + place) % len(kinds)]
            one = cell(f"recipe-{number}", task, verdict, gain)
            cells.append(beside(one, ("better", "same")[number % 2]) if number % 3 else one)
            if number % 3:
                cells.append(cell(f"recipe-{number}+noise", task, "same", 0.0, control="noise"))
    return cells


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("recipes", [1, 3, 27])
@pytest.mark.parametrize("tasks", [1, 5, 30])
def test_every_row_and_task_is_there_within_the_width(recipes: int, tasks: int, width: int) -> None:
    cells = board(recipes, tasks)
    text = render_board(cells, BoardLook(width))
    lines = text.splitlines()
    assert max(map(len, lines)) <= width and text.isascii()
    table = re.split(r"\n\n[\^+~=.vx] [a-z]", text)[0]
    blocks = max(table.count("# recipe"), 1)
    for row in standings(cells).rows:
        own = [line for line in table.splitlines() if row.name in line.split()]
        assert len(own) == blocks
        for task in row.cells:
            numbers = cell_text(row.cells[task], ascii_only=True).removeprefix("score ").split()
            assert any(" ".join(numbers) in re.sub(" +", " ", line) for line in own)
    # Rows stand in the order of the page.
    first = re.findall(r"^ *\d+=? (\S+)", table, re.MULTILINE)[: recipes + 1]
    assert first == [row.name for row in standings(cells).rows]
    if blocks > 1:
        told = re.findall(r"^tasks? (\d+)(?: to (\d+))? of (\d+)$", table, re.MULTILINE)
        covered = [task for low, high, _ in told for task in range(int(low), int(high or low) + 1)]
        assert covered == list(range(1, tasks + 1)) and {of for *_, of in told} == {str(tasks)}


@pytest.mark.parametrize("ascii_only", [True, False])
def test_colour_and_signs_add_nothing_else(ascii_only: bool) -> None:
    cells = board(5, 5)
    tinted = render_board(cells, BoardLook(100, True, ascii_only))
    assert "\x1b[" in tinted and COLOURS.sub("", tinted) == render_board(cells, BoardLook(100, False, ascii_only))
    assert all(letter.isascii() or letter in SIGNS for letter in COLOURS.sub("", tinted))


def test_what_is_kept_is_told_as_on_the_page() -> None:
    assert f"kept: {KEPT}." in " ".join(render_board(board(3, 2), BoardLook(width=100)).split())


def test_controls_fold_and_unfold_under_their_recipe() -> None:
    cells = [
        cell("baseline", "sums", "baseline"),
        beside(cell("laser", "sums", "better", 0.3), "better"),
        cell("laser+noise", "sums", "same", 0.0, control="noise"),
    ]
    folded = render_board(cells, BoardLook(100))
    assert "laser+noise" not in folded and "1 control is not shown" in folded
    assert re.search(r"^1 laser +\*\^ \+0\.300 +1 of 1 +50\.0%$", folded, re.MULTILINE)
    unfolded = render_board(cells, BoardLook(100), controls=True).splitlines()
    (place,) = [number for number, line in enumerate(unfolded) if line.startswith("1 laser")]
    assert unfolded[place + 1].startswith("  > laser+noise")


def test_a_run_among_others_has_its_place_on_the_whole_board() -> None:
    cells = board(5, 2)
    text = render_board(cells, BoardLook(100), shown={"run of recipe-4"})
    places = {row.name: str(row.rank) for row in standings(cells).rows}
    rows = re.findall(r"^ *(\d+=?) (\S+)", text, re.MULTILINE)
    assert {name: place for place, name in rows} == {name: places[name] for name in ("baseline", "recipe-4")}
    assert "place among 6 of this model" in text
    assert render_board(cells, BoardLook(100), shown={"no such run"}) == "No results to show yet."


@pytest.mark.parametrize("width", [60, 80])
def test_long_names_stay_whole(width: int) -> None:
    task = "crows_pairs_english_socioeconomic_and_an_incomprehensibilityofall"
    text = render_board([cell("baseline", task, "baseline"), cell(LONG, task, "worse", -0.1)], BoardLook(width))
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    (place,) = [number for number, line in enumerate(lines) if line.startswith("2 eigenprune:")]
    numbers = next(number for number, line in enumerate(lines) if "v -0.100" in line)
    assert "".join(part.strip() for part in lines[place:numbers]).removeprefix("2 ") == LONG
    assert "".join(broken(task, 12)) == task and max(map(len, broken(task, 12))) <= 12
    assert broken("int_mult_clean", 12) == ["int_mult_", "clean"]


@pytest.mark.parametrize("width", [80, 120])
def test_names_break_at_their_joints_alone(width: int) -> None:
    matrices = ",".join(f"layers_{place}_projection" for place in range(9))
    long = f"svd-llm-lora:keep.param_fraction=0.9,matrices=[{matrices}]"
    task = "leaderboard_bbh_tracking_shuffled-objects_three"
    lines = render_board([cell("baseline", task, "baseline"), cell(long, task, "worse", -0.1)], BoardLook(width))
    rows = [line.strip() for line in lines.splitlines()]
    first = next(place for place, line in enumerate(rows) if line.startswith("2 svd-llm"))
    last = next(place for place, line in enumerate(rows) if "v -0.100" in line)
    pieces = [rows[first].removeprefix("2 "), *rows[first + 1 : last]]
    assert "".join(pieces) == long and len(pieces) > 1
    assert all(piece.endswith(("_", "-", ",", "=")) for piece in [*pieces[:-1], *broken(task, 12)[:-1]])


def test_a_failed_row_and_one_without_any_task_are_there() -> None:
    cells = [
        cell("baseline", "sums", "baseline"),
        cell("laser", "sums", "failed", notes=("3 weights are NaN",)),
        cell("svd", "", "failed", metric="", notes=("out of memory",)),
    ]
    text = render_board(cells, BoardLook(80))
    assert re.search(r"^ +laser +!", text, re.MULTILINE) and re.search(r"^ +svd ", text, re.MULTILINE)
    assert "! failed: laser: 3 weights are NaN" in text and "! failed: svd: out of memory" in text
    assert render_board([], BoardLook()) == "No results to show yet."


MORE = "`lm_eval show --details`"


def test_a_note_is_told_once() -> None:
    same = [cell("laser", f"task {number}", "same", notes=("the tokenizer is another",)) for number in range(73)]
    assert notes(same, 80, MORE) == ["  . laser, 73 tasks: the tokenizer is another"]
    numbered = [
        cell(f"r{number}", "sums", "same", notes=(f"warning: raised the loss from {number}.5 to 1e+03 nats",))
        for number in range(12)
    ]
    assert notes(numbered, 90, MORE) == [
        "  . 12 cells, such as r0 on sums: warning: raised the loss from 0.5 to 1e+03 nats"
    ]
    assert notes([cell("laser", "sums", "same", notes=("one",))], 80, MORE) == ["  . laser on sums: one"]


def test_of_many_notes_those_about_most_rows_are_told_and_the_rest_counted() -> None:
    many = [cell("laser", "sums", "same", notes=tuple(f"note {letter}" for letter in "abcdefghijklmnopqrst"))]
    told = notes([*many, cell("svd", "sums", "same", notes=("note t",))], 80, MORE)
    assert len(told) == MOST_NOTES + 1 and "laser on sums; svd on sums: note t" in told[0]
    assert told[-1] == f"  . {20 - MOST_NOTES} more: {MORE}"


def test_undecided_rows_are_one_note() -> None:
    open_ones = [cell(f"r{needed}", "sums", "undecided", 0.1, documents_needed=needed) for needed in (984, 344)]
    assert notes(open_ones, 80, MORE) == ["  . 2 verdicts are undecided: about 344 to 984 documents each would decide"]
    assert notes(open_ones[:1], 80, MORE) == ["  . 1 verdict is undecided: about 984 documents would decide"]


def test_tasks_that_are_alike_are_told_together() -> None:
    cells = [
        cell("laser", "b", "same"),
        cell("laser", "a", "same"),
        cell("laser", "c", "same", metric="ppl", higher_is_better=False),
    ]
    assert list(facts(cells)) == ["Tasks: acc, 100 documents: a, b; ppl (lower is better), 100 documents: c."]


def test_names_from_files_cannot_write_on_the_terminal() -> None:
    text = render_board([cell("evil\x1b[2J\nrecipe", "su\x1bms", "same", 0.0, notes=("a\x07b",))], BoardLook(80))
    assert "\x1b" not in text and "\x07" not in text


def test_advised_commands_reach_the_board_that_they_stand_under(tmp_path: Path) -> None:
    cells = [
        cell("baseline", "sums", "baseline"),
        cell("svd", "sums", "better", 0.1, notes=tuple(f"note {letter}" for letter in "abcdefghijklmnopqrst")),
        cell("svd+noise", "sums", "same", control="noise"),
    ]
    shown = render_board(cells, BoardLook(200, database=tmp_path / "team.duckdb"))
    for flag in ("--controls", "--details"):
        assert f"`lm_eval show {flag} --database {tmp_path / 'team.duckdb'}`" in shown
        assert f"`lm_eval show {flag}`" in render_board(cells, BoardLook(200))
