"""The words on the board, on data whose answer is known."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leaderboard import statistics
from leaderboard.app import tables
from leaderboard.board.board import board
from leaderboard.board.cell import Cell, with_verdicts
from leaderboard.compare_runs import compare_paths
from leaderboard.errors import LeaderboardError, UnknownRun
from leaderboard.ingest import ingest
from leaderboard.readers.same_document import DocumentText, content_digests
from leaderboard.store import queries
from leaderboard.store.database import open_store
from leaderboard.terminal import format
from leaderboard.terminal.table import render, render_unshared


def recipe_cell(cells: list[Cell], recipe: str = "laser", task: str = "sums") -> Cell:
    """The one cell of a recipe and task."""
    (cell,) = [cell for cell in cells if (cell.recipe, cell.task) == (recipe, task)]
    return cell


def judged(made: Any, baseline: Any, recipe: Any, **options: Any) -> Cell:
    """The cell of one recipe on one task."""
    made.run("baseline", {"sums": baseline})
    made.run("laser", {"sums": recipe})
    return recipe_cell(made.board(**options))


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


def test_a_sure_but_small_difference_is_the_same_and_said(made: Any, kit: Any) -> None:
    cell = judged(made, *kit.pair(3000, 1500, lost=0, gained=30))
    assert cell.q_value < 0.001 and cell.notes[0].startswith("better, but by less than the margin")


def test_undecided_says_how_many_documents(made: Any, kit: Any) -> None:
    cell = judged(made, *kit.pair(100, 50, lost=4, gained=4))
    assert cell.verdict == "undecided" and 1850 < cell.documents_needed < 2050  # both bounds: 8.56 x 9 % / 2 %^2
    assert (cell.comparisons, cell.needed_for, cell.documents_needed_together) == (1, "within", cell.documents_needed)
    assert cell.detectable == pytest.approx(2.8016 * math.sqrt(9 / 101 / 100), rel=1e-4)  # two-sided, as better is
    assert (
        format.undecided(cell)
        == f"needs about {cell.documents_needed:,} documents to show that it is within the margin, has 100, could have"
        f" shown a difference of {cell.detectable:.2g}"
    )
    assert format.undecided(cell) in " ".join(render([cell], width=80).split()) and tables.notes(cell).startswith(
        format.undecided(cell)
    )
    assert [
        row["Could show"] for row in tables.cell_rows([cell, replace(cell, verdict="worse")], with_model=False)
    ] == [f"{cell.detectable:.2g}", ""]
    assert "Could show" not in tables.cell_rows([replace(cell, verdict="worse")], with_model=False)[0]


def test_a_perplexity_says_in_its_own_units_what_could_have_been_shown(made: Any, kit: Any) -> None:
    generator = np.random.default_rng(0)
    values = [(-generator.uniform(20, 40, 30)).tolist(), (-generator.uniform(20, 40, 30)).tolist()]
    before, after = (
        kit.Task(
            {"word_perplexity": [[value, 10] for value in run]},
            scores={"word_perplexity": math.exp(-sum(run) / 300)},
            higher_is_better={"word_perplexity": False},
            output_type="loglikelihood_rolling",
            log_likelihoods=run,
        )
        for run in values
    )
    cell = judged(made, before, after)
    log_ratio = np.clip(np.array(values[1]) - np.array(values[0]), -10 * 20 * math.log(1.02), 10 * 20 * math.log(1.02))
    error = math.sqrt(30 / 29 * np.sum((-log_ratio + log_ratio.mean()) ** 2)) / 300
    assert cell.verdict == "undecided" and cell.detectable == pytest.approx(
        cell.baseline_score * math.expm1(2.8016 * error), rel=1e-3
    )


def test_a_large_difference_needs_documents_for_its_own_size(made: Any, kit: Any) -> None:
    cell = judged(made, *kit.pair(30, 20, lost=6, gained=2))
    flips, drop = 9 / 31, 4 / 30
    steps = 1.959964 * math.sqrt(flips) + 0.841621 * math.sqrt(flips - drop**2)
    assert cell.verdict == "undecided" and cell.documents_needed == math.ceil((steps / drop) ** 2) < 150
    assert format.undecided(cell).startswith(
        f"needs about {cell.documents_needed} documents to confirm a difference of this size, has 30"
    )


def tasks_board(made: Any, kit: Any, count: int, flips: list[tuple[int, int]]) -> list[Cell]:
    """The board of one recipe on as many tasks of `count` documents as there are (lost, gained)."""
    tasks = {f"t{i}": kit.pair(count, count // 2, lost=lost, gained=gained) for i, (lost, gained) in enumerate(flips)}
    made.run("baseline", {name: pair[0] for name, pair in tasks.items()})
    made.run("laser", {name: pair[1] for name, pair in tasks.items()})
    return [cell for cell in made.board() if cell.recipe == "laser"]


def test_a_board_of_many_comparisons_needs_more_and_says_so(made: Any, kit: Any) -> None:
    cells = tasks_board(made, kit, 100, [(2, 2)] * 12)
    changed = 5 / 101
    for cell in cells:
        assert (cell.verdict, cell.comparisons, cell.needed_for) == ("undecided", 12, "within")
        assert 15.4 * changed / 0.02**2 < cell.documents_needed < 1.15 * 15.4 * changed / 0.02**2  # level .05 / 12
        assert 9.2 * changed / 0.02**2 < cell.documents_needed_together < 1.15 * 9.2 * changed / 0.02**2
        assert format.undecided(cell).startswith(
            f"needs about {cell.documents_needed:,} documents to show that it is within the margin on a board of 12"
            f" comparisons (about {cell.documents_needed_together:,} if all that are undecided get as many), has 100, "
        )
    assert cells[0].detectable == pytest.approx(min(1, (2.8653 + 0.8416) * math.sqrt(0.129 / 100)), rel=0.1)


def test_verdicts_that_are_there_ask_less_of_the_others(made: Any, kit: Any) -> None:
    cell = judged(made, *kit.pair(100, 50, lost=2, gained=2))
    same = replace(cell, p_same=1e-9)
    differs = replace(cell, p_value=1e-9, p_same=1.0, improvement=0.2, low=0.1, high=0.3)
    alone, four, after_three, beside_others = (
        with_verdicts([cell, *others])[0] for others in ([], [cell] * 3, [same] * 3, [differs] * 3)
    )
    assert alone.documents_needed == after_three.documents_needed < four.documents_needed
    assert beside_others.documents_needed == four.documents_needed == beside_others.documents_needed_together
    assert four.documents_needed_together < four.documents_needed and after_three.documents_needed_together is not None
    assert beside_others.detectable == alone.detectable < after_three.detectable == four.detectable


def test_what_is_needed_is_worked_out_anew_for_another_board(made: Any, kit: Any, database: Path) -> None:
    """What a store remembers of a comparison doesn't depend on the number of others."""
    tasks = {f"t{i}": kit.pair(100, 50, lost=2, gained=2) for i in range(5)}
    made.run("baseline", {name: pair[0] for name, pair in tasks.items()})
    made.run("laser", {"t0": tasks["t0"][1]})
    ingest([made.root], database)
    with open_store(database) as store:
        alone = recipe_cell(board(store), task="t0")
    made.run("svd", {name: pair[1] for name, pair in tasks.items()}, folder="svd", spec_id="svd")
    ingest([made.root], database)
    with open_store(database) as store:
        among = recipe_cell(board(store), task="t0")
        fresh = recipe_cell(board(store, margin=0.0200000001), task="t0")
    assert (alone.comparisons, among.comparisons) == (1, 6)
    assert among.documents_needed > 1.3 * alone.documents_needed and among.detectable > alone.detectable
    assert fresh.documents_needed == pytest.approx(among.documents_needed, abs=2)


