"""Requests that hold token numbers are asked as those, and their sums are the model's."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import weighted_perplexity

from harness_ext.errors import UserError
from harness_ext.lm_eval_adapter.running_text import TokenText

WINDOWS = ([1, 5, 3, 2, 9, 9], [7, 7, 2, 4, 1, 3], [2, 3, 5, 7, 11, 13])


def asked(lm: Any, windows: Any) -> list[float]:
    requests = [(TokenText("w1", window[:1]), TokenText("any text", window[1:])) for window in windows]
    return [value for value, _ in lm.loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in requests])]


def test_the_sums_are_those_of_a_plain_pass(make_lm: Any) -> None:
    """Each window by itself, in float64; texts that are alike do not stand for one another's tokens."""
    lm = make_lm("llama", dtype="float64")
    total = 0.0
    for window in WINDOWS:
        with torch.no_grad():
            logits = lm.model(torch.tensor([window])).logits[0].double()
        total += float(torch.log_softmax(logits[:-1], -1).gather(1, torch.tensor(window[1:])[:, None]).sum())
    found = weighted_perplexity([(value, 5) for value in asked(lm, WINDOWS)])
    assert found == pytest.approx(math.exp(-total / 15), rel=1e-9)


def test_tokens_that_the_model_does_not_have_are_refused(make_lm: Any) -> None:
    with pytest.raises(UserError, match="gives the token 100000"):
        asked(make_lm("llama"), [[1, 100_000]])
