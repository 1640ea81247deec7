"""The board: every run x task against its baseline, judged, corrected for their number, and put into words.

Notable choices:
- Which run is the baseline of a cell is for `compare.baselines` to say: the pinned one, or else the latest unedited
  run of the same task, documents and settings.
- What a cell holds before that is for `run_cells` to say; its words are those of `cell`.
- A recipe is compared with each control of its own too, on the same documents: being better than the baseline says
  little where the control is as good. Corrected over all such comparisons of the model.
- A failed run is left out once a run of the same `spec_id` has completed.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from leaderboard.board import labels
from leaderboard.board.cell import Cell, with_collapses, with_control_verdicts, with_verdicts
from leaderboard.board.further import with_contradictions, with_further_verdicts
from leaderboard.board.run_cells import Judging, cells_of
from leaderboard.compare import verdict_cache
from leaderboard.compare.baselines import Baselines
from leaderboard.compare.contents import Contents, Effects, read_contents
from leaderboard.compare.verdict_cache import Judged, Key
from leaderboard.errors import UnknownRun
from leaderboard.metrics import DEFAULT_MARGIN
from leaderboard.readers.records import BASELINE
from leaderboard.readers.safe_json import no_collection
from leaderboard.store.database import Store
from leaderboard.store.noise_floor import Floors, together
from leaderboard.store.queries import RunRow

_AT_ONCE = 20  # runs judged between two looks at the clock


def board(
    store: Store,
    *,
    models: Iterable[str] | None = None,
    baseline_run: str | None = None,
    margin: float = DEFAULT_MARGIN,
    known: Effects | None = None,
    floors: Floors | None = None,
) -> list[Cell]:
    """All cells, or those of some models, by model, task and time.

    `baseline_run` compares everything with that run instead. `margin` is for scores in [0, 1]; see `judge` for others.
    `known` keeps effects from one call to the next: runs never change, so neither do they. `floors`: noise measured by
    runs of another store. The correction is over all
    cells of a model. Raises `UnknownRun`.
    """
    wanted = None if models is None else set(models)
    with no_collection():
        contents = read_contents(store, known, models=wanted, and_run=baseline_run)
        if floors:
            contents = replace(contents, floors=together(floors, contents.floors))
        fixed = _the_run(contents, baseline_run) if baseline_run else None
        memory = verdict_cache.recall(store, contents.run_ids(wanted)) if margin == DEFAULT_MARGIN else None
        cells = []
        by_model = contents.by_model(wanted)
        names = _names(contents, [run for runs in by_model.values() for run in runs])
        for runs in by_model.values():
            judging = Judging(store, contents, fixed or Baselines(contents, runs), margin, memory, names)
            cells += _in_words([cell for some in _turns(runs) for cell in cells_of(judging, some)])
        return sorted(cells, key=_order)


class JudgedAhead(NamedTuple):
    """Boards that were judged before anybody asked. new: comparisons to remember. boards: by model_key, all cells of
    each model that was finished. done: whether all were.
    """

    new: dict[Key, Judged]
    boards: dict[str, list[Cell]]
    done: bool


def judge_ahead(store: Store, models: Sequence[str], seconds: float, known: Effects | None = None) -> JudgedAhead:
    """The boards of some models (by key), as far as `seconds` go. known: as of `board`."""
    until = time.monotonic() + seconds
    contents = read_contents(store, known, models=models)
    memory = verdict_cache.recall(store, contents.run_ids(set(models)))
    boards: dict[str, list[Cell]] = {}
    by_model = contents.by_model(set(models))
    names = _names(contents, [run for runs in by_model.values() for run in runs])
    for model, runs in by_model.items():
        judging = Judging(store, contents, Baselines(contents, runs), DEFAULT_MARGIN, memory, names)
        cells: list[Cell] = []
        for some in _turns(runs):
            if memory.new and time.monotonic() > until:  # what is only recalled is quick, and each turn must get on
                return JudgedAhead(memory.new, boards, False)
            cells += cells_of(judging, some)
        boards[model] = _in_words(cells)
    return JudgedAhead(memory.new, boards, True)


def pair_board(store: Store, baseline_run: str, run_id: str, *, margin: float = DEFAULT_MARGIN) -> list[Cell]:
    """One run against another, whatever their models: a cell a task, corrected over these alone. Raises
    `UnknownRun`.
    """
    contents = read_contents(store)
    baseline, run = _the_run(contents, baseline_run), _the_run(contents, run_id)
    judging = Judging(store, contents, baseline, margin, names=_names(contents, [baseline, run]))
    return sorted(_in_words(cells_of(judging, [run])), key=_order)


def _turns(runs: Sequence[RunRow]) -> Iterator[Sequence[RunRow]]:
    """Some runs at a time, whose samples fit into memory."""
    return (runs[first : first + _AT_ONCE] for first in range(0, len(runs), _AT_ONCE))


def _in_words(cells: list[Cell]) -> list[Cell]:
    """The cells of one model with their verdicts: against the baseline, against their controls, and on further metrics,
    each a family of its own; after them which collapsed.
    """
    return with_contradictions(with_collapses(with_further_verdicts(with_control_verdicts(with_verdicts(cells)))))


def _names(contents: Contents, runs: Sequence[RunRow]) -> dict[str, str]:
    return labels.names_of(runs, contents.tasks, contents.calibrated)


def _the_run(contents: Contents, run_id: str) -> RunRow:
    found = [run for run in contents.runs if run.run_id.startswith(run_id)]
    if len(found) != 1:
        raise UnknownRun(f"{'no run' if not found else 'more than one run'} in the leaderboard begins with {run_id}")
    return found[0]


def _order(cell: Cell) -> tuple[str, str, bool, str, str]:
    return cell.model, cell.task, cell.verdict != BASELINE, cell.recipe, cell.run_id
