"""Results, samples and receipts changed at random, in every form: each run is taken or refused with a reason, and what
is taken says what the file says.

What makes a row right: every score and error that is stored is a number of the results file; no (task, metric, filter)
comes twice; every value of a document is a number of the samples file; there are as many sample rows as samples; where
only samples were found, the score is their mean; a board can be made of it.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leaderboard.board.board import board
from leaderboard.ingest import IngestReport, ingest
from leaderboard.metrics import GOLD_LOG_LIKELIHOOD
from leaderboard.readers.results import number
from leaderboard.store.database import Store
from leaderboard.terminal.table import render

FORMS: dict[str, dict[str, Any]] = {
    "0.2": {"results": {"piqa": {"acc": 0.25, "acc_stderr": 0.01, "acc_norm": 0.5}}, "versions": {"piqa": 0}},
    "0.3": {
        "results": {"piqa": {"acc": 0.25, "acc_stderr": 0.01}},
        "versions": {"piqa": 0},
        "config": {"model": "hf-causal", "model_args": "pretrained=a/b", "num_fewshot": 3},
    },
    "prompts": {
        "results": [
            {"task_name": "wic", "prompt_name": "7", "acc": 0.5, "acc_stderr": 0.02},
            {"task_name": "wic", "prompt_name": "x", "acc": 0.75},
        ]
    },
    "dates": {"results": {"piqa": {"2022-07-06-16-30-12": {"acc": 0.5}, "2022-07-07-16-30-12": {"acc": 0.625}}}},
    "0.4.0": {
        "results": {
            "g": {"acc,none": 0.3, "acc_stderr,none": "N/A", "alias": "g"},
            "piqa": {"acc,none": "0.125", "acc_stderr,none": 0.01, "alias": " - piqa"},
        },
        "configs": {"piqa": {"task": "piqa", "metric_list": [{"metric": "acc"}], "num_fewshot": 0}},
        "groups": {"g": {"alias": "g"}},
        "n-shot": {"piqa": 0},
        "config": {"model_args": {"pretrained": "a"}},
    },
}
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(
        [
            10**30,
            -(2**63),
            "N/A",
            " ",
            "0.5",
            "tensor(0.5)",
            "\x00\x1b[2J",
            "../../x",
            [],
            {},
            [[]],
            {"a": [None]},
            {"acc,none": 0.9},
            "\ud800",
        ]
    ),
)
FUZZ = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every value inside a JSON value."""
    yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(item, (*path, key))


def mutated(value: Any, data: st.DataObject) -> Any:
    """A copy with one value replaced, one key dropped, or one key renamed."""
    result = json.loads(json.dumps(value))
    path = data.draw(st.sampled_from(list(places(result))[1:] or [()]))
    if not path:
        return data.draw(VALUES)
    inner = result
    for key in path[:-1]:
        inner = inner[key]
    how = data.draw(st.sampled_from(["replace", "drop", "rename"]))
    old = inner[path[-1]]
    if how == "replace":
        inner[path[-1]] = data.draw(VALUES)
    else:
        del inner[path[-1]]
        if how == "rename" and isinstance(inner, dict):
            inner[data.draw(st.text(max_size=6))] = old
    return result


def numbers(value: Any) -> set[float]:
    """Every number inside a JSON value, also those written as text."""
    if isinstance(value, (dict, list)):
        return set().union(*(numbers(item) for item in (value.values() if isinstance(value, dict) else value)))
    found = number(value)
    return set() if found is None else {found}


def parsed(text: str) -> list[Any]:
    """The values of a JSON or JSON Lines file, as far as they can be read."""
    found = []
    for part in [text, *text.splitlines()]:
        try:
            found.append(json.loads(part))
        except (ValueError, RecursionError):
            continue
    return found


