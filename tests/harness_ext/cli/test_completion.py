"""Shell completion: what the shells are told, and a real bash that asks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harness_ext.cli import RecipesCLI
from harness_ext.cli.completion import _words, answer, suggested
from harness_ext.recipe.recipe import shipped_names
from leaderboard.ingest import ingest
from tests.leaderboard.conftest import Fabricator, Task

HEAVY = ("torch", "transformers", "datasets", "streamlit", "scipy")


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a leaderboard of two models, in which the test stands."""
    made, task = Fabricator(tmp_path / "results"), {"sums": Task({"acc": [1.0, 0.0]})}
    for model in ("google/gemma-2b", "tiny"):
        made.run("baseline", task, model=model)
        made.run("laser:layers=3", task, model=model)
    made.run("$(touch owned)`touch owned`; x", task)
    made.run("esc\x1b[2Japed", task, folder="escaped")
    ingest([tmp_path / "results"], tmp_path / "results" / "leaderboard.duckdb")
    (tmp_path / "my policy.yaml").write_text("x")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def completed(*words: str) -> list[str]:
    return [suggestion.text for suggestion in suggested(RecipesCLI().parser, words)]


def test_commands_and_actions_are_completed() -> None:
    assert set(completed("")) == set(RecipesCLI().commands.choices)
    assert completed("ru") == ["run", "runs"] == completed("help", "ru")
    assert completed("runs", "") == ["list", "delete", "restore"] == completed("help", "runs", "")
    assert completed("ls", "") == ["tasks", "groups", "subtasks", "tags"]  # lm-eval's own
    assert completed("completion", "") == ["bash", "zsh", "fish"]
    assert completed("no-such-command", "") == []


def test_every_flag_of_every_command_is_completed() -> None:
    parser = RecipesCLI().parser
    for name, command in RecipesCLI().commands.choices.items():
        if name == "help":  # what follows is completed as if it were not there
            continue
        assert set(completed(name, "-")) == set(command._option_string_actions), name
    assert completed("run", "--model_a") == ["--model_args"] == completed("--model", "hf", "--model_a")
    assert "--version" in [suggestion.text for suggestion in suggested(parser, ["--v"])]
    assert completed("runs", "list", "--sta") == ["--status"]


def test_values_of_flags_are_completed() -> None:
    assert set(completed("run", "--recipe", "")) == set(shipped_names())
    assert completed("run", "--recipe", "laser", "svd") == [  # it takes several
        name for name in shipped_names() if name.startswith("svd")
    ]
    assert completed("run", "--recipe=laser-r") == ["--recipe=laser-rmt"]
    assert "laser-rmt" in completed("recipes", "plan", "las") and "laser-rmt" in completed("recipes", "show", "las")
    assert "random-subspace" in completed("run", "--recipe", "laser", "--control", "")
    assert completed("run", "--tasks", "int_sum,int_mult_cl") == ["int_sum,int_mult_clean"]
    assert completed("runs", "list", "--status", "") == ["complete", "failed"]
    assert completed("export", "--format", "fa") == ["factored"]
    assert completed("run", "--model", "hf-") == ["hf-recipe"]
    assert completed("run", "--batch_size", "") == []


@pytest.mark.slow
def test_runs_are_completed_part_by_part(results: Path) -> None:
    assert {"gemma-2b/", "google/", "tiny/"} <= set(completed("compare", ""))
    assert completed("compare", "goo") == ["google/"] and completed("compare", "google/") == ["google/gemma-2b/"]
    names = ["tiny/baseline", "tiny/laser:layers=3"]
    assert set(names) <= set(completed("compare", "tiny/"))
    assert completed("compare", "tiny/baseline", "gemma-2b/l") == ["gemma-2b/laser:layers=3"]
    for words in (("baseline", "set"), ("runs", "delete"), ("gate", "--candidate"), ("recipes", "show", "--from")):
        assert completed(*words, "tiny/las") == names[1:], words
    assert completed("gate", "--baseline", "b") == ["base", "blessed"]
    for command in ("show", "report"):
        assert {"gemma-2b", "gemma-2b/"} <= set(completed(command, "gem")), command
    assert completed("show", "--by", "int_mult_cl") == ["int_mult_clean"]
    assert completed("runs", "list", "--model", "g") == ["gemma-2b", "google/gemma-2b"]
    assert completed("runs", "list", "--recipe", "las") == ["laser:layers=3"]


@pytest.mark.slow
def test_an_id_is_completed_and_another_database_is_asked(results: Path) -> None:
    from leaderboard.store.database import open_store
    from leaderboard.store.naming import known_runs

    with open_store(Path("results/leaderboard.duckdb")) as store:
        run_id = known_runs(store)[0].run_id
    assert run_id[:12] in completed("compare", run_id[:5])
    os.rename("results/leaderboard.duckdb", "other.duckdb")
    assert completed("compare", "tiny/las") == []
    assert completed("compare", "--database", "other.duckdb", "tiny/las") == ["tiny/laser:layers=3"]
    Path("broken.duckdb").write_text("no database")
    assert completed("compare", "--database", "broken.duckdb", "tiny/las") == []


@pytest.mark.slow
def test_files_are_completed(results: Path) -> None:
    assert completed("gate", "--policy", "my") == ["my policy.yaml"]
    assert completed("ingest", "res") == ["results/"] == completed("ingest", "results", "res")
    assert completed("compare", "results/ti") == ["results/tiny/"]
    assert completed("ingest", "no/such/fol") == [] == completed("ingest", "\0")


