"""What long calculations tell about how far they are."""

from __future__ import annotations


class Progress:
    """What a long calculation tells about how far it is; this one says nothing."""

    def start(self, what: str, total: int) -> None:
        """A stage begins: `what` in words, of `total` units."""

    def advance(self, units: int = 1) -> None:
        """So many units of the stage are done."""

    def stop(self) -> None:
        """The stage is over."""
