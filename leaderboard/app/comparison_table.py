"""The table of the page Compare: a row a task, groups of columns for what the run is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import urlencode

from leaderboard.app import comparison
from leaderboard.app.comparison import ComparedSide
from leaderboard.app.html_table import ColumnHead, Text
from leaderboard.board.cell import Cell
from leaderboard.readers.records import BASELINE


def heads(sides: Sequence[ComparedSide]) -> list[ColumnHead]:
    """The columns' heads: of the first side, of the run, and of every further side."""
    found = [ColumnHead("Task")]
    for place, side in enumerate(sides):
        found.append(ColumnHead(side.title, numeric=True))
        if place == 0:
            found.append(ColumnHead("This run", numeric=True))
        short = side.title.partition(":")[0].lower() if side.kind != comparison.OTHER else side.title
        found += [ColumnHead("Improvement", numeric=True, label=f"Over {short}"), ColumnHead(f"Against {short}")]
        if place == 0:
            found.append(ColumnHead("Lost / gained", numeric=True))
    return found


def rows(sides: Sequence[ComparedSide], subject: Mapping[str, Cell]) -> list[list[Text]]:
    """A row a task."""
    found = []
    for task, own in sorted(subject.items()):
        row = [Text(task, comparison.about(own))]
        for place, side in enumerate(sides):
            cell = side.cells.get(task)
            row += [Text("")] * (5 if place == 0 else 3) if cell is None else _side_cells(cell, side, place == 0)
        found.append(row)
    return found


def _side_cells(cell: Cell, side: ComparedSide, with_run: bool) -> list[Text]:
    if cell.verdict == BASELINE:
        own = [Text(comparison.score_text(cell.score)), Text(comparison.score_text(cell.score), strong=True)]
        return [*own, Text(""), Text("it is the baseline"), Text("")]
    said = comparison.shown(cell, is_pair=side.kind != BASELINE)
    reason = cell.notes[0] if cell.notes and cell.verdict in ("incomparable", "failed") else ""
    number = Text(said.number or "\u2013", said.interval, kind=said.kind if said.number else "")
    texts = [Text(comparison.score_text(cell.baseline_score)), number, Text(said.word, reason)]
    if not with_run:
        return texts
    moved = "\u2013" if cell.lost is None else f"{cell.lost:,} / {cell.gained:,}"
    flips = Text(moved, link=_flips_link(cell, side) if cell.lost or cell.gained else "")
    return [texts[0], Text(comparison.score_text(cell.score), strong=True), *texts[1:], flips]


def _flips_link(cell: Cell, side: ComparedSide) -> str:
    if side.kind == BASELINE:
        return f"flips?{urlencode({'run': cell.run_id, 'task': cell.task})}"
    return f"flips?{urlencode({'a': cell.baseline_run or '', 'b': cell.run_id, 'task': cell.task})}"
