"""What the pages are made of, without a page: the front, downloads, answers, differences, flips, sizes."""

from __future__ import annotations

import ast
import csv
import io
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from leaderboard.app import answer_text, download, flip_queries, menu, page_queries, tables
from leaderboard.app.charts import heat, size
from leaderboard.app.flip_queries import FlipQuestion
from leaderboard.board.board import board, pair_board
from leaderboard.board.cell import Cell
from leaderboard.board.pareto import front
from leaderboard.board.standings import standings
from leaderboard.compare.run_diff import compare_facts
from leaderboard.ingest import ingest
from leaderboard.store import queries
from leaderboard.store.database import Store, open_store
from leaderboard.terminal.exports import as_parquet
from leaderboard.terminal.marks import cell_text

pytest.importorskip("streamlit")


@pytest.fixture
def store(made: Any, kit: Any, database: Path) -> Any:
    """A baseline and two recipes: one loses 2 and gains 5 of 40 documents, the other loses 2."""
    before, laser = kit.pair(40, 20, lost=2, gained=5)
    _, svd = kit.pair(40, 20, lost=2)
    svd.log_likelihoods = kit.likelihoods(40, 2)
    made.run("baseline", {"int_mult": before})
    made.run("laser", {"int_mult": laser})
    made.run("svd", {"int_mult": svd})
    report = ingest([made.root], database)
    assert not report.rejected
    with open_store(database, read_only=True) as opened:
        yield opened


def by_recipe(store: Store) -> dict[str, Cell]:
    return {cell.recipe: cell for cell in board(store)}


def test_the_front_against_its_definition() -> None:
    import numpy as np

    generator = np.random.default_rng(0)
    for count in (1, 2, 7, 40):
        sizes, goods = generator.integers(0, 6, count).tolist(), generator.integers(0, 6, count).tolist()
        beaten = {
            i
            for i, j in itertools.permutations(range(count), 2)
            if sizes[j] <= sizes[i] and goods[j] >= goods[i] and (sizes[j], goods[j]) != (sizes[i], goods[i])
        }
        assert set(front(sizes, goods)) == set(range(count)) - beaten


@pytest.mark.slow
def test_the_baseline_speaks_for_the_unedited_model_however_often_it_was_run(
    made: Any, kit: Any, database: Path
) -> None:
    before, laser = kit.pair(40, 20, gained=20)
    made.run("baseline", {"int_mult": before})
    made.run("laser", {"int_mult": laser})
    made.run("baseline", {"int_mult": before}, folder="again", config={"batch_size": 8}, started="2027-01-01T00:00:00Z")
    assert not ingest([made.root], database).rejected
    with open_store(database, read_only=True) as opened:
        cells = board(opened)
    rows = standings(cells).rows
    assert [cell_text(row.cells["int_mult"]) for row in rows] == ["\u25b4 +0.500", "score 0.500"]
    assert tables.by_age(cells)[-1].verdict == "baseline"


@pytest.mark.slow
def test_flips_are_the_documents_that_changed(store: Store) -> None:
    cells = by_recipe(store)
    base, laser = cells["baseline"], cells["laser"]
    asked = FlipQuestion(base.run_id, laser.run_id, "int_mult", "acc", "none")
    found, total = flip_queries.flips(store, asked)
    assert sorted((flip.before, flip.after) for flip in found) == [(0.0, 1.0)] * 5 + [(1.0, 0.0)] * 2
    assert (laser.lost, laser.gained) == (2, 5) and total == 7
    assert found[0].prompt == f"int_mult {found[0].doc_id}? with 0 examples"
    assert flip_queries.flips(store, asked._replace(change=-1)).total == 2
    assert flip_queries.flips(store, asked._replace(search=found[0].prompt.upper())).shown == [found[0]]
    often = flip_queries.often_flipped(store, asked, (laser.run_id, cells["svd"].run_id))
    assert sorted((row.lower, row.higher) for row in often) == [(0, 1)] * 5 + [(2, 0)] * 2
    assert [(row.lower, row.higher) for row in often[:2]] == [(2, 0)] * 2


@pytest.mark.slow
def test_two_runs_are_corrected_over_their_own_tasks(store: Store) -> None:
    cells = by_recipe(store)
    (cell,) = pair_board(store, cells["laser"].run_id, cells["svd"].run_id)
    assert (
        (cell.lost, cell.gained) == (5, 0)
        and cell.q_value == cell.p_value
        and cell.baseline_run == cells["laser"].run_id
    )


