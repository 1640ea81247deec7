"""What the headers of a stored model say, before it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness_ext.errors import UserError
from harness_ext.model.checkpoint import Checkpoint, read_checkpoint
from harness_ext.model.renames import as_loaded


def stored_model(arguments: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint that lm-eval's model arguments name, as it is stored. Raises UserError where its headers cannot be
    had.
    """
    if gguf := arguments.get("gguf_file"):
        raise UserError(f"{gguf} has no safetensors headers")
    return read_checkpoint(
        str(arguments["pretrained"]),
        str(arguments.get("revision") or "main"),
        str(arguments.get("subfolder") or ""),
    )


def model_to_be_loaded(arguments: Mapping[str, Any]) -> Checkpoint | None:
    """The checkpoint as it will be loaded; None where its headers cannot be had, which is then the loader's
    business.
    """
    try:
        loaded = as_loaded(stored_model(arguments), foreign_code=bool(arguments.get("trust_remote_code")))
    except UserError:
        return None
    return loaded if loaded.tensors else None
