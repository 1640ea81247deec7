"""Where a run was made: machine, GPU, engine, and the sweep that asked for it, as far as its receipt says.

Notable choices:
- A place is an engine and the names of GPUs, each once and in order. How many there were, the host and the versions may
  differ within one place.
- A run that used no GPU was made on a place of its own, `cpu` or the kind of its device, such as `mps`. One that does
  not say, or that says no GPU and a device that is one (weights on disk), was made on a GPU that is not known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from leaderboard.readers.receipt import ReceiptRanOn
from leaderboard.readers.safe_json import clean

ORDINARY = "hf"
"""The engine of runs that no receipt says an engine of."""


class ComputePlace(NamedTuple):
    """What decides where a run was made; None where that is not known. gpu: names, or the kind of device that is none;
    see the module's notes.
    """

    engine: str | None = None
    gpu: str | None = None

    @property
    def is_told(self) -> bool:
        """Whether it says more than that an ordinary engine was used, on what is not known."""
        return self.gpu is not None or self.engine not in (None, ORDINARY)


class RanOn(NamedTuple):
    """By the columns of the store. gpu: the names of GPUs, each once, None on a CPU as well; gpu_count: of those used,
    0 on a CPU. None where it is not known.
    """

    host: str | None = None
    gpu: str | None = None
    gpu_count: int | None = None
    driver: str | None = None
    ranks: int | None = None
    engine: str | None = None
    engine_version: str | None = None
    sweep: str | None = None
    sweep_cell: str | None = None

    def in_words(self) -> str:
        """`node7, 2 x NVIDIA H100 (driver 570.1), vllm 0.11.0, sweep low-rank, cell 3`; empty where none is known."""
        many = f"{self.gpu_count} x " if self.gpu_count and self.gpu_count > 1 else ""
        driver = f" (driver {self.driver})" if self.driver else ""
        known = (
            self.host,
            f"{many}{self.gpu}{driver}" if self.gpu else "no GPU" if self.gpu_count == 0 else None,
            f"{self.ranks} ranks" if self.ranks and self.ranks > 1 else None,
            " ".join(filter(None, [self.engine, self.engine_version])),
            f"sweep {self.sweep}" if self.sweep else None,
            f"cell {self.sweep_cell}" if self.sweep_cell else None,
        )
        return ", ".join(filter(None, known))

    @property
    def place(self) -> ComputePlace:
        """Engine and GPU as the ids of runs have them: of a CPU nothing, so that ids of before stay."""
        return ComputePlace(self.engine, self.gpu)


NOWHERE = RanOn()


def sql_gpu(run: str) -> str:
    """The GPU of a row of `runs` as that of a `ComputePlace`, as an SQL expression. run: the row's name there."""
    kind = f"coalesce(split_part({run}.device, ':', 1), 'cpu')"
    return f"CASE WHEN {run}.gpu_count = 0 THEN nullif({kind}, 'cuda') ELSE {run}.gpu END"


def gpu_of(names: Sequence[str]) -> str | None:
    """The names of GPUs as one, each once; None where there are none."""
    return ", ".join(sorted({clean(name) for name in names})) or None


def ran_on_of(said: ReceiptRanOn | None) -> RanOn:
    """What a receipt says, as it is stored."""
    if said is None:
        return NOWHERE
    texts = (said.host, said.driver, said.engine, said.engine_version, said.sweep, said.cell)
    host, driver, engine, version, sweep, cell = (text and clean(text) for text in texts)
    gpus = list(said.gpus)
    return RanOn(host, gpu_of(gpus), len(gpus), driver, said.ranks, engine, version, sweep, cell)
