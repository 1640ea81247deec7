"""What long work tells about how far it is: what it does, how far it is, how long it will still take, and the best that
it found so far. On a terminal that is one line, drawn again and again; elsewhere lines, at least one a minute.

Work opens a stage (`Progress.stage`) and counts its units. Of stages inside one another the one that had news last is
shown. A thread beside the work tells about it also while nothing is finished; it ends with the outermost stage.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import IO

SECONDS_BETWEEN_LINES = 50.0
"""Below a minute by what the thread may be late."""
SECONDS_BETWEEN_LINES_IN_A_NOTEBOOK = 15.0
SECONDS_BETWEEN_DRAWINGS = 0.2
_ENOUGH_FOR_A_RATE = 50


class Stage:
    """A part of long work, from `Progress.stage` to the end of its block. total: units of it, None where they cannot be
    counted. expected: gives the seconds that are left, where the units are so unlike that their mean tells nothing.
    """

    def __init__(self, progress: Progress, what: str, total: int | None, units: str) -> None:
        self.what, self.total, self.units = what, total, units
        self.done = 0
        self.best = ""
        self.expected: Callable[[], float | None] | None = None
        self.began = progress.clock()
        self._paced = self.began, 0
        self.news = progress.count()
        self._progress = progress

    def advance(self, units: int = 1) -> None:
        """So many more units are done."""
        self.done += units
        self._has_news()

    def weigh(self, costs: Iterable[float]) -> None:
        """What each unit costs, in the order in which they are done: the time left is by what is left of that, since
        lm-eval, say, begins with the longest texts.
        """
        sums, began, clock = [0.0, *accumulate(costs)], self._progress.clock(), self._progress.clock

        def expected() -> float | None:
            done = sums[min(self.done, len(sums) - 1)]
            return (clock() - began) / done * (sums[-1] - done) if done else None

        self.expected = expected

    def pace_anew(self) -> None:
        """The units from here on are unlike those before, which tell nothing of what is left."""
        self.expected, self._paced = None, (self._progress.clock(), self.done)

    def found(self, best: str) -> None:
        """What the best is that was found so far, in words."""
        self.best = best
        self._has_news()

    def _has_news(self) -> None:
        self.news = self._progress.count()
        self._progress.changed()

    def named(self) -> str:
        """What it is and how far, for a stage within it."""
        return self.what if self.total is None else f"{self.what} {min(self.done, self.total):,}/{self.total:,}"

    def left(self, now: float) -> str:
        """How long it will still take, in words; empty where that cannot be told."""
        if self.expected is not None:
            seconds = self.expected()
            return roughly(seconds) if seconds else ""
        since, before = self._paced
        if not self.total or not before < self.done < self.total:
            return ""
        return duration((now - since) / (self.done - before) * (self.total - self.done))

    def told(self, now: float) -> str:
        """The stage in one line, at a time of the clock."""
        spent, parts = now - self.began, []
        if self.total or self.done:
            whole = f" of {self.total:,}" if self.total else ""
            parts.append(f"{min(self.done, self.total or self.done):,}{whole} {self.units}".rstrip())
        if self.done >= _ENOUGH_FOR_A_RATE and spent > 0:
            parts.append(rate(self.done / spent))
        if left := self.left(now):
            parts.append(f"about {left} left")
        return f"{self.what}: {', '.join([*parts, f'{duration(spent)} so far'])}"

    def drawn(self, now: float) -> str:
        """The same as short as a terminal needs it."""
        left = self.left(now)
        counted = f"{self.named().removeprefix(self.what)} {self.units}".strip() if self.total else ""
        return (
            f"{self.what}: {', '.join(filter(None, [counted, f'{left} left' if left else duration(now - self.began)]))}"
        )


class Progress:
    """What long work tells about itself; this one says nothing.

    clock: seconds that only go forward. Stages that are open, the outermost first, are in `stages`.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.stages: list[Stage] = []
        self._count = 0

    def count(self) -> int:
        """One more than the last time: what orders news."""
        self._count += 1
        return self._count

    @contextmanager
    def stage(self, what: str, total: int | None = None, units: str = "") -> Iterator[Stage]:
        """A stage for as long as the block lasts. what: in words. total: of units, named in the plural."""
        stage = Stage(self, what, total, units)
        self.stages.append(stage)
        self.opened()
        try:
            yield stage
        finally:
            # One that a forgotten generator opened inside ends as well, and is gone when that comes to its end.
            if stage in self.stages:
                del self.stages[self.stages.index(stage) :]
            self.closed()

    def advance(self, units: int = 1) -> None:
        """So many more units of the innermost stage are done."""
        if self.stages:
            self.stages[-1].advance(units)

    def found(self, best: str) -> None:
        """What the best is that the innermost stage found so far, in words."""
        if self.stages:
            self.stages[-1].found(best)

    def say(self, text: str) -> None:
        """A line of news, on standard error."""
        _write(f"{text}\n")

    def opened(self) -> None:
        """A stage was opened."""

    def closed(self) -> None:
        """A stage was closed."""

    def changed(self) -> None:
        """A stage has news."""


