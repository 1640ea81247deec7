"""The pipeline: what is edited, what is recorded, and that it can be undone to the last bit."""

from __future__ import annotations

import numpy
import pytest
import torch

from harness_ext.errors import UserError, VariantFailed
from harness_ext.model.weights import Weights, model_digest, tensor_digest
from harness_ext.recipe.recipe import parse_recipe, recipe_from


def no_documents(calibration):
    pytest.fail("no document was to be asked for")


def bits(model) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[name].reshape(-1).view(torch.uint8), other[name].reshape(-1).view(torch.uint8)) for name in one
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize("specification", ["svd:keep.rank=3", "identity", "random-subspace:per_head=true,keep.rank=2"])
def test_undo_is_bit_exact(make_lm, family: str, dtype: str, specification: str) -> None:
    lm = make_lm(family, dtype=dtype)
    before, digest = bits(lm.model), lm.weights.digest()
    lm.apply(parse_recipe(specification), no_documents)
    if not specification.startswith("identity"):
        assert not same_bits(before, bits(lm.model)) and lm.weights.digest() != digest
    lm.undo()
    assert same_bits(before, bits(lm.model)) and lm.weights.digest() == digest == model_digest(lm.model)


def test_the_written_matrix_is_the_truncation_of_the_original_in_numpy(make_lm, family: str) -> None:
    lm = make_lm(family)
    (matrix,) = lm.weights.layout.select(parse_recipe("svd:matrices=[k_proj],layers=[1]").steps[0])
    original = lm.weights.read(matrix).double().numpy()
    untouched = {name: tensor_digest(value) for name, value in lm.model.named_parameters()}
    lm.apply(parse_recipe("svd:matrices=[k_proj],layers=[1],keep.rank=2"), no_documents)
    u, s, vh = numpy.linalg.svd(original, full_matrices=False)
    expected = (u[:, :2] * s[:2]) @ vh[:2]
    numpy.testing.assert_allclose(lm.weights.read(matrix).double().numpy(), expected, atol=1e-5)
    changed = {name for name, value in lm.model.named_parameters() if tensor_digest(value) != untouched[name]}
    assert changed == {matrix.parameter}


def test_a_fused_matrix_keeps_the_parts_that_were_not_meant(make_lm) -> None:
    lm = make_lm("gpt2")
    before = lm.model.transformer.h[1].attn.c_attn.weight.detach().clone()
    lm.apply(parse_recipe("svd:matrices=[k_proj],layers=[1],keep.rank=2"), no_documents)
    after = lm.model.transformer.h[1].attn.c_attn.weight.detach()
    assert torch.equal(after[:, :24], before[:, :24]) and torch.equal(after[:, 48:], before[:, 48:])
    assert torch.linalg.matrix_rank(after[:, 24:48], rtol=1e-4) == 2


def test_a_record_tells_the_truth(make_lm) -> None:
    lm = make_lm("llama")
    (matrix,) = lm.weights.layout.select(parse_recipe("svd:matrices=[up_proj],layers=[0]").steps[0])
    original = lm.weights.read(matrix).double().numpy()
    applied = lm.apply(parse_recipe("svd:matrices=[up_proj],layers=[0],keep.rank=5"), no_documents)
    (record,) = applied.records
    s = numpy.linalg.svd(original, compute_uv=False)
    assert (record.shape, record.rank_before, record.rank_after, record.role, record.layer) == (
        (40, 24),
        24,
        5,
        "up_proj",
        0,
    )
    assert record.energy_kept == pytest.approx((s[:5] ** 2).sum() / (s**2).sum(), abs=1e-5)
    assert record.relative_error == pytest.approx(numpy.sqrt((s[5:] ** 2).sum() / (s**2).sum()), abs=1e-5)
    assert (record.parameters_before, record.parameters_after) == (960, 5 * 64)
    assert record.digest_before != record.digest_after == tensor_digest(lm.model.model.layers[0].mlp.up_proj.weight)
    assert lm.totals()["parameters_before"] - lm.totals()["parameters_after"] == 960 - 320


def test_a_matrix_edited_twice_counts_once(make_lm) -> None:
    lm = make_lm("llama")
    steps = [
        {"method": "truncate_svd", "matrices": ["up_proj"], "layers": [0], "keep": {"rank": rank}} for rank in (9, 4)
    ]
    lm.apply(recipe_from({"name": "twice", "steps": steps}, origin="test"), no_documents)
    totals = lm.totals()
    assert totals["matrices_edited"] == 1
    assert totals["parameters_before"] - totals["parameters_after"] == 960 - 4 * 64


