"""Tokens per second of the model while it is scored.

Scoring and generating are measured apart, since a generated token takes a pass of its own. A token is a position of a
batch, padding included: that is what the model computes, and it is the same for every variant of a command. The first
call of each kind is left out, since it pays for what is set up once, the baseline's most of all. Where there was only
one call there is no figure.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Clock:
    """Calls of one kind: how many, and the tokens and seconds of all but the first together."""

    calls: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def add(self, tokens: int, seconds: float) -> None:
        """One call is over."""
        if self.calls:
            self.tokens += tokens
            self.seconds += seconds
        self.calls += 1

    @property
    def tokens_per_second(self) -> float | None:
        """Over all calls but the first; None where there was no other."""
        return round(self.tokens / self.seconds, 1) if self.seconds else None


@dataclass
class Speed:
    """A variant's speed. scoring: forward passes over whole texts, by their tokens. generating: by the tokens that came
    out; the passes over the prompts take time too.
    """

    scoring: Clock = field(default_factory=Clock)
    generating: Clock = field(default_factory=Clock)

    def figures(self) -> dict[str, float | None]:
        """Tokens per second of both kinds; None for a kind that did not happen, or once only."""
        return {
            "tokens_per_second": self.scoring.tokens_per_second,
            "generated_tokens_per_second": self.generating.tokens_per_second,
        }


def seconds_since(started: float, result: Tensor) -> float:
    """Seconds from a time of `time.perf_counter` until the device has computed a result."""
    import torch

    if result.device.type == "cuda":
        torch.cuda.synchronize(result.device)
    return time.perf_counter() - started
