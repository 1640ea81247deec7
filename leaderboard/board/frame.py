"""Cells of a board as rows of plain values, and as a pandas table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from leaderboard.board.cell import Cell
from leaderboard.board.further import all_metrics

if TYPE_CHECKING:
    import pandas

_TEXTS = ("model", "task", "recipe", "control", "metric", "verdict", "run_id", "label", "scored", "needed_for")
_COUNTS = ("n", "lost", "gained", "documents_needed")
_FLAGS = ("unpaired", "primary")
_COLUMNS = {
    name: {"p": "p_value", "q": "q_value", "label": "name", "primary": "is_primary"}.get(name, name)
    for name in (
        *("model", "task", "recipe", "control", "metric", "n", "baseline_score", "score", "delta", "low", "high"),
        *("verdict", "p", "q", "lost", "gained", "run_id", "unpaired", "label", "scored"),
        *("documents_needed", "needed_for", "clipped_at", "primary", "chance"),
    )
}
"""Column -> field of a cell."""
_CONTROL_COLUMNS = {
    "run": "baseline_run",
    "delta": "delta",
    "low": "low",
    "high": "high",
    "verdict": "verdict",
    "p": "p_value",
    "q": "q_value",
    "unpaired": "unpaired",
    "clipped_at": "clipped_at",
}


def cells_frame(cells: Sequence[Cell]) -> pandas.DataFrame:
    """A row a metric: each cell, and behind it those of the task's further metrics, which are not `primary`. Scores in
    the metric's own units, counts of documents as nullable integers, missing values NA.

    unpaired: whether delta, low and high are of two scores by themselves, not paired by document. clipped_at: where it
    is given, low and high are of the mean change in which no document counts for more, and need not hold delta.
    chance: the share of right answers that guessing gets, or always taking the same choice where that finds more.
    """
    import pandas

    rows, columns = list(all_metrics(cells)), {}
    for column, name in _COLUMNS.items():
        kind = "object" if column in _TEXTS else "Int64" if column in _COUNTS else "float64"
        kind = "bool" if column in _FLAGS else kind
        columns[column] = pandas.Series([getattr(cell, name) for cell in rows], dtype=kind)
    return pandas.DataFrame(columns)


def cell_rows(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """The rows of `cells_frame_with_controls` as plain values, None for what is missing, with the baseline's run and
    notes.
    """
    rows = []
    for cell in all_metrics(cells):
        pair = next(iter(cell.against_controls), None)
        row = {column: getattr(cell, name) for column, name in _COLUMNS.items()}
        beside = {f"control_{column}": pair and getattr(pair, name) for column, name in _CONTROL_COLUMNS.items()}
        rows.append({**row, "baseline_run": cell.baseline_run, **beside, "notes": list(cell.notes)})
    return rows


def cells_frame_with_controls(cells: Sequence[Cell], control: str | None = None) -> pandas.DataFrame:
    """`cells_frame`, and in columns named `control_...` each recipe against a control of its own: the one of this name,
    or the first by name.
    """
    import pandas

    frame, rows = cells_frame(cells), list(all_metrics(cells))
    pairs = [next((pair for pair in cell.against_controls if control in (None, pair.control)), None) for cell in rows]
    for column, name in _CONTROL_COLUMNS.items():
        kind = "object" if column in ("run", "verdict", "unpaired") else "float64"
        values = [None if pair is None else getattr(pair, name) for pair in pairs]
        frame[f"control_{column}"] = pandas.Series(values, dtype=kind)
    return frame