def test_a_bias_that_the_edit_made_counts_after_it_only(make_lm) -> None:
    from harness_ext.calibration.documents import CalibrationSet, LabelledDocument

    documents = tuple(
        LabelledDocument("t", f"w{number} w{number + 1}", f" w{number + 2}", str(number)) for number in range(4)
    )
    lm = make_lm("llama")
    count = lm.model.num_parameters()
    lm.apply(
        parse_recipe("eigenprune:per_head=false,matrices=[up_proj],layers=[0]"),
        lambda calibration: [CalibrationSet("t", "train", 0, documents)],
    )
    totals = lm.totals()
    # 20 of 24 components kept are more numbers as factors than dense, so only the new bias of 40 changes the count.
    assert (totals["parameters_before"], totals["parameters_after"]) == (count, count + 40)


def test_the_same_recipe_and_seed_give_the_same_weights(make_lm, family: str) -> None:
    def digest(specification: str) -> str:
        lm = make_lm(family)
        lm.apply(parse_recipe(specification), no_documents)
        return lm.weights.digest()

    assert digest("random-subspace") == digest("random-subspace") != digest("random-subspace:seed=1")


def test_a_bias_is_made_where_there_was_none_and_unmade(make_lm, tmp_path) -> None:
    lm = make_lm("llama")
    weights = Weights(lm.model, tmp_path)
    (matrix,) = weights.layout.select(parse_recipe("svd:matrices=[q_proj],layers=[0]").steps[0])
    shift = torch.arange(24.0)
    weights.shift_bias(matrix, shift)
    assert torch.equal(lm.model.get_submodule(matrix.module).bias, shift)
    weights.restore()
    assert lm.model.get_submodule(matrix.module).bias is None


def test_the_bias_of_a_part_of_a_fused_matrix_is_shifted_in_its_rows_only(make_lm, tmp_path) -> None:
    lm = make_lm("gpt2")
    weights = Weights(lm.model, tmp_path)
    (matrix,) = weights.layout.select(parse_recipe("svd:matrices=[v_proj],layers=[2]").steps[0])
    before = lm.model.transformer.h[2].attn.c_attn.bias.detach().clone()
    weights.shift_bias(matrix, torch.ones(24))
    moved = lm.model.transformer.h[2].attn.c_attn.bias - before
    torch.testing.assert_close(moved, torch.cat([torch.zeros(48), torch.ones(24)]))
    weights.restore()
    assert torch.equal(lm.model.transformer.h[2].attn.c_attn.bias, before)


def test_nan_in_a_weight_fails_the_variant_and_leaves_the_model_as_it_was(make_lm) -> None:
    lm = make_lm("llama")
    with torch.no_grad():
        lm.model.model.layers[2].mlp.up_proj.weight[3, 5] = float("nan")
    before = bits(lm.model)
    with pytest.raises(
        VariantFailed, match=r"model.layers.2.mlp.up_proj.weight holds a NaN or an infinity at \[3, 5\]"
    ) as caught:
        lm.apply(parse_recipe("svd"), no_documents)
    assert caught.value.kind == "non_finite_weight"
    assert same_bits(before, bits(lm.model))


def test_a_rank_beyond_the_matrix_names_the_matrix_and_leaves_the_model(make_lm) -> None:
    lm = make_lm("llama")
    before = bits(lm.model)
    with pytest.raises(
        UserError, match=r"step 0: model.layers.0.self_attn.k_proj.weight: rank 20 is beyond a 12 x 24 matrix"
    ):
        lm.apply(parse_recipe("svd:keep.rank=20"), no_documents)
    assert same_bits(before, bits(lm.model))


def test_a_damaged_original_is_noticed(make_lm, tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    lm = make_lm("llama")
    weights = Weights(lm.model, tmp_path)
    (matrix,) = weights.layout.select(parse_recipe("svd:matrices=[q_proj],layers=[0]").steps[0])
    weights.replace(matrix, torch.zeros(24, 24))
    (path,) = tmp_path.iterdir()
    save_file({digest: value + 1 for digest, value in load_file(path).items()}, path)
    with pytest.raises(RuntimeError, match="could not be restored bit for bit"):
        weights.restore()


def test_quantised_weights_are_refused(make_lm, tmp_path) -> None:
    lm = make_lm("llama")
    lm.model.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(
        torch.zeros(40, 24, dtype=torch.int8), requires_grad=False
    )
    weights = Weights(lm.model, tmp_path)
    with pytest.raises(UserError, match="up_proj.weight is quantised .int8. and cannot be edited"):
        weights.check_editable(weights.layout.select(parse_recipe("svd:matrices=[up_proj]").steps[0]))


def test_a_quantised_model_is_refused_by_name(make_lm) -> None:
    lm = make_lm("llama")
    lm.model.config.quantization_config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    with pytest.raises(UserError, match=r"is quantised .bitsandbytes., and quantised weights cannot be edited"):
        lm.apply(parse_recipe("svd"), no_documents)
