"""Matrices of a given spectrum, and what tests of decompositions and of their cache ask of them alike."""

from __future__ import annotations

from collections.abc import Callable

import numpy
import pytest
import torch

PLACES = numpy.arange(160)
"""Of singular values, from the largest."""


def fixed(rank: int) -> Callable[[torch.Tensor], int]:
    return lambda singular_values: rank


def with_spectrum(rows: int, columns: int, singular_values: numpy.ndarray, seed: int = 0) -> torch.Tensor:
    generator = numpy.random.default_rng(seed)
    count = min(rows, columns)
    left, right = (numpy.linalg.qr(generator.standard_normal((size, count))).Q for size in (rows, columns))
    return torch.tensor((left * singular_values[:count]) @ right.T, dtype=torch.float32)


def not_converged(*args: object, **kwargs: object) -> None:
    raise torch.linalg.LinAlgError("did not converge")


def no_documents(calibration):
    pytest.fail("no document was to be asked for")
