"""What is to be known besides of the rows of a board: each note once, with the rows that it is about."""

from __future__ import annotations

import re
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from leaderboard.board.cell import Cell
from leaderboard.board.further import contradictions
from leaderboard.readers.records import BASELINE
from leaderboard.terminal.format import chance, counted, direction, metric_name, plain

MOST_NOTES = 12
_MOST_NAMED = 3
_DOUBT, _NOTE = "!", "."
_NUMBERS = re.compile(r"[-+]?\d[\d.,]*(e[-+]?\d+)?")


def facts(cells: Iterable[Cell]) -> Iterator[str]:
    """Metric and documents of the tasks, those that are alike together, with what chance gets: `acc, 80 documents:
    arc_easy (chance 0.250), boolq (chance 0.622)`.
    """
    tasks: dict[str, dict[str, list[Cell]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        if cell.metric:
            way = "" if cell.best_value is None and cell.higher_is_better else f" ({direction(cell)})"
            about = ", ".join(filter(None, [f"{metric_name(cell)}{way}", cell.scored]))
            tasks[about][cell.task].append(cell)
    told = [
        f"{plain(about)}: {', '.join(_with_chance(name, of_it) for name, of_it in sorted(names.items()))}"
        for about, names in sorted(tasks.items())
    ]
    if told:
        yield f"Tasks: {'; '.join(told)}."


def _with_chance(task: str, cells: Sequence[Cell]) -> str:
    level = chance(cells)
    return plain(task) if level is None else f"{plain(task)} ({level})"


def notes(cells: Sequence[Cell], width: int, details: str) -> list[str]:
    """The notes as lines: why rows failed, what takes a verdict back, what undecided rows lack, and all others.
    details: the command that shows them all.
    """
    found = [*_failed(cells), *_contradicted(cells), *_undecided(cells), *_others(cells)]
    lines = [line for mark, note in found[:MOST_NOTES] for line in _wrapped(mark, note, width)]
    left_out = len(found) - MOST_NOTES
    return lines + (_wrapped(_NOTE, f"{left_out} more: {details}", width) if left_out > 0 else [])


def _failed(cells: Sequence[Cell]) -> Iterator[tuple[str, str]]:
    reasons: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        if cell.verdict == "failed":
            reasons[" ".join(cell.notes)].append(cell)
    for reason, of_reason in reasons.items():
        names = list(dict.fromkeys(plain(cell.name) for cell in of_reason))
        yield _DOUBT, f"failed: {_some(names)}: {plain(reason)}"


def _contradicted(cells: Sequence[Cell]) -> Iterator[tuple[str, str]]:
    doubted = [f"{_place(cell)} ({_said(plain(doubt))})" for cell in cells for doubt in contradictions(cell)[:1]]
    if doubted:
        are = counted(len(doubted), "verdict is", "verdicts are")
        yield _DOUBT, f"{are} contradicted by a further metric: {_some(doubted)}"


def _said(doubt: str) -> str:
    """`same by acc, but worse by gold_logprob -0.12 [...]` without its numbers."""
    return doubt.partition(" [")[0].rpartition(" ")[0] if " [" in doubt else doubt


def _undecided(cells: Sequence[Cell]) -> Iterator[tuple[str, str]]:
    open_ones = [cell for cell in cells if cell.verdict == "undecided"]
    if not open_ones:
        return
    needed = sorted(cell.documents_needed for cell in open_ones if cell.documents_needed)
    range_ = "" if not needed else f"{needed[0]:,}" if needed[0] == needed[-1] else f"{needed[0]:,} to {needed[-1]:,}"
    are, each = counted(len(open_ones), "verdict is", "verdicts are"), " each" if len(open_ones) > 1 else ""
    yield _NOTE, f"{are} undecided" + (f": about {range_} documents{each} would decide" if range_ else "")


def _others(cells: Sequence[Cell]) -> Iterator[tuple[str, str]]:
    """Notes that differ in numbers alone are one; those about most rows come first."""
    alike: dict[str, list[tuple[Cell, str]]] = defaultdict(list)
    for cell in cells:
        doubts = set(contradictions(cell))
        if cell.verdict != "failed":
            for note in dict.fromkeys(map(plain, cell.notes)):
                if note not in doubts:
                    alike[_NUMBERS.sub("#", note)].append((cell, note))
    for about in sorted(alike.values(), key=len, reverse=True):
        places = list(dict.fromkeys(_place(cell) for cell, _ in about))
        texts = {note for _, note in about}
        example = "" if len(texts) == 1 else ", such as"
        if len(places) <= 1:
            yield _NOTE, f"{places[0]}: {about[0][1]}"
        elif example:
            yield _NOTE, f"{counted(len(places), 'cell', 'cells')}{example} {places[0]}: {about[0][1]}"
        else:
            yield _NOTE, f"{_where(places, [cell for cell, _ in about])}: {about[0][1]}"


def _where(places: Sequence[str], cells: Sequence[Cell]) -> str:
    """The places by name where they are few, else how many; of one recipe its name alone."""
    names = list(dict.fromkeys(plain(cell.name) for cell in cells))
    if len(names) == 1:
        return f"{names[0]}, {counted(len(places), 'task', 'tasks')}"
    return "; ".join(places) if len(places) <= _MOST_NAMED else counted(len(places), "cell", "cells")


def _place(cell: Cell) -> str:
    return plain(cell.task if cell.verdict == BASELINE else f"{cell.name} on {cell.task}")


def _some(names: Sequence[str]) -> str:
    shown = "; ".join(names[:_MOST_NAMED])
    left = len(names) - _MOST_NAMED
    return f"{shown}; and {left} more" if left > 0 else shown


def _wrapped(mark: str, note: str, width: int) -> list[str]:
    return textwrap.wrap(note, width, initial_indent=f"  {mark} ", subsequent_indent="    ", break_long_words=True)
