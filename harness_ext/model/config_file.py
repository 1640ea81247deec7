"""A model's `config.json`, read and checked: whatever is used of it is of the kind that it must be.

It may have been written by anyone, and transformers says little of one that lies: a text where a number belongs shows
itself deep inside a loader, in an error that names neither file nor key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness_ext.errors import UserError
from harness_ext.model.architectures import ARCHITECTURES, Architecture, architecture_named
from harness_ext.model.safetensors_header import StoredTensor
from leaderboard.errors import Unreadable
from leaderboard.readers.plain_yaml import shown
from leaderboard.readers.safe_json import load_json

_MENDED = "use the config.json that belongs to these weights"
_OBJECTS = ("auto_map", "quantization_config", "rope_parameters", "rope_scaling", "text_config")
_LISTS = ("architectures", "layer_types", "layers_block_type")
_SWITCHES = ("is_encoder_decoder", "multi_query", "new_decoder_architecture", "tie_word_embeddings")
_DTYPES = ("torch_dtype", "dtype")
_FLOATING = re.compile(r"(torch\.)?(b?float\d*|half|double)(_\w+)?")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_OF_GEOMETRY = {key for entry in ARCHITECTURES for key in entry.geometry} - set(_SWITCHES)
# Of a weight's rows and columns. A packed weight has fewer: 32 numbers of one bit lie in an integer.
_DIMENSIONS = tuple(sorted(_OF_GEOMETRY | {"head_dim", "num_key_value_heads", "vocab_size"}))
_SIZES = (*_DIMENSIONS, *_LAYERS, "max_position_embeddings", "n_positions")
_MOST_PACKED = 32
_FEW_LAYERS = 1_000
_DEEPEST = 100
_LARGEST = 16 << 20


def said(value: Any) -> str:
    """A value as the file has it, cut to a line."""
    try:
        return shown(json.dumps(value, ensure_ascii=False), 80)
    except ValueError:  # an integer of thousands of digits
        return shown(value, 80)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a model. Raises UserError naming the file where there is none."""
    try:
        value = load_json(path)
    except Unreadable as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise UserError(f"{path.parent} is no model folder: it has no {path.name}") from None
        raise UserError(f"{path.parent}: {error}; fetch or copy it again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object, not {said(value)}; fetch or copy it again")
    return value


def read_config(path: Path, name: str) -> dict[str, Any]:
    """The config of a model. name: the model, for messages.

    Raises UserError naming the first key whose value cannot be what a model has there.
    """
    if path.is_file() and (size := path.stat().st_size) > _LARGEST:
        raise UserError(
            f"{name}: config.json has {size / 2**20:.0f} MiB, and at most {_LARGEST // 2**20} are read; fetch or copy"
            " it again"
        )
    config = read_object(path)
    if _is_deep(config):
        raise UserError(f"{name}: config.json is nested too deeply (more than {_DEEPEST}); fetch or copy it again")
    for text, prefix in ((config, ""), (config.get("text_config"), "text_config.")):
        if isinstance(text, Mapping):
            for key, must in _mistakes(text):
                raise UserError(f"{name}: config.json says {prefix}{key} is {said(text[key])}, and {must}: {_MENDED}")
    return config