def check_rows(store: Store, files: list[Path]) -> None:
    """See the module's notes."""
    texts = [file.read_bytes().decode("utf-8-sig", "replace") for file in files]
    known = numbers([parsed(text) for text in texts])
    scores = store.rows(
        "SELECT run_id, task, metric, filter, score, stderr, settings = '{\"samples_only\":true}' AS means FROM scores"
        " JOIN runs USING (run_id)"
    )
    for row in scores:
        if row["means"] or row["metric"] == GOLD_LOG_LIKELIHOOD:  # computed, from values that are in the files
            (mean,) = store.rows(
                "SELECT avg(value) AS of_values FROM sample_scores WHERE run_id = ? AND task = ? AND metric = ? AND"
                " filter = ?",
                [row[name] for name in ("run_id", "task", "metric", "filter")],
            )
            assert row["score"] is None or math.isclose(row["score"], mean["of_values"], rel_tol=1e-9, abs_tol=1e-12), (
                row
            )
            continue
        assert {value for value in (row["score"], row["stderr"]) if value is not None} <= known, row
    assert len({(row["run_id"], row["task"], row["metric"], row["filter"]) for row in scores}) == len(scores)
    values = store.rows("SELECT value, weight FROM sample_scores WHERE value IS NOT NULL")
    assert {row["value"] for row in values} | {row["weight"] for row in values if row["weight"] is not None} <= known
    lines = sum(
        len([line for line in text.splitlines() if line.strip()])
        for file, text in zip(files, texts)
        if file.suffix == ".jsonl"
    )
    assert store.rows("SELECT count(*) AS n FROM samples")[0]["n"] <= lines
    orphans = (
        "SELECT count(*) AS n FROM sample_scores s WHERE NOT EXISTS (FROM samples p WHERE (p.run_id, p.task, p.filter,"
        " p.doc_key, p.occurrence) = (s.run_id, s.task, s.filter, s.doc_key, s.occurrence))"
    )
    assert store.rows(orphans)[0]["n"] == 0
    for row in store.rows(
        "SELECT documents, (SELECT count(DISTINCT (doc_key, occurrence)) FROM samples s WHERE s.run_id = t.run_id AND"
        " s.task = t.task) AS n FROM run_tasks t WHERE documents IS NOT NULL"
    ):
        assert row["documents"] == row["n"]
    assert all(math.isfinite(row["score"]) for row in scores if row["score"] is not None)


def check(root: Path, runs: int | None = None) -> IngestReport:
    """Everything under a folder is taken or refused with a reason, and every row is right."""
    report = ingest([root], None)
    assert report.store is not None
    try:
        for rejection in report.rejected:
            assert rejection.reason and "something unexpected" not in rejection.reason, rejection
        assert runs is None or len(report.added) + len(report.rejected) + len(report.duplicates) >= runs
        check_rows(
            report.store, [file for file in root.rglob("*") if file.suffix in (".json", ".jsonl") and file.is_file()]
        )
        assert "\x1b" not in render(board(report.store), width=80, color=False)
    finally:
        report.store.connection.close()
    return report


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@given(data=st.data())
@FUZZ
def test_old_and_new_forms(tmp_path: Path, form: str, data: st.DataObject) -> None:
    (tmp_path / "results.json").write_text(json.dumps(mutated(FORMS[form], data)))
    check(tmp_path, runs=1)


