"""The findings of an audit in sentences: is there anything to gain, what helps, what breaks, what it costs, and what
is undecided. The words are those of the board, from judged cells; nothing is judged here.

Notable choices:
- A gain counts where a recipe is better than the unedited model *and* better than every control of its own. What is
  better without a control, or not shown to beat it, is told apart and is no gain.
- "No" is said only where every comparison was made and is decided, of what is better those with its controls too. As
  long as one is undecided, or a recipe has no result, the answer is that nothing was shown.
- A recipe that edited nothing is the unedited model: it has no findings, and counts nowhere.
- Improvements are positive where they are good, whatever the metric.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Literal, NamedTuple

from leaderboard.board.cell import Cell, as_good_controls
from leaderboard.board.standings import ALONE, AS_CONTROL, BEATS, HARM, KINDS, kind
from leaderboard.readers.records import BASELINE
from leaderboard.report.sample_reach import reach_lines
from leaderboard.report.words import control_text, improvement_limits, improvement_point, improvement_text
from leaderboard.terminal.format import TOO_FEW, counted, direction, metric_name, number, percent, plain
from leaderboard.terminal.marks import MARKS, MINUS

QUESTION = "Is there anything to gain here?"
RULE = (
    "A gain counts where a recipe is better than the unedited model and better than its control, which is an edit of"
    " the same size without the recipe's idea. Improvements are positive where they are good, whatever the metric."
)
_LABELS = {
    BEATS: "helps",
    AS_CONTROL: "no gain",
    ALONE: "no control",
    "worse": "breaks",
    "collapsed": "breaks",
    "same": "same",
    "undecided": "undecided",
}
"""What a finding is called, by the kind of its cell; whatever else a cell says stands under its own word."""
_TOGETHER = ("same", "undecided")
"""Verdicts whose findings stand in one line a recipe."""
_NAMED = 3
_UNCHANGED = 0.9999


class AuditedRecipe(NamedTuple):
    """A recipe that was asked for. label: as on the board; kind: what sort of recipe, as a heading; command: the same
    asked in full; doubts: what its receipt warns of; failure: why there is no result.
    """

    label: str
    kind: str
    doubts: tuple[str, ...] = ()
    failure: str | None = None


class PageLine(NamedTuple):
    """A line of the page. label: what stands before the text of a finding."""

    form: Literal["title", "heading", "text", "recipe", "finding", "command"]
    text: str
    label: str = ""


def findings_page(
    model: str, audited: Sequence[AuditedRecipe], cells: Sequence[Cell], commands: Mapping[str, str]
) -> list[PageLine]:
    """The whole page. cells: the judged cells of the audit's runs, baseline and controls among them. commands: kind of
    recipe -> what asks the same in full.
    """
    edited = _of_recipes(cells, audited)
    return [
        PageLine("title", QUESTION),
        PageLine("text", answer(edited, sum(recipe.failure is not None for recipe in audited))),
        PageLine("text", RULE),
        *(PageLine("text", text) for text in (_harm(edited), _corrected(edited), _clipped(edited)) if text),
        *(PageLine("text", text) for text in reach_lines(edited)),
        PageLine("heading", f"The unedited model: {model}"),
        *_baseline_lines(cells),
        *_kind_lines(audited, edited, commands),
    ]


def answer(cells: Iterable[Cell], failed: int = 0) -> str:
    """The first sentence: whether a gain was shown, and if not, how sure that is. failed: recipes without a result."""
    cells = list(cells)
    gains = sorted((cell for cell in cells if kind(cell) == BEATS), key=lambda cell: cell.q_value or 0.0)
    if gains:
        more = f", and {counted(len(gains) - _NAMED, 'more', 'more')} below" if len(gains) > _NAMED else ""
        return f"Yes, on these samples: {'; '.join(map(_gain, gains[:_NAMED]))}{more}."
    open_ones = sum(kind(cell) == "undecided" for cell in cells)
    decided = sum(kind(cell) in (ALONE, AS_CONTROL, "same", *HARM) for cell in cells)
    may_gain = sum(kind(cell) == AS_CONTROL and not as_good_controls(cell) for cell in cells)
    if not open_ones + decided:
        return "Nothing can be said: no recipe was compared with the unedited model."
    unmade = sum(kind(cell) in ("incomparable", "failed") for cell in cells)
    sure = not open_ones + may_gain + unmade + failed
    parts = ["No, as far as these samples go" if sure else "Nothing was shown to be gained"]
    said = (_better_for_nothing(cells), _left_open(open_ones, decided), _not_made(unmade, failed))
    parts += [text for text in said if text]
    return f"{': '.join([parts[0], '; '.join(parts[1:])]) if parts[1:] else parts[0]}."


def finding_rows(audited: Sequence[AuditedRecipe], cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """The findings for other programs: a row a recipe and task, and one a recipe without a result."""
    kinds = {recipe.label: recipe.kind for recipe in audited}
    rows = [_row(cell, kinds[cell.recipe]) for cell in _of_recipes(cells, audited)]
    blank = dict.fromkeys(_row_keys())
    failed = [recipe for recipe in audited if recipe.failure is not None]
    return rows + [
        blank | {"kind": recipe.kind, "recipe": recipe.label, "finding": "failed", "notes": [recipe.failure]}
        for recipe in failed
    ]


def _of_recipes(cells: Sequence[Cell], audited: Sequence[AuditedRecipe]) -> list[Cell]:
    """The cells of the recipes' own runs that edited something, in the order of the recipes, what helps first."""
    labels = [recipe.label for recipe in audited]
    unedited = {(cell.model_key, cell.weights) for cell in cells if cell.verdict == BASELINE}
    ours = [
        cell
        for cell in cells
        if cell.control is None and cell.recipe in labels and (cell.model_key, cell.weights) not in unedited
    ]
    return sorted(ours, key=lambda cell: (labels.index(cell.recipe), KINDS.index(kind(cell))))


