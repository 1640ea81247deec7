"""The pages over many runs (history, across models, layers) and the run's own page, by Streamlit's test driver (no
browser).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from leaderboard.app.serve import DATABASE_VARIABLE
from leaderboard.ingest import ingest
from leaderboard.store.pins import choose
from tests.leaderboard.app.driving import page, page_database, texts

pytest.importorskip("streamlit")
HOSTILE = "[svd](http://example.org) <b>x</b> $x$"


@pytest.fixture
def database(made: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that the pages look for."""
    return page_database(made.root, monkeypatch)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `filled` lies, for all tests that only look."""
    return tmp_path_factory.mktemp("filled")


@pytest.fixture
def filled(root: Path, kit: Any, database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two models: laser better on one, worse on the other, twice on the first; a recipe with a hostile name on one of
    them alone; a pin and a blessing.
    """
    path = root / "leaderboard.duckdb"
    monkeypatch.setenv(DATABASE_VARIABLE, str(path))
    if path.exists():
        return path
    made = kit.Fabricator(root)
    for place, (model, gained, lost) in enumerate((("tiny", 60, 0), ("small", 0, 60))):
        before, after = (
            kit.Task({"acc": values}, log_likelihoods=kit.likelihoods(400, seed + 10 * place))
            for seed, values in enumerate(kit.binary(400, 200, gained=gained, lost=lost))
        )
        made.run("baseline", {"int_mult": before}, model=model)
        made.run("laser", {"int_mult": after}, model=model)
    log = [{"step": 0, "epoch": epoch, "loss": 3.0 - epoch, "note": HOSTILE} for epoch in range(3)]
    searches = [
        {
            "step": 0,
            "method": HOSTILE,
            "chosen": [{"method": "truncate_svd"}],
            "trials": [{"number": i, "matrix": HOSTILE, "accuracy": i / 4} for i in range(3)],
        },
        {"step": 1, "method": "laser_search", "chosen": [], "reason": f"all worse {HOSTILE}", "trials": []},
        {"step": 2, "method": "laser_search", "chosen": [], "trials": []},
    ]
    alike, right = (
        kit.Task({"acc": [value] * 400}, log_likelihoods=kit.likelihoods(400, seed))
        for seed, value in ((30, 0.5), (40, 1.0))
    )
    made.run(
        HOSTILE,
        {"int_mult": alike},
        folder="hostile",
        log=log,
        searches=searches,
        seeds={HOSTILE: HOSTILE},
        versions={"torch": HOSTILE},
    )
    made.run(
        "laser",
        {"int_mult": right},
        folder="later",
        spec_id="later",
        started="2026-03-01T00:00:00Z",
        config={"batch_size": 8},
    )
    assert not ingest([root], path).rejected
    choose(path, str(root / "tiny" / "baseline-0123456789"), "the first")
    choose(path, str(root / "tiny" / "laser-0123456789"), HOSTILE)
    return path


def tables(app: Any) -> list[Any]:
    return [element.value for element in app.dataframe]


def descriptions(app: Any) -> Iterator[str]:
    """The alternative text of every plot."""
    for element in app.get("vega_lite_chart"):
        yield json.loads(element.proto.spec)["description"]


def run_id(database: Path, folder: str) -> str:
    connection = duckdb.connect(str(database), read_only=True)
    try:
        (found,) = connection.execute("SELECT run_id FROM runs WHERE path LIKE ?", [f"%{folder}%"]).fetchall()
    finally:
        connection.close()
    return str(found[0])


class TestHistory:
    @pytest.mark.slow
    def test_both_lines_their_changes_and_decisions(self, filled: Path) -> None:
        app = page("history", model="tiny", recipe="laser", task="int_mult")
        runs, decisions = tables(app)
        assert list(runs["Model"]) == ["with the recipe", "with the recipe", "unedited"] and list(runs["Score"]) == [
            "1.0000",
            "0.6500",
            "0.5000",
        ]
        assert runs["Changed"].iloc[0].startswith("batch size: 1 -> 8") and list(runs["Verdict"]) == [
            "better, no control run",
            "better, no control run",
            "baseline",
        ]
        assert sorted(decisions["Decision"]) == ["blessed", "pinned"] and HOSTILE in list(decisions["Reason"])
        (said,) = descriptions(app)
        assert (
            "laser: 2 runs, score from 0.6500 at first to 1.0000 at last; the unedited model: 1 run, score 0.5000; 2"
            " decisions"
            in said
            and said in texts(app, "text")
        )

    @pytest.mark.slow
    def test_the_most_told_story_comes_first_and_is_in_the_url(self, filled: Path) -> None:
        app = page("history")
        assert [app.query_params[name] for name in ("model", "recipe", "task", "spacing")] == [
            "tiny",
            "laser",
            "int_mult",
            "by date",
        ]
        app.selectbox(key="spacing").set_value("evenly").run()
        assert not app.exception and len(list(descriptions(app))) == 1

    @pytest.mark.slow
    def test_a_model_without_a_recipe_has_a_history_too(self, made: Any, kit: Any, database: Path) -> None:
        made.plain({"sums": kit.pair(9, 3)[0]})
        made.failed("nan", {"sums": kit.pair(9, 3)[0]}, started=None)
        ingest([made.root], database)
        app = page("history", recipe="plain lm_eval")
        assert (
            list(tables(app)[0]["Model"]) == ["unedited"]
            and "no decisions" in next(descriptions(app))
            and app.selectbox(key="spacing").value == "evenly"
        )
        failed = page("history", recipe="nan")
        assert "1 failed" in next(descriptions(failed)) and "failed" in list(tables(failed)[0]["Verdict"])


