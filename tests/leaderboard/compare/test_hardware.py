"""Runs of two GPUs or engines: when they are compared, with which noise floor, and with which baseline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import leaderboard
from leaderboard.app import badges
from leaderboard.app.run_differences import differing, facts, records, same_sentence
from leaderboard.board.board import board
from leaderboard.board.cell import Cell
from leaderboard.board.history import history
from leaderboard.compare.hardware import are_two
from leaderboard.compare_runs import compare_paths
from leaderboard.ingest import ingest
from leaderboard.readers.ran_on import ComputePlace
from leaderboard.report import words as report_words
from leaderboard.report.contents import read_report
from leaderboard.store import queries
from leaderboard.store.database import open_store
from leaderboard.store.noise_floor import floors
from tests.leaderboard.board.judging import recipe_cell
from tests.leaderboard.gate.gating import gated, row

A100, H100 = "NVIDIA A100", "NVIDIA H100"


def on(gpu: str | None, engine: str = "hf", **more: Any) -> dict[str, Any]:
    """What a receipt says of where its run was made."""
    return {"ran_on": {"gpus": [gpu] if gpu else [], "engine": engine, **more}}


class TestPlaces:
    """What is known to be two places."""

    @pytest.mark.parametrize(
        ("first", "second", "two"),
        [
            (ComputePlace("hf", A100), ComputePlace("hf", A100), False),
            (ComputePlace("hf", A100), ComputePlace("hf", H100), True),
            (ComputePlace("hf", A100), ComputePlace("hf", "cpu"), True),
            (ComputePlace("hf", A100), ComputePlace("vllm", A100), True),
            (ComputePlace("hf", A100), ComputePlace("hf", None), False),
            (ComputePlace(), ComputePlace("vllm", H100), False),
            (ComputePlace("hf", None), ComputePlace("vllm", None), True),
        ],
    )
    def test_both_must_say(self, first: ComputePlace, second: ComputePlace, two: bool) -> None:
        assert are_two(first, second) is two and are_two(second, first) is two


class TestBoard:
    """The board of one recipe whose baseline was made elsewhere."""

    def cell(self, made: Any, kit: Any, base: dict[str, Any], laser: dict[str, Any]) -> Cell:
        before, after = kit.pair(300, 150, lost=60)
        made.run("baseline", {"sums": before}, **base)
        made.run("laser", {"sums": after}, **laser)
        return recipe_cell(made.board())

    @pytest.mark.parametrize(
        ("base", "laser"),
        [
            ({}, {}),
            ({}, on(H100)),
            (on(A100), {}),
            (on(None), on(None, host="two")),
            (on(None), {}),
            (on(H100, host="one", driver="550"), on(H100, host="two", driver="570", ranks=4)),
        ],
    )
    def test_one_place_or_an_unknown_one_is_compared_as_ever(
        self, made: Any, kit: Any, base: dict[str, Any], laser: dict[str, Any]
    ) -> None:
        found = self.cell(made, kit, base, laser)
        assert found.verdict == "worse" and not any("differs" in note for note in found.notes)

    @pytest.mark.parametrize(
        ("laser", "words"),
        [
            (on(H100), f"GPU differs: baseline {A100}, this run {H100}, and the noise of this metric was not measured"),
            (on(A100, "vllm"), "engine differs: baseline hf, this run vllm, and the noise"),
            (on(H100, "vllm"), f"engine differs: baseline hf, this run vllm and GPU differs: baseline {A100}"),
            (on(None), f"GPU differs: baseline {A100}, this run cpu, and the noise of this metric was not measured"),
        ],
    )
    def test_two_places_are_not(self, made: Any, kit: Any, laser: dict[str, Any], words: str) -> None:
        found = self.cell(made, kit, on(A100), laser)
        assert (found.verdict, found.delta, found.baseline_score) == ("incomparable", None, 0.5)
        assert found.notes[0].startswith(words) and "`lm_eval noise`" in found.notes[0]

    @pytest.mark.parametrize(
        ("base", "laser", "word"),
        [
            ({}, on(H100), "the baseline does not say by which engine and on which GPU or CPU it was made"),
            (on(None), {}, "this run does not say by which engine and on which GPU or CPU it was made"),
            ({}, {}, None),
            (on(None), on(None), None),
        ],
    )
    def test_a_place_that_only_one_of_them_says_is_a_warning(
        self, made: Any, kit: Any, base: dict[str, Any], laser: dict[str, Any], word: str | None
    ) -> None:
        notes = [note for note in self.cell(made, kit, base, laser).notes if "does not say" in note]
        assert notes == ([f"warning: {word}; the other run does"] if word else [])

    def test_a_device_that_hides_its_gpu_is_an_unknown_place(self, made: Any, kit: Any) -> None:
        """The weights of an offloaded model are on no GPU while it scores on one."""
        before, after = kit.pair(300, 150, lost=60)
        base = made.run("baseline", {"sums": before}, **on(None)) / "receipt.json"
        receipt = json.loads(base.read_text())
        base.write_text(json.dumps(receipt | {"model": receipt["model"] | {"device": "cuda:0"}}))
        made.run("laser", {"sums": after}, **on(H100))
        assert recipe_cell(made.board()).verdict == "worse"

    def test_a_baseline_of_the_same_place_is_preferred_to_a_later_one(self, made: Any, kit: Any) -> None:
        before, after = kit.pair(300, 150, lost=60)
        made.run("baseline", {"sums": before}, **on(H100), started="2026-01-01T00:00:00+00:00")
        other = kit.pair(300, 150, lost=1)[1]
        made.run("baseline", {"sums": other}, folder="later", **on(A100), started="2026-05-01T00:00:00+00:00")
        made.run("laser", {"sums": after}, **on(H100))
        cells = made.board()
        found = recipe_cell(cells)
        assert (found.verdict, found.lost) == ("worse", 60)
        assert [cell.verdict for cell in cells if cell.recipe == "baseline"] == ["baseline"] * 2

    def test_equal_results_of_two_gpus_are_two_runs(self, made: Any, kit: Any) -> None:
        before, after = kit.pair(300, 150, lost=60)
        for gpu in (A100, H100):
            made.run("baseline", {"sums": before}, folder=f"base {gpu}", **on(gpu))
        made.run("laser", {"sums": after}, **on(H100))
        cells = made.board()
        assert len(cells) == 3 and recipe_cell(cells).verdict == "worse"
        assert {cell.name for cell in cells} == {f"baseline [{A100}]", f"baseline [{H100}]", "laser"}

    @pytest.mark.slow
    @pytest.mark.parametrize(("gpu", "controls"), [(H100, 1), (A100, 0)])
    def test_a_control_made_elsewhere_says_nothing(self, made: Any, kit: Any, gpu: str, controls: int) -> None:
        before, after = kit.pair(300, 150, gained=60)
        made.run("baseline", {"sums": before}, **on(H100))
        made.run("laser", {"sums": after}, **on(H100))
        control = made.run("laser+noise", {"sums": kit.pair(300, 150, lost=1)[1]}, **on(gpu)) / "receipt.json"
        receipt = json.loads(control.read_text())
        receipt["recipe"] |= {"control": "noise", "control_of": kit.sha("laser")}
        control.write_text(json.dumps(receipt))
        found = recipe_cell(made.board())
        assert (found.verdict, len(found.against_controls)) == ("better", controls)
        assert found.beats_controls is (True if controls else None)


class TestNoise:
    """The floor of each place."""

    def measured(self, made: Any, kit: Any, *flips: tuple[str | None, int]) -> None:
        before = kit.pair(300, 150)[0]
        for number, (gpu, lost) in enumerate(flips):
            made.run("baseline", {"sums": before}, folder=f"base {gpu}", **on(gpu), started=f"2026-01-0{number + 1}")
            made.run(
                "baseline",
                {"sums": kit.pair(300, 150, lost=lost)[1]},
                folder=f"noise {gpu}",
                config={"batch_size": 16},
                spec_id=f"noise {gpu}",
                started=f"2025-01-0{number + 1}",
                **on(gpu),
            )

    def test_is_measured_within_one_place_alone(self, made: Any, kit: Any) -> None:
        self.measured(made, kit, (A100, 3), (H100, 9))
        report = ingest(made.root, None)
        assert report.store is not None
        found = {(floor.place, floor.flips) for of in floors(report.store).values() for floor in of}
        assert found == {(ComputePlace("hf", A100), 3), (ComputePlace("hf", H100), 9)}

    @pytest.mark.slow
    def test_each_place_has_its_own(self, made: Any, kit: Any) -> None:
        self.measured(made, kit, (A100, 3), (H100, 9))
        made.run("laser", {"sums": kit.pair(300, 150, lost=60)[1]}, **on(A100))
        made.run("svd", {"sums": kit.pair(300, 150, lost=61)[1]}, **on(H100))
        cells = made.board()
        assert recipe_cell(cells).noise_floor == pytest.approx(3 / 300)
        assert recipe_cell(cells, "svd").noise_floor == pytest.approx(9 / 300)

    @pytest.mark.slow
    def test_measured_in_both_places_they_are_compared_and_the_larger_counts(self, made: Any, kit: Any) -> None:
        self.measured(made, kit, (A100, 3), (H100, 9))
        (base,) = made.root.glob("*/base*A100")
        laser = made.run("laser", {"sums": kit.pair(300, 150, lost=60)[1]}, **on(H100))
        database = made.root / "board.duckdb"
        ingest(made.root, database)
        (found,) = compare_paths(base, laser, database=database).cells
        assert (found.verdict, found.lost) == ("worse", 60) and found.noise_floor == pytest.approx(9 / 300)
        assert any(note.startswith("warning: GPU differs") and "larger noise floor" in note for note in found.notes)
        (alone,) = compare_paths(base, laser).cells
        assert alone.verdict == "incomparable"

    @pytest.mark.slow
    def test_python_compares_two_places_by_the_noise_in_a_database(self, made: Any, kit: Any) -> None:
        self.measured(made, kit, (A100, 3), (H100, 9))
        (base,) = made.root.glob("*/base*A100")
        laser = made.run("laser", {"sums": kit.pair(300, 150, lost=60)[1]}, **on(H100))
        database = made.root / "board.duckdb"
        ingest(made.root, database)
        for given in (database, str(database)):
            (found,) = leaderboard.compare(base, laser, database=given).cells
            assert (found.verdict, found.noise_floor) == ("worse", pytest.approx(9 / 300))
        for without in ({}, {"database": None}, {"database": made.root / "nowhere.duckdb"}):
            (alone,) = leaderboard.compare(base, laser, **without).cells
            assert alone.verdict == "incomparable" and "`lm_eval noise` on both" in alone.notes[0]

    @pytest.mark.slow
    def test_measured_on_a_cpu_and_on_a_gpu_they_are_compared(self, made: Any, kit: Any) -> None:
        self.measured(made, kit, (None, 3), (H100, 9))
        (base,) = made.root.glob("*/base None")
        laser = made.run("laser", {"sums": kit.pair(300, 150, lost=60)[1]}, **on(H100))
        database = made.root / "board.duckdb"
        ingest(made.root, database)
        (found,) = compare_paths(base, laser, database=database).cells
        assert (found.verdict, found.noise_floor) == ("worse", pytest.approx(9 / 300))
        assert any(note.startswith(f"warning: GPU differs: baseline cpu, this run {H100}") for note in found.notes)

    def test_measured_in_one_of_them_they_are_not(self, made: Any, kit: Any) -> None:
        self.measured(made, kit, (A100, 3))
        made.run("laser", {"sums": kit.pair(300, 150, lost=60)[1]}, **on("NVIDIA B200"))
        found = recipe_cell(made.board())
        assert found.verdict == "incomparable" and "not measured on hf on NVIDIA B200" in found.notes[0]

    @pytest.mark.slow
    def test_a_pinned_baseline_serves_elsewhere_as_soon_as_both_places_are_measured(self, made: Any, kit: Any) -> None:
        """What was judged before a measurement is not believed after it."""
        before, after = kit.pair(300, 150, lost=60)
        base = made.run("baseline", {"sums": before}, folder="base", **on(A100))
        made.run("laser", {"sums": after}, **on(H100))
        database = made.root / "board.duckdb"
        pinned = ingest([base], database).added[0]
        with open_store(database, read_only=False) as store:
            queries.pin_baseline(store, pinned, "the first")
        ingest(made.root, database)
        assert self.verdict(database) == ("incomparable", pinned)
        base_again = made.root / base.parent.name / "base"
        shutil.rmtree(base_again)
        self.measured(made, kit, (A100, 3), (H100, 9))
        ingest(made.root, database)
        assert self.verdict(database) == ("worse", pinned)

    def verdict(self, database: Path) -> tuple[str, str]:
        """The stored verdict on laser, and the run that it was compared with."""
        with open_store(database) as store:
            sql = "SELECT verdict, baseline_run FROM v_verdicts WHERE recipe = 'laser' AND is_primary"
            ((verdict, baseline),) = store.connection.execute(sql).fetchall()
        return verdict, baseline


class TestHistory:
    """What changed from run to run."""

    def test_gpu_driver_and_engine_are_marked(self, made: Any, kit: Any) -> None:
        before, after = kit.pair(300, 150, lost=60)
        made.run("laser", {"sums": before}, **on(A100, driver="550"), started="2026-01-01T00:00:00+00:00")
        changed = on(H100, "vllm", driver="570", host="other")
        made.run("laser", {"sums": after}, folder="later", **changed, started="2026-02-01T00:00:00+00:00")
        report = ingest(made.root, None)
        assert report.store is not None
        *_, last = history(report.store, "tiny", "laser", "sums").points
        marked = {change.what: (change.before, change.after) for change in last.changes}
        expected = {"GPU": (A100, H100), "GPU driver": ("550", "570"), "engine": ("hf", "vllm")}
        assert expected.items() <= marked.items() and "host" not in marked


class TestGate:
    """The policy decides where nothing was measured."""

    def runs(self, made: Any, kit: Any) -> tuple[Any, Any]:
        before, after = kit.pair(300, 150, lost=3)
        return made.run("laser", {"sums": after}, **on(H100)), made.run("baseline", {"sums": before}, **on(A100))

    @pytest.mark.slow
    def test_refused_unless_asked(self, made: Any, kit: Any) -> None:
        found = row(gated(*self.runs(made, kit), margin=0.1))
        assert found.verdict == "INCOMPARABLE" and "`different_hardware: warn`" in found.reasons[0]

    @pytest.mark.slow
    def test_allowed_with_a_warning(self, made: Any, kit: Any) -> None:
        found = row(gated(*self.runs(made, kit), margin=0.1, different_hardware="warn"))
        assert found.verdict == "PASS"
        assert found.notes[0].startswith(f"warning: GPU differs: baseline {A100}, this run {H100}")

    @pytest.mark.slow
    def test_what_changed_names_the_gpu(self, made: Any, kit: Any) -> None:
        report = gated(*self.runs(made, kit), margin=0.001, different_hardware="warn")
        assert "NVIDIA A100" in report.to_json()


class TestShown:
    """Where the two differ, pages and reports say so."""

    def store(self, made: Any, kit: Any, *gpus: str) -> Path:
        before, after = kit.pair(300, 150, lost=3)
        made.run("baseline", {"sums": before}, **on(gpus[0], driver="550", host="node1"))
        made.run("laser", {"sums": after}, **on(gpus[-1], driver="550", host="node2"))
        database = made.root / "board.duckdb"
        ingest(made.root, database)
        return database

    @pytest.mark.slow
    @pytest.mark.parametrize("gpus", [(A100, H100), (A100, A100)])
    def test_badges_and_differences(self, made: Any, kit: Any, gpus: tuple[str, str]) -> None:
        database = self.store(made, kit, *gpus)
        with open_store(database) as store:
            cells = board(store)
            words = badges.board_badges(badges.model_facts(store, cells[0].model_key), cells)
            made_by = records(store, *(cell.run_id for cell in cells))
            found = {fact.name: fact.values for fact in differing(facts(made_by), made_by)}
            sentence = same_sentence(facts(made_by))
        differ = len(set(gpus)) == 2
        assert (f"GPU {A100}, {H100}" in words) is differ and not any(word.startswith("driver") for word in words)
        assert found.get("GPU") == (gpus if differ else None) and found["host"] == ("node1", "node2")
        assert ("Besides the edit these differ: GPU" in sentence) is differ and "engine hf" in sentence
        report = report_words.badges(read_report(["tiny"], database))
        assert f"GPU {', '.join(sorted(set(gpus)))}" in report
