"""Parameters that are cut into pieces over ranks (`tp_plan`): gathered to be read, and cut again when written.

Every rank must do so at the same time, in the same order, and so never in threads.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def is_cut(value: Tensor) -> bool:
    """Whether this process holds a piece of the tensor only."""
    loaded = sys.modules.get("torch.distributed.tensor")
    return loaded is not None and isinstance(value, loaded.DTensor)


def whole(value: Tensor) -> Tensor:
    """The tensor in one piece; itself where it is not cut."""
    return value.full_tensor() if is_cut(value) else value  # type: ignore[attr-defined]


def write_whole(value: Tensor, new: Tensor) -> None:
    """Write values, in one piece, into a tensor. Those of the first rank count."""
    import torch

    with torch.no_grad():
        if not is_cut(value):
            value.copy_(new)
            return
        from torch.distributed.tensor import distribute_tensor

        mesh, placements = value.device_mesh, value.placements  # type: ignore[attr-defined]
        pieces = distribute_tensor(new.to(value.device, value.dtype), mesh, placements)
        value.to_local().copy_(pieces.to_local())  # type: ignore[attr-defined]
