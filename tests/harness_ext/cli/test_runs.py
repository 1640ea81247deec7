"""`lm_eval runs` and the forms that lists come in."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leaderboard.ingest import ingest
from tests.leaderboard.conftest import Fabricator, Task, binary, sha


@pytest.fixture
def made(tmp_path: Path) -> Fabricator:
    """Runs of two models where `lm_eval` stands: 23 settings of a recipe, a failed run, a long name."""
    made = Fabricator(tmp_path / "results")
    before, after = ({"sums": Task({"acc": values})} for values in binary(60, 40, lost=9))
    made.run("baseline", before)
    made.run("baseline", before | {"other": before["sums"]}, model="google/gemma-2b")
    for rank in range(23):
        made.run(f"svd:keep.rank={rank}", after, started=f"2026-03-{rank + 1:02}T00:00:00+00:00")
    made.failed("laser", after, started="2026-04-01T00:00:00+00:00")
    made.run("slim:" + "matrices=[up_proj,down_proj],layers=[-8:],keep.rank_fraction=0.25", after)
    ingest([tmp_path / "results"], tmp_path / "results" / "leaderboard.duckdb")
    return made


@pytest.fixture
def at_terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Have lists be drawn for a terminal of so many columns."""

    def be(width: int) -> None:
        monkeypatch.setattr("harness_ext.cli.runs._is_terminal", lambda: True)
        monkeypatch.setenv("COLUMNS", str(width))

    return be


def recipes(out: str) -> list[str]:
    return [line.split("\t")[1] for line in out.splitlines()]


@pytest.mark.slow
def test_the_newest_runs_are_listed_first_and_the_rest_is_counted(made: Fabricator, lm_eval: Any) -> None:
    alone, listed = lm_eval("runs"), lm_eval("runs", "list")
    assert alone == listed and alone.code == 0
    assert recipes(alone.out) == ["laser", *(f"svd:keep.rank={rank}" for rank in range(22, 3, -1))]
    assert alone.err == "note: 20 of 27 runs, the newest: -L 0 lists all\n"
    assert len(recipes(lm_eval("runs", "-L", 0).out)) == 27 and lm_eval("runs", "-L", 0).err == ""
    assert recipes(lm_eval("runs", "list", "-L", 1).out) == ["laser"]


@pytest.mark.slow
def test_filters(made: Fabricator, lm_eval: Any) -> None:
    for words, count in (
        (("--model", "tiny"), 26),
        (("--model", "gemma-2b"), 1),
        (("--model", "goo"), 1),
        (("--recipe", "svd"), 23),
        (("--recipe", "svd:keep.rank=2"), 1),  # whole, so that 20, 21 and 22 are others
        (("--status", "failed"), 1),
        (("--task", "other"), 1),
        (("--model", "tiny", "--recipe", "svd", "--status", "failed"), 0),
    ):
        assert len(recipes(lm_eval("runs", "-L", 0, *words).out)) == count, words
        assert lm_eval("runs", *words, "list", "-L", 0).out == lm_eval("runs", "list", "-L", 0, *words).out


@pytest.mark.slow
@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_is_kept_to_its_width_and_names_stay_whole(
    width: int, made: Fabricator, lm_eval: Any, at_terminal: Callable[[int], None]
) -> None:
    at_terminal(width)
    lines = lm_eval("runs", "-L", 0).out.splitlines()
    assert lines[0].split() == ["STATUS", "RECIPE", "MODEL", "TASKS", "ID", "AGE"]
    assert max(map(len, lines)) <= width
    start, end = lines[0].index("RECIPE"), lines[0].index("MODEL")
    names = "".join(line[start:end].strip() for line in lines[1:])
    assert "slim:matrices=[up_proj,down_proj],layers=[-8:],keep.rank_fraction=0.25" in names


@pytest.mark.slow
def test_nothing_to_list_is_a_sentence(made: Fabricator, lm_eval: Any, tmp_path: Path) -> None:
    ran = lm_eval("runs", "--model", "none", "--status", "complete")
    assert (ran.code, ran.out) == (0, "")
    assert ran.err == "note: results/leaderboard.duckdb holds no runs with --model none --status complete\n"
    ran = lm_eval("runs", "--model", "none", "--json")
    assert (ran.code, json.loads(ran.out)) == (0, []) and "holds no runs" in ran.err
    ran = lm_eval("runs", "--deleted")
    assert (ran.code, ran.out, ran.err) == (0, "", "note: no run is deleted in results/leaderboard.duckdb\n")
    ran = lm_eval("runs", "--database", "none.duckdb")
    assert ran.code == 2 and ran.err.startswith("error: there is no leaderboard at none.duckdb yet: ")
    from leaderboard.store.database import open_store

    with open_store(tmp_path / "empty.duckdb", read_only=False):
        pass
    ran = lm_eval("runs", "--database", "empty.duckdb")
    assert (ran.code, ran.out) == (0, "") and (
        "empty.duckdb holds no runs: `lm_eval run ... --recipe NAME` and"
        " `lm_eval ingest PATH --database empty.duckdb` add some" in ran.err
    )


