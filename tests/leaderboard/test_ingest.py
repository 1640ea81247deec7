"""The store: what goes in once, stays once; nothing half; everything said clearly."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from leaderboard.board.board import board
from leaderboard.errors import (
    Busy,
    LeaderboardError,
    MissingDatabase,
    NewerDatabase,
    NotADatabase,
    OlderDatabase,
    UnknownRun,
    Unwritable,
)
from leaderboard.ingest import ingest
from leaderboard.store import migrations, queries
from leaderboard.store.database import open_store
from tests.leaderboard.processes import child

TABLES = ("variants", "runs", "run_tasks", "scores", "docs", "samples", "sample_scores", "receipts", "calibrations")
INGEST = (
    "import sys; from pathlib import Path; from leaderboard.ingest import ingest\nprint(len(ingest([Path(p) for p in"
    " sys.argv[2:]], Path(sys.argv[1])).added))"
)


def contents(database: Path) -> dict[str, list[tuple[Any, ...]]]:
    """All rows but times of ingest, in an order of their own."""
    with open_store(database) as store:
        left_out = {"runs": " EXCLUDE (ingested_at)"}
        return {
            t: sorted(store.connection.execute(f"SELECT *{left_out.get(t, '')} FROM {t}").fetchall(), key=repr)
            for t in TABLES
        }


def write_runs(made: Any, kit: Any, count: int, documents: int = 20) -> list[Path]:
    """A baseline and `count - 1` recipes."""
    tasks = [
        kit.Task(
            {"acc": [float((i + k) % 3 == 0) for i in range(documents)]}, log_likelihoods=kit.likelihoods(documents, k)
        )
        for k in range(count)
    ]
    return [
        made.run(
            "baseline" if k == 0 else f"svd:rank={k}",
            {"sums": task},
            folder=f"{'baseline' if k == 0 else 'svd'}-{k:03}",
        )
        for k, task in enumerate(tasks)
    ]


@pytest.mark.slow
def test_twice_is_once(made: Any, kit: Any, database: Path) -> None:
    write_runs(made, kit, 3)
    first = ingest([made.root], database)
    before = contents(database)
    second = ingest([made.root], database)
    assert (len(first.added), len(second.added), len(second.duplicates)) == (3, 0, 3)
    assert contents(database) == before


def test_prompts_are_kept_once_for_all_variants(made: Any, kit: Any, database: Path) -> None:
    write_runs(made, kit, 3, documents=20)
    ingest([made.root], database)
    rows = contents(database)
    assert (len(rows["docs"]), len(rows["samples"])) == (20, 60)


@pytest.mark.slow
def test_what_cannot_be_read_stops_nothing_else(made: Any, kit: Any, database: Path) -> None:
    paths = write_runs(made, kit, 3)
    (paths[1] / "receipt.json").write_text("{")
    (made.root / "notes.json").write_text('{"hello": 1}')
    report = ingest([made.root], database)
    assert len(report.added) == 2
    assert {rejection.path.name for rejection in report.rejected} == {paths[1].name, "notes.json"}
    with open_store(database) as store:
        assert len(queries.rejections(store)) == 2
    ingest([made.root], database)
    with open_store(database) as store:
        assert store.rows("SELECT count(*) AS n FROM ingest_log WHERE outcome = 'rejected'")[0]["n"] == 2


@pytest.mark.slow
def test_a_matrix_is_a_row_with_all_that_its_receipt_says(made: Any, kit: Any, database: Path) -> None:
    run = write_runs(made, kit, 2)[1]
    ingest([made.root], database)
    (said,) = json.loads((run / "receipt.json").read_text())["matrices"]
    with open_store(database) as store:
        (row,) = store.rows("SELECT * FROM receipts")
    assert {key: row[key] for key in said} == said | {"shape": "8 x 4"}


@pytest.mark.slow
def test_a_reader_of_a_write_that_was_cut_short_waits_for_the_next_writer(made: Any, kit: Any, database: Path) -> None:
    write_runs(made, kit, 1)
    ingest([made.root], database)
    with pytest.raises(Busy, match="in the middle of a write .* ingest"), open_store(database):
        raise duckdb.IOException(
            "IO Error: Could not read enough bytes from file: attempted to read 262144 bytes from location 5779456"
        )
    with pytest.raises(duckdb.IOException, match="else"), open_store(database):
        raise duckdb.IOException("something else")


def test_a_wrong_path_makes_no_database(database: Path) -> None:
    report = ingest([database.parent / "nowhere"], database)
    assert report.rejected and not database.exists()


def test_rebuild_equals_incremental_and_keeps_pins_and_outside_runs(
    made: Any, kit: Any, database: Path, tmp_path: Path
) -> None:
    write_runs(made, kit, 3)
    outside = type(made)(tmp_path / "elsewhere")
    outside.plain({"sums": kit.pair(5, 2)[0]}, model="other")
    added, *_ = [ingest([path], database).added for path in sorted(made.root.glob("tiny/*"))]
    ingest([outside.root], database)
    with open_store(database, read_only=False) as store:
        queries.pin_baseline(store, added[0], "a reason")
    before = contents(database)
    ingest([made.root], database, rebuild=True)
    assert contents(database) == before
    with open_store(database) as store:
        assert queries.pinned_baselines(store).popitem()[1] == added[0]
    assert not list(made.root.glob(".*rebuilding*"))


@pytest.mark.slow
def test_rebuild_says_what_is_gone_and_cures_a_damaged_file(made: Any, kit: Any, database: Path) -> None:
    paths = write_runs(made, kit, 3)
    ingest([made.root], database)
    (paths[2] / "receipt.json").unlink()
    paths[2].joinpath(next(paths[2].glob("results_*")).name).unlink()
    for file in paths[2].iterdir():
        file.unlink()
    paths[2].rmdir()
    report = ingest([made.root], database, rebuild=True)
    assert len(report.added) == 2 and "gone" in report.rejected[0].reason
    database.write_bytes(b"garbage" * 5000)
    assert len(ingest([made.root], database, rebuild=True).added) == 2


def test_identical_log_likelihoods_of_other_weights_are_an_error(made: Any, kit: Any, database: Path) -> None:
    task, _ = kit.pair(10, 5)
    made.run("baseline", {"sums": task})
    made.run("laser", {"sums": task}, config={"use_cache": "answers"})
    report = ingest([made.root], database)
    assert len(report.added) == 1
    assert "equals to the bit" in report.rejected[0].reason and "--use_cache" in report.rejected[0].reason


@pytest.mark.slow
def test_without_a_cache_an_edit_may_concern_no_answer(made: Any, kit: Any, database: Path) -> None:
    task, _ = kit.pair(10, 5)
    made.run("baseline", {"sums": task})
    made.run("svd:matrices=[down_proj expert 7]", {"sums": task}, folder="svd")
    assert len(ingest([made.root], database).added) == 2
    with open_store(database) as store:
        (edited,) = [cell for cell in board(store) if cell.recipe != "baseline"]
    assert edited.delta == 0 and any("has no part in these answers" in note for note in edited.notes)


@pytest.mark.slow
def test_one_differing_task_shows_that_no_cache_was_shared(made: Any, kit: Any, database: Path) -> None:
    same, _ = kit.pair(10, 5)
    before, after = kit.pair(10, 5, lost=1)
    made.run("baseline", {"same": same, "sums": before})
    made.run("laser", {"same": same, "sums": after})
    assert not ingest([made.root], database).rejected


@pytest.mark.slow
@pytest.mark.parametrize(("error", "taken"), [(3e-7, True), (0.01, False)])
def test_an_edit_within_rounding_may_leave_every_number_as_it_was(
    made: Any, kit: Any, database: Path, error: float, taken: bool
) -> None:
    task, _ = kit.pair(10, 5)
    made.run("baseline", {"sums": task})
    made.run(
        "identity",
        {"sums": task},
        matrices=[{"name": "layers.0.up.weight", "relative_error": error}],
        config={"use_cache": "answers"},
    )
    assert (not ingest([made.root], database).rejected) is taken


@pytest.mark.slow
def test_equal_weights_may_answer_equally(made: Any, kit: Any, database: Path) -> None:
    task, _ = kit.pair(10, 5)
    made.run("baseline", {"sums": task})
    made.run("laser", {"sums": task}, weights={"digest_before": kit.sha("weights"), "digest_after": kit.sha("weights")})
    assert not ingest([made.root], database).rejected


@pytest.mark.slow
def test_two_processes_ingest_while_a_reader_polls(made: Any, kit: Any, database: Path) -> None:
    paths = write_runs(made, kit, 12)
    ingest(paths[:1], database)
    children = [child(INGEST, database, *paths[start::2]) for start in (0, 1)]
    readings, busy = [], 0
    while any(process.poll() is None for process in children):
        try:
            with open_store(database, read_only=True, timeout_s=0.0) as store:
                readings.append(len(board(store)))
        except Busy:
            busy += 1
        time.sleep(0.02)
    outputs = [process.communicate() for process in children]
    assert [process.returncode for process in children] == [0, 0], outputs
    assert sum(int(out) for out, _ in outputs) == 11
    assert readings and readings == sorted(readings)
    assert len(contents(database)["runs"]) == 12


@pytest.mark.slow
def test_killed_anywhere_it_holds_whole_runs_and_goes_on(made: Any, kit: Any, database: Path) -> None:
    paths = write_runs(made, kit, 12, documents=200)
    generator, stored = random.Random(0), 0
    for _ in range(5):
        process = child(INGEST, database, *paths)
        time.sleep(generator.uniform(0.2, 1.0))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if database.exists():
            try:
                rows = contents(database)
            except (OlderDatabase, MissingDatabase):
                # Killed while or before the tables were made: right only as long as nothing was ever stored.
                assert stored == 0
                with duckdb.connect(str(database), read_only=True) as raw:
                    tables = {name for (name,) in raw.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
                    assert "runs" not in tables or raw.execute("SELECT count(*) FROM runs").fetchone() == (0,)
                continue
            assert len(rows["runs"]) >= stored
            stored = len(rows["runs"])
            per_run = {row[0]: 0 for row in rows["runs"]} | {}
            for row in rows["samples"]:
                per_run[row[0]] += 1
            assert set(per_run.values()) <= {200}
    ingest(paths, database)
    assert len(contents(database)["runs"]) == 12


@pytest.mark.slow
def test_busy_says_who(made: Any, kit: Any, database: Path) -> None:
    paths = write_runs(made, kit, 1)
    ingest(paths, database)
    hold = (
        "import sys, time; from pathlib import Path; from leaderboard.store.database import open_store\n"
        "with open_store(Path(sys.argv[1]), False, 5):\n    print('held', flush=True); time.sleep(60)"
    )
    holder = child(hold, database)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(Busy, match=f"process {holder.pid}"), open_store(database, read_only=True, timeout_s=0.1):
            pass
        with pytest.raises(Busy, match=f"ingest by process {holder.pid} since"):
            ingest(paths, database, timeout_s=0.1)
    finally:
        holder.kill()
        holder.communicate()
    assert ingest(paths, database).duplicates == paths


def test_newer_older_foreign_garbage_and_missing(database: Path) -> None:
    here = f"{database.parent} --database {database}`"
    with pytest.raises(MissingDatabase, match=f"lm_eval ingest PATH --database {database}`"), open_store(database):
        pass
    connection = duckdb.connect(str(database))
    connection.execute("CREATE TABLE invoices (n INTEGER)")
    connection.close()
    with pytest.raises(NotADatabase, match="something else"), open_store(database, read_only=False):
        pass
    database.unlink()
    with open_store(database, read_only=False) as store:
        store.connection.execute("UPDATE schema_migrations SET number = number - 100")
    with pytest.raises(OlderDatabase, match=f"`lm_eval ingest {here}"), open_store(database):
        pass
    connection = duckdb.connect(str(database))
    connection.execute("UPDATE schema_migrations SET number = number + 999")
    connection.close()
    for read_only in (True, False):
        with (
            pytest.raises(NewerDatabase, match=f"upgrade lm-eval-recipes.*`lm_eval ingest --rebuild {here}"),
            open_store(database, read_only=read_only),
        ):
            pass
    database.write_bytes(b"not a database at all")
    for read_only in (True, False):
        with (
            pytest.raises(NotADatabase, match=f"`lm_eval ingest --rebuild {here}"),
            open_store(database, read_only=read_only),
        ):
            pass
    assert database.read_bytes() == b"not a database at all"


def test_unwritable(tmp_path: Path, made: Any, kit: Any) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Unwritable, match="cannot create the folder"):
        ingest([made.run("laser", {"sums": kit.pair(3, 1)[1]})], tmp_path / "file" / "board.duckdb")


def test_created_for_older_duckdb_and_without_extensions(made: Any, kit: Any, database: Path) -> None:
    ingest(write_runs(made, kit, 1), database)
    with open_store(database) as store:
        assert (
            store.rows("SELECT tags FROM duckdb_databases() WHERE NOT internal")[0]["tags"]
            .get("storage_version", "v1.4.0")
            .startswith("v1.4")
        )
        settings = {row["name"]: row["value"] for row in store.rows("SELECT name, value FROM duckdb_settings()")}
        assert (
            settings["autoinstall_known_extensions"]
            == settings["autoload_known_extensions"]
            == settings["enable_external_access"]
            == "false"
        )


def test_a_migration_is_recorded_and_all_or_nothing(monkeypatch: pytest.MonkeyPatch, database: Path) -> None:
    with open_store(database, read_only=False):
        pass
    shipped = migrations.all_migrations()
    assert [migration.number for migration in shipped] == list(range(1, len(shipped) + 1))
    broken = [
        *shipped,
        migrations.Migration(len(shipped) + 1, "broken", "CREATE TABLE half (n INTEGER); SELECT nonsense;"),
    ]
    monkeypatch.setattr(migrations, "all_migrations", lambda: broken)
    with pytest.raises(duckdb.Error), open_store(database, read_only=False):
        pass
    monkeypatch.undo()
    with open_store(database) as store:
        assert [row["number"] for row in store.rows("SELECT number FROM schema_migrations")] == [
            migration.number for migration in shipped
        ]
        assert not store.rows("SELECT 1 FROM duckdb_tables() WHERE table_name = 'half'")


@pytest.mark.slow
def test_pins_are_appended_and_checked(made: Any, kit: Any, database: Path) -> None:
    write_runs(made, kit, 2)
    made.failed("nan", {"sums": kit.pair(3, 1)[1]})
    ingest([made.root], database)
    with open_store(database, read_only=False) as store:
        runs = queries.runs(store)
        whole, failed = ([run.run_id for run in runs if run.status == status] for status in ("complete", "failed"))
        for run_id in whole:
            queries.pin_baseline(store, run_id[:12], "try")
        assert list(queries.pinned_baselines(store).values()) == [whole[-1]]
        assert store.rows("SELECT count(*) AS n FROM baselines")[0]["n"] == len(whole)
        with pytest.raises(UnknownRun):
            queries.pin_baseline(store, "0" * 32, "none such")
        with pytest.raises(LeaderboardError, match="cannot be a baseline"):
            queries.pin_baseline(store, failed[0], "failed")


@pytest.fixture
def big(made: Any, kit: Any) -> Iterator[Path]:
    """A run of 20,000 documents."""
    yield made.run("laser", {"sums": kit.pair(20_000, 9_000, lost=300, gained=200)[1]})


@pytest.mark.slow
def test_twenty_thousand_documents_take_seconds_and_the_lock_less_than_one(big: Path, database: Path) -> None:
    started = time.monotonic()
    assert len(ingest([big], database).added) == 1
    print(f"20,000 documents ingested in {time.monotonic() - started:.1f} s")
    assert time.monotonic() - started < 20


def test_a_store_in_memory(made: Any, kit: Any) -> None:
    write_runs(made, kit, 2)
    report = ingest([made.root], None)
    assert report.store is not None
    with report.store.connection:
        assert len(board(report.store)) == 2
    assert json.dumps(report.added)
