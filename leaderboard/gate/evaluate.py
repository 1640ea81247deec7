"""From runs and a policy to rows: every task and suite of the policy, against every baseline.

The runs go through a store in memory and the code that `board` and `compare` use, so that all three say the same.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from leaderboard import statistics as stats
from leaderboard.compare.choice_shift import compare_choices
from leaderboard.compare.contents import Contents, read_contents
from leaderboard.compare.effect import Effect, at_least
from leaderboard.compare.pairing import Pairing, Subject, Terms, pair_up
from leaderboard.errors import LeaderboardError, Unreadable
from leaderboard.gate.decision import GateRow
from leaderboard.gate.policy import Policy, Requirement, SuitePolicy, TaskPolicy
from leaderboard.gate.runs import Named
from leaderboard.readers.records import ReportedScore, Run
from leaderboard.store.database import Store, memory_store
from leaderboard.store.noise_floor import Floor
from leaderboard.store.queries import RunRow, ScoreRow
from leaderboard.store.writer import add_run

Floors = Mapping[tuple[str, str, str, str], list[Floor]]


@dataclass(frozen=True)
class GateStore:
    """The runs of a gate in a store of their own."""

    store: Store
    contents: Contents

    def run(self, run: Run) -> RunRow:
        """The row of a run that was put in."""
        return next(row for row in self.contents.runs if row.run_id == run.run_id)

    def subject(self, candidate: Run, task: str) -> Subject | None:
        """A task's primary score, which need not be a number; None where the candidate lacks it."""
        row, score = self.contents.task(candidate.run_id, task), self.contents.primary(candidate.run_id, task)
        return None if row is None or score is None else Subject(self.run(candidate), row, score)

    def pair(self, subject: Subject, baseline: Run, terms: Terms) -> Pairing:
        """What the comparison of a score that is a number gives."""
        return pair_up(self.store, self.contents, subject, self.run(baseline), terms)


@contextmanager
def gate_store(runs: Sequence[Run], floors: Floors) -> Iterator[GateStore]:
    """Put runs into a store in memory. Raises `LeaderboardError` where two of them contradict each other."""
    store = memory_store()
    try:
        for run in runs:
            try:
                add_run(store, run)
            except Unreadable as error:
                raise LeaderboardError(f"{run.path}: {error}") from None
        contents = read_contents(store)
        yield GateStore(store, replace(contents, floors={**floors, **contents.floors}))
    finally:
        store.connection.close()


def with_metrics(run: Run, policy: Policy) -> Run:
    """The run with the metrics that the policy names in place of the tasks' own, where the run has them."""
    chosen = {task: entry.metric for task, entry in policy.tasks.items() if entry.metric}
    hits = {task: _find_metric(run, task, metric) for task, metric in chosen.items()}

    def primary(score: ReportedScore) -> bool:
        hit = hits.get(score.task)
        return score.is_primary if hit is None else (score.metric, score.filter) == (hit.metric, hit.filter)

    return replace(run, scores=[replace(score, is_primary=primary(score)) for score in run.scores])


def _find_metric(run: Run, task: str, wanted: str) -> ReportedScore | None:
    mine = [score for score in run.scores if score.task == task]
    return next((score for score in mine if wanted in (score.metric, f"{score.metric},{score.filter}")), None)


def gated_tasks(candidate: Run, policy: Policy) -> dict[str, TaskPolicy]:
    """The tasks that the policy names, those that its suites are made of, and the candidate's others where the policy
    gates them.
    """
    names = dict.fromkeys([*policy.tasks, *(task for suite in policy.suites.values() for task in suite.weights)])
    if policy.others == "gate":
        names |= dict.fromkeys(task.task for task in candidate.tasks)
    return {name: policy.tasks.get(name, TaskPolicy(required=False)) for name in names}


def rows_against(gate: GateStore, candidate: Run, named: Named, policy: Policy) -> list[GateRow]:
    """One row a task and suite, not decided yet."""
    tasks = {
        name: _task_row(gate, candidate, named, policy, name, entry)
        for name, entry in gated_tasks(candidate, policy).items()
    }
    suites = [_suite_row(named, policy, name, entry, tasks) for name, entry in policy.suites.items()]
    listed = [
        row for name, row in tasks.items() if row is not None and (name in policy.tasks or policy.others == "gate")
    ]
    return [*listed, *filter(None, suites)]


def _task_row(
    gate: GateStore, candidate: Run, named: Named, policy: Policy, name: str, entry: TaskPolicy
) -> GateRow | None:
    row = GateRow(role=named.role, name=name, baseline=named.run.run_id, critical=entry.critical)
    terms = Terms(policy.default_margin(entry), policy.own_margin(entry, named.margins), policy.alpha)
    if (
        entry.metric
        and any(task.task == name for task in candidate.tasks)
        and _find_metric(candidate, name, entry.metric) is None
    ):
        known = sorted(f"{score.metric},{score.filter}" for score in candidate.scores if score.task == name)
        return replace(
            row,
            decided="INCOMPARABLE",
            reasons=(f"the candidate has no metric {entry.metric!r} here; it has {', '.join(known)}",),
        )
    subject = gate.subject(candidate, name)
    if subject is None:
        return _missing(row, candidate, entry)
    score = subject.score
    if score.score is None:
        return replace(
            row, metric=score.metric, decided="FAIL", reasons=(f"the result is {score.reported}, not a number",)
        )
    pairing = gate.pair(subject, named.run, terms)
    metric = score.metric if score.filter == "none" else f"{score.metric} ({score.filter})"
    row = replace(
        row,
        metric=metric,
        score=score.score,
        baseline_score=pairing.baseline_score,
        identical=candidate.run_id == named.run.run_id,
    )
    broken = _floor_broken(score, entry)
    if pairing.effect is None:
        return replace(row, decided="FAIL" if broken else "INCOMPARABLE", reasons=(*broken, *pairing.obstacles))
    effect = pairing.effect
    choices = compare_choices(gate.store, named.run.run_id, candidate.run_id, name, score.filter)
    row = replace(
        row,
        documents=effect.count,
        drop=effect.drop,
        drop_low=effect.drop_low,
        drop_high=effect.drop_high,
        margin=effect.margin,
        p_worse=effect.p_worse,
        standard_error=effect.standard_error,
        degrees=effect.degrees,
        unit=effect.unit,
        lost=effect.lost,
        gained=effect.gained,
        flip_rate=effect.flip_rate,
        noise_floor=pairing.noise_floor,
        detectable=effect.detectable,
        documents_needed=_needed(effect, policy.alpha),
        choices=choices,
        notes=(*(("the same as the baseline, to the bit",) if row.identical else ()), *pairing.notes),
        clipped_at=effect.clipped_at,
        far_lost=effect.far_lost,
        far_gained=effect.far_gained,
        far_lost_limit=effect.far_lost_limit,
    )
    return replace(row, decided="FAIL", reasons=broken) if broken else row


