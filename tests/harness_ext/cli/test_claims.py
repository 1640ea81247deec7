"""`lm_eval claims`: what is listed, what a name means, and the way from a claim to a sentence."""

from __future__ import annotations

import json
import re
from collections import Counter
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from harness_ext.cli.claims import _facts_of
from leaderboard.board.claims import of_identity, recipe_for
from leaderboard.board.reported import SURE, headlines, published
from leaderboard.errors import LeaderboardError
from leaderboard.store.database import open_store
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
    assert "(arXiv:2405.13039, ACL 2024); shares (/96, at 96 %) are of the parameters " in in_one_line
    assert in_one_line.count(" are of the parameters ") == len({one.paper for one in published() if one.kept})
    assert call(monkeypatch, "list", "--json", "--model", "gpt-j", "--task", "counterfact") == 0
    rows = json.loads(capsys.readouterr().out)
    assert {(row["task"], row["model"]) for row in rows} == {("counterfact", "GPT-J")}
    assert {row["sure"] for row in rows} == {"paper"} and all(row["where"] for row in rows)


@pytest.mark.parametrize("form", ["--json", "--csv", "--markdown"])
def test_claims_without_a_cell_are_rows_too(
    form: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, form) == 0
    shown = capsys.readouterr().out
    if form == "--json":
        rows = json.loads(shown)
        told = [row for row in rows if row["sentence"]]
        assert [row["sentence"] for row in told] == [one.claim for one in headlines()]
        assert len(rows) == len(published()) + len(told) and len({tuple(row) for row in rows}) == 1
        assert {row[name] for row in told for name in ("claim", "before", "after", "kept")} == {None}
    else:
        assert "Up to 2.7 times smaller at comparable accuracy" in shown
        assert len(shown.splitlines()) == len(published()) + len(headlines()) + (2 if form == "--markdown" else 1)
    assert call(monkeypatch, form, "--model", "llama-7b") == 0
    assert "Up to 2.7 times" not in capsys.readouterr().out


def test_scores_are_told_as_they_are_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for form, before in (("text", " -> "), ("markdown", " | ")):
        assert call(monkeypatch, *([] if form == "text" else [f"--{form}"])) == 0
        shown = capsys.readouterr().out
        assert all(f"{before}{score}" in shown for score in ("52489", "105474", "471.83", "0.6078"))
    assert call(monkeypatch, "show", "svd-llm/llama-7b/wikitext2_2048/svd/60") == 0
    assert "token_perplexity 5.68 -> 52489\n" in capsys.readouterr().out


def test_a_bracket_says_nothing_twice() -> None:
    for one in headlines():
        words = re.findall(r"[\w.:']+", one.sentence().removesuffix(one.claim))
        pairs = Counter(pair for pair in pairwise(words) if pair != ("in", "the"))
        assert [pair for pair, count in pairs.items() if count > 1] == [], one.sentence()
        assert one.where in one.sentence()
    assert sum(SURE[one.sure] in one.sentence() for one in headlines()) > 10


@pytest.mark.parametrize("written", ["Llama 2", "llama-2", "LLAMA2", "llama_2", "meta llama/Llama 2"])
def test_blanks_dashes_and_case_are_alike(
    written: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "list", "--json", "--model", written) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["model"] for row in rows} == {"Llama-2-7B", "Llama-2-13B"}


@pytest.mark.parametrize(
    ("asked", "near"),
    [
        (("--model", "lamma 2 7b"), "Did you mean --model 'Llama-2-7B' or "),
        (("--task", "hellaswga"), "Did you mean --task 'hellaswag'?"),
        (("--paper", "basl"), "Did you mean --paper 'Basel' or "),
        (("--paper", "eigenprunning", "--model", "phi"), "Did you mean --paper 'Eigenpruning'"),
    ],
)
def test_near_names_are_offered(
    asked: tuple[str, ...], near: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *asked) == 0
    assert near in (shown := capsys.readouterr().out) and shown.startswith("No claim is like that. ")
    # each is the name of something, but of nothing together
    assert call(monkeypatch, "--model", "phi-2", "--paper", "lems") == 0
    assert "Did you mean" not in capsys.readouterr().out


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
    shown = capsys.readouterr().out
    assert f"caveats   of the recipe {recipe.name} as it is shipped (" in shown and f": {recipe.caveats}\n" in shown
    assert recipe.caveats


