"""Where items come from: a data folder, the environment, a cache; and what is said where they do not come."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from harness_ext.errors import UserError
from harness_ext.lm_eval_adapter.task_data import DATA_VARIABLE, Source

from .conftest import FIXTURES, FROM_FILES, load, module


def copied(tmp_path: Path, folder: str) -> Path:
    """A data folder with one data set of the fixtures, free to be spoilt."""
    shutil.copytree(FIXTURES / folder, tmp_path / folder)
    return tmp_path / folder


def mistake(name: str, data_dir: Path) -> str:
    with pytest.raises(UserError) as caught:
        load(name, data_dir=str(data_dir))
    return str(caught.value)


def test_the_environment_names_the_folder_too(monkeypatch):
    monkeypatch.setenv(DATA_VARIABLE, str(FIXTURES))
    assert len(load("counterfact")["counterfact"].test_docs()) == 6


def test_metadata_comes_before_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "absent"))
    assert len(load("counterfact", data_dir=str(FIXTURES))["counterfact"].test_docs()) == 6


@pytest.mark.parametrize("name", FROM_FILES)
def test_without_files_or_network_the_message_says_what_to_do(name):
    with pytest.raises(UserError, match=rf"^task {name}: .* cannot be reached .*data_dir.*{DATA_VARIABLE}"):
        load(name)


def test_a_data_folder_without_this_data_set_is_named(tmp_path):
    message = mistake("counterfact", tmp_path)
    assert (
        f"{tmp_path} has no folder counterfact, and https://rome.baulab.info/data/dsets/counterfact.json cannot be"
        " reached" in message
    )


def test_a_data_folder_that_does_not_exist(tmp_path):
    assert f"task stereoset: the data folder {tmp_path / 'absent'} does not exist" in mistake(
        "stereoset", tmp_path / "absent"
    )


# The file that each task cannot do without, and a column of it.
NEEDED = {
    "counterfact": ("counterfact", "counterfact.json", "requested_rewrite"),
    "hotpotqa_closed": ("hotpotqa", "hotpot_dev_fullwiki_v1.json", "answer"),
    "fever_claims": ("fever", "paper_test.jsonl", "label"),
    "bios_gender": ("bias_in_bios", "dev.jsonl", "gender"),
    "bios_profession": ("bias_in_bios", "train.jsonl", "profession"),
    "truthfulqa_claims": ("truthfulqa", "mc_task.json", "mc2_targets"),
    "epistemic_reasoning": ("bigbench/epistemic_reasoning", "task.json", "examples"),
    "wikidata_qa": ("bigbench/qa_wikidata", "task.json", "examples"),
    "eigenpruning_cb": ("super_glue/CB", "val.jsonl", "premise"),
    "eigenpruning_copa": ("super_glue/COPA", "train.jsonl", "choice2"),
    "eigenpruning_rte": ("super_glue/RTE", "val.jsonl", "label"),
    "stereoset": ("stereoset", "dev.json", "data"),
    "winobias_type1": ("winobias", "anti_stereotyped_type1.txt.test", None),
    "winobias_type2": ("winobias", "male_occupations.txt", None),
}


@pytest.mark.parametrize("name", NEEDED)
def test_a_missing_file(name, tmp_path):
    folder, file, _ = NEEDED[name]
    (copied(tmp_path, folder) / file).unlink()
    message = mistake(name, tmp_path)
    assert message.startswith(f"task {name}: wanted ") and file in message and str(tmp_path / folder) in message


@pytest.mark.parametrize("name", [name for name, (_, _, column) in NEEDED.items() if column])
def test_a_missing_column(name, tmp_path):
    folder, file, column = NEEDED[name]
    path = copied(tmp_path, folder) / file
    path.write_text(path.read_text(encoding="utf-8").replace(f'"{column}"', '"renamed"'), encoding="utf-8")
    message = mistake(name, tmp_path)
    assert message.startswith(f"task {name}: item 0 of {path} has no {column!r}; it has ") and "renamed" in message


@pytest.mark.parametrize("name", NEEDED)
def test_an_empty_file(name, tmp_path):
    folder, file, _ = NEEDED[name]
    path = copied(tmp_path, folder) / file
    path.write_text("[]" if path.suffix == ".json" else "", encoding="utf-8")
    assert mistake(name, tmp_path).startswith(f"task {name}: ")


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "reason"),
    [
        (
            "counterfact",
            "counterfact/counterfact.json",
            '"str"',
            '"text"',
            "0 documents of its test split .*it has no 'str'",
        ),
        (
            "stereoset",
            "stereoset/dev.json",
            '"sentence":',
            '"text":',
            "0 documents of its test split .*it has no 'sentence'",
        ),
        (
            "stereoset",
            "stereoset/dev.json",
            '"gold_label":',
            '"label":',
            "0 documents of its test split .*it has no 'gold_label'",
        ),
        (
            "bios_gender",
            "bias_in_bios/dev.jsonl",
            '"gender": 0',
            '"gender": 7',
            "1 documents of its test split .*not in",
        ),
        ("truthfulqa_claims", "truthfulqa/mc_task.json", "1", "null", "documents of its test split .*int"),
        (
            "eigenpruning_copa",
            "super_glue/COPA/val.jsonl",
            '"label": 1',
            '"label": 2',
            "has the label 2, where 0 or 1 was wanted",
        ),
    ],
)
def test_an_item_of_another_layout(tmp_path, name, file, old, new, reason):
    path = copied(tmp_path, file.split("/")[0]).parent / file
    before = path.read_text(encoding="utf-8")
    path.write_text(before.replace(old, new), encoding="utf-8")
    assert old in before
    assert re.search(rf"^task {name}: .*{reason}.*; provide the official", mistake(name, tmp_path))


@pytest.mark.parametrize("name", ["counterfact", "fever_claims", "stereoset"])
def test_a_file_that_is_no_json(name, tmp_path):
    folder, file, _ = NEEDED[name]
    (copied(tmp_path, folder) / file).write_text("{ not json", encoding="utf-8")
    assert "cannot be read as json" in mistake(name, tmp_path)


def test_a_split_of_which_nothing_is_used(tmp_path):
    path = copied(tmp_path, "fever") / "train.jsonl"
    path.write_text(json.dumps({"claim": "Hale is pleasant.", "label": "NOT ENOUGH INFO"}), encoding="utf-8")
    assert mistake("fever_claims", tmp_path).startswith("task fever_claims: its train split has no items left")


def test_parquet_as_the_hub_has_it(tmp_path):
    from datasets import Dataset

    folder = copied(tmp_path, "bias_in_bios")
    for split in ("train", "dev"):
        rows = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
        Dataset.from_list(rows).to_parquet(folder / f"{split}.parquet")
        (folder / f"{split}.jsonl").unlink()
    assert [
        document["label"] for document in load("bios_gender", data_dir=str(tmp_path))["bios_gender"].test_docs()
    ] == [1, 0, 1, 0]


def test_broken_parquet(tmp_path):
    path = copied(tmp_path, "bias_in_bios") / "dev.parquet"
    path.write_bytes(b"PAR1 and nothing more")
    assert f"task bios_gender: {path} cannot be read as parquet" in mistake("bios_gender", tmp_path)


def test_a_line_separator_inside_a_string_is_no_end_of_line(tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_text('{"text": "one\u2028two"}\n\n{"text": "three"}\n', encoding="utf-8")
    assert Source("any", "any", {}).read(path, ("text",)) == [{"text": "one\u2028two"}, {"text": "three"}]


def test_an_authors_file_in_the_cache_is_found_offline():
    import datasets
    from datasets.utils.file_utils import hash_url_to_filename

    url = module("laser/loading.py").COUNTERFACT_URL
    cached = Path(datasets.config.DOWNLOADED_DATASETS_PATH) / hash_url_to_filename(url, etag=None)
    cached.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copy(FIXTURES / "counterfact" / "counterfact.json", cached)
        assert len(load("counterfact")["counterfact"].test_docs()) == 6
    finally:
        cached.unlink()


def hub(monkeypatch: pytest.MonkeyPatch, splits: dict[tuple[str | None, str], list[dict[str, Any]]]) -> None:
    """Stand in for the hub: (configuration, split) -> rows in the hub's layout."""
    import datasets

    monkeypatch.setattr(
        datasets, "load_dataset", lambda path, name, split, revision: datasets.Dataset.from_list(splits[name, split])
    )


