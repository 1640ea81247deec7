"""Unit selection against float64 numpy written from the formulas, and its laws."""

from __future__ import annotations

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from harness_ext.calibration.statistics import InputSecondMoment, InputSecondMomentByHalves
from harness_ext.editing.plan_timing import live_bytes
from harness_ext.errors import RecipeError
from harness_ext.linalg.components import Component, ComponentEdit
from harness_ext.methods.unit_selection import (
    REFITTED,
    SELECTED,
    UNTESTED,
    mlp_select,
    order_of,
    unexplained_variances,
)
from harness_ext.recipe.recipe import parse_recipe

RANKINGS = ("leverage", "zca", "energy", "a3", "obs", "random")
CASES = st.tuples(st.integers(2, 10), st.integers(2, 12), st.integers(0, 2**31), st.floats(0.1, 1))


class Hidden:
    """A reading matrix W `[m, n]`, and hidden states `[n, N]` that lean on each other, of 8 documents."""

    def __init__(self, rows: int, units: int, seed: int, share: float = 0.5, ridge: float = 1e-2) -> None:
        made = numpy.random.default_rng(seed)
        self.weight = made.standard_normal((rows, units)) * numpy.exp(made.standard_normal(units))
        mixing = numpy.eye(units) + 0.6 * made.standard_normal((units, units))
        self.hidden = mixing @ made.standard_normal((units, 96)) + made.standard_normal((units, 1))
        self.share, self.ridge = share, ridge
        self.count = max(1, int(share * units + 1e-9))
        self.feeding = torch.tensor(made.standard_normal((units, 5)))
        self.bias = torch.tensor(made.standard_normal(units))

    @property
    def moment(self) -> numpy.ndarray:
        return self.hidden @ self.hidden.T / 96

    @property
    def ridged(self) -> numpy.ndarray:
        return self.moment + self.ridge * numpy.eye(len(self.hidden))

    def edit(self, ranking: str, *, refit: bool | str = True, hidden: numpy.ndarray | None = None) -> ComponentEdit:
        hidden = self.hidden if hidden is None else hidden
        halves = [hidden[:, place] @ hidden[:, place].T / 96 for place in (slice(0, 48), slice(48, 96))]
        found = mlp_select(
            torch.tensor(self.weight),
            component=Component({"up_proj": self.feeding}, {"up_proj": self.bias}),
            input_second_moment_by_halves=torch.tensor(numpy.stack(halves)),
            generator=torch.Generator().manual_seed(1),
            unit_fraction=self.share,
            ranking=ranking,  # type: ignore[arg-type]
            refit=refit,  # type: ignore[arg-type]
            ridge=self.ridge,
        )
        assert isinstance(found, ComponentEdit)
        return found

    def kept(self, edit: ComponentEdit) -> list[int]:
        return edit.beside["up_proj"].values.any(1).nonzero().flatten().tolist()

    def error(self, weight: numpy.ndarray, moment: numpy.ndarray | None = None) -> float:
        lost = self.weight - weight
        return float(numpy.trace(lost @ (self.moment if moment is None else moment) @ lost.T))

    def reference_ranking(self, ranking: str) -> list[int]:
        """The units that stay, from the formulas: matrices by eigenvectors or plain inverses, prices by refitting."""
        if ranking == "obs":
            return self.by_trial()
        inverse = numpy.linalg.inv(self.ridged)
        values, vectors = numpy.linalg.eigh(self.ridged)
        scores = {
            "leverage": numpy.diag(self.moment @ inverse),
            "zca": 1 / numpy.diag(vectors @ numpy.diag(values**-0.5) @ vectors.T) ** 2,
            "energy": numpy.diag(self.moment),
            "a3": numpy.sqrt(numpy.diag(self.ridged)) * numpy.linalg.norm(self.weight, axis=0),
        }[ranking]
        return sorted(numpy.argsort(-scores, kind="stable")[: self.count].tolist())

    def refit_error(self, kept: list[int]) -> float:
        """The least error that reading these units leaves, ridge and all: by least squares, the ridge as tokens."""
        tokens = numpy.hstack([self.hidden / numpy.sqrt(96), numpy.sqrt(self.ridge) * numpy.eye(len(self.hidden))])
        outputs = self.weight @ tokens
        best = numpy.linalg.lstsq(tokens[kept].T, outputs.T, rcond=None)[0].T
        return float(((outputs - best @ tokens[kept]) ** 2).sum())

    def by_trial(self) -> list[int]:
        live = list(range(len(self.hidden)))
        while len(live) > self.count:
            live.remove(min(live, key=lambda unit: self.refit_error([one for one in live if one != unit])))
        return live


@given(CASES, st.sampled_from([ranking for ranking in RANKINGS if ranking != "random"]))
@settings(deadline=None, max_examples=40)
def test_the_kept_units_are_those_of_the_formula(case: tuple[int, int, int, float], ranking: str) -> None:
    hidden = Hidden(*case)
    assert hidden.kept(hidden.edit(ranking)) == hidden.reference_ranking(ranking)


