"""Truncations of matrices of the size that language models have, against `torch.linalg.svd` for each of them.

Everything is timed in one process with as many threads as there are cores, so that the ratios hold on a noisy machine.
`torch.linalg.svd` takes the same time whatever the rank, so it is run once for each shape, and counted
as often as a plain loop would run it. Ours includes the digest, the decomposition and its check, and the factors; where
it says so, the dense product too, on both sides.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from torch import Tensor

    from harness_ext.linalg.decompose import Decomposer

pytestmark = pytest.mark.benchmark

RANKS = (41, 205, 410, 819, 1229, 1638, 2048, 2458, 2867, 3277)
SMALL, HALF = RANKS[0], RANKS[6]


class Row(NamedTuple):
    """Seconds of a plain loop and of ours."""

    name: str
    theirs: float
    ours: float
    remark: str

    def __str__(self) -> str:
        return (
            f"  {self.name:<40}{self.theirs:8.1f} s {self.ours:8.2f} s {self.theirs / self.ours:7.1f}x   {self.remark}"
        )


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def cut(factors: Decomposer, matrix: Tensor, ranks: Sequence[int], *, multiplied: bool = False) -> set[str | None]:
    """Cut at each rank, and multiply out if told to; gives the decompositions that were used."""
    truncation = factors.truncation(matrix)
    edits = (truncation.cut(lambda singular_values, rank=rank: rank) for rank in ranks)
    return {edit.decomposition for edit in edits if not multiplied or edit.weight().shape == matrix.shape}


def measure(shape: tuple[int, int], folder: Path) -> list[Row]:
    import torch

    from harness_ext.linalg import randomized
    from harness_ext.linalg.decompose import GRAM_FP32, GRAM_FP64, Decomposer

    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    name = " x ".join(map(str, shape))
    started = time.perf_counter()
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    theirs = time.perf_counter() - started
    products = seconds(lambda: [(u[:, :rank] * s[:rank]) @ vh[:rank] for rank in RANKS])

    def row(what: str, times: int, work: Callable[[], object], remark: str, besides: float = 0.0) -> Row:
        return Row(f"{name}, {what}", times * theirs + besides, seconds(work), remark)

    used: list[set[str | None]] = []
    rows = [
        row("one rank", 1, lambda: used.append(cut(Decomposer(), matrix, [HALF])), "in fp32"),
        row("ten ranks", 10, lambda: used.append(cut(Decomposer(folder), matrix, RANKS)), "in fp32, and kept on disk"),
        row(
            "ten ranks, multiplied out",
            10,
            lambda: used.append(cut(Decomposer(), matrix, RANKS, multiplied=True)),
            "in fp32, products on both sides",
            products,
        ),
        row("ten ranks again", 10, lambda: used.append(cut(Decomposer(folder), matrix, RANKS)), "read from disk"),
    ]
    assert used == [{GRAM_FP32}] * 4
    found = []
    rows.append(
        row(
            "a small rank at random",
            1,
            lambda: found.append(randomized.truncate(matrix, SMALL, torch.Generator().manual_seed(0)).weight()),
            "",
        )
    )
    error = float((matrix - found[0]).double().norm() / (s[SMALL:].double() ** 2).sum().sqrt())
    rows[-1] = rows[-1]._replace(remark=f"rank {SMALL}, error {error:.5f} of the least")
    assert error <= 1.01
    falling = (u / (1 + torch.arange(len(s)))) @ vh
    rows.append(
        row(
            "one rank, spectrum 1/i",
            1,
            lambda: used.append(cut(Decomposer(), falling, [HALF])),
            "in fp32, which does not suffice, then in fp64",
        )
    )
    assert used[-1] == {GRAM_FP64}
    return rows


def test_truncations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    cores = os.cpu_count() or 1
    # Before the numerical libraries spread over all cores; whoever else is at work makes their threads wait for each
    # other.
    quiet = os.getloadavg()[0] < cores / 2
    before = torch.get_num_threads()
    torch.set_num_threads(cores)
    try:
        rows = [row for shape in ((4096, 4096), (4096, 11008)) for row in measure(shape, tmp_path)]
        with capsys.disabled():
            print(
                f"\n\n{torch.get_num_threads()} threads on {cores} cores, {'quiet' if quiet else 'others at work'};"
                f" load average at the end {os.getloadavg()[0]:.1f}"
            )
            print(*rows, sep="\n")
    finally:
        torch.set_num_threads(before)
    ratios = {row.name: row.theirs / row.ours for row in rows}
    assert ratios["4096 x 4096, a small rank at random"] > 8
    assert ratios["4096 x 11008, one rank"] > 3
    if quiet:
        assert ratios["4096 x 4096, one rank"] > 1.8
        assert ratios["4096 x 4096, ten ranks"] > 15
