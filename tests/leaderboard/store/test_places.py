"""A folder of results that is moved or copied, with its database: the same runs, none twice, and all is found."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import duckdb
import pytest

import leaderboard
from leaderboard.app import run_files
from leaderboard.errors import LeaderboardError
from leaderboard.gate.policy import policy_from
from leaderboard.gate.report import judge_candidate
from leaderboard.gate.runs import read_named
from leaderboard.ingest import ingest
from leaderboard.store import queries
from leaderboard.store.database import open_store
from leaderboard.store.deletions import delete, deletions
from leaderboard.store.naming import find_run
from leaderboard.store.pins import choose, pin, pins
from leaderboard.store.places import RunPlaces
from tests.leaderboard.store.old_store import make_old


@pytest.fixture(scope="module")
def results_once(made_once: Any, kit: Any) -> Path:
    """A folder with a pinned baseline, a blessed recipe, a deleted one, plain results and a rejection."""
    database = made_once.root / "leaderboard.duckdb"
    before, after = kit.pair(30, 10, lost=1)
    made_once.run("baseline", {"sums": before}, folder="baseline")
    made_once.run("laser", {"sums": after}, folder="laser")
    made_once.run("svd", {"sums": kit.pair(30, 10, lost=4)[1]}, folder="svd", request_cache=False)
    made_once.plain({"sums": before}, model="other")
    (made_once.root / "notes.json").write_text('{"hello": 1}', encoding="utf-8")
    ingest([made_once.root], database)
    pin(database, str(made_once.root / "tiny" / "baseline"), "x")
    choose(database, str(made_once.root / "tiny" / "laser"), "y")
    delete(database, str(made_once.root / "tiny" / "svd"), "z")
    return Path(made_once.root)


@pytest.fixture
def results(results_once: Path, tmp_path: Path) -> Path:
    """A copy of that folder."""
    return Path(shutil.copytree(results_once, tmp_path / "results"))


def absolute(database: Path) -> None:
    """As stores of earlier versions are: with absolute paths."""
    folder = str(database.parent.resolve())
    with duckdb.connect(str(database)) as connection:
        for table in ("runs", "ingest_log", "deletions"):
            connection.execute(f"UPDATE {table} SET path = ? || '/' || path WHERE NOT starts_with(path, '/')", [folder])


def stored(database: Path) -> list[str]:
    with duckdb.connect(str(database), read_only=True) as connection:
        return [row[0] for row in connection.execute("SELECT path FROM runs ORDER BY path").fetchall()]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["move", "copy", "rename the parent"])
@pytest.mark.parametrize("old_store", [False, True])
def test_a_moved_folder_is_as_it_was(results: Path, tmp_path: Path, how: str, old_store: bool) -> None:
    name = "leaderboard.duckdb"
    if old_store:
        absolute(results / name)
    with open_store(results / name) as store:
        before = [(row.run_id, row.recipe_label) for row in queries.runs(store)]
    chosen = pins(results / name)
    if how == "copy":
        moved = Path(shutil.copytree(results, tmp_path / "far" / "away"))
        shutil.rmtree(results)
    elif how == "move":
        moved = Path(shutil.move(results, tmp_path / "elsewhere"))
    else:
        (tmp_path / "parent").mkdir()
        moved = Path(shutil.move(results, tmp_path / "parent" / "results"))
    database = moved / name
    with open_store(database) as store:
        rows = queries.runs(store)
        assert [(row.run_id, row.recipe_label) for row in rows] == before
        assert all(Path(row.path).exists() and Path(row.path).is_relative_to(moved) for row in rows)
        assert find_run(store, str(moved / "tiny" / "laser")) in dict(before)
        for row in rows:
            details = queries.run_details(store, row.run_id)
            assert [file for file in run_files.files_of(details) if file.size is None] == []
            assert (run_files.receipt_of(details).receipt is None) is (row.origin == "plain")
        assert [row["path"] for row in queries.rejections(store)] == [str(moved / "notes.json")]
    assert pins(database) == chosen and [entry.path for entry in deletions(database)] == [moved / "tiny" / "svd"]
    candidate = read_named(rows[-1].run_id[:10], database, "candidate")
    policy = policy_from({"tasks": {"sums": {"margin": 0.9}}}, "a test")
    laser = read_named(str(moved / "tiny" / "laser"), database, "candidate")
    report = judge_candidate(laser, policy, (), database)
    assert [compared.role for compared in report.baselines] == ["base", "blessed"] and candidate.run_id == rows[
        -1
    ].run_id
    for rebuild in (False, True, False):
        report_ = ingest([moved], database, rebuild=rebuild)
        assert len(report_.added) + len(report_.duplicates) == 3 and len(report_.deleted) == 1
        assert [rejection.path.name for rejection in report_.rejected] == ["notes.json"]
        with open_store(database) as store:
            assert [(row.run_id, row.recipe_label) for row in queries.runs(store)] == before
            assert len(queries.rejections(store)) == 1
        assert pins(database) == chosen
        assert all(not path.startswith("/") for path in stored(database))
    assert len(leaderboard.board(moved).cells) == 3


@pytest.mark.slow
def test_runs_elsewhere_keep_their_absolute_path(made: Any, kit: Any, database: Path, tmp_path: Path) -> None:
    outside = type(made)(tmp_path / "elsewhere")
    run = outside.run("baseline", {"sums": kit.pair(5, 2)[0]}, folder="outside")
    made.run("laser", {"sums": kit.pair(5, 2, lost=1)[1]}, folder="inside")
    ingest([outside.root, made.root], database)
    assert stored(database) == [str(run), "tiny/inside"]
    moved = Path(shutil.move(made.root, tmp_path / "moved"))
    with open_store(moved / database.name) as store:
        assert [row.path for row in queries.runs(store)] == [str(run), str(moved / "tiny" / "inside")]


@pytest.mark.slow
def test_a_known_run_that_lies_elsewhere_now_is_found_there(
    made: Any, kit: Any, database: Path, tmp_path: Path
) -> None:
    run = made.run("baseline", {"sums": kit.pair(5, 2)[0]}, folder="first")
    ingest([made.root], database)
    copy = shutil.copytree(run, tmp_path / "copy")
    assert ingest([copy], database).known == ingest([made.root], database).known
    assert stored(database) == ["tiny/first"]  # both are there: the first stays
    shutil.rmtree(run)
    ingest([copy], database)
    assert stored(database) == [str(copy)]
    shutil.move(copy, made.root / "tiny" / "back")
    ingest([made.root], database)
    assert stored(database) == ["tiny/back"]


@pytest.mark.slow
def test_an_older_store_is_brought_to_relative_paths_by_its_next_writer(results: Path) -> None:
    database = results / "leaderboard.duckdb"
    before = stored(database)
    absolute(database)
    make_old(database)
    with open_store(database, read_only=False):
        pass
    assert stored(database) == before == ["plain/other/" + before[0].split("/")[-1], "tiny/baseline", "tiny/laser"]


def test_where_a_path_leads(tmp_path: Path) -> None:
    folder = tmp_path / "now"
    (folder / "demo" / "laser").mkdir(parents=True)
    (folder / "deep" / "demo" / "laser").mkdir(parents=True)
    places = RunPlaces(folder / "leaderboard.duckdb")
    assert places.stored(folder / "demo" / "laser") == "demo/laser"
    assert places.stored(tmp_path / "x") == str(tmp_path / "x")
    assert places.stored(folder / ".." / "x") == str(folder / ".." / "x")
    assert places.resolved("demo/laser") == folder / "demo" / "laser"
    assert places.resolved("demo/gone") == folder / "demo" / "gone"
    assert places.resolved(str(tmp_path)) == tmp_path
    # the longest tail first
    assert places.resolved("/old/deep/demo/laser") == folder / "deep" / "demo" / "laser"
    assert places.resolved("/old/demo/laser") == folder / "demo" / "laser"
    for gone in ("/old/demo/gone", "/old/laser", "/", f"/{'x' * 5000}", "/old/\N{REPLACEMENT CHARACTER}"):
        assert places.resolved(gone) == Path(gone)
    assert RunPlaces(None).stored(Path("a/b")) == "a/b" and RunPlaces(None).resolved("a/b") == Path("a/b")


@pytest.mark.slow
def test_the_table_of_a_run_is_by_what_the_runs_are_not_by_where_they_lie(
    made: Any, kit: Any, database: Path, tmp_path: Path
) -> None:
    """A run that was copied is known by its first path."""
    pytest.importorskip("lm_eval")
    from harness_ext.runs.execution import cells_from_store

    before, after = kit.pair(30, 10, lost=1)
    paths = [made.run("baseline", {"sums": before}), made.run("laser", {"sums": after})]
    ingest([made.root], database)
    copies = [shutil.copytree(path, tmp_path / "copy" / path.name) for path in paths]
    said: list[str] = []

    class Report:
        warn = staticmethod(said.append)

    cells = cells_from_store(copies, database, Report())  # type: ignore[arg-type]
    assert [cell.recipe for cell in cells] == ["baseline", "laser"] and said == []
    delete(database, cells[1].run_id, "wrong")
    cells = cells_from_store(copies, database, Report())  # type: ignore[arg-type]
    assert [cell.recipe for cell in cells] == ["baseline"] and "was taken off the board" in said[0]


@pytest.mark.slow
def test_files_that_are_gone_are_said(results: Path) -> None:
    shutil.rmtree(results / "tiny" / "baseline")
    laser = read_named(str(results / "tiny" / "laser"), results / "leaderboard.duckdb", "candidate")
    policy = policy_from({"tasks": {"sums": {"margin": 0.9}}}, "a test")
    with pytest.raises(LeaderboardError, match="its files are gone"):
        judge_candidate(laser, policy, (), results / "leaderboard.duckdb")
