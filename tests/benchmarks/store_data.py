"""Run folders made in bulk for the benchmarks of the store, in the form of lm-eval 0.4.13 and of our receipts.

Notable choices: 10 models of equal share, the first run of each is its baseline; every document of a task is the same text for all runs; answers are drawn with a fixed seed and a
log-likelihood is never drawn twice, so that no run looks like another's copy.
"""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

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
            answers = [generator.random() < 0.6 for _ in range(documents or 100)]
            scores[name] = sum(answers) / len(answers)
            if documents:
                text = "".join(line.format(first=-generator.random() * 9, second=-generator.random() * 9, acc=float(right)) for line, right in zip(lines[name], answers))
                (folder / f"samples_{name}_{DATE}.jsonl").write_text(text)
        (folder / f"results_{DATE}.json").write_text(json.dumps(_results(scores, model, documents or 100)))
        (folder / "receipt.json").write_text(json.dumps(_receipt(number, model, recipe, names)))


def _line(task: str, i: int) -> str:
    """A sample of a two-way choice as a format string."""
    doc = {"question": f"What is the result of operation {i} of {task}, taken twice and then once more, in plain words?", "choices": [" yes", " no"], "gold": i % 2}
    prompt = f"Question: {doc['question']}\nAnswer:"
    line = {
        "doc_id": i, "doc": doc, "target": str(i % 2), "arguments": {f"gen_args_{k}": {"arg_0": prompt, "arg_1": choice} for k, choice in enumerate(doc["choices"])},
        "resps": [[["FIRST", "False"]], [["SECOND", "True"]]], "filtered_resps": [["FIRST", "False"], ["SECOND", "True"]], "filter": "none", "metrics": ["acc"],
        "doc_hash": _sha(json.dumps(doc)), "prompt_hash": _sha(prompt), "target_hash": _sha(str(i % 2)), "acc": "ACC",
    }  # fmt: skip
    text = json.dumps(line).replace("{", "{{").replace("}", "}}")
    return text.replace("FIRST", "{first!r}").replace("SECOND", "{second!r}").replace('"ACC"', "{acc!r}") + "\n"


def _results(scores: dict[str, float], model: str, documents: int) -> dict[str, Any]:
    metrics = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
    return {
        "results": {name: {"name": name, "alias": name, "sample_len": documents, "acc,none": score, "acc_stderr,none": 0.01} for name, score in scores.items()},
        "group_subtasks": {},
        "configs": {name: {"task": name, "output_type": "multiple_choice", "num_fewshot": 0, "metric_list": metrics, "metadata": {"version": 1.0}} for name in scores},
        "versions": dict.fromkeys(scores, 1.0), "n-shot": dict.fromkeys(scores, 0), "higher_is_better": {name: {"acc": True} for name in scores},
        "n-samples": {name: {"original": documents, "effective": documents} for name in scores},
        "config": {"model": "hf", "model_args": {"pretrained": model}, "model_num_parameters": 1000, "model_dtype": "torch.float32", "batch_size": 1, "device": "cpu"},
        "date": 1767323045.5, "transformers_version": "5.23.0", "lm_eval_version": "0.4.13", "model_source": "hf", "model_name": model,
    }  # fmt: skip


def _receipt(number: int, model: str, recipe: str, tasks: list[str]) -> dict[str, Any]:
    matrix = {"step": 0, "method": "truncate_svd", "role": "up_proj", "shape": [8, 4], "rank_before": 4, "rank_after": 2, "energy_kept": 0.9, "relative_error": 0.3}
    matrices = [matrix | {"name": f"layers.{i}.up.weight", "layer": i, "digest_after": _sha(f"{number} {i}")} for i in range(24 if number >= MODELS else 0)]
    return {
        "format": 1, "status": "complete", "spec_id": _sha(f"{model}{recipe}"), "settings_id": _sha("settings"), "variant_id": _sha(f"{model}{recipe}variant"),
        "recipe_id": _sha(recipe), "command": ["lm_eval", "run", "--recipe", recipe], "started": f"2026-01-02T{number // 3600 % 24:02}:{number // 60 % 60:02}:{number % 60:02}+00:00",
        "model": {"backend": "hf", "name": model, "pretrained": model, "revision": "main", "dtype": "float32", "device": "cpu", "identity": _sha(model), "parameters": 1000},
        "recipe": {"name": recipe.split(":")[0], "label": recipe}, "weights": {"digest_before": _sha(model), "digest_after": _sha(f"{model}{recipe if matrices else ''}")},
        "matrices": matrices, "totals": {"parameters_before": 1000, "parameters_after": 992}, "tasks": {name: {} for name in tasks},
    }  # fmt: skip
