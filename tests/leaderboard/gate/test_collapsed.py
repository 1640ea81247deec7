"""A candidate that collapsed fails, by whatever margin its metrics would pass."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest

from leaderboard.gate.formats import junit, markdown
from leaderboard.gate.table import render
from tests.leaderboard.compare.test_collapse import probes, texts
from tests.leaderboard.gate.gating import gated, row, two


@pytest.fixture
def runs(made: Any, kit: Any) -> tuple[Any, Any]:
    """An unedited run, and one that lost the language and its bias."""
    before, after = texts(kit, [9.0 + 0.1 * (i % 5) for i in range(60)])
    first, second = probes(kit)
    return two(made, {"sums": before, "bias": first}, {"sums": after, "bias": second})


@pytest.mark.slow
def test_no_margin_lets_it_pass(runs: tuple[Any, Any]) -> None:
    base, laser = runs
    report = gated(laser, base, tasks={"sums": {"margin": 1e9}, "bias": {}})
    assert (report.verdict, report.exit_code) == ("FAIL", 1)
    assert row(report).reasons[0].startswith("collapsed: perplexity 20.7 -> ")
    assert row(report, "bias").verdict == "FAIL"
    assert row(report, "bias").reasons[0] == "collapsed on sums; this task cannot tell by itself"


@pytest.mark.slow
def test_a_task_that_is_not_gated_tells_too(runs: tuple[Any, Any]) -> None:
    base, laser = runs
    report = gated(laser, base, tasks={"bias": {}}, others="ignore")
    assert [found.name for found in report.rows] == ["bias"] and report.verdict == "FAIL"


def test_a_mean_over_a_collapsed_task_fails(made: Any, kit: Any) -> None:
    pairs = {
        "open": kit.pair(100, 50, lost=50, output_type="generate_until"),
        "other": kit.pair(100, 50, gained=49, output_type="generate_until"),
    }
    base, laser = two(made, *({name: pair[k] for name, pair in pairs.items()} for k in (0, 1)))
    report = gated(
        laser, base, tasks={"other": {}}, suites={"both": {"weights": {"open": 1, "other": 1}}}, others="ignore"
    )
    assert row(report, "both").verdict == "FAIL" and row(report, "both").reasons[0] == "collapsed on open"


@pytest.mark.slow
def test_every_format_says_so(runs: tuple[Any, Any]) -> None:
    base, laser = runs
    report = gated(laser, base)
    assert "collapsed: perplexity" in markdown(report) and "collapsed on sums" in render(report)
    failures = ElementTree.fromstring(junit(report)).findall(".//failure")
    assert len(failures) == 2 and all("collapsed" in failure.attrib["message"] for failure in failures)
    assert '"collapse": [' in report.to_json()
