"""The words and numbers of a report, the same in HTML and in Markdown. All of it is plain text, to be escaped."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from leaderboard.board.cell import Cell
from leaderboard.board.standings import ALONE, AS_CONTROL, BEATS, HARM, Standing, Standings, gained, kind
from leaderboard.readers.records import BASELINE
from leaderboard.report.contents import Report, ReportedRun
from leaderboard.terminal.format import TOO_FEW, counted, number, plain, span
from leaderboard.terminal.marks import MARKS, MINUS, cell_text, gain, words_of
from leaderboard.terminal.output import OurText, Row, markdown_code

HARMLESS = ("same", "undecided", "baseline")
_TELLING = ("lm_eval", "lm_eval_recipes", "torch", "transformers")
_MANIFEST = "--manifest"
_SIZES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"))


class ImprovementLimits(NamedTuple):
    """The ends of an interval of the improvement, positive where it is good."""

    low: float
    high: float


def improvement_limits(cell: Cell, *, unpaired: bool = False) -> ImprovementLimits | None:
    """The 95 % interval of a cell's improvement; None where it has none that says anything, and of an unpaired
    difference, but where that is asked for.

    Where the best value lies in the middle, both scores are estimates of how far from it they are, so that the limits
    do not follow from those of the difference (`statistics.middle`).
    """
    if cell.low is None or cell.high is None or cell.says_nothing or (cell.unpaired and not unpaired):
        return None
    if cell.best_value is not None:
        if cell.improvement_low is None or cell.improvement_high is None:
            return None
        return ImprovementLimits(cell.improvement_low, cell.improvement_high)
    return ImprovementLimits(cell.low, cell.high) if cell.higher_is_better else ImprovementLimits(-cell.high, -cell.low)


def improvement_point(cell: Cell) -> float | None:
    """What the interval of `improvement_limits` is of: the mean of clipped differences where documents are clipped,
    else the improvement as it is shown.
    """
    return gained(cell) if cell.improvement is None else cell.improvement


def improvement_text(cell: Cell) -> str:
    """`+0.838 [+0.731, +0.912]`; `too few documents` in place of an interval as wide as the range; `clipped` behind one
    that is of the mean with no document counted for more than a bound, and does not hold the plain improvement.
    """
    point = gained(cell)
    number = gain(point, minus=MINUS)
    if not number or point is None:
        return ""
    if cell.unpaired:
        return f"{number} unpaired"
    if cell.says_nothing:
        return f"{number}, {TOO_FEW}"
    limits = improvement_limits(cell)
    if limits is None:
        return number
    clipped = "" if limits.low <= point <= limits.high or cell.clipping is None else " clipped"
    return f"{number} [{gain(limits.low, minus=MINUS)}, {gain(limits.high, minus=MINUS)}]{clipped}"


def score_text(cell: Cell) -> str:
    """A cell's score; empty where it has none."""
    return "" if cell.score is None else number(cell.score).replace("-", MINUS)


def control_text(pair: Cell, *, named: bool = True) -> str:
    """`+0.112 [+0.050, +0.174] better (random-subspace)`: a recipe against a control of its own."""
    beside = [plain(pair.control or "control")] if named else []
    beside += ["it collapsed"] if pair.against_collapsed else []
    why = f" ({'; '.join(beside)})" if beside else ""
    return f"{improvement_text(pair)} {pair.verdict}{why}".strip()


def sentences(report: Report) -> list[tuple[str, str, str]]:
    """The report in a few sentences, each as what stands before a stressed part, that part, and what follows."""
    board = report.standings
    recipes = [row for row in board.rows if row.is_recipe and row.cells]
    if report.compared:
        return [_compared(row) for row in recipes[:12]]
    proven = [row for row in recipes if any(kind(cell) == BEATS for cell in row.cells.values())]
    uncontrolled = [row for row in recipes if row not in proven and _has(row, (ALONE,))]
    as_controls = [row for row in recipes if row not in [*proven, *uncontrolled] and _has(row, (AS_CONTROL,))]
    harmful = [row for row in recipes if _has(row, HARM)]
    said = [
        (f"Of {counted(len(recipes), 'recipe', 'recipes')}, ", str(len(proven)), f" {_are(len(proven))} better than"),
        (" baseline and control on at least one task; ", str(len(harmful)), f" {_are(len(harmful))} worse on"),
        (" at least one.", "", ""),
    ]
    if uncontrolled:
        count = counted(len(uncontrolled), "more is", "more are")
        said.append((f" {count} better than the baseline, with no control to tell why.", "", ""))
    if as_controls:
        count = counted(len(as_controls), "more is", "more are")
        said.append((f" {count} better than the baseline, but not shown to beat a control.", "", ""))
    return [*said, *_best(recipes, board.rows), *_smallest(recipes)]


