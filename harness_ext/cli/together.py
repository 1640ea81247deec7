"""A command that several processes carry out together: the first prints, and what ends one of them ends all.

Only a run with recipes is made so; without them `lm_eval run` under a launcher is lm-eval's own.
"""

from __future__ import annotations

import atexit
import faulthandler
import os
import shutil
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from harness_ext.cli.exit_codes import INTERRUPTED, MISTAKE
from harness_ext.cli.secrecy import printable
from harness_ext.errors import UserError
from harness_ext.ranks import group as groups
from harness_ext.ranks.group import Group, OutOfStep
from harness_ext.ranks.launch import check_nodes, launched
from harness_ext.ranks.watch import MACHINE, Failure, RankWatch
from harness_ext.storage.rundir import scratch_folder


@contextmanager
def together() -> Iterator[None]:
    """Carry out the block with the other processes that a launcher started; leaves by SystemExit where one of them
    fails. Nothing is done where there is no launcher.

    Raises UserError for processes on several machines.
    """
    if launched().ranks == 1:
        yield
        return
    check_nodes()
    codes: list[int] = []
    atexit.register(_end_at_once, codes)
    group = groups.join()
    folder = _common_folder(group)
    watch = _watch(group, folder)
    try:
        yield
        sys.stdout.flush()
        watch.done()
        _await_others(group, watch)
    except BaseException as error:
        codes.append(watch.end(_failure(error)))
        sys.exit(codes[0])
    watch.stop()
    # Only when nobody looks into the folder any longer.
    _await_others(group, watch)
    if group.first:
        shutil.rmtree(folder, ignore_errors=True)
    groups.leave()


def _end_at_once(codes: Sequence[int]) -> None:
    """End a rank that failed, after what else the block left to be done at exit.

    The threads of its messages run on, since they cannot be joined while others fail too. One that hears that another
    rank is gone while the interpreter is taken down around it would abort the process: another exit code, and a core.
    """
    if codes:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(codes[0])


def _common_folder(group: Group) -> Path:
    return Path(group.from_first("where to watch", lambda: str(scratch_folder())))


def _watch(group: Group, folder: Path) -> RankWatch:
    told_on = os.fdopen(os.dup(sys.stderr.fileno()), "w", encoding="utf-8", errors="replace")

    def tell(text: str) -> None:
        print(printable(text), file=told_on, flush=True)

    processes = group.exchange("processes", os.getpid())
    if not group.first:
        faulthandler.enable(file=told_on)
        _be_silent()
    return RankWatch(folder, group.rank, processes, tell)


def _be_silent() -> None:
    """What this rank would print, another prints: it does the same."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _await_others(group: Group, watch: RankWatch) -> None:
    """Return when all are done: the first writes and prints longer than the others."""
    try:
        group.exchange("end")
    except RuntimeError:
        # One that was done may be gone.
        if not watch.all_done():
            raise


def _failure(error: BaseException) -> Failure:
    """What is told of an exception, and the code that it ends with."""
    from harness_ext.cli import message_of

    if isinstance(error, SystemExit):
        return Failure("", error.code if isinstance(error.code, int) else MISTAKE)
    if isinstance(error, KeyboardInterrupt):
        return Failure(INTERRUPTED, MISTAKE)
    if isinstance(error, Exception) and (message := message_of(error)) is not None:
        return Failure(f"error: {message}", MISTAKE, shared=isinstance(error, UserError))
    # The other end of a message that broke off: the rank there is what failed.
    cause = not isinstance(error, (RuntimeError, OSError)) or isinstance(error, OutOfStep)
    return Failure("".join(traceback.format_exception(error)).rstrip(), MACHINE, cause)
