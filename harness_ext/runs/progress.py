"""What a run says while it works: progress bars on a terminal, plain lines elsewhere, nothing but results when asked to
be quiet.

Everything here goes to standard error; standard output is for the table at the end.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from harness_ext.progress import Progress

if TYPE_CHECKING:
    from tqdm import tqdm

    from harness_ext.recipe.recipe import Recipe
    from harness_ext.storage.rundir import FinishedRun


SECONDS_BETWEEN_LINES = 60.0


class _Bar(Progress):
    """Progress as a bar."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None

    def start(self, what: str, total: int) -> None:
        """See `Progress`."""
        from tqdm import tqdm

        self.stop()
        self._bar = tqdm(total=total, desc=what, file=sys.stderr, leave=False)

    def advance(self, units: int = 1) -> None:
        """See `Progress`."""
        if self._bar is not None:
            self._bar.update(units)

    def stop(self) -> None:
        """See `Progress`."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class _Lines(Progress):
    """Progress where no bar can be drawn: for what takes long, now and then a line with the time left."""

    def __init__(self) -> None:
        self._what, self._total, self._done = "", 0, 0
        self._started = self._told = 0.0

    def start(self, what: str, total: int) -> None:
        """See `Progress`."""
        self._what, self._total, self._done = what, total, 0
        self._started = self._told = time.monotonic()

    def advance(self, units: int = 1) -> None:
        """See `Progress`."""
        self._done += units
        now = time.monotonic()
        if now - self._told < SECONDS_BETWEEN_LINES or self._done >= self._total:
            return
        self._told = now
        left = (now - self._started) / self._done * (self._total - self._done)
        print(
            f"{self._what}: {self._done} of {self._total} done, about {left / 60:.0f} min left",
            file=sys.stderr,
            flush=True,
        )


class ProgressReport:
    """The voice of a run. quiet: say nothing. bars: draw progress bars (a terminal)."""

    def __init__(self, *, quiet: bool, bars: bool) -> None:
        self.quiet = quiet
        self.bars = bars and not quiet
        self.progress: Progress = _Bar() if self.bars else Progress() if quiet else _Lines()

    def line(self, text: str) -> None:
        """One line of news."""
        if not self.quiet:
            self.progress.stop()
            print(text, file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        """Something the user must know, quiet or not."""
        self.progress.stop()
        print(f"warning: {text}", file=sys.stderr, flush=True)

    def not_run(self, what: str, reason: str) -> None:
        """A variant that was asked for is left out."""
        self.line(f"{what}: not run, since {reason}")

    @contextmanager
    def stage(self, what: str) -> Iterator[None]:
        """Announce a stage where no bar does."""
        if not self.bars:
            self.line(f"{what} ...")
        yield

    def finished(self, recipe: Recipe, run: FinishedRun, seconds: float) -> None:
        """The one line about a variant that is done."""
        receipt = run.receipt
        if run.failed:
            failure = receipt["failure"]
            self.line(f"{recipe.label}: failed after {seconds:.1f} s: {failure['reason']}")
            return
        totals = receipt["totals"]
        kept = totals["parameters_after"] / totals["parameters_before"]
        what = (
            "nothing edited"
            if recipe.is_baseline or receipt["weights"]["digest_before"] == receipt["weights"]["digest_after"]
            else (
                f"{totals['matrices_edited']} {'matrix' if totals['matrices_edited'] == 1 else 'matrices'} edited,"
                f" {kept:.1%} of the parameters kept if stored as factors"
            )
        )
        what += _speed(totals) if any(matrix.get("stored") == "factors" for matrix in receipt["matrices"]) else ""
        calibrated = sum(drawn["samples"] for drawn in receipt["calibration"])
        learned = f", {calibrated} calibration documents" if calibrated else ""
        self.line(f"{recipe.label}: done in {seconds:.1f} s; {what}{learned}")
        for warning in receipt["warnings"]:
            self.line(f"{recipe.label}: {warning}")


def _speed(totals: Mapping[str, Any]) -> str:
    """How fast low-rank layers are, beside the baseline where this process has scored that too."""
    before, after = totals.get("tokens_per_second_before"), totals.get("tokens_per_second_after")
    if not after:
        return ""
    return f", {after:,.0f} tokens/s" + (f" ({after / before:.2f}x the baseline's)" if before else "")


def _not_about_metadata(entry: logging.LogRecord) -> bool:
    """lm-eval tells of `--metadata` for every task whose documents are made by code, which all of ours are."""
    return "Custom kwargs can be passed" not in entry.getMessage()


def report_for(verbosity: str | None) -> ProgressReport:
    """The report that fits the terminal and `--verbosity`; also tells the libraries how much to say. Called before they
    are loaded, since some read it only once.
    """
    quiet = (verbosity or "").upper() in ("ERROR", "CRITICAL")
    bars = sys.stderr.isatty() and not quiet
    if not bars:
        os.environ.setdefault("TQDM_DISABLE", "1")
    if quiet:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # One run of lm-eval says some twenty lines at its default level; here there is one for each variant.
    logging.getLogger("lm_eval").setLevel((verbosity or "WARNING").upper())
    logging.getLogger("lm_eval.api.task").addFilter(_not_about_metadata)
    return ProgressReport(quiet=quiet, bars=bars)
