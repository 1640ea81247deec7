"""A list in columns: for a terminal aligned within its width, for a pipe with tabs, whole and without a headline.

Text that does not fit is wrapped in its column, at slashes, colons and the like where it can be; nothing is left out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta

from leaderboard.terminal.format import plain

_GAP = 2
_LEAST, _LONGEST_WORD = 10, 20
"""Columns of text that is wrapped, at least, and of a word that is not broken as long as there is room."""
_WORD = re.compile(r"[^-_./,:+=\s]*[-_./,:+=\s]?")
_UNITS = ((365 * 86400, "y"), (30 * 86400, "mo"), (86400, "d"), (3600, "h"), (60, "m"))


def listed(
    rows: Sequence[Mapping[str, str]], width: int, wrap: Collection[str] = (), tints: Mapping[str, str] = {}
) -> str:
    """Rows of texts, column -> text, under a headline, at most `width` columns wide if at all possible.

    wrap: the columns that may be wrapped. tints: text of a cell -> how ANSI colours it.
    """
    cells = [[plain(text) for text in row.values()] for row in rows]
    heads = [column.upper() for column in rows[0]]
    rooms = _rooms([heads, *cells], width, [column in wrap for column in rows[0]])
    lines = _lines(heads, rooms, {})
    for row in cells:
        lines += _lines(row, rooms, tints)
    return "\n".join(lines)


def with_tabs(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows of texts for another program."""
    return "\n".join("\t".join(plain(text) for text in row.values()) for row in rows)


def ago(moment: datetime | None, now: datetime) -> str:
    """How long ago, in the largest unit that fits: `5m`, `2h`, `3d`. Both in UTC without a time zone."""
    if moment is None:
        return "?"
    seconds = (now - moment) / timedelta(seconds=1)
    return next((f"{int(seconds // size)}{unit}" for size, unit in _UNITS if seconds >= size), "now")


def _rooms(rows: Sequence[Sequence[str]], width: int, may_wrap: Sequence[bool]) -> list[int]:
    """The width of each column: what it needs, those that may wrap made smaller until all fit, where the fewest texts
    are wrapped by it; to less than a word only where nothing else is left.
    """
    lengths = [Counter(map(len, column)) for column in zip(*rows)]
    rooms = [max(counts) for counts in lengths]
    over = sum(rooms) + _GAP * (len(rooms) - 1) - width
    for least in ([_longest_word(column) for column in zip(*rows)], [_LEAST] * len(rooms)):
        while over > 0:
            wrapping = [place for place, may in enumerate(may_wrap) if may and rooms[place] > least[place]]
            if not wrapping:
                break
            smaller = min(wrapping, key=lambda place: (lengths[place][rooms[place]], -rooms[place]))
            rooms[smaller] -= 1
            over -= 1
    return rooms


def _longest_word(texts: Sequence[str]) -> int:
    longest = max(len(word.rstrip()) for text in texts for word in _WORD.findall(text))
    return min(max(longest, _LEAST), _LONGEST_WORD)


def _lines(row: Sequence[str], rooms: Sequence[int], tints: Mapping[str, str]) -> list[str]:
    wrapped = [wrapped_text(text, room) for text, room in zip(row, rooms)]
    lines = []
    for number in range(max(map(len, wrapped))):
        parts = []
        for text, pieces, room in zip(row, wrapped, rooms):
            piece = pieces[number] if number < len(pieces) else ""
            padded = piece.ljust(room)
            parts.append(f"\x1b[{tints[text]}m{piece}\x1b[0m{padded[len(piece) :]}" if text in tints else padded)
        lines.append((" " * _GAP).join(parts).rstrip())
    return lines


def wrapped_text(text: str, room: int) -> list[str]:
    """Text in pieces of at most `room` letters, each as long as can be, that joined are the text."""
    pieces = [""]
    for word in _WORD.findall(text):
        if len(pieces[-1]) + len(word.rstrip()) > room and pieces[-1]:
            pieces.append("")
        while len(pieces[-1] + word.rstrip()) > room:
            pieces[-1], word = word[:room], word[room:]
            pieces.append("")
        pieces[-1] += word
    return [piece.rstrip() for piece in pieces if piece] or [""]
