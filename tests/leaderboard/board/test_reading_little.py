"""The board of one model reads that model's runs, and each of its scores is looked at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from leaderboard import judging
from leaderboard.board import board as board_module
from leaderboard.board.board import board
from leaderboard.compare import baselines
from leaderboard.compare.contents import read_contents
from leaderboard.ingest import ingest
from leaderboard.store import queries
from leaderboard.store.database import open_store
from leaderboard.store.families import shown_names


@pytest.fixture
def filled(made: Any, kit: Any, database: Path) -> Path:
    """Three models of a baseline, two recipes and a failed run each; two of them bear one name."""
    for number, model in enumerate(("tiny", "small", "tiny")):
        for k, recipe in enumerate(("baseline", "svd", "laser", "asvd")):
            answers = kit.pair(60, 30, gained=3 * k)[1].values
            task = kit.Task(answers, log_likelihoods=kit.likelihoods(60, 10 * number + k))
            write = made.failed if recipe == "asvd" else made.run
            of_model(
                write(recipe, {"sums": task}, model=model, folder=f"{recipe}-{number}", spec_id=f"{number} {recipe}"),
                kit.sha(f"{model} {number}"),
            )
    assert not ingest([made.root], database).rejected
    return database


def of_model(run: Path, identity: str) -> None:
    """Let a run be of a model of this identity."""
    receipt = json.loads((run / "receipt.json").read_text())
    receipt["model"]["identity"] = identity
    (run / "receipt.json").write_text(json.dumps(receipt))


@pytest.mark.slow
def test_a_models_board_is_its_part_of_the_whole(filled: Path) -> None:
    with open_store(filled) as store:
        runs, names = queries.runs(store), shown_names(store)
        assert set(names) == {run.model_key for run in runs} and len(set(names.values())) == 3
        whole = board(store)
        for key, name in names.items():
            own = [cell for cell in whole if cell.model_key == key]
            assert len(own) == 4 and board(store, models=[key]) == own == board(store, models=[name])
            contents = read_contents(store, models=[key])
            assert {run.model_key for run in contents.runs} == {key} and set(contents.tasks) == {c.run_id for c in own}
        assert board(store, models=["tiny"]) == [cell for cell in whole if cell.model.startswith("tiny")]
        asked = queries.runs(store, ["small"], runs[0].run_id[:8])
        assert {run.model_name for run in asked} == {runs[0].model_name, "small"} and len(asked) in (4, 5)


@pytest.mark.slow
def test_a_score_is_given_its_baseline_once(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    real = baselines.Baselines.choose

    def counted(self: Any, subject: Any) -> Any:
        asked.append(subject.run.run_id)
        return real(self, subject)

    monkeypatch.setattr(baselines.Baselines, "choose", counted)
    with open_store(filled) as store:
        cells = board(store)
    assert sorted(asked) == sorted(cell.run_id for cell in cells if cell.metric)


def test_models_are_judged_ahead_some_at_a_time(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[list[str]] = []

    def counted(store: Any, models: Any, seconds: float) -> Any:
        turns.append(list(models))
        return board_module.judge_ahead(store, models, seconds)

    with open_store(filled, read_only=False) as store:
        models = sorted(shown_names(store))
        store.connection.execute("DELETE FROM verdict_states")
    monkeypatch.setattr(judging, "judge_ahead", counted)
    monkeypatch.setattr(judging, "_RUNS_A_TURN", 5)
    ingest([filled.parent], filled)
    assert turns == [models[:2], models[2:]]
    turns.clear()
    ingest([filled.parent], filled)
    assert turns == []
