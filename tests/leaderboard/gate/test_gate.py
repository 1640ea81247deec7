"""The gate's decisions, on runs whose answer is known: its words and exit codes, its baselines, and what it says
changed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from leaderboard.errors import LeaderboardError
from leaderboard.gate import formats, table
from leaderboard.gate.decision import GateRow, decide
from leaderboard.gate.report import GateReport
from leaderboard.ingest import ingest
from leaderboard.store.database import open_store
from leaderboard.store.pins import choose
from tests.leaderboard.gate.gating import gated, row, two


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


def test_a_critical_task_has_half_the_margin(made: Any, kit: Any) -> None:
    base, laser = two(made, *kit.pair(3000, 1500, lost=60, gained=40))
    assert gated(laser, base).verdict == "PASS"
    report = gated(laser, base, tasks={"sums": {"critical": True}})
    assert (report.verdict, row(report).margin) == ("WARN", 0.01)
    assert gated(laser, base, tasks={"sums": {"margin": 0.05}}).verdict == "PASS"


def test_the_margin_of_a_task_is_its_own_before_the_default(made: Any, kit: Any) -> None:
    base, laser = two(made, *kit.pair(400, 200, lost=60, gained=10, metadata={"margin": {"acc": 0.2}}))
    assert (gated(laser, base).verdict, row(gated(laser, base)).margin) == ("PASS", 0.2)
    assert gated(laser, base, tasks={"sums": {"margin": 0.02}}).verdict == "FAIL"


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


def test_lower_is_better(made: Any, kit: Any) -> None:
    base, laser = two(made, *kit.pair(400, 200, lost=10, gained=60, metric="error", higher_is_better={"error": False}))
    assert row(gated(laser, base)).drop == pytest.approx(0.125) and gated(laser, base).verdict == "FAIL"


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

    def test_a_required_task_that_is_missing_fails(self, made: Any, kit: Any) -> None:
        base, laser = two(made, *kit.pair(300, 150))
        report = gated(laser, base, tasks={"summs": {}, "other": {"required": False}})
        assert (report.verdict, row(report, "summs").reasons) == (
            "FAIL",
            ("required, and the candidate has not run it; did you mean 'sums'?",),
        )
        assert [row.name for row in report.rows] == ["summs", "sums"]
        assert "it has sums" in row(gated(laser, base, tasks={"zzz": {}}), "zzz").reasons[0]

    def test_others_can_be_left_alone(self, made: Any, kit: Any) -> None:
        good, bad = kit.pair(400, 200), kit.pair(400, 200, lost=60)
        base, laser = two(made, {"good": good[0], "bad": bad[0]}, {"good": good[1], "bad": bad[1]})
        assert gated(laser, base).verdict == "FAIL"
        assert gated(laser, base, tasks={"good": {}}, others="ignore").verdict == "PASS"
        with pytest.raises(LeaderboardError, match="no task to gate"):
            gated(laser, base, others="ignore")

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

    def test_other_settings_are_incomparable_and_named(self, made: Any, kit: Any) -> None:
        before, after = kit.pair(300, 150)
        after.shots = 5
        base, laser = two(made, before, after)
        report = gated(laser, base)
        assert report.exit_code == 2 and "few-shot examples differ: baseline 0, this run 5" in row(report).reasons

    def test_runs_without_samples_are_shown_and_not_gateable(self, made: Any, kit: Any) -> None:
        before, after = kit.pair(300, 150)
        plain = made.plain({"sums": before}, samples=False)
        report = gated(made.run("laser", {"sums": after}), plain)
        assert report.exit_code == 2 and any("shown, gated only by" in reason for reason in row(report).reasons)

    def test_without_samples_the_difference_is_said(self, made: Any, kit: Any) -> None:
        candidate, base = without_samples(made, kit, 300, lost=90)
        found = row(gated(candidate, base))
        assert (found.verdict, found.drop, found.drop_high) == ("INCOMPARABLE", None, None)
        assert found.reasons[-1].startswith("delta -0.3000 [-0.3") and found.reasons[-1].endswith("] unpaired")

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

    def test_the_tasks_of_a_suite_need_no_row_of_their_own(self, made: Any, kit: Any) -> None:
        base, laser = self.pair(made, kit)
        report = gated(laser, base, suites={"both": {"weights": {"a": 1, "b": 1}, "floor": 0.51}}, others="ignore")
        assert (
            [row.name for row in report.rows] == ["both"]
            and report.verdict == "FAIL"
            and "below the floor of 0.51" in row(report, "both").reasons[0]
        )

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


class TestBaselines:
    """Which runs a candidate is measured against."""

    def test_the_unedited_run_is_found_beside_the_candidate_without_a_database(self, made: Any, kit: Any) -> None:
        base, laser = two(made, *kit.pair(400, 200))
        report = gated(laser)
        assert [(b.role, b.path) for b in report.baselines] == [
            ("base", str(base))
        ] and "found beside it" in report.baselines[0].how
        (base / "receipt.json").unlink()
        with pytest.raises(LeaderboardError, match="nothing to compare laser on tiny with"):
            gated(laser)
        with pytest.raises(LeaderboardError, match="no unedited run of tiny"):
            gated(laser, "base")

    def test_base_and_the_last_blessed_run_are_both_compared_with(self, made: Any, kit: Any, tmp_path: Path) -> None:
        before, after = kit.pair(1500, 750, lost=10)
        _, first = two(made, before, after)
        worse = kit.pair(1500, 750, lost=20)[1]
        worse.log_likelihoods = kit.likelihoods(1500, 2)
        second = made.run("laser", {"sums": worse}, folder="again", spec_id="other")
        database = made.root / "leaderboard.duckdb"
        ingest([made.root], database)
        with pytest.raises(LeaderboardError, match="no run of laser on tiny is blessed"):
            gated(second, "blessed", database=database)
        choose(database, str(first), "the release")
        report = gated(second, database=database)
        assert [b.role for b in report.baselines] == ["base", "blessed"] and report.baselines[1].how.endswith(
            ": the release"
        )
        assert {row.role: round(row.drop, 5) for row in report.rows} == {"base": 0.01333, "blessed": 0.00667}
        assert [b.role for b in gated(second, "blessed", database=database).baselines] == ["blessed"]
        by_id = gated(report.candidate[:10], report.baselines[0].run_id[:10], database=database)
        assert [(b.role, b.run_id) for b in by_id.baselines] == [("run", report.baselines[0].run_id)]
        margins = gated(second, database=database, tasks={"sums": {"margin": {"base": 0.05, "blessed": 0.005}}})
        assert {row.role: row.verdict for row in margins.rows} == {"base": "PASS", "blessed": "FAIL"}

    def test_a_run_that_nobody_knows(self, made: Any, kit: Any) -> None:
        laser = two(made, *kit.pair(400, 200))[1]
        database = made.root / "leaderboard.duckdb"
        ingest([made.root], database)
        with pytest.raises(
            LeaderboardError,
            match=(
                "baseline blesed: there is nothing at this path, and .* `lm_eval runs list` shows their ids; did you"
                " mean 'blessed'"
            ),
        ):
            gated(laser, "blesed", database=database)

    def test_two_named_runs_have_rows_and_findings_of_their_own(self, made: Any, kit: Any) -> None:
        before, after = kit.pair(400, 200, lost=60)
        base, laser = two(made, before, after)
        good = made.run("svd", {"sums": after})
        report = gated(laser, base, good, base)
        assert [(compared.role, compared.recipe) for compared in report.baselines] == [
            ("run", "baseline"),
            ("run", "svd"),
        ]
        assert [[row.verdict for row in report.rows_of(compared)] for compared in report.baselines] == [
            ["FAIL"],
            ["PASS"],
        ]
        assert report.baselines[0].findings and not report.baselines[1].findings
        assert [len(suite) for suite in ElementTree.fromstring(formats.junit(report))] == [1, 1]
        first, second = (
            text.partition("\n\n")[0] for text in table.render(report, width=120).split("against run ")[1:]
        )
        assert first.count("\nsums ") == second.count("\nsums ") == 1 and "FAIL" in first and "FAIL" not in second
        assert {row["baseline"] for row in json.loads(report.to_json())["rows"]} == {
            compared.run_id for compared in report.baselines
        }

    def test_a_named_run_has_the_margins_of_an_unedited_or_of_an_edited_one(self, made: Any, kit: Any) -> None:
        base, laser = two(made, *kit.pair(1500, 750, lost=20))
        margins = {"sums": {"margin": {"base": 0.05, "blessed": 0.005}}}
        old = made.run("laser", {"sums": kit.pair(1500, 750)[0]}, folder="old", spec_id="other")
        assert {row.margin: row.verdict for row in gated(laser, base, old, tasks=margins).rows} == {
            0.05: "PASS",
            0.005: "FAIL",
        }

    def test_a_pinned_run_is_the_base(self, made: Any, kit: Any) -> None:
        before, after = kit.pair(300, 150, lost=5)
        two(made, before, after)
        pinned = made.run("baseline", {"sums": before}, folder="pinned", spec_id="other")
        database = made.root / "leaderboard.duckdb"
        ingest([made.root], database)
        choose(database, str(pinned), "x")
        assert gated(made.root / "tiny" / "laser-0123456789", database=database).baselines[0].path == str(pinned)

    def test_the_same_run_again_passes_however_few_its_documents(self, made: Any, kit: Any) -> None:
        before, after = kit.pair(20, 10, lost=2)
        laser = made.run("laser", {"sums": after})
        copy = made.run("laser", {"sums": after}, folder="copy", started="2027-01-01T00:00:00Z")
        report = gated(copy, laser, suites={"s": {"weights": {"sums": 1}}})
        assert (
            report.exit_code == 0
            and row(report).notes[0] == "the same as the baseline, to the bit"
            and row(report).documents == 20
        )
        assert before.count == 20

    def test_the_unedited_model_can_be_gated_against_another_run_of_it(self, made: Any, kit: Any) -> None:
        before, after = kit.pair(400, 200, lost=60)
        old, new = (
            made.run("baseline", {"sums": before}, folder="old"),
            made.run("baseline", {"sums": after}, folder="new", model="tiny2"),
        )
        assert gated(made.root / "tiny2" / "new", old).verdict == "FAIL" and new.is_dir()
        with pytest.raises(LeaderboardError, match="the candidate is the unedited model itself"):
            gated(new, "base")

    def test_names_that_mean_no_run(self, made: Any, kit: Any, tmp_path: Path) -> None:
        base, laser = two(made, *kit.pair(30, 15))
        failed = made.failed("nan", {"sums": kit.pair(30, 15)[1]})
        (tmp_path / "empty").mkdir()
        for name, words in (
            ("feedface", "there is nothing at this path, and no leaderboard at"),
            (made.root / "tiny", "holds 3 runs"),
            (tmp_path / "empty", "holds no run"),
            (failed, "is a failed run, and there is nothing to compare: non_finite_weight: 3 weights are NaN"),
            (laser / "samples_sums_x.jsonl", "nothing at this path"),
        ):
            with pytest.raises(LeaderboardError, match=words):
                gated(name, base)
            with pytest.raises(LeaderboardError, match=words):
                gated(laser, name)

    def test_a_blessed_run_that_left_the_store(self, made: Any, kit: Any) -> None:
        _, laser = two(made, *kit.pair(30, 15))
        database = made.root / "leaderboard.duckdb"
        ingest([made.root], database)
        choose(database, str(laser), "x")
        with open_store(database, read_only=False) as store:
            store.connection.execute("DELETE FROM runs WHERE run_id IN (SELECT run_id FROM blessings)")
        with pytest.raises(LeaderboardError, match="is no longer in .*: bless another"):
            gated(laser, database=database)

    def test_a_run_whose_files_are_gone(self, made: Any, kit: Any) -> None:
        import shutil

        base, laser = two(made, *kit.pair(30, 15))
        database = made.root / "leaderboard.duckdb"
        ingest([made.root], database)
        choose(database, str(base), "x")
        shutil.rmtree(base)
        with pytest.raises(LeaderboardError, match="its files are gone"):
            gated(laser, database=database)

    def test_one_cache_for_two_models_is_found_out(self, made: Any, kit: Any) -> None:
        task = kit.pair(30, 15)[0]
        base, laser = two(made, task, task, matrices=[], config={"use_cache": "answers"})
        receipt = json.loads((laser / "receipt.json").read_text())
        receipt["matrices"] = [{"name": "w", "relative_error": 0.5}]
        (laser / "receipt.json").write_text(json.dumps(receipt))
        with pytest.raises(LeaderboardError, match="served by one request cache"):
            gated(laser, base)


class TestWhatChanged:
    """Who is to blame."""

    def store(self, made: Any, kit: Any, *, moved: int, digest: str | None = None, **changes: Any) -> GateReport:
        """A blessed run and one that lost 60 more documents, each with an unedited run of its own settings."""
        start, blessed = kit.pair(400, 300)
        later_base = kit.pair(400, 300, lost=moved)[1]
        worse = kit.pair(400, 300, lost=60)[1]
        for seed, task in enumerate((start, blessed, later_base, worse)):
            task.log_likelihoods = kit.likelihoods(400, seed)
        made.run("baseline", {"sums": start})
        first = made.run("laser", {"sums": blessed})
        made.run(
            "baseline",
            {"sums": later_base},
            folder="base2",
            spec_id="b2",
            settings_id="two",
            started="2026-02-02T00:00:00Z",
            **changes,
        )
        weights = {"digest_before": kit.sha("weights"), "digest_after": digest or kit.sha("weightsother")}
        second = made.run(
            "laser",
            {"sums": worse},
            folder="laser2",
            spec_id="l2",
            settings_id="two",
            started="2026-02-02T00:00:00Z",
            weights=weights,
            **changes,
        )
        database = made.root / "leaderboard.duckdb"
        assert ingest([made.root], database).rejected == []
        choose(database, str(first), "x")
        return gated(second, database=database)

    def test_equal_weights_clear_the_recipe(self, made: Any, kit: Any) -> None:
        report = self.store(
            made, kit, moved=0, digest=kit.sha("weightslaser"), versions={"python": "3.11.7", "torch": "2.14.0"}
        )
        blessed = report.baselines[1]
        assert (
            report.verdict == "FAIL"
            and ("torch", "2.13.0", "2.14.0") in blessed.changes
            and "weights digest" not in [c.what for c in blessed.changes]
        )
        assert "the weights are the same to the bit, so the recipe did not do this" in blessed.findings

    def test_other_weights_and_nothing_else_accuse_it(self, made: Any, kit: Any) -> None:
        blessed = self.store(made, kit, moved=0).baselines[1]
        assert [change.what for change in blessed.changes] == ["weights digest"]
        assert (
            blessed.findings[0] == "nothing else that is known differs, so the edit did this"
            and "the unedited model did not move beyond chance" in blessed.findings[1]
        )

    def test_a_baseline_that_moved_too_is_said(self, made: Any, kit: Any) -> None:
        findings = self.store(made, kit, moved=50).baselines[1].findings
        assert any(
            "the unedited model moved too, by -0.1250: that much is not the recipe's doing" in finding
            for finding in findings
        )

    def test_a_baseline_that_moved_too_is_said_of_a_named_run_without_a_database(self, made: Any, kit: Any) -> None:
        report = self.store(made, kit, moved=50)
        findings = gated(report.candidate_path, report.baselines[1].path).baselines[0].findings
        assert any("the unedited model moved too, by -0.1250" in finding for finding in findings)

    def test_everything_that_can_change_a_score_is_named(self, made: Any, kit: Any) -> None:
        before, after = kit.pair(400, 300, lost=60)
        first = made.run("laser", {"sums": before})
        model = {
            "backend": "hf",
            "name": "tiny",
            "pretrained": "tiny",
            "revision": "v2",
            "dtype": "bfloat16",
            "device": "cuda:0",
            "identity": kit.sha("new"),
            "parameters": 1,
        }
        second = made.run(
            "laser:rank=3",
            {"sums": after},
            folder="second",
            model="tiny",
            config={"batch_size": 8},
            versions={"torch": "3", "lm_eval": "9"},
        )
        receipt = json.loads((second / "receipt.json").read_text()) | {
            "weights": {"digest_before": kit.sha("b"), "digest_after": kit.sha("a")}
        }
        receipt["model"] = model
        (second / "receipt.json").write_text(json.dumps(receipt))
        results = next(second.glob("results_*.json"))
        results.write_text(
            results.read_text()
            .replace('"5.23.0"', '"5.24.0"')
            .replace('"lm_eval_version": "0.4.13"', '"lm_eval_version": "0.4.14"')
        )
        (compared,) = gated(second, first).baselines
        assert {change.what for change in compared.changes} == {
            "recipe",
            "recipe's steps",
            "weights digest",
            "model revision",
            "unedited weights",
            "lm-eval",
            "transformers",
            "torch",
            "device",
            "dtype",
            "batch size",
        }
        assert "the unedited model has other weights than it had" in compared.findings[0]


def without_samples(made: Any, kit: Any, count: int, lost: int, **task: Any) -> tuple[Path, Path]:
    """An edited run and an unedited one, as results files alone; 90 % right at first."""
    before, after = kit.pair(count, round(0.9 * count), lost=lost, **task)
    base = made.plain({"sums": before}, folder="base", samples=False)
    return made.plain({"sums": after}, folder="edited", samples=False, config={"recipe": "laser"}), base


class TestUnpaired:
    """A policy may decide by the two scores alone; its row says so."""

    @pytest.mark.parametrize(
        ("count", "lost", "margin", "verdict"),
        [
            (300, 90, 0.05, "FAIL"),
            (300, 0, 0.06, "PASS"),
            (300, 0, 0.02, "UNDECIDED"),
            (300, 6, 0.04, "UNDECIDED"),
            (2_000, 60, 0.04, "WARN"),
        ],
    )
    def test_words(self, made: Any, kit: Any, count: int, lost: int, margin: float, verdict: str) -> None:
        candidate, base = without_samples(made, kit, count, lost)
        report = gated(candidate, base, margin=margin, allow_unpaired=True)
        found = row(report)
        assert (found.verdict, found.unpaired, found.documents) == (verdict, True, count)
        assert found.drop == pytest.approx(lost / count) and found.drop_low is not None and found.drop_high is not None
        assert found.drop_low < found.drop < found.drop_high
        assert any(note.startswith("decided unpaired, as the policy allows: delta ") for note in found.notes)
        for text in (table.render(report), formats.markdown(report), formats.junit(report), report.to_json()):
            assert "unpaired" in text

    def test_lower_is_better(self, made: Any, kit: Any) -> None:
        candidate, base = without_samples(made, kit, 300, 90, higher_is_better={"acc": False})
        found = row(gated(candidate, base, margin=0.05, allow_unpaired=True))
        assert found.verdict == "PASS" and found.drop == pytest.approx(-0.3)

    def test_a_task_with_samples_is_decided_as_ever(self, made: Any, kit: Any) -> None:
        base, laser = two(made, *kit.pair(300, 150, lost=3))
        assert row(gated(laser, base, allow_unpaired=True)) == row(gated(laser, base))

    def test_a_floor_holds_without_samples(self, made: Any, kit: Any) -> None:
        candidate, base = without_samples(made, kit, 300, 90)
        found = row(gated(candidate, base, allow_unpaired=True, margin=0.9, tasks={"sums": {"floor": 0.8}}))
        assert found.verdict == "FAIL" and found.reasons[0] == "0.6 is below the floor of 0.8"

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"metric": "loss"}, "a results file has no standard error of this metric"),
            ({"metadata": {"best_value": {"acc": 0.5}}}, "only scores that are means of documents between 0 and 1"),
            ({"shots": 5}, "few-shot examples differ"),
        ],
    )
    def test_what_the_scores_do_not_carry_stays_incomparable(
        self, made: Any, kit: Any, options: dict[str, Any], words: str
    ) -> None:
        before, after = kit.pair(300, 270, **{name: value for name, value in options.items() if name != "shots"})
        after.shots = options.get("shots", 0)
        base = made.plain({"sums": before}, folder="base", samples=False)
        candidate = made.plain({"sums": after}, folder="edited", samples=False, config={"recipe": "laser"})
        found = row(gated(candidate, base, allow_unpaired=True))
        assert found.verdict == "INCOMPARABLE" and any(words in reason for reason in found.reasons), found.reasons

    def test_a_suite_is_of_pairs_only(self, made: Any, kit: Any) -> None:
        candidate, base = without_samples(made, kit, 300, 0)
        found = row(gated(candidate, base, allow_unpaired=True, suites={"all": {"weights": {"sums": 1}}}), "all")
        assert found.verdict == "INCOMPARABLE" and "sums cannot be compared" in found.reasons[0]

    def test_a_truly_lossy_model_seldom_passes(self, made: Any, kit: Any) -> None:
        """The drop is as large as the margin in 60 tasks: at 5 % each, hardly more than three pass."""
        generator = np.random.default_rng(0)

        def tasks(share: float) -> dict[str, Any]:
            draws = generator.random((60, 150)) < share
            return {f"t{number}": kit.Task({"acc": draw.astype(float).tolist()}) for number, draw in enumerate(draws)}

        base = made.plain(tasks(0.8), folder="base", samples=False)
        candidate = made.plain(tasks(0.7), folder="edited", samples=False, config={"recipe": "laser"})
        report = gated(candidate, base, margin=0.1, allow_unpaired=True)
        assert len(report.rows) == 60 and sum(found.verdict == "PASS" for found in report.rows) <= 7
