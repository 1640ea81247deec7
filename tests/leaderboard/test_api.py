"""The package from Python: boards, comparisons and gates as values and tables, whatever was imported before."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import pydoc
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import leaderboard
from leaderboard.board.board import board as board_cells
from leaderboard.errors import LeaderboardError, MissingDatabase
from leaderboard.store.database import open_store

COLUMNS = (
    *("model", "task", "recipe", "control", "metric", "n", "baseline_score", "score", "delta", "low", "high"),
    *("verdict", "p", "q", "lost", "gained", "run_id", "unpaired", "label", "scored"),
    *("documents_needed", "needed_for", "clipped_at", "primary", "chance"),
    *("control_run", "control_delta", "control_low", "control_high", "control_verdict"),
    *("control_p", "control_q", "control_unpaired", "control_clipped_at"),
)


@pytest.fixture
def runs(made: Any, kit: Any) -> dict[str, Path]:
    """A baseline, a recipe that is clearly better, and its control, which changes little."""
    before, after = kit.pair(200, 100, gained=60)
    random = kit.Task({"acc": kit.binary(200, 100, gained=1)[1]}, log_likelihoods=kit.likelihoods(200, 2))
    control = made.run("svd+random", {"sums": random})
    receipt = json.loads((control / "receipt.json").read_text())
    receipt["recipe"] |= {"control": "random", "control_of": kit.sha("svd")}
    (control / "receipt.json").write_text(json.dumps(receipt))
    return {
        "baseline": made.run("baseline", {"sums": before}),
        "svd": made.run("svd", {"sums": after}),
        "control": control,
    }


@pytest.mark.slow
def test_a_folder_without_a_database_and_with_one_give_one_board(runs: dict[str, Path], made: Any) -> None:
    board = leaderboard.board(made.root)
    assert not list(made.root.glob("*.duckdb"))
    database = made.root / "leaderboard.duckdb"
    leaderboard.ingest(made.root, database)
    assert leaderboard.board(made.root) == leaderboard.board(str(database), model="tiny") == board
    with leaderboard.open_store(database) as store:
        assert list(board.cells) == board_cells(store)


def test_the_frame(runs: dict[str, Path], made: Any) -> None:
    board = leaderboard.board(made.root)
    frame = board.to_frame()
    assert tuple(frame.columns) == COLUMNS
    rows = frame.set_index("recipe")
    assert rows["verdict"].to_dict() == {"baseline": "baseline", "svd": "better", "svd+random": "undecided"}
    svd = rows.loc["svd"]
    assert (svd["n"], svd["lost"], svd["gained"], svd["baseline_score"], svd["score"]) == (200, 0, 60, 0.5, 0.8)
    assert svd["delta"] == pytest.approx(0.3) and svd["low"] < 0.3 < svd["high"] and svd["q"] < 0.001
    assert svd["control_delta"] == pytest.approx(0.295) and svd["control_verdict"] == "better"
    assert svd["control_run"] == rows.loc["svd+random", "run_id"]
    assert svd["control_low"] < svd["control_delta"] < svd["control_high"]
    others = rows.drop(index="svd")
    assert others[[name for name in COLUMNS if name.startswith("control_")]].isna().all(axis=None)
    assert set(board.against_control) == {(svd["run_id"], "sums")}


def test_a_comparison(runs: dict[str, Path]) -> None:
    frame = leaderboard.compare(runs["svd"], str(runs["baseline"])).to_frame()
    assert tuple(frame.columns) == COLUMNS[:-9]
    assert frame[["recipe", "verdict", "lost"]].values.tolist() == [["baseline", "worse", 60]]


@pytest.mark.slow
def test_a_gate(runs: dict[str, Path], tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("margin: 0.02\nothers: gate\n")
    missing = tmp_path / "none.duckdb"
    better = leaderboard.gate(policy, runs["svd"], baselines=[runs["baseline"]], database=missing)
    worse = leaderboard.gate(str(policy), runs["baseline"], baselines=[runs["svd"]], database=missing)
    assert (better.verdict, better.exit_code, worse.verdict, worse.exit_code) == ("PASS", 0, "FAIL", 1)


@pytest.mark.slow
def test_what_is_not_there_is_said(runs: dict[str, Path], made: Any, tmp_path: Path) -> None:
    with pytest.raises(MissingDatabase, match="there is nothing at .*nowhere: give a results folder"):
        leaderboard.board(tmp_path / "nowhere")
    with pytest.raises(LeaderboardError, match="no model 'huge'.*it has tiny"):
        leaderboard.board(made.root, model="huge")
    (tmp_path / "empty").mkdir()
    with pytest.raises(LeaderboardError, match="holds no run"):
        leaderboard.board(tmp_path / "empty")
    for number in range(5):
        (tmp_path / "empty" / f"results_{number}.json").write_text("{")
    with pytest.raises(LeaderboardError, match="holds no run that can be read") as caught:
        leaderboard.board(tmp_path / "empty")
    assert str(caught.value).count(" is not JSON") == 3 and str(caught.value).endswith("; and 2 more)")


@pytest.mark.parametrize("name", ["board", "compare", "gate", "ingest"])
def test_what_can_be_called_shows_its_signature_and_docstring(name: str) -> None:
    import leaderboard.api

    function = getattr(importlib.import_module("leaderboard.ingest" if name == "ingest" else "leaderboard.api"), name)
    called = getattr(leaderboard, name)
    assert inspect.signature(called) == inspect.signature(function)
    shown = pydoc.plain(pydoc.render_doc(called))
    assert f"{name}(" in shown and function.__doc__.splitlines()[0] in shown


BEFORE = "import leaderboard\nboard = leaderboard.board\n"
SUBMODULES = (
    "import leaderboard.board.board, leaderboard.compare.judge, leaderboard.gate.report, leaderboard.ingest\n"
    "from leaderboard.board.board import board as cells\n"
    "import leaderboard.board.board as module\n"
    "assert module.board is cells is leaderboard.board.board.board\n"
)
CALLS = (
    "import sys\nimport leaderboard\nfrom leaderboard import board, compare, gate, ingest, open_store\n"
    "root, database, first, second = sys.argv[1:]\n"
    "assert board is leaderboard.board and len(board(root).cells) == 3\n"
    "assert len(compare(first, second).cells) == 1\n"
    "assert ingest(root, database).rejected == [] and ingest.ingest is not None\n"
    "with open_store(database) as store:\n    assert store.read_only\n"
    "try:\n    gate('no policy', first)\nexcept leaderboard.errors.LeaderboardError as error:\n"
    "    assert 'no policy' in str(error)\nelse:\n    raise AssertionError\n"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "program", [CALLS, SUBMODULES + CALLS, BEFORE + SUBMODULES + CALLS, CALLS + SUBMODULES + CALLS]
)
def test_calls_work_whatever_is_imported_before_and_after(
    runs: dict[str, Path], made: Any, tmp_path: Path, repository: Path, program: str
) -> None:
    arguments = [made.root, tmp_path / "board.duckdb", runs["baseline"], runs["svd"]]
    environment = os.environ | {"PYTHONPATH": str(repository)}
    subprocess.run([sys.executable, "-c", program, *map(str, arguments)], check=True, env=environment)


def test_importing_loads_nothing_heavy(repository: Path) -> None:
    program = (
        "import sys, leaderboard\nassert set(leaderboard.__all__) <= set(dir(leaderboard))\n"
        "assert not {'duckdb', 'numpy', 'pandas', 'pydantic', 'yaml'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ | {"PYTHONPATH": str(repository)})
    with pytest.raises(AttributeError, match="no attribute 'bord'"):
        leaderboard.bord  # noqa: B018


def test_the_readme_of_the_package(runs: dict[str, Path], made: Any, repository: Path) -> None:
    text = (repository / "leaderboard" / "README.md").read_text(encoding="utf-8")
    code = text.split("```python\n")[1].split("```")[0]
    policy = made.root / "policy.yaml"
    policy.write_text("margin: 0.02\nothers: gate\n")
    for written, real in {
        '"policy.yaml"': repr(str(policy)),
        '"results/leaderboard.duckdb"': repr(str(made.root / "leaderboard.duckdb")),
        '"results/demo/baseline-1"': repr(str(runs["baseline"])),
        '"results/demo/laser-2"': repr(str(runs["svd"])),
        '"results"': repr(str(made.root)),
    }.items():
        assert written in code
        code = code.replace(written, real)
    exec(code, names := {})
    assert len(names["board"].cells) == 3
    with open_store(made.root / "leaderboard.duckdb") as store:
        assert len(board_cells(store)) == 3


def test_the_package_needs_neither_torch_nor_the_harness() -> None:
    """Statically: no module of the leaderboard imports them."""
    import ast

    folder = Path(__file__).resolve().parents[2] / "leaderboard"
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            assert not {name.split(".")[0] for name in names} & {
                "torch",
                "transformers",
                "lm_eval",
                "harness_ext",
            }, path
