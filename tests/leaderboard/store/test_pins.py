"""Pinning a baseline, from Python and from the command line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from leaderboard.errors import LeaderboardError, MissingDatabase, UnknownRun
from leaderboard.ingest import ingest
from leaderboard.store import queries
from leaderboard.store.database import open_store
from leaderboard.store.pins import choose, pin, pins


@pytest.fixture
def database(made: Any, kit: Any) -> Path:
    """Two unedited runs, an edited, a failed and a plain one."""
    before, after = kit.pair(9, 3, lost=1)
    made.run("baseline", {"sums": before}, folder="first")
    made.run("baseline", {"sums": before}, folder="second", spec_id="two", started="2027-01-01T00:00:00Z")
    made.run("laser", {"sums": after}, folder="laser")
    made.failed("nan", {"sums": after}, folder="failed")
    made.plain({"sums": before}, model="other")
    path: Path = made.root / "leaderboard.duckdb"
    ingest([made.root], path)
    return path


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> int | str | None:
    """Run `lm_eval` with these words; the exit code, None where it ended by itself."""
    pytest.importorskip("lm_eval")
    from harness_ext.cli import main

    monkeypatch.setattr(sys, "argv", ["lm_eval", *map(str, words)])
    try:
        main()
    except SystemExit as stop:
        return stop.code
    return None


@pytest.mark.slow
def test_a_run_is_named_by_folder_file_or_id(made: Any, database: Path) -> None:
    by_folder = pin(database, str(made.root / "tiny" / "second"), "of the new machine")
    assert by_folder == pin(database, by_folder.run_id[:12], "of the new machine")._replace(
        pinned_at=by_folder.pinned_at
    )
    (file,) = (made.root / "plain" / "other").glob("results_*.json")
    assert pin(database, str(file), "x").run_id == pin(database, str(file.parent), "x").run_id
    assert [(entry.model, entry.current) for entry in pins(database)] == [
        ("tiny", False),
        ("tiny", True),
        ("other", False),
        ("other", True),
    ]


@pytest.mark.slow
def test_what_cannot_be_pinned(made: Any, database: Path) -> None:
    for run, reason, words in (
        (made.root / "tiny", "x", "holds 4 runs"),
        (made.root, "x", "holds no runs"),
        (made.root / "tiny" / "failed", "x", "cannot be a baseline"),
    ):
        with pytest.raises(LeaderboardError, match=words):
            pin(database, str(run), reason)
    with pytest.raises(LeaderboardError, match="needs a reason"):
        pin(database, str(made.root / "tiny" / "first"), "  ")
    for run in ("feedface", ""):
        with pytest.raises(UnknownRun):
            pin(database, run, "x")
    assert pins(database) == []


def test_no_database_is_created(tmp_path: Path) -> None:
    with pytest.raises(MissingDatabase):
        pin(tmp_path / "none.duckdb", "abc", "x")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_pin_survives_the_loss_of_its_run(made: Any, database: Path) -> None:
    pin(database, str(made.root / "tiny" / "second"), "x")
    with open_store(database, read_only=False) as store:
        store.connection.execute("DELETE FROM runs")
    assert [entry.recipe for entry in pins(database)] == [None]


@pytest.mark.slow
def test_the_command(
    made: Any, database: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--database", database)
    assert command(monkeypatch, "baseline", "list", *where) is None
    assert "no baseline is pinned" in capsys.readouterr().out
    for folder in ("first", "second"):
        assert (
            command(monkeypatch, "baseline", "set", made.root / "tiny" / folder, "--reason", f"the {folder}", *where)
            is None
        )
    assert "baseline on tiny" in capsys.readouterr().out
    assert command(monkeypatch, "baseline", "list", *where) is None
    first, second, legend = capsys.readouterr().out.splitlines()
    assert (
        first.startswith("  pinned")
        and first.endswith(": the first")
        and second.startswith("* pinned")
        and second.endswith(": the second")
        and legend == "* counts now"
    )


@pytest.mark.slow
def test_the_command_asks_for_a_reason_and_lists_alone(
    database: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "baseline", "set", "abc", "--database", database) == 2
    assert "--reason" in capsys.readouterr().err
    assert command(monkeypatch, "baseline", "--database", database) is None
    assert "no baseline is pinned" in capsys.readouterr().out
    assert command(monkeypatch, "baseline", "set", "feedface", "--reason", "x", "--database", database) == 2
    assert "no run feedface in the leaderboard" in capsys.readouterr().err


@pytest.mark.slow
def test_an_edited_run_is_blessed_for_its_recipe_and_pinned_only_if_asked(
    made: Any, database: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--database", database)
    laser = made.root / "tiny" / "laser"
    for reason in ("first", "better"):
        assert command(monkeypatch, "baseline", "set", laser, "--reason", reason, *where) is None
    out = capsys.readouterr().out.splitlines()
    assert (
        [line.partition(":")[0] for line in out] == ["blessed", "blessed"]
        and out[1].endswith(": better")
        and "laser on tiny" in out[1]
    )
    assert [(entry.recipe, entry.reason, entry.current, entry.blessed) for entry in pins(database)] == [
        ("laser", "first", False, True),
        ("laser", "better", True, True),
    ]
    with open_store(database) as store:
        assert queries.pinned_baselines(store) == {}
    assert command(monkeypatch, "baseline", "set", laser, "--reason", "odd", "--base", *where) is None
    with open_store(database) as store:
        assert len(queries.pinned_baselines(store)) == 1
    assert command(monkeypatch, "baseline", "list", *where) is None
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()[1:]] == [
        ["blessed", pins(database)[0].run_id[:12]],
        ["*", "blessed"],
        ["*", "pinned"],
        ["*", "counts"],
    ]


@pytest.mark.slow
def test_choices_survive_a_rebuild(made: Any, database: Path) -> None:
    choose(database, str(made.root / "tiny" / "laser"), "x")
    choose(database, str(made.root / "tiny" / "first"), "y")
    ingest([made.root], database, rebuild=True)
    assert [(entry.reason, entry.blessed, entry.current) for entry in pins(database)] == [
        ("x", True, True),
        ("y", False, True),
    ]


@pytest.mark.slow
def test_a_failed_run_is_not_blessed(made: Any, database: Path) -> None:
    with pytest.raises(LeaderboardError, match="failed and cannot be blessed"):
        choose(database, str(made.root / "tiny" / "failed"), "x")
