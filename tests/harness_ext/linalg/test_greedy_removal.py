"""Greedy removal of units against inverses and refits made anew for every unit, in numpy."""

from __future__ import annotations

import numpy
import pytest
import torch

from harness_ext.linalg import greedy_removal
from harness_ext.linalg.greedy_removal import by_price


def made(rows: int, units: int, seed: int) -> tuple[numpy.ndarray, numpy.ndarray]:
    draw = numpy.random.default_rng(seed)
    hidden = (numpy.eye(units) + draw.standard_normal((units, units)) / 4) @ draw.standard_normal((units, 4 * units))
    return draw.standard_normal((rows, units)), hidden @ hidden.T / (4 * units) + 1e-2 * numpy.eye(units)


def reference(weight: numpy.ndarray, moment: numpy.ndarray, count: int) -> list[int]:
    """Those removed, the last first: each the least of `|W'_i|^2 / K_ii` among those left, both from their formulas."""
    left, removed = list(range(len(moment))), []
    while len(left) > count:
        inverse = numpy.linalg.inv(moment[numpy.ix_(left, left)])
        prices = numpy.square(weight @ moment[:, left] @ inverse).sum(0) / inverse.diagonal()
        removed.append(left.pop(int(prices.argmin())))
    return removed[::-1]


@pytest.mark.parametrize("waiting", [1, 7, 64])
@pytest.mark.parametrize("count", [1, 40, 89, 90])
def test_units_go_in_the_order_of_their_exact_prices(monkeypatch: pytest.MonkeyPatch, waiting: int, count: int) -> None:
    """However many removals wait until they are subtracted."""
    monkeypatch.setattr(greedy_removal, "_WAITING", waiting)
    weight, moment = made(5, 90, seed=count)
    order = by_price(torch.tensor(weight), torch.tensor(moment), count).tolist()
    assert sorted(order) == list(range(90))
    assert order[count:] == reference(weight, moment, count)


def test_units_that_repeat_others_go_first() -> None:
    """A copy of another costs nothing but the ridge, whatever it weighs; then its twin costs as much as any."""
    weight, moment = made(4, 12, seed=3)
    doubled = numpy.block([[moment, moment], [moment, moment]]) + 1e-9 * numpy.eye(24)
    order = by_price(torch.tensor(numpy.hstack([weight, 100 * weight])), torch.tensor(doubled), 12).tolist()
    assert {unit % 12 for unit in order[:12]} == set(range(12))
