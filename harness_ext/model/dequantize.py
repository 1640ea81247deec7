"""`dequantize=true` among the arguments of a model: a checkpoint that is stored packed is loaded as plain weights, by
transformers' own options. Which checkpoints can be, and what is said of the others, follows from their config alone.

The numbers are those that the packed weights stand for, in the dtype of the model; what was lost by packing stays lost.
So a dequantised model is another than the packed one (whose layers compute in a form of their own), and than the one
that it was made from.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from harness_ext.errors import UserError
from harness_ext.model.checkpoint import quantisation, quantisation_method
from harness_ext.model.factored_checkpoint import METHOD
from leaderboard.errors import Unreadable
from leaderboard.readers.plain_yaml import parse_yaml, shown

ARGUMENT = "dequantize"
_BITSANDBYTES = "bitsandbytes"
_BY_TRANSFORMERS = (_BITSANDBYTES, "compressed-tensors", "fp8", "mxfp4")
"""What transformers makes plain weights of: the last three as it loads them, the first afterwards."""
_PACKAGES = {_BITSANDBYTES: "bitsandbytes", "compressed-tensors": "compressed_tensors"}
_NEVER = ("gptq", "awq")
_PACKING = ("load_in_4bit", "load_in_8bit", "autogptq", "gptqmodel", "quantization_config")
_NAME = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")
"""A model on the hub; what else a config may hold is a path of whoever wrote it."""
_BASE_MODEL = re.compile(r"^base_model:.*\n([ \t-].*\n)*", re.MULTILINE)
_LONGEST_CARD = 100_000


def asks_to_dequantize(model_args: Mapping[str, Any]) -> bool:
    """Whether the arguments ask for plain weights. Raises UserError where that is neither true nor false, or where
    others ask for the opposite.
    """
    value = model_args.get(ARGUMENT)
    if value is not None and not isinstance(value, bool):
        raise UserError(f"{ARGUMENT}={shown(value)} must be true or false")
    if not value:
        return False
    for name in _PACKING:
        if model_args.get(name):
            raise UserError(
                f"{ARGUMENT}=true unpacks weights that a checkpoint stores packed, and {name}={shown(model_args[name])}"
                f" says how to load packed ones: leave {name} out; a checkpoint that stores plain weights is edited"
                " without either"
            )
    if model_args.get("gguf_file"):
        raise UserError(f"a GGUF file is unpacked in any case: leave {ARGUMENT} out")
    return True


def check_dequantize(name: str, config: Mapping[str, Any]) -> None:
    """Raise UserError where a checkpoint cannot be loaded dequantised, or is not quantised. name: as the user gave it,
    which may be a folder. config: of it; nothing is said where it is empty, since it could not be had.
    """
    method = quantisation_method(config)
    if method is None and config:
        raise UserError(
            f"{ARGUMENT}=true is for quantised checkpoints, and the config.json of {name} names no quantisation"
            f" (quantization_config): leave {ARGUMENT} out, its weights are plain"
        )
    if method is not None and method not in _BY_TRANSFORMERS:
        refuse_quantised(name, method, config)
    package = _PACKAGES.get(str(method))
    if package is not None and find_spec(package) is None:
        raise UserError(
            f"transformers unpacks {method} weights with the package {method}, which is not installed: pip install"
            f" {method}"
        )


def refuse_quantised(name: str, method: str, config: Mapping[str, Any] | None = None) -> None:
    """Raise UserError: weights that are packed cannot be edited, and what can be done instead. config: of the
    checkpoint, which may name the model that it was made from.
    """
    if method == METHOD:
        raise UserError(
            f"{name} is a factored checkpoint, whose matrices are kept as factors, and recipes edit whole ones: use the"
            " checkpoint it was made from, or save a dense copy (in transformers, `model.dequantize()` and"
            " `model.save_pretrained(DIR)`) and name that"
        )
    base = base_model(name, config or {})
    origin = "the checkpoint it was made from" if base is None else f"the checkpoint it was made from, {base}"
    cannot = f"{name} is quantised ({method}), and quantised weights cannot be edited"
    if method in _BY_TRANSFORMERS:
        raise UserError(
            f"{cannot}: add {ARGUMENT}=true to --model_args, which loads, edits and scores it dequantised, the baseline"
            f" too; or use {origin}, in float32, bfloat16 or float16"
        )
    if method in _NEVER:
        where = "" if base else " (its model card names it, under base_model)"
        raise UserError(
            f"{cannot}, nor can transformers unpack those of {method} ({ARGUMENT}=true is for"
            f" {', '.join(_BY_TRANSFORMERS)}): use {origin}{where}, in float32, bfloat16 or float16"
        )
    raise UserError(
        f"{cannot}: use {origin}, in float32, bfloat16 or float16, or save a dequantised copy (in transformers,"
        " `model.dequantize()` and `model.save_pretrained(DIR)`, where it can) and name that"
    )


def base_model(name: str, config: Mapping[str, Any]) -> str | None:
    """The model that a quantised checkpoint was made from, as its model card or else its config says; None where
    neither is on this machine or says so. The network is not asked.
    """
    said = [_base_in_card(name), quantisation(config).get("model_name_or_path"), config.get("_name_or_path")]
    return next((value for value in said if isinstance(value, str) and _NAME.fullmatch(value) and value != name), None)


def _base_in_card(name: str) -> Any:
    """What the front matter of a model card, in a local folder or in the hub's cache, says under `base_model`."""
    path = _card_path(name)
    try:
        text = path.read_text(encoding="utf-8", errors="replace")[:_LONGEST_CARD] if path is not None else ""
        found = _BASE_MODEL.search(text.partition("\n---")[0] + "\n")
        named = parse_yaml(found[0])["base_model"] if found else None
    except (OSError, Unreadable):
        return None
    return named[0] if isinstance(named, list) and named else named


