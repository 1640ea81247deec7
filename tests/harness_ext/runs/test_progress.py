"""What is said of a long calculation where no bar can be drawn."""

from __future__ import annotations

import pytest

from harness_ext.runs import progress as report


def test_a_line_now_and_then_says_how_long_it_will_take(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 30.0, 100.0, 130.0, 400.0])
    monkeypatch.setattr(report.time, "monotonic", lambda: next(clock))
    progress = report.ProgressReport(quiet=False, bars=False).progress
    progress.start("searching", 40)
    for units in (3, 7, 3, 27):
        progress.advance(units)
    assert capsys.readouterr().err == "searching: 10 of 40 done, about 5 min left\n"
    assert type(report.ProgressReport(quiet=True, bars=False).progress) is report.Progress
