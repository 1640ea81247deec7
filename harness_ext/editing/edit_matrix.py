"""One matrix, edited by one method: what the method is handed, what it gives back is written, and the record of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from harness_ext.calibration.context import StepContext
from harness_ext.calibration.sinks import SeenTokens
from harness_ext.editing.what_is_left import what_is_left
from harness_ext.errors import VariantFailed, located
from harness_ext.linalg.components import Component, ComponentEdit, MatrixBeside
from harness_ext.linalg.decompose import SVD, Decomposer, NotConverged
from harness_ext.methods import AnyEdit, DenseEdit, Edit, Method, Svd, call, registered_methods
from harness_ext.methods.budget import Keep, NotedKeep
from harness_ext.methods.registry import ORIGINAL
from harness_ext.model.components import feeders_of
from harness_ext.model.digests import moved
from harness_ext.model.layout import Matrix
from harness_ext.model.seeding import generator_for
from harness_ext.model.size import PIFA
from harness_ext.model.weights import Weights
from harness_ext.recipe.schema import Step, counted_as, method_of
from leaderboard.readers.receipt import DENSE, FACTORS, MatrixRecord

if TYPE_CHECKING:
    from torch import Tensor

UNSEEN = "unseen"
"""The fallback for an expert to which no token of the calibration documents was sent: it stays as it was."""
_ROWS_AT_ONCE = 256
_NUMBERS_AT_ONCE = 1 << 23


@dataclass(frozen=True)
class EditedMatrix:
    """What became of one matrix. written: its record, all but for the digest of what was written; digest_after: that,
    which may still be in the making. seen: the tokens that its statistics are of, None where nothing was gathered.
    shift_size: the norm of the bias shift over that of a typical output, None where there is no shift or no such output
    is known. beside: the other matrices of its component, edited with it. statistics: the names of those asked for.
    left: which rows, or columns, are left, bool, by the record's name for how many; nothing where none are lost.
    """

    written: MatrixRecord
    seen: SeenTokens | None
    shift_size: float | None
    digest_after: Future[str] | None = None
    beside: tuple[EditedMatrix, ...] = ()
    statistics: frozenset[str] = frozenset()
    left: Mapping[str, Tensor] = field(default_factory=dict)

    @cached_property
    def record(self) -> MatrixRecord:
        """The whole record. Waits for the digest, and raises what went wrong with it."""
        if self.digest_after is None:
            return self.written
        return self.written.model_copy(update={"digest_after": self.digest_after.result()})


class _Change(NamedTuple):
    """Of a matrix W and what was stored in its place, W': `||W||^2`, `||W'||^2` and `||W - W'||^2`."""

    before: float
    after: float
    difference: float

    @property
    def energy_kept(self) -> float:
        return self.after / self.before if self.before else 1.0

    @property
    def relative_error(self) -> float:
        return (self.difference / self.before) ** 0.5 if self.before else 0.0


def edit_matrix(context: StepContext, matrix: Matrix, statistics: Mapping[str, Tensor]) -> EditedMatrix:
    """Edit one matrix as a step says, by what was learned about it, and tell what became of it.

    Raises UserError where the step asks for what the matrix cannot have, and VariantFailed where its numbers are at
    fault.
    """
    started = time.perf_counter()
    weights, step = context.model.weights, context.step
    require_finite(weights, matrix)
    weight = weights.read(matrix)
    before = weights.digest_of(matrix.parameter, matrix.expert)
    with located(f"{matrix.key}: "):
        keep = _noting(step.keep_of(matrix.key))
    edit = _edited(context, matrix, weight, statistics, keep)
    _require_finite_edit(edit, matrix)
    stored = _write(weights, step, matrix, edit)
    shift = _shift(weights, matrix, edit)
    if shift is not None:
        weights.shift_bias(matrix, shift)
    change = change_of(weight, weights.values(matrix))
    after = weights.digest_soon(matrix.parameter, matrix.expert)
    described = method_of(step)
    seen = SeenTokens.of(statistics)
    left = what_is_left(context, matrix, edit, stored)
    record = _record(
        context,
        matrix,
        change,
        before,
        started,
        rank_after=left.rank,
        bias_shift=shift is not None,
        parameters_before=left.before,
        parameters_after=left.after,
        fallback=edit.fallback or context.model.decomposer.fallback_of(weight),
        decomposition=edit.decomposition or (SVD if _is_decomposed(described) else None),
        excess_error=edit.excess_error,
        stored=stored,
        rank_asked=keep.noted(matrix.shape) if keep is not None and isinstance(edit, Edit) else None,
        **_sharing(step, statistics),
        **_counting(step),
        **left.counts,
        **left.of_step,
    )
    size = None if isinstance(edit, ComponentEdit) else _shift_size(shift, seen)
    beside = _edited_beside(context, matrix, edit)
    return EditedMatrix(record, seen, size, after, beside, described.statistics, left.places)