class TestAcross:
    @pytest.mark.slow
    def test_counts_signs_and_blanks(self, filled: Path) -> None:
        app = page("across", least="1")
        counts, differences = tables(app)[:2]
        assert (
            list(counts["Verdicts"])
            == ["better on 1 of 2 models, worse on 1", "better on 0 of 1 model, undecided on 1"]
            and counts["Up / down"].iloc[0] == "1 / 1"
        )
        assert list(differences["small"]) == ["worse \u22120.150", ""]
        assert differences["tiny"].iloc[0] == "better, no control run +0.500"
        assert "laser: better on 1 of 2 models, worse on 1; up on 1, down on 1" in next(descriptions(app))

    def test_boards_of_many_models_are_one_reading(
        self, made: Any, kit: Any, database: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from leaderboard.app import data

        for place in range(5):
            before, after = (
                kit.Task({"acc": values}, log_likelihoods=kit.likelihoods(40, seed + 10 * place))
                for seed, values in enumerate(kit.binary(40, 20, gained=4 * place))
            )
            (
                made.run("baseline", {"sums": before}, model=f"m{place}"),
                made.run("laser", {"sums": after}, model=f"m{place}"),
            )
        assert not ingest([made.root], database).rejected
        keys = sorted(data.overview().value.names)
        alone = [cell for key in keys for cell in data.cells_of(key).value]
        opened: list[Any] = []
        real = data.open_store
        monkeypatch.setattr(
            data, "open_store", lambda *arguments, **named: opened.append(arguments) or real(*arguments, **named)
        )
        together = data.cells_of(*keys).value
        assert len(opened) == 1 and sorted(together, key=repr) == sorted(alone, key=repr) and len(together) == 10
        data.forget()
        opened.clear()
        # what there is, and all boards
        assert "5 models" in next(descriptions(page("across", least="1"))) and len(opened) == 2

    @pytest.mark.slow
    def test_controls_are_not_counted_as_recipes(self, made: Any, kit: Any, database: Path) -> None:
        before, after = kit.pair(40, 20, gained=10)
        made.run("baseline", {"sums": before})
        made.run("laser", {"sums": after})
        path = made.run("laser+random-subspace", {"sums": before}) / "receipt.json"
        receipt = json.loads(path.read_text())
        receipt["recipe"] |= {"control": "random-subspace", "control_of": kit.sha("laser")}
        path.write_text(json.dumps(receipt))
        assert not ingest([made.root], database).rejected
        assert "1 recipe and 1 control on 1 model. laser:" in next(descriptions(page("across", least="1")))

    @pytest.mark.slow
    def test_filters(self, filled: Path) -> None:
        assert list(tables(page("across"))[0]["Recipe"]) == ["laser"]
        app = page("across", least="1", recipe=HOSTILE)
        assert list(tables(app)[0]["Recipe"]) == [HOSTILE] and app.query_params["task"] == "int_mult"
        assert "names nothing known" in texts(page("across", task="nope"), "warning")

    @pytest.mark.slow
    def test_unedited_models_alone_have_nothing_to_compare(self, made: Any, kit: Any, database: Path) -> None:
        made.run("baseline", {"sums": kit.pair(9, 3)[0]})
        ingest([made.root], database)
        assert "Every run here is of an unedited model" in texts(page("across"), "info")


class TestLayers:
    @pytest.mark.slow
    def test_the_map_the_ranks_and_every_edit(self, filled: Path) -> None:
        app = page("layers", model="tiny")
        (edits,) = tables(app)
        assert (
            set(edits["Recipe"]) == {"laser", HOSTILE}
            and set(edits["Rank"]) == {"4 -> 2"}
            and set(edits["Kept"]) == {"50.0%"}
            and set(edits["Verdict"]) == {"better, no control run", "undecided"}
        )
        place, points = descriptions(app)
        assert (
            place.startswith("3 runs edited 1 place")
            and "2 better, 1 undecided" in place
            and "what the run gained on int_mult" in points
        )

    @pytest.mark.slow
    def test_filters_and_measures(self, filled: Path) -> None:
        assert (
            len(
                tables(
                    page(
                        "layers",
                        model="tiny",
                        recipe="laser",
                        rank="10 to 50 %",
                        most="1",
                        measure="least rank kept",
                        matrix="up_proj",
                    )
                )[0]
            )
            == 2
        )
        none = page("layers", model="tiny", rank="under 10 %")
        assert "No edit matches" in texts(none, "info")
        (clear,) = [button for button in none.button if button.label == "Clear the filters"]
        assert "No edit matches" not in texts(clear.click().run())
        assert len(list(descriptions(page("layers", model="small", measure="runs")))) == 2

    @pytest.mark.slow
    def test_no_receipt(self, made: Any, kit: Any, database: Path) -> None:
        made.plain({"sums": kit.pair(9, 3)[0]})
        ingest([made.root], database)
        assert "No run here has a receipt" in texts(page("layers"), "info")


class TestRun:
    @pytest.mark.slow
    def test_everything_to_make_it_again(self, filled: Path) -> None:
        said = texts(page("run", run=run_id(filled, "later")), "text", "code", "caption")
        for part in (
            "lm_eval run --recipe laser",
            "lm-eval==0.4.13",
            "torch==2.13.0",
            "transformers==5.23.0",
            "fewshot 1234",
            "receipt.json  (",
            " bytes)",
        ):
            assert part in said, part
        assert "not there" not in said

    @pytest.mark.slow
    def test_a_call_from_python_is_shown_as_it_was_made(self, made: Any, kit: Any, database: Path) -> None:
        call = "harness_ext.run(model='hf', recipes=['laser'])"
        before, after = kit.pair(9, 3)
        made.run("baseline", {"sums": before})
        made.run("laser", {"sums": after})
        for path in made.root.rglob("receipt.json"):
            path.write_text(json.dumps(json.loads(path.read_text()) | {"command": [call]}))
        ingest([made.root], database)
        with duckdb.connect(str(database), read_only=True) as store:
            ((key,),) = store.execute("SELECT run_id FROM v_scores WHERE recipe = 'laser' LIMIT 1").fetchall()
        said = texts(page("run", run=key), "code", "caption")
        assert call in said and "--recipe" not in said and "The call from Python" in said

    @pytest.mark.slow
    def test_searches_and_trainings_come_from_the_receipt_on_disk(self, root: Path, filled: Path) -> None:
        app = page("run", run=run_id(filled, "hostile"))
        assert "Nothing was found: all worse" in texts(app, "text") and "Nothing was found." in texts(app, "text")
        assert "3 trials" in texts(app, "text") and "Log of the training" in texts(app, "subheader")
        assert {
            "The accuracy over 3 trials: 0.0000 at first, 0.5000 at last, 0.0000 at least.",
            "The loss over 3 epochs: 3.0000 at first, 1.0000 at last, 1.0000 at least.",
        } <= set(descriptions(app))
        receipt = root / "tiny" / "hostile" / "receipt.json"
        receipt.rename(root / "aside")
        said = texts(page("run", run=run_id(filled, "hostile")))
        (root / "aside").rename(receipt)
        assert (
            "receipt.json is not in the run's folder on this machine" in said
            and "receipt.json  (not there)" in said
            and "1 of 3 are not on this machine" in said
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("history", {"recipe": HOSTILE}),
        ("history", {"recipe": "laser"}),
        ("across", {"least": "1"}),
        ("layers", {"model": "tiny"}),
        ("run", {}),
    ],
)
def test_names_from_files_are_never_markdown(filled: Path, name: str, parameters: dict[str, str]) -> None:
    app = page(name, **(parameters or {"run": run_id(filled, "hostile")}))
    assert "example.org" not in texts(
        app, "title", "header", "subheader", "markdown", "caption", "warning", "error", "info"
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["history", "across", "layers"])
def test_missing_busy_and_recovered(made: Any, kit: Any, database: Path, name: str) -> None:
    assert "Nothing here yet" in texts(page(name))
    for recipe, task in zip(("baseline", "laser"), kit.pair(400, 200, gained=60)):
        made.run(recipe, {"sums": task})
    ingest([made.root], database)
    writer = duckdb.connect(str(database))
    try:
        assert "The database is busy" in texts(page(name), "header")
    finally:
        writer.close()
    shown = len(tables(page(name)))
    writer = duckdb.connect(str(database))
    try:
        writer.execute(
            "INSERT INTO baselines (model_key, run_id, pinned_at, reason) VALUES ('k', 'r', now()::TIMESTAMP, 'x')"
        )
        writer.execute("CHECKPOINT")
        app = page(name)
        assert "showing data of" in texts(app, "warning") and len(tables(app)) == shown >= 1
    finally:
        writer.close()
    assert "busy" not in texts(page(name))
