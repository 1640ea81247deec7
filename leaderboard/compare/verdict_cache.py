"""Comparisons that were judged before. Judging a cell takes half a millisecond and a board has tens of thousands, so
what was found is kept.

Notable choices:
- A row is known by run, baseline run, task, metric, filter and a digest of the source that judged; only the default
  margin is kept. Runs never change once stored, so such a row never becomes wrong: a new pin or a new baseline asks for
  other rows, new code for all of them anew, and a deleted run's go with it.
- What depends on more than the two runs is not in it: the correction over all cells, published numbers and the noise
  floor are worked out for every board.
- Writers fill the table when they ingest, for the models that got runs, in short turns that let others in, for a few
  seconds, or as long as it took to read new runs. Pages never write: what the table lacks they judge themselves, and
  keep the effects in memory (`known` of `board`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from leaderboard.compare import clipping, collapse, needs
from leaderboard.compare.pairing import Pairing
from leaderboard.readers.source_code import digest_of, sources_of
from leaderboard.store import migrations
from leaderboard.store.database import Store

_SCHEMA = 19
"""The first with all columns of `Judged`."""


class Key(NamedTuple):
    """What was compared."""

    run_id: str
    baseline_run: str
    task: str
    metric: str
    filter: str


class Judged(NamedTuple):
    """What was found, as it is stored: the numbers of an `Effect` that a board shows, and two JSON lists. Without
    documents there is no effect, and delta, low and high are unpaired.
    """

    baseline_score: float | None
    documents: int | None
    delta: float | None
    low: float | None
    high: float | None
    improvement: float | None
    p_value: float | None
    p_same: float | None
    lost: int | None
    gained: int | None
    flip_rate: float | None
    margin: float | None
    obstacles: str
    notes: str
    clipping: str | None = None
    needs: str | None = None
    collapse: str | None = None
    improvement_low: float | None = None
    improvement_high: float | None = None
    chance: float | None = None
    beats_chance: bool | None = None


@cache
def code() -> str:
    """A digest of everything that decides what judging finds: the source of the board, and of every module of this
    package that it imports, directly or through others.
    """
    return digest_of(judging_sources())


def judging_sources() -> dict[Path, bytes]:
    """The files whose code takes part in judging, with their contents."""
    return sources_of("board/board.py")


class Memory:
    """What is known of some runs; `new` is what was judged since."""

    def __init__(self, known: dict[Key, Judged]) -> None:
        self.known = known
        self.new: dict[Key, Judged] = {}

    def get(self, key: Key) -> Judged | None:
        """What was found, if it was ever asked."""
        return self.known.get(key) or self.new.get(key)

    def add(self, key: Key, pairing: Pairing) -> Judged:
        """Take down what was found."""
        self.new[key] = found = judged(pairing)
        return found


def judged(pairing: Pairing) -> Judged:
    """A pairing in the form that is kept."""
    effect, texts = pairing.effect, (_text(pairing.obstacles), _text(pairing.notes))
    if effect is None:
        alone = pairing.unpaired
        span = (None, None, None) if alone is None else (alone.delta, alone.low, alone.high)
        return Judged._make((pairing.baseline_score, None, *span, *[None] * 7, *texts, *[None] * 7))
    return Judged(
        pairing.baseline_score,
        effect.count,
        effect.delta,
        effect.low,
        effect.high,
        effect.improvement,
        effect.p_value,
        effect.p_same,
        _whole(effect.lost),
        _whole(effect.gained),
        effect.flip_rate,
        effect.margin,
        *texts,
        clipping.to_json(effect.clipping),
        needs.to_json(effect.needs),
        collapse.to_json(effect.collapse),
        effect.improvement_low,
        effect.improvement_high,
        effect.chance,
        effect.beats_chance,
    )


def recall(store: Store, run_ids: Sequence[str]) -> Memory:
    """What the table holds of these runs; nothing where it lacks columns, since no other code's rows are taken."""
    if (migrations.current(store.connection) or 0) < _SCHEMA:
        return Memory({})
    names = ", ".join((*Key._fields, *Judged._fields))
    rows = store.connection.execute(
        f"SELECT {names} FROM comparisons WHERE code = ? AND run_id IN (SELECT unnest(?))", [code(), list(run_ids)]
    ).fetchall()
    width = len(Key._fields)
    known = {Key._make(row[:width]): Judged._make(row[width:]) for row in rows}
    return Memory(known)


def write(store: Store, new: dict[Key, Judged]) -> None:
    """Store what was judged, of runs that are still there."""
    present = {row["run_id"] for row in store.rows("SELECT run_id FROM runs")}
    rows = [(key, found) for key, found in new.items() if key.run_id in present and key.baseline_run in present]
    if rows:
        columns = {name: [getattr(key, name) for key, _ in rows] for name in Key._fields} | {
            name: [getattr(found, name) for _, found in rows] for name in Judged._fields
        }
        with store.transaction():
            store.connection.execute("DELETE FROM comparisons WHERE code <> ?", [code()])
            store.insert("comparisons", {"code": [code()] * len(rows), **columns})


@cache
def texts(stored: str) -> tuple[str, ...]:
    """A stored list of sentences. Most are one of a few."""
    return tuple(json.loads(stored))


def _text(sentences: Iterable[str]) -> str:
    return json.dumps(list(sentences), ensure_ascii=False)


def _whole(number: float | None) -> int | None:
    return None if number is None else int(number)
