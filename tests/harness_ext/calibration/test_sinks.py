"""Sink tokens: the rule against plain numpy on made-up activations, and which statistics they are in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness_ext.calibration.observed import WatchedMatrix
from harness_ext.calibration.sinks import RULE, SEEN, SINK_FACTOR, SeenTokens, sink_tokens
from harness_ext.calibration.statistics import AblationEffects
from harness_ext.editing.edit_matrix import EditedMatrix
from harness_ext.editing.pipeline import AppliedRecipe
from harness_ext.editing.warnings import receipt_warnings
from harness_ext.methods import Svd
from harness_ext.methods.statistic_registry import registered_statistics
from harness_ext.model.layout import Matrix
from harness_ext.recipe.recipe import parse_recipe

MATRIX = Matrix("layer.weight", (4, 6), role="down_proj", layer=0)


def activations(seed: int, lengths: list[int], far: bool) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Documents padded on the left, `[b, t, 6]`, and their masks; their first tokens, and in the middle of longer ones
    another, 300 times as large where `far`.
    """
    generator = numpy.random.default_rng(seed)
    width = max(lengths)
    inputs = generator.standard_normal((len(lengths), width, 6))
    inputs /= numpy.linalg.norm(inputs, axis=2, keepdims=True)
    inputs *= generator.uniform(0.7, 1.6, (len(lengths), width, 1))
    mask = numpy.zeros((len(lengths), width), dtype=bool)
    for row, length in enumerate(lengths):
        mask[row, width - length :] = True
        if far:
            inputs[row, width - length] *= 300
            if length > 5:
                inputs[row, width - length // 2] *= 300
    inputs[~mask] = 1e6 * generator.standard_normal(6)  # what padding holds must not matter
    return inputs, mask


def plain(inputs: numpy.ndarray, mask: numpy.ndarray) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The places of sinks and of those far out, document by document."""
    sinks, far = [], []
    for row, (values, real) in enumerate(zip(inputs, mask, strict=True)):
        norms = {place: float(numpy.sqrt((values[place] ** 2).sum())) for place in numpy.flatnonzero(real)}
        first = min(norms)
        others = sorted(norm for place, norm in norms.items() if place != first)
        limit = SINK_FACTOR * others[(len(others) - 1) // 2] if others else numpy.inf
        sinks += [(row, place) for place, norm in norms.items() if place == first or norm > limit]
        far += [(row, place) for place, norm in norms.items() if norm > limit]
    return sinks, far


def tensors(inputs: numpy.ndarray, mask: numpy.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    real = torch.tensor(mask)
    return torch.tensor(inputs, dtype=torch.float32), real, real & (real.cumsum(1) == 1)


def marked(mask: torch.Tensor) -> list[tuple[int, int]]:
    return [tuple(place) for place in mask.nonzero().tolist()]


LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=5)


@given(st.integers(0, 2**31), LENGTHS, st.booleans())
@settings(max_examples=80, deadline=None)
def test_sinks_are_first_tokens_and_those_far_out(seed: int, lengths: list[int], far: bool) -> None:
    inputs, mask = activations(seed, lengths, far)
    found = sink_tokens(*tensors(inputs, mask))
    assert (marked(found.every), marked(found.far)) == plain(inputs, mask)


@given(st.integers(0, 2**31), LENGTHS)
@settings(max_examples=30, deadline=None)
def test_a_document_has_the_same_sinks_in_any_batch(seed: int, lengths: list[int]) -> None:
    together = sink_tokens(*tensors(*activations(seed, lengths, far=True)))
    inputs, mask = activations(seed, lengths, far=True)
    for row, length in enumerate(lengths):
        alone = sink_tokens(*tensors(inputs[row : row + 1, -length:], mask[row : row + 1, -length:]))
        assert torch.equal(alone.every[0], together.every[row, -length:])
        assert torch.equal(alone.far[0], together.far[row, -length:])


@pytest.mark.parametrize("value", [numpy.inf, numpy.nan])
def test_an_input_that_is_not_finite_is_no_sink(value: float) -> None:
    """It must not be left out, or nobody would be told of it."""
    inputs, mask = activations(0, [8, 8], far=False)
    inputs[0, 0], inputs[1, 4] = value, value
    found = sink_tokens(*tensors(inputs, mask))
    assert marked(found.every) == [(1, 0)] and not found.far.any()


def test_inputs_of_which_most_are_zero_have_no_median_to_stand_out_from() -> None:
    inputs, mask = activations(0, [9], far=False)
    inputs[0, 1:7] = 0
    assert marked(sink_tokens(*tensors(inputs, mask)).every) == [(0, 0)]


def watched(*names: str) -> WatchedMatrix:
    registered = registered_statistics()
    svd = Svd(*torch.linalg.svd(torch.randn(4, 6, generator=torch.Generator().manual_seed(1)), full_matrices=False))
    made = {
        name: registered[name].make(svd) if registered[name].needs_components else registered[name].make()
        for name in names
    }
    return WatchedMatrix(MATRIX, made)


def seen(item: WatchedMatrix, inputs: numpy.ndarray, mask: numpy.ndarray, gradients: torch.Tensor | None = None):
    values, real, first = tensors(inputs, mask)
    item.update(values, gradients, real, sink_tokens(values, real, first))
    return item


@pytest.mark.parametrize("far", [False, True])
def test_means_leave_sinks_out_and_second_moments_keep_them(far: bool) -> None:
    inputs, mask = activations(3, [9, 7, 4], far)
    sinks, out = plain(inputs, mask)
    tokens = [(row, place) for row, place in zip(*numpy.nonzero(mask), strict=True)]
    rows = {place: inputs[place] for place in tokens}
    names = ("input_mean", "input_mean_with_sinks", "far_input_mean", "input_second_moment")
    found = seen(watched(*names), inputs, mask).results()
    every = numpy.stack([rows[place] for place in tokens])
    ordinary = numpy.stack([rows[place] for place in tokens if place not in sinks])
    far_out = numpy.mean([rows[place] for place in out], axis=0) if out else numpy.zeros(6)
    for name, expected in zip(
        names, (ordinary.mean(0), every.mean(0), far_out, every.T @ every / len(every)), strict=True
    ):
        numpy.testing.assert_allclose(found[name].numpy(), expected, rtol=1e-5, atol=1e-5)
    assert SeenTokens.of(found) == (20, len(sinks), None)
    # Five of twenty tokens three hundred times as large as the others would be the mean.
    assert (numpy.linalg.norm(every.mean(0)) > 10 * numpy.linalg.norm(ordinary.mean(0))) == far


def test_an_ablation_effect_takes_the_mean_of_ordinary_tokens_and_the_effects_at_all() -> None:
    inputs, mask = activations(4, [9, 6], far=True)
    gradients = numpy.random.default_rng(5).standard_normal((2, 9, 4))
    item = watched("ablation_effects")
    statistic = item.statistics["ablation_effects"]
    assert isinstance(statistic, AblationEffects)
    u, s, vh = (part.double().numpy() for part in statistic._svd)
    found = seen(item, inputs, mask, torch.tensor(gradients, dtype=torch.float32)).results()
    assert found is not None
    sinks, _ = plain(inputs, mask)
    tokens = list(zip(*numpy.nonzero(mask), strict=True))
    mean = numpy.mean([inputs[place] for place in tokens if place not in sinks], axis=0)
    effects = [
        numpy.mean([(gradients[place] @ u[:, i]) * s[i] * (vh[i] @ (mean - inputs[place])) for place in tokens])
        for i in range(4)
    ]
    numpy.testing.assert_allclose(found["ablation_effects"].numpy(), effects, rtol=1e-4, atol=1e-4)


@given(st.integers(0, 2**31), LENGTHS)
@settings(max_examples=30, deadline=None)
def test_without_sinks_no_statistic_changes(seed: int, lengths: list[int]) -> None:
    """To the bit, where no token is the first of its document either, as of documents of one token alone."""
    inputs, mask = activations(seed, lengths, far=False)
    values, real, _ = tensors(inputs, mask)
    none = sink_tokens(values, real, torch.zeros_like(real))
    assert not none.every.any()
    item = watched("input_mean", "input_mean_with_sinks", "far_input_mean")
    item.update(values, None, real, none)
    found = item.results()
    assert torch.equal(found["input_mean"], found["input_mean_with_sinks"])
    assert not found["far_input_mean"].any()


def test_an_expert_that_sees_sinks_alone_has_no_mean() -> None:
    inputs, mask = activations(6, [1, 1], far=False)
    assert seen(watched("input_mean"), inputs, mask).results() is None
    assert seen(watched("input_mean_with_sinks"), inputs, mask).results() is not None


def test_a_typical_output_is_the_mean_norm_without_sinks() -> None:
    inputs, mask = activations(7, [9, 7], far=True)
    outputs = numpy.random.default_rng(8).standard_normal((2, 9, 4))
    values, real, first = tensors(inputs, mask)
    item = seen(watched("input_mean"), inputs, mask)
    item.see_outputs(torch.tensor(outputs), real, sink_tokens(values, real, first).every)
    sinks, _ = plain(inputs, mask)
    norms = [
        numpy.linalg.norm(outputs[place]) for place in zip(*numpy.nonzero(mask), strict=True) if place not in sinks
    ]
    found = SeenTokens.of(item.results())
    assert found is not None and found.typical_output == pytest.approx(numpy.mean(norms), rel=1e-5)
    assert SeenTokens.of({SEEN: found.tensor()}) == found


def test_a_shift_larger_than_a_typical_output_is_told(make_lm, monkeypatch) -> None:
    """With means over all tokens, sinks among them, in a model whose first token stands far out."""
    lm, recipe = make_lm("llama"), parse_recipe("svd:matrices=[down_proj],keep.rank=2")
    record = lm.apply(recipe, lambda calibration: []).records[0]
    seen_tokens = SeenTokens(10, 1, 2.0)
    applied = AppliedRecipe(edited=[EditedMatrix(record, seen_tokens, size) for size in (0.5, None, 3.0, 12.0)])
    told = [warning for warning in receipt_warnings(recipe, applied) if "typical output" in warning]
    assert len(told) == 1 and "in 2 of 3 matrices or heads" in told[0] and "by 12 times as much" in told[0]
    quiet = AppliedRecipe(edited=[EditedMatrix(record, seen_tokens, 0.9)])
    assert not any("typical output" in warning for warning in receipt_warnings(recipe, quiet))


@pytest.mark.slow
def test_the_receipt_says_of_each_statistic_whether_sinks_are_in_it(demo_run, tmp_path: Path) -> None:
    ran = demo_run("--recipe", "contrast-projection", tasks="pronoun_bias", limit=10)
    assert ran.code == 0, ran.err
    (path,) = tmp_path.glob("results/demo/contrast-projection-*/receipt.json")
    rows = {row["name"]: row for row in json.loads(path.read_text())["statistics"]}
    assert {name: row["sinks"] for name, row in rows.items()} == {
        "contrast_differences": "counted",
        "far_input_mean": "alone",
        "input_mean": "left out",
    }
    row = rows["input_mean"]
    assert row["rule"] == RULE and row["step"] == 0
    # Each of the 48 texts has a first token.
    assert 48 <= row["sink_tokens"][0] <= row["sink_tokens"][1] < row["tokens"]
