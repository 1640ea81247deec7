"""Decisions lie in files beside the store: whatever becomes of the store, none is lost and none counts twice."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import time
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pytest

from leaderboard.errors import LeaderboardError, NewerDatabase, Unwritable
from leaderboard.gate.policy import policy_from
from leaderboard.gate.report import judge_candidate
from leaderboard.gate.report import record as record_gate
from leaderboard.gate.runs import read_named
from leaderboard.ingest import ingest
from leaderboard.store import decision_files, decisions, queries
from leaderboard.store.database import open_store
from leaderboard.store.deletions import delete, deletions, take_back
from leaderboard.store.pins import choose, last_blessing, pin, pins
from tests.leaderboard.processes import child
from tests.leaderboard.store.old_store import make_old

TABLES = ("baselines", "blessings", "gate_runs", "deletions")


@pytest.fixture(scope="module")
def decided_once(made_once: Any, kit: Any) -> Path:
    """A folder with a database of a pin, two blessings, a gate, a deletion that counts and one that was taken back."""
    database = made_once.root / "leaderboard.duckdb"
    made_once.run("baseline", {"sums": kit.pair(30, 10)[0]}, folder="baseline")
    for k, name in enumerate(("laser", "svd", "asvd", "wanda")):
        values = kit.binary(30, 10, lost=k + 2)[1]
        task = kit.Task({"acc": values}, log_likelihoods=kit.likelihoods(30, k + 2))
        made_once.run(name, {"sums": task}, folder=name)
    ingest([made_once.root], database)
    place = made_once.root / "tiny"
    pin(database, str(place / "baseline"), "of the release")
    choose(database, str(place / "laser"), "first")
    choose(database, str(place / "svd"), "good")
    gate(database, place / "laser")
    delete(database, str(place / "asvd"), "wrong data")
    run_id = delete(database, str(place / "wanda"), "by mistake").run_id
    take_back(database, run_id)
    ingest([made_once.root], database)
    return Path(made_once.root)


@pytest.fixture
def decided(decided_once: Path, made: Any, database: Path) -> Path:
    """The database of a copy of that folder."""
    shutil.copytree(decided_once, made.root, dirs_exist_ok=True)
    return database


def gate(database: Path, candidate: Path) -> None:
    policy = policy_from({"tasks": {"sums": {"margin": 0.9}}}, "a test")
    report = judge_candidate(read_named(str(candidate), database, "candidate"), policy, (), database)
    assert record_gate(report, policy, database) is None


def held(database: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Every decision, in the store's order."""
    with open_store(database) as store:
        return {table: store.connection.execute(f"SELECT * FROM {table} ORDER BY rowid").fetchall() for table in TABLES}


def as_seen(database: Path) -> tuple[Any, ...]:
    with open_store(database) as store:
        gates = store.rows("SELECT verdict, candidate, report FROM gate_runs ORDER BY rowid")
        names = sorted(row.recipe_label for row in queries.runs(store))
    return pins(database), deletions(database), gates, names


def files(database: Path) -> list[Path]:
    return sorted(decision_files.folder_of(database).iterdir())


def test_each_decision_is_a_file_in_order(decided: Path) -> None:
    names = [file.name.split("-")[:2] for file in files(decided)]
    kinds = ["pin", "blessing", "blessing", "gate", "deletion", "deletion", "deletion"]
    assert names == [[f"{k + 1:06}", kind] for k, kind in enumerate(kinds)]
    said = json.loads(files(decided)[0].read_text(encoding="utf-8"))
    assert (said["path"], said["reason"], said["sequence"]) == ("tiny/baseline", "of the release", 1)
    with open_store(decided) as store:
        assert said["run_id"] == queries.pinned_baselines(store)[said["model_key"]]


def missing(database: Path) -> None:
    database.unlink()


