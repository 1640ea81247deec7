"""Lines of samples whose parts are known must say what the parser says of the whole line, or be left to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from leaderboard.errors import Unreadable
from leaderboard.readers.safe_json import canonical
from leaderboard.readers.samples import Samples
from leaderboard.readers.samples_fast_path import Known, _canonical_texts
from leaderboard.readers.samples_reader import SampleForm, SamplesReader

FORM = SampleForm("sums", frozenset({"acc", "f1"}), cluster_by="passage")
HASH = "5feceb66ffc86f38d952786c6d696c79c2dbc239dd4e91b46729d73a27fb57e9"
PIECES = [
    '"',
    "\\",
    "{",
    "}",
    "[",
    "]",
    ",",
    ", ",
    ": ",
    " ",
    "\n",
    "\x00",
    "\x7f",
    "é",
    "1e400",
    "NaN",
    "1.0",
    "null",
    '"resps": ',
    ', "resps": 1',
    ', "filtered_resps": [',
    ', "filter": "none"',
    ', "doc": {}',
    ', "acc": 0.0',
    ', "f1": [1, 2]',
    f', "target_hash": "{HASH}"',
    ', "target_hash": "',
    '"acc": NaN',
    "\\ud800",
    "\\u0000",
    "\\n",
    '\\"',
]


def line(i: int, **changes: Any) -> dict[str, Any]:
    """A sample in the order of lm-eval's keys."""
    responses = [[["-1.5", "False"]], [["-0.25", "True"]]]
    return {
        "doc_id": i,
        "doc": {"question": f"{i} + {i}?", "passage": i // 2},
        "target": "1",
        "arguments": {"gen_args_0": {"arg_0": f"Question: {i}", "arg_1": " yes"}},
        "resps": responses,
        "filtered_resps": [part[0] for part in responses],
        "filter": "none",
        "metrics": ["acc"],
        "doc_hash": HASH[:-1] + str(i),
        "prompt_hash": HASH,
        "target_hash": HASH,
        "acc": float(i % 2),
    } | changes


def text(*lines: dict[str, Any]) -> str:
    return "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in lines)


def outcome(reader: SamplesReader, path: Path) -> str:
    """What is read, or why it is not."""
    try:
        return repr(reader.read(path, FORM))
    except Unreadable as error:
        return str(error)


def by_parser(path: Path) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Known, "read", lambda self, lines: None)
        return outcome(SamplesReader(), path)


USUAL = text(*map(line, range(3)))


@pytest.mark.slow
@given(
    edits=st.lists(
        st.tuples(st.integers(0, len(USUAL) - 1), st.integers(0, 40), st.sampled_from(["", *PIECES])),
        min_size=1,
        max_size=3,
    )
)
@example(edits=[(USUAL.index(', "acc"'), 0, f', "target_hash": "{HASH}", "doc": {{}}')])
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_changed_lines_are_read_as_by_the_parser(tmp_path: Path, edits: list[tuple[int, int, str]]) -> None:
    reader, path = SamplesReader(), tmp_path / "samples_sums.jsonl"
    path.write_text(USUAL)
    reader.read(path, FORM)
    changed = USUAL
    for place, length, piece in edits:
        changed = changed[:place] + piece + changed[place + length :]
    path.write_text(changed)
    assert outcome(reader, path) == by_parser(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"resps": [['says "resps": , "filter": \n']]},
        {"resps": [[1.50, 10**30, True]]},
        {"resps": {"b": 1, "a": [None]}},
        {"doc": {"a": {"resps": 1, "filter": 2}}},
        {"filter": "strict"},
        {"acc": float("nan")},
        {"acc": [1, 2]},
        {"f1": [[0, 1], [1, 1]]},
        {"target": 'x, "resps": '},
        {"target_hash": "short"},
        {"filtered_resps": "], ["},
        {"resps": [["a], [b", "{}"]]},
        {"resps": [["é\x7f\u2028"]]},
        {"doc": "no object"},
    ],
)
def test_values_of_any_kind_are_read_as_by_the_parser(tmp_path: Path, changes: dict[str, Any]) -> None:
    path, reader = tmp_path / "samples_sums.jsonl", SamplesReader()
    path.write_text(text(line(0), line(1, **changes), line(2)))
    first = outcome(reader, path)
    assert first == outcome(reader, path) == by_parser(path)
    assert first.startswith("Samples(")


def test_what_lm_eval_writes_is_known_the_second_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, reader = tmp_path / "samples_sums.jsonl", SamplesReader()
    path.write_text(USUAL)
    before: Samples = reader.read(path, FORM)
    monkeypatch.setattr("leaderboard.readers.samples_fast_path._object", None)
    monkeypatch.setattr("leaderboard.readers.samples_reader.parse_line", None)
    again = reader.read(path, FORM)
    assert again == before and again.documents[0] is before.documents[0] and again.documents[0].cluster == "0"


def test_what_is_known_is_forgotten_when_it_takes_too_much_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, reader = tmp_path / "samples_sums.jsonl", SamplesReader()
    path.write_text(USUAL)
    monkeypatch.setattr("leaderboard.readers.samples_fast_path.KNOWN_BYTES", 3000)
    monkeypatch.setattr("leaderboard.readers.samples_reader.KNOWN_BYTES", 3000)
    assert outcome(reader, path) == outcome(reader, path) == by_parser(path)
    assert all(known.size <= 3000 for known in reader._known.values())


@given(
    st.lists(
        st.recursive(
            st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from([1.5, 10**30, None, True, "], ["]),
            lambda inner: st.lists(inner, max_size=3),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_texts_of_responses_are_canonical(values: list[Any]) -> None:
    assert _canonical_texts([json.dumps(value, ensure_ascii=False).encode() for value in values]) == [
        canonical(value) for value in values
    ]


@pytest.mark.parametrize(
    "texts",
    [
        [b""],
        [b'["a" "b"]'],
        [b'["a'],
        [b'["a', b'b"]'],
        [b"[[]"],
        [b'["a",]'],
        [b'"\xff"'],
        [b'"a\tb"'],
        [b'["a"]\x00'],
        [b"[]", b""],
    ],
)
def test_what_is_no_json_is_not_taken_for_it(texts: list[bytes]) -> None:
    with pytest.raises(ValueError):
        _canonical_texts(texts)
