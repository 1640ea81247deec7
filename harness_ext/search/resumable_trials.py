"""Trials as the resume state keeps them, so that a killed search goes on where it stopped, with the same trials."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from harness_ext.search.trials import Trial, finite

if TYPE_CHECKING:
    from harness_ext.storage.resume import ResumeState


class MadeTrials(NamedTuple):
    """Trials that were made together. passes, seconds: what they took."""

    trials: list[Trial]
    passes: float
    seconds: float


def trial_key(asked: Any) -> str:
    """What is the same of the same trials in every process. asked: what tells them from others, as JSON has it."""
    return json.dumps(asked, sort_keys=True)


class ResumableTrials:
    """The trials of one search in a resume state; nothing is kept or found where there is none."""

    def __init__(self, resume: ResumeState | None) -> None:
        self._resume = resume
        self._known = {row["key"]: row for row in resume.rows("trials")} if resume is not None else {}

    def made(self, key: str) -> MadeTrials | None:
        """What an earlier process made of these; None where it did not."""
        row = self._known.get(key)
        if row is None:
            return None
        return MadeTrials([_read(one) for one in row["trials"]], row["passes"], row["seconds"])

    def keep(self, key: str, made: MadeTrials) -> None:
        """Write down what was made now."""
        if self._resume is None:
            return
        trials = [
            {"setting": trial.setting, "right": trial.right, "loss": finite(trial.loss)}
            | ({} if trial.divergence is None else {"divergence": finite(trial.divergence)})
            for trial in made.trials
        ]
        self._resume.append("trials", {"key": key, "trials": trials, "passes": made.passes, "seconds": made.seconds})


def _read(row: Mapping[str, Any]) -> Trial:
    apart = _number(row["divergence"]) if "divergence" in row else None
    return Trial(row["setting"], row["right"], _number(row["loss"]), apart)


def _number(stored: float | None) -> float:
    """JSON has no number that is not finite."""
    return math.nan if stored is None else stored
