"""The gate's decisions, on runs whose answer is known: its words and exit codes, its tasks and its suites."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leaderboard.errors import LeaderboardError
from leaderboard.gate.decision import GateRow, decide
from tests.leaderboard.gate.gating import gated, row, two, without_samples


@pytest.mark.parametrize(
    ("count", "lost", "gained", "word", "code", "reason"),
    [
        (3000, 5, 6, "PASS", 0, None),
        (3000, 30, 0, "PASS", 0, "worse, but by less than the margin"),
        (3000, 90, 40, "WARN", 0, "worse; by less than the margin as far as is seen"),
        (400, 60, 10, "FAIL", 1, "worse by more than the margin"),
        (40, 1, 1, "UNDECIDED", 3, "cannot exclude a drop as large as the margin: needs about"),
        (40, 3, 1, "UNDECIDED", 3, "looks worse by more than the margin, but chance is not excluded"),
    ],
)
def test_words_and_exit_codes(
    made: Any, kit: Any, count: int, lost: int, gained: int, word: str, code: int, reason: str | None
) -> None:
    base, laser = two(made, *kit.pair(count, count // 2, lost=lost, gained=gained))
    report = gated(laser, base)
    found = row(report)
    assert (report.verdict, report.exit_code, found.verdict) == (word, code, word)
    assert (
        found.drop == pytest.approx((lost - gained) / count)
        and found.drop_low < found.drop < found.drop_high
        and found.margin == 0.02
    )
    assert (found.lost, found.gained, found.documents) == (lost, gained, count)
    assert found.reasons[0].startswith(reason) if reason else found.reasons == ()


@pytest.mark.slow
def test_a_critical_task_has_half_the_margin(made: Any, kit: Any) -> None:
    base, laser = two(made, *kit.pair(3000, 1500, lost=60, gained=40))
    assert gated(laser, base).verdict == "PASS"
    report = gated(laser, base, tasks={"sums": {"critical": True}})
    assert (report.verdict, row(report).margin) == ("UNDECIDED", 0.01)
    assert gated(laser, base, tasks={"sums": {"margin": 0.05}}).verdict == "PASS"


def test_a_critical_task_that_loses_more_is_never_let_through_for_being_surer(made: Any, kit: Any) -> None:
    """A significant loss within the margin, as far as is seen, is WARN elsewhere, where a smaller one is UNDECIDED."""

    def words(critical: bool) -> list[str]:
        terms = {"sums": {"critical": critical, "margin": 0.02}}
        return [gated(laser, base, tasks=terms).verdict for base, laser in runs]

    runs = []
    for lost in (0, 3, 5, 6, 9):  # 6 of 300 are as many as the margin
        pair = kit.pair(300, 150, lost=lost)
        runs.append(
            tuple(
                made.run(name, {"sums": task}, folder=f"{name} {lost}")
                for name, task in zip(("baseline", "laser"), pair)
            )
        )
    assert words(critical=False) == ["PASS", "UNDECIDED", "WARN", "WARN", "FAIL"]
    assert words(critical=True) == ["PASS", "UNDECIDED", "UNDECIDED", "UNDECIDED", "FAIL"]
    base, laser = runs[2]
    report = gated(laser, base, tasks={"sums": {"critical": True, "margin": 0.02}})
    assert report.exit_code == 3
    assert row(report).reasons[-1].startswith("worse; critical, so that it has to be shown")


@pytest.mark.slow
def test_the_margin_of_a_task_is_its_own_before_the_default(made: Any, kit: Any) -> None:
    base, laser = two(made, *kit.pair(400, 200, lost=60, gained=10, metadata={"margin": {"acc": 0.2}}))
    assert (gated(laser, base).verdict, row(gated(laser, base)).margin) == ("PASS", 0.2)
    assert gated(laser, base, tasks={"sums": {"margin": 0.02}}).verdict == "FAIL"


@pytest.mark.slow
def test_significance_is_corrected_over_all_rows(made: Any, kit: Any) -> None:
    tasks = {f"t{i}": kit.pair(200, 100, lost=9 if i == 0 else 0, gained=2 if i == 0 else 0) for i in range(8)}
    base, laser = two(
        made, {name: pair[0] for name, pair in tasks.items()}, {name: pair[1] for name, pair in tasks.items()}
    )
    alone = gated(laser, base, tasks={"t0": {}}, others="ignore")
    assert row(alone, "t0").p_worse == row(alone, "t0").p_holm < 0.05 and alone.verdict == "FAIL"
    together = gated(laser, base)
    assert row(together, "t0").p_holm > 0.05 and row(together, "t0").verdict == "UNDECIDED"


def test_the_worst_row_decides() -> None:
    def words(*decided: str) -> str:
        from leaderboard.gate.decision import overall

        rows = [GateRow("base", str(i), decided=word) for i, word in enumerate(decided)]  # type: ignore[arg-type]
        return overall(decide(rows, 0.05))

    assert words("PASS", "WARN", "PASS") == "WARN" and words("WARN", "UNDECIDED") == "UNDECIDED"
    assert words("UNDECIDED", "INCOMPARABLE") == "INCOMPARABLE" and words("INCOMPARABLE", "FAIL", "PASS") == "FAIL"


@pytest.mark.slow
def test_floors(made: Any, kit: Any) -> None:
    base, laser = two(made, *kit.pair(1000, 500, lost=1, gained=2))
    report = gated(laser, base, tasks={"sums": {"floor": 0.6}})
    assert (report.verdict, row(report).reasons) == ("FAIL", ("0.501 is below the floor of 0.6",))
    assert gated(laser, base, tasks={"sums": {"floor": 0.5}}).verdict == "PASS"


def test_floors_of_other_directions(made: Any, kit: Any) -> None:
    values = [0.2] * 100
    error = kit.Task({"error": values}, higher_is_better={"error": False}, log_likelihoods=kit.likelihoods(100, 0))
    bias = kit.Task(
        {"odds": [x * 5 for x in values]},
        metadata={"best_value": {"odds": 0.0}},
        log_likelihoods=kit.likelihoods(100, 0),
    )
    base, laser = two(
        made,
        {"e": error, "b": bias},
        {"e": error, "b": bias},
        weights={"digest_before": kit.sha("weights"), "digest_after": kit.sha("weights")},
    )
    report = gated(laser, base, tasks={"e": {"floor": 0.1}, "b": {"floor": 0.5}})
    assert row(report, "e").reasons == ("0.2 is above the 0.1 that the policy allows at most",)
    assert row(report, "b").reasons == ("1 is farther than 0.5 from its best value 0",)


@pytest.mark.slow
def test_lower_is_better(made: Any, kit: Any) -> None:
    base, laser = two(made, *kit.pair(400, 200, lost=10, gained=60, metric="error", higher_is_better={"error": False}))
    assert row(gated(laser, base)).drop == pytest.approx(0.125) and gated(laser, base).verdict == "FAIL"


@pytest.mark.slow
def test_best_in_the_middle(made: Any, kit: Any) -> None:
    noise = np.random.default_rng(0).normal(0, 0.3, 400)

    def task(mean: float, seed: int) -> Any:
        return kit.Task(
            {"odds": (mean + noise).tolist()},
            metadata={"best_value": {"odds": 0.0}},
            log_likelihoods=kit.likelihoods(400, seed),
        )

    base = made.run("baseline", {"bias": task(0.5, 0)})
    words = {}
    for number, (mean, margin) in enumerate([(0.9, 0.1), (0.1, 0.1), (-0.5, 0.1), (0.55, 0.1)]):
        laser = made.run("laser", {"bias": task(mean, number + 1)}, folder=f"laser{number}", spec_id=f"s{number}")
        words[mean] = gated(laser, base, tasks={"bias": {"margin": margin}}).verdict
    assert words == {0.9: "FAIL", 0.1: "PASS", -0.5: "PASS", 0.55: "PASS"}


FEW = (("baseline", 0), ("laser", -0.001))


def test_perplexity(made: Any, kit: Any) -> None:
    def task(shift: float, count: int = 120) -> Any:
        generator = np.random.default_rng(3)
        words = generator.integers(5, 40, count)
        values = [[float(-3 * w + e + shift * w), int(w)] for w, e in zip(words, generator.normal(0, 2, count))]
        score = float(np.exp(-sum(v for v, _ in values) / int(words.sum())))
        options = {"higher_is_better": {"word_perplexity": False}, "output_type": "loglikelihood_rolling"}
        return kit.Task(
            {"word_perplexity": values},
            scores={"word_perplexity": score},
            log_likelihoods=[v for v, _ in values],
            **options,
        )

    base = made.run("baseline", {"wiki": task(0)})
    for shift, word in ((-0.2, "FAIL"), (0.2, "PASS"), (-0.001, "PASS")):
        assert gated(made.run("laser", {"wiki": task(shift)}, folder=f"laser{shift}"), base).verdict == word
    few = [made.run(name, {"wiki": task(shift, 50)}, folder=f"few-{name}") for name, shift in FEW]
    undecided = row(gated(few[1], few[0]), "wiki")
    assert undecided.verdict == "UNDECIDED" and undecided.documents_needed > 59  # whatever so few say


class TestTasksOfThePolicy:
    """What the policy names and the candidate has."""

    @pytest.mark.slow
    def test_a_required_task_that_is_missing_fails(self, made: Any, kit: Any) -> None:
        base, laser = two(made, *kit.pair(300, 150))
        report = gated(laser, base, tasks={"summs": {}, "other": {"required": False}})
        assert (report.verdict, row(report, "summs").reasons) == (
            "FAIL",
            ("required, and the candidate has not run it; did you mean 'sums'?",),
        )
        assert [row.name for row in report.rows] == ["summs", "sums"]
        assert "it has sums" in row(gated(laser, base, tasks={"zzz": {}}), "zzz").reasons[0]

    @pytest.mark.slow
    def test_others_can_be_left_alone(self, made: Any, kit: Any) -> None:
        good, bad = kit.pair(400, 200), kit.pair(400, 200, lost=60)
        base, laser = two(made, {"good": good[0], "bad": bad[0]}, {"good": good[1], "bad": bad[1]})
        assert gated(laser, base).verdict == "FAIL"
        assert gated(laser, base, tasks={"good": {}}, others="ignore").verdict == "PASS"
        with pytest.raises(LeaderboardError, match="no task to gate"):
            gated(laser, base, others="ignore")

    @pytest.mark.slow
    def test_a_metric_of_the_policys_choice(self, made: Any, kit: Any) -> None:
        before, after = kit.pair(400, 200, lost=60)
        for task, values in ((before, [1.0] * 400), (after, [1.0] * 400)):
            task.values = {**task.values, "kind": values}
        base, laser = two(made, before, after)
        assert gated(laser, base).verdict == "FAIL"
        for metric in ("kind", "kind,none"):
            report = gated(laser, base, tasks={"sums": {"metric": metric}})
            assert (report.verdict, row(report).metric) == ("PASS", "kind")
        report = gated(laser, base, tasks={"sums": {"metric": "f2"}})
        assert (report.verdict, report.exit_code) == ("INCOMPARABLE", 2) and row(report).reasons == (
            "the candidate has no metric 'f2' here; it has acc,none, kind,none",
        )

    @pytest.mark.slow
    def test_other_settings_are_incomparable_and_named(self, made: Any, kit: Any) -> None:
        before, after = kit.pair(300, 150)
        after.shots = 5
        base, laser = two(made, before, after)
        report = gated(laser, base)
        assert report.exit_code == 2 and "few-shot examples differ: baseline 0, this run 5" in row(report).reasons

    @pytest.mark.slow
    def test_runs_without_samples_are_shown_and_not_gateable(self, made: Any, kit: Any) -> None:
        before, after = kit.pair(300, 150)
        plain = made.plain({"sums": before}, samples=False)
        report = gated(made.run("laser", {"sums": after}), plain)
        assert report.exit_code == 2 and any("shown, gated only by" in reason for reason in row(report).reasons)

    @pytest.mark.slow
    def test_without_samples_the_difference_is_said(self, made: Any, kit: Any) -> None:
        candidate, base = without_samples(made, kit, 300, lost=90)
        found = row(gated(candidate, base))
        assert (found.verdict, found.drop, found.drop_high) == ("INCOMPARABLE", None, None)
        assert found.reasons[-1].startswith("delta -0.3000 [-0.3") and found.reasons[-1].endswith("] unpaired")

    @pytest.mark.slow
    def test_results_from_before_samples_had_hashes(self, made: Any, kit: Any, tmp_path: Path) -> None:
        before, after = kit.pair(300, 150)
        old = tmp_path / "old.json"
        old.write_text(
            json.dumps(
                {
                    "results": {"sums": {"acc": 0.5, "acc_stderr": 0.03}},
                    "versions": {"sums": 1},
                    "config": {"model": "gpt2", "model_args": "pretrained=tiny"},
                }
            )
        )
        laser = made.run("laser", {"sums": after})
        for candidate, baseline in ((laser, old), (old, laser)):
            report = gated(candidate, baseline)
            assert report.exit_code == 2 and any("shown, gated only by" in reason for reason in row(report).reasons), (
                row(report)
            )
        assert before.count == 300

    def test_a_result_that_is_no_number_fails(self, made: Any, kit: Any) -> None:
        before, after = kit.pair(30, 15)
        after.scores = {"acc": float("nan")}
        report = gated(*reversed(two(made, before, after)))
        assert report.verdict == "FAIL" and "not a number" in row(report).reasons[0]


class TestSuites:
    """Weighted means."""

    def pair(self, made: Any, kit: Any, **more: Any) -> tuple[Path, Path]:
        first, second = kit.pair(1000, 500, lost=40, gained=10), kit.pair(1000, 500, lost=5, gained=35)
        return two(
            made,
            {"a": first[0], "b": second[0], **{k: v[0] for k, v in more.items()}},
            {"a": first[1], "b": second[1], **{k: v[1] for k, v in more.items()}},
        )

    @pytest.mark.slow
    def test_losses_and_gains_are_weighed(self, made: Any, kit: Any) -> None:
        base, laser = self.pair(made, kit)
        report = gated(
            laser, base, suites={"both": {"weights": {"a": 1, "b": 1}}, "mostly": {"weights": {"a": 9, "b": 1}}}
        )
        assert row(report, "both").drop == pytest.approx(0) and row(report, "both").verdict == "PASS"
        assert (
            row(report, "mostly").drop == pytest.approx(0.024)
            and row(report, "mostly").verdict == "FAIL"
            and row(report, "mostly").documents == 2000
        )
        assert row(report, "mostly").standard_error == pytest.approx(
            np.hypot(0.9 * row(report, "a").standard_error, 0.1 * row(report, "b").standard_error)
        )

    @pytest.mark.slow
    def test_the_tasks_of_a_suite_need_no_row_of_their_own(self, made: Any, kit: Any) -> None:
        base, laser = self.pair(made, kit)
        report = gated(laser, base, suites={"both": {"weights": {"a": 1, "b": 1}, "floor": 0.51}}, others="ignore")
        assert (
            [row.name for row in report.rows] == ["both"]
            and report.verdict == "FAIL"
            and "below the floor of 0.51" in row(report, "both").reasons[0]
        )

    @pytest.mark.slow
    def test_a_missing_task_is_never_averaged_over(self, made: Any, kit: Any) -> None:
        base, laser = self.pair(made, kit)
        report = gated(
            laser,
            base,
            suites={"s": {"weights": {"a": 1, "c": 1}}, "t": {"weights": {"c": 1}, "required": False}},
            others="ignore",
        )
        assert [(row.name, row.verdict, row.reasons) for row in report.rows] == [
            ("s", "FAIL", ("not averaged, because the candidate has no score of c",))
        ]

    @pytest.mark.slow
    def test_what_has_another_scale_is_not_averaged(self, made: Any, kit: Any) -> None:
        odds = [
            kit.Task({"odds": [float(i % 7) for i in range(1000)]}, log_likelihoods=kit.likelihoods(1000, seed))
            for seed in (0, 1)
        ]
        base, laser = self.pair(made, kit, odds=tuple(odds))
        report = gated(laser, base, suites={"s": {"weights": {"a": 1, "odds": 1}}})
        assert (
            row(report, "s").verdict == "INCOMPARABLE"
            and "the scores of odds do not lie between" in row(report, "s").reasons[0]
        )


@pytest.mark.slow
def test_a_policy_may_name_any_metric_and_the_primary_one_is_judged_otherwise(made: Any, kit: Any) -> None:
    """Accuracy rises while the right answers become less likely."""
    before, after = kit.pair(400, 200, gained=60, greedy=True, output_type="loglikelihood")
    generator = np.random.default_rng(0)
    likelihoods = generator.normal(-4.0, 1.0, 400).clip(-9.0, -1.0)
    before.values["spread"], after.values["spread"] = [0.5] * 400, [0.2, 0.4] * 200
    for task, values in ((before, likelihoods), (after, likelihoods - 0.5)):
        task.log_likelihoods = values.tolist()
    base, laser = two(made, before, after)
    report = gated(laser, base)
    assert [(one.name, one.metric, one.verdict) for one in report.rows] == [("sums", "acc", "PASS")]
    for metric, drop in (("gold_loglikelihood", 0.5), ("gold_loglikelihood,none", 0.5), ("spread", 0.2)):
        found = row(named := gated(laser, base, tasks={"sums": {"metric": metric}}))
        assert (named.verdict, found.metric) == ("FAIL", metric.partition(",")[0])
        assert found.drop == pytest.approx(drop)
    lenient = {"sums": {"metric": "gold_loglikelihood", "margin": 1.0}}
    assert gated(laser, base, tasks=lenient).verdict == "PASS"
    missing = row(gated(laser, base, tasks={"sums": {"metric": "bleu"}}))
    assert "it has acc,none, gold_loglikelihood,none, spread,none" in missing.reasons[0]
