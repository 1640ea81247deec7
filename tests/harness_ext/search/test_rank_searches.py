"""`lems` and `strs` against plain loops and float64 numpy, written from their definitions."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy
import pytest
import torch

from harness_ext.editing.controls import control_recipe
from harness_ext.errors import BudgetTooSmall, RecipeError
from harness_ext.methods.allocation import Spectrum
from harness_ext.model.size import stored_parameters
from harness_ext.recipe.recipe import parse_recipe
from harness_ext.search.factorisations import Factorisation
from harness_ext.search.strs import Sensitivity, allowed, ranks_at
from harness_ext.storage.resume import ResumeState
from tests.harness_ext.search.plain_search import documents_for, drawing, scored
from tests.harness_ext.search.test_allocate_ranks import inputs_of
from tests.harness_ext.search.test_searches import found_by

SOME = "matrices=[o_proj,down_proj]"


def chances(lm: Any, documents: Any) -> list[numpy.ndarray]:
    """Log-probabilities `[tokens, vocabulary]` at the (first) right answer of each document, one at a time."""
    found = []
    for document in documents:
        context, answer = (
            document.choices[document.right[0]] if document.choices else (document.context, document.answer)
        )
        before, after = lm._encode_pair(context, answer)
        with torch.no_grad():
            logits = lm.model(torch.tensor([(before + after)[:-1]])).logits[0, -len(after) :]
        found.append(logits.double().log_softmax(-1).numpy())
    return found


def moved(before: list[numpy.ndarray], after: list[numpy.ndarray]) -> float:
    """The mean over documents of the mean over tokens of `KL(before || after)`."""
    each = [(numpy.exp(p) * (p - q)).sum(-1).mean() for p, q in zip(before, after, strict=True)]
    return float(numpy.mean(each))


class Plain:
    """Matrices of a model by singular vectors of their outputs."""

    def __init__(self, lm: Any, documents: Any, recipe: str) -> None:
        self.lm, self.documents = lm, documents
        self.matrices = lm.weights.layout.select(parse_recipe(recipe).steps[0])
        self.weights = {matrix.key: lm.weights.read(matrix).double().numpy() for matrix in self.matrices}
        self.shapes = {matrix.key: matrix.shape for matrix in self.matrices}
        self.vectors, self.values = {}, {}
        for matrix in self.matrices:
            inputs = inputs_of(lm, matrix.module, documents)
            u, s, _ = numpy.linalg.svd(self.weights[matrix.key] @ inputs.T, full_matrices=False)
            self.vectors[matrix.key], self.values[matrix.key] = u, s[: min(matrix.shape)]

    def with_ranks(self, ranks: Mapping[str, int], look: Callable[[], Any]) -> Any:
        for matrix in self.matrices:
            if matrix.key in ranks:
                top = self.vectors[matrix.key][:, : ranks[matrix.key]]
                self.lm.weights.replace(matrix, torch.from_numpy(top @ top.T @ self.weights[matrix.key]).float())
        found = look()
        self.lm.weights.restore()
        return found


def cheapest(choices: Mapping[str, list[tuple[int, float, int | None]]], budget: float) -> dict[str, int]:
    """By Lagrange's multiplier: each takes the least of `error + price size`, at the lowest price that meets the
    budget.
    """

    def at(price: float) -> dict[str, tuple[int, float, int | None]]:
        return {
            key: min(options, key=lambda one: (one[1] + price * one[0], one[0])) for key, options in choices.items()
        }

    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if sum(one[0] for one in at(middle).values()) <= budget else (middle, high)
    return {key: one[2] for key, one in at(high).items() if one[2] is not None}


@pytest.mark.slow
def test_lems_finds_what_a_plain_loop_finds(make_lm: Any) -> None:
    lm = make_lm("llama")
    documents = documents_for(lm, 20)
    recipe = f"lems:{SOME},factorisation=feature_space,param_fraction=0.6,align=2,least=0.1,most=0.95"
    plain = Plain(lm, documents, recipe)
    before = chances(lm, documents)
    even = {key: m * n / (m + n) for key, (m, n) in plain.shapes.items()}

    def divergence(ranks: Mapping[str, int]) -> float:
        return moved(before, plain.with_ranks(ranks, lambda: chances(lm, documents)))

    small = {key: max(1, int(0.1 * rank)) for key, rank in even.items()}
    alone = {key: divergence({key: rank}) for key, rank in small.items()}
    tried = {}
    for exponent in (0.0, 1.5, 3.0):
        for strength in (0.0, 2.0, 4.0, 7.0):
            choices: dict[str, list[tuple[int, float, int | None]]] = {}
            for matrix in plain.matrices:
                (m, n), s = matrix.shape, plain.values[matrix.key] ** 2
                depth = [sum((k + 1) ** -exponent for k in range(layer, 3)) for layer in range(3)]
                weight = 1 + strength * (depth[matrix.layer] - depth[2]) / (depth[0] - depth[2])
                scale = weight * alone[matrix.key] / s[small[matrix.key] :].sum()
                choices[matrix.key] = [(m * n, 0.0, None)] + [
                    (rank * (m + n), scale * s[rank:].sum(), rank)
                    for rank in range(2, min(m, n), 2)
                    if 0.1 * even[matrix.key] <= rank <= 0.95 * even[matrix.key]
                ]
            ranks = cheapest(choices, 0.6 * sum(m * n for m, n in plain.shapes.values()))
            tried[exponent, strength] = divergence(ranks), ranks
    (chosen,) = found_by(lm, recipe, documents)
    least, expected = min(tried.values(), key=lambda one: one[0])
    assert chosen["keep"]["ranks"] == expected and len(expected) > 2
    assert divergence(chosen["keep"]["ranks"]) == pytest.approx(least)
    assert (chosen["method"], chosen["centred"], chosen["bias"]) == ("feature_space", False, False)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["uniform", "least-error"])
def test_the_number_of_last_blocks_is_that_of_a_plain_loop(make_lm: Any, rule: str) -> None:
    lm = make_lm("llama")
    documents = documents_for(lm, 20)
    recipe = f"least-error:rule={rule},matrices=[o_proj,down_proj,up_proj],param_fraction=0.75"
    plain, before = Plain(lm, documents, recipe), chances(lm, documents)
    tried = {}
    for count in (1, 2, 3):
        (chosen,) = found_by(lm, f"{recipe},last_blocks={count}", documents)
        ranks = chosen["keep"]["ranks"]
        tried[count] = moved(before, plain.with_ranks(ranks, lambda: chances(lm, documents))), ranks
    (record,) = lm.apply(parse_recipe(f"{recipe},last_blocks=search"), drawing(documents)).searches
    lm.undo()
    least = min(tried, key=lambda count: tried[count][0])
    assert record["chosen"][0]["keep"]["ranks"] == tried[least][1] and "last_blocks" not in record["chosen"][0]
    assert record["notes"][1].startswith(f"cutting the last {least} of 3 layers moves predictions by ")
    divergences = {trial["last_blocks"]: trial["divergence"] for trial in record["trials"] if "last_blocks" in trial}
    assert divergences == pytest.approx({count: one for count, (one, _) in tried.items()}, rel=1e-3)
    (accepted,) = [trial for trial in record["trials"] if trial["accepted"]]
    assert accepted["last_blocks"] == least


def test_the_last_blocks_are_of_the_chosen_layers(make_lm: Any) -> None:
    lm = make_lm("llama")
    recipe = parse_recipe("least-error:rule=uniform,layers=[0,2],last_blocks=search")
    (record,) = lm.apply(recipe, drawing(documents_for(lm, 12))).searches
    lm.undo()
    assert [trial["last_blocks"] for trial in record["trials"] if "last_blocks" in trial] == [1, 2]
    assert "of 2 layers" in record["notes"][1] and record["notes"][1].endswith("tried were the last 1, 2")


def test_numbers_of_last_blocks_that_are_tried() -> None:
    from harness_ext.search.allocation import _ends

    assert _ends(30, 0.8) == [7, 13, 18, 24, 30] and _ends(3, 0.8) == [1, 2, 3] and _ends(2, 0.1) == [2]


def test_ends_that_hold_too_little_are_passed_over(make_lm: Any) -> None:
    recipe = f"least-error:rule=uniform,{SOME},last_blocks=search,param_fraction="
    lm = make_lm("llama")
    (record,) = lm.apply(parse_recipe(f"{recipe}0.35"), drawing(documents_for(lm, 12))).searches
    lm.undo()
    assert [trial["last_blocks"] for trial in record["trials"] if "last_blocks" in trial] == [3]
    with pytest.raises(BudgetTooSmall):
        found_by(lm, f"{recipe}0.01", documents_for(lm, 12))
    with pytest.raises(RecipeError, match="last_blocks"):
        parse_recipe("d-rank:last_blocks=some")


@pytest.mark.parametrize("factorisation", [one for one in get_args(Factorisation) if one != "feature_space"])
def test_what_is_tried_is_what_would_be_made(make_lm: Any, factorisation: str) -> None:
    lm = make_lm("llama")
    documents = documents_for(lm, 12)
    recipe = parse_recipe(f"lems:{SOME},factorisation={factorisation},param_fraction=0.7,align=1,strengths=[0]")
    (record,) = lm.apply(recipe, drawing(documents)).searches
    lm.undo()
    (plan,) = [trial for trial in record["trials"] if "strength" in trial]
    assert plan["accepted"] and plan["divergence"] > 0 and len(record["trials"]) == record["planned"] == 7
    assert all(trial["divergence"] >= 0 for trial in record["trials"])
    started_from = factorisation in ("anchored", "nested_decomposition")
    assert any("were made by feature_space" in note for note in record["notes"]) == started_from
    if not started_from:
        assert plan["loss"] == pytest.approx(record["after"]["loss"], rel=1e-4)
    (chosen,) = record["chosen"]
    shapes = {matrix.key: matrix.shape for matrix in lm.weights.layout.select(recipe.steps[0])}
    left = sum(stored_parameters(shape, chosen["keep"]["ranks"].get(key, 10**6)) for key, shape in shapes.items())
    assert left <= 0.7 * sum(m * n for m, n in shapes.values())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["lems:align=2,strengths=[0]", "strs:fractions=[0.3,0.6]"])
def test_half_precision(make_lm: Any, name: str, dtype: str) -> None:
    lm = make_lm("llama")
    lm.model.to(getattr(torch, dtype))
    (chosen,) = found_by(lm, f"{name},{SOME},param_fraction=0.7", documents_for(lm, 12))
    assert chosen["keep"]["ranks"]


class Killed(BaseException):
    """Ends a search as a signal would."""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lems:align=2", "strs:fractions=[0.3,0.6]"])
def test_a_killed_search_goes_on_to_the_same_plan(make_lm: Any, tmp_path: Path, monkeypatch: Any, name: str) -> None:
    lm = make_lm("llama")
    documents = documents_for(lm, 12)
    recipe, work = parse_recipe(f"{name},{SOME},param_fraction=0.7"), ResumeState(tmp_path / "work")
    whole = lm.apply(recipe, drawing(documents)).searches[0]
    lm.undo()
    append, left = ResumeState.append, 5

    def killed(self: ResumeState, of: str, row: Any) -> None:
        nonlocal left
        left -= of == "trials"
        if left == 0:
            raise Killed
        append(self, of, row)

    monkeypatch.setattr(ResumeState, "append", killed)
    with pytest.raises(Killed):
        lm.apply(recipe, drawing(documents), resume=work)
    monkeypatch.setattr(ResumeState, "append", append)
    resumed = lm.apply(recipe, drawing(documents), resume=work).searches[0]
    lm.undo()
    assert (resumed["chosen"], resumed["trials"]) == (whole["chosen"], whole["trials"])
    assert (whole["resumed"], resumed["resumed"]) == (
        0,
        sum(len(row["trials"]) for row in work.part("step-0").rows("trials")[:4]),
    )


def test_a_random_control_keeps_as_many_parameters(make_lm: Any) -> None:
    lm = make_lm("llama")
    documents = documents_for(lm, 12)
    recipe = parse_recipe(f"lems:{SOME},align=2,param_fraction=0.7,strengths=[0]")
    applied, totals = lm.apply(recipe, drawing(documents)), lm.totals()
    receipt = {"matrices": [record.to_json() for record in applied.records], "searches": applied.searches}
    lm.undo()
    lm.apply(control_recipe("random-subspace", recipe, receipt), drawing(documents))
    assert lm.totals()["parameters_after"] == totals["parameters_after"] < totals["parameters_before"]
    lm.undo()


@pytest.mark.slow
def test_strs_finds_what_a_plain_loop_finds(make_lm: Any) -> None:
    lm = make_lm("llama")
    documents = documents_for(lm, 16)
    recipe = f"strs:{SOME},factorisation=feature_space,param_fraction=0.7,fractions=[0.3,0.5,0.8]"
    plain = Plain(lm, documents, recipe)
    row = []
    for key, (m, n) in plain.shapes.items():
        for fraction in (0.3, 0.5, 0.8):
            rank = int(fraction * m * n) // (m + n)
            row.append((plain.with_ranks({key: rank}, lambda: scored(lm, documents))[1], key, rank))
    row.sort(reverse=True)
    plans = []
    for start in range(len(row) + 1):
        ranks: dict[str, int] = {}
        for _, key, rank in row[start:]:
            ranks[key] = min(rank, ranks.get(key, rank))
        size = sum(ranks[key] * (m + n) if key in ranks else m * n for key, (m, n) in plain.shapes.items())
        if size <= 0.7 * sum(m * n for m, n in plain.shapes.values()):
            plans.append(ranks)
    (chosen,) = found_by(lm, recipe, documents)
    assert chosen["keep"]["ranks"] == plans[-1] and len(plans[-1]) > 2


def test_strs_as_published_weighs_columns(make_lm: Any) -> None:
    lm = make_lm("llama")
    (record,) = lm.apply(parse_recipe(f"strs:{SOME}"), drawing(documents_for(lm, 12))).searches
    lm.undo()
    (chosen,) = record["chosen"]
    assert (chosen["method"], chosen["exponent"]) == ("activation_aware_svd", 0.5)
    assert len(record["trials"]) == record["planned"] and any(trial["accepted"] for trial in record["trials"])


def sensitivities(seed: int) -> tuple[dict[str, tuple[int, int]], list[Sensitivity]]:
    draw = numpy.random.default_rng(seed)
    shapes = {f"m{number}": (int(draw.integers(8, 40)), int(draw.integers(8, 40))) for number in range(6)}
    found = [
        Sensitivity(key, rank, float(draw.normal()))
        for key, shape in shapes.items()
        for rank in ranks_at(shape, (0.4, 0.5, 0.6, 0.7, 0.8, 0.9))
    ]
    return shapes, found


@pytest.mark.parametrize("seed", range(20))
def test_a_larger_budget_cuts_no_matrix_further(seed: int) -> None:
    shapes, found = sensitivities(seed)
    whole = sum(m * n for m, n in shapes.values())
    before: dict[str, float] = dict.fromkeys(shapes, 0.0)
    for share in numpy.linspace(0.42, 1, 30):
        ranks = allowed(shapes, found, share)
        assert sum(stored_parameters(shapes[key], ranks.get(key, 10**6)) for key in shapes) <= share * whole
        now = {key: ranks.get(key, math.inf) for key in shapes}
        assert all(now[key] >= before[key] for key in shapes)
        before = now
    assert allowed(shapes, found, 1.0) == {}


def test_what_breaks_the_model_is_the_first_to_be_left() -> None:
    shapes = {"a": (20, 20), "b": (20, 20)}
    tried = [Sensitivity("a", 5, math.nan), Sensitivity("b", 5, 9.0)]
    assert allowed(shapes, tried, 0.75) == {"b": 5}
    assert allowed(shapes, tried, 0.5) == {"a": 5, "b": 5}


def test_ranks_hold_at_most_their_fraction_in_multiples() -> None:
    assert ranks_at((24, 24), (0.4, 0.5, 0.9, 1.0)) == [4, 6, 10]
    assert ranks_at((24, 24), (0.4, 0.5, 0.9), 4) == [4, 8]
    assert ranks_at((24, 24), (0.01,)) == [] == ranks_at((1, 24), (0.5,))


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("strs:param_fraction=0.3", "the smallest fractions leave 0.3"),
        ("strs:param_fraction=0.3,align=8,fractions=[0.9]", "give smaller fractions"),
        ("lems:param_fraction=0.2,least=0.5,align=1", "the smallest ranks allowed leave 0.5"),
    ],
)
def test_a_budget_that_cannot_be_met_is_told_before_anything_is_tried(make_lm: Any, recipe: str, message: str) -> None:
    lm = make_lm("llama")
    with pytest.raises(BudgetTooSmall, match=message):
        lm.apply(parse_recipe(f"{recipe},{SOME}"), drawing(documents_for(lm, 8)))


@pytest.mark.parametrize("name", ["lems", "strs"])
def test_a_whole_budget_leaves_the_model_as_it_is(make_lm: Any, name: str) -> None:
    lm = make_lm("llama")
    (record,) = lm.apply(parse_recipe(f"{name}:param_fraction=1.0,{SOME}"), drawing(documents_for(lm, 8))).searches
    lm.undo()
    assert not record["chosen"] and not record["trials"]
    assert record["reason"] == "its budget, param_fraction 1, asks for no smaller matrix"


def test_spectra_are_descending_in_every_factorisation(make_lm: Any) -> None:
    from harness_ext.search.factorisations import decomposed

    draw = torch.Generator().manual_seed(0)
    for shape in ((10, 6), (6, 10)):
        weight = torch.randn(shape, generator=draw)
        inputs = torch.randn(shape[1], 30, generator=draw, dtype=torch.float64)
        outputs = torch.randn(shape[0], 30, generator=draw, dtype=torch.float64)
        learned = {
            "input_second_moment": inputs @ inputs.T / 30,
            "gradient_second_moment": outputs @ outputs.T / 30,
            "input_magnitude": inputs.abs().mean(1),
            "fisher_information": inputs.square().mean(1),
        }
        for factorisation in get_args(Factorisation):
            made = decomposed(weight, factorisation, learned)
            assert len(made.values) == 6 and bool((made.values.diff() <= 0).all())
            left, right = made.serving(6)
            assert torch.allclose(left @ right, weight.double(), atol=1e-9)
            smaller = made.serving(3)
            assert torch.allclose(smaller[0] @ smaller[1], left[:, :3] @ right[:3], atol=1e-9)
            assert Spectrum(shape, made.values.tolist()).tail(6) == 0


class Messages:
    """Ranks that only pass on what JSON can say."""

    ranks = 2

    def in_shares(self, what: str, items: Any, work: Callable[[int], Any]) -> list[Any]:
        return [json.loads(json.dumps(work(item))) for item in items]


@pytest.mark.parametrize("measured", [True, False])
def test_scores_of_other_ranks_are_the_same(measured: bool) -> None:
    from harness_ext.search.shared_passes import ScoredPart, scores_of_all

    def score(place: int) -> ScoredPart:
        loss = torch.tensor([[0.1 * place, math.nan]], dtype=torch.float64)
        apart = torch.tensor([[1 / 3, math.inf]], dtype=torch.float64) if measured else None
        return ScoredPart([0], torch.tensor([[True, False]]), loss, apart)

    class Passes:
        passes = 0.0

    for place, found in enumerate(scores_of_all(Messages(), Passes(), 3, score)):  # type: ignore[arg-type]
        made = score(place)
        assert found.some == made.some and torch.equal(found.right, made.right)
        assert torch.equal(found.loss.nan_to_num(), made.loss.nan_to_num())
        assert (found.divergence is None) is not measured
        assert made.divergence is None or torch.equal(found.divergence, made.divergence)
