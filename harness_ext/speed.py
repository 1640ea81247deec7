"""How fast the model is while it is scored: tokens in, seconds spent in it, taken along the way at no cost.

Scoring and generating are told apart, since a generated token takes a pass of its own. A token is a position of a batch, padding included: that is what the model computes, and it is the same for every
variant of a command, which asks the same documents in the same batches. The first call of each kind is left out where there are others: it pays for what is set up once.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Clock:
    """Calls of one kind: how many, and the tokens and seconds of the first and of all others together."""

    calls: int = 0
    first: tuple[int, float] = (0, 0.0)
    others: tuple[int, float] = (0, 0.0)

    def add(self, tokens: int, seconds: float) -> None:
        """One call is over."""
        if self.calls == 0:
            self.first = (tokens, seconds)
        else:
            self.others = (self.others[0] + tokens, self.others[1] + seconds)
        self.calls += 1

    @property
    def tokens_per_second(self) -> float | None:
        """Over all calls but the first, or of that one where it was the only one; None where there was none."""
        tokens, seconds = self.others if self.calls > 1 else self.first
        return round(tokens / seconds, 1) if seconds else None


@dataclass
class Speed:
    """A variant's speed. scoring: forward passes over whole texts, by their tokens. generating: by the tokens that came out; the passes over the prompts take time too."""

    scoring: Clock = field(default_factory=Clock)
    generating: Clock = field(default_factory=Clock)

    def figures(self) -> dict[str, float | None]:
        """Tokens per second of both kinds; None for a kind that did not happen."""
        return {"tokens_per_second": self.scoring.tokens_per_second, "generated_tokens_per_second": self.generating.tokens_per_second}


def seconds_since(started: float, result: Tensor) -> float:
    """Seconds from a time of `time.perf_counter` until the device has computed a result."""
    import torch

    if result.device.type == "cuda":
        torch.cuda.synchronize(result.device)
    return time.perf_counter() - started
