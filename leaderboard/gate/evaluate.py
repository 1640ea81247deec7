"""From runs and a policy to rows: every task and suite of the policy, against every baseline.

The runs go through a store in memory and the code that `board` and `compare` use, so that all three say the same.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

from leaderboard import statistics as stats
from leaderboard.compare import comparability, needs
from leaderboard.compare.choice_shift import compare_choices
from leaderboard.compare.collapse import collapse_signs
from leaderboard.compare.contents import Contents, read_contents
from leaderboard.compare.effect import Effect
from leaderboard.compare.one_model import is_one_model
from leaderboard.compare.pairing import Pairing, Subject, Terms, pair_up
from leaderboard.errors import LeaderboardError, Unreadable
from leaderboard.gate.collapsed import failing, failing_mean
from leaderboard.gate.decision import GateRow
from leaderboard.gate.policy import Policy, Requirement, SuitePolicy, TaskPolicy
from leaderboard.gate.runs import Named
from leaderboard.readers.records import ReportedScore, Run
from leaderboard.store.database import Store, memory_store
from leaderboard.store.noise_floor import Floors, together
from leaderboard.store.queries import RunRow, ScoreRow
from leaderboard.store.writer import add_run
from leaderboard.terminal.format import unpaired_words


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

    def pair(self, subject: Subject, baseline: Run, terms: Terms, *, across: bool = False) -> Pairing:
        """What the comparison of a score that is a number gives. across: whether runs of two GPUs or engines are
        compared where their noise was not measured.
        """
        row = self.run(baseline)
        pairing = pair_up(self.store, self.contents, subject, row, terms)
        apart = self.contents.hardware(row, subject.run, subject.score)
        if apart is None or row.run_id == subject.run.run_id:
            return pairing
        if apart.is_measured or across:
            return replace(pairing, notes=(apart.warning, *pairing.notes))
        refusal = f"{apart.refusal}; the policy's `different_hardware: warn` compares all the same"
        return replace(pairing, effect=None, unpaired=None, obstacles=(*pairing.obstacles, refusal))


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
        yield GateStore(store, replace(contents, floors=together(floors, contents.floors)))
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
    """The tasks that the policy names, those that its suites and its overall mean are made of, and the candidate's
    others where the policy gates them.
    """
    of_suites = (task for suite in policy.suites.values() for task in suite.weights)
    names = dict.fromkeys([*policy.tasks, *policy.averaged, *of_suites])
    if policy.others == "gate":
        names |= dict.fromkeys(task.task for task in candidate.tasks)
    return {name: policy.tasks.get(name, TaskPolicy(required=False)) for name in names}


def rows_against(gate: GateStore, candidate: Run, named: Named, policy: Policy) -> list[GateRow]:
    """One row for the overall mean, where there is one, and one a task and suite; not decided yet."""
    tasks = {
        name: _task_row(gate, candidate, named, policy, name, entry)
        for name, entry in gated_tasks(candidate, policy).items()
    }
    tasks = failing(tasks, _collapsed_tasks(gate, candidate, named, tasks))
    suites = [
        failing_mean(_suite_row(named, policy, name, entry, tasks), {task: tasks.get(task) for task in entry.weights})
        for name, entry in policy.suites.items()
    ]
    averaged = policy.averaged
    mean = failing_mean(overall_row(named, policy, tasks), {task: tasks.get(task) for task in averaged})
    listed = [
        replace(row, decides=row.critical or name not in averaged)
        for name, row in tasks.items()
        if row is not None and (name in policy.tasks or name in averaged or policy.others == "gate")
    ]
    return [*filter(None, [mean]), *listed, *filter(None, suites)]


def _collapsed_tasks(
    gate: GateStore, candidate: Run, named: Named, rows: Mapping[str, GateRow | None]
) -> Iterator[str]:
    """The candidate's other tasks on which it collapsed: those that the policy does not gate, and those without a
    number.
    """
    for name in [task.task for task in candidate.tasks]:
        row, baseline = rows.get(name), named.run_of(name)
        alone = (row is None or row.drop is None) and baseline.run_id != candidate.run_id
        if alone and collapse_signs(gate.contents.answers, baseline.run_id, candidate.run_id, name):
            yield name


def _task_row(
    gate: GateStore, candidate: Run, named: Named, policy: Policy, name: str, entry: TaskPolicy
) -> GateRow | None:
    row = GateRow(role=named.role, name=name, baseline=named.run.run_id, critical=entry.critical)
    terms = Terms(policy.default_margin(entry), policy.own_margin(entry, named.margins), policy.alpha)
    if lacking := _lacking_metric(candidate, name, entry):
        return replace(row, decided="INCOMPARABLE", reasons=lacking)
    subject = gate.subject(candidate, name)
    if subject is None:
        return _missing(row, candidate, entry)
    score = subject.score
    if score.score is None:
        return replace(
            row, metric=score.metric, decided="FAIL", reasons=(f"the result is {score.reported}, not a number",)
        )
    baseline = named.run_of(name)
    pairing = gate.pair(subject, baseline, terms, across=policy.different_hardware == "warn")
    metric = score.metric if score.filter == "none" else f"{score.metric} ({score.filter})"
    row = replace(
        row,
        metric=metric,
        score=score.score,
        baseline_score=pairing.baseline_score,
        identical=candidate.run_id == baseline.run_id or _is_one_model(baseline, candidate, pairing.effect),
    )
    base_score = gate.contents.score(baseline.run_id, name, score.metric, score.filter)
    subject = subject._replace(score=comparability.agreed(base_score, score))
    broken = _floor_broken(subject.score, entry)
    if pairing.effect is None:
        return _unpaired_row(row, subject, pairing, policy, broken)
    choices = compare_choices(gate.store, baseline.run_id, candidate.run_id, name, score.filter)
    row = replace(
        _paired_row(row, pairing.effect),
        noise_floor=pairing.noise_floor,
        choices=choices,
        notes=(*_about(row, named, name), *pairing.notes),
    )
    return replace(row, decided="FAIL", reasons=broken) if broken else row


def _is_one_model(baseline: Run, candidate: Run, effect: Effect | None) -> bool:
    digests = baseline.variant.digest_after, candidate.variant.digest_after
    return effect is not None and is_one_model(*digests, effect.delta)


def _lacking_metric(candidate: Run, name: str, entry: TaskPolicy) -> tuple[str, ...]:
    """The sentence about a metric that the policy names and the candidate's task lacks, or nothing."""
    ran = any(task.task == name for task in candidate.tasks)
    if not entry.metric or not ran or _find_metric(candidate, name, entry.metric) is not None:
        return ()
    known = sorted(f"{score.metric},{score.filter}" for score in candidate.scores if score.task == name)
    return (f"the candidate has no metric {entry.metric!r} here; it has {', '.join(known)}",)


