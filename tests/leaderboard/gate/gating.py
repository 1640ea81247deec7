"""Gating runs in tests: a report by a policy given as keywords, and its rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from leaderboard.gate.decision import GateRow
from leaderboard.gate.policy import policy_from
from leaderboard.gate.report import GateReport, judge_candidate
from leaderboard.gate.runs import read_named

NOWHERE = Path("no-such-folder") / "leaderboard.duckdb"


def gated(candidate: Path | str, *baselines: object, database: Path = NOWHERE, **policy: Any) -> GateReport:
    """The report on a candidate, by a policy given as keywords."""
    run = read_named(str(candidate), database, "candidate")
    return judge_candidate(run, policy_from(policy, "the test's"), [str(baseline) for baseline in baselines], database)


def row(report: GateReport, name: str = "sums") -> GateRow:
    """The one row of a task or suite."""
    (found,) = [row for row in report.rows if row.name == name]
    return found


def two(made: Any, before: Any, after: Any, **changes: Any) -> tuple[Path, Path]:
    """A baseline and an edited run."""
    tasks = [task if isinstance(task, dict) else {"sums": task} for task in (before, after)]
    return made.run("baseline", tasks[0]), made.run("laser", tasks[1], **changes)


def without_samples(made: Any, kit: Any, count: int, lost: int, **task: Any) -> tuple[Path, Path]:
    """An edited run and an unedited one, as results files alone; 90 % right at first."""
    before, after = kit.pair(count, round(0.9 * count), lost=lost, **task)
    base = made.plain({"sums": before}, folder="base", samples=False)
    return made.plain({"sums": after}, folder="edited", samples=False, config={"recipe": "laser"}), base
