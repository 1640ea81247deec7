"""Watching folders: every run that appears under them is ingested when it is whole.

Run directories are renamed into place complete, so what is seen is whole; a results file of plain lm-eval may still be
growing, and is taken when it has stayed the same for one round. What a round could not store, because the database was
busy, the next one tries again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from leaderboard.errors import Busy
from leaderboard.ingest import IngestReport, ingest
from leaderboard.readers.discovery import Candidate, find_runs
from leaderboard.readers.file_stamps import FileState, state_of


class Watch:
    """The runs under some folders, ingested as they come. told: called with the report of each round that did
    something.
    """

    def __init__(
        self, paths: Sequence[Path], database: Path, told: Callable[[IngestReport], None], *, timeout_s: float = 30.0
    ) -> None:
        self._paths = list(paths)
        self._database = database
        self._told = told
        self._timeout_s = timeout_s
        self._done: dict[Path, FileState] = {}
        self._seen: dict[Path, FileState] = {}

    def round(self) -> None:
        """Look once, and ingest what is new or has changed and then stayed as it is. Raises what `ingest` raises,
        except `Busy`.
        """
        found = {
            item.path: stamp
            for path in self._paths
            for item in find_runs(path)
            if isinstance(item, Candidate) and (stamp := state_of(item))
        }
        settled = [
            path
            for path, stamp in found.items()
            if self._done.get(path) != stamp and (self._seen.get(path) == stamp or path.is_dir())
        ]
        self._seen = found
        if not settled:
            return
        try:
            report = ingest(settled, self._database, timeout_s=self._timeout_s)
        except Busy:
            return
        self._done.update({path: found[path] for path in settled})
        self._told(report)

    def run(self, every_s: float) -> None:
        """Look again and again, until interrupted."""
        while True:
            self.round()
            time.sleep(every_s)