def _paired_row(row: GateRow, effect: Effect) -> GateRow:
    """The row with what the paired documents show; of one model there is no drop to be in doubt of."""
    return replace(
        row,
        documents=effect.count,
        drop=effect.drop,
        drop_low=effect.drop if row.identical else effect.drop_low,
        drop_high=effect.drop if row.identical else effect.drop_high,
        margin=effect.margin,
        p_worse=effect.p_worse,
        standard_error=effect.standard_error,
        degrees=effect.degrees,
        unit=effect.unit,
        lost=effect.lost,
        gained=effect.gained,
        flip_rate=effect.flip_rate,
        clipping=effect.clipping,
        needs=effect.needs,
        collapse=effect.collapse,
    )


def _about(row: GateRow, named: Named, name: str) -> tuple[str, ...]:
    """Which run a task is compared with where it is not the one that the others are, and whether it is the same."""
    other = named.others.get(name)
    against = () if other is None else (f"against run {other.run_id[:12]}, which ran this task as the candidate did",)
    return (*against, *(("the same as the baseline, to the bit",) if row.identical else ()))


def _unpaired_row(row: GateRow, subject: Subject, pairing: Pairing, policy: Policy, broken: tuple[str, ...]) -> GateRow:
    """A row without pairs of documents: decided by the two scores alone where the policy allows it and they carry it;
    else incomparable, and the difference said.
    """
    found = pairing.unpaired
    if found is None:
        return replace(row, decided="FAIL" if broken else "INCOMPARABLE", reasons=(*broken, *pairing.obstacles))
    row = replace(row, unpaired=True, documents=subject.task.document_count)
    words = unpaired_words(found)
    if broken:
        return replace(row, decided="FAIL", reasons=(*broken, words))
    if not policy.allow_unpaired or found.drop_high is None:
        lacking = (found.why_not_gated,) if policy.allow_unpaired else ()
        return replace(row, decided="INCOMPARABLE", reasons=(*pairing.obstacles, words, *lacking))
    return replace(
        row,
        drop=found.delta if subject.score.higher_is_better is False else -found.delta,
        drop_low=found.drop_low,
        drop_high=found.drop_high,
        margin=found.margin,
        p_worse=found.p_worse,
        notes=(f"decided unpaired, as the policy allows: {words}", *pairing.notes[1:]),
    )


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


def overall_row(named: Named, policy: Policy, tasks: Mapping[str, GateRow | None]) -> GateRow | None:
    """The weighted mean that the policy decides by."""
    if policy.overall is None:
        return None
    rule, margin = policy.overall.weights, policy.overall.margin
    weights = rule if isinstance(rule, dict) else {task: _weight(rule, tasks.get(task)) for task in policy.averaged}
    entry = SuitePolicy(weights=weights, margin=margin, floor=policy.overall.floor)
    row = _suite_row(named, policy, "overall", entry, tasks)
    words = {"equal": ", of equal weight", "by_documents": ", by their documents"}
    return row and replace(row, kind="overall", metric=row.metric + ("" if isinstance(rule, dict) else words[rule]))


def _weight(rule: Literal["equal", "by_documents"], row: GateRow | None) -> float:
    """That of a task without documents does not matter: it is not averaged over."""
    return 1.0 if rule == "equal" or row is None else float(row.documents or 1)


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
    row = replace(row, needs=_needs_of_mean(row, found, policy.alpha))
    if entry.floor is not None and score < entry.floor:
        return replace(row, decided="FAIL", reasons=(f"{score:.4g} is below the floor of {entry.floor:g}",))
    return row


def _needs_of_mean(row: GateRow, found: stats.Suite, alpha: float) -> needs.Needs | None:
    """Of documents over all tasks, if each gets as many times more: the error shrinks with their number as that of one
    task does. Its limit is wider than the error says where flips are rare; that is what the test takes for the bound.
    """
    if row.margin is None or not row.documents:
        return None
    variance = row.documents * found.standard_error**2
    at_bound = (
        row.documents * max(found.standard_error, (found.high - found.drop) / stats.normal_quantile(1 - 2 * alpha)) ** 2
    )
    mean = needs.of_mean(variance, found.drop, row.margin)

    def side(side: stats.Side) -> stats.Side:
        return stats.normal_side(side.distance, variance, at_bound)

    return mean._replace(within=tuple(map(side, mean.within)), as_seen=tuple(map(side, mean.as_seen)))
