"""A matrix whose singular values fall."""

from __future__ import annotations

import pytest
import torch

from tests.harness_ext.linalg.matrices import PLACES, with_spectrum


@pytest.fixture
def weight() -> torch.Tensor:
    """`[40, 30]`, all singular values apart."""
    return with_spectrum(40, 30, 1.0 / (1.0 + PLACES[:30]))
