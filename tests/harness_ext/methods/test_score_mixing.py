"""Scores of queries and keys in fewer dimensions, against float64 numpy on tokens, and the laws of it."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness_ext.linalg.components import Component, ComponentEdit
from harness_ext.methods.score_mixing import mix_scores
from harness_ext.methods.score_selection import select_coordinates
from harness_ext.model.geometry import Heads
from harness_ext.model.rotation import Rotation

CASES = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(2, 6), st.integers(0, 2**31), st.floats(0.1, 1))
TINY = 1e-10
NO_ROTATION = Rotation()


class Scores:
    """Queries of `groups * serves` heads and keys of `groups`, of the same tokens; with biases unless `bare`."""

    def __init__(
        self, groups: int, serves: int, width: int, seed: int, share: float = 0.5, *, bare: bool = False
    ) -> None:
        made = numpy.random.default_rng(seed)
        self.heads = Heads(groups * serves, groups, width)
        self.share, self.rank = share, max(1, int(share * width + 1e-9))
        self.inputs = made.standard_normal((7, 7)) @ made.standard_normal((7, 60)) + 0.5
        self.queries, self.keys = (made.standard_normal((heads * width, 7)) for heads in (groups * serves, groups))
        self.biases = {} if bare else {"q_proj": made.standard_normal(len(self.queries))}
        self.biases |= {} if bare else {"k_proj": made.standard_normal(len(self.keys))}

    def edit(self, method: Any = mix_scores, *, rotation: Rotation = NO_ROTATION, **options: Any) -> ComponentEdit:
        biases = {role: torch.tensor(bias) for role, bias in self.biases.items()}
        found = method(
            torch.tensor(self.keys),
            component=Component({"q_proj": torch.tensor(self.queries)}, biases, self.heads, rotation),
            input_second_moment=torch.tensor(self.inputs @ self.inputs.T / self.inputs.shape[1]),
            input_mean_with_sinks=torch.tensor(self.inputs.mean(1)),
            generator=torch.Generator().manual_seed(0),
            unit_fraction=self.share,
            **options,
        )
        assert isinstance(found, ComponentEdit)
        return found

    def made(self, edit: ComponentEdit | None = None) -> tuple[numpy.ndarray, numpy.ndarray]:
        """Queries `[G, serves, d, tokens]` and keys `[G, d, tokens]`, of the edited weights where they are given."""
        beside = edit and edit.beside["q_proj"]
        queries = self.queries if beside is None else beside.values.numpy()
        keys = self.keys if edit is None else edit.weight().numpy()
        shifts = [self.biases.get("q_proj"), self.biases.get("k_proj")]
        if beside is not None and edit is not None and self.biases:
            assert beside.bias is not None and edit.bias is not None
            shifts = [beside.bias.numpy(), edit.bias.numpy()]
        asked, held = (
            weight @ self.inputs + (0 if shift is None else shift[:, None])
            for weight, shift in zip((queries, keys), shifts, strict=True)
        )
        groups, width = self.heads.key_values, self.heads.width
        return asked.reshape(groups, -1, width, asked.shape[1]), held.reshape(groups, width, -1)

    def lost(self, edit: ComponentEdit) -> numpy.ndarray:
        """The sum of squared errors over all pairs of a query and a key, `[G]`."""
        before, after = (numpy.einsum("ghdq,gdk->ghqk", *made) for made in (self.made(), self.made(edit)))
        return numpy.square(before - after).sum((1, 2, 3))

    def bound(self) -> numpy.ndarray:
        """What no scores of this rank are nearer to: all scores of a group as one matrix of tokens, by numpy's SVD."""
        scores = numpy.einsum("ghdq,gdk->ghqk", *self.made())
        stacked = scores.reshape(len(scores), -1, scores.shape[3])
        return numpy.square(numpy.linalg.svd(stacked, compute_uv=False)[:, self.rank :]).sum(1)

    def size(self) -> numpy.ndarray:
        return numpy.square(numpy.einsum("ghdq,gdk->ghqk", *self.made())).sum((1, 2, 3))


@given(CASES, st.booleans())
@settings(deadline=None, max_examples=60)
def test_no_scores_of_this_rank_are_nearer(case: tuple[int, int, int, int, float], bare: bool) -> None:
    scores = Scores(*case, bare=bare)
    lost, bound, size = scores.lost(scores.edit(ridge=TINY)), scores.bound(), scores.size()
    assert (lost <= bound * (1 + 1e-4) + 1e-6 * size).all() and (lost >= bound * (1 - 1e-4) - 1e-6 * size).all()


@given(CASES)
@settings(deadline=None, max_examples=30)
def test_what_went_is_zero_and_counted_and_new_keys_are_no_larger(case: tuple[int, int, int, int, float]) -> None:
    scores = Scores(*case)
    edit, heads = scores.edit(), scores.heads
    beside = edit.beside["q_proj"]
    assert (edit.rows, beside.rows) == (scores.rank * heads.key_values, scores.rank * heads.queries)
    assert beside.bias is not None and edit.bias is not None
    gone = numpy.arange(heads.width) >= scores.rank
    for values, count in ((edit.weight(), heads.key_values), (edit.bias, heads.key_values)):
        assert not values.numpy()[numpy.tile(gone, count)].any()
    for values in (beside.values, beside.bias):
        assert not values.numpy()[numpy.tile(gone, heads.queries)].any()
    before, after = (numpy.linalg.norm(scores.made(one)[1], axis=1) for one in (None, edit))
    assert (after <= before * (1 + 1e-9)).all()


