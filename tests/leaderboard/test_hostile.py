"""Files that anybody may have written: whatever they hold, ingest either takes the run or gives a reason."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leaderboard.board import board
from leaderboard.ingest import ingest
from leaderboard.table import render

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**30, -(2**63), 1e308, float("nan"), float("inf"), -0.0, "", "N/A", "\x00\x1b[2J", "../../x", [], {}, [[]], {"a": [None]}]),
    st.text(max_size=5),
    st.lists(st.integers(), max_size=3),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path to every value inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in items for place in places(item, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy with the value at a path replaced."""
    if not path:
        return new
    result = copy.deepcopy(value)
    inner = result
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return result


@pytest.mark.parametrize("name", ["receipt", "results", "samples"])
@given(data=st.data())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_one_wrong_value_anywhere_is_taken_or_refused_with_a_reason(made: Any, kit: Any, name: str, data: st.DataObject) -> None:
    shutil.rmtree(made.root, ignore_errors=True)
    before, after = kit.pair(4, 2, lost=1)
    made.run("baseline", {"sums": before})
    path: Path = made.run("laser", {"sums": after})
    file = next(path.glob(f"{name}*"))
    lines = file.read_text().splitlines() if name == "samples" else [file.read_text()]
    value = json.loads(lines[0])
    changed = replaced(value, data.draw(st.sampled_from(places(value))), data.draw(VALUES))
    file.write_text("\n".join([json.dumps(changed), *lines[1:]]))
    report = ingest([made.root], None)
    assert report.store is not None
    try:
        assert len(report.added) + len(report.rejected) + len(report.duplicates) == 2
        assert all(rejection.reason and "something unexpected" not in rejection.reason for rejection in report.rejected)
        assert "\x1b" not in render(board(report.store), width=80, color=False)
    finally:
        report.store.connection.close()
