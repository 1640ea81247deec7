"""The board as rows: order, ranks, stars, controls. From cells made by hand, against plain loops."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from leaderboard.board.cell import Cell
from leaderboard.board.standings import Standings, kind, proven, split_name, standings
from leaderboard.terminal.board_table import BoardLook, render_board


def cell(recipe: str, task: str, verdict: str, improvement: float | None = None, **rest: Any) -> Cell:
    run_id = rest.pop("run_id", f"run of {recipe}")
    return Cell(
        "m", recipe, run_id, task, "acc", "none", 100, 0.5, 0.5, verdict, improvement=improvement, **rest
    )  # fmt: skip


def beside(one: Cell, verdict: str, control: str = "random-subspace") -> Cell:
    """The cell, compared with a control of its own."""
    pair = replace(one, verdict=verdict, control=control, baseline_run=f"run of {one.recipe}+{control}")
    return replace(one, against_controls=(*one.against_controls, pair))


def baseline(*tasks: str) -> list[Cell]:
    return [cell("baseline", task, "baseline") for task in tasks]


def names(found: Standings) -> list[str]:
    return [f"{row.rank} {row.name}" for row in found.rows]


def test_runs_that_are_asked_about_stand_beside_the_baseline_that_they_were_compared_with() -> None:
    """Of two runs of the unedited model, on other documents, say, the later one is the whole board's."""
    days = {"old": datetime(2026, 1, 1), "new": datetime(2026, 1, 2)}
    cells = [
        one
        for day, started in days.items()
        for one in (
            cell("baseline", "sums", "baseline", run_id=f"{day} base", started=started, label=f"baseline {day}"),
            cell("svd", "sums", "same", 0.0, run_id=f"{day} svd", baseline_run=f"{day} base", label=f"svd {day}"),
        )
    ]
    for day in days:
        ranked = standings(cells, about=[f"{day} svd"])
        assert [row.run_ids for row in ranked.rows if row.is_main] == [(f"{day} base",)]
        shown = render_board(cells, BoardLook(width=100), shown=[f"{day} svd"])
        other = next(one for one in days if one != day)
        assert f"svd {day}" in shown and f"baseline {other}" not in shown and f"svd {other}" not in shown


def of_two_limits() -> list[Cell]:
    """An audit of 40 documents, and a run of 150 that has one of its tasks."""
    audit, run = {"baseline_run": "base 40"}, {"baseline_run": "base 150"}
    return [
        cell("baseline", "facts", "baseline", run_id="base 40", label="baseline [limit 40]"),
        cell("baseline", "bias", "baseline", run_id="base 40", label="baseline [limit 40]"),
        cell("baseline", "bias", "baseline", run_id="base 150", label="baseline [limit 150]"),
        cell("baseline", "sums", "baseline", run_id="base 150", label="baseline [limit 150]"),
        *(cell(name, task, "undecided", 0.0, **audit) for name in ("svd", "asvd") for task in ("facts", "bias")),
        *(cell("laser", task, "undecided", 0.0, **run) for task in ("bias", "sums")),
    ]


def test_a_baseline_of_several_runs_has_the_name_of_none() -> None:
    ranked = standings(of_two_limits())
    (main,) = [row for row in ranked.rows if row.is_main]
    assert (main.name, main.settings) == ("baseline", "")
    assert {task: one.run_id for task, one in main.cells.items()} == {
        "bias": "base 40", "facts": "base 40", "sums": "base 150"
    }  # fmt: skip
    assert [row.name for row in ranked.rows if row.is_baseline] == ["baseline", "baseline [limit 150]"]


def test_a_cell_against_another_baseline_than_the_rows_is_told() -> None:
    assert standings(of_two_limits()).compared_elsewhere == {("laser", "bias"): "base 150"}
    text = " ".join(render_board(of_two_limits(), BoardLook(width=200)).split())
    said = "Compared with another run of the unedited model than the baseline's row shows: bias, score 0.500: laser."
    assert said in text
    alone = [one for one in of_two_limits() if one.recipe != "laser"]
    assert "Compared with another run" not in render_board(alone, BoardLook(width=200))


def test_a_board_of_some_runs_says_over_which_tasks_the_places_are() -> None:
    several = [
        *baseline("a", "b", "c"),
        *(cell(name, task, "undecided", 0.0) for name in ("svd", "asvd", "nsvd") for task in "abc"),
        cell("laser", "d", "undecided", 0.0),
        *baseline("d"),
    ]

    def told(run: str) -> str:
        text = " ".join(render_board(several, BoardLook(width=300), shown=[f"run of {run}"]).split())
        return text.partition("#: ")[2].partition(". beats")[0]

    assert told("svd").startswith("place among 4 of this model, by the mean rank on 3 tasks of what is proven")
    assert told("laser") == "none here, since ranks are over 3 tasks of other recipes of this model"