def test_documents_that_are_there_already_are_not_asked_for(made: Any, kit: Any) -> None:
    cell = tasks_board(made, kit, 200, [(20, 8), *[(6, 6)] * 11])[0]
    assert cell.verdict == "undecided" and 400 < cell.documents_needed < 600
    assert (
        format.undecided(replace(cell, documents_needed=150, detectable=None))
        == "close to a verdict: needs somewhat more than the 200 documents it has"
    )


def test_the_margin_can_be_given(made: Any, kit: Any) -> None:
    assert judged(made, *kit.pair(100, 50, lost=2, gained=2), margin=0.2).verdict == "same"


def test_lower_is_better(made: Any, kit: Any) -> None:
    options = {"metric": "error", "higher_is_better": {"error": False}}
    cell = judged(made, *kit.pair(400, 200, lost=10, gained=60, **options))
    assert cell.verdict == "worse" and cell.delta > 0 and cell.improvement < 0 and cell.lost == 60


def test_log_loss_stands_beside_accuracy(made: Any, kit: Any) -> None:
    """Accuracy rises while log-loss gets worse: the cell says both."""
    before, after = kit.pair(100, 50, gained=20)
    before.values["log_loss"], after.values["log_loss"] = [1.25] * 100, [1.75] * 100
    cell = judged(made, before, after)
    assert (
        cell.metric == "acc" and cell.verdict == "better" and "log_loss 1.2500 -> 1.7500, lower is better" in cell.notes
    )


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


