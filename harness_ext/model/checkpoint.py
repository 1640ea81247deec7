"""A checkpoint as it lies on disk or on the hub: its config and the shapes in its headers, without loading a weight.

Checked before a run: a missing or truncated safetensors file is named here, in one sentence, instead of deep inside a
loader; a checkpoint of pickled weights needs the user's leave.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from harness_ext.errors import UserError
from harness_ext.model.config_file import read_config, read_object, refuse_impossible
from harness_ext.model.safetensors_header import StoredTensor, read_header
from leaderboard.readers.plain_yaml import shown

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_ADAPTER = "adapter_config.json"
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
# transformers turns these into plain weights as it loads them, where it has no kernels for the packed ones.
_DEQUANTISED_ON_LOADING = {"fp8", "fbgemm_fp8", "mxfp4", "compressed-tensors"}


@dataclass(frozen=True)
class Checkpoint:
    """What is known of a model before it is loaded. tensors: by name, as stored; empty where there are no safetensors
    headers. shared: the other names of a parameter that several layers have in common, once that is known.
    modules: the class names of the model's modules, by name, once they are known.
    """

    name: str
    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    shared: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    modules: Mapping[str, str] = field(default_factory=dict)


def read_checkpoint(pretrained: str, revision: str = "main", subfolder: str = "") -> Checkpoint:
    """Read config and headers of a local folder or a hub name.

    Raises UserError where either cannot be had, or a file is missing or truncated.
    """
    folder = Path(pretrained, subfolder).expanduser()
    if folder.is_dir():
        config, tensors = read_config(folder / "config.json", pretrained), _local_tensors(folder)
        refuse_impossible(pretrained, tensors, config)
        return Checkpoint(pretrained, config, tensors)
    return _hub_checkpoint(pretrained, revision, subfolder)


def check_local(
    pretrained: str, subfolder: str = "", *, pickle_allowed: bool = False, to_be_edited: bool = True
) -> None:
    """Refuse a local folder that cannot be loaded safely or whole, or not edited; a hub name is the loader's business.

    Raises UserError for a missing config, a safetensors file that is missing, truncated or not what it says, pickled
    weights without leave, and weights with an adapter, to be edited.
    """
    folder = Path(pretrained, subfolder).expanduser()
    if not folder.is_dir():
        if subfolder and Path(pretrained).expanduser().is_dir():
            raise UserError(f"the model folder {pretrained} has no subfolder {subfolder}")
        if pretrained.startswith((".", "/", "~")):
            raise UserError(
                f"there is no model folder {pretrained}; give a local folder, a hub name, or `demo` for the embedded"
                " model"
            )
        return
    if (folder / _ADAPTER).is_file() and not (folder / "config.json").exists():
        base = read_object(folder / _ADAPTER).get("base_model_name_or_path") or "MODEL"
        raise UserError(
            f"{pretrained} holds an adapter ({_ADAPTER}) and no model: name the model that it was made for as well,"
            f" --model_args pretrained={base},peft={pretrained}"
        )
    config = read_config(folder / "config.json", pretrained)
    if to_be_edited and (folder / _ADAPTER).is_file() and find_spec("peft") is not None:
        raise UserError(adapter_inside(pretrained))
    if any(folder.glob("*.safetensors")) or (folder / INDEX).is_file():
        refuse_impossible(pretrained, _local_tensors(folder), config)
    elif any((folder / name).is_file() for name in _PICKLES):
        if not pickle_allowed:
            raise UserError(
                f"{pretrained} holds pickled weights ({_PICKLES[0]}), which can run code when they are loaded: convert"
                " them to safetensors, or, if you trust their source, say so with --model_args use_safetensors=False"
            )
    elif not any(folder.glob("*.gguf")):
        raise UserError(f"{pretrained} holds no weights: expected {SINGLE} or {INDEX} beside config.json")


def hub_or_local_config(model_args: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of the model that lm-eval's arguments name; empty where it cannot be had, which is the loader's
    business. Raises UserError where it is no config.
    """
    from huggingface_hub import hf_hub_download

    name, subfolder = str(model_args["pretrained"]), str(model_args.get("subfolder") or "")
    folder = Path(name, subfolder).expanduser()
    token = model_args.get("token")
    path = folder / "config.json"
    if not folder.is_dir():
        below = f"{subfolder}/config.json" if subfolder else "config.json"
        revision = str(model_args.get("revision") or "main")
        try:
            path = Path(hf_hub_download(name, below, revision=revision, token=token))
        except Exception:
            return {}
    return read_config(path, name) if path.exists() else {}