def _needed(effect: Effect, alpha: float) -> int | None:
    error, margin = effect.standard_error, effect.margin
    needed = stats.documents_needed(effect.count * error**2, margin, alpha) if error and margin else None
    return None if needed is None else at_least(needed, effect.fewest)


def _missing(row: GateRow, candidate: Run, entry: Requirement) -> GateRow | None:
    if not entry.required:
        return None
    names = {task.task for task in candidate.tasks}
    if any(score.task == row.name and score.is_group for score in candidate.scores):
        hint = "it is a group: name its tasks, or make a suite of them"
    else:
        close = difflib.get_close_matches(row.name, names, n=1, cutoff=0.6)
        hint = (
            f"did you mean {close[0]!r}?"
            if close
            else f"it has {', '.join(sorted(names)[:8])}{', ...' if len(names) > 8 else ''}"
        )
    return replace(row, decided="FAIL", reasons=(f"required, and the candidate has not run it; {hint}",))


def _floor_broken(score: ScoreRow, entry: Requirement) -> tuple[str, ...]:
    """The sentence about a broken floor, or nothing. Where the best value lies in the middle, the floor is the largest
    distance from it.
    """
    if entry.floor is None or score.score is None:
        return ()
    if score.best_value is not None:
        broken, words = (
            abs(score.score - score.best_value) > entry.floor,
            f"farther than {entry.floor:g} from its best value {score.best_value:g}",
        )
    elif score.higher_is_better is False:
        broken, words = score.score > entry.floor, f"above the {entry.floor:g} that the policy allows at most"
    else:
        broken, words = score.score < entry.floor, f"below the floor of {entry.floor:g}"
    return (f"{score.score:.4g} is {words}",) if broken else ()


def _suite_row(
    named: Named, policy: Policy, name: str, entry: SuitePolicy, tasks: Mapping[str, GateRow | None]
) -> GateRow | None:
    row = GateRow(
        role=named.role,
        name=name,
        baseline=named.run.run_id,
        kind="suite",
        metric=f"weighted mean of {len(entry.weights)}",
        critical=entry.critical,
    )
    members = {task: tasks.get(task) for task in entry.weights}
    lacking = [task for task, member in members.items() if member is None or member.score is None]
    if lacking:
        reason = f"not averaged, because the candidate has no score of {', '.join(lacking)}"
        return replace(row, decided="FAIL", reasons=(reason,)) if entry.required else None
    found = {task: member for task, member in members.items() if member is not None}
    if all(member.identical for member in found.values()):
        return replace(row, identical=True, notes=("the same as the baseline, to the bit",))
    untested = [
        task
        for task, member in found.items()
        if member.drop is None or member.drop_high is None or member.drop_low is None or member.standard_error is None
    ]
    if untested:
        return replace(
            row, decided="INCOMPARABLE", reasons=(f"not averaged, because {', '.join(untested)} cannot be compared",)
        )
    others = [task for task, member in found.items() if not member.unit]
    if others:
        return replace(
            row,
            decided="INCOMPARABLE",
            reasons=(
                f"not averaged, because the scores of {', '.join(others)} do not lie between 0 (worst) and 1 (best), or"
                " are clipped",
            ),
        )
    return _combined(row, policy, entry, found, named)


def _combined(
    row: GateRow, policy: Policy, entry: SuitePolicy, members: Mapping[str, GateRow], named: Named
) -> GateRow:
    total = sum(entry.weights.values())
    share = {task: weight / total for task, weight in entry.weights.items()}
    parts = [
        stats.SuitePart(
            share[task], m.drop or 0.0, m.drop_low or 0.0, m.drop_high or 0.0, m.standard_error or 0.0, m.degrees or 0.0
        )
        for task, m in members.items()
    ]
    found = stats.suite(parts, policy.alpha)
    score = sum(share[task] * (member.score or 0.0) for task, member in members.items())
    margin = policy.own_margin(entry, named.margins) or policy.default_margin(entry)
    row = replace(
        row,
        score=score,
        baseline_score=sum(share[task] * (member.baseline_score or 0.0) for task, member in members.items()),
        documents=sum(member.documents or 0 for member in members.values()),
        drop=found.drop,
        drop_low=found.low,
        drop_high=found.high,
        margin=margin,
        p_worse=found.p_worse,
        standard_error=found.standard_error,
        degrees=found.degrees,
        unit=True,
    )
    if entry.floor is not None and score < entry.floor:
        return replace(row, decided="FAIL", reasons=(f"{score:.4g} is below the floor of {entry.floor:g}",))
    return row
