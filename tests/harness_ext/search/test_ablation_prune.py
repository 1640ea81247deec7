"""Removals on trial: groups are halved until the measured loss falls, what raises it is not made, and the loss that
decides is that of a plain forward pass.
"""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch

from harness_ext.calibration.collect import gather
from harness_ext.calibration.context import DocumentBatches
from harness_ext.calibration.documents import LabelledDocument
from harness_ext.calibration.loss import GIVEN_UP, measured_loss
from harness_ext.editing.warnings import SMALLEST_RISE, left_unedited, receipt_warnings
from harness_ext.errors import BudgetTooSmall, UserError
from harness_ext.methods.eigenprune import counts_among_all
from harness_ext.recipe.recipe import parse_recipe, shipped_names
from harness_ext.search.ablation_prune import TRUSTED, candidates_of, try_removals
from harness_ext.search.removals import RemovalCandidate
from tests.harness_ext.search.plain_search import documents_for, drawing, scored, svd_of


class Landscape:
    """In the place of a model: a loss that is the sum of what each component's removal changes it by. Its trials accept
    as `RemovalTrials` does.
    """

    def __init__(self, changes: dict[tuple[str, int], float]) -> None:
        self.changes, self.removed, self.tried = changes, set(), []

    @property
    def made(self) -> int:
        return len(self.tried)

    def attempt(self, group: list[RemovalCandidate], least: float = 0.0) -> bool:
        names = [(candidate.key, candidate.component) for candidate in group]
        self.tried.append(names)
        fall = -sum(self.changes[name] for name in names)
        if fall > 0 and fall >= least:
            self.removed.update(names)
        return fall > 0 and fall >= least


def landscape(matrices: int, components: int, good: set[tuple[str, int]]):
    """Every removal is predicted to lower the loss by one nat; all but the good ones raise it by ten."""
    names = [(f"m{matrix}", component) for matrix in range(matrices) for component in range(components)]
    return (
        Landscape({name: -1.0 if name in good else 10.0 for name in names}),
        [RemovalCandidate(-1.0, key, component) for key, component in names],
    )


@pytest.mark.parametrize("good", [{("m11", 9)}, {("m0", 0), ("m29", 10)}, set(), {(f"m{k}", 3) for k in range(30)}])
def test_halving_finds_the_components_that_help_among_many_that_do_not(good: set[tuple[str, int]]) -> None:
    trials, candidates = landscape(30, 11, good)
    try_removals(trials, candidates, 10_000)
    assert trials.removed == good
    # Each group is tried once.
    assert len({tuple(group) for group in trials.tried}) == trials.made < 2 * len(candidates)


def test_groups_are_halved_by_matrices_first_and_what_the_estimate_got_right_is_taken_whole() -> None:
    trials, candidates = landscape(4, 2, {("m1", 0), ("m1", 1)})
    try_removals(trials, candidates, 10_000)
    assert [len({key for key, _ in group}) for group in trials.tried[:5]] == [4, 2, 2, 1, 1]
    # Both of it at once.
    assert [("m1", 0), ("m1", 1)] in trials.tried and [("m1", 0)] not in trials.tried
    allowed, candidates = landscape(4, 2, {("m1", 0), ("m1", 1)})
    try_removals(allowed, candidates, 3)
    assert allowed.made == 3 and not allowed.removed


def test_a_fall_far_below_the_predicted_one_is_looked_into() -> None:
    """One of two is good by more than the other is bad: alone it lowers the loss further."""
    changes = {("a", 0): -1.0, ("a", 1): 1.0 - 0.9 * TRUSTED}
    trials = Landscape(changes)
    try_removals(trials, [RemovalCandidate(-0.5, "a", 0), RemovalCandidate(-0.5, "a", 1)], 100)
    assert trials.removed == {("a", 0)}
    nothing = Landscape({})
    try_removals(nothing, [], 100)
    assert nothing.made == 0


