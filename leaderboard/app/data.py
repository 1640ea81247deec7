"""What the pages show: read from the database for a moment, then kept until the file changes.

Notable choices:
- The file is opened read-only for one reading and closed again, so that a writer never waits for a page that is merely
  open.
- Its modification time and size are its generation: as long as they stand, nothing is read.
- A busy database yields the last good reading, marked as such, never an empty table.
- Every page asks through `answer`, with a function of a store; only the answers asked for last are kept.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from leaderboard.app import page_queries
from leaderboard.app.page_queries import RunFacts
from leaderboard.app.serve import DATABASE_VARIABLE, PUBLISHED_VARIABLE
from leaderboard.board.board import board
from leaderboard.board.cell import Cell
from leaderboard.commands import DEFAULT_DATABASE
from leaderboard.compare.contents import Effects
from leaderboard.errors import Busy, LeaderboardError
from leaderboard.store import queries
from leaderboard.store.database import Store, open_store
from leaderboard.store.families import ModelName, families

_TIMEOUT_S = 2.0
_KEPT = 256  # answers
_EFFECTS = 200_000
_effects: Effects = {}
_lock = threading.Lock()
_answers: dict[Hashable, Answer[Any]] = {}
_ahead: dict[Hashable, object] = {}  # what is being found, for which generation
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Answer(Generic[_Value]):
    """What the database held at one moment. `busy` is set when it could not be read just now and this is an earlier
    reading.
    """

    value: _Value
    read_at: datetime
    generation: object
    busy: str | None = None


class Overview(NamedTuple):
    """What the database holds, by name. names: model_key -> the name shown; runs: every run shown, by id, earliest
    first; pinned: model_key -> run; models: every one, the newest first.
    """

    names: dict[str, str]
    runs: dict[str, RunFacts]
    rejections: list[dict[str, Any]]
    pinned: dict[str, str]
    models: Sequence[ModelName] = ()


@dataclass(frozen=True)
class Details:
    """Everything the store holds of one run."""

    run: dict[str, Any]
    scores: list[dict[str, Any]]
    matrices: list[dict[str, Any]]
    calibrations: list[dict[str, Any]]


def database() -> Path:
    """The file that this server shows."""
    return Path(os.environ.get(DATABASE_VARIABLE, DEFAULT_DATABASE))


def published() -> str | None:
    """Where the board was published, for a server that shows a copy of it: what is beside the file tells nothing then,
    and nothing is to be taken into it.
    """
    return os.environ.get(PUBLISHED_VARIABLE) or None


def place_of(path: str) -> str:
    """A path as it is shown: of a published board, below the folder that the board lay in, wherever that was."""
    folder = Path(path)
    if published() and folder.is_relative_to(database().parent):
        return str(folder.relative_to(database().parent))
    return path


def generation(path: Path) -> object:
    """A value that changes whenever the file does; None where there is none."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_ino, facts.st_mtime_ns, facts.st_size


def answer(question: Callable[..., _Value], *arguments: Hashable) -> Answer[_Value]:
    """`question(store, *arguments)`, kept while the database stands. The question is a function of a module (not of a
    page's script) and known by its name.

    Raises what `open_store` and the question raise; `Busy` only where this was never answered.
    """
    path = database()
    key = (path, question.__module__, question.__qualname__, arguments)
    with _lock:
        last = _answers.get(key)
        current = generation(path)
        if last is not None and last.generation == current:
            return last
        try:
            with open_store(path, read_only=True, timeout_s=_TIMEOUT_S) as store:
                fresh = Answer(question(store, *arguments), datetime.now(), current)
        except Busy as error:
            if last is None:
                raise
            return replace(last, busy=str(error))
        _answers.pop(key, None)
        _answers[key] = fresh
        while len(_answers) > _KEPT:
            _answers.pop(next(iter(_answers)))
        return fresh


def ahead(question: Callable[..., _Value], *arguments: Hashable) -> Answer[_Value] | None:
    """`answer`, for what may take long: found by a thread of its own while pages go on, and None until it is there."""
    path = database()
    key = (path, question.__module__, question.__qualname__, arguments)
    current = generation(path)
    with _lock:
        last = _answers.get(key)
        if last is not None and last.generation == current:
            return last
        if _ahead.get(key) == current:
            return None
        _ahead[key] = current
    threading.Thread(target=_find_ahead, args=(key, current, question, arguments), daemon=True).start()
    return None


def _find_ahead(key: Hashable, current: object, question: Callable[..., Any], arguments: tuple[Hashable, ...]) -> None:
    try:
        with suppress(LeaderboardError), open_store(database(), read_only=True, timeout_s=_TIMEOUT_S) as store:
            found = Answer(question(store, *arguments), datetime.now(), current)
            with _lock:
                _answers[key] = found
    finally:
        with _lock:
            _ahead.pop(key, None)


def forget() -> None:
    """Drop all answers."""
    with _lock:
        _answers.clear()
        _ahead.clear()
        _effects.clear()


def overview() -> Answer[Overview]:
    """What there is, without judging anything. Raises what `answer` raises."""
    return answer(_overview)


def cells_of(*model_keys: str) -> Answer[list[Cell]]:
    """The boards of some models, read at once: forty one by one take seven times as long. Raises what `answer`
    raises.
    """
    return answer(_board_of, *model_keys)


def details(run_id: str) -> Details:
    """One run in full. Raises `UnknownRun` and what `answer` raises."""
    return answer(_details, run_id).value


def _overview(store: Store) -> Overview:
    runs = page_queries.run_facts(store)
    models = families(store)
    return Overview(
        {model.model_key: model.shown for model in models},
        runs,
        queries.rejections(store),
        queries.pinned_baselines(store),
        models,
    )


def effects() -> Effects:
    """What was found of pairs of runs, for questions that judge: runs never change, so neither do they."""
    if len(_effects) > _EFFECTS:
        _effects.clear()
    return _effects


def _board_of(store: Store, *model_keys: str) -> list[Cell]:
    return board(store, models=model_keys, known=effects())


def _details(store: Store, run_id: str) -> Details:
    run = queries.run_details(store, run_id)
    full = run["run_id"]
    return Details(
        run, queries.run_scores(store, full), queries.run_matrices(store, full), queries.run_calibrations(store, full)
    )
