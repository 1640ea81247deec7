"""Low-rank layers: what they compute is what the dense edit computes, they are as small as the receipt says, and they
leave no trace.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest
import torch

from harness_ext.calibration.documents import CalibrationSet, LabelledDocument
from harness_ext.editing.plan import plan
from harness_ext.editing.warnings import receipt_warnings
from harness_ext.errors import RecipeError, UserError
from harness_ext.model.checkpoint import read_checkpoint
from harness_ext.model.low_rank import LowRankLinear, LowRankPart
from harness_ext.model.slices import places
from harness_ext.model.weights import model_digest
from harness_ext.recipe.recipe import parse_recipe, recipe_from
from harness_ext.runs.export import export

TOKENS = torch.arange(3, 15).reshape(2, 6)
DOCUMENTS = tuple(
    LabelledDocument("t", f"w{number} w{number + 1}", f" w{number + 2}", str(number)) for number in range(6)
)
MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe")


def documents(calibration):
    return [CalibrationSet("t", "train", 0, DOCUMENTS)]


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def bits(model) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[name].view(torch.uint8), other[name].view(torch.uint8)) for name in one
    )


def edited(lm, specification: str):
    """The logits of an edit, and what was done."""
    applied = lm.apply(parse_recipe(specification), documents)
    return logits(lm.model), applied


def assert_close(found: torch.Tensor, expected: torch.Tensor, share: float) -> None:
    """Within a share of the logits' norm."""
    assert (found - expected).norm() <= share * expected.norm()


# Of a mixture the attention: experts cannot be factored.
@pytest.mark.slow
@pytest.mark.parametrize("specification", ["svd:keep.rank=3", "svd:matrices=[attn],per_head=true,keep.rank=2"])
def test_outputs_are_those_of_the_dense_edit_and_undo_is_bit_exact(
    make_lm, every_family: str, specification: str
) -> None:
    check_outputs_and_undo(
        make_lm(every_family),
        (
            specification
            if every_family not in MIXTURES or "attn" in specification
            else f"{specification},matrices=[attn]"
        ),
    )


@pytest.mark.parametrize(
    "specification", ["svd:matrices=[k_proj,o_proj],layers=[1],keep.rank=2", "svd:keep.rank=0", "sfsd:keep.rank=4"]
)
def test_parts_nothing_at_all_and_biases(make_lm, plain_family: str, specification: str) -> None:
    check_outputs_and_undo(make_lm(plain_family), specification)


def check_outputs_and_undo(lm, specification: str) -> None:
    before, digest, said = bits(lm.model), lm.weights.digest(), logits(lm.model)
    dense, _ = edited(lm, specification)
    dense_totals = lm.totals()
    lm.undo()
    thin, applied = edited(lm, f"{specification},factored=true")
    assert any(record.stored == "factors" for record in applied.records)
    assert_close(thin, dense, 1e-5)
    assert lm.weights.digest() == model_digest(lm.model) != digest
    totals = lm.totals()
    assert totals == dense_totals
    assert sum(value.numel() for value in lm.model.parameters()) == totals["parameters_after"]
    assert sum(value.numel() * value.element_size() for value in lm.model.parameters()) == totals["bytes_after"]
    lm.undo()
    assert same_bits(before, bits(lm.model)) and torch.equal(logits(lm.model), said)
    assert lm.weights.digest() == digest == model_digest(lm.model)


@pytest.mark.parametrize(("dtype", "share"), [("bfloat16", 0.05), ("float16", 0.01), ("float64", 1e-12)])
def test_other_dtypes(make_lm, plain_family: str, dtype: str, share: float) -> None:
    lm = make_lm(plain_family, dtype=dtype)
    dense, _ = edited(lm, "svd:keep.rank=3")
    before = {name: value.dtype for name, value in lm.model.named_parameters()}
    lm.undo()
    digest = lm.weights.digest()
    thin, _ = edited(lm, "svd:keep.rank=3,factored=true")
    assert_close(thin.double(), dense.double(), share)
    assert {value.dtype for value in lm.model.parameters()} == set(before.values()) == {getattr(torch, dtype)}
    lm.undo()
    assert lm.weights.digest() == digest


