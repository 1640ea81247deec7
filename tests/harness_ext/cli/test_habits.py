"""Habits of git and gh: help, versions, the nearest word, and one table of exit codes that the commands keep."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import harness_ext
from harness_ext.cli import RecipesCLI, exit_codes
from harness_ext.cli.habits import PACKAGES, version_lines
from leaderboard.gate.decision import EXIT_CODES as GATE_CODES
from leaderboard.ingest import ingest
from tests.leaderboard.conftest import Fabricator, Task, binary

HEAVY = ("torch", "transformers", "datasets", "streamlit", "duckdb", "scipy")


def test_versions_are_told_and_nothing_is_loaded() -> None:
    code = (
        "import sys; sys.argv = ['lm_eval', '--version']\nfrom harness_ext.cli import main\n"
        "try: main()\nexcept SystemExit as stop: assert not stop.code\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *lines, loaded = done.stdout.splitlines()
    assert loaded == "[]" and lines == version_lines()
    told = dict(line.split() for line in lines)
    assert told["lm-eval-recipes"] == harness_ext.__version__ and told["torch"] == version("torch")
    assert set(told) == {*(name.replace("_", "-") for name in PACKAGES), "python"}


def test_a_package_that_is_missing_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness_ext.cli.habits.PACKAGES", ("lm-eval-recipes", "no_such_package"))
    assert version_lines()[1].split() == ["no-such-package", "not", "installed"]


def test_help_of_a_command_is_its_help(lm_eval: Callable[..., Any]) -> None:
    for words in ((), ("runs",), ("runs", "list"), ("run",), ("ls",)):
        asked, given = lm_eval("help", *words), lm_eval(*words, "--help")
        assert asked == given and asked.code == 0 and asked.out.startswith("usage: lm-eval")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["recipse"], "error: 'recipse' is not a command of lm_eval; did you mean recipes?"),
        (["recipse", "show", "laser"], "error: 'recipse' is not a command of lm_eval; did you mean recipes?"),
        (["help", "compar"], "error: 'compar' is not a command of lm_eval; did you mean compare?"),
        (["xyzzy"], "error: 'xyzzy' is not a command of lm_eval\n"),
        (["runs", "lst"], "; did you mean list?\nsee `lm_eval runs --help`"),
        (["runs", "list", "--modle", "x"], "--modle x; did you mean --model?\nsee `lm_eval runs list --help`"),
        (["run", "--recipee", "laser"], "--recipee laser; did you mean --recipe?\nsee `lm_eval run --help`"),
        (["--model", "hf", "--task", "x", "--model-args=a"], "did you mean --model_args?\nsee `lm_eval run --help`"),
        (["compare", "a"], "error: the following arguments are required: B\nsee `lm_eval compare --help`"),
        (["ls", "task"], "; did you mean tasks?\nsee `lm_eval ls --help`"),
        (["compare", "a", "b", "--json", "--csv"], "not allowed with argument --json"),
        (["run", "--model_args", "token=hf_abc", "--xyz", "token=hf_abc"], "--xyz token=***"),
    ],
)
def test_a_mistyped_word_is_told_in_a_line_with_its_neighbour(
    words: list[str], told: str, lm_eval: Callable[..., Any]
) -> None:
    ran = lm_eval(*words)
    assert ran.code == exit_codes.MISTAKE and ran.out == ""
    assert ran.err.startswith("error: ") and told in ran.err and ran.err.count("\n") <= 2 and "usage:" not in ran.err


def test_every_command_of_ours_has_a_line_and_most_have_examples() -> None:
    cli = RecipesCLI()
    lines = {action.dest: action.help for action in cli.commands._choices_actions}
    for name, parser in cli.commands.choices.items():
        text = lines[name] or ""
        assert text[0].isupper() and not text.endswith(".") and len(text) <= 70, name
        examples = (parser.epilog or "").count("  $ ") or (parser.epilog or "").count("lm-eval ")
        assert examples or name in ("doctor", "help"), name


# Exit codes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Runs and policies in the folder in which `lm_eval` stands, and a leaderboard of them."""
    made = Fabricator(tmp_path / "results")
    before, after = ({"acc": values} for values in binary(600, 400, lost=90))
    few, fewer = ({"acc": values} for values in binary(20, 10, lost=1))
    made.run("baseline", {"sums": Task(before), "few": Task(few)})
    made.run("same", {"sums": Task(before)})
    made.run("worse", {"sums": Task(after)})
    made.run("few", {"few": Task(fewer)})
    made.run("other", {"sums": Task(before, shots=3)})
    ingest([tmp_path / "results"], tmp_path / "results" / "leaderboard.duckdb")
    (tmp_path / "gate.yaml").write_text("others: gate\n")
    (tmp_path / "tree" / "deep").mkdir(parents=True)
    (tmp_path / "tree" / "deep" / "results_x.json").write_text("{}")
    (tmp_path / "sweep.yaml").write_text("name: s\nmodels: [{pretrained: demo}]\ntasks: [int_mult]\nrecipes: [laser]\n")
    (tmp_path / "results" / "sweeps" / "s").mkdir(parents=True)
    cell = {"key": "demo-laser-1", "model": "demo", "recipes": ["laser"]}
    (tmp_path / "results" / "sweeps" / "s" / "plan.json").write_text(json.dumps({"name": "s", "cells": [cell]}))
    return tmp_path


