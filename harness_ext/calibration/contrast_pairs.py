"""Contrast sets: pairs of beginnings that differ in one thing, shipped with the package as data
(`harness_ext/contrasts`).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from harness_ext.calibration.documents import CalibrationSet, LabelledDocument
from leaderboard.readers.plain_yaml import load_yaml
from leaderboard.readers.same_document import text_digests

SHIPPED = Path(__file__).parent.parent / "contrasts"
# What is predicted after the beginning does not matter: the input at its last word does, and gathering leaves the
# answer's last token out.
_FOLLOWS = " and"


def contrast_set(name: str) -> CalibrationSet:
    """The texts of a shipped set, the two of a pair next to each other."""
    data = load_yaml(SHIPPED / f"{name}.yaml", "contrast set")
    texts = [
        beginning.format(word)
        for pair, beginnings in zip(data["pairs"], data["beginnings"], strict=True)
        for beginning in beginnings
        for word in pair
    ]
    documents = tuple(
        LabelledDocument(
            f"contrast:{name}",
            text,
            _FOLLOWS,
            hashlib.sha256(text.encode()).hexdigest(),
            digests=tuple(sorted(text_digests(text))),
        )
        for text in texts
    )
    return CalibrationSet(f"contrast:{name}", "shipped", 0, documents)