@pytest.mark.parametrize("name", ["a3", "a3-mlp"])
def test_a3_ranks_by_the_score_of_its_paper_however_small_units_are(name: str) -> None:
    """At the ridge of the others, units whose mean square is of its size would be ranked by their weights alone."""
    step = parse_recipe(name).steps[-1]
    for seed in range(5):
        hidden = Hidden(6, 12, seed, 0.5, step.parameters["ridge"])
        hidden.hidden *= 0.01
        scores = [
            numpy.sqrt(numpy.square(unit).mean()) * numpy.linalg.norm(read)
            for unit, read in zip(hidden.hidden, hidden.weight.T, strict=True)
        ]
        expected = sorted(numpy.argsort(scores)[-hidden.count :].tolist())
        edit = hidden.edit(step.parameters["ranking"], refit=step.parameters["refit"])
        assert hidden.kept(edit) == expected


@given(CASES, st.sampled_from(RANKINGS))
@settings(deadline=None, max_examples=30)
def test_the_refit_is_least_squares(case: tuple[int, int, int, float], ranking: str) -> None:
    hidden = Hidden(*case)
    edit = hidden.edit(ranking)
    kept = hidden.kept(edit)
    assert len(kept) == edit.columns == hidden.count
    reached = hidden.error(edit.weight().numpy(), hidden.ridged)
    scale = hidden.error(0 * hidden.weight, hidden.ridged)
    assert reached == pytest.approx(hidden.refit_error(kept), rel=1e-8, abs=1e-12 * scale)


@given(CASES, st.sampled_from(RANKINGS), st.sampled_from([1e-6, 1e-2, 10.0]))
@settings(deadline=None, max_examples=40)
def test_a_refit_is_never_worse_than_the_selection_on_its_own_texts(
    case: tuple[int, int, int, float], ranking: str, ridge: float
) -> None:
    hidden = Hidden(*case, ridge=ridge)
    errors = {refit: hidden.error(hidden.edit(ranking, refit=refit).weight().numpy()) for refit in (True, False)}
    assert errors[True] <= errors[False] * (1 + 1e-9) + 1e-12 * hidden.error(0 * hidden.weight)


@given(CASES)
@settings(deadline=None, max_examples=30)
def test_the_price_of_a_unit_is_what_the_error_rises_by(case: tuple[int, int, int, float]) -> None:
    hidden = Hidden(*case)
    kept = hidden.by_trial()
    own = numpy.linalg.inv(hidden.ridged[numpy.ix_(kept, kept)])
    read = hidden.weight @ hidden.ridged[:, kept] @ own
    before, scale = hidden.refit_error(kept), hidden.error(0 * hidden.weight, hidden.ridged)
    for place, unit in enumerate(kept if len(kept) > 1 else ()):
        rise = hidden.refit_error([one for one in kept if one != unit]) - before
        assert (read[:, place] ** 2).sum() / own[place, place] == pytest.approx(rise, rel=1e-8, abs=1e-10 * scale)


@given(CASES)
@settings(deadline=None, max_examples=40)
def test_no_ranking_refitted_beats_what_the_exact_price_does_for_one_unit(case: tuple[int, int, int, float]) -> None:
    rows, units, seed, _ = case
    hidden = Hidden(rows, units, seed, (units - 1) / units)
    errors = {name: hidden.error(hidden.edit(name).weight().numpy(), hidden.ridged) for name in RANKINGS}
    assert errors["obs"] <= min(errors.values()) * (1 + 1e-9) + 1e-12


@given(CASES, st.sampled_from(RANKINGS))
@settings(deadline=None, max_examples=30)
def test_what_units_before_do_not_explain_is_a_least_squares_residual(
    case: tuple[int, int, int, float], ranking: str
) -> None:
    hidden = Hidden(*case)
    weight, ridged = torch.tensor(hidden.weight), torch.tensor(hidden.ridged)

    def drawn() -> torch.Generator:
        return torch.Generator().manual_seed(1)

    order = order_of(weight, ridged, ranking, drawn()).tolist()  # type: ignore[arg-type]
    assert sorted(order) == list(range(len(hidden.hidden)))
    assert sorted(order[: hidden.count]) == hidden.kept(hidden.edit(ranking))
    found = unexplained_variances(weight, torch.tensor(hidden.moment), ranking, drawn())  # type: ignore[arg-type]
    for place, unit in enumerate(order):
        before, own = hidden.hidden[order[:place]].T, hidden.hidden[unit]
        left = own - before @ numpy.linalg.lstsq(before, own, rcond=None)[0] if place else own
        scale = numpy.trace(hidden.moment)
        assert float(found[place]) == pytest.approx((left**2).sum() / 96, rel=1e-6, abs=1e-10 * scale)


def test_dead_units_explain_nothing_and_have_nothing_to_explain() -> None:
    dead = torch.zeros(4, 4, dtype=torch.float64)
    assert not unexplained_variances(torch.ones(2, 4).double(), dead, "zca", torch.Generator()).any()


