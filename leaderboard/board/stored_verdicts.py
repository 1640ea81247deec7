"""Verdicts of whole boards in the store, for SQL: the view `v_verdicts` shows those that still hold.

A verdict follows from all runs of its model, since the correction is over all of them, from the pinned baseline and
from the code that judges. Each model's rows are stored with these; the view leaves out rows of other runs or of another
pin, and `outdated` also names models that other code judged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from leaderboard.board.cell import Cell
from leaderboard.board.further import all_metrics
from leaderboard.compare import verdict_cache
from leaderboard.store.database import Store
from leaderboard.store.writer import now

_COLUMNS = {
    "p": "p_value",
    "q": "q_value",
    "label": "name",
    **{
        name: name
        for name in (
            "model_key", "run_id", "task", "metric", "filter", "verdict", "n", "baseline_run", "baseline_score",
            "score", "delta", "low", "high", "improvement", "margin", "lost", "gained", "unpaired",
            "documents_needed", "needed_for", "clipped_at",
        )
    },
}  # fmt: skip
"""Column of the table -> field of a cell."""
_OF_VERDICTS = ("beats_controls", "is_primary", "chance", "beats_chance")
_WHOLE = ("n", "lost", "gained", "documents_needed")


def outdated(store: Store) -> dict[str, str]:
    """model_key -> state of the models whose stored verdicts no longer hold, or that have none."""
    rows = store.rows(
        "SELECT m.model_key, m.state FROM model_states m LEFT JOIN verdict_states s ON (s.model_key, s.state, s.code) ="
        " (m.model_key, m.state, $1) WHERE s.model_key IS NULL ORDER BY m.model_key",
        [verdict_cache.code()],
    )
    return {row["model_key"]: row["state"] for row in rows}


def write(store: Store, boards: Mapping[str, Sequence[Cell]], states: Mapping[str, str]) -> None:
    """Store the boards of some models in place of what was stored of them. states: of `outdated`, from the same look at
    the store as the boards, so that a run that came in between makes the rows outdated.
    """
    if not boards:
        return
    cells = [cell for board in boards.values() for cell in all_metrics(board)]
    pairs = [pair for cell in cells for pair in cell.against_controls]
    models = list(boards)
    with store.transaction():
        for table in ("verdicts", "control_verdicts", "verdict_states"):
            store.connection.execute(f"DELETE FROM {table} WHERE model_key IN (SELECT unnest(?))", [models])
        of_verdicts = {name: [getattr(cell, name) for cell in cells] for name in _OF_VERDICTS}
        store.insert("verdicts", _columns(cells) | of_verdicts)
        store.insert("control_verdicts", _columns(pairs) | {"control": [pair.control for pair in pairs]})
        store.insert(
            "verdict_states",
            {
                "model_key": models,
                "state": [states[model] for model in models],
                "code": [verdict_cache.code()] * len(models),
                "judged_at": [now()] * len(models),
            },
        )


def _columns(cells: Sequence[Cell]) -> dict[str, list[Any]]:
    columns = {column: [getattr(cell, name) for cell in cells] for column, name in _COLUMNS.items()}
    columns |= {name: [None if value is None else int(value) for value in columns[name]] for name in _WHOLE}
    return columns | {"notes": [json.dumps(cell.notes, ensure_ascii=False) for cell in cells]}
