"""The size of a model: parameters, bytes, and operations a token."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from harness_ext.model.typed import pretrained, tensor_of

if TYPE_CHECKING:
    from torch import Tensor, nn


# What configs call the number of experts that a token is sent to.
_CHOSEN = ("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts")


@dataclass(frozen=True)
class ModelSize:
    """A model in numbers. element_bytes: of each parameter, by name. used: the share of each that multiplies a
    token.
    """

    parameters: int
    stored_bytes: int
    flops_per_token: int
    element_bytes: Mapping[str, int]
    used: Mapping[str, Fraction]


FACTORS, PIFA = "factors", "pifa"
"""The formats of a low-rank matrix: two factors, and pivot rows (`harness_ext.model.pivot_rows`)."""


def stored_parameters(shape: tuple[int, int], rank: int, form: str = FACTORS) -> int:
    """Numbers needed for an `[m, n]` matrix of this rank: in a low-rank format where these are fewer, dense else."""
    rows, columns = shape
    return min(rows * columns, low_rank_numbers(shape, rank, form))


def low_rank_numbers(shape: tuple[int, int], rank: int, form: str = FACTORS) -> int:
    """Numbers of an `[m, n]` matrix of this rank in a format: `r (m + n)` for two factors, fewer than the matrix has
    below `r = m n / (m + n)`; `r (m + n) - r^2 + r` for pivot rows, of which the last r are the places of the rows:
    fewer wherever `(m - r) (n - r) > r` (PIFA, arXiv:2501.19090).
    """
    rows, columns = shape
    return rank * (rows + columns) - (rank * (rank - 1) if form == PIFA else 0)


def largest_rank_within(shape: tuple[int, int], numbers: float, form: str = FACTORS) -> float:
    """The real rank at which an `[m, n]` matrix takes so many numbers in a format, at most `m n`. Of pivot rows the
    smaller root of `r (m + n + 1) - r^2 = numbers`, as PIFA has it.
    """
    rows, columns = shape
    if form == FACTORS:
        return numbers / (rows + columns)
    both = rows + columns + 1
    # written so that nothing cancels at small ranks
    return 2 * numbers / (both + math.sqrt(both * both - 4 * numbers))


def size_of(model: nn.Module) -> ModelSize:
    """Measure a model as it is."""
    parameters = dict(model.named_parameters())
    used = {name: _share_used(model, name, value) for name, value in parameters.items()}
    flops = 2 * _multiplied(model) + 2 * sum(
        used[name] * value.numel() for name, value in parameters.items() if value.ndim == 3
    )
    return ModelSize(
        parameters=sum(value.numel() for value in parameters.values()),
        stored_bytes=sum(value.numel() * value.element_size() for value in parameters.values()),
        flops_per_token=round(flops),
        element_bytes={name: value.element_size() for name, value in parameters.items()},
        used=used,
    )


def _multiplied(model: nn.Module) -> int:
    """Weights that multiply every token: those of linear layers, the output head among them even where it shares the
    embedding's; of a low-rank layer, its factors.
    """
    from torch.nn import Embedding

    from harness_ext.model.low_rank import LowRankLinear

    thin = [module for module in model.modules() if isinstance(module, LowRankLinear)]
    return sum(module.multiplied for module in thin) + sum(
        tensor_of(module, "weight").numel()
        for module in model.modules()
        if not isinstance(module, (Embedding, LowRankLinear))
        and getattr(getattr(module, "weight", None), "ndim", 0) == 2
    )


def _share_used(model: nn.Module, name: str, value: Tensor) -> Fraction:
    """The share of a parameter that multiplies a token: of experts `[experts, out, in]` those that a token is sent to,
    of any other all.
    """
    if value.ndim != 3 or "experts" not in name:
        return Fraction(1)
    config = pretrained(model).config.get_text_config()
    chosen = next((count for key in _CHOSEN if (count := getattr(config, key, None))), None)
    return min(Fraction(int(chosen), value.shape[0]), Fraction(1)) if chosen else Fraction(1)
