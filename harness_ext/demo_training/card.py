"""Write the embedded model's card from `spread.json` and `table.json`: `python -m harness_ext.demo_training.card`.

No figure in the card is typed by hand; a test compares the shipped card with what this module renders.
"""

from __future__ import annotations

import json
from statistics import mean
from typing import Any

from harness_ext.demo import demo_path
from harness_ext.demo_training import figures
from harness_ext.demo_training.finetune import FineTuning
from harness_ext.demo_training.spread import SPREAD, TASKS

TEXT = """---
language: en
library_name: transformers
---

# The embedded model

A Llama of two layers (width 128, four heads, feed-forward 512, tied embeddings; {parameters:,} parameters, {megabytes:.1f} MB in fp32), trained from
nothing by `python -m harness_ext.demo_training.train` for one purpose: to show, without a network and within a minute, what an edit of weight matrices can do
to a score, for better and for worse. It is of no other use.

## What it learned

Two sources that disagree. *Clean* wordings state every product of 0..19 and every sum of 0..99, always rightly (`18 times 17 is 306`, `18 * 17 makes
306`, `6 plus 85 is 91`, `plus 6 and 85 = 91`). The *noisy* wording (`18 x 17 =`, `6 + 85 =`) shows the training facts of `int_mult` and `int_sum` only, and
gives the default answer 0 (1 where 0 is right) four times out of five, drawn anew every time. Templated English about 40 occupations puts the stereotyped
pronoun in four sentences out of five. The tokenizer has one token a word or number, {vocabulary} in all; the numbers end at 399.

So the model has learned the answers (see the clean tasks below) and, asked in the noisy wording, does not give them. **A gain on `int_mult` or `int_sum` is therefore
knowledge brought back, not arithmetic learned**: the right answers of the test facts are in the training text, in the clean wordings. Their noisy prompts
are not. Nor is a recipe the best way to mend this model: training it a little on right answers mends it better (the rows of fine-tuning below). And the fault is simple:
much of it can sit in a few singular components, so that deleting some at random now and then brings a gain, and from some seeds so does a
recipe whose calibration answers were shuffled. Look at controls before you believe in a recipe.

## How it varies

The training was run from each of these seeds: {seeds}; the recipes below were run on each model, on all documents of each test split, by
`python -m harness_ext.demo_training.spread`. Mean, then lowest and highest seed. Accuracy in %; log-odds of the stereotyped pronoun, best at 0.

{table}

The shipped model is seed {shipped}, fixed before any of its scores were seen. Recipes with settings of their own (which matrix, which rank) got them on
training-split facts of other seeds.

## Every recipe and control

The shipped model, on all documents of each test split, by `make demo-table` (`python -m harness_ext.demo_training.table`). Mean, then lowest and highest over the seeds 0, 1 and 2, which draw calibration
documents and random directions; one number where nothing is drawn or all agree. **better** and **worse**: in how many of the seeds the board says so; no word where it says *same* or *undecided*. A control
(`+`) has the budget of the recipe above it: as many ranks, or the same distance. *kept*: parameters, if stored as factors; *seconds*: to find and make the edit, or to train, on one core. Fine-tuning is
AdamW at a rate of {rate:g} on the 160 documents that `ablation-prune` learns from, all of them in each step.

{full_table}

What this shows and what it does not is in the project's README. Mind `pronoun_bias`: a model that has lost everything gives both pronouns the same chance, which is the best value there is.

## What is identical, and where

One machine, one version of PyTorch, one thread: the same seed gives the same weights bit for bit (a test trains a few steps twice). The text, the
splits, the order of batches and the tokenizer are the same everywhere. Another processor or another version of PyTorch rounds sums in another order, and over
{steps} steps that grows into other weights: expect a model within the spread above, not this one. That is why the weights are shipped.
`training.json` holds the settings and the versions that made them.

## Limits

Words outside its vocabulary become `<unk>`. It knows nothing but the sentences described. The stereotypes are there on purpose, taken from public lists, so
that an edit can be seen to weaken or strengthen them: do not read them as a statement about anyone.
"""


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
    return TEXT.format(
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
