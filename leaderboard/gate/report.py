"""A gate's whole outcome as one value: what was compared, every row, what changed, and the word for all of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from leaderboard.errors import LeaderboardError
from leaderboard.gate.changes import RunChange, changes, findings, moved_baseline
from leaderboard.gate.decision import EXIT_CODES, GateRow, Verdict, decide, overall
from leaderboard.gate.evaluate import GateStore, gate_store, rows_against, with_metrics
from leaderboard.gate.policy import Policy
from leaderboard.gate.runs import Named, base_of, baselines_of
from leaderboard.readers.records import BASELINE, Run
from leaderboard.store import decisions
from leaderboard.store.database import open_store
from leaderboard.store.noise_floor import floors_in
from leaderboard.store.writer import now

PATIENCE_SECONDS = 5.0
"""How long a busy database is waited for, for what is only shown."""
RECORD_PATIENCE_SECONDS = 10.0
_ENDS = (("", "value"), ("_low", "low"), ("_high", "high"))  # of the names of an estimate's numbers


@dataclass(frozen=True)
class Compared:
    """One baseline: in which role, which run, how it was found, what differs from it, and what that says. `findings`
    only where something got worse.
    """

    role: str
    run_id: str
    recipe: str
    path: str
    how: str
    changes: tuple[RunChange, ...]
    findings: tuple[str, ...]

    @property
    def title(self) -> str:
        """The role, with its run where several can have it."""
        return f"run {self.run_id[:12]}" if self.role == "run" else self.role


@dataclass(frozen=True)
class GateReport:
    """The outcome. `exit_code` as the command ends with it. `decision`: whether every row decides, or the overall mean
    with what must not happen to any of its tasks; `decides` of a row says which.
    """

    verdict: Verdict
    exit_code: int
    model: str
    recipe: str
    candidate: str
    candidate_path: str
    alpha: float
    baselines: tuple[Compared, ...]
    rows: tuple[GateRow, ...]
    decision: Literal["rows", "overall"] = "rows"

    def to_json(self) -> str:
        """The report as JSON, numbers that are not finite as null.

        `change` and its limits have the sign of the improvement, `drop` and its own are 0 where nothing was lost.
        """
        report = _finite(asdict(self))
        for row in report["rows"]:
            del row["needs"]  # of use within this program only
            row |= _with_changes(row)
            if row["choices"] and (gold := row["choices"].pop("gold_drop")):
                turned = _with_changes({f"drop{end}": gold[name] for end, name in _ENDS})
                for word in ("drop", "change"):
                    row["choices"][f"gold_{word}"] = {name: turned[f"{word}{end}"] for end, name in _ENDS}
        return json.dumps(report, indent=2, ensure_ascii=False, default=str)

    def deciding(self, compared: Compared) -> list[GateRow]:
        """The rows against one baseline that decide, whatever they say."""
        return [row for row in self.rows_of(compared) if row.decides]

    def informing(self, compared: Compared) -> list[GateRow]:
        """Those that may be undecided, since the overall mean speaks for them."""
        return [row for row in self.rows_of(compared) if not row.decides]

    def rows_of(self, compared: Compared) -> list[GateRow]:
        """The rows against one baseline."""
        return [row for row in self.rows if row.baseline == compared.run_id]


class UneditedRuns(NamedTuple):
    """The unedited run of the candidate, and of each edited run that it is compared with, by that one's id; as far as
    they are known.
    """

    of_candidate: Run | None
    of_baselines: Mapping[str, Run]


def judge_candidate(candidate: Run, policy: Policy, asked: Sequence[str], database: Path) -> GateReport:
    """Gate a run. Raises `LeaderboardError` where there is nothing to compare it with, or no task to gate."""
    baselines = baselines_of(candidate, asked, database)
    unedited = _unedited(candidate, baselines, database)
    runs = _all_runs(candidate, baselines, unedited)
    with gate_store([with_metrics(run, policy) for run in runs], floors_in(database, PATIENCE_SECONDS)) as gate:
        rows = decide(
            [row for named in baselines for row in rows_against(gate, candidate, named, policy)], policy.alpha
        )
        if not rows:
            raise LeaderboardError("there is no task to gate: the candidate has none that the policy speaks of")
        compared = []
        for named in baselines:
            worse = [row for row in rows if row.baseline == named.run.run_id and row.got_worse]
            moved = _moved_baselines(gate, named, worse, unedited, policy.alpha)
            compared.append(_compared(named, candidate, bool(worse), moved))
    verdict = overall(rows)
    variant = candidate.variant
    return GateReport(
        verdict,
        EXIT_CODES[verdict],
        variant.model_name,
        variant.recipe_label,
        candidate.run_id,
        str(candidate.path),
        policy.alpha,
        tuple(compared),
        tuple(rows),
        "rows" if policy.overall is None else "overall",
    )


def _moved_baselines(
    gate: GateStore, named: Named, worse: Sequence[GateRow], unedited: UneditedRuns, alpha: float
) -> list[str]:
    """For each row that got worse: whether the unedited model moved too since the run that it is compared with."""
    before = unedited.of_baselines.get(named.run.run_id)
    if unedited.of_candidate is None or before is None:
        return []
    moved = [moved_baseline(gate, row, before, unedited.of_candidate, alpha) for row in worse]
    return [sentence for sentence in moved if sentence]


def _compared(named: Named, candidate: Run, got_worse: bool, moved: Sequence[str]) -> Compared:
    differing = changes(named.run, candidate)
    said = findings(named.run, candidate, differing) if got_worse and named.role != "base" else []
    return Compared(
        named.role,
        named.run.run_id,
        named.run.variant.recipe_label,
        str(named.run.path),
        named.how,
        tuple(differing),
        (*said, *moved),
    )


def record(report: GateReport, policy: Policy, database: Path) -> str | None:
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
        with open_store(database, read_only=False, timeout_s=RECORD_PATIENCE_SECONDS) as store:
            place = store.places.stored(Path(report.candidate_path))
            decisions.record(store, "gate", row | {"candidate_path": place})
    except LeaderboardError as error:
        return f"this decision was not recorded: {error}"
    return None


def _unedited(candidate: Run, baselines: Sequence[Named], database: Path) -> UneditedRuns:
    now = next((named.run for named in baselines if named.role == "base"), None) or _base(candidate, database)
    found = {named.run.run_id: _base(named.run, database) for named in baselines if now is not None}
    return UneditedRuns(now, {run_id: base for run_id, base in found.items() if base is not None})


def _base(run: Run, database: Path) -> Run | None:
    try:
        found = base_of(run, database)
    except LeaderboardError:  # its files are gone: the gate can do without
        return None
    return None if found is None else found.run


def _all_runs(candidate: Run, baselines: Sequence[Named], unedited: UneditedRuns) -> list[Run]:
    """Each run once, unedited ones first: of two that contradict each other the edited one is to be blamed."""
    runs = [
        *filter(None, [unedited.of_candidate]),
        *unedited.of_baselines.values(),
        *(run for named in baselines for run in (named.run, *named.others.values())),
        candidate,
    ]
    return sorted({run.run_id: run for run in runs}.values(), key=lambda run: run.variant.recipe_name != BASELINE)


def _with_changes(drops: Mapping[str, float | None]) -> dict[str, float | None]:
    """A drop and its limits, each at least 0, and as `change...` the same with the sign of the improvement."""
    found: dict[str, float | None] = {}
    for end, opposite in (("", ""), ("_low", "_high"), ("_high", "_low")):
        drop, other = drops[f"drop{end}"], drops[f"drop{opposite}"]
        found |= {
            f"drop{end}": None if drop is None else max(drop, 0.0),
            f"change{end}": None if other is None else 0.0 - other,
        }
    return found


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value
