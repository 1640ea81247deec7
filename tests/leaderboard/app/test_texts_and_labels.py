"""Word-level differences, names beside points, and the matrix of flips."""

from __future__ import annotations

import random
import re
from collections import Counter
from typing import Any

import pytest

from leaderboard.app import answer_text, word_difference
from leaderboard.app.charts import flip_matrix
from leaderboard.app.charts.grid import place_sentence
from leaderboard.app.charts.label_places import LETTER, LINE, LabelObstacle, LabelPlace, Spot, places
from leaderboard.app.flip_queries import OftenFlipped
from leaderboard.board.layers import LayerPlace

pytest.importorskip("streamlit")
WIDTHS, HEIGHT = (240.0, 420.0, 1000.0), 170.0


def test_a_difference_is_of_words_and_marked_by_more_than_colour() -> None:
    said = word_difference.difference("the cat sat <b>down</b>", "the dog sat <b>down</b> now")
    assert "<del>cat </del><ins>dog </ins>" in said and "&lt;b&gt;down&lt;/b&gt;" in said and "<b>" not in said
    assert re.sub(r"<ins>.*?</ins>|</?(div|del)[^>]*>", "", said) == "the cat sat &lt;b&gt;down&lt;/b&gt; "
    assert word_difference.same("a  b\n", "a b") and not word_difference.same("a b", "a b c")


def test_a_difference_of_huge_and_hostile_texts_is_cut_and_visible() -> None:
    said = word_difference.difference("\u202e\x1b" + "a b " * 50_000, "b c " * 50_000)
    assert len(said) < 30_000 and "cut after 1,000 words" in said and "\u202e" not in said and "\x1b" not in said
    assert word_difference.visible("a\n\tb\x00\u200f") == "a\n\tb\ufffd\ufffd" and 'dir="auto"' in said


def box(spot: Spot, place: LabelPlace, width: float) -> tuple[float, float, float, float]:
    long = LETTER * len(spot.name)
    left = spot.across * width + place.right - {"left": 0.0, "center": long / 2, "right": long}[place.align]
    base = spot.down * HEIGHT + place.down
    return left, base - LINE + 3, left + long, base + 3


def meet(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def test_names_overlap_neither_names_nor_points_nor_lines() -> None:
    draw = random.Random(0)
    named = 0
    for _ in range(60):
        spots = [
            Spot(draw.random(), draw.random(), "x" * draw.randrange(3, 30) if draw.random() < 0.6 else "")
            for _ in range(draw.randrange(1, 14))
        ]
        line = LabelObstacle(0, 0.5, 1, 0.5)
        found = places(spots, [line], WIDTHS, HEIGHT)
        named += len(found)
        for width in WIDTHS:
            boxes = {i: box(spots[i], place, width) for i, place in found.items()}
            points = [
                (s.across * width - 5, s.down * HEIGHT - 5, s.across * width + 5, s.down * HEIGHT + 5) for s in spots
            ]
            others = [*points, (0, 0.5 * HEIGHT - 1, width, 0.5 * HEIGHT + 1)]
            assert not any(meet(one, other) for one in boxes.values() for other in others)
            assert not any(meet(boxes[i], boxes[j]) for i in boxes for j in boxes if i < j)
            assert all(one[0] >= 0 and one[2] <= width for one in boxes.values())
    assert named > 60


def test_of_two_near_points_both_are_named_or_neither() -> None:
    pair = [Spot(0.5, 0.5, "left"), Spot(0.52, 0.5, "right")]
    assert set(places(pair, [], WIDTHS, HEIGHT)) == {0, 1}
    long = [Spot(0.5, 0.5, "left"), Spot(0.52, 0.5, "a name as wide as the whole plot, and wider than that")]
    assert places(long, [], WIDTHS, HEIGHT) == {}


def often(key: str, lowered: tuple[str, ...], raised: tuple[str, ...] = (), prompt: str = "") -> OftenFlipped:
    return OftenFlipped(key, 0, None, 1.0, len(lowered), len(raised), lowered, raised, prompt)


def test_the_matrix_is_capped_and_says_so() -> None:
    names = {f"r{i}": f"recipe {i}" for i in range(30)}
    rows = [often(f"d{i}", tuple(names)[: 30 - i], prompt=f"Question: what is {i}?") for i in range(28)]
    chart: dict[str, Any] = flip_matrix.chart(rows, names, higher_is_better=True).to_dict()
    (data,) = chart["datasets"].values()
    assert len({row["document"] for row in data}) == flip_matrix.MOST_ROWS
    assert len({row["recipe"] for row in data}) == flip_matrix.MOST_RECIPES
    assert data[0]["document"] == "0?" and {row["change"] for row in data} == {"lost"}
    said = flip_matrix.sentence(rows, names, 100)
    assert said.startswith("The 20 documents that most recipes flip are drawn. The 16 recipes that flip most of them")
    assert "28 documents of 100 (28.0%) flip under at least one of 30 recipes" in said
    assert "16 under at least half" in said


def test_what_a_prompt_asks_is_its_last_paragraph() -> None:
    assert answer_text.question("Q: 1+1\nA: 2\n\nQ:  1+2\nA:\n\n") == "Q: 1+2 A:"
    assert answer_text.question(" \n\n") == ""


@pytest.mark.parametrize(
    ("responses", "target", "kind", "gold", "one_text"),
    [
        ('[["-1.0","False"],["-3.0","False"]]', "1", "multiple_choice", -3.0, False),
        ('["-0.5","True"]', " 9", "loglikelihood", -0.5, True),
        ('["four"]', "4", "generate_until", None, False),
        ("not JSON", "4", None, None, False),
        (None, None, "loglikelihood", None, False),
    ],
)
def test_the_right_answers_likelihood(
    responses: str | None, target: str | None, kind: str | None, gold: float | None, one_text: bool
) -> None:
    assert answer_text.gold_log_likelihood(responses, target, kind, doubled=False) == gold
    assert answer_text.scores_one_text(responses, kind) == one_text


def place(layer: int, **verdicts: int) -> LayerPlace:
    return LayerPlace(layer, "up_proj", 3, None, None, Counter(verdicts))


@pytest.mark.parametrize(
    ("gathered", "said"),
    [
        (
            [place(0, collapsed=1, undecided=4), place(1, collapsed=2, undecided=1)],
            "On t none of these runs is better; those that edit up_proj in layer 1 (2 collapsed, 1 undecided) were"
            " worse or collapsed most often.",
        ),
        (
            [place(0, better=1, same=1), place(1, same=2), place(2, better=2, worse=2)],
            "On t runs that edit up_proj in layer 0 and 1 place alike (1 better, 1 same) were better most often; those"
            " that edit up_proj in layer 2 (2 better, 2 worse) were worse or collapsed most often.",
        ),
        ([place(0, undecided=3), place(1, same=1)], "On t none of these runs is better, and none worse or collapsed."),
        ([place(0, incomparable=3)], "None of these runs has a verdict on t."),
    ],
)
def test_no_place_went_best_where_nothing_is_better(gathered: list[LayerPlace], said: str) -> None:
    assert place_sentence(gathered, "t") == said
