"""Sums over the matrices of a receipt: which edits still stand, how large the edited model is, and what the statistics
that it was edited by are of.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from harness_ext.calibration.sinks import RULE
from harness_ext.methods.registry import sink_use
from harness_ext.model.size import PIFA, ModelSize, stored_parameters
from leaderboard.readers.receipt import MatrixRecord, ReceiptStatistic, ReceiptTotals

if TYPE_CHECKING:
    from torch import Tensor

    from harness_ext.editing.edit_matrix import EditedMatrix

_HEAD = re.compile(r"\bhead \d+")
Edited = TypeVar("Edited")


def totals(size: ModelSize, records: Sequence[MatrixRecord] = (), added: Collection[Tensor] = ()) -> ReceiptTotals:
    """Sum up a model and what was done to it. size: of the model before. added: parameters (biases) that the edits
    made.
    """
    last = standing(records, lambda record: (record.name, record.part))
    saved = [(record.name, record.parameters_before - record.parameters_after) for record in last]
    saved += [(record.name, -numbers) for record, numbers in _left_over(records, last)]
    spared = [(record.name, record.parameters_before - _multiplied(record)) for record in last]
    return ReceiptTotals(
        parameters_before=size.parameters,
        parameters_after=size.parameters - sum(count for _, count in saved) + sum(value.numel() for value in added),
        bytes_before=size.stored_bytes,
        bytes_after=size.stored_bytes
        - sum(count * size.element_bytes[name] for name, count in saved)
        + sum(value.numel() * value.element_size() for value in added),
        flops_per_token_before=size.flops_per_token,
        flops_per_token_after=round(size.flops_per_token - 2 * sum(count * size.used[name] for name, count in spared)),
        matrices_edited=len(_whole(last)),
    )


def _left_over(records: Sequence[MatrixRecord], last: Sequence[MatrixRecord]) -> Iterator[tuple[MatrixRecord, int]]:
    """The numbers of every factor that several matrices have in common, where the first of them, which counts it, was
    edited again and another was not; with that other one.
    """
    stands = {id(record) for record in last}
    alike: dict[tuple[int, str, str | None], list[MatrixRecord]] = {}
    for record in records:
        if record.sharing:
            alike.setdefault((record.step, re.sub(r"\d+", "*", record.name), record.part), []).append(record)
    for own in alike.values():
        while own:
            group, own = own[: own[0].sharing], own[own[0].sharing :]
            left = [record for record in group if id(record) in stands]
            if left and left[0] is not group[0]:
                yield left[0], group[0].parameters_after - left[0].parameters_after


def _multiplied(record: MatrixRecord) -> int:
    """The numbers that multiply a token: a factor that several matrices share does so in each, and the places of pivot
    rows do not, so that these take `r (m + n) - r^2`.
    """
    if record.sharing:
        return stored_parameters(record.shape, record.rank_after)
    is_pivoted = record.counted_as == PIFA and record.parameters_after < record.parameters_before
    return record.parameters_after - (record.rank_after if is_pivoted else 0)


def statistics_used(edited: Sequence[EditedMatrix]) -> list[ReceiptStatistic]:
    """The statistics that each step edited by, with the tokens that they are of."""
    rows: list[ReceiptStatistic] = []
    for step, method in dict.fromkeys((item.record.step, item.record.method) for item in edited):
        own = [item for item in edited if (item.record.step, item.record.method) == (step, method)]
        names = frozenset[str]().union(*(item.statistics for item in own))
        seen = [item.seen for item in own if item.seen]
        sinks = [one.sinks for one in seen]
        rows += [
            ReceiptStatistic(
                step=step,
                name=name,
                sinks=use,
                rule=RULE if seen else None,
                tokens=max(one.tokens for one in seen) if seen else None,
                sink_tokens=(min(sinks), max(sinks)) if seen else None,
            )
            for name, use in sink_use(names).items()
        ]
    return rows


def standing(edits: Iterable[Edited], place: Callable[[Edited], tuple[str, str | None]]) -> list[Edited]:
    """The edits that no later one overwrote, in order. place: the parameter of one, and the part of it; None for all.

    A later edit of the whole, or of one head, leaves nothing of an earlier one's low rank.
    """
    last: dict[tuple[str, ...], Edited] = {}
    inside: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for edit in edits:
        name, part = place(edit)
        key = (name, *(part or "").split())
        for other in (*inside.get(key, ()), *(key[:length] for length in range(1, len(key)))):
            last.pop(other, None)
        last.pop(key, None)
        last[key] = edit
        for length in range(1, len(key) + 1):
            inside.setdefault(key[:length], set()).add(key)
    return list(last.values())


def _whole(records: Iterable[MatrixRecord]) -> set[tuple[str, str]]:
    """The matrices that the records are of, heads of one counted together."""
    return {(record.name, _HEAD.sub("", record.part or "")) for record in records}
