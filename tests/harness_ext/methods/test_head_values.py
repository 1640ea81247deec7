"""Values of heads in fewer dimensions, against float64 numpy on attended values, and the laws of it."""

from __future__ import annotations

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness_ext.linalg.components import Component, ComponentEdit
from harness_ext.methods.head_values import mix_values
from harness_ext.model.geometry import Heads

CASES = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(2, 6), st.integers(0, 2**31), st.floats(0.1, 1))


class Attention:
    """Values of `groups` heads, each attended to by `serves` queries, all by the same weights where `alike`."""

    def __init__(
        self, groups: int, serves: int, width: int, seed: int, share: float = 0.5, *, alike: bool = False
    ) -> None:
        made = numpy.random.default_rng(seed)
        self.heads = Heads(groups * serves, groups, width)
        self.share, self.rank = share, max(1, int(share * width + 1e-9))
        tokens, size = 60, 7
        inputs = made.standard_normal((size, tokens))
        self.values = made.standard_normal((groups * width, size))
        self.bias = made.standard_normal(groups * width)
        self.weight = made.standard_normal((8, groups * serves * width))
        mixing = made.dirichlet(numpy.ones(tokens) / 8, (groups * serves, tokens))
        self.mixing = numpy.repeat(mixing[:1], groups * serves, 0) if alike else mixing
        self.inputs = inputs

    def attended(self, values: numpy.ndarray, bias: numpy.ndarray) -> numpy.ndarray:
        """What each query head makes of values, `[queries, width, tokens]`."""
        serves, width = self.heads.queries // self.heads.key_values, self.heads.width
        made = (values @ self.inputs + bias[:, None]).reshape(self.heads.key_values, width, -1)
        return numpy.stack([made[head // serves] @ self.mixing[head].T for head in range(self.heads.queries)])

    def outputs(self, weight: numpy.ndarray, attended: numpy.ndarray) -> numpy.ndarray:
        """Of each query head, `[queries, 8, tokens]`."""
        blocks = weight.reshape(8, self.heads.queries, self.heads.width).transpose(1, 0, 2)
        return blocks @ attended

    def edit(self, ranking: str = "leading", ridge: float = 1e-10) -> ComponentEdit:
        flat = self.attended(self.values, self.bias).reshape(-1, self.inputs.shape[1])
        found = mix_values(
            torch.tensor(self.weight),
            component=Component({"v_proj": torch.tensor(self.values)}, {"v_proj": torch.tensor(self.bias)}, self.heads),
            input_second_moment=torch.tensor(flat @ flat.T / flat.shape[1]),
            generator=torch.Generator().manual_seed(0),
            unit_fraction=self.share,
            ranking=ranking,  # type: ignore[arg-type]
            ridge=ridge,
        )
        assert isinstance(found, ComponentEdit)
        return found

    def made(self, edit: ComponentEdit) -> numpy.ndarray:
        beside = edit.beside["v_proj"]
        assert beside.bias is not None
        return self.outputs(edit.weight().numpy(), self.attended(beside.values.numpy(), beside.bias.numpy()))


@given(CASES)
@settings(deadline=None, max_examples=40)
def test_each_group_of_heads_is_at_the_optimum(case: tuple[int, int, int, int, float]) -> None:
    """Of all maps of this rank on a shared value: singular values of stacked outputs, tokens and all, by numpy."""
    attention = Attention(*case, alike=True)
    edit = attention.edit()
    attended = attention.attended(attention.values, attention.bias)
    before, after = attention.outputs(attention.weight, attended), attention.made(edit)
    serves = attention.heads.queries // attention.heads.key_values
    for group in range(attention.heads.key_values):
        own = slice(group * serves, (group + 1) * serves)
        stacked = before[own].reshape(-1, before.shape[2])
        best = (numpy.linalg.svd(stacked, compute_uv=False)[attention.rank :] ** 2).sum()
        reached = ((before[own] - after[own]) ** 2).sum()
        assert reached == pytest.approx(best, rel=1e-5, abs=1e-7 * (stacked**2).sum())


@given(CASES)
@settings(deadline=None, max_examples=30)
def test_places_that_went_are_zero_and_counted(case: tuple[int, int, int, int, float]) -> None:
    attention = Attention(*case)
    edit, heads = attention.edit(), attention.heads
    beside = edit.beside["v_proj"]
    assert (edit.columns, beside.rows) == (attention.rank * heads.queries, attention.rank * heads.key_values)
    left = numpy.arange(heads.width) < attention.rank
    if attention.rank < heads.width:
        assert not edit.weight().numpy()[:, ~numpy.tile(left, heads.queries)].any()
        assert not beside.values.numpy()[~numpy.tile(left, heads.key_values)].any()
        assert beside.bias is not None and not beside.bias.numpy()[~numpy.tile(left, heads.key_values)].any()


@pytest.mark.parametrize("ranking", ["leading", "random"])
def test_all_dimensions_kept_is_the_original(ranking: str) -> None:
    attention = Attention(2, 2, 4, 3, 1.0)
    edit = attention.edit(ranking)
    assert edit.unchanged and torch.equal(edit.weight(), torch.tensor(attention.weight))
    assert torch.equal(edit.beside["v_proj"].values, torch.tensor(attention.values))


def test_random_directions_do_worse() -> None:
    lost = {}
    for ranking in ("leading", "random"):
        attention = Attention(2, 1, 6, 5, 0.5)
        before = attention.outputs(attention.weight, attention.attended(attention.values, attention.bias))
        lost[ranking] = ((before - attention.made(attention.edit(ranking))) ** 2).sum()
    assert lost["leading"] < 0.8 * lost["random"]


def test_values_that_are_always_zero_are_cut_by_the_weights_alone() -> None:
    attention = Attention(1, 1, 4, 5, 0.5)
    attention.values, attention.bias = 0 * attention.values, 0 * attention.bias
    assert bool(torch.isfinite(attention.edit().weight()).all())


@given(CASES)
@settings(deadline=None, max_examples=30)
def test_new_values_are_of_the_size_of_the_old_ones(case: tuple[int, int, int, int, float]) -> None:
    """An orthonormal mixture of each head's values, so that half precision serves it as well; nearest to the first."""
    attention = Attention(*case)
    edit, width = attention.edit(), attention.heads.width
    values = attention.values.reshape(-1, width, attention.values.shape[1])
    made = edit.beside["v_proj"].values.numpy().reshape(values.shape)
    for old, new in zip(values, made, strict=True):
        mixture = numpy.linalg.lstsq(old.T, new[: attention.rank].T, rcond=None)[0].T
        numpy.testing.assert_allclose(mixture @ old, new[: attention.rank], atol=1e-8)
        assert numpy.linalg.norm(new) <= numpy.linalg.norm(old) * (1 + 1e-9)
        assert numpy.trace(mixture[:, : attention.rank]) >= -1e-9