def _gain(cell: Cell) -> str:
    doubts = f"{_at_chance(cell)}{_control_fell(cell)}{_fell(cell)}"
    return f"{_short(cell.recipe)} on {plain(cell.task)} ({_improvement(cell)}{doubts})"


def _fell(cell: Cell) -> str:
    return f"; the model collapsed on {_listed(list(map(plain, cell.collapsed_on)))}" if cell.collapsed_on else ""


def _at_chance(cell: Cell) -> str:
    return "" if cell.beats_chance is not False else f"; not shown to beat chance, {cell.chance:.3f}"


def _control_fell(cell: Cell) -> str:
    fell = any(pair.against_collapsed for pair in cell.against_controls)
    return "; its control collapsed, so that being ahead of it says little" if fell else ""


def _better_for_nothing(cells: Iterable[Cell]) -> str:
    """What is better than the baseline, and is no gain all the same."""
    named: dict[str, list[str]] = {}
    for cell in cells:
        if why := _no_gain_since(cell):
            named.setdefault(why, []).append(f"{_short(cell.recipe)} on {plain(cell.task)}")
    return "; ".join(f"better than the unedited model, {why}: {_listed(which)}" for why, which in named.items())


def _no_gain_since(cell: Cell) -> str:
    """Why what is better than the baseline is no gain; empty for what is one, or is not better."""
    if kind(cell) == ALONE:
        return "but no control was run"
    if kind(cell) != AS_CONTROL:
        return ""
    if as_good_controls(cell):
        return "but no better than its control"
    if all(pair.delta is None for pair in cell.against_controls):
        return "but not comparable with its control"
    return "but not shown to beat its control"


def _left_open(open_ones: int, decided: int) -> str:
    total = counted(open_ones + decided, "comparison", "comparisons")
    if not open_ones:
        one = "the only comparison with the unedited model is decided"
        return one if decided == 1 else f"all {total} with the unedited model are decided"
    verb = "is" if open_ones == 1 else "are"
    return f"{open_ones:,} of {total} with the unedited model {verb} undecided, so that a gain may be there"


def _not_made(unmade: int, failed: int) -> str:
    """What there is no verdict of, of comparisons that have none and recipes that have no result."""
    told = [counted(unmade, "comparison", "comparisons")] if unmade else []
    told += [f"{counted(failed, 'recipe', 'recipes')} without a result"] if failed else []
    return f"nothing is known of {' and '.join(told)}" if told else ""


def _harm(cells: Sequence[Cell]) -> str:
    """Which recipes break something, and what."""
    broken: dict[str, list[str]] = {}
    for cell in cells:
        if kind(cell) in HARM:
            broken.setdefault(cell.recipe, []).append(plain(cell.task))
    if not broken:
        return "Nothing was shown to break; what is undecided may."
    told = "; ".join(f"{_short(label)} on {_listed(tasks)}" for label, tasks in broken.items())
    return f"What breaks: {told}."


def _corrected(cells: Sequence[Cell]) -> str:
    """Among how many comparisons the words were found."""
    plainly = max((cell.comparisons or 0 for cell in cells), default=0)
    controlled = max((pair.comparisons or 0 for cell in cells for pair in cell.against_controls), default=0)
    if not plainly:
        return ""
    beside = f" and {controlled:,} with controls" if controlled else ""
    return (
        f"The words are corrected for everything that this model has on the board: {plainly:,} comparisons with the"
        f" unedited model{beside} (Benjamini-Hochberg, each family by itself): one in twenty of the differences that"
        " are found may be none. Intervals are of 95 % each, and not corrected."
    )


def _clipped(cells: Sequence[Cell]) -> str:
    """What the mark behind an interval means, where one has it."""
    if not any(improvement_text(cell).endswith("clipped") for cell in cells):
        return ""
    return (
        "Clipped: interval and verdict count every document for a bound at most, so that a few cannot decide; the"
        " improvement before the interval is the plain one, which then lies outside it."
    )


