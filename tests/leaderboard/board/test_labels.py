"""What two runs of one label are called beside each other: enough to tell them apart, and no more."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from leaderboard.app import tables
from leaderboard.app.charts import intervals
from leaderboard.board import across_models
from leaderboard.board.board import board, pair_board
from leaderboard.board.frame import cells_frame
from leaderboard.board.history import history
from leaderboard.board.labels import TRAITS, LabelledRun, distinct_names, stored_names
from leaderboard.board.standings import standings
from leaderboard.compare_runs import compare_paths
from leaderboard.ingest import ingest
from leaderboard.store import queries
from leaderboard.store.database import open_store
from leaderboard.terminal.table import render

ON_A, ON_B = ({"calibration": f"calibrated on {task}"} for task in ("int_mult", "int_sum"))


def names(*runs: tuple[dict[str, str], dict[str, dict[str, str]]], model: str = "tiny") -> list[str]:
    """The names of runs of one label, given their traits and what is particular to their tasks."""
    given = [LabelledRun(f"run{i}", model, "laser", traits, tasks) for i, (traits, tasks) in enumerate(runs)]
    found = [distinct_names(order) for order in itertools.permutations(given)]
    assert all(other == found[0] for other in found)  # the order of the runs does not matter
    return [found[0][run.run_id] for run in given]


ONE_TASK: dict[str, dict[str, str]] = {"sums": {}}


@pytest.mark.parametrize(
    ("traits", "expected"),
    [
        ([{}, {}], ["laser", "laser"]),
        ([{"dtype": "float32"}, {"dtype": "float32"}], ["laser", "laser"]),
        ([{"dtype": "float32"}, {"dtype": "bfloat16"}], ["laser [float32]", "laser [bfloat16]"]),
        ([{}, {"limit": "limit 20"}], ["laser", "laser [limit 20]"]),
        ([ON_A, ON_B], ["laser (calibrated on int_mult)", "laser (calibrated on int_sum)"]),
        (
            [ON_A | {"dtype": "a"}, ON_B | {"dtype": "b"}],
            ["laser (calibrated on int_mult)", "laser (calibrated on int_sum)"],
        ),
        ([ON_A | {"seed": "seed 1"}, ON_A | {"seed": "seed 2"}], ["laser (seed 1)", "laser (seed 2)"]),
        (
            [ON_A | {"dtype": "a"}, ON_A | {"dtype": "b"}, ON_B | {"dtype": "b"}],
            [f"laser (calibrated on int_mult) [{kind}]" for kind in "ab"] + ["laser (calibrated on int_sum) [b]"],
        ),
        (
            [{"seeds": "seeds 1"}, {"seeds": "seeds 8"}],
            ["laser [seeds 1]", "laser [seeds 8]"],
        ),
        ([{"seeds": "seeds 1"}, {}], ["laser", "laser"]),  # which one that is it does not say
        ([{"model_args": "peft=a"}, {}, {"model_args": "peft=b"}], ["laser [peft=a]", "laser", "laser [peft=b]"]),
    ],
)
def test_the_shortest_that_tells_apart(traits: list[dict[str, str]], expected: list[str]) -> None:
    assert names(*((found, ONE_TASK) for found in traits)) == expected


def test_what_is_particular_to_a_task() -> None:
    few, many = {"shots": "0-shot"}, {"shots": "5-shot"}
    assert names(({}, {"sums": few}), ({}, {"sums": many})) == ["laser [0-shot]", "laser [5-shot]"]
    assert names(({}, {"sums": few}), ({}, {"words": many})) == ["laser", "laser"]  # they never stand side by side
    first, second = names(({}, {"sums": few, "words": few}), ({}, {"sums": few, "words": many}))
    assert first == "laser [0-shot]" and second.startswith("laser [shots ")


def test_runs_of_one_kind_are_called_the_same_on_every_model() -> None:
    kinds = [("a", "float32"), ("a", "bfloat16"), ("b", "bfloat16")]
    runs = [LabelledRun(f"{model}{kind}", model, "laser", {"dtype": kind}, ONE_TASK) for model, kind in kinds]
    assert list(distinct_names(runs).values()) == ["laser [float32]", "laser [bfloat16]", "laser [bfloat16]"]
    apart = [runs[0], runs[2]]  # no two of them on one model
    assert set(distinct_names(apart).values()) == {"laser"}


def test_every_trait_tells_apart() -> None:
    for name in TRAITS:
        texts = [f"{name} {i}" for i in range(2)]
        found = names(*(({name: text}, {"sums": {name: text}}) for text in texts))
        assert [text in name for text, name in zip(texts, found)] == [True, True]


def two_lasers(made: Any, kit: Any, *, of: int | None = None, **change: Any) -> tuple[Path, Path]:
    """A baseline and two runs of one recipe; the second has `of` documents and other entries of the receipt."""
    before, after = kit.pair(60, 30, lost=3)
    made.run("baseline", {"sums": before})
    first = made.run("laser", {"sums": after})
    part = kit.Task({"acc": after.values["acc"][:20]}, of=of, log_likelihoods=kit.likelihoods(20, 3))
    whole = kit.Task(after.values, log_likelihoods=kit.likelihoods(60, 3))
    second = made.run(
        "laser",
        {"sums": part if of else whole},
        folder="second",
        spec_id="second",
        started="2026-01-02T04:00:00+00:00",
        **{"config": {"limit": 20.0} if of else {}, **change},
    )
    return first, second


CALIBRATION = {"step": 0, "task": "int_mult", "split": "train", "samples": 64, "seed": 1, "documents": ["a"]}
CASES: dict[str, dict[str, Any]] = {
    "laser [limit 20]": {"of": 60, "settings": {"limit": 20.0}},
    "laser (calibrated on int_mult)": {"calibration": [CALIBRATION]},
    "laser [chat template]": {"settings": {"apply_chat_template": True}},
    "laser [recipe 012345]": {"recipe_id": "0123456789", "variant_id": "other"},
    "laser [parallelize=True]": {"settings": {"model_args": {"parallelize": True, "pretrained": "tiny"}}},
}


@pytest.mark.slow
@pytest.mark.parametrize("expected", CASES)
def test_on_every_surface(made: Any, kit: Any, database: Path, expected: str) -> None:
    places = two_lasers(made, kit, **CASES[expected])
    ingest(made.root, database)
    with open_store(database) as store:
        cells, listed = board(store), set(stored_names(store).values())
        ids = [run.run_id for run in queries.runs(store) if run.recipe_label == "laser"]
        (beside,) = pair_board(store, *ids)
    assert expected in listed and beside.name == expected
    assert len({cell.name for cell in cells if cell.recipe == "laser"}) == 2
    assert expected in {row.name for row in standings(cells).rows}
    assert expected in {row["Recipe"] for row in tables.cell_rows(cells, with_model=False)}
    assert expected in render(cells, width=120) and expected in set(cells_frame(cells)["label"])
    assert expected in {line.recipe for line in across_models.lines(cells, "sums")}
    rows = standings(cells).rows
    # A part of the documents cannot be compared with all of them, and has no interval to draw.
    drawn = intervals.drawable([row for row in rows if row.name == expected], "sums")
    assert (expected in str(intervals.chart(rows, "sums").to_dict())) == bool(drawn) == ("limit" not in expected)
    assert compare_paths(*places).unshared[1].label == expected


@pytest.mark.slow
def test_a_part_of_the_documents_is_always_said(made: Any, kit: Any, database: Path) -> None:
    """Also where it is all that there is of the recipe."""
    part = kit.Task({"acc": [1.0] * 20}, of=1000, log_likelihoods=kit.likelihoods(20, 0))
    made.run("baseline", {"sums": part}, config={"limit": 20.0})
    cells = made.board()
    assert "sums; acc, higher is better; first 20 of 1,000 documents" in render(cells, width=120)
    assert tables.cell_rows(cells, with_model=False)[0]["Documents"] == "first 20 of 1,000 documents"
    whole = kit.Task({"acc": [1.0] * 1000}, log_likelihoods=kit.likelihoods(1000, 0))
    made.run("baseline", {"sums": whole}, folder="whole", spec_id="whole", started="2027-01-01T00:00:00+00:00")
    text = render(made.board(), width=120)
    assert "baseline [limit 20]" in text or ". first 20 of 1,000 documents" in text
    assert list(cells_frame(made.board())["scored"]).count("first 20 of 1,000 documents") == 1
    ingest(made.root, database)
    with open_store(database) as store:
        points = history(store, "tiny", "baseline", "sums").points
    assert [point.subset for point in points] == ["first 20 of 1,000 documents", None]


@pytest.mark.slow
def test_the_history_tells_of_another_calibration_and_another_task(made: Any, kit: Any, database: Path) -> None:
    _, second = two_lasers(made, kit, calibration=[CALIBRATION])
    receipt = json.loads((second / "receipt.json").read_text())
    (made.root / "tiny" / "laser-0123456789" / "receipt.json").write_text(
        json.dumps(
            receipt
            | {
                "calibration": [{**CALIBRATION, "task": "int_sum"}],
                "tasks": {"sums": {"identity": "a"}},
                "started": "2026-01-02T03:30:00+00:00",
            }
        )
    )
    (second / "receipt.json").write_text(json.dumps(receipt | {"tasks": {"sums": {"identity": "b"}}}))
    ingest(made.root, database)
    with open_store(database) as store:
        last = history(store, "tiny", "laser", "sums").points[-1]
    found = {change.what: (change.before, change.after) for change in last.changes}
    assert found["calibration"] == ("64 of int_sum train seed 1", "64 of int_mult train seed 1")
    assert found["task's code and data"] == ("a", "b")


@pytest.mark.slow
@pytest.mark.parametrize("first", ["alpha", "beta"])
def test_equal_weights_under_two_labels_keep_both(made: Any, kit: Any, database: Path, first: str) -> None:
    """Two recipe files of the same steps: the label is the run's own, whichever came first."""
    before, after = kit.pair(60, 30, lost=3)
    made.run("baseline", {"sums": before})
    for recipe in (first, "beta" if first == "alpha" else "alpha"):
        made.run(
            recipe,
            {"sums": after},
            variant_id="same",
            recipe_id="same",
            spec_id=recipe,
            weights={"digest_before": kit.sha("weights"), "digest_after": "same"},
        )
        ingest(made.root, database)
    ingest(made.root, database)
    with open_store(database) as store:
        assert sorted(cell.recipe for cell in board(store)) == ["alpha", "baseline", "beta"]
        assert len(store.rows("SELECT variant_id FROM variants")) == 3


def test_the_legend_counts_what_was_corrected_over(made: Any, kit: Any) -> None:
    tasks = {f"t{i}": kit.pair(60, 30, lost=3) for i in range(5)}
    made.run("baseline", {name: pair[0] for name, pair in tasks.items()})
    made.run("laser", {name: pair[1] for name, pair in tasks.items()})
    shown = [cell for cell in made.board() if cell.task == "t0"]
    assert "over a model's board (5 comparisons)" in " ".join(render(shown, width=100).split())
