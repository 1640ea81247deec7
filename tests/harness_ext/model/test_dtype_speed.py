"""Processors that are slow in two-byte numbers, and what is said of them."""

from __future__ import annotations

import pytest
import torch

from harness_ext.model import dtype_speed
from harness_ext.model.dtype_speed import SLOW, advice, slower_than_float32

CPU = torch.device("cpu")


def test_only_two_bytes_on_a_processor_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = iter([3.0, 2.0, 4.0, 2.0, 2.0, 1.0, 0.5, 1.0, 1.0, 1.0])
    monkeypatch.setattr(dtype_speed, "_seconds", lambda work: next(taken))
    assert slower_than_float32(torch.float32, CPU) is None
    assert slower_than_float32(torch.float64, CPU) is None
    assert slower_than_float32(torch.bfloat16, torch.device("meta")) is None
    assert slower_than_float32(torch.bfloat16, CPU) == 4.0  # the least of each


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_real_products_are_timed(dtype: torch.dtype) -> None:
    times = slower_than_float32(dtype, CPU)
    assert times is not None and times > 0


def test_a_slow_dtype_is_told_with_what_to_do_and_a_quick_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dtype_speed, "slower_than_float32", lambda dtype, device: SLOW + 1)
    said = advice(torch.bfloat16, CPU)
    assert said is not None
    assert "3.0 times as long in bfloat16" in said and "dtype=float32 in --model_args" in said
    monkeypatch.setattr(dtype_speed, "slower_than_float32", lambda dtype, device: SLOW - 0.1)
    assert advice(torch.bfloat16, CPU) is None
    monkeypatch.setattr(dtype_speed, "slower_than_float32", lambda dtype, device: None)
    assert advice(torch.float32, CPU) is None