def _compared(row: Standing) -> tuple[str, str, str]:
    counts = Counter(words_of(cell) for cell in row.cells.values())
    listed = ", ".join(
        f"{'better' if name == ALONE else mark.words} on {counts[mark.words]}"
        for name, mark in MARKS.items()
        if counts[mark.words]
    )
    return ("", plain(row.name), f": {listed} of {counted(len(row.cells), 'task', 'tasks')}. ")


def _best(recipes: Sequence[Standing], rows: Sequence[Standing]) -> list[tuple[str, str, str]]:
    level = next((row.rank.mean for row in rows if row.is_main and row.rank), None)
    ahead = [row for row in recipes if row.rank and row.rank.place == 1 and (level is None or row.rank.mean < level)]
    if not ahead:
        return [(" No recipe ranks before the baseline.", "", "")]
    return [(" Best by mean rank: ", _listed(ahead), ".")]


def _smallest(recipes: Sequence[Standing]) -> list[tuple[str, str, str]]:
    """The smallest recipe that loses on no task."""
    able = [row for row in recipes if row.parameters_kept is not None and row.rank and not _has(row, (*HARM, "failed"))]
    if not able or (least := min(row.parameters_kept or 1.0 for row in able)) >= 0.995:
        return []
    smallest = [row for row in able if row.parameters_kept == least]
    caveat = ", where undecided counts as no loss" if any(row.kinds()["undecided"] for row in smallest) else ""
    return [(" Smallest that loses on none: ", _listed(smallest), f", {share(least)} of the parameters{caveat}.")]


def _has(row: Standing, kinds: Iterable[str]) -> bool:
    return any(kind(cell) in kinds for cell in row.cells.values())


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _listed(rows: Sequence[Standing]) -> str:
    names = [plain(row.name) for row in rows]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def badges(report: Report) -> list[str]:
    """What holds for the whole board, or between which values it varies."""
    runs, baseline = report.runs, _baseline(report)
    documents = [cell.n for cell in report.cells if cell.n is not None]
    parameters = {run.parameters for run in runs if run.parameters}
    engines = {run.row.engine for run in runs if run.row.engine}
    found = [
        " and ".join(f"{magnitude(count)} parameters" for count in sorted(parameters)),
        *_differing("", (run.model_type for run in runs)),
        *_differing("dtype ", (run.row.dtype for run in runs)),
        span(documents),
        *(
            _differing("limit ", (run.limit or "none" for run in runs))
            if any(run.limit for run in runs)
            else ["no limit"]
        ),
        *_differing("batch ", (run.row.batch_size for run in runs)),
        *_differing("device ", (run.row.device for run in runs)),
        *_differing("GPU ", (_gpu(run) for run in runs)),
        *(_differing("engine ", engines) if len(engines) > 1 else []),
        counted(len(runs), "run", "runs"),
        f"baseline {baseline.row.run_id[:8]}{_on(baseline)}" if baseline else "",
        *(f"{name} {_joined(run.versions.get(name) for run in runs)}" for name in _TELLING if _known(runs, name)),
    ]
    return [plain(text) for text in found if text]


def _baseline(report: Report) -> ReportedRun | None:
    """The run that most cells are compared with."""
    often = Counter(cell.baseline_run for cell in report.cells if cell.baseline_run)
    return next((run for run in report.runs if often and run.row.run_id == often.most_common(1)[0][0]), None)


def _on(run: ReportedRun) -> str:
    return f", {run.row.started.day} {run.row.started:%b %Y}" if run.row.started else ""


def _known(runs: Sequence[ReportedRun], name: str) -> bool:
    return any(name in run.versions for run in runs)


def _gpu(run: ReportedRun) -> str | None:
    """The names of a run's GPUs; None also where it had none, which its device tells."""
    gpu, device = run.row.gpu, run.row.device or "cpu"
    return None if gpu is None or device.startswith(gpu) else gpu


def _differing(before: str, values: Iterable[str | None]) -> list[str]:
    text = _joined(values)
    return [f"{before}{text}"] if text else []


def _joined(values: Iterable[str | None]) -> str:
    found = sorted({value for value in values if value})
    return ", ".join(found[:4]) + (f" and {len(found) - 4} more" if len(found) > 4 else "")


def magnitude(count: float) -> str:
    """`588K`, `6.74B`."""
    for size, letter in _SIZES:
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return f"{count:,.0f}"


