"""`lm_eval claims`: what is listed, what a name means, and the way from a claim to a sentence."""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from leaderboard.board.claims import of_identity, recipe_for
from leaderboard.board.reported import headlines, published
from leaderboard.errors import LeaderboardError
from tests.harness_ext.cli.calling import called

call = partial(called, "claims")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_claim_is_listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert call(monkeypatch) == 0
    shown = capsys.readouterr().out
    assert all(entry.identity in shown for entry in published())
    assert "lems/mistral-7b/wikitext2_2048/fwsvd" in shown and "5.25 -> 9.47 at 90 %" in shown
    (line,) = (line for line in shown.splitlines() if "lems/mistral-7b/wikitext2_2048/svd-llm/90" in line)
    assert line.endswith("5.25 -> 6.46"), "its name ends in the share"
    in_one_line = " ".join(shown.split())
    assert all(" ".join(one.claim.split()) in in_one_line for one in headlines())
    assert call(monkeypatch, "list", "--json", "--model", "gpt-j", "--task", "counterfact") == 0
    rows = json.loads(capsys.readouterr().out)
    assert {(row["task"], row["model"]) for row in rows} == {("counterfact", "GPT-J")}
    assert {row["sure"] for row in rows} == {"paper"} and all(row["where"] for row in rows)


@pytest.mark.parametrize("width", [80, 120])
def test_the_list_fits_the_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert call(monkeypatch, "--model", "llama-7b") == 0
    lines = capsys.readouterr().out.splitlines()
    # a name is in one piece, whatever its length
    assert [line for line in lines if len(line) > width and len(line.split()) > 1] == []
    assert any(line.startswith("      ") and " -> " in line for line in lines)


def test_no_two_rows_have_one_name() -> None:
    names = Counter((entry.identity, entry.metric) for entry in published())
    assert [name for name, count in names.items() if count > 1] == []


def test_every_recipe_of_a_row_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness_ext.runs.python_api import load_recipe

    for recipe in {recipe_for(entry) for entry in published()} - {None}:
        assert load_recipe(str(recipe)).steps or recipe == "baseline"


def test_rows_of_one_method_at_other_budgets_are_measured_by_other_recipes() -> None:
    rows = {entry.identity: entry for entry in published() if recipe_for(entry) is not None}
    measured = Counter(
        (identity.partition("/")[0], entry.model, entry.task, entry.method, recipe_for(entry))
        for identity, entry in rows.items()
    )
    assert [row for row, count in measured.items() if count > 1] == []


def test_what_is_learned_for_running_text_is_learned_from_texts_that_are_named() -> None:
    """A task of texts without answers is learned from only where a recipe names it."""
    from harness_ext.runs.python_api import load_recipe

    texts = {entry for entry in published() if entry.task.startswith(("wikitext2_", "c4_")) and recipe_for(entry)}
    sources = {
        (entry.identity, step.calibration.task)
        for entry in texts
        for step in load_recipe(str(recipe_for(entry))).steps
        if step.calibration is not None
    }
    assert len(sources) > 50
    assert {source for source in sources if "wikitext2_" not in str(source[1])} == set()


def test_sfsd_learns_from_the_papers_six_tasks_whichever_is_scored() -> None:
    from harness_ext.lm_eval_adapter.task_index import task_manager
    from harness_ext.runs.python_api import load_recipe

    rows = [one for one in published() if one.identity.startswith("sfsd/") and one.method == "feature space"]
    learned = {load_recipe(str(recipe_for(row))).steps[0].calibration for row in rows if row.asked}
    (used,) = learned
    assert used is not None and used.samples == 512 and used.split == "train"
    assert set(used.tasks) == {task for row in rows if row.asked for task in row.tasks} and len(used.tasks) == 6
    assert set(used.tasks) <= set(task_manager().all_tasks)


def test_a_beginning_is_enough_where_one_claim_has_it() -> None:
    assert {entry.task for entry in of_identity("eigenpr")} == {"int_mult"}
    with pytest.raises(LeaderboardError, match=r"begins 8 claims: laser/gpt-j/counterfact"):
        of_identity("laser/gpt-j")
    with pytest.raises(LeaderboardError, match=r"did you mean eigenpruning/phi-2/int_mult"):
        of_identity("eigenpruning/phi2/int_mult")


@pytest.mark.parametrize("asked", [("list",), ("list", "--json"), (), ("show", "eigenpruning/phi-2/int_mult")])
def test_a_database_that_is_named_and_not_there_is_told(
    asked: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *asked, "--database", "nosuch.duckdb") == 2
    said = capsys.readouterr()
    assert "there is no leaderboard at nosuch.duckdb yet" in said.err and said.out == ""
    # the one that nobody has made yet is nothing to tell
    assert call(monkeypatch, *asked) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["", " "])
