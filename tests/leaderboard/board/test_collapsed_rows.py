"""The word *collapsed* wherever verdicts are shown: other rows, controls, models, charts, tables, the store."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from leaderboard.app.charts.grid import SIGNS
from leaderboard.app.charts.size import points
from leaderboard.app.colours import DARK, LIGHT, MARKS, Paint, css
from leaderboard.app.page_queries import RunFacts
from leaderboard.app.tables import cell_rows
from leaderboard.board.across_models import lines, sentence
from leaderboard.board.cell import COMPARED, VERDICTS, Cell, with_collapses
from leaderboard.board.frame import cells_frame
from leaderboard.board.layers import LayerEdit, places
from leaderboard.compare_runs import compare_paths, with_controls
from leaderboard.ingest import ingest
from leaderboard.store.database import open_store
from leaderboard.terminal.format import against_controls, beside_verdict
from leaderboard.terminal.table import render
from tests.leaderboard.board.judging import recipe_cell
from tests.leaderboard.compare.test_collapse import probes, texts

WHY = "perplexity 20 -> 2.2e+08"


def a_cell(task: str, verdict: str, **more: Any) -> Cell:
    """A cell of the recipe `laser`."""
    facts: dict[str, Any] = {"run_id": "r", "model_key": "m", "weights": "w", "score": 0.1, "baseline_score": 0.5}
    facts |= {"delta": -0.4, "low": -0.5, "high": -0.3, "improvement": 0.4, "metric": "acc", "filter": "none", "n": 100}
    return Cell(recipe="laser", task=task, verdict=verdict, **{"model": "tiny"} | facts | more)


class TestRows:
    """Which rows get the word."""

    def test_rows_that_cannot_tell_take_it_from_equal_weights_of_one_model(self) -> None:
        cells = with_collapses(
            [
                a_cell("sums", "better", collapse=(WHY,)),
                a_cell("bias", "better", run_id="s"),
                a_cell("facts", "better", collapse=()),
                a_cell("bias", "better", weights="v"),
                a_cell("bias", "better", model_key="n"),
                a_cell("other", "incomparable"),
            ]
        )
        assert [cell.verdict for cell in cells] == ["collapsed"] * 2 + ["better"] * 3 + ["incomparable"]
        assert cells[0].notes == (WHY,) and cells[2].notes == ("the same weights collapsed on sums",)

    def test_further_metrics_too(self) -> None:
        (cell,) = with_collapses(
            [a_cell("sums", "better", collapse=(WHY,), further=(a_cell("sums", "same", collapse=(WHY,)),))]
        )
        assert cell.further[0].verdict == "collapsed"

    def test_a_collapsed_model_is_not_better_than_its_control(self) -> None:
        pair = a_cell("sums", "better", control="noise", baseline_run="c", collapse=())
        (cell,) = with_collapses([a_cell("sums", "better", collapse=(WHY,), against_controls=(pair,))])
        assert cell.beats_controls is False and cell.against_controls[0].verdict == "collapsed"

    def test_to_be_better_than_a_collapsed_control_says_little(self) -> None:
        pair = a_cell("sums", "better", control="noise", baseline_run="c", collapse=())
        control = a_cell("sums", "worse", run_id="c", weights="c", collapse=(WHY,), control="noise")
        cell = with_collapses([a_cell("sums", "better", collapse=(), against_controls=(pair,)), control])[0]
        assert cell.verdict == "better" and beside_verdict(cell) == "than its control too, which collapsed"
        assert against_controls(cell)[0].endswith("better; the control collapsed, so that this says little")


class TestAgainstAnEdit:
    """An edit may make right answers likelier than the model has them, so that only the unedited model tells."""

    @pytest.fixture
    def runs(self, made: Any, kit: Any) -> dict[str, Path]:
        """A recipe that edits nothing, and its control that makes right answers 25 times likelier."""
        likelier, plain = texts(kit, [3.0 + 0.1 * (i % 5) for i in range(60)])
        runs = {name: made.run(name, {"sums": plain}) for name in ("baseline", "laser")}
        runs["control"] = made.run("laser+noise", {"sums": likelier})
        receipt = json.loads((runs["control"] / "receipt.json").read_text())
        receipt["recipe"] |= {"control": "noise", "control_of": kit.sha("laser")}
        (runs["control"] / "receipt.json").write_text(json.dumps(receipt))
        return runs

    @pytest.mark.usefixtures("runs")
    def test_a_row_is_judged_against_its_control_without_the_rule(self, made: Any) -> None:
        cell = recipe_cell(made.board())
        (pair,) = cell.against_controls
        assert cell.verdict == "undecided" and pair.verdict == "worse"
        assert not any("collapse" in note for note in (*cell.notes, *pair.notes))

    def test_two_runs_are_compared_by_it_where_the_first_is_unedited(self, runs: dict[str, Path]) -> None:
        for b in ("baseline", "laser"):
            (cell,) = compare_paths(runs["control"], runs[b]).cells
            assert cell.verdict == "worse" and not any("collapse" in note for note in cell.notes)

    def test_a_row_without_a_score_too(self, made: Any, kit: Any) -> None:
        before, after = texts(kit, [3.0 + 0.1 * (i % 5) for i in range(60)])
        after.scores["perplexity"] = math.nan
        edited, broken = made.run("svd", {"sums": before}), made.run("laser", {"sums": after})
        assert compare_paths(edited, broken).cells[0].collapse is None


def test_two_runs_are_compared_with_the_boards_word_for_the_control(made: Any, kit: Any) -> None:
    """The run lost its answers beside the unedited model, and so did its control."""
    before, after = texts(kit, [9.0 + 0.1 * (i % 5) for i in range(60)])
    runs = {"baseline": made.run("baseline", {"sums": before}), "laser": made.run("laser", {"sums": after})}
    runs["control"] = made.run("laser+noise", {"sums": after})
    receipt = json.loads((runs["control"] / "receipt.json").read_text())
    receipt["recipe"] |= {"control": "noise", "control_of": kit.sha("laser")}
    (runs["control"] / "receipt.json").write_text(json.dumps(receipt))
    (on_board,) = recipe_cell(made.board()).against_controls
    compared = compare_paths(runs["baseline"], runs["laser"])
    (cell,) = with_controls(compared, runs["baseline"], runs["laser"], [runs["control"]]).cells
    (pair,) = cell.against_controls
    assert cell.verdict == pair.verdict == on_board.verdict == "collapsed"
    assert pair.against_collapsed and on_board.against_collapsed


class TestShown:
    """How it is shown."""

    def test_every_word_has_a_colour_of_its_own(self) -> None:
        assert set(VERDICTS) <= MARKS.keys()
        assert MARKS["collapsed"] not in {colour for word, colour in MARKS.items() if word != "collapsed"}
        assert len(set(SIGNS.values())) == len(SIGNS) and set(COMPARED) <= SIGNS.keys()

    @pytest.mark.parametrize("theme", [LIGHT, DARK])
    def test_every_word_has_a_style_of_its_own(self, theme: dict[str, Paint], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("leaderboard.app.colours.is_dark", lambda: theme is DARK)
        styles = {word: css(word) for word in (*VERDICTS, *theme)}
        assert all(styles.values())
        assert styles["collapsed"] not in {style for word, style in styles.items() if word != "collapsed"}
        assert len({paint.text for paint in theme.values()}) == len(theme)

    @pytest.mark.parametrize("width", [80, 120])
    def test_terminal(self, width: int) -> None:
        cell = a_cell("sums", "collapsed", notes=(WHY,))
        text = render([cell], width=width)
        assert all(len(line) <= width for line in text.splitlines()) and "collapsed" in text and f". {WHY}" in text
        assert "\x1b[31;1mcollapsed" in render([cell], width=width, color=True)

    def test_tables_and_frames(self) -> None:
        cell = a_cell("sums", "collapsed", notes=(WHY,))
        (row,) = cell_rows([cell], with_model=False)
        assert row["Verdict"] == "collapsed" and WHY in row["Notes"]
        assert cells_frame([cell])["verdict"].tolist() == ["collapsed"]

    def test_it_is_on_no_front(self) -> None:
        facts = {
            name: RunFacts(name, "m", name, "complete", None, 100.0, size) for name, size in (("a", 10.0), ("b", 50.0))
        }
        cells = [a_cell("sums", "collapsed", run_id="a", score=0.9), a_cell("sums", "worse", run_id="b")]
        assert [point.front for point in points(cells, facts, "parameters")] == [False, True]

    def test_a_model_that_collapsed_on_another_task_is_on_no_front_either(self) -> None:
        facts = {
            name: RunFacts(name, "m", name, "complete", None, 100.0, size) for name, size in (("a", 10.0), ("b", 50.0))
        }
        cells = with_collapses(
            [
                a_cell("sums", "better", run_id="a", score=0.9, weights="w", collapse=()),
                a_cell("facts", "worse", run_id="a", weights="w", collapse=(WHY,)),
                a_cell("sums", "worse", run_id="b", weights="v"),
            ]
        )
        assert [(cell.verdict, cell.is_ruined) for cell in cells] == [
            ("better", True),
            ("collapsed", True),
            ("worse", False),
        ]
        assert {point.cell.run_id for point in points(cells, facts, "parameters") if point.front} == {"b"}

    def test_across_models_it_is_a_loss(self) -> None:
        cells = [a_cell("sums", word, model=f"m{i}") for i, word in enumerate(["better", "collapsed", "collapsed"])]
        (line,) = lines(cells, "sums")
        assert (line.compared, line.harmful, line.up, line.down) == (3, 2, 1, 2)
        assert sentence(line).startswith("better on 1 of 3 models, collapsed on 2")

    def test_in_the_map_of_layers_it_is_a_loss(self) -> None:
        edit = LayerEdit("r", "m", "tiny", "laser", False, 0, "up_proj", None, 1, 1, None, 4, 2, None, None)
        (place,) = places([edit], {"r": a_cell("sums", "collapsed")})
        assert (place.harmful, place.balance) == (1, -1.0)


@pytest.mark.slow
def test_the_store_has_the_word(made: Any, kit: Any, database: Path) -> None:
    before, after = texts(kit, [9.0 + 0.1 * (i % 5) for i in range(60)])
    first, second = probes(kit)
    made.run("baseline", {"sums": before, "bias": first})
    made.run("laser", {"sums": after, "bias": second})
    ingest([made.root], database)
    with open_store(database) as store:
        rows = store.rows(
            "SELECT task, verdict, notes FROM v_verdicts WHERE recipe = 'laser' AND is_primary ORDER BY task"
        )
        kept = store.rows("SELECT DISTINCT task, collapse FROM comparisons ORDER BY task")
    assert [(row["task"], row["verdict"]) for row in rows] == [("bias", "collapsed"), ("sums", "collapsed")]
    assert (
        kept[0]["collapse"] is None
        and "perplexity 20.7" in kept[1]["collapse"]
        and "perplexity 20.7" in rows[1]["notes"]
    )