def _record(
    context: StepContext, matrix: Matrix, change: _Change, before: str, started: float, **found: Any
) -> MatrixRecord:
    """What became of a matrix. before: its digest; started: by the clock of `perf_counter`; found: what else is to be
    said of it.
    """
    said = {"fallback": None, "decomposition": None, "excess_error": None, "stored": DENSE, "rank_asked": None, **found}
    return MatrixRecord(
        step=context.number,
        method=context.step.method,
        name=matrix.parameter,
        part=matrix.part,
        role=matrix.role,
        layer=matrix.layer,
        shape=matrix.shape,
        rank_before=min(matrix.shape),
        energy_kept=change.energy_kept,
        relative_error=change.relative_error,
        digest_before=before,
        digest_after="",
        seconds=time.perf_counter() - started,
        **said,
    )


def _shift(weights: Weights, matrix: Matrix, edit: AnyEdit) -> Tensor | None:
    """By what a bias is moved, `[m]`; None where it stays."""
    shift = edit.bias_shift
    if isinstance(edit, ComponentEdit) and edit.bias is not None:
        bias = weights.bias_of(matrix)
        assert bias is not None, "no bias is made of none"
        shift = edit.bias - bias
    return shift if shift is not None and bool(shift.any()) else None


def _edited_beside(context: StepContext, matrix: Matrix, edit: AnyEdit) -> tuple[EditedMatrix, ...]:
    """Write what becomes of the other matrices of a component; none for the edit of a single matrix."""
    if not isinstance(edit, ComponentEdit):
        return ()
    feeders = _feeders(context, matrix)
    return tuple(_edit_beside(context, feeders[role], one) for role, one in edit.beside.items())


def _edit_beside(context: StepContext, matrix: Matrix, edit: MatrixBeside) -> EditedMatrix:
    started = time.perf_counter()
    weights = context.model.weights
    weight, bias = weights.read(matrix), weights.bias_of(matrix)
    before = weights.digest_of(matrix.parameter, matrix.expert)
    columns = edit.columns if edit.columns is not None else matrix.shape[1]
    if (edit.rows, columns) != matrix.shape:
        weights.replace(matrix, edit.values)
    shift = edit.bias - bias if edit.bias is not None and bias is not None else None
    if shift is not None and bool(shift.any()):
        weights.shift_bias(matrix, shift)
    change = change_of(weight, weights.values(matrix))
    left = what_is_left(context, matrix, edit)
    record = _record(
        context,
        matrix,
        change,
        before,
        started,
        rank_after=left.rank,
        bias_shift=shift is not None and bool(shift.any()),
        parameters_before=left.before,
        parameters_after=left.after,
        **left.counts,
    )
    return EditedMatrix(record, None, None, weights.digest_soon(matrix.parameter, matrix.expert), left=left.places)


def _feeders(context: StepContext, matrix: Matrix) -> dict[str, Matrix]:
    kind = registered_methods()[context.step.method].component
    assert kind is not None, "only methods of components make such edits"
    return feeders_of(context.model.weights.layout, matrix, kind)


def _component(context: StepContext, matrix: Matrix) -> Component:
    """The other matrices of the component, as they are now, and all biases."""
    weights, feeders = context.model.weights, _feeders(context, matrix)
    for other in feeders.values():
        require_finite(weights, other)
    biases = {other.role or "": weights.bias_of(other) for other in (matrix, *feeders.values())}
    return Component(
        {role: weights.read(other) for role, other in feeders.items()},
        {role: bias for role, bias in biases.items() if bias is not None},
        weights.layout.heads,
        weights.layout.rotation,
    )


def _sharing(step: Step, statistics: Mapping[str, Tensor]) -> dict[str, int]:
    """How many matrices share a factor with this one, where they do; a factored step stores it in each."""
    count = int(statistics["shared_place"][1]) if "shared_place" in statistics and not step.factored else 1
    return {"sharing": count} if count > 1 else {}


def _counting(step: Step) -> dict[str, str]:
    """The format that the numbers are of, where that is not two factors."""
    return {"counted_as": PIFA} if counted_as(step) == PIFA else {}


def _is_decomposed(method: Method) -> bool:
    """Whether a method, or what it was trained from, has the full decomposition."""
    return "svd" in method.engine_arguments or method.trains or method.heals


def _shift_size(shift: Tensor | None, seen: SeenTokens | None) -> float | None:
    if shift is None or seen is None or not seen.typical_output:
        return None
    return float(shift.double().norm()) / seen.typical_output


