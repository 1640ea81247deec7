"""What a session keeps for its next recipe: the same statistics and spectra, bit for bit, gathered once, within
bounds.
"""

from __future__ import annotations

import weakref
from functools import partial
from pathlib import Path

import pytest
import torch

from harness_ext.calibration import by_layer, collect
from harness_ext.calibration.by_layer import LearnedGroup
from harness_ext.calibration.cache import ScratchStore, StatisticsCache
from harness_ext.calibration.collect import watched_through as collect_watched
from harness_ext.calibration.documents import CalibrationSet, LabelledDocument
from harness_ext.methods import feature_space
from harness_ext.recipe.recipe import parse_recipe
from harness_ext.search.evaluator import CandidateEvaluator

TEXTS = tuple(
    LabelledDocument("t", f"w{number} w{2 * number % 40}", f" w{(3 * number + 1) % 40}", str(number))
    for number in range(30)
)


def texts(calibration):
    return [CalibrationSet("t", "train", 0, TEXTS[: calibration.samples])]


def digest_after(lm, specification: str) -> str:
    lm.apply(parse_recipe(specification), texts)
    digest = lm.weights.digest()
    lm.undo()
    return digest


@pytest.fixture
def gathered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The matrices for which statistics are gathered, by key, as it happens."""
    seen: list[str] = []

    def counting(group, *rest):
        seen.extend(matrix.key for matrix in group)
        return collect_watched(group, *rest)

    for module in (collect, by_layer):
        monkeypatch.setattr(module, "watched_through", counting)
    return seen


@pytest.fixture
def spectra(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the matrices whose output spectra are computed, as it happens."""
    seen: list[tuple[int, ...]] = []
    plain = feature_space.output_spectrum

    def output_spectrum(weight, spread):
        seen.append(tuple(weight.shape))
        return plain(weight, spread)

    monkeypatch.setattr(feature_space, "output_spectrum", output_spectrum)
    return seen


BUDGETS = [f"svd-llm:keep.param_fraction={share}" for share in (0.8, 0.6, 0.4)]


@pytest.mark.slow
def test_a_second_budget_gathers_and_decomposes_nothing_and_is_what_it_is_alone(
    make_lm, plain_family: str, gathered: list[str], spectra: list[tuple[int, ...]]
) -> None:
    together = make_lm(plain_family)
    found = [digest_after(together, specification) for specification in BUDGETS]
    assert len(gathered) == len(spectra) == len(together.weights.layout.matrices) == len(set(gathered))
    for specification, digest in zip(BUDGETS, found, strict=True):
        assert digest_after(make_lm(plain_family), specification) == digest
    assert len(set(found)) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "changed",
    [
        "calibration.samples=29",
        "calibration.batch_size=4",
        "centred=true",
        "matrices=[up_proj],per_head=false,layers=[0]",
    ],
)
def test_what_is_asked_differently_is_gathered_as_far_as_it_differs(
    make_lm, gathered: list[str], spectra: list[tuple[int, ...]], changed: str
) -> None:
    lm = make_lm("llama")
    digest_after(lm, "svd-llm")
    count = len(gathered)
    after = digest_after(lm, f"svd-llm:{changed}")
    assert len(gathered) == (2 * count if changed.startswith("calibration") else count)
    if changed == "centred=true":
        assert len(spectra) == 2 * count
    assert after == digest_after(make_lm("llama"), f"svd-llm:{changed}")


def test_a_model_already_edited_is_another_model(make_lm, gathered: list[str]) -> None:
    from harness_ext.recipe.recipe import recipe_from

    step = {"method": "feature_space", "matrices": ["up_proj"], "keep": {"rank": 5}}
    recipe = recipe_from({"name": "twice", "steps": [step, step]}, origin="test")
    lm = make_lm("llama")
    lm.apply(recipe, texts)
    assert len(gathered) == 6
    lm.undo()
    lm.apply(recipe, texts)
    assert len(gathered) == 6


def test_sequential_statistics_are_never_kept(make_lm, gathered: list[str]) -> None:
    lm = make_lm("llama")
    digest_after(lm, "sfsd")
    count = len(gathered)
    digest_after(lm, "sfsd")
    assert (
        len(gathered) == 2 * count
        and not (lm.weights._scratch / "statistics").exists()
        and not (lm.weights._scratch / "results").exists()
    )


