"""Every shipped recipe at its default on a trained language model: what toys don't show.

The model is SmolLM2-135M-Instruct in its own dtype, bfloat16; the documents are real (BIG-bench's QA WikiData). The
perplexity is computed here from the log-likelihoods that the runs stored, not taken from a metric.
"""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import pytest
from filelock import FileLock

import harness_ext as recipes
from harness_ext.recipe.recipe import shipped_names

DOCUMENTS = 100
TIMES_WORSE = 3.0
COLLAPSES = 10.0
"""Times the perplexity a word from which on the rule speaks of a collapse."""
BETWEEN = {"aa-svd"}
"""Worse than others that live, and short of the rule: 3.3 times as measured, which is no collapse."""
MUST_NOT_COLLAPSE = {"ablation-prune", "contrast-projection", "eigenprune", "eigenprune-greedy", "eigenprune-released"}
EVERY_TIME = MUST_NOT_COLLAPSE - {"ablation-prune"} | {"a3", "aa-svd", "basis-sharing", "laser", "svd-llm"}
"""The others take minutes each, or are made by the same functions with other settings."""
EDITING = [
    pytest.param(name, marks=pytest.mark.slow if name in EVERY_TIME else pytest.mark.long)
    for name in shipped_names()
    if name != "baseline"
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all workers of a test run, so that the baseline is scored once."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if base.name.startswith("popen-") else base) / "trained-model"


def answer_perplexity(run: Path) -> float:
    (samples,) = run.glob("samples_*.jsonl")
    lines = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == DOCUMENTS
    return math.exp(-sum(float(line["filtered_resps"][0][0]) for line in lines) / len(lines))


@pytest.mark.parametrize("name", EDITING)
def test_a_recipe_keeps_the_model_or_its_rows_say_collapsed(
    smollm2: Path, real_tasks: Path, results: Path, name: str
) -> None:
    def run(of: str) -> recipes.RunResult:
        return recipes.run(
            model_args={"pretrained": str(smollm2), "dtype": "bfloat16"},
            tasks=["real_wikidata"],
            include_path=str(real_tasks),
            recipes=[of],
            limit=DOCUMENTS,
            batch_size=16,
            device="cpu",
            output_path=results,
        )

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with FileLock(f"{results}.lock"):
            run("baseline")
        result = run(name)
    assert not result.failed
    baseline, edited = (answer_perplexity(run.path) for run in result.runs)
    frame = result.to_frame()
    verdicts = set(frame[frame.recipe == name].verdict)
    assert verdicts
    if name in BETWEEN:
        assert edited < COLLAPSES * baseline and "collapsed" not in verdicts
    elif edited > TIMES_WORSE * baseline:
        assert verdicts == {"collapsed"}
    if name in MUST_NOT_COLLAPSE:
        assert edited <= TIMES_WORSE * baseline and "collapsed" not in verdicts
    if name == "identity":
        assert verdicts <= {"same", "undecided"}
        assert not [one for one in warned if "identity" in str(one.message)]