def _baseline_lines(cells: Sequence[Cell]) -> Iterator[PageLine]:
    seen = set()
    for cell in cells:
        if cell.verdict == BASELINE and cell.task not in seen:
            seen.add(cell.task)
            scored = counted(cell.n or 0, "document", "documents")
            score = f"{metric_name(cell)} {number(cell.score)} ({direction(cell)})"
            yield PageLine("finding", f"{plain(cell.task)}: {score}, {scored}", "score")


def _kind_lines(
    audited: Sequence[AuditedRecipe], cells: Sequence[Cell], commands: Mapping[str, str]
) -> Iterator[PageLine]:
    """Kind by kind: each recipe with what it came to, and how they are asked in full."""
    for heading, of_kind in groupby(audited, lambda recipe: recipe.kind):
        yield PageLine("heading", heading)
        for recipe in of_kind:
            yield from _recipe_lines(recipe, [cell for cell in cells if cell.recipe == recipe.label])
        yield PageLine("text", "The same in full, on public tasks:")
        yield PageLine("command", plain(commands[heading]))


def _recipe_lines(recipe: AuditedRecipe, own: Sequence[Cell]) -> Iterator[PageLine]:
    yield PageLine("recipe", f"{_short(recipe.label)}{_cost(own)}")
    if _short(recipe.label) != recipe.label:
        yield PageLine("finding", plain(recipe.label), "asked as")
    if recipe.failure is not None:
        yield PageLine("finding", plain(recipe.failure), "failed")
    elif not own:
        yield PageLine("finding", "nothing was edited, so there is nothing to compare", "same")
    for cell in own:
        if cell.verdict not in _TOGETHER:
            yield PageLine("finding", _finding(cell), _label(cell))
    for verdict in _TOGETHER:
        if alike := [_in_brief(cell) for cell in own if cell.verdict == verdict]:
            yield PageLine("finding", "; ".join(alike), _LABELS[verdict])
    yield from (PageLine("finding", plain(doubt), "note") for doubt in recipe.doubts)


def _label(cell: Cell) -> str:
    found = kind(cell)
    return "unproven" if found == AS_CONTROL and not as_good_controls(cell) else _LABELS.get(found, found)


def _cost(cells: Sequence[Cell]) -> str:
    kept = next((cell.parameters_kept for cell in cells if cell.parameters_kept is not None), None)
    if kept is None:
        return ""
    return ": all parameters are kept" if kept > _UNCHANGED else f": {percent(kept)} of the parameters are kept"


def _finding(cell: Cell) -> str:
    """What one cell says: the scores, the improvement, the control, and what else must be known."""
    scores = f"{plain(cell.task)}: {metric_name(cell)} {number(cell.baseline_score)} -> {number(cell.score)}"
    parts = [scores, f"improvement {_improvement(cell)}" if improvement_text(cell) else "", _beside(cell)]
    return "; ".join(filter(None, [*parts, *map(plain, cell.notes[:1])]))


def _beside(cell: Cell) -> str:
    if cell.verdict != "better":
        return ""
    if not cell.against_controls:
        return "no control was run"
    return "against its control " + ", ".join(_ascii(control_text(pair)) for pair in cell.against_controls)


def _in_brief(cell: Cell) -> str:
    """A cell that shows neither a gain nor a loss: the improvement alone, since the page says once what its sample can
    show; and of an undecided one, that documents got far worse, which an interval above zero would not tell.
    """
    improvement = _improvement(cell)
    if cell.too_few is not None:
        improvement = improvement.removesuffix(f", {TOO_FEW}")
    ruined = cell.clipping.lost if cell.verdict == "undecided" and cell.clipping is not None else 0
    beside = f" ({counted(ruined, 'document', 'documents')} got far worse)" if ruined else ""
    return f"{plain(cell.task)} {improvement}".strip() + beside


def _improvement(cell: Cell) -> str:
    return _ascii(improvement_text(cell))


def _ascii(text: str) -> str:
    return text.replace(MINUS, "-")


def _short(label: str) -> str:
    return plain(label.partition(":")[0])


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _row_keys() -> tuple[str, ...]:
    return (
        *("kind", "recipe", "task", "metric", "documents", "finding", "meaning", "baseline", "score"),
        *("improvement", "low", "high", "control", "against_control", "parameters_kept", "documents_needed"),
        *("run_id", "notes", "chance", "beats_chance"),
    )


def _row(cell: Cell, heading: str) -> dict[str, Any]:
    limits = improvement_limits(cell)
    values = (
        *(heading, cell.recipe, cell.task, cell.metric, cell.n, kind(cell), MARKS[kind(cell)].words),
        *(cell.baseline_score, cell.score, improvement_point(cell)),
        *((None, None) if limits is None else (limits.low, limits.high)),
        [pair.control for pair in cell.against_controls],
        [pair.verdict for pair in cell.against_controls],
        *(cell.parameters_kept, cell.documents_needed, cell.run_id, list(cell.notes)),
        *(cell.chance, cell.beats_chance),
    )
    return dict(zip(_row_keys(), values, strict=True))
