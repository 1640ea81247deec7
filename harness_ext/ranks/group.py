"""Messages between the ranks: every rank says something at the same point, and every rank hears all.

A message is JSON, in which numbers keep all their bits, sent as bytes over gloo, whatever the weights are on. A rank in
which a variant fails says so with its next message, and the variant fails in all; see `failing_together`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from harness_ext.errors import UserError, VariantFailed
from harness_ext.ranks.launch import Launch, launched

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup

_PATIENCE = timedelta(weeks=52)
"""For a message; `watch` ends a wait for a rank that is gone."""
_FAILED = "failed"
Item = TypeVar("Item")


class OutOfStep(RuntimeError):
    """Ranks that are at different points of the program."""


class ToldFailure(VariantFailed):
    """A failure of a variant that all ranks know of."""


class Group:
    """The ranks of this command. rank: of this process, from 0. ranks: how many there are; of one, every message is
    heard by itself.
    """

    def __init__(self, launch: Launch, over: ProcessGroup | None = None) -> None:
        self.rank, self.ranks = launch
        self._over = over

    @property
    def first(self) -> bool:
        """Whether this is the rank that decides, writes and prints."""
        return self.rank == 0

    def exchange(self, what: str, value: Any = None) -> list[Any]:
        """The value of each rank, by rank. what: names the point of the program. value: plain data.

        Raises VariantFailed where a rank tells that its variant failed, and OutOfStep where ranks are at different
        points.
        """
        if self.ranks == 1:
            return [value]
        return self._heard([what, value])

    def from_first(self, what: str, make: Callable[[], Any]) -> Any:
        """What the first rank makes, on every rank."""
        return self.exchange(what, make() if self.first else None)[0]

    def tensors_from_first(
        self, what: str, make: Callable[[], Mapping[str, Tensor] | None]
    ) -> dict[str, Tensor] | None:
        """Tensors on the CPU that the first rank has, or None, on every rank."""
        made = make() if self.first else None
        if self.ranks == 1:
            return None if made is None else dict(made)
        import torch
        from safetensors.torch import load, save

        data = bytearray(save(dict(made)) if made is not None else b"")
        size = self.from_first(what, lambda: None if made is None else len(data))
        if size is None:
            return None
        buffer = torch.frombuffer(data, dtype=torch.uint8) if self.first else torch.empty(size, dtype=torch.uint8)
        torch.distributed.broadcast(buffer, src=0, group=self._over)
        return load(buffer.numpy().tobytes())

    def in_shares(self, what: str, items: Sequence[Item], work: Callable[[Item], Any]) -> list[Any]:
        """What `work` makes of each item, as plain data, each made in one rank; in their order on every rank."""
        own = [[place, work(item)] for place, item in enumerate(items) if place % self.ranks == self.rank]
        made = {place: value for share in self.exchange(what, own) for place, value in share}
        return [made[place] for place in range(len(items))]

    @contextmanager
    def failing_together(self, what: str) -> Iterator[None]:
        """A VariantFailed of one rank inside the block becomes one of all: at their next message, or at its end."""
        try:
            yield
            self.exchange(f"end of {what}")
        except ToldFailure:
            raise
        except VariantFailed as error:
            if self.ranks > 1:
                self._heard([_FAILED, [error.kind, error.reason, error.where, error.searches]])
            raise

    def _heard(self, message: list[Any]) -> list[Any]:
        messages = [json.loads(text) for text in self._gathered(json.dumps(message).encode())]
        for what, value in messages:
            if what == _FAILED:
                # The same on every rank: that of the lowest that failed.
                kind, reason, where, searches = value
                failure = ToldFailure(kind, reason, where)
                failure.searches = searches
                raise failure
        if len({what for what, _ in messages}) > 1:
            raise OutOfStep(f"the ranks are at different points: {', '.join(what for what, _ in messages)}")
        return [value for _, value in messages]

    def _gathered(self, data: bytes) -> list[bytes]:
        import torch
        from torch.distributed import all_gather

        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.ranks)]
        all_gather(sizes, torch.tensor([len(data)]), group=self._over)
        longest = max(int(size) for size in sizes)
        own = torch.zeros(longest, dtype=torch.uint8)
        own[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        parts = [torch.empty_like(own) for _ in range(self.ranks)]
        all_gather(parts, own, group=self._over)
        return [part[: int(size)].numpy().tobytes() for part, size in zip(parts, sizes, strict=True)]


ALONE = Group(Launch(0, 1))
_current = ALONE


def current() -> Group:
    """The ranks of this command; this process alone until they have joined."""
    return _current


def join() -> Group:
    """Meet the other ranks that the launcher started. Raises UserError where there is no GPU for each."""
    import torch
    from torch import distributed

    global _current
    launch, on_gpu = launched(), torch.cuda.is_available()
    if launch.ranks == 1:
        return ALONE
    if on_gpu:
        if launch.ranks > torch.cuda.device_count():
            raise UserError(
                f"there are {launch.ranks} processes and {torch.cuda.device_count()} GPUs: start one for each GPU"
            )
        torch.cuda.set_device(launch.rank)
    distributed.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=_PATIENCE)
    _current = Group(launch, distributed.new_group(backend="gloo", timeout=_PATIENCE))
    return _current


def leave() -> None:
    """Part from the other ranks."""
    from torch import distributed

    global _current
    if _current is not ALONE:
        _current = ALONE
        distributed.destroy_process_group()
