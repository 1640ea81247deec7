"""Digests of weights: equal exactly where the bits are.

A digest is named after its function, `blake3:...`: BLAKE3 (https://github.com/BLAKE3-team/BLAKE3-specs) is
cryptographic as SHA-256 is, and uses every core. Receipts of earlier versions hold SHA-256 in hex without a name;
`leaderboard.readers.weights_digest` says what two digests tell of each other.

A matrix that was read for arithmetic has a name (`named`, `name_of`) made of the digest of its stored bytes, so that
what is worked out from it can be found again without hashing the copy. The name is that of the object as it was read:
an operation on it gives a tensor without one, and writing into it takes the name away.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from harness_ext.errors import UserError
from harness_ext.model.cut import is_cut, whole
from harness_ext.model.offload import whole_value

if TYPE_CHECKING:
    import torch
    from torch import Tensor, device, nn
    from torch.utils.weak import WeakTensorKeyDictionary

KIND = "blake3"
_HASHING_THREADS = 4
_BACKGROUND_THREADS = 2
# Below this a second core costs more than it gives.
_BYTES_FOR_ALL_CORES = 1 << 20


def model_digest(model: nn.Module) -> str:
    """The digest that `Weights.digest` gives, of a model that is only looked at; of what is offloaded, from where it is
    kept.
    """
    parameters = dict(model.named_parameters())
    gathered = {name: tensor_digest(value) for name, value in sorted(parameters.items()) if is_cut(value)}
    return combined(
        parameters, lambda name: gathered.get(name) or tensor_digest(whole_value(model, name, parameters[name]))
    )


def combined(names: Iterable[str], digest_of: Callable[[str], str]) -> str:
    """The digest over names and the digest of each, in order of name."""
    return text_digest("".join(f"{name} {digest}\n" for name, digest in digests_of(sorted(names), digest_of).items()))


def digests_of(names: Iterable[str], digest_of: Callable[[str], str]) -> dict[str, str]:
    """The digest of each, several at a time."""
    ordered = list(names)
    with ThreadPoolExecutor(_HASHING_THREADS) as pool:
        return dict(zip(ordered, pool.map(digest_of, ordered), strict=True))


def text_digest(text: str) -> str:
    """The digest of a text."""
    from blake3 import blake3

    return f"{KIND}:{blake3(text.encode()).hexdigest()}"


def tensor_digest(value: Tensor) -> str:
    """The digest over a tensor's dtype, shape and bytes."""
    return _digest_on_cpu(on_cpu(value))


def background_digest(value: Tensor) -> Future[str]:
    """`tensor_digest`, worked out beside what comes next; copied to the CPU before this returns where it is not there.
    One that is there must not be written to before the result is in.
    """
    return _background().submit(_digest_on_cpu, on_cpu(value))


def on_cpu(value: Tensor) -> Tensor:
    """The tensor on the CPU, one number after the other; itself where it is. Raises UserError where it is in no memory
    at all.
    """
    if value.device.type == "meta":
        raise UserError(
            "some weights of the model are offloaded, not in memory, and can neither be edited nor told apart: give the"
            " model more memory, or drop parallelize and offloading"
        )
    return whole(value.detach()).cpu().contiguous()


def _digest_on_cpu(data: Tensor) -> str:
    import torch
    from blake3 import blake3

    size = data.numel() * data.element_size()
    hasher = blake3(
        f"{data.dtype} {tuple(data.shape)} ".encode(),
        max_threads=blake3.AUTO if size >= _BYTES_FOR_ALL_CORES else 1,
    )
    if size:
        hasher.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return f"{KIND}:{hasher.hexdigest()}"


def parts_digest(dtype: torch.dtype, shape: tuple[int, ...], parts: Iterable[Tensor]) -> str:
    """The digest that `tensor_digest` gives of a tensor whose rows come in parts, one in memory at a time."""
    import torch
    from blake3 import blake3

    hasher = blake3(f"{dtype} {shape} ".encode(), max_threads=blake3.AUTO)
    for part in parts:
        if part.numel():
            hasher.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return f"{KIND}:{hasher.hexdigest()}"


@cache
def _background() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_BACKGROUND_THREADS, thread_name_prefix="digests")


if hasattr(os, "register_at_fork"):
    # A forked process has none of the threads.
    os.register_at_fork(after_in_child=_background.cache_clear)


class _Name(NamedTuple):
    """version: how often the tensor had been written to when it was named."""

    text: str
    version: int


@cache
def _names() -> WeakTensorKeyDictionary:
    from torch.utils.weak import WeakTensorKeyDictionary

    return WeakTensorKeyDictionary()


def named(value: Tensor, text: str) -> Tensor:
    """The tensor itself, known from now on by a name that all its numbers follow from. A tensor of inference mode gets
    none, since nobody counts how often it is written to.
    """
    if not value.is_inference():
        _names()[value] = _Name(text, value._version)
    return value


def name_of(value: Tensor) -> str | None:
    """The name of a tensor; None where it has none, or was written to since."""
    found: _Name | None = _names().get(value)
    return found.text if found is not None and found.version == value._version else None


def moved(value: Tensor, device: device) -> Tensor:
    """The tensor on a device, under the name that it has."""
    there, text = value.to(device), name_of(value)
    return there if there is value or text is None else named(there, text)
