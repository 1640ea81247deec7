"""Which run a cell is compared with, and what is said where no run will do."""

from __future__ import annotations

import json
from typing import Any

import pytest

from leaderboard.board.board import board
from leaderboard.errors import UnknownRun
from leaderboard.ingest import ingest
from leaderboard.readers.same_document import DocumentText, content_digests
from leaderboard.store import queries
from leaderboard.store.database import open_store
from tests.leaderboard.board.judging import judged, recipe_cell


class TestIncomparable:
    """Outside one comparability key there is no delta, and the board says which field differs."""

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"version": 2.0}, "task version differ: baseline 1.0, this run 2.0"),
            ({"shots": 5}, "few-shot examples differ: baseline 0, this run 5"),
            ({"generation": {"max_gen_toks": 5}}, "generation arguments differ"),
            ({"first_document": 3}, "documents differ: 3 only in the baseline, 3 only in this run"),
        ],
    )
    def test_a_field_that_differs_is_named(self, made: Any, kit: Any, change: dict[str, Any], words: str) -> None:
        before, after = kit.pair(50, 20, lost=2)
        for name, value in change.items():
            setattr(after, name, value)
        cell = judged(made, before, after)
        assert cell.verdict == "incomparable" and cell.delta is None and cell.score == 0.36
        assert words in " ".join(cell.notes)

    def test_chat_template(self, made: Any, kit: Any) -> None:
        before, after = kit.pair(50, 20, lost=2)
        made.run("baseline", {"sums": before})
        path = made.run("laser", {"sums": after})
        results = next(path.glob("results_*"))
        results.write_text(results.read_text().replace('"chat_template_sha": null', '"chat_template_sha": "abc"'))
        assert "chat template differ: baseline none, this run abc" in recipe_cell(made.board()).notes[0]

    def test_no_samples(self, made: Any, kit: Any) -> None:
        before, after = kit.pair(50, 20, lost=2)
        made.run("baseline", {"sums": before})
        next(made.run("laser", {"sums": after}).glob("samples_*")).unlink()
        assert (
            "this run logged no samples, so documents cannot be paired: shown, gated only by"
            in recipe_cell(made.board()).notes[0]
        )

    def test_a_lone_run_without_samples_is_marked_too(self, made: Any, kit: Any) -> None:
        next(made.run("baseline", {"sums": kit.pair(50, 20)[0]}).glob("samples_*")).unlink()
        (cell,) = made.board()
        assert (cell.verdict, cell.notes) == (
            "baseline",
            ("no samples were logged: shown, gated only by `allow_unpaired: true`",),
        )

    def test_another_filter(self, made: Any, kit: Any) -> None:
        before, after = kit.pair(50, 20, lost=2)
        after.filter = "strict"
        assert "the baseline has no acc (filter strict)" in " ".join(judged(made, before, after).notes)

    def test_no_baseline(self, made: Any, kit: Any) -> None:
        made.run("laser", {"sums": kit.pair(9, 3)[1]})
        assert made.board()[0].notes == ("no baseline run of this model has this task",)

    def test_other_weights(self, made: Any, kit: Any) -> None:
        before, after = kit.pair(50, 20, lost=2)
        made.run("baseline", {"sums": before})
        made.run("laser", {"sums": after}, weights={"digest_before": "ff", "digest_after": "ee"})
        assert "other weights" in recipe_cell(made.board()).notes[0]

    @pytest.mark.parametrize("known_by", ["documents", "contents"])
    def test_chosen_on_the_documents_it_reports(self, made: Any, kit: Any, known_by: str) -> None:
        before, after = kit.pair(50, 20, lost=2)
        made.run("baseline", {"sums": before})
        used = [kit.sha(json.dumps({"question": "sums 7?"}, indent=2))]
        digests = content_digests(DocumentText((("Sums 7 ? With 0  examples", " yes"),), "yes"))
        hashes = {"documents": used} if known_by == "documents" else {"documents": ["0"], "contents": sorted(digests)}
        made.run(
            "laser",
            {"sums": after},
            calibration=[{"task": "sums", "split": "test", "samples": 1, "seed": 0, **hashes}],
        )
        cell = recipe_cell(made.board())
        assert (
            cell.verdict == "incomparable"
            and "calibration documents are among the documents scored" in cell.notes[0]
            and used[0][:12] in cell.notes[0]
        )


