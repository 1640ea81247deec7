"""Cells without samples: a difference and an unpaired interval, and never a verdict."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leaderboard.board.board import board
from leaderboard.board.cell import VERDICTS, Cell
from leaderboard.board.frame import cells_frame
from leaderboard.compare_runs import compare_paths
from leaderboard.ingest import ingest
from leaderboard.metrics import value_range
from leaderboard.store.database import open_store
from leaderboard.terminal.format import interval
from leaderboard.terminal.table import render

Change = Callable[[dict[str, Any]], Any]


def edit(file: Path, change: Change) -> Path:
    """Change a JSON file in place."""
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))
    return file


def nothing(data: dict[str, Any]) -> None:
    """No change."""


def two(made: Any, kit: Any, *, first: Change = nothing, second: Change = nothing, **task: Any) -> tuple[Path, Path]:
    """Two results files without samples: 160 and 120 of 200 right."""
    options = {"samples": False}
    before, after = kit.pair(200, 160, lost=40, **task)
    a = edit(made.plain({"sums": before}, folder="a", **options), first)
    return a, edit(made.plain({"sums": after}, folder="b", **options), second)


def compared(made: Any, kit: Any, **changes: Any) -> Cell:
    """The one cell of two such files."""
    (cell,) = compare_paths(*two(made, kit, **changes)).cells
    return cell


def error(value: float | str, metric: str = "acc") -> Change:
    """A standard error in a results file."""
    return lambda data: data["results"]["sums"].update({f"{metric}_stderr,none": value})


class TestShown:
    def test_the_difference_and_its_interval(self, made: Any, kit: Any) -> None:
        cell = compared(made, kit)
        assert (cell.verdict, cell.unpaired, cell.n, cell.baseline_score, cell.score) == (
            "incomparable",
            True,
            200,
            0.8,
            0.6,
        )
        assert cell.delta == pytest.approx(-0.2) and cell.low and cell.high and cell.low < -0.2 < cell.high < 0
        assert cell.high - cell.low == pytest.approx(0.18, abs=0.02)
        assert (cell.p_value, cell.q_value, cell.p_same, cell.improvement, cell.margin) == (None,) * 5
        assert cell.verdict in VERDICTS and any(note.startswith("unpaired: ") for note in cell.notes)

    def test_in_words(self, made: Any, kit: Any) -> None:
        cell = compared(made, kit)
        assert interval(cell) == f"{interval(cell, short=True).removesuffix('u')} unpaired"
        text = render([cell], width=80)
        assert "delta [unpaired 95%]" in text.splitlines()[1]
        assert (
            interval(cell, short=True).endswith("]u")
            and interval(cell, short=True) in text
            and "u: unpaired. Delta [unpaired 95 %]" in " ".join(text.split())
        )
        assert max(map(len, text.splitlines())) <= 80
        frame = cells_frame([cell])
        assert frame["unpaired"].tolist() == [True] and frame["delta"].tolist() == [cell.delta]

    @pytest.mark.parametrize("value", ["N/A", 0.0, (0.8 * 0.2 / 199) ** 0.5])
    def test_the_error_of_a_share_may_be_missing(self, made: Any, kit: Any, value: float | str) -> None:
        assert compared(made, kit, first=error(value)).low == pytest.approx(-0.29, abs=0.005)

    def test_lower_is_better(self, made: Any, kit: Any) -> None:
        cell = compared(made, kit, higher_is_better={"acc": False})
        assert cell.delta == pytest.approx(-0.2) and not cell.higher_is_better

    def test_only_one_of_the_two_has_samples(self, made: Any, kit: Any) -> None:
        before, after = kit.pair(200, 160, lost=40)
        a = made.plain({"sums": before}, folder="a")
        (cell,) = compare_paths(a, made.plain({"sums": after}, folder="b", samples=False)).cells
        assert cell.unpaired and cell.n == 200 and cell.low is not None

    @pytest.mark.slow
    def test_a_board_counts_none_of_them_in_its_correction(self, made: Any, kit: Any) -> None:
        before, after = kit.pair(200, 100, lost=12)
        made.run("baseline", {"sums": before})
        made.run("laser", {"sums": after})
        alone = {cell.recipe: cell for cell in made.board()}["laser"]
        for number in range(8):
            next(made.run(f"svd{number}", {"sums": after}).glob("samples_*")).unlink()
        cells = made.board()
        assert sum(cell.unpaired for cell in cells) == 8
        assert all(cell.verdict == "incomparable" and cell.q_value is None for cell in cells if cell.unpaired)
        assert next(cell for cell in cells if cell.recipe == "laser").q_value == alone.q_value

    def test_a_stored_board_says_so_too(self, made: Any, kit: Any, database: Path) -> None:
        two(made, kit)
        ingest(made.root, database)
        with open_store(database) as store:
            rows = store.rows("SELECT verdict, delta, low, unpaired FROM verdicts ORDER BY verdict")
            judged = {cell.verdict: cell for cell in board(store)}  # recalled
            again = {cell.verdict: cell for cell in board(store, margin=0.021)}  # judged anew
        assert [row["verdict"] for row in rows] == ["baseline", "incomparable"]
        assert rows[1]["unpaired"] and rows[1]["low"] == judged["incomparable"].low == again["incomparable"].low
        assert judged["incomparable"].unpaired and not rows[0]["unpaired"]


class TestWithoutAnInterval:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"metric": "loss"}, "a results file has no standard error of this metric"),
            ({"metric": "loss", "both": error(0.1, "loss")}, "fewer than 300 documents of a metric without bounds"),
            ({"metric": "word_perplexity"}, "a results file has no standard error"),
            (
                {"both": lambda data: (data["results"]["sums"].pop("sample_len"), data.pop("n-samples"))},
                "a results file does not say how many documents there were",
            ),
            ({"metadata": {"cluster_by": "passage"}}, "documents depend on each other by passage"),
        ],
    )
    def test_the_difference_stands_alone_with_its_reason(
        self, made: Any, kit: Any, changes: dict[str, Any], words: str
    ) -> None:
        both = changes.pop("both", nothing)
        cell = compared(made, kit, first=both, second=both, **changes)
        assert cell.unpaired and cell.delta == pytest.approx(-0.2) and (cell.low, cell.high) == (None, None)
        assert any(words in note for note in cell.notes), cell.notes

    def test_few_documents(self, made: Any, kit: Any) -> None:
        before, after = kit.pair(9, 5, lost=2)
        files = [
            made.plain({"sums": task}, folder=folder, samples=False) for folder, task in (("a", before), ("b", after))
        ]
        (cell,) = compare_paths(*files).cells
        assert cell.unpaired and cell.low is None and any("fewer than 10 documents" in note for note in cell.notes)


class TestNotShown:
    """Where more than samples is missing the two are not scores of one thing."""

    @pytest.mark.parametrize(
        ("second", "words"),
        [
            (lambda data: data["n-shot"].update(sums=5), "few-shot examples differ"),
            (lambda data: data["versions"].update(sums=2), "task version differ"),
            (
                lambda data: data["higher_is_better"]["sums"].update(acc=False),
                "whether higher is better of acc differs: baseline True, this run False",
            ),
            (
                lambda data: data["results"]["sums"].update(sample_len=100),
                "numbers of documents differ: baseline 200, this run 100",
            ),
        ],
    )
    def test_a_field_that_differs(self, made: Any, kit: Any, second: Change, words: str) -> None:
        cell = compared(made, kit, second=second)
        assert (cell.verdict, cell.delta, cell.low, cell.unpaired) == ("incomparable", None, None, False)
        assert any(words in note for note in cell.notes), cell.notes


class TestDirections:
    """With samples too: two files that disagree on a metric are not compared, and one that is silent follows."""

    def pair(self, made: Any, kit: Any, first: Any, second: Any) -> Cell:
        before, after = kit.pair(200, 160, lost=60, metric="loss")
        files = [made.plain({"sums": task}, folder=name) for name, task in (("a", before), ("b", after))]
        for file, said in zip(files, (first, second)):
            edit(file, lambda data, said=said: said(data))  # type: ignore[misc]
        (cell,) = compare_paths(*files).cells
        return cell

    @staticmethod
    def says(higher: bool | None, **metadata: Any) -> Change:
        def change(data: dict[str, Any]) -> None:
            data["higher_is_better"] = {"sums": {"loss": higher}}
            data["configs"]["sums"]["metric_list"] = [{"metric": "loss"}]
            data["configs"]["sums"]["metadata"].update({key: {"loss": value} for key, value in metadata.items()})

        return change

    def test_they_disagree(self, made: Any, kit: Any) -> None:
        cell = self.pair(made, kit, self.says(True), self.says(False))
        assert (cell.verdict, cell.delta) == ("incomparable", None)
        assert cell.notes[0] == "whether higher is better of loss differs: baseline True, this run False"

    @pytest.mark.parametrize(("first", "second"), [(False, None), (None, False), (False, False)])
    def test_one_is_silent(self, made: Any, kit: Any, first: bool | None, second: bool | None) -> None:
        cell = self.pair(made, kit, self.says(first), self.says(second))
        assert cell.verdict == "better" and not cell.higher_is_better  # 0.8 to 0.5, where less is better

    def test_both_say_the_opposite_of_what_is_known(self, made: Any, kit: Any) -> None:
        """Early versions of lm-eval wrote so of TER."""
        cell = compared(made, kit, metric="ter", higher_is_better={"ter": True})
        assert any("both results say that higher is better of ter" in note for note in cell.notes)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("best_value", "the best value of loss"),
            ("margin", "the task's own margin of loss"),
            ("bound", "the task's bound of a document of loss"),
        ],
    )
    def test_best_value_and_margin(self, made: Any, kit: Any, name: str, words: str) -> None:
        cell = self.pair(made, kit, self.says(True, **{name: 0.5}), self.says(True, **{name: 0.25}))
        assert cell.notes[0] == f"{words} differs: baseline 0.5, this run 0.25"
        silent = self.pair_of_silent(made, kit, name)
        assert silent.verdict != "incomparable" and (silent.margin == 0.5 if name == "margin" else True)

    def pair_of_silent(self, made: Any, kit: Any, name: str) -> Cell:
        other = kit.Fabricator(made.root / "other")
        return self.pair(other, kit, self.says(True, **{name: 0.5}), self.says(True))


@pytest.mark.slow
def test_real_files_from_elsewhere(shared: Path) -> None:
    """Nothing but the results files is known: every row is there, counts its documents, and claims nothing."""
    folder = shared / "data" / "lm_eval_results"
    if not folder.is_dir():
        pytest.skip("no files from elsewhere")
    report = ingest(folder, None)
    assert report.store is not None and not report.rejected and len(report.duplicates) == 3
    cells = board(report.store)
    assert len(cells) == 1862 and not {cell.verdict for cell in cells} & {"better", "worse", "same"}
    assert sum(cell.n is not None for cell in cells) >= 1440
    unpaired = [cell for cell in cells if cell.unpaired]
    assert len(unpaired) >= 25 and all(cell.verdict == "incomparable" for cell in unpaired)
    for cell in unpaired:
        limits = value_range(cell.metric)
        widest = limits.high - limits.low
        assert cell.delta is not None and (cell.low is None or -widest <= cell.low <= cell.delta <= cell.high)  # type: ignore[operator]
    steered = [cell for cell in cells if "steer_path" in cell.recipe]
    assert len(steered) >= 150 and all(cell.verdict == "incomparable" for cell in steered)


def test_two_scores_of_one_model_seldom_differ_by_chance(made: Any, kit: Any) -> None:
    """The whole way, from files: of 40 pairs that differ by chance alone, at most four exclude zero."""
    generator = np.random.default_rng(3)

    def answers() -> list[float]:
        return [float(right) for right in generator.random(60) < 0.6]

    tasks = {name: {f"t{number}": kit.Task({"acc": answers()}) for number in range(40)} for name in "ab"}
    files = [made.plain(tasks[name], folder=name, samples=False) for name in tasks]
    cells = compare_paths(*files).cells
    assert len(cells) == 40 and all(cell.low is not None and cell.high is not None for cell in cells)
    assert sum(not cell.low <= 0 <= cell.high for cell in cells if cell.low is not None and cell.high is not None) <= 4
