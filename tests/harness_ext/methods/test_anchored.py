"""The anchored kernel against a reduced-rank regression written from its objective in float64 numpy, and its laws."""

from __future__ import annotations

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from harness_ext.errors import RecipeError
from harness_ext.methods.anchored import REFITTED, anchored, least_lost_anchor
from harness_ext.methods.budget import Keep
from harness_ext.methods.feature_space import feature_space
from harness_ext.recipe.recipe import parse_recipe

CASES = st.tuples(st.integers(2, 12), st.integers(2, 12), st.integers(0, 2**31), st.floats(0.05, 1))
ANCHORS = st.sampled_from([0.0, 0.3, 1.0])


class Shifted:
    """A matrix, its inputs in the unedited model `[n, N]`, and those that earlier edits leave."""

    def __init__(self, rows: int, columns: int, seed: int, share: float = 0.5, tokens: int = 80) -> None:
        generator = numpy.random.default_rng(seed)
        self.weight = generator.standard_normal((rows, columns))
        self.original = generator.standard_normal((columns, columns)) @ generator.standard_normal((columns, tokens)) + 1
        mixing = numpy.eye(columns) + 0.3 * generator.standard_normal((columns, columns))
        self.inputs = mixing @ self.original + 0.2 * generator.standard_normal((columns, tokens))
        self.rank = max(1, round(share * min(rows, columns)))

    def edit(self, anchor: float | str, ridge: float = 0.01, *, rank: int | None = None, centred: bool = False):
        tokens = self.inputs.shape[1]
        return anchored(
            torch.tensor(self.weight),
            input_second_moment=torch.tensor(self.inputs @ self.inputs.T / tokens),
            input_cross_moment=torch.tensor(self.original @ self.inputs.T / tokens),
            input_mean_with_sinks=torch.tensor(self.inputs.mean(1)),
            original_input_mean=torch.tensor(self.original.mean(1)),
            keep=Keep(rank=self.rank if rank is None else rank),
            anchor=anchor,
            ridge=ridge,
            centred=centred,
            bias=centred,
        )

    def target(self, anchor: float) -> numpy.ndarray:
        return self.weight @ (anchor * self.original + (1 - anchor) * self.inputs)

    def loss(self, weight: numpy.ndarray, anchor: float, ridge: float = 0.01) -> float:
        """The objective: the mean squared output error, and the ridge's pull to the weights."""
        outputs = self.target(anchor) - weight @ self.inputs
        pull = ridge * (self.inputs**2).mean(1).mean()
        return float((outputs**2).sum() / self.inputs.shape[1] + pull * ((self.weight - weight) ** 2).sum())

    def reference(self, anchor: float, rank: int, ridge: float = 0.01) -> numpy.ndarray:
        """Reduced-rank regression of the targets on the inputs, the ridge as further observations: least squares by
        numpy, then the leading left singular directions of the fitted values.
        """
        tokens, size = self.inputs.shape[1], self.inputs.shape[0]
        pull = numpy.sqrt(ridge * (self.inputs**2).mean(1).mean())
        seen = numpy.hstack([self.inputs / numpy.sqrt(tokens), pull * numpy.eye(size)])
        wanted = numpy.hstack([self.target(anchor) / numpy.sqrt(tokens), pull * self.weight])
        full = numpy.linalg.lstsq(seen.T, wanted.T, rcond=None)[0].T
        directions = numpy.linalg.svd(full @ seen)[0][:, :rank]
        return directions @ directions.T @ full


@given(CASES, ANCHORS)
@settings(deadline=None, max_examples=60)
def test_it_is_the_reduced_rank_regression(case: tuple[int, int, int, float], anchor: float) -> None:
    shifted = Shifted(*case)
    found = shifted.edit(anchor)
    wanted = shifted.reference(anchor, shifted.rank)
    assert found.rank == shifted.rank and found.decomposition == REFITTED
    # where two directions are as good as each other, either is the optimum
    own, best = (shifted.loss(weight, anchor) for weight in (found.weight().numpy(), wanted))
    assert own == pytest.approx(best, rel=1e-9, abs=1e-15 * shifted.loss(0 * shifted.weight, anchor))


