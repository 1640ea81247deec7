"""What `lm_eval claims` lists: which claims are wanted, and how they are written."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leaderboard.board.reported import Headline, Reported

NO_CLAIM = (
    "No claim is like that. `lm_eval claims` lists all; --paper looks into the names of papers and methods, --model and"
    " --task into theirs."
)
_FIELDS = (
    *("paper", "source", "where", "sure", "method", "model", "task", "metric"),
    *("before", "after", "kept", "setting", "chosen_on"),
)


def chosen(wanted: Mapping[str, str]) -> tuple[list[Reported], list[Headline]]:
    """The claims with these texts in the names of their paper, model and task, empty ones for all. A headline has no
    model and no task.
    """
    from leaderboard.board.reported import headlines, published

    texts = {name: _bare(text) for name, text in wanted.items()}
    entries = [
        entry
        for entry in published()
        if all(any(texts[what] in _bare(name) for name in names) for what, names in _names(entry).items())
    ]
    others = [] if texts["model"] or texts["task"] else headlines()
    return entries, [one for one in others if any(texts["paper"] in _bare(name) for name in (one.paper, one.source))]


def why_none(wanted: Mapping[str, str]) -> str:
    """That no claim is like that, with names that are near to a text which none has."""
    from leaderboard.board.reported import headlines, published

    known: dict[str, dict[str, str]] = {"paper": {}, "model": {}, "task": {}}
    named = list(map(_names, published())) + [{"paper": (one.paper,)} for one in headlines()]
    for of_one in named:
        for what, names in of_one.items():
            parts = [part for name in names for part in re.findall(r"[\w.-]+", name)]
            known[what] |= {_bare(name): name for name in (*parts, *names)}
    near = [
        f"--{what} {known[what][name]!r}"
        for what, text in wanted.items()
        if not any(_bare(text) in name for name in known[what])
        for name in get_close_matches(_bare(text), known[what], n=2)
    ]
    return NO_CLAIM + (f" Did you mean {' or '.join(near)}?" if near else "")


def _names(entry: Reported) -> dict[str, tuple[str, ...]]:
    paper = entry.identity.partition("/")[0]
    return {
        "paper": (paper, entry.paper, entry.source, entry.method),
        "model": (entry.model, *entry.hub_names),
        "task": (entry.task,),
    }


def _bare(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter not in " -_")


def rows_of(
    entries: Iterable[Reported], others: Iterable[Headline], states: Mapping[Reported, str], *, as_text: bool = False
) -> list[dict[str, Any]]:
    """A row a pair of scores, then one a claim without a cell, as a sentence. as_text: scores as they are printed."""
    from leaderboard.board.reported import as_printed
    from leaderboard.terminal.output import OurText

    rows = [_row(entry, states.get(entry, "")) for entry in entries]
    if as_text:
        rows = [row | {name: OurText(as_printed(row[name])) for name in ("before", "after")} for row in rows]
    return rows + [_row(one, None) for one in others]


def _row(one: Reported | Headline, state: str | None) -> dict[str, Any]:
    """What it says, and null where a claim without a cell says nothing."""
    return {
        "claim": getattr(one, "identity", None),
        **{name: getattr(one, name, None) for name in _FIELDS},
        "recipe": getattr(one, "run", None),
        "state": state,
        "sentence": getattr(one, "claim", ""),
    }


def listing(
    entries: Iterable[Reported], headlines: Iterable[Headline], states: Mapping[Reported, str], width: int
) -> Iterator[str]:
    """The claims by paper, a line each: what it is called, its pairs, and what was measured of it, beneath the name
    where the width has no room beside it. How sure a reading is and the setting stand above the rows that have them in
    common.
    """
    from leaderboard.board.reported import SURE

    for paper, grouped in groupby(entries, lambda entry: (entry.paper, entry.source)):
        of_paper = list(grouped)
        yield from _wrapped(f"{paper[0]} ({paper[1]}){_of_parameters(of_paper)}", width, "")
        for (sure, setting), alike in groupby(of_paper, lambda entry: (entry.sure, entry.setting)):
            yield from _wrapped(SURE[sure] + (f"; {setting}" if setting else ""), width, "  ")
            for _, of_row in groupby(alike, lambda entry: entry.identity):
                rows = list(of_row)
                pairs = "  ".join(f"{row.metric} {row.change()}" for row in rows)
                found = next((states[row] for row in rows if row in states), "")
                said = pairs + _share_kept(rows[0]) + (f"  here: {found}" if found else "")
                line = f"    {rows[0].identity:{max(1, min(60, width - 44))}} {said}"
                yield from (
                    [line] if len(line) <= width else [f"    {rows[0].identity}", *_wrapped(said, width, " " * 6)]
                )
        yield ""
    for one in headlines:
        yield from _wrapped(one.sentence(), width, "")


def _of_parameters(rows: Sequence[Reported]) -> str:
    """What the shares of a paper's lines are of, as one of them is written."""
    share = next((f"{100 * row.kept:g}" for row in rows if row.kept is not None), None)
    return f"; shares (/{share}, at {share} %) are of the parameters" if share else ""


def _share_kept(row: Reported) -> str:
    """The share of the parameters that a claim keeps, where its name does not end in it."""
    if row.kept is None or row.identity.endswith(f"/{100 * row.kept:g}"):
        return ""
    return f" at {100 * row.kept:g} %"


def _wrapped(text: str, width: int, indent: str) -> list[str]:
    lines = textwrap.TextWrapper(width, indent, f"{indent}  ", break_on_hyphens=False, break_long_words=False)
    return lines.wrap(text)
