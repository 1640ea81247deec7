"""The pages' logic, by Streamlit's own test driver (no browser)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pytest

from leaderboard.app.serve import _config
from leaderboard.ingest import ingest
from leaderboard.store.deletions import delete, take_back
from leaderboard.store.pins import pin
from leaderboard.terminal.format import KEPT
from leaderboard.terminal.marks import MARKS
from tests.leaderboard.app.driving import page, page_database, results, texts

pytest.importorskip("streamlit")


@pytest.fixture
def database(made: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that the pages look for."""
    return page_database(made.root, monkeypatch)


@pytest.fixture
def filled(made: Any, kit: Any, database: Path) -> Path:
    """A board with a better, an undecided and a failed recipe on two tasks."""
    mult, total = kit.pair(400, 200, gained=60), kit.pair(30, 10, lost=1)
    made.run("baseline", {"int_mult": mult[0], "int_sum": total[0]})
    made.run("laser", {"int_mult": mult[1], "int_sum": total[1]})
    made.failed("[svd](http://example.org) <b>x</b>", {"int_mult": mult[1]}, folder="failed")
    ingest([made.root], database)
    return database


@pytest.mark.slow
def test_a_missing_database_explains_itself(database: Path) -> None:
    said = texts(page())
    assert (
        "Nothing here yet" in said
        and "pretrained=demo" in said
        and f"lm_eval ingest PATH --database {database}" in said
    )
    assert f"--recipe laser --output_path {database.parent}" in said


def test_an_empty_database_explains_itself(database: Path) -> None:
    from leaderboard.store.database import open_store

    with open_store(database, read_only=False):
        pass
    assert "Nothing here yet" in texts(page())


@pytest.mark.slow
def test_the_board_shows_recipes_by_tasks(filled: Path) -> None:
    app = page()
    (board,) = (table.value for table in app.dataframe)
    assert list(board.columns) == ["#", "Recipe", "int_mult", "int_sum", "Settings", "Size kept"]
    laser, baseline, failed = board.to_dict("records")
    assert laser["Recipe"] == "compare?recipe=laser&model=tiny#laser"
    # numbers, so that a head sorts them: what is shown is mark and sign
    assert (laser["#"], laser["int_mult"], laser["int_sum"]) == (1, pytest.approx(0.15), pytest.approx(-1 / 30))
    assert laser["Size kept"] == pytest.approx(99.2, abs=0.05)
    assert (baseline["#"], baseline["int_mult"]) == (2, 0.0) and failed["#"] != failed["#"]
    assert "Of 2 recipes, **0** better than baseline *and* control somewhere; 1 better without a control" in texts(app)
    cells = results().dataframe[0].value
    assert "3 weights are NaN" in cells[cells["Verdict"] == "failed"].iloc[0]["Notes"]


@pytest.mark.slow
def test_the_board_explains_incomparable_as_its_mark_does(filled: Path) -> None:
    (how_to_read,) = [one for one in page().expander if one.label == "How to read this"]
    assert f"**incomparable**: {MARKS['incomparable'].meaning}" in texts(how_to_read, "markdown")
    assert f"Kept is {KEPT}." in texts(how_to_read, "markdown")


@pytest.mark.slow
def test_filters_live_in_the_url(filled: Path) -> None:
    app = results(tasks="int_sum", only="laser", task="int_sum")
    assert app.multiselect(key="tasks").value == ["int_sum"] and app.multiselect(key="only").value == ["laser"]
    assert app.selectbox(key="task").value == "int_sum"  # what the rows are ranked on
    assert set(app.dataframe[0].value["Task"]) == {"int_sum"}
    assert set(app.dataframe[0].value["Recipe"]) == {"baseline", "laser"}
    app.multiselect(key="tasks").set_value(["int_mult"]).run()
    assert set(app.dataframe[0].value["Task"]) == {"int_mult"}
    assert app.query_params["tasks"] == "int_mult"
    app.text_input(key="find").set_value("no such").run()
    assert set(app.dataframe[0].value["Recipe"]) == {"baseline"} and app.query_params["find"] == "no such"


@pytest.mark.slow
def test_a_filter_that_leaves_no_recipe_says_so_and_can_be_taken_back(filled: Path) -> None:
    app = page(find="qqqq", tasks="int_sum")
    said = texts(app)
    assert "No recipe matches these filters." in said and "have no rank" not in said and "has no rank" not in said
    assert "Of 2 recipes on 2 tasks, **0** better" in said
    assert "The filters show 0 recipes and 1 task of these." in said
    assert len(app.dataframe[0].value) == 1
    (button,) = [one for one in app.button if one.label == "Clear the filters"]
    button.click().run()
    assert "find" not in app.query_params and "tasks" not in app.query_params
    said = texts(app)
    assert "No recipe matches" not in said and "The filters show" not in said
    assert "1 row has no rank" in said and len(app.dataframe[0].value) == 3
    assert "No recipe matches" not in texts(page(find="laser"))


