"""Puts the folders that live beside the packages into the wheel.

`tasks/` becomes `harness_ext/tasks` and `results/published/` becomes `leaderboard/published`, so that nothing named
`tasks` or `results` lands at the top of site-packages. An editable install needs neither: it reads them from the
checkout.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDERS = {"tasks": "harness_ext/tasks", "results/published": "leaderboard/published"}


class CustomBuildHook(BuildHookInterface):
    """Adds `FOLDERS` to a standard wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version != "standard":
            return
        for source, target in FOLDERS.items():
            for path in sorted((Path(self.root) / source).rglob("*")):
                if path.is_file() and "__pycache__" not in path.parts:
                    inside = path.relative_to(Path(self.root) / source).as_posix()
                    build_data["force_include"][str(path)] = f"{target}/{inside}"
