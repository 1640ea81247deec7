"""Digests of weights: equal exactly where the bits are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from harness_ext.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_HASHING_THREADS = 4


def model_digest(model: nn.Module) -> str:
    """The digest that `Weights.digest` gives, of a model that is only looked at."""
    parameters = dict(model.named_parameters())
    return combined(parameters, lambda name: tensor_digest(parameters[name]))


def combined(names: Iterable[str], digest_of: Callable[[str], str]) -> str:
    """SHA-256 over names and the digest of each, in order of name."""
    ordered = sorted(names)
    with ThreadPoolExecutor(_HASHING_THREADS) as pool:
        digests = list(pool.map(digest_of, ordered))
    return hashlib.sha256(
        "".join(f"{name} {digest}\n" for name, digest in zip(ordered, digests, strict=True)).encode()
    ).hexdigest()


def tensor_digest(value: Tensor) -> str:
    """SHA-256 over a tensor's dtype, shape and bytes."""
    import torch

    if value.device.type == "meta":
        raise UserError(
            "some weights of the model are offloaded, not in memory, and can neither be edited nor told apart: give the"
            " model more memory, or drop parallelize and offloading"
        )
    data = value.detach().cpu().contiguous()
    hasher = hashlib.sha256(f"{data.dtype} {tuple(data.shape)} ".encode())
    if data.numel():
        hasher.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def parts_digest(dtype: torch.dtype, shape: tuple[int, ...], parts: Iterable[Tensor]) -> str:
    """The digest that `tensor_digest` gives of a tensor whose rows come in parts, one in memory at a time."""
    import torch

    hasher = hashlib.sha256(f"{dtype} {shape} ".encode())
    for part in parts:
        if part.numel():
            hasher.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()
