"""A `config.json` that anybody wrote: whatever it says, plan, run and export end in one sentence that names the key."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness_ext.demo import demo_path
from harness_ext.errors import UserError
from harness_ext.model.checkpoint import check_local, hub_or_local_config, read_checkpoint
from harness_ext.model.completeness import check_headers

NAN, INFINITY = float("nan"), float("inf")
WHOLE = "it must be a whole number, 1 or more"
OBJECT = "it must be an object"
TEXTS = "it must be a list of texts"
SWITCH = "it must be true or false"
DTYPE = "it must be a floating-point dtype"
LONGEST = "no weight has more than 512 rows or columns"
SIZES = ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size", "num_hidden_layers")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the embedded model."""
    return Path(shutil.copytree(demo_path(), tmp_path / "m"))


def change(folder: Path, **said: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | said))


WRONG_KINDS: list[tuple[str, Any, str]] = [
    *(("quantization_config", value, OBJECT) for value in ([1], "x", 5, True)),
    *(("auto_map", value, OBJECT) for value in (3, "x", [])),
    ("auto_map", {"AutoConfig": 3}, "it must give the name of a class"),
    ("auto_map", {"AutoTokenizer": ["a.B", 3]}, "it must give the name of a class"),
    *((key, value, OBJECT) for key in ("rope_scaling", "rope_parameters") for value in ("x", 3, [])),
    *(("text_config", value, OBJECT) for value in ([], "x", 1)),
    *(("architectures", value, TEXTS) for value in ("LlamaForCausalLM", 3, [3], {})),
    *(("layer_types", value, TEXTS) for value in (3, "x", [1])),
    *(("model_type", value, "it must be a text") for value in (["llama"], 3, None, {}, True)),
    *(("tie_word_embeddings", value, SWITCH) for value in ("no", 0, [])),
    *(("is_encoder_decoder", value, SWITCH) for value in ("yes", 1, {})),
    *((key, value, "it must be a text") for key in ("dtype", "torch_dtype") for value in (5, [1], True)),
    *(("dtype", value, DTYPE) for value in ("x", "int8", "nn", "bool", "")),
    *((key, value, WHOLE) for key in SIZES for value in ("a", 0, -1, 2.5, [4], {}, True, INFINITY)),
    *((key, value, LONGEST) for key in SIZES[:-1] for value in (1e9, 10**9, 10**400)),
    *((key, value, "its weights are 20 tensors") for key in SIZES[-1:] for value in (1e9, 10**9, 10**400)),
    *((key, NAN, "it must not be NaN") for key in (*SIZES, "rms_norm_eps", "rope_theta")),
    *((key, None, WHOLE) for key in ("hidden_size", "num_attention_heads")),
    *(("max_position_embeddings", value, WHOLE) for value in (-1, "x", 0)),
]


@pytest.mark.parametrize(("key", "value", "words"), WRONG_KINDS)
def test_a_value_of_the_wrong_kind(folder: Path, key: str, value: Any, words: str) -> None:
    change(folder, **{key: value})
    for read in (check_local, read_checkpoint, lambda name: hub_or_local_config({"pretrained": name})):
        if words in (LONGEST, "its weights are 20 tensors") and read not in (check_local, read_checkpoint):
            continue
        with pytest.raises(UserError) as caught:
            read(str(folder))
        said = str(caught.value)
        assert said.startswith(f"{folder}: config.json says {key} is ") and words in said
        assert said.endswith("use the config.json that belongs to these weights") and len(said) < 400 + len(str(folder))


