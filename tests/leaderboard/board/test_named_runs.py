"""Names of runs in commands: words that are paths and perhaps names too, and the names that tables show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from leaderboard.board.named_runs import place_of, places_of_two, resolve_in
from leaderboard.errors import LeaderboardError, UnknownRun
from leaderboard.gate.runs import baselines_of, read_named
from leaderboard.ingest import ingest
from leaderboard.report.contents import read_report
from leaderboard.store.database import open_store
from leaderboard.store.naming import AmbiguousRun, ResolvedRun, known_runs, resolve


@pytest.fixture
def database(made: Any, kit: Any) -> Path:
    """Two models with a recipe each, of which one was run in two ways."""
    before, after = kit.pair(9, 3, lost=1)
    for model in ("google/gemma-2b", "tiny"):
        made.run("baseline", {"sums": before}, model=model)
        made.run("laser:layers=3", {"sums": after}, model=model)
    for limit, day in ((20, 1), (30, 2)):
        started = f"2026-03-0{day}T00:00:00+00:00"
        settings = {"settings": {"limit": limit}, "spec_id": str(limit), "started": started}
        made.run("svd", {"sums": after}, folder=f"svd-{limit}", **settings)
    path: Path = made.root / "leaderboard.duckdb"
    ingest([made.root], path)
    return path


def named(database: Path, name: str) -> ResolvedRun:
    with open_store(database) as store:
        return resolve(store, name)


@pytest.mark.slow
def test_the_names_that_tables_show_are_names(made: Any, database: Path) -> None:
    for name in ("tiny/svd [limit 20]", "svd [limit 20]", "ti/svd [limit 20]"):
        assert resolve_in(database, name).run.path.name == "svd-20", name
        assert place_of(name, database).path == made.root / "tiny" / "svd-20"
    assert resolve_in(database, "tiny/svd").run.path.name == "svd-30"
    with pytest.raises(UnknownRun):
        resolve_in(database, "tiny/svd [limit 40]")


@pytest.fixture
def several_baselines(made: Any, kit: Any) -> Path:
    """A recipe and its baseline on 20 documents, and a newer baseline on 30."""
    (before, after), (longer, _) = kit.pair(20, 9, lost=1), kit.pair(30, 9)
    for limit, label, task in ((20, "baseline", before), (20, "laser", after), (30, "baseline", longer)):
        started = f"2026-03-0{limit // 10}T00:00:00+00:00"
        settings = {"settings": {"limit": limit}, "spec_id": f"{label}{limit}", "started": started}
        made.run(label, {"sums": task}, folder=f"{label}-{limit}", **settings)
    path: Path = made.root / "leaderboard.duckdb"
    ingest([made.root], path)
    return path


def test_a_base_of_several_is_the_boards_baseline_of_the_other_run(made: Any, several_baselines: Path) -> None:
    laser = made.root / "tiny" / "laser-20"
    found = place_of("tiny/baseline", several_baselines, base_of=laser)
    assert found.path.name == "baseline-20"
    (note,) = found.notes
    assert note.startswith("tiny/baseline has 2 runs: the one that the board compares the other run with is taken, ")
    for newest in (
        place_of("tiny/baseline", several_baselines),
        place_of("tiny/baseline", several_baselines, base_of=made.root / "elsewhere"),
        place_of("tiny/baseline", several_baselines, base_of=made.root / "tiny" / "baseline-30"),
    ):
        assert newest.path.name == "baseline-30" and "the newest is taken" in newest.notes[0]
    with open_store(several_baselines) as store:
        (newest_id,) = (run.run_id for run in known_runs(store) if run.path.name == "baseline-30")
    assert place_of(newest_id, several_baselines, base_of=laser).path.name == "baseline-30"


@pytest.mark.parametrize(("a", "b", "other"), [("baseline", "laser", "B"), ("laser", "baseline", "A")])
def test_either_of_two_is_the_boards_baseline_of_the_other(several_baselines: Path, a: str, b: str, other: str) -> None:
    places = places_of_two(f"tiny/{a}", f"tiny/{b}", several_baselines)
    assert [place.path.name for place in places] == [f"{a}-20", f"{b}-20"]
    (note,) = (note for place in places for note in place.notes)
    assert note.startswith(f"tiny/baseline has 2 runs: the one that the board compares {other} with is taken, ")


def test_a_report_and_a_gate_take_that_base_too(made: Any, several_baselines: Path) -> None:
    (cell,) = read_report(["tiny/baseline", "tiny/laser"], several_baselines).cells[1:]
    assert cell.verdict != "incomparable"
    candidate = read_named("tiny/laser", several_baselines, "candidate")
    (base,) = baselines_of(candidate, ["tiny/baseline"], several_baselines)
    assert base.run.path.name == "baseline-20"


@pytest.mark.slow
def test_a_path_needs_no_leaderboard(made: Any, database: Path, tmp_path: Path) -> None:
    place = made.root / "tiny" / "svd-20"
    assert place_of(str(place), tmp_path / "none.duckdb").path == place
    with pytest.raises(LeaderboardError, match="candidate tiny/svd: there is nothing at this path, and no leader"):
        place_of("tiny/svd", tmp_path / "none.duckdb", "candidate")


@pytest.mark.slow
def test_a_name_leads_to_the_folder(made: Any, database: Path) -> None:
    found = place_of("gemma-2b/las", database)
    assert found.path == made.root / "google" / "gemma-2b" / "laser_layers=3-0123456789"


@pytest.mark.slow
def test_a_path_that_is_another_runs_name_is_refused(
    made: Any, database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "tiny" / "svd").mkdir(parents=True)
    monkeypatch.chdir(elsewhere)
    words = "tiny/svd is both a path and the run .* write ./tiny/svd for the path, or the run's id"
    with pytest.raises(AmbiguousRun, match=words):
        place_of("tiny/svd", database)
    with pytest.raises(AmbiguousRun, match=words):
        named(database, "tiny/svd")
    assert place_of("./tiny/svd", database).path == Path("tiny/svd")
    with pytest.raises(UnknownRun, match="holds no runs of this leaderboard"):
        named(database, "./tiny/svd")


@pytest.mark.slow
def test_a_path_that_only_begins_a_name_is_the_path(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere" / "tiny" / "sv").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert place_of("tiny/sv", database).path == Path("tiny/sv")


def test_a_path_that_is_the_very_run_that_it_names(made: Any, kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, after = kit.pair(9, 3, lost=1)
    made.run("svd", {"sums": after}, folder="svd")
    database = made.root / "leaderboard.duckdb"
    ingest([made.root], database)
    monkeypatch.chdir(made.root)
    assert named(database, "tiny/svd").run.path.name == "svd" and place_of("tiny/svd", database).path == Path(
        "tiny/svd"
    )