@pytest.mark.parametrize("action", ["show", "run"])
def test_a_claim_must_be_named(
    action: str, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, action, name) == 2
    said = capsys.readouterr().err
    assert "no claim is named: give PAPER/MODEL/TASK or its beginning; `lm_eval claims` lists them" in said


def test_a_claim_is_shown_with_where_it_stands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "show", "svd-llm/llama-7b/wikitext2_2048/asvd/80") == 0
    shown = capsys.readouterr().out
    for part in (
        "Table 1",
        "read in the paper",
        "5.68 -> 11.14",
        "80% of the parameters",
        "lm_eval claims run svd-llm/",
    ):
        assert part in shown


def test_what_a_claim_was_chosen_on_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "show", "laser/gpt-j/counterfact") == 0
    assert "chosen on the first 20 % of the data, which the run here scores too" in capsys.readouterr().out
    assert call(monkeypatch, "show", "laser-text/gpt-j/counterfact") == 0
    shown = capsys.readouterr().out
    assert "learns    from 160 of the documents of counterfact that would be scored, which are out of every" in shown
    assert "chosen on " not in shown.replace("MLP, chosen on", "")


@pytest.mark.parametrize(
    "identity",
    [
        "lems/mistral-7b/wikitext2_2048/kfac-svd/80",
        "lems/mistral-7b/wikitext2_2048/gfwsvd",
        "svd-llm/llama-7b/wikitext2_2048/asvd/80",
    ],
)
def test_a_claim_is_shown_with_the_caveats_of_its_recipe(
    identity: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from harness_ext.runs.python_api import load_recipe

    recipe = load_recipe(str(recipe_for(of_identity(identity)[0])))
    assert call(monkeypatch, "show", identity) == 0
    assert f"caveats   of the recipe {recipe.name}: {recipe.caveats}\n" in capsys.readouterr().out
    assert recipe.caveats


def test_a_recipe_without_caveats_has_no_line_of_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "show", "lowrankarena-dense/llama-7b/boolq") == 0
    assert "caveats" not in capsys.readouterr().out
    assert call(monkeypatch, "show", "sfsd/llama-7b/boolq/llm-pruner/80") == 0
    assert "no recipe here stands" in (shown := capsys.readouterr().out) and "caveats" not in shown


def test_how_windows_begin_is_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "show", "svd-llm/llama-7b/wikitext2_2048/svd/80") == 0
    assert "windows   each begins with the start token where" in (shown := capsys.readouterr().out)
    assert "add_bos_token=False in --model_args leaves it out" in shown
    # LowRankArena's have none, whatever the tokenizer
    assert call(monkeypatch, "show", "lowrankarena/llama-7b/wikitext2_arena/zs-svd") == 0
    assert "windows   " not in (shown := capsys.readouterr().out) and "without a BOS" in shown


def test_a_filter_of_papers_looks_into_methods_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "list", "--paper", "aa-svd") == 0
    assert "lowrankarena/llama-7b/wikitext2_arena/aa-svd" in capsys.readouterr().out
    assert call(monkeypatch, "list", "--paper", "nosuch") == 0
    assert "`lm_eval claims` lists all" in capsys.readouterr().out


def test_what_cannot_be_measured_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "run", "sfsd/llama-7b/boolq/llm-pruner/80") == 2
    assert "no recipe here stands for LLM-Pruner" in capsys.readouterr().err
    unnamed_tasks = "modegpt/llama-2-7b/mean_accuracy/modegpt"
    assert call(monkeypatch, "run", unnamed_tasks) == 2
    assert "no task here asks what mean_accuracy does" in capsys.readouterr().err
    assert call(monkeypatch, "show", unnamed_tasks) == 0
    assert "0.69 -> 0.6078" in (shown := capsys.readouterr().out) and "no task here asks" in shown


def test_a_smaller_form_runs_and_settles_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("run", "eigenpruning/phi-2/int_mult", "--smaller", "--limit", "20", "--device", "cpu")
    assert call(monkeypatch, *arguments) == 0
    said = capsys.readouterr()
    last = said.out.strip().splitlines()[-1]
    assert (
        "run       lm_eval run --model hf --model_args pretrained=demo --tasks int_mult --recipe"
        " eigenprune-released:calibration.samples=320 --control random-subspace --limit 20 --device cpu\n"
    ) in said.out
    assert "lm_eval show --database results/leaderboard.duckdb results/demo/eigenprune-released" in said.err
    assert last.startswith(
        "acc: eigenprune-released:calibration.samples=320 on first 20 of 80 documents: reported 0.1375 -> 0.975,"
        " +0.8375; "
    )
    assert last.endswith("so the claim is as open as before")
    assert "random-subspace" in last
    # a smaller form stands beside no claim afterwards
    assert call(monkeypatch, "show", "eigenpruning/phi-2/int_mult") == 0
    assert "measured" not in capsys.readouterr().out


