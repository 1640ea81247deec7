"""A gate's report for people, in a terminal: 80 columns are enough, more are used if there. Plain ASCII; colour only
when asked for.

Changes are in the metric's own units, with the sign of the improvement: above zero is better, as on the board. Names
and reasons come from files that anybody may have written, and pass through `plain`.
"""

from __future__ import annotations

import textwrap
from typing import NamedTuple

from leaderboard.gate.decision import GateRow
from leaderboard.gate.report import Compared, GateReport
from leaderboard.terminal.format import choices, counted, flips, number, plain, signed

NARROW = 70
DECIDING = "These decide:"
INFORMING = "These inform; of them only FAIL and INCOMPARABLE stop the gate:"
_COLOURS = {"PASS": "32", "WARN": "33", "FAIL": "31;1", "UNDECIDED": "33", "INCOMPARABLE": "35"}
_NUMBER, _VERDICT = 9, 12


class RowGroup(NamedTuple):
    """Rows under one title."""

    title: str
    rows: list[GateRow]


def render(report: GateReport, *, width: int = 80, color: bool = False) -> str:
    """The report as text without a final newline."""
    width = max(width, NARROW)
    lines = _wrapped(f"Gate: {plain(report.recipe)} on {plain(report.model)}, run {report.candidate[:12]}", width, "")
    for compared in report.baselines:
        lines += [
            "",
            *_wrapped(f"against {compared.title}: {plain(compared.recipe)}, {plain(compared.how)}", width, "  "),
            *_header(width),
        ]
        for title, rows in groups(report, compared):
            lines += _wrapped(title, width, "") if title else []
            lines += [line for row in rows for line in _row_lines(row, width, color)]
        lines += _what_changed(compared, any(row.got_worse for row in report.rows_of(compared)), width)
    final = "\n".join(textwrap.wrap(f"{report.verdict}, exit code {report.exit_code}: {summary(report)}", width))
    legend = (
        f"change: above 0 is better, below 0 worse; at worst: its one-sided limit at {100 * report.alpha:g} %. PASS"
        " where that is less than the margin below 0. Significance by Holm over all rows."
    )
    return "\n".join([*lines, "", *textwrap.wrap(legend, width), _tinted(final, report.verdict, color)])


def groups(report: GateReport, compared: Compared) -> list[RowGroup]:
    """The rows against one baseline, those that decide before those that inform. One group without a title where all
    decide.
    """
    if report.decision == "rows":
        return [RowGroup("", report.rows_of(compared))]
    found = [RowGroup(DECIDING, report.deciding(compared)), RowGroup(INFORMING, report.informing(compared))]
    return [group for group in found if group.rows]


def summary(report: GateReport) -> str:
    """How many rows say what the gate says, and whether the overall margin or every row decided."""
    alike = sum(row.verdict == report.verdict and not row.only_unsure for row in report.rows)
    if report.decision == "rows":
        return f"{alike} of {counted(len(report.rows), 'row', 'rows')}"
    unsure = sum(row.only_unsure for row in report.rows)
    left = f"; {counted(unsure, 'informing row', 'informing rows')} undecided" if unsure else ""
    by_rows = not any(row.kind == "overall" and row.verdict == report.verdict for row in report.rows)
    how = f"by {counted(alike, 'row', 'rows')}, not by the overall margin" if by_rows else "by the overall margin"
    return how + left


def _header(width: int) -> list[str]:
    row = _line(_GateColumns("task", "baseline", "now", "change", "at worst", "margin", "verdict"), width)
    return [row, "-" * len(row)]


def _row_lines(row: GateRow, width: int, color: bool) -> list[str]:
    name = plain(row.name) + (" *" if row.critical else "")
    fits = len(name) <= _name_room(width)
    columns = _GateColumns(
        name if fits else "",
        number(row.baseline_score),
        number(row.score),
        signed(row.change),
        signed(row.change_at_worst),
        number(row.margin),
        row.verdict,
    )
    text = _line(columns, width)
    above = [] if fits else _wrapped(name, width, "")
    return [
        *above,
        _tinted(text.rstrip(), row.verdict, color),
        *(line for note in notes(row) for line in _wrapped(note, width, "  . ")),
    ]


def notes(row: GateRow) -> list[str]:
    """Everything to be said beside a row's numbers, safe to print."""
    metric = [f"{row.metric}, {row.documents:,} documents" if row.documents else row.metric] if row.metric else []
    lost = (
        [f"{row.lost} lost, {row.gained} gained"]
        if row.lost is not None and row.gained is not None and row.verdict != "PASS"
        else []
    )
    beside = [
        *filter(
            None,
            [
                flips(row.flip_rate, row.noise_floor, row.documents),
                choices(row.choices) if row.verdict not in ("PASS",) else None,
            ],
        )
    ]
    facts = "; ".join([*metric, *lost])
    return [plain(text) for text in [*filter(None, [facts]), *row.reasons, *beside, *row.notes]]


def _what_changed(compared: Compared, worse: bool, width: int) -> list[str]:
    if not worse:
        return []
    lines = [f"What changed since {'the unedited run' if compared.role == 'base' else 'that run'}:"]
    lines += [
        line
        for change in compared.changes
        for line in _wrapped(plain(f"{change.what}: {change.before} -> {change.after}"), width, "  ")
    ]
    if not compared.changes:
        lines.append("  nothing that either run says of itself")
    return lines + [line for finding in compared.findings for line in _wrapped(plain(finding), width, "  => ")]


class _GateColumns(NamedTuple):
    """The texts of one line, from left to right."""

    name: str
    baseline: str
    now: str
    change: str
    limit: str
    margin: str
    verdict: str


def _line(columns: _GateColumns, width: int) -> str:
    name, baseline, now, change, limit, margin, verdict = columns
    return (
        f"{name:<{_name_room(width)}} {baseline:>{_NUMBER}} {now:>{_NUMBER}} {change:>{_NUMBER}} {limit:>{_NUMBER}}"
        f" {margin:>{_NUMBER - 2}} {verdict:<{_VERDICT}}"
    )


def _name_room(width: int) -> int:
    return width - 5 * (_NUMBER + 1) + 2 - 1 - _VERDICT


def _wrapped(text: str, width: int, lead: str) -> list[str]:
    return textwrap.wrap(
        text, width, initial_indent=lead, subsequent_indent=" " * len(lead), break_long_words=True
    ) or [""]


def _tinted(text: str, verdict: str, color: bool) -> str:
    return text.replace(verdict, f"\x1b[{_COLOURS[verdict]}m{verdict}\x1b[0m", 1) if color else text
