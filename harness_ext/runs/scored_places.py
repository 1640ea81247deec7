"""Which documents of a task are scored, by place in its split: those that `--samples` names, or the first ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from harness_ext.calibration.documents import document_hash
from harness_ext.errors import UserError, nearest

if TYPE_CHECKING:
    from lm_eval.api.task import Task


class Places(list):
    """Places of documents, each once and ascending, whatever order they were named in: lm-eval asks of every document
    whether its place is in the list, which a plain one answers in time quadratic in their number, and then takes the
    first place for that of the first document.
    """

    def __init__(self, places: Iterable[int]) -> None:
        super().__init__(sorted(set(places)))

    @cached_property
    def _set(self) -> frozenset[int]:
        return frozenset(self)

    def __contains__(self, place: object) -> bool:
        return place in self._set


def places_by_task(samples: Any) -> dict[str, Places]:
    """The places that `--samples` names, in one order whatever order they are written in. Raises UserError for what is
    no such thing; lm-eval would score other documents, or log them under other places, and say nothing.
    """
    form = 'give JSON such as {"int_mult": [0, 3, 5]}, or the path of a file that holds it'
    if not isinstance(samples, Mapping):
        raise UserError(f"--samples names places of documents by task, and {samples!r} does not: {form}")
    for name, places in samples.items():
        if not isinstance(places, (list, tuple)):
            raise UserError(f"--samples: the places of {name!r} are no list: {form}")
        wrong = [place for place in places if isinstance(place, bool) or not isinstance(place, int) or place < 0]
        if wrong:
            raise UserError(f"--samples: {wrong[0]!r} is no place of a document of {name!r}: they are counted from 0")
        if not places:
            raise UserError(f"--samples names no document of {name!r}: leave the task out of it to score all of them")
    return {name: Places(places) for name, places in samples.items()}


def check_places(samples: Mapping[str, Sequence[int]], tasks: Mapping[str, Task]) -> None:
    """Raise UserError where a task is not evaluated, or has no document at the last of its places."""
    for name, places in samples.items():
        if name not in tasks:
            raise UserError(f"--samples names a task that is not evaluated: {name!r}, {nearest(name, tasks)}")
        count = len(tasks[name].eval_docs)
        if places[-1] >= count:
            raise UserError(
                f"--samples: {name!r} has no document {places[-1]}: it has {count:,}, counted from 0 to {count - 1:,}"
            )


def scored_places(task: Task, samples: Sequence[int] | None, limit: float | None) -> list[int]:
    """The places of a task's scored documents in its split, ascending. samples: places that were named."""
    from lm_eval.evaluator_utils import get_sample_size

    if samples is not None:
        return list(samples)
    count = get_sample_size(task, limit)
    return list(range(len(task.eval_docs) if count is None else min(int(count), len(task.eval_docs))))


def scored_hashes(task: Task, samples: Sequence[int] | None, limit: float | None) -> list[str]:
    """The hashes of a task's scored documents, sorted."""
    from lm_eval.evaluator_utils import get_sample_size

    documents = task.doc_iterator(limit=get_sample_size(task, limit), samples=samples)
    return sorted(document_hash(document) for _, document in documents)
