"""What plans expect to take, against what applying takes; and how they are told."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from harness_ext.editing.plan import TOKENS, plan
from harness_ext.editing.plan_measurement import (
    MeasuredEdit,
    _carried_on,
    _Measured,
    bytes_on_trial,
    measured_edit,
)
from harness_ext.editing.plan_memory import Held, held_of
from harness_ext.editing.plan_timing import live_bytes
from harness_ext.errors import UserError
from harness_ext.methods import registered_methods
from harness_ext.model.checkpoint import read_checkpoint
from harness_ext.recipe.recipe import parse_recipe, recipe_from, shipped_names

DATA_FREE = ("svd:keep.rank=3", "laser", "magnitude", "noise", "random-subspace", "identity", "bottom-k")


def no_documents(calibration):
    pytest.fail("no document was to be asked for")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", DATA_FREE)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_memory_is_what_the_edits_hold(make_lm, make_model, recipe: str, dtype: str) -> None:
    planned = plan(parse_recipe(recipe), read_checkpoint(str(make_model("llama", dtype=dtype))))
    lm = make_lm("llama", dtype=dtype)
    held = live_bytes(lambda: lm.apply(parse_recipe(recipe), no_documents))
    # The largest matrix has 960 numbers; next to it, a generator's state and the like count.
    assert held / 1.5 - 4096 < planned.peak_bytes < 1.5 * held + 4096


def test_live_bytes_are_those_held_at_once_and_not_what_was_there() -> None:
    given = torch.ones(1000)

    def work() -> None:
        for _ in range(5):
            doubled = given.view(10, 100).double()
            del doubled
        held = given * 2
        held.add_(1)

    assert live_bytes(work) == 8000


def test_live_bytes_have_what_a_decomposition_works_in() -> None:
    square = torch.eye(100, dtype=torch.float64)
    assert live_bytes(lambda: torch.linalg.eigh(square)) == 8 * (100**2 + 100 + 2 * 100**2 + 6 * 100 + 1)
    tall = torch.ones(200, 50)
    held = live_bytes(lambda: torch.linalg.svd(tall, full_matrices=False))
    # The copy that it destroys is as large as the matrix.
    assert held >= 4 * (2 * 200 * 50 + 50 + 50**2 + 4 * 50**2 + 7 * 50)


def test_time_is_carried_on_by_square_and_cube() -> None:
    def seconds(shape: tuple[int, int]) -> float:
        return 2e-9 * shape[0] * shape[1] + 3e-12 * shape[0] * shape[1] * min(shape)

    shapes, full = ((128, 256), (256, 512)), (4096, 8192)
    found = [_Measured(shape, seconds(shape), 4 * shape[0] * shape[1]) for shape in shapes]
    carried = _carried_on(found, full, decomposes=True)
    assert carried.seconds == pytest.approx(seconds(full)) and not carried.exact
    assert carried.bytes == 4 * full[0] * full[1]
    by_square = _carried_on(found, full, decomposes=False)
    assert by_square.seconds == pytest.approx(seconds(shapes[1]) * 256)
    exact = _carried_on([*found, _Measured(full, 1.0, 5)], full, decomposes=True)
    assert exact == MeasuredEdit(1.0, 5, True)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in shipped_names() if name != "baseline"])
def test_every_shipped_recipe_can_be_estimated(make_model, name: str) -> None:
    estimate = plan(parse_recipe(name), read_checkpoint(str(make_model("llama")))).estimate
    assert 0 < estimate.low < estimate.seconds < estimate.high and estimate.peak_bytes > 0
    for step in estimate.steps:
        learns = step.documents > 0
        assert learns == (step.passes.forward > 0) == (step.calibrating_seconds > 0)


def test_blocks_in_training_hold_one_layer_at_a_time(make_model) -> None:
    found = {}
    for loss in ("text", "blocks"):
        recipe = parse_recipe(f"svd:heal.loss={loss},heal.steps=32,heal.documents=64")
        found[loss] = plan(recipe, read_checkpoint(str(make_model("llama")))).estimate.steps[1]
    assert found["blocks"].peak_bytes < found["text"].peak_bytes
    # 32 batches of 16 documents are 8 times the 64, through two factors of full rank; and once more of each model
    assert found["text"].passes[:2] == (2 + 16, 16) and found["blocks"].passes[:2] == (2 + 16 + 2, 16)
    assert found["blocks"].passes.layer_by_layer == 18


def test_an_edit_of_a_step_is_measured_on_its_own_shape() -> None:
    step = parse_recipe("svd:keep.rank=40").steps[0]
    small = measured_edit(step, "x.weight", (48, 80), "float32", "cpu")
    assert small.exact and small.bytes > 4 * 48 * 80
    assert registered_methods()[step.method].takes_keep


def test_a_solution_by_a_cholesky_factor_is_worked_out_in_copies() -> None:
    root, right = torch.eye(50), torch.ones(50, 20)
    assert live_bytes(lambda: torch.cholesky_solve(right, root)) >= 4 * (2 * 50 * 20 + 50**2)


def test_an_edit_by_few_tokens_completes_its_directions() -> None:
    step = parse_recipe("svd-llm:calibration.task=int_mult").steps[0]
    enough, few = (measured_edit(step, "x.weight", (48, 80), "float32", "cpu", tokens) for tokens in (48, 5))
    assert enough == measured_edit(step, "x.weight", (48, 80), "float32", "cpu")
    # What is left of the matrix, in fp64, and its decomposition.
    assert few.bytes > enough.bytes + 2 * 8 * 48 * 80


def test_prime_units_take_a_moment_of_the_others() -> None:
    steps = [parse_recipe(f"sola:calibration.task=int_mult,prime={prime}").steps[0] for prime in (0.0, 0.15)]
    none, some = (measured_edit(step, "x.weight", (24, 240), "float32", "cpu").bytes for step in steps)
    # 36 of 240 units are prime.
    assert some > none + 8 * 204**2 / 2


def test_a_search_of_ranks_holds_a_whole_decomposition() -> None:
    shape = (96, 384)
    held = bytes_on_trial("activation_aware_svd", shape, "float32", "cpu")
    # In fp64: the matrix, with its columns scaled, and what gesdd makes and works in.
    assert held > 8 * (4 * 96 * 384 + 5 * 96**2)
    assert bytes_on_trial("activation_aware_svd", (960, 3840), "float32", "cpu") > 20 * held


def held(make_model, specification: str, **changes) -> Held:
    """What the first step of a recipe holds, of a plan with these changes."""
    planned = replace(plan(parse_recipe(specification), read_checkpoint(str(make_model("llama")))), **changes)
    return held_of(planned, 0, planned.recipe.steps[0])


def test_layers_that_share_a_factor_wait_for_each_other(make_model) -> None:
    asked = "basis-sharing:calibration.task=int_mult,layers_in_group"
    one, two = (held(make_model, f"{asked}={count}") for count in (1, 2))
    # Queries, keys, values, gates and ups of the first layer, whose inputs are of the model's width.
    assert two.kept - one.kept == 5 * 8 * 24**2 and two.learning == one.learning


def test_factors_come_on_top_where_a_checkpoint_is_mapped(make_model) -> None:
    planned = plan(parse_recipe("svd:factored=true"), read_checkpoint(str(make_model("llama"))))
    factors = sum(4 * item.parameters_after for item in planned.matrices if not item.stays_dense)
    assert factors > 0
    assert held(make_model, "svd:factored=true") == (factors, 0)
    assert held(make_model, "svd:factored=true", device="cuda") == held(make_model, "svd") == (0, 0)
    learns = "svd-llm:calibration.task=int_mult"
    assert held(make_model, f"{learns},factored=true").kept > held(make_model, learns).kept


def test_a_search_that_tries_plans_keeps_factors_and_makes_all_edits(make_model) -> None:
    plans, none = (held(make_model, f"lems:calibration.task=int_mult,param_fraction={share}") for share in (0.8, 1.0))
    planned = plan(parse_recipe("lems"), read_checkpoint(str(make_model("llama"))))
    whole = sum(4 * item.parameters_before for item in planned.matrices)
    assert plans.kept - none.kept == whole and plans.learning >= whole


def test_matrices_that_are_alike_are_one_group(make_model) -> None:
    planned = plan(
        parse_recipe("svd:keep.rank_fraction=0.5,matrices=[attn, 'model.embed_tokens.weight']"),
        read_checkpoint(str(make_model("llama"))),
    )
    found = {group.what: (group.number, group.shape, group.rank_after) for group in planned.groups}
    assert found == {
        "model.embed_tokens.weight": (1, (43, 24), 12),
        "q_proj": (3, (24, 24), 12),
        "k_proj": (3, (12, 24), 6),
        "v_proj": (3, (12, 24), 6),
        "o_proj": (3, (24, 24), 12),
    }
    assert sum(group.number for group in planned.groups) == len(planned.matrices)


@pytest.mark.slow
def test_experts_are_counted_not_listed(lm_eval, make_model) -> None:
    ran = lm_eval("recipes", "plan", "svd:matrices=[experts]", "--model_args", f"pretrained={make_model('mixtral')}")
    assert ran.code == 0, ran.err
    (line,) = [line for line in ran.out.splitlines() if "gate_proj" in line]
    assert line.split()[:5] == ["12", "x", "gate_proj", "expert", "*"]


@pytest.mark.slow
def test_json_has_what_the_lines_say(lm_eval) -> None:
    asked = ("recipes", "plan", "svd-llm:keep.rank=2", "--model_args", "pretrained=demo", "--tokens", "12")
    lines, ran = lm_eval(*asked), lm_eval(*asked, "--json")
    assert ran.code == 0 == lines.code, ran.err
    data = json.loads(ran.out)
    assert data["device"] == "cpu" and data["tokens_per_document"] == 12
    assert data["seconds"]["low"] < data["seconds"]["expected"] < data["seconds"]["high"]
    (step,) = data["steps"]
    assert (step["documents"], step["method"]) == (256, "feature_space")
    assert data["parameters"]["after"] < data["parameters"]["before"]
    for group in data["matrices"]:
        assert f"{group['number']} x {group['what']}" in lines.out
    assert "256 documents of 12 tokens" in lines.out and "beyond the loaded model" in lines.out


@pytest.mark.parametrize("name", ["zero-sum", "lems", "strs", "d-rank", "zero-sum-staged"])
def test_a_search_of_ranks_saves_what_its_budget_asks_for(make_model, name: str) -> None:
    checkpoint = read_checkpoint(str(make_model("llama", dtype="float16")))
    planned = plan(parse_recipe(f"{name}:param_fraction=0.7"), checkpoint)
    whole = sum(item.parameters_before for item in planned.matrices)
    saved = planned.parameters - planned.parameters_after
    assert 0 <= saved - 0.3 * whole < 1 and planned.stored_bytes - planned.bytes_after == 2 * saved
    assert plan(parse_recipe("laser-search"), checkpoint).parameters_after == planned.parameters
    healed = plan(parse_recipe(f"{name}:param_fraction=0.7,heal.steps=2"), checkpoint)
    assert healed.parameters_after == planned.parameters_after


def test_a_budget_is_not_counted_where_a_later_step_edits_again(make_model) -> None:
    checkpoint = read_checkpoint(str(make_model("llama")))
    first, second = parse_recipe("zero-sum").steps[0], parse_recipe("svd:matrices=[q_proj],layers=[0]").steps[0]
    steps = [one.model_dump(mode="json", exclude_unset=True) for one in (first, second)]
    planned = plan(recipe_from({"name": "both", "steps": steps}, origin="both"), checkpoint)
    again = [item for item in planned.matrices if item.step == 1]
    assert planned.parameters - planned.parameters_after == sum(
        item.parameters_before - item.parameters_after for item in again
    )


@pytest.mark.slow
def test_searches_are_planned_too(lm_eval) -> None:
    ran = lm_eval("recipes", "plan", "laser-search", "--model_args", "pretrained=demo", "--json")
    data = json.loads(ran.out)
    assert data["searches"][0]["trials"] == 48 and data["steps"][0]["passes"]["at_most"]
    assert data["steps"][0]["calibrating_seconds"] > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--device", "nowhere"), "--device nowhere is no device that torch knows"),
        (("--tokens", "0"), "--tokens 0 must be 1 or more"),
    ],
)
def test_mistakes(lm_eval, arguments: tuple[str, ...], words: str) -> None:
    ran = lm_eval("recipes", "plan", "svd", "--model_args", "pretrained=demo", *arguments)
    assert ran.code == 2 and words in ran.err and "Traceback" not in ran.err


def test_a_device_that_is_not_there_is_told(make_model) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    planned = plan(parse_recipe("svd"), read_checkpoint(str(make_model("llama"))), "cuda")
    with pytest.raises(UserError, match="--device cuda cannot be used here"):
        _ = planned.seconds


def test_the_help_names_the_default(lm_eval) -> None:
    assert f"(default: {TOKENS})" in lm_eval("recipes", "plan", "--help").out
