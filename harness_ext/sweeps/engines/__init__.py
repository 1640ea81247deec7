"""Where the cells of a sweep run: `local`, `ray` or `slurm`; each is imported when it is asked for."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from harness_ext.errors import UserError, nearest
from harness_ext.sweeps.engines.base import Job, SweepEngine, installing

__all__ = ["ENGINES", "EngineOptions", "Job", "SweepEngine", "absence", "engine"]

ENGINES = ("local", "ray", "slurm")
_PACKAGES = {"ray": "ray", "slurm": "submitit"}
_PROGRAMS = {"slurm": ("sbatch", "srun", "squeue", "scancel")}


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


def absence(name: str) -> str | None:
    """What an engine needs and this machine lacks, a sentence with the way out; None where nothing is missing.

    Looked for and not imported; whether a cluster answers is for `engine` to find out.
    """
    package, lacking = _PACKAGES.get(name), []
    if package is not None and find_spec(package) is None:
        lacking.append(installing(package, name))
    programs = [program for program in _PROGRAMS.get(name, ()) if shutil.which(program) is None]
    if programs:
        lacking.append(f"the PATH has no {', '.join(programs)}: start the sweep where it has, as on a login node")
    return f"{'; '.join(lacking)}, or use --on local" if lacking else None
