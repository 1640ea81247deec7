"""Words at the heads of upright lines: all of them said, none over another, none off the plot."""

from __future__ import annotations

import re
from collections import Counter
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from leaderboard.app.charts.heads import LETTER, MOST_ROWS, SPACE, Head, heads, rows

WORDS = ["pinned", "blessed", "gate: PASS", "gate: FAIL", "gate: UNDECIDED"]
EVENTS = st.lists(st.tuples(st.floats(0, 1), st.sampled_from(WORDS)), min_size=1, max_size=30)
OUTSIDE = 40  # pixels that a plot has left before its first and after its last place


def boxes(found: list[Head], width: float) -> list[tuple[float, float, int]]:
    """Left end, right end and row of every word in a plot of a width, in pixels."""
    made = []
    for head in found:
        for row, word in enumerate(head.words, head.row):
            at, long = width * head.place, LETTER * len(word) + SPACE / 2
            made.append((at - long, at, row) if head.to_the_left else (at, at + long, row))
    return made


@given(EVENTS)
def test_no_word_lies_over_another_however_wide_the_plot(events: list[tuple[float, str]]) -> None:
    found = heads([place for place, _ in events], [word for _, word in events])
    for width in (250.0, 600.0, 1100.0):
        made = boxes(found, width)
        assert not [
            pair
            for pair in combinations(made, 2)
            if pair[0][2] == pair[1][2] and pair[0][0] < pair[1][1] and pair[1][0] < pair[0][1]
        ]
        assert all(start >= -OUTSIDE and end <= width + OUTSIDE for start, end, _ in made)
    assert rows(found) <= MOST_ROWS


@given(EVENTS)
def test_every_word_is_said_of_every_line(events: list[tuple[float, str]]) -> None:
    found = heads([place for place, _ in events], [word for _, word in events])
    assert sorted(line for head in found for line in head.lines) == list(range(len(events)))
    said: Counter[str] = Counter()
    for word in (word for head in found for word in head.words):
        match = re.fullmatch(r"(.*?)(?: \((\d+)\))?", word)
        assert match is not None
        said[match[1]] += int(match[2] or 1)
    assert said == Counter(word for _, word in events)


def test_far_lines_share_the_first_row_and_close_ones_stand_below_or_join() -> None:
    assert [(head.words, head.row, head.to_the_left) for head in heads([0.0, 1.0], ["pinned", "blessed"])] == [
        (["pinned"], 0, False),
        (["blessed"], 0, True),
    ]
    assert [(head.words, head.row) for head in heads([0.1, 0.2], ["gate: PASS", "gate: FAIL"])] == [
        (["gate: PASS"], 0),
        (["gate: FAIL"], 1),
    ]
    (joined,) = heads([0.5, 0.501, 0.502], ["pinned", "gate: PASS", "gate: PASS"])
    assert joined.words == ["pinned", "gate: PASS (2)"] and joined.lines == [0, 1, 2]


def test_lines_begin_below_the_words_that_they_would_run_through() -> None:
    first, second, third = heads([0.0, 0.1, 0.2], ["gate: UNDECIDED"] * 3)
    assert (first.row, second.row, third.row) == (0, 1, 2)