def test_candidates_are_the_lowest_share_of_each_matrix_that_should_lower_the_loss() -> None:
    effects = {"a": torch.tensor([0.5, -0.1, -0.3, -0.2, 0.1]), "b": torch.tensor([1.0, 2.0, 3.0, 4.0, -5.0])}
    assert candidates_of(effects, 0.4) == [
        (pytest.approx(-0.3), "a", 2),
        (pytest.approx(-0.2), "a", 3),
        (-5.0, "b", 4),
    ]


def numpy_counts(effects: list[numpy.ndarray], fraction: float) -> list[int]:
    """The released code's ranking, written with plain numpy: all components in one list, the lowest share goes."""
    rows = sorted(
        (value, place, -component)
        for place, values in enumerate(effects)
        for component, value in enumerate(values.tolist())
    )
    gone = rows[: int(numpy.floor(fraction * len(rows) + 1e-9))]
    return [sum(place == own for _, own, _ in gone) for place in range(len(effects))]


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.5, 0.99])
@pytest.mark.parametrize("ties", [False, True])
def test_the_share_of_all_is_that_of_one_ranking(fraction: float, ties: bool) -> None:
    generator = numpy.random.default_rng(0)
    effects = [generator.standard_normal(size) * scale for size, scale in ((6, 1.0), (6, 0.01), (4, 5.0), (1, 0.1))]
    effects = [values.round(0) if ties else values for values in effects]
    found = counts_among_all({str(place): torch.tensor(values) for place, values in enumerate(effects)}, fraction)
    assert list(found.values()) == numpy_counts(effects, fraction)


@pytest.mark.parametrize("per_head", [True, False])
def test_both_readings_of_eigenprunes_share_equal_plain_numpy(make_lm, per_head: bool) -> None:
    lm = make_lm("llama")
    documents = documents_for(lm)
    settings = f"fraction=0.3,calibration.batch_size=8,per_head={str(per_head).lower()}"
    matrices = lm.weights.layout.select(parse_recipe(f"eigenprune:{settings}").steps[0])
    gathered = gather(
        lm,
        matrices,
        frozenset({"counterfactual_effects", "input_mean"}),
        DocumentBatches(documents, 8),
        svd_of(lm),
    )
    effects = [gathered[matrix.key]["counterfactual_effects"].numpy() for matrix in matrices]
    each = [int(0.3 * len(values) + 1e-9) for values in effects]
    together = numpy_counts(effects, 0.3)
    assert each != together
    for specification, counts in (("eigenprune", each), ("eigenprune-released", together)):
        weights = [lm.weights.read(matrix).numpy() for matrix in matrices]
        records = lm.apply(parse_recipe(f"{specification}:{settings}"), drawing(documents)).records
        assert [record.rank_before - record.rank_after for record in records] == counts
        for matrix, weight, own, count in zip(matrices, weights, effects, counts, strict=True):
            u, s, vh = numpy.linalg.svd(weight, full_matrices=False)
            gone = numpy.argsort(own, kind="stable")[:count]
            expected = weight - (u[:, gone] * s[gone]) @ vh[gone]
            numpy.testing.assert_allclose(lm.weights.read(matrix).numpy(), expected, atol=1e-5)
        lm.undo()


def test_the_share_of_all_needs_all_at_once(make_lm) -> None:
    lm = make_lm("llama")
    with pytest.raises(UserError, match="leave one of them out"):
        lm.apply(parse_recipe("eigenprune-released:sequential=true"), drawing(documents_for(lm)))