@pytest.mark.slow
def test_what_was_found_before_is_not_read_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from leaderboard.compare import verdict_cache
    from leaderboard.store.paired_samples import PairedSamples

    # As where the code that judges is newer than what the store holds.
    monkeypatch.setattr(verdict_cache, "code", lambda: "another")
    known: dict[Any, Any] = {}
    first = board(store, known=known)
    asked: list[Any] = []
    monkeypatch.setattr(PairedSamples, "fetch", lambda self, pairs: asked.extend(pairs))
    assert board(store, known=known) == first and len(known) == 2 and asked == []


@pytest.mark.slow
def test_four_counts_say_what_the_documents_say(store: Store) -> None:
    """A pair read as counts and the same pair read document by document give the same cell."""
    from leaderboard.store import paired_samples

    def everything_by_document(row: dict[str, Any]) -> Any:
        raise AssertionError("unused")

    counted = by_recipe(store)["laser"]
    patch = pytest.MonkeyPatch()
    patch.setattr(paired_samples, "_PLAIN", "false")
    patch.setattr(paired_samples, "_from_counts", everything_by_document)
    try:
        assert by_recipe(store)["laser"] == counted
    finally:
        patch.undo()


@pytest.mark.slow
def test_sizes_come_from_the_receipt(store: Store) -> None:
    cells = board(store)
    facts = page_queries.run_facts(store)
    points = {point.cell.recipe: point for point in size.points(cells, facts, "parameters")}
    assert points["laser"].size == 992 and points["laser"].share == 0.992 and points["baseline"].size == 1000
    # smaller than the baseline and better than it and svd
    assert {name for name, point in points.items() if point.front} == {"laser"}
    assert "1 on the line: laser (99.2%, 0.575)" in size.sentence(list(points.values()), size.MEASURES[0])


def test_a_receipt_with_odd_totals_has_no_size(made: Any, kit: Any) -> None:
    task = kit.pair(10, 5)[0]
    made.run(
        "baseline",
        {"t": task},
        totals={
            "bytes_before": "many",
            "bytes_after": -3,
            "flops_per_token_after": True,
            "tokens_per_second_after": float("nan"),
        },
    )
    report = ingest(made.root, None)
    assert report.store is not None and not report.rejected
    (facts,) = page_queries.run_facts(report.store).values()
    assert (facts.bytes_before, facts.bytes_after, facts.tokens_per_second_after) == (None, None, None)
    report.store.connection.close()


def test_speed_is_shown_where_it_was_measured(made: Any, kit: Any) -> None:
    before, after = kit.pair(40, 20, gained=5)
    totals = {
        "parameters_before": 1000,
        "parameters_after": 992,
        "tokens_per_second_before": 100.0,
        "tokens_per_second_after": 150.0,
    }
    made.run("baseline", {"t": before})
    made.run("laser", {"t": after}, totals=totals)
    report = ingest(made.root, None)
    assert report.store is not None
    rows = tables.cell_rows(board(report.store), with_model=False, facts=page_queries.run_facts(report.store))
    assert [row["Tokens/s"] for row in rows] == ["", "150 (1.50x)"]
    report.store.connection.close()


@pytest.mark.slow
def test_differences_name_what_changed(store: Store) -> None:
    cells = by_recipe(store)
    found = {
        entry.name: entry
        for entry in compare_facts(*(queries.run_details(store, cells[name].run_id) for name in ("baseline", "laser")))
    }
    assert found["recipe"].differs and (found["recipe"].first, found["recipe"].second) == ("baseline", "laser")
    assert (
        not found["lm-eval"].differs and not found["seeds.fewshot"].differs and found["seeds.fewshot"].first == "1234"
    )
    deep: Any = "x"
    for _ in range(40):
        deep = {"a": deep}
    assert any(entry.differs for entry in compare_facts({"settings": json.dumps(deep)}, {"settings": "not JSON"}))


