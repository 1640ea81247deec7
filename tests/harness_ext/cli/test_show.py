"""`lm_eval show`: a model's board, or a run in detail; and what a run says at its end."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness_ext.cli.show import retained_lines
from leaderboard.board.cell import Cell
from leaderboard.board.retained_quality import CHOICES, MATHQA, MMLU_MATH, PERPLEXITIES
from leaderboard.ingest import ingest
from tests.leaderboard.conftest import Fabricator, Task, binary


@pytest.fixture
def made(tmp_path: Path) -> Fabricator:
    """Runs of two models, with a control, where `lm_eval` stands; the newest is of gemma."""
    made = Fabricator(tmp_path / "results")
    before, after = ({"sums": Task({"acc": values})} for values in binary(400, 200, lost=60))
    for model in ("tiny", "google/gemma-2b"):
        made.run("baseline", before, model=model, started="2026-03-01T00:00:00+00:00")
        made.run("laser", after, model=model, started="2026-03-02T00:00:00+00:00")
    made.run("svd", before, model="google/gemma-2b", started="2026-03-03T00:00:00+00:00")
    ingest([tmp_path / "results"], tmp_path / "results" / "leaderboard.duckdb")
    return made


@pytest.mark.slow
def test_the_newest_model_is_shown_unless_one_is_named(made: Fabricator, lm_eval: Any) -> None:
    shown = lm_eval("show")
    assert shown.code == 0 and shown.out.startswith("Model google/gemma-2b: 2 recipes on 1 task\n")
    assert re.search(r"^ *3 laser +\u25bc \u22120\.150 ", shown.out, re.MULTILINE)
    assert lm_eval("show", "gemma-2b").out == lm_eval("show", "google/gemma-2b").out == shown.out
    assert lm_eval("show", "gem").out == shown.out
    assert lm_eval("show", "tiny").out.startswith("Model tiny: 1 recipe on 1 task\n")
    assert "[95% interval]" not in shown.out
    assert "[95% interval]" in lm_eval("show", "--details").out


@pytest.mark.slow
def test_an_older_revision_is_shown_by_its_identity(made: Fabricator, lm_eval: Any, tmp_path: Path) -> None:
    """Of two models of one name the newest is shown, with what names the other."""
    receipt = json.loads((tmp_path / "results/google/gemma-2b/svd-0123456789/receipt.json").read_text())
    first = receipt["model"]["identity"][:8]
    other = {"model": receipt["model"] | {"identity": "f" * 64}}
    before, _ = ({"sums": Task({"acc": values})} for values in binary(400, 100))
    later = made.run("svd", before, model="google/gemma-2b", folder="z", started="2026-04-01T00:00:00+00:00")
    (later / "receipt.json").write_text(json.dumps(json.loads((later / "receipt.json").read_text()) | other))
    ingest([tmp_path / "results"], tmp_path / "results" / "leaderboard.duckdb")
    for asked in ((), ("gemma-2b",)):
        newest = lm_eval("show", *asked)
        told = (
            f'google/gemma-2b has 2 identities: the one with the newest run is shown; "gemma-2b ({first})" is another'
        )
        assert told in newest.err and newest.out.startswith("Model google/gemma-2b")
    assert "laser" not in newest.out
    older = lm_eval("show", f"gemma-2b ({first})")
    assert older.code == 0 and "laser" in older.out and "identities" not in older.err


@pytest.mark.slow
def test_a_run_is_shown_with_everything_about_it(made: Fabricator, lm_eval: Any) -> None:
    shown = lm_eval("show", "gemma-2b/laser")
    assert shown.code == 0 and "worse" in shown.out and "-0.1500 [" in shown.out
    assert not re.search(r"^ *\d=? svd", shown.out, re.MULTILINE)
    (cell,) = json.loads(lm_eval("show", "gemma-2b/laser", "--json").out)
    assert (cell["recipe"], cell["verdict"], cell["task"]) == ("laser", "worse", "sums")
    assert lm_eval("show", cell["run_id"][:10]).out == shown.out


@pytest.mark.slow
def test_what_is_not_there_is_told(made: Fabricator, lm_eval: Any, tmp_path: Path) -> None:
    missing = lm_eval("show", "lazer")
    assert missing.code == 2 and "lazer" in missing.err and missing.out == ""
    task = lm_eval("show", "--by", "sum")
    assert task.code == 2 and "did you mean 'sums'?" in task.err
    absent = lm_eval("show", "--database", tmp_path / "none.duckdb")
    assert absent.code == 2 and "none.duckdb" in absent.err


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_where_signs_cannot_be_written_there_is_ascii(
    made: Fabricator, lm_eval: Any, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    monkeypatch.setattr("harness_ext.cli.terminal._encoding", lambda: encoding)
    shown = lm_eval("show")
    assert shown.out.isascii() and re.search(r"^ *3 laser +v -0\.150 ", shown.out, re.MULTILINE)


@pytest.mark.slow
def test_the_last_hint_of_a_run_compares_a_recipe_with_its_control(demo_run: Any, lm_eval: Any) -> None:
    ran = demo_run("--recipe", "laser", "--control", "random-subspace")
    assert ran.code == 0 and ran.out.startswith("Model demo: 1 recipe on 1 task\n")
    last = ran.err.splitlines()[-1]
    (first, second) = re.fullmatch(r"control   lm_eval compare (\S+random-subspace\S+) (\S+laser-\S+)", last).groups()  # type: ignore[union-attr]
    assert lm_eval("compare", first, second).code == 0
    (shown,) = [line for line in ran.err.splitlines() if line.startswith("details   lm_eval show ")]
    assert lm_eval(*shown.split()[2:]).code == 0


@pytest.mark.slow
def test_without_a_control_the_last_hint_is_to_run_one(demo_run: Any, lm_eval: Any, tmp_path: Path) -> None:
    ran = demo_run("--recipe", "laser", "--details")
    assert "[95% interval]" in ran.out
    hint, command = ran.err.splitlines()[-2:]
    assert "control   none was run" in hint and command.endswith("--control random-subspace")
    words = command.split()
    again = lm_eval(*words[words.index("run") :])
    assert again.code == 0 and "laser: kept from" in again.err
    assert list(tmp_path.glob("results/demo/laser+random-subspace-*"))


@pytest.mark.slow
def test_a_control_that_cannot_be_run_is_told_at_the_end_and_not_asked_for_again(demo_run: Any) -> None:
    ran = demo_run("--recipe", "laser", "--control", "shuffled-labels")
    *_, left_out, hint, command = ran.err.splitlines()
    assert ran.code == 0 and left_out.startswith("left out  laser+shuffled-labels: not run, since the recipe learns")
    assert "none was run" in hint and "shuffled-labels" not in command and command.count("--control") == 1


def test_details_are_of_runs_with_recipes(lm_eval: Any) -> None:
    refused = lm_eval("run", "--model", "hf", "--tasks", "int_mult", "--details")
    assert refused.code == 2 and "--details is for the table of a run with --recipe" in refused.err


def test_a_command_of_several_processes_is_offered_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from harness_ext.cli import run_recipes
    from harness_ext.ranks.group import Group
    from harness_ext.ranks.launch import Launch

    config: Any = SimpleNamespace(command=("python", "-m", "harness_ext", "run", "--recipe", "svd"))
    assert run_recipes._with_control(config, "noise") == "python -m harness_ext run --recipe svd --control noise"
    monkeypatch.setattr(run_recipes, "current", lambda: Group(Launch(0, 2)))
    assert run_recipes._with_control(config, "noise") == (
        "torchrun --nproc_per_node 2 -m harness_ext run --recipe svd --control noise"
    )


def test_retained_quality_is_told_of_edited_runs_best_first() -> None:
    perplexities = [(task, "token_perplexity", 6.0, 12.0) for task in PERPLEXITIES]
    accuracies = [(task, "acc", 0.4, 0.2) for task in (*CHOICES, MATHQA, *MMLU_MATH)]
    parts = [*perplexities, *accuracies]
    halved = [Cell("m", "svd-llm", "run", *part[:2], "none", 100, *part[2:], "worse") for part in parts]
    kept = [replace(one, run_id="other", recipe="zero-sum", score=one.baseline_score) for one in halved]
    unedited = [replace(one, run_id="base", recipe="baseline", verdict="baseline") for one in kept]
    halved[0] = replace(halved[0], verdict="collapsed")
    headline, lines = retained_lines([*halved, *kept, *unedited], 100)
    assert "Q. Ret." in headline
    assert [line.split() for line in lines.splitlines()[1:]] == [
        [*["1.000"] * 6, "zero-sum", "-"],
        [*["0.500"] * 6, "svd-llm", "wikitext2_arena"],
    ]
    assert max(map(len, lines.splitlines())) <= 80
    assert retained_lines(halved[1:], 100) == []
