"""How runs are named: paths, ids, MODEL/RECIPE, and what completes to one of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from leaderboard.errors import UnknownRun
from leaderboard.ingest import ingest
from leaderboard.store.database import open_store
from leaderboard.store.naming import AmbiguousRun, ResolvedRun, known_runs, resolve, short_identity
from tests.leaderboard.conftest import sha


def change(run: Path, **values: Any) -> None:
    """Change entries of a receipt's mappings."""
    receipt = json.loads((run / "receipt.json").read_text())
    changed = {key: receipt[key] | value for key, value in values.items()}
    (run / "receipt.json").write_text(json.dumps(receipt | changed))


@pytest.fixture
def database(made: Any, kit: Any) -> Path:
    """Two models, of which one has a slash in its name, recipes with settings and a control, and one recipe twice."""
    before, after = kit.pair(9, 3, lost=1)
    for model in ("google/gemma-2b", "tiny"):
        made.run("baseline", {"sums": before}, model=model)
        made.run("laser:layers=3", {"sums": after}, model=model)
    made.run("laser:layers=4", {"sums": after}, started="2026-03-01T00:00:00+00:00")
    made.run("svd", {"sums": after}, folder="svd-1", started="2026-02-01T00:00:00+00:00")
    made.run("svd", {"sums": after}, folder="svd-2", started="2026-02-03T00:00:00+00:00", spec_id="two")
    made.failed("svd", {"sums": after}, folder="svd-3", started="2026-02-05T00:00:00+00:00", spec_id="three")
    control = {"name": "random-subspace", "label": "svd+random-subspace", "control": "random-subspace"}
    change(made.run("svd+random-subspace", {"sums": after}), recipe=control | {"control_of": sha("svd")})
    path: Path = made.root / "leaderboard.duckdb"
    ingest([made.root], path)
    return path


def named(database: Path, name: str, **options: Any) -> ResolvedRun:
    with open_store(database) as store:
        return resolve(store, name, **options)


FINDS = (
    ("google/gemma-2b/laser:layers=3", "google/gemma-2b/laser:layers=3"),
    ("gemma-2b/laser:layers=3", "google/gemma-2b/laser:layers=3"),
    ("google/gemma-2b/base", "google/gemma-2b/baseline"),
    ("gem/las", "google/gemma-2b/laser:layers=3"),
    ("goog/baseline", "google/gemma-2b/baseline"),
    ("tiny/laser:layers=4", "tiny/laser:layers=4"),
    ("laser:layers=4", "tiny/laser:layers=4"),
    ("svd", "tiny/svd"),
    ("tiny/sv", "tiny/svd"),
    ("t/svd+", "tiny/svd+random-subspace"),
    ("tiny/svd+random-subspace", "tiny/svd+random-subspace"),
    ("laser_layers=4-0123456789", "tiny/laser:layers=4"),
)


@pytest.mark.slow
def test_a_name_finds_its_run(database: Path) -> None:
    assert [(name, named(database, name).run.name) for name, _ in FINDS] == list(FINDS)


@pytest.mark.slow
def test_an_id_is_completed(database: Path) -> None:
    with open_store(database) as store:
        runs = known_runs(store)
    for run in runs:
        assert named(database, run.run_id).run == run
        assert named(database, run.run_id[:10]) == ResolvedRun(run)
    laser = next(run for run in runs if run.name == "tiny/laser:layers=4")
    assert laser.spec_id is not None and named(database, laser.spec_id[:10]).run == laser


@pytest.mark.slow
def test_of_several_runs_of_a_recipe_the_newest_complete_one_is_taken_and_said(database: Path) -> None:
    found = named(database, "tiny/svd")
    assert found.run.path.name == "svd-2"
    (note,) = found.notes
    assert note.startswith("tiny/svd has 3 runs: the newest complete one is taken, ") and found.run.run_id[:12] in note
    assert "2026-02-03 00:00 UTC" in note
    assert named(database, "tiny/laser:layers=4").notes == ()


