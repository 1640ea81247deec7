"""A gate that decides by one margin over many tasks: which rows decide, which inform, and how the four forms say so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from leaderboard.gate import formats, table
from leaderboard.gate.policy import PolicyError, policy_from
from leaderboard.gate.report import GateReport
from tests.leaderboard.gate.gating import gated, row, two

MEAN = {"overall": {"margin": 0.02}}


def many(made: Any, kit: Any, flips: list[tuple[int, int]], count: int = 200, **others: Any) -> tuple[Path, Path]:
    """Two runs of as many tasks of `count` documents as there are (lost, gained), named t0, t1, ..., and of others."""
    pairs = {f"t{i}": kit.pair(count, count // 2, lost=lost, gained=gained) for i, (lost, gained) in enumerate(flips)}
    pairs |= others
    return two(made, {name: pair[0] for name, pair in pairs.items()}, {name: pair[1] for name, pair in pairs.items()})


def tasks(number: int, **named: Any) -> dict[str, Any]:
    """The tasks of a policy."""
    return {f"t{i}": {} for i in range(number)} | named


def words(report: GateReport) -> dict[str, str]:
    """Row -> its word."""
    return {row.name: row.verdict for row in report.rows}


@pytest.mark.slow
def test_many_unchanged_tasks_pass_together_where_none_passes_alone(made: Any, kit: Any) -> None:
    base, laser = many(made, kit, [(2, 2)] * 6)
    by_rows = gated(laser, base, tasks=tasks(6))
    assert (by_rows.verdict, by_rows.exit_code, by_rows.decision) == ("UNDECIDED", 3, "rows")
    report = gated(laser, base, tasks=tasks(6), **MEAN)
    assert (report.verdict, report.exit_code, report.decision) == ("PASS", 0, "overall")
    mean, *rest = report.rows
    assert (mean.kind, mean.name, mean.verdict, mean.decides) == ("overall", "overall", "PASS", True)
    assert mean.drop == 0 and mean.drop_high < mean.margin == 0.02 and mean.documents == 1200
    assert [(found.verdict, found.decides, found.only_unsure) for found in rest] == [("UNDECIDED", False, True)] * 6


@pytest.mark.slow
def test_a_loss_of_the_mean_stops_the_gate(made: Any, kit: Any) -> None:
    base, laser = many(made, kit, [(7, 1)] * 6)
    report = gated(laser, base, tasks=tasks(6), **MEAN)
    assert (report.verdict, row(report, "overall").verdict) == ("FAIL", "FAIL")
    assert row(report, "overall").drop == pytest.approx(0.03)
    assert {found.verdict for found in report.rows[1:]} == {"UNDECIDED"}
    unsure = gated(laser, base, tasks=tasks(6), overall={"margin": 0.034})
    assert (unsure.verdict, row(unsure, "overall").verdict) == ("UNDECIDED", "UNDECIDED")  # and not WARN
    needed = row(unsure, "overall").documents_needed
    assert needed is not None and needed > 1_200 and f"needs about {needed:,} documents over" in str(unsure.rows[0])


@pytest.mark.slow
def test_a_sure_loss_of_one_task_stops_the_gate(made: Any, kit: Any) -> None:
    base, laser = many(made, kit, [(40, 2), *[(0, 10)] * 5])
    report = gated(laser, base, tasks=tasks(6), **MEAN)
    assert row(report, "overall").verdict == "PASS" and row(report, "overall").drop < 0
    assert (report.verdict, row(report, "t0").verdict, row(report, "t0").decides) == ("FAIL", "FAIL", False)
    assert "FAIL, exit code 1: by 1 row, not by the overall margin" in table.render(report)


@pytest.mark.slow
def test_a_broken_floor_and_a_missing_task_stop_the_gate(made: Any, kit: Any) -> None:
    base, laser = many(made, kit, [(2, 2)] * 6)
    report = gated(laser, base, tasks=tasks(6, t3={"floor": 0.6}), **MEAN)
    assert (report.verdict, row(report, "overall").verdict, row(report, "t3").verdict) == ("FAIL", "PASS", "FAIL")
    report = gated(laser, base, tasks=tasks(7), **MEAN)
    assert words(report)["overall"] == words(report)["t6"] == report.verdict == "FAIL"
    assert row(report, "overall").reasons == ("not averaged, because the candidate has no score of t6",)
    report = gated(laser, base, tasks=tasks(6), overall={"margin": 0.02, "floor": 0.55})
    assert row(report, "overall").reasons == ("0.5 is below the floor of 0.55",) and report.exit_code == 1


@pytest.mark.slow
def test_critical_tasks_and_those_outside_the_mean_decide_by_themselves(made: Any, kit: Any) -> None:
    base, laser = many(made, kit, [(2, 2)] * 6)
    critical = gated(laser, base, tasks=tasks(6, t3={"critical": True}), **MEAN)
    assert (critical.verdict, [found.name for found in critical.rows if found.decides]) == (
        "UNDECIDED",
        ["overall", "t3"],
    )
    weights = {f"t{i}": 1 for i in range(5)}
    outside = gated(laser, base, overall={"margin": 0.02, "weights": weights})
    assert (outside.verdict, [found.name for found in outside.rows if found.decides]) == (
        "UNDECIDED",
        ["overall", "t5"],
    )
    assert gated(laser, base, overall={"margin": 0.02, "weights": weights}, others="ignore").verdict == "PASS"
    optional = gated(laser, base, tasks=tasks(6, t5={"required": False}), **MEAN)
    assert row(optional, "overall").documents == 5 * 200 and row(optional, "t5").decides


@pytest.mark.slow
def test_weights(made: Any, kit: Any) -> None:
    small = kit.pair(100, 50, lost=20)
    base, laser = many(made, kit, [(0, 0), (0, 0)], 400, small=small)

    def drop(weights: Any) -> float:
        named = tasks(2, small={"margin": 0.9})
        return row(gated(laser, base, tasks=named, overall={"margin": 0.5, "weights": weights}), "overall").drop

    assert drop("equal") == pytest.approx(0.2 / 3) and drop("by_documents") == pytest.approx(0.2 / 9)
    assert drop({"t0": 3, "small": 1}) == pytest.approx(0.05)


@pytest.mark.slow
def test_margins_by_baseline(made: Any, kit: Any) -> None:
    base, laser = many(made, kit, [(2, 2)] * 4, 1000)
    overall = {"margin": {"base": 0.03, "blessed": 0.004}}
    assert row(gated(laser, base, tasks=tasks(4), overall=overall), "overall").margin == 0.03


@pytest.mark.slow
def test_other_scales_are_not_averaged(made: Any, kit: Any) -> None:
    odds = tuple(
        kit.Task({"odds": [float(i % 7) for i in range(200)]}, log_likelihoods=kit.likelihoods(200, seed))
        for seed in (0, 1)
    )
    base, laser = many(made, kit, [(2, 2)] * 6, odds=odds)
    report = gated(laser, base, tasks=tasks(6, odds={}), **MEAN)
    assert (report.verdict, row(report, "overall").verdict) == ("INCOMPARABLE", "INCOMPARABLE")
    assert "the scores of odds do not lie between" in row(report, "overall").reasons[0]


@pytest.mark.slow
def test_suites_stay_as_they_are(made: Any, kit: Any) -> None:
    base, laser = many(made, kit, [(2, 2)] * 6)
    suites = {"pair": {"weights": {"t0": 1, "t1": 1}, "margin": 0.01}}
    report = gated(laser, base, tasks=tasks(6), suites=suites, **MEAN)
    assert row(report, "pair").decides and report.verdict == row(report, "pair").verdict == "UNDECIDED"
    assert "over its tasks" in row(report, "pair").reasons[0]


class TestNeeds:
    """How many documents an undecided row is said to need."""

    @pytest.mark.slow
    def test_rows_that_all_must_pass_need_more_than_one(self, made: Any, kit: Any) -> None:
        base, laser = many(made, kit, [(2, 2)] * 6, 100)
        one = row(gated(laser, base, tasks={"t0": {}}, others="ignore"), "t0")
        all_rows = row(gated(laser, base), "t0")
        changed = 5 / 101
        assert 6.18 * changed / 0.02**2 < one.documents_needed < 1.15 * 6.18 * changed / 0.02**2
        assert 11.8 * changed / 0.02**2 < all_rows.documents_needed < 1.15 * 11.8 * changed / 0.02**2
        assert all_rows.reasons[0] == (
            f"cannot exclude a drop as large as the margin: needs about {all_rows.documents_needed:,} documents for all"
            " 6 undecided rows to pass, has 100"
        )
        assert one.reasons[0].endswith(f"needs about {one.documents_needed:,} documents, has 100")
        assert all_rows.detectable > one.detectable

    @pytest.mark.slow
    def test_rows_that_inform_need_what_they_need_alone(self, made: Any, kit: Any) -> None:
        base, laser = many(made, kit, [(2, 2)] * 6, 100)
        alone = row(gated(laser, base, tasks={"t0": {}}, others="ignore"), "t0").documents_needed
        report = gated(laser, base, tasks=tasks(6), overall={"margin": 0.005})
        assert row(report, "t0").documents_needed == alone and row(report, "overall").verdict == "UNDECIDED"
        mean = row(report, "overall")
        assert 600 < mean.documents_needed < 20_000 and f"{mean.documents_needed:,} documents over its" in str(mean)

    @pytest.mark.slow
    def test_a_seeming_loss_says_how_many_would_tell(self, made: Any, kit: Any) -> None:
        base, laser = two(made, *kit.pair(40, 20, lost=3, gained=1))
        found = row(gated(laser, base))
        assert found.reasons[0] == (
            "looks worse by more than the margin, but chance is not excluded: needs about"
            f" {found.documents_needed:,} documents to tell, has 40"
        )
        assert 150 < found.documents_needed < 350

    @pytest.mark.slow
    def test_documents_that_are_there_already_are_not_asked_for(self, made: Any, kit: Any) -> None:
        base, laser = two(made, *kit.pair(1000, 500, lost=23, gained=6))
        found = row(gated(laser, base))
        assert found.verdict == "WARN" and found.documents_needed is None
        base, laser = (
            made.run(name, {"other": task}, folder=f"{name}-2", spec_id=name)
            for name, task in zip(("baseline", "laser"), kit.pair(1500, 700, lost=43, gained=30))
        )
        found = row(gated(laser, base, alpha=0.01), "other")
        assert found.verdict == "UNDECIDED"
        more = f"needs about {found.documents_needed:,} documents, has 1,500"
        close = "close to it: somewhat more than its 1,500 documents are needed"
        assert found.reasons[0].endswith(more if found.documents_needed > 1500 else close)


class TestForms:
    """Which decision is which, in every form."""

    def report(self, made: Any, kit: Any, **policy: Any) -> GateReport:
        base, laser = many(made, kit, [(2, 2)] * 6)
        return gated(laser, base, **({"tasks": tasks(6, t3={"critical": True, "margin": 0.2})} | MEAN | policy))

    @pytest.mark.slow
    @pytest.mark.parametrize("width", [80, 120])
    def test_table(self, made: Any, kit: Any, width: int) -> None:
        text = table.render(self.report(made, kit), width=width)
        lines = text.splitlines()
        assert max(map(len, lines)) <= width and text.isascii()
        order = [lines.index(table.DECIDING), lines.index(table.INFORMING)]
        places = [
            next(i for i, line in enumerate(lines) if line.startswith(name)) for name in ("overall", "t3 *", "t4")
        ]
        assert order[0] < places[0] < places[1] < order[1] < places[2]
        assert "weighted mean of 6, of equal weight" in text
        assert lines[-1] == "PASS, exit code 0: by the overall margin; 5 informing rows undecided"

    @pytest.mark.slow
    def test_json(self, made: Any, kit: Any) -> None:
        data = json.loads(self.report(made, kit).to_json())
        assert data["decision"] == "overall" and "needs" not in data["rows"][0]
        decides = [found["name"] for found in data["rows"] if found["decides"]]
        assert decides == ["overall", "t3"] and data["rows"][0]["kind"] == "overall"
        base, laser = (Path(path) for path in (data["baselines"][0]["path"], data["candidate_path"]))
        by_rows = json.loads(gated(laser, base).to_json())
        assert by_rows["decision"] == "rows" and all(found["decides"] for found in by_rows["rows"])

    @pytest.mark.slow
    def test_markdown(self, made: Any, kit: Any) -> None:
        text = formats.markdown(self.report(made, kit))
        assert "Decided by the overall margin; 5 informing rows undecided." in text
        first, second = text.index(table.DECIDING), text.index(table.INFORMING)
        assert first < text.index("| `overall` |") < text.index("| `t3` (critical) |") < second < text.index("| `t4` |")
        assert text.count("|---|---:|") == 2

    @pytest.mark.slow
    def test_junit(self, made: Any, kit: Any) -> None:
        (suite,) = ElementTree.fromstring(formats.junit(self.report(made, kit)))
        found = {case.get("name"): case.find("properties/property").get("value") for case in suite}  # type: ignore[union-attr]
        assert found["overall"] == found["t3"] == "true" and found["t4"] == "false"
        skipped = [case for case in suite if case.find("skipped") is not None]
        assert len(skipped) == 5 and "informs: the overall margin decides" in (skipped[0].find("skipped").text or "")  # type: ignore[union-attr]

    @pytest.mark.slow
    def test_a_gate_by_rows_looks_as_before(self, made: Any, kit: Any) -> None:
        base, laser = many(made, kit, [(2, 2)] * 3)
        report = gated(laser, base)
        assert table.DECIDING not in table.render(report) and "properties" not in formats.junit(report)
        assert table.render(report).endswith("UNDECIDED, exit code 3: 3 of 3 rows")
        assert "Decided" not in formats.markdown(report)


class TestPolicy:
    """What a policy may say of it."""

    @pytest.mark.parametrize(
        ("overall", "words"),
        [
            ({}, "overall.margin: is missing"),
            ({"margin": 0}, "overall.margin: should be greater than 0 (found 0)"),
            ({"margn": 0.1, "margin": 0.1}, "overall.margn: unknown key, did you mean 'margin'?"),
            ({"margin": 0.1, "weights": "even"}, "overall.weights: should be 'equal' or 'by_documents' (found 'even')"),
            ({"margin": 0.1, "weights": 3}, "overall.weights: should be 'equal' or 'by_documents' (found 3)"),
            (
                {"margin": 0.1, "weights": {}},
                "overall.weights: mapping should have at least 1 item, and has none",
            ),
            ({"margin": 0.1, "weights": {"sums": -1}}, "overall.weights.sums: should be greater than 0 (found -1)"),
            ({"margin": {"base": 0.1}}, "overall.margin: should be a number, or have both base and blessed"),
            (0.01, "overall: should be a mapping, such as {margin: 0.01} (found 0.01)"),
        ],
    )
    def test_mistakes(self, overall: Any, words: str) -> None:
        with pytest.raises(PolicyError) as caught:
            policy_from({"tasks": {"sums": {}}, "overall": overall}, "x")
        assert str(caught.value).splitlines()[1:] == [f"  - {words}"]

    def test_a_mean_of_nothing_is_refused(self) -> None:
        for data in ({}, {"tasks": {"sums": {"required": False}}}):
            with pytest.raises(PolicyError, match="overall: averages no task; name the tasks under tasks"):
                policy_from(data | MEAN, "x")

    def test_what_is_averaged_is_known_beforehand(self) -> None:
        named = {"tasks": {"a": {}, "b": {"required": False}, "c": None}}
        assert policy_from(named | MEAN, "x").averaged == ("a", "c")
        weights = {"overall": {"margin": 0.01, "weights": {"b": 2, "d": 1}}}
        assert policy_from(named | weights, "x").averaged == ("b", "d")
        assert policy_from(named, "x").averaged == ()
        written = policy_from(named | weights, "x").model_dump_json()
        assert policy_from(json.loads(written), "x") == policy_from(named | weights, "x")
