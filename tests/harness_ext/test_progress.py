"""What long work tells about how far it is, by a clock that the tests set."""

from __future__ import annotations

import io
import itertools
import re
import sys
import threading
import time

import pytest

from harness_ext.progress import Progress, ProgressBar, ProgressLines, duration, progress_for, rate, roughly


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def told(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def passed(progress: ProgressLines, clock: Clock, seconds: float, *, step: float = 1.0) -> list[float]:
    """Let time pass as the thread beside the work sees it; returns when lines came."""
    lines, end = [], clock.now + seconds
    while clock.now < end:
        clock.now += step
        before = progress._last
        progress.tick()
        if progress._last != before:
            lines.append(clock.now)
    return lines


def test_a_line_says_what_how_far_how_long_and_the_best_so_far(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = ProgressLines(clock, threaded=False)
    with progress.stage("searching", 40, "trials"):
        clock.now += 30
        progress.advance(3)
        clock.now += 70
        progress.found("best so far 61.2 % right")
        progress.advance(7)
        clock.now += 30
        progress.advance(3)
    assert told(capsys) == ["searching: 3 of 40 trials, about 21 min left, 2 min so far; best so far 61.2 % right"]


@pytest.mark.parametrize("minutes", [3, 16])
@pytest.mark.parametrize("seconds_a_unit", [0.5, 7, 200, 10_000])
def test_work_of_some_minutes_writes_a_line_a_minute(
    minutes: int, seconds_a_unit: float, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether its units are short, or longer than the work was watched: a lull has lines as well."""
    progress = ProgressLines(clock, threaded=False)
    began = clock.now
    with progress.stage("calibrating", 100_000, "layers") as stage:
        lines = [began]
        for second in range(60 * minutes):
            lines += passed(progress, clock, 1)
            if second % seconds_a_unit == 0 and second:
                stage.advance()
    written = told(capsys)
    assert len(written) >= minutes - 1
    assert max(later - earlier for earlier, later in itertools.pairwise(lines)) <= 60
    stills = sum(line.startswith("still calibrating") for line in written)
    if seconds_a_unit < 10:
        assert stills == 0
    if seconds_a_unit > 60 * minutes:
        assert stills == len(written) - 1  # the first is news


def test_news_of_other_kinds_puts_the_next_line_off(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = ProgressLines(clock, threaded=False)
    with progress.stage("scoring", 3, "variants"):
        passed(progress, clock, 40)
        progress.say("laser: done")
        passed(progress, clock, 40)
        assert told(capsys) == ["laser: done"]
        passed(progress, clock, 15)
    assert told(capsys) == ["scoring: 0 of 3 variants, 90 s so far"]


def test_short_work_writes_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = ProgressLines(clock, threaded=False)
    clock.now += 500  # since the last work
    with progress.stage("editing", 2, "matrices") as stage:
        stage.advance()
        clock.now += 20
        stage.advance()
    assert told(capsys) == []


def test_the_stage_that_had_news_last_is_told_within_the_outer_ones(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = ProgressLines(clock, threaded=False)
    with (
        progress.stage("scoring", 7, "variants") as variants,
        progress.stage("svd-llm"),
        progress.stage("editing", 14, "matrices") as edited,
        progress.stage("calibrating", 30, "layers") as layers,
    ):
        variants.advance(2)
        layers.advance(5)
        clock.now += 60
        progress.tick()
        edited.advance(2)
        clock.now += 60
        progress.tick()
    assert told(capsys) == [
        "[3/7] svd-llm: editing 0/14: calibrating: 5 of 30 layers, about 5 min left, 60 s so far",
        "[3/7] svd-llm: editing: 2 of 14 matrices, about 12 min left, 2 min so far",
    ]


def test_what_is_left_of_unlike_units_is_told_before_the_stage_that_is_shown(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = ProgressLines(clock, threaded=False)
    with progress.stage("scoring", 7, "variants") as variants, progress.stage("editing", 14, "matrices") as edited:
        variants.advance(2)
        for left in (None, 300.0):
            variants.expected = lambda: left  # noqa: B023 - called at once
            edited.advance()
            clock.now += 60
            progress.tick()
    assert told(capsys) == [
        "[3/7] editing: 1 of 14 matrices, about 13 min left, 60 s so far",
        "[3/7, about 5 min left] editing: 2 of 14 matrices, about 12 min left, 2 min so far",
    ]


def test_a_guess_has_no_more_digits_than_are_known() -> None:
    assert [roughly(seconds) for seconds in (2, 34, 93, 96, 250, 1_000, 5_000)] == [
        *("10 s", "30 s", "90 s", "2 min", "4 min", "15 min", "85 min")
    ]


def test_units_of_another_pace_tell_alone_what_is_left(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = ProgressLines(clock, threaded=False)
    with progress.stage("calibrating", 60, "layers") as layers:
        layers.advance(30)
        clock.now += 60
        progress.tick()
        layers.pace_anew()
        clock.now += 60
        progress.tick()
        layers.advance(3)
        clock.now += 60
        progress.tick()
    assert told(capsys) == [
        "calibrating: 30 of 60 layers, about 60 s left, 60 s so far",
        "still calibrating: 30 of 60 layers, 2 min so far",
        "calibrating: 33 of 60 layers, about 18 min left, 3 min so far",
    ]


def test_what_was_found_is_told_within_a_trial_too(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = ProgressLines(clock, threaded=False)
    with progress.stage("laser-search"), progress.stage("searching", 48, "trials") as search:
        search.advance(8)
        search.found("best 61.2 % right")
        with progress.stage("trying 8", 16, "batches") as trial:
            trial.advance()
            clock.now += 60
            progress.tick()
    assert told(capsys) == [
        "laser-search: searching 8/48: trying 8: 1 of 16 batches, about 15 min left, 60 s so far; best 61.2 % right"
    ]


def test_rates_are_told_where_units_are_many(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = ProgressLines(clock, threaded=False)
    with progress.stage("choices", 40_000, "requests") as stage:
        clock.now += 60
        stage.advance(13_800)
    with progress.stage("12 texts", None, "windows") as stage:
        clock.now += 60
        stage.advance(70)
    assert told(capsys) == [
        "choices: 13,800 of 40,000 requests, 230 a second, about 2 min left, 60 s so far",
        "12 texts: 70 windows, 70 a minute, 60 s so far",
    ]
    assert rate(2) == "2 a second"
    assert [duration(seconds) for seconds in (0.2, 99, 100, 5_940, 8_100)] == [
        *("0 s", "99 s", "2 min", "99 min", "2 h 15 min")
    ]


def test_a_stage_ends_with_the_one_around_it(clock: Clock) -> None:
    """Also where a generator that opened it is never run to its end, or an error comes between."""
    progress = ProgressLines(clock, threaded=False)

    def layers():
        with progress.stage("calibrating", 3, "layers"):
            yield 1
            yield 2

    walk = layers()
    with pytest.raises(ZeroDivisionError), progress.stage("editing", 3, "matrices"):
        next(walk)
        raise ZeroDivisionError
    assert progress.stages == []
    walk.close()
    assert progress.stages == []


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def on_screen(written: str) -> list[str]:
    """The lines that a terminal would show in the end."""
    lines = []
    for line in written.split("\n"):
        shown = ""
        for part in line.split("\r"):
            text = part.replace("\x1b[K", "")
            shown = text if "\x1b[K" in part else text + shown[len(text) :]
        lines.append(shown)
    return lines


def test_a_terminal_has_one_line_that_is_gone_in_the_end(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("COLUMNS", "60")
    progress = ProgressBar(clock, threaded=False)
    with progress.stage("laser-search"), progress.stage("searching", 80, "trials") as stage:
        for _ in range(40):
            clock.now += 1
            stage.advance()
        progress.say("laser: done")
        stage.found("best so far 61.2 % right: model.layers.3.mlp.up_proj rank 4")
        clock.now += 1
        progress.tick()
        drawn = sys.stderr.getvalue()
        assert on_screen(drawn)[0] == "laser: done"
        assert on_screen(drawn)[1] == "laser-search: searching: 40/80 trials, 41 s left; best so f"
        assert max(len(re.sub("\x1b.K", "", part)) for part in re.split("[\r\n]", drawn)) < 60
    assert on_screen(sys.stderr.getvalue()) == ["laser: done", ""]


def test_a_terminal_is_not_drawn_on_more_often_than_one_can_see(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    progress = ProgressBar(clock, threaded=False)
    with progress.stage("choices", 100_000, "requests") as stage:
        for _ in range(10_000):
            clock.now += 0.001
            stage.advance()
    assert sys.stderr.getvalue().count("choices") <= 51


def test_the_thread_tells_of_a_lull_and_ends_with_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    progress = ProgressLines(seconds=0.02)
    progress.seconds_between_ticks = 0.01
    with progress.stage("hashing"):
        (thread,) = [thread for thread in threading.enumerate() if thread.name == "progress"]
        time.sleep(0.2)
    thread.join(timeout=5)
    assert not thread.is_alive()
    written = told(capsys)
    assert len(written) >= 2 and written[0].startswith("hashing: 0 s") and written[1].startswith("still hashing: ")
    time.sleep(0.05)
    assert told(capsys) == []


def test_nothing_is_told_on_standard_output_or_to_a_stream_that_is_gone(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = ProgressLines(clock, threaded=False)
    with progress.stage("scoring"):
        passed(progress, clock, 120)
        assert capsys.readouterr().out == ""
        gone = io.StringIO()
        gone.close()
        monkeypatch.setattr(sys, "stderr", gone)
        passed(progress, clock, 120)


def test_which_progress_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(progress_for(quiet=True)) is Progress
    assert type(progress_for(quiet=False)) is ProgressLines
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert type(progress_for(quiet=False)) is ProgressBar
    assert type(progress_for(quiet=True)) is Progress
    monkeypatch.setenv("TERM", "dumb")
    assert type(progress_for(quiet=False)) is ProgressLines


def test_the_time_left_goes_by_the_cost_of_what_is_left() -> None:
    """Two windows of 2,048 tokens and a hundred answers of 20: with the windows done, so are two thirds of it all."""
    now = 0.0
    progress = Progress(lambda: now)
    with progress.stage("choices", 102, "requests") as stage:
        stage.weigh([2048, 2048, *[20] * 100])
        assert stage.left(now) == ""
        stage.advance(2)
        now = 120.0
        assert stage.told(now) == "choices: 2 of 102 requests, about 60 s left, 2 min so far"
        stage.advance(100)
        now = 180.0
        assert stage.left(now) == ""
