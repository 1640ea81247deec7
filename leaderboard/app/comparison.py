"""A run beside what it is compared with (its baseline, its controls, other runs) in words and rows: what the page
Compare shows, without the page.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from leaderboard.board.cell import COMPARED, Cell, as_good_controls
from leaderboard.board.standings import AS_CONTROL, kind
from leaderboard.metrics import named
from leaderboard.readers.records import BASELINE
from leaderboard.report.words import improvement_limits
from leaderboard.terminal.format import chance, counted, direction, metric_name, plain
from leaderboard.terminal.marks import MARKS, MINUS, gain

OTHER = "run"
CONTROL = "control"
_CONTROLS_IDEA = {
    "random-subspace": "a random edit of the same size",
    "noise": "noise of the same size",
    "bottom-k": "keeping the smallest parts in place of the largest",
    "shuffled-labels": "the same, learned from shuffled answers,",
}
"""Control -> what it is, before a verb."""


class ComparedSide(NamedTuple):
    """What a run is compared with: a group of columns.

    kind: baseline, control or run. title: over its columns. phrase: in a sentence. cells: task -> the run against it,
    whose `baseline_score` and `baseline_run` are this side's.
    """

    kind: str
    title: str
    phrase: str
    cells: Mapping[str, Cell]

    @property
    def run_id(self) -> str | None:
        """The run that it is on most tasks."""
        runs = Counter(cell.baseline_run for cell in self.cells.values() if cell.baseline_run)
        return runs.most_common(1)[0][0] if runs else None


def baseline_side(cells: Iterable[Cell]) -> ComparedSide:
    """The baseline's, from a run's cells on the board."""
    return ComparedSide(BASELINE, "Baseline", "the baseline", {cell.task: cell for cell in cells})


def control_sides(cells: Iterable[Cell]) -> list[ComparedSide]:
    """One for each run of a control, from the cells of the recipe's run on the board."""
    pairs: dict[tuple[str, str], dict[str, Cell]] = defaultdict(dict)
    for cell in cells:
        for pair in cell.against_controls:
            pairs[plain(pair.control or ""), pair.baseline_run or ""][cell.task] = pair
    names = Counter(name for name, _ in pairs)
    return [
        ComparedSide(CONTROL, f"Control: {words}", f"its control {words}", of_control)
        for (name, run), of_control in sorted(pairs.items())
        for words in [name if names[name] == 1 else f"{name} ({run[:8]})"]
    ]


def run_side(label: str, cells: Iterable[Cell]) -> ComparedSide:
    """Another run's, from the cells of the pair."""
    return ComparedSide(OTHER, label, label, {cell.task: cell for cell in cells})


def sentences(sides: Sequence[ComparedSide]) -> list[str]:
    """What the comparison says, a sentence a side, and which gains are not the recipe's own."""
    if any(cell.verdict == BASELINE for side in sides for cell in side.cells.values()):
        return ["This is the baseline itself, the unedited model."]
    found = [f"Against {side.phrase}: {_counts(side)}." for side in sides]
    return found + [line for side in sides if side.kind == BASELINE for line in _doubts(side)]


def _counts(side: ComparedSide) -> str:
    words = Counter(cell.verdict for cell in side.cells.values())
    said = [f"{word} on {words[word]}" for word in COMPARED if words[word]]
    compared, others = sum(words[word] for word in COMPARED), len(side.cells)
    rest = f"; {others - compared} cannot be compared" if others > compared else ""
    if not compared:
        return (
            f"none of {counted(len(side.cells), 'task', 'tasks')} can be compared" if others else "it is the same run"
        )
    return f"{', '.join(said)} of {counted(others, 'task', 'tasks')}{rest}"


def _doubts(side: ComparedSide) -> list[str]:
    by_control: dict[tuple[str, str], list[str]] = defaultdict(list)
    empty = []
    for task, cell in sorted(side.cells.items()):
        if kind(cell) == AS_CONTROL:
            shown = as_good_controls(cell)
            open_ones = (pair.control or "" for pair in cell.against_controls if pair.verdict != "better")
            words = "is not the recipe's: {} does as well" if shown else "may not be the recipe's: {} may do as well"
            by_control[words, plain(next(iter(shown or open_ones)))].append(plain(task))
        elif cell.verdict == "better" and any(pair.against_collapsed for pair in cell.against_controls):
            empty.append(plain(task))
    found = [
        f"On {_listed(tasks)} the gain {words.format(_CONTROLS_IDEA.get(name, f'its control {name}'))}."
        for (words, name), tasks in by_control.items()
    ]
    return found + ([f"On {_listed(empty)} its control collapsed: to beat it says little."] if empty else [])


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def improvement(cell: Cell) -> float | None:
    """Positive where it is good; of an unpaired difference that of the two scores."""
    if cell.improvement is not None or cell.delta is None or cell.best_value is not None:
        return cell.improvement
    return cell.delta if cell.higher_is_better else -cell.delta


class Shown(NamedTuple):
    """A cell as text: the kind that its mark is of, the mark with the number, the interval under it, the word."""

    kind: str
    number: str
    interval: str
    word: str


def shown(cell: Cell, *, is_pair: bool) -> Shown:
    """The texts of a cell. is_pair: against a control or another run, where no control has a say."""
    what = "better" if is_pair and cell.verdict == "better" else kind(cell)
    sign = "\u25b2" if what == "better" else MARKS[what].sign
    number = gain(improvement(cell), minus=MINUS)
    limits = improvement_limits(cell, unpaired=True)
    ends = "" if limits is None else " to ".join(gain(end, minus=MINUS) for end in limits)
    words = what if what in COMPARED else MARKS[what].words
    if cell.unpaired:
        words = f"{words}, unpaired"
    return Shown(what, f"{sign} {number}".strip() if number else "", ends, words)


def score_text(value: float | None) -> str:
    """A score: three decimals below ten, fewer above, with the sign of the page."""
    return "" if value is None else gain(value, minus=MINUS).removeprefix("+")


def about(cell: Cell) -> str:
    """`acc, n 2,000, chance 0.622`; which way is good where that is not up."""
    way = "" if cell.best_value is None and cell.higher_is_better else direction(cell).replace("best at", "nearer")
    way = f"{way} is better" if way.startswith("nearer") else way
    told = [plain(metric_name(cell)), way, plain(cell.subset or ""), _n(cell), chance([cell])]
    return ", ".join(filter(None, told))


def _n(cell: Cell) -> str:
    return "" if cell.n is None or cell.subset else f"n {cell.n:,}"


def possible(metric: str) -> tuple[float | None, float | None]:
    """The limits of a metric's scores; None where it has none."""
    within = named(metric).range
    low, high = (end if math.isfinite(end) else None for end in (within.low, within.high))
    return low, high
