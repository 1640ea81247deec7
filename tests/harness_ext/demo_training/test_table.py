"""The embedded model's table: what is run, how figures become a table, and whether the stored ones are what the model
does.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from harness_ext.demo import demo_path
from harness_ext.demo_training import card, figures, finetune, spread, table
from harness_ext.demo_training.figures import Row
from harness_ext.recipe.recipe import parse_recipe, shipped_names
from harness_ext.runs.progress import ProgressReport
from harness_ext.runs.session import Session
from harness_ext.storage.rundir import FinishedRun


@pytest.fixture
def report() -> ProgressReport:
    return ProgressReport(quiet=True)


@pytest.fixture(scope="module")
def stored() -> dict[tuple[str, str | None], Row]:
    return {(row.recipe, row.control): row for row in figures.read()}


def row(**changes) -> Row:
    scores = {task: [0.5, 0.25, 0.75] for task in spread.TASKS}
    verdicts = {task: ["same", "better", "better"] for task in spread.TASKS}
    return Row(
        **{
            "kind": "recipe",
            "recipe": "laser",
            "control": None,
            "fingerprint": "3f",
            "kept": 0.891,
            "seconds": 1.25,
            "trials": None,
            "scores": scores,
            "verdicts": verdicts,
        }
        | changes
    )


def test_every_recipe_gets_the_controls_that_say_something_about_it() -> None:
    found = {
        recipe: command.controls
        for command in table.commands(
            ["laser", "ablation-prune", "basis-selection", "wanda", "noise", "identity", "contrast-projection"], 2
        )
        for recipe in command.recipes
    }
    drawn = ("random-subspace:seed=2", "noise:seed=2", "bottom-k")
    assert found == {
        "laser": drawn,
        "contrast-projection": drawn,
        "wanda:calibration.seed=2,seed=2": drawn,
        "ablation-prune:calibration.seed=2,seed=2": (*drawn, "shuffled-labels"),
        "basis-selection:calibration.seed=2,seed=2": (*drawn, "shuffled-labels"),
        "noise:seed=2": (),
        "identity": (),
    }
    assert all(parse_recipe(recipe) for recipe in found)


def test_every_shipped_recipe_is_run_from_every_seed() -> None:
    for seed in table.SEEDS:
        asked = [
            parse_recipe(recipe).name for command in table.commands(shipped_names(), seed) for recipe in command.recipes
        ]
        assert sorted(asked) == shipped_names()


@pytest.mark.slow
def test_a_second_command_runs_nothing_and_says_the_same(tmp_path, monkeypatch, report) -> None:
    for module in (spread, table):
        monkeypatch.setattr(module, "TASKS", ("int_mult",))
    monkeypatch.setattr(table, "STEPS", (1,))
    first = table.measure(["laser"], (0,), tmp_path, report)
    assert [(found.kind, found.recipe, found.control) for found in first] == [
        ("baseline", "baseline", None),
        ("fine-tuning", "fine-tuning, 1 step", None),
        ("recipe", "laser", None),
        *(("control", "laser", name) for name in ("random-subspace", "noise", "bottom-k")),
    ]
    assert first[0].verdicts == {"int_mult": ["baseline"]} and first[2].verdicts == {"int_mult": ["better"]}
    commands = {tuple(json.loads(path.read_text())["command"][:2]) for path in tmp_path.glob("runs/*/*/receipt.json")}
    assert commands == {("lm_eval", "run")}

    def refuse(*_: object) -> None:
        raise AssertionError("something was run again")

    monkeypatch.setattr(Session, "_make", refuse)
    monkeypatch.setattr(finetune, "train", refuse)
    assert table.measure(["laser"], (0,), tmp_path, report) == first


@pytest.fixture
def variant(tmp_path) -> Callable[..., table.Variant]:
    """A run with one score for all tasks; or a failed one."""

    def make(name: str, score: float | None, seconds: float) -> table.Variant:
        place = table.Place("recipe", "laser", None)
        if score is None:
            return table.Variant(place, FinishedRun(tmp_path / name, {"status": "failed"}), seconds)
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "results_2026.json").write_text(
            json.dumps({"results": {task: {spread.PRIMARY[task]: score} for task in spread.TASKS}})
        )
        return table.Variant(
            place,
            FinishedRun(
                tmp_path / name, {"status": "complete", "totals": {"parameters_before": 100, "parameters_after": 50}}
            ),
            seconds,
        )

    return make


def test_a_failed_run_stays_in_its_row(tmp_path, variant) -> None:
    found = table._row(
        table.Place("recipe", "laser", None),
        [variant("whole", 0.25, 1.0), variant("failed", None, 3.0)],
        {(tmp_path / "whole", task): "better" for task in spread.TASKS},
    )
    assert all(
        found.scores[task] == [0.25, None] and found.verdicts[task] == ["better", "failed"] for task in spread.TASKS
    )
    assert (found.kept, found.seconds) == (0.5, 2.0)
    assert (
        figures.full_table([found]).splitlines()[2]
        == "| `laser` | "
        + "25.0 **better** 1/2 **failed** 1/2 | " * 4
        + "0.25 **better** 1/2 **failed** 1/2 | 50% | 2.0 |"
    )
    assert "failed" in figures.full_table(
        [table._row(table.Place("recipe", "laser", None), [variant("failed", None, 3.0)], {})]
    )


def test_a_run_that_no_seed_changes_counts_once_and_two_equal_ones_twice(tmp_path, variant) -> None:
    words = {(tmp_path / name, task): "better" for name in ("one", "other") for task in spread.TASKS}
    once = table._row(table.Place("recipe", "laser", None), [variant("one", 0.5, 1.0)] * 3, words)
    twice = table._row(
        table.Place("recipe", "laser", None),
        [variant("one", 0.5, 1.0), variant("one", 0.5, 1.0), variant("other", 0.25, 4.0)],
        words,
    )
    assert once.scores["int_sum"] == [0.5] and once.verdicts["int_sum"] == ["better"]
    assert twice.scores["int_sum"] == [0.5, 0.5, 0.25] and twice.seconds == 2.0


def test_a_cell_holds_mean_range_and_verdicts() -> None:
    assert figures.full_table([row()]).splitlines()[2:] == [
        "| `laser` | "
        + "50.0 (25.0 to 75.0) **better** 2/3 | " * 4
        + "0.50 (0.25 to 0.75) **better** 2/3 | 89% | 1.2 |"
    ]
    alone = row(
        scores={task: [-0.001] for task in spread.TASKS},
        verdicts={task: ["worse"] for task in spread.TASKS},
        kind="fine-tuning",
        recipe="fine-tuning, 1 step",
    )
    assert (
        figures.full_table([alone]).splitlines()[2]
        == "| fine-tuning, 1 step | " + "-0.1 **worse** | " * 4 + "0.00 **worse** | 89% | 1.2 |"
    )


def test_figures_come_back_as_they_were_stored(tmp_path) -> None:
    rows = [row(), row(control="noise", kept=None)]
    figures.write(rows, tmp_path / "table.json")
    assert figures.read(tmp_path / "table.json") == rows
    assert len((tmp_path / "table.json").read_text().splitlines()) == 2


def test_a_single_recipe_is_printed_and_not_stored(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(table, "measure", lambda names, seeds, out, report: [row(recipe=names[0])])
    for name in ("write", "publish"):
        monkeypatch.setattr(figures if name == "write" else table, name, lambda *_: pytest.fail("stored"))
    table.main(["--out", str(tmp_path), "--recipe", "svd"])
    assert "| `svd` |" in capsys.readouterr().out


def test_mistakes_are_told_without_a_traceback(tmp_path, capsys) -> None:
    (tmp_path / "file").touch()
    for arguments, said in [
        (["--out", str(tmp_path), "--recipe", "laserr"], "invalid choice: 'laserr'"),
        (["--out", str(tmp_path / "file"), "--recipe", "laser"], "error: results cannot be written to"),
    ]:
        with pytest.raises(SystemExit) as end:
            table.main(arguments)
        assert end.value.code == 2 and said in capsys.readouterr().err


def test_the_card_has_every_row() -> None:
    shown = (demo_path() / "README.md").read_text(encoding="utf-8")
    assert figures.full_table(figures.read()) in shown and shown == card.render()


def test_what_the_card_says_of_the_table_is_so(stored) -> None:
    """The sentences under the table; should one fail after new figures, the sentence must change."""

    def lowest(recipe: str, task: str, control: str | None = None) -> float:
        return min(stored[recipe, control].scores[task])

    def highest(recipe: str, task: str, control: str | None = None) -> float:
        return max(stored[recipe, control].scores[task])

    hidden, clean = ("int_mult", "int_sum"), ("int_mult_clean", "int_sum_clean")
    baseline = stored["baseline", None].scores
    for task in hidden:
        assert baseline[task][0] < 0.02 and lowest("ablation-prune", task) > 0.8
        assert highest("ablation-prune", task, "shuffled-labels") < 0.04
        assert lowest("contrast-projection", task, "bottom-k") > highest("ablation-prune", task)
        assert lowest("laser", task) > 0.1 and lowest("laser", task, "random-subspace") > 0.8 * highest("laser", task)
        recipes = [name for name, control in stored if control is None and stored[name, None].kind == "recipe"]
        assert lowest("fine-tuning, 30 steps", task) > max(highest(name, task) for name in recipes)
    exchanged = "ablation-prune", "int_sum_clean", "shuffled-labels"
    assert lowest(*exchanged) > 0.56 and highest(*exchanged) < 0.61
    assert all(lowest("fine-tuning, 30 steps", task) > lowest("ablation-prune", task) - 0.02 for task in clean)
    assert stored["ablation-prune", None].seconds < stored["fine-tuning, 30 steps", None].seconds
    assert all(set(stored["eigenprune", None].scores[task]) == set(baseline[task]) for task in (*hidden, *clean))
    best = min((abs(score), name) for name, found in stored.items() for score in found.scores["pronoun_bias"])[1]
    assert all(highest(best[0], task, best[1]) < 0.02 for task in (*hidden, *clean))


@pytest.mark.slow
def test_every_shipped_recipe_has_its_row_as_it_is_today(stored) -> None:
    rows = {(found.recipe, found.fingerprint) for found in stored.values() if found.kind != "fine-tuning"}
    assert rows == {(name, parse_recipe(name).fingerprint) for name in shipped_names()}, "run `make demo-table`"


@pytest.mark.slow
def test_the_stored_figures_are_those_of_the_model(tmp_path, report, stored) -> None:
    """From one seed, within what other processors and threads may round to."""
    found = table.measure(["laser", "ablation-prune"], (0,), tmp_path, report)
    assert {(row.recipe, row.control) for row in found} == {
        name
        for name, row in stored.items()
        if row.kind in ("baseline", "fine-tuning") or row.recipe in ("laser", "ablation-prune")
    }
    for row in found:
        known = stored[row.recipe, row.control]
        for task in spread.TASKS:
            assert row.scores[task][0] == pytest.approx(known.scores[task][0], abs=0.03), (
                row.recipe,
                row.control,
                task,
            )


@pytest.mark.slow
@pytest.mark.long
def test_fine_tuning_sees_the_documents_of_the_recipe_beside_it(tmp_path, report) -> None:
    (variant,) = [
        found for found in table.of_recipes([table.TEACHER], 1, tmp_path, report) if found.place.kind == "recipe"
    ]
    learned = [hashed for drawn in variant.run.receipt["calibration"] for hashed in drawn["documents"]]
    list(table.of_fine_tuning(1, tmp_path, report))
    record = json.loads((tmp_path / "fine-tuned" / "steps-30-seed-1" / finetune.RECORD).read_text())
    assert record["documents"] == learned and len(learned) == 160


@pytest.mark.slow
@pytest.mark.long
def test_the_rate_of_fine_tuning_is_the_best_on_other_facts_of_the_training_split(tmp_path, report) -> None:
    from harness_ext.lm_eval_adapter.backend import RecipeLM

    documents = table.documents_of(table.TEACHER, 0, tmp_path, report)
    drawn = {document.doc_hash for document in documents}
    others = [
        document
        for document in table.documents_of(f"{table.TEACHER}:calibration.samples=1000", 100, tmp_path, report)
        if document.doc_hash not in drawn
    ]
    right: dict[float, float] = {}
    for rate in finetune.RATES:
        lm = RecipeLM("demo", device="cpu")
        finetune.train(lm, finetune.FineTuning(steps=30, learning_rate=rate), documents)
        right[rate] = _share_right(lm, others)
    assert max(right, key=lambda rate: right[rate]) == finetune.FineTuning.learning_rate, right


def _share_right(lm, documents) -> float:
    import torch

    from harness_ext.calibration.batches import batches_of

    right = 0
    with torch.no_grad():
        for batch in batches_of(lm, documents, 500):
            logits = lm.model(input_ids=batch.tokens, attention_mask=batch.mask, position_ids=batch.positions).logits
            asked = batch.labels != -100
            right += int((logits[asked].argmax(-1) == batch.labels[asked]).sum())
    return right / len(documents)


def test_what_a_search_tried_stands_beside_its_seconds() -> None:
    table_of = figures.full_table([row(recipe="laser-search", seconds=4.04, trials=176.0), row()])
    assert table_of.splitlines()[2].endswith("| 4.0, 176 trials |") and table_of.splitlines()[3].endswith("| 1.2 |")
    assert table._trials([{"searches": [{"trials": [{}, {}]}]}, {"searches": [{"trials": [{}]}]}]) == 1.5
    assert table._trials([{}, {"searches": []}]) is None
