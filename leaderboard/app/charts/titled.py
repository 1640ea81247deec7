"""What makes a picture stand alone once it is saved: its title, the model, task, number of documents and date inside
it.

Notable choice: Streamlit's own bar above a chart saves it as PNG. It leaves vega-embed's menu out, and takes no options
for it; but it draws SVG, so a button of ours writes that to a file, in the browser.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import streamlit as st

from leaderboard.app.colours import is_dark
from leaderboard.terminal.format import plain

_SAVE = Path(__file__).parent / "save.html"
_LETTERS = 56  # of a line below the title: a telephone is about 360 pixels wide
_TITLE, _LINE = 24, 14  # pixels


def titled(chart: Any, title: str, about: str) -> Any:
    """An altair chart with a title and, below it, what it is of. A title of its own stays, and its subtitle goes on
    with what it is of.
    """
    import altair as alt

    own = getattr(chart, "title", alt.Undefined)
    said = "" if own is alt.Undefined else str(own)
    lines = textwrap.wrap(plain(", ".join(part for part in about.split(", ") if part not in said)), _LETTERS)
    if own is alt.Undefined:
        head, room = alt.TitleParams(plain(title), subtitle=lines), _TITLE + _LINE * len(lines)
    else:
        head = own.copy() if isinstance(own, alt.TitleParams) else alt.TitleParams(own)
        before = [] if head.subtitle is alt.Undefined else head.subtitle
        head.subtitle = [*([before] if isinstance(before, str) else before), *lines]
        room = _LINE * len(lines)
    head.anchor, head.frame = "start", "bounds"
    head.subtitleColor = "#a6afbc" if is_dark() else "#5b6472"  # Streamlit's theme leaves it black
    if isinstance(getattr(chart, "height", None), (int, float)):
        chart = chart.properties(height=chart.height + room)
    return chart.properties(title=head)


def save_button() -> None:
    """A button that saves the chart before it as SVG. All of it is ours: no name is part of the script."""
    st.html(_SAVE.read_text(encoding="utf-8"), unsafe_allow_javascript=True)
