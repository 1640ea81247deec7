"""The copy of a command's runs in a remote place: what is there already is fetched, what is finished is uploaded."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from harness_ext.errors import UserError
from harness_ext.runs.progress import ProgressReport
from harness_ext.storage.remote import RemoteResults, Untaken
from harness_ext.storage.rundir import FinishedRun


class RemoteCopy:
    """Runs of one model. remote: None where results stay here, and nothing is done. folder: of the model's runs, in the
    local results folder.
    """

    def __init__(self, remote: RemoteResults | None, folder: Path, report: ProgressReport) -> None:
        self._remote = remote
        self._folder = folder
        self._report = report
        self._unsent: list[str] = []

    def begin(self) -> None:
        """Find out before anything is computed that nothing can be uploaded. Raises UserError."""
        if self._remote is not None:
            self._remote.check_writable()

    def bring(self, *spec_ids: str) -> None:
        """Fetch the runs of what was asked, by the ids in their names. Raises UserError."""
        parts = {f"-{spec_id[:10]}" for spec_id in spec_ids}
        for name in self._names:
            if self._remote is None or not any(part in name for part in parts):
                continue
            try:
                self._remote.bring(self._folder.name, name, self._folder.parent)
            except Untaken as reason:
                self._report.warn(f"{self._remote.url}: {name} is not taken, since {reason}")

    def send(self, run: FinishedRun) -> None:
        """Upload a run, failed ones as well; what does not work is told by `end`, so that what is still to be scored is
        not lost by it.
        """
        if self._remote is None:
            return
        try:
            self._remote.send(self._folder.name, run.path)
        except UserError as error:
            self._unsent.append(f"{run.path.name}: {error}")

    def end(self) -> None:
        """Raises UserError where runs could not be uploaded."""
        if self._unsent:
            told = "\n".join(self._unsent)
            raise UserError(f"{told}\nthese runs are safe in {self._folder}: the same command again uploads them")

    @cached_property
    def _names(self) -> list[str]:
        return self._remote.names(self._folder.name) if self._remote is not None else []