def test_a_gain_that_the_control_has_too_counts_as_none() -> None:
    proved = beside(cell("eigenprune", "sums", "better", 0.1), "better")
    shown_by_noise = beside(cell("laser", "sums", "better", 0.3), "undecided")
    alone = cell("svd", "sums", "better", 0.2)
    found = standings([*baseline("sums"), proved, shown_by_noise, alone])
    assert names(found) == ["1 svd", "2 eigenprune", "3= baseline", "3= laser"]
    assert [kind(one) for one in (proved, shown_by_noise, alone)] == ["beats", "as control", "alone"]
    # the star prefers what was held against a control, however small
    assert found.best["sums"] == {"eigenprune"}


def test_what_collapsed_on_another_task_has_no_star() -> None:
    ruined = replace(beside(cell("laser", "sums", "better", 0.3), "better"), collapsed_on=("facts",))
    mild = beside(cell("eigenprune", "sums", "better", 0.1), "better")
    cells = [*baseline("sums", "facts"), ruined, mild, cell("laser", "facts", "collapsed", -0.5)]
    assert standings(cells).best == {"sums": {"eigenprune"}, "facts": frozenset()}


def test_being_better_than_one_of_two_controls_is_not_enough() -> None:
    one = beside(beside(cell("laser", "sums", "better", 0.3), "better"), "same", "noise")
    assert kind(one) == "as control"
    (row,) = standings([one]).rows
    assert (row.better, row.beaten) == (1, 0)


def test_controls_stand_under_their_recipe_and_in_no_rank() -> None:
    laser = beside(cell("laser", "sums", "better", 0.3), "better")
    control = cell("laser+random-subspace", "sums", "better", 0.9, control="random-subspace")
    orphan = cell("svd+noise", "sums", "worse", -0.9, control="noise")
    found = standings([*baseline("sums"), laser, control, orphan])
    assert names(found) == ["1 laser", "2 baseline"]
    assert [row.name for row in found.listed(controls=True)] == [
        "laser",
        "laser+random-subspace",
        "baseline",
        "svd+noise",
    ]
    assert found.best["sums"] == {"laser"}


def test_collapsed_is_behind_worse_whatever_its_metric_says() -> None:
    cells = [cell("a", "bias", "collapsed", 0.9), cell("b", "bias", "worse", -0.5), cell("c", "bias", "undecided", 0.4)]
    assert names(standings([*baseline("bias"), *cells])) == ["1= baseline", "1= c", "3 b", "4 a"]
    assert proven(cells[0]) < proven(cells[1])


def test_a_collapse_counts_where_the_ranks_are_not_over_its_task() -> None:
    cells = [
        *baseline("a", "b"),
        cell("lost", "a", "better", 0.9),
        cell("lost", "b", "collapsed", -0.9),
        cell("the same weights", "a", "better", 0.9, collapsed_on=("b",)),
        cell("svd", "a", "undecided"),
        cell("laser", "a", "worse", -0.1),
    ]
    found = standings(cells)
    assert found.ranked_on == ("a",)
    assert names(found) == ["1= baseline", "1= svd", "3 laser", "4= lost", "4= the same weights"]
    assert names(standings(cells, by="a"))[:2] == ["1= lost", "1= the same weights"]


def test_ranks_are_over_tasks_that_all_have_and_a_chosen_task_goes_before() -> None:
    cells = [
        *baseline("a", "b", "c"),
        cell("laser", "a", "worse", -0.1),
        cell("laser", "b", "better", 0.1),
        cell("laser", "c", "better", 0.9),
        cell("svd", "a", "better", 0.1),
        cell("svd", "b", "worse", -0.1),
        replace(cell("broken", "(all)", "failed"), metric=""),
    ]
    found = standings(cells)
    assert found.ranked_on == ("a", "b") and found.tasks == ("a", "b", "c")
    assert names(found) == ["1= baseline", "1= laser", "1= svd", "None broken"]
    assert names(standings(cells, by="c")) == ["1 laser", "2 baseline", "None broken", "None svd"]
    assert [row.name for row in found.unranked] == ["broken"]


def test_no_task_in_common_leaves_out_the_rows_with_the_fewest() -> None:
    cells = [*baseline("a", "b"), cell("x", "a", "better", 0.1), cell("y", "a", "same"), cell("y", "b", "same")]
    lonely = cell("z", "c", "better", 0.1)
    found = standings([*cells, lonely])
    assert found.ranked_on == ("a",) and [row.name for row in found.unranked] == ["z"]


