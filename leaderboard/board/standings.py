"""The board as people read it: recipes by tasks, ranked by what is proven, controls under their recipe.

Notable choices:
- A gain counts only beyond the recipe's controls. There are three kinds of better: *beats* (better than the baseline
  and than every control of the recipe's own), *alone* (no control was run; controls themselves too) and *as control*
  (not shown to beat a control).
- A rank is the mean over tasks of the rank on each. On a task, rows whose verdict proves nothing (same, undecided, *as
  control*) stand level with the baseline, whatever their difference; a collapsed row stands behind every worse one.
  Rows with equal means share a place.
- Ranks are over tasks that all ranked rows have. A row without any comparison has no rank. So that one short run does
  not leave a single task for all, up to a quarter of the rows go without where the others then have more tasks in
  common (rows times tasks are most); where no task is common, as many as it takes. They are those whose tasks the
  fewest others have. Where the model collapsed on a task that the ranks are not over, the row stands behind on all
  that they are over: it would share a place with the baseline else. A rank by one chosen task is of that task alone.
- The baseline of a task is the unedited run that most others are compared with; where these are several runs that were
  not asked the same, its row is called by none of their names. Other runs of the unedited model are rows without a
  rank, and no recipes. A cell may be compared with one of those: `Standings.compared_elsewhere` names it.
- The latest run of a name speaks for it on each task.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from leaderboard.board.across_models import unedited
from leaderboard.board.cell import COMPARED, Cell
from leaderboard.compare.collapse import COLLAPSED
from leaderboard.readers.records import BASELINE

BEATS, ALONE, AS_CONTROL = "beats", "alone", "as control"
KINDS = (BEATS, ALONE, AS_CONTROL, "same", "undecided", "worse", COLLAPSED, "incomparable", "failed", BASELINE)
"""What a cell says, from good to bad. Every other than the first three is the cell's verdict."""
PROVEN = (BEATS, ALONE)
HARM = ("worse", COLLAPSED)
_MOST_LEFT_OUT = 0.25  # of the rows that have a task in common, for more tasks in common


def kind(cell: Cell) -> str:
    """What a cell says: its verdict, or one of the three kinds of better."""
    return kind_of(cell.verdict, cell.beats_controls)


def kind_of(verdict: str, beats_controls: bool | None) -> str:
    """`kind`, of what the store has of a cell."""
    return {True: BEATS, False: AS_CONTROL, None: ALONE}[beats_controls] if verdict == "better" else verdict


class Rank(NamedTuple):
    """A row's place among the ranked ones, from 1; `shared` with others; `mean` of its ranks on the tasks."""

    place: int
    shared: bool
    mean: float

    def __str__(self) -> str:
        return f"{self.place}{'=' if self.shared else ''}"


@dataclass(frozen=True)
class Standing:
    """A recipe, control or the baseline: a row of the board.

    name: whole, as in `Cell.name`; recipe and settings: its two parts. cells: task -> the latest one of this name.
    run_ids: of all its cells, the latest first. is_main: whether it is the baseline's row. rank: None for controls and
    rows that cannot be ranked. controls: the rows of its own controls. better, beaten: on how many tasks with a control
    it is better than the baseline, and on how many of these better than every control.
    """

    name: str
    recipe: str
    settings: str
    cells: Mapping[str, Cell]
    run_ids: tuple[str, ...]
    control: str | None = None
    rank: Rank | None = None
    controls: tuple[Standing, ...] = ()
    better: int = 0
    beaten: int = 0
    parameters_kept: float | None = None
    is_main: bool = False

    @property
    def is_baseline(self) -> bool:
        """Whether this is what others are compared with."""
        return any(cell.verdict == BASELINE for cell in self.cells.values())

    @property
    def is_recipe(self) -> bool:
        """Whether this is an edit that is no control."""
        return self.control is None and not any(unedited(cell.recipe) for cell in self.cells.values())

    @property
    def run_id(self) -> str:
        """The latest run."""
        return self.run_ids[0]

    def kinds(self) -> Counter[str]:
        """How many of its cells say what."""
        return Counter(map(kind, self.cells.values()))


@dataclass(frozen=True)
class Standings:
    """A model's board in rows.

    rows: the recipes and the baseline, best first, then those without a rank. unclaimed: controls whose recipe is not
    here. ranked_on: the tasks that the ranks are over. best: task -> names of the rows whose cell is its best.
    """

    tasks: tuple[str, ...]
    rows: tuple[Standing, ...]
    unclaimed: tuple[Standing, ...] = ()
    ranked_on: tuple[str, ...] = ()
    best: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def listed(self, *, controls: bool = False) -> list[Standing]:
        """The rows in order, each followed by its controls where these are wanted."""
        if not controls:
            return list(self.rows)
        return [*(one for row in self.rows for one in (row, *row.controls)), *self.unclaimed]

    @property
    def compared_elsewhere(self) -> dict[tuple[str, str], str]:
        """(name of a row, task) -> the baseline run of a cell that is compared with another than the baseline's row."""
        main = {task: cell.run_id for row in self.rows if row.is_main for task, cell in row.cells.items()}
        return {
            (row.name, task): cell.baseline_run or ""
            for row in self.listed(controls=True)
            for task, cell in row.cells.items()
            if cell.verdict in COMPARED and cell.baseline_run not in (None, main.get(task, cell.baseline_run))
        }

    @property
    def unranked(self) -> tuple[Standing, ...]:
        """The rows that have no rank."""
        return tuple(row for row in self.rows if row.rank is None)