def test_the_language_model_of_a_wrapped_one_is_checked_too(folder: Path) -> None:
    for inner, words in (
        ({"model_type": ["x"]}, 'text_config.model_type is ["x"], and it must be a text'),
        ({"quantization_config": [1]}, r"text_config.quantization_config is \[1\], and it must be an object"),
        ({"model_type": "llama", "head_dim": 0}, "text_config.head_dim is 0"),
        ({"vocab_size": 10**9}, "vocab_size is 1000000000, and no weight"),
    ):
        change(folder, text_config=inner)
        with pytest.raises(UserError, match=words.replace('["x"]', r'\["x"\]')):
            read_checkpoint(str(folder))


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"num_attention_heads": 7}, r"hidden size \(128\) is not a multiple of the number of attention heads \(7\); "),
        ({"num_key_value_heads": 7}, r"k_proj\.weight is stored as 128 x 128 and the config asks for 224 x 128"),
        ({"num_attention_heads": 4.0}, "num_attention_heads is 4.0, and it must be a whole number; "),
        ({"hidden_act": 3}, "hidden_act is 3, and it must be a text; "),
        ({"hidden_act": "x"}, "transformers knows no 'x'; "),
        ({"rope_parameters": {"rope_type": "nope"}}, "transformers knows no 'nope'; "),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": "x"}}, "TypeError: "),
        ({"rms_norm_eps": "x"}, 'rms_norm_eps is "x", and it must be a number; '),
        ({"attention_dropout": "x"}, 'attention_dropout is "x", and it must be a number; '),
        ({"intermediate_size": -5}, "negative dimension"),
        ({"layer_types": ["x"]}, "`layer_types` entries must be in"),
        ({"pad_token_id": 10**9}, "Padding_idx must be within num_embeddings; "),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_transformers_cannot_use_is_told_from_the_headers(folder: Path, said: dict[str, Any], words: str) -> None:
    """So that a plan says it as well, which loads nothing."""
    change(folder, **said)
    with pytest.raises(UserError, match=words) as caught:
        check_headers(read_checkpoint(str(folder)))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500 + len(str(folder))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "must hold a JSON object, not []"),
        ("null", "must hold a JSON object, not null"),
        ('"x"', 'must hold a JSON object, not "x"'),
        ("NaN", "must hold a JSON object, not NaN"),
        ("", "is empty"),
        ('{"x": ' + "[" * 10_000 + "]" * 10_000 + "}", "is nested too deeply"),
        ('{"x": ' + "[" * 300 + "]" * 300 + "}", "is nested too deeply (more than 100)"),
        ('{"x": "' + "a" * (50 << 20) + '"}', "has 50 MiB, and at most 16 are read"),
        ('{"x": ' + "9" * 5_000 + "}", "holds a number that cannot be read"),
    ],
    ids=lambda value: value[:12],
)
def test_a_file_that_is_no_config(folder: Path, text: str, words: str) -> None:
    (folder / "config.json").write_text(text)
    started = time.perf_counter()
    for read in (check_local, read_checkpoint):
        with pytest.raises(UserError) as caught:
            read(str(folder))
        assert "config.json" in str(caught.value) and words in str(caught.value)
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize(
    "said",
    [
        {"architectures": []},
        {"architectures": None, "auto_map": None, "quantization_config": None, "rope_scaling": None},
        {"text_config": None, "layer_types": None, "head_dim": None, "num_key_value_heads": None},
        {"torch_dtype": "float16", "dtype": "float32"},
        {"dtype": {"": "bfloat16"}},
        {"time_step_limit": [0.0, INFINITY], "vision_config": {"num_attention_heads": 0}},
        {"model_type": "openelm", "num_attention_heads": [12, 16], "head_dim": 0, "auto_map": {"AutoConfig": "a.B"}},
        {"auto_map": {"AutoTokenizer": ["a.B", None]}},
        {"model_type": "lxmert", "num_hidden_layers": {"vision": 5, "language": 9}},
    ],
)
def test_what_models_do_say_is_no_mistake(folder: Path, said: dict[str, Any]) -> None:
    change(folder, **said)
    check_local(str(folder))
    read_checkpoint(str(folder))


Harm = Callable[[Path], object]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (
            lambda folder: change(folder, quantization_config=[1]),
            "quantization_config is [1], and it must be an object",
        ),
        (lambda folder: change(folder, head_dim="a"), 'head_dim is "a", and it must be a whole number'),
        (lambda folder: change(folder, head_dim=10**9), "head_dim is 1000000000, and no weight has more than 512"),
        (lambda folder: change(folder, rope_scaling={"type": "nope", "factor": -1}), "transformers knows no 'nope'"),
        (lambda folder: (folder / "config.json").write_text("[]"), "must hold a JSON object, not []"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_plan_run_and_export_say_the_same(lm_eval, folder: Path, tmp_path: Path, harm: Harm, words: str) -> None:
    harm(folder)
    model = ("--model_args", f"pretrained={folder}")
    for command in (
        ("recipes", "plan", "svd", *model),
        ("run", "--model", "hf", *model, "--tasks", "int_mult", "--limit", 4, "--device", "cpu", "--recipe", "svd"),
        ("export", *model, "--recipe", "svd", "--out", tmp_path / "edited"),
    ):
        ran = lm_eval(*command)
        assert ran.code == 2 and "Traceback" not in ran.err and words in ran.err, ran.err
        assert ran.err.strip().splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "edited").exists() and not list(tmp_path.glob("results/*/*/receipt.json"))
