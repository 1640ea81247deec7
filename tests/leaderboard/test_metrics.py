"""The table of metrics: an entry is all that a new metric needs, for the readers, the judge and the history."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leaderboard import metrics
from leaderboard.compare.effect import Comparison, Effect, Scored
from leaderboard.compare.judge import judge
from leaderboard.metrics import Kind, Metric, Range
from leaderboard.readers.samples_reader import sample_score

MADE_UP = "made_up"
BEFORE, AFTER = np.tile([0.2, 0.4, 0.5, 0.7], 100), np.tile([0.3, 0.4, 0.5, 0.9], 100)


def judged(before: Scored, after: Scored) -> Effect:
    """With the direction that the readers store."""
    return judge(Comparison(MADE_UP, before, after, higher_is_better=metrics.direction(MADE_UP, None) is not False))


def means() -> Effect:
    return judged(*(Scored(float(values.mean()), values) for values in (BEFORE, AFTER)))


def test_the_judge_takes_direction_range_and_margin_of_a_new_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = means()
    assert unknown.drop is not None and unknown.drop < 0 and unknown.unit and unknown.margin == 0.02
    monkeypatch.setitem(metrics.METRICS, MADE_UP, Metric(False, range=Range(0.0, 10.0), scale=10.0))
    known = means()
    assert known.drop == pytest.approx(-unknown.drop) and known.drop > 0
    assert known.margin == pytest.approx(0.2) and not known.unit
    assert known.clipping.bound == pytest.approx(20 * known.margin) and unknown.clipping is None
    assert known.p_worse is not None and unknown.p_worse is not None and known.p_worse < 0.05 < unknown.p_worse


@pytest.mark.parametrize(("name", "field"), metrics.CLUSTERS.items())
def test_the_clusters_of_lm_evals_tasks_are_fields_that_it_names(name: str, field: str) -> None:
    tasks = pytest.importorskip("lm_eval.tasks", reason="lm-eval is not installed")
    word = next(part for part in re.split(r"_\*$|^super_glue-|-t5-prompt$|-seq2seq$", name) if part)
    root = Path(tasks.__path__[0])
    (folder,) = (place for place in (root / word, root / "super_glue" / word) if place.is_dir())
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix in (".py", ".yaml", "")]
    words = "\n".join(path.read_text(errors="ignore") for path in files)
    assert re.search(rf"\b{field}\b", words)


def test_a_new_metric_of_log_likelihoods_needs_its_kind_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    values, words = -np.linspace(20.0, 60.0, 50), np.full(50, 10.0)
    runs = [Scored(math.exp(-likelihoods.sum() / 500), likelihoods, words) for likelihoods in (values, values - 1.0)]
    assert judged(*runs).p_value is None  # nothing is known of it, and its score is not the mean of its samples
    assert sample_score(MADE_UP, [-3.0, 2]).weight is None
    monkeypatch.setitem(metrics.METRICS, MADE_UP, Metric(False, kind=Kind.PERPLEXITY, weighted=True))
    effect = judged(*runs)
    assert effect.drop == pytest.approx(runs[1].score - runs[0].score) and effect.p_worse is not None
    assert effect.margin == pytest.approx(0.02 * runs[0].score)
    assert sample_score(MADE_UP, [-3.0, 2]).weight == 2


def test_a_new_metric_of_a_confusion_table_needs_its_function(monkeypatch: pytest.MonkeyPatch) -> None:
    def accuracy(table: np.ndarray) -> np.ndarray:
        return (table[:, 0, 0] + table[:, 1, 1]) / table.sum(axis=(1, 2))

    wrong, right = [f"[{i % 2}, {(i + 1) % 2}]" for i in range(40)], [f"[{i % 2}, {i % 2}]" for i in range(40)]
    runs = [
        Scored(share, np.full(40, np.nan), None, wrong[:part] + right[part:]) for share, part in ((0.75, 10), (1, 0))
    ]
    assert "no paired test" in judged(*runs).notes[0]
    entry = Metric(True, range=Range(0.0, 1.0), kind=Kind.CONFUSION, of_table=accuracy)
    monkeypatch.setitem(metrics.METRICS, MADE_UP, entry)
    effect = judged(*runs)
    assert effect.improvement == pytest.approx(0.25) and effect.unit and (effect.p_value or 1.0) < 0.05


def test_files_that_give_no_direction_get_that_of_the_table(
    made: Any, kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(metrics.METRICS, MADE_UP, Metric(False, range=Range(0.0, 1.0), scale=1.0))
    before, after = kit.binary(200, 80, gained=60)
    for recipe, values in (("baseline", before), ("laser", after)):
        made.run(recipe, {"sums": kit.Task({MADE_UP: values}, higher_is_better={MADE_UP: None})})
    verdicts = {cell.recipe: cell.verdict for cell in made.board()}
    assert verdicts == {"baseline": "baseline", "laser": "worse"}


@pytest.mark.parametrize(
    ("metric", "direction", "best", "values"),
    [
        ("acc", True, None, (0, 1)),
        ("mcc", True, None, (-1, 1)),
        ("ter", False, None, (0, math.inf)),
        ("ppl", False, None, (1, math.inf)),
        ("pct_stereotype", None, 0.5, (0, 1)),
        ("amb_bias_score_Age", None, 0.0, (-math.inf, math.inf)),
        ("nobody_knows", None, None, (-math.inf, math.inf)),
    ],
)
def test_what_is_known(metric: str, direction: bool | None, best: float | None, values: tuple[float, float]) -> None:
    assert metrics.direction(metric, None) is direction
    assert metrics.best_value(metric, None) == best
    assert metrics.value_range(metric) == values
    assert metrics.direction(metric, False) is False and metrics.best_value(metric, 3.0) == 3.0
