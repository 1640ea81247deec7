"""What is refused before a model is loaded: it takes minutes to load and hours to score, and a sentence says it now.

Judged from lm-eval's arguments of the model and from its config.json alone. What only the loaded model can tell (an
encoder-decoder without a config, weights that stay packed) is asked again before anything is scored.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness_ext.demo import demo_path
from harness_ext.errors import UserError, nearest
from harness_ext.model.checkpoint import (
    check_adapter,
    check_local,
    hub_or_local_config,
    quantisation_method,
    stays_packed,
)
from harness_ext.model.dequantize import asks_to_dequantize, check_dequantize, refuse_quantised
from leaderboard.readers.plain_yaml import shown
from leaderboard.readers.secrets import redacted

if TYPE_CHECKING:
    from torch import nn

    from harness_ext.recipe.recipe import Recipe

_PACKED = {
    "load_in_4bit": "bitsandbytes",
    "load_in_8bit": "bitsandbytes",
    "autogptq": "AutoGPTQ",
    "gptqmodel": "GPTQModel",
    "quantization_config": "quantization_config",
}
_NOT_OURS = {
    "hf-multimodal": "reads images",
    "hf-audiolm-qwen": "reads sounds",
    "hf-mistral3": "loads the whole model for images",
    "mamba_ssm": "loads a model of the package mamba_ssm",
    "steered": "adds vectors to activations",
}
_SERVED = frozenset(
    {
        *("anthropic-chat", "anthropic-chat-completions", "anthropic-completions", "litellm", "litellm-chat"),
        *("litellm-chat-completions", "local-chat-completions", "local-completions", "openai-chat-completions"),
        *("openai-completions", "sglang-generate", "textsynth", "watsonx_llm", "gguf", "ggml"),
    }
)
"""Backends that ask a server, which holds the weights."""
_DTYPES = ("auto", "float32", "bfloat16", "float16", "float64", "float", "half", "double")
_BACKENDS = ("default", "causal", "seq2seq")
"""For a chat template and one conversation; one takes milliseconds."""
_UNEXPECTED = re.compile(r"__init__\(\) got an unexpected keyword argument ('[^']*')")
_SAME_AS_HF = "transformers loads the same checkpoint: use --model hf"


def refuse_backend(name: str) -> None:
    """Raise UserError: the backend is none whose weights can be edited."""
    if name in _NOT_OURS:
        way_out = _SAME_AS_HF if name != "steered" else "use --model hf, without the steering vectors"
        raise UserError(
            f"--recipe edits weights of a text model that transformers holds, and the backend {name!r}"
            f" {_NOT_OURS[name]}: {way_out}, or run without --recipe"
        )
    if name in _SERVED:
        raise UserError(
            f"--recipe edits weights, and those of the backend {name!r} lie with a server: use --model hf or vllm with"
            " the model's folder or hub name, or run without --recipe and put the results on the board by `lm_eval"
            " ingest`"
        )
    from lm_eval.models import MODEL_MAPPING

    if name not in MODEL_MAPPING:
        raise UserError(f"--model {name}: lm-eval has no such backend; {nearest(name, [*MODEL_MAPPING])}")
    raise UserError(
        f"--recipe edits weights in memory, which the backend {name!r} does not allow: use --model hf or vllm with the"
        " model's folder or hub name, or run without --recipe. To serve an edited model elsewhere, write it with"
        " `lm_eval export` first"
    )


def check_all(model_args: Mapping[str, Any], recipes: Sequence[Recipe], device: str | None = None) -> None:
    """Every check of this module that needs no tokenizer, and that of the checkpoint's files. device: what was asked
    for, where `model_args` do not say. Raises UserError.
    """
    edited = [recipe for recipe in recipes if recipe.steps]
    dequantize = asks_to_dequantize(model_args)
    if edited:
        check_arguments(model_args)
    if model_args.get("tp_plan"):
        check_cut(model_args, edited, device or model_args.get("device"))
    _raise_first(file_mistakes(model_args, to_be_edited=bool(edited)))
    if dequantize:
        check_dequantize(str(model_args["pretrained"]), hub_or_local_config(model_args))
    check_model(model_args, edited)


def _raise_first(mistakes: Iterator[tuple[str, str]]) -> None:
    for _, sentence in mistakes:
        raise UserError(sentence)


def file_mistakes(model_args: Mapping[str, Any], *, to_be_edited: bool) -> Iterator[tuple[str, str]]:
    """What is wrong with the local files that the arguments name: the argument, and a sentence. What is on the hub is
    the loader's business.
    """
    pretrained, adapter = str(model_args["pretrained"]), "peft" if model_args.get("peft") else "delta"
    checks: dict[str, Callable[[], None]] = {
        "gguf_file": lambda: check_gguf(model_args),
        adapter: lambda: check_adapter(str(model_args.get(adapter) or "")),
    }
    if not model_args.get("gguf_file"):
        checks["pretrained"] = lambda: check_local(
            pretrained,
            str(model_args.get("subfolder") or ""),
            pickle_allowed=model_args.get("use_safetensors") is False,
            to_be_edited=to_be_edited,
        )
    for name, check in checks.items():
        try:
            check()
        except UserError as error:
            yield name, str(error)


def check_arguments(model_args: Mapping[str, Any]) -> None:
    """Refuse arguments that load weights in a form which cannot be edited, or that no loader could follow.

    Raises UserError.
    """
    _raise_first(argument_mistakes(model_args))


def argument_mistakes(model_args: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """All that `check_arguments` refuses: the argument, and a sentence."""
    try:
        asks_to_dequantize(model_args)
    except UserError as error:
        yield "dequantize", str(error)
    for name, how in _PACKED.items():
        value = model_args.get(name)
        if not value or (name == "quantization_config" and _asks_for_dense(value)):
            continue
        yield (
            name,
            f"{name}={value!r} loads packed weights ({how}), which cannot be edited: leave it out and load float32,"
            " bfloat16 or float16 (dtype=...); `lm_eval export` writes the edited model, which can be quantised then",
        )
    if "://" in str(model_args.get("pretrained")):
        yield (
            "pretrained",
            "pretrained is a URL, which no backend here loads: give a hub name (ORG/NAME), a local folder, or `demo`",
        )
    yield from _word_mistakes(model_args)
    if model_args.get("peft") and model_args.get("delta"):
        yield "delta", "peft and delta are both given, and lm-eval takes one adapter: leave one of them out"


def check_cut(model_args: Mapping[str, Any], recipes: Sequence[Recipe], device: str | None = None) -> None:
    """Refuse what cannot be done with matrices that `tp_plan` cuts into pieces over processes. device: what was asked
    for. Raises UserError.
    """
    for name in ("peft", "delta"):
        if model_args.get(name):
            raise UserError(
                f"{name} and tp_plan are both given, and an adapter cannot be made part of matrices that are cut into"
                " pieces: merge it and save the model first, and name the folder as pretrained"
            )
    learning = [
        recipe.label
        for recipe in recipes
        if any(step.calibration is not None or step.contrast is not None or step.is_search for step in recipe.steps)
    ]
    if learning:
        label, pretrained = learning[0], model_args["pretrained"]
        pretrained = "demo" if str(pretrained) == str(demo_path()) else pretrained
        raise UserError(
            f"tp_plan cuts each matrix into pieces, and {' and '.join(map(repr, learning))} learns from documents, for"
            " which layers must be whole. Edit layer by layer first, and score what comes of it: `lm_eval export"
            f" --layers_on {_kind_of(device)} --model_args pretrained={pretrained} --recipe {label} ...`, then"
            " pretrained=ITS_FOLDER with tp_plan. What a search found in an earlier run can be replayed: `lm_eval"
            " recipes show --from RUN > found.yaml`, and --recipe found.yaml"
        )
    if factored := [recipe.label for recipe in recipes if any(step.factored for step in recipe.steps)]:
        raise UserError(
            f"tp_plan cuts each matrix into pieces, and {factored[0]!r} puts two low-rank layers in the place of it:"
            " set factored=false, or use --model_args parallelize=True"
        )


def _kind_of(device: str | None) -> str:
    """`cuda`, `cpu`, `mps`: the kind of the device that was asked for, of none that a command would take."""
    kind = str(device or "").partition(":")[0]
    if kind not in ("", "auto"):
        return kind
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _word_mistakes(model_args: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Arguments that are one of a few words or a number, and that lm-eval would use unseen."""
    for name in ("dtype", "softmax_dtype", "mixed_precision_dtype"):
        value = model_args.get(name)
        if isinstance(value, str) and value not in _DTYPES:
            yield name, f"{name}={value} is no dtype that weights can be edited in: give {', '.join(_DTYPES)}"
    backend = model_args.get("backend")
    if backend is not None and backend not in _BACKENDS:
        yield "backend", f"backend={backend} is not known: give {', '.join(_BACKENDS)}, or leave it out"
    for name in ("max_length", "prefix_token_id"):
        value = model_args.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            yield name, f"{name}={value} must be a whole number of tokens, 0 or more"


