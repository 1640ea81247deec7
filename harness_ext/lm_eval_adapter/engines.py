"""Which inference engines can score edited models, what of their arguments the edit follows, and what is refused before
anything is loaded.

An engine loads weights from a folder, so what is edited is written to one. Its arguments go to lm-eval's own class of
it as they are; the edit itself needs only those that say which model it is, and in which dtype.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from typing import Any, NamedTuple

from harness_ext.errors import UserError
from leaderboard.readers.plain_yaml import shown

ORIGINAL_LOAD_FORMATS = ("auto", "hf", "safetensors")


@dataclass(frozen=True)
class Engine:
    """One of lm-eval's backends that runs a model by a library for inference.

    name: as in `--model`. module: what must be installed. tokenizer_argument: names another tokenizer than the model's.
    length_argument: the most tokens of a text. gpus: arguments whose product is the number of GPUs that it takes.
    copies: of these, those that start engines of their own for each call, without one that stays. adapters and
    packed: arguments that add to the weights, or pack them as they are loaded. reloads: whether a running engine can
    take the weights of another folder. start_token_by_name: a word; where a model's name has it, lm-eval's class puts a
    start token before each text.
    """

    name: str
    module: str
    tokenizer_argument: str
    length_argument: str
    gpus: tuple[str, ...]
    copies: str
    adapters: tuple[str, ...] = ()
    packed: tuple[str, ...] = ("quantization",)
    reloads: bool = False
    start_token_by_name: str | None = None

    @property
    def installed(self) -> bool:
        """Whether its library can be imported."""
        return find_spec(self.module) is not None

    @property
    def for_cpu(self) -> bool:
        """Whether the installed build computes on CPUs."""
        for package in (f"{self.module}-cpu", self.module):
            with suppress(metadata.PackageNotFoundError):
                version = metadata.version(package)
                return package.endswith("-cpu") or "cpu" in version
        return False

    def copies_in(self, model_args: Mapping[str, Any]) -> bool:
        """Whether these arguments start engines anew for each call."""
        return _count(model_args.get(self.copies)) > 1


ENGINES = {
    engine.name: engine
    for engine in (
        Engine(
            "vllm",
            "vllm",
            tokenizer_argument="tokenizer",
            length_argument="max_model_len",
            gpus=("tensor_parallel_size", "data_parallel_size", "pipeline_parallel_size"),
            copies="data_parallel_size",
            adapters=("lora_local_path",),
            reloads=True,
        ),
        Engine(
            "sglang",
            "sglang",
            tokenizer_argument="tokenizer_path",
            length_argument="context_length",
            gpus=("tp_size", "dp_size"),
            copies="dp_size",
            adapters=("lora_paths",),
            packed=("quantization", "torchao_config"),
            start_token_by_name="gemma",
        ),
    )
}


class _Numbers(NamedTuple):
    """What numbers an argument may be. words: that, for a message."""

    words: str
    least: float
    most: float = math.inf
    whole: bool = True


_COUNT = _Numbers("a whole number from 1", 1)
_TOKENS = _Numbers("a whole number of tokens, 0 or more", 0)
_SHARE = _Numbers("a number from 0 to 1", 0, 1, whole=False)
_SEED = _Numbers("a whole number", -math.inf)
_NUMBERS = {
    **{name: _COUNT for engine in ENGINES.values() for name in engine.gpus},
    **dict.fromkeys(("max_length", "max_model_len", "context_length"), _TOKENS),
    **dict.fromkeys(("max_num_seqs", "max_num_batched_tokens", "max_lora_rank", "block_size"), _COUNT),
    **dict.fromkeys(("max_gen_toks", "max_running_requests", "page_size"), _COUNT),
    **dict.fromkeys(("gpu_memory_utilization", "mem_fraction_static"), _SHARE),
    **dict.fromkeys(("seed", "random_seed"), _SEED),
    "cpu_offload_gb": _Numbers("a number of GiB, 0 or more", 0, whole=False),
    "chunked_prefill_size": _Numbers("a whole number of tokens, or -1 for whole texts", -1),
}
"""Arguments of either engine that are numbers. What is none, lm-eval or the engine finds out only while loading."""
_FOLLOWED = ("pretrained", "revision", "dtype", "trust_remote_code", "add_bos_token", "prefix_token_id")
"""Arguments that mean the same to lm-eval's HF backend."""


