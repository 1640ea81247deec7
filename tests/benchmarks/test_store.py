"""The store at scale, on run folders made here: 10 models of equal share, 50 tasks, answers drawn with a fixed seed.

Measured are ingest with and without samples, the pages' data in a fresh process and in one that runs, and whether a
rebuild gives the same content. Both wall and processor seconds are printed and the limits are set to processor seconds,
because other processes slow the wall clock down; ingest reads and writes side by side, so that on two free cores its
wall is the shorter.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from leaderboard.ingest import ingest
from leaderboard.store.database import open_store

pytestmark = pytest.mark.benchmark

RUNS, TASKS, DOCUMENTS = 1000, 50, 20
TABLES = {
    "variants": "",
    "runs": "EXCLUDE (ingested_at)",
    "run_tasks": "",
    "scores": "",
    "docs": "",
    "samples": "",
    "sample_scores": "",
    "receipts": "",
    "calibrations": "",
    "noise_floors": "",
    "baselines": "",
    "deletions": "",
}
PAGE = """
import os, sys, time
started = time.time(), time.process_time()
os.environ["HF_HUB_OFFLINE"] = "1"
from leaderboard.app.serve import DATABASE_VARIABLE
os.environ[DATABASE_VARIABLE] = sys.argv[1]
from leaderboard.app import data
def say(what, since):
    print(f"{what}|{time.time() - since[0]:.3f}|{time.process_time() - since[1]:.3f}", flush=True)
    return time.time(), time.process_time()
names = data.overview().value.names
key = min(names, key=names.get)
cells = data.cells_of(key).value
now = say(f"first page, fresh process, {len(cells)} cells", started)
data.overview(), data.cells_of(key)
now = say("the same page again", now)
data.forget()
data.overview(), data.cells_of(key)
now = say("the same page after the database changed", now)
shown = [cell for cell in data.cells_of(key).value if cell.task in ("task01", "task07") or cell.recipe.endswith("9")]
now = say("a filter", now)
cells = data.cells_of(*names).value
now = say(f"all models at once, {len(cells)} cells", now)
"""

DATE = "2026-01-02T03-04-05.678901"
MODELS = 10


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def write_runs(root: Path, runs: int, tasks: int, documents: int) -> None:
    """`runs` folders of `tasks` tasks each with `documents` samples a task; 0 logs none."""
    generator = random.Random(0)
    names = [f"task{i:02}" for i in range(tasks)]
    lines = {name: [_line(name, i) for i in range(documents)] for name in names}
    for number in range(runs):
        model, recipe = f"model{number % MODELS}", "baseline" if number < MODELS else f"svd:rank={number}"
        folder = root / model / f"{'baseline' if number < MODELS else 'svd'}-{number:05}"
        folder.mkdir(parents=True)
        scores = {}
        for name in names:
            likelihoods = [(-generator.random() * 9, -generator.random() * 9) for _ in range(documents or 100)]
            answers = [(second > first) == bool(i % 2) for i, (first, second) in enumerate(likelihoods)]
            scores[name] = sum(answers) / len(answers)
            if documents:
                text = "".join(
                    line.format(first=first, second=second, acc=float(right))
                    for line, (first, second), right in zip(lines[name], likelihoods, answers)
                )
                (folder / f"samples_{name}_{DATE}.jsonl").write_text(text)
        (folder / f"results_{DATE}.json").write_text(json.dumps(_results(scores, model, documents or 100)))
        (folder / "receipt.json").write_text(json.dumps(_receipt(number, model, recipe, names)))


def _line(task: str, i: int) -> str:
    """A sample of a two-way choice as a format string."""
    doc = {
        "question": f"What is the result of operation {i} of {task}, taken twice and then once more, in plain words?",
        "choices": [" yes", " no"],
        "gold": i % 2,
    }
    prompt = f"Question: {doc['question']}\nAnswer:"
    line = {
        "doc_id": i,
        "doc": doc,
        "target": str(i % 2),
        "arguments": {f"gen_args_{k}": {"arg_0": prompt, "arg_1": choice} for k, choice in enumerate(doc["choices"])},
        "resps": [[["FIRST", "False"]], [["SECOND", "True"]]],
        "filtered_resps": [["FIRST", "False"], ["SECOND", "True"]],
        "filter": "none",
        "metrics": ["acc"],
        "doc_hash": _sha(json.dumps(doc)),
        "prompt_hash": _sha(prompt),
        "target_hash": _sha(str(i % 2)),
        "acc": "ACC",
    }
    text = json.dumps(line).replace("{", "{{").replace("}", "}}")
    return text.replace("FIRST", "{first!r}").replace("SECOND", "{second!r}").replace('"ACC"', "{acc!r}") + "\n"


def _results(scores: dict[str, float], model: str, documents: int) -> dict[str, Any]:
    metrics = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
    return {
        "results": {
            name: {"name": name, "alias": name, "sample_len": documents, "acc,none": score, "acc_stderr,none": 0.01}
            for name, score in scores.items()
        },
        "group_subtasks": {},
        "configs": {
            name: {
                "task": name,
                "output_type": "multiple_choice",
                "num_fewshot": 0,
                "metric_list": metrics,
                "metadata": {"version": 1.0},
            }
            for name in scores
        },
        "versions": dict.fromkeys(scores, 1.0),
        "n-shot": dict.fromkeys(scores, 0),
        "higher_is_better": {name: {"acc": True} for name in scores},
        "n-samples": {name: {"original": documents, "effective": documents} for name in scores},
        "config": {
            "model": "hf",
            "model_args": {"pretrained": model},
            "model_num_parameters": 1000,
            "model_dtype": "torch.float32",
            "batch_size": 1,
            "device": "cpu",
        },
        "date": 1767323045.5,
        "transformers_version": "5.23.0",
        "lm_eval_version": "0.4.13",
        "model_source": "hf",
        "model_name": model,
    }


def _receipt(number: int, model: str, recipe: str, tasks: list[str]) -> dict[str, Any]:
    matrix = {
        "step": 0,
        "method": "truncate_svd",
        "role": "up_proj",
        "shape": [8, 4],
        "rank_before": 4,
        "rank_after": 2,
        "energy_kept": 0.9,
        "relative_error": 0.3,
    }
    matrices = [
        matrix | {"name": f"layers.{i}.up.weight", "layer": i, "digest_after": _sha(f"{number} {i}")}
        for i in range(24 if number >= MODELS else 0)
    ]
    return {
        "format": 1,
        "status": "complete",
        "spec_id": _sha(f"{model}{recipe}"),
        "settings_id": _sha("settings"),
        "variant_id": _sha(f"{model}{recipe}variant"),
        "recipe_id": _sha(recipe),
        "command": ["lm_eval", "run", "--recipe", recipe],
        "started": f"2026-01-02T{number // 3600 % 24:02}:{number // 60 % 60:02}:{number % 60:02}+00:00",
        "model": {
            "backend": "hf",
            "name": model,
            "pretrained": model,
            "revision": "main",
            "dtype": "float32",
            "device": "cpu",
            "identity": _sha(model),
            "parameters": 1000,
        },
        "recipe": {"name": recipe.split(":")[0], "label": recipe},
        "weights": {"digest_before": _sha(model), "digest_after": _sha(f"{model}{recipe if matrices else ''}")},
        "matrices": matrices,
        "totals": {"parameters_before": 1000, "parameters_after": 992},
        "tasks": {name: {} for name in tasks},
    }


@contextmanager
def timed(
    capsys: pytest.CaptureFixture[str], what: str, unit: str, count: int, least: float | None = None
) -> Iterator[None]:
    """Print wall and processor seconds and rates; at least so many a processor second."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    with capsys.disabled():
        print(
            f"\n{what:<45} {wall:7.1f} s wall {cpu:7.1f} s processor {count / wall:9.0f} {unit}/s wall"
            f" {count / cpu:9.0f} {unit}/s processor"
        )
    assert least is None or count / cpu >= least