@given(CASES, ANCHORS)
@settings(deadline=None, max_examples=40)
def test_no_other_truncation_is_nearer_to_its_target(case: tuple[int, int, int, float], anchor: float) -> None:
    shifted = Shifted(*case)
    own = shifted.loss(shifted.edit(anchor).weight().numpy(), anchor)
    left, values, right = numpy.linalg.svd(shifted.weight, full_matrices=False)
    plain = left[:, : shifted.rank] * values[: shifted.rank] @ right[: shifted.rank]
    whitened = feature_space(
        torch.tensor(shifted.weight),
        input_second_moment=torch.tensor(shifted.inputs @ shifted.inputs.T),
        input_mean_with_sinks=torch.tensor(shifted.inputs.mean(1)),
        keep=Keep(rank=shifted.rank),
        centred=False,
        bias=False,
    )
    rounding = 1e-15 * shifted.loss(0 * shifted.weight, anchor)
    assert own <= shifted.loss(plain, anchor) * (1 + 1e-9) + rounding
    assert own <= shifted.loss(whitened.weight().numpy(), anchor) * (1 + 1e-9) + rounding


@given(CASES)
@settings(deadline=None, max_examples=60)
def test_reconstruction_of_factors_by_turns_comes_no_nearer(case: tuple[int, int, int, float]) -> None:
    """MPIFA's (arXiv:2501.19090): from SVD-LLM's factors, first the left by least squares and then the right, to a
    quarter of the unedited outputs. Both steps only approach the optimum of the objective that `anchored` solves.
    """
    shifted, anchor, tiny = Shifted(*case), 0.25, 1e-9
    inputs, target = shifted.inputs, shifted.target(0.25)
    root = numpy.linalg.cholesky(inputs @ inputs.T + 1e-9 * numpy.trace(inputs @ inputs.T) * numpy.eye(len(inputs)))
    left, values, right = numpy.linalg.svd(shifted.weight @ root, full_matrices=False)
    back = numpy.linalg.solve(root.T, right[: shifted.rank].T).T
    start = left[:, : shifted.rank] * values[: shifted.rank] @ back
    first = target @ inputs.T @ back.T @ numpy.linalg.inv(back @ inputs @ inputs.T @ back.T)
    second = numpy.linalg.pinv(first) @ target @ inputs.T @ numpy.linalg.inv(inputs @ inputs.T)
    own = shifted.loss(shifted.edit(anchor, tiny).weight().numpy(), anchor, tiny)
    rounding = 1e-7 * shifted.loss(0 * shifted.weight, anchor, tiny)
    turns = [shifted.loss(weight, anchor, tiny) for weight in (start, first @ back, first @ second)]
    assert own <= turns[2] + rounding and turns[2] <= turns[1] + rounding and turns[1] <= turns[0] + rounding


@given(CASES, ANCHORS)
@settings(deadline=None, max_examples=40)
def test_without_a_shift_it_keeps_the_weights(case: tuple[int, int, int, float], anchor: float) -> None:
    same = Shifted(*case)
    same.inputs = same.original
    whole = same.edit(anchor, rank=min(same.weight.shape))
    numpy.testing.assert_allclose(whole.weight().numpy(), same.weight, rtol=1e-7, atol=1e-7 * abs(same.weight).max())


def test_at_full_rank_it_is_another_matrix_and_nearer_to_the_unedited_outputs() -> None:
    shifted = Shifted(9, 9, 3)
    whole = shifted.edit(1.0, ridge=1e-6, rank=9).weight().numpy()
    assert shifted.loss(whole, 1.0, 0.0) < 0.5 * shifted.loss(shifted.weight, 1.0, 0.0)


def test_directions_that_the_texts_never_show_keep_their_weights() -> None:
    shifted = Shifted(6, 8, 5)
    shifted.original[5:] = shifted.inputs[5:] = 0.0
    whole = shifted.edit(1.0, rank=6).weight().numpy()
    numpy.testing.assert_allclose(whole[:, 5:], shifted.weight[:, 5:], atol=1e-9)


@given(CASES, ANCHORS)
@settings(deadline=None, max_examples=40)
def test_centred_with_its_bias_it_is_nearest_of_all(case: tuple[int, int, int, float], anchor: float) -> None:
    shifted = Shifted(*case)
    found = shifted.edit(anchor, ridge=1e-9, centred=True)
    assert found.bias_shift is not None

    def error(weight: numpy.ndarray, shift: numpy.ndarray) -> float:
        return float(((shifted.target(anchor) - weight @ shifted.inputs - shift[:, None]) ** 2).sum())

    plain = shifted.edit(anchor, ridge=1e-9).weight().numpy()
    own = error(found.weight().numpy(), found.bias_shift.numpy())
    assert own <= error(plain, numpy.zeros(len(plain))) * (1 + 1e-6) + 1e-12
    # the mean error is gone, as in any regression with an intercept
    rest = shifted.target(anchor) - found.weight().numpy() @ shifted.inputs - found.bias_shift.numpy()[:, None]
    numpy.testing.assert_allclose(rest.mean(1), 0, atol=1e-9 * abs(shifted.target(anchor)).max())


