"""The published options of `zero_sum`: the floor of ranks, the ridge, and what two halves of the documents agree on."""

from __future__ import annotations

import math
from typing import Any

import numpy
import pytest

from harness_ext.calibration.documents import LabelledDocument
from harness_ext.errors import BudgetTooSmall
from harness_ext.model.size import stored_parameters
from harness_ext.recipe.recipe import parse_recipe
from harness_ext.search.zero_sum import agreement, allotted, least_rank
from tests.harness_ext.search.plain_search import documents_for, drawing
from tests.harness_ext.search.test_allocate_ranks import inputs_of
from tests.harness_ext.search.test_searches import found_by, gradients_of

SOME = "matrices=[o_proj,k_proj]"


@pytest.mark.parametrize("shape", [(4096, 4096), (11008, 4096), (24, 40), (1, 9), (2, 2)])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.7, 1.0])
def test_the_floor_is_the_published_one(shape: tuple[int, int], share: float) -> None:
    rows, columns = shape
    largest = max((rank for rank in range(1, min(shape)) if rank * (rows + columns) < rows * columns), default=0)
    assert least_rank(shape, share) == max(1, math.ceil(round(share * largest, 9)))
    assert least_rank(shape, None) == 1
    assert least_rank(shape, share, 8) == 8 * math.ceil(least_rank(shape, share) / 8)


@pytest.mark.parametrize("seed", range(10))
def test_no_rank_goes_below_its_floor_and_the_budget_is_kept(seed: int) -> None:
    draw = numpy.random.default_rng(seed)
    shapes = {f"m{number}": (int(draw.integers(8, 30)), int(draw.integers(8, 30))) for number in range(5)}
    effects = {key: draw.normal(size=min(shape)).tolist() for key, shape in shapes.items()}
    floors = {key: least_rank(shape, 0.3) for key, shape in shapes.items()}
    whole = sum(rows * columns for rows, columns in shapes.values())
    for share in (0.5, 0.8, 1.0):
        ranks = allotted(shapes, effects, share, floors)
        assert all(floors[key] <= rank for key, rank in ranks.items())
        assert sum(stored_parameters(shapes[key], ranks.get(key, 10**6)) for key in shapes) <= share * whole
    assert ranks == {}
    assert allotted(shapes, effects, 0.5, dict.fromkeys(shapes, 1)) == allotted(shapes, effects, 0.5)


