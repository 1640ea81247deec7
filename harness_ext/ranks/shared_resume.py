"""The resume state of several ranks: the first reads and writes it, and the others are told what it holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from harness_ext.ranks.group import Group
from harness_ext.storage.resume import ResumeState

if TYPE_CHECKING:
    from torch import Tensor


class SharedResumeState(ResumeState):
    """`ResumeState` that every rank goes on from alike, whatever the disk says to each."""

    def __init__(self, state: ResumeState, group: Group) -> None:
        super().__init__(state.folder)
        self._state, self._group = state, group

    def part(self, name: str) -> ResumeState:
        """See `ResumeState`."""
        return SharedResumeState(self._state.part(name), self._group)

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The rows that the first rank found."""
        return cast(list[dict[str, Any]], self._group.from_first(f"rows of {name}", lambda: self._state.rows(name)))

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """Written by the first rank."""
        if self._group.first:
            self._state.append(name, row)

    def tensors(self, name: str) -> dict[str, Tensor] | None:
        """The tensors that the first rank found."""
        return self._group.tensors_from_first(f"tensors of {name}", lambda: self._state.tensors(name))

    def keep(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Written by the first rank."""
        if self._group.first:
            self._state.keep(name, tensors)

    def remove(self) -> None:
        """Removed by the first rank."""
        if self._group.first:
            self._state.remove()
