"""LowRankArena's windows against the protocol worked out by itself: the tokens and the cuts."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from harness_ext.demo import demo_path
from harness_ext.errors import UserError

from .conftest import FIXTURES, load, manager, module

WINDOWS = module("lowrankarena/windows.py")
TEXTS = ["one two three", "", "  \n", "four five six seven", "eight nine ten eleven twelve " * 9]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(demo_path())


def c4_folder(tmp_path: Path) -> Path:
    (tmp_path / "c4").mkdir()
    with gzip.open(tmp_path / "c4" / "c4-validation.00000-of-00008.json.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text, "url": "x"}) + "\n" for text in TEXTS)
    return tmp_path


def test_wikitext_is_tokenised_once_and_cut_into_whole_windows(tokenizer: Any) -> None:
    lines = (FIXTURES / "wikitext-2-raw" / "wiki.test.raw").read_text(encoding="utf-8").splitlines(keepends=True)
    whole = "\n\n".join(line if line.strip() else "" for line in lines)
    numbers = tokenizer(whole, add_special_tokens=False)["input_ids"]
    found = WINDOWS.wikitext2_windows(length=16, data_dir=str(FIXTURES), pretrained=str(demo_path()))["test"]
    assert [row["window"] for row in found] == [
        numbers[start : start + 16] for start in range(0, len(numbers) // 16 * 16, 16)
    ]
    assert {row["tokens"] for row in found} == {15}


def test_c4_is_a_stream_of_texts_by_themselves(tokenizer: Any, tmp_path: Path) -> None:
    between = tokenizer("\n\n", add_special_tokens=False)["input_ids"]
    numbers: list[int] = []
    for text in filter(str.strip, TEXTS):
        numbers += (between if numbers else []) + tokenizer(text, add_special_tokens=False)["input_ids"]
    settings = {"data_dir": str(c4_folder(tmp_path)), "pretrained": str(demo_path())}
    found = WINDOWS.c4_windows(length=8, tokens=24, **settings)["test"]
    assert [row["window"] for row in found] == [numbers[start : start + 8] for start in (0, 8, 16)]
    with pytest.raises(UserError, match="shorter than one window of 64 tokens"):
        WINDOWS.c4_windows(length=64, **settings)


def test_the_first_documents_of_c4_are_one_text(tokenizer: Any, tmp_path: Path) -> None:
    """As SVD-LLM reads it: blank documents count, and the whole is tokenised once with its special tokens."""
    settings = {"data_dir": str(c4_folder(tmp_path)), "pretrained": str(demo_path())}
    for documents in (3, 5):
        numbers = tokenizer("\n\n".join(TEXTS[:documents]))["input_ids"]
        found = WINDOWS.c4_first_windows(length=2, documents=documents, **settings)["test"]
        assert [row["window"] for row in found] == [
            numbers[start : start + 2] for start in range(0, len(numbers) // 2 * 2, 2)
        ]
    with pytest.raises(UserError, match="task c4_first_2000: the texts are shorter than one window of 2048 tokens"):
        load("c4_first_2000", **settings, max_length=4096)


def test_a_cut_file_of_c4_is_not_scored_as_if_it_were_whole(tmp_path: Path) -> None:
    settings = {"data_dir": str(c4_folder(tmp_path)), "pretrained": str(demo_path())}
    with pytest.raises(UserError, match="task c4_stream: the texts have [0-9]+ tokens, and 262144 are scored"):
        WINDOWS.c4_windows(length=8, **settings)
    with pytest.raises(
        UserError, match=r"task c4_first_2000: the texts have 5 documents, and 9 are .*official file, whole"
    ):
        WINDOWS.c4_first_windows(length=2, documents=9, **settings)


@pytest.mark.parametrize(
    "name, damage, reason",
    [
        (".json.gz", lambda whole: gzip.compress(whole)[:-20], "cannot be read as JSON lines: Compressed file ended"),
        (".json.gz", lambda whole: whole, "cannot be read as JSON lines: Not a gzipped file"),
        (".json.gz", lambda whole: gzip.compress(whole)[:40] + bytes(40), "cannot be read as JSON lines: "),
        (".json", lambda whole: whole[:-20], "cannot be read as JSON lines: Unterminated string"),
        (".json", lambda whole: b"\xff" + whole, "cannot be read as JSON lines: 'utf-8' codec"),
        (".json", lambda whole: whole.replace(b"text", b"texts"), "has no 'text'; it has texts, url"),
        (".json", lambda whole: b"[1]\n" + whole, "has no 'text'; it has list"),
    ],
)
@pytest.mark.parametrize("windows_of", ["c4_windows", "c4_first_windows"])
def test_a_damaged_file_of_c4_is_told(name: str, damage: Any, reason: str, windows_of: str, tmp_path: Path) -> None:
    whole = b"".join(json.dumps({"text": text, "url": "x"}).encode() + b"\n" for text in TEXTS)
    path = tmp_path / "c4" / f"c4-validation.00000-of-00008{name}"
    path.parent.mkdir()
    path.write_bytes(damage(whole))
    with pytest.raises(UserError) as caught:
        getattr(WINDOWS, windows_of)(length=2, data_dir=str(tmp_path), pretrained=str(demo_path()))
    told = str(caught.value)
    assert told.startswith("task c4_") and str(path) in told and reason in told and "official file" in told


def test_texts_that_cannot_be_had_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LM_EVAL_RECIPES_DATA", raising=False)
    with pytest.raises(UserError, match=r"task c4_stream: .*allenai/c4.*put the official files into a folder 'c4'"):
        WINDOWS.c4_windows(length=8, pretrained=str(demo_path()))


def test_the_tasks_are_lm_evals(tmp_path: Path) -> None:
    task = load("wikitext2_arena", data_dir=str(FIXTURES), pretrained=str(demo_path()), length=16)["wikitext2_arena"]
    document = task.test_docs()[0]
    (request,) = task.construct_requests(document, task.doc_to_text(document))
    context, text = request.arguments
    assert [*context.tokens, *text.tokens] == document["window"] and text == document["text"]
    known = manager()
    assert {"lowrankarena", "mmlu_math"} <= set(known.all_groups)


@pytest.mark.parametrize(
    ("token", "settings", "warned"),
    [("<bos>", {}, True), ("<bos>", {"add_bos_token": False}, False), (None, {}, False)],
)
def test_a_plain_run_warns_of_a_start_token(
    token: str | None, settings: dict[str, Any], warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Once for each task; not where `add_bos_token` takes it away, nor with a recipe."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    from harness_ext.lm_eval_adapter.task_types import windows_as_text

    tokenizer = AutoTokenizer.from_pretrained(demo_path())
    if token:
        tokenizer.add_special_tokens({"bos_token": token})
        number = tokenizer.bos_token_id
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{token} $A", special_tokens=[(token, number)]
        )
    tokenizer.save_pretrained(tmp_path)
    metadata = {"data_dir": str(FIXTURES), "tokenizer": str(tmp_path), "length": 16, **settings}
    task = load("wikitext2_arena", **metadata)["wikitext2_arena"]
    document = task.test_docs()[0]
    task.construct_requests(document, task.doc_to_text(document))
    assert "--recipe baseline" not in caplog.text
    with windows_as_text():
        for _ in range(2):
            task.construct_requests(document, task.doc_to_text(document))
    told = [record.getMessage() for record in caplog.records if "--recipe baseline" in record.getMessage()]
    assert len(told) == warned and all("puts <bos> before each" in text for text in told)