@pytest.mark.slow
def test_a_filter_that_names_nothing_says_so(filled: Path) -> None:
    assert "names nothing known" not in texts(results(task="int_sum", only="laser", model="tiny"))
    for name in ("task", "tasks", "only", "model", "verdict"):
        app = results(**{name: "*nope*"})
        assert f"The {name} filter of this link names nothing known here" in app.warning[0].value and "*nope*" in [
            text.value for text in app.text
        ]
        assert len(app.dataframe[0].value) == 5


@pytest.mark.slow
def test_the_chosen_model_is_in_the_url(made: Any, kit: Any, filled: Path) -> None:
    app = page()
    assert app.query_params["model"] == "tiny"
    made.run("baseline", {"int_mult": kit.pair(400, 200)[0]}, model="another", started="2027-01-01T00:00:00Z")
    ingest([made.root], filled)
    assert page().selectbox(key="model").value == "tiny"  # which was edited
    made.run("svd", {"int_mult": kit.pair(400, 200, lost=9)[1]}, model="another", started="2027-01-02T00:00:00Z")
    ingest([made.root], filled)
    assert page().selectbox(key="model").value == "another"  # which was edited last
    linked = page(model="tiny")
    assert linked.selectbox(key="model").value == "tiny" and "int_sum" in linked.dataframe[0].value
    linked.selectbox(key="model").set_value("another").run()
    assert "int_sum" not in linked.dataframe[0].value and not linked.warning


@pytest.mark.slow
def test_the_page_says_whether_its_baseline_is_pinned(made: Any, kit: Any, filled: Path) -> None:
    assert "against the unedited model's latest run of the same tasks and settings (no baseline is pinned)" in texts(
        page()
    )
    again = made.run(
        "baseline", {"int_mult": kit.pair(400, 200)[0]}, folder="again", spec_id="again", started="2027-01-01T00:00:00Z"
    )
    ingest([again], filled)
    chosen = pin(filled, str(again), "of the new machine")
    assert (
        f"against the pinned baseline, run {chosen.run_id[:8]}, and on tasks that it has not run, or ran in"
        in texts(page())
    )
    assert f"against the pinned baseline, run {chosen.run_id[:8]}." in texts(page(tasks="int_mult"))
    assert "(no baseline of these tasks is pinned)" in texts(page(tasks="int_sum"))


@pytest.mark.slow
def test_the_correction_does_not_follow_the_filters(filled: Path) -> None:
    def q_value(app: Any) -> float:
        cells = app.dataframe[0].value
        return float(cells[(cells["Task"] == "int_sum") & (cells["Recipe"] == "laser")]["q"].iloc[0])

    assert q_value(results()) == q_value(results(tasks="int_sum", only="laser"))


def test_a_run_page_has_command_versions_receipt_and_files(filled: Path) -> None:
    run_id = (
        duckdb.connect(str(filled), read_only=True)
        .execute("SELECT run_id FROM runs JOIN variants USING (variant_id) WHERE recipe_name = 'laser'")
        .fetchone()
    )
    assert run_id is not None
    app = page("run", run=run_id[0])
    said = texts(app)
    assert (
        "lm_eval run --recipe laser" in said
        and "receipt.json" in said
        and "laser on tiny" in said
        and "992 after" in said
        and "1 matrix edited" in said
    )
    assert list(app.dataframe[1].value["Matrix"]) == ["layers.0.up.weight"]
    assert any("torch" in list(frame.value.get("Name", [])) for frame in app.dataframe)


@pytest.mark.slow
def test_a_run_that_failed_says_why(filled: Path) -> None:
    run_id = (
        duckdb.connect(str(filled), read_only=True)
        .execute("SELECT run_id FROM runs WHERE status = 'failed'")
        .fetchone()
    )
    assert run_id is not None
    said = texts(page("run", run=run_id[0]))
    assert "This run failed." in said and "3 weights are NaN" in said


@pytest.mark.slow
def test_names_from_files_are_never_markdown(filled: Path) -> None:
    app = page()
    hostile = "example.org"
    for kind in ("title", "header", "subheader", "markdown", "caption", "warning", "error", "info"):
        assert not any(hostile in str(element.value) for element in getattr(app, kind)), kind


@pytest.mark.slow
def test_an_unknown_run_says_so(filled: Path) -> None:
    said = texts(page("run", run="feedface"))
    assert "No such run" in said and "no run feedface" in said