@pytest.mark.slow
def test_sweeps_are_completed(results: Path) -> None:
    assert completed("sweep", "") == ["plan", "run", "status", "retry"]
    for action in ("plan", "run", "retry"):
        assert completed("sweep", action, "--on", "") == ["local", "ray", "slurm"], action
    assert completed("sweep", "run", "x.yaml", "--on", "s") == ["slurm"] and completed("sweep", "run", "--on=r") == [
        "--on=ray"
    ]
    # All YAML files where none is a sweep; folders may hold some.
    assert completed("sweep", "run", "") == ["results/", "my policy.yaml"] == completed("sweep", "status", "")
    Path("lowrank.yaml").write_text("name: s\nmodels: []\ntasks: []\nrecipes: []\n")
    os.mkfifo("pipe.yaml")
    assert completed("sweep", "run", "") == ["results/", "lowrank.yaml"] == completed("sweep", "retry", "")
    assert completed("sweep", "run", "lowrank.yaml", "") == [] == completed("sweep", "retry", "lowrank.yaml", "")


@pytest.mark.slow
def test_names_that_cannot_be_typed_are_left_out(results: Path) -> None:
    assert not any("\x1b" in name for name in completed("compare", "tiny/"))


@pytest.mark.parametrize(
    ("line", "words", "quote"),
    [
        ("lm_eval compare a", ["lm_eval", "compare", "a"], ""),
        ("lm_eval compare ", ["lm_eval", "compare", ""], ""),
        ("lm_eval 'a b", ["lm_eval", "a b"], "'"),
        ('lm_eval "a\'b"c', ["lm_eval", "a'bc"], ""),
        (r"lm_eval a\ b\\", ["lm_eval", "a b\\"], ""),
        ("lm_eval a\\", ["lm_eval", "a"], ""),
        ("lm_eval ''  x ", ["lm_eval", "", "x", ""], ""),
    ],
)
def test_a_line_is_read_as_a_shell_reads_it(line: str, words: list[str], quote: str) -> None:
    assert _words(line) == (words, quote)


def test_other_shells_are_told_what_a_word_is(capsys: pytest.CaptureFixture[str]) -> None:
    answer(RecipesCLI().parser, ["fish", "doc"])
    assert capsys.readouterr().out == "doctor\tCheck the installation\n"


ASK = r"""
set -u
source "$1"
shift
for line in "$@"; do
    COMP_LINE="$line" COMP_POINT=${#line} COMPREPLY=()
    COMP_WORDS=($line) COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    _lm_eval_complete lm_eval
    printf '%s\n' "${COMPREPLY[@]-}" "."
done
complete -p lm_eval lm-eval lm-eval-recipes
"""


@pytest.fixture
def bash(results: Path, tmp_path: Path) -> Callable[..., list[list[str]]]:
    """Have a bash complete lines; what it answers to each."""
    program = tmp_path / "bin" / "lm_eval"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m harness_ext "$@"\n')
    program.chmod(0o755)
    script = tmp_path / "completion.bash"
    root = Path(__file__).resolve().parents[3]
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": str(root)}
    script.write_bytes(
        subprocess.run([program, "completion", "bash"], capture_output=True, check=True, env=environment).stdout
    )

    def ask(*lines: str) -> list[list[str]]:
        done = subprocess.run(
            ["bash", "--norc", "-c", ASK, "bash", script, *lines],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        )
        assert done.stderr == "" and done.stdout.count("complete -F _lm_eval_complete") == 3
        return [
            part.split() if "\\" not in part else part.strip().split("\n") for part in done.stdout.split("\n.\n")[:-1]
        ]

    return ask


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes(bash: Callable[..., list[list[str]]], results: Path) -> None:
    commands, recipes, run, colon, quoted, space, hostile = bash(
        "lm_eval ru",
        "lm_eval run --recipe laser-r",
        "lm_eval compare tiny/base",
        "lm_eval compare tiny/laser:lay",
        "lm_eval compare 'tiny/las",
        "lm_eval gate --policy my",
        "lm_eval compare tiny/$",
    )
    assert (commands, recipes, run) == (["run", "runs"], ["laser-rmt"], ["tiny/baseline"])
    # bash parts words at colons, and replaces only what stands behind the last one
    assert colon == ["layers=3"] and quoted == ["tiny/laser:layers=3"] and space == ["my\\ policy.yaml"]
    assert hostile == ["tiny/\\$\\(touch\\ owned\\)\\`touch\\ owned\\`\\;\\ x"] and not Path("owned").exists()


@pytest.mark.slow
def test_it_is_quick_and_loads_nothing_heavy(results: Path) -> None:
    code = (
        "import sys; sys.argv = ['lm_eval', '__complete', 'zsh', 'compare', 'tiny/']\n"
        "from harness_ext.cli import main\nmain()\n"
        f"print('loaded:', [name for name in {HEAVY} if name in sys.modules])"
    )
    before = os.times()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    after = os.times()
    assert "tiny/baseline" in done.stdout and done.stdout.endswith("loaded: []\n")
    # of the processor: others on the machine do not count
    assert after.children_user + after.children_system - before.children_user - before.children_system < 1