def test_clusters_widen_the_interval(made: Any, kit: Any) -> None:
    def cell(folder: str, **options: Any) -> Cell:
        place = type(made)(made.root / folder)
        return judged(
            place, *kit.pair(200, 100, lost=40, gained=5, fields={"passage": [i // 20 for i in range(200)]}, **options)
        )

    alone, clustered = cell("alone"), cell("clustered", metadata={"cluster_by": "passage"})
    assert clustered.high - clustered.low > 2 * (alone.high - alone.low)
    assert alone.verdict == "worse" and clustered.verdict == "undecided"


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


class TestIncomparable:
    """Outside one comparability key there is no delta, and the board says which field differs."""

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"version": 2.0}, "task version differ: baseline 1.0, this run 2.0"),
            ({"shots": 5}, "few-shot examples differ: baseline 0, this run 5"),
            ({"generation": {"max_gen_toks": 5}}, "generation arguments differ"),
            ({"first_document": 3}, "documents differ: 3 only in the baseline, 3 only in this run"),
        ],
    )
    def test_a_field_that_differs_is_named(self, made: Any, kit: Any, change: dict[str, Any], words: str) -> None:
        before, after = kit.pair(50, 20, lost=2)
        for name, value in change.items():
            setattr(after, name, value)
        cell = judged(made, before, after)
        assert cell.verdict == "incomparable" and cell.delta is None and cell.score == 0.36
        assert words in " ".join(cell.notes)

    def test_chat_template(self, made: Any, kit: Any) -> None:
        before, after = kit.pair(50, 20, lost=2)
        made.run("baseline", {"sums": before})
        path = made.run("laser", {"sums": after})
        results = next(path.glob("results_*"))
        results.write_text(results.read_text().replace('"chat_template_sha": null', '"chat_template_sha": "abc"'))
        assert "chat template differ: baseline none, this run abc" in recipe_cell(made.board()).notes[0]

    def test_no_samples(self, made: Any, kit: Any) -> None:
        before, after = kit.pair(50, 20, lost=2)
        made.run("baseline", {"sums": before})
        next(made.run("laser", {"sums": after}).glob("samples_*")).unlink()
        assert (
            "this run logged no samples, so documents cannot be paired: shown, gated only by"
            in recipe_cell(made.board()).notes[0]
        )

    def test_a_lone_run_without_samples_is_marked_too(self, made: Any, kit: Any) -> None:
        next(made.run("baseline", {"sums": kit.pair(50, 20)[0]}).glob("samples_*")).unlink()
        (cell,) = made.board()
        assert (cell.verdict, cell.notes) == (
            "baseline",
            ("no samples were logged: shown, gated only by `allow_unpaired: true`",),
        )

    def test_another_filter(self, made: Any, kit: Any) -> None:
        before, after = kit.pair(50, 20, lost=2)
        after.filter = "strict"
        assert "the baseline has no acc (filter strict)" in " ".join(judged(made, before, after).notes)

    def test_no_baseline(self, made: Any, kit: Any) -> None:
        made.run("laser", {"sums": kit.pair(9, 3)[1]})
        assert made.board()[0].notes == ("no baseline run of this model has this task",)

    def test_other_weights(self, made: Any, kit: Any) -> None:
        before, after = kit.pair(50, 20, lost=2)
        made.run("baseline", {"sums": before})
        made.run("laser", {"sums": after}, weights={"digest_before": "ff", "digest_after": "ee"})
        assert "other weights" in recipe_cell(made.board()).notes[0]

    @pytest.mark.parametrize("known_by", ["documents", "contents"])
    def test_chosen_on_the_documents_it_reports(self, made: Any, kit: Any, known_by: str) -> None:
        before, after = kit.pair(50, 20, lost=2)
        made.run("baseline", {"sums": before})
        used = [kit.sha(json.dumps({"question": "sums 7?"}, indent=2))]
        digests = content_digests(DocumentText((("Sums 7 ? With 0  examples", " yes"),), "yes"))
        hashes = {"documents": used} if known_by == "documents" else {"documents": ["0"], "contents": sorted(digests)}
        made.run(
            "laser",
            {"sums": after},
            calibration=[{"task": "sums", "split": "test", "samples": 1, "seed": 0, **hashes}],
        )
        cell = recipe_cell(made.board())
        assert (
            cell.verdict == "incomparable"
            and "calibration documents are among the documents scored" in cell.notes[0]
            and used[0][:12] in cell.notes[0]
        )


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


