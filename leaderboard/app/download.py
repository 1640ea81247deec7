"""What is shown, to take along: a table as Markdown, CSV, LaTeX or Parquet, and the page's link.

Notable choice: a page redraws at every click, so that a file is only written once its button is pressed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date
from typing import Any, NamedTuple
from urllib.parse import urlencode

import streamlit as st

from leaderboard.app import data
from leaderboard.terminal import exports, output
from leaderboard.terminal.output import Row

_COUNTS = ("n", "documents", "Documents")
"""What a column of document counts is called."""
_ASKED = ("model", "task")
"""Parameters of the URL that say what a table is about."""


class _Format(NamedTuple):
    label: str
    ending: str
    mime: str
    write: Callable[[Sequence[Row], str], str | bytes]
    is_read: bool


_FORMATS = (
    _Format("Markdown", "md", "text/markdown", lambda rows, caption: f"{output.as_markdown(rows)}\n", True),
    _Format("CSV", "csv", "text/csv", lambda rows, caption: as_csv(rows), False),
    _Format("LaTeX", "tex", "application/x-tex", lambda rows, caption: exports.as_latex(_bare(rows), caption), True),
    _Format("Parquet", "parquet", "application/octet-stream", lambda rows, caption: exports.as_parquet(rows), False),
)


def downloads(rows: Sequence[dict[str, Any]], name: str) -> None:
    """A popover with what `share` offers; nothing where there are no rows."""
    if rows:
        with st.popover("Share", icon=":material/ios_share:", key=f"share {name}"):
            share(rows, name)


def share(rows: Sequence[Row], name: str, *, shown: Sequence[Row] | None = None) -> None:
    """A button a format for these rows, of which each has the same keys, and the page's link. `name` is the file's,
    without ending, and unique on its page. shown: for Markdown and LaTeX, which people read, fewer columns.
    """
    if rows:
        with st.container(horizontal=True):
            for kind in _FORMATS:
                _button(
                    kind,
                    rows if shown is None or not kind.is_read else shown,
                    name,
                    caption_of(rows, name, st.query_params),
                )
    st.caption("Link to this page as it is now:")
    st.code(page_link(), language=None, wrap_lines=True)


def report_button(model: str) -> None:
    """A button for the whole board of a model (by the name it is shown by) as one file, as `lm_eval report` writes
    it.
    """

    def write() -> str:
        from leaderboard.report.contents import read_report
        from leaderboard.report.html import as_html

        return as_html(read_report([model], data.database()))

    st.download_button(
        "Report, one HTML file", write, "report.html", "text/html", key="report", icon=":material/description:",
        on_click="ignore",
    )  # fmt: skip


def _button(kind: _Format, rows: Sequence[Row], name: str, caption: str) -> None:
    st.download_button(
        kind.label,
        lambda: kind.write(rows, caption),
        f"{name}.{kind.ending}",
        kind.mime,
        key=f"{kind.ending} {name}",
        icon=":material/download:",
        on_click="ignore",
    )


def _bare(rows: Sequence[Row]) -> list[Row]:
    """The rows with the names of their columns as they are, not as Markdown's code."""
    return [{name.strip("`"): value for name, value in row.items()} for row in rows]


def page_link() -> str:
    """The page's address with all that was chosen on it."""
    chosen = [(key, value) for key in st.query_params for value in st.query_params.get_all(key)]
    address = (st.context.url or "").partition("?")[0]
    return f"{address}?{urlencode(chosen)}" if chosen else address


def caption_of(rows: Sequence[Mapping[str, Any]], name: str, chosen: Mapping[str, str]) -> str:
    """`Glance: model demo, task int_mult, n 80 to 2,000, 27 November 2026`: what a table needs in order to stand alone.
    chosen: by parameter of the URL.
    """
    about = [f"{key} {chosen[key]}" for key in _ASKED if chosen.get(key)]
    counts = [value for row in rows for key in _COUNTS if isinstance(value := row.get(key), int)]
    if counts:
        low, high = min(counts), max(counts)
        about.append(f"n {low:,}" if low == high else f"n {low:,} to {high:,}")
    today = date.today()
    return f"{name.replace('-', ' ').capitalize()}: {', '.join([*about, f'{today.day} {today:%B %Y}'])}"


def as_csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """`output.as_csv` in UTF-8."""
    return output.as_csv(rows).encode("utf-8")
