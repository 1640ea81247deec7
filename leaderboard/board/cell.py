"""A cell of the board, and the word for it.

Words: *same* when equivalence within the margin is significant; else *better* or *worse* when the difference is; else
*undecided*. Both after Benjamini-Hochberg over all cells of the model (before any filter of the view), each a family of
its own. So a difference that is certain but smaller than the margin is *same*, with a note that says so: nobody should
act on it.

Test and interval are different procedures (mid-p McNemar and Bonett-Price, say), and of few changed documents the
interval is the more cautious: 0 lost and 5 gained of 40 have p = 0.031 and an interval from -0.001. *Better* and
*worse* need both, so that no verdict contradicts the interval beside it. It can only make errors rarer: the test alone
keeps its level.

Where a document counts for at most a bound, *same* and *better* are withheld while too many documents may have
collapsed (`compare.clipping`).

*collapsed* takes the place of all four where the recipe ruined the model (`compare.collapse`), whatever the metric
says. Only a comparison with the unedited model tells that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from datetime import datetime
from typing import Any

import numpy as np

from leaderboard import statistics
from leaderboard.board.lacking import SIGNIFICANCE, Verdicts, levels_alone, levels_together
from leaderboard.board.reported import Reported
from leaderboard.compare import needs
from leaderboard.compare.choice_shift import Choices
from leaderboard.compare.clipping import Clipping
from leaderboard.compare.collapse import COLLAPSED
from leaderboard.compare.needs import Claim, TooFew
from leaderboard.readers.records import BASELINE

VERDICTS = ("better", "worse", COLLAPSED, "same", "undecided", "incomparable", "failed", BASELINE)
COMPARED = VERDICTS[:5]
"""The words of rows that were compared with their baseline."""


@dataclass(frozen=True)
class Cell:
    """One run on one metric of a task, its primary one unless it says otherwise, against its baseline.

    `delta`, `low` and `high` (95 %, not corrected) are recipe minus baseline in the metric's own units; `improvement`
    is positive where that is good, with limits of its own where the best value lies in the middle. `notes` holds
    warnings, or why the cell is incomparable or failed. `detectable` is the smallest difference that its documents show
    with 80 % power on this board, `noise_floor` the share of answers that flip when rounding alone changes, which the
    flips have to exceed; `choices` is filled only where two runs are compared by themselves. `comparisons`: how many
    the verdict was corrected for. Of an undecided cell `documents_needed` give it the verdict `needed_for` in four of
    five cases, if it alone gets more, `documents_needed_together` if the board's other undecided cells do too; `needs`
    is what they were worked out from, as the store has it.
    `against_controls`: the same run on the same documents against each control of its own, in place of
    the baseline; `control` and `baseline_run` are then the control's name and run.
    `clipping`: one document counts for at most its bound in the interval, the p-values and `improvement`.
    `unpaired`: `delta`, `low` and `high` are of two scores by themselves, of which no verdict follows.
    `label` is the recipe with what tells the run from others of its model (`name` falls back on `recipe`),
    `subset` which of the task's documents were scored (None: all). `learned`: how many documents of the scored split
    the recipe learned from or searched on, which are therefore out of the score.
    `collapse`: what shows that the model collapsed on this task, None where the task cannot tell. `weights`: equal for
    runs of equal weights. `too_few`: of an undecided cell, why its documents are too few for any difference.
    `says_nothing`: the interval is as wide as the score's range. `fell`, `rose`: documents of an undecided cell that
    got worse and better. `against_collapsed`: what it is compared with, a control, collapsed itself.
    `collapsed_on`: the other tasks on which the same weights collapsed.
    `further`: the same run on the task's other metrics (see `board.further`), which are not primary. `shots`: examples
    in the prompt, where that is known. `rephrased`: what prompts have around the task's own, such as a chat template.
    `chance`: the share of right answers that guessing gets, or always taking the same choice, and `beats_chance`
    whether the run's are shown to be more (see `compare.chance`).
    """

    model: str
    recipe: str
    run_id: str
    task: str
    metric: str
    filter: str
    n: int | None
    baseline_score: float | None
    score: float | None
    verdict: str
    delta: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    q_value: float | None = None
    lost: int | None = None
    gained: int | None = None
    flip_rate: float | None = None
    documents_needed: int | None = None
    best_value: float | None = None
    higher_is_better: bool = True
    parameters_kept: float | None = None
    notes: tuple[str, ...] = ()
    improvement: float | None = None
    improvement_low: float | None = None
    improvement_high: float | None = None
    margin: float | None = None
    p_same: float | None = None
    model_key: str = ""
    baseline_run: str | None = None
    control: str | None = None
    started: datetime | None = None
    reported: tuple[Reported, ...] = ()
    detectable: float | None = None
    noise_floor: float | None = None
    choices: Choices | None = None
    against_controls: tuple[Cell, ...] = ()
    clipping: Clipping | None = None
    unpaired: bool = False
    label: str = ""
    subset: str | None = None
    learned: int = 0
    shots: int | None = None
    rephrased: str | None = None
    comparisons: int | None = None
    documents_needed_together: int | None = None
    needed_for: Claim | None = None
    needs: str | None = None
    collapse: tuple[str, ...] | None = None
    weights: str = ""
    against_collapsed: bool = False
    collapsed_on: tuple[str, ...] = ()
    too_few: TooFew | None = None
    says_nothing: bool = False
    fell: int | None = None
    rose: int | None = None
    is_primary: bool = True
    further: tuple[Cell, ...] = ()
    chance: float | None = None
    beats_chance: bool | None = None

    @property
    def clipped_at(self) -> float | None:
        """By how much a document counts at most, where it may lie beyond; in the metric's units."""
        return self.clipping and self.clipping.bound

    @property
    def name(self) -> str:
        """What the run is called beside others: see `board.labels`."""
        return self.label or self.recipe

    @property
    def scored(self) -> str | None:
        """How many documents, such as `60 documents` or `first 20 of 60 documents`; None where nothing says."""
        return self.subset or (None if self.n is None else f"{self.n:,} documents")

    @property
    def is_ruined(self) -> bool:
        """Whether the model collapsed, on this task or another."""
        return self.verdict == COLLAPSED or bool(self.collapsed_on)

    @property
    def beats_controls(self) -> bool | None:
        """Whether the recipe is better than every control of its own; None where it has none."""
        return all(pair.verdict == "better" for pair in self.against_controls) if self.against_controls else None


