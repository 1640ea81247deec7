"""What an edit takes on a device: measured there, on random numbers, for a plan.

An edit is the real one, by the code that a run executes: its seconds, and the most bytes that its tensors hold at once.
A matrix too large for that is measured at two smaller sizes, and the time is carried on as `a m n + b m n min(m, n)`:
a part for reading, hashing and writing, and a part for decomposing, of methods that decompose.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from harness_ext.editing.plan_timing import PATIENCE_SECONDS, live_bytes, seconds_of, settled
from harness_ext.editing.plan_trials import Shape, TrialEdit, gathered, made_weight, of_fresh
from harness_ext.methods import registered_methods
from harness_ext.recipe.schema import Step

if TYPE_CHECKING:
    from harness_ext.search.factorisations import Factorisation

FIRST_SIDE = 96
"""The smaller side of the first matrix that is measured; the next have twice of it."""


class MeasuredEdit(NamedTuple):
    """One edit. seconds: expected. bytes: held at once at most. exact: whether a matrix of this very shape was
    measured.
    """

    seconds: float
    bytes: float
    exact: bool


class _Measured(NamedTuple):
    """One size: its shape, the seconds, and the bytes."""

    shape: Shape
    seconds: float
    bytes: int


def measured_edit(
    step: Step, key: str, shape: Shape, dtype: str, device: str, tokens: int | None = None
) -> MeasuredEdit:
    """What a step's edit of a matrix of this shape takes. key: of such a matrix; `keep.ranks` goes by it. dtype: of the
    weight, by torch's name. tokens: that its statistics are of, where these are too few to span what the matrix has:
    methods that go by second moments then find the other directions in the weights, which takes more. Raises UserError
    where there is no such device.
    """
    few = tokens if tokens is not None and tokens < min(shape) else None
    return _measured_edit(f"{few} {step.model_dump_json()}", key, shape, dtype, device, _Hidden(step, few))


class _Hidden:
    """A step for a cache that goes by its text, and few tokens (see `TrialEdit`)."""

    def __init__(self, step: Step, few: int | None) -> None:
        self.step, self.few = step, few

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hidden)

    def __hash__(self) -> int:
        return 0


@cache
def _measured_edit(about: str, key: str, shape: Shape, dtype: str, device: str, hidden: _Hidden) -> MeasuredEdit:
    found: list[_Measured] = []
    side = FIRST_SIDE
    while True:
        tried = scaled(shape, side)
        few = _scaled_few(hidden.few, shape, tried)
        made = TrialEdit(_scaled_step(hidden.step, key, shape, tried), tried, dtype, device, few)
        found.append(_one_edit(made))
        if tried == shape or found[-1].seconds * 8 > PATIENCE_SECONDS:
            break
        side *= 2
    return _carried_on(found, shape, decomposes=decomposes(hidden.step.method))


@cache
def bytes_on_trial(
    factorisation: Factorisation, shape: Shape, dtype: str, device: str, tokens: int | None = None
) -> float:
    """The most bytes that a search of ranks holds at once of a matrix of this shape: what it decomposes by a
    factorisation, and the factors that it tries. Measured on a smaller one: all that counts grows as its numbers do.
    tokens: see `measured_edit`.
    """
    import torch

    from harness_ext.search.factorisations import STATISTICS, decomposed

    tried = scaled(shape, 2 * FIRST_SIDE)
    few = _scaled_few(tokens, shape, tried) if tokens is not None and tokens < min(shape) else None
    weight, learned = made_weight(tried, dtype, device), gathered(STATISTICS[factorisation], tried, device, few)
    largest = max(1, square(tried) // sum(tried))

    def work() -> None:
        read = weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)
        made = decomposed(read, factorisation, learned)
        # Held together, as in the search.
        factors = [factor.to(read) for factor in made.serving(largest)]
        del factors

    return live_bytes(work) * square(shape) / square(tried)


def decomposes(name: str) -> bool:
    method = registered_methods()[name]
    return bool({"svd", "truncate", "keep", "remember"} & method.engine_arguments) or method.rank_from_weights


def _carried_on(found: list[_Measured], shape: Shape, *, decomposes: bool) -> MeasuredEdit:
    last = found[-1]
    if last.shape == shape:
        return MeasuredEdit(last.seconds, last.bytes, True)
    numbers, cube = square(shape), _cube(shape)
    share = numbers / square(last.shape)
    if not decomposes:
        return MeasuredEdit(last.seconds * share, last.bytes * share, False)
    if len(found) == 1:
        return MeasuredEdit(last.seconds * cube / _cube(last.shape), last.bytes * share, False)
    before = found[-2]
    growth = square(last.shape) / square(before.shape)
    excess = last.seconds - growth * before.seconds
    by_cube = max(0.0, excess / (_cube(last.shape) - growth * _cube(before.shape)))
    by_square = max(0.0, last.seconds - by_cube * _cube(last.shape)) / square(last.shape)
    return MeasuredEdit(by_square * numbers + by_cube * cube, last.bytes * share, False)


def square(shape: Shape) -> int:
    return shape[0] * shape[1]


def _cube(shape: Shape) -> int:
    return shape[0] * shape[1] * min(shape)


def scaled(shape: Shape, side: int) -> Shape:
    """The shape with a smaller side of `side`, or the shape itself where that is no larger, or nearly so small."""
    small = min(shape)
    if small <= 1.5 * side:
        return shape
    rows, columns = (max(1, round(length * side / small)) for length in shape)
    return rows, columns


def _scaled_step(step: Step, key: str, shape: Shape, tried: Shape) -> Step:
    """The step with its ranks in proportion, and with the share of this matrix alone."""
    if step.keep is None:
        return step.model_copy(update=step.parameters_of(key))
    keep = step.keep.of(key)
    if keep.rank is not None:
        keep = keep.model_copy(update={"rank": min(*tried, round(keep.rank * min(tried) / min(shape)))})
    return step.model_copy(update={"keep": keep})


def _scaled_few(few: int | None, shape: Shape, tried: Shape) -> int | None:
    """As many tokens in proportion to the smaller side."""
    return None if few is None else max(1, round(few * min(tried) / min(shape)))


def _one_edit(trial: TrialEdit) -> _Measured:
    """The median of some, after one that makes things ready; then the bytes."""

    def seconds() -> float:
        return of_fresh(trial, lambda work: seconds_of(work, trial.device))

    seconds()
    return _Measured(trial.shape, settled(seconds, 1), int(of_fresh(trial, live_bytes)))
