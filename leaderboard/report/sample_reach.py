"""What the samples of an audit can show: said once for the page, and not for every comparison.

Notable choices:
- The size is the smallest difference that a sample shows in four of five cases, at the level that the board's number of
  comparisons leaves: the smallest over its undecided comparisons, since a recipe that changes less has less spread.
- Numbers of documents that would decide are not advised: a sample that is scored whole has no more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from leaderboard import statistics as stats
from leaderboard.board.cell import Cell
from leaderboard.terminal.format import could_show, counted, plain


def reach_lines(cells: Sequence[Cell]) -> Iterator[str]:
    """The paragraphs, for the cells of all recipes; none where nothing is undecided."""
    tasks = dict.fromkeys(cell.task for cell in cells if cell.verdict == "undecided")
    if not tasks:
        return
    of_task = {task: [cell for cell in cells if cell.task == task] for task in tasks}
    hopeless = [task for task, own in of_task.items() if _shows_no_gain(own)]
    showing = [text for task, own in of_task.items() if task not in hopeless and (text := _size(own))]
    if showing:
        yield (
            f"What these samples can show, four times in five: a difference of {_listed(showing)}. Smaller ones may be"
            " there and stay undecided, for better or worse."
        )
    yield from _nothing(of_task)
    if hopeless:
        yield (
            f"On {_listed(list(map(plain, hopeless)))} no gain can be shown, since that takes"
            f" {stats.documents_without_collapse(0)} independent documents."
        )
    undecided = [cell for own in of_task.values() for cell in own if cell.verdict == "undecided"]
    yield _where_more(undecided)


def _size(own: Sequence[Cell]) -> str | None:
    """`0.083 on audit_arithmetic (120 documents)`; None where no comparison has such a number."""
    sized = [cell for cell in own if cell.detectable and cell.too_few is None and could_show(cell)]
    if not sized:
        return None
    least = min(sized, key=lambda cell: cell.detectable or 0.0)
    return f"{could_show(least)} on {plain(least.task)} ({counted(least.n or 0, 'document', 'documents')})"


def _shows_no_gain(own: Sequence[Cell]) -> bool:
    """Whether a gain is ruled out even where no document got far worse: see `compare.clipping`."""
    found = (cell.clipping for cell in own if cell.too_few is None and cell.clipping is not None)
    return any(clipping.lost == 0 and clipping.limit >= stats.COLLAPSED_SHARE for clipping in found)


def _nothing(of_task: dict[str, list[Cell]]) -> Iterator[str]:
    """The samples that show no difference at all, those with one reason together."""
    alike: dict[tuple[int, int | None], list[str]] = {}
    for task, own in of_task.items():
        few = [cell for cell in own if cell.verdict == "undecided"]
        if all(cell.too_few is not None for cell in few):
            leasts = [cell.too_few.least for cell in few if cell.too_few is not None and cell.too_few.least is not None]
            alike.setdefault((few[0].n or 0, min(leasts, default=None)), []).append(plain(task))
    for (count, least), tasks in alike.items():
        takes = "" if least is None else f": a test takes at least {least:,}"
        documents = counted(count, "document shows", "documents show")
        yield f"On {_listed(tasks)} {documents} no difference, whatever the answers{takes}."


def _where_more(undecided: Sequence[Cell]) -> str:
    """Where there are documents that decide: no more of a sample that was scored whole."""
    needed = sorted(
        cell.documents_needed for cell in undecided if cell.documents_needed and cell.documents_needed > (cell.n or 0)
    )
    span = f"{needed[0]:,}" if len(set(needed)) == 1 else f"{needed[0]:,} to {needed[-1]:,}" if needed else ""
    takes = f"To decide all that is undecided takes about {span} documents a task. " if span else ""
    in_full = "the commands in full, below, ask public tasks, most of them larger"
    if any(cell.subset for cell in undecided):
        return f"{takes}Only part of the samples was scored; without --limit there is more of them, and {in_full}."
    return f"{takes}The samples have no more than these: {in_full}."


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
