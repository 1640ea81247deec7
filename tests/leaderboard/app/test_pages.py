"""Compare, Flips, Size and score, and what the leaderboard says of papers, by Streamlit's own test driver (no
browser).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pytest

from leaderboard.ingest import ingest
from tests.leaderboard.app.driving import page, page_database, texts, words_of

pytest.importorskip("streamlit")
HOSTILE = "![x](http://example.org/x.png) <script>alert(1)</script> $\\frac{1}{2}$ [link](http://example.org)"


@pytest.fixture
def database(made: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that the pages look for."""
    return page_database(made.root, monkeypatch)


@pytest.fixture
def runs(made: Any, kit: Any, database: Path) -> dict[str, str]:
    """recipe -> run id, of a baseline and two recipes with flips, with a hostile question, and a failed one."""
    documents = {"question": [f"{i} {HOSTILE}" for i in range(40)]}
    before, laser = kit.pair(40, 20, lost=2, gained=5, fields=documents)
    _, svd = kit.pair(40, 20, lost=12, fields=documents)
    made.run("baseline", {"int_mult": before})
    made.run("laser", {"int_mult": laser})
    svd.log_likelihoods = kit.likelihoods(40, 2)
    made.run("svd", {"int_mult": svd})
    made.failed("broken", {"int_mult": laser}, folder="failed")
    report = ingest([made.root], database)
    assert not report.rejected
    with duckdb.connect(str(database), read_only=True) as connection:
        return dict(
            connection.execute("SELECT recipe_label, run_id FROM runs JOIN variants USING (variant_id)").fetchall()
        )


def test_compare_shows_two_runs(runs: dict[str, str]) -> None:
    app = page("compare", a=runs["laser"], b=runs["svd"][:10])
    said = words_of(app)
    assert "Against laser: worse on 1 of 1 task." in said
    assert "1 declined, by the direction" in texts(app)
    tasks = next(table.value for table in app.dataframe if "Lost / gained" in table.value)
    answers = next(table.value for table in app.dataframe if "Answers changed" in table.value)
    (answered,) = answers.to_dict("records")
    assert (
        answered["Documents"] == 40
        and answered["Right answer's log-likelihood, change in nats [95 %]"] == "0.0000 [0.0000, 0.0000]"
    )
    assert tasks.iloc[0]["Lost / gained"] == "15 / 0" and "15 / 0" in said
    assert "recipe laser svd" in said and "The same in both: dtype" in texts(app, "text")
    assert app.query_params["b"] == runs["svd"] and app.query_params["a"] == runs["laser"]


@pytest.mark.slow
def test_compare_opens_on_the_newest_run_against_its_baseline(runs: dict[str, str]) -> None:
    app = page("compare")
    said = words_of(app)
    assert said.startswith("svd Against the baseline: worse on 1 of 1 task.")
    assert app.query_params["run"] == runs["svd"] and "against" not in app.query_params
    assert "int_mult acc, n 40 0.500 0.200" in said and "12 / 0" in said
    laser = page("compare", recipe="laser")
    assert laser.query_params["run"] == runs["laser"] and "0.500 0.575" in words_of(laser)


@pytest.mark.slow
def test_compare_takes_more_than_two_runs(runs: dict[str, str]) -> None:
    app = page("compare", run=runs["svd"], against=["baseline", runs["laser"][:9]])
    said = words_of(app)
    assert "Against the baseline: worse on 1 of 1 task. Against laser: worse on 1 of 1 task." in said
    assert "Task Baseline This run Improvement Against baseline Lost / gained laser Improvement Against laser" in said
    assert "run " + " ".join(runs[name][:8] for name in ("baseline", "svd", "laser")) in said
    ticked = page("compare", a=runs["baseline"], b=[runs["svd"], runs["laser"]])
    assert "Against baseline: worse on 1 of 1 task. Against laser: worse on 1 of 1 task." in words_of(ticked)
    unknown = page("compare", run=runs["svd"], against="feedface")
    assert "not known here" in texts(unknown, "warning") and "Against the baseline" in words_of(unknown)


