"""The words on the board, on data whose answer is known."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leaderboard import statistics
from leaderboard.board.board import board
from leaderboard.board.cell import Cell, with_verdicts
from leaderboard.ingest import ingest
from leaderboard.store.database import open_store
from tests.leaderboard.board.judging import judged, recipe_cell


@pytest.mark.parametrize(
    ("count", "lost", "gained", "word"),
    [
        (400, 60, 10, "worse"),
        (400, 10, 60, "better"),
        (3000, 5, 6, "same"),
        (40, 3, 1, "undecided"),
        (3000, 0, 30, "same"),
    ],
)
def test_words_for_right_and_wrong_answers(made: Any, kit: Any, count: int, lost: int, gained: int, word: str) -> None:
    cell = judged(made, *kit.pair(count, count // 2, lost=lost, gained=gained))
    assert (cell.verdict, cell.lost, cell.gained, cell.n) == (word, lost, gained, count)
    assert cell.delta == pytest.approx((gained - lost) / count) and cell.flip_rate == pytest.approx(
        (lost + gained) / count
    )
    assert cell.low is not None and cell.high is not None and cell.low < cell.delta < cell.high
    assert cell.parameters_kept == pytest.approx(0.992) and cell.baseline_score == 0.5


def test_no_verdict_contradicts_the_interval_beside_it(made: Any, kit: Any) -> None:
    cell = judged(made, *kit.pair(40, 20, gained=5))
    assert cell.p_value == pytest.approx(0.03125) and cell.low == pytest.approx(-0.0014145, abs=1e-6)
    assert (
        cell.verdict == "undecided"
        and cell.notes[0]
        == "better by the test alone (q 0.031); the interval does not exclude that there is no difference"
    )
    for lost, gained in itertools.product(range(12), repeat=2):
        interval, tails = statistics.bonett_price(lost, gained, 40), statistics.mid_p_mcnemar(lost, gained)
        (found,) = with_verdicts(
            [
                replace(
                    cell,
                    low=interval.low,
                    high=interval.high,
                    p_value=tails.two_sided,
                    p_same=1.0,
                    improvement=interval.value,
                    notes=(),
                )
            ]
        )
        assert (found.verdict in ("better", "worse")) == (
            tails.two_sided <= 0.05 and not interval.low <= 0 <= interval.high
        )


@pytest.mark.slow
def test_a_sure_but_small_difference_is_the_same_and_said(made: Any, kit: Any) -> None:
    cell = judged(made, *kit.pair(3000, 1500, lost=0, gained=30))
    assert cell.q_value < 0.001 and cell.notes[0].startswith("better, but by less than the margin")


def test_the_margin_can_be_given(made: Any, kit: Any) -> None:
    assert judged(made, *kit.pair(100, 50, lost=2, gained=2), margin=0.2).verdict == "same"


def test_lower_is_better(made: Any, kit: Any) -> None:
    options = {"metric": "error", "higher_is_better": {"error": False}}
    cell = judged(made, *kit.pair(400, 200, lost=10, gained=60, **options))
    assert cell.verdict == "worse" and cell.delta > 0 and cell.improvement < 0 and cell.lost == 60


def test_log_loss_stands_beside_accuracy(made: Any, kit: Any) -> None:
    """Accuracy rises while log-loss gets worse: each has its verdict, and the row says both."""
    before, after = kit.pair(100, 50, gained=20, higher_is_better={"log_loss": False})
    before.values["log_loss"], after.values["log_loss"] = [1.0, 1.5] * 50, [1.5, 2.0] * 50
    cell = judged(made, before, after)
    (loss,) = cell.further
    assert (cell.metric, cell.verdict) == ("acc", "better")
    assert (loss.metric, loss.verdict, loss.delta) == ("log_loss", "worse", pytest.approx(0.5))
    assert cell.notes[0].startswith("better by acc, but worse by log_loss +0.5 [")


class TestBestInTheMiddle:
    """Log-odds are best at 0, shares of stereotyped choices at one half."""

    def bias(self, kit: Any, values: Any, best: float = 0.0, metric: str = "log_odds", **metadata: Any) -> Any:
        metadata = {"best_value": {metric: best}, **metadata}
        return kit.Task(
            {metric: list(map(float, values))},
            metadata=metadata,
            log_likelihoods=kit.likelihoods(len(values), int(abs(sum(values)) * 1e3)),
        )

    def test_nearer_to_zero_is_better_although_the_score_fell(self, made: Any, kit: Any) -> None:
        noise = np.random.default_rng(0).normal(0, 0.3, 120)
        cell = judged(made, self.bias(kit, 1.4 + noise), self.bias(kit, 1.0 + 0.9 * noise))
        assert cell.verdict == "better" and cell.delta < 0 < cell.improvement and cell.high < 0 and cell.best_value == 0

    @pytest.mark.parametrize(
        ("metric", "best"),
        [
            ("pct_stereotype", 0.5),
            ("pct_male_preferred", 0.5),
            ("likelihood_diff", 0.0),
            ("amb_bias_score", 0.0),
            ("disamb_bias_score_Age", 0.0),
        ],
    )
    def test_lm_evals_own_bias_metrics_need_no_word_of_the_task(
        self, made: Any, kit: Any, metric: str, best: float
    ) -> None:
        """lm-eval calls each of them "lower is better"; away downwards is worse all the same."""
        before, after = (
            kit.Task({metric: values}, higher_is_better={metric: False})
            for values in ([best] * 100, [best - 0.5] * 99 + [best])
        )
        cell = judged(made, before, after)
        assert cell.verdict == "worse" and cell.delta < 0 and cell.best_value == best

    def test_from_below_too(self, made: Any, kit: Any) -> None:
        noise = np.random.default_rng(0).normal(0, 0.3, 120)
        cell = judged(made, self.bias(kit, -1.4 + noise), self.bias(kit, -1.9 + 0.9 * noise))
        assert cell.verdict == "worse" and cell.delta < 0

    def test_the_mirror_image_is_neither_better_nor_the_same(self, made: Any, kit: Any) -> None:
        noise = np.random.default_rng(0).normal(0, 0.3, 120)
        cell = judged(made, self.bias(kit, 1.0 + noise), self.bias(kit, -1.0 + noise))
        assert cell.verdict == "undecided" and "crossed its best value 0" in cell.notes

    def test_shares_are_best_at_one_half(self, made: Any, kit: Any) -> None:
        before, after = np.arange(200) < 180, np.arange(200) < 120
        cell = judged(made, self.bias(kit, before, 0.5, "share"), self.bias(kit, after, 0.5, "share"))
        assert cell.verdict == "better" and cell.delta == pytest.approx(-0.3) and cell.lost is None

    def test_the_task_can_name_its_margin(self, made: Any, kit: Any) -> None:
        noise = np.random.default_rng(0).normal(0, 0.3, 120)
        margin = {"margin": {"log_odds": 0.9}}
        assert (
            judged(made, self.bias(kit, 1.4 + noise, **margin), self.bias(kit, 1.0 + noise, **margin)).verdict == "same"
        )


def perplexity(kit: Any, shift: float) -> Any:
    """A task of 80 texts whose log-likelihoods are shifted by so much a word."""
    generator = np.random.default_rng(3)
    words = generator.integers(5, 40, 80)
    values = [[float(-3 * w + e + shift * w), int(w)] for w, e in zip(words, generator.normal(0, 2, 80))]
    score = math.exp(-sum(v for v, _ in values) / int(words.sum()))
    texts = [v for v, _ in values]
    options = {
        "scores": {"word_perplexity": score},
        "higher_is_better": {"word_perplexity": False},
        "output_type": "loglikelihood_rolling",
    }
    return kit.Task({"word_perplexity": values}, log_likelihoods=texts, **options)


@pytest.mark.parametrize(("shift", "word"), [(-0.2, "worse"), (0.2, "better"), (-1e-7, "same")])
def test_perplexity_by_the_ratio(made: Any, kit: Any, shift: float, word: str) -> None:
    cell = judged(made, perplexity(kit, 0.0), perplexity(kit, shift))
    assert cell.verdict == word
    assert cell.score == pytest.approx(cell.baseline_score * math.exp(-shift))
    assert cell.low <= cell.delta + 1e-9 and cell.delta <= cell.high + 1e-9


def test_f1_by_bootstrap(made: Any, kit: Any) -> None:
    def task(hits: int, seed: int) -> Any:
        pairs = [[1, int(i < hits)] for i in range(100)] + [[0, int(i < 20)] for i in range(100)]
        return kit.Task(
            {"f1": pairs},
            scores={"f1": 2 * hits / (2 * hits + 20 + 100 - hits)},
            log_likelihoods=kit.likelihoods(200, seed),
        )

    cell = judged(made, task(80, 0), task(50, 1))
    assert cell.verdict == "worse" and cell.low < cell.delta < cell.high < 0


@pytest.mark.parametrize("metric", ["rouge", "brier_score"])
def test_a_corpus_metric_without_a_test_is_shown_and_undecided(made: Any, kit: Any, metric: str) -> None:
    def task(seed: int) -> Any:
        return kit.Task(
            {metric: [["a", "b"]] * 9}, scores={metric: 0.5 + seed}, log_likelihoods=kit.likelihoods(9, seed)
        )

    cell = judged(made, task(0), task(1))
    assert (cell.verdict, cell.delta, cell.low) == ("undecided", 1.0, None) and "no paired test" in cell.notes[0]


def test_a_score_that_its_samples_do_not_give_is_not_tested(made: Any, kit: Any) -> None:
    before, after = kit.pair(400, 200, lost=60)
    after.scores = {"acc": 0.49}
    cell = judged(made, before, after)
    assert cell.verdict == "undecided" and "not the mean of its samples" in cell.notes[0]


@pytest.mark.slow
def test_clusters_widen_the_interval(made: Any, kit: Any) -> None:
    def cell(folder: str, **options: Any) -> Cell:
        place = type(made)(made.root / folder)
        return judged(
            place, *kit.pair(200, 100, lost=40, gained=5, fields={"passage": [i // 20 for i in range(200)]}, **options)
        )

    alone, clustered = cell("alone"), cell("clustered", metadata={"cluster_by": "passage"})
    assert clustered.high - clustered.low > 2 * (alone.high - alone.low)
    assert alone.verdict == "worse" and clustered.verdict == "undecided"


@pytest.mark.slow
def test_clusters_of_known_tasks_and_bounds_of_a_task_reach_the_verdict(made: Any, kit: Any, database: Path) -> None:
    generator = np.random.default_rng(0)
    before = generator.normal(-5, 1, 200)
    after = before + generator.normal(0, 0.01, 200)

    def task(values: np.ndarray, seed: int, **options: Any) -> Any:
        return kit.Task({"ll": values.tolist()}, log_likelihoods=kit.likelihoods(200, seed), **options)

    passages = {"fields": {"passage": [f"passage {i // 20}" for i in range(200)]}}
    bounded = {"metadata": {"bound": {"ll": 3.0}}}
    for name, values, seed in (("baseline", before, 0), ("laser", after, 1)):
        tasks = {
            "boolq": task(values, seed, **passages),
            "free": task(values, seed),
            "own": task(values, seed, **bounded),
        }
        made.run(name, tasks)
    ingest(made.root, database)
    with open_store(database) as store:
        cells = {cell.task: cell for cell in board(store) if cell.recipe == "laser"}
    assert cells["free"].clipped_at == pytest.approx(0.8 * np.std(before)) and cells["own"].clipped_at == 3.0
    assert cells["free"].verdict == "same" and cells["free"].clipping[1:3] == (0, 0)
    # ten passages, and a bound of 75 margins, leave room for what was not seen
    assert cells["boolq"].verdict == cells["own"].verdict == "undecided"
    assert cells["boolq"].clipping.limit == pytest.approx(1 - 0.05**0.1)


def test_other_versions_are_compared_with_a_warning(made: Any, kit: Any) -> None:
    before, after = kit.pair(400, 200, lost=60)
    made.run("baseline", {"sums": before})
    made.run("laser", {"sums": after}, config={"batch_size": 8}, warnings=["a matrix was skipped"])
    cell = recipe_cell(made.board())
    assert cell.verdict == "worse"
    assert cell.notes == ("warning: batch size differs: baseline 1, this run 8", "warning: a matrix was skipped")


def test_failures_are_rows_with_their_reason(made: Any, kit: Any) -> None:
    before, after = kit.pair(9, 3)
    made.run("baseline", {"sums": before})
    made.failed("laser", {"sums": after})
    nan = kit.Task({"acc": [float("nan")] * 9}, scores={"acc": float("nan")}, log_likelihoods=kit.likelihoods(9, 5))
    made.run("svd", {"sums": nan})
    cells = made.board()
    assert recipe_cell(cells).verdict == recipe_cell(cells, "svd").verdict == "failed"
    assert recipe_cell(cells).notes == ("non_finite_weight: 3 weights are NaN (layers.0.up.weight)",)
    assert recipe_cell(cells, "svd").notes == ("the result is nan, not a number",)


def test_a_failure_gives_way_to_the_same_spec_complete(made: Any, kit: Any) -> None:
    before, after = kit.pair(9, 3)
    made.run("baseline", {"sums": before})
    made.failed("laser", {"sums": after}, folder="first-try")
    made.run("laser", {"sums": after})
    assert recipe_cell(made.board()).verdict != "failed"


def test_correction_is_over_the_whole_board(made: Any, kit: Any) -> None:
    tasks = {f"t{i}": kit.pair(200, 100, lost=20 if i == 0 else 6, gained=8 if i == 0 else 6) for i in range(12)}
    made.run("baseline", {name: pair[0] for name, pair in tasks.items()})
    made.run("laser", {name: pair[1] for name, pair in tasks.items()})
    cell = recipe_cell(made.board(), task="t0")
    assert cell.p_value < 0.05 < cell.q_value and cell.verdict == "undecided"
    assert made.board(models=["other"]) == []
