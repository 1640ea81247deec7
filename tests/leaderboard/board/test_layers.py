"""Receipts as places: layer and matrix, ranks, verdicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from leaderboard.board.board import board
from leaderboard.board.layers import LayerEdit, edits, matrices_of, places, verdicts
from leaderboard.ingest import ingest
from leaderboard.store.database import open_store


def matrix(**changes: Any) -> dict[str, Any]:
    return {
        "step": 0,
        "method": "truncate_svd",
        "name": "layers.0.up.weight",
        "part": None,
        "role": "up_proj",
        "layer": 0,
        "shape": [8, 4],
        "rank_before": 4,
        "rank_after": 2,
        "energy_kept": 0.9,
        "relative_error": 0.3,
    } | changes


def read(database: Path) -> list[LayerEdit]:
    with open_store(database) as store:
        return edits(store)


def test_heads_of_a_matrix_are_one_place_and_the_last_step_counts(made: Any, kit: Any, database: Path) -> None:
    heads = [
        matrix(
            name="layers.1.k.weight",
            part=f"head {i}",
            role="k_proj",
            layer=1,
            rank_after=i,
            energy_kept=0.9 - i / 10,
            relative_error=i / 10,
        )
        for i in range(3)
    ]
    twice = [matrix(rank_after=3, method="eigenprune"), matrix(rank_before=3, rank_after=1, step=1)]
    outside = [matrix(name="lm_head.weight", role=None, layer=None, rank_after=None)]
    made.run("laser", {"sums": kit.pair(9, 3)[1]}, matrices=[*heads, *twice, *outside])
    ingest([made.root], database)
    up, keys, head = read(database)
    assert (up.layer, up.matrix, up.rank_before, up.rank_after, up.parts, up.methods, up.rank_kept) == (
        0,
        "up_proj",
        4,
        1,
        1,
        "eigenprune, truncate_svd",
        0.25,
    )
    assert (
        keys.layer,
        keys.matrix,
        keys.rank_before,
        keys.rank_after,
        keys.parts,
        keys.energy_kept,
        keys.relative_error,
    ) == (1, "k_proj", 12, 3, 3, 0.7, 0.2)
    assert (head.layer, head.matrix, head.rank_after, head.rank_kept) == (None, "lm_head.weight", None, None)
    assert {edit.edited for edit in (up, keys, head)} == {3}


def test_numbers_too_large_to_add_are_unknown(made: Any, kit: Any, database: Path) -> None:
    made.run(
        "laser",
        {"sums": kit.pair(9, 3)[1]},
        matrices=[matrix(part=f"head {i}", rank_before=2**62, rank_after=0) for i in range(2)],
    )
    ingest([made.root], database)
    (edit,) = read(database)
    assert edit.rank_before is None and edit.rank_kept is None


@pytest.mark.slow
def test_places_count_verdicts_and_leave_the_rest_blank(made: Any, kit: Any, database: Path) -> None:
    before, better = kit.pair(400, 200, gained=60)
    made.run("baseline", {"sums": before})
    made.run("laser", {"sums": better})
    made.run(
        "svd",
        {"sums": kit.Task({"acc": kit.binary(400, 200, lost=60)[1]}, log_likelihoods=kit.likelihoods(400, 2))},
        matrices=[matrix(rank_after=1), matrix(name="layers.1.q.weight", role="q_proj", layer=1)],
    )
    made.run(
        "wanda",
        {"words": kit.Task({"acc": [0.5] * 9})},
        matrices=[matrix(role="odd", name="layers.1.odd.weight", layer=1)],
    )
    ingest([made.root], database)
    with open_store(database) as store:
        found, by_run = edits(store), verdicts(board(store), "sums")
    up, query, odd = places(found, by_run)
    assert (up.layer, up.matrix, up.runs, up.least_kept, up.most_kept, up.balance) == (
        0,
        "up_proj",
        2,
        0.25,
        0.5,
        0.0,
    ) and up.verdicts == {"better": 1, "worse": 1}
    assert (query.matrix, query.balance) == ("q_proj", -1.0) and (odd.matrix, odd.balance, dict(odd.verdicts)) == (
        "odd",
        None,
        {},
    )
    assert matrices_of(found) == ["q_proj", "up_proj", "odd"]
