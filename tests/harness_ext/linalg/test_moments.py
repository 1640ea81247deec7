"""Moments with a ridge, and decompositions in their own memory, against plain `torch.linalg`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from harness_ext.linalg.moments import (
    add_ridge,
    least_ridge,
    overwrite_by_cholesky,
    overwrite_by_eigenvectors,
    overwrite_by_inverse,
    ridged,
)


def moment(size: int = 33, seed: int = 0) -> Tensor:
    made = torch.randn(2 * size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (found := made.T @ made).add_(found.T.clone()) / 2


def test_a_ridge_is_added_to_the_diagonal_of_a_copy_in_fp64() -> None:
    plain = moment().float()
    before = plain.clone()
    assert torch.equal(ridged(plain, 0.5), plain.double() + 0.5 * torch.eye(33, dtype=torch.float64))
    assert torch.equal(plain, before)
    assert ridged(plain, None) is plain
    assert add_ridge(plain, 0.5) is plain


def test_decompositions_are_those_of_torch_and_take_no_other_memory() -> None:
    whole = moment()
    expected = torch.linalg.cholesky(whole)
    values, vectors = torch.linalg.eigh(whole)

    given = whole.clone()
    lower = overwrite_by_cholesky(given)
    assert torch.equal(lower, expected) and lower.data_ptr() == given.data_ptr()

    given = whole.clone()
    inverse = overwrite_by_inverse(given)
    assert torch.equal(inverse, torch.cholesky_inverse(expected)) and inverse.data_ptr() == given.data_ptr()

    given = whole.clone()
    found = overwrite_by_eigenvectors(given)
    assert torch.equal(found[0], values) and torch.equal(found[1], vectors)
    assert found[1].data_ptr() == given.data_ptr()


def test_what_is_not_positive_definite_is_refused() -> None:
    for decompose in (overwrite_by_cholesky, overwrite_by_inverse):
        with pytest.raises(torch.linalg.LinAlgError):
            decompose(-torch.eye(3, dtype=torch.float64))


def test_the_least_ridge_lets_a_moment_of_one_direction_be_decomposed() -> None:
    one = torch.ones(40, 40, dtype=torch.float64)
    assert bool(overwrite_by_cholesky(ridged(one, least_ridge(40.0))).isfinite().all())
