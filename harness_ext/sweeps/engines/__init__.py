"""Where the cells of a sweep run: `local`, `ray` or `slurm`; each is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from harness_ext.errors import UserError, nearest
from harness_ext.sweeps.engines.base import Job, SweepEngine

__all__ = ["ENGINES", "EngineOptions", "Job", "SweepEngine", "engine"]

ENGINES = ("local", "ray", "slurm")


@dataclass(frozen=True)
class EngineOptions:
    """What engines are told beyond their jobs. jobs: cells at once, for `local`. slurm: the sweep file's `slurm:`."""

    jobs: int | None = None
    slurm: Mapping[str, Any] = field(default_factory=dict)


def engine(name: str, options: EngineOptions | None = None) -> SweepEngine:
    """The engine of this name. Raises UserError for one that is unknown or not installed, and for unknown options."""
    options = options or EngineOptions()
    if name == "local":
        from harness_ext.sweeps.engines.local import LocalEngine

        return LocalEngine(options.jobs)
    if name == "ray":
        from harness_ext.sweeps.engines.ray import RayEngine

        return RayEngine(options.jobs)
    if name == "slurm":
        from harness_ext.sweeps.engines.slurm import SlurmEngine

        return SlurmEngine(options.slurm)
    raise UserError(f"--on {name}: no such engine; {nearest(name, ENGINES)}")
