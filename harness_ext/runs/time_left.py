"""How long a command will still take: every variant is scored as long as the baseline was, and learns as long as its
passes over its documents take at the speed of that scoring, corrected by how long those took that are done. Nothing is
measured for it; what is said before the first recipe that learns is rough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from harness_ext.editing.plan import TOKENS, plan_of_loaded
from harness_ext.editing.plan_workload import documents_of, passes_of
from harness_ext.errors import UserError
from harness_ext.recipe.recipe import Recipe

if TYPE_CHECKING:
    from harness_ext.model.checkpoint import Checkpoint

_BACKWARD = 2
"""Forward passes that take as long as a backward pass."""
_SCORED = 2
"""Times that the control of a search scores its documents at least: as the model is, and as it becomes."""


def learning_tokens(recipe: Recipe, checkpoint: Checkpoint) -> float:
    """Tokens that all passes of a recipe over its documents have, statistics counted as passes. checkpoint: as
    `as_loaded` gives it.
    """
    planned, total = plan_of_loaded(recipe, checkpoint), 0.0
    for number, step in enumerate(recipe.steps):
        passes = passes_of(planned, number, step)
        times = passes.forward + _BACKWARD * passes.backward + passes.gathering
        total += times * documents_of(step) * TOKENS
    return total


def expected_work(recipes: Iterable[Recipe], controls: Iterable[str], checkpoint: Checkpoint) -> dict[str, float]:
    """The tokens of every variant of a command but the baseline, by label, in order."""
    work: dict[str, float] = {}
    for recipe in recipes:
        tokens = 0.0
        with suppress(UserError):  # the variant will say what is wrong
            tokens = learning_tokens(recipe, checkpoint)
        searched = sum(_SCORED * documents_of(step) * TOKENS for step in recipe.steps if step.is_search)
        work |= {recipe.label: tokens} | {f"{recipe.label}+{name}": float(searched) for name in controls}
    return work


class TimeLeft:
    """What is left of a command. work: the tokens that each variant learns from, by label, in order, without the
    baseline. clock: seconds that only go forward.
    """

    def __init__(self, work: Mapping[str, float], clock: Callable[[], float]) -> None:
        self._waiting, self._clock, self._began = dict(work), clock, clock()
        self._scoring = self._speed = 0.0
        self._seconds = self._tokens = 0.0

    def scored(self, receipt: Mapping[str, Any]) -> None:
        """The baseline is done, and left this receipt."""
        speeds = [one["tokens_per_second"] for one in receipt.get("speed") or () if one["phase"] != "decode"]
        self._scoring, self._speed = float(receipt["seconds"]["evaluate"]), float(next(iter(speeds), 0))
        self._began = self._clock()

    def finished(self, label: str, *, reused: bool) -> None:
        """A variant is done; those before it that are not will never be."""
        spent, self._began = self._clock() - self._began, self._clock()
        if label not in self._waiting:
            return
        for other in list(self._waiting):
            tokens = self._waiting.pop(other)
            if other == label:
                break
        if tokens and not reused:
            self._seconds += max(0.0, spent - self._scoring)
            self._tokens += tokens

    def seconds(self) -> float | None:
        """Expected from now on; None where the baseline did not tell."""
        if not self._scoring or not self._speed:
            return None
        each, spent = self._seconds / self._tokens if self._tokens else 1 / self._speed, self._clock() - self._began
        if running := next(iter(self._waiting.values()), 0.0):
            # What takes longer than expected already is news of those to come.
            each = max(each, (spent - self._scoring) / running)
        expected = [self._scoring + each * tokens for tokens in self._waiting.values()]
        return sum(expected) - min(spent, sum(expected[:1]))