SHOWN_AS_GOOD = ("same", "worse")
"""What a recipe is against a control that was shown to do as well as it, or better."""


def not_its_control(cell: Cell) -> bool:
    """Whether a recipe is better than the baseline, and not shown to be better than each control of its own."""
    return cell.verdict == "better" and cell.beats_controls is False


def as_good_controls(cell: Cell) -> list[str]:
    """The recipe's own controls that were shown to do as well as it, or better."""
    return [pair.control or "" for pair in cell.against_controls if pair.verdict in SHOWN_AS_GOOD]


def changed(cell: Cell, **changes: Any) -> Cell:
    """The cell with some fields replaced: as `dataclasses.replace`, which takes thirty times as long for a cell's many
    fields.
    """
    result = object.__new__(Cell)
    result.__dict__.update(cell.__dict__, **changes)
    return result


_DEFAULTS = {field.name: field.default for field in fields(Cell) if field.default is not MISSING}


def made(values: Mapping[str, Any], **further: Any) -> Cell:
    """A cell of these fields, of which all without a default must be given: as `Cell(**values)`, quicker."""
    result = object.__new__(Cell)
    result.__dict__.update(_DEFAULTS)
    result.__dict__.update(values, **further)
    return result


def with_verdicts(cells: list[Cell]) -> list[Cell]:
    """Correct over the cells of one model and put into words."""
    tested = [i for i, cell in enumerate(cells) if cell.p_value is not None]
    differ = statistics.benjamini_hochberg(np.array([cells[i].p_value for i in tested], dtype=float))
    equal = statistics.benjamini_hochberg(np.array([_or_one(cells[i].p_same) for i in tested], dtype=float))
    changes: dict[int, dict[str, Any]] = {}
    for i, q_differ, q_equal in zip(tested, differ.tolist(), equal.tolist()):
        words = _words(cells[i], q_differ, q_differ <= SIGNIFICANCE, q_equal <= SIGNIFICANCE)
        changes[i] = {"q_value": q_differ, "comparisons": len(tested), **words}
    undecided = [i for i, cell in enumerate(cells) if changes.get(i, cell.__dict__)["verdict"] == "undecided"]
    reached = int(np.sum(equal <= SIGNIFICANCE)), int(np.sum(differ <= SIGNIFICANCE))
    for i, lacks in _needs_of(cells, undecided, len(tested), *reached):
        changes.setdefault(i, {}).update(lacks)
    for i, changed_fields in changes.items():
        cells[i] = changed(cells[i], **changed_fields)
    return cells


