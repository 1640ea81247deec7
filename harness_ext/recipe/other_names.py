"""What the field calls a method that stands here under another name, or as a setting of another method."""

from __future__ import annotations

from collections.abc import Mapping

_LAST_BLOCKS = "last-blocks"
"""A second decomposition of what the first one left, in the same metric, is the first one with more ranks."""
_SAES = "aa-svd:anchor=aces"
_BLOCKS_TRAINED = "aa-svd:heal.loss=blocks"
_RECONSTRUCTED = "aa-svd:anchor=0.25"
"""The optimum of what M-reconstruction takes one turn towards, the left factor and then the right one."""
_HEALED = "svd-llm:heal.steps=64"
"""Training follows an edit, any that leaves factors."""
OTHER_NAMES: Mapping[str, str] = {
    "aasvdtuned": _BLOCKS_TRAINED,
    "aces": _SAES,
    "eigenpruning": "eigenprune-released",
    "ercsvd": _LAST_BLOCKS,
    "finetuning": _HEALED,
    "gfwsvd": "fisher-svd:output=batches",
    "heal": _HEALED,
    "healing": _HEALED,
    "kfacsvd": "fisher-svd",
    "mpifa": f"{_RECONSTRUCTED},keep.format=pifa",
    "mreconstruct": _RECONSTRUCTED,
    "mreconstruction": _RECONSTRUCTED,
    "pifa": "svd-llm:keep.format=pifa",
    "ressvd": _LAST_BLOCKS,
    "saessvd": _SAES,
    "structuralpruning": "policy-prune",
    "subspacenodepruning": "snp",
    "svdllmv1": "svd-llm",
    "swiftsvd": "swift",
    "zssvd": "zero-sum",
}
"""The recipe by the method's name, in small letters without what joins them."""


def called_here(name: str) -> str | None:
    """The recipe of a method that goes by this name elsewhere; None where none is known."""
    return OTHER_NAMES.get("".join(filter(str.isalnum, name.casefold())))