def test_caveats_of_the_shipped_recipe_name_what_the_run_sets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from harness_ext.runs.python_api import load_recipe

    for identity, keys in (
        ("laser/llama-2-7b/fever_claims", "matrices, layers, keep.rank_fraction"),
        ("compression-secondary/llama-7b/wikitext2_2048/swift-svd/80", "keep, calibration.task"),
        ("saes/llama-7b/wikitext2_2048/saes-svd/80", "keep.param_fraction, anchor, calibration.task"),
    ):
        assert call(monkeypatch, "show", identity) == 0
        assert f" as it is shipped (this run sets {keys} itself): " in capsys.readouterr().out
    for recipe in sorted({str(recipe_for(entry)) for entry in published()} - {"None"}):
        (told,) = (text for name, text in _facts_of(recipe, "") if name == "caveats")
        name, colon, changes = recipe.partition(":")
        assert bool(told) == bool(load_recipe(recipe).caveats)
        assert not told or told.startswith(
            f"of the recipe {name}{' as it is shipped (this run sets ' if colon else ':'}"
        )
        assert not told or all(f"{key}" in told for key in re.findall(r"(?:^|,)([a-z_.]+)=", changes))


def test_a_recipe_without_caveats_has_no_line_of_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "show", "lowrankarena-dense/llama-7b/boolq") == 0
    assert "caveats" not in capsys.readouterr().out
    assert call(monkeypatch, "show", "sfsd/llama-7b/boolq/llm-pruner/80") == 0
    assert "no recipe here stands" in (shown := capsys.readouterr().out) and "caveats" not in shown


def test_every_task_with_a_start_token_says_so() -> None:
    """LowRankArena's have none, whatever the tokenizer."""
    texts = {task for entry in published() for task in entry.tasks if task.startswith(("wikitext2_", "c4_"))}
    with_start = {"wikitext2_128", "wikitext2_2048", "wikitext2_4096", "c4_first_2000"}
    assert with_start == {task for task in texts if dict(_facts_of("svd", task))["windows"]}
    assert texts - with_start == {"wikitext2_arena", "c4_stream"}
    assert dict(_facts_of("svd", "wikitext2_4096"))["windows"].startswith("each begins with the start token where")
    assert dict(_facts_of("svd", "c4_first_2000"))["windows"].startswith("only the first begins with the start token")


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
    searched = "sfsd-perplexity-search/llama-7b/wikitext2_128/sfsd-perplexity-search/94"
    assert call(monkeypatch, "show", searched) == 0
    assert "the search is in sfsd-surgical (criterion=perplexity), but which matrices" in capsys.readouterr().out
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
    call(monkeypatch, "run", "sfsd-surgical/mistral-7b/boolq/sfsd-searched/94", "--smaller")
    assert asked["recipes"][0].startswith("sfsd-surgical:layers=[1:2],")
    # a group of tasks is asked as one, by its own number of examples
    call(monkeypatch, "run", "lowrankarena-dense/llama-7b/mmlu_math")
    assert asked["tasks"] == ["mmlu_math"]
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


def test_a_claim_is_measured_into_the_database_beside_its_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`claims` takes a database, and its `run` would have ignored it; what `show` advises goes where it looked."""
    claim = "eigenpruning/phi-2/int_mult"
    with open_store(Path("board") / "leaderboard.duckdb", read_only=False):
        pass
    named = ("--database", "board/leaderboard.duckdb")
    for words in (("run", claim, *named), (*named, "run", claim)):
        assert call(monkeypatch, *words) == 2
        assert "--output_path names their folder, here --output_path board\n" in capsys.readouterr().err
    assert call(monkeypatch, "show", claim, *named) == 0
    assert f"lm_eval claims run {claim} --output_path board\n" in capsys.readouterr().out
    assert call(monkeypatch, "run", claim, "--database", "board.duckdb") == 2
    assert "`lm_eval ingest` takes them into another one" in capsys.readouterr().err
