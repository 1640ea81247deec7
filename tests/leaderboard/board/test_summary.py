"""Every model at a glance: equal to its board, from stored verdicts and without them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from leaderboard.board import board as board_module
from leaderboard.board import summary
from leaderboard.board.board import board, judge_ahead
from leaderboard.board.summary import KINDS, BestOfTask, FailedRun, summaries
from leaderboard.compare import verdict_cache
from leaderboard.ingest import ingest
from leaderboard.store.database import open_store
from leaderboard.store.pins import pin

COUNT, RIGHT = 200, 100


@pytest.fixture
def write(made: Any, kit: Any) -> Any:
    """Writes the run of a recipe or of a control of one, by documents gained (lost, below zero) of each task."""

    def written(recipe: str, gains: dict[str, int], *, control: str | None = None, **options: Any) -> Path:
        label = f"{recipe}+{control}" if control else recipe
        tasks = {}
        for task, gained in gains.items():
            answers = kit.binary(COUNT, RIGHT, gained=max(gained, 0), lost=max(-gained, 0))[1]
            tasks[task] = kit.Task({"acc": answers}, log_likelihoods=kit.likelihoods(COUNT, sum(map(ord, label))))
        run = made.run(label, tasks, **options)
        if control:
            receipt = json.loads((run / "receipt.json").read_text())
            receipt["recipe"] |= {"control": control, "control_of": kit.sha(recipe)}
            (run / "receipt.json").write_text(json.dumps(receipt))
        return run

    return written


@pytest.fixture
def filled(made: Any, kit: Any, write: Any, database: Path) -> Path:
    """Two models: one with each kind of better, and one of plain baselines."""
    write("baseline", {"sums": 0, "words": 0})
    write("beating", {"sums": 60, "words": -50})
    write("beating", {"sums": 0, "words": 0}, control="random")
    write("alone", {"sums": 80, "words": 50})
    write("as-good", {"sums": 90, "words": 0})
    write("as-good", {"sums": 85, "words": 0}, control="random")
    made.failed("asvd", {"sums": kit.pair(COUNT, RIGHT)[0]})
    write("baseline", {"sums": 0}, model="other")
    ingest(made.root, database)
    return database


@pytest.mark.slow
def test_three_kinds_of_better_and_what_the_best_breaks(filled: Path) -> None:
    with open_store(filled) as store:
        tiny, other = sorted(summaries(store).values(), key=lambda found: found.name != "tiny")
        ids = {row["recipe_label"]: row["run_id"] for row in store.rows("FROM runs JOIN variants USING (variant_id)")}
    assert (tiny.name, tiny.runs, tiny.recipes, tiny.tasks, tiny.parameters) == ("tiny", 7, 4, 2, 1000)
    assert (tiny.architecture, tiny.dtype) == ("llama", "float32")
    assert tiny.newest is not None and f"{tiny.newest:%H:%M}" == "03:05"
    said = {kind: count for kind, count in tiny.counts.items() if count}
    assert said == {"beats": 1, "alone": 2, "as control": 1, "same": 1, "worse": 1, "failed": 1}
    sums, words = (
        best._replace(improvement=round(best.improvement, 9), delta=round(best.delta, 9)) for best in tiny.best
    )
    assert sums == BestOfTask("sums", "beating", ids["beating"], 0.3, 0.3, "beats", ("words",))
    assert words == BestOfTask("words", "alone", ids["alone"], 0.25, 0.25, "alone")
    assert tiny.failed == [FailedRun(ids["asvd"], "asvd", "non_finite_weight: 3 weights are NaN (layers.0.up.weight)")]
    assert (other.runs, other.recipes, list(other.best), sum(other.counts.values())) == (1, 0, [], 0)


@pytest.mark.slow
def test_the_same_from_stored_verdicts_as_judged_now(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store(filled) as store:
        stored = summaries(store)
        monkeypatch.setattr(summary.stored_verdicts, "outdated", lambda store: dict.fromkeys(stored, ""))
        assert summaries(store) == stored


@pytest.mark.slow
def test_where_verdicts_hold_nothing_is_judged(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def counted(store: Any, models: Any, *options: Any) -> Any:
        asked.append(list(models))
        return judge_ahead(store, models, *options)

    monkeypatch.setattr(summary, "judge_ahead", counted)
    with open_store(filled) as store:
        found = summaries(store)
    assert not asked
    (key,) = (key for key, model in found.items() if model.name == "tiny")
    pin(filled, found[key].best[0].run_id, "try")
    with open_store(filled) as store:
        after = summaries(store)
        assert asked == [[key]]
        cells = [cell for cell in board(store, models=[key]) if cell.control is None]
    kinds = Counter(cell.verdict for cell in cells if cell.verdict != "baseline")
    assert after[key].counts != found[key].counts
    assert sum(after[key].counts.values()) == sum(kinds.values()) and set(after[key].counts) == set(KINDS)
    assert after[key].counts["worse"] == kinds["worse"]


@pytest.mark.slow
def test_a_model_that_there_is_no_time_for_says_so(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store(filled) as store:
        found = summaries(store)
        monkeypatch.setattr(summary.stored_verdicts, "outdated", lambda store: dict.fromkeys(found, ""))
        monkeypatch.setattr(verdict_cache, "recall", lambda store, run_ids: verdict_cache.Memory({}))
        monkeypatch.setattr(board_module, "_AT_ONCE", 3)
        hurried = {model.name: model for model in summaries(store, seconds=0.0).values()}
    assert (hurried["tiny"].judged, set(hurried["tiny"].counts.values()), hurried["tiny"].best) == (False, {0}, [])
    assert [one.name for one in hurried["tiny"].failed] == ["asvd"] and hurried["tiny"].runs == 7


def test_of_an_empty_store() -> None:
    with open_store(None) as store:
        assert summaries(store) == {}
