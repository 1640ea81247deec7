"""Which runs a candidate is gated against."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from leaderboard.errors import LeaderboardError
from leaderboard.gate import formats, table
from leaderboard.ingest import ingest
from leaderboard.store.database import open_store
from leaderboard.store.pins import choose
from tests.leaderboard.gate.gating import gated, row, two


class TestBaselines:
    """Which runs a candidate is measured against."""

    @pytest.mark.slow
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

    @pytest.mark.slow
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

    @pytest.mark.slow
    def test_a_run_that_nobody_knows(self, made: Any, kit: Any) -> None:
        laser = two(made, *kit.pair(400, 200))[1]
        database = made.root / "leaderboard.duckdb"
        ingest([made.root], database)
        with pytest.raises(
            LeaderboardError,
            match=(
                "baseline blesed is neither a path nor a run in .*: `lm_eval runs list --database .*` shows their ids;"
                " did you mean 'blessed'"
            ),
        ):
            gated(laser, "blesed", database=database)

    @pytest.mark.slow
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

    @pytest.mark.slow
    def test_a_named_run_has_the_margins_of_an_unedited_or_of_an_edited_one(self, made: Any, kit: Any) -> None:
        base, laser = two(made, *kit.pair(1500, 750, lost=20))
        margins = {"sums": {"margin": {"base": 0.05, "blessed": 0.005}}}
        old = made.run("laser", {"sums": kit.pair(1500, 750)[0]}, folder="old", spec_id="other")
        assert {row.margin: row.verdict for row in gated(laser, base, old, tasks=margins).rows} == {
            0.05: "PASS",
            0.005: "FAIL",
        }

    @pytest.mark.slow
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

    def test_the_unedited_run_itself_is_told_that_it_is_one(self, made: Any, kit: Any) -> None:
        base, laser = two(made, *kit.pair(30, 15))
        plain = made.plain({"sums": kit.pair(30, 15)[0]}, model="tiny2")
        for candidate in (base, plain):
            with pytest.raises(LeaderboardError) as raised:
                gated(candidate)
            said = str(raised.value)
            assert "the candidate is itself the unedited run of the model" in said and "--baseline PATH" in said
            assert "is known" not in said
        (base / "receipt.json").unlink()
        with pytest.raises(LeaderboardError, match="no unedited run of the model is known"):
            gated(laser)

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

    @pytest.mark.slow
    def test_a_blessed_run_that_left_the_store(self, made: Any, kit: Any) -> None:
        _, laser = two(made, *kit.pair(30, 15))
        database = made.root / "leaderboard.duckdb"
        ingest([made.root], database)
        choose(database, str(laser), "x")
        with open_store(database, read_only=False) as store:
            store.connection.execute("DELETE FROM runs WHERE run_id IN (SELECT run_id FROM blessings)")
        with pytest.raises(LeaderboardError, match="is no longer in .*: bless another"):
            gated(laser, database=database)

    @pytest.mark.slow
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