class TestBaseline:
    """Which run a cell is compared with."""

    def test_the_pinned_one(self, made: Any, kit: Any) -> None:
        first, after = kit.pair(50, 20, lost=2)
        made.run("baseline", {"sums": first}, spec_id="one")
        second = kit.Task({"acc": [0.0] * 50}, log_likelihoods=kit.likelihoods(50, 9))
        made.run(
            "baseline", {"sums": second}, spec_id="two", folder="second", started="2027-01-01T00:00:00Z", weights={}
        )
        made.run("laser", {"sums": after})
        database = made.root / "board.duckdb"
        ingest([made.root], database)
        with open_store(database, read_only=False) as store:
            assert recipe_cell(board(store)).baseline_score == 0.0  # the latest
            early = next(run for run in queries.runs(store) if run.spec_id == "one")
            queries.pin_baseline(store, early.run_id, "try")
            assert recipe_cell(board(store)).baseline_score == 0.4

    def test_one_of_the_same_settings_before_a_later_one(self, made: Any, kit: Any) -> None:
        before, after = kit.pair(50, 20, lost=2)
        made.run(
            "baseline",
            {"sums": kit.Task({"acc": [0.0] * 50})},
            settings_id="others",
            folder="late",
            spec_id="e",
            started="2027-01-01T00:00:00Z",
        )
        made.run("baseline", {"sums": before})
        made.run("laser", {"sums": after})
        assert recipe_cell(made.board()).baseline_score == 0.4

    def test_a_comparable_one_before_a_later_one(self, made: Any, kit: Any) -> None:
        before, after = kit.pair(50, 20, lost=2)
        shots = kit.Task({"acc": [0.0] * 50}, shots=5)
        made.run("baseline", {"sums": shots}, folder="late", spec_id="e", started="2027-01-01T00:00:00Z")
        made.run("baseline", {"sums": before})
        made.run("laser", {"sums": after})
        assert recipe_cell(made.board()).verdict != "incomparable"

    def test_plain_runs_stand_in(self, made: Any, kit: Any) -> None:
        before, after = kit.pair(400, 200, lost=60)
        made.plain({"sums": before})
        made.plain({"sums": after}, folder="second", config={"batch_size": 4})
        verdicts = sorted(cell.verdict for cell in made.board())
        assert verdicts in (["baseline", "worse"], ["baseline", "better"])

    def test_any_run_may_be_named(self, made: Any, kit: Any) -> None:
        before, after = kit.pair(400, 200, lost=60)
        made.run("baseline", {"sums": before})
        made.run("laser", {"sums": after})
        named = recipe_cell(made.board()).run_id
        assert recipe_cell(made.board(baseline_run=named[:10]), "baseline").verdict == "better"
        with pytest.raises(UnknownRun):
            made.board(baseline_run="zzz")

    def test_models_of_one_name_are_kept_apart(self, made: Any, kit: Any) -> None:
        before, after = kit.pair(50, 20, lost=2)
        made.run("baseline", {"sums": before})
        receipt = made.run("laser", {"sums": after}) / "receipt.json"
        receipt.write_text(receipt.read_text().replace(kit.sha("tiny"), "0123456789"))
        assert [cell.model for cell in made.board()] == ["tiny (01234567)", f"tiny ({kit.sha('tiny')[:8]})"]


