"""Every shipped recipe at its default on a trained language model: what toys don't show.

The model is SmolLM2-135M-Instruct in its own dtype, bfloat16; the documents are real (BIG-bench's QA WikiData). The
perplexity is computed here from the log-likelihoods that the runs stored, not taken from a metric.
"""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import NamedTuple

import pytest

import harness_ext as recipes
from harness_ext.recipe.recipe import shipped_names

pytestmark = pytest.mark.slow

DOCUMENTS = 100
TIMES_WORSE = 3.0
MUST_NOT_COLLAPSE = ("ablation-prune", "contrast-projection", "eigenprune", "eigenprune-greedy", "eigenprune-released")
EDITING = sorted(name for name in shipped_names() if name != "baseline")


class Variant(NamedTuple):
    """perplexity: of the right answers, whole. verdicts: by metric."""

    perplexity: float
    verdicts: dict[str, str]


class Made(NamedTuple):
    variants: dict[str, Variant]
    failed: dict[str, str]
    warnings: list[str]


@pytest.fixture(scope="module")
def made(smollm2: Path, real_tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        result = recipes.run(
            model_args={"pretrained": str(smollm2), "dtype": "bfloat16"},
            tasks=["real_wikidata"],
            include_path=str(real_tasks),
            recipes=EDITING,
            limit=DOCUMENTS,
            batch_size=16,
            device="cpu",
            output_path=tmp_path_factory.mktemp("results"),
        )
    frame = result.to_frame()
    variants = {}
    for run in result.runs:
        if not run.failed:
            label = run.receipt["recipe"]["label"]
            rows = frame[frame.label == label]
            variants[label] = Variant(answer_perplexity(run.path), dict(zip(rows.metric, rows.verdict, strict=True)))
    return Made(variants, result.failed, [str(one.message) for one in warned])


def answer_perplexity(run: Path) -> float:
    (samples,) = run.glob("samples_*.jsonl")
    lines = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == DOCUMENTS
    return math.exp(-sum(float(line["filtered_resps"][0][0]) for line in lines) / len(lines))


@pytest.mark.parametrize("name", EDITING)
def test_a_recipe_keeps_the_model_or_its_row_says_collapsed(made: Made, name: str) -> None:
    assert name not in made.failed
    recipe = made.variants[name]
    if recipe.perplexity > TIMES_WORSE * made.variants["baseline"].perplexity:
        assert set(recipe.verdicts.values()) == {"collapsed"}


@pytest.mark.parametrize("name", MUST_NOT_COLLAPSE)
def test_removing_components_does_not_collapse_the_model(made: Made, name: str) -> None:
    recipe = made.variants[name]
    assert recipe.perplexity <= TIMES_WORSE * made.variants["baseline"].perplexity
    assert "collapsed" not in recipe.verdicts.values()


def test_identity_in_the_models_own_dtype_raises_no_alarm(made: Made) -> None:
    assert not [warning for warning in made.warnings if "identity" in warning]
    assert set(made.variants["identity"].verdicts.values()) <= {"same", "undecided"}
