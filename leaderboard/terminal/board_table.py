"""The board in the terminal: recipes by tasks, a line a recipe, best first, as `board.standings` ranks them and the
page shows them. The details of every row are `terminal.table`'s.

Where the tasks do not fit side by side they go into several blocks, and a line says which. Names stay whole: one too
long for its column stands on a line above its numbers, a task's is broken over several lines. In ASCII where nothing
else can be written; colour only when asked for, and never the only bearer of meaning.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from leaderboard.board.cell import Cell
from leaderboard.board.standings import Standing, Standings, kind, standings
from leaderboard.commands import advised
from leaderboard.readers.records import BASELINE
from leaderboard.terminal.board_notes import facts, notes
from leaderboard.terminal.format import KEPT, NOTHING, counted, percent, plain
from leaderboard.terminal.listing import wrapped_text
from leaderboard.terminal.marks import ASCII_STAR, MARKS, MINUS, STAR, cell_text, legend

NARROWEST = 60
_HEAD, _LONGEST_HEAD = 12, 20
"""Columns of a task's name before it is broken: at a joint, and anywhere."""
_JOINT = re.compile(r"[_\-/:.,\s]")
_NAME_SHARE = 3
"""A recipe's name has at most the line's width divided by this beside its numbers."""
_BLUE, _PALE, _ORANGE, _GREY = "38;5;33;1", "38;5;74", "38;5;208;1", "2"
_COLOURS = {
    "beats": _BLUE,
    "alone": _BLUE,
    "as control": _PALE,
    "worse": _ORANGE,
    "collapsed": _ORANGE,
    "failed": _ORANGE,
}


_UNDER, _ASCII_UNDER = "\u21b3 ", "> "
SIGNS = "".join([STAR, MINUS, _UNDER, *(mark.sign for mark in MARKS.values())])
"""All that a board writes beyond ASCII and names."""


class BoardLook(NamedTuple):
    """How a board is drawn. width: in columns. database: the one that it is of, for the commands that it advises."""

    width: int = 80
    color: bool = False
    ascii_only: bool = True
    database: Path | None = None

    def tinted(self, text: str, code: str) -> str:
        """The text in a colour, where colours are wanted."""
        return f"\x1b[{code}m{text}\x1b[0m" if self.color and text.strip() else text


class _Column(NamedTuple):
    """A column: its head in lines, and a text a row, with the colour of each."""

    head: Sequence[str]
    texts: Sequence[str]
    colours: Sequence[str]

    @property
    def width(self) -> int:
        return max(map(len, (*self.head, *self.texts)))

    def text(self, row: int, look: BoardLook) -> str:
        """The text of a row, as wide as the column."""
        text = f"{self.texts[row]:>{self.width}}"
        return look.tinted(text, self.colours[row]) if self.colours[row] else text


def render_board(
    cells: Iterable[Cell],
    look: BoardLook,
    *,
    shown: Collection[str] | None = None,
    controls: bool = False,
    by: str = "",
) -> str:
    """The boards of all models in `cells`, as text without a final newline; a sentence where there are none.

    cells: whole boards, which ranks are over. shown: ids of runs, of which alone there are rows and tasks, beside what
    they are compared with; all unless given. controls: show them under their recipe. by: the task to rank on, all
    common ones unless given.
    """
    look = look._replace(width=max(look.width, NARROWEST))
    by_model = sorted(cells, key=lambda cell: (cell.model, cell.model_key))
    boards = [
        _board(list(of_model), look, shown, controls=controls, by=by)
        for _, of_model in groupby(by_model, key=lambda cell: (cell.model, cell.model_key))
    ]
    return "\n\n".join("\n".join(lines) for lines in boards if lines) or "No results to show yet."


def _board(
    cells: Sequence[Cell], look: BoardLook, shown: Collection[str] | None, *, controls: bool, by: str
) -> list[str]:
    ranked = standings(cells, by=by or None, about=shown or ())
    wanted = {cell.run_id for cell in cells} if shown is None else shown
    compared = {cell.baseline_run for cell in cells if cell.run_id in wanted and cell.baseline_run is not None}
    beneath = compared or {run for row in ranked.rows if row.is_main for run in row.run_ids}
    folded = [row for row in ranked.listed(controls=True) if row.control is not None and _is_among(row, wanted)]
    rows = [
        row
        for row in ranked.listed(controls=controls)
        if _is_among(row, wanted) or (row.is_baseline and _is_among(row, beneath))
    ]
    if not any(_is_among(row, wanted) for row in rows):
        return []
    tasks = [task for task in ranked.tasks if any(_has(row, task, wanted) for row in (*rows, *folded))]
    own = [cell for row in rows for task, cell in row.cells.items() if task in tasks or not cell.metric]
    hidden = 0 if controls else len({row.name for row in folded} - {row.name for row in rows})
    lines = [
        *_title(cells[0].model, rows, len(tasks), look),
        *_blocks(ranked, rows, tasks, look),
        "",
    ]
    starred = any(row.name in ranked.best.get(task, ()) for row in rows for task in tasks)
    explained = (*_explained(ranked, own, starred, look), *_about_ranks(ranked, rows, tasks))
    for sentence in (*explained, *_elsewhere(ranked, rows, tasks), *facts(own), _about_controls(hidden, look)):
        lines += _paragraph(sentence, look)
    told = notes(own, look.width, advised(look.database, "show", "--details"))
    return [*lines, *([""] if told else []), *told]