class TestCompare:
    """Two paths, no store."""

    def test_the_second_against_the_first(self, made: Any, kit: Any) -> None:
        before, after = kit.pair(400, 200, lost=60)
        a, b = made.plain({"sums": before}), made.plain({"sums": after}, model="another", folder="b")
        (cell,) = compare_paths(a, b).cells
        assert (cell.verdict, cell.delta) == ("worse", pytest.approx(-0.15))
        assert "400 documents; baseline 0.5000" in render([cell], width=80, color=False)
        (back,) = compare_paths(b.parent, a.parent).cells
        assert (back.verdict, back.delta) == ("better", pytest.approx(0.15))

    def test_what_only_one_has_is_told(self, made: Any, kit: Any) -> None:
        before, after = kit.pair(40, 20, lost=3)
        more = kit.Task(
            {"acc": before.values["acc"], "acc_norm": before.values["acc"]}, log_likelihoods=kit.likelihoods(40, 5)
        )
        a = made.run("baseline", {"sums": more, "words": more, "first": before, "second": before})
        b = made.run("laser", {"sums": after, "words": after, "b\x1bonly": after, "filtered": after})
        found = compare_paths(a, b)
        assert [only.sentences() for only in found.unshared] == [
            ["Only A has the tasks first, second", "Only A has the metric acc_norm of sums, words"],
            ["Only B has the tasks b\x1bonly, filtered"],
        ]
        assert render_unshared(found.unshared) == [
            "Only A has the tasks first, second",
            "Only A has the metric acc_norm of sums, words",
            "Only B has the tasks b only, filtered",
        ]
        nothing, more_of_a = compare_paths(
            b, made.run("svd", {"sums": more, "words": before, "b\x1bonly": before, "filtered": before})
        ).unshared
        assert nothing.sentences() == [] and more_of_a.sentences() == ["Only B has the metric acc_norm of sums"]

    def test_two_runs_without_a_task_in_common(self, made: Any, kit: Any) -> None:
        before, after = kit.pair(40, 20, lost=3)
        (cell,), found = compare_paths(made.run("baseline", {"sums": before}), made.run("laser", {"words": after}))
        assert cell.verdict == "incomparable" and render_unshared(found) == [
            "Only A has the task sums",
            "Only B has the task words",
        ]

    def test_what_cannot_be_compared(self, made: Any, kit: Any) -> None:
        before, after = kit.pair(9, 3)
        a, b = made.run("baseline", {"sums": before}), made.run("laser", {"sums": after})
        for first, second, words in (
            (a, a, "the same run"),
            (a, made.root, "give two paths"),
            (a, b / "nothing", "there is nothing at this path"),
        ):
            with pytest.raises(LeaderboardError, match=words):
                compare_paths(first, second)
        with pytest.raises(LeaderboardError, match="failed run"):
            compare_paths(a, made.failed("svd", {"sums": after}))


def test_the_package_needs_neither_torch_nor_the_harness() -> None:
    """Statically: no module of the leaderboard imports them."""
    import ast

    folder = Path(__file__).resolve().parents[3] / "leaderboard"
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            assert not {name.split(".")[0] for name in names} & {
                "torch",
                "transformers",
                "lm_eval",
                "harness_ext",
            }, path


class TestNoiseFloor:
    """Two unedited runs that differ in batch size alone."""

    def floors(self, made: Any, kit: Any, **changes: Any) -> list[Any]:
        from leaderboard.store import noise_floor

        before, after = kit.pair(100, 50, lost=3, gained=1)
        made.run("baseline", {"sums": before})
        options = {"config": {"batch_size": 16}, "spec_id": "other", "started": "2026-05-01T00:00:00Z"} | changes
        made.run(
            options.pop("recipe_label", "baseline"), {"sums": options.pop("task", after)}, folder="other", **options
        )
        report = ingest(made.root, None)
        assert report.store is not None and not report.rejected
        return [floor for floors in noise_floor.floors(report.store).values() for floor in floors]

    def test_it_is_measured_when_the_second_is_ingested(self, made: Any, kit: Any) -> None:
        (floor,) = self.floors(made, kit)
        assert (floor.task, floor.metric, floor.documents, floor.flips, floor.rate) == ("sums", "acc", 100, 4, 0.04)
        assert {floor.batch_size, floor.other_batch_size} == {"1", "16"}

    def test_any_other_difference_is_no_noise(self, made: Any, kit: Any, tmp_path: Path) -> None:
        other_shots = kit.pair(100, 50)[1]
        other_shots.shots = 2
        for number, changes in enumerate(
            [
                {"config": {"batch_size": 1}},
                {"config": {"batch_size": 16, "device": "cuda"}, "model": "another"},
                {"recipe_label": "laser"},
                {"task": other_shots},
                {"weights": {"digest_before": "x", "digest_after": "x"}, "variant_id": "other"},
            ]
        ):
            fresh = type(made)(tmp_path / f"results{number}")
            assert self.floors(fresh, kit, **changes) == [], changes

    def test_scores_that_are_not_right_or_wrong_have_none(self, made: Any, kit: Any) -> None:
        tasks = [
            {"sums": kit.Task({"odds": [seed * 0.1 + i for i in range(9)]}, log_likelihoods=kit.likelihoods(9, seed))}
            for seed in (0, 1)
        ]
        made.run("baseline", tasks[0])
        made.run("baseline", tasks[1], folder="other", config={"batch_size": 16}, spec_id="other")
        assert [cell.noise_floor for cell in made.board()] == [None, None]

    def test_the_board_shows_what_exceeds_it(self, made: Any, kit: Any) -> None:
        before, after = kit.pair(400, 200, lost=60, gained=4)
        noisy = kit.pair(400, 200, lost=1, gained=1)[1]
        noisy.log_likelihoods = kit.likelihoods(400, 7)
        made.run("baseline", {"sums": before})
        made.run(
            "baseline",
            {"sums": noisy},
            folder="other",
            config={"batch_size": 16},
            spec_id="other",
            settings_id="other",
            started="2026-05-01T00:00:00Z",
        )
        made.run("laser", {"sums": after})
        cell = recipe_cell(made.board())
        assert cell.noise_floor == pytest.approx(0.005) and cell.flip_rate == pytest.approx(0.16)
        assert "flips 16.0%, noise floor 0.5%: 15.5 points above it" in render(made.board(), width=120)


