"""One matrix, edited by one method: what the method is handed, what it gives back is written, and the record of it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from harness_ext.editing.records import DENSE, FACTORS, MatrixRecord, VariantFailed, stored_parameters
from harness_ext.errors import UserError
from harness_ext.linalg.decompose import SVD, Decomposer, NotConverged
from harness_ext.methods import AnyEdit, DenseEdit, Edit, Svd, call, registered_methods
from harness_ext.methods.budget import Keep
from harness_ext.model.layout import Matrix
from harness_ext.model.weights import Weights, tensor_digest
from harness_ext.recipe.schema import Step

if TYPE_CHECKING:
    from torch import Generator, Tensor

UNSEEN = "unseen"
"""The fallback for an expert to which no token of the calibration documents was sent: it stays as it was."""
_ROWS_AT_ONCE = 256


def edit_matrix(
    weights: Weights,
    factors: Decomposer,
    step: Step,
    number: int,
    matrix: Matrix,
    evidence: Mapping[str, Tensor],
    where: str,
) -> MatrixRecord:
    """Edit one matrix as a step says, by what was learned about it, and tell what became of it.

    Raises UserError where the step asks for what the matrix cannot have, and VariantFailed where its numbers are at
    fault.
    """
    started = time.perf_counter()
    require_finite(weights, matrix)
    weight = weights.read(matrix)
    before = weights.digest_of(matrix.parameter, matrix.expert)
    edit = _call(weights, factors, step, matrix, weight, evidence, where)
    _require_finite_edit(edit, matrix)
    stored = _write(weights, step, matrix, edit)
    shifted = edit.bias_shift is not None and bool(edit.bias_shift.any())
    if shifted:
        weights.shift_bias(matrix, edit.bias_shift)
    after = weights.read(matrix)
    norm = _norm(weight)
    described = registered_methods()[step.method]
    return MatrixRecord(
        step=number,
        method=step.method,
        name=matrix.parameter,
        part=matrix.part,
        role=matrix.role,
        layer=matrix.layer,
        shape=matrix.shape,
        rank_before=min(matrix.shape),
        rank_after=edit.rank,
        energy_kept=(_norm(after) / norm) ** 2 if norm else 1.0,
        relative_error=_norm(weight, after) / norm if norm else 0.0,
        digest_before=before,
        digest_after=weights.digest_of(matrix.parameter, matrix.expert),
        seconds=time.perf_counter() - started,
        bias_shift=shifted,
        parameters_before=matrix.shape[0] * matrix.shape[1],
        parameters_after=stored_parameters(matrix.shape, edit.rank),
        fallback=edit.fallback or factors.fallbacks.get(tensor_digest(weight)),
        decomposition=edit.decomposition or (SVD if "svd" in described.engine_arguments or described.trains else None),
        excess_error=edit.excess_error,
        stored=stored,
    )


def _norm(matrix: Tensor, without: Tensor | None = None) -> float:
    """The Frobenius norm of a matrix, or of what it is without another, added up in fp64; some rows at a time, since a
    whole copy in fp64 would be the largest thing in memory.
    """
    import torch

    squares = 0.0
    for start in range(0, matrix.shape[0], _ROWS_AT_ONCE):
        rows = matrix[start : start + _ROWS_AT_ONCE].to(torch.float64, copy=True)
        if without is not None:
            rows -= without[start : start + _ROWS_AT_ONCE]
        squares += float(rows.square_().sum())
    return squares**0.5


def _write(weights: Weights, step: Step, matrix: Matrix, edit: AnyEdit) -> str:
    """Write an edit as the step wants it, and say how: as factors only below the break-even rank, where they are
    smaller.
    """
    rows, columns = matrix.shape
    if step.factored and isinstance(edit, Edit) and stored_parameters(matrix.shape, edit.rank) < rows * columns:
        weights.factor(matrix, edit.left, edit.right)
        return FACTORS
    weights.replace(matrix, edit.weight())
    return DENSE


def _call(
    weights: Weights,
    factors: Decomposer,
    step: Step,
    matrix: Matrix,
    weight: Tensor,
    evidence: Mapping[str, Tensor],
    where: str,
) -> AnyEdit:
    """Hand a method what its signature asks for."""
    import torch

    method = registered_methods()[step.method]
    if method.statistics - evidence.keys():
        return DenseEdit(weight, UNSEEN)
    arguments: dict[str, Any] = {
        **step.parameters,
        **{name: value.to(weight.device) for name, value in evidence.items()},
    }
    if "svd" in method.engine_arguments:
        arguments["svd"] = decompose(factors, weight, matrix)
    if "truncate" in method.engine_arguments:
        arguments["truncate"] = factors.truncate
    if "keep" in method.engine_arguments:
        arguments["keep"] = _budget(step, matrix, where)
    if "remember" in method.engine_arguments:
        # A matrix that is edited after others is another one in the next recipe.
        arguments["remember"] = call if step.sequential else weights.statistics_cache.remember
    if "generator" in method.engine_arguments:
        arguments["generator"] = generator_for(step.seed, matrix)
    try:
        return method.function(weight, **arguments)
    except UserError as error:
        raise UserError(f"{where}{matrix.key}: {error}") from None
    except NotConverged as error:
        raise VariantFailed("not_converged", str(error), matrix.key) from None
    except torch.linalg.LinAlgError as error:
        raise VariantFailed(
            "not_converged", f"the decomposition of {matrix.key} does not converge: {error}", matrix.key
        ) from None


def _budget(step: Step, matrix: Matrix, where: str) -> Keep | None:
    try:
        return step.keep.of(matrix.key) if step.keep is not None else None
    except UserError as error:
        raise UserError(f"{where}{matrix.key}: {error}") from None


def generator_for(seed: int, matrix: Matrix) -> Generator:
    """A CPU generator of its own for each matrix, so that neither order nor device changes what is drawn."""
    import torch

    digest = hashlib.sha256(f"{seed} {matrix.key}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def decompose(factors: Decomposer, weight: Tensor, matrix: Matrix) -> Svd:
    """The singular value decomposition of a matrix. Raises VariantFailed where it does not converge."""
    try:
        return factors.of(weight)
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


def require_finite_statistics(values: Mapping[str, Tensor], key: str) -> None:
    """Raise VariantFailed where what was learned about a matrix holds a NaN or an infinity."""
    import torch

    for name, value in values.items():
        if not bool(torch.isfinite(value).all()):
            reason = (
                f"the {name} of {key} over the calibration documents holds a NaN or an infinity: its inputs overflow;"
                " load the model in float32 or bfloat16"
            )
            raise VariantFailed("non_finite_statistic", reason, key)


def _require_finite_edit(edit: AnyEdit, matrix: Matrix) -> None:
    import torch

    if not all(bool(torch.isfinite(part).all()) for part in edit.parts):
        raise VariantFailed("non_finite_edit", f"the edit of {matrix.key} holds a NaN or an infinity", matrix.key)
