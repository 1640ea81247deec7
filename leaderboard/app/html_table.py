"""Tables of text that must wrap, and become blocks of labelled values on a phone: what `st.dataframe` cannot do.

All text is escaped, without control characters, and isolated (`<bdi>`), so that one written from right to left does not
turn its neighbours round. There is no script.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import NamedTuple

import streamlit as st

from leaderboard.app.colours import css
from leaderboard.board.standings import ALONE, HARM, PROVEN
from leaderboard.terminal.format import breakable, plain

_BLUE, _ORANGE, _GREY = "28, 120, 200", "224, 112, 32", "128, 128, 128"
STYLE = f"""<style>
.lb-table {{width: 100%; border-collapse: collapse; font-size: .875rem; line-height: 1.45; margin: 0}}
.lb-table th, .lb-table td {{padding: .3rem .5rem; border: 0; border-bottom: 1px solid rgba({_GREY}, .3);
  vertical-align: top; text-align: left; overflow-wrap: break-word}}
.lb-table td {{overflow-wrap: anywhere}}
.lb-table thead th {{font-weight: 400; opacity: .75; vertical-align: bottom}}
.lb-table th[scope=row] {{font-weight: 400}}
.lb-table .num {{text-align: right; font-variant-numeric: tabular-nums; overflow-wrap: normal}}
.lb-table .num .lb-small {{white-space: nowrap}}
.lb-table .strong {{font-weight: 600}}
.lb-small {{display: block; font-size: .8125rem; opacity: .78; font-weight: 400}}
.lb-mark {{display: inline-block; padding: 0 .4rem; border-radius: .25rem; white-space: nowrap;
  border: 1px solid transparent}}
.lb-strong-mark {{font-weight: 600}}
.lb-alone {{border-color: currentColor}}
.lb-lead {{font-size: 1rem; line-height: 1.5; margin: 0 0 .5rem}}
.lb-name {{font-size: 1.5rem; line-height: 1.25; font-weight: 600; margin: 0 0 .4rem; padding: 0;
  overflow-wrap: anywhere}}
.lb-badges {{display: flex; flex-wrap: wrap; gap: .3rem; font-size: .78rem; margin: .1rem 0 .3rem}}
.lb-badges span {{border: 1px solid rgba({_GREY}, .45); border-radius: .3rem; padding: 0 .4rem}}
.lb-diff del {{background: rgba({_ORANGE}, .30); text-decoration: line-through}}
.lb-diff ins {{background: rgba({_BLUE}, .28); text-decoration: underline; font-weight: 600}}
.lb-diff {{white-space: pre-wrap; overflow-wrap: anywhere; font-size: .875rem; line-height: 1.6}}
@media (max-width: 640px) {{
  .lb-blocks thead {{position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%)}}
  .lb-blocks tbody tr {{display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); padding: .4rem 0;
    border-bottom: 1px solid rgba({_GREY}, .4)}}
  .lb-blocks tbody th, .lb-blocks tbody td, .lb-blocks tbody td.num {{border: 0;
    padding: .15rem .3rem .15rem 0; text-align: left}}
  .lb-blocks tbody .lb-small {{white-space: normal}}
  .lb-blocks tbody th[scope=row] {{grid-column: 1 / -1; font-weight: 600}}
  .lb-blocks tbody td::before {{content: attr(data-label); display: block; font-size: .75rem; opacity: .75;
    font-weight: 400}}
}}
</style>"""


_STRONG = (*PROVEN, *HARM, "better")


class ColumnHead(NamedTuple):
    """A column's head. label: before its values on a phone, the title unless given."""

    title: str
    numeric: bool = False
    label: str = ""


class Text(NamedTuple):
    """A cell: one line, a quiet second one, whether it is strong, the kind of its mark, and where a link leads."""

    text: str
    small: str = ""
    strong: bool = False
    kind: str = ""
    link: str = ""


def escaped(text: str) -> str:
    """Text as HTML, on one line, without control characters, isolated from its neighbours' direction of writing."""
    return f"<bdi>{breakable(text)}</bdi>" if text else ""


def table(heads: Sequence[ColumnHead], rows: Sequence[Sequence[Text]], *, caption: str, blocks: bool = True) -> str:
    """The HTML of a table whose first column heads its rows. blocks: each row is a block on a phone. caption: for
    readers of screens.
    """
    columns = "".join(
        f'<th scope="col" role="columnheader"{_class(head, False)}>{escaped(head.title)}</th>' for head in heads
    )
    body = "".join(f'<tr role="row">{"".join(map(_cell, heads, row, range(len(row))))}</tr>' for row in rows)
    return (
        f'<table role="table" class="lb-table{" lb-blocks" if blocks else ""}" aria-label="{html.escape(caption)}">'
        f'<thead role="rowgroup"><tr role="row">{columns}</tr></thead><tbody role="rowgroup">{body}</tbody></table>'
    )


def _cell(head: ColumnHead, cell: Text, place: int) -> str:
    inner = escaped(cell.text)
    if cell.link:
        inner = f'<a href="{html.escape(plain(cell.link))}" target="_self">{inner}</a>'
    if cell.kind:
        names = ["lb-mark", *(["lb-alone"] if cell.kind == ALONE else [])]
        names += ["lb-strong-mark"] if cell.kind in _STRONG else []
        inner = f'<span class="{" ".join(names)}" style="{css(cell.kind)}">{inner}</span>'
    small = f'<span class="lb-small">{escaped(cell.small)}</span>' if cell.small else ""
    if place == 0:
        return f'<th scope="row" role="rowheader">{inner}{small}</th>'
    label = html.escape(plain(head.label or head.title))
    return f'<td role="cell" data-label="{label}"{_class(head, cell.strong)}>{inner}{small}</td>'


def _class(head: ColumnHead, strong: bool) -> str:
    names = [*(["num"] if head.numeric else []), *(["strong"] if strong else [])]
    return f' class="{" ".join(names)}"' if names else ""


def name(text: str) -> str:
    """The page's heading: a name, whole."""
    return f'<h1 class="lb-name">{escaped(text)}</h1>'


def lead(sentences: Sequence[str]) -> str:
    """Sentences above the first table."""
    return f'<p class="lb-lead">{" ".join(map(escaped, sentences))}</p>'


def badges(words: Sequence[str]) -> str:
    """Settings, once."""
    return f'<div class="lb-badges">{"".join(f"<span>{escaped(word)}</span>" for word in words)}</div>'


def show(*parts: str) -> None:
    """Put HTML made here on the page, with its style."""
    st.html(STYLE + "".join(parts))
