"""Ingesting a tree again reads what changed, and says and stores what reading all of it would."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from leaderboard import ingest as ingest_module
from leaderboard.ingest import IngestReport, ingest
from leaderboard.readers import file_stamps
from leaderboard.store import deletions
from leaderboard.store.database import open_store
from leaderboard.watch import Watch

TABLES = {
    "variants": "",
    "runs": "EXCLUDE (ingested_at)",
    "run_tasks": "",
    "scores": "",
    "docs": "",
    "samples": "",
    "sample_scores": "",
    "receipts": "",
    "calibrations": "",
    "noise_floors": "",
    "ingest_log": "EXCLUDE (logged_at)",
}
_opened: list[str] | None = None


def _notice(event: str, arguments: tuple[Any, ...]) -> None:
    if _opened is not None and event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
        _opened.append(os.fsdecode(arguments[0]))


sys.addaudithook(_notice)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files written just now may be relied on; boards are not what these tests are about."""
    monkeypatch.setattr(file_stamps, "SETTLED_NS", 0)
    monkeypatch.setattr(ingest_module, "judge_outdated", lambda *_: None)


@pytest.fixture
def opened(made: Any) -> Iterator[Callable[[], list[str]]]:
    """The run files that were opened since last asked, by name."""
    global _opened
    _opened = []

    def since() -> list[str]:
        assert _opened is not None
        found = [Path(name) for name in _opened if name.endswith((".json", ".jsonl"))]
        _opened.clear()
        return sorted(str(path.relative_to(made.root)) for path in found if path.is_relative_to(made.root))

    yield since
    _opened = None


def task(kit: Any, seed: int, documents: int = 6) -> Any:
    """A task whose answers and log-likelihoods depend on the seed."""
    answers = [float((i * (seed + 2)) % 5 < 2) for i in range(documents)]
    return kit.Task({"acc": answers}, log_likelihoods=kit.likelihoods(documents, seed))


def said(report: IngestReport) -> tuple[object, ...]:
    """All that a report says, whatever the order."""
    rejected = sorted((str(path), reason) for path, reason in report.rejected)
    return sorted(report.added), sorted(report.duplicates), sorted(report.known), sorted(report.deleted), rejected


def contents(database: Path) -> dict[str, list[str]]:
    """All rows, in an order of their own."""
    with open_store(database) as store:
        return {
            table: sorted(map(repr, store.connection.execute(f"SELECT * {but} FROM {table}").fetchall()))
            for table, but in TABLES.items()
        }


def forget_looks(database: Path) -> None:
    with open_store(database, read_only=False) as store:
        store.connection.execute("DELETE FROM looks")


@pytest.mark.slow
def test_an_unchanged_tree_is_not_opened(made: Any, kit: Any, database: Path, opened: Any) -> None:
    runs = [made.run(name, {"sums": task(kit, k)}) for k, name in enumerate(("baseline", "svd", "laser"))]
    (runs[2] / "receipt.json").write_text("{")
    made.failed("asvd", {"sums": task(kit, 3)})
    made.plain({"sums": task(kit, 4)}, model="other")
    (made.root / "notes.json").write_text("[1]")
    (made.root / "lines.jsonl").write_text("{}\n")
    (made.root / "lone").mkdir()
    shutil.copy(next(runs[0].glob("samples_*")), made.root / "lone" / "samples_sums.jsonl")
    first = ingest([made.root], database)
    assert opened()
    again = ingest([made.root], database)
    assert opened() == []
    assert (len(first.added), len(again.added), len(again.duplicates), len(again.known)) == (5, 0, 5, 5)
    assert again.rejected == first.rejected and len(again.rejected) == 3
    assert [run.name for run in again.duplicates if run.suffix != ".jsonl"] == [
        path.name for path in [*made.root.glob("other*/*.json"), *made.root.glob("plain/other/*.json")]
    ] + ["baseline-0123456789", "asvd-0123456789", "svd-0123456789"]


@pytest.mark.slow
def test_only_what_changed_is_opened(made: Any, kit: Any, database: Path, opened: Any) -> None:
    runs = [made.run(name, {"sums": task(kit, k)}) for k, name in enumerate(("baseline", "svd", "laser"))]
    ingest([made.root], database)
    opened()
    new = made.run("asvd", {"sums": task(kit, 5)})
    (runs[1] / "receipt.json").touch()
    report = ingest([made.root], database)
    assert {Path(name).parent.name for name in opened()} == {new.name, runs[1].name}
    assert (len(report.added), len(report.duplicates)) == (1, 3)
    ingest([made.root], database)
    assert opened() == []


def test_rewritten_in_place_with_its_size_and_date_is_seen(made: Any, kit: Any, database: Path, opened: Any) -> None:
    made.run("baseline", {"sums": task(kit, 0)})
    receipt = made.run("svd", {"sums": task(kit, 1)}) / "receipt.json"
    ingest([made.root], database)
    before, text = receipt.stat(), receipt.read_text()
    opened()
    changed = text.replace('"label": "svd"', '"label": "svE"')
    assert len(changed) == len(text) and changed != text
    with receipt.open("r+") as file:
        file.write(changed)
    os.utime(receipt, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = receipt.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)
    ingest([made.root], database)
    assert any(name.endswith("receipt.json") for name in opened())