@pytest.mark.slow
@pytest.mark.parametrize(
    "specification",
    [
        "svd:keep.rank=3",
        "svd:keep.rank_fraction=0.6",
        "svd:matrices=[k_proj,o_proj],keep.rank_fraction=0.6",
        "svd:matrices=[attn],per_head=true,keep.rank=2",
        "sfsd:keep.param_fraction=0.5",
    ],
)
def test_a_plan_tells_the_parameters_of_the_thin_model(make_lm, make_model, family: str, specification: str) -> None:
    recipe = parse_recipe(
        f"{specification},factored=true"
        + (",matrices=[attn]" if family in MIXTURES and "matrices" not in specification else "")
    )
    planned = plan(recipe, read_checkpoint(str(make_model(family))))
    lm = make_lm(family)
    lm.apply(recipe, documents)
    added = sum(value.numel() for value in lm.weights.added())
    assert (
        planned.parameters_after
        == sum(value.numel() for value in lm.model.parameters()) - added
        == lm.totals()["parameters_after"] - added
    )


def test_the_operations_are_those_of_the_layers_that_run(make_lm, plain_family: str) -> None:
    """Two for each number of a low-rank layer, counted here on the modules themselves."""
    lm = make_lm(plain_family)
    lm.apply(parse_recipe("svd:keep.rank=4,factored=true"), documents)
    multiplied = 0
    for module in lm.model.modules():
        if isinstance(module, LowRankLinear):
            multiplied += sum(value.numel() for name, value in module.named_parameters() if name != "bias")
        elif type(module).__name__ in ("Linear", "Conv1D"):
            multiplied += module.weight.numel()
    assert lm.totals()["flops_per_token_after"] == 2 * multiplied < lm.totals()["flops_per_token_before"]


@pytest.mark.parametrize(
    ("how", "asked", "kept", "thin"),
    [
        # 24 x 24 breaks even at 12, and factors count as faster up to nine tenths of its numbers, 10.8.
        ("always", 11, 11, True),
        ("always", 12, 12, False),
        ("true", 11, 8, True),
        ("true", 9, 8, True),
        ("true", 7, 7, True),
        ("true,keep.align=1", 11, 11, False),
        ("true,keep.align=5", 11, 10, False),
        ("true,keep.align=4", 11, 8, True),
        ("true", 12, 8, True),
        ("true", 24, 24, False),
        ("always,keep.align=8", 11, 8, True),
        ("false,keep.align=8", 11, 8, False),
        ("false", 11, 11, False),
    ],
)
def test_a_matrix_stays_dense_where_factors_would_not_pay(
    make_lm, make_model, how: str, asked: int, kept: int, thin: bool
) -> None:
    lm = make_lm("llama")
    recipe = parse_recipe(f"svd:matrices=[q_proj],layers=[0],keep.rank={asked},factored={how}")
    (record,) = lm.apply(recipe, documents).records
    assert (record.rank_asked, record.rank_after) == (asked, kept)
    assert (record.stored == "factors") == thin == isinstance(lm.model.model.layers[0].self_attn.q_proj, LowRankLinear)
    (planned,) = plan(recipe, read_checkpoint(str(make_model("llama")))).matrices
    assert (planned.rank_after, planned.parameters_after) == (kept, record.parameters_after)
    if not how.startswith("false"):
        assert lm.totals()["parameters_after"] == sum(value.numel() for value in lm.model.parameters())


def test_an_edit_that_is_not_of_low_rank_stays_dense(make_lm) -> None:
    lm = make_lm("llama")
    applied = lm.apply(parse_recipe("magnitude:factored=true"), documents)
    assert {record.stored for record in applied.records} == {"dense"}


def test_a_record_of_a_factored_matrix_tells_the_truth(make_lm) -> None:
    lm = make_lm("llama")
    (matrix,) = lm.weights.layout.select(parse_recipe("svd:matrices=[up_proj],layers=[0]").steps[0])
    original = lm.weights.read(matrix).double().numpy()
    (record,) = lm.apply(parse_recipe("svd:matrices=[up_proj],layers=[0],keep.rank=5,factored=true"), documents).records
    u, s, vh = numpy.linalg.svd(original, full_matrices=False)
    assert (record.stored, record.rank_after, record.parameters_after) == ("factors", 5, 5 * 64)
    assert record.relative_error == pytest.approx(numpy.sqrt((s[5:] ** 2).sum() / (s**2).sum()), abs=1e-5)
    assert record.energy_kept == pytest.approx((s[:5] ** 2).sum() / (s**2).sum(), abs=1e-5)
    assert record.digest_before != record.digest_after == lm.weights.digest_of(record.name)
    numpy.testing.assert_allclose(lm.weights.read(matrix).double().numpy(), (u[:, :5] * s[:5]) @ vh[:5], atol=1e-5)
    numpy.testing.assert_allclose(
        lm.model.model.layers[0].mlp.up_proj.weight.numpy(), (u[:, :5] * s[:5]) @ vh[:5], atol=1e-5
    )