@pytest.mark.slow
def test_what_cannot_be_undone_asks_for_an_id_where_there_are_several(database: Path) -> None:
    with pytest.raises(AmbiguousRun, match="tiny/svd is ambiguous") as told:
        named(database, "tiny/svd", newest=False)
    assert str(told.value).count("tiny/svd  ") == 3
    assert named(database, "tiny/baseline", newest=False).run.recipe == "baseline"


@pytest.mark.slow
def test_two_identities_of_one_name_are_one_model_and_said(database: Path, made: Any, kit: Any) -> None:
    before, _ = kit.pair(9, 3, lost=1)
    started, weights = "2027-01-01T00:00:00+00:00", {"digest_before": sha("others"), "digest_after": sha("others")}
    there = {"folder": "new", "spec_id": "new", "started": started, "variant_id": sha("new"), "weights": weights}
    change(made.run("baseline", {"sums": before}, **there), model={"revision": "other", "identity": sha("other")})
    ingest([made.root], database)
    found = named(database, "tiny/baseline")
    assert found.run.path.name == "new"
    assert "has 2 runs, of 2 identities of the model: the newest is taken" in found.notes[0]
    old = f"tiny ({short_identity(sha('tiny'))})/base"
    assert named(database, old) == named(database, f"{old}line") and named(database, old).notes == ()
    assert named(database, old).run.path.name == "baseline-0123456789"


@pytest.mark.slow
def test_what_fits_several_is_listed(database: Path) -> None:
    for name, listed in (
        ("tiny/laser", ["tiny/laser:layers=3", "tiny/laser:layers=4"]),
        ("laser:layers=3", ["google/gemma-2b/laser:layers=3", "tiny/laser:layers=3"]),
        ("baseline", ["google/gemma-2b/baseline", "tiny/baseline"]),
        ("tiny/", ["tiny/baseline", "tiny/laser:layers=3", "tiny/laser:layers=4", *3 * ["tiny/svd"]]),
    ):
        with pytest.raises(AmbiguousRun) as told:
            named(database, name)
        first, *candidates, last = str(told.value).splitlines()
        assert first == f"{name} is ambiguous: it may be" and last == "give more of the name, or an id"
        assert sorted(line.split()[1] for line in candidates) == listed
        assert all(len(line.split()[0]) == 12 and line.endswith(("03:04", "03:05", "00:00")) for line in candidates)


@pytest.mark.slow
def test_at_most_ten_candidates_are_listed(made: Any, kit: Any) -> None:
    _, after = kit.pair(9, 3, lost=1)
    for rank in range(13):
        made.run(f"svd:keep.rank={rank}", {"sums": after})
    database = made.root / "leaderboard.duckdb"
    ingest([made.root], database)
    with pytest.raises(AmbiguousRun) as told:
        named(database, "svd")
    lines = str(told.value).splitlines()
    assert len(lines) == 13 and lines[-2] == "  and 3 more"


def test_an_unknown_name_is_told_its_neighbours(database: Path) -> None:
    for name, near in (
        ("tiny/lasr:layers=3", "tiny/laser:layers=3"),
        ("gemma-2b/basline", "google/gemma-2b/baseline"),
        ("tinny/svd", "tiny/svd"),
    ):
        with pytest.raises(UnknownRun, match=f"no run {name} in the leaderboard: .*did you mean .*{near}"):
            named(database, name)


@pytest.mark.slow
def test_a_model_alone_is_told_its_recipes(database: Path) -> None:
    with pytest.raises(UnknownRun) as told:
        named(database, "gemma-2b")
    assert str(told.value) == (
        "no run gemma-2b in the leaderboard: google/gemma-2b is a model, write google/gemma-2b/RECIPE; it has"
        " laser:layers=3, baseline"
    )


@pytest.mark.slow
def test_what_names_nothing(database: Path) -> None:
    for name in ("", "/", "//", "/svd", "tiny//svd", "feedface", "a/b/c/d"):
        with pytest.raises(UnknownRun):
            named(database, name)
