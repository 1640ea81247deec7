"""What a gate says of the causes: everything that differs between two runs, and who is to blame."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from leaderboard.gate.report import GateReport
from leaderboard.ingest import ingest
from leaderboard.store.pins import choose
from tests.leaderboard.gate.gating import gated


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

    @pytest.mark.slow
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

    @pytest.mark.slow
    def test_other_weights_and_nothing_else_accuse_it(self, made: Any, kit: Any) -> None:
        blessed = self.store(made, kit, moved=0).baselines[1]
        assert [change.what for change in blessed.changes] == ["weights digest"]
        assert (
            blessed.findings[0] == "nothing else that is known differs, so the edit did this"
            and "the unedited model did not move beyond chance" in blessed.findings[1]
        )

    @pytest.mark.slow
    def test_a_baseline_that_moved_too_is_said(self, made: Any, kit: Any) -> None:
        findings = self.store(made, kit, moved=50).baselines[1].findings
        assert any(
            "the unedited model moved too, by -0.1250: that much is not the recipe's doing" in finding
            for finding in findings
        )

    def test_what_a_baseline_lost_is_below_zero_also_where_lower_is_better(self, made: Any, kit: Any) -> None:
        metric = {"higher_is_better": {"acc": False}}
        worse, better = (replace(task, **metric) for task in kit.pair(400, 300, lost=60))
        made.run("baseline", {"sums": better})
        first = made.run("laser", {"sums": better})
        later = {"settings_id": "two", "started": "2026-02-02T00:00:00Z"}
        made.run("baseline", {"sums": worse}, folder="base2", spec_id="b2", **later)
        second = made.run("laser", {"sums": worse}, folder="laser2", spec_id="l2", **later)
        database = made.root / "leaderboard.duckdb"
        assert ingest([made.root], database).rejected == []
        choose(database, str(first), "x")
        findings = gated(second, database=database).baselines[1].findings
        assert any("the unedited model moved too, by -0.1500" in finding for finding in findings), findings

    @pytest.mark.slow
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
