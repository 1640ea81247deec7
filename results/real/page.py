"""What is shown of the real result: its page, its two pictures, and the short table of the project's README."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from statistics import mean
from typing import TYPE_CHECKING

from results.real.asked import CONTROL, HERE, NAME, SEEDS, parted, recipes
from results.real.figures import BASELINE, Figure, Outcome

if TYPE_CHECKING:
    from leaderboard.board.cell import Cell

SMALL = 0.86
"""Share of the model's parameters where each matrix keeps four fifths."""
GAINS, SMALLER = 7, 3
"""Rows of the short table: of what helps somewhere, and of what makes the model small."""
BROKEN = ("worse", "collapsed")
BESIDE_CONTROL = {
    "better": "beating its control",
    "worse": "its control more so",
    "": "not shown to beat its control",
}
"""What a recipe is against its control, from each seed alike, or else -> what is said of it."""
README_START, README_END = "<!-- real: written by `make real` -->\n", "<!-- end of real -->"


@dataclass(frozen=True)
class Row:
    """One recipe at one budget over its seeds, and its controls."""

    recipe: str
    own: list[Figure]
    controls: list[Figure]

    def of(self, task: str) -> list[Outcome]:
        return [one.outcomes[task] for one in self.own if task in one.outcomes]

    def words(self, task: str) -> list[str]:
        return [outcome.verdict for outcome in self.of(task)]

    def says(self, task: str, *words: str) -> bool:
        """Whether each seed says one of these."""
        return set(self.words(task)) <= set(words) and bool(self.of(task))

    def beside_control(self, task: str) -> str:
        """A key of `BESIDE_CONTROL`."""
        found = {outcome.beats or "" for outcome in self.of(task)}
        return next(iter(found & BESIDE_CONTROL.keys()), "") if len(found) == 1 else ""

    def differences(self, task: str) -> list[float]:
        return [outcome.difference for outcome in self.of(task)]

    def improvement(self, task: str) -> float | None:
        """The mean over the seeds, above zero where it is good."""
        found = [one.difference if one.higher_is_better else -one.difference for one in self.of(task)]
        return mean(found) if found else None

    @property
    def control(self) -> Row:
        """Its controls as a row."""
        return Row(self.recipe, self.controls, [])

    def shown(self, task: str) -> str:
        """What it changes: of one seed with its 95 % interval, `+0.030 [+0.010, +0.050]`; of several the mean, the
        lowest and the highest, `+0.026 (+0.018 to +0.031)`.
        """
        found, by_seed = self.of(task), self.differences(task)
        if len(found) > 1:
            limits = f" ({min(by_seed):+.3f} to {max(by_seed):+.3f})"
        else:
            low, high = found[0].low, found[0].high
            limits = "" if low is None or high is None else f" [{_limit(low)}, {_limit(high)}]"
        return f"{mean(by_seed):+.3f}{limits}"

    def scores(self, task: str) -> str:
        """Each score that was measured, of the machine first that came first."""
        return " or ".join(dict.fromkeys(f"{outcome.score:.3f}" for outcome in self.of(task)))

    @property
    def size(self) -> str:
        sizes = [one.kept for one in self.own if one.kept is not None]
        return f"{mean(sizes):.0%}" if sizes else ""

    @property
    def seconds(self) -> float:
        return mean(one.seconds for one in self.own)


def _limit(value: float) -> str:
    """With three decimals, or as many as show on which side of zero it lies."""
    return f"{value:+.3f}" if abs(value) >= 0.0005 or not value else f"{value:+.1g}"


def by_recipe(figures: Sequence[Figure]) -> list[Row]:
    """The rows, the unedited model first."""
    rows: dict[str, Row] = {}
    for one in figures:
        row = rows.setdefault(one.recipe, Row(one.recipe, [], []))
        (row.controls if one.control else row.own).append(one)
    return [row for row in rows.values() if row.own]


