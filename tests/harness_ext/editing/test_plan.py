"""Plans against what the run then does."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

import harness_ext
from harness_ext.cli.plan import plan_data, plan_lines
from harness_ext.editing.plan import plan
from harness_ext.editing.plan_components import place_of
from harness_ext.errors import BudgetTooSmall, UserError
from harness_ext.model.checkpoint import check_local, read_checkpoint
from harness_ext.model.model_identity import identity
from harness_ext.model.safetensors_header import read_header
from harness_ext.recipe.recipe import parse_recipe, recipe_from
from tests.harness_ext.search.plain_search import documents_for, drawing


def no_documents(calibration):
    pytest.fail("no document was to be asked for")


@pytest.mark.parametrize(
    "specification",
    [
        "svd:keep.rank=3",
        "laser",
        "svd:keep.param_fraction=0.4,matrices=[attn]",
        "identity",
        "random-subspace:per_head=true,keep.rank=2",
    ],
)
def test_a_plan_tells_what_the_run_does(make_lm, make_model, family: str, specification: str) -> None:
    recipe = parse_recipe(specification)
    planned = plan(recipe, read_checkpoint(str(make_model(family))))
    lm = make_lm(family)
    applied = lm.apply(recipe, no_documents)
    assert [(item.matrix.parameter, item.matrix.shape, item.rank_after) for item in planned.matrices] == [
        (record.name, record.shape, record.rank_after) for record in applied.records
    ]
    totals = lm.totals()
    assert (planned.parameters, planned.parameters_after) == (totals["parameters_before"], totals["parameters_after"])
    assert (planned.stored_bytes, planned.bytes_after) == (totals["bytes_before"], totals["bytes_after"])


IMPOSSIBLE = [
    ("least-error:last_blocks=4", "last_blocks: 4 layers are asked for, and the chosen matrices are in 3"),
    ("last-blocks:last_blocks=1,param_fraction=0.5", "the budget is 0.5: raise last_blocks or param_fraction"),
    ("d-rank:align=20,param_fraction=0.5", "too small for a rank of 20 in every matrix: raise it, lower align,"),
    ("lems:least=0.9,param_fraction=0.5", "too small: the smallest ranks allowed leave"),
    ("strs:fractions=[0.9],param_fraction=0.5", "too small: the smallest fractions leave"),
    ("zero-sum:align=20,param_fraction=0.5", "too small for a rank of 20 in every matrix"),
    ("zero-sum-staged:min_fraction=0.9,param_fraction=0.5", "too small: min_fraction leaves"),
    ("modegpt:matrices=[v_proj,o_proj]", "are both named, and its values would be mixed twice"),
    ("modegpt:rule=cumulative-variance", "the rule cumulative-variance is of the variance of hidden units"),
]


@pytest.mark.parametrize(("specification", "words"), IMPOSSIBLE)
def test_what_a_search_cannot_meet_is_told_by_the_plan_and_before_the_run_learns(
    make_lm, make_model, monkeypatch, specification: str, words: str
) -> None:
    recipe = parse_recipe(specification)
    with pytest.raises(UserError, match=words) as told:
        plan(recipe, read_checkpoint(str(make_model("llama"))))
    assert str(told.value).count(recipe.place(0)) == 1
    monkeypatch.setattr("harness_ext.search.runner.CandidateEvaluator", lambda *_, **__: pytest.fail("it learned"))
    with pytest.raises((UserError, BudgetTooSmall), match=words):
        make_lm("llama").apply(recipe, drawing(documents_for(make_lm("llama"), 8)))


def steps_of(*specifications: str) -> list:
    return [
        step.model_dump(mode="json", exclude_none=True)
        for specification in specifications
        for step in parse_recipe(specification).steps
    ]


@pytest.mark.parametrize(
    "specifications",
    [
        ("svd:keep.rank=3", "modegpt-mlp"),
        ("modegpt-mlp", "svd:keep.rank=3"),
        ("modegpt-mlp", "svd:keep.rank=3,matrices=[up_proj]"),
        ("svd:keep.rank=3,factored=always", "a3"),
        ("svd-llm", "modegpt-vo"),
        ("modegpt-qk", "policy-prune:masks.steps=0"),
        ("policy-prune:masks.steps=0", "modegpt-qk"),
        ("modegpt-vo", "policy-prune:masks.steps=0"),
        ("modegpt-qk", "modegpt-qk:unit_fraction=0.4"),
        ("sfsd",),
        ("eigenprune:per_head=true",),
        ("sfsd", "sfsd:layers=[0]"),
    ],
)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_plan_of_several_steps_counts_what_stands(make_lm, make_model, family: str, specifications) -> None:
    recipe = recipe_from({"name": "several", "steps": steps_of(*specifications)}, origin="several")
    planned = plan(recipe, read_checkpoint(str(make_model(family))))
    lm = make_lm(family)
    lm.apply(recipe, drawing(documents_for(lm, 8)))
    totals, added = lm.totals(), lm.weights.added()
    # A plan is of the matrices: biases that a step makes are not in it.
    numbers, held = sum(one.numel() for one in added), sum(one.numel() * one.element_size() for one in added)
    assert (planned.parameters, planned.parameters_after + numbers) == (
        totals["parameters_before"],
        totals["parameters_after"],
    )
    assert (planned.stored_bytes, planned.bytes_after + held) == (totals["bytes_before"], totals["bytes_after"])


@pytest.mark.parametrize("rule", ["block-influence", "angular", "cumulative-variance,matrices=[down_proj]"])
@pytest.mark.parametrize("fraction", [0.5, 0.8])
def test_a_mean_share_of_units_bounds_what_stays(make_lm, make_model, rule: str, fraction: float) -> None:
    recipe = parse_recipe(f"modegpt:unit_fraction={fraction},rule={rule}")
    planned, lm = plan(recipe, read_checkpoint(str(make_model("llama")))), make_lm("llama")
    lm.apply(recipe, drawing(documents_for(lm, 8)))
    after = lm.totals()["parameters_after"]
    least = planned.parameters - 1.5 * (planned.parameters - planned.parameters_after)  # layers round down
    assert least <= after <= planned.parameters_after < planned.parameters
    assert {item.rank_after for item in planned.matrices} == {None}


def test_a_mean_share_of_units_is_told_and_bounds_nothing_where_layers_differ(make_model) -> None:
    checkpoint, recipe = read_checkpoint(str(make_model("llama"))), parse_recipe("modegpt:matrices=[down_proj]")
    mean = "unit_fraction 0.8 is the share that stays, in the mean over layers"
    assert mean in " ".join(plan_lines(plan(recipe, checkpoint), "tiny"))
    wide = {
        name: tensor._replace(shape=tuple(2 * size if size == 40 else size for size in tensor.shape))
        for name, tensor in checkpoint.tensors.items()
        if "layers.0.mlp" in name
    }
    planned = plan(recipe, replace(checkpoint, tensors={**checkpoint.tensors, **wide}))
    assert planned.parameters_after == planned.parameters
    assert mean in " ".join(plan_lines(planned, "tiny"))
    assert mean not in " ".join(plan_lines(plan(parse_recipe("modegpt:rule=uniform"), checkpoint), "tiny"))


@pytest.mark.parametrize("recipe", ["modegpt-mlp", "modegpt-vo", "a3", "snp", "modegpt:rule=uniform"])
def test_what_is_left_of_a_component_is_told_in_its_row(make_model, recipe: str) -> None:
    planned = plan(parse_recipe(recipe), read_checkpoint(str(make_model("llama"))))
    lines, data = list(plan_lines(planned, "tiny")), plan_data(planned, "tiny")
    for group, told in zip(planned.groups, data["matrices"], strict=True):
        after, (item, *_) = group.shape_after, (one for one in planned.matrices if one.matrix.role == group.what)
        lost = dict(item.lost)[place_of(item.matrix)].numbers
        assert math.prod(after) == math.prod(group.shape) - lost == group.parameters_after < math.prod(group.shape)
        assert told["shape_after"] == list(after)
        shapes = "{} x {} -> {} x {}".format(*group.shape, *after)
        assert any(shapes in line and line.endswith(f"-> {group.parameters_after:,}") for line in lines)


@pytest.mark.parametrize("recipe", ["modegpt", "policy-prune", "wanda-sp"])
def test_a_width_that_only_the_run_tells_is_not_guessed(make_model, recipe: str) -> None:
    planned = plan(parse_recipe(recipe), read_checkpoint(str(make_model("llama"))))
    assert {group.shape_after for group in planned.groups} == {None}
    (parameters,) = (line for line in plan_lines(planned, "tiny") if line.startswith("  parameters "))
    at_most = "at most " if recipe == "modegpt" else ""
    assert f"  parameters  {planned.parameters:,} -> {at_most}{planned.parameters_after:,} (" in parameters


def test_a_rank_that_follows_from_the_spectrum_is_not_guessed(make_model) -> None:
    planned = plan(parse_recipe("svd:keep.energy=0.9"), read_checkpoint(str(make_model("llama"))))
    assert {item.rank_after for item in planned.matrices} == {None}
    assert planned.parameters_after == planned.parameters


def test_the_ranks_of_eigenprune_follow_from_its_fraction(make_model) -> None:
    planned = plan(
        parse_recipe("eigenprune:matrices=[up_proj],fraction=0.25"), read_checkpoint(str(make_model("llama")))
    )
    assert {item.rank_after for item in planned.matrices} == {18}
    assert planned.calibration_documents == 160
    # A share of all together falls on each as the documents will have it, and what is tried out may be made or not.
    for recipe in ("eigenprune-released", "ablation-prune"):
        planned = plan(parse_recipe(recipe), read_checkpoint(str(make_model("llama"))))
        assert {item.rank_after for item in planned.matrices} == {None}


def test_a_header_is_read_like_the_library_reads_it(make_model) -> None:
    from safetensors import safe_open

    path = make_model("gpt2", dtype="bfloat16") / "model.safetensors"
    found = read_header(path)
    with safe_open(path, "pt") as file:
        expected = {
            name: (tuple(file.get_slice(name).get_shape()), file.get_slice(name).get_dtype())
            for name in file.keys()  # noqa: SIM118 - no dictionary
        }
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in found.items()} == expected


def test_the_identity_of_a_folder_is_that_of_its_contents(make_model, tmp_path: Path) -> None:
    import shutil

    source = make_model("llama", seed=3)
    shutil.copytree(source, tmp_path / "copy")
    assert identity(str(tmp_path / "copy")) == identity(str(source)) != identity(str(make_model("llama", seed=4)))
    (tmp_path / "copy" / "notes.md").write_text("not part of the model")
    assert identity(str(tmp_path / "copy")) == identity(str(source))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "truncated or not a safetensors file"),
        (b"\xff" * 64, "truncated or not a safetensors file"),
        (b"\x04" + b"\0" * 7 + b"[{}]", "cannot be read"),
        (b"\x05" + b"\0" * 7 + b"{nope", "cannot be read"),
    ],
)
def test_a_file_that_is_no_safetensors_file(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_header(path)


def test_an_index_cannot_point_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "../../etc/passwd"}})
    )
    with pytest.raises(UserError, match=r"index.json names '../../etc/passwd', which is no file of its folder"):
        check_local(str(tmp_path / "model"))


def test_a_plan_says_what_becomes_of_offloaded_weights(lm_eval) -> None:
    def told(recipe: str, **placement: object) -> str | None:
        return harness_ext.plan(recipe, pretrained="demo", **placement).if_offloaded

    by_files = "where memory is short, a copy of the checkpoint's files is edited and loaded in the model's place"
    assert told("svd", parallelize=True) == told("svd", device_map="auto", max_memory={"cpu": "1MB"}) == by_files
    assert told("svd") is told("svd", device_map="cpu") is told("svd", parallelize=False) is None
    refused = "where memory is short, a run is refused: "
    for recipe, reason in (("svd-llm", "feature_space learns from documents"), ("svd:factored=true", "it computes")):
        assert str(told(recipe, parallelize=True)).startswith(f"{refused}{reason}")
    said = lm_eval("recipes", "plan", "svd:matrices=[q_proj]", "--model_args", "pretrained=demo,parallelize=True")
    assert said.code == 0 and f"  offload     {by_files}\n" in said.out, said.err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("svd:matrices=[mlp],per_head=true,keep.rank=2", "mlp"),
        ("svd:matrices=[up_proj,down_proj],per_head=true,keep.rank=2", "up_proj, down_proj"),
        ("least-error:matrices=[up_proj],per_head=true", "up_proj"),
        ("svd:matrices=[up_proj,q_proj],per_head=true,keep.rank=2", None),
        ("svd:matrices=[mlp],keep.rank=2", None),
    ],
)
def test_a_step_by_heads_without_attention_matrices_is_noted_by_plan_and_run(make_lm, words: str, named) -> None:
    lm, recipe = make_lm("llama"), parse_recipe(words)
    planned = plan(recipe, read_checkpoint(lm.loaded_from))
    told = [] if named is None else [f"per_head splits attention matrices into their heads, and {named} names none"]
    assert [note.partition(":")[0] for note in planned.notes] == told
    assert all(any(note in line for line in plan_lines(planned, "tiny")) for note in planned.notes)
    assert plan_data(planned, "tiny")["notes"] == list(planned.notes)
    applied = lm.apply(recipe, drawing(documents_for(lm)))
    assert [note for note in applied.notes if "per_head" in note] == list(planned.notes)
