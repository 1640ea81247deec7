"""Documents by recipes: which documents flip everywhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from leaderboard.app.answer_text import question
from leaderboard.app.flip_queries import OftenFlipped
from leaderboard.terminal.format import counted, percent

MOST_ROWS = 20
MOST_RECIPES = 16
_LOST, _GAINED = "#c9571c", "#1c6fb5"


def chart(rows: Sequence[OftenFlipped], names: Mapping[str, str], *, higher_is_better: bool) -> Any:
    """An altair chart of at most `MOST_ROWS` documents (at least one), those that most flip first, by the recipes that
    flip most of them. names: run -> its recipe.
    """
    import altair as alt
    import pandas as pd

    shown = rows[:MOST_ROWS]
    order = recipes(shown, names)
    labels = _labels(shown)
    table = pd.DataFrame(
        [
            {"document": labels[place], "recipe": names[run], "change": word, "sign": sign}
            for place, row in enumerate(shown)
            for word, sign, runs in _changes(row, higher_is_better)
            for run in runs
            if names.get(run) in order
        ]
    )
    x = alt.X(
        "recipe:N",
        title=None,
        scale=alt.Scale(domain=order, paddingInner=0.08),
        axis=alt.Axis(orient="top", labelAngle=-60, labelLimit=200, ticks=False, domain=False, labelOverlap=False),
    )
    y = alt.Y(
        "document:N",
        title=None,
        scale=alt.Scale(domain=labels, paddingInner=0.1),
        axis=alt.Axis(labelLimit=170, ticks=False, domain=False, labelOverlap=False, labelFlush=False),
    )
    colour = alt.Color(
        "change:N",
        scale=alt.Scale(domain=["gained", "lost"], range=[_GAINED, _LOST]),
        legend=alt.Legend(title=None, orient="bottom"),
    )
    base = alt.Chart(table).encode(x=x, y=y, tooltip=["document:N", "recipe:N", "change:N"])
    signs = base.mark_text(color="white", fontSize=9).encode(text="sign:N")
    return alt.layer(base.mark_rect().encode(color=colour), signs).properties(height=alt.Step(19))


def _changes(row: OftenFlipped, higher_is_better: bool) -> list[tuple[str, str, tuple[str, ...]]]:
    lost, gained = (row.lowered_by, row.raised_by) if higher_is_better else (row.raised_by, row.lowered_by)
    return [("lost", "\u25bc", lost), ("gained", "\u25b2", gained)]


def recipes(rows: Sequence[OftenFlipped], names: Mapping[str, str]) -> list[str]:
    """The recipes that flip most of the documents, at most `MOST_RECIPES`."""
    counts = Counter(names[run] for row in rows for run in (*row.lowered_by, *row.raised_by) if run in names)
    return [name for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MOST_RECIPES]]


def _labels(rows: Sequence[OftenFlipped]) -> list[str]:
    """What each prompt asks, without what all begin and end with; no two alike."""
    asked = [question(row.prompt or "") or f"document {row.doc_id}" for row in rows]
    start, end = _common(asked), _common([text[::-1] for text in asked])
    texts: list[str] = []
    for row, whole in zip(rows, asked):
        text = whole[start : len(whole) - end].strip() or whole
        text = text if len(text) <= 34 else f"{text[:31]}..."
        while text in texts:
            text = f"{text} ({row.doc_id if row.doc_id is not None else row.doc_key[:6]})"
        texts.append(text)
    return texts


def _common(texts: Sequence[str]) -> int:
    """Letters that all begin with, up to the last whole word; 0 for one text."""
    if len(texts) < 2:
        return 0
    least, most = min(texts), max(texts)
    shared = next((place for place, pair in enumerate(zip(least, most)) if pair[0] != pair[1]), len(least))
    return least.rfind(" ", 0, shared) + 1


def sentence(rows: Sequence[OftenFlipped], names: Mapping[str, str], documents: int | None) -> str:
    """What the chart shows, in words."""
    flips = [row.lower + row.higher for row in rows]
    half = sum(count >= len(names) / 2 for count in flips)
    of = f" of {documents:,} ({percent(len(rows) / documents)})" if documents else ""
    shown = rows[:MOST_ROWS]
    cut = "" if len(rows) <= MOST_ROWS else f"The {MOST_ROWS} documents that most recipes flip are drawn. "
    flipping = {names[run] for row in shown for run in (*row.lowered_by, *row.raised_by) if run in names}
    fewer = f"The {MOST_RECIPES} recipes that flip most of them are drawn. " if len(flipping) > MOST_RECIPES else ""
    return (
        f"{cut}{fewer}{counted(len(rows), 'document', 'documents')}{of} flip under at least one of"
        f" {counted(len(names), 'recipe', 'recipes')}, controls left out; {half:,} under at least half of them."
        " Empty: not changed."
    )
