"""What was asked of a run beside its recipe and tasks, in a few words each: runs of one recipe may differ in it."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from leaderboard.readers.safe_json import canonical, clean, digest, finite, mapping

_NOT_SHOWN = frozenset({"pretrained", "model", "dtype", "revision", "device", "batch_size", "recipe"})
_SEEDS = ("random_seed", "numpy_seed", "torch_seed", "fewshot_seed")
_LONGEST = 60


REVISION = "revision"
CONTROL_OF_REVISION = "control of revision"
DEQUANTIZED = "dequantized"


def asked_of(
    settings: Any, revisions: Any = None, control_of: Any = None, dequantized_from: str | None = None
) -> str | None:
    """JSON of name -> words, from a receipt's settings or a results file's config; None where there is nothing to
    say. revisions: of the recipe's methods, where above 1; control_of: those of the recipe whose control it is.
    dequantized_from: how the checkpoint is quantised, where it was loaded as plain weights.
    """
    asked = mapping(settings)
    limit, seeds = finite(asked.get("limit")), asked.get("seed", [asked[name] for name in _SEEDS if name in asked])
    words = {
        "limit": f"limit {limit:g}" if limit else None,
        "samples": f"documents chosen, {digest(asked['samples'])[:6]}" if asked.get("samples") else None,
        "chat_template": "chat template" if asked.get("apply_chat_template") else None,
        "system_instruction": _named("system instruction", asked.get("system_instruction")),
        "gen_kwargs": _pairs(asked.get("gen_kwargs")),
        "model_args": _pairs(asked.get("model_args")),
        "seeds": f"seeds {', '.join(map(str, seeds))}" if isinstance(seeds, list) and seeds else None,
        REVISION: _revised(revisions),
        CONTROL_OF_REVISION: _revised(control_of),
        DEQUANTIZED: f"dequantised from {dequantized_from}" if dequantized_from else None,
    }
    found = {name: clean(text) for name, text in words.items() if text}
    return canonical(found) if found else None


@cache
def words(text: str | None) -> dict[str, str]:
    """What `asked_of` made, by name."""
    found = json.loads(text or "{}")
    return {str(name): str(words) for name, words in found.items()} if isinstance(found, dict) else {}


def _revised(value: Any) -> str | None:
    """`revision 2`; of several methods each with its name."""
    revisions = {name: number for name, number in sorted(mapping(value).items()) if isinstance(number, int)}
    if len(revisions) > 1:
        return _short("revisions " + ", ".join(f"{name} {number}" for name, number in revisions.items()))
    return next((f"revision {number}" for number in revisions.values()), None)


def revision_of(text: str | None) -> str:
    """The revision of a recipe's methods that a run was made by, in words, from what `asked_of` made."""
    return words(text).get(REVISION, "revision 1")


def dequantized(text: str | None) -> str | None:
    """`dequantised from fp8`, of a run on a checkpoint that was loaded so, from what `asked_of` made."""
    return words(text).get(DEQUANTIZED)


def _named(what: str, value: Any) -> str | None:
    return f"{what} {digest(value)[:6]}" if value else None


def _pairs(value: Any) -> str | None:
    """`peft=a, parallelize=True`, with a digest where that is long."""
    if isinstance(value, str):
        return _short(value)
    pairs = sorted(f"{key}={item}" for key, item in mapping(value).items() if key not in _NOT_SHOWN)
    return _short(", ".join(pairs))


def _short(text: str) -> str | None:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 10]}... {digest(text)[:6]}"
