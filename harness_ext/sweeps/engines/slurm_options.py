"""What the sweep file's `slurm:` may say. Checked without submitit, and before anything is submitted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from harness_ext.errors import nearest
from leaderboard.readers.plain_yaml import shown

OPTIONS = ("account", "array_parallelism", "constraint", "cpus_per_task", "exclude", "mem_gb", "partition", "qos")
"""In sbatch's words; `array_parallelism` is how many tasks of one array run at once, `mem_gb` in GiB."""
SHARED = frozenset({"cpus_per_task", "mem_gb"})
"""Those that submitit has for all clusters; the others are named for Slurm there."""
_COUNTS = frozenset({"array_parallelism", "cpus_per_task", "mem_gb"})
_WORD = re.compile(r"[\w.,:@%+/=&|*!()\[\]-]{1,200}")  # no blank, quote or line break: it stands in a script


def slurm_mistakes(options: Mapping[str, Any]) -> list[str]:
    """What is wrong with the sweep file's `slurm:`, a sentence each."""
    wrong = []
    for name, value in options.items():
        if name not in OPTIONS:
            wrong.append(f"slurm.{shown(str(name))}: unknown key; {nearest(str(name), OPTIONS)}")
        elif name in _COUNTS and (type(value) is not int or value < 1):
            wrong.append(f"slurm.{name}: give a whole number from 1{_found(value)}")
        elif name not in _COUNTS and not (isinstance(value, str) and _WORD.fullmatch(value)):
            wrong.append(f"slurm.{name}: give one word, as sbatch takes it{_found(value)}")
    return wrong


def _found(value: Any) -> str:
    return f" (found {str(value).lower() if isinstance(value, bool) else shown(repr(value))})"