@pytest.mark.slow
def test_json_csv_and_markdown_hold_the_same_runs(made: Fabricator, lm_eval: Any) -> None:
    rows = json.loads(lm_eval("runs", "--json", "-L", 0).out)
    read = list(csv.DictReader(io.StringIO(lm_eval("runs", "--csv", "-L", 0).out)))
    table = lm_eval("runs", "--markdown", "-L", 0).out.splitlines()
    assert [row["run_id"] for row in rows] == [row["run_id"] for row in read]
    assert len(rows) == len(table) - 2 == 27
    failed = rows[0]
    assert (failed["status"], failed["recipe"], failed["started"]) == ("failed", "laser", "2026-04-01T00:00:00Z")
    assert "3 weights are NaN" in failed["failure"] and rows[1]["failure"] is None
    assert Path(rows[1]["path"]).is_dir() and rows[1]["tasks"] == ["sums"]


def test_deleting_takes_a_name_that_means_one_run_and_restoring_its_folder(
    made: Fabricator, lm_eval: Any, tmp_path: Path
) -> None:
    _, after = binary(60, 40, lost=9)
    made.run("svd:keep.rank=3", {"sums": Task({"acc": after})}, folder="again", spec_id="again")
    lm_eval("ingest")
    ran = lm_eval("runs", "delete", "tiny/svd:keep.rank=3", "--reason", "x")
    assert ran.code == 2 and "is ambiguous: it may be\n" in ran.err and ran.err.count("tiny/svd:keep.rank=3  ") == 2
    assert lm_eval("runs", "delete", "tiny/svd:keep.rank=4", "--reason", "x").code == 0
    (gone,) = json.loads(lm_eval("runs", "--deleted", "--json").out)
    assert gone["reason"] == "x" and lm_eval("runs", "list", "--deleted").out.startswith(gone["run_id"])
    ran = lm_eval("runs", "restore", os.path.relpath(gone["path"], tmp_path))
    assert ran.code == 0 and ran.out == f"{gone['run_id'][:12]} is on the board again\n"


@pytest.mark.slow
def test_what_delete_advises_takes_it_back_as_it_is_printed(made: Fabricator, lm_eval: Any, tmp_path: Path) -> None:
    for place in ("results/leaderboard.duckdb", "my board.duckdb"):
        named = () if place.startswith("results") else ("--database", place)
        lm_eval("ingest", "results", *named)
        before = lm_eval("runs", "-L", 0, *named).out
        ran = lm_eval("runs", "delete", "laser", "--reason", "x", *named)
        assert lm_eval("runs", "-L", 0, *named).out != before
        (advice,) = re.findall("`(lm_eval .*?)` takes this back", ran.out)
        assert lm_eval(*shlex.split(advice)[1:]).code == 0
        assert lm_eval("runs", "-L", 0, *named).out == before


@pytest.mark.slow
def test_a_run_whose_files_are_gone_comes_back_by_the_command_that_restore_prints(
    made: Fabricator, lm_eval: Any, tmp_path: Path
) -> None:
    lm_eval("runs", "delete", "laser", "--reason", "x")
    (gone,) = json.loads(lm_eval("runs", "--deleted", "--json").out)
    away = Path(gone["path"]).rename(tmp_path / "away")
    ran = lm_eval("runs", "restore", gone["run_id"])
    assert ran.code == 2 and f"{gone['run_id'][:12]} is allowed back, but {gone['path']}: " in ran.err
    away.rename(gone["path"])
    (advice,) = re.findall("once mended: `lm_eval (.*)`", ran.err)
    assert "1 added" in lm_eval(*shlex.split(advice)).out


