"""Values of heads in fewer dimensions by the values of single tokens, against float64 numpy from the published form."""

from __future__ import annotations

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness_ext.linalg.components import Component, ComponentEdit
from harness_ext.methods.head_values import mix_unattended_values
from harness_ext.model.geometry import Heads

CASES = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(2, 6), st.integers(0, 2**31), st.floats(0.1, 1))


class Values:
    """Values of `groups` heads, each read by `serves` queries, of inputs `[9, 60]`."""

    def __init__(self, groups: int, serves: int, width: int, seed: int, share: float, *, biased: bool = True) -> None:
        made = numpy.random.default_rng(seed)
        self.heads, self.share = Heads(groups * serves, groups, width), share
        self.rank = max(1, int(share * width + 1e-9))
        self.inputs = made.standard_normal((9, 60)) + 0.5
        self.weight = made.standard_normal((groups * width, 9))
        self.bias = made.standard_normal(groups * width) if biased else None
        self.reads = made.standard_normal((7, groups * serves * width))

    def edit(self, ranking: str = "leading", ridge: float = 1e-11) -> ComponentEdit:
        biases = {} if self.bias is None else {"v_proj": torch.tensor(self.bias)}
        found = mix_unattended_values(
            torch.tensor(self.weight),
            component=Component({"o_proj": torch.tensor(self.reads)}, biases, self.heads),
            input_second_moment=torch.tensor(self.inputs @ self.inputs.T / self.inputs.shape[1]),
            input_mean_with_sinks=torch.tensor(self.inputs.mean(1)),
            generator=torch.Generator().manual_seed(0),
            unit_fraction=self.share,
            ranking=ranking,  # type: ignore[arg-type]
            ridge=ridge,
        )
        assert isinstance(found, ComponentEdit)
        return found

    def outputs(self, reads: numpy.ndarray, weight: numpy.ndarray, bias: numpy.ndarray | None) -> numpy.ndarray:
        """What each query head makes of its own values, `[queries, 7, tokens]`."""
        made = weight @ self.inputs + (0 if bias is None else bias[:, None])
        values = made.reshape(self.heads.key_values, self.heads.width, -1)
        serves = self.heads.queries // self.heads.key_values
        blocks = reads.reshape(7, self.heads.queries, self.heads.width).transpose(1, 0, 2)
        return blocks @ numpy.repeat(values, serves, 0)

    def lost(self, edit: ComponentEdit) -> numpy.ndarray:
        """The squared error of each query head."""
        bias = None if edit.bias is None else edit.bias.numpy()
        after = self.outputs(edit.beside["o_proj"].values.numpy(), edit.weight().numpy(), bias)
        return ((self.outputs(self.reads, self.weight, self.bias) - after) ** 2).sum((1, 2))


@given(CASES)
@settings(deadline=None, max_examples=40)
def test_each_group_of_heads_is_at_the_optimum(case: tuple[int, int, int, int, float]) -> None:
    """The tail of the singular values of stacked outputs, tokens and biases and all."""
    values = Values(*case)
    before, lost = values.outputs(values.reads, values.weight, values.bias), values.lost(values.edit())
    serves = values.heads.queries // values.heads.key_values
    for group in range(values.heads.key_values):
        own = slice(group * serves, (group + 1) * serves)
        spectrum = numpy.linalg.svd(before[own].reshape(-1, before.shape[2]), compute_uv=False)
        best = (spectrum[values.rank :] ** 2).sum()
        assert lost[own].sum() == pytest.approx(best, rel=1e-5, abs=1e-7 * (spectrum**2).sum())


@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_published_decomposition(seed: int) -> None:
    """`W_o W_v R^1/2 = U s V^T`, `W_o' = U_r s_r`, `W_v' = V_r^T R^-1/2`: the product of the two."""
    values = Values(1, 1, 5, seed, 0.6, biased=False)
    eigenvalues, vectors = numpy.linalg.eigh(values.inputs @ values.inputs.T / values.inputs.shape[1])
    root, back = ((vectors * eigenvalues**power) @ vectors.T for power in (0.5, -0.5))
    left, spectrum, right = numpy.linalg.svd(values.reads @ values.weight @ root, full_matrices=False)
    published = (left[:, :3] * spectrum[:3]) @ right[:3] @ back
    edit = values.edit()
    numpy.testing.assert_allclose(edit.beside["o_proj"].values.numpy() @ edit.weight().numpy(), published, atol=1e-6)
    moment = values.inputs @ values.inputs.T
    other = (values.reads @ values.weight - published) @ moment @ (values.reads @ values.weight - published).T
    assert values.lost(edit).sum() == pytest.approx(numpy.trace(other), rel=1e-6)


