"""Compare, Flips, Size and score, and what the leaderboard says of papers, by Streamlit's own test driver (no
browser).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pytest

from leaderboard.ingest import ingest
from tests.leaderboard.app.driving import page, page_database, texts

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
    said = texts(app)
    assert "corrected over 1 task." in said and "1 task: 1 worse" in said and "1 declined, by the direction" in said
    tasks, answers, differences = (app.dataframe[i].value for i in range(3))
    (answered,) = answers.to_dict("records")
    assert (
        answered["Documents"] == 40
        and answered["Right answer's log-likelihood, drop in nats [95 %]"] == "0.0000 [0.0000, 0.0000]"
    )
    assert tasks.iloc[0]["Lost / gained"] == "15 / 0"
    recipe = differences[differences["Name"] == "recipe"].iloc[0]
    assert (recipe["Run A"], recipe["Run B"]) == ("laser", "svd")
    assert app.query_params["b"] == runs["svd"]


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
        f"Only A has the task {HOSTILE.replace('/', '')}",
        "Only A has the metric acc_norm of sums",
        "Only B has the task words",
    ]
    same = page("compare", a=ids["laser"], b=ids["laser"])
    assert "Only" not in texts(same, "text")


def test_compare_wants_two_runs_that_are_there(runs: dict[str, str]) -> None:
    assert "Choose two runs" in texts(page("compare"))
    assert "the same run" in texts(page("compare", a=runs["svd"], b=runs["svd"]))
    said = texts(page("compare", a="*nope*", b=runs["svd"]))
    assert "not known here" in said and "*nope*" in said
    assert "This run failed" in texts(page("compare", a=runs["broken"], b=runs["svd"]))


def test_flips_lists_what_was_lost_and_gained(runs: dict[str, str]) -> None:
    app = page("flips", b=runs["laser"])
    said = texts(app)
    assert "2 lost, 5 gained of 40 documents" in said
    assert sorted(app.dataframe[0].value["Change"]) == ["gained"] * 5 + ["lost"] * 2
    lost = page("flips", b=runs["laser"], show="lost", task="int_mult")
    assert list(lost.dataframe[0].value["Change"]) == ["lost"] * 2
    assert "17 documents of 40" in said and "of 2 recipes, controls left out; 2 under" not in said
    against = page("flips", a=runs["svd"], b=runs["laser"], task="int_mult")
    assert "0 lost, 15 gained of 40" in texts(against)


def test_a_hostile_document_is_text(runs: dict[str, str]) -> None:
    app = page("flips", b=runs["laser"])
    assert any(HOSTILE in str(code.value) or "with 0 examples" in str(code.value) for code in app.code)
    for kind in ("title", "header", "subheader", "markdown", "caption", "warning", "error", "info"):
        assert not any("example.org" in str(element.value) for element in getattr(app, kind)), kind


def test_flips_says_so_where_there_are_none(made: Any, kit: Any, runs: dict[str, str], database: Path) -> None:
    assert "No task of this run" in texts(page("flips", b=runs["broken"]))
    assert "Choose a run" in texts(page("flips"))


def test_size_and_score_has_the_front(runs: dict[str, str]) -> None:
    app = page("size", model="tiny", size="Parameters")
    points = app.dataframe[0].value
    assert dict(zip(points["Recipe"], points["On the front"])) == {"laser": "yes", "svd": "no", "baseline": "no"}
    assert dict(zip(points["Recipe"], points["Parameters"])) == {"laser": 992, "svd": 992, "baseline": 1000}
    assert "1 failed, 0 without a recorded size" in texts(app)


def test_reported_numbers_stand_apart(made: Any, kit: Any, database: Path) -> None:
    before, after = kit.pair(40, 20, gained=5)
    made.run("baseline", {"counterfact": before}, model="EleutherAI/gpt-j-6b", folder="a")
    made.run("laser-search", {"counterfact": after}, model="EleutherAI/gpt-j-6b", folder="b")
    ingest([made.root], database)
    app = page("board")
    reported = app.dataframe[1].value.iloc[0]
    assert (
        reported["Reported"] == "0.1310 -> 0.2400"
        and reported["Ours"] == "0.5000 -> 0.6250"
        and "2312.13558" in reported["Source"]
    )
    assert "were not measured here" in texts(app)


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
    made.run("eigenprune", {"int_mult": after}, model="microsoft/phi-2")
    ingest([made.root], database)
    app = page("claims")
    assert "**1** of" in texts(app) and "has been run here, by 1 run: **1** with" in texts(app)
    measured, missing = (app.dataframe[i].value for i in (0, 1))
    row = measured.iloc[0]
    assert (row["Reported before"], row["Reported after"], row["After"]) == (0.1375, 0.975, 0.4)
    assert (row["Verdict"], row["Reported direction"], row["Beats its control"]) == ("better", "yes", "no control run")
    assert row["Low"] < row["Improvement"] < row["High"] and row["Reported improvement"] == pytest.approx(0.8375)
    assert missing["Command"].str.startswith("lm_eval run").any()
    assert any("pretrained=" in str(code.value) for code in app.code)
    assert "Settings differ" in texts(app)
    only = page("claims", method="LASER")
    assert set(only.dataframe[0].value["Method"]) == {"LASER"} and "**None** of 48 reported results" in texts(only)