def summary(rows: Sequence[Row]) -> str:
    """What helps, what breaks, and what controls do: only what every seed says."""
    base, *edited = rows
    lines = []
    for task in base.own[0].outcomes:
        measured_here = [row for row in edited if row.of(task)]
        helps = [row for row in measured_here if row.says(task, "better")]
        broken = [row for row in measured_here if row.says(task, *BROKEN)]
        sometimes = [row for row in measured_here if row not in helps and "better" in row.words(task)]
        said = (
            []
            if any(row.beside_control(task) == "better" for row in helps)
            else ["nothing is better and beats its control"]
        )
        said += _by_control("better", helps, task)
        said += _by_control("better from some seeds only", sometimes, task)
        said += [f"{len(broken)} of {len(measured_here)} are worse or collapsed"]
        lines.append(f"- `{task}` ({base.scores(task)} unedited): {'; '.join(said)}.")
    return "\n".join(lines)


def _by_control(what: str, rows: Sequence[Row], task: str) -> list[str]:
    """What is said of them, by what they are against their controls."""
    return [
        f"{what}, {said}: {_names(alike, task)}"
        for beside, said in BESIDE_CONTROL.items()
        if (alike := [row for row in rows if row.beside_control(task) == beside])
    ]


def _names(rows: Iterable[Row], task: str) -> str:
    """Each with what it changes, and what its control does where it does not beat one."""

    def beside(row: Row) -> str:
        if row.beside_control(task) == "better":
            return ""
        return f", control {row.control.shown(task)}" if row.control.of(task) else ", no control measured"

    return ", ".join(f"`{row.recipe}` {row.shown(task)}{beside(row)}" for row in rows)


def table(rows: Sequence[Row]) -> str:
    """A line a recipe and budget: size, seconds, and of each task what it changes and verdicts, its own and its
    control's.
    """
    names = list(rows[0].own[0].outcomes)
    return _lines(rows, names, [f"`{name}`" for name in names], in_full=True)


