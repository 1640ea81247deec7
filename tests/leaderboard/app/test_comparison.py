"""What the page Compare says, without the page: sentences, orientation of intervals, what differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from leaderboard.app import comparison, run_differences, smallest
from leaderboard.app.charts.size import MEASURES, SPEED
from leaderboard.app.comparison import baseline_side, control_sides, sentences
from leaderboard.app.comparison_table import heads, rows
from leaderboard.app.html_table import ColumnHead, Text, table
from leaderboard.app.page_queries import RunFacts
from leaderboard.board.cell import Cell
from leaderboard.board.standings import standings
from leaderboard.ingest import ingest
from leaderboard.report.words import improvement_limits
from leaderboard.store.database import open_store

pytest.importorskip("streamlit")


def cell(task: str = "t", verdict: str = "better", **more: Any) -> Cell:
    values: dict[str, Any] = {
        "model": "m", "recipe": "laser", "run_id": "r" * 32, "task": task, "metric": "acc", "filter": "none", "n": 40,
        "baseline_score": 0.5, "score": 0.6, "verdict": verdict, "delta": 0.1, "low": 0.05, "high": 0.15,
        "improvement": 0.1, "baseline_run": "b" * 32,
    } | more  # fmt: skip
    return Cell(**values)


def against(control: str = "random-subspace", verdict: str = "undecided", **more: Any) -> Cell:
    return cell(verdict=verdict, control=control, baseline_run="c" * 32, **more)


def test_names_in_a_narrow_column_break_at_their_joints() -> None:
    shown = table([ColumnHead("Task")], [[Text("arc_easy & mmlu_high-school", "a_b")]], caption="a_b")
    assert "arc_<wbr>easy &amp; mmlu_<wbr>high-school" in shown and "a_<wbr>b" in shown and 'aria-label="a_b"' in shown


def test_a_gain_that_the_control_shows_too_is_not_the_recipes() -> None:
    cells = [
        cell("a", against_controls=(against(task="a"),)),
        cell("b", against_controls=(against(task="b", verdict="better"),)),
        cell("c", "undecided", against_controls=(against(task="c", verdict="worse"),)),
        cell("d", "incomparable", delta=None, improvement=None),
    ]
    said = " ".join(sentences([baseline_side(cells), *control_sides(cells)]))
    assert said == (
        "Against the baseline: better on 2, undecided on 1 of 4 tasks; 1 cannot be compared. Against its control"
        " random-subspace: better on 1, worse on 1, undecided on 1 of 3 tasks. On a the gain may not be the"
        " recipe's: a random edit of the same size may do as well."
    )


@pytest.mark.parametrize(
    ("control", "why"),
    [
        ("shuffled-labels", "the same, learned from shuffled answers,"),
        ("my-own", "its control my-own"),
    ],
)
def test_every_control_has_its_reason(control: str, why: str) -> None:
    """As good is said of a control only where that was shown."""
    cells = [cell(task, against_controls=(against(control, task=task, verdict="same"),)) for task in "ab"]
    assert sentences([baseline_side(cells)])[1] == f"On a and b the gain is not the recipe's: {why} does as well."
    for verdict in ("undecided", "incomparable"):
        cells = [cell("a", against_controls=(against(control, task="a", verdict=verdict),))]
        assert sentences([baseline_side(cells)])[1] == f"On a the gain may not be the recipe's: {why} may do as well."


def test_a_collapsed_control_says_little() -> None:
    pair = against(task="a", verdict="better", against_collapsed=True)
    assert sentences([baseline_side([cell("a", against_controls=(pair,))])])[1] == (
        "On a its control collapsed: to beat it says little."
    )


def test_two_runs_of_one_control_are_told_apart() -> None:
    other = against(verdict="worse")
    pair = against()
    cells = [cell(against_controls=(pair, Cell(**(other.__dict__ | {"baseline_run": "d" * 32}))))]
    assert [side.title for side in control_sides(cells)] == [
        "Control: random-subspace (cccccccc)",
        "Control: random-subspace (dddddddd)",
    ]


@pytest.mark.parametrize(
    ("more", "limits"),
    [
        ({}, (0.05, 0.15)),
        ({"higher_is_better": False, "delta": -0.1, "low": -0.15, "high": -0.05}, (0.05, 0.15)),
        ({"best_value": 0.0, "improvement_low": -0.05, "improvement_high": 0.3}, (-0.05, 0.3)),
        ({"best_value": 0.0, "low": -0.4, "high": 0.1}, None),
        ({"says_nothing": True}, None),
        ({"low": None}, None),
    ],
)
def test_an_interval_is_of_the_improvement(more: dict[str, Any], limits: tuple[float, float] | None) -> None:
    found = improvement_limits(cell(**more))
    assert found == (None if limits is None else pytest.approx(limits))


def test_numbers_have_one_form() -> None:
    said = comparison.shown(cell(improvement=-0.0125, verdict="worse", low=-0.0625, high=0.0), is_pair=False)
    assert said == ("worse", "\u25bc \u22120.013", "\u22120.062 to 0.000", "worse")
    assert comparison.shown(cell("a", against_controls=(against(),)), is_pair=False).kind == "as control"
    assert [comparison.score_text(value) for value in (0.5, -1.25, 0.0, None)] == ["0.500", "\u22121.250", "0.000", ""]
    assert comparison.possible("acc") == (0.0, 1.0) and comparison.possible("word_perplexity") == (1.0, None)


def test_names_are_text_in_a_table() -> None:
    hostile = "<b>x</b> \u202egnp.exe \x1b[31m"
    found = table(
        [ColumnHead("Task"), ColumnHead(hostile)],
        [[Text(hostile), Text(hostile, hostile, link=f'"{hostile}')]],
        caption="c",
    )
    assert "<b>" not in found and "\u202e" not in found and "\x1b" not in found and found.count("&lt;b&gt;") >= 4
    assert 'href="&quot;&lt;b&gt;' in found


def test_rows_have_as_many_cells_as_heads() -> None:
    cells = [cell("a", against_controls=(against(task="a"),), lost=1, gained=2), cell("b", "failed", notes=("why",))]
    sides = [baseline_side(cells), *control_sides(cells), comparison.run_side("svd", [cell("c")])]
    subject = {one.task: one for side in sides for one in side.cells.values()}
    table_rows = rows(sides, subject)
    assert {len(row) for row in table_rows} == {len(heads(sides))} and len(table_rows) == 3
    assert table_rows[0][5] == Text("1 / 2", link=f"flips?run={'r' * 32}&task=a")
    assert table_rows[1][4].small == "why"


@pytest.fixture
def records(made: Any, kit: Any, database: Path) -> Any:
    before, after = kit.pair(40, 20, lost=2)
    made.run("baseline", {"sums": before, "words": before})
    made.run("laser", {"sums": after})
    made.run("svd", {"sums": after}, config={"batch_size": 8})
    assert not ingest([made.root], database).rejected
    with open_store(database, read_only=True) as store:
        ids = {
            row["recipe_label"]: row["run_id"]
            for row in store.rows("SELECT * FROM runs JOIN variants USING (variant_id)")
        }
        yield lambda *names: run_differences.records(store, *(ids[name] for name in names))


@pytest.mark.slow
def test_only_what_differs(records: Any) -> None:
    made = records("baseline", "laser")
    facts = run_differences.facts(made)
    shown = {fact.name: fact.values for fact in run_differences.differing(facts, made)}
    assert shown["recipe"] == ("baseline", "laser") and shown["tasks"] == ("sums, words", "sums")
    assert not any(name.startswith("recipe.") or name in ("engine", "dtype", "folder") for name in shown)
    assert run_differences.same_sentence(facts).endswith("Besides the edit these differ: tasks.")
    three = run_differences.facts(records("laser", "baseline", "svd"))
    assert "batch size" in run_differences.same_sentence(three).partition("Besides")[2]
    assert run_differences.same_sentence(three).startswith("The same in all: ")
    alone = [fact for fact in facts if fact.name != "tasks"]
    assert run_differences.same_sentence(alone).endswith(
        "Nothing else that is known differs: what changed is the edit's doing."
    )


def test_weights_that_are_the_same_clear_the_edit() -> None:
    found = [
        run_differences.Fact("recipe", ("baseline", "identity")),
        run_differences.Fact("weights digest", ("sha256:1", "sha256:1")),
        run_differences.Fact("engine", ("hf", "hf")),
    ]
    said = "The weights are the same to the bit, so no difference is the edit's doing."
    assert run_differences.same_sentence(found) == f"The same in both: engine hf. {said}"
    more = [*found, run_differences.Fact("tasks", ("sums", "words"))]
    assert run_differences.same_sentence(more).endswith(f"{said} Besides the edit these differ: tasks.")


def facts(run_id: str, after: float, speed: float) -> RunFacts:
    return RunFacts(run_id, "k", run_id, "complete", None, 100.0, after)._replace(
        tokens_per_second_before=50.0, tokens_per_second_after=speed
    )


def test_the_smallest_with_no_task_worse() -> None:
    board = standings(
        [
            cell("a", "same", recipe="half", run_id="half"),
            cell("b", "undecided", recipe="half", run_id="half"),
            cell("a", "better", recipe="tiny", run_id="tiny"),
            cell("b", "worse", recipe="tiny", run_id="tiny"),
            cell("a", "same", recipe="most", run_id="most"),
            cell("a", "same", recipe="all", run_id="all"),
            cell("a", "collapsed", recipe="gone", run_id="gone"),
        ]
    )
    sizes = {"half": 50, "tiny": 1, "most": 90, "all": 100, "gone": 2}
    known = {name: facts(name, size, 60 if name == "most" else 40) for name, size in sizes.items()}
    found = smallest.smallest(board, known, MEASURES[0])
    assert [(one.row.name, one.share) for one in found] == [("half", 0.5), ("most", 0.9)]
    assert smallest.caveat(found[0], 2) == "Undecided counts as not worse: on 1 of 2 tasks (b)."
    assert smallest.caveat(found[1], 2) == "Not compared on 1 of 2 tasks (b)."
    assert [one.row.name for one in smallest.smallest(board, known, SPEED)] == ["most"]