@pytest.mark.parametrize("ranking", RANKINGS)
@pytest.mark.parametrize("refit", [True, False, "auto"])
def test_with_every_unit_kept_nothing_changes(ranking: str, refit: bool | str) -> None:
    hidden = Hidden(6, 9, 3, 1.0)
    edit = hidden.edit(ranking, refit=refit)
    assert edit.unchanged and torch.equal(edit.weight(), torch.tensor(hidden.weight))
    beside = edit.beside["up_proj"]
    assert beside.rows == 9 and torch.equal(beside.values, hidden.feeding)
    assert beside.bias is not None and torch.equal(beside.bias, hidden.bias)


def test_dropped_units_are_zero_in_every_matrix_and_kept_rows_are_the_same() -> None:
    hidden = Hidden(6, 10, 4, 0.6)
    edit = hidden.edit("a3", refit=False)
    kept, beside = hidden.kept(edit), edit.beside["up_proj"]
    dropped = sorted(set(range(10)) - set(kept))
    assert not edit.values[:, dropped].any() and not beside.values[dropped].any() and beside.bias is not None
    assert not beside.bias[dropped].any() and torch.equal(beside.bias[kept], hidden.bias[kept])
    assert torch.equal(edit.values[:, kept], torch.tensor(hidden.weight)[:, kept])


def test_auto_takes_what_does_better_on_the_other_half() -> None:
    """Documents alike: the refit carries over. Fewer tokens than units: it has learned them by heart."""
    alike = Hidden(8, 6, 5, 0.5)
    assert alike.edit("leverage", refit="auto").decomposition == REFITTED
    few = Hidden(8, 60, 5, 0.9, ridge=1e-9)
    few.hidden = numpy.random.default_rng(2).standard_normal((60, 96)) * (numpy.arange(96) % 2 == 0)
    assert few.edit("leverage", refit="auto").decomposition == SELECTED
    first = alike.hidden * (numpy.arange(96) < 48)
    edit = alike.edit("leverage", refit="auto", hidden=first)
    assert (edit.decomposition, edit.fallback) == (SELECTED, UNTESTED)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_of_few_bits_are_refitted_in_double(dtype: torch.dtype) -> None:
    hidden = Hidden(6, 10, 4, 0.6)
    hidden.weight = torch.tensor(hidden.weight).to(dtype).double().numpy()
    exact = hidden.edit("obs").weight()
    found = mlp_select(
        torch.tensor(hidden.weight).float(),
        component=Component({}, {}),
        input_second_moment_by_halves=torch.tensor(numpy.stack([hidden.moment, 0 * hidden.moment])),
        generator=torch.Generator(),
        unit_fraction=0.6,
        ranking="obs",
        refit=True,
    ).weight()
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-6)


def test_units_that_never_fire_go_first_and_do_no_harm() -> None:
    hidden = Hidden(5, 8, 6, 0.75, ridge=1e-9)
    hidden.hidden[[2, 5]] = 0
    for ranking in ("leverage", "zca", "energy", "obs"):
        edit = hidden.edit(ranking)
        assert hidden.kept(edit) == [0, 1, 3, 4, 6, 7] and bool(torch.isfinite(edit.values).all())


def test_the_halves_add_up_and_every_other_document_is_in_the_first() -> None:
    inputs = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0))
    real = torch.rand(5, 4, generator=torch.Generator().manual_seed(1)) > 0.3
    whole, halves, others = InputSecondMoment(), InputSecondMomentByHalves(), InputSecondMomentByHalves()
    whole.update(inputs, None, real)
    for part in (slice(0, 3), slice(3, 5)):
        halves.update(inputs[part], None, real[part])
    for place in range(5):
        others.update(inputs[place : place + 1], None, real[place : place + 1])
    found = halves.result()
    torch.testing.assert_close(found.sum(0), whole.result())
    torch.testing.assert_close(found, others.result())
    first = inputs[::2][real[::2]].double()
    torch.testing.assert_close(found[0], first.T @ first / int(real.sum()))


@pytest.mark.parametrize("bad", ["unit_fraction=0", "unit_fraction=1.2", "ridge=0", "ranking=best", "refit=perhaps"])
def test_what_no_step_can_have_is_refused(bad: str) -> None:
    with pytest.raises((RecipeError, ValidationError)):
        parse_recipe(f"modegpt-mlp:{bad}")


@pytest.mark.parametrize("ranking", RANKINGS)
def test_an_edit_holds_few_moments_of_the_inner_width(ranking: str) -> None:
    """Beside the two that it is given, which an inner width of 11008 makes a gigabyte each: one, and what is decomposed
    of it. Eigenvectors take two more, in LAPACK.
    """
    units = 256
    made = torch.randn(2, 2 * units, units, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    halves = made.mT @ made / (4 * units)
    held = live_bytes(
        lambda: mlp_select(
            torch.ones(8, units),
            component=Component({"up_proj": torch.ones(units, 8)}, {}),
            input_second_moment_by_halves=halves,
            generator=torch.Generator(),
            ranking=ranking,  # type: ignore[arg-type]
        )
    )
    assert held < (3.5 if ranking == "zca" else 2.5) * 8 * units**2
