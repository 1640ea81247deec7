"""How long a command will still take: every variant is scored as long as the baseline was, and before that learns and
decomposes matrices, at the speed of that scoring, corrected by how long those took that are done. Nothing is measured
for it: it may be off by a factor of two, and is told as roughly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from harness_ext.editing.plan import TOKENS, Plan, plan_of_loaded
from harness_ext.editing.plan_estimate import edit_of
from harness_ext.editing.plan_measurement import decomposes
from harness_ext.editing.plan_workload import documents_of, matrices_of, passes_of
from harness_ext.errors import UserError
from harness_ext.recipe.recipe import Recipe

if TYPE_CHECKING:
    from harness_ext.model.checkpoint import Checkpoint

_BACKWARD = 2
"""Forward passes that take as long as a backward pass."""
_SCORED = 2
"""Times that the control of a search scores its documents at least: as the model is, and as it becomes."""
_DECOMPOSED = 24
"""What a decomposition of `[m, n]` takes, in multiplications, over `m n min(m, n)`: as measured on a CPU."""
_TRUSTED = 2
"""What is expected counts as much as so many usual variants that are done."""
_AT_LEAST_LEFT = 0.25
"""Of the time that a variant has taken already, what it takes still where it should have been done."""


class Work(NamedTuple):
    """What a variant does before it is scored. tokens: that it learns from, in documents of `TOKENS`. edits: what its
    decompositions take, in tokens as well.
    """

    tokens: float = 0.0
    edits: float = 0.0


def learning_tokens(planned: Plan) -> float:
    """Tokens that all passes of a recipe over its documents have, statistics counted as passes."""
    total = 0.0
    for number, step in enumerate(planned.recipe.steps):
        passes = passes_of(planned, number, step)
        times = passes.forward + _BACKWARD * passes.backward + passes.gathering
        total += times * documents_of(step) * TOKENS
    return total


def editing_tokens(planned: Plan, *, once: bool = False) -> float:
    """Tokens that take as long as all decompositions of a recipe: one is multiplied with every parameter. once: of
    those of a search the last alone.
    """
    total = 0.0
    for number, step in enumerate(planned.recipe.steps):
        edit, times = edit_of(step)
        if decomposes(edit.method):
            shapes = [item.matrix.shape for item in matrices_of(planned, number)]
            total += (1 if once else times) * sum(math.prod(shape) * min(shape) for shape in shapes)
    return _DECOMPOSED * total / planned.parameters


def expected_work(recipes: Iterable[Recipe], controls: Iterable[str], checkpoint: Checkpoint) -> dict[str, Work]:
    """Of every variant of a command but the baseline, by label, in order. checkpoint: as `as_loaded` gives it. A
    control edits as its recipe does, and learns nothing but what scores a search.
    """
    work: dict[str, Work] = {}
    for recipe in recipes:
        own = control = Work()
        with suppress(UserError):  # the variant will say what is wrong
            planned = plan_of_loaded(recipe, checkpoint)
            own = Work(learning_tokens(planned), editing_tokens(planned))
            searched = sum(_SCORED * documents_of(step) * TOKENS for step in recipe.steps if step.is_search)
            control = Work(float(searched), editing_tokens(planned, once=True))
        work |= {recipe.label: own} | {f"{recipe.label}+{name}": control for name in controls}
    return work


class TimeLeft:
    """What is left of a command. work: of each variant, by label, in order, without the baseline. clock: seconds that
    only go forward.
    """

    def __init__(self, work: Mapping[str, Work], clock: Callable[[], float]) -> None:
        self._work, self._clock, self._began = dict(work), clock, clock()
        self._waiting: dict[str, float] = {}
        self._scoring = self._trusted = self._spent = self._expected = 0.0

    def scored(self, receipt: Mapping[str, Any]) -> None:
        """The baseline is done, and left this receipt. Documents to learn from are taken to be as long as its own."""
        self._began = self._clock()
        measured = next((one for one in receipt.get("speed") or () if one["phase"] != "decode"), None)
        if measured is None or not measured["tokens_per_second"]:
            return
        self._scoring, length = float(receipt["seconds"]["evaluate"]), measured["length"] / TOKENS
        self._waiting = {
            label: (length * work.tokens + work.edits) / measured["tokens_per_second"]
            for label, work in self._work.items()
        }
        self._trusted = _TRUSTED * sum(self._waiting.values()) / max(1, len(self._waiting))

    def finished(self, label: str, *, reused: bool) -> None:
        """A variant is done; those before it that are not will never be."""
        spent, self._began = self._clock() - self._began, self._clock()
        if label not in self._waiting:
            return
        for other in list(self._waiting):
            expected = self._waiting.pop(other)
            if other == label:
                break
        if not reused:
            self._spent += max(0.0, spent - self._scoring)
            self._expected += expected

    def seconds(self) -> float | None:
        """Expected from now on; None where the baseline did not tell."""
        if not self._scoring:
            return None
        # What runs tells nothing of those to come before it is done: it may do work of another kind.
        pace = (self._trusted + self._spent) / (self._trusted + self._expected) if self._trusted else 1.0
        running, *others = [self._scoring + pace * expected for expected in self._waiting.values()] or [0.0]
        spent = self._clock() - self._began
        return max(running - spent, _AT_LEAST_LEFT * spent if self._waiting else 0.0) + sum(others)
