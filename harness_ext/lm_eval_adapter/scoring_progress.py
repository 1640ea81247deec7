"""How far scoring is, told by our progress instead of lm-eval's bars, which a log cannot show.

A patch: `tqdm` of `lm_eval.models.huggingface` while requests are answered. lm-eval's own bar for texts that are scored
in windows begins anew with every batch, and is drawn whatever it is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from harness_ext.lm_eval_adapter.borrowed import replaced
from harness_ext.progress import Progress, Stage


class _Counter:
    """What stands for a bar: counts what it is told of, and draws nothing."""

    def __init__(self, stage: Stage, iterable: Iterable[Any]) -> None:
        self._stage, self._iterable = stage, iterable

    def __iter__(self) -> Iterator[Any]:
        return iter(self._iterable)

    def update(self, count: int = 1) -> None:
        """So many more requests are answered."""
        self._stage.advance(count)

    def close(self) -> None:
        """The last one is."""


@contextmanager
def counted_requests(
    progress: Progress | None, what: str, total: int | None, units: str = "requests"
) -> Iterator[Stage | None]:
    """Count the requests that lm-eval answers inside the block; lm-eval's own bars where no progress is given."""
    if progress is None:
        yield None
        return
    from harness_ext.lm_eval_adapter.borrowed import huggingface

    with progress.stage(what, total, units) as stage:

        def counter(iterable: Iterable[Any] = (), *args: Any, **kwargs: Any) -> _Counter:
            return _Counter(stage, iterable)

        with replaced(huggingface, "tqdm", counter):
            yield stage