class TestChoices:
    """Changed answers, divergence and the right answer's log-likelihood, of two runs compared by themselves."""

    def runs(
        self, made: Any, kit: Any, before: Any, after: Any, output_type: str = "multiple_choice", target: str = "0"
    ) -> Cell:
        """The cell of two runs whose filtered responses are given."""
        paths = []
        for recipe, responses in (("baseline", before), ("laser", after)):
            task = kit.Task(
                {"acc": [1.0] * len(responses)},
                output_type=output_type,
                log_likelihoods=kit.likelihoods(len(responses), len(paths)),
            )
            path = made.run(recipe, {"sums": task}, weights={"digest_before": "w", "digest_after": "w"})
            samples = next(path.glob("samples_*.jsonl"))
            lines = [
                json.loads(line) | {"filtered_resps": response, "target": target}
                for line, response in zip(samples.read_text().splitlines(), responses)
            ]
            samples.write_text("".join(json.dumps(line) + "\n" for line in lines))
            paths.append(path)
        return compare_paths(*paths).cells[0]

    def test_multiple_choice(self, made: Any, kit: Any) -> None:
        before = [[["-1.0", "True"], ["-2.0", "False"]]] * 4
        after = [[["-1.0", "True"], ["-2.0", "False"]]] * 3 + [[["-3.0", "False"], ["-2.0", "True"]]]
        choices = self.runs(made, kit, before, after).choices
        p, q = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1))
        divergence = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
        assert choices.documents == 4 and choices.changed == 0.25
        assert choices.divergence.value == pytest.approx(divergence / 4) and choices.gold_drop.value == pytest.approx(
            0.5
        )

    def test_generation(self, made: Any, kit: Any) -> None:
        choices = self.runs(made, kit, [["4"], ["5"]], [["4"], ["6"]], "generate_until").choices
        assert (choices.changed, choices.divergence, choices.gold_drop) == (0.5, None, None)

    def test_one_answer_has_a_log_likelihood_and_no_choice(self, made: Any, kit: Any) -> None:
        choices = self.runs(
            made, kit, [["-1.5", "True"]] * 3, [["-2.0", "True"]] * 3, "loglikelihood", " right"
        ).choices
        assert (choices.changed, choices.divergence, choices.gold_drop.value) == (None, None, 0.5)

    @pytest.mark.parametrize(
        "response", [None, [], "x", [["y", "True"]], [[float("nan"), True]], [{}], [["-1", "True"]] * 3]
    )
    def test_responses_of_another_form_have_none(self, made: Any, kit: Any, response: Any) -> None:
        good = [["-1.0", "True"], ["-2.0", "False"]]
        assert self.runs(made, kit, [good, good], [good, response]).choices is None

    def test_an_unknown_right_answer_only_costs_its_drop(self, made: Any, kit: Any) -> None:
        good = [["-1.0", "True"], ["-2.0", "False"]]
        for target in ("7", "a word"):
            fresh = type(made)(made.root / target)
            choices = self.runs(fresh, kit, [good], [good], target=target).choices
            assert choices.changed == 0 and choices.gold_drop is None

    def test_the_table_says_it(self, made: Any, kit: Any) -> None:
        good = [["-1.0", "True"], ["-2.0", "False"]]
        text = render([self.runs(made, kit, [good] * 3, [good] * 3)], width=120)
        assert "answers changed 0.0%, choice divergence 0.0000 [0.0000, 0.0000] nats" in text
