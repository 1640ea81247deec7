"""Records of edits: which of them stand at the end."""

from __future__ import annotations

from harness_ext.editing.records import standing


def test_standing_edits_are_those_that_nothing_later_overwrote() -> None:
    def left(*edits: tuple[str, str | None]) -> list[tuple[str, str | None]]:
        return standing(list(edits), lambda edit: edit)

    assert left(("w", None), ("w", "q_proj head 0"), ("v", None)) == [("w", "q_proj head 0"), ("v", None)]
    assert left(("w", "q_proj head 0"), ("w", "q_proj head 1"), ("w", "k_proj"), ("w", "q_proj")) == [
        ("w", "k_proj"),
        ("w", "q_proj"),
    ]
    assert left(("w", "q_proj"), ("w", "q_proj"), ("w", None)) == [("w", None)]
    assert left(("w", "up_proj expert 1"), ("w", "up_proj expert 11"), ("w", "up_proj expert 1")) == [
        ("w", "up_proj expert 11"),
        ("w", "up_proj expert 1"),
    ]