def truncated(database: Path) -> None:
    os.truncate(database, database.stat().st_size // 2)


def a_text(database: Path) -> None:
    database.write_text("hello\n" * 3000, encoding="utf-8")


def empty(database: Path) -> None:
    database.write_bytes(b"")


def later(database: Path) -> None:
    with duckdb.connect(str(database)) as connection:
        connection.execute("INSERT INTO schema_migrations VALUES (99, 'a later version', now())")


def without_decisions(database: Path) -> None:
    with duckdb.connect(str(database)) as connection:
        for table in TABLES:
            connection.execute(f"DELETE FROM {table}")


def sound(database: Path) -> None:
    assert database.exists()


@pytest.mark.slow
@pytest.mark.parametrize("harm", [missing, truncated, a_text, empty, later, without_decisions, sound])
def test_a_rebuild_restores_all_whatever_the_old_store_is(made: Any, decided: Path, harm: Any) -> None:
    before, rows = as_seen(decided), held(decided)
    harm(decided)
    bytes_before = decided.read_bytes() if decided.exists() else None
    report = ingest([made.root], decided, rebuild=True)
    assert as_seen(decided) == before and held(decided) == rows
    kept = Path(f"{decided}.before-rebuild-1")
    if bytes_before is None:
        assert not kept.exists() and report.notes == []
        return
    assert f"the old database is kept as {kept}" in report.notes
    if harm is not sound and harm is not without_decisions:
        assert kept.read_bytes() == bytes_before
        assert any("7 decisions" in note for note in report.notes)


@pytest.mark.slow
def test_plain_ingest_into_a_new_store_restores_all(made: Any, decided: Path) -> None:
    before = as_seen(decided)
    decided.unlink()
    report = ingest([made.root], decided)
    assert as_seen(decided) == before
    assert [path.name for path in report.deleted] == ["asvd"]


@pytest.mark.slow
def test_the_last_three_old_stores_are_kept(made: Any, decided: Path) -> None:
    for _ in range(5):
        ingest([made.root], decided, rebuild=True)
    kept = sorted(file.name for file in made.root.glob("*.before-rebuild-*"))
    assert kept == [f"{decided.name}.before-rebuild-{k}" for k in (3, 4, 5)]


def test_a_rebuild_never_replaces_a_database_of_something_else_or_a_folder(made: Any, kit: Any, database: Path) -> None:
    with duckdb.connect(str(database)) as connection:
        connection.execute("CREATE TABLE invoices (n INTEGER)")
    before = database.read_bytes()
    with pytest.raises(LeaderboardError, match="something else"):
        ingest([made.root], database, rebuild=True)
    assert database.read_bytes() == before
    database.unlink()
    database.mkdir()
    with pytest.raises(LeaderboardError, match="is a folder"):
        ingest([made.root], database, rebuild=True)
    assert database.is_dir()


@pytest.mark.slow
def test_the_first_writer_writes_out_what_an_older_store_holds(made: Any, decided: Path) -> None:
    before = as_seen(decided)
    make_old(decided)
    ingest([made.root], decided)
    assert as_seen(decided) == before and len(files(decided)) == 7
    pinned = next(file for file in files(decided) if "-pin-" in file.name)
    assert json.loads(pinned.read_text(encoding="utf-8"))["path"] == "tiny/baseline"
    decided.unlink()
    ingest([made.root], decided, rebuild=True)
    assert as_seen(decided) == before


@pytest.mark.slow
def test_an_older_store_that_is_damaged_is_asked_for_what_can_be_read(made: Any, decided: Path) -> None:
    before = as_seen(decided)
    make_old(decided)
    later(decided)
    with pytest.raises(NewerDatabase):
        ingest([made.root], decided)
    ingest([made.root], decided, rebuild=True)
    assert as_seen(decided) == before and len(files(decided)) == 7


def test_what_cannot_be_read_and_has_no_files_is_said(made: Any, decided: Path) -> None:
    shutil.rmtree(decision_files.folder_of(decided))
    truncated(decided)
    report = ingest([made.root], decided, rebuild=True)
    assert any("no pins, blessings, gates or deletions could be read" in note for note in report.notes)


@pytest.mark.slow
def test_ids_of_an_older_store_follow_from_what_it_holds(made: Any, decided: Path) -> None:
    """So a kill between file and row, or a copy of the old store, doubles nothing."""
    make_old(decided)
    copy = decided.read_bytes()
    ingest([made.root], decided)
    first = files(decided)
    decided.write_bytes(copy)
    ingest([made.root], decided)
    assert files(decided) == first and all(len(rows) <= 3 for rows in held(decided).values())


@pytest.mark.slow
def test_a_file_without_its_row_is_taken_in_by_the_next_writer(made: Any, decided: Path) -> None:
    """A writer was killed between the two, or an older copy of the store was put back."""
    copy = decided.read_bytes()
    delete(decided, str(made.root / "tiny" / "wanda"), "later")
    choose(decided, str(made.root / "tiny" / "laser"), "again")
    before, rows = as_seen(decided), held(decided)
    decided.write_bytes(copy)
    assert "wanda" in as_seen(decided)[3]
    with open_store(decided, read_only=False):
        pass
    assert as_seen(decided) == before and held(decided) == rows


def test_a_row_without_its_file_is_written_out(decided: Path) -> None:
    texts = {file: file.read_bytes() for file in files(decided)}
    files(decided)[3].unlink()
    with open_store(decided, read_only=False):
        pass
    assert {file: file.read_bytes() for file in files(decided)} == texts


@pytest.mark.slow
def test_a_decision_that_comes_late_is_put_in_its_place(made: Any, kit: Any, database: Path) -> None:
    """Of two copies of a folder that are put together."""
    for k in range(3):
        task = kit.Task({"acc": [1.0] * (9 - k) + [0.0] * k}, log_likelihoods=kit.likelihoods(9, k))
        made.run("baseline", {"sums": task}, folder=f"b{k}", spec_id=f"{k}")
    ingest([made.root], database)
    for k in range(3):
        pin(database, str(made.root / "tiny" / f"b{k}"), f"{k}")
    first = files(database)[0]
    text = first.read_bytes()
    first.unlink()
    with duckdb.connect(str(database)) as connection:
        connection.execute("DELETE FROM baselines WHERE reason = '0'")
    first.write_bytes(text)
    with open_store(database, read_only=False):
        pass
    assert [(entry.reason, entry.current) for entry in pins(database)] == [("0", False), ("1", False), ("2", True)]


@pytest.mark.slow
@pytest.mark.parametrize("hours", [1, 24 * 400])
def test_a_clock_set_back_undoes_nothing(made: Any, decided: Path, monkeypatch: pytest.MonkeyPatch, hours: int) -> None:
    place = made.root / "tiny"

    def fast() -> datetime:
        return datetime.now() + timedelta(hours=hours)

    with monkeypatch.context() as patched:
        for module in ("queries", "pins", "deletions", "writer"):
            patched.setattr(f"leaderboard.store.{module}.now", fast)
        pin(decided, str(place / "laser"), "a mistake")
        choose(decided, str(place / "svd"), "a mistake")
        run_id = delete(decided, str(place / "wanda"), "a mistake").run_id
    pin(decided, str(place / "baseline"), "mended")
    choose(decided, str(place / "svd"), "mended")
    take_back(decided, run_id)
    ingest([made.root], decided)
    for rebuild in (False, True):
        ingest([made.root], decided, rebuild=rebuild)
        current = {(entry.blessed, entry.recipe): entry.reason for entry in pins(decided) if entry.current}
        assert current == {(False, "baseline"): "mended", (True, "laser"): "first", (True, "svd"): "mended"}
        assert [entry.reason for entry in deletions(decided)] == ["wrong data"]
        with open_store(decided) as store:
            blessed = last_blessing(store, "tiny", "svd")
            assert blessed is not None and blessed.reason == "mended"
            (pinned,) = queries.pinned_baselines(store).values()
            assert queries.run_details(store, pinned)["recipe_label"] == "baseline"


def test_stored_verdicts_are_of_the_last_pin_whatever_the_clock_said(
    made: Any, decided: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def state() -> str:
        with open_store(decided) as store:
            return str(store.rows("SELECT state FROM model_states")[0]["state"])

    before, place = state(), made.root / "tiny"
    with monkeypatch.context() as patched:
        patched.setattr("leaderboard.store.queries.now", lambda: datetime.now() + timedelta(days=1))
        pin(decided, str(place / "laser"), "a mistake")
    assert state() != before
    pin(decided, str(place / "baseline"), "mended")
    assert state() == before


@pytest.mark.slow
def test_a_rejection_is_over_when_the_path_was_taken_later_whatever_the_clock_said(
    made: Any, kit: Any, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made.run("baseline", {"sums": kit.pair(9, 3)[0]})
    text = (run / "receipt.json").read_bytes()
    made.run("laser", {"sums": kit.pair(9, 3, lost=1)[1]})
    (run / "receipt.json").write_text("{", encoding="utf-8")
    with monkeypatch.context() as patched:
        patched.setattr("leaderboard.store.writer.now", lambda: datetime.now() + timedelta(days=2))
        ingest([made.root], database)
    with open_store(database) as store:
        assert [row["path"] for row in queries.rejections(store)] == [str(run)]
    (run / "receipt.json").write_bytes(text)
    ingest([made.root], database)
    with open_store(database) as store:
        assert queries.rejections(store) == []


@pytest.mark.slow
def test_damaged_files_are_said_and_left_out(
    made: Any, decided: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest
) -> None:
    """What anybody may have put there."""
    folder = decision_files.folder_of(decided)
    good = json.loads(files(decided)[0].read_text(encoding="utf-8"))
    outside = tmp_path / "outside.json"

    def put(k: int, text: str | bytes, kind: str = "pin", sequence: int = 50) -> Path:
        path = folder / f"{sequence + k:06}-{kind}-{k:032x}.json"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def pin_like(k: int, **changes: object) -> str:
        return json.dumps(good | {"id": f"{k:032x}", "sequence": 50 + k} | changes)

    harm = [
        "", "{", "[]", "null", '"x"', b"\xff\xfe", "[" * 100_000, "1" * 6000,
        pin_like(8, format=2), pin_like(9, id="f" * 32), pin_like(10, sequence=1), pin_like(11, sequence=True),
        pin_like(12, kind="gate"), pin_like(13, reason=None),
        pin_like(14, reason=["a"]), pin_like(15, pinned_at="yesterday"), pin_like(16, pinned_at=5),
        pin_like(17, run_id={}),
        pin_like(18, pinned_at="2026-01-01T00:00:00+00:00"), " " * (decision_files.LARGEST_FILE + 1),
    ]  # fmt: skip
    for k, text in enumerate(harm):
        put(k, text)
    outside.write_text(pin_like(90), encoding="utf-8")
    put(90, "").unlink()
    (folder / f"000140-pin-{90:032x}.json").symlink_to(outside)
    (folder / f"000141-pin-{91:032x}.json").mkdir()
    os.mkfifo(folder / f"000142-pin-{92:032x}.json")
    (folder / "notes.json").write_text("{}", encoding="utf-8")
    put(93, pin_like(93), kind="unknownkind")
    before = held(decided)
    for _ in range(2):  # under other descriptors, and said once all the same
        ingest([made.root], decided)
        descriptor = os.open(os.devnull, os.O_RDONLY)
        request.addfinalizer(partial(os.close, descriptor))
    assert held(decided) == before
    assert caplog.text.count("this decision is left out") == len(harm) + 3
    report = ingest([made.root], decided, rebuild=True)
    assert held(decided) == before and report.rejected == []
    put(99, pin_like(99, colour="blue", path=None, reason="\ud800 odd", run_id="../../etc"))
    ingest([made.root], decided)
    assert [entry.run_id for entry in pins(decided) if not entry.blessed] == [good["run_id"], "../../etc"]


def test_the_number_after_the_last_is_refused(made: Any, decided: Path) -> None:
    first = files(decided)[0]
    text = first.read_text(encoding="utf-8").replace('"sequence": 1', f'"sequence": {decision_files.LAST_SEQUENCE}')
    made_up = "f" * 32
    name = f"{decision_files.LAST_SEQUENCE}-pin-{made_up}.json"
    (first.parent / name).write_text(text.replace(first.stem.split("-")[2], made_up), encoding="utf-8")
    with pytest.raises(Unwritable, match="none can follow"):
        pin(decided, str(made.root / "tiny" / "baseline"), "x")


@pytest.mark.slow
@pytest.mark.parametrize("failing", ["fsync", "replace", "mkdir"])
def test_a_full_disk_or_a_folder_that_may_not_be_written_changes_nothing(
    made: Any, decided: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    before, names = as_seen(decided), files(decided)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    place = made.root / "tiny"
    with monkeypatch.context() as patched:
        if failing == "mkdir":
            patched.setattr(Path, "mkdir", full)
        else:
            patched.setattr(os, failing, full)
        for act in (
            lambda: pin(decided, str(place / "laser"), "x"),
            lambda: choose(decided, str(place / "svd"), "x"),
            lambda: delete(decided, str(place / "wanda"), "x"),
        ):
            with pytest.raises(LeaderboardError, match="No space left"):
                act()
    assert as_seen(decided) == before and files(decided) == names
    assert pin(decided, str(place / "laser"), "x").current


@pytest.mark.slow
def test_a_kill_between_row_and_file_and_after_the_file(made: Any, decided: Path) -> None:
    """The file is written last: a kill before it leaves nothing, a kill after it leaves a decision."""
    program = (
        "import os, sys; from pathlib import Path; from leaderboard.store import decision_files, pins\n"
        "write = decision_files.write\n"
        "def killed(*given):\n    if sys.argv[3] == 'after': write(*given)\n    os.kill(os.getpid(), 9)\n"
        "decision_files.write = killed\npins.pin(Path(sys.argv[1]), sys.argv[2], 'killed')"
    )
    laser = made.root / "tiny" / "laser"
    for when, expected in (("before", 0), ("after", 1)):
        process = child(program, decided, laser, when)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        for rebuild in (False, True, False):
            ingest([made.root], decided, rebuild=rebuild)
            assert [entry.reason for entry in pins(decided)].count("killed") == expected


@pytest.mark.slow
def test_two_processes_that_decide_at_once_and_are_killed(made: Any, decided: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from leaderboard.store.pins import pin\n"
        "for k in range(40):\n    pin(Path(sys.argv[1]), sys.argv[2], f'{sys.argv[3]} {k}', timeout_s=60)\n"
        "    print(k, flush=True)"
    )
    generator = random.Random(2)
    said: list[str] = []
    processes = []
    for k, run in enumerate(("baseline", "laser", "baseline")):
        processes.append(child(program, decided, made.root / "tiny" / run, f"writer {k}"))
    time.sleep(generator.uniform(2.0, 3.0))
    processes[0].send_signal(signal.SIGKILL)
    for k, process in enumerate(processes):
        out, err = process.communicate()
        assert k == 0 or process.returncode == 0, err
        said += [f"writer {k} {line}" for line in out.split()]
    with open_store(decided, read_only=False):
        pass
    reasons = [entry.reason for entry in pins(decided) if entry.reason.startswith("writer")]
    assert set(said) <= set(reasons) and len(reasons) == len(set(reasons)) <= len(said) + 1
    sequences = [int(file.name.split("-")[0]) for file in files(decided) if file.suffix == ".json"]
    assert len(sequences) == len(set(sequences))


@pytest.mark.slow
def test_a_copy_of_a_folder_goes_its_own_way(made: Any, decided: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(made.root, copy)
    database = copy / decided.name
    pin(database, str(copy / "tiny" / "laser"), "in the copy")
    assert [entry.path for entry in deletions(database)] == [copy / "tiny" / "asvd"]
    shutil.rmtree(made.root)
    before = as_seen(database)
    ingest([copy], database, rebuild=True)
    assert as_seen(database) == before


@pytest.mark.slow
def test_a_link_to_the_database_leads_to_the_same_decisions(made: Any, decided: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.duckdb"
    link.symlink_to(decided)
    pin(link, str(made.root / "tiny" / "laser"), "by the link")
    assert len(files(decided)) == 8 and not Path(f"{link}.decisions").exists()
    before = as_seen(decided)
    ingest([made.root], link, rebuild=True)
    assert link.is_symlink() and as_seen(decided) == before


def test_decisions_follow_runs_whose_ids_change(decided: Path) -> None:
    before = held(decided)
    former = pins(decided)[0].run_id
    with open_store(decided, read_only=False) as store, store.transaction():
        decisions.follow(store, {former: "new"})
    assert [row[1] for row in held(decided)["baselines"]] == ["new"] and held(decided) != before
    with open_store(decided, read_only=False):
        pass
    assert [row[1] for row in held(decided)["baselines"]] == ["new"] and len(files(decided)) == 7


def test_a_deleted_run_stays_deleted_wherever_it_lies(made: Any, decided: Path, tmp_path: Path) -> None:
    shutil.copytree(made.root / "tiny" / "asvd", tmp_path / "elsewhere" / "copy")
    report = ingest([tmp_path / "elsewhere"], decided)
    assert (report.added, [path.name for path in report.deleted]) == ([], ["copy"])
    shutil.move(made.root / "tiny" / "asvd", made.root / "other")
    assert [path.name for path in ingest([made.root], decided).deleted] == ["other"]
