"""Tokens per second of the model while it is scored.

Scoring and generating are measured apart, since a generated token takes a pass of its own; and of generating, the pass
over the prompts (prefill), which gives the first token, and those for one token each that follow (decode). A token is a
position of a batch, padding included: that is what the model computes, and it is the same for every variant of a
command. The first call of each kind is left out, since it pays for what is set up once, the baseline's most of all.
Where there was only one call there is no figure.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from leaderboard.readers.receipt import ReceiptSpeed

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass
class Clock:
    """Calls of one kind: how many, and the tokens and seconds of all but the first together, with the sums of their
    batches and lengths.
    """

    calls: int = 0
    tokens: int = 0
    seconds: float = 0.0
    batches: int = 0
    lengths: float = 0.0

    def add(self, tokens: int, seconds: float, batch: int = 0, length: float = 0) -> None:
        """One call is over. batch: texts at once. length: positions of each that a token could look at, at most."""
        if self.calls:
            self.tokens += tokens
            self.seconds += seconds
            self.batches += batch
            self.lengths += length
        self.calls += 1

    def measured(self, phase: str) -> ReceiptSpeed | None:
        """The figures, with the mean batch and length of a call; None where there are none."""
        if not self.tokens_per_second:
            return None
        counted = self.calls - 1
        return ReceiptSpeed(
            phase=phase,
            calls=counted,
            tokens_per_second=self.tokens_per_second,
            batch=round(self.batches / counted, 1),
            length=round(self.lengths / counted, 1),
        )

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
    prefill: Clock = field(default_factory=Clock)
    decode: Clock = field(default_factory=Clock)

    @classmethod
    def of_warm_engine(cls) -> Speed:
        """For an engine that set itself up before its first call, which counts."""
        return cls(scoring=Clock(calls=1), generating=Clock(calls=1))

    def engine_call(self, prompts: Sequence[int], new: int | None, seconds: float) -> None:
        """A call of an engine is over. prompts: tokens of each. new: tokens that it made; None where it scored the
        prompts. An engine passes over prompts and makes tokens at once, so that these are not told apart.
        """
        tokens = sum(prompts)
        clock = self.scoring if new is None else self.generating
        clock.add(tokens if new is None else new, seconds, len(prompts), tokens / max(1, len(prompts)))

    def scored(self, inputs: Tensor, seconds: float) -> None:
        """A pass over whole texts `[batch, length]` is over."""
        self.scoring.add(inputs.numel(), seconds, *inputs.shape[:2])

    def generated(self, prompts: Tensor, tokens: Tensor, first: float, seconds: float) -> None:
        """A call that made tokens `[batch, length]` of prompts `[batch, shorter]` is over, after so many seconds, the
        first pass after `first`.
        """
        batch, length = prompts.shape
        new = tokens.numel() - prompts.numel()
        self.generating.add(new, seconds, batch, tokens.shape[1])
        self.prefill.add(prompts.numel(), first, batch, length)
        self.decode.add(max(0, new - batch), seconds - first, batch, (length + tokens.shape[1]) / 2)

    def phases(self) -> list[ReceiptSpeed]:
        """The figures of each kind of pass that there was, more than once."""
        clocks = {"scoring": self.scoring, "prefill": self.prefill, "decode": self.decode}
        return [row for phase, clock in clocks.items() if (row := clock.measured(phase)) is not None]

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


@contextmanager
def first_pass(model: nn.Module) -> Iterator[Clock]:
    """Measure the first pass of a model inside the block, from the block's start: the seconds of what is handed out."""
    clock, started = Clock(), time.perf_counter()

    def over(module: nn.Module, inputs: Any, output: Any) -> None:
        hook.remove()
        logits = getattr(output, "logits", None)
        clock.seconds = seconds_since(started, logits) if logits is not None else time.perf_counter() - started

    hook = model.register_forward_hook(over)
    try:
        yield clock
    finally:
        hook.remove()
