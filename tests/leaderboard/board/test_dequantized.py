"""A checkpoint that was loaded as plain weights: a badge says so, and its runs are not judged against packed ones."""

from __future__ import annotations

import json
from typing import Any

import pytest

from leaderboard.app.badges import board_badges, model_facts
from leaderboard.ingest import ingest
from leaderboard.store import queries
from tests.leaderboard.board.judging import recipe_cell

PACKED = {"dtype": "float16"}
UNPACKED = {"dtype": "bfloat16", "dequantized_from": "fp8", "model_args": {"dequantize": True}}


def two_runs(made: Any, kit: Any, baseline: dict[str, Any], digest: str) -> None:
    """A baseline of which that is known, whose weights have that digest, and a recipe on the dequantised model."""
    for recipe, task, facts, digests in zip(
        ("baseline", "laser"), kit.pair(50, 20, lost=2), (baseline, UNPACKED), ((digest, digest), ("ff", "ee")),
        strict=True,
    ):  # fmt: skip
        weights = dict(zip(("digest_before", "digest_after"), digests, strict=True))
        path = made.run(recipe, {"sums": task}, weights=weights) / "receipt.json"
        receipt = json.loads(path.read_text())
        path.write_text(json.dumps(receipt | {"model": receipt["model"] | facts}))


def facts_of(made: Any) -> dict[str, tuple[str, ...]]:
    """What the board says of its one model."""
    report = ingest(made.root, None)
    assert report.store is not None
    try:
        return model_facts(report.store, queries.runs(report.store)[0].model_key)
    finally:
        report.store.connection.close()


@pytest.mark.parametrize(
    ("baseline", "digest", "same"),
    [(PACKED, "aa", False), ({"dtype": "bfloat16"}, "aa", False), (UNPACKED, "ff", True), (PACKED, "ff", True)],
)
def test_other_weights_are_told_apart(
    made: Any, kit: Any, baseline: dict[str, Any], digest: str, *, same: bool
) -> None:
    two_runs(made, kit, baseline, digest)
    cell = recipe_cell(made.board())
    assert any("other weights" in note for note in cell.notes) is not same


def test_the_board_has_a_badge(made: Any, kit: Any) -> None:
    two_runs(made, kit, UNPACKED, "ff")
    facts = facts_of(made)
    assert facts["dequantized"] == ("dequantised from fp8",)
    assert "dequantised from fp8" in board_badges(facts, [])


def test_a_plain_model_has_none(made: Any, kit: Any) -> None:
    made.run("baseline", {"sums": kit.pair(50, 20, lost=2)[0]})
    assert "dequantized" not in facts_of(made)