def test_the_dense_weight_gives_its_memory_back(make_lm) -> None:
    lm = make_lm("llama")
    weight = lm.model.model.layers[0].mlp.up_proj.weight
    lm.apply(parse_recipe("svd:matrices=[up_proj],layers=[0],keep.rank=5,factored=true"), documents)
    assert weight.numel() == 0
    for value in lm.model.model.layers[0].mlp.up_proj.parameters():
        assert value.untyped_storage().nbytes() == value.numel() * value.element_size()
    lm.undo()
    assert weight.shape == (40, 24) and lm.model.model.layers[0].mlp.up_proj.weight is weight


# Steps after one another


def steps(*of: dict) -> object:
    return recipe_from({"name": "steps", "steps": [{"method": "truncate_svd", **step} for step in of]}, origin="test")


UP = {"matrices": ["up_proj"], "layers": [1]}
Q = {"matrices": ["q_proj"], "layers": [1]}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({**UP, "keep": {"rank": 9}}, {**UP, "keep": {"rank": 4}}),
        ({**Q, "keep": {"rank": 9}}, {**Q, "keep": {"rank": 2}, "per_head": True}),
        ({**Q, "keep": {"rank": 2}, "per_head": True}, {**Q, "keep": {"rank": 9}}),
        ({**Q, "keep": {"rank": 6}}, {"matrices": ["k_proj", "v_proj"], "layers": [1], "keep": {"rank": 3}}),
        (
            {"matrices": ["o_proj"], "keep": {"rank": 2}, "per_head": True},
            {"matrices": ["o_proj"], "keep": {"rank": 7}},
        ),
        (
            {"matrices": ["attn"], "keep": {"rank": 2}, "per_head": True},
            {"matrices": ["q_proj"], "layers": [1], "keep": {"rank": 1}, "per_head": True},
        ),
    ],
)
@pytest.mark.parametrize("how", [("always", "always"), ("always", False), (False, "always")])
def test_a_later_step_reads_the_product_and_writes_as_it_is_told(
    make_lm, family: str, first: dict, second: dict, how: tuple[str | bool, str | bool]
) -> None:
    if family in MIXTURES and first["matrices"] == UP["matrices"]:
        pytest.skip("no layer of this one has an MLP outside its experts")
    lm = make_lm(family)
    digest = lm.weights.digest()
    lm.apply(steps(first, second), documents)
    expected, expected_totals = logits(lm.model), lm.totals()
    lm.undo()
    applied = lm.apply(steps({**first, "factored": how[0]}, {**second, "factored": how[1]}), documents)
    assert_close(logits(lm.model), expected, 1e-4)
    assert lm.totals() == expected_totals
    assert lm.weights.digest() == model_digest(lm.model)
    if all(how):
        assert sum(value.numel() for value in lm.model.parameters()) == lm.totals()["parameters_after"]
    assert any(record.stored == "factors" for record in applied.records)
    lm.undo()
    assert lm.weights.digest() == digest == model_digest(lm.model)


def test_a_dense_write_makes_dense_what_it_touches_and_no_more(make_lm) -> None:
    lm = make_lm("gpt2")
    attention = lm.model.transformer.h[1].attn
    lm.apply(
        steps(
            {"matrices": ["q_proj", "k_proj"], "layers": [1], "keep": {"rank": 3}, "factored": True},
            {"matrices": ["k_proj"], "layers": [1], "keep": {"rank": 2}},
        ),
        documents,
    )
    (left,) = attention.c_attn.lefts
    assert tuple(left.shape) == (24, 3) and tuple(attention.c_attn.rest.shape) == (48, 24)
    lm.undo()
    lm.apply(steps({**UP, "keep": {"rank": 3}, "factored": True}, {**UP, "keep": {"rank": 2}}), documents)
    assert type(lm.model.transformer.h[1].mlp.c_fc).__name__ == "Conv1D"