def test_the_latest_run_of_a_name_speaks_for_it() -> None:
    old = cell("laser", "a", "better", 0.5, run_id="old", started=datetime(2026, 1, 1))
    new = cell("laser", "a", "worse", -0.5, run_id="new", started=datetime(2026, 2, 1))
    other = cell("laser", "b", "same", run_id="old", started=datetime(2026, 1, 1))
    (row,) = standings([new, old, other]).rows
    assert row.cells["a"] is new and row.cells["b"] is other and row.run_ids == ("new", "old")


@pytest.mark.parametrize("seed", range(20))
def test_ranks_equal_a_plain_count(seed: int) -> None:
    draw = random.Random(seed)
    tasks = ["a", "b", "c"][: draw.randint(1, 3)]
    verdicts = {"better": 1, "worse": -1, "same": 0.01, "undecided": -0.2, "collapsed": 0.4}
    recipes = [f"r{i}" for i in range(draw.randint(1, 9))]
    cells = baseline(*tasks)
    for recipe in recipes:
        for task in tasks:
            verdict = draw.choice(list(verdicts))
            cells.append(cell(recipe, task, verdict, verdicts[verdict] * draw.choice([0.1, 0.2])))
    found = standings(cells)
    value = {(one.recipe, one.task): proven(one) for one in cells}
    every = ["baseline", *recipes]

    def mean_rank(name: str) -> float:
        ranks = [
            sum((value[one, task] > value[name, task]) + (value[one, task] == value[name, task]) / 2 for one in every)
            + 0.5
            for task in tasks
        ]  # fmt: skip
        return sum(ranks) / len(ranks)

    for row in found.rows:
        assert row.rank is not None
        assert row.rank.mean == pytest.approx(mean_rank(row.name))
        assert row.rank.place == 1 + sum(mean_rank(other) < mean_rank(row.name) - 1e-9 for other in every)
        assert row.rank.shared == (sum(abs(mean_rank(other) - mean_rank(row.name)) < 1e-9 for other in every) > 1)
    assert [row.rank.mean for row in found.rows if row.rank] == sorted(row.rank.mean for row in found.rows if row.rank)


@pytest.mark.parametrize(
    ("recipe", "name", "parts"),
    [
        ("laser", "laser", ("laser", "")),
        ("svd:layers=0,matrices=attn", "svd:layers=0,matrices=attn", ("svd", "layers=0, matrices=attn")),
        ("laser", "laser (calibrated on piqa) [bfloat16]", ("laser", "(calibrated on piqa) [bfloat16]")),
        ("laser:layers=[0,1]", "laser:layers=[0,1] [limit 20]", ("laser", "layers=[0,1] [limit 20]")),
    ],
)  # fmt: skip
def test_a_name_parts_into_recipe_and_settings(recipe: str, name: str, parts: tuple[str, str]) -> None:
    assert split_name(recipe, name) == parts


def test_one_short_run_does_not_leave_one_task_for_all() -> None:
    tasks = ("a", "b", "c")
    cells = baseline(*tasks)
    for place, recipe in enumerate(("r0", "r1", "r2", "r3")):
        cells += [cell(recipe, task, "worse", -0.1 * place - 0.1) for task in tasks]
    short = cell("short", "a", "same")
    found = standings([*cells, short])
    assert found.ranked_on == tasks and [row.name for row in found.unranked] == ["short"]
    # where as many have the one task alone, it is what all have in common
    many = [cell(f"s{i}", "a", "same") for i in range(5)]
    assert standings([*cells, *many]).ranked_on == ("a",)


def test_other_runs_of_the_unedited_model_are_no_recipes_and_in_no_rank() -> None:
    full, short = datetime(2026, 1, 1), datetime(2026, 2, 1)
    cells = [
        cell("baseline", "a", "baseline", run_id="full", started=full),
        cell("laser", "a", "better", 0.1, baseline_run="full", started=full),
        cell("svd", "a", "worse", -0.1, baseline_run="full", started=full),
        cell("baseline", "a", "baseline", run_id="short", started=short, label="baseline [limit 20]"),
        cell("baseline", "a", "same", 0.0, run_id="again", baseline_run="full", label="baseline [batch]"),
    ]
    found = standings(cells)
    assert names(found) == ["1 laser", "2 baseline", "3 svd", "None baseline [limit 20]", "None baseline [batch]"]
    main = next(row for row in found.rows if row.is_main)
    assert main.run_ids == ("full",) and [row.name for row in found.rows if row.is_recipe] == ["laser", "svd"]