def _card_path(name: str) -> Path | None:
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder / "README.md"
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(name, "README.md")
    except HFValidationError:
        return None
    return Path(cached) if isinstance(cached, str) else None


def dense_quantization(config: Mapping[str, Any]) -> Any:
    """transformers' own settings for a checkpoint, asking for plain weights where it makes them as it loads; the others
    are for `unpacked`.
    """
    from transformers.quantizers.auto import AutoQuantizationConfig

    settings = AutoQuantizationConfig.from_dict(dict(quantisation(config)))
    if hasattr(settings, ARGUMENT):
        settings.dequantize = True
    return settings


def packed_as(config: Any) -> str | None:
    """How the weights of a loaded model are quantised, from the config that it has then; None where they are plain."""
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    as_dict = found if isinstance(found, Mapping) else vars(found)
    if as_dict.get("dequantize"):
        return None
    kind = as_dict.get("quant_method") or "an unknown method"
    return str(getattr(kind, "value", kind))


def unpacked(model: Any) -> Any:
    """A model that is to have plain weights, with such: it is unpacked now where loading left it packed."""
    if packed_as(model.config) is not None:
        model = model.dequantize()
    return forget_packing(model)


def forget_packing(model: Any) -> Any:
    """A model that was unpacked as it was loaded, to be saved with the weights that it has: transformers would do again
    in reverse what it did when it loaded them, and so round edited weights to the packed form.
    """
    model._weight_conversions = None
    return model


@contextmanager
def one_set_of_settings() -> Iterator[None]:
    """Inside the block transformers does not warn that a checkpoint's own settings are given again, which is how it is
    asked for plain weights.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You passed `quantization_config`")
        yield


def unpacked_gguf() -> Any:
    """What has transformers unpack a GGUF file into plain weights also where it has kernels for the packed ones; None
    for releases that always unpack.
    """
    import transformers

    config = getattr(transformers, "GgufConfig", None)
    return config(dequantize=True) if config is not None else None