def fresh_file(made: Any, kit: Any, name: str) -> Path:
    """A file of the second of two runs, made anew."""
    shutil.rmtree(made.root, ignore_errors=True)
    before, after = kit.pair(4, 2, lost=1)
    made.run("baseline", {"sums": before})
    return next(made.run("laser", {"sums": after}).glob(f"{name}*"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["receipt", "results", "samples"])
@given(data=st.data())
@FUZZ
def test_run_folders_with_a_key_or_value_changed(made: Any, kit: Any, name: str, data: st.DataObject) -> None:
    file = fresh_file(made, kit, name)
    lines = file.read_text().splitlines()
    place = data.draw(st.integers(0, len(lines) - 1))
    lines[place] = json.dumps(mutated(json.loads(lines[place]), data))
    file.write_text("\n".join(lines))
    check(made.root, runs=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["receipt", "results", "samples"])
@given(data=st.data())
@FUZZ
def test_run_folders_with_bytes_changed(made: Any, kit: Any, name: str, data: st.DataObject) -> None:
    file = fresh_file(made, kit, name)
    content = file.read_bytes()
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.sampled_from([start, start + 1, start + 40, len(content)]))
    file.write_bytes(content[:start] + data.draw(st.binary(max_size=4)) + content[end:])
    check(made.root, runs=2)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_real_files_with_bytes_changed(shared: Path, tmp_path: Path, seed: int) -> None:
    folder = shared / "data" / "lm_eval_results"
    if not folder.is_dir():
        pytest.skip("no files from elsewhere")
    generator = random.Random(seed)
    for path in sorted(folder.glob("*.json*")):
        content = path.read_bytes()
        for k in range(4):
            start = generator.randrange(len(content))
            end = start + generator.choice([0, 1, 1, 1, 30, len(content)])
            target = tmp_path / f"{k}" / path.name
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(
                content[:start] + generator.choice([b"", b"9", b"-", b'"', b"\xff", b"null", b"{"]) + content[end:]
            )
    report = check(tmp_path, runs=4 * 61)
    assert len(report.added) > 20


@pytest.mark.slow
def test_odd_trees(made: Any, kit: Any, database: Path) -> None:
    root = made.root
    made.run("laser", {"sums": kit.pair(4, 2)[1]}, folder="good")
    good = root / "tiny" / "good"
    (root / "loop").symlink_to(root, target_is_directory=True)
    (root / "results_circle.json").symlink_to(root / "results_circle.json")
    (root / "results_gone.json").symlink_to(root / "nothing.json")
    (root / "results_folder.json").mkdir()
    for name in (b"line\nbreak", b"\xff\xfe not UTF-8", b"\x1b[2J", "\N{SNOWMAN}".encode()):
        folder = os.path.join(os.fsencode(root), name)
        os.mkdir(folder)
        for file in ("results_2026-01-02T03-04-05.678901.json",):
            Path(os.fsdecode(folder), file).write_text(json.dumps({"results": {f"t{len(name)}": {"acc,none": 0.5}}}))
    os.mkfifo(root / "results_pipe.json")
    report = ingest([root], database)
    assert (len(report.added), report.rejected) == (5, [])
    assert good.is_dir() and len(ingest([root], database).duplicates) == 5


@pytest.mark.slow
def test_what_may_not_be_read_is_told(made: Any, kit: Any, database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions do not bind the superuser, so the system's answer is stood in for."""
    made.run("laser", {"sums": kit.pair(4, 2)[1]}, folder="good")
    locked = made.plain({"sums": kit.pair(5, 2)[0]}, folder="locked")
    (made.root / "closed").mkdir()
    read, scan = Path.read_bytes, os.scandir

    def refuse(path: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", lambda path: refuse(path) if path == locked else read(path))
    monkeypatch.setattr(os, "scandir", lambda path: refuse(path) if str(path).endswith("closed") else scan(path))
    report = ingest([made.root], database)
    assert len(report.added) == 1
    assert sorted((rejection.path.name, "Permission denied" in rejection.reason) for rejection in report.rejected) == [
        ("closed", True),
        (locked.name, True),
    ]


@pytest.mark.slow
def test_a_huge_folder_of_other_things_is_quick_and_told(made: Any, kit: Any, database: Path) -> None:
    made.run("laser", {"sums": kit.pair(4, 2)[1]}, folder="good")
    other = made.root / "other"
    other.mkdir()
    for i in range(1500):
        (other / f"{i}.json").write_text('{"name": "something else", "values": [1, 2, 3]}')
        (other / f"{i}.jsonl").write_text('{"text": "a corpus"}\n' * 200)
    started = time.process_time()
    report = ingest([made.root], database)
    assert time.process_time() - started < 8
    assert (
        len(report.added) == 1
        and len(report.rejected) == 3000
        and all(rejection.reason for rejection in report.rejected)
    )
