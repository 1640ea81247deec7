"""Two experiments have two ids, and one has one wherever and whenever it was made; above all without samples."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leaderboard.compare_runs import compare_paths
from leaderboard.errors import LeaderboardError
from leaderboard.readers.discovery import Candidate, find_runs
from leaderboard.readers.reader import read_runs
from leaderboard.readers.records import Run

Change = Callable[[dict[str, Any]], None]


def setting(*keys: str, to: Any) -> Change:
    """Replace one value of a results file."""

    def change(data: dict[str, Any]) -> None:
        for key in keys[:-1]:
            data = data.setdefault(key, {})
        data[keys[-1]] = to

    return change


EXPERIMENTS: dict[str, Change] = {
    "few-shot examples": setting("n-shot", "sums", to=5),
    "task version": setting("versions", "sums", to=2.0),
    "prompt": setting("configs", "sums", "doc_to_text", to="Q: {{question}}"),
    "scorer": setting("configs", "sums", "process_results", to="def f(doc, results):\n    return 1\n"),
    "generation": setting("configs", "sums", "generation_kwargs", to={"until": ["x"]}),
    "documents": setting("n-samples", "sums", to={"original": 50, "effective": 20}),
    "standard error": setting("results", "sums", "acc_stderr,none", to=0.0623),
    "chat template": setting("chat_template_sha", to="abc"),
    "system instruction": setting("system_instruction", to="be brief"),
    "task hash": setting("task_hashes", "sums", to="abc"),
    "direction": setting("higher_is_better", "sums", "acc", to=False),
    "pruned": setting("num_experts_to_prune", to=2),
    "pruned, deeply": setting("experiment", "layers", to=[1, {"ratio": 0.25}]),
    "a mask": setting("mask_path", to="/masks/25.pt"),
    "a score of another kind": setting("flops", to=1e12),
}
SAME: dict[str, Change] = {
    "date": setting("date", to=1.0),
    "start": setting("start_time", to=5.5),
    "duration": setting("total_evaluation_time_seconds", to="99"),
    "time of a fork": setting("time", to={"eval": 85.1}),
    "time within": setting("timing", "eval_time", to=3),
    "versions": setting("lm_eval_version", to="0.4.9"),
    "environment": setting("pretty_env_info", to="other machine"),
    "code": setting("git_hash", to="abc123"),
    "host": setting("hostname", to="node7"),
    "output": setting("output_path", to="/elsewhere/out"),
}


def run_of(folder: Path, data: dict[str, Any]) -> Run:
    """The run of a results file without samples."""
    folder.mkdir(parents=True)
    file = folder / "results_2026-01-02T03-04-05.678901.json"
    file.write_text(json.dumps(data))
    (found,) = find_runs(file)
    assert isinstance(found, Candidate)
    (run,) = read_runs(found)
    return run


@pytest.fixture
def results(made: Any, kit: Any) -> dict[str, Any]:
    """A results file of lm-eval's as data."""
    found: dict[str, Any] = json.loads(made.plain({"sums": kit.pair(50, 20)[0]}, samples=False).read_text())
    return found


def changed(data: dict[str, Any], change: Change) -> dict[str, Any]:
    """A copy with a change."""
    other = copy.deepcopy(data)
    change(other)
    return other


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_another_experiment_is_another_run(results: dict[str, Any], tmp_path: Path, name: str) -> None:
    first, other = (
        run_of(tmp_path / folder, data) for folder, data in (("a", results), ("b", changed(results, EXPERIMENTS[name])))
    )
    assert first.run_id != other.run_id
    assert first.former_id == other.former_id and first.former_id != first.run_id  # which swallowed the second
    assert compare_paths(first.path, other.path).cells


@pytest.mark.parametrize("name", SAME)
def test_the_same_experiment_is_the_same_run(results: dict[str, Any], tmp_path: Path, name: str) -> None:
    first, again = (
        run_of(tmp_path / folder, data) for folder, data in (("a", results), ("b", changed(results, SAME[name])))
    )
    assert first.run_id == again.run_id
    with pytest.raises(LeaderboardError, match="hold the same run"):
        compare_paths(first.path, again.path)


def test_a_function_is_known_by_its_name_and_not_by_its_place_in_memory(
    results: dict[str, Any], tmp_path: Path
) -> None:
    texts = ("<function doc_to_text at 0x7d5febf3e8e0>", "<function doc_to_text at 0x777d78c0e840>", "<function other>")
    first, again, other = (
        run_of(tmp_path / str(number), changed(results, setting("configs", "sums", "doc_to_text", to=text)))
        for number, text in enumerate(texts)
    )
    assert first.run_id == again.run_id != other.run_id


def test_what_is_added_to_a_file_counts_with_samples_too(made: Any, kit: Any) -> None:
    """Eight pruned variants may answer alike; without an addition the id is that of before."""
    task, _ = kit.pair(50, 20)
    ids = set()
    for number in range(8):
        file = made.plain({"sums": task}, folder=f"pruned{number}")
        file.write_text(json.dumps({**json.loads(file.read_text()), "num_experts_to_prune": number}))
        (found,) = find_runs(file)
        assert isinstance(found, Candidate)
        ids |= {run.run_id for run in read_runs(found)}
    assert len(ids) == 8
    (found,) = find_runs(made.plain({"sums": task}, folder="as it is"))
    assert isinstance(found, Candidate)
    assert [run.former_id for run in read_runs(found)] == [None]


def test_shots_within_an_old_file_count(tmp_path: Path) -> None:
    """Before 0.4: the error and the versions were in no id."""
    old = {"results": {"sums": {"acc": 0.4, "acc_stderr": 0.03}}, "versions": {"sums": 0}}
    old |= {"config": {"model": "gpt2", "model_args": "pretrained=tiny"}}
    ids = {
        run_of(tmp_path / str(number), data).run_id
        for number, data in enumerate(
            [
                old,
                changed(old, setting("versions", "sums", to=1)),
                changed(old, setting("results", "sums", "acc_stderr", to=0.04)),
                changed(old, setting("pruned", to=0.5)),
            ]
        )
    }
    assert len(ids) == 4
