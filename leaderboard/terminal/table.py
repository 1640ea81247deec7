"""The board as a table for the terminal: 80 columns are enough, 120 are used if there.

One block a model, one group a task (with its metric and baseline), one line a run. The task's further metrics follow
it, each behind a `+` with a verdict of its own, and then reasons and warnings. A name too long for its column stands
whole on a line above its numbers: variants of a recipe often differ in the middle. Plain ASCII; colour only when asked
for, and never the only bearer of meaning.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

from leaderboard.board.cell import Cell, changed
from leaderboard.board.further import all_metrics, contradictions
from leaderboard.compare.run_diff import Unshared
from leaderboard.readers.records import BASELINE
from leaderboard.terminal.format import (
    CLIPPED_LEGEND,
    FURTHER_LEGEND,
    UNPAIRED_LEGEND,
    against_controls,
    chance,
    counted,
    direction,
    flips,
    interval,
    is_elsewhere,
    metric_name,
    number,
    percent,
    plain,
    shift,
    undecided,
    withheld,
)

NARROW, WIDE = 70, 110
_COLOURS = {
    "better": "32",
    "worse": "31",
    "collapsed": "31;1",
    "same": "36",
    "undecided": "33",
    "incomparable": "35",
    "failed": "31;1",
    "baseline": "2",
}
_NOTE, _DOUBT = ".", "!"  # what a note begins with
_MOST_FURTHER = 5
"""Further metrics of a row that are shown."""
_SCORE, _DELTA, _VERDICT, _KEPT, _FLIPS = 9, 28, 12, 6, 15


def render(cells: Sequence[Cell], *, width: int = 80, color: bool = False, of_pair: bool = False) -> str:
    """The table as text without a final newline; a sentence where there are no cells. of_pair: of two runs that were
    judged by themselves, without the board.
    """
    if not cells:
        return "No results to show yet."
    width = max(width, NARROW)
    lines: list[str] = []
    for model, group in groupby(sorted(cells, key=lambda cell: cell.model), key=lambda cell: cell.model):
        of_model = list(group)
        lines += [_bold(_cut(f"Model {plain(model)}", width), color), *_header(of_model, width)]
        for task, of_task in groupby(sorted(of_model, key=lambda cell: cell.task), key=lambda cell: cell.task):
            lines += _task_lines(task, list(of_task), width, color)
        lines.append("")
    return "\n".join(lines + _legend(cells, width, of_pair))


def render_unshared(found: Iterable[Unshared], *, width: int = 80) -> list[str]:
    """What only one of two runs has, as lines."""
    return [
        line
        for only in found
        for sentence in only.sentences()
        for line in textwrap.wrap(plain(sentence), max(width, NARROW), subsequent_indent="  ", break_on_hyphens=False)
    ]


def _header(cells: Sequence[Cell], width: int) -> list[str]:
    drawn = [cell for cell in cells if cell.delta is not None]
    delta = f"delta [{'unpaired 95%' if drawn and all(cell.unpaired for cell in drawn) else '95% interval'}]"
    row = _line(_Columns("recipe", "score", delta, "verdict", "kept", "lost/gained"), width)
    return [row, "-" * min(width, len(row))]


def _task_lines(task: str, cells: list[Cell], width: int, color: bool) -> list[str]:
    shown = next((cell for cell in cells if cell.metric), cells[0])
    facts = [plain(task)]
    if shown.metric:
        facts += [f"{plain(metric_name(shown))}, {direction(shown)}"]
    facts += filter(None, [shown.scored])
    if shown.baseline_score is not None and all(cell.verdict != BASELINE for cell in cells):
        facts += [f"baseline {number(shown.baseline_score)}"]
    facts += filter(None, [chance(cells)])
    told = textwrap.wrap("; ".join(facts), width, subsequent_indent="  ", break_on_hyphens=False)
    lines = [_bold(line, color) for line in told]
    for cell in sorted(cells, key=lambda cell: (cell.verdict != BASELINE, cell.name, cell.run_id)):
        others = cell.scored if cell.scored != shown.scored else None
        lines += _cell_lines(changed(cell, notes=(others, *cell.notes)) if others else cell, width, color)
    return lines


def _cell_lines(cell: Cell, width: int, color: bool) -> list[str]:
    lost_gained = f"{cell.lost}/{cell.gained}" if cell.lost is not None else ""
    name = plain(cell.name)
    fits = len(name) <= _name_room(width)
    columns = _Columns(
        name if fits else "",
        number(cell.score),
        interval(cell, short=True),
        cell.verdict,
        percent(cell.parameters_kept),
        lost_gained,
    )
    coloured = _line(columns, width).replace(_word(cell, False), _word(cell, color))
    doubts = [plain(sentence) for sentence in contradictions(cell)]
    notes = [
        *filter(None, [undecided(cell), flips(cell.flip_rate, cell.noise_floor, cell.n), shift(cell)]),
        *map(plain, cell.notes),
        *(entry.sentence() for entry in cell.reported),
    ]
    above = [] if fits else [f"  {_cut(name, width - 2)}"]
    return [
        *above,
        coloured.rstrip(),
        *_further_lines(cell, width, color),
        *(line for doubt in doubts for line in _doubt(doubt, width, color)),
        *_control_lines(cell, width, color),
        *(line for note in notes if note not in doubts for line in _wrapped(note, width)),
    ]


def _further_lines(cell: Cell, width: int, color: bool) -> list[str]:
    """A line a further metric, whose numbers stand below the row's, and why it is undecided where its interval does
    not tell. Its notes are on the page.
    """
    lines = []
    for one in cell.further[:_MOST_FURTHER]:
        room = _name_room(width) + 1 + _SCORE
        score = number(one.score)
        name = _cut(f"+ {plain(metric_name(one))}", room - len(score) - 1)
        row = f"  {name}{score:>{room - len(name)}} {interval(one, short=True):>{_DELTA}}  {_word(one, color)}"
        reason = withheld(one)
        lines += [row.rstrip(), *(_wrapped(f"{plain(metric_name(one))}: {reason}", width) if reason else [])]
    left_out = len(cell.further) - _MOST_FURTHER
    return lines + ([f"  + {left_out} more metrics: on the page, in CSV and in SQL"] if left_out > 0 else [])


def _word(cell: Cell, color: bool) -> str:
    word = f"{cell.verdict:<{_VERDICT}}"
    return f"\x1b[{_COLOURS[cell.verdict]}m{word}\x1b[0m" if color else word


def _doubt(sentence: str, width: int, color: bool) -> list[str]:
    """A sentence that takes something back of the row's verdict."""
    wrapped = _wrapped(sentence, width, _DOUBT)
    return [f"\x1b[{_COLOURS['undecided']};1m{line}\x1b[0m" for line in wrapped] if color else wrapped


