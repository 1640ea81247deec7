"""At which levels the undecided cells of a board are tested, given how many comparisons it has.

After Benjamini-Hochberg over k comparisons, of which r others have a verdict, a cell has it too where its p-value is at
most `.05 (r + 1) / k`: the level if it alone gets more documents. If all u undecided cells that hope for the same
verdict get as many, four of five of them reach it together, and the level is larger: `.05 (r + .8 u) / k`. Better and
worse are each one half of a two-sided test.
"""

from __future__ import annotations

from typing import NamedTuple

from leaderboard.compare.needs import Levels
from leaderboard.statistics import POWER

SIGNIFICANCE = 0.05


class Verdicts(NamedTuple):
    """Of one kind: how many comparisons have one, and how many undecided ones hope for it."""

    reached: int
    hoping: int


def levels_alone(comparisons: int, same: Verdicts, different: Verdicts) -> Levels:
    """The one-sided levels if a single cell is to be decided."""
    return Levels(_alone(comparisons, same), _alone(comparisons, different) / 2)


def levels_together(comparisons: int, same: Verdicts, different: Verdicts) -> Levels:
    """The one-sided levels if all cells that hope for the same get as many documents."""
    return Levels(_together(comparisons, same), _together(comparisons, different) / 2)


def _alone(comparisons: int, verdicts: Verdicts) -> float:
    return SIGNIFICANCE * min(comparisons, verdicts.reached + 1) / comparisons


def _together(comparisons: int, verdicts: Verdicts) -> float:
    reached = SIGNIFICANCE * (verdicts.reached + POWER * verdicts.hoping) / comparisons
    return max(_alone(comparisons, verdicts), min(SIGNIFICANCE, reached))
