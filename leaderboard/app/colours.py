"""Colours that say the same as the words beside them, in a light and in a dark theme. Colour is never the only sign."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

# Tints of table cells that words remain readable on.
TINTS = {
    "better": "rgba(46, 160, 67, 0.28)",
    "worse": "rgba(229, 83, 75, 0.30)",
    "collapsed": "rgba(178, 34, 52, 0.58)",
    "same": "rgba(56, 139, 253, 0.22)",
    "undecided": "rgba(187, 128, 9, 0.24)",
    "incomparable": "rgba(163, 113, 247, 0.24)",
    "failed": "rgba(229, 83, 75, 0.48)",
    "baseline": "rgba(128, 128, 128, 0.20)",
    "lost": "rgba(229, 83, 75, 0.30)",
    "gained": "rgba(46, 160, 67, 0.28)",
}
# One colour for points and rules of a chart, readable on white and on near-black.
MARKS = {
    "better": "#2da44e",
    "worse": "#e5534b",
    "collapsed": "#b3261e",
    "same": "#388bfd",
    "undecided": "#bb8009",
    "incomparable": "#a371f7",
    "failed": "#e5534b",
    "baseline": "#8b949e",
    "lost": "#e5534b",
    "gained": "#2da44e",
}
NEUTRAL = "#8b949e"  # axes, zero lines, bands
_WORSE_TO_BETTER = ("#e5534b", NEUTRAL, "#2da44e")


def word_colour(field: str, words: Iterable[str], *, legend: bool = False) -> Any:
    """An altair colour by the word in a nominal `field`; only words that occur get a place in the legend."""
    import altair as alt

    present = set(words)
    seen = [word for word in MARKS if word in present]
    shown = alt.Legend(title=None, orient="bottom") if legend else None
    return alt.Color(f"{field}:N", scale=alt.Scale(domain=seen, range=[MARKS[word] for word in seen]), legend=shown)


def difference_colour(field: str, largest: float, title: str) -> Any:
    """An altair colour by a signed number in `field`: red below zero, grey at zero, green above, the same strength
    `largest` to either side.
    """
    import altair as alt

    largest = largest or 1.0
    scale = alt.Scale(domain=[-largest, 0.0, largest], range=list(_WORSE_TO_BETTER), clamp=True, interpolate="rgb")
    return alt.Color(
        f"{field}:Q", scale=scale, legend=alt.Legend(title=title, orient="bottom", gradientLength=160, titleLimit=400)
    )


def tinted(rows: Iterable[dict[str, Any]], columns: Iterable[str]) -> Any:
    """A table whose word columns bear their colour: a cell's first word says which."""
    import pandas as pd

    frame = pd.DataFrame(list(rows))

    def tint(text: Any) -> str:
        colour = TINTS.get(str(text).split(" ")[0])
        return f"background-color: {colour}" if colour else ""

    return frame.style.map(tint, subset=[name for name in columns if name in frame])
