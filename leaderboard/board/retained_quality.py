"""LowRankArena's retained quality: how much of an unedited model's quality an edited one keeps, in one number.

`Q. Ret.` is the mean of five ratios: perplexity of the unedited model over that of the edited one on WikiText-2 and on
C4, and edited over unedited for the mean accuracy of seven choice tasks, for MathQA and for MMLU-Math. Accuracy is
normalised by length where a task reports it so; MMLU-Math's five subjects count by their size. It exists only where
all parts are there, each over all its documents, compared with the unedited model's, and asked as the protocol has it:
without a chat template, and without examples but for MMLU-Math, which has five. It is a point without an interval, and
no verdict follows from it: an accuracy at chance keeps a share of it too, so that a model that answers nothing any more
still retains a half or so. Where one collapsed stands beside the number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from leaderboard.board.cell import COMPARED, Cell
from leaderboard.compare.collapse import COLLAPSED

PERPLEXITIES = ("wikitext2_arena", "c4_stream")
CHOICES = ("boolq", "arc_easy", "arc_challenge", "winogrande", "piqa", "hellaswag", "openbookqa")
MATHQA = "mathqa"
MMLU_MATH = (
    "mmlu_abstract_algebra",
    "mmlu_college_mathematics",
    "mmlu_elementary_mathematics",
    "mmlu_high_school_mathematics",
    "mmlu_high_school_statistics",
)
_TASKS = frozenset({*PERPLEXITIES, *CHOICES, MATHQA, *MMLU_MATH})
_WITH_EXAMPLES = dict.fromkeys((*MMLU_MATH, "mmlu_math"), 5)
_ACCURACIES = ("acc_norm", "acc")


class ArenaQuality(NamedTuple):
    """The five numbers of a model: two perplexities, and three accuracies as shares."""

    wikitext2: float
    c4: float
    choices: float
    mathqa: float
    mmlu_math: float


class Retained(NamedTuple):
    """What a run retains. parts: the five ratios, 1 where all is kept. collapsed: the tasks on which it collapsed."""

    parts: ArenaQuality
    collapsed: tuple[str, ...] = ()

    @property
    def quality(self) -> float:
        """`Q. Ret.`"""
        return fmean(self.parts)


def retained_parts(unedited: ArenaQuality, edited: ArenaQuality) -> ArenaQuality:
    """The five ratios. Raises ValueError for a number that is not above zero where it divides."""
    divisors = (*edited[:2], *unedited[2:])
    if min(divisors) <= 0:
        raise ValueError("perplexities of the edited model and accuracies of the unedited one must be above zero")
    return ArenaQuality(
        unedited.wikitext2 / edited.wikitext2,
        unedited.c4 / edited.c4,
        edited.choices / unedited.choices,
        edited.mathqa / unedited.mathqa,
        edited.mmlu_math / unedited.mmlu_math,
    )


def retained_qualities(cells: Sequence[Cell]) -> dict[str, Retained]:
    """Run -> what it retains, of those that have all parts. cells: those of a model's board."""
    of_run: dict[str, dict[str, Cell]] = {}
    for cell in cells:
        if cell.subset is None and cell.verdict in COMPARED and how_asked_differs(cell) is None:
            of_run.setdefault(cell.run_id, {})[cell.task] = cell
    found = {}
    for run_id, by_task in of_run.items():
        both = _quality(by_task, "baseline_score"), _quality(by_task, "score")
        if both[0] is not None and both[1] is not None and min(*both[1][:2], *both[0][2:]) > 0:
            collapsed = tuple(task for task, cell in by_task.items() if cell.verdict == COLLAPSED and task in _TASKS)
            found[run_id] = Retained(retained_parts(both[0], both[1]), collapsed)
    return found


def how_asked_differs(cell: Cell) -> str | None:
    """What of a task's prompts is not as the protocol has it, in words; None where nothing is, as far as is known."""
    if cell.rephrased is not None:
        return f"run with a {cell.rephrased}"
    wanted = _WITH_EXAMPLES.get(cell.task, 0)
    return None if cell.shots in (None, wanted) else f"run {cell.shots}-shot, not {wanted}-shot"


def _quality(by_task: Mapping[str, Cell], which: str) -> ArenaQuality | None:
    """The five numbers, of the run or of its baseline (which: the field of a cell); None where a part is missing."""
    perplexities = [_number(by_task.get(task), ("token_perplexity",), which) for task in PERPLEXITIES]
    choices = [_number(by_task.get(task), _ACCURACIES, which) for task in CHOICES]
    mathqa = _number(by_task.get(MATHQA), _ACCURACIES, which)
    subjects = [(_number(by_task.get(task), ("acc",), which), by_task[task].n) for task in MMLU_MATH if task in by_task]
    known = [value for value in (*perplexities, *choices, mathqa) if value is not None]
    weighed = [(value, count) for value, count in subjects if value is not None and count]
    if len(known) < len(PERPLEXITIES) + len(CHOICES) + 1 or len(weighed) < len(MMLU_MATH):
        return None
    mmlu_math = sum(value * count for value, count in weighed) / sum(count for _, count in weighed)
    return ArenaQuality(known[0], known[1], fmean(known[2:-1]), known[-1], mmlu_math)


def _number(cell: Cell | None, metrics: Sequence[str], which: str) -> float | None:
    """The number of the first of these metrics that the task has."""
    if cell is None:
        return None
    by_metric = {one.metric: getattr(one, which) for one in (*reversed(cell.further), cell)}
    return next((by_metric[metric] for metric in metrics if by_metric.get(metric) is not None), None)
