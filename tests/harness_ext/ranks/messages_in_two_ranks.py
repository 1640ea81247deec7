"""What each of two ranks says and hears: run by a test in two processes; rank 0 prints."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from harness_ext.errors import VariantFailed
from harness_ext.ranks import group as groups
from harness_ext.ranks.group import Group, OutOfStep
from harness_ext.ranks.shared_resume import SharedResumeState
from harness_ext.storage.resume import ResumeState

NUMBERS = [0.1, 1 / 3, -1e-310, 1.7976931348623157e308, float("inf"), float("-inf")]
TENSORS = {
    "half": torch.arange(6).reshape(2, 3).bfloat16() / 3,
    "single": torch.tensor([1 / 3, float("nan")]),
    "none": torch.zeros(0, dtype=torch.int64),
}


def same(one: dict[str, torch.Tensor] | None, other: dict[str, torch.Tensor]) -> bool:
    assert one is not None
    return one.keys() == other.keys() and all(
        one[name].dtype == value.dtype and torch.equal(one[name].nan_to_num(7), value.nan_to_num(7))
        for name, value in other.items()
    )


def messages(group: Group) -> None:
    assert (group.ranks, group.first) == (2, group.rank == 0)
    told = group.exchange("who", {"rank": group.rank, "text": "ü\ud800" * (1 + 5000 * group.rank), "numbers": NUMBERS})
    assert [one["rank"] for one in told] == [0, 1] and told[1]["text"] == "ü\ud800" * 5001
    assert all(one["numbers"] == NUMBERS for one in told)
    assert group.exchange("nothing") == [None, None]
    assert group.from_first("rank", lambda: group.rank) == 0
    assert group.in_shares("squares", range(5), lambda number: [number**2, group.rank]) == [
        [number**2, number % 2] for number in range(5)
    ]
    assert group.in_shares("none", [], str) == []
    assert same(group.tensors_from_first("tensors", lambda: TENSORS), TENSORS)
    assert group.tensors_from_first("no tensors", lambda: None) is None


def resume(group: Group, folder: Path) -> None:
    """A state that only the first rank can see."""
    state = SharedResumeState(ResumeState(folder / str(group.rank)), group).part("step-0")
    assert state.rows("trials") == [] and state.tensors("all") is None
    state.append("trials", {"number": group.rank, "loss": 1 / 3})
    state.keep("all", TENSORS)
    assert state.rows("trials") == [{"number": 0, "loss": 1 / 3}] and same(state.tensors("all"), TENSORS)
    state.remove()
    assert state.rows("trials") == []
    assert [path.name for path in folder.iterdir()] == ["0"]


def failures(group: Group) -> None:
    """A failure of one is one of all, wherever the others are, and all go on from it."""
    for failing in ({1}, {0}, {0, 1}):
        for where in ("before", "at the end"):
            try:
                with group.failing_together("variant"):
                    if group.rank in failing:
                        raise VariantFailed("kind", f"in rank {group.rank}", "a matrix")
                    if where == "before":
                        group.exchange("answers", [1, 2])
            except VariantFailed as error:
                told = (error.kind, error.reason, error.where)
                assert told == ("kind", f"in rank {min(failing)}", "a matrix"), told
            else:
                raise AssertionError("nobody was told")
            assert group.exchange("next", group.rank) == [0, 1]
    with group.failing_together("variant"):
        group.exchange("answers")
    try:
        group.exchange(f"point {group.rank}")
    except OutOfStep as error:
        assert "point 0, point 1" in str(error)
    else:
        raise AssertionError("nobody noticed")


def main() -> None:
    group = groups.join()
    assert groups.current() is group
    messages(group)
    resume(group, Path(sys.argv[1]))
    failures(group)
    groups.leave()
    assert groups.current().ranks == 1
    print("all is well")


main()
