"""The run that a name means, for commands: `store.naming` has the rules. Here is what needs the names that tables show
(`laser [limit 20]`), or no database at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from leaderboard.board.labels import stored_names
from leaderboard.compare.baselines import Baselines
from leaderboard.compare.contents import read_contents
from leaderboard.compare.pairing import Subject
from leaderboard.errors import LeaderboardError, MissingDatabase, UnknownRun
from leaderboard.store.database import Store, open_store
from leaderboard.store.naming import (
    EXPLICIT,
    AmbiguousRun,
    KnownRun,
    ResolvedRun,
    exactly,
    known_runs,
    lying_at,
    refuse_both,
    resolve,
)

PATIENCE_SECONDS = 30.0
"""How long a busy database is waited for."""


class RunPlace(NamedTuple):
    """Where the run that a name means lies, with notes as those of a `ResolvedRun`."""

    path: Path
    notes: tuple[str, ...] = ()


def resolve_in(
    database: Path,
    name: str,
    *,
    newest: bool = True,
    timeout_s: float = PATIENCE_SECONDS,
    base_of: Path | None = None,
    other: str = "the other run",
) -> ResolvedRun:
    """`resolve` in a database, by the names of tables too. base_of: where the run lies that is compared with the one
    named; other: that run in words. Raises `UnknownRun` and what `open_store` raises.
    """
    with open_store(database, read_only=True, timeout_s=timeout_s) as store:
        preferred = None if base_of is None else lambda _, runs: board_baselines(store, lying_at(runs, base_of))
        return resolve(store, name, newest=newest, shown=stored_names, preferred=preferred, other=other)


def board_baselines(store: Store, runs: Sequence[KnownRun]) -> list[str]:
    """The ids of the runs that the board compares some runs with, that of the most tasks first."""
    ids, served = {run.run_id for run in runs}, Counter[str]()
    contents = read_contents(store, models={run.model_key for run in runs})
    for alike in contents.by_model(None).values():
        baselines = Baselines(contents, alike)
        chosen = [
            baselines.choose(Subject(run, task, score)).run
            for run in alike
            if run.run_id in ids
            for task in contents.tasks.get(run.run_id, ())
            if (score := contents.primary(run.run_id, task.task)) is not None
        ]
        served.update(base.run_id for base in chosen if base is not None)
    return [run_id for run_id, _ in served.most_common()]


def places_of_two(a: str, b: str, database: Path) -> tuple[RunPlace, RunPlace]:
    """Where the runs A and B of a comparison lie: of several that a name means, the one that the board compares the
    other with. Raises `LeaderboardError`.
    """
    second = place_of(b, database, "B", base_of=place_of(a, database, "A").path, other="A")
    return place_of(a, database, "A", base_of=second.path, other="B"), second


def place_of(
    name: str, database: Path, what: str = "run", *, base_of: Path | None = None, other: str = "the other run"
) -> RunPlace:
    """Where the run lies that a name means: a path need not be in the database, nor a database be there.

    what: the name's part in the command, for messages. base_of, other: as of `resolve_in`. Raises `LeaderboardError`.
    """
    path = Path(name)
    if name and path.exists():
        if not name.startswith(EXPLICIT):
            _refuse_in_store(name, database)
        return RunPlace(path)
    try:
        found = resolve_in(database, name, base_of=base_of, other=other)
    except MissingDatabase:
        raise LeaderboardError(
            f"{what} {name}: there is nothing at this path, and no leaderboard at {database} that could know a run of"
            " this name"
        ) from None
    except AmbiguousRun as error:
        raise AmbiguousRun(f"{what} {error}") from None
    except UnknownRun as error:
        named = name or "(none named)"
        why = str(error).removeprefix(f"no run {named} in the leaderboard: ")
        raise UnknownRun(f"{what} {named} is neither a path nor a run in {database}: {why}") from None
    return RunPlace(found.run.path, found.notes)


def _refuse_in_store(name: str, database: Path) -> None:
    try:
        with open_store(database, read_only=True, timeout_s=0) as store:
            runs = known_runs(store)
    except LeaderboardError:  # a path needs no leaderboard
        return
    if named := exactly(runs, name):
        refuse_both(name, lying_at(runs, Path(name)), named)
