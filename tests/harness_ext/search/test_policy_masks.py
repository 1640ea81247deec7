"""Masks of units on whole models: a mask on trial is the edit that is made, budgets are met, held-out documents are
learned nothing from, and what was spent is told.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from harness_ext.calibration.context import DocumentBatches
from harness_ext.calibration.loss import mean_loss
from harness_ext.editing.controls import NoControl, control_recipe, why_not
from harness_ext.editing.plan import plan
from harness_ext.editing.warnings import receipt_warnings
from harness_ext.errors import UserError
from harness_ext.model.checkpoint import read_checkpoint
from harness_ext.model.seeding import generator_named
from harness_ext.recipe.recipe import parse_recipe, recipe_from
from harness_ext.recipe.settings import Masking
from harness_ext.search.policy_masks import MaskSearch, split_documents, units_among
from harness_ext.storage.resume import ResumeState
from tests.harness_ext.search.plain_search import documents_for, drawing
from tests.tiny_models import outputs

BRIEF = "policy-prune:masks.steps=6,masks.learning_rate=0.5,masks.unit_fraction=0.6,calibration.batch_size=4"
HEADS = ("llama", "gpt2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("llama-biased", "falcon-grouped")))


def receipt_of(applied: Any) -> dict[str, Any]:
    return {"matrices": [record.to_json() for record in applied.records], "searches": applied.searches}


def stages_of(applied: Any) -> dict[str, Any]:
    return {row["stage"]: row for row in applied.log if row["stage"] != "step"}


def columns_of(applied: Any) -> dict[str, int]:
    readers = [record for record in applied.records if record.role in ("o_proj", "down_proj")]
    return {one.name: one.shape[1] if one.columns_kept is None else one.columns_kept for one in readers}


@pytest.mark.parametrize("family", HEADS)
def test_a_mask_on_trial_is_the_edit_that_is_made(make_lm: Any, family: str) -> None:
    lm = make_lm(family)
    digest, recipe = lm.weights.digest(), parse_recipe(BRIEF)
    applied = lm.apply(recipe, drawing(documents_for(lm, 8)))
    edited, size = outputs(lm.model), lm.totals()["parameters_after"]
    kept = {matrix.key: lm.weights.values(matrix).any(0) for matrix in lm.weights.layout.select(recipe.steps[0])}
    lm.undo()
    assert lm.weights.digest() == digest
    matrices = lm.weights.layout.select(recipe.steps[0])
    units = units_among(lm.weights.layout, matrices, recipe.steps[0].masks)
    widths = {matrix.key: matrix.shape[1] // units.counts[matrix.key] for matrix in matrices}
    mask = torch.cat([kept[key].reshape(-1, width).all(1) for key, width in widths.items()])
    with units.masked(lm.model, mask):
        torch.testing.assert_close(outputs(lm.model), edited)
    assert not any(module._forward_pre_hooks for module in lm.model.modules())
    # As many heads, and as many hidden units, as the budgets say, over all layers.
    heads, hidden = (
        lm.weights.layout.heads.key_values * 3,
        sum(one.shape[1] for one in matrices if one.role != "o_proj"),
    )
    per_head = lm.weights.layout.heads.width * lm.weights.layout.heads.queries // lm.weights.layout.heads.key_values
    found = columns_of(applied)
    assert sum(
        count for name, count in found.items() if name in {one.parameter for one in matrices if one.role == "o_proj"}
    ) == per_head * int(0.6 * heads)
    assert sum(found.values()) == per_head * int(0.6 * heads) + int(0.6 * hidden)
    assert stages_of(applied)["last mask"]["units"] == int(0.6 * heads) + int(0.6 * hidden)
    # As the smaller model would be counted.
    planned = plan(recipe, read_checkpoint(lm.loaded_from))
    assert planned.parameters_after == size < planned.parameters


def test_the_search_is_the_formula_with_plain_losses(make_lm: Any) -> None:
    """The whole of it again in numpy, with its draws and losses of plain passes under zeroed weights."""
    lm = make_lm("llama", dtype="float64")
    recipe = parse_recipe(BRIEF)
    documents = documents_for(lm, 8)
    applied = lm.apply(recipe, drawing(documents))
    lm.undo()
    settings, matrices = recipe.steps[0].masks, lm.weights.layout.select(recipe.steps[0])
    searched = split_documents(documents, settings, 0).searched
    order = list(searched)
    random.Random("0:0").shuffle(order)
    units = units_among(lm.weights.layout, matrices, settings)
    search_rows = [row for row in applied.log if row["stage"] == "step"]
    assert [row["documents"] for row in search_rows] == [4, 2, 4, 2, 4, 2]
    start = MaskSearch(_context(lm, recipe), units, DocumentBatches(documents, 4))._first()
    probabilities = start.numpy().copy()
    for share in units.shares:
        probabilities[share.places] = _onto(probabilities[share.places], share.left)
    uniform = torch.rand((2, units.total), generator=generator_named("0 masks 0"), dtype=torch.float64).numpy()
    masks = uniform < probabilities
    losses = [_zeroed_loss(lm, units, mask, order[:4]) for mask in masks]
    assert search_rows[0]["losses"] == pytest.approx(losses, rel=1e-6)
    variance = probabilities * (1 - probabilities)
    sure = variance == 0
    direction = numpy.where(
        sure, 0, (losses[0] - losses[1]) / 2 * (1.0 * masks[0] - masks[1]) / numpy.sqrt(variance + sure)
    )
    stepped = probabilities - 0.5 * direction
    for share in units.shares:
        stepped[share.places] = _onto(stepped[share.places], share.left)
    assert search_rows[0]["expected_units"] == pytest.approx(stepped.sum(), rel=1e-6)


def _context(lm: Any, recipe: Any) -> Any:
    from harness_ext.calibration.context import StepContext
    from harness_ext.progress import Progress

    return StepContext(lm.editable, recipe.steps[0], 0, Progress())


def _onto(values: numpy.ndarray, budget: int) -> numpy.ndarray:
    shifts = numpy.linspace(0, max(values.max(), 0), 200_001) if numpy.clip(values, 0, 1).sum() > budget else [0.0]
    return next(made for made in (numpy.clip(values - shift, 0, 1) for shift in shifts) if made.sum() <= budget)


def _zeroed_loss(lm: Any, units: Any, mask: numpy.ndarray, documents: Any) -> float:
    for matrix, own in units.split(torch.tensor(mask)).items():
        (chosen,) = [one for one in units.matrices if one.key == matrix]
        columns = own.repeat_interleave(chosen.shape[1] // len(own))
        lm.weights.replace(chosen, lm.weights.read(chosen) * columns)
    found = mean_loss(lm, documents, 2)
    lm.undo()
    return found


@pytest.mark.slow
def test_nothing_is_learned_from_what_is_held_out(make_lm: Any) -> None:
    lm = make_lm("llama")
    documents, recipe = documents_for(lm, 12), parse_recipe(BRIEF)
    searched, held_out = split_documents(documents, recipe.steps[0].masks, 0)
    assert len(held_out) == 3 and len(searched) == 9 and not {*searched} & {*held_out}
    found = []
    for others in (held_out, held_out[:1] * 3):
        swapped = dict(zip((one.doc_hash for one in held_out), others, strict=True))
        applied = lm.apply(recipe, drawing([swapped.get(one.doc_hash, one) for one in documents]))
        found.append((columns_of(applied), [row["loss"] for row in applied.log], stages_of(applied)["last mask"]))
        lm.undo()
    (first, losses, last), (again, same, other) = found
    assert first == again and losses == same and last["held_out_loss"] != other["held_out_loss"]
    assert last["held_out_documents"] == 3


def test_of_every_task_some_documents_are_held_out() -> None:
    from harness_ext.calibration.documents import LabelledDocument

    documents = [LabelledDocument("ab"[n % 2], f"w{n}", " w1", str(n)) for n in range(20)]
    searched, held_out = split_documents(documents, Masking(held_out=0.3), 1)
    assert [one.task for one in held_out].count("a") == [one.task for one in held_out].count("b") == 3
    assert sorted([*searched, *held_out], key=documents.index) == documents
    assert split_documents(documents, Masking(held_out=0.3), 1) == (searched, held_out)
    assert split_documents(documents, Masking(held_out=0.3), 2) != (searched, held_out)
    assert split_documents(documents, Masking(held_out=0), 1).held_out == []


@pytest.mark.slow
def test_what_it_spent_is_told_and_planned(make_lm: Any) -> None:
    lm = make_lm("llama")
    documents, recipe = documents_for(lm, 12), parse_recipe(f"{BRIEF},calibration.samples=12,masks.draws=3")
    searched, held_out = split_documents(documents, recipe.steps[0].masks, 0)
    applied = lm.apply(recipe, drawing(documents))
    warnings = receipt_warnings(recipe, applied)
    stages = stages_of(applied)
    lm.undo()
    for part, name in ((searched, "loss"), (held_out, "held_out_loss")):
        assert stages["unedited"][name] == pytest.approx(mean_loss(lm, part, 4), rel=1e-5)
    last = stages["last mask"]
    # Six steps of three masks, on batches of 4, 4, 1, 4, 4 and 1; each of three measurements, and the statistics of 9.
    assert last["trials"] == 18 and last["forward_passes"] == round((18 * 3 + 3 * 12 + 9) / 12, 2)
    assert last["seed"] == 0 and last["exchanged"] >= 0
    passes = plan(recipe, read_checkpoint(lm.loaded_from)).estimate.steps[0].passes
    # Two more are the losses before and after; a plan takes all batches for whole ones.
    assert passes.forward == pytest.approx(2 + (18 * 4 + 3 * 12 + 9) / 12) and passes.backward == 0
    worse = last["held_out_loss"] >= stages["first mask"]["held_out_loss"]
    assert any("does not hold beyond its documents" in warning for warning in warnings) == worse


@pytest.mark.slow
def test_a_killed_search_goes_on_to_the_same_mask(make_lm: Any, tmp_path: Path, monkeypatch: Any) -> None:
    lm = make_lm("llama")
    documents, recipe = documents_for(lm, 8), parse_recipe(BRIEF)
    whole = lm.apply(recipe, drawing(documents))
    lm.undo()
    monkeypatch.setattr("harness_ext.search.policy_masks.KEEP_SECONDS", 0.0)
    keep, work, left = ResumeState.keep, ResumeState(tmp_path / "work"), 4

    class Killed(BaseException):
        """Ends a search as a signal would."""

    def killed(self: ResumeState, name: str, tensors: Any) -> None:
        nonlocal left
        left -= 1
        keep(self, name, tensors)
        if left == 0:
            raise Killed

    monkeypatch.setattr(ResumeState, "keep", killed)
    with pytest.raises(Killed):
        lm.apply(recipe, drawing(documents), resume=work)
    assert len(work.part("step-0").tensors("masks")["steps"]) == 4
    resumed = lm.apply(recipe, drawing(documents), resume=work)
    lm.undo()
    assert resumed.log == whole.log and left == -2
    assert [one.digest_after for one in resumed.records] == [one.digest_after for one in whole.records]


@pytest.mark.slow
def test_its_controls_are_the_first_mask_and_as_many_units_at_random(make_lm: Any) -> None:
    lm = make_lm("llama")
    documents, recipe = documents_for(lm, 8), parse_recipe(BRIEF)
    applied = lm.apply(recipe, drawing(documents))
    size = lm.totals()["parameters_after"]
    lm.undo()
    first = lm.apply(control_recipe("wanda-sp", recipe, receipt_of(applied)), drawing(documents))
    lm.undo()
    assert "last mask" not in stages_of(first) and stages_of(first)["first mask"] == stages_of(applied)["first mask"]
    control = control_recipe("random-subspace", recipe, receipt_of(applied))
    drawn = lm.apply(control, drawing(documents))
    assert columns_of(drawn) == columns_of(applied) and lm.totals()["parameters_after"] == size
    lm.undo()
    digests = [[one.digest_after for one in some.records] for some in (applied, first, drawn)]
    assert digests[0] != digests[2] != digests[1]
    again = control_recipe("random-subspace:seed=3", recipe, receipt_of(applied))
    assert (control.steps[0].seed, again.steps[0].seed) == (0, 3) and control.control_of == recipe.recipe_id
    with pytest.raises(NoControl, match="takes whole units away"):
        control_recipe("bottom-k", recipe, receipt_of(applied))
    assert why_not("shuffled-labels", recipe) is None and "no mask" in (why_not("wanda-sp", parse_recipe("svd")) or "")
    assert why_not("wanda-sp", parse_recipe("wanda-sp")) is not None


def test_a_control_takes_as_many_units_as_each_step_by_itself(make_lm: Any) -> None:
    """The receipt counts what both took; a control of both steps by that would take more than the recipe did."""
    lm = make_lm("llama")
    masks = {"start": "random", "steps": 0, "unit_fraction": 0.7}
    steps = [{"method": "policy_prune", "matrices": ["down_proj"], "masks": masks, "seed": seed} for seed in (1, 2)]
    recipe = recipe_from({"name": "twice", "steps": steps}, origin="twice")
    receipt = receipt_of(lm.apply(recipe, drawing(documents_for(lm, 4))))
    control = control_recipe("random-subspace", recipe, receipt)
    own = [dict(step.masks.columns) for step in control.steps if step.masks is not None]
    both = {
        record["name"]: record["columns_kept"]
        for record in receipt["matrices"]
        if record["step"] == 1 and record["role"] == "down_proj"
    }
    units = next(iter(lm.weights.layout.select(recipe.steps[0]))).shape[1]
    assert sum(own[0].values()) == sum(own[1].values()) == int(0.7 * units * len(both) + 1e-9)
    assert sum(both.values()) < sum(own[1].values())


def test_what_does_not_fit_the_model_is_refused(make_lm: Any) -> None:
    lm = make_lm("llama")
    documents = documents_for(lm, 4)
    names = [matrix.key for matrix in lm.weights.layout.select(parse_recipe("policy-prune").steps[0])]
    wrong = {**dict.fromkeys(names[1:], 12), "elsewhere": 1, names[2]: 7}
    columns = ",".join(f'"{key}": {count}' for key, count in wrong.items())
    recipe = parse_recipe(f"wanda-sp:masks.columns={{{columns}}}")
    with pytest.raises(UserError, match="elsewhere is not one of them") as told:
        lm.apply(recipe, drawing(documents))
    assert f"{names[0]} is missing" in str(told.value) and "keeps a multiple of 12 columns, 24 at most" in str(
        told.value
    )
    with pytest.raises(UserError, match=r"set matrices=\[down_proj\]"):
        lm.apply(parse_recipe("policy-prune:matrices=[mlp]"), drawing(documents))
    mixture = make_lm("mixtral")
    with pytest.raises(UserError, match="units of experts cannot be chosen"):
        mixture.apply(parse_recipe("policy-prune"), drawing(documents_for(mixture, 4)))


def test_everything_kept_is_the_model_itself_and_nothing_kept_is_told(make_lm: Any) -> None:
    lm = make_lm("gpt2")
    documents, digest = documents_for(lm, 4), lm.weights.digest()
    lm.apply(parse_recipe("wanda-sp:masks.unit_fraction=1.0"), drawing(documents))
    assert lm.weights.digest() == digest
    matrices = lm.weights.layout.select(parse_recipe("policy-prune").steps[0])
    columns = ",".join(f'"{one.key}": {0 if one.layer == 1 else one.shape[1]}' for one in matrices)
    applied = lm.apply(parse_recipe(f"wanda-sp:masks.columns={{{columns}}}"), drawing(documents))
    gone = [one for one in applied.records if one.layer == 1]
    assert gone and all(one.parameters_after == one.rank_after == 0 for one in gone)
    lm.undo()
    assert lm.weights.digest() == digest


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_models_keep_their_dtype(make_lm: Any, dtype: str) -> None:
    lm = make_lm("llama", dtype=dtype)
    lm.apply(parse_recipe(BRIEF), drawing(documents_for(lm, 6)))
    assert {value.dtype for value in lm.model.parameters()} == {getattr(torch, dtype)}
    assert bool(torch.isfinite(outputs(lm.model)).all())
