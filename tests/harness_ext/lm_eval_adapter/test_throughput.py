"""Tokens per second: of scoring, of prompts and of generated tokens apart, with batch and length."""

from __future__ import annotations

import torch

from harness_ext.lm_eval_adapter.throughput import Clock, Speed, first_pass


def test_prefill_and_decode_by_hand() -> None:
    speed = Speed()
    for seconds in (100.0, 6.0, 6.0):  # the first call is left out
        speed.generated(torch.zeros(2, 10), torch.zeros(2, 21), seconds / 6, seconds)
    speed.scored(torch.zeros(4, 8), 1.0)
    assert [row.to_json() for row in speed.phases()] == [
        {"phase": "prefill", "calls": 2, "tokens_per_second": 20.0, "batch": 2.0, "length": 10.0},
        # Of 11 new tokens of each text the pass over the prompts gave the first.
        {"phase": "decode", "calls": 2, "tokens_per_second": 4.0, "batch": 2.0, "length": 15.5},
    ]
    speed.scored(torch.zeros(2, 8), 2.0)
    assert speed.phases()[0].to_json() == {
        "phase": "scoring",
        "calls": 1,
        "tokens_per_second": 8.0,
        "batch": 2.0,
        "length": 8.0,
    }


def test_the_passes_of_a_model_are_measured(make_lm) -> None:
    lm = make_lm("llama")
    prompts = torch.arange(3, 15).reshape(2, 6)
    for _ in range(2):
        lm._model_call(prompts)
        lm._model_generate(prompts, max_length=12, stop=["w39 w39"])
    rows = {row.phase: row for row in lm.speed.phases()}
    assert rows.keys() == {"scoring", "prefill", "decode"}
    assert all(row.calls == 1 and row.batch == 2 and row.tokens_per_second > 0 for row in rows.values())
    assert (rows["scoring"].length, rows["prefill"].length, rows["decode"].length) == (6, 6, 9)
    assert lm.speed.prefill.seconds < lm.speed.generating.seconds
    both = lm.speed.decode.seconds + lm.speed.prefill.seconds
    assert abs(both - lm.speed.generating.seconds) < 1e-9
    assert not lm.model._forward_hooks


def test_a_block_without_a_pass_leaves_no_hook(make_lm) -> None:
    model = make_lm("llama").model
    with first_pass(model) as clock:
        pass
    assert clock.seconds == 0 and not model._forward_hooks


def test_the_first_call_is_not_counted() -> None:
    clock = Clock()
    assert clock.tokens_per_second is None
    clock.add(100, 10.0)
    assert clock.tokens_per_second is None
    clock.add(100, 1.0)
    clock.add(300, 1.0)
    assert clock.tokens_per_second == 200.0
