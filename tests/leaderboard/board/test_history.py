"""A (model, recipe, task) over time, from run directories."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest

from leaderboard.board.history import NORMAL_95, Event, History, HistoryPoint, history, subjects
from leaderboard.ingest import ingest
from leaderboard.store.database import memory_store, open_store
from leaderboard.store.pins import choose


def of(database: Path, recipe: str = "laser", task: str = "sums", model: str = "tiny") -> History:
    with open_store(database) as store:
        return history(store, model, recipe, task)


@pytest.mark.slow
def test_both_lines_in_order_of_time_with_what_changed(made: Any, kit: Any, database: Path) -> None:
    before, after = kit.pair(9, 3, gained=3)
    made.run("baseline", {"sums": before}, started="2026-01-01T00:00:00Z")
    made.run("laser", {"sums": after}, folder="one", spec_id="one", started="2026-01-02T00:00:00Z")
    moved = {
        "versions": {"torch": "2.14.0", "lm_eval_recipes": "9"},
        "weights": {"digest_before": kit.sha("weights"), "digest_after": kit.sha("else")},
    }
    made.run(
        "laser",
        {"sums": kit.Task({"acc": [1.0] * 9}, version=2.0)},
        folder="two",
        spec_id="two",
        started="2026-01-03T00:00:00Z",
        config={"batch_size": 8},
        variant_id="two",
        **moved,
    )
    made.run("svd", {"sums": after}, started="2026-01-02T12:00:00Z")
    ingest([made.root], database)

    points, events = of(database)
    assert [(point.unedited, point.score, point.documents) for point in points] == [
        (True, 3 / 9, 9),
        (False, 6 / 9, 9),
        (False, 1.0, 9),
    ]
    assert events == [] and points[0].changes == points[1].changes == ()
    changed = {change.what: (change.before, change.after) for change in points[2].changes}
    assert changed["task version"] == ("1.0", "2.0") and changed["weights digest"] == (
        kit.sha("weightslaser")[:12],
        kit.sha("else")[:12],
    )
    # alike, and said by one of the two alone
    assert "unedited weights" not in changed and "lm-eval-recipes" not in changed


def point_of(made: Any, database: Path, task: Any, error: float | str, *, samples: bool = True) -> HistoryPoint:
    """The one run of a task whose results file says that its standard error is this."""
    (metric,) = task.values
    file = made.plain({"sums": task}, samples=samples)
    file.write_text(
        file.read_text().replace(f'"{metric}_stderr,none": "N/A"', f'"{metric}_stderr,none": {json.dumps(error)}')
    )
    assert not ingest([made.root], database).rejected
    (point,), _ = of(database, "plain lm_eval")
    assert point.unedited
    return point


@pytest.mark.slow
@pytest.mark.parametrize("hits", [0, 1, 3, 9])
def test_a_share_of_documents_has_the_score_interval(made: Any, kit: Any, database: Path, hits: int) -> None:
    point = point_of(made, database, kit.Task({"acc": kit.binary(9, hits)[0]}), "N/A")
    expected = binomtest(hits, 9).proportion_ci(method="wilson")
    assert (
        (point.low, point.high) == pytest.approx((expected.low, expected.high))
        and point.low is not None
        and point.high is not None
    )
    assert 0 <= point.low < point.high <= 1


@pytest.mark.parametrize(
    ("metric", "values", "error", "low", "high"),
    [
        ("acc", [0.5] * 8 + [1.0], 0.1, 5 / 9 - NORMAL_95 * 0.1, 5 / 9 + NORMAL_95 * 0.1),
        ("acc", [0.5] * 8 + [1.0], 0.4, 0.0, 1.0),
        ("mcc", [0.5] * 9, 0.9, -1.0, 1.0),
        ("f1", [50.0] * 9, 9.0, 50 - NORMAL_95 * 9, 50 + NORMAL_95 * 9),  # in percent
        ("word_perplexity", [20.0] * 9, 30.0, 1.0, 20 + NORMAL_95 * 30),
        ("unheard_of", [0.5] * 9, 1.0, 0.5 - NORMAL_95, 0.5 + NORMAL_95),
    ],
)
def test_other_scores_have_the_reported_error_s_as_far_as_values_go(
    made: Any, kit: Any, database: Path, metric: str, values: list[float], error: float, low: float, high: float
) -> None:
    point = point_of(made, database, kit.Task({metric: values}), error)
    assert (point.low, point.high) == pytest.approx((low, high))


def test_without_samples_or_error_there_is_what_is_known(made: Any, kit: Any, database: Path) -> None:
    point = point_of(made, database, kit.Task({"acc": kit.binary(9, 0)[0]}), 0.1, samples=False)
    assert (point.low, point.high, point.documents) == (0.0, pytest.approx(NORMAL_95 * 0.1), None)


def test_a_score_that_its_samples_do_not_make_is_no_share_of_them(made: Any, kit: Any, database: Path) -> None:
    point = point_of(made, database, kit.Task({"acc": kit.binary(9, 3)[0]}, scores={"acc": 0.9}), "N/A")
    assert (point.low, point.high) == (None, None)


def test_a_limit_that_is_not_named_is_none(made: Any, kit: Any, database: Path) -> None:
    for day, settings in enumerate(({"limit": 10.0}, {"limit": None}, {}), 1):
        made.run(
            "laser",
            {"sums": kit.Task({"acc": [1.0] * day})},
            folder=str(day),
            spec_id=str(day),
            started=f"2026-01-0{day}T00:00:00Z",
            settings=settings,
        )
    ingest([made.root], database)
    changed = [[tuple(change) for change in point.changes if change.what == "limit"] for point in of(database).points]
    assert changed == [[], [("limit", "10", "none")], []]


def test_a_failure_is_a_point_without_a_score(made: Any, kit: Any, database: Path) -> None:
    made.run("laser", {"sums": kit.pair(9, 3)[1]})
    made.failed("laser", {"sums": kit.pair(9, 3)[1]}, folder="failed", spec_id="f", started="2027-01-01T00:00:00Z")
    ingest([made.root], database)
    good, failed = of(database).points
    assert (
        good.status == "complete"
        and failed.status == "failed"
        and failed.score is None
        and "3 weights are NaN" in failed.failure
    )


@pytest.mark.slow
def test_decisions_are_events_with_their_reasons(made: Any, kit: Any, database: Path) -> None:
    before, after = kit.pair(9, 3)
    (
        made.run("baseline", {"sums": before}),
        made.run("laser", {"sums": after}),
        made.run("svd", {"sums": kit.Task({"acc": [0.5] * 9})}),
        made.run("laser", {"sums": after}, model="other"),
    )
    ingest([made.root], database)
    for run, reason in (
        ("tiny/baseline", "the first"),
        ("tiny/laser", "good"),
        ("tiny/svd", "not of laser"),
        ("other/laser", "of another"),
    ):
        choose(database, str(next(made.root.glob(f"{run}*"))), reason)
    with open_store(database, read_only=False) as store:
        row = {
            "gated_at": datetime(2030, 1, 1),
            "verdict": "FAIL",
            "exit_code": 1,
            "model_name": "tiny",
            "recipe_label": "laser",
            "candidate": "abc",
            "candidate_path": "x",
            "policy": "{}",
            "report": "{}",
        }
        old = row | {"gated_at": datetime(2030, 1, 2), "verdict": "INCONCLUSIVE", "exit_code": 3}
        store.insert("gate_runs", {name: [row[name], old[name]] for name in row})
    events = of(database).events
    assert [(event.what, event.reason) for event in events] == [
        ("pinned", "the first"),
        ("blessed", "good"),
        ("gate: FAIL", ""),
        ("gate: UNDECIDED", ""),
    ]
    assert isinstance(events[0], Event) and events[2].run_id == "abc"


@pytest.mark.slow
def test_what_has_a_history(made: Any, kit: Any, database: Path) -> None:
    (
        made.run("laser", {"sums": kit.pair(9, 3)[1]}, folder="one", spec_id="one"),
        made.run("laser", {"sums": kit.pair(9, 4)[1], "words": kit.pair(9, 4)[1]}, folder="two", spec_id="two"),
    )
    ingest([made.root], database)
    with open_store(database) as store:
        assert [tuple(subject) for subject in subjects(store)] == [
            ("tiny", "laser", "sums", 2),
            ("tiny", "laser", "words", 1),
        ]
    assert of(database, task="nothing") == of(database, model="nobody") == History([], [])


def test_an_empty_store_has_none() -> None:
    store = memory_store()
    try:
        assert subjects(store) == [] and history(store, "a", "b", "c") == History([], [])
    finally:
        store.connection.close()
