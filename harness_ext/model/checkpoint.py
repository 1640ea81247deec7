"""A checkpoint as it lies on disk or on the hub: its config, the shapes in its headers, and its identity, all without
loading a weight.

Checked before a run: a missing or truncated safetensors file is named here, in one sentence, instead of deep inside a
loader; a checkpoint of pickled weights needs the user's leave.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from harness_ext.errors import UserError

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_HASHED = {".json", ".safetensors", ".bin", ".model", ".txt", ".jinja"}
_HEADER_LIMIT = 100 << 20
# transformers can turn these into plain weights as it loads them; whether it did is seen on the loaded model.
_DEQUANTISED_ON_LOADING = {"fp8", "fbgemm_fp8", "mxfp4", "compressed-tensors"}
_DTYPE_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}


class StoredTensor(NamedTuple):
    """A tensor as a safetensors header describes it; dtype is the format's word, such as F32 or BF16."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def element_bytes(self) -> int:
        """Bytes of one number."""
        return _DTYPE_BYTES.get(self.dtype, 4)


@dataclass(frozen=True)
class Checkpoint:
    """What is known of a model before it is loaded. tensors: by name, as stored; empty where there are no safetensors
    headers.
    """

    name: str
    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]


def read_checkpoint(pretrained: str, revision: str = "main", subfolder: str = "") -> Checkpoint:
    """Read config and headers of a local folder or a hub name.

    Raises UserError where either cannot be had, or a file is missing or truncated.
    """
    folder = Path(pretrained, subfolder).expanduser()
    if folder.is_dir():
        return Checkpoint(pretrained, _read_json(folder / "config.json"), _local_tensors(folder))
    return _hub_checkpoint(pretrained, revision, subfolder)


def check_local(
    pretrained: str, subfolder: str = "", *, pickle_allowed: bool = False, to_be_edited: bool = True
) -> None:
    """Refuse a local folder that cannot be loaded safely or whole, or not edited; a hub name is the loader's business.

    Raises UserError for a missing config, a missing or truncated safetensors file, pickled weights without leave, and
    packed weights to be edited.
    """
    folder = Path(pretrained, subfolder).expanduser()
    if not folder.is_dir():
        if pretrained.startswith((".", "/", "~")):
            raise UserError(
                f"there is no model folder {pretrained}; give a local folder, a hub name, or `demo` for the embedded"
                " model"
            )
        return
    config = _read_json(folder / "config.json")
    quantisation = config.get("quantization_config")
    method = quantisation.get("quant_method") if isinstance(quantisation, dict) else None
    if to_be_edited and method is not None and method not in _DEQUANTISED_ON_LOADING:
        raise UserError(
            f"{pretrained} is quantised ({method}), and quantised weights cannot be edited: use the checkpoint it was"
            " made from, in float32, bfloat16 or float16"
        )
    if any(folder.glob("*.safetensors")) or (folder / _INDEX).is_file():
        _local_tensors(folder)
    elif any((folder / name).is_file() for name in _PICKLES):
        if not pickle_allowed:
            raise UserError(
                f"{pretrained} holds pickled weights ({_PICKLES[0]}), which can run code when they are loaded: convert"
                " them to safetensors, or, if you trust their source, say so with --model_args use_safetensors=False"
            )
    elif not any(folder.glob("*.gguf")):
        raise UserError(f"{pretrained} holds no weights: expected {_SINGLE} or {_INDEX} beside config.json")


def identity(pretrained: str, revision: str = "main", subfolder: str = "") -> str:
    """What tells two models apart: for a folder the SHA-256 of its files, for a hub name the commit.

    Only contents count, so a copied folder is the same model, and a retrained one in the same place is another.
    """
    folder = Path(pretrained, subfolder).expanduser()
    if folder.is_dir():
        files = sorted(path for path in folder.iterdir() if path.suffix in _HASHED and path.is_file())
        with ThreadPoolExecutor(4) as pool:
            digests = list(pool.map(_file_digest, files))
        return (
            "sha256:"
            + hashlib.sha256(
                "".join(f"{path.name} {digest}\n" for path, digest in zip(files, digests, strict=True)).encode()
            ).hexdigest()
        )
    return f"{pretrained}@{_hub_commit(pretrained, revision)}"


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        hasher = hashlib.sha256()
        while block := file.read(1 << 22):
            hasher.update(block)
    return hasher.hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path.parent} is no model folder: it has no {path.name}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object")
    return value


def _local_tensors(folder: Path) -> dict[str, StoredTensor]:
    index = folder / _INDEX
    if index.is_file():
        weight_map = _read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise UserError(f"{index} has no weight_map")
        # A file name from an index is untrusted: only its last part is used.
        files = sorted({Path(str(name)).name for name in weight_map.values()})
    else:
        files = sorted(path.name for path in folder.glob("*.safetensors"))
    tensors: dict[str, StoredTensor] = {}
    for name in files:
        tensors |= read_header(folder / name)
    return tensors


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors that a safetensors file says it holds, after checking that it is as long as it says.

    Raises UserError naming the file where it is missing, truncated or not a safetensors file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0] if size >= 8 else _HEADER_LIMIT + 1
            if length > min(size - 8, _HEADER_LIMIT):
                raise UserError(
                    f"{path} is truncated or not a safetensors file ({size:,} bytes): fetch or copy it again"
                )
            header = json.loads(file.read(length))
        found = {
            name: StoredTensor(tuple(item["shape"]), item["dtype"])
            for name, item in header.items()
            if name != "__metadata__"
        }
        end = max((item["data_offsets"][1] for name, item in header.items() if name != "__metadata__"), default=0)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: the checkpoint is incomplete; fetch or copy it again") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as a safetensors file: {error}") from None
    if size < 8 + length + end:
        raise UserError(
            f"{path} is truncated: it has {size:,} bytes and its header promises {8 + length + end:,}; fetch or copy it"
            " again"
        )
    return found


def _hub_commit(name: str, revision: str) -> str:
    from transformers import AutoConfig

    try:
        commit = getattr(AutoConfig.from_pretrained(name, revision=revision), "_commit_hash", None)
    except (OSError, ValueError) as error:
        raise _not_found(name, error) from None
    return str(commit or revision)


def _hub_checkpoint(name: str, revision: str, subfolder: str) -> Checkpoint:
    from huggingface_hub import get_safetensors_metadata, hf_hub_download

    prefix = f"{subfolder}/" if subfolder else ""
    try:
        config = _read_json(Path(hf_hub_download(name, f"{prefix}config.json", revision=revision)))
    except Exception as error:
        raise _not_found(name, error) from None
    try:
        cached = Path(hf_hub_download(name, f"{prefix}{_SINGLE}", revision=revision, local_files_only=True))
        return Checkpoint(name, config, read_header(cached))
    except Exception:
        pass
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
    return UserError(f"the model {name!r} is neither a local folder nor to be had from the hub: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
