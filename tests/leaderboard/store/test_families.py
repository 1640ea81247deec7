"""What a model is called in lists, and which one a name in a link means."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from leaderboard.ingest import ingest
from leaderboard.store.database import open_store
from leaderboard.store.families import families, last_part, meant, told_apart
from leaderboard.store.naming import short_identity

MODELS = told_apart(
    [
        ("k1", "google/gemma-2b", "aaaa1111"),
        ("k2", "/data/runs/demo", "bbbb2222"),
        ("k3", "google/gemma-2b", "cccc3333"),
        ("k4", "/home/me/tuned", "dddd4444"),
        ("k5", "/mnt/other/tuned", "eeee5555"),
    ]
)


def test_names_are_short_and_no_two_alike() -> None:
    assert [model.shown for model in MODELS] == [
        "google/gemma-2b (aaaa1111)",
        "demo",
        "google/gemma-2b (cccc3333)",
        "/home/me/tuned",
        "/mnt/other/tuned",
    ]


@pytest.mark.parametrize(
    ("text", "key", "others"),
    [
        ("google/gemma-2b", "k1", ["k3"]),
        ("google/gemma-2b (cccc3333)", "k3", []),
        ("demo", "k2", []),
        ("demo (bbbb2222)", "k2", []),
        ("/data/runs/demo", "k2", []),
        ("/data/runs/demo (bbbb2222)", "k2", []),
        ("tuned", "k4", ["k5"]),
        ("k5", "k5", []),
        ("gemma", None, []),
        ("", None, []),
    ],
)
def test_a_name_means_the_newest_of_its_family(text: str, key: str | None, others: list[str]) -> None:
    found = meant(text, MODELS)
    assert (found.model and found.model.model_key) == key
    assert [other.model_key for other in found.others] == others


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("google/gemma-2b", "google/gemma-2b"),
        ("gpt2", "gpt2"),
        ("/a/b/c", "c"),
        ("/a/b/c/", "c"),
        ("./c", "c"),
        ("C:\\models\\c", "c"),
        ("/", "/"),
    ],
)
def test_the_last_part_is_of_paths_alone(name: str, part: str) -> None:
    assert last_part(name) == part


def test_an_identity_is_shortened_to_what_differs() -> None:
    assert short_identity("google/gemma-2b@0123456789ab") == "01234567"
    assert short_identity("sha256:fedcba9876543210") == short_identity("blake3:fedcba9876543210") == "fedcba98"


@pytest.mark.slow
def test_a_link_by_name_survives_a_second_identity(made: Any, kit: Any, tmp_path: Path) -> None:
    task = {"sums": kit.pair(40, 20)[0]}
    database = made.root / "leaderboard.duckdb"
    made.run("baseline", task, folder="old", started="2026-01-01T00:00:00Z")
    ingest([made.root], database)
    with open_store(database) as store:
        (alone,) = families(store)
    assert alone.shown == alone.name
    again = made.run("baseline", task, folder="new", spec_id="again", started="2026-02-01T00:00:00Z")
    receipt = json.loads((again / "receipt.json").read_text())
    receipt["model"]["identity"] = "sha256:" + "2" * 64
    (again / "receipt.json").write_text(json.dumps(receipt))
    ingest([made.root], database)
    with open_store(database) as store:
        both = families(store)
    assert len(both) == 2 and all(model.name == alone.name for model in both)
    found = meant(alone.shown, both)
    assert found.model == both[0] and found.others == [both[1]]
    assert {model.model_key for model in both} >= {alone.model_key}