def test_all_dimensions_kept_is_the_original() -> None:
    scores = Scores(2, 2, 4, 3, 1.0)
    edit = scores.edit()
    assert edit.unchanged and torch.equal(edit.weight(), torch.tensor(scores.keys))
    assert torch.equal(edit.beside["q_proj"].values, torch.tensor(scores.queries))


def test_mixed_before_chosen_before_random() -> None:
    """A ridge of nothing leaves the optimum, so that neither chosen nor random dimensions can be nearer."""
    for seed in range(5):
        scores = Scores(2, 2, 6, seed, 0.5)
        mixed, chosen = scores.lost(scores.edit(ridge=TINY)).sum(), scores.lost(scores.edit(select_coordinates)).sum()
        assert mixed < 0.9 * chosen and mixed < 0.9 * scores.lost(scores.edit(ridge=TINY, ranking="random")).sum()


def test_no_ridge_is_below_what_rounding_asks_for() -> None:
    scores = Scores(1, 1, 6, 2, bare=True)
    scores.inputs = scores.inputs[:, :2]
    assert bool(scores.edit(ridge=1e-30).weight().isfinite().all())


@pytest.mark.parametrize(("ranking", "same"), [("leading", "size"), ("random", "random")])
def test_where_positions_rotate_them_coordinates_are_chosen(ranking: str, same: str) -> None:
    scores = Scores(2, 2, 6, 7)
    edit, expected = (
        scores.edit(rotation=Rotation(6), ranking=ranking),
        scores.edit(select_coordinates, rotation=Rotation(6), ranking=same),
    )
    assert torch.equal(edit.weight(), expected.weight()) and edit.rows == expected.rows
    assert torch.equal(edit.beside["q_proj"].values, expected.beside["q_proj"].values)


def _block(scores: Scores, places: list[int]) -> Scores:
    """The same tokens, of heads that have these coordinates alone."""
    heads = scores.heads
    part = Scores(heads.key_values, heads.queries // heads.key_values, len(places), 0, scores.share)
    part.inputs = scores.inputs

    def of(rows: numpy.ndarray) -> numpy.ndarray:
        return rows.reshape(-1, heads.width, *rows.shape[1:])[:, places].reshape(-1, *rows.shape[1:])

    part.queries, part.keys = of(scores.queries), of(scores.keys)
    part.biases = {role: of(bias) for role, bias in scores.biases.items()}
    return part


def _by_head(edit: ComponentEdit, scores: Scores) -> tuple[numpy.ndarray, numpy.ndarray]:
    """The weights of queries `[heads, d, n]` and of keys."""
    width = scores.heads.width
    made = edit.beside["q_proj"].values.numpy(), edit.weight().numpy()
    return made[0].reshape(-1, width, 7), made[1].reshape(-1, width, 7)


@pytest.mark.parametrize("neighbours", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_pairs_are_chosen_and_the_rest_is_mixed_where_a_part_turns(neighbours: bool, seed: int) -> None:
    """Pairs by a loop over tokens, and the rest as heads of their own that do not turn."""
    scores = Scores(2, 3, 10, seed, 0.7)
    places = [(2 * pair, 2 * pair + 1) if neighbours else (pair, pair + 3) for pair in range(3)]
    (asked, held), kept = scores.made(), []
    for group in range(2):
        sizes = [
            sum(
                numpy.square(asked[group, head][list(pair)]).sum(0).mean()
                * numpy.square(held[group][list(pair)]).sum(0).mean()
                for head in range(3)
            )
            for pair in places
        ]
        gone = places[int(numpy.argmin(sizes))]
        kept.append([place for place in range(6) if place not in gone])
    rotation = Rotation(6, neighbours)
    queries, keys = _by_head(scores.edit(rotation=rotation), scores)
    before = scores.queries.reshape(-1, 10, 7), scores.keys.reshape(-1, 10, 7)
    alone = _block(scores, [6, 7, 8, 9])
    expected = _by_head(alone.edit(), alone)
    for made, old, rest, serves in zip((queries, keys), before, expected, (3, 1), strict=True):
        for number, head in enumerate(made):
            stays = kept[number // serves]
            assert numpy.array_equal(head[stays], old[number][stays])
            assert not head[[place for place in range(6) if place not in stays]].any()
            numpy.testing.assert_allclose(head[6:], rest[number], rtol=1e-9, atol=1e-12)
    edit = scores.edit(rotation=rotation)
    assert (edit.rows, edit.beside["q_proj"].rows) == (2 * (4 + 2), 6 * (4 + 2))
    chosen, chosen_keys = _by_head(scores.edit(select_coordinates, rotation=rotation), scores)
    assert numpy.array_equal(chosen[:, :6], queries[:, :6]) and numpy.array_equal(chosen_keys[:, :6], keys[:, :6])
    assert (chosen_keys[:, 6:].any(2).sum(1) == 2).all()


@pytest.mark.parametrize("what", ["nothing", "one token", "zero head"])
def test_degenerate_moments_leave_finite_scores(what: str) -> None:
    scores = Scores(2, 1, 4, 11, bare=True)
    if what == "zero head":
        scores.keys[:4] = 0
    else:
        scores.inputs = scores.inputs[:, :1] * (what == "one token")
    edit = scores.edit()
    assert bool(edit.weight().isfinite().all()) and bool(edit.beside["q_proj"].values.isfinite().all())
    assert (scores.lost(edit) <= 1e-6 * scores.size() + (scores.bound() * 1.01)).all()