@pytest.mark.slow
def test_a_deleted_run_says_when_why_and_how_it_comes_back(made: Any, filled: Path) -> None:
    entry = delete(filled, "laser", "a wrong tokenizer")
    said = texts(page("run", run=entry.run_id))
    assert "Taken off the board" in said and "No such run" not in said
    assert f"run {entry.run_id} was taken off the board on {entry.logged_at:%Y-%m-%d %H:%M} UTC: a wrong token" in said
    assert f"`lm_eval runs restore {entry.run_id[:12]} --database {filled}`" in said
    assert f"`lm_eval ingest {entry.path} --database {filled}`" in said
    assert "was taken off the board" in texts(page("compare", run=entry.run_id))
    take_back(filled, entry.run_id)
    assert "No such run" in texts(page("run", run=entry.run_id))
    assert ingest([entry.path], filled).added == [entry.run_id]


@pytest.mark.slow
def test_busy_shows_the_last_good_data(filled: Path) -> None:
    assert "better" in texts(page())
    writer = duckdb.connect(str(filled))
    try:
        writer.execute(
            "INSERT INTO baselines (model_key, run_id, pinned_at, reason) VALUES ('k', 'r', now()::TIMESTAMP, 'x')"
        )
        writer.execute("CHECKPOINT")
        app = page()
        assert "The database is busy: showing data of" in texts(app)
        assert len(app.dataframe[0].value) == 3
    finally:
        writer.close()
    assert "is busy" not in texts(page())


@pytest.mark.slow
def test_busy_from_the_start_is_said(filled: Path) -> None:
    writer = duckdb.connect(str(filled))
    try:
        said = texts(page())
    finally:
        writer.close()
    assert "The database is busy" in said and "tries again" in said


@pytest.mark.slow
def test_a_newer_and_a_damaged_database_are_refused(filled: Path) -> None:
    connection = duckdb.connect(str(filled))
    connection.execute("UPDATE schema_migrations SET number = number + 999")
    connection.close()
    assert "newer than the page" in texts(page())
    filled.write_bytes(b"garbage")
    assert "is not a DuckDB database" in texts(
        page()
    ) and f"lm_eval ingest --rebuild {filled.parent} --database {filled}" in texts(page())


@pytest.mark.slow
def test_what_was_rejected_says_how_to_take_it_in(made: Any, filled: Path) -> None:
    (made.root / "results_broken.json").write_text("{")
    ingest([made.root], filled)
    app = page()
    assert app.expander[0].label == "Not taken in: 1" and f"lm_eval ingest PATH --database {filled}" in texts(app)


def test_the_server_is_local_and_silent() -> None:
    config = _config("127.0.0.1", 8501, open_browser=False)
    assert config["server.address"] == "127.0.0.1" and config["browser.gatherUsageStats"] is False
    assert config["server.allowedHosts"] == ["127.0.0.1", "localhost", "::1"]


def test_further_metrics_are_shown_and_can_be_chosen(made: Any, kit: Any, database: Path) -> None:
    before, after = kit.pair(400, 200, gained=60, greedy=True, output_type="loglikelihood")
    before.log_likelihoods = [-1.0 - 0.01 * i for i in range(400)]
    after.log_likelihoods = [value - 1.0 for value in before.log_likelihoods]
    for task in (before, after):
        task.values["acc_norm"] = list(task.values["acc"])
    made.run("baseline", {"sums": before})
    made.run("laser", {"sums": after})
    run_id = ingest([made.root], database).added[1]
    table = results().dataframe[0].value
    (laser,) = table[table["Recipe"] == "laser"].to_dict("records")
    assert (laser["Verdict"], laser["Metric"]) == ("better, no control run", "acc")
    assert laser["Further metrics"] == "acc_norm better +0.1500; gold_loglikelihood worse -1.0000"
    assert laser["Notes"].startswith("better by acc, but worse by gold_loglikelihood -1 [")
    assert page(metric="gold_loglikelihood").dataframe[0].value["sums"].tolist() == [0.0, pytest.approx(-1.0)]
    table = results(metric="gold_loglikelihood").dataframe[0].value
    assert set(table["Metric"]) == {"gold_loglikelihood"} and set(table["Verdict"]) == {"baseline", "worse"}
    verdicts = page("run", run=run_id).dataframe[0].value
    assert list(verdicts["Metric"]) == ["acc", "acc_norm", "gold_loglikelihood"]
    assert list(verdicts["Verdict"]) == [*["better, no control run"] * 2, "worse"]


@pytest.mark.slow
def test_a_board_without_further_metrics_has_no_choice_of_them(filled: Path) -> None:
    app = page()
    assert [box.label for box in app.selectbox] == ["Model", "Rank by"]
    assert "Further metrics" not in results().dataframe[0].value.columns