@given(CASES)
@settings(deadline=None, max_examples=20)
def test_shared_values_lose_no_more_than_by_directions_of_the_values_alone(
    case: tuple[int, int, int, int, float],
) -> None:
    """Principal directions of each head's values, blind to what reads them, with every reading block multiplied in;
    which is what `pca` loses (FLAT-LLM's `W_o' = W_o Q`, `W_v' = Q^T W_v`).
    """
    values = Values(*case, biased=False)
    width, serves = values.heads.width, values.heads.queries // values.heads.key_values
    made = values.weight @ values.inputs
    blind = numpy.zeros(values.heads.queries)
    for head in range(values.heads.queries):
        own = made[head // serves * width : (head // serves + 1) * width]
        directions = numpy.linalg.svd(own, full_matrices=False)[0][:, : values.rank]
        block = values.reads[:, head * width : (head + 1) * width]
        blind[head] = ((block @ (own - directions @ directions.T @ own)) ** 2).sum()
    principal = values.lost(values.edit("pca"))
    numpy.testing.assert_allclose(principal, blind, rtol=1e-5, atol=1e-7 * (values.reads**2).sum() * (made**2).sum())
    ours = values.lost(values.edit())
    for group in range(values.heads.key_values):
        shared = slice(group * serves, (group + 1) * serves)
        assert ours[shared].sum() <= blind[shared].sum() * (1 + 1e-6) + 1e-6


@pytest.mark.parametrize("ranking", ["leading", "pca", "random"])
def test_all_dimensions_kept_is_the_original(ranking: str) -> None:
    values = Values(2, 2, 4, 3, 1.0)
    edit = values.edit(ranking)
    assert edit.unchanged and torch.equal(edit.weight(), torch.tensor(values.weight))
    assert torch.equal(edit.beside["o_proj"].values, torch.tensor(values.reads))
    assert edit.bias is not None and torch.equal(edit.bias, torch.tensor(values.bias))


@pytest.mark.parametrize("seed", range(3))
def test_principal_directions_are_those_of_values_with_their_bias(seed: int) -> None:
    """Per head of its own, by `Q Q^T` of the second moment of `W_v x + b`: both products, and the bias."""
    values = Values(2, 1, 6, seed, 0.5)
    assert values.bias is not None
    edit = values.edit("pca", ridge=1e-9)
    made = values.weight @ values.inputs + values.bias[:, None]
    for head in range(2):
        own = slice(head * 6, head * 6 + 6)
        directions = numpy.linalg.eigh(made[own] @ made[own].T)[1][:, -3:]
        projector = values.reads[:, own] @ directions @ directions.T
        reads = edit.beside["o_proj"].values.numpy()[:, own]
        numpy.testing.assert_allclose(reads @ edit.weight().numpy()[own], projector @ values.weight[own], atol=1e-7)
        assert edit.bias is not None
        numpy.testing.assert_allclose(reads @ edit.bias.numpy()[own], projector @ values.bias[own], atol=1e-7)


def test_random_directions_do_worse() -> None:
    lost = {ranking: Values(2, 1, 6, 5, 0.5).lost(Values(2, 1, 6, 5, 0.5).edit(ranking)).sum() for ranking in RANKINGS}
    assert lost["leading"] < 0.8 * lost["random"]


RANKINGS = ("leading", "random")


@given(CASES)
@settings(deadline=None, max_examples=20)
def test_places_that_went_are_zero_and_counted(case: tuple[int, int, int, int, float]) -> None:
    values = Values(*case)
    edit, heads = values.edit(), values.heads
    beside = edit.beside["o_proj"]
    assert (edit.rows, beside.columns) == (values.rank * heads.key_values, values.rank * heads.queries)
    gone = numpy.arange(heads.width) >= values.rank
    assert not beside.values.numpy()[:, numpy.tile(gone, heads.queries)].any()
    assert not edit.weight().numpy()[numpy.tile(gone, heads.key_values)].any()
    assert edit.bias is not None and not edit.bias.numpy()[numpy.tile(gone, heads.key_values)].any()