def have_equal_names(rows: Iterable[Standing]) -> bool:
    """Whether two rows show the same name, settings apart, which then stand beside it. Controls bear an arrow."""
    return any(count > 1 for count in Counter((row.control is not None, row.recipe) for row in rows).values())


def standings(cells: Iterable[Cell], *, by: str | None = None, about: Collection[str] = ()) -> Standings:
    """The board of one model. by: the task to rank on; all common ones unless given. about: ids of the runs that are
    asked about, whose baseline is then the board's.
    """
    cells = list(cells)
    rows = _rows(cells, about)
    tasks = tuple(sorted({task for row in rows for task, cell in row.cells.items() if cell.metric}))
    controls = [row for row in rows if row.control is not None]
    recipes = [row for row in rows if row.control is None]
    claimed = _claims(recipes, controls)
    recipes = [replace(row, controls=tuple(claimed.get(row.name, ()))) for row in recipes]
    in_ranks = [row for row in recipes if row.is_recipe or row.is_main]
    taken = {one.name for of_recipe in claimed.values() for one in of_recipe}
    ranked_on, ranks = _ranks(in_ranks, tasks if by is None else (by,), anywhere=by is None)
    ranked = sorted((replace(row, rank=ranks.get(row.name)) for row in recipes), key=_order)
    return Standings(
        tasks,
        tuple(ranked),
        tuple(row for row in controls if row.name not in taken),
        ranked_on,
        {task: _best(ranked, task) for task in tasks},
    )


def split_name(recipe: str, name: str) -> tuple[str, str]:
    """The recipe's own name, and all that follows it: `laser`, `layers=0, matrices=down_proj (calibrated on piqa)`."""
    base, _, settings = recipe.partition(":")
    addition = name.removeprefix(recipe).strip() if name.startswith(recipe) else ""
    return base, " ".join(filter(None, [settings.replace(",", ", ") if "[" not in settings else settings, addition]))


def _rows(cells: Sequence[Cell], about: Collection[str]) -> list[Standing]:
    by_name: dict[tuple[bool, str], list[Cell]] = defaultdict(list)
    main = _main_baselines(cells, about)
    for cell in sorted(cells, key=_age):
        if cell.verdict == BASELINE and main[cell.task] == cell.run_id:
            by_name[True, BASELINE].append(cell)
        else:
            by_name[False, cell.name].append(cell)
    rows = [replace(_row(alike), is_main=is_main) for (is_main, _), alike in by_name.items()]
    # Plain results may be called the same whether they are the baseline or cannot be compared with it.
    others = {row.name for row in rows if not row.is_main}
    return [
        replace(row, name=f"{row.name} ({BASELINE})") if row.is_main and row.name in others else row for row in rows
    ]


def _main_baselines(cells: Sequence[Cell], about: Collection[str]) -> dict[str, str]:
    """task -> the run that most others are compared with on it, first of those asked about; of several the latest."""
    compared = [cell for cell in cells if cell.verdict != BASELINE]
    uses = Counter((cell.task, cell.baseline_run) for cell in compared)
    asked = Counter((cell.task, cell.baseline_run) for cell in compared if cell.run_id in about)
    found = sorted((cell for cell in cells if cell.verdict == BASELINE), key=_age)

    def used(cell: Cell) -> tuple[int, int]:
        return asked[cell.task, cell.run_id], uses[cell.task, cell.run_id]

    return {cell.task: cell.run_id for cell in sorted(found, key=used)}


def _row(alike: Sequence[Cell]) -> Standing:
    """One name's cells, the earliest first; those of the baseline's row may have several names, and are called by what
    these have in common.
    """
    latest = {cell.task: cell for cell in alike}
    last = alike[-1]
    name = last.name if len({cell.name for cell in latest.values()}) == 1 else last.recipe
    recipe, settings = split_name(last.recipe, name)
    better = [cell for cell in latest.values() if cell.verdict == "better" and cell.against_controls]
    return Standing(
        name,
        recipe,
        settings,
        dict(sorted(latest.items())),
        tuple(dict.fromkeys(cell.run_id for cell in reversed(alike))),
        control=last.control,
        better=len(better),
        beaten=sum(cell.beats_controls is True for cell in better),
        parameters_kept=next((c.parameters_kept for c in reversed(alike) if c.parameters_kept is not None), None),
    )


def _claims(recipes: Sequence[Standing], controls: Sequence[Standing]) -> dict[str, list[Standing]]:
    """The name of each recipe -> its controls. One that two recipes share stands under both."""
    of_run = {run_id: control for control in controls for run_id in control.run_ids}
    claimed: dict[str, list[Standing]] = {}
    for row in recipes:
        runs = (pair.baseline_run for cell in row.cells.values() for pair in cell.against_controls)
        named = {of_run[run].name: of_run[run] for run in runs if run in of_run}
        claimed[row.name] = [named[name] for name in sorted(named)]
    return claimed


