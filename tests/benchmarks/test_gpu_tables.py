"""The tables of `python -m tests.benchmarks.gpu` come whole, whatever a row meets."""

from __future__ import annotations

import time

import pytest
import torch

from tests.benchmarks.gpu import sections
from tests.benchmarks.gpu.made_model import SHAPES, made_documents, made_model, made_tokenizer
from tests.benchmarks.gpu.timing import TimeUp, at_most

TINY = SHAPES["small"]._replace(width=32, inner=64, layers=1, documents=4, tokens=16, prompts=(2, 32), new_tokens=4)
CPU = torch.device("cpu")


@pytest.fixture
def bench() -> sections.Bench:
    return sections.Bench(
        make=lambda: made_model(TINY, CPU, torch.float32),
        tokenizer=made_tokenizer(),
        documents=made_documents(TINY),
        shapes=TINY,
        limit=60,
        ends=time.monotonic() + 600,
    )


@pytest.mark.slow
def test_the_spectra_fall_and_the_model_is_the_same_each_time(bench: sections.Bench) -> None:
    weight = bench.model.model.layers[0].mlp.up_proj.weight
    values = torch.linalg.svdvals(weight.detach())
    assert values[0] > 4 * values[len(values) // 2]
    assert weight.std().item() == pytest.approx(0.02, rel=0.01)
    assert torch.equal(weight, bench.make().model.layers[0].mlp.up_proj.weight)
    assert {len(bench.tokenizer.encode(prompt + answer)) for prompt, answer in bench.documents} == {TINY.tokens}


@pytest.mark.slow
def test_a_recipe_that_fails_is_a_row_and_the_next_is_measured(bench: sections.Bench) -> None:
    head, *rows = sections.recipes(bench, ["svd:keep.rank=999", "nonsense", "svd", "svd-llm", "noise"])
    assert {len(row) for row in rows} == {len(head)}
    wrong, unknown, svd, learned, noise = rows
    assert "999" in wrong[-1] and unknown[-1].startswith("RecipeError: unknown recipe")
    assert [row[-1] for row in (svd, learned, noise)] == ["7 matrices"] * 3
    floors = [float(row[4]) for row in (noise, svd, learned)]
    assert floors == sorted(floors)
    assert float(svd[1]) == 0 < float(learned[1]) and float(svd[3]) > 0


@pytest.mark.slow
def test_what_takes_too_long_is_a_row_and_leaves_the_model_as_it_was(bench: sections.Bench) -> None:
    bench.limit = 0.05

    def slow() -> sections.Row:
        with bench.applied("svd:keep.rank=2"):
            time.sleep(30)
        return "slow", "", ""

    before = {name: value.clone() for name, value in bench.model.state_dict().items()}
    assert sections.attempt(bench, "slow", 3, slow) == ("slow", "-", "longer than 0 s")
    assert all(torch.equal(value, before[name]) for name, value in bench.model.state_dict().items())
    bench.ends = time.monotonic()
    assert sections.attempt(bench, "slow", 3, slow) == ("slow", "-", "not begun: no time left")


@pytest.mark.slow
def test_a_model_that_was_left_changed_is_made_anew(bench: sections.Bench) -> None:
    def spoils() -> sections.Row:
        with torch.no_grad():
            bench.model.lm_head.weight.mul_(2)
        return "spoils", "1", ""

    expected = bench.model.lm_head.weight.detach().clone()
    assert sections.attempt(bench, "spoils", 3, spoils) == ("spoils", "1", "; left the model changed")
    assert torch.equal(bench.model.lm_head.weight, expected) and bench.floor.model is bench.model


@pytest.mark.slow
def test_factored_speed_digests_and_decompositions(bench: sections.Bench) -> None:
    head, *rows = sections.factored(bench)
    assert [row[0] for row in rows] == ["0.8", "0.6", "0.4", "0.2"] and {len(row) for row in rows} == {len(head)}
    assert rows[-1][1].endswith(" of 7") and rows[-1][1] != "0 of 7" and not any(row[-1] for row in rows)
    head, *rows = sections.digests(bench)
    assert [row[-1] for row in rows] == [""] * 3
    head, *rows = sections.decompositions(bench)
    assert [float(row[5]) for row in rows] == pytest.approx([1.0] * 6, abs=1e-3)


def test_time_limits_end_with_their_block() -> None:
    with pytest.raises(TimeUp), at_most(0.01):
        time.sleep(5)
    with pytest.raises(TimeUp), at_most(0.01):
        try:
            time.sleep(5)
        except TimeUp as error:
            raise ValueError("a library's own error") from error
    with at_most(0.05):
        pass
    time.sleep(0.1)