def test_the_command_that_is_told_has_every_option_and_no_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(**given: Any) -> Any:
        raise LeaderboardError("stopped here")

    monkeypatch.setattr("harness_ext.runs.python_api.run", stop)
    given = ("--model_args", "token=hf_abcdefghijklmnopqrstuvwxyz,dtype=float16", "--limit", "1234567", "--seed", "3")
    assert call(monkeypatch, "run", "laser/gpt-j/counterfact", *given) == 2
    (told,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("run "))
    assert "--limit 1234567" in told and "--seed 3" in told and "dtype=float16" in told
    assert "abcdefgh" not in told


def test_layers_keep_their_depth(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: dict[str, Any] = {}

    def note(**given: Any) -> Any:
        asked.clear()
        asked.update(given)
        raise LeaderboardError("stopped here")

    monkeypatch.setattr("harness_ext.runs.python_api.run", note)
    call(monkeypatch, "run", "laser/gpt-j/counterfact", "--smaller")
    # layer 27 of 28 is the last; the embedded model has two
    assert asked["recipes"] == ["laser:matrices=[up_proj],layers=[1],keep.rank_fraction=0.01"]
    assert asked["model_args"] == {"pretrained": "demo"} and asked["controls"] == ["random-subspace"]
    call(monkeypatch, "run", "laser/gpt-j/counterfact", "--model_args", "dtype=float16", "--control", "noise")
    assert asked["model_args"] == {"pretrained": "EleutherAI/gpt-j-6b", "dtype": "float16"}
    assert asked["recipes"] == ["laser:matrices=[up_proj],layers=[27],keep.rank_fraction=0.01"]
    assert asked["controls"] == ["noise"] and "limit" not in asked
    # a row of the unedited model has no control
    call(monkeypatch, "run", "lowrankarena-dense/llama-7b/boolq")
    assert asked["recipes"] == ["baseline"] and asked["controls"] == []


@pytest.mark.slow
def test_a_search_on_scored_documents_is_judged_on_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    composed = of_identity("laser-text/gpt-j/counterfact")[0]
    recipe = "laser-compose:calibration.split=test,calibration.samples=20"
    # the embedded model has one of 60 right
    row = composed._replace(task="int_mult", run=recipe, before=1 / 60)
    monkeypatch.setattr("leaderboard.board.claims.of_identity", lambda name: [row])
    # the embedded model under the claim's name
    monkeypatch.setattr("leaderboard.board.claims.is_of_model", lambda entry, model: True)
    assert call(monkeypatch, "run", row.identity, "--model_args", "pretrained=demo", "--device", "cpu") == 0
    told = capsys.readouterr().out
    assert "learns    from 20 of the documents of int_mult that would be scored, which are out of every score" in told
    assert " on 60 of 80 documents, without those that it learned from or was chosen on: reported" in told
    assert "the claim is " in told and "the claim is incomparable" not in told
    places = list(tmp_path.glob("results/demo/*/receipt.json"))
    chosen_on = {
        hashed
        for path in places
        for used in json.loads(path.read_text()).get("calibration", ())
        for hashed in used["documents"]
    }
    scored = {
        json.loads(line)["doc_hash"]
        for path in tmp_path.glob("results/demo/*/samples_*.jsonl")
        for line in path.read_text().splitlines()
    }
    assert (len(places), len(chosen_on), len(scored)) == (3, 20, 60) and not chosen_on & scored


@pytest.mark.slow
def test_an_unedited_model_is_measured_as_a_level(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    phi = of_identity("eigenpruning/phi-2/int_mult")[0]
    dense = phi._replace(method="dense", recipes=("baseline",), run="baseline", before=0.9, after=0.9)
    monkeypatch.setattr("leaderboard.board.claims.of_identity", lambda name: [dense])
    # the embedded model under the claim's name
    monkeypatch.setattr("leaderboard.board.claims.is_of_model", lambda entry, model: True)
    asked = ("run", dense.identity, "--model_args", "pretrained=demo", "--device", "cpu", "--limit", "20")
    assert call(monkeypatch, *asked) == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith("acc: baseline on first 20 of 80 documents: reported 0.9; measured ")
    assert last.endswith("the claim is incomparable: only first 20 of 80 documents were asked")
