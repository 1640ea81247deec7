"""The forms that lm-eval has written since 0.2, and what other tools made of them: each lands, with its numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from leaderboard.readers import results
from leaderboard.readers.discovery import Candidate, find_runs
from leaderboard.readers.reader import read_runs
from leaderboard.readers.records import ReportedScore, Run

ACC = {"acc": 0.25, "acc_stderr": 0.01}
NEW = {"acc,none": 0.25, "acc_stderr,none": 0.01, "alias": "piqa"}


def runs_of(path: Path) -> list[Run]:
    """Every run under a path; nothing may be refused."""
    found = list(find_runs(path))
    assert all(isinstance(item, Candidate) for item in found), found
    return [run for item in found if isinstance(item, Candidate) for run in read_runs(item)]


def write(path: Path, data: Any, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, **options))
    return path


def sample(i: int, **more: Any) -> dict[str, Any]:
    return {
        "doc_id": i,
        "doc": {"q": i},
        "target": 0,
        "arguments": [[f"q{i}", " a"]],
        "resps": [[[-1.5 - i, False]]],
        "filtered_resps": [[-1.5 - i, False]],
        "acc": float(i % 2),
    } | more


SCORES: list[tuple[str, dict[str, Any], list[tuple[str, str, str, float | None]]]] = [
    ("0.2 without config", {"results": {"piqa": ACC}, "versions": {"piqa": 0}}, [("piqa", "acc", "none", 0.25)]),
    (
        "0.3 with a dict of model_args",
        {
            "results": {"piqa": ACC},
            "versions": {"piqa": 0},
            "config": {"model": "hf-causal", "model_args": {"pretrained": "a/b"}},
        },
        [("piqa", "acc", "none", 0.25)],
    ),
    (
        "0.3 with null model_args",
        {"results": {"piqa": ACC}, "config": {"model": "gpt3", "model_args": None, "num_fewshot": None}},
        [("piqa", "acc", "none", 0.25)],
    ),
    (
        "a list, one entry a prompt",
        {
            "results": [
                {"task_name": "wic", "prompt_name": "7", "acc": 0.5, "subset": "3"},
                {"task_name": "wic", "prompt_name": "affirm", "acc": 0.25},
                {"task_name": "wic", "prompt_name": "7", "f1": 0.1},
            ]
        },
        [("wic+7", "acc", "none", 0.5), ("wic+affirm", "acc", "none", 0.25), ("wic+7 (2)", "f1", "none", 0.1)],
    ),
    (
        "0.4 with a group of blanks",
        {
            "results": {"g": {" ": " ", "alias": "g"}, "piqa": NEW},
            "configs": {"piqa": {}},
            "groups": {"g": {" ": " ", "alias": "g"}},
        },
        [("piqa", "acc", "none", 0.25)],
    ),
    (
        "0.4 with a group of N/A",
        {
            "results": {"g": {"acc,none": 0.3, "acc_stderr,none": "N/A", "alias": "g"}, "piqa": NEW},
            "configs": {"piqa": {}},
            "group_subtasks": {"g": ["piqa"]},
        },
        [("g", "acc", "none", 0.3), ("piqa", "acc", "none", 0.25)],
    ),
    (
        "0.4 with float32 and a tensor as text",
        {
            "results": {
                "t": {
                    "a,none": "0.53125",
                    "b,none": "tensor(-1.5e-01, device='cuda:0')",
                    "c,none": "N/A",
                    "d,none": "nan",
                }
            }
        },
        [("t", "a", "none", 0.53125), ("t", "b", "none", -0.15), ("t", "d", "none", None)],
    ),
    (
        "NaN, infinity and a huge whole number",
        {"results": {"t": {"a,none": float("nan"), "b,none": float("inf"), "c,none": 10**40, "d,none": None}}},
        [("t", "a", "none", None), ("t", "b", "none", None), ("t", "c", "none", 1e40), ("t", "d", "none", None)],
    ),
    (
        "perplexity over all documents",
        {
            "results": {
                "wikitext": {
                    "word_perplexity,none": 12.5,
                    "word_perplexity_stderr,none": "N/A",
                    "bits_per_byte,none": 0.9,
                }
            }
        },
        [("wikitext", "word_perplexity", "none", 12.5), ("wikitext", "bits_per_byte", "none", 0.9)],
    ),
    ("a filter with a comma in its name", {"results": {"t": {"acc,a,b": 0.5}}}, [("t", "acc", "a,b", 0.5)]),
]


@pytest.mark.parametrize(
    ("data", "expected"), [pytest.param(data, expected, id=name) for name, data, expected in SCORES]
)
@pytest.mark.parametrize(
    "name", ["results.json", "llama-7b_common_0-shot.json", "results_2024-06-03T01:44:00.470625.json"]
)
def test_scores(
    tmp_path: Path, name: str, data: dict[str, Any], expected: list[tuple[str, str, str, float | None]]
) -> None:
    (run,) = runs_of(write(tmp_path / "model" / name, data))
    assert [(s.task, s.metric, s.filter, s.score) for s in run.scores] == expected


@pytest.mark.parametrize("form", ["list", "indented list", "lines", "indented values"])
def test_samples_without_dates(tmp_path: Path, form: str) -> None:
    """0.4.0: `results.json`, and for each task a file with the model's arguments in its name."""
    samples = [sample(i) for i in range(4)]
    write(
        tmp_path / "results.json",
        {
            "results": {"piqa": {"acc,none": 0.5}, "physics_piqa": {"acc,none": 0.5}, "rte": {"acc,none": 0.5}},
            "configs": {"piqa": {}},
        },
    )
    text = {
        "list": json.dumps(samples),
        "indented list": json.dumps(samples, indent=2),
        "lines": "\n".join(map(json.dumps, samples)),
        "indented values": "\n".join(json.dumps(line, indent=2) for line in samples),
    }[form]
    for task in ("piqa", "physics_piqa", "orphan"):
        (tmp_path / f"pretrained__a__b,dtype__float_{task}.jsonl").write_text(text)
    run, orphan = runs_of(tmp_path)
    assert {task.task: task.documents for task in run.tasks} == {"piqa": 4, "physics_piqa": 4, "rte": None}
    assert orphan.warnings and [task.documents for task in orphan.tasks] == [4]