def proven(cell: Cell) -> float:
    """What a cell proves, in the metric's units and positive where it is good: its improvement where its verdict says
    that there is one, 0 where it proves none, minus infinity where the model collapsed.
    """
    if cell.verdict == COLLAPSED:
        return -np.inf
    return cell.improvement or 0.0 if kind(cell) in (*PROVEN, "worse") else 0.0


def gained(cell: Cell) -> float | None:
    """The difference of the scores as it is shown: positive where it is good on every task, in the metric's units. Of
    clipped differences that of the plain scores, unless it points the other way.
    """
    if cell.best_value is not None and cell.clipping is not None:
        plain = cell.clipping.plain_improvement
    elif cell.best_value is not None or cell.delta is None:
        return cell.improvement
    else:
        plain = cell.delta if cell.higher_is_better else -cell.delta
    return plain if cell.improvement is None or plain * cell.improvement >= 0 else cell.improvement


def _comparable(row: Standing, task: str) -> bool:
    cell = row.cells.get(task)
    return cell is not None and (cell.verdict in COMPARED or cell.verdict == BASELINE)


def _ranks(
    rows: Sequence[Standing], tasks: Sequence[str], *, anywhere: bool
) -> tuple[tuple[str, ...], dict[str, Rank]]:
    """The tasks that ranks are over, and the rank of each row that has one, by name. anywhere: whether a collapse on a
    task that they are not over counts too.
    """
    having = {row.name: frozenset(task for task in tasks if _comparable(row, task)) for row in rows}
    shared_by = Counter(task for found in having.values() for task in found)
    ranked = sorted(
        (row for row in rows if having[row.name]),
        key=lambda row: (row.is_baseline, sum(shared_by[task] for task in having[row.name])),
    )
    chosen, common = _with_most_in_common(ranked, having, tasks)
    if not common:
        return (), {}
    values = np.array([[proven(row.cells[task]) for task in common] for row in chosen])
    if anywhere:
        values[[_collapsed_beside(row, common) for row in chosen]] = -np.inf
    means = np.column_stack([_places(-column).mean(axis=0) for column in values.T]).mean(axis=1).round(9)
    places = _places(means)[0]
    shared = Counter(places.tolist())
    return common, {
        row.name: Rank(int(place), shared[int(place)] > 1, float(mean))
        for row, place, mean in zip(chosen, places, means)
    }


def _collapsed_beside(row: Standing, common: Collection[str]) -> bool:
    """Whether the row's model collapsed on a task that is not among these."""
    collapsed = {task for task, cell in row.cells.items() if cell.verdict == COLLAPSED}
    return not collapsed.union(*(cell.collapsed_on for cell in row.cells.values())) <= {*common}


def _with_most_in_common(
    rows: Sequence[Standing], having: Mapping[str, frozenset[str]], tasks: Sequence[str]
) -> tuple[Sequence[Standing], tuple[str, ...]]:
    """The last of these rows, as many as there are to be ranked, and the tasks that all of them have."""
    shared: list[frozenset[str]] = []  # by the last so many rows
    left = frozenset(tasks)
    for row in reversed(rows):
        left &= having[row.name]
        if not left:
            break
        shared.append(left)
    if not shared:
        return (), ()
    most = len(shared)
    least = most - int(most * _MOST_LEFT_OUT)
    count = max(range(most, least - 1, -1), key=lambda number: number * len(shared[number - 1]))
    return rows[len(rows) - count :], tuple(task for task in tasks if task in shared[count - 1])


def _places(values: np.ndarray) -> np.ndarray:
    """The first and the last place that each value shares with its equals, from 1, the smallest first: `[2, n]`."""
    ordered = np.sort(values)
    return np.stack([np.searchsorted(ordered, values, "left") + 1, np.searchsorted(ordered, values, "right")])


def _best(rows: Sequence[Standing], task: str) -> frozenset[str]:
    """The rows with the largest proven gain on a task: among those that beat their controls, if any does. A model that
    collapsed on another task is best at nothing.
    """
    cells = {row.name: row.cells[task] for row in rows if task in row.cells}
    for wanted in PROVEN:
        gains = {
            name: cell.improvement or 0.0 for name, cell in cells.items() if kind(cell) == wanted and not cell.is_ruined
        }
        if gains:
            return frozenset(name for name, gain in gains.items() if gain == max(gains.values()))
    return frozenset()


def _order(row: Standing) -> tuple[object, ...]:
    """Best first. In a shared place the baseline stands first: what is level with it is not worth doing."""
    if row.rank is None:
        return (True, not row.is_baseline, row.name)
    return (False, row.rank.mean, not row.is_main, row.name)


def _age(cell: Cell) -> tuple[object, ...]:
    """Order of time. The run that is the baseline speaks for the unedited model, however often that was run."""
    return (cell.verdict == BASELINE, cell.started is not None, cell.started or 0, cell.run_id)