@pytest.mark.slow
def test_zero_sum_after_svd_llm_gathers_gradients_alone_and_is_what_it_is_alone(
    make_lm, gathered: list[str], spectra: list[tuple[int, ...]]
) -> None:
    together = make_lm("llama")
    count = len(together.weights.layout.matrices)
    digest_after(together, "svd-llm:calibration.samples=20")
    found = digest_after(together, "zero-sum:calibration.samples=20")
    assert len(gathered) == 2 * count and len(spectra) == count
    gathered.clear()
    spectra.clear()
    # Alone it learns the moments as the step does that it finds, and once.
    assert digest_after(make_lm("llama"), "zero-sum:calibration.samples=20") == found
    assert len(gathered) == 2 * count and len(spectra) == count


@pytest.mark.slow
def test_a_search_by_spectra_learns_once_with_the_step_that_it_finds(
    make_lm, gathered: list[str], spectra: list[tuple[int, ...]]
) -> None:
    lm = make_lm("llama")
    count = len(lm.weights.layout.matrices)
    found = digest_after(lm, "d-rank:calibration.samples=20")
    assert len(gathered) == len(spectra) == count
    lm._statistics_cache = StatisticsCache(lm.weights._scratch, limit_bytes=0)
    assert digest_after(lm, "d-rank:calibration.samples=20") == found and len(gathered) > count


@pytest.mark.slow
@pytest.mark.parametrize("search", ["strs", "lems:align=1"])
def test_trials_of_single_matrices_are_made_once_for_all_budgets(
    make_lm, monkeypatch: pytest.MonkeyPatch, search: str
) -> None:
    made, run = [], CandidateEvaluator._run

    def counting(evaluator, matrix, *rest):
        made.append(matrix.key)
        return run(evaluator, matrix, *rest)

    monkeypatch.setattr(CandidateEvaluator, "_run", counting)
    name, _, more = search.partition(":")
    recipes = [
        parse_recipe(f"{name}:{','.join(filter(None, [more, 'calibration.samples=8', f'param_fraction={share}']))}")
        for share in (0.8, 0.6)
    ]
    together, records = make_lm("llama"), []
    for recipe in recipes:
        records.append(together.apply(recipe, texts).searches[0])
        digest = together.weights.digest()
        together.undo()
    assert len(made) == len(set(made)) == len(together.weights.layout.matrices)
    alone = make_lm("llama")
    (record,) = alone.apply(recipes[1], texts).searches
    assert alone.weights.digest() == digest and len(made) == 2 * len(set(made))
    assert {**record, "seconds": 0} == {**records[1], "seconds": 0} and record["chosen"] != records[0]["chosen"]
    # Other documents are tried anew.
    alone.undo()
    alone.apply(parse_recipe(f"{name}:calibration.samples=9{more and f',{more}'}"), texts)
    assert len(made) == 3 * len(set(made))


@pytest.mark.slow
@pytest.mark.parametrize("room", [0, 20_000])
def test_without_room_it_is_gathered_again_and_nothing_else_changes(
    make_lm, gathered: list[str], room: int, tmp_path: Path
) -> None:
    lm = make_lm("llama")
    count = len(lm.weights.layout.matrices)
    lm._statistics_cache = StatisticsCache(tmp_path, limit_bytes=room)
    found = [digest_after(lm, specification) for specification in BUDGETS[:2]]
    assert count < len(gathered) <= 2 * count
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors")) <= 2 * room + 100 * count
    assert found == [digest_after(make_lm("llama"), specification) for specification in BUDGETS[:2]]


@pytest.mark.parametrize("recipe", ["svd-llm", "fisher-svd", "basis-sharing", "d-rank"])
@pytest.mark.parametrize("room", [0, 1 << 30])
def test_groups_of_a_layer_are_put_aside_and_nothing_else_changes(
    make_lm, monkeypatch: pytest.MonkeyPatch, recipe: str, room: int, tmp_path: Path
) -> None:
    """A layer whose statistics are more than a pass holds: memory has those of one group, whether or not they stay."""
    specification = f"{recipe}:calibration.samples=8"
    found = digest_after(make_lm("llama"), specification)
    held: list[weakref.ref[torch.Tensor]] = []
    calls: list[int] = []

    def watching(group, *rest):
        calls.append(sum(one() is not None for one in held))
        statistics, states = collect_watched(group, *rest)
        held.extend(weakref.ref(value) for values in statistics.values() for value in values.values())
        return statistics, states

    monkeypatch.setattr(by_layer, "watched_through", watching)
    monkeypatch.setattr(collect, "FACTOR_BYTES", 1)
    lm = make_lm("llama")
    count = len(lm.weights.layout.matrices)
    lm._statistics_cache = StatisticsCache(tmp_path, limit_bytes=room)
    assert digest_after(lm, specification) == found and len(calls) >= count
    if recipe != "basis-sharing":  # whose groups of layers wait for each other
        assert set(calls) == {0}
    assert not list((tmp_path / "aside").glob("*")) and bool(list(tmp_path.rglob("*.safetensors"))) == (room > 0)