def test_statistics_are_gathered_behind_a_low_rank_layer(make_lm, plain_family: str) -> None:
    """What a calibrated step sees and cuts after a factored one is what it sees after a dense one."""
    step = {"method": "feature_space", "matrices": ["all"], "keep": {"rank": 4}}
    outcomes = []
    for factored in (False, True):
        lm = make_lm(plain_family, dtype="float64")
        recipe = recipe_from(
            {
                "name": "two",
                "steps": [
                    {"method": "truncate_svd", "matrices": ["all"], "keep": {"rank": 8}, "factored": factored},
                    {**step, "factored": factored},
                ],
            },
            origin="test",
        )
        lm.apply(recipe, documents)
        outcomes.append(logits(lm.model))
    assert_close(outcomes[1], outcomes[0], 1e-6)


def test_effects_are_measured_behind_a_thin_layer(make_lm) -> None:
    """Gradients pass through: `eigenprune` chooses the same components."""
    kept = []
    for factored in ("false", "true"):
        lm = make_lm("llama", dtype="float64")
        data = {
            "name": "two",
            "steps": [
                {"method": "truncate_svd", "matrices": ["mlp"], "keep": {"rank": 8}, "factored": factored == "true"},
                {"method": "eigenprune", "matrices": ["k_proj"], "fraction": 0.3},
            ],
        }
        lm.apply(recipe_from(data, origin="test"), documents)
        kept.append(logits(lm.model))
    assert_close(kept[1], kept[0], 1e-8)


def test_a_failure_in_the_middle_leaves_the_model_as_it_was(make_lm) -> None:
    lm = make_lm("llama")
    before = bits(lm.model)
    with pytest.raises(UserError, match="rank 20 is beyond a 12 x 24 matrix"):
        lm.apply(
            steps(
                {**UP, "keep": {"rank": 3}, "factored": True},
                {"matrices": ["k_proj"], "keep": {"rank": 20}, "factored": True},
            ),
            documents,
        )
    assert same_bits(before, bits(lm.model))


@pytest.mark.parametrize("bias_first", [True, False])
def test_a_bias_made_before_or_after_goes_again(make_lm, bias_first: bool) -> None:
    lm = make_lm("llama")
    before, layer = bits(lm.model), lm.model.model.layers[0].self_attn.q_proj
    (matrix,) = lm.weights.layout.select(parse_recipe("svd:matrices=[q_proj],layers=[0]").steps[0])
    left, right, shift = torch.randn(24, 3), torch.randn(3, 24), torch.arange(24.0)
    for what in ("shift", "factor") if bias_first else ("factor", "shift"):
        lm.weights.shift_bias(matrix, shift) if what == "shift" else lm.weights.factor(matrix, left, right)
    x = torch.randn(5, 24)
    torch.testing.assert_close(lm.model.model.layers[0].self_attn.q_proj(x), x @ right.T @ left.T + shift)
    lm.weights.restore()
    assert (
        lm.model.model.layers[0].self_attn.q_proj is layer and layer.bias is None and same_bits(before, bits(lm.model))
    )


# What cannot be


@pytest.mark.parametrize("words", ["matrices=[experts]", "matrices=[all]"])
def test_experts_are_refused_by_name_also_by_the_plan(make_lm, make_model, words: str) -> None:
    recipe = parse_recipe(f"svd:{words},keep.rank=2,factored=true")
    with pytest.raises(
        UserError,
        match=(
            r"step 0: model.layers.0.mlp.experts.gate_up_proj gate_proj expert 0: experts are computed from one"
            r" parameter.*factored=false"
        ),
    ):
        plan(recipe, read_checkpoint(str(make_model("mixtral"))))
    with pytest.raises(UserError, match="experts are computed from one parameter"):
        make_lm("mixtral").apply(recipe, documents)


@pytest.mark.parametrize(
    ("family", "name", "words"),
    [("llama", "model.embed_tokens.weight", "of class Embedding"), ("llama-biased", "lm_head.weight", None)],
)
def test_embeddings_are_refused_and_an_output_head_of_its_own_is_not(
    make_lm, family: str, name: str, words: str | None
) -> None:
    lm = make_lm(family)
    recipe = parse_recipe(f"svd:matrices=['{name}'],keep.rank=2,factored=true")
    if words:
        with pytest.raises(UserError, match=f"{name} is the weight of a layer {words}"):
            lm.apply(recipe, documents)
        return
    lm.apply(parse_recipe(f"svd:matrices=['{name}'],keep.rank=2"), documents)
    dense = logits(lm.model)
    lm.undo()
    lm.apply(recipe, documents)
    assert_close(logits(lm.model), dense, 1e-5)


