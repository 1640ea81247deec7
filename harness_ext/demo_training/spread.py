"""Train the embedded model from several seeds, run recipes on each, and write what came out.

`python -m harness_ext.demo_training.spread --out DIR --seeds 1 2 3 --recipe laser ...` makes `DIR/seed-N` and
`DIR/results`, and writes `spread.json` beside this file, from which `harness_ext.demo_training.card` writes the model
card. Every number is read from a run directory of the project's own command, run in its own process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SPREAD = Path(__file__).resolve().parent / "spread.json"
TASKS = ("int_mult", "int_sum", "int_mult_clean", "int_sum_clean", "pronoun_bias")
PRIMARY = {**dict.fromkeys(TASKS, "acc,none"), "pronoun_bias": "log_odds,none"}


def scores(run: Path) -> dict[str, float]:
    """The primary metric of each task from one run directory."""
    (results,) = run.glob("results_*.json")
    found = json.loads(results.read_text(encoding="utf-8"))["results"]
    return {task: found[task][PRIMARY[task]] for task in TASKS}


def run_on_tasks(model: str) -> list[str]:
    """The words of a command that scores a model on the tasks."""
    words = ["run", "--model", "hf", "--model_args", f"pretrained={model}", "--tasks", ",".join(TASKS)]
    return [*words, "--device", "cpu", "--batch_size", "64"]


def evaluate(model: Path, output: Path, recipes: list[str]) -> None:
    """Run the baseline, `recipes` and a control at the budget of each on one model, with the project's own command."""
    command = [sys.executable, "-m", "harness_ext", *run_on_tasks(str(model)), "--output_path", str(output)]
    for recipe in recipes or ["baseline"]:
        command += ["--recipe", recipe]
    command += ["--control", "random-subspace"] if recipes else []
    subprocess.run(command, check=True)


def collect(output: Path, seeds: list[int]) -> list[dict[str, Any]]:
    """One row for each seed and recipe: `seed`, `recipe`, `scores`."""
    rows = []
    for receipt in sorted(output.glob("*/*/receipt.json")):
        content = json.loads(receipt.read_text(encoding="utf-8"))
        seed = int(Path(content["model"]["pretrained"]).name.removeprefix("seed-"))
        if seed in seeds and content["status"] == "complete":
            rows.append({"seed": seed, "recipe": content["recipe"]["label"], "scores": scores(receipt.parent)})
    return sorted(rows, key=lambda row: (row["recipe"] != "baseline", row["recipe"], row["seed"]))


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure how the embedded model varies with its seed.")
    parser.add_argument("--out", type=Path, required=True, help="folder for models and runs")
    parser.add_argument("--seeds", type=int, nargs="+", required=True, help="one model for each")
    parser.add_argument("--recipe", action="append", default=[], help="run this recipe too (repeatable)")
    options = parser.parse_args(arguments)
    from harness_ext.demo_training import train

    for seed in options.seeds:
        model = options.out / f"seed-{seed}"
        if not (model / "model.safetensors").is_file():
            train.main(["--out", str(model), "--seed", str(seed)])
        evaluate(model, options.out / "results", options.recipe)
    rows = collect(options.out / "results", options.seeds)
    SPREAD.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