class TestBaseline:
    """Which run a cell is compared with."""

    @pytest.mark.slow
    def test_the_pinned_one(self, made: Any, kit: Any) -> None:
        first, after = kit.pair(50, 20, lost=2)
        made.run("baseline", {"sums": first}, spec_id="one")
        second = kit.Task({"acc": [0.0] * 50}, log_likelihoods=kit.likelihoods(50, 9))
        made.run(
            "baseline", {"sums": second}, spec_id="two", folder="second", started="2027-01-01T00:00:00Z", weights={}
        )
        made.run("laser", {"sums": after})
        database = made.root / "board.duckdb"
        ingest([made.root], database)
        with open_store(database, read_only=False) as store:
            assert recipe_cell(board(store)).baseline_score == 0.0  # the latest
            early = next(run for run in queries.runs(store) if run.spec_id == "one")
            queries.pin_baseline(store, early.run_id, "try")
            assert recipe_cell(board(store)).baseline_score == 0.4

    @pytest.mark.slow
    def test_one_of_the_same_settings_before_a_later_one(self, made: Any, kit: Any) -> None:
        before, after = kit.pair(50, 20, lost=2)
        made.run(
            "baseline",
            {"sums": kit.Task({"acc": [0.0] * 50})},
            settings_id="others",
            folder="late",
            spec_id="e",
            started="2027-01-01T00:00:00Z",
        )
        made.run("baseline", {"sums": before})
        made.run("laser", {"sums": after})
        assert recipe_cell(made.board()).baseline_score == 0.4

    def test_a_comparable_one_before_a_later_one(self, made: Any, kit: Any) -> None:
        before, after = kit.pair(50, 20, lost=2)
        shots = kit.Task({"acc": [0.0] * 50}, shots=5)
        made.run("baseline", {"sums": shots}, folder="late", spec_id="e", started="2027-01-01T00:00:00Z")
        made.run("baseline", {"sums": before})
        made.run("laser", {"sums": after})
        assert recipe_cell(made.board()).verdict != "incomparable"

    def test_plain_runs_stand_in(self, made: Any, kit: Any) -> None:
        before, after = kit.pair(400, 200, lost=60)
        made.plain({"sums": before})
        made.plain({"sums": after}, folder="second", config={"batch_size": 4})
        verdicts = sorted(cell.verdict for cell in made.board())
        assert verdicts in (["baseline", "worse"], ["baseline", "better"])

    @pytest.mark.slow
    def test_any_run_may_be_named(self, made: Any, kit: Any) -> None:
        before, after = kit.pair(400, 200, lost=60)
        made.run("baseline", {"sums": before})
        made.run("laser", {"sums": after})
        named = recipe_cell(made.board()).run_id
        assert recipe_cell(made.board(baseline_run=named[:10]), "baseline").verdict == "better"
        with pytest.raises(UnknownRun):
            made.board(baseline_run="zzz")

    def test_models_of_one_name_are_kept_apart(self, made: Any, kit: Any) -> None:
        before, after = kit.pair(50, 20, lost=2)
        made.run("baseline", {"sums": before})
        receipt = made.run("laser", {"sums": after}) / "receipt.json"
        receipt.write_text(receipt.read_text().replace(kit.sha("tiny"), "0123456789"))
        assert [cell.model for cell in made.board()] == ["tiny (01234567)", f"tiny ({kit.sha('tiny')[:8]})"]
