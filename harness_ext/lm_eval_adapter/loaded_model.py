"""lm-eval's Hugging Face backend around a model that is in memory already, and stays its owner's.

lm-eval's constructor would put the model into evaluation mode, tie its weights anew and give its tokenizer a padding
token. So it sees only the device and the config of the model, which comes in afterwards, and a copy of the tokenizer.
Without a tokenizer a stand-in fills its place: a recipe that learns nothing never asks for one.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import configure_pad_token

from harness_ext.errors import UserError
from harness_ext.lm_eval_adapter.backend import RecipeLM, backend_of
from harness_ext.progress import Progress

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_CONSTRUCTOR_LOG = "lm_eval.models.huggingface"


class LoadedModel(RecipeLM):
    """`RecipeLM` around a loaded model, on the model's own device and in its dtype.

    tokenizer: the model's, or None where no text will be read. The model's owner sees no change until `apply`.

    Raises UserError for what is no transformers model, and for one with an adapter, whose weights would have to be
    merged for good.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        _check(model)
        self._own_tokenizer = copy.deepcopy(tokenizer)
        facts: Any = SimpleNamespace(device=model.device, config=model.config)
        with _without_warnings():
            super().__init__(pretrained=facts, backend=backend_of(model))
        self._model = model
        self.progress = Progress()

    def _create_tokenizer(self, *args: Any, **kwargs: Any) -> None:
        """Take the tokenizer that was given; lm-eval would look one up by the model's name."""
        stand_in = SimpleNamespace(vocab_size=self.config.get_text_config().vocab_size, pad_token="none")
        self.tokenizer: Any = stand_in if self._own_tokenizer is None else self._own_tokenizer


def _check(model: Any) -> None:
    from transformers import PreTrainedModel

    if hasattr(model, "merge_and_unload") or getattr(model, "_hf_peft_config_loaded", False):
        raise UserError(
            "the model has an adapter, whose part of the weights a recipe would leave out: merge it first, for example"
            " model = model.merge_and_unload()"
        )
    if not isinstance(model, PreTrainedModel):
        raise UserError(
            f"a loaded transformers model is needed, not {type(model).__name__}: load it first, for example"
            " AutoModelForCausalLM.from_pretrained(NAME)"
        )


@contextmanager
def _without_warnings() -> Iterator[None]:
    """lm-eval warns, twice, of what is meant here: a model that is loaded already."""
    log = logging.getLogger(_CONSTRUCTOR_LOG)
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


@contextmanager
def in_evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Without dropout and the like inside the block; afterwards every module is in the mode that it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def tokenizer_as_loaded(model_args: Mapping[str, Any], config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    """The tokenizer that lm-eval would give the model of these arguments, its padding token filled in."""
    lm = HFLM.__new__(HFLM)
    lm._create_tokenizer(
        str(model_args["pretrained"]),
        model_args.get("tokenizer"),
        revision=str(model_args.get("revision") or "main"),
        trust_remote_code=bool(model_args.get("trust_remote_code")),
        use_fast_tokenizer=model_args.get("use_fast_tokenizer", True),
        add_bos_token=model_args.get("add_bos_token"),
        subfolder=str(model_args.get("subfolder") or ""),
    )
    return configure_pad_token(lm.tokenizer, model_config=config)
