"""One recipe on many models: on how many did it help? From a board's cells.

Notable choices:
- A model counts where its latest run of the recipe was compared with its baseline (better, worse, collapsed, same,
  undecided). One that collapsed counts as down, whichever way its metric went.
  Incomparable and failed runs are named beside the count, never in it, and a model without a run is a blank: nothing is
  averaged, and nothing is assumed of it.
- Two counts: verdicts ("better on 7 of 9"), each of which had to reach significance on its own model, and bare signs
  ("up on 8, down on 1"), which are put to an exact sign test with mid-p (McNemar's, with models for documents) and
  corrected over the recipes of a task after Benjamini-Hochberg.
- The sign test takes the models as a sample of their own. Fine-tunings of one model are not independent, and its
  p-value is then too small.
- Recipes are one where their names are (`labels`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from leaderboard import statistics
from leaderboard.board.cell import COMPARED, Cell
from leaderboard.compare.collapse import COLLAPSED
from leaderboard.readers.edited import PLAIN_RECIPE
from leaderboard.readers.foreign.formats import FOREIGN_LABELS
from leaderboard.readers.records import BASELINE

EVERY_TASK = "(all)"  # of a run that failed before it had tasks
# of fewer, not even a unanimous vote is below 5 %: they are not tested, and cost the others nothing in the correction
LEAST_SIGNS = 5


@dataclass(frozen=True)
class Line:
    """One recipe on one task over all models. `cells`: model -> its latest run. `up` and `down` count signs of the
    improvement; `p_value` and `q_value` are the sign test's, None for fewer than `LEAST_SIGNS`.
    """

    recipe: str
    task: str
    control: bool
    cells: dict[str, Cell]
    up: int
    down: int
    p_value: float | None
    q_value: float | None

    def count(self, verdict: str) -> int:
        """On how many models the verdict is this one."""
        return sum(cell.verdict == verdict for cell in self.cells.values())

    @property
    def controlled(self) -> int:
        """On how many models the recipe was compared with controls of its own."""
        return sum(cell.beats_controls is not None for cell in self.cells.values())

    @property
    def beats_controls(self) -> int:
        """On how many models it is better than every control of its own."""
        return sum(cell.beats_controls is True for cell in self.cells.values())

    @property
    def harmful(self) -> int:
        """On how many models it is worse or collapsed."""
        return self.count("worse") + self.count(COLLAPSED)

    @property
    def compared(self) -> int:
        """On how many models there is a verdict."""
        return sum(cell.verdict in COMPARED for cell in self.cells.values())


def lines(cells: Iterable[Cell], task: str) -> list[Line]:
    """Every recipe that some model ran on the task: more models first, then more of them better, then by name."""
    by_recipe: dict[str, dict[str, Cell]] = defaultdict(dict)
    for cell in sorted(
        (c for c in cells if c.task in (task, EVERY_TASK) and c.verdict != BASELINE and not unedited(c.recipe)),
        key=_age,
    ):
        by_recipe[cell.name][cell.model] = cell
    tested = {recipe: _signs(found.values()) for recipe, found in by_recipe.items()}
    p_values = {
        recipe: statistics.mid_p_mcnemar(down, up).two_sided
        for recipe, (up, down) in tested.items()
        if up + down >= LEAST_SIGNS
    }
    q_values = (
        dict(zip(p_values, statistics.benjamini_hochberg(np.array(list(p_values.values()), dtype=float)).tolist()))
        if p_values
        else {}
    )
    made = [
        Line(
            recipe,
            task,
            any(c.control for c in found.values()),
            dict(sorted(found.items())),
            *tested[recipe],
            p_values.get(recipe),
            q_values.get(recipe),
        )
        for recipe, found in by_recipe.items()
    ]
    return sorted(
        made, key=lambda line: (-len(line.cells), line.control, -line.count("better"), line.harmful, line.recipe)
    )


def tasks(cells: Iterable[Cell]) -> list[str]:
    """The tasks that recipes were run on, those of most models first."""
    models: dict[str, set[str]] = defaultdict(set)
    runs: Counter[str] = Counter()
    for cell in cells:
        if cell.task != EVERY_TASK and cell.verdict != BASELINE and not unedited(cell.recipe):
            models[cell.task].add(cell.model)
            runs[cell.task] += 1
    return sorted(models, key=lambda task: (-len(models[task]), -runs[task], task))


def models_of(found: Sequence[Line]) -> list[str]:
    """The models of some lines, by name."""
    return sorted({model for line in found for model in line.cells})


def sentence(line: Line) -> str:
    """`better on 7 of 9 models, worse on 1, undecided on 1; better than its control on 2 of 9 models; up on 8, down
    on 1`.
    """
    if not line.compared:
        said = f"no verdict on {_models(len(line.cells))}"
    else:
        others = [f"{word} on {line.count(word)}" for word in COMPARED[1:] if line.count(word)]
        said = ", ".join([f"better on {line.count('better')} of {_models(line.compared)}", *others])
    if line.controlled:
        said += f"; better than its control on {line.beats_controls} of {_models(line.controlled)}"
    signs = f"; up on {line.up}, down on {line.down}" if line.up + line.down else ""
    missing = [f"{line.count(word)} {word}" for word in ("incomparable", "failed") if line.count(word)]
    return said + signs + (f" (besides, {' and '.join(missing)})" if missing else "")


def _models(count: int) -> str:
    return "1 model" if count == 1 else f"{count} models"


def _signs(found: Iterable[Cell]) -> tuple[int, int]:
    """How many improvements are above zero and how many below, among the compared."""
    values = [
        -1.0 if cell.verdict == COLLAPSED else cell.improvement or 0.0 for cell in found if cell.verdict in COMPARED
    ]
    return sum(value > 0 for value in values), sum(value < 0 for value in values)


def unedited(recipe: str) -> bool:
    """Whether a label is that of a model as it is."""
    return recipe in (BASELINE, PLAIN_RECIPE, *FOREIGN_LABELS)


def _age(cell: Cell) -> tuple[bool, datetime, str]:
    """Order of time, runs without one first."""
    return cell.started is not None, cell.started or datetime.min, cell.run_id
