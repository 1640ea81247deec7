"""Which documents a command scores, and which of them a recipe may learn from: found out without a model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness_ext.demo import demo_path
from harness_ext.errors import UserError
from harness_ext.lm_eval_adapter.config import RunConfig
from harness_ext.recipe.recipe import parse_recipe, recipe_from
from harness_ext.recipe.settings import Calibration
from harness_ext.runs.progress import ProgressReport
from harness_ext.runs.run_config import harness_config
from harness_ext.runs.scored_places import Places
from harness_ext.runs.session import Session
from harness_ext.runs.spec import RunSpec
from leaderboard.readers.same_document import text_digests

Row = dict[str, Any]
TASK = {
    "dataset_path": "json",
    "training_split": "train",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{q}}",
    "doc_to_choice": "choices",
    "doc_to_target": "gold",
    "metadata": {"version": 1.0},
}
ROWS: list[Row] = [
    {"q": f"Which word is number {number}?", "choices": [f"w{number}", f"x{number}", "none"], "gold": number % 2}
    for number in range(12)
]
FRESH: list[Row] = [{**row, "q": row["q"].replace("word", "sign")} for row in ROWS]


@pytest.fixture
def asking(tmp_path: Path) -> Callable[..., Session]:
    """A session over tasks of a test's own: `asking({"name": (training rows, scored rows, settings)})`."""

    def ask(tasks: Mapping[str, tuple[Sequence[Row], Sequence[Row], Row]], **settings: Any) -> Session:
        folder = tmp_path / "tasks"
        folder.mkdir(exist_ok=True)
        for name, (train, test, task) in tasks.items():
            files = {}
            for split, rows in (("train", train), ("test", test)):
                files[split] = str(folder / f"{name}-{split}.jsonl")
                Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in rows))
            (folder / f"{name}.yaml").write_text(
                yaml.safe_dump({"task": name, **TASK, "dataset_kwargs": {"data_files": files}, **task})
            )
        asked = {
            "model": "hf",
            "model_args": {"pretrained": str(demo_path())},
            "tasks": list(tasks),
            "include_path": str(folder),
        }
        config = RunConfig(harness_config({**asked, **settings}), (), (), "demo", ())
        return Session(config, ProgressReport(quiet=True))

    return ask


CHANGED: dict[str, Callable[[Row], Row]] = {
    "one more column": lambda row: {**row, "source": "elsewhere"},
    "one more space": lambda row: {**row, "q": row["q"].replace(" ", "  ", 1)},
    "a line break": lambda row: {**row, "q": row["q"].replace(" is", "\nis")},
    "case": lambda row: {**row, "q": row["q"].upper()},
    "order of columns": lambda row: dict(reversed(row.items())),
    "unicode form": lambda row: {**row, "q": row["q"].replace("number", "\uff4eumber")},
    "invisible": lambda row: {**row, "q": row["q"] + "\u200b"},
    "space before a sign": lambda row: {**row, "q": row["q"].replace("?", " ?")},
    "choices in another order": lambda row: {**row, "choices": row["choices"][::-1], "gold": 2 - row["gold"]},
    "other wrong choices": lambda row: {**row, "choices": [*row["choices"][:2], "nothing"]},
}


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGED.values(), ids=CHANGED)
@pytest.mark.parametrize("settings", [{}, {"num_fewshot": 2}], ids=["plain", "examples"])
def test_a_scored_document_in_another_form_is_not_learned_from(
    asking, change: Callable[[Row], Row], settings: dict[str, Any]
) -> None:
    session = asking({"one": (FRESH, ROWS, {})}, **settings)
    rows = [*map(change, ROWS), *(change(row) | row for row in FRESH)]
    asking({"two": (rows, rows, {})})
    (drawn,) = session.documents(Calibration(task="two", samples=12))
    assert drawn.also_scored > 0 and {document.wording[0] for document in drawn.documents if document.wording} == {
        row["q"] for row in FRESH
    }
    with pytest.raises(UserError, match="its train split has 12 \\(12 more are also scored"):
        session.documents(Calibration(task="two", samples=13))


@pytest.mark.slow
@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_document_of_another_task_or_split_is_not_learned_from(asking, split: str) -> None:
    other = {"doc_to_text": "{{text}}", "validation_split": "train"}
    rows = [{"text": row["q"].upper(), **row} for row in ROWS]
    session = asking({"one": (FRESH, ROWS, {})})
    asking({"two": (rows, rows, other)})
    with pytest.raises(UserError, match=f"its {split} split has 0 \\(12 more are also scored"):
        session.documents(Calibration(task="two", split=split, samples=2))


@pytest.mark.slow
def test_what_is_taken_out_of_the_score_is_out_in_every_form_and_task(asking) -> None:
    twice = [*ROWS, *map(CHANGED["one more column"], ROWS)]
    session = asking({"one": (FRESH, twice, {}), "two": (FRESH, list(map(CHANGED["case"], ROWS)), {})})
    recipe = parse_recipe("fwsvd:calibration.task=one,calibration.split=test,calibration.samples=3")
    session.spec.hold_out([recipe])
    (drawn,) = session.documents(recipe.steps[0].calibration)
    learned = {document.wording[0].casefold() for document in drawn.documents if document.wording}
    for task in ("one", "two"):
        scored = {asked.wording[0].casefold() for asked in session.spec.scored_contents[task] if asked.wording}
        assert not learned & scored and len(scored) == 12 - len(learned)


