"""What lm-eval's `hf` takes is taken, or refused in a sentence before a model is loaded."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

from harness_ext.demo import demo_path
from harness_ext.errors import UserError
from harness_ext.lm_eval_adapter.admission import check_all, check_arguments, refuse_backend
from harness_ext.model.checkpoint import hub_commit
from harness_ext.recipe.recipe import parse_recipe


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The embedded model in a folder of the test's own."""
    return Path(shutil.copytree(demo_path(), tmp_path / "model"))


def configured(folder: Path, **changes: Any) -> dict[str, Any]:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return {"pretrained": str(folder)}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"load_in_4bit": True}, "load_in_4bit=True loads packed weights (bitsandbytes)"),
        ({"load_in_8bit": True}, "load float32, bfloat16 or float16"),
        ({"autogptq": "model.safetensors"}, "AutoGPTQ"),
        ({"gptqmodel": True}, "GPTQModel"),
        ({"quantization_config": {"load_in_4bit": True}}, "cannot be edited"),
        ({"pretrained": "https://me:word@host/model"}, "pretrained is a URL"),
        ({"dtype": "float33"}, "dtype=float33 is no dtype"),
        ({"softmax_dtype": "torch.float32"}, "give auto, float32"),
        ({"backend": "encoder"}, "give default, causal, seq2seq"),
        ({"max_length": "long"}, "max_length=long must be a whole number"),
        ({"prefix_token_id": -1}, "prefix_token_id=-1 must be"),
        ({"peft": "a", "delta": "b"}, "peft and delta are both given"),
    ],
)
def test_arguments_that_cannot_be_followed(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as refused:
        check_arguments({"pretrained": "demo", **arguments})
    assert words in str(refused.value) and "word@" not in str(refused.value)


def test_arguments_of_plain_weights_pass() -> None:
    check_arguments({"pretrained": "demo", "load_in_4bit": False, "quantization_config": {"dequantize": True}})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("trtllm", "lm_eval export"),
        ("openai-completions", "`lm_eval ingest`"),
        ("vlm", "did you mean 'vllm'"),
        ("steered", "without the steering vectors"),
    ]
    + [(name, "transformers loads the same checkpoint") for name in ("hf-multimodal", "mamba_ssm", "hf-mistral3")],
)
def test_other_backends(name: str, words: str) -> None:
    with pytest.raises(UserError) as refused:
        refuse_backend(name)
    assert name in str(refused.value) and words in str(refused.value)


@pytest.mark.parametrize(
    ("quantisation", "word", "way_out"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq", r"nor can transformers unpack.*its model card names it"),
        ({"quant_method": "awq", "bits": 4}, "awq", r"nor can transformers unpack.*its model card names it"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes", "add dequantize=true to --model_args"),
        ({"load_in_8bit": True}, "bitsandbytes", "add dequantize=true to --model_args"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors", "add dequantize=true to --model_args"),
        ({"quant_method": "of tomorrow"}, "of tomorrow", r"model\.dequantize\(\)"),
    ],
)
def test_quantised_checkpoints(
    folder: Path, quantisation: dict[str, Any], word: str, way_out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness_ext.lm_eval_adapter.admission.stays_packed", lambda config: True)
    arguments = configured(folder, quantization_config=quantisation)
    with pytest.raises(UserError, match=rf"is quantised \({word}\).*{way_out}"):
        check_all(arguments, [parse_recipe("laser")])
    check_all(arguments, [parse_recipe("baseline")])


@pytest.mark.parametrize("method", ["gptq", "awq"])
@pytest.mark.parametrize(
    ("card", "config", "base"),
    [
        ("---\ndate: 2024-01-01\nbase_model: org/whole\nbase_model_relation: quantized\n---\n# X\n", {}, "org/whole"),
        ("---\nbase_model:\n- org/listed\ntags:\n- x\n---\n", {"_name_or_path": "org/other"}, "org/listed"),
        ("# No front matter\nbase_model: [", {"_name_or_path": "org/of-config"}, "org/of-config"),
        ("---\nbase_model: [\n---\n", {"_name_or_path": "/home/somebody/model"}, None),
        ("", {"quantization_config": {"model_name_or_path": "org/of-quantiser"}}, "org/of-quantiser"),
    ],
)
def test_the_base_model_is_named_where_it_can_be_read(
    folder: Path, method: str, card: str, config: dict[str, Any], base: str | None
) -> None:
    (folder / "README.md").write_text(card)
    said = {**config, "quantization_config": {**config.get("quantization_config", {}), "quant_method": method}}
    for dequantize in ({}, {"dequantize": True}):
        with pytest.raises(UserError) as refused:
            check_all(configured(folder, **said) | dequantize, [parse_recipe("svd")])
        expected = f"made from, {base}, in float32" if base else "made from (its model card names it, under base_model)"
        assert expected in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"dequantize": "maybe"}, "dequantize=maybe must be true or false"),
        ({"dequantize": True}, "names no quantisation (quantization_config): leave dequantize out"),
        ({"dequantize": True, "load_in_4bit": True}, "load_in_4bit=True says how to load packed ones: leave load_in_4"),
        ({"dequantize": True, "load_in_8bit": True}, "leave load_in_8bit out"),
        ({"dequantize": True, "gguf_file": "m.gguf"}, "a GGUF file is unpacked in any case: leave dequantize out"),
    ],
)
def test_what_dequantize_does_not_go_with(folder: Path, arguments: dict[str, Any], words: str) -> None:
    for recipe in ("svd", "baseline"):
        with pytest.raises(UserError) as refused:
            check_all({"pretrained": str(folder), **arguments}, [parse_recipe(recipe)])
        assert words in str(refused.value)