def change_of(weight: Tensor, after: Tensor) -> _Change:
    """One pass over both, added up in fp64 where they are, and read once; some rows at a time, since a whole copy in
    fp64 would be the largest thing in memory.
    """
    import torch

    rows = _ROWS_AT_ONCE if weight.device.type == "cpu" else max(_ROWS_AT_ONCE, _NUMBERS_AT_ONCE // weight.shape[1])
    sums = torch.zeros(3, dtype=torch.float64, device=weight.device)
    for start in range(0, weight.shape[0], rows):
        old, new = (part[start : start + rows].double() for part in (weight, after))
        sums += torch.stack([old.square().sum(), new.square().sum(), (old - new).square().sum()])
    return _Change(*sums.tolist())


def _write(weights: Weights, step: Step, matrix: Matrix, edit: AnyEdit) -> str:
    """Write an edit as the step wants it, and say how: as factors only where the step would have them."""
    if edit.unchanged:
        return DENSE
    if isinstance(edit, Edit) and step.stores_factors(matrix.shape, edit.rank):
        weights.factor(matrix, edit.left, edit.right)
        return FACTORS
    weights.replace(matrix, edit.weight())
    return DENSE


def _noting(keep: Keep | None) -> NotedKeep | None:
    return NotedKeep.model_validate(keep.model_dump()) if keep is not None else None


def _edited(
    context: StepContext, matrix: Matrix, weight: Tensor, statistics: Mapping[str, Tensor], keep: NotedKeep | None
) -> AnyEdit:
    """What the step's method makes of a matrix."""
    import torch

    method = method_of(context.step)
    if method.statistics - statistics.keys():
        return DenseEdit(weight, UNSEEN)
    learned = {name: moved(value, weight.device) for name, value in statistics.items() if name in method.statistics}
    try:
        with located(f"{matrix.key}: "):
            return method.function(weight, **learned, **_arguments(context, matrix, weight, keep))
    except NotConverged as error:
        raise VariantFailed("not_converged", str(error), matrix.key) from None
    except torch.linalg.LinAlgError as error:
        raise VariantFailed(
            "not_converged", f"the decomposition of {matrix.key} does not converge: {error}", matrix.key
        ) from None


def _arguments(context: StepContext, matrix: Matrix, weight: Tensor, keep: NotedKeep | None) -> dict[str, Any]:
    """The recipe's settings, and what else the method's signature asks for besides statistics."""
    model, step = context.model, context.step
    makers: dict[str, Callable[[], Any]] = {
        "svd": lambda: decompose(model.decomposer, weight, matrix),
        "truncate": lambda: model.decomposer.truncate,
        "keep": lambda: keep,
        # A matrix that is edited after others is another one in the next recipe.
        "remember": lambda: call if step.sequential else model.statistics_cache.remember,
        "generator": lambda: generator_for(step.seed, matrix),
        "component": lambda: _component(context, matrix),
        ORIGINAL: lambda: model.weights.original(matrix),
    }
    asked = registered_methods()[step.method].engine_arguments
    return {**step.parameters_of(matrix.key), **{name: make() for name, make in makers.items() if name in asked}}


def decompose(decomposer: Decomposer, weight: Tensor, matrix: Matrix) -> Svd:
    """The singular value decomposition of a matrix. Raises VariantFailed where it does not converge."""
    try:
        return decomposer.of(weight)
    except NotConverged as error:
        raise VariantFailed("not_converged", str(error), matrix.key) from None


def require_finite(weights: Weights, matrix: Matrix) -> None:
    """Raise VariantFailed where a matrix holds what cannot be decomposed."""
    place = weights.first_not_finite(matrix)
    if place is not None:
        raise VariantFailed(
            "non_finite_weight",
            f"{matrix.key} holds a NaN or an infinity at {place}, and cannot be decomposed",
            matrix.key,
        )


def require_finite_statistics(statistics: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Raise VariantFailed where what was learned about matrices, by `Matrix.key`, holds a NaN or an infinity."""
    for key, values in statistics.items():
        for name, value in values.items():
            if _is_finite(value):
                continue
            reason = (
                f"the {name} of {key} over the calibration documents holds a NaN or an infinity: its inputs overflow;"
                " load the model in float32 or bfloat16"
            )
            raise VariantFailed("non_finite_statistic", reason, key)


def _is_finite(value: Tensor) -> bool:
    """Whether a tensor holds no NaN and no infinity, from its least and its largest number: to ask every number takes
    copies, of which the first is as large as the tensor.
    """
    import torch

    return not value.numel() or bool(torch.isfinite(torch.stack(value.aminmax())).all())


def _require_finite_edit(edit: AnyEdit, matrix: Matrix) -> None:
    import torch

    if not bool(torch.stack([torch.isfinite(part).all() for part in edit.parts]).all()):
        raise VariantFailed("non_finite_edit", f"the edit of {matrix.key} holds a NaN or an infinity", matrix.key)
