"""The leaderboard's table: numbers that sort, marks that are seen; badges; the plot of intervals."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from leaderboard.app import badges, standings_table
from leaderboard.app.charts import intervals
from leaderboard.app.short_names import COMPARED_WITH, short_names, telling_settings
from leaderboard.board.cell import Cell
from leaderboard.board.standings import standings

pytest.importorskip("streamlit")


def cell(recipe: str, task: str, verdict: str, improvement: float | None = None, **rest: Any) -> Cell:
    return Cell(
        "m", recipe, f"run {recipe}", task, "acc", "none", 100, 0.5, 0.5, verdict,
        improvement=improvement, delta=improvement, **rest,
    )  # fmt: skip


HOSTILE = "<b>x</b>[l](http://e.org)|%41#:a=1"
CELLS = [
    cell("baseline", "sums", "baseline"),
    cell("baseline", "bias", "baseline"),
    cell("laser", "sums", "better", 0.8375, low=0.7, high=0.9, parameters_kept=0.5),
    cell("laser", "bias", "collapsed", 0.9, low=0.8, high=1.0),
    cell("svd", "sums", "undecided", 0.0, low=-0.1, high=0.1),
    cell("svd", "bias", "worse", -0.2, low=-0.3, high=-0.1),
    cell(HOSTILE, "sums", "incomparable"),
]


def table(cells: list[Cell]) -> Any:
    board = standings(cells)
    return standings_table.table(board.rows, board, board.tasks, {})


def shown(style: Any, column: str) -> list[str]:
    """The texts of a column, as pandas hands them to the page."""
    translated = style._translate(sparse_index=False, sparse_cols=False)
    place = list(style.data.columns).index(column)
    return [[one for one in row if one["type"] == "td"][place]["display_value"] for row in translated["body"]]


def test_a_head_sorts_by_the_number_while_the_cell_shows_mark_and_sign() -> None:
    style = table(CELLS)
    assert shown(style, "sums") == ["score 0.500", "\u2605 \u25b4 +0.838", "\u00b7 0.000", "? incomparable"]
    descending = style.data.sort_values("sums", ascending=False)
    assert [name.rpartition("#")[2][:5] for name in descending["Recipe"]][:2] == ["laser", "basel"]
    # a collapsed model is below every other, though its metric rose
    assert style.data.sort_values("bias", ascending=False)["Recipe"].str.contains("laser#|laser&").tolist()[-2]
    assert all(isinstance(value, float) for value in style.data["sums"])


def test_a_name_is_an_address_that_nothing_can_break_out_of() -> None:
    row = next(row for row in standings(CELLS).rows if row.name == HOSTILE)
    address = standings_table.link("compare", row, "m&x=1#y")
    assert address.startswith("compare?recipe=%3Cb%3Ex") and address.count("#") == 1 and address.count("&") == 1
    assert "<" not in address and "javascript" not in address


def test_equal_numbers_with_different_marks_are_told_apart() -> None:
    cells = [cell("baseline", "t", "baseline"), cell("a", "t", "same", 0.0), cell("b", "t", "undecided", 0.0)]
    assert sorted(shown(table(cells), "t")) == ["= 0.000", "score 0.500", "\u00b7 0.000"]


def named(recipe: str, name: str, task: str, verdict: str = "undecided") -> Cell:
    return replace(cell(recipe, task, verdict, 0.0), label=name, run_id=f"run {name} {verdict}")


TWINS = [
    named("baseline", "baseline [limit 40]", "sums", "baseline"),
    named("laser", "laser [limit 40]", "sums"),
    named("laser", "laser [limit 150]", "sums"),
    named("svd:samples=96,tasks=[a,b],fraction=0.1", "svd:samples=96,tasks=[a,b],fraction=0.1", "sums"),
    named("svd:samples=96,tasks=[a,b],fraction=0.2", "svd:samples=96,tasks=[a,b],fraction=0.2", "sums"),
]


def test_rows_of_one_name_have_their_settings_beside_it() -> None:
    style = table(TWINS)
    assert list(style.data.columns) == ["#", "Recipe", "Settings", "sums"]
    assert sorted(style.data["Settings"]) == [
        "[limit 150]", "[limit 40]", "[limit 40]", "fraction=0.1, samples=96, tasks=[a,b]",
        "fraction=0.2, samples=96, tasks=[a,b]",
    ]  # fmt: skip
    assert list(table([TWINS[0], TWINS[1], TWINS[3]]).data.columns) == ["#", "Recipe", "sums", "Settings"]


def test_the_baseline_is_told_from_another_run_of_the_unedited_model() -> None:
    limited = "baseline [limit 150]"
    cells = [
        named("baseline", limited, "sums", "baseline"),
        replace(named("laser", "laser", "sums"), baseline_run=f"run {limited} baseline"),
        replace(named("baseline", limited, "bias", "baseline"), run_id="another"),
        replace(named("baseline", limited, "sums", "baseline"), run_id="another"),
    ]
    rows = [row for row in standings(cells).rows if row.is_baseline]
    assert len({row.settings for row in rows}) == 1
    assert len(set(telling_settings(rows))) == len(rows) == 2 and COMPARED_WITH in telling_settings(rows)


def test_short_names_are_told_apart_and_have_no_more_than_that() -> None:
    rows = [row for row in standings(TWINS).rows if not row.is_baseline]
    assert sorted(short_names(rows)) == ["laser [limit 150]", "laser [limit 40]", "svd fraction=0.1, sam...",
                                         "svd fraction=0.2, sam..."]  # fmt: skip
    rows = [row for row in standings(TWINS[:2]).rows if not row.is_baseline]
    assert short_names(rows) == ["laser"]
    long = "x" * 40
    rows = list(standings([named(long + "a", long + "a", "t"), named(long + "b", long + "b", "t")]).rows)
    assert short_names(rows) == [f"1. {'x' * 21}...", f"2. {'x' * 21}..."]


@pytest.mark.slow
def test_two_hundred_recipes_on_thirty_tasks_take_a_moment() -> None:
    from time import process_time

    tasks = [f"t{i}" for i in range(30)]
    cells = [cell("baseline", task, "baseline") for task in tasks] + [
        cell(f"r{i}", task, "worse" if i % 3 else "same", -i / 100) for i in range(200) for task in tasks
    ]
    started = process_time()
    style = table(cells)
    style._translate(sparse_index=False, sparse_cols=False)
    assert process_time() - started < 2


@pytest.mark.parametrize(
    ("count", "text"),
    [(587_648, "588K"), (134_515_008, "135M"), (8_030_261_248, "8B"), (7_241_732_096, "7.2B"), (999, "999")],
)
def test_counts_are_short(count: float, text: str) -> None:
    assert badges.short_count(count) == text


def test_badges_say_what_is_the_same_and_what_is_not() -> None:
    facts = {"parameters": ("588K parameters",), "dtype": ("bfloat16", "float32")}
    words = badges.board_badges(facts, [*CELLS, replace(CELLS[2], n=20, subset="first 20 of 100 documents")])
    assert words == [
        "588K parameters",
        "dtype bfloat16, float32",
        "n 20 to 100",
        "scored: first 20 of 100 documents",
        "baseline run base",
    ]


def test_intervals_are_drawn_in_the_order_of_the_table() -> None:
    rows = [row for row in standings(CELLS).rows if not row.is_baseline]
    chart = intervals.chart(rows, "bias").to_dict()
    (y,) = {json.dumps(layer["encoding"]["y"]) for layer in chart["layer"] if "y" in layer["encoding"]}
    assert json.loads(y)["sort"] == [row.name for row in rows if "bias" in row.cells]
    assert "width" not in chart and chart["title"]["text"] == ["bias"]


def test_a_long_name_is_short_in_the_picture_and_whole_in_the_tooltip() -> None:
    long = "svd:samples=96,tasks=[" + ",".join(f"task_{i}" for i in range(9)) + "]"
    cells = [CELLS[0], *(replace(named(f"{long},fraction={i}", "", "sums"), low=-0.1, high=0.1) for i in (1, 2))]
    rows = [row for row in standings(cells).rows if not row.is_baseline]
    drawn = [point for points in intervals.chart(rows, "sums").to_dict()["datasets"].values() for point in points]
    told = {point["name"]: point["recipe"] for point in drawn if "recipe" in point}
    assert told == {"svd fraction=1, sampl...": f"{long},fraction=1", "svd fraction=2, sampl...": f"{long},fraction=2"}


def interval_sentence(cells: list[Cell], tasks: list[str]) -> str:
    board = standings(cells)
    return intervals.sentence([row for row in board.rows if not row.is_baseline], tasks, board.best)


def test_the_best_of_a_task_is_proven_and_tasks_are_not_ranked() -> None:
    said = interval_sentence(CELLS, ["bias", "sums"])
    assert "2 tasks, 4 intervals" in said
    assert "Best on sums: laser (+0.838 [+0.700, +0.900]). Worst on bias: laser (collapsed). The grey" in said


def test_an_undecided_change_of_large_units_is_neither_best_nor_worst() -> None:
    perplexity = [
        cell("baseline", "text", "baseline"),
        cell("svd", "text", "undecided", 3.5e7, low=9.75e6, high=1.15e7),
        cell("laser", "text", "worse", -2e6, low=-3e6, high=-1e6),
    ]
    said = interval_sentence([*CELLS, *perplexity], ["bias", "sums", "text"])
    assert "svd" not in said and "Best on sums: laser (" in said
    assert "Worst on bias: laser (collapsed); on text: laser (\u22122.00e+06" in said
    undecided = interval_sentence(perplexity[:2], ["text"])
    assert "Best" not in undecided and "Worst" not in undecided


def test_a_gain_that_a_control_may_have_too_is_not_the_best() -> None:
    control = cell("random", "sums", "undecided", 0.0)
    as_control = cell("laser", "sums", "better", 0.2, low=0.1, high=0.3, against_controls=(control,))
    assert "Best" not in interval_sentence([CELLS[0], as_control], ["sums"])


def test_of_many_tasks_the_first_few_are_named() -> None:
    tasks = [f"t{i}" for i in range(9)]
    cells = [cell("baseline", task, "baseline") for task in tasks]
    cells += [cell("svd", task, "worse", -0.2, low=-0.3, high=-0.1) for task in tasks]
    assert "; on t3: svd (\u22120.200 [\u22120.300, \u22120.100]); 5 tasks more." in interval_sentence(cells, tasks)
