"""A command of two ranks gives what the command of one process gives, to the bit; and killed anywhere, it ends, keeps
what was complete and goes on.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.harness_ext.ranks.launching import SECONDS, TORCHRUN, accelerate, torchrun

OF_THE_TIME = {
    *("started", "finished", "seconds", "speed", "files", "command", "date", "start_time", "end_time", "ran_on"),
    *("total_evaluation_time_seconds", "tokens_per_second_before", "tokens_per_second_after"),
    *("generated_tokens_per_second_before", "generated_tokens_per_second_after"),
}
TASKS = {
    "texts": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - {metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
""",
    "gens": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 5}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
""",
    "choices": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: 0
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
""",
}
CHOICES = 20
"""Of each question: 21 of them make more than 400 log-likelihoods."""


def write_tasks(folder: Path) -> None:
    """Texts of several windows, and questions, none as long as another."""
    draw = random.Random(0)
    rows = [
        {
            "question": f"{draw.randint(1, 999)} times {draw.randint(1, 99)}",
            "answer": str(number),
            "choices": [f" {draw.randint(0, 10 ** draw.randint(1, 6))}" for _ in range(CHOICES)],
            "text": " ".join(str(draw.randint(0, 999)) for _ in range(draw.randint(3, 90))),
        }
        for number in range(21)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in TASKS.items():
        data = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder / 'rows.jsonl'}}}}}\n"
        (folder / f"{name}.yaml").write_text(
            f"task: {name}\n{data}test_split: test\nmetadata: {{version: 1.0}}\n{text}"
        )


def asked(output: Path, *more: str) -> list[str]:
    fixed = ["-m", "harness_ext", "run", "--model", "hf", "--batch_size", "4", "--output_path", str(output)]
    return [*fixed, *more]


def one_process(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def runs(folder: Path) -> dict[str, Path]:
    return {path.parent.name: path.parent for path in folder.glob("demo/[!.]*/receipt.json")}


def of_all_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: of_all_times(one) for key, one in value.items() if key not in OF_THE_TIME}
    return [of_all_times(one) for one in value] if isinstance(value, list) else value


def contents(folder: Path) -> dict[str, Any]:
    """Samples as bytes; receipt and results without times; by the names of files without theirs."""
    return {
        path.name.partition("_20")[0]: path.read_bytes()
        if path.suffix == ".jsonl"
        else of_all_times(json.loads(path.read_text(encoding="utf-8")))
        for path in sorted(folder.iterdir())
    }


def assert_same(one: Path, other: Path) -> None:
    ours, theirs = runs(one), runs(other)
    assert ours.keys() == theirs.keys() and ours
    for name in ours:
        assert contents(ours[name]) == contents(theirs[name]), name


def samples(folder: Path, task: str) -> list[dict[str, Any]]:
    """Of the baseline."""
    (run,) = (path for name, path in runs(folder).items() if name.startswith("baseline"))
    (file,) = run.glob(f"samples_{task}_*.jsonl")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_two_ranks_give_what_one_process_gives(tmp_path: Path) -> None:
    """Of texts, generations, words to predict, and more than 400 log-likelihoods of choices."""
    write_tasks(tmp_path)
    tasks = ["--tasks", "texts,gens,choices,int_sum", "--include_path", str(tmp_path), "--limit", "21"]
    more = [
        "--model_args",
        "pretrained=demo",
        *tasks,
        "--recipe",
        "svd",
        "laser-search",
        "--control",
        "random-subspace",
    ]
    alone = one_process(*asked(tmp_path / "one", *more))
    together = torchrun(*asked(tmp_path / "two", *more))
    said = alone.communicate(timeout=SECONDS)[0]
    assert alone.returncode == 0 and together.returncode == 0, said + together.stdout
    assert together.stdout.count("Model demo: 2 recipes on 4 tasks") == 1
    assert len(runs(tmp_path / "two")) == 5
    assert sum(len(sample["resps"]) for sample in samples(tmp_path / "two", "choices")) == 21 * CHOICES > 400
    assert_same(tmp_path / "one", tmp_path / "two")
    left = [path.name for folder in (tmp_path / "two", tmp_path / "two" / "demo") for path in folder.glob(".*")]
    assert left == []