@pytest.mark.slow
def test_what_changed_within_the_last_seconds_is_read_again(
    made: Any, kit: Any, database: Path, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_stamps, "SETTLED_NS", 3_000_000_000)
    run = made.run("baseline", {"sums": task(kit, 0)})
    ingest([made.root], database)
    opened()
    assert ingest([made.root], database).duplicates == [run] and opened()
    monkeypatch.setattr(time, "time_ns", lambda now=time.time_ns: now() + 4_000_000_000)
    ingest([made.root], database)
    assert opened()  # it was not relied on the last time
    ingest([made.root], database)
    assert opened() == []
    monkeypatch.setattr(time, "time_ns", lambda now=time.time_ns: now() - 3_600_000_000_000)  # put back by an hour
    ingest([made.root], database)
    assert opened()


@pytest.mark.slow
def test_other_code_reads_anew(
    made: Any, kit: Any, database: Path, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.run("baseline", {"sums": task(kit, 0)})
    ingest([made.root], database)
    opened()
    monkeypatch.setattr(file_stamps, "code", lambda: "another version")
    ingest([made.root], database)
    assert opened()
    assert len(ingest([made.root], database, rebuild=True).added) == 1 and opened()
    ingest([made.root], database)
    assert opened() == []  # a rebuild looks too


@pytest.mark.slow
def test_deleted_runs_stay_out_and_come_back(made: Any, kit: Any, database: Path, opened: Any) -> None:
    made.run("baseline", {"sums": task(kit, 0)})
    run = made.run("svd", {"sums": task(kit, 1)})
    run_id = ingest([made.root], database).added[1]
    deletions.delete(database, run_id, "wrong")
    opened()
    assert ingest([made.root], database).deleted == [run] and opened() == []
    deletions.take_back(database, run_id)
    assert ingest([made.root], database).added == [run_id] and opened()


@pytest.mark.slow
def test_a_folder_that_moved_and_a_store_that_was_copied(
    made: Any, kit: Any, database: Path, opened: Any, tmp_path: Path
) -> None:
    made.run("baseline", {"sums": task(kit, 0)})
    run = made.run("svd", {"sums": task(kit, 1)})
    run_id = ingest([made.root], database).added[1]
    moved = run.rename(run.with_name("renamed"))
    assert ingest([made.root], database).duplicates[-1] == moved
    with open_store(database) as store:
        (row,) = store.rows("SELECT path FROM runs WHERE run_id = ?", [run_id])
        assert store.places.resolved(row["path"]) == moved
        assert not store.rows("SELECT 1 FROM looks WHERE place LIKE ?", [f"%{run.name}"])
    copy = shutil.copytree(made.root, tmp_path / "copy")
    report = ingest([copy], copy / database.name)
    assert (len(report.added), len(report.duplicates)) == (0, 2)
    os.rename(copy, tmp_path / "other")
    opened()
    report = ingest([tmp_path / "other"], tmp_path / "other" / database.name)
    assert len(report.duplicates) == 2 and opened() == []


@pytest.mark.slow
def test_a_contradiction_is_looked_at_again_once_the_other_run_has_gone(
    made: Any, kit: Any, database: Path, opened: Any
) -> None:
    same, cached = task(kit, 0), {"use_cache": "answers"}
    made.run("baseline", {"sums": same})
    other = made.run("laser", {"sums": same}, config=cached)
    (run_id,) = ingest([made.root], database).added
    opened()
    (again,) = ingest([made.root], database).rejected
    assert opened() == [] and again.path == other and "equals to the bit" in again.reason
    deletions.delete(database, run_id, "wrong")
    assert len(ingest([made.root], database).added) == 1


def test_what_was_written_before_a_kill_is_not_read_again(
    made: Any, kit: Any, database: Path, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.run("baseline", {"sums": task(kit, 0)})
    made.run("svd", {"sums": task(kit, 1)})
    with monkeypatch.context() as killed:
        killed.setattr(ingest_module, "_finish", lambda *_: sys.exit(1))
        with pytest.raises(SystemExit):
            ingest([made.root], database)
    opened()
    assert len(ingest([made.root], database).duplicates) == 2 and opened() == []


@pytest.mark.slow
def test_only_places_below_the_roots_are_forgotten(made: Any, kit: Any, database: Path, tmp_path: Path) -> None:
    inside = [made.run(name, {"sums": task(kit, k)}) for k, name in enumerate(("baseline", "svd"))]
    other = type(made)(tmp_path / "elsewhere")
    outside = [other.run(name, {"sums": task(kit, k)}, model="other") for k, name in enumerate(("baseline", "svd"))]
    ingest([made.root, other.root], database)
    for run in (inside[1], outside[1]):
        shutil.rmtree(run)
    kept = []
    for root in (inside[0], inside[0].parent, other.root, tmp_path):
        ingest([root], database)
        with open_store(database) as store:
            kept.append(len(store.rows("SELECT place FROM looks")))
    assert kept == [4, 3, 2, 2]


@pytest.mark.slow
def test_watching_goes_by_the_same(made: Any, kit: Any, database: Path, opened: Any) -> None:
    made.run("baseline", {"sums": task(kit, 0)})
    ingest([made.root], database)
    opened()
    reports: list[IngestReport] = []
    watch = Watch([made.root], database, reports.append)
    watch.round()
    assert opened() == [] and [len(report.duplicates) for report in reports] == [1]
    made.run("svd", {"sums": task(kit, 1)})
    watch.round()
    watch.round()
    assert [len(report.added) for report in reports] == [0, 1]


class Tree:
    """Run folders that change at random."""

    def __init__(self, made: Any, kit: Any, database: Path, seed: int) -> None:
        self.made, self.kit, self.database = made, kit, database
        self.random = random.Random(seed)
        self.count = 0

    def folders(self) -> list[Path]:
        return sorted(path.parent for path in self.made.root.rglob("receipt.json"))

    def change(self) -> None:
        """One of many things that happen to a tree of results."""
        new, gone = [self.add, self.add, self.add_plain, self.add_cached, self.add_lone], [self.remove, self.rename]
        other = [self.copy, self.spoil, self.rewrite, self.spoil_lone, self.drop_samples, self.delete, self.take_back]
        what = self.random.choice([*new, *gone, *other])
        what()

    def add(self) -> None:
        self.count += 1
        recipe = self.random.choice(["baseline", f"svd:rank={self.count}"])
        of_task = task(self.kit, self.count % 7)
        self.made.run(recipe, {"sums": of_task}, folder=f"{recipe.partition(':')[0]}-{self.count:03}")

    def add_cached(self) -> None:
        self.count += 1
        changes = {"config": {"use_cache": "answers"}, "folder": f"cached-{self.count:03}"}
        self.made.run(f"laser:rank={self.count}", {"sums": task(self.kit, 0)}, **changes)

    def add_plain(self) -> None:
        self.count += 1
        self.made.plain({"sums": task(self.kit, self.count)}, model=f"plain{self.count}")

    def add_lone(self) -> None:
        self.count += 1
        for source in sorted(self.made.root.rglob("samples_*.jsonl"))[:1]:
            shutil.copy(source, self.made.root / f"tiny_{self.count}.jsonl")

    def spoil_lone(self) -> None:
        for file in sorted(self.made.root.glob("*.jsonl"))[:1]:
            file.write_text("{}\n" if file.stat().st_size > 5 else file.read_text() + "\n")

    def _some(self) -> Path | None:
        found = self.folders()
        return self.random.choice(found) if found else None

    def remove(self) -> None:
        if folder := self._some():
            shutil.rmtree(folder)

    def rename(self) -> None:
        if folder := self._some():
            folder.rename(folder.with_name(f"{folder.name}-moved{self.count}"))

    def copy(self) -> None:
        self.count += 1
        if folder := self._some():
            shutil.copytree(folder, folder.with_name(f"{folder.name}-copy{self.count}"))

    def spoil(self) -> None:
        if folder := self._some():
            receipt = folder / "receipt.json"
            text = receipt.read_text()
            receipt.write_text(text[:-5] if text.endswith("}") else "{")

    def rewrite(self) -> None:
        if folder := self._some():
            receipt = folder / "receipt.json"
            before = receipt.stat()
            receipt.write_text(receipt.read_text().replace('"seconds": 0.1', '"seconds": 0.2'))
            os.utime(receipt, ns=(before.st_atime_ns, before.st_mtime_ns))

    def drop_samples(self) -> None:
        if (folder := self._some()) and (files := sorted(folder.glob("samples_*"))):
            files[0].unlink()

    def delete(self) -> None:
        with open_store(self.database) as store:
            ids = sorted(row["run_id"] for row in store.rows("SELECT run_id FROM runs"))
        if ids:
            deletions.delete(self.database, self.random.choice(ids), "at random")

    def take_back(self) -> None:
        if found := deletions.deletions(self.database):
            deletions.take_back(self.database, found[0].run_id)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 8))])
def test_the_same_as_reading_everything(made: Any, kit: Any, database: Path, seed: int) -> None:
    tree = Tree(made, kit, database, seed)
    tree.add()
    ingest([made.root], database)
    whole = database.with_name("whole.duckdb")
    for _ in range(8 if seed else 4):
        for _ in range(tree.random.choice([0, 1, 1, 3])):
            tree.change()
        shutil.copy(database, whole)
        forget_looks(whole)
        full, again = ingest([made.root], whole), ingest([made.root], database)
        assert said(again) == said(full)
        assert contents(database) == contents(whole)


def test_looks_are_json_that_says_little(made: Any, kit: Any, database: Path) -> None:
    run = made.run("baseline", {"sums": task(kit, 0)})
    (run_id,) = ingest([made.root], database).added
    with open_store(database) as store:
        (row,) = store.rows("SELECT place, outcomes, runs FROM looks")
    assert row["place"] == str(run.relative_to(made.root)) and row["runs"] is None
    assert json.loads(row["outcomes"]) == {"runs": [[run_id, None, None]]}