def test_a_weight_that_two_layers_share_is_refused(make_lm) -> None:
    from harness_ext.model.weights import Weights

    lm = make_lm("llama")
    lm.model.model.layers[2].mlp.up_proj.weight = lm.model.model.layers[0].mlp.up_proj.weight
    weights = Weights(lm.model, Path())
    with pytest.raises(
        UserError, match=r"layers.0.mlp.up_proj.weight is also the weight of model.layers.2.mlp.up_proj"
    ):
        weights.check_factorable(weights.layout.select(parse_recipe("svd:matrices=[up_proj],layers=[0]").steps[0]))


def test_the_key_is_checked_and_leaves_other_ids_alone() -> None:
    with pytest.raises(RecipeError, match="factored"):
        parse_recipe("svd:factored=perhaps")
    assert (
        parse_recipe("svd").recipe_id
        == parse_recipe("svd:factored=false").recipe_id
        != parse_recipe("svd:factored=true").recipe_id
    )
    assert parse_recipe("svd:factored=true").resolved()["steps"][0]["factored"] is True
    assert parse_recipe("svd:factored=always").resolved()["steps"][0]["factored"] == "always"
    assert "align" not in parse_recipe("svd:factored=true").resolved()["steps"][0]["keep"]


def test_runs_with_unaligned_factors_are_not_taken_for_aligned_ones() -> None:
    assert parse_recipe("svd:factored=true").revisions == {"factored": 2}
    for others in ("svd", "svd:factored=false", "svd:factored=always", "svd:keep.align=64"):
        assert parse_recipe(others).revisions == {}


# Export and command


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_export_holds_the_products(make_lm, family: str, dtype: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    lm = make_lm(family, dtype=dtype)
    before = bits(lm.model)
    _, applied = edited(lm, "svd:matrices=[attn],keep.rank=3,factored=true")
    products = {
        record.name: lm.weights.read(matrix)
        for record, matrix in zip(applied.records, lm.weights.layout.select(lm.recipe.steps[0]), strict=True)
        if record.part is None
    }
    count = export(lm, tmp_path / "out", "tiny", ["lm_eval", "export"])
    assert count == len({record.name for record in applied.records})
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=dtype)
    if family in MIXTURES:
        reloaded.set_experts_implementation("eager")  # as the fixture's model computes them
    assert torch.equal(logits(reloaded), logits(lm.model))
    receipt = json.loads((tmp_path / "out" / "receipt.json").read_text())
    assert receipt["weights"]["digest_after"] == model_digest(reloaded)
    assert {row["stored"] for row in receipt["matrices"]} == {"dense"} and len(receipt["made_dense"]) == count
    for name, product in products.items():
        assert torch.equal(
            reloaded.get_parameter(name).detach(), (product.T if family == "gpt2" else product).to(reloaded.dtype)
        )
    assert "as two low-rank ones" in (tmp_path / "out" / "README.md").read_text()
    lm.undo()
    assert same_bits(before, bits(lm.model))


def test_the_export_command_says_so(lm_eval, tmp_path: Path) -> None:
    ran = lm_eval("export", "--model_args", "pretrained=demo", "--recipe", "laser:factored=true", "--out", "edited")
    assert ran.code == 0 and "1 layer of two low-rank ones in the recipe: written as their product" in ran.out, ran.err


@pytest.mark.slow
def test_a_command_scores_thin_and_dense_alike_and_records_speed(demo_run, tmp_path: Path) -> None:
    ran = demo_run(
        "--recipe", "svd:keep.rank=8", "svd:keep.rank=8,factored=true", "--control", "random-subspace", limit=48
    )
    assert ran.code == 0, ran.err
    found = {
        receipt["recipe"]["label"]: (receipt, path.parent)
        for path in tmp_path.glob("results/demo/*/receipt.json")
        for receipt in [json.loads(path.read_text())]
    }
    (dense, dense_path), (thin, thin_path) = found["svd:keep.rank=8"], found["svd:keep.rank=8,factored=true"]
    assert {row["stored"] for row in thin["matrices"]} == {"factors"} and {
        row["stored"] for row in dense["matrices"]
    } == {"dense"}
    assert {row["stored"] for row in found["svd:keep.rank=8,factored=true+random-subspace"][0]["matrices"]} == {
        "factors"
    }
    sizes = [
        {name: value for name, value in receipt["totals"].items() if "per_second" not in name}
        for receipt in (dense, thin)
    ]
    assert sizes[0] == sizes[1]
    assert answers(dense_path) == pytest.approx(answers(thin_path), abs=1e-3)
    assert (
        thin["weights"]["digest_before"] == dense["weights"]["digest_before"]
        and thin["weights"]["digest_after"] != dense["weights"]["digest_after"]
    )
    baseline = found["baseline"][0]["totals"]
    assert (
        baseline["tokens_per_second_before"]
        == baseline["tokens_per_second_after"]
        == thin["totals"]["tokens_per_second_before"]
        > 0
    )
    assert thin["totals"]["tokens_per_second_after"] > 0 and thin["totals"]["generated_tokens_per_second_after"] is None
    assert "tokens/s" in ran.err