def share(kept: float | None) -> str:
    """`55 %` of the parameters; of next to none or next to all, three digits, so that 99.6 % is not written as all."""
    if kept is None:
        return ""
    near_an_end = kept < 0.0995 or 0.995 <= kept < 0.9995
    return f"{100 * kept:.3g} %" if near_an_end else f"{100 * kept:.0f} %"


class Note(NamedTuple):
    """A note of the report, once, with the rows that it is of."""

    text: str
    rows: tuple[str, ...]


def notes(report: Report) -> list[Note]:
    """All notes of cells, each once, those of most rows first."""
    found: dict[str, list[str]] = {}
    for cell in report.cells:
        for text in cell_notes(cell):
            found.setdefault(text, []).append(f"{plain(cell.name)} on {plain(cell.task)}")
    return [Note(text, tuple(rows)) for text, rows in sorted(found.items(), key=lambda item: -len(item[1]))]


def cell_notes(cell: Cell) -> list[str]:
    """What is to be said of a cell beside its numbers."""
    return [text for text in map(plain, cell.notes) if text]


def lacks(cell: Cell) -> str:
    """What an undecided cell still needs: `needs about 1,200 documents`; empty for any other."""
    if cell.verdict != "undecided":
        return ""
    if cell.documents_needed is None or cell.documents_needed <= (cell.n or 0):
        return TOO_FEW if cell.too_few else ""
    return f"needs about {cell.documents_needed:,} documents"


def of_rows(note: Note, most: int = 3) -> str:
    """`laser on piqa, svd on piqa and 4 more`."""
    more = f" and {len(note.rows) - most} more" if len(note.rows) > most else ""
    return ", ".join(note.rows[:most]) + more


class MadeBy(NamedTuple):
    """A command line, and how many of the runs it made."""

    command: str
    runs: int


def commands(report: Report) -> list[MadeBy]:
    """The command lines of the runs, in the order of their first runs."""
    lines = Counter(_typed(run.command) for run in report.runs if run.command)
    return [MadeBy(plain(line), count) for line, count in lines.items()]


def _typed(command: Sequence[str]) -> str:
    """A command line without what a sweep adds for itself: given again, it would write among the sweep's own files."""
    if len(command) == 1:
        return command[0]
    words = list(command)
    if _MANIFEST in words:
        del words[words.index(_MANIFEST) : words.index(_MANIFEST) + 2]
    return shlex.join(words)


def versions(report: Report) -> list[tuple[str, str]]:
    """Each package with the versions that the runs were made with."""
    names = sorted({name for run in report.runs for name in run.versions})
    return [(plain(name), plain(_joined(run.versions.get(name) for run in report.runs))) for name in names]


def failures(report: Report) -> list[tuple[str, str]]:
    """Each failed run and why."""
    return [
        (plain(cell.name), plain(cell.notes[0] if cell.notes else "no reason given"))
        for cell in {(cell.run_id, cell.notes[:1]): cell for cell in report.cells if cell.verdict == "failed"}.values()
    ]


def beaten(row: Standing) -> str:
    """`2 of 3`: on how many tasks of those that are better than the baseline it beats its controls too."""
    return f"{row.beaten} of {row.better}" if row.better else ""


def board_rows(board: Standings, rows: Sequence[Standing], tasks: Sequence[str]) -> list[Row]:
    """The board's table for Markdown and LaTeX: a row a recipe, a column a task, in it mark and improvement. Tasks are
    named in Markdown's code.
    """
    any_better = any(row.better for row in board.rows)
    sized = any(row.parameters_kept is not None for row in board.rows)
    return [
        {"Rank": OurText(row.rank or ""), "Recipe": row.name}
        | {
            markdown_code(task): OurText(cell_text(cell, best=row.name in board.best.get(task, ())) if cell else "")
            for task in tasks
            for cell in [row.cells.get(task)]
        }
        | ({"Beats control": OurText(beaten(row))} if any_better else {})
        | ({"Size kept": OurText(share(row.parameters_kept))} if sized else {})
        for row in rows
    ]


def is_failed(row: Standing) -> bool:
    """Whether a row has nothing but failures."""
    return bool(row.cells) and all(cell.verdict == "failed" for cell in row.cells.values())


def baseline_score(report: Report, task: str) -> float | None:
    """What the rows of a task are compared with: the baseline's own score."""
    cells = [cell for cell in report.cells if cell.task == task]
    own = [cell.score for cell in cells if cell.verdict == BASELINE]
    return own[-1] if own else next((cell.baseline_score for cell in cells if cell.baseline_score is not None), None)
