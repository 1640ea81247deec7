"""What a run says while it works: what it does and has done, and how far it is; nothing but results when asked to be
quiet.

Everything here goes to standard error; standard output is for the table at the end.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from harness_ext.progress import Progress, ProgressBar, progress_for

if TYPE_CHECKING:
    from harness_ext.recipe.recipe import Recipe
    from harness_ext.storage.rundir import FinishedRun


class ProgressReport:
    """The voice of a run. quiet: say nothing but warnings. progress: for work that is long. left_out: what was asked
    for and not run, with the reason.
    """

    def __init__(self, *, quiet: bool, progress: Progress | None = None) -> None:
        self.quiet = quiet
        self.progress = progress or progress_for(quiet=quiet)
        self.left_out: list[str] = []

    def line(self, text: str) -> None:
        """One line of news."""
        if not self.quiet:
            self.progress.say(text)

    def warn(self, text: str) -> None:
        """Something the user must know, quiet or not."""
        self.progress.say(f"warning: {text}")

    def not_run(self, what: str, reason: str) -> None:
        """A variant that was asked for is left out."""
        self.left_out.append(f"{what}: not run, since {reason}")
        self.line(self.left_out[-1])

    @contextmanager
    def stage(self, what: str) -> Iterator[None]:
        """A stage of work that is not counted; announced where nothing is drawn."""
        if not isinstance(self.progress, ProgressBar):
            self.line(f"{what} ...")
        with self.progress.stage(what):
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
        lost = any("rows_kept" in matrix or "columns_kept" in matrix for matrix in receipt["matrices"])
        rows = any("counted_as" in matrix for matrix in receipt["matrices"])
        stored = "without what was taken away" if lost else f"if stored as {'pivot rows' if rows else 'factors'}"
        what = (
            "nothing edited"
            if recipe.is_baseline or receipt["weights"]["digest_before"] == receipt["weights"]["digest_after"]
            else (
                f"{totals['matrices_edited']} {'matrix' if totals['matrices_edited'] == 1 else 'matrices'} edited,"
                f" {kept:.1%} of the parameters kept {stored}"
            )
        )
        what += _speed(totals) if any(matrix.get("stored") == "factors" for matrix in receipt["matrices"]) else ""
        # Steps may learn from the same ones.
        calibrated = len({document for drawn in receipt["calibration"] for document in drawn["documents"]})
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
    # Ours tells how far scoring is; lm-eval's bars would be drawn across it, and into logs.
    os.environ.setdefault("TQDM_DISABLE", "1")
    if quiet:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # One run of lm-eval says some twenty lines at its default level; here there is one for each variant.
    logging.getLogger("lm_eval").setLevel((verbosity or "WARNING").upper())
    logging.getLogger("lm_eval.api.task").addFilter(_not_about_metadata)
    return ProgressReport(quiet=quiet)