def _needs_of(
    cells: Sequence[Cell], undecided: Sequence[int], comparisons: int, same: int, different: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """What the undecided cells still need, as changes of each. same, different: how many of the tests of each kind
    rejected.
    """
    found = []
    for i in undecided:
        lacks = needs.from_json(cells[i].needs)
        if lacks is not None:
            found.append((i, lacks))
        elif cells[i].p_value is not None:  # one independent document or cluster: no spread
            yield i, {"too_few": TooFew(None)}
    if not found:
        return
    beyond = sum(lacks.beyond for _, lacks in found)
    family = comparisons, Verdicts(same, len(found) - beyond), Verdicts(different, beyond)
    alone, together = levels_alone(*family), levels_together(*family)
    for i, lacks in found:
        yield i, _lacking(cells[i], lacks, alone, together)


def with_control_verdicts(cells: list[Cell]) -> list[Cell]:
    """Correct what each cell has against its controls, over all such comparisons of one model, and put it into words. A
    family of its own: whether a recipe beats its control is another question than whether it beats the baseline.
    """
    judged = iter(with_verdicts([pair for cell in cells for pair in cell.against_controls]))
    return [
        changed(cell, against_controls=tuple(next(judged) for _ in cell.against_controls))
        if cell.against_controls
        else cell
        for cell in cells
    ]


def with_collapses(cells: list[Cell]) -> list[Cell]:
    """The cells of a model with the word *collapsed* where it applies, after all other words. Of equal weights a task
    that cannot tell takes the word from one that can.
    """
    where: dict[tuple[str, str], list[str]] = {}
    for cell in cells:
        if cell.collapse:
            where.setdefault((cell.model_key, cell.weights), []).append(cell.task)
    if not where:
        return cells
    worded = [
        _with_collapse(cell, tuple(dict.fromkeys(where.get((cell.model_key, cell.weights), ())))) for cell in cells
    ]
    collapsed = {(cell.run_id, cell.task) for cell in worded if cell.verdict == COLLAPSED}
    return [with_collapsed_controls(cell, collapsed) for cell in worded]


def _with_collapse(cell: Cell, tasks: tuple[str, ...]) -> Cell:
    """tasks: those on which the same weights collapsed."""
    if cell.further:
        cell = changed(cell, further=tuple(_with_collapse(one, tasks) for one in cell.further))
    if cell.verdict not in COMPARED or not (cell.collapse or tasks):
        return cell
    if cell.collapse:
        return _collapsed(cell, *cell.collapse)
    if cell.collapse is None:
        return _collapsed(cell, f"collapsed on {', '.join(tasks)}; this task cannot tell by itself")
    note = f"the same weights collapsed on {', '.join(tasks)}"
    return changed(cell, notes=(*cell.notes, note), collapsed_on=tasks)


def with_collapsed_controls(cell: Cell, collapsed: set[tuple[str, str]]) -> Cell:
    """What a collapsed model is against its controls has that word too. collapsed: (run, task) of all."""
    if any(one.against_controls for one in cell.further):
        cell = changed(cell, further=tuple(with_collapsed_controls(one, collapsed) for one in cell.further))
    if not cell.against_controls:
        return cell
    lost = cell.verdict == COLLAPSED
    return changed(
        cell,
        against_controls=tuple(
            changed(
                _collapsed(pair) if lost and pair.verdict in COMPARED else pair,
                against_collapsed=(pair.baseline_run, pair.task) in collapsed,
            )
            for pair in cell.against_controls
        ),
    )


def _collapsed(cell: Cell, *notes: str) -> Cell:
    return changed(
        cell,
        verdict=COLLAPSED,
        notes=(*notes, *cell.notes),
        documents_needed=None,
        documents_needed_together=None,
        needed_for=None,
        detectable=None,
        too_few=None,
        says_nothing=False,
    )


def _lacking(cell: Cell, found: needs.Needs, alone: needs.Levels, together: needs.Levels) -> dict[str, Any]:
    count = cell.n or 0
    by_itself = needs.lacking(found, count, alone)
    shared = needs.claimed(found, by_itself.claim, together) if by_itself else None
    few, shown = needs.can_show(found, count, alone.difference)
    return {
        "documents_needed": by_itself.documents if by_itself else None,
        "documents_needed_together": shared.documents if shared else None,
        "needed_for": by_itself.claim if by_itself else None,
        "detectable": shown,
        "too_few": few,
        "says_nothing": (
            cell.low is not None and cell.high is not None and needs.says_nothing(found, count, cell.low, cell.high)
        ),
        "fell": found.fell,
        "rose": found.rose,
    }


def _words(cell: Cell, q_value: float, differs: bool, equal: bool) -> dict[str, Any]:
    """The verdict, and notes where it needs any."""
    differs = differs and bool(cell.improvement)
    both = differs and not _holds_none(cell)
    direction = "better" if (cell.improvement or 0) > 0 else "worse"
    allowed = 0.0 if both and direction == "better" else cell.margin
    doubt = cell.clipping.doubt(cell.n, allowed) if cell.clipping else None
    if doubt and (equal or (both and direction == "better")):
        verdict = "worse" if both and direction == "worse" else "undecided"
        return {"verdict": verdict, "notes": (doubt, *cell.notes)}
    if equal:
        small = (f"{direction}, but by less than the margin of {cell.margin:.3g}",) if both else ()
        return {"verdict": "same", "notes": (*small, *cell.notes)}
    if differs and not both:
        alone = (
            f"{direction} by the test alone (q {q_value:.2g}); the interval does not exclude that there is"
            " no difference"
        )
        return {"verdict": "undecided", "notes": (alone, *cell.notes)}
    return {"verdict": direction if both else "undecided"}


def _holds_none(cell: Cell) -> bool:
    """Whether the interval holds a difference of zero."""
    return cell.low is not None and cell.high is not None and cell.low <= 0 <= cell.high


def _or_one(p_value: float | None) -> float:
    return 1.0 if p_value is None else p_value