def quantisation(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a config says of how the checkpoint is quantised; empty for a plain one."""
    inner = config.get("text_config")
    wrapped = inner.get("quantization_config") if isinstance(inner, dict) else None
    found = config.get("quantization_config") or wrapped
    return found if isinstance(found, dict) else {}


def quantisation_method(config: Mapping[str, Any]) -> str | None:
    """The word for how a checkpoint is quantised; None for a plain one."""
    found = quantisation(config)
    if not found:
        return None
    bits = next((name for name in ("load_in_4bit", "load_in_8bit") if found.get(name)), None)
    return str(found.get("quant_method") or ("bitsandbytes" if bits else "an unknown method"))


def stays_packed(config: Mapping[str, Any]) -> bool:
    """Whether transformers keeps the weights of a quantised checkpoint packed on this machine."""
    method = quantisation_method(config)
    if method not in _DEQUANTISED_ON_LOADING:
        return method is not None
    from transformers.quantizers.auto import AutoHfQuantizer

    try:
        quantizer = AutoHfQuantizer.from_config(dict(quantisation(config)), pre_quantized=True)
        quantizer.validate_environment(device_map=None, weights_only=True)
    except (ImportError, ValueError, RuntimeError, TypeError):
        return True
    return not getattr(quantizer.quantization_config, "dequantize", False)


def _local_tensors(folder: Path) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    file_of: dict[str, Path] = {}
    for path in weight_files(folder):
        found = read_header(path)
        for name in found.keys() & file_of.keys():
            raise UserError(
                f"{folder} has the weight {name} twice, in {file_of[name].name} and in {path.name}: which of them is"
                " meant cannot be known; fetch or convert the checkpoint again"
            )
        file_of |= dict.fromkeys(found, path)
        tensors |= found
    return tensors


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers loads: the single one, or those that the index names, or whatever there
    is.
    """
    single, index = folder / SINGLE, folder / INDEX
    if single.is_file():
        return [single]
    if not index.is_file():
        return sorted(folder.glob("*.safetensors"))
    return indexed_files(index)


def indexed_files(index: Path) -> list[Path]:
    """The files that an index names, in its own folder. Raises UserError where it names none, or others."""
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} has no weight_map: fetch or copy it again")
    for weight, name in weight_map.items():
        if not isinstance(name, str) or not name:
            raise UserError(f"{index} names {shown(name)} as the file of {shown(weight)}: fetch or copy it again")
    return [_shard(index, name) for name in sorted(set(weight_map.values()))]


def _shard(index: Path, name: str) -> Path:
    """A file that an index names, in its folder. An index is untrusted: it may not lead elsewhere."""
    path, folder = Path(os.path.normpath(index.parent / name)), os.path.normpath(index.parent)
    if "\0" in name or Path(name).is_absolute() or not path.is_relative_to(folder) or str(path) == folder:
        raise UserError(
            f"{index} names {shown(name)!r}, which is no file of its folder: put all files of a model there"
        )
    return path


def check_adapter(name: str) -> None:
    """Refuse a path that holds no adapter; a hub name, and none, are the loader's business. Raises UserError."""
    folder = Path(name).expanduser()
    if folder.is_dir() and name:
        if not any((folder / file).is_file() for file in (_ADAPTER, "config.json")):
            raise UserError(f"{name} holds no adapter: it has no {_ADAPTER}")
    elif name.startswith((".", "/", "~")):
        raise UserError(f"there is no adapter folder {name}; give a local folder or a hub name")


def adapter_inside(name: str) -> str:
    """What to say of a model that transformers loads with an adapter in it."""
    return (
        f"{name} has an adapter beside its weights ({_ADAPTER}), whose part of the weights a recipe would leave out:"
        " merge it into them (merge_and_unload), or move it to a folder of its own and name that, --model_args"
        " pretrained=MODEL,peft=ADAPTER"
    )


def hub_commit(name: str, revision: str, files: Sequence[str]) -> str:
    """The commit that a hub name stands for now. files: one of these is in the repository; the first that is tells.

    Raises UserError where none can be had.
    """
    from huggingface_hub import hf_hub_download

    first: Exception | None = None
    for file in files:
        try:
            path = Path(hf_hub_download(name, file, revision=revision))
        except Exception as error:
            first = first or error
            continue
        parts = path.parts
        return parts[parts.index("snapshots") + 1] if "snapshots" in parts else revision
    assert first is not None
    raise _not_found(name, first) from None


def _hub_checkpoint(name: str, revision: str, subfolder: str) -> Checkpoint:
    from huggingface_hub import get_safetensors_metadata, hf_hub_download

    prefix = f"{subfolder}/" if subfolder else ""
    try:
        config_path = Path(hf_hub_download(name, f"{prefix}config.json", revision=revision))
    except Exception as error:
        raise _not_found(name, error) from None
    config = read_config(config_path, name)
    try:
        cached = Path(hf_hub_download(name, f"{prefix}{SINGLE}", revision=revision, local_files_only=True))
    except Exception:
        pass
    else:
        return Checkpoint(name, config, read_header(cached))
    try:
        files = get_safetensors_metadata(name, revision=revision).files_metadata.values()
    except Exception as error:
        raise UserError(
            f"the safetensors headers of {name} cannot be read: {_first_line(error)}; plan from a local folder instead"
        ) from None
    tensors = {
        key: StoredTensor(tuple(item.shape), str(item.dtype)) for file in files for key, item in file.tensors.items()
    }
    return Checkpoint(name, config, tensors)


def _not_found(name: str, error: Exception) -> UserError:
    refused = type(error).__name__ == "GatedRepoError" or any(code in str(error) for code in ("401 ", "403 "))
    way_out = (
        ". It may be gated or private: accept its terms on the hub, then log in with `hf auth login` or set HF_TOKEN,"
        " which config and tokenizer need as well (lm-eval gives `token=` to the weights alone)"
        if refused
        else ""
    )
    return UserError(
        f"the model {name!r} is neither a local folder nor to be had from the hub: {_first_line(error)}{way_out}"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
