"""What is the same for a whole board, said once: as small badges above the table."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence

import streamlit as st

from leaderboard.board.cell import Cell
from leaderboard.board.standings import Standing
from leaderboard.readers.asked import dequantized
from leaderboard.readers.ran_on import sql_gpu
from leaderboard.readers.records import BASELINE
from leaderboard.store.database import Store
from leaderboard.terminal.format import plain
from leaderboard.terminal.marks import legend

_FACTS = f"""
SELECT v.model_type AS architecture, coalesce(r.parameters_before, v.parameters) AS parameters, v.dtype, r.batch_size,
    r.backend, r.lm_eval_version, v.model_name, {sql_gpu("r")} AS gpu, r.driver, r.engine, r.asked
FROM runs r JOIN variants v USING (variant_id) WHERE v.model_key = ? AND r.status = 'complete'
"""
_MOST_VALUES = 3


def model_facts(store: Store, model_key: str) -> dict[str, tuple[str, ...]]:
    """What a model's complete runs say of it and of how they were made: name -> the different values, as text."""
    rows = store.rows(_FACTS, [model_key])
    values = {name: {row[name] for row in rows if row[name] not in (None, "")} for name in rows[0]} if rows else {}
    values["dequantized"] = {dequantized(text) for text in values.pop("asked", ())} - {None}
    values["parameters"] = (
        {f"{short_count(max(values['parameters']))} parameters"} if values.get("parameters") else set()
    )
    return {name: tuple(sorted(map(str, found))) for name, found in values.items() if found}


def short_count(number: float) -> str:
    """`588K`, `135M`, `7.2B`."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= size:
            value = number / size
            return f"{value:.1f}{letter}" if value < 10 and round(value, 1) != round(value) else f"{value:.0f}{letter}"
    return f"{number:,.0f}"


def board_badges(facts: Mapping[str, Sequence[str]], cells: Iterable[Cell]) -> list[str]:
    """The words of the badges. Where rows differ in something, their settings tell which is which."""
    cells = list(cells)
    counts = sorted({cell.n for cell in cells if cell.n is not None})
    subsets = {cell.subset for cell in cells if cell.metric}
    baselines = {cell.run_id: cell for cell in cells if cell.verdict == BASELINE}
    limits = sorted(subset for subset in subsets if subset)
    found = [
        *facts.get("parameters", ()),
        *facts.get("architecture", ()),
        _several("dtype", facts.get("dtype", ())),
        *facts.get("dequantized", ()),
        "" if not counts else f"n {counts[0]:,}" if len(counts) == 1 else f"n {counts[0]:,} to {counts[-1]:,}",
        "no limit" if subsets == {None} else _several("scored:", limits) if limits else "",
        _several("batch", facts.get("batch_size", ())),
        _several("lm-eval", facts.get("lm_eval_version", ())),
        *(
            _several(words, facts[name])
            for name, words in (("gpu", "GPU"), ("driver", "driver"), ("engine", "engine"))
            if len(facts.get(name, ())) > 1
        ),
        *(
            f"baseline {run_id[:8]}" + (f", {cell.started:%d %b %Y, %H:%M}" if cell.started else "")
            for run_id, cell in list(baselines.items())[:1]
        ),
        f"{len(baselines)} baselines" if len(baselines) > 1 else "",
    ]
    return [plain(text) for text in found if text]


def _several(name: str, values: Sequence[str]) -> str:
    if not values:
        return ""
    shown = ", ".join(values[:_MOST_VALUES]) + (", ..." if len(values) > _MOST_VALUES else "")
    return f"{name} {shown}"


def show(words: Iterable[str]) -> None:
    """The badges in a row that wraps."""
    spans = "".join(f'<span class="badge">{html.escape(word)}</span>' for word in words)
    st.html(f"{_STYLE}<div class='badges'>{spans}</div>")


def show_legend(rows: Iterable[Standing], *, below: bool = False) -> None:
    """The marks that occur, with what they mean on hover. On a phone the one below the table is seen, elsewhere the
    other.
    """
    from leaderboard.app.colours import css

    kinds = {name for row in rows for name in row.kinds()}
    entries = "".join(
        f'<span title="{html.escape(mark.meaning)}"><span class="mark" style="{css(name)}">{mark.sign}</span>'
        f"{html.escape(mark.words)}</span>"
        for name, mark in legend(kinds)
    )
    place = "below" if below else "above"
    st.html(f"{_STYLE}<div class='legend {place}' role='note' aria-label='Legend'>{entries}</div>")


_STYLE = """<style>
.badges, .legend { display: flex; flex-wrap: wrap; gap: 4px 8px; font-size: 0.8rem; }
.legend > span { cursor: help; margin-right: 6px; white-space: nowrap; }
.badge, .mark { border: 1px solid rgba(128, 138, 150, 0.4); border-radius: 6px; padding: 1px 7px; }
.mark { display: inline-block; min-width: 1.5em; text-align: center; margin-right: 5px; padding: 0 3px; }
@media (min-width: 641px) { .stElementContainer:has(.legend.below) { display: none; } }
@media (max-width: 640px) {
  .stElementContainer:has(.badges), .stElementContainer:has(.legend.above) { display: none; }
}
</style>"""