GATE = ("gate", "--policy", "gate.yaml", "--candidate")
CASES = [
    ("compare", ("compare", "tiny/baseline", "tiny/worse"), 0),
    ("compare", ("compare", "tiny/baseline", "tiny/wrse"), 2),
    ("compare", ("compare", "nothing", "results"), 2),
    ("gate", (*GATE, "tiny/same"), 0),
    ("gate", (*GATE, "tiny/worse"), 1),
    ("gate", (*GATE, "tiny/other"), 2),
    ("gate", (*GATE, "tiny/nothing"), 2),
    ("gate", ("gate", "--policy", "none.yaml", "--candidate", "tiny/same"), 2),
    ("gate", (*GATE, "tiny/few"), 3),
    ("ingest", ("ingest",), 0),
    ("ingest", ("ingest", "tree"), 0),
    ("ingest", ("ingest", "tree", "--strict"), 1),
    ("ingest", ("ingest", "results", "--strict"), 0),
    ("ingest", ("ingest", "nothing"), 2),
    ("ingest", ("ingest", "tree", "nothing", "--strict"), 2),
    ("ingest", ("ingest", "tree/deep/results_x.json"), 2),
    ("runs", ("runs",), 0),
    ("runs", ("runs", "list", "--model", "nothing"), 0),
    ("runs", ("runs", "list", "--limit", "-1"), 2),
    ("runs", ("runs", "delete", "tiny/nothing", "--reason", "x"), 2),
    ("runs", ("runs", "list", "--database", "none.duckdb"), 2),
    ("baseline", ("baseline",), 0),
    ("baseline", ("baseline", "set", "tiny/baseline", "--reason", " "), 2),
    ("recipes", ("recipes",), 0),
    ("recipes", ("recipes", "show", "lasr"), 2),
    ("recipes", ("recipes", "show", "--from", "tiny/nothing"), 2),
    ("export", ("export", "--recipe", "lasr", "--model_args", "pretrained=demo", "--out", "x"), 2),
    ("completion", ("completion", "bash"), 0),
    ("completion", ("completion", "csh"), 2),
    ("help", ("help",), 0),
    ("ls", ("ls", "nothing"), 2),
    ("sweep", ("sweep", "plan", "sweep.yaml"), 0),
    ("sweep", ("sweep", "status", "sweep.yaml"), 3),
    ("sweep", ("sweep", "plan", "none.yaml"), 2),
    ("run", ("run", "--model_args", "pretrained=demo", "--tasks", "int_mult", "--json"), 2),
    ("noise", ("noise", "--model_args", "pretrained=demo", "--tasks", "int_mult", "--batch_size", "auto"), 2),
]


@pytest.mark.slow
def test_the_commands_keep_the_table_of_exit_codes(folder: Path, lm_eval: Callable[..., Any]) -> None:
    for name, words, code in CASES:
        ran = lm_eval(*words)
        assert ran.code == code and "Traceback" not in ran.err, (words, ran)
        assert code in exit_codes.EVERY_COMMAND.keys() | exit_codes.EXIT_CODES.get(name, {}).keys(), words
        assert code != exit_codes.MISTAKE or "error: " in ran.err or "INCOMPARABLE" in ran.out, words


@pytest.mark.slow
def test_the_table_names_nothing_that_is_not_seen(folder: Path) -> None:
    # of the rest, lm-eval's own and a run's are seen elsewhere: test_task_index, test_bad_input, test_doctor,
    # test_sweep, test_audit
    seen = {(name, code) for name, _, code in CASES} | {("run", 0), ("ls", 0), ("validate", 0), ("validate", 1)}
    seen |= {("doctor", 0), ("doctor", 1), ("sweep", 1), ("audit", 0), ("audit", 2)}
    assert {(name, code) for name, codes in exit_codes.EXIT_CODES.items() for code in codes} <= seen
    assert set(exit_codes.EXIT_CODES) <= set(RecipesCLI().commands.choices)
    assert {*GATE_CODES.values()} == exit_codes.EXIT_CODES["gate"].keys()


@pytest.mark.slow
def test_a_path_that_is_refused_does_not_keep_the_others_out(folder: Path, lm_eval: Callable[..., Any]) -> None:
    ran = lm_eval("ingest", "nothing", "results", "tree", "--database", "new.duckdb")
    assert ran.code == 2 and ran.out.startswith("5 added, 0 known already, 2 rejected")
    assert "error: nothing: there is nothing at this path" in ran.err and "rejected: " in ran.err
    assert lm_eval("runs", "--json", "--database", "new.duckdb").out.count('"run_id"') == 5


@pytest.mark.slow
def test_files_that_a_rebuild_misses_are_an_error(folder: Path, lm_eval: Callable[..., Any]) -> None:
    (folder / "results" / "tiny" / "same-0123456789").rename(folder / "away")
    ran = lm_eval("ingest", "--rebuild")
    assert ran.code == 2 and "its files are gone: no longer on the board" in ran.err
    assert lm_eval("ingest", "--rebuild").code == 0
