"""The state of a sweep, from the files that its driver and its cells leave: the same for the terminal and the page.

A sweep's folder is `<results>/sweeps/<name>/`: `plan.json` names the cells, `driver.json` who drives, and
`cells/<key>/` has what became of each: `asked.json`, `job.json`, `ended.json` and `manifest.json` of the last try,
and `outcome.json`, which the driver writes when it has settled a cell. Nothing here is trusted beyond its form.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from leaderboard.readers.sweep_life import PATIENCE_SECONDS, HeartbeatWatch, lives_here

SWEEPS, CELLS = "sweeps", "cells"
PLAN, DRIVER, OUTCOME, MANIFEST = "plan.json", "driver.json", "outcome.json", "manifest.json"
ASKED, JOB, ENDED, OUTPUT, HEARTBEAT = "asked.json", "job.json", "ended.json", "output.log", "heartbeat"
LARGEST = 64 * 2**20
"""Bytes of a plan that is read: 10,000 cells take 8 MiB."""
_LARGEST_RECORD = 2**20
_NAMES = 5
_LOOK_SECONDS = 0.5
_UNTOLD_SECONDS = 4.0
"""What lives gives a sign every two seconds."""
_WHO_RUNS_IT = {True: "the driver runs it again", False: "`lm_eval sweep run` runs it again"}

State = Literal["done", "failed", "running", "lost", "waiting"]
"""A lost cell has begun, and its worker has died without a word: a driver runs it again."""


@dataclass(frozen=True)
class CellState:
    """What became of one cell. tries: how often it was begun. seconds: of its last try. reason: why it failed, runs
    again, or is not run. log: its output, if there is any. after: the cells that it waits for. blocked: whether one of
    them has failed, so that it waits until that one is retried. not_made: controls that cannot be ones of its recipes
    (recipe, control, reason), for which it has not failed.
    """

    key: str
    model: str
    recipes: tuple[str, ...]
    state: State
    reason: str
    host: str
    tries: int
    seconds: float | None
    log: Path
    after: tuple[str, ...] = ()
    blocked: bool = False
    not_made: tuple[Mapping[str, str], ...] = ()


@dataclass(frozen=True)
class SweepState:
    """A sweep. driver: `host (process N)` of the driver; empty where none lives. dead: the same of one that has died,
    and how one knows.
    """

    name: str
    folder: Path
    driver: str
    cells: tuple[CellState, ...]
    dead: str = ""

    def count(self, state: State) -> int:
        """How many cells are in a state."""
        return sum(cell.state == state for cell in self.cells)

    @property
    def blocked(self) -> int:
        """How many of those that wait do so for a cell that failed."""
        return sum(cell.blocked for cell in self.cells)

    @property
    def seconds_left(self) -> float | None:
        """An estimate: what is to do, at the mean of what is done, by as many cells at once as run now; None where
        nothing is done, or nothing runs.
        """
        spent = [cell.seconds for cell in self.cells if cell.state == "done" and cell.seconds is not None]
        running, waiting = self.count("running"), self.count("waiting") + self.count("lost") - self.blocked
        if not spent or not running:
            return None
        return sum(spent) / len(spent) * (waiting + running / 2) / running

    @property
    def not_made(self) -> list[str]:
        """`shuffled-labels of svd, laser: the recipe learns nothing`: the controls that were left out, and why."""
        recipes: dict[tuple[str, str], list[str]] = {}
        for one in (one for cell in self.cells for one in cell.not_made):
            recipes.setdefault((one["control"], one["reason"]), []).append(one["recipe"])
        return [f"{control} of {_some(dict.fromkeys(names))}: {reason}" for (control, reason), names in recipes.items()]

    @property
    def summary(self) -> str:
        """`3 of 8 cells done, 1 running, 1 failed, 3 waiting (2 for a baseline that failed)`."""
        counts = Counter(cell.state for cell in self.cells)
        rest = [f"{counts[state]} {state}" for state in ("running", "lost", "failed", "waiting") if counts[state]]
        blocked = f" ({self.blocked} for a baseline that failed)" if self.blocked else ""
        return ", ".join([f"{counts['done']} of {len(self.cells)} cells done", *rest]) + blocked


def sweep_folders(root: Path) -> list[Path]:
    """The folders of the sweeps whose results go to `root`, by name."""
    try:
        return sorted(path.parent for path in (root / SWEEPS).glob(f"*/{PLAN}"))
    except OSError:
        return []


def sweep_state(
    folder: Path, watch: HeartbeatWatch | None = None, asked: Sequence[Mapping[str, Any]] | None = None
) -> SweepState | None:
    """The state of the sweep in a folder; None where there is none that can be read. watch: which writers on other
    machines live, by earlier looks; what it does not know yet lives. asked: the cells to tell of, in the form of
    `plan.json`; those of the plan that was driven last where None.
    """
    watch = watch or HeartbeatWatch()
    watch.undecided.clear()
    plan = read_json(folder / PLAN, LARGEST)
    cells = plan.get("cells") if plan is not None and asked is None else asked
    if plan is None or not isinstance(cells, (list, tuple)):
        return None
    known = {entry.name: entry.path for entry in _entries(folder / CELLS)}
    driver = read_json(folder / DRIVER) or {}
    by = f"{_text(driver.get('host'))} (process {driver.get('pid')})" if driver else ""
    died = _died(driver, folder / DRIVER, watch) if driver else ""
    driven = bool(driver) and not died
    states = _with_blocked([_cell(folder, cell, known, driven, watch) for cell in cells if _is_cell(cell)])
    return SweepState(_text(plan.get("name")), folder, by if driven else "", states, f"{by} {died}" if died else "")


def decided_state(
    folder: Path,
    say: Callable[[str], None],
    patience_s: float = PATIENCE_SECONDS,
    asked: Sequence[Mapping[str, Any]] | None = None,
) -> SweepState | None:
    """`sweep_state`, after a wait until it is known of all that runs on other machines whether it lives: a moment where
    it does, else `patience_s`, of which `say` is told.
    """
    watch, begun, told = HeartbeatWatch(patience_s), time.monotonic(), False
    while (state := sweep_state(folder, watch, asked)) is not None and watch.undecided:
        if not told and time.monotonic() - begun > _UNTOLD_SECONDS:
            told = True
            say(f"waits up to {patience_s:.0f} s for a sign of life from other machines")
        time.sleep(min(_LOOK_SECONDS, patience_s / 4))
    return state


def read_json(path: Path | str, largest: int = _LARGEST_RECORD) -> dict[str, Any] | None:
    """The JSON object in a file of at most so many bytes; None where there is none."""
    try:
        with open(path, "rb") as file:
            content = file.read(largest + 1)
        found = json.loads(content) if len(content) <= largest else None
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def tries_in(outcome: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """The tries of a cell that came to an end, the earliest first, by its `outcome.json`."""
    found = (outcome or {}).get("tries")
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def controls_not_made(record: Mapping[str, Any] | None) -> list[Mapping[str, str]]:
    """The controls that a manifest or an outcome says were left out: recipe, control and reason of each."""
    found, keys = (record or {}).get("not_made"), ("recipe", "control", "reason")
    return [
        {key: one[key] for key in keys}
        for one in (found if isinstance(found, list) else ())
        if isinstance(one, dict) and all(isinstance(one.get(key), str) for key in keys)
    ]


def _died(record: Mapping[str, Any], beaten: Path, watch: HeartbeatWatch) -> str:
    """How one knows that the process of a record has died; empty where it lives, or may. beaten: what it writes on."""
    here = lives_here(record)
    if here is not None:
        return "" if here else "has died"
    if watch.beats(beaten) is not False:
        return ""
    return f"has given no sign of life for {watch.patience_s:.0f} s"


def _cell(
    folder: Path, cell: Mapping[str, Any], known: Mapping[str, str], driven: bool, watch: HeartbeatWatch
) -> CellState:
    key = cell["key"]
    place = Path(known.get(key, folder / CELLS / key))
    outcome = (read_json(place / OUTCOME) if key in known else None) or {}
    tries = tries_in(outcome)
    last: Mapping[str, Any] = tries[-1] if tries else {}
    state: State = next((known for known in get_args(State) if known == outcome.get("state")), "waiting")
    host, begun, why = _text(last.get("host")), len(tries), _text(last.get("why"))
    if state == "waiting" and key in known and (job := read_json(place / JOB)) is not None:
        host, begun = _text(job.get("host")), begun + 1
        died = _died(job, place / HEARTBEAT, watch)  # before it is looked whether it has left its last record
        if (place / ENDED).exists():
            why = "it has ended, and waits for a driver to take it in"
        elif not died:
            state = "running"
        elif (place / JOB).exists():  # else a driver has just settled it
            state, why = "lost", f"its worker {died}: {_WHO_RUNS_IT[driven]}"
    seconds = last.get("seconds")
    return CellState(
        key,
        cell["model"],
        tuple(cell["recipes"]),
        state,
        why if state != "done" else "",
        host,
        begun,
        float(seconds) if isinstance(seconds, (int, float)) else None,
        place / OUTPUT,
        tuple(cell.get("after", ())),
        not_made=tuple(controls_not_made(outcome)),
    )


def _with_blocked(cells: Sequence[CellState]) -> tuple[CellState, ...]:
    """The cells, those that wait for a failed one told so, by its key: its reason stands in its own row."""
    failed = {cell.key for cell in cells if cell.state == "failed"}
    return tuple(
        replace(cell, blocked=True, reason=f"not run, since its baseline failed: {blocking}")
        if cell.state == "waiting" and (blocking := next((key for key in cell.after if key in failed), None))
        else cell
        for cell in cells
    )


def _is_cell(cell: Any) -> bool:
    return (
        isinstance(cell, dict)
        and isinstance(cell.get("key"), str)
        and os.path.basename(cell["key"]) == cell["key"] not in ("", ".", "..")
        and isinstance(cell.get("model"), str)
        and isinstance(cell.get("recipes"), list)
        and all(isinstance(recipe, str) for recipe in cell["recipes"])
        and isinstance(cell.get("after", []), list)
        and all(isinstance(key, str) for key in cell.get("after", []))
    )


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            yield from found
    except OSError:
        return


def _some(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    first = list(names)
    more = f" and {len(first) - _NAMES} more" if len(first) > _NAMES else ""
    return ", ".join(first[:_NAMES]) + more


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def rows(state: SweepState, states: Sequence[State], *, blocked: bool = False) -> list[dict[str, Any]]:
    """The cells in these states as rows of a table; with `blocked` also those that wait for a reason: for one that
    failed, say, or since their run folders are damaged.
    """
    return [
        {
            "state": cell.state,
            "model": cell.model,
            "recipes": list(cell.recipes),
            "cell": cell.key,
            "host": cell.host,
            "tries": cell.tries,
            "seconds": cell.seconds,
            "reason": cell.reason,
            "not_made": [f"{one['recipe']}+{one['control']}: {one['reason']}" for one in cell.not_made],
            "log": str(cell.log),
        }
        for cell in state.cells
        if cell.state in states or (blocked and cell.state == "waiting" and cell.reason)
    ]