@pytest.mark.slow
def test_compare_tells_what_only_one_run_has(made: Any, kit: Any, database: Path) -> None:
    before, after = kit.pair(40, 20, lost=2)
    more = kit.Task(
        {"acc": before.values["acc"], "acc_norm": before.values["acc"]}, log_likelihoods=kit.likelihoods(40, 5)
    )
    made.run("baseline", {"sums": more, HOSTILE.replace("/", ""): before})
    made.run("laser", {"sums": after, "words": after})
    assert not ingest([made.root], database).rejected
    with duckdb.connect(str(database), read_only=True) as connection:
        ids = dict(
            connection.execute("SELECT recipe_label, run_id FROM runs JOIN variants USING (variant_id)").fetchall()
        )
    said = texts(page("compare", a=ids["baseline"], b=ids["laser"]), "text").splitlines()
    assert [line for line in said if line.startswith("Only")] == [
        f"Only baseline has the task {HOSTILE.replace('/', '')}",
        "Only baseline has the metric acc_norm of sums",
        "Only this run has the task words",
    ]
    same = page("compare", a=ids["laser"], b=ids["laser"])
    assert "Only" not in texts(same, "text")


@pytest.mark.slow
def test_compare_wants_runs_that_are_there(runs: dict[str, str]) -> None:
    assert "the same run" in texts(page("compare", a=runs["svd"], b=runs["svd"]))
    said = texts(page("compare", a="*nope*", b=runs["svd"]))
    assert "not known here" in said and "*nope*" in said
    assert "The run to compare with failed" in texts(page("compare", a=runs["broken"], b=runs["svd"]))
    assert "This run failed" in texts(page("compare", b=runs["broken"]))
    assert "This is the baseline itself" in words_of(page("compare", run=runs["baseline"]))


def test_flips_lists_what_was_lost_and_gained(runs: dict[str, str]) -> None:
    app = page("flips", b=runs["laser"])
    assert "2 lost, 5 gained of 40 documents: undecided (+0.075)." in words_of(app)
    assert sorted(app.dataframe[0].value["Change"]) == ["gained"] * 5 + ["lost"] * 2
    lost = page("flips", b=runs["laser"], show="lost", task="int_mult")
    assert list(lost.dataframe[0].value["Change"]) == ["lost"] * 2
    assert "17 documents of 40" in texts(app) and "of 2 recipes, controls left out; 2 under" not in texts(app)
    against = page("flips", a=runs["svd"], b=runs["laser"], task="int_mult")
    assert "0 lost, 15 gained of 40" in words_of(against) and "against svd" in words_of(against)


@pytest.mark.slow
def test_flips_opens_on_the_newest_run_and_its_first_document(runs: dict[str, str]) -> None:
    app = page("flips")
    assert app.query_params["run"] == runs["svd"] and app.query_params["task"] == "int_mult"
    rows = app.dataframe[0].value
    assert len(rows) == 12 and set(rows["Change"]) == {"lost"} and set(rows["Other recipes"]) == {0, 1}
    assert "\u2713 right" in words_of(app) and "\u2715 wrong" in words_of(app)
    assert any("with 0 examples" in str(code.value) for code in app.code)


@pytest.mark.slow
def test_flips_are_found_by_a_text(runs: dict[str, str]) -> None:
    app = page("flips", run=runs["svd"], find="3 ![X](HTTP")
    found = app.dataframe[0].value
    assert len(found) == 1 and found.iloc[0]["Prompt"].startswith("3 ![x]")
    assert "No document of these has this text" in texts(page("flips", run=runs["svd"], find="nowhere at all"), "info")
    app.text_input(key="find").set_value("").run()
    assert len(app.dataframe[0].value) == 12 and "find" not in app.query_params


@pytest.mark.slow
def test_a_hostile_document_is_text(runs: dict[str, str]) -> None:
    app = page("flips", b=runs["laser"])
    assert any(HOSTILE in str(code.value) or "with 0 examples" in str(code.value) for code in app.code)
    for kind in ("title", "header", "subheader", "markdown", "caption", "warning", "error", "info"):
        assert not any("example.org" in str(element.value) for element in getattr(app, kind)), kind


@pytest.mark.slow
def test_flips_says_so_where_there_are_none(made: Any, kit: Any, runs: dict[str, str], database: Path) -> None:
    assert "No task of this run" in texts(page("flips", b=runs["broken"]))
    assert "This run is the baseline itself" in texts(page("flips", run=runs["baseline"]))