@contextmanager
def loading(name: str, secrets: Collection[str] = ()) -> Iterator[None]:
    """Inside the block, whatever keeps a model from being loaded is a UserError that names it.

    secrets: what must not be in the message.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # What follows an empty line is about other matters, such as how to upgrade.
        first = " ".join(str(error).strip().partition("\n\n")[0].split())
        words = redacted(shown(first, 500), secrets)
        if argument := _UNEXPECTED.search(words):
            words = f"no model of its kind takes the argument {argument[1]}; leave it out of --model_args"
        elif not isinstance(error, (OSError, ValueError, ImportError, RuntimeError)):
            words = ": ".join(filter(None, (type(error).__name__, words)))
            words += " (one of its files may be cut short, or not be what its name says)"
        raise UserError(f"the model {name!r} cannot be loaded: {words or type(error).__name__}") from error


def _asks_for_dense(value: Any) -> bool:
    return bool(value.get("dequantize") if isinstance(value, Mapping) else getattr(value, "dequantize", False))


def check_model(model_args: Mapping[str, Any], recipes: Sequence[Recipe]) -> None:
    """Refuse a model that its config shows to be quantised, or an encoder-decoder where a recipe learns from documents.

    Raises UserError.
    """
    if not recipes or model_args.get("gguf_file"):
        return
    config = hub_or_local_config(model_args)
    method = quantisation_method(config)
    dense = asks_to_dequantize(model_args) or _asks_for_dense(model_args.get("quantization_config"))
    if method is not None and not dense and stays_packed(config):
        refuse_quantised(str(model_args["pretrained"]), method, config)
    if model_args.get("backend") != "causal":
        _check_encoder(model_args, config, recipes)


def _check_encoder(model_args: Mapping[str, Any], config: Mapping[str, Any], recipes: Sequence[Recipe]) -> None:
    """Refuse a recipe that learns where lm-eval would load a model with an encoder, and a decoder by itself that it
    would load as such. lm-eval goes by the model's type, not by `is_encoder_decoder`.

    Raises UserError.
    """
    import transformers
    from transformers.models.auto import modeling_auto

    kind = str(config.get("model_type", "this model"))
    whole = modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.get(kind)
    alone = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
    if whole is not None:
        encodes = _takes_decoder_tokens(getattr(transformers, whole))
    else:
        declared = config.get("is_encoder_decoder") or model_args.get("backend") == "seq2seq"
        encodes = alone is None and bool(declared)
    if not encodes:
        return
    if alone is not None and config.get("is_encoder_decoder") is False:
        raise UserError(
            f"{model_args['pretrained']} is the decoder of a {kind} by itself (is_encoder_decoder is false in its"
            f" config.json), and lm-eval would load a {kind} with its encoder: add backend=causal to --model_args"
        )
    refuse_calibrated(recipes, kind)


def has_encoder(model: nn.Module) -> bool:
    """Whether a loaded model runs an encoder on its input, and asks for the tokens of a decoder as well.

    A decoder by itself (`BartForCausalLM`) has none, though its type is that of the whole model.
    """
    plain = getattr(model, "get_base_model", lambda: model)()
    return bool(getattr(model.config, "is_encoder_decoder", False)) or _takes_decoder_tokens(type(plain))


def _takes_decoder_tokens(model_class: type[nn.Module]) -> bool:
    return "decoder_input_ids" in inspect.signature(model_class.forward).parameters


def refuse_calibrated(recipes: Sequence[Recipe], model_type: str) -> None:
    """Raise UserError where a recipe reads documents with the model, which is done with decoders alone.

    model_type: of an encoder-decoder.
    """
    learning = [
        recipe.label
        for recipe in recipes
        if any(step.calibration is not None or step.contrast is not None for step in recipe.steps)
    ]
    if learning:
        raise UserError(
            f"{model_type} is an encoder-decoder, and {' and '.join(map(repr, learning))} learns from documents, which"
            " is done for decoder-only models alone: choose a recipe that needs the weights only (svd, laser,"
            " magnitude, random-subspace, ...), which edits encoder and decoder"
        )


def check_gguf(model_args: Mapping[str, Any]) -> None:
    """Refuse a folder of GGUF files of which none is named, a file that is not there or no GGUF, and a missing reader.

    Raises UserError.
    """
    pretrained = str(model_args["pretrained"])
    folder = Path(pretrained, str(model_args.get("subfolder") or "")).expanduser()
    named = str(model_args.get("gguf_file") or "")
    if folder.is_file() and folder.suffix.lower() == ".gguf":
        raise UserError(
            f"{pretrained} is a GGUF file: give its folder and its name, --model_args"
            f" pretrained={folder.parent},gguf_file={folder.name}"
        )
    if not named:
        files = sorted(path.name for path in folder.glob("*.gguf")) if folder.is_dir() else []
        if files and not (folder / "config.json").is_file():
            raise UserError(
                f"{pretrained} holds GGUF files and no config.json: name one of them, --model_args"
                f" pretrained={pretrained},gguf_file={files[0]}"
            )
        return
    path = next((path for path in (Path(named), folder / named) if path.is_file()), None)
    if path is None and folder.is_dir():
        raise UserError(f"gguf_file={named}: there is no such file in {pretrained}")
    if path is not None:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise UserError(f"{path} is no GGUF file: it does not begin with the letters GGUF; fetch it again")
    from importlib.util import find_spec

    if find_spec("gguf") is None:
        raise UserError("transformers reads GGUF files with the package gguf, which is not installed: pip install gguf")