@pytest.mark.parametrize("align", [1, 3, 4])
@pytest.mark.parametrize("seed", range(6))
def test_directions_go_in_groups_that_leave_a_multiple(seed: int, align: int) -> None:
    """Against a loop that looks at every matrix before each group."""
    draw = numpy.random.default_rng(seed)
    shapes = {f"m{number}": (int(draw.integers(8, 30)), int(draw.integers(8, 30))) for number in range(5)}
    effects = {key: draw.normal(size=min(shape)).tolist() for key, shape in shapes.items()}
    ranks, total = {key: min(shape) for key, shape in shapes.items()}, 0.0
    dense = {key: rows * columns for key, (rows, columns) in shapes.items()}

    def stored() -> int:
        return sum(min(dense[key], rank * sum(shapes[key])) for key, rank in ranks.items())

    while stored() > 0.6 * sum(dense.values()):
        groups = {}
        for key, rank in ranks.items():
            below = max(place for place in range(rank) if place % align == 0)
            if below > 0:
                groups[key] = below, float(numpy.sum(effects[key][below:rank]))
        fitting = {key: one for key, one in groups.items() if (one[1] > 0) == (total <= 0)} or groups
        key = min(fitting, key=lambda name: abs(fitting[name][1]))
        ranks[key], change = fitting[key]
        total += change
    expected = {key: rank for key, rank in ranks.items() if rank * sum(shapes[key]) < dense[key]}
    assert expected and allotted(shapes, effects, 0.6, align=align, floors=dict.fromkeys(shapes, align)) == expected
    assert all(rank % align == 0 for rank in expected.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero-sum", "zero-sum-staged:stages=2"])
def test_aligned_ranks_end_to_end(make_lm: Any, name: str) -> None:
    lm = make_lm("llama")
    name, _, more = name.partition(":")
    chosen = found_by(
        lm, f"{name}:{','.join(filter(None, [more, 'align=4', 'param_fraction=0.6']))}", documents_for(lm, 8)
    )
    ranks = [rank for step in chosen for rank in step.get("keep", {}).get("ranks", {}).values()]
    assert ranks and all(rank % 4 == 0 for rank in ranks)
    with pytest.raises(BudgetTooSmall, match="a rank of 16 in every matrix"):
        found_by(lm, f"{name}:align=16,param_fraction=0.1", documents_for(lm, 8))


@pytest.mark.slow
def test_the_ridge_is_that_of_the_mean_covariance(make_lm: Any) -> None:
    """By the released way: Cholesky of the mean of `x x^T` with the ridge, and the gradient in these coordinates."""
    lm = make_lm("llama")
    documents = [LabelledDocument(one.task, one.context, one.answer, one.doc_hash) for one in documents_for(lm, 40)]
    recipe = f"zero-sum:{SOME},param_fraction=0.6,ridge=0.5,min_fraction=0.3"
    matrices = lm.weights.layout.select(parse_recipe(recipe).steps[0])
    effects = {}
    gradients = gradients_of(lm, documents, matrices)
    for matrix in matrices:
        x = inputs_of(lm, matrix.module, documents)
        cholesky = numpy.linalg.cholesky(x.T @ x / len(x) + 0.5 * numpy.eye(x.shape[1]))
        u, s, vh = numpy.linalg.svd(lm.weights.read(matrix).double().numpy() @ cholesky, full_matrices=False)
        turned = gradients[matrix.key].numpy() @ numpy.linalg.inv(cholesky).T
        effects[matrix.key] = [-float(s[i] * u[:, i] @ turned @ vh[i]) for i in range(len(s))]
    shapes = {matrix.key: matrix.shape for matrix in matrices}
    expected = allotted(shapes, effects, 0.6, {key: least_rank(shape, 0.3) for key, shape in shapes.items()})
    (chosen,) = found_by(lm, recipe, documents)
    assert chosen["keep"]["ranks"] == expected and len(expected) > 2
    assert chosen["ridge"] == 0.5 and min(expected.values()) >= 2


def test_the_ridge_is_in_the_weights(make_lm: Any) -> None:
    import torch

    from harness_ext.methods import Keep
    from harness_ext.methods.feature_space import feature_space

    draw = numpy.random.default_rng(0)
    weight, x = draw.normal(size=(7, 9)), draw.normal(size=(9, 40))
    moment = x @ x.T / 40
    root = numpy.linalg.cholesky(moment + 2.0 * numpy.eye(9))
    u, s, vh = numpy.linalg.svd(weight @ root, full_matrices=False)
    expected = (u[:, :3] * s[:3]) @ vh[:3] @ numpy.linalg.inv(root)
    made = feature_space(
        torch.from_numpy(weight),
        input_second_moment=torch.from_numpy(moment),
        input_mean_with_sinks=torch.zeros(9, dtype=torch.float64),
        keep=Keep(rank=3),
        centred=False,
        bias=False,
        ridge=2.0,
    )
    assert numpy.allclose(made.weight().numpy(), expected, atol=1e-10)


def test_two_halves_say_how_far_they_agree(make_lm: Any) -> None:
    lm = make_lm("llama")
    documents = documents_for(lm, 16)
    found = {}
    for halves in ("", ",halves=true"):
        (record,) = lm.apply(parse_recipe(f"zero-sum:{SOME},param_fraction=0.6{halves}"), drawing(documents)).searches
        lm.undo()
        found[halves] = record
    plain, asked = found.values()
    assert asked["chosen"] == plain["chosen"] and len(plain["notes"]) == 1
    assert asked["forward_passes"] == pytest.approx(plain["forward_passes"] + 2)
    assert "of 6 ranks are the same from each half of the documents" in asked["notes"][1]
    # From the same documents twice all would agree.
    (record,) = lm.apply(
        parse_recipe(f"zero-sum:{SOME},param_fraction=0.6,halves=true"), drawing([documents[0]] * 2)
    ).searches
    lm.undo()
    assert record["notes"][1].startswith("6 of 6 ranks are the same")


def test_agreement_counts_dense_matrices_at_full_rank() -> None:
    shapes = {"a": (10, 10), "b": (10, 20), "c": (10, 10)}
    said = agreement(shapes, {"a": 2, "b": 4}, {"a": 2})
    assert said.startswith("2 of 3 ranks are the same") and "they lie 20.0 %" in said


def test_a_floor_above_the_budget_is_told(make_lm: Any) -> None:
    lm = make_lm("llama")
    with pytest.raises(BudgetTooSmall, match=r"min_fraction leaves 0\.\d+ of them; raise the one, or lower the other"):
        found_by(lm, "zero-sum:param_fraction=0.3,min_fraction=0.6", documents_for(lm, 4))
    for name in ("zero-sum", "zero-sum-staged"):
        with pytest.raises(
            BudgetTooSmall, match=r"1e-06 of the parameters is too small for a rank of 1 in every matrix"
        ):
            found_by(lm, f"{name}:param_fraction=0.000001", documents_for(lm, 4))
