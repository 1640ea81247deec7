"""Runs of one model: there is nothing to test between them."""

from __future__ import annotations

from leaderboard.readers.weights_digest import weights_differ

ONE_MODEL = "the weights are the same to the bit, and so is the score"


def is_one_model(baseline: str | None, recipe: str | None, delta: float | None) -> bool:
    """Whether two runs scored the same weights, by their digests, and alike: then they differ by nothing, however few
    the documents. Where rounding moved the score, what that shows is left to the test.
    """
    return weights_differ(baseline, recipe) is False and delta == 0