def _mistakes(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The keys with a value of the wrong kind, and what it must be. An absent key and a null are transformers'
    business, except where we use the value.
    """
    given = {key: value for key, value in config.items() if value is not None}
    if "model_type" in config and not isinstance(config["model_type"], str):
        yield "model_type", "it must be a text"
        return
    yield from ((key, "it must be an object") for key in _OBJECTS if not isinstance(given.get(key, {}), Mapping))
    yield from ((key, "it must be a list of texts") for key in _LISTS if not _are_texts(given.get(key, [])))
    yield from ((key, "it must be true or false") for key in _SWITCHES if not isinstance(given.get(key, True), bool))
    if not all(_are_texts(code if isinstance(code, list) else [code]) for code in given.get("auto_map", {}).values()):
        yield "auto_map", "it must give the name of a class for each name of one"
    yield from _wrong_dtypes(given)
    yield from ((key, "it must not be NaN") for key, value in given.items() if value != value)
    yield from _wrong_sizes(config, architecture_named(config.get("model_type")))


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(item is None or isinstance(item, str) for item in value)


def _wrong_dtypes(given: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    keys = [key for key in _DTYPES if key in given]
    yield from ((key, "it must be a text") for key in keys if not isinstance(given[key], (str, Mapping)))
    # Where both are there, the second counts.
    for key in keys[-1:]:
        if isinstance(given[key], str) and not _FLOATING.fullmatch(given[key]):
            yield key, "it must be a floating-point dtype such as float32, bfloat16 or float16"


def _wrong_sizes(config: Mapping[str, Any], architecture: Architecture | None) -> Iterator[tuple[str, str]]:
    """What must be a whole number. Models without an entry may have several, a number for each layer or part, and none
    of something; of one with an entry, the geometry must be there.
    """
    needed = set(architecture.geometry) - {"num_key_value_heads", *_SWITCHES} if architecture is not None else set()
    least = 0 if architecture is None else 1
    for key in (key for key in _SIZES if key in config):
        value = config[key]
        if value is None and key not in needed:
            continue
        several = architecture is None and isinstance(value, (list, dict))
        each = list(value.values() if isinstance(value, dict) else value) if several else [value]
        if not all(_is_whole(number) and number >= least for number in each):
            yield key, f"it must be a whole number, {least} or more"


def _is_whole(value: Any) -> bool:
    return not isinstance(value, bool) and (isinstance(value, int) or (isinstance(value, float) and value.is_integer()))


def _is_deep(config: Mapping[str, Any]) -> bool:
    """Whether objects and lists lie in one another so deep that nobody meant it, and copying them would fail."""
    level: list[Any] = [config]
    for _ in range(_DEEPEST):
        level = [
            item
            for part in level
            for item in (part.values() if isinstance(part, dict) else part)
            if isinstance(item, (dict, list))
        ]
        if not level:
            return False
    return True


def refuse_impossible(name: str, tensors: Mapping[str, StoredTensor], config: Mapping[str, Any]) -> None:
    """Raise UserError where the config can't be that of these tensors whatever its architecture: weights are stored as
    integers or booleans without a quantisation, and would be taken for their values; or there are more layers than
    tensors, or a size beyond that of any tensor, which would take forever to make.
    """
    if not config.get("quantization_config"):
        for key in (key for key, tensor in tensors.items() if key.endswith(".weight") and tensor.is_whole_numbers):
            raise UserError(
                f"{name}: the weight {key} is stored as {tensors[key].dtype}, whole numbers, and config.json names no"
                " quantization_config that says what they stand for: use the checkpoint it was made from"
            )
    for key, count in _numbers(config, _LAYERS):
        if isinstance(count, (str, bool)) or (isinstance(count, (int, float)) and not 0 <= count <= _most(tensors)):
            raise UserError(
                f"{name}: config.json says {key} is {said(count)}, and its weights are {len(tensors)} tensors:"
                f" {_MENDED}"
            )
    longest = max((size for tensor in tensors.values() for size in tensor.shape), default=0)
    parts = {"whole": config, "text": config.get("text_config")}
    for key, size in _numbers(parts, _DIMENSIONS):
        if longest and isinstance(size, (int, float)) and size > _MOST_PACKED * longest:
            raise UserError(
                f"{name}: config.json says {key} is {said(size)}, and no weight has more than {longest:,} rows or"
                f" columns: {_MENDED}"
            )


def _most(tensors: Mapping[str, StoredTensor]) -> int:
    return max(_FEW_LAYERS, len(tensors))


def _numbers(config: Mapping[str, Any], keys: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """The values of these keys, in a config and in the parts of it that are objects."""
    for part in (config, *(value for value in config.values() if isinstance(value, Mapping))):
        yield from ((key, part[key]) for key in keys if key in part)
