"""The Pareto front: what nothing else beats in both size and score."""

from __future__ import annotations

from collections.abc import Sequence


def front(sizes: Sequence[float], goods: Sequence[float]) -> list[int]:
    """Indices of the points that no other beats, by size: no other is as small and better, or smaller and as good.
    Points alike in both are all on it.

    sizes: smaller is better; goods: larger is better; both finite and of one length.
    """
    order = sorted(range(len(sizes)), key=lambda i: (sizes[i], -goods[i]))
    found: list[int] = []
    for i in order:
        last = found[-1] if found else None
        if last is None or goods[i] > goods[last] or (goods[i], sizes[i]) == (goods[last], sizes[last]):
            found.append(i)
    return found
