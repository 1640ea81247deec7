"""The record of gates: every decision, whole, in the database if there is one."""

from __future__ import annotations

from pathlib import Path

from leaderboard.errors import LeaderboardError
from leaderboard.gate.policy import Policy
from leaderboard.gate.report import Report
from leaderboard.store.database import open_store
from leaderboard.store.writer import now

PATIENCE_SECONDS = 10.0


def record(report: Report, policy: Policy, database: Path) -> str | None:
    """Append a decision to `gate_runs`. Never creates a database, and never costs the decision: what went wrong is
    returned as a sentence.
    """
    if not database.exists():
        return None
    row = {
        "gated_at": now(),
        "verdict": report.verdict,
        "exit_code": report.exit_code,
        "model_name": report.model,
        "recipe_label": report.recipe,
        "candidate": report.candidate,
        "candidate_path": report.candidate_path,
        "policy": policy.model_dump_json(),
        "report": report.to_json(),
    }
    try:
        with open_store(database, read_only=False, timeout_s=PATIENCE_SECONDS) as store:
            store.insert("gate_runs", {name: [value] for name, value in row.items()})
    except LeaderboardError as error:
        return f"this decision was not recorded: {error}"
    return None
