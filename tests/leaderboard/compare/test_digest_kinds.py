"""Runs of earlier versions name their weights by SHA-256, runs made now by BLAKE3: what is kept is compared with what
is new as before, and neither taken for other weights nor for the same.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from leaderboard.board.history import history
from leaderboard.compare.run_diff import compare_facts
from leaderboard.ingest import ingest
from leaderboard.readers.weights_digest import began_alike, kind_of, short_digest, weights_differ
from leaderboard.store import noise_floor, queries
from leaderboard.store.database import open_store
from tests.leaderboard.board.judging import recipe_cell
from tests.leaderboard.gate.gating import gated


def named(kit: Any, before: str, after: str) -> dict[str, str]:
    """The weights of a receipt of now."""
    return {key: f"blake3:{kit.sha(text)}" for key, text in (("digest_before", before), ("digest_after", after))} | {
        "digest": "blake3"
    }


def now(kit: Any, before: str = "now", after: str = "edited now") -> dict[str, Any]:
    """What a run of now changes in a receipt."""
    return {"weights": named(kit, before, after), "variant_id": after, "started": "2026-03-01T00:00:00Z"}


def test_two_digests_of_different_kinds_say_nothing_of_each_other() -> None:
    assert weights_differ("aa", "ab") is True and weights_differ("blake3:aa", "blake3:aa") is False
    assert weights_differ("aa", "blake3:aa") is None and weights_differ("aa", "blake3:bb") is None
    assert weights_differ("sha256:aa", "sha256:ab") is True and weights_differ(None, "aa") is None
    assert (kind_of("aa"), kind_of("blake3:aa")) == ("sha256", "blake3")
    assert began_alike("aa", "blake3:bb", "a checkpoint", "a checkpoint") is True
    assert began_alike("aa", "blake3:bb", "a checkpoint", "another") is False
    assert began_alike("aa", "blake3:bb", None, None) is None and began_alike("aa", None, "one", "one") is None
    assert began_alike("aa", "ab", "a checkpoint", "a checkpoint") is False
    assert (short_digest("0123456789abcdef"), short_digest("blake3:0123456789abcdef")) == (
        "0123456789ab",
        "blake3:0123456789ab",
    )


def test_an_old_baseline_is_the_baseline_of_a_new_run(made: Any, kit: Any) -> None:
    before, after = kit.pair(400, 300, lost=60)
    made.run("baseline", {"sums": before})
    made.run("laser", {"sums": after}, **now(kit))
    cell = recipe_cell(made.board())
    assert cell.verdict == "worse" and cell.baseline_score == 0.75


def test_a_new_baseline_is_the_baseline_of_an_old_run(made: Any, kit: Any) -> None:
    before, after = kit.pair(400, 300, lost=60)
    made.run("baseline", {"sums": before}, **now(kit, "now", "now"))
    made.run("laser", {"sums": after})
    assert recipe_cell(made.board()).verdict == "worse"


@pytest.mark.parametrize("where", ["model", "weights"])
def test_another_checkpoint_under_the_same_name_is_another_model(made: Any, kit: Any, where: str) -> None:
    """By the identity where the kinds differ, by the digests where they do not."""
    before, after = kit.pair(400, 300, lost=60)
    folder = made.run("baseline", {"sums": before}, **({} if where == "model" else now(kit, "else", "else")))
    receipt = json.loads((folder / "receipt.json").read_text())
    if where == "model":
        receipt["model"]["identity"] = "another"
        (folder / "receipt.json").write_text(json.dumps(receipt))
    made.run("laser", {"sums": after}, **now(kit))
    assert recipe_cell(made.board()).verdict == "incomparable" or recipe_cell(made.board()).baseline_score is None


def test_of_two_baselines_that_of_the_runs_own_kind_comes_first(made: Any, kit: Any) -> None:
    before, after = kit.pair(400, 300, lost=60)
    other, _ = kit.pair(400, 200)
    other.log_likelihoods = kit.likelihoods(400, 5)
    made.run("baseline", {"sums": before}, **now(kit, "now", "now"))
    made.run("baseline", {"sums": other}, folder="old", spec_id="old", started="2026-04-01T00:00:00Z")
    made.run("laser", {"sums": after}, **now(kit))
    assert recipe_cell(made.board()).baseline_score == 0.75


@pytest.mark.slow
def test_the_gate_finds_an_old_unedited_run_beside_a_new_one(made: Any, kit: Any) -> None:
    before, after = kit.pair(400, 300, lost=60)
    made.run("baseline", {"sums": before})
    run = made.run("laser", {"sums": after}, **now(kit))
    report = gated(run)
    assert "found beside it" in report.baselines[0].how and report.verdict == "FAIL"


@pytest.mark.parametrize("change", [{"identity": "another"}, {"identity": None}, {"dtype": "bfloat16"}])
def test_but_none_of_another_checkpoint_or_dtype(made: Any, kit: Any, change: dict[str, Any]) -> None:
    before, after = kit.pair(400, 300, lost=60)
    folder = made.run("baseline", {"sums": before})
    receipt = json.loads((folder / "receipt.json").read_text())
    receipt["model"] |= change
    (folder / "receipt.json").write_text(json.dumps(receipt))
    with pytest.raises(Exception, match="baseline|unedited"):
        gated(made.run("laser", {"sums": after}, **now(kit)))


@pytest.mark.slow
def test_the_same_answers_of_one_model_by_two_versions_are_no_shared_cache(made: Any, kit: Any, database: Path) -> None:
    """But those of an edited model are, also where the baseline was made by an earlier version."""
    task, _ = kit.pair(10, 5)
    made.run("baseline", {"sums": task}, config={"use_cache": "answers"})
    made.run(
        "baseline",
        {"sums": task},
        folder="again",
        spec_id="b",
        config={"use_cache": "answers"},
        **now(kit, "now", "now"),
    )
    assert not ingest([made.root], database).rejected
    made.run("laser", {"sums": task}, config={"use_cache": "answers"}, **now(kit))
    (rejected,) = ingest([made.root], database).rejected
    assert "equals to the bit" in rejected.reason and "--use_cache" in rejected.reason


def test_an_old_and_a_new_unedited_run_measure_the_noise_floor(made: Any, kit: Any, database: Path) -> None:
    before, after = kit.pair(100, 50, lost=3, gained=1)
    made.run("baseline", {"sums": before})
    made.run("baseline", {"sums": after}, folder="b", spec_id="b", config={"batch_size": 16}, **now(kit, "now", "now"))
    ingest([made.root], database)
    with open_store(database) as store:
        (floor,) = [floor for floors in noise_floor.floors(store).values() for floor in floors]
        assert floor.flips == 4


@pytest.mark.slow
def test_what_changed_leaves_out_what_digests_of_two_kinds_do_not_say(made: Any, kit: Any, database: Path) -> None:
    before, after = kit.pair(400, 300, lost=60)
    made.run("baseline", {"sums": before})
    first = made.run("laser", {"sums": after})
    again = kit.Task(after.values, log_likelihoods=kit.likelihoods(400, 9))
    second = made.run("laser", {"sums": again}, folder="two", spec_id="two", **now(kit))
    assert not ingest([made.root], database).rejected
    with open_store(database) as store:
        points, _ = history(store, "tiny", "laser", "sums")
        assert not {"weights digest", "unedited weights"} & {change.what for change in points[-1].changes}
        rows = {row.path: row.run_id for row in queries.runs(store)}
        one, two = (queries.run_details(store, rows[str(place)]) for place in (first, second))
    facts = {fact.name: fact for fact in compare_facts(one, two)}
    for name in ("weights digest", "unedited weights"):
        assert not facts[name].comparable and not facts[name].differs and facts[name].first != facts[name].second
    assert facts["recipe"].comparable


@pytest.mark.slow
def test_a_drop_between_two_versions_neither_clears_nor_accuses_the_recipe(made: Any, kit: Any, database: Path) -> None:
    from leaderboard.store.pins import choose

    start, blessed = kit.pair(400, 300)
    worse = kit.pair(400, 300, lost=60)[1]
    worse.log_likelihoods = kit.likelihoods(400, 3)
    made.run("baseline", {"sums": start})
    first = made.run("laser", {"sums": blessed})
    second = made.run("laser", {"sums": worse}, folder="two", spec_id="two", **now(kit))
    assert not ingest([made.root], database).rejected
    choose(database, str(first), "x")
    text = repr(gated(second, database=database))
    assert "digests of two kinds" in text and "the same to the bit" not in text and "the edit did this" not in text