class _Told(Progress):
    """Progress that somebody reads; `tick` is called now and then by a thread, while a stage is open."""

    seconds_between_ticks = 1.0

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, threaded: bool = True) -> None:
        super().__init__(clock)
        # One thread may write a line while it is interrupted by its own signal handler.
        self.lock = threading.RLock()
        self._threaded = threaded
        self._over: threading.Event | None = None

    def opened(self) -> None:
        """See `Progress`."""
        if self._threaded and self._over is None:
            self._over = threading.Event()
            threading.Thread(target=self._tick_until, args=(self._over,), name="progress", daemon=True).start()

    def closed(self) -> None:
        """See `Progress`."""
        if not self.stages and self._over is not None:
            self._over.set()
            self._over = None

    def _tick_until(self, over: threading.Event) -> None:
        while not over.wait(self.seconds_between_ticks):
            self.tick()

    def tick(self) -> None:
        """Tell what is to be told by now."""
        raise NotImplementedError

    @property
    def _line(self) -> str:
        """The stage that had news last in a line, before it those around it, after it the best that was found; empty
        where none is open.
        """
        stages = self.stages[:]
        if not stages:
            return ""
        place = max(range(len(stages)), key=lambda number: stages[number].news)
        outer, shown = stages[:place], stages[place]
        total = outer[0].total if outer else None
        left = outer[0].left(self.clock()) if total and outer[0].expected is not None else ""
        counted = f"[{min(outer[0].done + 1, total)}/{total}{f', about {left} left' if left else ''}] " if total else ""
        names = "".join(f"{stage.named()}: " for stage in (outer[1:] if total else outer))
        best = next((stage.best for stage in (shown, *reversed(outer)) if stage.best), "")
        return f"{counted}{names}{self._told(shown)}" + (f"; {best}" if best else "")

    def _told(self, stage: Stage) -> str:
        return stage.told(self.clock())


class ProgressLines(_Told):
    """Progress as lines of a log: one whenever so many seconds passed without any."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        threaded: bool = True,
        seconds: float = SECONDS_BETWEEN_LINES,
    ) -> None:
        super().__init__(clock, threaded=threaded)
        self._seconds = seconds
        self._last = clock()
        self._news = True

    def opened(self) -> None:
        """See `Progress`."""
        if len(self.stages) == 1:
            self._last = self.clock()
        self._news = True
        super().opened()

    def changed(self) -> None:
        """See `Progress`."""
        self._news = True
        if self._is_due:
            self.tick()

    def tick(self) -> None:
        """See `_Told`. A stage that finished nothing since the last line is "still" at it."""
        with self.lock:
            if self._is_due and (line := self._line):
                self.say(line if self._news else f"still {line}")
                self._news = False

    @property
    def _is_due(self) -> bool:
        return self.clock() - self._last >= self._seconds

    def say(self, text: str) -> None:
        """See `Progress`."""
        with self.lock:
            self._last = self.clock()
            super().say(text)


class ProgressBar(_Told):
    """Progress as one line of a terminal that is drawn again and again, and is gone when the work is done."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, threaded: bool = True) -> None:
        super().__init__(clock, threaded=threaded)
        self._drawn = False
        self._last = -SECONDS_BETWEEN_DRAWINGS

    def _told(self, stage: Stage) -> str:
        return stage.drawn(self.clock())

    def closed(self) -> None:
        """See `Progress`."""
        super().closed()
        with self.lock:
            if not self.stages:
                self._wipe()

    def changed(self) -> None:
        """See `Progress`."""
        if self.clock() - self._last >= SECONDS_BETWEEN_DRAWINGS:
            self.tick()

    def tick(self) -> None:
        """See `_Told`."""
        with self.lock:
            line = self._line
            if not line:
                return
            # A line as wide as the terminal would wrap, and could not be drawn over.
            room = max(shutil.get_terminal_size().columns - 1, 10)
            _write(f"\r{line[:room]}\x1b[K")
            self._drawn, self._last = True, self.clock()

    def say(self, text: str) -> None:
        """See `Progress`."""
        with self.lock:
            self._wipe()
            super().say(text)

    def _wipe(self) -> None:
        if self._drawn:
            _write("\r\x1b[K")
            self._drawn = False


def _write(text: str, stream: IO[str] | None = None) -> None:
    """Write to standard error as it is now. Nobody's work may end because it cannot be told of."""
    stream = stream or sys.stderr
    try:
        stream.write(text)
        stream.flush()
    except (OSError, ValueError):
        return


def progress_for(*, quiet: bool) -> Progress:
    """The progress that fits standard error: drawn on a terminal, lines elsewhere, nothing when quiet."""
    if quiet:
        return Progress()
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        return ProgressBar()
    # A notebook's cells show what is written to them, and nobody wants to wait for it.
    in_notebook = "ipykernel" in sys.modules
    return ProgressLines(seconds=SECONDS_BETWEEN_LINES_IN_A_NOTEBOOK if in_notebook else SECONDS_BETWEEN_LINES)


def rate(per_second: float) -> str:
    """A rate in words: "230 a second", "12 a minute"."""
    return f"{per_second:,.0f} a second" if per_second >= 1.5 else f"{per_second * 60:,.0f} a minute"


def roughly(seconds: float) -> str:
    """A time in words, of no more digits than a guess has: "40 s", "5 min", "1 h 20 min"."""
    unit = 10 if seconds < 95 else 60 if seconds < 600 else 300
    return duration(unit * max(1, round(seconds / unit)))


def duration(seconds: float) -> str:
    """A time in words: "40 s", "5 min", "1 h 20 min"."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