def test_samples_that_name_no_filter_have_the_only_one_there_is(tmp_path: Path) -> None:
    write(tmp_path / "results_2024-06-03T01:44:00.470625.json", {"results": {"t": {"acc,get-answer": 0.5}}})
    (tmp_path / "samples_t_2024-06-03T01:44:00.470625.jsonl").write_text(
        "\n".join(json.dumps(sample(i)) for i in range(4))
    )
    (run,) = runs_of(tmp_path)
    assert (
        {document.filter for document in run.tasks[0].samples.documents}
        == {"get-answer"}
        == {score.filter for score in run.scores}
    )


@pytest.mark.parametrize(
    "resps", [[], None, "text", [["a", "b"]], [[[["-1.0", "True"]]]], [[[float("-inf"), False]]], [[10**40]], {"a": 1}]
)
def test_responses_of_any_shape_are_kept(tmp_path: Path, resps: Any) -> None:
    write(tmp_path / "results_2024-06-03T01-44-00.json", {"results": {"t": {"acc,none": 0.0}}})
    (tmp_path / "samples_t_2024-06-03T01-44-00.jsonl").write_text(
        json.dumps(sample(0, resps=resps, filtered_resps=resps, doc_id=10**40, target=None))
    )
    (run,) = runs_of(tmp_path)
    samples = run.tasks[0].samples
    assert [json.loads(text) for text in samples.responses] == [resps]
    assert [document.doc_id for document in samples.documents] == [None]


def accuracy(error: float) -> ReportedScore:
    return ReportedScore("t", "acc", "none", 0.5, "0.5", error, True, None, None, True, False)


@pytest.mark.parametrize("error", [5e-324, 1e-200, 1e200, 1.7e308, 0.0, -1e-300])
def test_an_error_that_no_share_can_have_tells_no_number_of_documents(error: float) -> None:
    """Its square is zero, or beyond all numbers. A true one tells them: the file may name none."""
    assert results._likely_count({}, [accuracy(error)]) is None
    assert results._likely_count({}, [accuracy(error), accuracy((0.25 / 99) ** 0.5)]) == 100
