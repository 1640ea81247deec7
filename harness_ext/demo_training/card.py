"""Write the embedded model's card from `spread.json` and `table.json`: `python -m harness_ext.demo_training.card`.

Its sentences stand in `card.md`. No figure of the tables is typed by hand; a test compares the shipped card with what
this module renders.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean
from typing import Any

from harness_ext.demo import demo_path
from harness_ext.demo_training import figures
from harness_ext.demo_training.finetune import FineTuning
from harness_ext.demo_training.spread import SPREAD, TASKS

TEMPLATE = Path(__file__).with_suffix(".md")


def _cell(values: list[float], percent: bool) -> str:
    scale, digits = (100, 1) if percent else (1, 2)
    low, middle, high = (f"{scale * value:.{digits}f}" for value in (min(values), mean(values), max(values)))
    return f"{middle} ({low} to {high})"


def table(rows: list[dict[str, Any]]) -> str:
    """A row for each recipe, in the order of `rows`."""
    lines = ["| recipe | " + " | ".join(f"`{task}`" for task in TASKS) + " |", "|---" * (len(TASKS) + 1) + "|"]
    for recipe in dict.fromkeys(row["recipe"] for row in rows):
        of_recipe = [row["scores"] for row in rows if row["recipe"] == recipe]
        cells = [_cell([scores[task] for scores in of_recipe], percent=task != "pronoun_bias") for task in TASKS]
        lines.append(f"| `{recipe}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def render() -> str:
    """The card's whole text."""
    from harness_ext.demo_training.data import vocabulary

    rows = json.loads(SPREAD.read_text(encoding="utf-8"))
    settings = json.loads((demo_path() / "training.json").read_text(encoding="utf-8"))["settings"]
    size = (demo_path() / "model.safetensors").stat().st_size
    seeds = sorted({row["seed"] for row in rows})
    return TEMPLATE.read_text(encoding="utf-8").format(
        parameters=_parameters(settings),
        megabytes=size / 1e6,
        vocabulary=len(vocabulary()),
        seeds=", ".join(map(str, seeds)),
        table=table(rows),
        full_table=figures.full_table(figures.read()),
        rate=FineTuning.learning_rate,
        shipped=settings["seed"],
        steps=settings["steps"],
    )


def _parameters(settings: dict[str, Any]) -> int:
    """Weights of a Llama without biases: embeddings, attention, gated MLP, norms."""
    from harness_ext.demo_training.data import vocabulary

    width, feed_forward = settings["width"], settings["feed_forward"]
    layer = 4 * width * width + 3 * width * feed_forward + 2 * width
    return len(vocabulary()) * width + settings["layers"] * layer + width


if __name__ == "__main__":
    (demo_path() / "README.md").write_text(render(), encoding="utf-8")
