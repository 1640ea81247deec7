"""How many documents flip under how many recipes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from leaderboard.app.colours import word_colour
from leaderboard.terminal.format import counted, percent

Flips = tuple[int, int]  # recipes under which a document is lost, and gained


def chart(flips: Sequence[Flips]) -> Any:
    """An altair chart: documents by the number of recipes that flip them, lost and gained apart. flips: a pair a
    document, not empty.
    """
    import altair as alt
    import pandas as pd

    counts = Counter((lost, "lost") for lost, _ in flips if lost) + Counter(
        (gained, "gained") for _, gained in flips if gained
    )
    rows = pd.DataFrame(
        [{"recipes": times, "word": word, "documents": count} for (times, word), count in sorted(counts.items())]
    )
    most = int(rows["recipes"].max())
    bins = alt.Bin(step=max(1, -(-most // 30)))
    encoded = (
        alt.Chart(rows)
        .mark_bar()
        .encode(
            x=(
                alt.X("recipes:Q", bin=bins, title="recipes that flip a document")
                if most > 30
                else alt.X("recipes:O", title="recipes that flip a document", axis=alt.Axis(labelAngle=0))
            ),
            y=alt.Y("sum(documents):Q", title="documents"),
            color=word_colour("word", rows["word"], legend=True),
            xOffset=alt.XOffset("word:N") if most <= 12 else alt.Undefined,
            tooltip=[
                alt.Tooltip("recipes:Q", title="recipes"),
                alt.Tooltip("word:N", title="change"),
                alt.Tooltip("documents:Q", title="documents"),
            ],
        )
    )
    return encoded.properties(height=320)


def sentence(flips: Sequence[Flips], runs: int, documents: int | None) -> str:
    """What the chart shows, in words."""
    half = sum(lost + gained >= runs / 2 for lost, gained in flips)
    of = f" of {documents:,} ({percent(len(flips) / documents)})" if documents else ""
    return (
        f"{counted(len(flips), 'document', 'documents')}{of} flip under at least one of"
        f" {counted(runs, 'recipe', 'recipes')}, controls left out; {half:,} under at least half of them."
    )