def _is_among(row: Standing, wanted: Collection[str]) -> bool:
    return any(run in wanted for run in row.run_ids)


def _has(row: Standing, task: str, wanted: Collection[str]) -> bool:
    return task in row.cells and row.cells[task].run_id in wanted


def _title(model: str, rows: Sequence[Standing], tasks: int, look: BoardLook) -> list[str]:
    recipes = sum(row.is_recipe for row in rows)
    what = f"Model {plain(model)}: {counted(recipes, 'recipe', 'recipes')} on {counted(tasks, 'task', 'tasks')}"
    return [look.tinted(line, "1") for line in textwrap.wrap(what, look.width)]


def _blocks(ranked: Standings, rows: Sequence[Standing], tasks: Sequence[str], look: BoardLook) -> Iterator[str]:
    """The table in as many blocks as its columns need."""
    places = [str(row.rank) if row.rank is not None else "" for row in rows]
    names = [_name(row, look) for row in rows]
    rooms = max(1, *map(len, places)), min(max(map(len, names)), look.width // _NAME_SHARE)
    room = look.width - sum(rooms) - 1
    of_tasks, others = [_task_column(ranked, rows, task, look) for task in tasks], _others(rows)
    if sum(2 + column.width for column in (*of_tasks, *others)) <= room:
        yield from _block([*of_tasks, *others], list(zip(places, names)), rooms, look)
        return
    # Of several blocks the first has what is of all tasks.
    done = 0
    for block in _in_blocks([*others, *of_tasks], room):
        count = sum(column not in others for column in block)
        if done:
            yield ""
        if count < len(tasks):
            these = f"tasks {done + 1} to {done + count}" if count > 1 else f"task {done + 1}" if count else "no task"
            yield look.tinted(f"{these} of {len(tasks)}", _GREY)
        done += count
        yield from _block(block, list(zip(places, names)), rooms, look)


def _in_blocks(columns: Sequence[_Column], room: int) -> list[list[_Column]]:
    """The columns in order, as many side by side as there is room for."""
    blocks: list[list[_Column]] = [[]]
    used = 0
    for column in columns:
        if blocks[-1] and used + 2 + column.width > room:
            blocks.append([])
            used = 0
        blocks[-1].append(column)
        used += 2 + column.width
    return blocks


def _block(
    columns: Sequence[_Column], names: Sequence[tuple[str, str]], rooms: tuple[int, int], look: BoardLook
) -> Iterator[str]:
    rank_room, room = rooms
    height = max((len(column.head) for column in columns), default=1)
    heads = [[*[""] * (height - len(column.head)), *column.head] for column in columns]
    for line in range(height):
        first = ("#", "recipe") if line == height - 1 else ("", "")
        others = "".join(f"  {head[line]:>{column.width}}" for head, column in zip(heads, columns))
        yield f"{first[0]:>{rank_room}} {first[1]:<{room}}{others}".rstrip()
    yield "-" * (rank_room + 1 + room + sum(2 + column.width for column in columns))
    for number, (place, name) in enumerate(names):
        beside = "".join(f"  {column.text(number, look)}" for column in columns)
        if len(name) <= room:
            yield f"{place:>{rank_room}} {name:<{room}}{beside}".rstrip()
            continue
        # A name that is longer stands whole on a line of its own.
        for line, piece in enumerate(wrapped_text(name, look.width - rank_room - 3)):
            yield f"{'' if line else place:>{rank_room}} {'  ' if line else ''}{piece}"
        yield f"{'':>{rank_room + 1 + room}}{beside}".rstrip()


def _name(row: Standing, look: BoardLook) -> str:
    under = "" if row.control is None else _ASCII_UNDER if look.ascii_only else _UNDER
    return under + plain(row.name)


def _task_column(ranked: Standings, rows: Sequence[Standing], task: str, look: BoardLook) -> _Column:
    cells = [row.cells.get(task) for row in rows]
    texts = _aligned([_parts(cell, row.name in ranked.best.get(task, ()), look) for cell, row in zip(cells, rows)])
    longest = max(map(len, _JOINT.split(task)))
    room = max(*map(len, texts), min(len(task), max(_HEAD, min(longest + 1, _LONGEST_HEAD))))
    colours = [
        "" if cell is None else _COLOURS.get(kind(cell), "" if cell.verdict == BASELINE else _GREY) for cell in cells
    ]
    return _Column(broken(plain(task), room), texts, colours)


def _parts(cell: Cell | None, best: bool, look: BoardLook) -> tuple[str, str, str]:
    """The star, the mark and the number of a cell; of the baseline its score alone."""
    if cell is None:
        return "", "", ""
    text = cell_text(cell, ascii_only=look.ascii_only)
    if cell.verdict == BASELINE:
        return "", "", text.removeprefix("score ")
    mark, _, number = text.partition(" ")
    star = ASCII_STAR if look.ascii_only else STAR
    return star if best else "", mark, number if re.search(r"\d", number) else ""


def _aligned(parts: Sequence[tuple[str, str, str]]) -> list[str]:
    """Stars, marks and numbers below one another."""
    stars, marks, numbers = (max(len(part[place]) for part in parts) for place in range(3))
    return [
        f"{star:>{stars}}{mark:>{marks}} {number:>{numbers}}".rstrip()
        if mark or not number
        else f"{'':>{stars + marks}} {number:>{numbers}}"
        for star, mark, number in parts
    ]


def _others(rows: Sequence[Standing]) -> list[_Column]:
    """What is of all tasks together: how often it beats its control, and its size."""
    untinted = [""] * len(rows)
    beats = [f"{row.beaten} of {row.better}" if row.better else NOTHING if not row.is_baseline else "" for row in rows]
    kept = [percent(row.parameters_kept) for row in rows]
    return [_Column(("beats", "control"), beats, untinted), _Column(("kept",), kept, untinted)]


def broken(name: str, room: int) -> list[str]:
    """A name in lines of at most so many letters, broken after a joint where there is one."""
    lines, rest = [], name
    while len(rest) > room:
        joints = [match.end() for match in _JOINT.finditer(rest[:room])]
        end = joints[-1] if joints else room
        lines.append(rest[:end])
        rest = rest[end:]
    return [*lines, rest]


def _explained(ranked: Standings, cells: Sequence[Cell], starred: bool, look: BoardLook) -> Iterator[str]:
    """What the marks, the numbers and the ranks mean."""
    kinds = legend(kind(cell) for cell in cells)
    signs = "; ".join(f"{mark.ascii if look.ascii_only else mark.sign} {mark.words}" for _, mark in kinds)
    star = ASCII_STAR if look.ascii_only else STAR
    best = f"; {star} best of its task" if starred else ""
    if signs:
        yield f"{signs}{best}."
    yield "Numbers: improvement over the baseline, + is good on every task; of the baseline its score."


def _about_ranks(ranked: Standings, rows: Sequence[Standing], tasks: Sequence[str]) -> Iterator[str]:
    """What a place is among, and over which tasks; or why no recipe here has one."""
    among = sum(row.rank is not None for row in ranked.rows)
    if not ranked.ranked_on or among < 2:
        return
    over, shown = counted(len(ranked.ranked_on), "task", "tasks"), len(set(ranked.ranked_on) & set(tasks))
    recipes = [row for row in rows if row.is_recipe]
    if recipes and all(row.rank is None for row in recipes):
        place = f"none here, since ranks are over {over} of other recipes of this model"
    else:
        of_these = "" if shown == len(ranked.ranked_on) else f" ({shown} of them here)"
        place = (
            f"place among {among} of this model, by the mean rank on {over}{of_these} of what is proven; what stands"
            " below the baseline is not worth doing"
        )
    yield f"#: {place}. beats control: on how many of the tasks that it is better on. kept: {KEPT}."


def _elsewhere(ranked: Standings, rows: Sequence[Standing], tasks: Sequence[str]) -> Iterator[str]:
    """Which cells are compared with another run of the unedited model than the baseline's row has."""
    found: dict[tuple[str, str], list[str]] = {}
    here = {row.name for row in rows}
    for (name, task), run in ranked.compared_elsewhere.items():
        if name in here and task in tasks:
            found.setdefault((run, task), []).append(plain(name))
    of_run = {run: row for row in ranked.rows for run in row.run_ids if not row.is_main}
    told = []
    for (run, task), names in found.items():
        row = of_run.get(run)
        score = cell_text(row.cells[task]) if row is not None and task in row.cells else f"run {run[:8]}"
        told.append(f"{plain(task)}, {score}: {', '.join(names)}")
    if told:
        yield f"Compared with another run of the unedited model than the baseline's row shows: {'; '.join(told)}."


def _about_controls(folded: int, look: BoardLook) -> str:
    shown = advised(look.database, "show", "--controls")
    return f"{counted(folded, 'control is', 'controls are')} not shown: {shown}." if folded else ""


def _paragraph(sentence: str, look: BoardLook) -> list[str]:
    lines = textwrap.wrap(sentence, look.width, subsequent_indent="  ", break_on_hyphens=False)
    return [look.tinted(line, _GREY) for line in lines]
