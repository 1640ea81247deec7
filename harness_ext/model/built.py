"""A model built from its config alone, without contents: what its parameters are called, their shapes, and the classes
of its modules.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def built_without_contents(config: Mapping[str, Any]) -> nn.Module | None:
    """The model that transformers makes of a config, on the meta device: a causal one, or else an encoder-decoder.

    None where transformers cannot build it, such as a model that comes with code of its own.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    if config.get("auto_map") or not config.get("model_type"):
        return None
    try:
        with silent(), torch.device("meta"):
            complete = type(AutoConfig.for_model(config["model_type"])).from_dict(dict(config))
            known = type(complete) in AutoModelForCausalLM._model_mapping
            return (AutoModelForCausalLM if known else AutoModelForSeq2SeqLM).from_config(complete)
    except Exception:
        # Whatever a config from anywhere brings about: the loader will say it in its own words.
        return None


def module_classes(model: nn.Module) -> dict[str, str]:
    """The class name of every module, by its name."""
    return {name: type(module).__name__ for name, module in model.named_modules()}


@contextmanager
def silent() -> Iterator[None]:
    """Without the bar that transformers draws and what it prints of missing weights, which is told elsewhere in a
    sentence.
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
