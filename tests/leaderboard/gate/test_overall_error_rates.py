"""How often a gate over many tasks passes, by simulation: by its rows, and by the overall margin of its policy.

The promise: a model that did not change, but for the flips of its noise, passes a gate of 20 to 50 tasks by the overall
margin with as few documents as people have; and a true loss of the margin passes in at most 5.5 %. The table is printed
(`pytest -s`, or `-rP`).
"""

from __future__ import annotations

import math
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest

from leaderboard import statistics as stats
from leaderboard.gate.decision import GateRow, decide, overall
from leaderboard.gate.evaluate import overall_row
from leaderboard.gate.policy import Policy, policy_from

ALPHA, MARGIN = 0.05, 0.01
BASE: Any = SimpleNamespace(role="base", margins="base", run=SimpleNamespace(run_id="base"))


class Shares(NamedTuple):
    """The shares of simulated gates with the words PASS, WARN and FAIL by the overall margin, and PASS by rows."""

    passed: float
    warned: float
    failed: float
    by_rows: float

    @property
    def exit_zero(self) -> float:
        """The share that lets a model through."""
        return self.passed + self.warned


@cache
def task(lost: int, gained: int, count: int) -> GateRow:
    """The row of one task."""
    return GateRow(
        "base",
        "",
        documents=count,
        baseline_score=0.5,
        score=0.5 - (lost - gained) / count,
        drop=(lost - gained) / count,
        drop_low=-stats.binary_drop_limit(gained, lost, count, ALPHA),
        drop_high=stats.binary_drop_limit(lost, gained, count, ALPHA),
        margin=0.02,
        p_worse=stats.mid_p_mcnemar(gained, lost).greater,
        standard_error=stats.bonett_price(lost, gained, count).standard_error,
        degrees=math.inf,
        unit=True,
        decides=False,
    )


def policy(tasks: int) -> Policy:
    """Equal weights over as many tasks."""
    return policy_from({"tasks": {str(i): {} for i in range(tasks)}, "overall": {"margin": MARGIN}}, "the test's")


def gates(drops: list[float], count: int, flips: float, draws: int, seed: int = 5) -> Shares:
    """Gates of tasks of `count` documents whose true drops are these."""
    generator, rules = np.random.default_rng(seed), policy(len(drops))
    words, by_rows = [], 0
    shares = [[(max(flips, drop) + drop) / 2, (max(flips, drop) - drop) / 2] for drop in drops]
    for _ in range(draws):
        drawn = [generator.multinomial(count, [*share, 1 - sum(share)])[:2].tolist() for share in shares]
        rows = {str(i): task(lost, gained, count) for i, (lost, gained) in enumerate(drawn)}
        mean = overall_row(BASE, rules, rows)
        assert mean is not None
        words.append(overall(decide([mean, *rows.values()], ALPHA)))
        by_rows += all((row.drop_high or 0) < 0.02 for row in rows.values())
    found = [words.count(word) / draws for word in ("PASS", "WARN", "FAIL")]
    return Shares(found[0], found[1], found[2], by_rows / draws)


def show(words: str, found: Shares) -> Shares:
    """Print a line."""
    print(
        f"{words:52} PASS {found.passed:6.1%} WARN {found.warned:6.1%} FAIL {found.failed:6.1%}, by rows PASS"
        f" {found.by_rows:6.1%}"
    )
    return found


@pytest.mark.slow
def test_twenty_tasks() -> None:
    unchanged = show("20 x 200, 2 % flips, unchanged", gates([0.0] * 20, 200, 0.02, 120))
    assert unchanged.passed > 0.9 and unchanged.by_rows < 0.05 and unchanged.failed == 0
    assert show("20 x 200, 2 % flips, a loss of 1 point", gates([MARGIN] * 20, 200, 0.02, 120)).exit_zero <= 0.085


@pytest.mark.slow
@pytest.mark.parametrize(("tasks", "count"), [(20, 100), (20, 300), (50, 100), (50, 300)])
def test_gates_of_many_tasks(tasks: int, count: int) -> None:
    name = f"{tasks} x {count}, 2 % flips"
    unchanged = show(f"{name}, unchanged", gates([0.0] * tasks, count, 0.02, 800))
    assert unchanged.passed >= (0.7 if tasks * count <= 2_000 else 0.97) and unchanged.failed <= 0.055
    even = show(f"{name}, every task loses 1 point", gates([MARGIN] * tasks, count, 0.02, 1_500))
    mixed = [0.02, 0.0] * (tasks // 2)
    uneven = show(f"{name}, every other task loses 2 points", gates(mixed, count, 0.02, 1_500))
    one = [MARGIN * tasks, *[0.0] * (tasks - 1)]
    single = show(f"{name}, one task loses all of it", gates(one, count, 0.02, 800))
    assert max(even.exit_zero, uneven.exit_zero, single.exit_zero) <= 0.055
    assert single.failed > 0.97


@pytest.mark.slow
@pytest.mark.parametrize("flips", [0.01, 0.05, 0.1])
def test_gates_with_other_shares_of_flips(flips: float) -> None:
    for tasks, count in ((20, 100), (50, 300)):
        name = f"{tasks} x {count}, {flips:.0%} flips"
        show(f"{name}, unchanged", gates([0.0] * tasks, count, flips, 500))
        assert show(f"{name}, a loss of 1 point", gates([MARGIN] * tasks, count, flips, 1_500)).exit_zero <= 0.06
