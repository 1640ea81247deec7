"""Which unedited run a gate compares each task with: in the database, beside the candidate, and in both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from leaderboard.gate.decision import GateRow
from leaderboard.gate.policy import Policy
from leaderboard.gate.report import GateReport, judge_candidate
from leaderboard.gate.runs import base_of, read_one
from leaderboard.ingest import ingest
from leaderboard.store.database import open_store
from leaderboard.store.queries import pin_baseline, runs


def scores(kit: Any, share: float, seed: int) -> Any:
    """100 documents of which a share is right."""
    right = [float(i < 100 * share) for i in range(100)]
    return kit.Task({"acc": right}, log_likelihoods=kit.likelihoods(100, seed))


def run(made: Any, recipe: str, minute: int, tasks: dict[str, tuple[Any, str]], **changes: Any) -> Path:
    """A run of that minute. tasks: task -> (its answers, its identity)."""
    place: Path = made.run(
        recipe,
        {name: task for name, (task, _) in tasks.items()},
        folder=f"{recipe}-{minute}",
        spec_id=f"{recipe}{minute}",
        started=f"2026-02-01T00:{minute:02d}:00+00:00",
        **{"weights": {"digest_before": "w", "digest_after": "w" if recipe == "baseline" else recipe}, **changes},
    )
    receipt = json.loads((place / "receipt.json").read_text())
    receipt["tasks"] = {name: {"identity": identity} for name, (_, identity) in tasks.items()}
    (place / "receipt.json").write_text(json.dumps(receipt))
    return place


def rows(report: GateReport) -> dict[str, GateRow]:
    """The rows by task."""
    return {row.name: row for row in report.rows}


@pytest.fixture(params=["beside", "in the database", "one of them"])
def known(request: pytest.FixtureRequest, made: Any, database: Path) -> Any:
    """Ingests as the case says, between the runs (for `one of them`) or after the last."""

    def ingested(*, last: bool) -> Path:
        if request.param == "in the database" or (request.param == "one of them" and not last):
            ingest(made.root, database)
        return database

    return ingested


def judged(candidate: Path, database: Path) -> GateReport:
    """The candidate against the unedited model."""
    return judge_candidate(read_one(candidate, "candidate"), Policy(others="gate"), ["base"], database)


@pytest.mark.slow
def test_a_mended_task_is_compared_with_the_new_baseline(made: Any, kit: Any, known: Any) -> None:
    run(made, "baseline", 0, {"sums": (scores(kit, 0.0, 0), "broken")})
    known(last=False)
    run(made, "baseline", 1, {"sums": (scores(kit, 1.0, 1), "mended")})
    candidate = run(made, "svd", 2, {"sums": (scores(kit, 0.6, 2), "mended")})
    report = judged(candidate, known(last=True))
    assert report.verdict == "FAIL" and rows(report)["sums"].baseline_score == 1.0


@pytest.mark.slow
def test_a_baseline_that_did_not_run_the_task_gives_way(made: Any, kit: Any, known: Any) -> None:
    run(made, "baseline", 0, {"words": (scores(kit, 1.0, 0), "a")})
    known(last=False)
    run(made, "baseline", 1, {"sums": (scores(kit, 1.0, 1), "a")}, settings_id="others")
    candidate = run(made, "svd", 2, {"sums": (scores(kit, 0.6, 2), "a")})
    assert judged(candidate, known(last=True)).verdict == "FAIL"


@pytest.mark.slow
def test_each_task_has_the_run_that_ran_it(made: Any, kit: Any, known: Any) -> None:
    both = ("sums", "words")
    run(made, "baseline", 0, {"sums": (scores(kit, 1.0, 0), "a"), "more": (scores(kit, 0.5, 0), "a")})
    known(last=False)
    run(made, "baseline", 1, {"words": (scores(kit, 1.0, 1), "a")})
    last = run(made, "svd", 2, {name: (scores(kit, 0.6, 2), "a") for name in (*both, "more")})
    report = judged(last, known(last=True))
    assert report.verdict == "FAIL" and [rows(report)[name].verdict for name in both] == ["FAIL", "FAIL"]
    (note,) = [note for note in rows(report)["words"].notes if note.startswith("against run ")]
    assert note.endswith("which ran this task as the candidate did")
    assert not any(note.startswith("against run ") for note in rows(report)["sums"].notes)


@pytest.mark.slow
def test_where_none_serves_the_nearest_is_named_with_the_reason(made: Any, kit: Any, known: Any) -> None:
    run(made, "baseline", 0, {"sums": (scores(kit, 1.0, 0), "broken")})
    known(last=False)
    candidate = run(made, "svd", 2, {"sums": (scores(kit, 0.6, 2), "mended")})
    row = rows(judged(candidate, known(last=True)))["sums"]
    assert row.verdict == "INCOMPARABLE"
    assert row.reasons == ("task code or data differ (its configuration is the same)",)


@pytest.mark.slow
def test_a_pinned_run_of_another_form_gives_way_and_that_is_said(made: Any, kit: Any, database: Path) -> None:
    run(made, "baseline", 0, {"sums": (scores(kit, 0.0, 0), "broken")})
    ingest(made.root, database)
    with open_store(database, read_only=False) as store:
        pin_baseline(store, runs(store)[0].run_id, "try")
    run(made, "baseline", 1, {"sums": (scores(kit, 1.0, 1), "mended")})
    candidate = run(made, "svd", 2, {"sums": (scores(kit, 0.6, 2), "mended")})
    report = judged(candidate, database)
    assert report.verdict == "FAIL"
    assert "the pinned baseline does not serve here: task code or data differ" in report.baselines[0].how


@pytest.mark.slow
def test_of_several_the_latest_and_of_its_own_settings(made: Any, kit: Any, known: Any) -> None:
    for minute, share, settings in ((0, 0.7, "one"), (1, 0.8, "one"), (3, 0.9, "two")):
        run(made, "baseline", minute, {"sums": (scores(kit, share, minute), "a")}, settings_id=settings)
        known(last=False)
    candidate = run(made, "svd", 4, {"sums": (scores(kit, 0.6, 4), "a")}, settings_id="one")
    assert rows(judged(candidate, known(last=True)))["sums"].baseline_score == 0.8


def test_other_weights_and_edited_runs_beside_are_no_baseline(made: Any, kit: Any) -> None:
    run(made, "baseline", 0, {"sums": (scores(kit, 1.0, 0), "a")}, weights={"digest_before": "v", "digest_after": "v"})
    run(made, "laser", 1, {"sums": (scores(kit, 1.0, 1), "a")})
    candidate = run(made, "svd", 2, {"sums": (scores(kit, 0.6, 2), "a")})
    assert base_of(read_one(candidate, "candidate"), None) is None
