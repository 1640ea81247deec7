"""Factored checkpoints: loaded by transformers they compute what was exported, to the bit; what lies about itself is
refused in a sentence.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import harness_ext
from harness_ext.calibration.documents import CalibrationSet, LabelledDocument
from harness_ext.editing.controls import control_recipe
from harness_ext.editing.plan import plan
from harness_ext.errors import UserError
from harness_ext.lm_eval_adapter.model_loading import load_model
from harness_ext.model.checkpoint import read_checkpoint
from harness_ext.model.factored_checkpoint import WEIGHTS, low_rank_layers
from harness_ext.model.pivot_rows import PivotRowsLinear
from harness_ext.model.size import size_of
from harness_ext.model.weights import model_digest
from harness_ext.recipe.recipe import parse_recipe
from harness_ext.runs.factored_export import Destination, export_factored

TOKENS = torch.arange(3, 15).reshape(2, 6)
DOCUMENTS = tuple(
    LabelledDocument("t", f"w{number} w{number + 1}", f" w{number + 2}", str(number)) for number in range(6)
)
MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe")


def documents(calibration: Any) -> list[CalibrationSet]:
    return [CalibrationSet("t", "train", 0, DOCUMENTS)]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def loaded(place: Path, family: str = "llama", **kwargs: Any) -> Any:
    model = AutoModelForCausalLM.from_pretrained(place, **kwargs)
    if family in MIXTURES:
        model.set_experts_implementation("eager")  # as the fixture's model computes them
    return model


def exported(lm: Any, place: Path, specification: str, form: str = "factored") -> torch.Tensor:
    """The logits of the model that was written."""
    lm.apply(parse_recipe(specification), documents)
    export_factored(lm, Destination(place, form), "tiny", ["lm_eval", "export"])
    return logits(lm.model)


# Round trips


@pytest.mark.slow
@pytest.mark.parametrize("specification", ["svd:keep.rank=3", "svd:matrices=[attn],per_head=true,keep.rank=2"])
def test_every_family_reloads_to_the_same_bits(make_lm, every_family: str, specification: str, tmp_path: Path) -> None:
    changes = ",matrices=[attn]" if every_family in MIXTURES and "attn" not in specification else ""
    lm = make_lm(every_family)
    expected = exported(lm, tmp_path / "out", f"{specification}{changes},factored=always")
    reloaded = loaded(tmp_path / "out", every_family)
    assert torch.equal(logits(reloaded), expected)
    assert low_rank_layers(reloaded).keys() == low_rank_layers(lm.model).keys() != set()
    receipt = json.loads((tmp_path / "out" / "receipt.json").read_text())
    assert receipt["weights"]["digest_after"] == model_digest(reloaded) == lm.weights.digest()
    assert receipt["stored_as"]["parameters"] == sum(value.numel() for value in reloaded.parameters())
    assert receipt["stored_as"]["parameters"] == lm.totals()["parameters_after"]


@pytest.mark.parametrize("form", ["factored", "pifa"])
@pytest.mark.parametrize(
    "specification",
    [
        "svd:keep.rank=3,factored=true",
        "eigenprune:matrices=[all],fraction=0.7,per_head=false,factored=always",  # shifts biases, where there are none
        "svd:matrices=[o_proj],per_head=true,keep.rank=2,factored=true",
        "svd:matrices=[k_proj],keep.rank=4,factored=true",  # of gpt2 a part of a fused matrix
        "svd:keep.rank=0,factored=true",
    ],
)
@pytest.mark.parametrize(("family", "dtype"), [("llama", "float32"), ("gpt2", "bfloat16"), ("falcon", "float32")])
def test_parts_biases_and_dtypes(
    make_lm, family: str, specification: str, form: str, dtype: str, tmp_path: Path
) -> None:
    lm = make_lm(family, dtype=dtype)
    expected = exported(lm, tmp_path / "out", specification, form)
    reloaded = loaded(tmp_path / "out")
    found = logits(reloaded)
    assert reloaded.dtype == lm.model.dtype
    receipt = json.loads((tmp_path / "out" / "receipt.json").read_text())
    assert receipt["weights"]["digest_after"] == model_digest(reloaded)
    if form == "factored":
        assert torch.equal(found, expected) and receipt["stored_as"]["largest_error"] == 0
    else:
        share, error = (1e-5, 1e-5) if dtype == "float32" else (0.1, 0.02)
        assert (found - expected).norm() <= share * expected.norm() and receipt["stored_as"]["largest_error"] <= error
        assert all(isinstance(layer, PivotRowsLinear) for layer in low_rank_layers(reloaded).values())
        squares = sum(len(part.right) ** 2 for layer in low_rank_layers(lm.model).values() for part in layer.parts)
        assert receipt["stored_as"]["parameters"] == lm.totals()["parameters_after"] - squares
    lm.undo()
    assert not low_rank_layers(lm.model)


def test_the_folder_is_whole_and_safe(make_lm, tmp_path: Path) -> None:
    lm = make_lm("llama")
    exported(lm, tmp_path / "out", "svd:keep.rank=3,factored=true")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "receipt.json", "README.md", WEIGHTS, "tokenizer.json"} <= names
    assert {Path(name).suffix for name in names} <= {".json", ".safetensors", ".md"}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "auto_map" not in config and config["quantization_config"]["quant_method"] == "lowrank"
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("w3 w4")["input_ids"] == lm.tokenizer("w3 w4")["input_ids"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "import harness_ext" in card and "written back dense" not in card
    with pytest.raises(UserError, match="exists already"):
        export_factored(lm, Destination(tmp_path / "out", "factored"), "tiny", [])


def test_in_several_files(make_lm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = make_lm("llama")
    save = type(lm.model).save_pretrained
    monkeypatch.setattr(
        type(lm.model), "save_pretrained", lambda model, *a, **k: save(model, *a, **k, max_shard_size="8KB")
    )
    expected = exported(lm, tmp_path / "out", "svd:keep.rank=3,factored=true")
    assert (tmp_path / "out" / "factors.safetensors.index.json").exists() and not (tmp_path / "out" / WEIGHTS).exists()
    assert torch.equal(logits(loaded(tmp_path / "out")), expected)


def test_saved_again_and_made_dense(make_lm, tmp_path: Path) -> None:
    lm = make_lm("gpt2")
    expected = exported(lm, tmp_path / "out", "svd:matrices=[k_proj,up_proj],keep.rank=4,factored=true")
    model = loaded(tmp_path / "out")
    model.save_pretrained(tmp_path / "again")
    again = loaded(tmp_path / "again")
    assert torch.equal(logits(again), expected)
    again.dequantize().save_pretrained(tmp_path / "dense")
    dense = loaded(tmp_path / "dense")
    assert not low_rank_layers(dense) and not hasattr(dense.config, "quantization_config")
    torch.testing.assert_close(logits(dense), expected)
    lm.weights.make_dense()
    assert torch.equal(dense.transformer.h[0].mlp.c_fc.weight, lm.model.transformer.h[0].mlp.c_fc.weight)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["factored", "pifa"])
def test_the_forward_pass_can_be_compiled_whole(make_lm, form: str, tmp_path: Path) -> None:
    """As transformers does for single tokens on a GPU, with `cache_implementation=static`."""
    exported(make_lm("llama"), tmp_path / "out", "svd:matrices=[attn],per_head=true,keep.rank=2,factored=true", form)
    model = loaded(tmp_path / "out")
    assert model.hf_quantizer.is_compileable
    layer = model.model.layers[0].self_attn.q_proj
    x = torch.randn(2, 5, 24)
    torch.testing.assert_close(torch.compile(layer, backend="eager", fullgraph=True)(x), layer(x))


@pytest.mark.parametrize(("more", "rounded"), [(",keep.align=4", True), ("", False)])
def test_ranks_that_were_rounded_are_counted(make_lm, tmp_path: Path, more: str, rounded: bool) -> None:
    lm = make_lm("llama")
    lm.apply(parse_recipe(f"svd:keep.rank=6,factored=always{more}"), documents)
    written = export_factored(lm, Destination(tmp_path / "out", "factored"), "tiny", ["lm_eval", "export"])
    matrices = json.loads((tmp_path / "out" / "receipt.json").read_text())["matrices"]
    lower = [record for record in matrices if record["rank_after"] < record["rank_asked"]]
    assert written.rounded == len(lower) and bool(lower) == rounded


def test_where_nothing_is_factored(make_lm, tmp_path: Path) -> None:
    lm = make_lm("llama")
    lm.apply(parse_recipe("svd:keep.rank=3"), documents)
    with pytest.raises(UserError, match="no matrix is left as factors.*factored=always"):
        export_factored(lm, Destination(tmp_path / "out", "factored"), "tiny", [])
    assert not (tmp_path / "out").exists()


# Without and with this package


@pytest.mark.slow
def test_without_the_package_no_random_weights_are_loaded(make_lm, tmp_path: Path) -> None:
    """Whoever does not know the format finds no weights, and an import of the package is enough to know it."""
    exported(make_lm("llama"), tmp_path / "out", "svd:keep.rank=3,factored=true")
    load = (
        f"from transformers import AutoModelForCausalLM as A; print(type(A.from_pretrained({str(tmp_path / 'out')!r})))"
    )
    place = str(Path(harness_ext.__file__).parents[1])
    for first, code, words in (
        ("pass", 1, "no file named model.safetensors"),
        (f"import sys; sys.path.insert(0, {place!r}); import harness_ext", 0, "LlamaForCausalLM"),
        (f"import transformers.quantizers, sys; sys.path.insert(0, {place!r}); import harness_ext", 0, "LlamaFor"),
    ):
        ran = subprocess.run([sys.executable, "-c", f"{first}; {load}"], capture_output=True, text=True, check=False)
        assert ran.returncode == code and words in ran.stdout + ran.stderr, ran.stderr


def test_importing_the_package_imports_neither_torch_nor_transformers() -> None:
    place = str(Path(harness_ext.__file__).parents[1])
    script = (
        f"import sys; sys.path.insert(0, {place!r}); import harness_ext;"
        " assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


# Lies


def _config(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change(config["quantization_config"])
        (folder / "config.json").write_text(json.dumps(config))

    return apply


def _tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS, {"format": "pt"})

    return apply


UP = "model.layers.0.mlp.up_proj"


def _up(**changes: Any) -> Callable[[Path], None]:
    return _config(lambda said: said["layers"][UP].update(changes))


LIES: list[tuple[Callable[[Path], None], str]] = [
    (_up(shape=[40, 25]), "40 x 25, and in a model of its sizes it is 40 x 24"),
    (_up(shape=[40]), "wrong at layers.*shape"),
    (_up(shape=[40, -1]), "wrong at layers.*shape"),
    (_up(parts=[]), "wrong at layers.*parts"),
    (_up(parts=[{"rank": 10**9}]), "rank 1000000000 is beyond a 40 x 24 part"),
    (_up(parts=[{"rank": -1}]), "greater than or equal to 0"),
    (_up(parts=[{"rank": 3.5}]), "wrong at layers.*rank"),
    (_up(parts=[{"rank": "3"}]), "wrong at layers.*rank"),
    (_up(parts=[{"rank": 4}]), f"lacks the weight {UP}.(lefts|rights).0"),
    (_up(parts=[{"rank": 3}, {"rank": 3}]), "must be the only one"),
    (_up(parts=[{"rank": 3, "rows": [[0, 41]]}]), "0 to 41 is no range of 40"),
    (_up(parts=[{"rank": 3, "rows": [[5, 5]]}]), "5 to 5 is no range"),
    (_up(parts=[{"rank": 3, "rows": [[0, 9]]}, {"rank": 3, "rows": [[8, 20]]}]), "listed twice"),
    (_up(parts=[{"rank": 3, "rows": [[0, 9]]}, {"rank": 3, "columns": [[0, 9]]}]), "all of rows or all of columns"),
    (_up(parts=[{"rank": 3, "rows": [[0, 9]], "columns": [[0, 9]]}]), "all of rows or all of columns"),
    (_up(code="print"), "wrong at layers.*code"),
    (_config(lambda said: said.update(version=2)), "factored format 2, and this version reads 1"),
    (_config(lambda said: said.update(version="1")), "wrong at version"),
    (_config(lambda said: said.update(format="other")), "wrong at format"),
    (_config(lambda said: said.update(format="pifa")), "lacks the weight"),
    (_config(lambda said: said.update(weights="../../elsewhere.safetensors")), "wrong at weights"),
    (_config(lambda said: said.update(layers={})), "wrong at layers"),
    (_config(lambda said: said.pop("layers")), "wrong at layers"),
    (_config(lambda said: said.update(layers=[1])), "wrong at layers"),
    (_config(lambda said: said["layers"].update({"model.norm": said["layers"][UP]})), "names model.norm as a factored"),
    (_config(lambda said: said["layers"].update({"": said["layers"][UP]})), "as a factored layer"),
    (_config(lambda said: said["layers"].update({"model.layers.9": said["layers"][UP]})), "as a factored layer"),
    (_config(lambda said: said.update(biases=["model.layers.0"])), "names model.layers.0 as a factored"),
    (_config(lambda said: said.update(biases=[UP])), f"lacks the weight {UP}.bias"),
    (_tensors(lambda held: held.pop(f"{UP}.lefts.0")), f"lacks the weight {UP}.lefts.0"),
    (_tensors(lambda held: held.update({f"{UP}.rights.0": torch.zeros(3, 23)})), f"lacks the weight {UP}.rights.0"),
    (_tensors(lambda held: held.pop("model.norm.weight")), "lacks the weight model.norm.weight"),
    (_tensors(lambda held: held.update({"model.norm.weight": torch.ones(23)})), "lacks the weight model.norm.weight"),
    (lambda folder: (folder / WEIGHTS).unlink(), f"{WEIGHTS}"),
    (lambda folder: os.truncate(folder / WEIGHTS, 5000), f"{WEIGHTS}"),
    (_tensors(lambda held: held[f"{UP}.lefts.0"].fill_(float("nan"))), f"{UP}.lefts.0 holds a NaN"),
    (_tensors(lambda held: held[f"{UP}.rights.0"][0].fill_(float("inf"))), f"{UP}.rights.0 holds a NaN"),
]


@pytest.fixture
def honest(make_lm, tmp_path: Path) -> Path:
    exported(make_lm("llama"), tmp_path / "out", "svd:keep.rank=3,factored=true")
    return tmp_path / "out"


@pytest.mark.parametrize(("lie", "words"), LIES, ids=[words[:40] for _, words in LIES])
def test_a_lie_is_one_sentence(honest: Path, lie: Callable[[Path], None], words: str) -> None:
    lie(honest)
    with pytest.raises(UserError, match=words) as told:
        load_model("out", {"pretrained": str(honest)})
    assert "\n" not in str(told.value) and len(str(told.value)) < 500
    with pytest.raises(UserError):
        loaded(honest)


def test_an_order_that_is_none(make_lm, tmp_path: Path) -> None:
    exported(make_lm("llama"), tmp_path / "out", "svd:keep.rank=3,factored=true", "pifa")
    _tensors(lambda held: held[f"{UP}.orders.0"].fill_(10**6))(tmp_path / "out")
    with pytest.raises(UserError, match=f"an order of rows of {UP} is none"):
        loaded(tmp_path / "out")


def test_an_extra_tensor_is_told(honest: Path) -> None:
    _tensors(lambda held: held.update({f"{UP}.lefts.1": torch.zeros(4, 4)}))(honest)
    lm = load_model("out", {"pretrained": str(honest)})
    assert lm.unexpected_weights == [f"{UP}.lefts.1"]


# Budgets that count in pivot rows

BUDGET = "svd:keep.param_fraction=0.7,keep.format=pifa"


@pytest.mark.parametrize(("family", "dtype"), [("llama", "float32"), ("gpt2", "bfloat16")])
def test_an_export_has_the_numbers_that_run_plan_and_control_promise(
    make_lm, family: str, dtype: str, tmp_path: Path
) -> None:
    lm, recipe = make_lm(family, dtype=dtype), parse_recipe(BUDGET)
    planned = plan(recipe, read_checkpoint(lm.loaded_from))
    applied = lm.apply(recipe, documents)
    records, promised = applied.records, lm.totals()["parameters_after"]
    for record in records:
        (rows, columns), rank = record.shape, record.rank_after
        assert record.counted_as == "pifa" and record.stored == "dense"
        assert record.parameters_after == rank * (rows + columns + 1) - rank**2 <= 0.7 * rows * columns
        assert rank > 0.7 * rows * columns / (rows + columns)
    assert planned.parameters_after == promised
    assert sum(group.number * group.parameters_after for group in planned.groups) == sum(
        record.parameters_after for record in records
    )
    receipt = {"matrices": [record.to_json() for record in records], "searches": []}
    lm.undo()
    control = lm.apply(control_recipe("random-subspace", recipe, receipt), documents)
    assert {(one.name, one.part): one.rank_after for one in control.records} == {
        (one.name, one.part): one.rank_after for one in records
    }
    assert lm.totals()["parameters_after"] == promised
    lm.undo()
    expected = exported(lm, tmp_path / "out", f"{BUDGET},factored=always", "pifa")
    stored = json.loads((tmp_path / "out" / "receipt.json").read_text())["stored_as"]
    assert stored["layers"] == len(low_rank_layers(lm.model)) == len({record.name for record in records})
    assert stored["parameters"] + stored["pivot_indices"] == promised == lm.totals()["parameters_after"]
    assert stored["pivot_indices"] == sum(record.rank_after for record in records)
    reloaded = loaded(tmp_path / "out")
    assert sum(value.numel() for value in reloaded.parameters()) == stored["parameters"]
    # The places of rows multiply nothing.
    assert size_of(reloaded).flops_per_token == lm.totals()["flops_per_token_after"]
    share = 1e-5 if dtype == "float32" else 0.1
    assert (logits(reloaded) - expected).norm() <= share * expected.norm()


@pytest.mark.parametrize(
    ("specification", "why"),
    [
        ("basis-sharing:keep.format=pifa", "makes it of a basis that others share"),
        ("svd:keep.format=pifa,factored=true", "factored=true takes two factors for their speed"),
        ("svd-llm-lora:keep.format=pifa", "heal trains two factors"),
        ("svd:keep.format=zip", "keep.format"),
        ("lems:keep.format=pifa", "unknown key"),
    ],
)
def test_what_cannot_be_counted_in_pivot_rows(specification: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        parse_recipe(specification)


def test_pieces_of_a_matrix_have_no_pivot_rows_of_one_rank() -> None:
    step = {"method": "truncate_clusters", "matrices": ["mlp"], "keep": {"rank": 2, "format": "pifa"}}
    with pytest.raises(UserError, match="makes it of several pieces: leave it out, or choose another method"):
        harness_ext.load_recipe({"name": "mine", "steps": [step]})


def test_two_factors_of_ranks_for_pivot_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="use --format pifa, or leave keep.format out"):
        harness_ext.export(BUDGET, tmp_path / "out", pretrained="demo", format="factored")
    assert (
        parse_recipe(BUDGET.replace("pifa", "factors")).recipe_id
        == parse_recipe("svd:keep.param_fraction=0.7").recipe_id
    )


# In commands


@pytest.mark.slow
def test_a_factored_checkpoint_is_scored_and_not_edited_again(lm_eval, tmp_path: Path) -> None:
    ran = lm_eval(
        *("export", "--model_args", "pretrained=demo", "--recipe", "svd:keep.param_fraction=0.6", "--out", "small"),
        *("--format", "factored"),
    )
    assert ran.code == 0 and "14 layers as low-rank ones" in ran.out, ran.err
    arguments = ("--model", "hf", "--model_args", "pretrained=small", "--tasks", "int_mult", "--limit", "8")
    ran = lm_eval("run", *arguments, "--recipe", "baseline", "--output_path", "results")
    assert ran.code == 0 and "quantization_config" not in ran.err, ran.err
    (path,) = tmp_path.glob("results/small/*/receipt.json")
    receipt = json.loads(path.read_text())
    written = json.loads((tmp_path / "small" / "receipt.json").read_text())
    assert receipt["weights"]["digest_after"] == written["weights"]["digest_after"]
    assert receipt["totals"]["parameters_after"] == written["totals"]["parameters_after"]
    assert receipt["totals"]["flops_per_token_after"] == written["totals"]["flops_per_token_after"]
    refused = (
        ("run", *arguments, "--recipe", "svd"),
        ("recipes", "plan", "svd", "--model_args", "pretrained=small"),
        ("export", "--model_args", "pretrained=small", "--recipe", "svd", "--out", "other"),
    )
    for words in refused:
        ran = lm_eval(*words)
        assert ran.code == 2 and "small is a factored checkpoint" in ran.err, ran.err


def test_from_python(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = harness_ext.export("svd:keep.param_fraction=0.5", tmp_path / "out", pretrained="demo", format="pifa")
    assert capfd.readouterr().out == ""
    assert all(isinstance(layer, PivotRowsLinear) for layer in low_rank_layers(loaded(out)).values())
    receipt = json.loads((out / "receipt.json").read_text())
    assert "format='pifa'" in receipt["command"][0] and receipt["stored_as"]["format"] == "pifa"
    assert receipt["recipe"]["resolved"]["steps"][0]["factored"] is True
    with pytest.raises(UserError, match="format is dense, factored or pifa, and not 'zip'"):
        harness_ext.export("svd", tmp_path / "other", pretrained="demo", format="zip")
    with pytest.raises(UserError, match="factored checkpoint"), harness_ext.apply(loaded(out), "svd"):
        pass
