"""Edited or not, by what lm-eval's own file says; and what that means on the board."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from leaderboard.board.board import board
from leaderboard.gate.runs import is_unedited
from leaderboard.ingest import ingest
from leaderboard.readers import reader, results
from leaderboard.readers.discovery import Candidate, find_runs
from leaderboard.readers.edited import NOT_BASELINE, PLAIN_RECIPE, Editedness, of_results
from leaderboard.readers.reader import read_runs
from leaderboard.readers.records import Run
from leaderboard.store.database import open_store
from tests.leaderboard.store.earlier import with_former_id

LASER = {"recipe": "laser:keep=0.5", "recipe_id": "0c5c", "weights_digest": "25af"}
NO_STEPS = "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945"


def only(path: Path) -> Run:
    """The one run at a path."""
    (found,) = find_runs(path)
    assert isinstance(found, Candidate)
    (run,) = read_runs(found)
    return run


@pytest.mark.parametrize(
    ("config", "arguments", "label"),
    [
        (LASER, {"pretrained": "x"}, "laser:keep=0.5"),
        ({}, {"pretrained": "x", "recipe": "laser"}, "laser"),
        ({"recipe_id": "0c5ce0b018d303543c9f"}, {}, "recipe 0c5ce0b018d3"),
        ({"recipe": "baseline", "recipe_id": "0c5c"}, {}, NOT_BASELINE),
        ({}, {"peft": "org/adapter"}, "plain lm_eval, peft=adapter"),
        ({"peft_sha": "abc"}, {}, "plain lm_eval, peft_sha=abc"),
        ({}, {"delta": "d"}, "plain lm_eval, delta=d"),
        ({}, {"lora_local_path": "/l/r"}, "plain lm_eval, lora_local_path=r"),
        ({}, {"load_in_4bit": "True"}, "plain lm_eval, load_in_4bit=True"),
        ({}, {"load_in_8bit": True}, "plain lm_eval, load_in_8bit=true"),
        ({}, {"steer_path": "/v/a4.pt"}, "plain lm_eval, steer_path=a4.pt"),
    ],
)
def test_edited(config: dict[str, Any], arguments: dict[str, Any], label: str) -> None:
    found = of_results({"model": "hf", **config}, arguments, {})
    assert found.edited is True and found.recipe_label == label


@pytest.mark.parametrize(
    ("config", "arguments"),
    [
        ({}, {"pretrained": "x", "dtype": "bfloat16", "trust_remote_code": "True"}),
        ({}, {"recipe": "baseline"}),
        ({}, {"recipe": "None"}),
        ({"recipe": "baseline", "recipe_id": NO_STEPS}, {}),
        ({"recipe": None, "recipe_id": None}, {"peft": "", "load_in_8bit": "False", "autogptq": False}),
    ],
)
def test_unedited(config: dict[str, Any], arguments: dict[str, Any]) -> None:
    assert of_results({"model": "hf-recipe", **config}, arguments, {}) == (False, *of_results({}, {}, {})[1:])


@pytest.mark.parametrize(
    ("config", "arguments", "unknown", "words"),
    [
        ({"model": "vllm"}, {"quantization": "fp8"}, {}, "quantization=fp8"),
        ({"model": "hf"}, {"gguf_file": "a.gguf"}, {}, "gguf_file=a.gguf"),
        ({"model": "hf"}, {}, {"num_experts_to_prune": 2}, "num_experts_to_prune=2"),
    ],
)
def test_not_known(config: dict[str, Any], arguments: dict[str, Any], unknown: dict[str, Any], words: str) -> None:
    found = of_results(config, arguments, unknown)
    assert (found.edited, found.recipe_name, found.recipe_label) == (None, PLAIN_RECIPE, f"{PLAIN_RECIPE}, {words}")
    assert found.warnings == (f"its results file says {words}: whether the model was edited is not known",)


def test_a_key_that_says_no_is_no_doubt() -> None:
    assert of_results({"model": "hf"}, {}, {"num_experts_to_prune": 0}).edited is False


@pytest.mark.parametrize("edited_first", [True, False])
def test_the_unedited_run_is_the_baseline_whichever_came_first(made: Any, kit: Any, edited_first: bool) -> None:
    before, after = kit.pair(200, 100, lost=60)
    edited = made.plain({"sums": after}, folder="edited", config=LASER)
    plain = made.plain({"sums": before}, folder="plain")
    for file, moment in ((edited, 2 - edited_first), (plain, 1 + edited_first)):
        file.write_text(json.dumps({**json.loads(file.read_text()), "date": float(moment)}))
    cells = {cell.recipe: cell for cell in made.board()}
    assert cells[PLAIN_RECIPE].verdict == "baseline" and cells["laser:keep=0.5"].verdict == "worse"
    assert not is_unedited(only(edited)) and is_unedited(only(plain))


def test_an_edited_run_alone_has_no_baseline(made: Any, kit: Any) -> None:
    made.plain({"sums": kit.pair(20, 10)[0]}, config=LASER)
    (cell,) = made.board()
    assert cell.verdict == "incomparable" and cell.notes == ("no baseline run of this model has this task",)


def test_a_run_folder_without_its_receipt_is_what_it_was(made: Any, kit: Any) -> None:
    folder = made.run("laser", {"sums": kit.pair(20, 10)[1]}, config=LASER)
    (folder / "receipt.json").unlink()
    run = only(folder)
    assert (run.origin, run.edited) == ("plain", True)
    assert (run.variant.recipe_name, run.variant.recipe_id, run.variant.digest_after) == ("laser", "0c5c", "25af")


def test_a_run_that_may_be_edited_comes_after_one_that_is_not(made: Any, kit: Any) -> None:
    before, after = kit.pair(200, 100, lost=60)
    doubtful = made.plain({"sums": after}, folder="a", config={"model": "vllm"})
    data = json.loads(doubtful.read_text())
    doubtful.write_text(json.dumps({**data, "date": 1.0, "num_experts_to_prune": 3}))
    made.plain({"sums": before}, folder="b")
    found = {cell.score: cell for cell in made.board()}
    assert (found[0.5].verdict, found[0.2].verdict) == ("baseline", "worse")
    assert any("num_experts_to_prune=3: whether the model was edited is not known" in note for note in found[0.2].notes)


@pytest.mark.parametrize("which", ["steps", "matrices", "weights"])
def test_a_receipt_with_an_edit_cannot_call_it_the_baseline(made: Any, kit: Any, which: str) -> None:
    before, after = kit.pair(200, 100, lost=60)
    made.run("baseline", {"sums": before}, folder="real", started="2026-02-02T00:00:00+00:00")
    folder = made.run("laser", {"sums": after}, started="2026-01-01T00:00:00+00:00")
    receipt = json.loads((folder / "receipt.json").read_text())
    receipt["recipe"] |= {"name": "baseline", "label": "baseline"}
    if which == "steps":
        receipt["recipe"]["resolved"] = {"steps": [{"method": "truncate_svd"}]}
    if which != "matrices":
        receipt["matrices"] = []
    if which != "weights":
        receipt["weights"]["digest_after"] = receipt["weights"]["digest_before"]
    (folder / "receipt.json").write_text(json.dumps(receipt))
    cells = {cell.recipe: cell for cell in made.board()}
    assert cells["baseline"].verdict == "baseline" and cells[NOT_BASELINE].verdict == "worse"
    assert any("its receipt calls the recipe baseline, and has" in note for note in cells[NOT_BASELINE].notes)


def test_an_edit_does_not_bear_the_label_of_the_baseline(made: Any, kit: Any) -> None:
    folder = made.run("laser", {"sums": kit.pair(20, 10)[1]})
    receipt = json.loads((folder / "receipt.json").read_text())
    receipt["recipe"] |= {"label": "baseline"}
    (folder / "receipt.json").write_text(json.dumps(receipt))
    assert only(folder).variant.recipe_label == "laser"


@pytest.mark.slow
def test_a_store_that_took_an_edited_run_for_the_baseline_is_put_right(
    made: Any, kit: Any, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = kit.pair(200, 100, lost=60)
    edited = made.plain({"sums": after}, folder="a", config=LASER)
    edited.write_text(json.dumps({**json.loads(edited.read_text()), "date": 1.0}))
    made.plain({"sums": before}, folder="b")
    with monkeypatch.context() as earlier:
        earlier.setattr(reader, "with_id", with_former_id)
        earlier.setattr(results, "of_results", lambda *given: Editedness(None))
        ingest(made.root, database)
    with open_store(database) as store:
        assert {cell.recipe for cell in board(store)} == {PLAIN_RECIPE}
    report = ingest(made.root, database)
    assert not report.added and len(report.duplicates) == 2
    with open_store(database) as store:
        words = {cell.recipe: cell.verdict for cell in board(store)}
    assert words == {PLAIN_RECIPE: "baseline", "laser:keep=0.5": "worse"}
