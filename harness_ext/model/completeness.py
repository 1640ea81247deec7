"""Does a checkpoint have every weight of its model? transformers fills what is missing, or has another shape, with
random numbers, warns, and goes on; here it is refused.

Asked of transformers itself, so that its own rules hold: tied weights, renamed and fused ones, buffers that a model
computes. Of a loaded model by what loading reports, and of a checkpoint's headers by loading tensors without contents.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from harness_ext.errors import UserError
from harness_ext.model.checkpoint import Checkpoint, read_checkpoint
from harness_ext.model.config_file import said
from harness_ext.model.factored_checkpoint import METHOD
from harness_ext.model.shard_files import TORCH_NAMES
from leaderboard.readers.plain_yaml import shown

# Of older releases: a model computes them from its config, so nothing is lost where a checkpoint lacks them.
_COMPUTED = re.compile(r"(^|\.)(inv_freq|masked_bias|position_ids)$")
_OTHER_SHAPES = "bitsandbytes"
"""Whose packed weights have not the shape of the layer's."""
# How peft begins its list of them.
_ADAPTER_MISSING = "ound missing adapter keys while loading the checkpoint: "
# How transformers' checks of a config begin what they say: of one field, and of several together.
_WRONG_FIELD = re.compile(r"Field '(\w+)' expected (?!NoneType)(\w+)")
_WRONG_CLASS = re.compile(r"^Class validation error for validator '\w+': \w+: ")
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "dict": "an object",
    "list": "a list",
}


class WholeModels:
    """An Auto class of transformers whose `from_pretrained` refuses a checkpoint that lacks weights.

    unexpected: told the names of stored weights that the model has no place for. finished: what becomes of a whole
    model.
    """

    def __init__(
        self,
        auto_class: Any,
        unexpected: Callable[[list[str]], None],
        finished: Callable[[Any], Any] = lambda model: model,
    ) -> None:
        self._auto_class = auto_class
        self._unexpected = unexpected
        self._finished = finished

    def from_pretrained(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """The model. Raises UserError naming the first missing weight, or where weights cannot be put together."""
        asked = {**kwargs, "output_loading_info": True, "ignore_mismatched_sizes": True}
        method = getattr(kwargs.get("quantization_config"), "quant_method", None)
        if method == METHOD:
            # lm-eval gives what the checkpoint itself says, and transformers warns of two.
            del asked["quantization_config"]
        if method == _OTHER_SHAPES:
            # It would fill them with random numbers. Without this it raises for the others.
            del asked["ignore_mismatched_sizes"]
        try:
            model, info = self._auto_class.from_pretrained(name, *args, **asked)
        except RuntimeError as error:
            raise UserError(f"the model {name!r} cannot be loaded: {error}") from error
        if getattr(model, "_hf_peft_config_loaded", False):
            # transformers reports on the adapter only, which lies in the same folder.
            check_headers(read_checkpoint(name, str(kwargs.get("revision") or "main"), kwargs.get("subfolder") or ""))
        refuse_incomplete(str(name), info)
        self._unexpected(sorted(key for key in info["unexpected_keys"] if not _COMPUTED.search(key)))
        return self._finished(model)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._auto_class, name)


def refuse_incomplete(name: str, info: Mapping[str, Any]) -> None:
    """Raise UserError where loading reported weights that are missing or have another shape. info: as transformers'
    `output_loading_info` gives it.
    """
    missing = sorted((key for key in info["missing_keys"] if not _COMPUTED.search(key)), key=_natural)
    if missing:
        raise UserError(
            f"{name} lacks {_counted(missing)}, and would be filled with random numbers: this is not the whole model."
            " Check that its config.json belongs to its weights, and fetch, copy or convert the checkpoint again"
        )
    mismatched = sorted(info["mismatched_keys"], key=lambda item: _natural(item[0]))
    if mismatched:
        key, stored, expected = mismatched[0]
        others = f" (and {len(mismatched) - 1} more have another shape)" if len(mismatched) > 1 else ""
        raise UserError(
            f"{name}: the weight {key} is stored as {_shape(stored)} and the config asks for"
            f" {_shape(expected)}{others}: it would be filled with random numbers. Use the config.json that belongs to"
            " these weights"
        )