def test_a_walk_that_is_given_up_leaves_nothing_aside(make_lm, tmp_path: Path) -> None:
    """Nor counts what it left twice, where the same is learned again."""
    first, second, *_ = make_lm("llama").weights.layout.matrices
    cache = StatisticsCache(tmp_path, limit_bytes=0)

    def learn(matrices, *, fails: bool):
        yield LearnedGroup([first], {first.key: {"moment": torch.ones(3, 3)}}, is_last=False)
        if fails:
            raise RuntimeError("out of memory")
        yield LearnedGroup([second], {second.key: {"moment": torch.ones(3, 3)}}, is_last=True)

    with pytest.raises(RuntimeError, match="out of memory"):
        list(cache.through(["texts"], [first, second], partial(learn, fails=True), expected=72))
    assert not list((tmp_path / "aside").glob("*"))
    walk = cache.through(["texts"], [first, second], partial(learn, fails=False), expected=72)
    next(walk)
    assert list((tmp_path / "aside").glob("*"))
    walk.close()
    assert not list((tmp_path / "aside").glob("*")) and cache._aside._held == 0


def test_a_store_gives_bits_back_and_makes_room_by_dropping_the_oldest_batch(tmp_path: Path) -> None:
    store = ScratchStore(tmp_path / "store", limit_bytes=1000)
    value = torch.randn(100)
    assert store.save("old", {"a": {"x": value}}) and store.save("old", {"b": {"x": value}})
    assert torch.equal(store.load("old", "a")["x"], value)
    assert not store.save("old", {"c": {"x": value}}) and store.load("old", "c") is None
    assert store.save("new", {"a": {"x": value + 1}})
    assert (
        store.names("old") == frozenset()
        and store.load("old", "a") is None
        and torch.equal(store.load("new", "a")["x"], value + 1)
    )
    assert len(list((tmp_path / "store").iterdir())) == 1
    assert store.save("new", {"nothing": {}}) and store.load("new", "nothing") == {}


def test_a_tensor_that_several_sets_hold_is_kept_once(tmp_path: Path) -> None:
    store = ScratchStore(tmp_path / "store", limit_bytes=1000)
    shared = torch.randn(200)
    assert store.save("batch", {"q": {"x": shared}, "k": {"x": shared, "y": torch.ones(2)}})
    assert all(torch.equal(store.load("batch", name)["x"], shared) for name in ("q", "k"))
    assert torch.equal(store.load("batch", "k")["y"], torch.ones(2))
    assert sum(path.stat().st_size for path in (tmp_path / "store").iterdir()) < 1100


def test_a_store_that_cannot_be_written_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = ScratchStore(tmp_path / "file" / "store")
    assert not store.save("batch", {"a": {"x": torch.ones(3)}}) and store.load("batch", "a") is None


def test_statistics_that_found_no_room_are_there_beside_what_did(tmp_path: Path, make_lm) -> None:
    matrices = make_lm("llama").weights.layout.matrices[:3]
    kept = StatisticsCache(tmp_path, limit_bytes=900)
    values = {matrix.key: {"x": torch.full((100,), float(number))} for number, matrix in enumerate(matrices)}
    found = kept.gathered(
        ["it"],
        matrices,
        lambda group: {matrix.key: values[matrix.key] for matrix in group[:2]},
        lambda missing: [missing],
    )
    assert set(found) == set(values) and len(found) == 3
    assert [found[matrix.key].get("x", torch.zeros(1))[0] for matrix in matrices] == [0.0, 1.0, 0.0]


def test_a_function_is_called_once_for_the_same_bits(tmp_path: Path) -> None:
    kept, calls = StatisticsCache(tmp_path), []

    def doubled(value: torch.Tensor) -> tuple[torch.Tensor, ...]:
        calls.append(1)
        return value * 2, value.sum()

    value = torch.arange(4.0)
    assert [part.tolist() for part in kept.remember(doubled, value)] == [
        part.tolist() for part in kept.remember(doubled, value.clone())
    ]
    kept.remember(doubled, value + 1)
    kept.remember(doubled, value.double())
    assert len(calls) == 3