def test_dequantize_takes_the_package_that_unpacks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness_ext.model.dequantize.find_spec", lambda name: None)
    arguments = configured(folder, quantization_config={"quant_method": "compressed-tensors"}) | {"dequantize": True}
    with pytest.raises(UserError, match="pip install compressed-tensors"):
        check_all(arguments, [parse_recipe("svd")])
    check_all(configured(folder, quantization_config={"quant_method": "fp8"}) | {"dequantize": True}, [])


def test_quantised_inside_a_wrapper(folder: Path) -> None:
    with pytest.raises(UserError, match=r"is quantised \(awq\)"):
        check_all(
            configured(folder, text_config={"quantization_config": {"quant_method": "awq"}}), [parse_recipe("svd")]
        )


def test_encoder_decoders_take_recipes_that_need_the_weights_only(folder: Path) -> None:
    arguments = configured(folder, model_type="t5", is_encoder_decoder=True)
    for name in ("svd", "laser", "magnitude", "random-subspace"):
        check_all(arguments, [parse_recipe(name)])
    for name in ("svd-llm", "eigenprune", "contrast-projection", "laser-search", "basis-selection"):
        with pytest.raises(UserError, match=f"t5 is an encoder-decoder, and '{name}' learns from documents"):
            check_all(arguments, [parse_recipe(name)])
    check_all(arguments | {"backend": "causal"}, [parse_recipe("svd-llm")])


def test_an_encoder_is_known_by_the_class_that_lm_eval_loads(folder: Path) -> None:
    """lm-eval goes by the type, whatever the config says of it."""
    learns, plain = [parse_recipe("svd-llm")], [parse_recipe("svd")]
    for config in ({"model_type": "t5"}, {"model_type": "marian"}, {"model_type": "t5", "is_encoder_decoder": False}):
        arguments = configured(folder, **config)
        check_all(arguments, plain)
        for backend in ("default", "seq2seq"):
            with pytest.raises(UserError, match=f"{config['model_type']} is an encoder-decoder, and 'svd-llm' learns"):
                check_all(arguments | {"backend": backend}, learns)
    # Of these lm-eval loads a decoder: one that hears, one by itself, and one that was asked for.
    for config, backend in (
        ({"model_type": "qwen2_audio"}, "default"),
        ({"model_type": "whisper", "is_encoder_decoder": True}, "default"),
        ({"model_type": "bart", "is_encoder_decoder": True}, "causal"),
        ({"model_type": "novel", "is_encoder_decoder": False}, "default"),
    ):
        check_all(configured(folder, **config) | {"backend": backend}, learns)
    with pytest.raises(UserError, match="novel is an encoder-decoder, and 'svd-llm' learns"):
        check_all(configured(folder, model_type="novel", is_encoder_decoder=True), learns)