def check_headers(checkpoint: Checkpoint) -> None:
    """Raise UserError where a checkpoint's headers lack a weight of its model, or have one in another shape.

    Nothing is said of a model that transformers cannot build without running foreign code, nor of a quantised one,
    whose weights are stored in a form of their own: these are checked as they are loaded.
    """
    config = checkpoint.config
    if not checkpoint.tensors or config.get("quantization_config") or config.get("auto_map"):
        return
    with silent():
        info = _loading_info(checkpoint)
    if info is not None:
        refuse_incomplete(checkpoint.name, info)


def _loading_info(checkpoint: Checkpoint) -> Mapping[str, Any] | None:
    """What transformers reports when it loads tensors of these names and shapes; None where it cannot do so, which the
    loader will say in its own words. Raises UserError where transformers knows the model's type and cannot make it of
    its config.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = None
    try:
        config = config_of(checkpoint.config)
        with torch.device("meta"):
            model_class = type(AutoModelForCausalLM.from_config(config))
    except Exception as error:
        _refuse_config(checkpoint, error, only_causal=config is not None)
        return None
    try:
        state = {
            name: torch.empty(
                tensor.shape, dtype=getattr(torch, TORCH_NAMES.get(tensor.dtype, "float32")), device="meta"
            )
            for name, tensor in checkpoint.tensors.items()
        }
        _, info = model_class.from_pretrained(
            None,
            config=config,
            state_dict=state,
            device_map={"": "meta"},
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except Exception:
        return None
    return info


def _refuse_config(checkpoint: Checkpoint, error: Exception, *, only_causal: bool) -> None:
    """Raise UserError where transformers knows the model's type and cannot use its config. Whatever else keeps it from
    building the model, the loader will say.

    only_causal: it could read the config and not build the model, as of types that are no causal language models.
    """
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    kind = checkpoint.config.get("model_type")
    if isinstance(error, ImportError) or not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        return
    if not only_causal or CONFIG_MAPPING[kind] in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(
            f"{checkpoint.name}: config.json cannot be that of a {kind} model: {_reason(error, checkpoint.config)}; use"
            " the config.json that belongs to these weights"
        ) from error


def _reason(error: Exception, config: Mapping[str, Any]) -> str:
    """What transformers has against a config, in a line. Its checks of single fields say first which."""
    words = " ".join(str(error).split())
    if fields := _WRONG_FIELD.findall(words):
        field, kind = fields[-1]
        return f"{field} is {said(config.get(field))}, and it must be {_KINDS.get(kind, kind)}"
    if isinstance(error, KeyError):
        return f"transformers knows no {shown(words, 80)}"
    plain, counted = _WRONG_CLASS.subn("", words.rstrip("."))
    return (
        shown(plain, 300)
        if counted or isinstance(error, ValueError)
        else f"{type(error).__name__}: {shown(words, 300)}"
    )


def config_of(stored: Mapping[str, Any]) -> Any:
    """The config that transformers makes of a `config.json`. Raises whatever transformers does."""
    from transformers import AutoConfig

    with TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(stored), encoding="utf-8")
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)


@contextmanager
def refusing_incomplete_adapters(name: str) -> Iterator[None]:
    """Inside the block, a warning of peft's that an adapter lacks weights is an error: UserError."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", f".*{_ADAPTER_MISSING}")
        yield
    for warning in caught:
        _, found, listed = str(warning.message).partition(_ADAPTER_MISSING)
        if found:
            keys = [key.strip(" '\"") for key in listed.strip("[].").split(",")]
            raise UserError(
                f"the adapter {name} lacks {_counted(keys)}, and would be filled with a fresh one's numbers: it was"
                " made for another model, or is not whole"
            )
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def _counted(names: Iterable[str]) -> str:
    first, *others = names
    more = f" and {len(others)} more" if others else ""
    return f"the weight {first}{more}, which the config asks for"


def _natural(name: str) -> list[tuple[int, str]]:
    """Layer 2 before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def _shape(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape)) or "one number"


@contextmanager
def silent() -> Iterator[None]:
    """Inside the block transformers says nothing: it draws a bar and prints a table of what is missing, which is told
    here in a sentence.
    """
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
