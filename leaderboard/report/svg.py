"""Pictures as SVG, written by hand: text stays text, colours come from the page's style sheet, and nothing is loaded.

Every picture holds its title and what it is of, so that it stands alone once it is cut out; each mark has a tooltip.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from leaderboard.board.standings import ALONE, AS_CONTROL, BEATS
from leaderboard.compare.collapse import COLLAPSED
from leaderboard.readers.records import BASELINE
from leaderboard.terminal.format import plain
from leaderboard.terminal.marks import MINUS

LETTER = 6.1  # pixels: of a small letter, rather too wide
SMALL_LINE = 12
HEAD = 40
_SIZE = 4.6
_ROUGHLY_TICKS = 4


class Scale(NamedTuple):
    """Values from `low` to `high` on pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        within = min(max(value, self.low), self.high)
        return self.start + (within - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values within it."""
        step = 10 ** math.floor(math.log10((self.high - self.low) / _ROUGHLY_TICKS))
        step *= next(
            factor for factor in (1, 2, 5, 10) if (self.high - self.low) / (step * factor) <= _ROUGHLY_TICKS + 1
        )
        first = math.ceil(self.low / step)
        return [number * step for number in range(first, math.floor(self.high / step) + 1)]


def scale(values: Iterable[float], start: float, end: float, room: float = 0.04) -> Scale:
    """A scale that has all the values, and a little room beyond them."""
    found = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(found), max(found)
    width = (high - low) or max(abs(high), 1.0) * 0.1
    return Scale(low - room * width, high + room * width, start, end)


def text(value: object) -> str:
    """A value as text of HTML or SVG, in which nothing of it is markup; also within an attribute's quotes."""
    return escape(plain(str(value)), quote=True)


def tick_text(value: float, step: float, *, signed: bool) -> str:
    """A tick's number with the digits that its step has."""
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    written = f"{abs(value):,.{digits}f}"
    if float(written.replace(",", "")) == 0:
        return "0"
    return f"{MINUS if value < 0 else '+' if signed else ''}{written}"


def number(value: float) -> str:
    """A coordinate."""
    return f"{value:.1f}".removesuffix(".0")


def label(words: str, x: float, y: float, kind: str = "", anchor: str = "") -> str:
    """A line of text."""
    classes = f' class="{kind}"' if kind else ""
    where = f' text-anchor="{anchor}"' if anchor else ""
    return f'<text x="{number(x)}" y="{number(y)}"{classes}{where}>{text(words)}</text>'


def line(start: tuple[float, float], end: tuple[float, float], kind: str) -> str:
    """A straight line."""
    (x1, y1), (x2, y2) = start, end
    return f'<path d="M{number(x1)} {number(y1)}L{number(x2)} {number(y2)}" class="{kind}"/>'


def mark(kind: str, x: float, y: float) -> str:
    """The sign of what a cell says, in its form and colour."""
    s = _SIZE
    if kind in (BEATS, AS_CONTROL, ALONE):
        s = s - 1.2 if kind == ALONE else s
        shape = f"M{number(x)} {number(y - s)}l{number(s)} {number(1.8 * s)}h{number(-2 * s)}z"
    elif kind == "worse":
        shape = f"M{number(x)} {number(y + s)}l{number(s)} {number(-1.8 * s)}h{number(-2 * s)}z"
    elif kind == COLLAPSED:
        shape = (
            f"M{number(x - s)} {number(y - s)}l{number(2 * s)} {number(2 * s)}"
            f"M{number(x + s)} {number(y - s)}l{number(-2 * s)} {number(2 * s)}"
        )
    elif kind == "same":
        half = s - 1
        shape = f"M{number(x - half)} {number(y - half)}h{number(2 * half)}v{number(2 * half)}h{number(-2 * half)}z"
    elif kind == BASELINE:
        shape = (
            f"M{number(x)} {number(y - s)}l{number(s)} {number(s)}l{number(-s)} {number(s)}l{number(-s)} {number(-s)}z"
        )
    else:
        return f'<circle cx="{number(x)}" cy="{number(y)}" r="3.4" class="m {css(kind)}"/>'
    return f'<path d="{shape}" class="m {css(kind)}"/>'


def css(kind: str) -> str:
    """The class of what a cell says."""
    return kind.replace(" ", "-")


def picture(size: tuple[float, float], title: str, about: str, told: str, parts: Iterable[str]) -> str:
    """A picture with its title and what it is of at its head. told: what it shows, in words, for who cannot see it."""
    width, height = size
    inner = "".join(parts)
    return (
        f'<svg viewBox="0 0 {number(width)} {number(height)}" role="img" xmlns="http://www.w3.org/2000/svg">'
        f"<title>{text(title)}</title><desc>{text(told)}</desc>"
        f"{label(title, 0, 13, 'h')}{label(about, 0, 28, 'q')}{inner}</svg>"
    )


def standalone(drawn: str) -> str:
    """A picture for a file of its own, with what it needs of the report's style sheet."""
    sheet = (Path(__file__).parent / "report.css").read_text(encoding="utf-8").partition("@media print")[0]
    rules = [rule for rule in sheet.splitlines() if rule.startswith((":root", "@media (prefers-color-scheme", "svg"))]
    style = "".join([*rules, "svg{background:var(--ground)}"])
    return drawn.replace("><title>", f"><style>{style}</style><title>", 1)


def wrapped(name: str, most: int) -> list[str]:
    """A name in lines of at most about `most` letters, broken where a reader would: behind `,` and spaces, before `:`
    and `+`, else wherever it must.
    """
    lines: list[str] = [""]
    for piece in re.findall(r"[:+(\[]?[^\s,:+(\[]*[,\s]*", name):
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > most:
            lines.append("")
        lines[-1] += piece
        while len(lines[-1].rstrip()) > most:
            lines[-1:] = [lines[-1][:most], lines[-1][most:]]
    return [found.strip() for found in lines if found.strip()] or [""]


def axis(of: Scale, y: float, *, signed: bool) -> str:
    """Numbers below a picture."""
    ticks = of.ticks()
    step = ticks[1] - ticks[0] if len(ticks) > 1 else max(abs(ticks[0]) if ticks else 1.0, 1e-9)
    return "".join(label(tick_text(value, step, signed=signed), of(value), y, "q", "middle") for value in ticks)


def many(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]])) if words else ""
