"""Documents that moved by more than a comparison counts for, and what may not be said while there may be many of them.

The mean of clipped differences counts a document that collapsed for the bound and no more, and documents that gained
may pay for it. So the documents beyond the bound are counted, and while their share in all documents may be 5 % or more
(exact one-sided 95 % limit), no recipe is called the same or better, and none passes a gate. It only takes words away.
"""

from __future__ import annotations

import json
import math
from typing import NamedTuple

import numpy as np

from leaderboard import statistics as stats

_MANY = 0.5


class Clipping(NamedTuple):
    """bound: by how much a document counts at most, in the metric's units. lost, gained: documents beyond it. limit:
    of the share of independent documents (or clusters) that are lost. plain_improvement: with every document counted
    whole, above zero where that is good; plain_low, plain_high: its t interval (95 %), which bears no verdict of the
    board, since few documents may make it; None where it has none.
    """

    bound: float
    lost: int
    gained: int
    limit: float
    plain_improvement: float
    plain_low: float | None = None
    plain_high: float | None = None

    def note(self, mean: float, delta: float, most: str | None = None, way: str = "") -> str:
        """What interval and verdict claim. mean: the change with no document counted for more than the bound, delta:
        the plain one, both recipe minus baseline. most: the bound in words. way: which way is good, where not up: then
        the numbers have another sign than improvements.
        """
        mean, delta = mean + 0.0, delta + 0.0  # negative zero is zero
        said = (
            f"interval and verdict: mean change {mean:+.3g}{way and f' ({way})'}, no document counted for more than"
            f" {most or f'{self.bound:.3g}'}; the plain mean change is {delta:+.3g}"
        )
        # an upper limit near all of them says nothing
        few = (
            f"; at most {100 * self.limit:.1f} % of all documents get far worse (95 % limit)"
            if self.limit < _MANY
            else ""
        )
        beyond = f"; {self.lost:,} lost more than that and {self.gained:,} gained more"
        return said + few + (beyond if self.lost or self.gained else "")

    def doubt(self, count: int | None, margin: float | None) -> str | None:
        """Why a row of `count` documents may be called neither the same nor better, nor pass; None where nothing stands
        in the way. margin: how much worse the plain mean may be, 0 for *better*.
        """
        return self._too_many_ruined(count) or self._plainly_worse(margin)

    def _too_many_ruined(self, count: int | None) -> str | None:
        if count is None or self.limit < stats.COLLAPSED_SHARE:
            return None
        seen, but = ("none", "but") if self.lost == 0 else (f"{self.lost:,}", "so")
        if self.lost == 0:
            hint = f". While none does, {stats.documents_without_collapse(0)} independent documents are enough"
        else:
            hopeless = stats.documents_for_few_collapses(self.lost, count) is None
            hint = ": while so many do, no number of documents shows it" if hopeless else ""
        most = f"{100 * self.limit:.0f} %"
        return (
            f"{seen} of {count:,} documents got far worse, {but} up to {most} of all may (95 % limit):"
            f" neither same nor better can be said before that is less than {100 * stats.COLLAPSED_SHARE:.0f} %{hint}"
        )

    def _plainly_worse(self, margin: float | None) -> str | None:
        """A loss that is seen, and that what documents count for at most hides."""
        worse = -self.plain_improvement
        if margin is None or worse <= 0 or worse < margin:
            return None
        beyond = f", the margin of {margin:.3g} or more" if margin else ""
        return (
            f"the plain mean is worse by {worse:.3g}{beyond}: documents that lost more than they count for cause it,"
            " and neither same nor better can be said"
        )


def clipping(lost: np.ndarray, gained: np.ndarray, bound: float, plain: float, clusters: np.ndarray | None) -> Clipping:
    """From the documents `[n]` beyond the bound. A cluster is lost that holds a lost document. plain: the plain
    improvement.
    """
    units = _units(lost, clusters)
    limit = stats.share_limit(int(np.sum(units)), len(units))
    return Clipping(bound, int(np.sum(lost)), int(np.sum(gained)), limit, plain)


def documents_enough(lost: np.ndarray, clusters: np.ndarray | None) -> int | None:
    """Documents that show in four of five cases that few collapse; 0 where these do, None where no number does."""
    units = _units(lost, clusters)
    seen, count = int(np.sum(units)), len(units)
    if stats.share_limit(seen, count) < stats.COLLAPSED_SHARE:
        return 0
    needed = stats.documents_for_few_collapses(seen, count)
    return None if needed is None else math.ceil(needed * len(lost) / count)


def _units(lost: np.ndarray, clusters: np.ndarray | None) -> np.ndarray:
    return lost if clusters is None else stats.cluster_sums(lost.astype(float), clusters) > 0


def to_json(found: Clipping | None) -> str | None:
    """For the store."""
    return None if found is None else json.dumps(found, separators=(",", ":"))


def from_json(text: str | None) -> Clipping | None:
    """From the store."""
    return Clipping(*json.loads(text)) if text else None