def _control_lines(cell: Cell, width: int, color: bool) -> list[str]:
    """A sentence for each control; one that takes something back of the row's verdict stands out."""
    lines = []
    for pair, sentence in zip(cell.against_controls, against_controls(cell)):
        doubt = cell.verdict == "better" and pair.verdict != "better"
        lines += _doubt(sentence, width, color) if doubt else _wrapped(sentence, width)
    return lines


class _Columns(NamedTuple):
    """The texts of one line, from left to right."""

    recipe: str
    score: str
    delta: str
    verdict: str
    kept: str
    flips: str


def _line(columns: _Columns, width: int) -> str:
    recipe, score, delta, verdict, kept, flips = columns
    row = f"  {recipe:<{_name_room(width)}} {score:>{_SCORE}} {delta:>{_DELTA}}  {verdict:<{_VERDICT}} {kept:>{_KEPT}}"
    return row + (f"{flips:>{_FLIPS}}" if width >= WIDE else "")


def _name_room(width: int) -> int:
    """Columns for a recipe's name beside its numbers."""
    return width - 7 - _SCORE - _DELTA - _VERDICT - _KEPT - (_FLIPS if width >= WIDE else 0)


def _wrapped(text: str, width: int, mark: str = _NOTE) -> list[str]:
    return textwrap.wrap(text, width, initial_indent=f"    {mark} ", subsequent_indent="      ", break_long_words=True)


def _cut(text: str, room: int) -> str:
    """`text` in at most `room` columns, its middle left out: names often differ at their ends."""
    if len(text) <= room:
        return text
    tail = max((room - 3) // 2, 0)
    return text[: max(room - 3 - tail, 0)] + "..." + (text[-tail:] if tail else "")


def _legend(cells: Sequence[Cell], width: int, of_pair: bool) -> list[str]:
    shown = list(all_metrics(cells))
    further = any(not cell.is_primary for cell in shown)
    marks = [
        *((UNPAIRED_LEGEND,) if any(cell.unpaired for cell in shown) else ()),
        *((CLIPPED_LEGEND,) if any(map(is_elsewhere, shown)) else ()),
        *((FURTHER_LEGEND,) if further else ()),
    ]
    special = [line for sentence in marks for line in textwrap.wrap(sentence, width)]
    over = {cell.model: cell.comparisons or 0 for cell in cells if cell.p_value is not None}
    if not over:
        return special
    numbers = counted(sum(over.values()), "comparison", "comparisons") + (" in all" if len(over) > 1 else "")
    family = f"these two runs alone ({numbers}), not a board" if of_pair else f"a model's board ({numbers})"
    return special + textwrap.wrap(
        f"Paired by document; better and worse: significant at 5 % after Benjamini-Hochberg over {family},"
        " and zero outside the interval, itself uncorrected. same = equivalent within the margin;"
        " undecided = too few documents to tell (needs, could have shown: in four of five cases).",
        width,
    )


def _bold(text: str, color: bool) -> str:
    return f"\x1b[1m{text}\x1b[0m" if color else text