@pytest.mark.slow
def test_a_recipe_chosen_on_a_document_keeps_it_out_in_every_form(asking) -> None:
    digests = sorted(asking({"one": (FRESH, ROWS[:2], {})}).spec.scored_identities)
    for changed in CHANGED.values():
        session = asking({"one": (FRESH, list(map(changed, ROWS)), {})})
        step = {"method": "truncate_svd", "matrices": ["mlp"], "keep": {"rank": 4}}
        chosen = recipe_from({"name": "mine", "steps": [step], "chosen_on": digests}, origin="a test")
        session.spec.hold_out([chosen])
        assert len(session.spec.scored_documents["one"]) == 10
    # Documents that nobody scores cost nothing.
    session = asking({"one": (FRESH, FRESH, {})}, limit=5)
    session.spec.hold_out([chosen])
    assert session.harness.limit == 5 and session.harness.samples is None


@pytest.mark.slow
def test_what_an_exported_model_learned_from_is_out_of_its_score(asking, tmp_path: Path) -> None:
    digests = sorted(text_digests("Which word is number 3? x3"))
    for form, left in (("export", 11), (1, 12)):
        (tmp_path / "receipt.json").write_text(json.dumps({"format": form, "chosen_on": digests}))
        session = asking({"one": (FRESH, ROWS, {})}, model_args={"pretrained": str(tmp_path)})
        session.spec.hold_out([])
        assert len(session.spec.scored_documents["one"]) == left


@pytest.mark.slow
def test_the_same_facts_in_other_words_are_told(asking) -> None:
    settings = {"output_type": "generate_until", "doc_to_target": "{{a}}", "doc_to_choice": None}
    facts = [(left, right) for left in range(3, 7) for right in range(3, 7)]
    scored = [{"q": f"{left}*{right}=", "a": str(left * right)} for left, right in facts]
    words = [{"q": f"what is {left} times {right}?", "a": str(left * right)} for left, right in facts]
    session = asking({"one": (scored[:1], scored, settings)})
    asking({"two": (words, words, settings)})
    (drawn,) = session.documents(Calibration(task="two", samples=16))
    assert "16 of 16 scored documents of one ask for the same as calibration documents of two" in drawn.warnings[0]


@pytest.mark.slow
def test_examples_that_are_scored_are_told(asking) -> None:
    for split, told in (("train", False), ("test", True)):
        session = asking({"one": (FRESH, ROWS, {"fewshot_split": split})}, num_fewshot=1)
        (drawn,) = session.documents(Calibration(task="one", samples=4))
        said = "12 of 12 documents that may be an example before a calibration question of one are scored too"
        assert any(warning.startswith(said) for warning in drawn.warnings) == told


@pytest.mark.slow
@pytest.mark.parametrize("places", [[5, 3, 9], [9, 5, 3], [3, 5, 9], [3, 3, 9, 5, 5]])
def test_places_in_any_order_are_the_same_documents(asking, places: list[int]) -> None:
    plain = asking({"one": (FRESH, ROWS, {})}, samples={"one": [3, 5, 9]}).spec
    spec = asking({"one": (FRESH, ROWS, {})}, samples=json.dumps({"one": places})).spec
    recipe = parse_recipe("svd")
    assert spec.spec_id(recipe) == plain.spec_id(recipe) and spec.settings_id == plain.settings_id
    assert [asked.wording for asked in spec.scored_contents["one"]] == [
        (ROWS[place]["q"], f" {ROWS[place]['choices'][ROWS[place]['gold']]}") for place in (3, 5, 9)
    ]
    assert Places(places) == [3, 5, 9] and 4 not in Places(places)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("samples", "said"),
    [
        ({"one": [-1]}, "-1 is no place of a document of 'one': they are counted from 0"),
        ({"one": ["3"]}, "'3' is no place of a document of 'one'"),
        ({"one": [True]}, "True is no place of a document"),
        ({"one": [1.5]}, "1.5 is no place of a document"),
        ({"one": [12]}, "'one' has no document 12: it has 12, counted from 0 to 11"),
        ({"one": []}, "names no document of 'one': leave the task out of it to score all of them"),
        ({"one": 3}, "the places of 'one' are no list"),
        ({"ones": [3]}, "names a task that is not evaluated: 'ones', did you mean 'one'?"),
        ("[3]", "\\[3\\] does not: give JSON such as"),
        ("no file", "'no file' does not: give JSON such as"),
    ],
)
def test_places_that_are_none_get_a_sentence(asking, samples: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        asking({"one": (FRESH, ROWS, {})}, samples=samples).spec.task_settings  # noqa: B018


def test_a_list_of_places_is_made_once_in_order(asking) -> None:
    session = asking({"one": (FRESH, ROWS, {})}, samples={"one": [9, 3]})
    assert isinstance(session.spec, RunSpec) and session.harness.samples == {"one": [3, 9]}