def test_a_hub_data_set_without_a_column(monkeypatch):
    hub(monkeypatch, {(None, split): [{"hard_text": "He writes.", "profession": 11}] for split in ("train", "dev")})
    with pytest.raises(
        UserError,
        match=(
            "task bios_gender: item 0 of LabHC/bias_in_bios, split train has no 'gender'; it has hard_text, profession"
        ),
    ):
        load("bios_gender")


def test_truthfulqa_in_the_hubs_layout(monkeypatch):
    hub(
        monkeypatch,
        {
            ("multiple_choice", "validation"): [
                {"question": "Do snails have teeth?", "mc2_targets": {"choices": ["Yes", "No"], "labels": [1, 0]}}
            ]
        },
    )
    documents = load("truthfulqa_claims")["truthfulqa_claims"].test_docs()
    local = load("truthfulqa_claims", data_dir=str(FIXTURES))["truthfulqa_claims"].test_docs()
    assert list(documents) == list(local)[3:]


def test_stereoset_in_the_hubs_layout(monkeypatch):
    official = json.loads((FIXTURES / "stereoset" / "dev.json").read_text(encoding="utf-8"))["data"]
    numbers = {"anti-stereotype": 0, "stereotype": 1, "unrelated": 2}

    def as_hub(item: dict[str, Any]) -> dict[str, Any]:
        columns = {
            "sentence": [s["sentence"] for s in item["sentences"]],
            "gold_label": [numbers[s["gold_label"]] for s in item["sentences"]],
        }
        return {**item, "sentences": columns}

    hub(monkeypatch, {(kind, "validation"): [as_hub(item) for item in rows] for kind, rows in official.items()})
    assert list(load("stereoset")["stereoset"].test_docs()) == list(
        load("stereoset", data_dir=str(FIXTURES))["stereoset"].test_docs()
    )


def test_superglue_in_the_hubs_layout(monkeypatch):
    row = {"premise": "B: Nobody thinks that Nils sang.", "hypothesis": "Nils sang", "label": 1, "idx": 0}
    hub(monkeypatch, {("cb", split): [row] for split in ("train", "validation")})
    assert next(iter(load("eigenpruning_cb")["eigenpruning_cb"].validation_docs())) == next(
        iter(load("eigenpruning_cb", data_dir=str(FIXTURES))["eigenpruning_cb"].validation_docs())
    )


def test_bigbench_in_the_hubs_layout(monkeypatch):
    local = load("wikidata_qa", data_dir=str(FIXTURES))["wikidata_qa"].test_docs()
    rows = [{"inputs": f"{document['prompt']} ", "targets": [document["answer"]]} for document in local]
    hub(
        monkeypatch,
        {
            ("qa_wikidata", "validation"): rows[:1],
            ("qa_wikidata", "train"): [*rows[1:], {"inputs": "Two", "targets": ["one", "other"]}],
        },
    )
    assert list(load("wikidata_qa")["wikidata_qa"].test_docs()) == list(local)