def test_a_decoder_by_itself_that_lm_eval_would_load_with_an_encoder(folder: Path) -> None:
    arguments = configured(folder, model_type="bart", is_encoder_decoder=False)
    for recipe in ("svd", "svd-llm"):
        with pytest.raises(
            UserError, match=r"is the decoder of a bart by itself .*: add backend=causal to --model_arg"
        ):
            check_all(arguments, [parse_recipe(recipe)])
        check_all(arguments | {"backend": "causal"}, [parse_recipe(recipe)])


def test_gguf(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    alone = tmp_path / "gguf"
    alone.mkdir()
    (alone / "a.gguf").write_bytes(b"GGUF" + struct.pack("<I", 3))
    (alone / "b.gguf").write_bytes(b"<html>")
    laser = [parse_recipe("laser")]
    with pytest.raises(UserError, match=r"holds GGUF files and no config.json: name one .*gguf_file=a\.gguf"):
        check_all({"pretrained": str(alone)}, laser)
    with pytest.raises(UserError, match=r"is a GGUF file: .*gguf_file=a\.gguf"):
        check_all({"pretrained": str(alone / "a.gguf")}, laser)
    with pytest.raises(UserError, match=r"no such file"):
        check_all({"pretrained": str(alone), "gguf_file": "c.gguf"}, laser)
    with pytest.raises(UserError, match=r"b\.gguf is no GGUF file"):
        check_all({"pretrained": str(alone), "gguf_file": "b.gguf"}, laser)
    check_all({"pretrained": str(alone), "gguf_file": "a.gguf"}, laser)


def test_an_adapter_that_is_not_there(lm_eval, folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("lm_eval.models.huggingface.HFLM._create_model", lambda *args, **kwargs: pytest.fail("loaded"))
    (tmp_path / "empty").mkdir()
    for name, words in (
        (str(tmp_path / "empty"), "holds no adapter: it has no adapter_config.json"),
        (str(tmp_path / "gone"), "there is no adapter folder"),
        ("./gone", "there is no adapter folder ./gone"),
    ):
        model = ("--model_args", f"pretrained={folder},peft={name}")
        for command in (
            ("run", "--model", "hf", *model, "--tasks", "int_mult", "--limit", 4, "--device", "cpu", "--recipe", "svd"),
            ("export", *model, "--recipe", "svd", "--out", tmp_path / "edited"),
            ("recipes", "plan", "svd", *model),
        ):
            ran = lm_eval(*command)
            assert ran.code == 2 and words in ran.err and "Traceback" not in ran.err, ran.err


def test_a_plan_refuses_what_a_run_refuses(lm_eval, folder: Path) -> None:
    for argument in ("load_in_4bit=True", "load_in_8bit=True", "gptqmodel=True"):
        ran = lm_eval("recipes", "plan", "svd", "--model_args", f"pretrained={folder},{argument}")
        assert ran.code == 2 and f"{argument} loads packed weights" in ran.err and not ran.out


def test_an_argument_that_no_model_takes(lm_eval) -> None:
    ran = lm_eval("export", "--model_args", "pretrained=demo,use_auth=1", "--recipe", "svd", "--out", "edited")
    assert ran.code == 2 and "no model of its kind takes the argument 'use_auth'; leave it out" in ran.err


def test_an_adapter_by_itself(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    with pytest.raises(UserError, match=r"no model: .*pretrained=org/base,peft="):
        check_all({"pretrained": str(tmp_path)}, [parse_recipe("laser")])


def test_a_gated_model_tells_how_to_log_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("401 Client Error. Access to model org/gated is restricted.\nMore")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(UserError, match=r"401 Client Error.*restricted\.\. It may be gated.*HF_TOKEN"):
        hub_commit("org/gated", "main", ["config.json"])


def test_a_subfolder_that_is_not_there(folder: Path) -> None:
    with pytest.raises(UserError, match="has no subfolder inner"):
        check_all({"pretrained": str(folder), "subfolder": "inner"}, [parse_recipe("laser")])