@pytest.mark.slow
def test_the_comparison_with_a_control_that_is_advised_names_the_database(
    made: Fabricator, lm_eval: Any, tmp_path: Path
) -> None:
    """Else the noise that was measured there would be missing, and runs of two machines could not be compared."""
    before, after = ({"sums": Task({"acc": values})} for values in binary(60, 40, lost=9))
    laser = made.run("slim", after)
    control = made.run("random-subspace", before)
    receipt = json.loads((control / "receipt.json").read_text())
    receipt["recipe"] |= {"control": "random-subspace", "control_of": sha("slim")}
    (control / "receipt.json").write_text(json.dumps(receipt))
    (tmp_path / "results" / "leaderboard.duckdb").rename(tmp_path / "other.duckdb")
    lm_eval("ingest", "results", "--database", "other.duckdb")
    ran = lm_eval("compare", "tiny/baseline", laser, "--database", "other.duckdb")
    (advice,) = re.findall("^control   lm_eval (.*)$", ran.out, re.MULTILINE)
    assert advice.endswith(" --database other.duckdb") and lm_eval(*shlex.split(advice)).code == 0


@pytest.mark.slow
def test_a_database_before_the_action_counts(made: Fabricator, lm_eval: Any, tmp_path: Path) -> None:
    """argparse would let the action's default win, and the wrong leaderboard lose a run."""
    (tmp_path / "results" / "leaderboard.duckdb").rename(tmp_path / "other.duckdb")
    assert lm_eval("runs", "--database", "other.duckdb", "delete", "laser", "--reason", "x").code == 0
    assert lm_eval("baseline", "--database", "other.duckdb", "set", "tiny/baseline", "--reason", "x").code == 0
    assert "baseline on tiny" in lm_eval("baseline", "--database", "other.duckdb").out
    assert json.loads(lm_eval("baseline", "--database", "other.duckdb", "list", "--json").out)[0]["reason"] == "x"


@pytest.mark.slow
def test_compare_takes_names_and_forms(made: Fabricator, lm_eval: Any) -> None:
    named = lm_eval("compare", "tiny/baseline", "slim", "--json")
    (row,) = json.loads(named.out)
    assert (row["task"], row["verdict"], row["lost"], row["gained"]) == ("sums", "worse", 9, 0)
    assert isinstance(row["delta"], float) and row["p"] < 0.05 and row["control_run"] is None
    (read,) = csv.DictReader(io.StringIO(lm_eval("compare", "tiny/baseline", "slim", "--csv").out))
    assert float(read["delta"]) == row["delta"]
    head, _, line = lm_eval("compare", "tiny/baseline", "slim", "--markdown").out.splitlines()
    assert head.startswith("| task | recipe | metric |") and line.endswith("| worse |")
    # what only one of two runs has is no row, and is said beside the data
    told = lm_eval("compare", "gemma-2b/baseline", "slim", "--json")
    assert len(json.loads(told.out)) == 1 and "other" in told.err
    folders = [str(path.relative_to(made.root.parent)) for path in sorted(made.root.glob("tiny/[bs][al][si]*"))]
    assert lm_eval("compare", *folders, "--json") == named


def test_recipes_and_plans_come_in_forms(lm_eval: Any) -> None:
    rows = json.loads(lm_eval("recipes", "--json").out)
    assert {"laser", "svd"} <= {row["name"] for row in rows} and rows[0].keys() >= {"summary", "caveats", "needs"}
    assert lm_eval("recipes", "list", "--json").out == lm_eval("recipes", "--json", "list").out
    assert lm_eval("recipes", "list").out == lm_eval("recipes").out
    assert len(lm_eval("recipes", "--markdown").out.splitlines()) == len(rows) + 2
    plan = ("recipes", "plan", "laser", "--model_args", "pretrained=demo")
    (read,) = csv.DictReader(io.StringIO(lm_eval(*plan, "--csv").out))
    (group,) = json.loads(lm_eval(*plan, "--json").out)["matrices"]
    assert (read["what"], int(read["rank_after"])) == (group["what"], group["rank_after"])
    assert "- parameters 587,648 -> 522,752 (89.0%)" in lm_eval(*plan, "--markdown").out


@pytest.mark.slow
def test_the_table_of_a_run_is_all_of_standard_output(demo_run: Any, lm_eval: Any) -> None:
    ran = demo_run("--recipe", "laser", "--json")
    rows = json.loads(ran.out)
    assert [row["recipe"] for row in rows if row["primary"]] == ["baseline", "laser"] and "laser: done in" in ran.err
    noise = ("noise", "--model_args", "pretrained=demo", "--tasks", "int_mult", "--limit", 8, "--device", "cpu")
    (row,) = json.loads(lm_eval(*noise, "--batch_size", 2, "--json").out)
    assert (row["documents"], row["flips"], row["batch_size"], row["other_batch_size"]) == (8, 0, 2, 8)
