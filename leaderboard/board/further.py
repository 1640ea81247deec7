"""The further metrics of a task, beside the primary one: their verdicts, and where they contradict the primary one's.

Every metric of a task has a comparison and a verdict of its own. Notable choices:
- The primary metrics of a model's board are one family of the Benjamini-Hochberg correction, its further metrics
  another. So a verdict on a primary metric does not depend on how many others its task happens to report, and among
  the further metrics the share of false findings stays at 5 % too. Further metrics of one task go together (accuracy
  and normalised accuracy, say); Benjamini-Hochberg keeps its level for tests that depend on each other so.
- A further metric is compared with the baseline of its row; with controls only where a paper reports it, and so a
  claim has to be judged by them. Those comparisons are a family too.
- A metric of which no document bears a value has no row. Neither has the right answer's log-likelihood where the task
  reports it by a name of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from leaderboard.board.cell import Cell, changed, with_control_verdicts, with_verdicts
from leaderboard.metrics import GOLD_LOG_LIKELIHOOD, GOLD_NAMES
from leaderboard.store.queries import ScoreRow

_MOST_NAMED = 3
_GOLD_BY_TASKS = GOLD_NAMES - {GOLD_LOG_LIKELIHOOD}


def further_scores(scores: Sequence[ScoreRow], primary: ScoreRow) -> list[ScoreRow]:
    """A task's scores beside its primary one, in reported order."""
    others = [score for score in scores if (score.metric, score.filter) != (primary.metric, primary.filter)]
    if any(score.metric in _GOLD_BY_TASKS for score in scores):
        others = [score for score in others if score.metric != GOLD_LOG_LIKELIHOOD]
    return others


def all_metrics(cells: Iterable[Cell]) -> Iterator[Cell]:
    """Each cell, and behind it those of its further metrics."""
    for cell in cells:
        yield cell
        yield from cell.further


def metric_names(cells: Iterable[Cell]) -> list[str]:
    """Every metric, by name; none where each task has its primary one alone."""
    cells = list(cells)
    return sorted({one.metric for one in all_metrics(cells) if one.metric}) if any(c.further for c in cells) else []


def in_metric(cells: Iterable[Cell], metric: str) -> list[Cell]:
    """The cells of one metric, whether it is primary or not; of several filters the first."""
    found = (next((one for one in (cell, *cell.further) if one.metric == metric), None) for cell in cells)
    return [cell for cell in found if cell is not None]


def with_further_verdicts(cells: Sequence[Cell]) -> list[Cell]:
    """Correct the further metrics of one model's board, and put them into words."""
    judged = iter(with_control_verdicts(with_verdicts([one for cell in cells for one in cell.further])))
    return [
        changed(cell, further=tuple(next(judged) for _ in cell.further)) if cell.further else cell for cell in cells
    ]


def with_contradictions(cells: Sequence[Cell]) -> list[Cell]:
    """Each row with a note of what contradicts its own verdict."""
    found = [(cell, contradictions(cell) if cell.further else ()) for cell in cells]
    return [changed(cell, notes=(*notes, *cell.notes)) if notes else cell for cell, notes in found]


def contradictions(cell: Cell) -> tuple[str, ...]:
    """What the further metrics say against the verdict of the primary one, in a sentence; nothing where none does."""
    against = [one for one in cell.further if _opposes(cell.verdict, one.verdict)]
    if against:
        named = [f"{one.verdict} by {_name(one)}{_difference(one)}" for one in against[:_MOST_NAMED]]
        more = [f"{len(against) - _MOST_NAMED} further metrics"] if len(against) > _MOST_NAMED else []
        return (f"{cell.verdict} by {_name(cell)}, but {' and '.join([*named, *more])}",)
    if cell.verdict != "better":
        return ()
    gold = [one for one in cell.further if one.metric in GOLD_NAMES and _shows_no_gain(one)]
    return tuple(_no_likelier(cell, one) for one in gold[:1])


def _shows_no_gain(cell: Cell) -> bool:
    """Whether a metric is not better by its interval either, which of few documents may be, and the verdict not."""
    if cell.verdict != "undecided" or cell.low is None or cell.high is None:
        return cell.verdict in ("same", "undecided")
    return (cell.improvement or 0.0) <= 0 or cell.low <= 0 <= cell.high


def _opposes(verdict: str, other: str) -> bool:
    """Whether two verdicts on one run cannot both be what it did to a task."""
    return (verdict, other) in {("better", "worse"), ("same", "worse"), ("worse", "better")}


def _no_likelier(cell: Cell, gold: Cell) -> str:
    found = "became no likelier" if gold.verdict == "same" else "are not shown to have become likelier"
    return (
        f"better by {_name(cell)}, while the right answers {found}: {gold.verdict} by {_name(gold)}{_difference(gold)}"
    )


def _name(cell: Cell) -> str:
    return cell.metric if cell.filter in ("", "none") else f"{cell.metric} ({cell.filter})"


def _difference(cell: Cell) -> str:
    """` -0.31 [-0.4, -0.22]`, with the interval where there is one, and which way is good where not up; empty without a
    difference.
    """
    if cell.delta is None:
        return ""
    ends = "" if cell.low is None or cell.high is None else f" [{cell.low:+.3g}, {cell.high:+.3g}]"
    return f" {cell.delta:+.3g}{ends}{good_way(cell)}"


def good_way(cell: Cell) -> str:
    """` (lower is better)`, ` (best at 0.5)`; empty where higher is better, and a difference has an improvement's
    sign.
    """
    if cell.best_value is not None:
        return f" (best at {cell.best_value:g})"
    return "" if cell.higher_is_better else " (lower is better)"
