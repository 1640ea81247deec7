"""Hidden states of all calibration documents before one layer, kept where there is room for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

SHARE_OF_MEMORY = 0.25
"""Of the free memory of a GPU, what hidden states may take before they are kept on the CPU."""


class States:
    """A tensor `[b, t, d]` for each batch, on the CPU where a GPU would be filled by them."""

    def __init__(self, values: Sequence[Tensor]) -> None:
        self._values = list(values)
        self._device = self._values[0].device
        self._aside = _fills(self._values)
        self._values = [self.kept(value) for value in self._values]

    def __getitem__(self, place: int) -> Tensor:
        return self._values[place].to(self._device, non_blocking=True)

    def __setitem__(self, place: int, value: Tensor) -> None:
        self._values[place] = self.kept(value)

    def kept(self, value: Tensor) -> Tensor:
        """A tensor where these are kept."""
        return value.detach().to("cpu" if self._aside else self._device)

    def replace(self, values: Sequence[Tensor]) -> None:
        """Other values for all batches."""
        self._values = list(values)

    def copy(self) -> States:
        """The same, to be changed by itself."""
        return States(self._values)


def _fills(values: Sequence[Tensor]) -> bool:
    import torch

    if values[0].device.type != "cuda":
        return False
    size = sum(value.numel() * value.element_size() for value in values)
    return size > SHARE_OF_MEMORY * torch.cuda.mem_get_info(values[0].device)[0]