def _lines(rows: Iterable[Row], names: Sequence[str], heads: Sequence[str], *, in_full: bool = False) -> str:
    lines = [f"| recipe | size | s | {' | '.join(heads)} |", "|---" * (len(names) + 3) + "|"]
    for row in rows:
        cells = [_cell(row, name, in_full) for name in names]
        lines.append(f"| `{row.recipe}` | {row.size} | {row.seconds:.0f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(row: Row, task: str, in_full: bool) -> str:
    """`+0.030 [+0.010, +0.050] better; control worse`, in full with what the control changes on average; of the
    unedited model its score.
    """
    if not row.of(task):
        return "-"
    if row.recipe == BASELINE:
        return row.scores(task)
    said = f"{row.shown(task)} {_counted(row.words(task))}"
    of_controls = row.control.words(task)
    beside = f"{mean(row.control.differences(task)):+.3f} " if in_full and of_controls else ""
    return f"{said}; control {beside}{_counted(of_controls)}" if of_controls else said


def _counted(verdicts: Sequence[str]) -> str:
    """`better`, or of several seeds `better 2, undecided 1`."""
    counts = Counter(verdicts)
    return ", ".join(word if len(verdicts) == count else f"{word} {count}" for word, count in counts.most_common())


def in_short(rows: Sequence[Row]) -> str:
    """The table of the project's README, by the mean of their places on the tasks: the best of what is better than
    unedited and than its control on some task, from each of its seeds, and of the other recipes that make the model a
    sixth smaller.
    """
    base, *edited = rows
    names = list(base.own[0].outcomes)
    gains = [
        row
        for row in edited
        if any(row.says(name, "better") and row.beside_control(name) == "better" for name in names)
    ]
    shown = _best_first(gains, names)[:GAINS]
    smaller = [row for row in edited if row not in shown and round(row.own[0].kept or 1, 2) <= SMALL]
    heads = [f"`{name}`: {base.scores(name)}" for name in names]
    return _lines([*shown, *_best_first(smaller, names)[:SMALLER]], names, heads)


def in_readme(text: str, figures: Sequence[Figure]) -> str:
    """The project's README with the short table in its place."""
    before, start, rest = text.partition(README_START)
    _, end, after = rest.partition(README_END)
    return "".join((before, start, in_short(by_recipe(figures)), "\n", end, after))


def _best_first(rows: Sequence[Row], tasks: Sequence[str]) -> list[Row]:
    """Places, since improvements of unlike metrics cannot be added; what has no result on a task is last there."""
    places: Counter[str] = Counter()
    for task in tasks:
        improvements = {row.recipe: -math.inf if (gain := row.improvement(task)) is None else gain for row in rows}
        for name, own in improvements.items():
            places[name] += sum(other > own for other in improvements.values())
    return sorted(rows, key=lambda row: places[row.recipe])


def render(figures: Sequence[Figure]) -> str:
    """The whole of README.md."""
    text = (HERE / "about.md").read_text(encoding="utf-8")
    rows = by_recipe(figures)
    asked = list(recipes())
    seeds = [one.seed for row in rows[1:] for one in row.own]
    first = seeds.count(SEEDS[0])
    return text.format(
        summary=summary(rows),
        table=table(rows),
        done=f"{first}, of the first seed alone,"
        if first == len(seeds)
        else f"{len(seeds)} ({first} of the first seed)",
        tasks=", ".join(f"`{name}`" for name in rows[0].own[0].outcomes),
        task_names=" ".join(rows[0].own[0].outcomes),
        asked=len(asked),
        missing=", ".join(f"`{name}`" for name in _unmeasured(asked, rows)) or "none",
        seeds=", ".join(map(str, SEEDS)),
    )


def _unmeasured(asked: Iterable[str], rows: Sequence[Row]) -> list[str]:
    """Recipes that were asked for at some budget and are measured from no seed."""
    here = {row.recipe for row in rows}
    return list(dict.fromkeys(name for name, _ in map(parted, asked) if name not in here))


def drawn(figures: Sequence[Figure], made: datetime) -> dict[str, str]:
    """The two plots of the board's report, by name: of the first seed alone, on the last task. Scores are differences,
    each from the unedited model of its own machine.
    """
    from leaderboard.report.contents import Report
    from leaderboard.report.plots import interval_plot, size_plot
    from leaderboard.report.svg import standalone

    base = figures[0].outcomes
    first = [one for one in figures if one.seed == SEEDS[0] and not one.control]
    cells = tuple(_drawn(one, task) for one in first for task in one.outcomes if task in base)
    report = Report(NAME.removesuffix("-Instruct"), NAME, "the unedited model", cells, (), made)
    task = list(base)[-1]
    return {
        "improvement": standalone(interval_plot(report, task)),
        "size": standalone(size_plot(report, task)),
    }


def _drawn(figure: Figure, task: str) -> Cell:
    """A figure as the plots take it."""
    from leaderboard.board.cell import Cell

    outcome, edited = figure.outcomes[task], figure.recipe != BASELINE
    delta = outcome.difference if edited else None
    cell = Cell(
        model=NAME,
        recipe=figure.recipe,
        run_id=figure.recipe,
        task=task,
        metric=f"{outcome.metric} gained",
        filter="none",
        n=outcome.n,
        baseline_score=0.0,
        score=outcome.difference,
        verdict=outcome.verdict,
        delta=delta,
        improvement=None if delta is None else delta if outcome.higher_is_better else -delta,
        low=outcome.low,
        high=outcome.high,
        higher_is_better=outcome.higher_is_better,
        parameters_kept=figure.kept,
    )
    against = (replace(cell, control=CONTROL, verdict=outcome.beats),) if outcome.beats else ()
    return replace(cell, against_controls=against)
