"""Claims of papers beside runs of ours: only where model, task, metric and recipe agree, and with nothing assumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from leaderboard.board.board import board
from leaderboard.board.cell import Cell
from leaderboard.board.claims import Claim, claims, command_for, is_of_model
from leaderboard.board.reported import Reported, published
from leaderboard.ingest import ingest
from leaderboard.store.database import open_store


@pytest.fixture
def cells(made: Any, kit: Any, database: Path) -> list[Cell]:
    """Phi-2 with the paper's recipe on the paper's task, its control, and another recipe."""
    before, after = kit.pair(400, 100, gained=60)
    made.run("baseline", {"int_mult": before}, model="microsoft/phi-2")
    made.run("eigenprune", {"int_mult": after}, model="microsoft/phi-2")
    made.run("laser", {"int_mult": after}, model="microsoft/phi-2")
    assert not ingest([made.root], database).rejected
    with open_store(database, read_only=True) as store:
        return board(store)


@pytest.mark.slow
def test_a_claim_stands_beside_its_run(cells: list[Cell]) -> None:
    (claim,) = [claim for claim in claims(cells) if claim.cell is not None]
    assert (claim.reported.method, claim.cell and claim.cell.recipe) == ("eigenpruning", "eigenprune")
    assert claim.improvement == pytest.approx(0.8375) and claim.agrees is True


@pytest.mark.slow
def test_an_unedited_model_is_beside_rows_of_it_alone(cells: list[Cell]) -> None:
    phi = next(entry for entry in published() if entry.model == "Phi-2")
    dense = phi._replace(recipes=("baseline",), run=None, after=phi.before)
    found = [claim for claim in claims(cells, [phi, dense]) if claim.cell is not None]
    assert [(claim.reported, claim.cell and claim.cell.recipe) for claim in found] == [
        (phi, "eigenprune"),
        (dense, "baseline"),
    ]


def test_every_claim_is_there_once_without_runs() -> None:
    found = claims([])
    assert [claim.reported for claim in found] == list(published()) and not any(claim.cell for claim in found)
    assert all(claim.agrees is None for claim in found)


def test_lower_may_be_better() -> None:
    loss = next(entry for entry in published() if entry.metric == "log_loss" and entry.after > entry.before)
    assert Claim(loss, None).improvement < 0


def test_models_go_by_their_names() -> None:
    entry = next(entry for entry in published() if entry.model == "Llama-2-7B")
    for name in (
        "meta-llama/Llama-2-7b-hf",
        "llama-2-7b-hf",
        "/data/Llama-2-7b-hf/",
        "meta-llama/Llama-2-7b-hf (1a2b)",
    ):
        assert is_of_model(entry, name), name
    assert not is_of_model(entry, "meta-llama/Llama-2-13b-hf")


def test_the_command_names_what_the_hub_names() -> None:
    phi = next(entry for entry in published() if entry.model == "Phi-2")
    assert command_for(phi) == (
        "lm_eval run --model hf --model_args pretrained=microsoft/phi-2 --tasks int_mult --recipe"
        " eigenprune-released:calibration.samples=320 --control random-subspace"
    )
    dense = next(entry for entry in published() if entry.recipes == ("baseline",) and entry.asked)
    assert (command_for(dense) or "").endswith("--recipe baseline")
    pruner = next(entry for entry in published() if entry.method == "LLM-Pruner")
    assert command_for(pruner) is None
    assert {command_for(entry) for entry in published() if not entry.asked} == {None}
    assert all("pretrained=" in (command_for(entry) or "pretrained=") for entry in published())


@pytest.mark.slow
def test_a_verdict_against_the_report_is_no_agreement(cells: list[Cell]) -> None:
    phi = next(entry for entry in published() if entry.model == "Phi-2")
    worse = phi._replace(before=0.9, after=0.1)
    claim = next(one for one in claims(cells, [worse]) if one.cell is not None)
    assert claim.agrees is False and isinstance(claim.reported, Reported)
