"""Loading the model of lm-eval's arguments, with the mistakes of its files told as such."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from harness_ext.lm_eval_adapter.admission import loading
from harness_ext.lm_eval_adapter.backend import RecipeLM
from harness_ext.model.checkpoint import read_checkpoint
from harness_ext.model.completeness import check_headers


def load_model(
    name: str, arguments: Mapping[str, Any], extra: Mapping[str, Any] | None = None, secrets: Collection[str] = ()
) -> RecipeLM:
    """The model of lm-eval's arguments, unedited. name: as the user gave it, and secrets: what must not be in messages.

    Raises UserError for whatever its files make a loader raise, of which there are dozens of kinds.
    """
    with loading(name, secrets):
        _check_stored(arguments)
        return RecipeLM.create_from_arg_obj(dict(arguments), dict(extra or {}))


def _check_stored(arguments: Mapping[str, Any]) -> None:
    """Raise UserError where the headers of a local folder do not fit its config, before memory is taken for it."""
    name, subfolder = str(arguments.get("pretrained")), str(arguments.get("subfolder") or "")
    if Path(name, subfolder).expanduser().is_dir() and not arguments.get("gguf_file"):
        checkpoint = read_checkpoint(name, subfolder=subfolder)
        # Of these lm-eval loads another class than the one that is checked.
        if not checkpoint.config.get("is_encoder_decoder"):
            check_headers(checkpoint)