def editing_arguments(engine: Engine, model_args: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of lm-eval's HF backend for the model that an engine's arguments name, to edit it there."""
    arguments = {name: model_args[name] for name in _FOLLOWED if model_args.get(name) is not None}
    if (tokenizer := model_args.get(engine.tokenizer_argument)) is not None:
        arguments["tokenizer"] = tokenizer
    length = model_args.get("max_length") or model_args.get("max_model_len") or model_args.get(engine.length_argument)
    if length is not None:
        arguments["max_length"] = int(length)
    return arguments


def serving_arguments(engine: Engine, model_args: Mapping[str, Any], folder: str | None) -> dict[str, Any]:
    """An engine's arguments for the weights of a folder, or for the model as it is (None): those of the command, with
    the model's own tokenizer.
    """
    if folder is None:
        return dict(model_args)
    arguments = {name: value for name, value in model_args.items() if name != "revision"}
    word = engine.start_token_by_name
    if word is not None and word in str(model_args["pretrained"]).lower():
        # The folder's name is a digest, and the edited model must read the same tokens as the original.
        arguments["add_bos_token"] = True
    return {
        **arguments,
        "pretrained": folder,
        # A folder has a tokenizer too, but one that was written again.
        engine.tokenizer_argument: model_args.get(engine.tokenizer_argument) or model_args["pretrained"],
    }


def check_engine(engine: Engine, model_args: Mapping[str, Any]) -> None:
    """Raise UserError where an engine is not installed, cannot score edited weights with these arguments, or asks for
    GPUs that are not there.
    """
    check_installed(engine)
    for _, sentence in engine_mistakes(engine, model_args):
        raise UserError(sentence)
    _check_gpus(engine, model_args)


def check_installed(engine: Engine) -> None:
    """Raise UserError where an engine's library cannot be imported."""
    if not engine.installed:
        raise UserError(
            f"--model {engine.name} needs the package {engine.module}, which is not installed: pip install"
            f" 'lm-eval-recipes[{engine.name}]', or use --model hf"
        )


def number_of(value: Any) -> float | None:
    """A number that is given as one, or as the text of one; None for anything else."""
    try:
        number = None if isinstance(value, bool) or not isinstance(value, (int, float, str)) else float(value)
    except (ValueError, OverflowError):
        return None
    return number if number is not None and math.isfinite(number) else None


def _number_mistakes(model_args: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, numbers in _NUMBERS.items():
        if (value := model_args.get(name)) is None:
            continue
        number = number_of(value)
        fits = number is not None and numbers.least <= number <= numbers.most
        if not fits or (numbers.whole and not float(number or 0).is_integer()):
            yield name, f"{name}={shown(value)} must be {numbers.words}"


def engine_mistakes(engine: Engine, model_args: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Arguments with which an engine cannot score edited weights: the argument, and a sentence."""
    for name in engine.packed:
        if model_args.get(name):
            yield (
                name,
                f"{name}={model_args[name]} packs the weights as they are loaded, so that what is scored is not what"
                " was edited: leave it out",
            )
    for name in engine.adapters:
        if model_args.get(name):
            yield (
                name,
                f"{name} adds an adapter to the edited weights, which a recipe would not see: merge it into the model"
                " (merge_and_unload), save that, and name it as pretrained",
            )
    form = model_args.get("load_format")
    if form not in (None, *ORIGINAL_LOAD_FORMATS):
        yield (
            "load_format",
            f"load_format={form} loads other weights than the edited safetensors files: leave it out, or give"
            f" {', '.join(ORIGINAL_LOAD_FORMATS)}",
        )
    yield from _number_mistakes(model_args)


def _check_gpus(engine: Engine, model_args: Mapping[str, Any]) -> None:
    """Raise UserError where there are fewer GPUs than the arguments ask for. Builds that compute on CPUs, and ranks on
    other machines (`distributed_executor_backend=ray`), are the engine's business.
    """
    import torch

    if engine.for_cpu:
        return
    there = torch.cuda.device_count()
    asked = 1
    for name in engine.gpus:
        asked *= _count(model_args.get(name))
    if asked <= max(1, there) or model_args.get("distributed_executor_backend") == "ray":
        return
    given = ", ".join(f"{name}={model_args[name]}" for name in engine.gpus if _count(model_args.get(name)) > 1)
    raise UserError(
        f"{given} takes {asked} GPUs, and there {'is' if there == 1 else 'are'} {there or 'none'} here: give smaller"
        " numbers, or run on a machine with more"
    )


def check_memory(engine: Engine, model_args: Mapping[str, Any], size: int) -> None:
    """Raise UserError where the weights alone, of so many bytes, don't fit the GPUs that the arguments give them."""
    import torch

    if not torch.cuda.is_available():
        return
    parts = 1
    for name in engine.gpus:
        parts *= 1 if name == engine.copies else _count(model_args.get(name))
    there = torch.cuda.get_device_properties(0).total_memory
    if size / parts <= there:
        return
    raise UserError(
        f"the weights take {size / 2**30:,.1f} GiB, {size / parts / 2**30:,.1f} a GPU, and a GPU here has"
        f" {there / 2**30:,.1f}: spread them over more GPUs ({engine.gpus[0]}=N), or use a smaller model"
    )


def _count(value: Any) -> int:
    """A number of GPUs or copies; 1 for what is none, which the engine then refuses."""
    try:
        return max(1, int(value))
    except (TypeError, ValueError):
        return 1