@pytest.mark.slow
def test_heat_rows_are_oriented(store: Store) -> None:
    cells = by_recipe(store)
    runs = cells["baseline"].run_id, cells["laser"].run_id
    assert heat.rows(store, *runs, ()) == []
    (row,) = heat.rows(store, *runs, ("int_mult",))
    assert (row.task, row.metric) == ("int_mult", "acc") and row.improvement == row.delta == pytest.approx(3 / 40)
    scores = {"task": "t", "metric": "mae", "filter": "none", "before": 2.0, "after": 1.0}
    assert heat._tile({**scores, "higher_is_better": False, "best_value": None}).improvement == 1.0
    assert heat._tile({**scores, "before": -2.0, "higher_is_better": None, "best_value": 0.0}).improvement == 1.0


@pytest.mark.parametrize(
    ("responses", "target", "document", "kind", "words", "margin"),
    [
        (
            '[["-1.0","False"],["-3.0","False"]]',
            "1",
            '{"choices": ["cat", "dog"]}',
            "multiple_choice",
            "choice 0: cat",
            -2.0,
        ),
        ('[["-1.0","False"],["-3.0","False"]]', "0", '{"q": "x"}', "multiple_choice", "choice 0", 2.0),
        (
            '[["-1.0","False"],["-3.0","False"]]',
            "none",
            '{"a": ["x", "y"], "b": ["z", "w"]}',
            "multiple_choice",
            "choice 0",
            None,
        ),
        ('["-0.5","True"]', " 9", "{}", "loglikelihood", "the right text is the likeliest", -0.5),
        ('[["-0.5","False"]]', " 9", "{}", "loglikelihood", "another text is likelier", -0.5),
        ('["four <b>"]', "4", "{}", "generate_until", "four <b>", None),
        ('[["a","b"]]', "4", "{}", "multiple_choice", '[["a","b"]]', None),
        ("not JSON", "4", None, None, "not JSON", None),
        (None, None, None, "multiple_choice", "", None),
    ],
)
def test_answers(
    responses: str | None, target: str | None, document: str | None, kind: str | None, words: str, margin: float | None
) -> None:
    assert answer_text.read_answer(responses, target, document, kind, doubled=False) == (words, margin)


def test_a_doubled_response_has_its_second_half_left_out() -> None:
    stored = '[["-1","False"],["-2","False"],["-9","False"],["-0.1","False"]]'
    assert answer_text.read_answer(stored, "0", None, "multiple_choice", doubled=True) == ("choice 0", 1.0)
    assert answer_text.likelihood_rows(stored, "0", None, doubled=True) == [
        ("choice 0", -1.0, True),
        ("choice 1", -2.0, False),
    ]


def test_a_downloaded_name_cannot_be_a_formula() -> None:
    rows = [
        {"Recipe": '=HYPERLINK("http://example.org")', "delta": -0.5, "note": None},
        {"Recipe": "a,\nb", "delta": 1.0, "note": "x"},
    ]
    read = list(csv.DictReader(io.StringIO(download.as_csv(rows).decode())))
    assert (
        read[0] == {"Recipe": '\'=HYPERLINK("http://example.org")', "delta": "-0.5", "note": ""}
        and read[1]["Recipe"] == "a,\nb"
    )
    import pyarrow.parquet

    assert pyarrow.parquet.read_table(io.BytesIO(as_parquet(rows))).to_pylist() == rows


def test_every_page_of_the_menu_is_there() -> None:
    scripts = {path.stem for path in (Path(menu.__file__).parent / menu.FOLDER).glob("*.py")} - {"__init__"}
    assert {page.name for page in menu.menu()} == scripts


def test_no_string_of_a_script_is_drawn_by_itself() -> None:
    """Streamlit writes a string that stands alone onto the page, the module's own apart."""
    alone = [
        (script.name, node.lineno)
        for script in (Path(menu.__file__).parent / "views").glob("*.py")
        for node in ast.parse(script.read_text(encoding="utf-8")).body[1:]
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    ]
    assert alone == []


def test_files_hold_every_metric(made: Any, kit: Any) -> None:
    before, after = kit.pair(400, 200, gained=60, greedy=True, output_type="loglikelihood")
    made.run("baseline", {"sums": before})
    made.run("laser", {"sums": after})
    records = tables.cell_records(made.board())
    assert [(row["metric"], row["is_primary"]) for row in records] == [
        ("acc", True),
        ("gold_loglikelihood", False),
    ] * 2
    assert records[3]["delta"] == pytest.approx(-1e-6) and records[3]["q_value"] is not None
