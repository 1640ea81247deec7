"""Which task a results file is of: what counts, and what does not."""

from __future__ import annotations

from typing import Any

import pytest

from leaderboard.readers.task_identity import config_hash, differing_parts, subset

TASK = {
    "task": "sums",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "/home/a/tasks/test.jsonl"}},
    "test_split": "test",
    "doc_to_text": "{{q}}",
    "process_results": "def process_results(doc, results): return {'acc': 0.0}",
    "metric_list": [{"metric": "acc"}],
    "fewshot_config": {"sampler": "default", "split": None, "doc_to_text": "{{q}}"},
    "num_fewshot": 0,
    "metadata": {"pretrained": "/models/a"},
}


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"process_results": "def process_results(doc, results): return {'acc': 1.0}"}, ("scoring",)),
        ({"metric_list": [{"metric": "acc", "aggregation": "mean"}]}, ("scoring",)),
        ({"a_key_of_tomorrow": 1}, ("scoring",)),
        ({"doc_to_text": "Q: {{q}}", "fewshot_config": {"sampler": "default", "doc_to_text": "Q: {{q}}"}}, ("prompt",)),
        ({"description": "Add."}, ("prompt",)),
        ({"test_split": "train"}, ("data",)),
        ({"dataset_kwargs": {"data_files": {"test": "/home/a/tasks/other.jsonl"}}}, ("data",)),
        ({"dataset_path": "org/sums"}, ("data",)),
        ({"fewshot_config": {"sampler": "first_n", "split": None, "doc_to_text": "{{q}}"}}, ("few-shot examples",)),
        ({"dataset_kwargs": {"data_files": {"test": "C:\\b\\test.jsonl"}}}, ()),
        ({"dataset_kwargs": {"data_files": {"test": "tasks/test.jsonl"}}}, ()),
        ({"num_fewshot": 5, "metadata": {"pretrained": "b"}, "generation_kwargs": {"until": ["."]}, "tag": ["x"]}, ()),
        ({"fewshot_delimiter": None}, ()),
    ],
)
def test_the_parts_of_a_configuration(change: dict[str, Any], parts: tuple[str, ...]) -> None:
    one, other = config_hash(TASK, "0.4.13"), config_hash({**TASK, **change}, "0.4.13")
    assert one is not None and other is not None and differing_parts(one, other) == parts


def test_only_what_one_version_of_lm_eval_wrote_is_compared() -> None:
    one, other = config_hash(TASK, "0.4.13"), config_hash({**TASK, "doc_to_text": "x"}, "0.4.12")
    assert one is not None and other is not None and differing_parts(one, other) is None
    assert config_hash(TASK, None) is None and config_hash({}, "0.4.13") is None


def test_an_address_in_memory_is_no_difference() -> None:
    texts = [f"<function f at 0x7f3b{number:08x}>" for number in (1, 2)]
    one, other = (config_hash({**TASK, "fewshot_config": {"samples": text}}, "0.4.13") for text in texts)
    assert one == other


@pytest.mark.parametrize(
    ("config", "original", "scored", "words"),
    [
        ({"limit": 20.0}, 1000, 20, "first 20 of 1,000 documents"),
        ({"limit": 0.5}, 60, 30, "first 30 of 60 documents"),
        ({"limit": 200.0}, 24, 24, None),
        ({"samples": {"sums": [3, 5]}}, 60, 2, "chosen 2 of 60 documents"),
        ({}, 60, 40, "40 of 60 documents"),
        ({"limit": 20}, None, None, "limit 20"),
        ({"limit": "many"}, None, None, None),
        ({}, 60, 60, None),
    ],
)
def test_which_documents(config: dict[str, Any], original: int | None, scored: int | None, words: str | None) -> None:
    assert subset(config, original, scored) == words