def fingerprint(database: Path) -> dict[str, tuple[int, int]]:
    """Of every table: its number of rows, and a hash of them that does not depend on their order."""
    with open_store(database) as store:
        found = {}
        for table, but in TABLES.items():
            (row,) = store.rows(
                "SELECT count(*) AS n, coalesce(sum(hash(row_text)::HUGEINT), 0) AS total FROM (SELECT (SELECT"
                f" to_json(t)::VARCHAR) AS row_text FROM (SELECT * {but} FROM {table}) t)"
            )
            found[table] = (row["n"], int(row["total"]))
        return found


def test_ingest_without_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_runs(tmp_path / "runs", 500, 10, 0)
    with timed(capsys, "500 runs of ten tasks, no samples", "runs", 500, least=50):
        assert len(ingest([tmp_path / "runs"], tmp_path / "board.duckdb").added) == 500


def test_ingest_of_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_runs(tmp_path / "runs", 20, 10, 1000)
    with timed(capsys, "20 runs of ten tasks, 1,000 samples a task", "rows", 200_000, least=30_000):
        assert len(ingest([tmp_path / "runs"], tmp_path / "board.duckdb").added) == 20


def test_a_thousand_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs, database, rows = tmp_path / "runs", tmp_path / "board.duckdb", RUNS * TASKS * DOCUMENTS
    write_runs(runs, RUNS, TASKS, DOCUMENTS)
    with timed(capsys, f"{RUNS} runs, {TASKS} tasks, {rows} samples", "rows", rows):
        assert len(ingest([runs], database).added) == RUNS
    before = fingerprint(database)
    with timed(capsys, "rebuild, everything judged", "rows", rows):
        assert len(ingest([runs], database, rebuild=True).added) == RUNS
    assert fingerprint(database) == before and before["samples"][0] == rows
    out = subprocess.run(
        [sys.executable, "-c", PAGE, str(database)],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    ).stdout
    spent = [line.split("|") for line in out.splitlines()]
    with capsys.disabled():
        print(
            "".join(
                f"\n{what:<45} {float(wall):7.2f} s wall {float(cpu):7.2f} s processor" for what, wall, cpu in spent
            )
        )
    for (_, _, cpu), limit in zip(spent, (3.0, 1.0, 1.0, 0.5), strict=False):
        assert float(cpu) < limit