@pytest.mark.slow
def test_size_and_score_has_the_front(runs: dict[str, str]) -> None:
    app = page("size", model="tiny", size="Parameters")
    points = app.dataframe[0].value
    assert dict(zip(points["Recipe"], points["On the line"])) == {"laser": "yes", "svd": "no", "baseline": "no"}
    assert dict(zip(points["Recipe"], points["Parameters"])) == {"laser": 992, "svd": 992, "baseline": 1000}
    assert "Not drawn: 1 failed or incomparable, 0 without a recorded size." in texts(app, "caption")
    assert "laser 99.2%" in words_of(app)
    assert "laser: Undecided counts as not worse: on 1 of 1 task (int_mult)." in texts(app, "text")


@pytest.mark.slow
def test_reported_numbers_stand_apart(made: Any, kit: Any, database: Path) -> None:
    before, after = kit.pair(40, 20, gained=5)
    made.run("baseline", {"counterfact": before}, model="EleutherAI/gpt-j-6b", folder="a")
    made.run("laser-search", {"counterfact": after}, model="EleutherAI/gpt-j-6b", folder="b")
    ingest([made.root], database)
    app = page("board")
    reported = app.dataframe[1].value.iloc[0]
    assert (
        reported["Reported"] == "0.131 -> 0.24"
        and reported["Ours"] == "0.5000 -> 0.6250"
        and "2312.13558" in reported["Source"]
    )
    assert "were not measured here" in texts(app)


@pytest.mark.slow
def test_filters_by_verdict_and_control(made: Any, kit: Any, runs: dict[str, str], database: Path) -> None:
    app = page("board", verdict="failed", view="All results")
    assert set(app.dataframe[0].value["Verdict"]) == {"baseline", "failed"}


@pytest.mark.parametrize("name", ["compare", "flips", "size"])
def test_an_empty_store_explains_itself(database: Path, name: str) -> None:
    assert "Nothing here yet" in texts(page(name))


def test_claims_stand_beside_what_was_measured(made: Any, kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    database = page_database(made.root, monkeypatch)
    before, after = kit.pair(400, 100, gained=60)
    made.run("baseline", {"int_mult": before}, model="microsoft/phi-2")
    made.run("eigenprune-released:calibration.samples=320", {"int_mult": after}, model="microsoft/phi-2")
    made.run("eigenprune", {"int_mult": after}, model="microsoft/phi-2")
    ingest([made.root], database)
    app = page("claims")
    assert "**1** of" in texts(app) and "has been run here, by 2 runs: **1** partly, **1** incomparable." in texts(app)
    measured, missing = (app.dataframe[i].value for i in (0, 1))
    (other,) = (one for _, one in measured.iterrows() if one["Claim"] == "incomparable")
    assert other["Why"] == "run as eigenprune, where eigenprune-released:calibration.samples=320 stands for the claim"
    (row,) = (one for _, one in measured.iterrows() if one["Claim"] != "incomparable")
    assert (row["Reported before"], row["Reported after"], row["After"]) == (0.1375, 0.975, 0.4)
    assert (row["Verdict"], row["Reported direction"], row["Beats its control"]) == ("better", "yes", "no control run")
    assert (
        list(row.index)[4:6] == ["Claim", "Why"]
        and row["Claim"] == "partly"
        and row["Why"].endswith("smaller than reported, and no control was run")
    )
    assert row["Low"] < row["Improvement"] < row["High"] and row["Reported improvement"] == pytest.approx(0.8375)
    assert missing["Command"].str.startswith("lm_eval run").any()
    assert any("pretrained=" in str(code.value) for code in app.code)
    assert "it has other settings or a part of the documents" in texts(app)
    one = page("claims", state="incomparable")
    assert list(one.dataframe[0].value["Claim"]) == ["incomparable"] and "Not measured here" not in texts(one)
    assert len(page("claims", state="not measured").dataframe) == 1
    none = page("claims", state="supported")
    assert not none.warning and [told.value for told in none.info] == ["No claim of these is supported."]
    only = page("claims", method="LASER")
    assert set(only.dataframe[0].value["Method"]) == {"LASER"} and "**None** of 48 reported results" in texts(only)