@pytest.mark.parametrize("recipe", ["ablation-prune:fraction=0.3", "eigenprune-greedy"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_loss_never_rises_and_is_that_of_a_plain_forward_pass(make_lm, recipe: str, dtype: str) -> None:
    lm = make_lm("llama", dtype=dtype)
    documents = [LabelledDocument(one.task, one.context, one.answer, one.doc_hash) for one in documents_for(lm, 12)]
    near = 1e-4 if dtype == "float32" else 3e-2
    before = scored(lm, documents)[1]
    applied = lm.apply(parse_recipe(recipe), drawing(documents))
    after = scored(lm, documents)[1]
    (row,) = applied.losses
    assert row["before"] == pytest.approx(before, rel=near) and row["after"] == pytest.approx(after, rel=near)
    assert row["after"] <= row["before"]
    log = applied.log
    # What was accepted lowers the loss each time; of the rest nothing stays.
    kept = [entry for entry in log if entry["accepted"]]
    losses = [entry["loss"] for entry in kept if entry["predicted"] is not None]
    assert losses == sorted(losses, reverse=True) and log[0]["removes"] == {} and log[0]["accepted"]
    removed = sum(record.rank_before - record.rank_after for record in applied.records)
    if log[-1]["accepted"]:
        assert removed == sum(
            len(components)
            for entry in kept
            if entry["predicted"] is not None
            for components in entry["removes"].values()
        )
    else:
        assert removed == 0
    assert dtype == "bfloat16" or removed
    lm.undo()


def test_nothing_that_helps_leaves_the_model_to_the_bit_and_says_so(make_lm, monkeypatch) -> None:
    lm = make_lm("llama")
    recipe = parse_recipe("ablation-prune:fraction=0.3")
    monkeypatch.setattr("harness_ext.search.removals.RemovalTrials.attempt", lambda *arguments: False)
    digest = lm.weights.digest()
    applied = lm.apply(recipe, drawing(documents_for(lm)))
    assert lm.weights.digest() == digest and {record.relative_error for record in applied.records} == {0.0}
    assert left_unedited(recipe, applied)
    assert receipt_warnings(recipe, applied)[0] == (
        "ablation_prune found nothing: no component promises to lower the loss of its 16 calibration documents, or its"
        " fraction is less than one component; the variant is the unedited model"
    )
    applied.log.append({"step": 0, "removes": {"a": [1]}})
    assert "removals tried: 1, none of which lowers the loss of its 16 " in receipt_warnings(recipe, applied)[0]


def test_what_rounding_makes_worse_is_not_made(make_lm, monkeypatch) -> None:
    """A trial lies: as it would be written, the removal raises the loss."""
    lm = make_lm("llama")
    digest = lm.weights.digest()
    monkeypatch.setattr(
        "harness_ext.search.removals.RemovalTrials.attempt",
        lambda trials, group, least=0.0: [
            trials.removed[one.key].index_fill_(0, torch.tensor(range(20)), True) for one in group
        ],
    )
    applied = lm.apply(parse_recipe("ablation-prune:fraction=0.3"), drawing(documents_for(lm)))
    last = applied.log[-1]
    assert last["removes"] and not last["accepted"] and last["loss"] >= applied.log[0]["loss"]
    assert lm.weights.digest() == digest


def test_a_much_worse_loss_is_not_measured_to_the_end(make_lm) -> None:
    lm = make_lm("llama")
    documents = documents_for(lm)
    whole = measured_loss(lm, documents, 4)
    assert whole.documents == len(documents) and len(whole.sums) == 4
    half = whole._replace(sums=tuple(value / 2 / GIVEN_UP for value in whole.sums))
    assert measured_loss(lm, documents, 4, half).documents == 4
    assert measured_loss(lm, documents, 4, whole) == whole


# The rule, for every shipped recipe that has documents of its own.

BY_BUDGET = {
    "a3": "unit_fraction",
    "a3-mlp": "unit_fraction",
    "a3-ov": "unit_fraction",
    "aa-svd": "keep",
    "asvd": "keep",
    "basis-selection": "training",
    "basis-sharing": "keep",
    "d-rank": "param_fraction",
    "eigenprune": "fraction",
    "eigenprune-released": "fraction",
    "fisher-svd": "keep",
    "fwsvd": "keep",
    "last-blocks": "param_fraction",
    "least-error": "param_fraction",
    "lems": "param_fraction",
    "modegpt": "unit_fraction",
    "modegpt-mlp": "unit_fraction",
    "modegpt-qk": "unit_fraction",
    "modegpt-vo": "unit_fraction",
    "nsvd": "keep",
    "obs-mlp": "unit_fraction",
    "policy-prune": "masks",
    "sfsd": "keep",
    "sfsd-released": "keep",
    "snp": "unit_fraction",
    "sola": "keep",
    "strs": "param_fraction",
    "svd-llm": "keep",
    "svd-llm-lora": "keep",
    "svd-llm-update": "keep",
    "svd-llm-v2": "param_fraction",
    "swift": "keep",
    "wanda": "density",
    "wanda-sp": "masks",
    "zero-sum": "param_fraction",
    "zero-sum-staged": "param_fraction",
}
"""What each of them must leave, however little is lost or gained by it."""
MINUTES = {"basis-selection", "fisher-svd", "lems", "obs-mlp", "strs", "svd-llm-lora"}
"""What takes long on a trained model, of those that a budget binds."""
CALIBRATED = [name for name in shipped_names() if any(step.calibration for step in parse_recipe(name).steps)]


SHARES = {"unit_fraction": "unit_fraction", "keep": "keep.param_fraction", "param_fraction": "param_fraction"}
"""How a share is asked for, of the budgets that are one."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "svd-llm-lora" else ())
        for name, setting in BY_BUDGET.items()
        if setting in SHARES
    ],
)
def test_a_budget_that_no_model_can_meet_is_refused_or_told(name: str, make_lm) -> None:
    lm = make_lm("llama")
    step = "steps.0." if name == "a3" else ""
    try:
        recipe = parse_recipe(f"{name}:{step}{SHARES[BY_BUDGET[name]]}=0.000001")
        applied = lm.apply(recipe, drawing(documents_for(lm, 4)))
    except BudgetTooSmall as error:
        assert "too small" in str(error)
        return
    except UserError as error:
        assert re.search("no layer is to lose more|prime units take", str(error))
        return
    assert [
        warning
        for warning in receipt_warnings(recipe, applied)
        if re.search(r"less than one (component|unit), and one was kept: .*\d % of .* and not 0\.0001 %", warning)
    ]


def check_rule(lm, name: str, changes: str, draw) -> None:
    recipe = parse_recipe(f"{name}:{changes}")
    applied = lm.apply(recipe, draw)
    first, row = applied.losses[0], applied.losses[-1]
    documents = [document for step, drawn in applied.calibration if step == row["step"] for document in drawn.documents]
    assert len(applied.losses) == len(recipe.steps)
    for one, following in zip(applied.losses, applied.losses[1:]):
        assert one["after"] == pytest.approx(following["before"], rel=1e-3)
    assert all(one["documents"] == len(documents) and one["before"] is not None for one in applied.losses)
    after = measured_loss(lm, documents, 16).mean
    assert row["after"] == pytest.approx(after, rel=1e-3) or (row["after"] is None and not numpy.isfinite(after))
    lm.undo()
    assert first["before"] == pytest.approx(measured_loss(lm, documents, 16).mean, rel=1e-3)
    told = [warning for warning in receipt_warnings(recipe, applied) if "raised the loss of its own" in warning]
    rose = [one for one in applied.losses if one["after"] is None or one["after"] - one["before"] > SMALLEST_RISE]
    assert len(told) == len(rose), (rose, told)
    if name not in BY_BUDGET:
        assert not rose, row
    for one, sentence in zip(rose, told, strict=True):
        assert f"{one['before']:.4g} to {one['after']:.4g} nats" in sentence


def test_a_task_that_pays_for_another_is_told_of(make_lm) -> None:
    lm = make_lm("llama")
    documents = documents_for(lm, 12)
    halves = [replace(one, task=task) for task, one in zip(["first", "second"] * 6, documents, strict=True)]
    recipe = parse_recipe("asvd:matrices=[down_proj]")
    applied = lm.apply(recipe, drawing(halves))
    (row,) = applied.losses
    lm.undo()
    for task in row["tasks"]:
        own = [one for one in halves if one.task == task["task"]]
        assert task["documents"] == 6 and task["before"] == pytest.approx(measured_loss(lm, own, 16).mean, rel=1e-5)
    for when in ("before", "after"):
        assert row[when] == pytest.approx(sum(task[when] for task in row["tasks"]) / 2)
    first, second = row["tasks"]
    row.update(before=2.0, after=1.5)
    first.update(before=1.0, after=1.25)
    second.update(before=3.0, after=1.75)
    assert [warning for warning in receipt_warnings(recipe, applied) if "raised" in warning] == [
        "activation_aware_svd raised the loss of the 6 calibration documents of first from 1 to 1.25 nats, though not"
        " that of all: what helps one task may harm another"
    ]
    first.update(before=10.6201, after=10.6209)
    (told,) = [warning for warning in receipt_warnings(recipe, applied) if "raised" in warning]
    assert "from 10.62 to 10.621 nats" in told


def test_every_recipe_that_is_not_bound_by_a_budget_is_held_to_the_rule() -> None:
    assert set(CALIBRATED) - BY_BUDGET.keys() == {
        "ablation-prune",
        "eigenprune-greedy",
        "laser-compose",
        "laser-gradient",
        "laser-search",
        "sfsd-surgical",
    }
    for name, setting in BY_BUDGET.items():
        assert getattr(parse_recipe(name).steps[0], setting) is not None


BRIEF = "training.keeping_epochs=1,training.pruning_times=1,training.pruning_epochs=1,training.post_epochs=1"


@pytest.mark.slow
@pytest.mark.parametrize("name", CALIBRATED)
def test_no_recipe_leaves_the_embedded_model_worse_unless_its_budget_forces_it(name: str, demo_documents) -> None:
    lm, documents = demo_documents
    changes = BRIEF if name == "basis-selection" else "calibration.samples=24"
    changes += ",masks.steps=4" if name == "policy-prune" else ""
    check_rule(lm, name, changes, drawing(documents))


@pytest.fixture(scope="module")
def demo_documents():
    from harness_ext.calibration.documents import PromptSettings, draw_documents
    from harness_ext.demo import demo_path
    from harness_ext.lm_eval_adapter.backend import RecipeLM
    from harness_ext.lm_eval_adapter.task_index import task_manager
    from harness_ext.recipe.settings import Calibration

    tasks = task_manager().load(["int_mult"])["tasks"]
    (drawn,) = draw_documents(Calibration(task=("int_mult",), samples=24), tasks, set(), PromptSettings())
    return RecipeLM(str(demo_path()), device="cpu"), list(drawn.documents)


@pytest.fixture(scope="module")
def trained(smollm2: Path, shared: Path):
    """The trained model of 135M parameters, and 24 documents of WikiData."""
    from harness_ext.lm_eval_adapter.backend import RecipeLM

    items = shared / "data" / "real_tasks" / "wikidata" / "train.jsonl"
    rows = [json.loads(line) for line in items.read_text(encoding="utf-8").splitlines()]
    documents = [
        LabelledDocument("wikidata", row["query"], f" {row['answer'].strip()}", row["query"])
        for row in random.Random(0).sample(rows, 24)
    ]
    return RecipeLM(str(smollm2), device="cpu", dtype="float32"), documents


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.long if name in MINUTES else pytest.mark.slow) for name in CALIBRATED],
)
def test_no_recipe_leaves_a_trained_model_worse_unless_its_budget_forces_it(name: str, trained) -> None:
    """Those that are quick, on the whole model; the others on three layers, among them the one of the largest
    activations.
    """
    lm, documents = trained
    quick = ("ablation-prune", "eigenprune", "eigenprune-released")
    changes = "calibration.batch_size=12" if name in quick else "layers=[10,11,12],calibration.batch_size=12"
    check_rule(lm, name, f"{changes},{BRIEF}" if name == "basis-selection" else changes, drawing(documents))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["ablation-prune", "eigenprune-greedy"])
def test_what_layer_11_holds_is_found(recipe: str, trained) -> None:
    """A removal in layer 11 alone lowers the answers' perplexity by a third; it takes means without sink tokens, whose
    inputs there are a thousand times larger than the others'.
    """
    lm, documents = trained
    applied = lm.apply(parse_recipe(f"{recipe}:layers=[11]"), drawing(documents))
    (row,) = applied.losses
    lm.undo()
    assert row["after"] < row["before"] - 0.2
