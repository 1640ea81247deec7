"""Sink tokens: tokens of which a model makes something else than of all others, and which would decide any mean.

Attention rests on the first token of a sequence, whatever it is, and a few layers blow it up or shrink it: in
SmolLM2-135M the inputs of layer 11's `down_proj` are 470 to 770 times as large there as at the median token, and in the
layers after it a tenth as large. Now and then another token does the same (arXiv:2309.17453, arXiv:2402.17762). A mean
over tokens is then that of the sinks, and what is shifted by it is shifted for every other token as well.

The rule is ours. It looks at one document at a time, so that batches change nothing, and at one matrix at a time, since
a token can be a sink in one layer and none in the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from harness_ext.methods.statistic_registry import SinkTokens

if TYPE_CHECKING:
    from torch import Tensor

SINK_FACTOR = 6.0
"""An input is far out where its norm exceeds the median norm this many times. Of SmolLM2's tokens but the first, almost
all stay below 4; those beyond, a space or a line break, reach 7 to 22.
"""
RULE = f"first token, or {SINK_FACTOR:g} times the median norm"
"""The rule in words, for receipts and for the names of what is kept."""


def sink_tokens(inputs: Tensor, real: Tensor, first: Tensor) -> SinkTokens:
    """Sinks are the first token of each document, and those far out: of an input norm more than `SINK_FACTOR` times the
    median over the document's tokens but the first. The first may be far out as well.

    inputs: of a matrix, `[b, t, n]`. real: which tokens count, `[b, t]`. first: which are the first of their documents,
    `[b, t]`; a mask without any where there are only documents of one token, of which nothing else would be left.
    A token whose input is not finite is none: what is gathered shows it, and the edit is refused.
    """
    import torch

    norms = torch.linalg.vector_norm(inputs.float(), dim=-1)
    others = norms.masked_fill(~(real & ~first), torch.nan)
    median = others.nanmedian(dim=1, keepdim=True).values
    # Comparisons with NaN, the median of no tokens, are false.
    far = real & norms.isfinite() & (median > 0) & (norms > SINK_FACTOR * median)
    return SinkTokens(far | (real & norms.isfinite() & first), far)


class SeenTokens(NamedTuple):
    """The tokens that the statistics of a matrix are of. tokens: real ones; sinks: those among them that are sinks.

    typical_output: the mean norm of the matrix's outputs over the others (over all where there are no others), bias
    included; None of an expert, whose outputs are not seen.
    """

    tokens: int
    sinks: int
    typical_output: float | None = None

    @classmethod
    def of(cls, statistics: Mapping[str, Tensor]) -> SeenTokens | None:
        """What goes along with the statistics of a matrix; None with those that no pass gathered."""
        if SEEN not in statistics:
            return None
        tokens, sinks, *typical = statistics[SEEN].tolist()
        return cls(int(tokens), int(sinks), *typical)

    def tensor(self) -> Tensor:
        """The same in fp64, as caches keep it."""
        import torch

        return torch.tensor([value for value in self if value is not None], dtype=torch.float64)


SEEN = "seen tokens"
"""Where `SeenTokens` stand among the statistics of a matrix: the name of no argument, so of no statistic."""
