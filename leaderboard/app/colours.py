"""Colours that say the same as the words beside them, in a light and in a dark theme. Colour is never the only sign."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from leaderboard.board.standings import ALONE, AS_CONTROL, BEATS, KINDS
from leaderboard.compare.collapse import COLLAPSED
from leaderboard.readers.records import BASELINE
from leaderboard.terminal.marks import MARKS as MARK_WORDS


class Paint(NamedTuple):
    """A cell's background (None: the table's own) and its text."""

    back: str | None
    text: str


LIGHT = {
    BEATS: Paint("#c4ddf5", "#0a3f75"),
    ALONE: Paint(None, "#1a62a8"),
    AS_CONTROL: Paint("#eaf3fb", "#3f6c99"),
    "same": Paint("#eceef1", "#596270"),
    "undecided": Paint(None, "#626b78"),
    "worse": Paint("#fbdcc4", "#8a3a00"),
    COLLAPSED: Paint("#f2b48c", "#5c2400"),
    "incomparable": Paint(None, "#7a4fb5"),
    "failed": Paint("#f6e0f0", "#86195f"),
    BASELINE: Paint("#f3f5f8", "#2b3442"),
}
DARK = {
    BEATS: Paint("#12426f", "#d5e9ff"),
    ALONE: Paint(None, "#7fbcf5"),
    AS_CONTROL: Paint("#182b3f", "#92b9de"),
    "same": Paint("#2a2e37", "#b0b8c4"),
    "undecided": Paint(None, "#a0a9b6"),
    "worse": Paint("#54290c", "#ffc79d"),
    COLLAPSED: Paint("#7d3509", "#ffe3cf"),
    "incomparable": Paint(None, "#c5a4f2"),
    "failed": Paint("#4b1a3a", "#ffbde3"),
    BASELINE: Paint("#20242d", "#e3e7ed"),
}
"""Blue is good and orange is bad, so that nobody needs to tell red from green; what says nothing recedes."""
_ALIKE = {"better": BEATS, "gained": BEATS, "lost": "worse"}  # words of other tables
# One colour for points and rules of a chart, readable on white and on near-black.
MARKS = {
    "better": "#1f77c0",
    "worse": "#d9600b",
    "collapsed": "#a63f02",
    "same": "#8b949e",
    "undecided": "#a3abb6",
    "incomparable": "#a371f7",
    "failed": "#c2388b",
    "baseline": "#6b7685",
    "lost": "#d9600b",
    "gained": "#1f77c0",
}
NEUTRAL = "#8b949e"  # axes, zero lines, bands
_WORSE_TO_BETTER = (MARKS["worse"], NEUTRAL, MARKS["better"])


def word_colour(field: str, words: Iterable[str], *, legend: bool = False) -> Any:
    """An altair colour by the word in a nominal `field`; only words that occur get a place in the legend."""
    import altair as alt

    present = set(words)
    seen = [word for word in MARKS if word in present]
    shown = alt.Legend(title=None, orient="bottom") if legend else None
    return alt.Color(f"{field}:N", scale=alt.Scale(domain=seen, range=[MARKS[word] for word in seen]), legend=shown)


def difference_colour(field: str, largest: float, title: str) -> Any:
    """An altair colour by a signed number in `field`: orange below zero, grey at zero, blue above, the same strength
    `largest` to either side.
    """
    import altair as alt

    largest = largest or 1.0
    scale = alt.Scale(domain=[-largest, 0.0, largest], range=list(_WORSE_TO_BETTER), clamp=True, interpolate="rgb")
    return alt.Color(
        f"{field}:Q", scale=scale, legend=alt.Legend(title=title, orient="bottom", gradientLength=160, titleLimit=400)
    )


def is_dark() -> bool:
    """Whether the reader's page is dark."""
    import streamlit as st

    return st.context.theme.type == "dark"


def css(word: str) -> str:
    """The style of a table's cell that says this word, or one of the board's kinds; empty for any other."""
    paint = (DARK if is_dark() else LIGHT).get(_ALIKE.get(word, word))
    if paint is None:
        return ""
    return f"color: {paint.text}" + (f"; background-color: {paint.back}" if paint.back else "")


def tinted(rows: Iterable[dict[str, Any]], columns: Iterable[str]) -> Any:
    """A table whose word columns bear their colour: a cell's first word says which, or the words for its kind of
    better.
    """
    import pandas as pd

    frame = pd.DataFrame(list(rows))
    return frame.style.map(lambda text: css(_said(str(text))), subset=[name for name in columns if name in frame])


def _said(text: str) -> str:
    """The kind of better that a text begins with the words of, else its first word."""
    return next((name for name in KINDS[:3] if text.startswith(MARK_WORDS[name].words)), text.split(" ")[0])