@pytest.mark.slow
def test_accelerate_launch_gives_what_one_process_gives(tmp_path: Path) -> None:
    write_tasks(tmp_path)
    tasks = ["--tasks", "choices,int_mult", "--include_path", str(tmp_path), "--limit", "21"]
    more = ["--model_args", "pretrained=demo", *tasks, "--recipe", "svd", "--control", "random-subspace"]
    alone = one_process(*asked(tmp_path / "one", *more))
    together = accelerate(*asked(tmp_path / "two", *more))
    said = alone.communicate(timeout=SECONDS)[0]
    assert alone.returncode == together.returncode == 0, said + together.stdout
    assert [receipt["ran_on"]["ranks"] for receipt in receipts(tmp_path / "two").values()] == [2, 2, 2]
    assert together.stdout.count("Model demo: 1 recipe on 2 tasks") == 1
    assert_same(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_searches_and_trainings_are_those_of_one_process(tmp_path: Path) -> None:
    recipes = ["laser", "zero-sum", "sfsd", "laser-compose", "eigenprune-greedy"]
    more = ["--model_args", "pretrained=demo", "--tasks", "int_sum,int_mult", "--limit", "50", "--recipe", *recipes]
    alone = one_process(*asked(tmp_path / "one", *more))
    together = torchrun(*asked(tmp_path / "two", *more))
    said = alone.communicate(timeout=SECONDS)[0]
    assert alone.returncode == together.returncode == 0, said + together.stdout
    assert_same(tmp_path / "one", tmp_path / "two")


def receipts(folder: Path) -> dict[str, dict[str, Any]]:
    found = [json.loads((path / "receipt.json").read_text(encoding="utf-8")) for path in runs(folder).values()]
    return {receipt["recipe"]["label"]: receipt for receipt in found}


def answers(folder: Path) -> dict[str, list[float]]:
    """The log-likelihoods of every run, by the recipe's label."""
    found = {}
    for path in runs(folder).values():
        label = json.loads((path / "receipt.json").read_text(encoding="utf-8"))["recipe"]["label"]
        samples = [
            json.loads(line) for file in sorted(path.glob("samples_*")) for line in file.read_text().splitlines()
        ]
        found[label] = [float(one[0]) for sample in samples for one in sample["filtered_resps"]]
    return found


@pytest.mark.slow
def test_a_model_cut_over_two_ranks(tmp_path: Path) -> None:
    """Weights before and after equal those of one process to the bit; scores but for the order of sums."""
    more = ["--tasks", "int_sum", "--limit", "40", "--recipe", "svd", "magnitude", "--control", "noise"]
    alone = one_process(*asked(tmp_path / "one", "--model_args", "pretrained=demo", *more))
    together = torchrun(*asked(tmp_path / "two", "--model_args", "pretrained=demo,tp_plan=auto", *more))
    said = alone.communicate(timeout=SECONDS)[0]
    assert alone.returncode == together.returncode == 0, said + together.stdout
    ours, theirs = receipts(tmp_path / "one"), receipts(tmp_path / "two")
    assert ours.keys() == theirs.keys() and len(ours) == 5
    for label, receipt in ours.items():
        assert receipt["weights"] == theirs[label]["weights"]
        assert receipt["totals"]["parameters_after"] == theirs[label]["totals"]["parameters_after"]
    scored = answers(tmp_path / "two")
    for label, values in answers(tmp_path / "one").items():
        assert values == pytest.approx(scored[label], abs=1e-3)


def whole(folder: Path, labels: Sequence[str]) -> set[str]:
    """The labels of the runs that stand; each must be whole."""
    found = receipts(folder)
    for path in runs(folder).values():
        assert len(list(path.glob("results_*.json"))) == 1 and len(list(path.glob("samples_*.jsonl"))) == 1
    assert set(found) <= set(labels) and all(receipt["status"] == "complete" for receipt in found.values())
    return set(found)


@pytest.mark.long
def test_a_rank_killed_at_a_random_time(tmp_path: Path) -> None:
    more = ["--model_args", "pretrained=demo", "--tasks", "int_sum", "--limit", "40", "--recipe", "svd", "laser-search"]
    command, labels = asked(tmp_path / "two", *more), ["baseline", "svd", "laser-search"]
    started = time.monotonic()
    assert torchrun(*asked(tmp_path / "undisturbed", *more)).returncode == 0
    seconds, draw = time.monotonic() - started, random.Random(3)
    for _ in range(10):
        before = whole(tmp_path / "two", labels) if (tmp_path / "two").exists() else set()
        process = subprocess.Popen(
            [sys.executable, *TORCHRUN, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        time.sleep(draw.uniform(0.2, 1) * seconds)
        ranks = children(process.pid)
        if ranks:
            os.kill(draw.choice(ranks), signal.SIGKILL)
        process.communicate(timeout=60)
        assert before <= whole(tmp_path / "two", labels)
    again = torchrun(*command)
    assert again.returncode == 0, again.stdout
    assert_same(tmp_path / "undisturbed", tmp_path / "two")


def children(process: int) -> list[int]:
    import psutil

    try:
        return [child.pid for child in psutil.Process(process).children()]
    except psutil.NoSuchProcess:
        return []
