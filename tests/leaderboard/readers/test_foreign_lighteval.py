"""lighteval's results and details land with their numbers, and are compared with nothing of another harness."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from leaderboard.board.board import board
from leaderboard.errors import Unreadable
from leaderboard.ingest import ingest
from leaderboard.readers.discovery import Candidate, find_runs
from leaderboard.readers.foreign import parquet
from leaderboard.readers.reader import read_runs
from leaderboard.readers.records import Run

DATE = "2025-11-03T10-20-30.123456"
TASK = "arc:challenge|25"


def write_lighteval(
    folder: Path,
    right: Sequence[int],
    *,
    date: str = DATE,
    model: str = "org/tiny",
    task: str = TASK,
    details: bool = True,
) -> Path:
    """The files of `lighteval ... --output-dir folder --save-details`, in which each document is right or wrong."""
    mean = sum(right) / len(right)
    data: dict[str, Any] = {
        "config_general": {
            "lighteval_sha": "?",
            "num_fewshot_seeds": 1,
            "max_samples": None,
            "start_time": 12.5,
            "model_config": {
                "model_name": model,
                "revision": "main",
                "dtype": "torch.bfloat16",
                "api_key": "sk-secret",
            },
            "model_name": model,
        },
        "results": {
            task: {"acc": mean, "acc_stderr": 0.05},
            "all": {"acc": mean, "acc_stderr": 0.05},
        },
        "versions": {task: 0},
        "config_tasks": {
            task: {
                "name": "arc:challenge",
                "metrics": [{"metric_name": "acc", "higher_is_better": True}],
                "num_fewshots": 25,
                "original_num_docs": len(right),
                "effective_num_docs": len(right),
            }
        },
        "summary_tasks": {},
        "summary_general": {},
    }
    results = folder / "results" / model / f"results_{date}.json"
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(data, indent=2))
    if details:
        rows = [
            {
                "doc": {"query": f"Question {i}?", "choices": [" yes", " no"], "gold_index": 0, "id": str(i)},
                "metric": {"acc": float(value)},
                "model_response": {"text": [], "logprobs": [-1.0 - i, -2.0], "input_tokens": [1, 2, 3]},
            }
            for i, value in enumerate(right)
        ]
        file = folder / "details" / model / date / f"details_{task}_{date}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return results


def runs_below(path: Path) -> list[Run]:
    return [run for found in find_runs(path) if isinstance(found, Candidate) for run in read_runs(found)]


def test_results_and_details_are_one_run(tmp_path: Path) -> None:
    write_lighteval(tmp_path, [1, 0, 1, 1])
    (run,) = runs_below(tmp_path)
    assert (run.origin, run.variant.model_name, run.variant.dtype) == ("lighteval", "org/tiny", "bfloat16")
    assert run.variant.recipe_label == "plain lighteval"
    assert [(s.task, s.metric, s.score, s.stderr, s.is_group) for s in run.scores] == [
        (TASK, "acc", 0.75, 0.05, False),
        ("all", "acc", 0.75, 0.05, True),
    ]
    (task,) = run.tasks
    assert (task.num_fewshot, task.version, task.documents) == (25, "0", 4)
    assert [found.scores["acc"].value for found in task.samples.outcomes] == [1.0, 0.0, 1.0, 1.0]
    assert task.samples.documents[0].target == " yes"
    assert str(run.started) == "2025-11-03 10:20:30.123456"
    assert "sk-secret" not in repr(run)


def test_results_without_details_are_shown(tmp_path: Path) -> None:
    write_lighteval(tmp_path, [1, 0], details=False)
    (run,) = runs_below(tmp_path)
    assert [(task.task, task.samples, task.sample_count) for task in run.tasks] == [(TASK, None, 2)]


def as_lighteval_0_13(results: Path) -> None:
    """Change a results file to what lighteval 0.13 writes of two tasks with different metrics, cut off at a limit."""
    data = json.loads(results.read_text())
    (config,) = data["config_tasks"].values()
    acc = {"acc": 0.75, "acc_stderr": 0.25}
    filled_in = {"acc": 0.0, "acc_stderr": 0.0}
    metrics = {"a|0": ("acc", acc), "b|0": ("em", {"em": 0.0, "em_stderr": 0.0, **filled_in})}
    data["versions"] = {}
    data["config_general"]["max_samples"] = 4
    data["config_tasks"] = {
        task: config
        | {"metrics": [{"metric_name": metric, "higher_is_better": True}], "version": 2, "num_fewshots": 0}
        | {"original_num_docs": -1, "effective_num_docs": -1}
        for task, (metric, _) in metrics.items()
    }
    data["results"] = {task: row for task, (_, row) in metrics.items()} | {"toy:_average|0": {"acc": 0.375}, "all": acc}
    results.write_text(json.dumps(data))


def test_zeros_of_metrics_that_a_task_does_not_have_are_left_out(tmp_path: Path) -> None:
    as_lighteval_0_13(write_lighteval(tmp_path, [1], details=False))
    (run,) = runs_below(tmp_path)
    assert [(score.task, score.metric, score.score, score.stderr) for score in run.scores if not score.is_group] == [
        ("a|0", "acc", 0.75, 0.25),
        ("b|0", "em", 0.0, 0.0),
    ]
    assert [(task.version, task.subset, task.sample_count) for task in run.tasks] == [
        ("2", "first 4 documents", None)
    ] * 2
    assert run.warnings[1:] == [
        "zeros that lighteval fills in for metrics that a task does not have are left out (acc of b|0); its averages"
        " count them: toy:_average|0"
    ]


def test_runs_of_one_harness_are_paired_by_document(tmp_path: Path) -> None:
    write_lighteval(tmp_path, [1] * 60, date=DATE)
    write_lighteval(tmp_path, [1] * 30 + [0] * 30, date="2025-11-02T10-20-30.123456")
    report = ingest([tmp_path], None)
    assert len(report.added) == 2 and not report.rejected and report.store is not None
    cells = {cell.n: cell for cell in board(report.store) if cell.verdict != "baseline"}
    (cell,) = cells.values()
    assert (cell.verdict, cell.n, cell.delta) == ("worse", 60, pytest.approx(-0.5))


def test_another_harness_is_never_compared(tmp_path: Path) -> None:
    task = "boolq"
    write_lighteval(tmp_path / "lighteval", [1, 0, 1, 1], task=task, model="org/tiny")
    plain = tmp_path / "plain" / "results_2025-11-04T10-20-30.123456.json"
    plain.parent.mkdir()
    plain.write_text(
        json.dumps(
            {
                "results": {task: {"acc,none": 0.5, "acc_stderr,none": 0.1}},
                "configs": {task: {"task": task}},
                "config": {"model": "hf", "model_args": {"pretrained": "org/tiny", "peft": "a"}},
                "n-shot": {task: None},
                "versions": {task: 0},
            }
        )
    )
    report = ingest([tmp_path], None)
    assert len(report.added) == 2 and report.store is not None
    (cell,) = (cell for cell in board(report.store) if cell.recipe.startswith("plain lm_eval"))
    assert cell.verdict == "incomparable"
    assert any("another harness: baseline lighteval, this run lm-eval" in note for note in cell.notes)


def test_details_that_lack_documents_are_refused(tmp_path: Path) -> None:
    results = write_lighteval(tmp_path, [1, 0, 1])
    data = json.loads(results.read_text())
    data["config_tasks"][TASK]["effective_num_docs"] = 5
    results.write_text(json.dumps(data))
    with pytest.raises(Unreadable, match="incomplete: 3 of 5 documents"):
        runs_below(tmp_path)


@pytest.mark.parametrize("cut", [0, 3, 40, -1])
def test_damaged_details_are_refused_in_a_sentence(tmp_path: Path, cut: int) -> None:
    write_lighteval(tmp_path, [1, 0, 1])
    (file,) = tmp_path.rglob("*.parquet")
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(Unreadable, match="is not Parquet, or is cut off"):
        runs_below(tmp_path)


def test_details_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lighteval(tmp_path, [1, 0, 1])
    for name, message in (("MAX_FILE_BYTES", "GiB"), ("MAX_ROWS", "rows"), ("MAX_BYTES", "holds more")):
        with monkeypatch.context() as patch, pytest.raises(Unreadable, match=message):
            patch.setattr(parquet, name, 1)
            runs_below(tmp_path)


def test_details_behind_a_link_are_not_read(tmp_path: Path) -> None:
    write_lighteval(tmp_path / "elsewhere", [1, 0])
    write_lighteval(tmp_path / "here", [1, 0], details=False)
    (tmp_path / "here" / "details").symlink_to(tmp_path / "elsewhere" / "details")
    (run,) = runs_below(tmp_path / "here")
    assert run.tasks[0].samples is None


@pytest.mark.parametrize(
    "data",
    [
        {"config_general": None, "results": {}},
        {"config_general": {"model_name": "m"}, "results": {}},
        {"config_general": {"model_name": "m"}, "results": {"t|0": None}},
        {"config_general": {"model_name": 5}, "results": {"t|0": {"acc": "x"}}},
        {"config_general": [], "results": {"t|0": {"acc": 0.5}}, "config_tasks": 5},
    ],
)
def test_what_holds_nothing_is_refused(tmp_path: Path, data: Any) -> None:
    (tmp_path / "results_2025-11-03T10-20-30.json").write_text(json.dumps(data))
    with pytest.raises(Unreadable):
        runs_below(tmp_path)


@pytest.mark.slow
def test_a_run_found_again_is_not_read_again(tmp_path: Path) -> None:
    write_lighteval(tmp_path / "out", [1, 0, 1])
    database = tmp_path / "leaderboard.duckdb"
    assert len(ingest([tmp_path / "out"], database).added) == 1
    again = ingest([tmp_path / "out"], database)
    assert (len(again.added), len(again.duplicates)) == (0, 1)


def test_answers_of_a_service_say_so(tmp_path: Path) -> None:
    (tmp_path / "results_2025-11-03T10-20-30.json").write_text(
        json.dumps(
            {
                "results": {"gsm8k": {"exact_match,strict-match": 0.5}},
                "configs": {"gsm8k": {}},
                "config": {
                    "model": "local-chat-completions",
                    "model_args": "model=llama-3-8b,base_url=http://user:verysecretword@localhost:8000/v1",
                },
            }
        )
    )
    (run,) = runs_below(tmp_path)
    assert (run.variant.model_name, run.variant.recipe_label) == ("llama-3-8b", "plain lm_eval, local-chat-completions")
    assert run.edited is None and "answered by a service" in run.warnings[0]
    assert "verysecretword" not in repr(run)
