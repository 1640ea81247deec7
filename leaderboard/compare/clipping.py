"""Documents that moved by more than a comparison counts for, and what may not be said while there may be many of them.

The mean of clipped differences counts a document that collapsed for the bound and no more, and documents that gained
may pay for it. So the documents beyond the bound are counted, and while their share in all documents may be 5 % or more
(exact one-sided 95 % limit), no recipe is called the same or better, and none passes a gate. It only takes words away.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from leaderboard import statistics as stats
from leaderboard.compare.effect import Effect


class Collapses(NamedTuple):
    """bound: by how much a document counts at most, in the metric's units. lost, gained: documents beyond it. limit:
    of the share of independent documents (or clusters) that are lost. enough: documents that bring it low enough
    in four of five cases, None where no number does.
    """

    bound: float
    lost: int
    gained: int
    limit: float
    enough: int | None


def collapses(lost: np.ndarray, gained: np.ndarray, bound: float, clusters: np.ndarray | None = None) -> Collapses:
    """From the documents `[n]` beyond the bound. A cluster is lost that holds a lost document."""
    units = lost if clusters is None else stats.cluster_sums(lost.astype(float), clusters) > 0
    seen, count = int(np.sum(units)), len(units)
    units_needed = stats.documents_for_few_collapses(seen, count)
    enough = None if units_needed is None else math.ceil(units_needed * len(lost) / count)
    return Collapses(bound, int(np.sum(lost)), int(np.sum(gained)), stats.collapse_limit(seen, count), enough)


def with_collapses(effect: Effect, found: Collapses, mean: float, most: str | None = None) -> Effect:
    """The effect with the documents beyond its bound, and the sentence about what it claims. `mean`: the change with no
    document counted for more, recipe minus baseline. `most`: the bound in words.
    """
    bound = most or f"{found.bound:.3g}"
    note = (
        f"interval and verdict: mean change {mean:+.3g}, no document counted for more than {bound}; the plain mean"
        f" change is {effect.delta:+.3g}"
    )
    note += f"; at most {found.limit:.1%} of all documents collapse (95 % limit)"
    if found.lost or found.gained:
        note += f"; {found.lost:,} lost more than that and {found.gained:,} gained more"
    short = found.limit >= stats.COLLAPSED_SHARE
    return replace(
        effect,
        notes=(note, *effect.notes),
        clipped_at=found.bound,
        far_lost=found.lost,
        far_gained=found.gained,
        far_lost_limit=found.limit,
        needs=effect.needs and effect.needs._replace(enough=found.enough if short else 0),
    )


def contradicted(plain_improvement: float | None, margin: float | None) -> str | None:
    """Why a row may not be called the same or better, nor pass, where what documents count for at most hides a loss
    that is seen: the plain mean is worse by the margin (for *better*, by anything). It only takes words away.
    """
    if plain_improvement is None or margin is None or plain_improvement >= 0 or -plain_improvement < margin:
        return None
    beyond = f", the margin of {margin:.3g} or more" if margin else ""
    return (
        f"the plain mean is worse by {-plain_improvement:.3g}{beyond}: documents that lost more than they count for"
        " cause it, and neither same nor better can be said"
    )


def withheld(far_lost: int | None, limit: float | None, count: int | None) -> str | None:
    """Why a row may be called neither the same nor better, nor pass; None where nothing stands in the way."""
    if far_lost is None or limit is None or count is None or limit < stats.COLLAPSED_SHARE:
        return None
    seen, but = ("none", "but") if far_lost == 0 else (f"{far_lost:,}", "so")
    most, enough = f"{stats.COLLAPSED_SHARE:.0%}", stats.documents_without_collapse(0)
    if far_lost == 0:
        hint = f". Without a collapse {enough} independent documents are enough"
    else:
        hopeless = stats.documents_for_few_collapses(far_lost, count) is None
        hint = ": while so many collapse, no number of documents shows it" if hopeless else ""
    return (
        f"{seen} of {count:,} documents collapsed, {but} up to {limit:.0%} of all may (95 % limit): neither same nor"
        f" better can be said before that is less than {most}{hint}"
    )