def answers(run: Path) -> list[float]:
    (path,) = run.glob("samples_*.jsonl")
    return [float(json.loads(line)["filtered_resps"][0][0]) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_what_stays_dense_is_said_and_a_plan_names_thin_layers(demo_run, lm_eval) -> None:
    assert (
        "2 of 2 matrices or heads stay dense"
        in demo_run("--recipe", "bottom-k:matrices=[k_proj],keep.rank_fraction=0.9,factored=true", limit=8).err
    )
    assert (
        "computed as two low-rank layers where that is faster"
        in lm_eval("recipes", "plan", "svd:factored=true", "--model_args", "pretrained=demo").out
    )
    assert (
        "if stored as factors where that is smaller"
        in lm_eval("recipes", "plan", "svd", "--model_args", "pretrained=demo").out
    )
    assert (
        "without what is taken away" in lm_eval("recipes", "plan", "modegpt-mlp", "--model_args", "pretrained=demo").out
    )


def test_what_a_later_step_made_thin_did_not_stay_dense(make_lm) -> None:
    steps = [
        {"method": "magnitude", "density": 0.5, "matrices": ["k_proj"], "factored": "always"},
        {"method": "truncate_svd", "keep": {"rank": 2}, "matrices": ["k_proj"], "factored": "always"},
    ]
    for count, dense in ((1, True), (2, False)):
        recipe = recipe_from({"name": "steps", "steps": steps[:count]}, origin="-")
        lm = make_lm("llama")
        lm.apply(recipe, lambda calibration: [])
        assert any("stay dense" in line for line in receipt_warnings(recipe, lm.applied)) == dense


# The pieces


def test_a_layer_of_interleaved_parts_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    dense, bias = (
        torch.randn(10, 6, generator=generator, dtype=torch.float64),
        torch.nn.Parameter(torch.randn(10, generator=generator, dtype=torch.float64)),
    )
    one, two = ((2, 4), (7, 9)), ((0, 1), (5, 6))
    factors = {
        ranges: (
            torch.randn(len(places(ranges)), 2, generator=generator, dtype=torch.float64),
            torch.randn(2, 6, generator=generator, dtype=torch.float64),
        )
        for ranges in (one, two)
    }
    layer = LowRankLinear(
        dense, [LowRankPart(ranges, None, *pair) for ranges, pair in factors.items()], bias, transposed=False
    )
    whole = dense.clone()
    for ranges, (left, right) in factors.items():
        whole[places(ranges)] = left @ right
    x = torch.randn(3, 4, 6, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(layer(x), x @ whole.T + bias)
    torch.testing.assert_close(layer.product(torch.float64), whole)
    torch.testing.assert_close(layer.product_of(two, None, torch.float64), whole[places(two)])
    torch.testing.assert_close(layer.product_of(((0, 3),), None, torch.float64), whole[:3])


def test_a_trained_step_can_follow(make_lm) -> None:
    """Training computes parts of a layer by itself and asks that for the rest of its weight: also where that is
    thin.
    """
    from harness_ext.training.override import swapped

    lm = make_lm("gpt2", dtype="float64")
    lm.apply(parse_recipe("svd:matrices=[q_proj],keep.rank=3,factored=true"), documents)
    matrices = lm.weights.layout.select(parse_recipe("svd:matrices=[k_proj,q_proj]").steps[0])
    expected = logits(lm.model)
    values = {matrix.key: lm.weights.read(matrix) for matrix in matrices}
    for chosen in (matrices, [matrix for matrix in matrices if matrix.role == "k_proj"]):
        with swapped(lm.model, chosen, lambda key: lambda x: x @ values[key].T):
            assert_close(logits(lm.model), expected, 1e-12)
