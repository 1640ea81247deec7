"""Judging before anybody asks, so that boards are judged once and kept: after an ingest, and beside the pages."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from leaderboard.board import stored_verdicts
from leaderboard.board.board import judge_ahead
from leaderboard.compare import verdict_cache
from leaderboard.errors import Busy, LeaderboardError
from leaderboard.store import migrations
from leaderboard.store.database import Store, open_store

_TURN_SECONDS, _LONGEST_TURN_SECONDS = 0.5, 8.0
_RUNS_A_TURN = 300
_LOOK_SECONDS, _AT_ONCE_SECONDS = 3.0, 10.0  # between two looks at the file; of judging before others are let in
_PATIENCE_SECONDS = 5.0


def judge_outdated(database: Path, timeout_s: float, seconds: float) -> None:
    """Judge the models whose stored verdicts no longer hold, in turns of reading and writing, so that nobody waits
    long. A board does without; so does a busy database, and then the next ingest goes on.
    """
    until, turn = time.monotonic() + seconds, _TURN_SECONDS
    try:
        while (left := until - time.monotonic()) > 0:
            with open_store(database, read_only=True, timeout_s=timeout_s) as store:
                states = stored_verdicts.outdated(store)
                if not states:
                    return
                ahead = judge_ahead(store, _some_models(store, list(states)), min(turn, left))
            with open_store(database, read_only=False, timeout_s=timeout_s) as store:
                verdict_cache.write(store, ahead.new)
                stored_verdicts.write(store, ahead.boards, states)
            if not ahead.done:  # of many runs it takes longer to find out what is still to be judged
                turn = min(2 * turn, _LONGEST_TURN_SECONDS)
    except Busy:
        pass


def _some_models(store: Store, models: Sequence[str]) -> list[str]:
    """The first of these models, as many as are read in a moment."""
    counts = dict(
        store.connection.execute(
            "SELECT model_key, count(*) FROM runs JOIN variants USING (variant_id) GROUP BY model_key"
        ).fetchall()
    )
    runs = 0
    for number, model in enumerate(models, start=1):
        runs += counts.get(model, 0)
        if runs >= _RUNS_A_TURN:
            return list(models[:number])
    return list(models)


def keep_judged(database: Path, is_wanted: Callable[[], bool], look_seconds: float = _LOOK_SECONDS) -> None:
    """Judge what no longer holds whenever the file has changed, for as long as `is_wanted` says. What cannot be read or
    written is left alone until it changes: pages do without. A store of an earlier schema is never migrated for it.
    """
    done: object = None
    while is_wanted():
        current = _state_of(database)
        if current is not None and current != done:
            try:
                finished = _is_judged(database)
                if not finished:
                    judge_outdated(database, _PATIENCE_SECONDS, _AT_ONCE_SECONDS)
            except Busy:
                finished = False
            except LeaderboardError:
                finished = True
            done = current if finished else None
        time.sleep(look_seconds)


def _is_judged(database: Path) -> bool:
    """Whether nothing is to be judged, or nothing can be stored."""
    if not os.access(database, os.W_OK):
        return True
    with open_store(database, read_only=True, timeout_s=_PATIENCE_SECONDS) as store:
        earlier = (migrations.current(store.connection) or 0) < migrations.latest()
        return earlier or not stored_verdicts.outdated(store)


def _state_of(database: Path) -> object:
    try:
        facts = database.stat()
    except OSError:
        return None
    return facts.st_ino, facts.st_mtime_ns, facts.st_size
