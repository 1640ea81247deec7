"""Is a run of the model as it is, or of an edited one? What lm-eval's own results file says of it.

Notable choices:
- Edited, and shown under what edited it: a recipe (written by the backend `hf-recipe`, and by every run of ours whose
  receipt was left behind), an adapter or a delta, a steering vector, weights that are quantised while they are loaded.
- Not known: a quantisation that the checkpoint may have had before, or keys that lm-eval does not write, since whoever
  adds them says there what was done to the model. Such a run is shown as it was, with a warning, and is a baseline only
  where no other is.
- Not known either: what an API served. It is called by its backend, with a warning.
- A folder of weights that were edited before says nothing of that in the file. It bears its own name, and with it has
  a board of its own.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from leaderboard.readers.receipt import Receipt
from leaderboard.readers.records import BASELINE
from leaderboard.readers.safe_json import canonical, clean, optional_text
from leaderboard.readers.weights_digest import weights_differ

PLAIN_RECIPE = "plain lm_eval"
NOT_BASELINE = "baseline (edited)"
"""The recipe of a run that is called the baseline and is none."""
_NO_STEPS = hashlib.sha256(json.dumps([]).encode()).hexdigest()  # the recipe_id of a recipe that does nothing
_EDITS = frozenset(
    {
        *("peft", "delta", "peft_sha", "delta_sha", "lora_local_path", "lora_path", "lora_name", "adapter", "adapters"),
        *("adapter_path", "adapter_name", "steer_path", "load_in_8bit", "load_in_4bit", "quantization_config"),
    }
)
_PERHAPS = frozenset(
    {
        *("autogptq", "gptqmodel", "gguf_file", "quantization", "quantize", "quant_method", "weights_digest"),
        *("sparsity", "prune", "pruning", "kv_cache_dtype"),
    }
)
_SERVICES = frozenset({"watsonx_llm", "textsynth", "gguf", "ggml", "gpt3", "anthropic", "openai", "goose", "litellm"})
_SERVED = re.compile(r".*-(?:chat-)?completions?(?:-chat)?|.*-chat|azure-openai.*")
_NO = frozenset({"", "none", "null", "false", "no", "0", "auto"})
_LONGEST = 60
_MOST_NAMED = 3


class Editedness(NamedTuple):
    """What is known. edited: None where it is not known. The rest as in `RunVariant`."""

    edited: bool | None
    recipe_name: str = PLAIN_RECIPE
    recipe_label: str = PLAIN_RECIPE
    recipe_id: str | None = None
    control: str | None = None
    control_of: str | None = None
    digest_after: str | None = None
    warnings: tuple[str, ...] = ()


def of_results(config: Mapping[str, Any], arguments: Mapping[str, Any], unknown: Mapping[str, Any]) -> Editedness:
    """From a results file's `config`, its `model_args` as a mapping, and its keys that are none of lm-eval's."""
    by_recipe = _recipe(config, arguments)
    if by_recipe is not None:
        return by_recipe
    said = {**{key: config.get(key) for key in _EDITS | _PERHAPS}, **arguments}
    edits = list(_facts(said, _EDITS))
    if edits:
        label = ", ".join([PLAIN_RECIPE, *edits])
        return Editedness(True, label, label)
    service = optional_text(config.get("model"))
    if service and is_service(service):
        label = clean(f"{PLAIN_RECIPE}, {service[:_LONGEST]}")
        name = clean(service[:_LONGEST])
        warning = f"answered by a service ({name}): its weights, and whether they were edited, are not known"
        return Editedness(None, recipe_label=label, warnings=(warning,))
    doubts = [*_facts(said, _PERHAPS), *_facts(unknown, frozenset(unknown))]
    if doubts or not config:
        label = ", ".join([PLAIN_RECIPE, *doubts[:_MOST_NAMED]])
        return Editedness(None, recipe_label=label, warnings=tuple(_doubt(doubts)))
    return Editedness(False)


def is_service(backend: str) -> bool:
    """Whether a backend of lm-eval asks a service, and has no weights of its own."""
    return backend in _SERVICES or _SERVED.fullmatch(backend) is not None


def of_receipt(receipt: Receipt) -> Editedness:
    """From a receipt. One that is called the baseline and has steps, edited matrices or other weights than it began
    with is shown as edited.
    """
    recipe, weights = receipt.recipe, receipt.weights
    if recipe.name != BASELINE:
        return Editedness(True, recipe.name, recipe.name if recipe.label == BASELINE else recipe.label)
    steps = recipe.resolved.get("steps") if isinstance(recipe.resolved, dict) else None
    changed = weights_differ(weights.digest_before, weights.digest_after) is True
    contradictions = [
        words
        for words, holds in (
            (f"{len(steps) if isinstance(steps, list) else 'some'} steps", bool(steps)),
            (f"{len(receipt.matrices)} edited matrices", bool(receipt.matrices)),
            ("other weights after it than before", changed),
        )
        if holds
    ]
    if not contradictions:
        return Editedness(False, BASELINE, recipe.label)
    warning = f"its receipt calls the recipe {BASELINE}, and has {', '.join(contradictions)}: it is no baseline"
    return Editedness(True, NOT_BASELINE, NOT_BASELINE, warnings=(warning,))


def _recipe(config: Mapping[str, Any], arguments: Mapping[str, Any]) -> Editedness | None:
    recipe_id = optional_text(config.get("recipe_id"))
    label = optional_text(config.get("recipe")) or optional_text(arguments.get("recipe"))
    if label is None and recipe_id is not None:
        label = f"recipe {recipe_id[:12]}"
    if label is None or label.strip().lower() in _NO or recipe_id == _NO_STEPS:
        return None
    name = optional_text(config.get("recipe_name")) or PurePosixPath(label.partition(":")[0]).stem or label
    if BASELINE in (label, name):
        if recipe_id is None:
            return None
        name = label = NOT_BASELINE
    return Editedness(
        True,
        clean(name),
        clean(label),
        recipe_id,
        optional_text(config.get("recipe_control")),
        optional_text(config.get("recipe_control_of")),
        optional_text(config.get("weights_digest")),
    )


def _facts(said: Mapping[str, Any], names: frozenset[str]) -> Iterator[str]:
    """`name=value` of those that are set, to something other than no."""
    for name in sorted(names):
        value = said.get(name)
        text = value if isinstance(value, str) else canonical(value)
        if text.strip().lower() not in _NO:
            short = (PurePosixPath(value).name or value) if isinstance(value, str) else text
            yield clean(f"{name}={short if len(short) <= _LONGEST else short[: _LONGEST - 3] + '...'}")


def _doubt(doubts: list[str]) -> Iterator[str]:
    if doubts:
        yield (
            f"its results file says {', '.join(doubts[:6])}{', ...' if len(doubts) > 6 else ''}: whether the model was"
            " edited is not known"
        )