@pytest.mark.parametrize(
    "wrong", ["aa-svd:anchor=1.5", "aa-svd:ridge=0", "aa-svd:sequential=false", "svd-llm-update:anchor=-0.1"]
)
def test_settings_that_cannot_be_are_refused(wrong: str) -> None:
    with pytest.raises((RecipeError, ValidationError)):
        parse_recipe(wrong)


@given(CASES)
@settings(deadline=None, max_examples=60)
def test_aces_loses_the_least_share_of_the_energy(case: tuple[int, int, int, float]) -> None:
    """No anchor of a fine grid has a smaller share outside the leading subspaces of what no anchor leaves."""
    shifted = Shifted(*case)
    tokens = shifted.inputs.shape[1]
    moment = shifted.inputs @ shifted.inputs.T / tokens
    root = numpy.linalg.cholesky(moment + 0.01 * numpy.trace(moment) / len(moment) * numpy.eye(len(moment)))
    outputs = shifted.weight @ root
    change = shifted.weight @ (shifted.original - shifted.inputs) @ shifted.inputs.T / tokens @ numpy.linalg.inv(root).T
    u, _, vh = numpy.linalg.svd(outputs)
    off_left = numpy.eye(len(u)) - u[:, : shifted.rank] @ u[:, : shifted.rank].T
    off_right = numpy.eye(len(vh)) - vh[: shifted.rank].T @ vh[: shifted.rank]

    def share(anchor: float) -> float:
        blend = outputs + anchor * change
        return float(((off_left @ blend @ off_right) ** 2).sum() / (blend**2).sum())

    chosen = least_lost_anchor(torch.tensor(outputs), torch.tensor(change), shifted.rank)
    assert 0 <= chosen <= 1 and (shifted.rank < min(outputs.shape) or chosen == 1)
    assert share(chosen) <= min(map(share, numpy.linspace(0, 1, 201))) + 1e-12
    found, wanted = shifted.edit("aces"), shifted.edit(chosen)
    assert found.decomposition == f"{REFITTED}, anchor {chosen:.3g}"
    torch.testing.assert_close(found.weight(), wanted.weight(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("anchor", [0.0, 1.0, "aces"])
@pytest.mark.parametrize("centred", [False, True])
def test_inputs_that_are_all_zero_leave_the_weights_to_be_truncated(anchor: float | str, centred: bool) -> None:
    """As where an earlier step took all heads of a layer away."""
    shifted = Shifted(6, 8, 3)
    shifted.inputs[:] = 0
    left, values, right = numpy.linalg.svd(shifted.weight, full_matrices=False)
    expected = (left[:, : shifted.rank] * values[: shifted.rank]) @ right[: shifted.rank]
    numpy.testing.assert_allclose(shifted.edit(anchor, centred=centred).weight().numpy(), expected, atol=1e-9)


def test_aces_has_nothing_to_choose_without_a_shift() -> None:
    outputs = torch.randn(4, 6, dtype=torch.float64)
    assert least_lost_anchor(outputs, torch.zeros_like(outputs), 2) == 0
    assert least_lost_anchor(torch.zeros_like(outputs), torch.zeros_like(outputs), 2) == 0


@given(CASES)
@settings(deadline=None, max_examples=40)
def test_a_reconstruction_by_turns_comes_no_nearer(case: tuple[int, int, int, float]) -> None:
    """The left factor, then the right one, by least squares on three parts of the shifted inputs' outputs and one of
    the unedited ones' (arXiv:2501.19090's M): one turn of what an anchor of 0.25 is the optimum of.
    """
    shifted, anchor = Shifted(*case), 0.25
    target = shifted.target(anchor)
    _, s, vh = numpy.linalg.svd(shifted.weight @ shifted.inputs, full_matrices=False)
    right = numpy.linalg.lstsq(shifted.inputs.T, (s[:, None] * vh)[: shifted.rank].T, rcond=None)[0].T
    left = numpy.linalg.lstsq((right @ shifted.inputs).T, target.T, rcond=None)[0].T
    right = numpy.linalg.lstsq(left, target, rcond=None)[0] @ numpy.linalg.pinv(shifted.inputs)
    turned = ((target - left @ right @ shifted.inputs) ** 2).sum()
    own = ((target - shifted.edit(anchor, 1e-12).weight().numpy() @ shifted.inputs) ** 2).sum()
    assert own <= turned * (1 + 1e-6) + 1e-9 * (target**2).sum()
