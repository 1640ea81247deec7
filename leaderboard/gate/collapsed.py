"""A candidate that collapsed fails the gate, by whatever margin its metrics would pass: see `compare.collapse`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from leaderboard.gate.decision import GateRow


def failing(rows: Mapping[str, GateRow | None], elsewhere: Iterable[str]) -> dict[str, GateRow | None]:
    """The tasks' rows, those FAIL that show a collapse, or that cannot tell while another task shows it.

    elsewhere: tasks without a row on which the candidate collapsed. An incomparable row stays so.
    """
    shown = [name for name, row in rows.items() if row is not None and row.collapse]
    tasks = tuple(dict.fromkeys([*shown, *elsewhere]))
    return {name: row and _failing(row, tasks) for name, row in rows.items()}


def _failing(row: GateRow, tasks: tuple[str, ...]) -> GateRow:
    if row.identical or row.decided == "INCOMPARABLE" or row.drop is None:
        return row
    if row.collapse:
        return _failed(row, [f"collapsed: {sign}" for sign in row.collapse])
    if row.collapse is None and tasks:
        return _failed(row, [f"collapsed on {', '.join(tasks)}; this task cannot tell by itself"])
    return row


def failing_mean(row: GateRow | None, members: Mapping[str, GateRow | None]) -> GateRow | None:
    """A suite's or the overall row, FAIL where one of its tasks shows a collapse."""
    shown = [name for name, member in members.items() if member is not None and member.collapse]
    return _failed(row, [f"collapsed on {', '.join(shown)}"]) if row is not None and shown else row


def _failed(row: GateRow, reasons: list[str]) -> GateRow:
    return replace(row, decided="FAIL", reasons=(*reasons, *row.reasons), collapse=row.collapse or tuple(reasons))
