"""A report as Markdown: the same words, the board as a table, the numbers of each task, for a pull request or a model
card.

Notable choice: names stand in code spans, where neither links, images, HTML nor mentions mean anything.
"""

from __future__ import annotations

from collections.abc import Iterator

from leaderboard.board.cell import Cell
from leaderboard.board.standings import kind
from leaderboard.readers.records import BASELINE
from leaderboard.report import words
from leaderboard.report.contents import Report
from leaderboard.report.words import baseline_score, control_text, improvement_text
from leaderboard.terminal.format import chance, direction, metric_name, number, span
from leaderboard.terminal.marks import MARKS, STAR, legend, p_text, words_of
from leaderboard.terminal.output import OurText, Row, as_markdown, markdown_code

_CONTROL = "Against its control"
_LONGEST = 60
"""Rows of the board above which the tables of its tasks are left out: GitHub shows no more than 65,536 letters."""


def as_markdown_report(report: Report) -> str:
    """The whole text, with a final newline."""
    return "\n\n".join(part for part in _parts(report) if part) + "\n"


def _parts(report: Report) -> Iterator[str]:
    board = report.standings
    yield f"## {markdown_code(report.title)}"
    yield "".join(
        f"{before}{f'**{markdown_code(stressed)}**' if stressed else ''}{after}"
        for before, stressed, after in words.sentences(report)
    ).strip()
    yield "\n".join(f"> {markdown_code(remark)}" for remark in report.remarks)
    yield " · ".join(map(markdown_code, words.badges(report)))
    rows = [row for row in board.listed(controls=report.compared) if not words.is_failed(row)]
    yield as_markdown(words.board_rows(board, rows, board.tasks))
    kinds = legend(kind(cell) for row in rows for cell in row.cells.values())
    yield "; ".join([f"{STAR} best of its task", *(f"{mark.sign} {mark.words}" for _, mark in kinds)]) + (
        f". Improvement over {markdown_code(report.baseline)}: + is good on every task, whatever its metric."
    )
    yield "\n".join(f"- {markdown_code(name)} failed: {markdown_code(why)}" for name, why in words.failures(report))
    if len(rows) <= _LONGEST:
        yield from (_task(report, task) for task in board.tasks)
    yield _made(report)


def _task(report: Report, task: str) -> str:
    cells = [cell for cell in report.primary_cells(task) if cell.verdict != BASELINE and cell.metric]
    if not cells:
        return ""
    base = baseline_score(report, task)
    counts = span([cell.n for cell in cells if cell.n is not None])
    against = f"; baseline {number(base)}" if base is not None else ""
    level = f"; {told}" if (told := chance(cells)) else ""
    about = f"{markdown_code(metric_name(cells[0]))}, {direction(cells[0])}, {counts}{against}{level}"
    rows = [_task_row(cell) for cell in cells]
    if not any(cell.against_controls for cell in cells):
        rows = [{name: value for name, value in row.items() if name != _CONTROL} for row in rows]
    return f"### {markdown_code(task)}\n\n{about}\n\n{as_markdown(rows)}"


def _task_row(cell: Cell) -> Row:
    return {
        "Recipe": cell.name,
        "Verdict": OurText(f"{MARKS[kind(cell)].sign} {words_of(cell)}"),
        "Score": OurText(words.score_text(cell)),
        "Improvement [95 %]": OurText(improvement_text(cell)),
        "n": cell.n,
        "q": OurText(p_text(cell.q_value).replace("<", "\\<")),
        "Lost / gained": OurText("" if cell.lost is None else f"{cell.lost:,} / {cell.gained:,}"),
        _CONTROL: OurText("; ".join(map(_against, cell.against_controls))),
    }


def _against(pair: Cell) -> str:
    return f"{control_text(pair, named=False)} {markdown_code(pair.control or '')}"


def _made(report: Report) -> str:
    lines = [f"- {markdown_code(made.command)} ({made.runs})" for made in words.commands(report)]
    return "\n".join(["Made by (runs):", "", *lines]) if lines else ""
