"""Run folders by the thousand, as a leaderboard sees them: receipts, results and samples, drawn with a fixed seed.

Each model has one baseline. After it come, in turn, a recipe, a control of it and another recipe; a few runs failed.
Answers are those of the baseline with some flipped, by how much depends on the recipe. `python -m
tests.benchmarks.run_folders FOLDER --runs 10000` writes them for a look by hand.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple

DATE = "2026-01-02T03-04-05.678901"
BEGUN = datetime(2026, 1, 2, tzinfo=timezone.utc)
CONTROL = "random-subspace"


class Extent(NamedTuple):
    """How much to write. documents: samples a task, 0 for none; matrices: rows of each edited run's receipt;
    failed_every: one run of so many failed, 0 for none.
    """

    runs: int
    tasks: int = 5
    documents: int = 5
    models: int = 10
    matrices: int = 2
    failed_every: int = 97


class Variant(NamedTuple):
    """What a run is of. control_of: the label of the recipe that it is a control of."""

    number: int
    model: str
    label: str
    control_of: str | None
    failed: bool

    @property
    def is_baseline(self) -> bool:
        return self.label == "baseline"


def variant(extent: Extent, number: int) -> Variant:
    """The run of a number, from 0. The first of each model are its baselines."""
    model, place = f"model{number % extent.models}", number // extent.models
    if place == 0:
        return Variant(number, model, "baseline", None, False)
    kind, group = (place - 1) % 3, (place - 1) // 3
    label = f"laser:rank={group + 1}" if kind == 2 else f"svd:rank={group + 1}"
    failed = bool(extent.failed_every) and number % extent.failed_every == extent.failed_every - 1
    return Variant(number, model, label, label if kind == 1 else None, failed)


def write_runs(root: Path, extent: Extent, first: int = 0) -> list[Path]:
    """Write the folders of all runs from the number `first` on."""
    names = [f"task{i:02}" for i in range(extent.tasks)]
    lines = {name: [_line(name, i) for i in range(extent.documents)] for name in names}
    return [_write_run(root, extent, variant(extent, number), lines) for number in range(first, extent.runs)]


def _write_run(root: Path, extent: Extent, of: Variant, lines: dict[str, list[str]]) -> Path:
    kind = "baseline" if of.is_baseline else of.label.partition(":")[0]
    folder = root / of.model / f"{kind}-{of.number:05}"
    folder.mkdir(parents=True)
    scores = {}
    for name, templates in lines.items():
        answers, text = _answers(of, name, templates, extent.documents or 100)
        scores[name] = sum(answers) / len(answers)
        if text and not of.failed:
            (folder / f"samples_{name}_{DATE}.jsonl").write_text(text)
    if not of.failed:
        results = _results(scores, of.model, extent.documents or 100)
        (folder / f"results_{DATE}.json").write_text(json.dumps(results))
    (folder / "receipt.json").write_text(json.dumps(_receipt(of, list(lines), extent.matrices)))
    return folder


def _answers(of: Variant, task: str, templates: list[str], count: int) -> tuple[list[bool], str]:
    """Whether each answer is right, and the samples file."""
    of_model = random.Random(f"{of.model} {task}")
    own = random.Random(f"{of.number} {task}")
    skill = random.Random(f"{of.label} {task}").uniform(0.2, 0.8)
    changing = 0.0 if of.is_baseline else random.Random(of.label).choice((0.02, 0.1, 0.4))
    answers, text = [], []
    for i in range(count):
        right = of_model.random() < 0.5
        if own.random() < changing:
            right = own.random() < (0.5 if of.control_of else skill)
        low, high = -9 * own.random() - 1, -own.random()
        first, second = (low, high) if right == bool(i % 2) else (high, low)
        answers.append(right)
        if templates:
            text.append(templates[i].format(first=first, second=second, acc=float(right)))
    return answers, "".join(text)


def sha(text: str) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


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
        "doc_hash": sha(json.dumps(doc)),
        "prompt_hash": sha(prompt),
        "target_hash": sha(str(i % 2)),
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


def _receipt(of: Variant, tasks: list[str], matrices: int) -> dict[str, Any]:
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
    edited = [
        matrix | {"name": f"layers.{i}.up.weight", "layer": i, "digest_after": sha(f"{of.number} {i}")}
        for i in range(0 if of.is_baseline or of.failed else matrices)
    ]
    label = f"{of.label}+{CONTROL}" if of.control_of else of.label
    control = {"control": CONTROL, "control_of": sha(of.control_of)} if of.control_of else {}
    failure = {"failure": {"kind": "non_finite_weight", "reason": "3 weights are NaN", "where": "layers.0.up.weight"}}
    return {
        "format": 1,
        "status": "failed" if of.failed else "complete",
        "spec_id": sha(f"{of.model}{label}"),
        "settings_id": sha("settings"),
        "variant_id": sha(f"{of.model}{label}variant"),
        "recipe_id": sha(label),
        "command": ["lm_eval", "run", "--recipe", of.label],
        "started": (BEGUN + timedelta(minutes=of.number)).isoformat(),
        "model": {
            "backend": "hf",
            "name": of.model,
            "pretrained": of.model,
            "revision": "main",
            "dtype": "float32",
            "device": "cpu",
            "model_type": "llama",
            "identity": sha(of.model),
            "parameters": 1000,
        },
        "recipe": {"name": of.label.partition(":")[0], "label": label, **control},
        "weights": {"digest_before": sha(of.model), "digest_after": sha(f"{of.model}{label if edited else ''}")},
        "matrices": edited,
        "totals": {"parameters_before": 1000, "parameters_after": 992 if edited else 1000},
        "tasks": {name: {} for name in tasks},
        **(failure if of.failed else {}),
    }


def main() -> None:
    """Write run folders from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for name in Extent._fields:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=Extent._field_defaults.get(name, 1000))
    given = vars(parser.parse_args())
    folder = given.pop("folder")
    print(f"{len(write_runs(folder, Extent(**given)))} runs under {folder}")


if __name__ == "__main__":
    main()
