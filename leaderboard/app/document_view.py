"""A flipped document: as a row of the list, and in full with prompt, right answer, both answers, the likelihoods of all
choices, and what changed in a generated text. Everything is shown as text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import streamlit as st

from leaderboard.app import answer_text, html_table, word_difference
from leaderboard.app.comparison import score_text
from leaderboard.app.flip_queries import CUT, Flip, OftenFlipped
from leaderboard.app.html_table import ColumnHead, Text
from leaderboard.board.cell import Cell
from leaderboard.terminal.format import counted, plain
from leaderboard.terminal.marks import MINUS, gain

RIGHT, WRONG = "\u2713 right", "\u2715 wrong"
TEXTS = ("Right answer", "Baseline", "With the recipe", "The other run", "This run")
_LINE = 200  # letters of a text in the list


class Sides(NamedTuple):
    """What is compared. pair: two runs named by a link, not a recipe and the board's baseline. often: (document, copy)
    -> how many recipes flip it. names: run -> recipe of those.
    """

    cell: Cell
    pair: bool
    often: Mapping[tuple[str, int], OftenFlipped]
    names: Mapping[str, str]

    @property
    def titles(self) -> tuple[str, str]:
        """Over what either run answered."""
        return ("The other run", "This run") if self.pair else ("Baseline", "With the recipe")

    def is_gain(self, flip: Flip) -> bool:
        """Whether the change is for the better."""
        return (flip.after > flip.before) == self.cell.higher_is_better

    def word(self, flip: Flip) -> str:
        """Whether the document was lost or gained."""
        return "gained" if self.is_gain(flip) else "lost"

    def others(self, flip: Flip) -> int | None:
        """How many other recipes flip it too."""
        if not self.names:
            return None
        found = self.often.get((flip.doc_key, flip.occurrence))
        own = self.cell.run_id in self.names and found is not None
        return 0 if found is None else found.lower + found.higher - own


class _RunAnswer(NamedTuple):
    """What one run answered: right or wrong (its score where it is neither), the answer in words, the right answer's
    log-likelihood and its margin.
    """

    state: str
    words: str
    gold: float | None
    margin: float | None

    @property
    def short(self) -> str:
        """`\u2713 right`, or with the sign alone before an answer in words."""
        sign = self.state.partition(" ")[0] if self.state in (RIGHT, WRONG) else f"{self.state}:"
        return f"{sign} {_without_place(self.words)}" if self.words else self.state


def _without_place(words: str) -> str:
    """`dog` for `choice 1: dog`."""
    return re.sub(r"^choice \d+: (?=.)", "", words)


def _answers(flip: Flip) -> tuple[_RunAnswer, _RunAnswer]:
    first, second = (
        _answered(flip, stored, score)
        for stored, score in ((flip.answer_before, flip.before), (flip.answer_after, flip.after))
    )
    return first, second


def _answered(flip: Flip, stored: str | None, score: float) -> _RunAnswer:
    answer = answer_text.read_answer(stored, flip.target, flip.document, flip.output_type, flip.doubled)
    state = RIGHT if score == 1 else WRONG if score == 0 else f"score {score_text(score)}"
    gold = answer_text.gold_log_likelihood(stored, flip.target, flip.output_type, flip.doubled)
    one_text = answer_text.scores_one_text(stored, flip.output_type)
    return _RunAnswer(state, "" if one_text else answer.words, gold, None if one_text else answer.margin)


def row(flip: Flip, sides: Sides) -> dict[str, Any]:
    """The document in the list; the same keys for every document."""
    before, after = _answers(flip)
    first, second = sides.titles
    return {
        "Document": flip.doc_id,
        "Change": sides.word(flip),
        "Prompt": _one_line(answer_text.question(flip.prompt or "")),
        "Right answer": _one_line(_without_place(answer_text.right_answer(flip.target, flip.document))),
        first: _one_line(before.short),
        second: _one_line(after.short),
        "Log-lik. before": before.gold,
        "Log-lik. after": after.gold,
        "Moved": None if before.gold is None or after.gold is None else after.gold - before.gold,
        "Margin before": before.margin,
        "Margin after": after.margin,
        "Other recipes": sides.others(flip),
        "Key": flip.doc_key[:12],
    }


def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How the columns of the list are drawn; those without any value are hidden."""
    config: dict[str, Any] = {
        name: st.column_config.NumberColumn(format=form, help=words)
        for name, form, words in (
            ("Log-lik. before", "%.2f", "Log-likelihood of the right answer, in nats, with the baseline"),
            ("Log-lik. after", "%.2f", "Log-likelihood of the right answer, in nats, with the recipe"),
            ("Moved", "%+.2f", "How far the right answer's log-likelihood moved; positive: likelier"),
            ("Margin before", "%+.2f", "Right answer's log-likelihood minus the best wrong one's, in nats"),
            ("Margin after", "%+.2f", "Right answer's log-likelihood minus the best wrong one's, in nats"),
            ("Other recipes", "%d", "How many other recipes of the model flip this document too"),
        )
    }
    config |= {"Prompt": st.column_config.TextColumn(width=300), "Key": None}
    config |= {name: st.column_config.TextColumn(width=150) for name in TEXTS}
    empty = [name for name in config if all(one.get(name) is None for one in rows)]
    return config | dict.fromkeys(empty)


def often_row(found: OftenFlipped, sides: Sides) -> dict[str, Any]:
    """A document among those that many recipes flip."""
    lost, gained = (found.lower, found.higher) if sides.cell.higher_is_better else (found.higher, found.lower)
    return {
        "Document": found.doc_id,
        "Prompt": _one_line(answer_text.question(found.prompt or "")),
        "Lost under": lost,
        "Gained under": gained,
        f"Of {counted(len(sides.names), 'recipe', 'recipes')}": lost + gained,
        "Baseline's score": score_text(found.before),
        "Key": found.doc_key[:12],
    }


def _one_line(text: str) -> str:
    line = " ".join(plain(text).split())
    return line if len(line) <= _LINE else f"{line[: _LINE - 3]}..."


def show(flip: Flip, sides: Sides) -> None:
    """The document in full."""
    st.subheader("This document", anchor=False)
    left, right = st.columns(2, gap="large")
    with left:
        _show_text("Prompt", flip.prompt)
        _show_text("Right answer", answer_text.right_answer(flip.target, flip.document))
    with right:
        _show_answers(flip, sides)


def _show_text(title: str, text: str | None) -> None:
    st.caption(title)
    shown = word_difference.visible(text or "not recorded")
    st.code(shown, language=None, wrap_lines=True, height=260 if len(shown) > 900 else "content")
    if shown.endswith(CUT):
        st.caption(f"Only the first {len(shown) - len(CUT):,} letters are shown.")


def _show_answers(flip: Flip, sides: Sides) -> None:
    both = _answers(flip)
    facts = [("Answer", [one.state for one in both])]
    if any(one.words and flip.output_type == "multiple_choice" for one in both):
        facts.append(("Chosen", [_one_line(one.words) for one in both]))
    for name, values in (
        ("Right answer's log-likelihood", [one.gold for one in both]),
        ("Margin over the best wrong one", [one.margin for one in both]),
    ):
        if any(value is not None for value in values):
            facts.append((name, [_nats(value) for value in values]))
    html_table.show(
        html_table.table(
            [ColumnHead(sides.word(flip).capitalize()), *(ColumnHead(title, numeric=True) for title in sides.titles)],
            [
                [Text(name), *(Text(text, kind=_state_kind(text) if name == "Answer" else "") for text in texts)]
                for name, texts in facts
            ],
            caption="What both runs answered",
            blocks=False,
        )
    )
    _show_choices(flip, sides)
    _show_generated(flip, both, sides)
    _show_remarks(flip, sides)


def _state_kind(text: str) -> str:
    return {RIGHT: "better", WRONG: "worse"}.get(text, "")


def _nats(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}".replace("-", MINUS)


def _show_choices(flip: Flip, sides: Sides) -> None:
    """All choices with both log-likelihoods, the right one and the chosen ones named."""
    before, after = (
        answer_text.likelihood_rows(stored, flip.target, flip.document, flip.doubled)
        for stored in (flip.answer_before, flip.answer_after)
    )
    if not before or len(before) != len(after) or flip.output_type != "multiple_choice":
        return
    best = [max(range(len(found)), key=lambda place: found[place][1]) for found in (before, after)]
    rows = []
    for place, ((text, old, right), (_, new, _)) in enumerate(zip(before, after)):
        marks = [title.lower() for title, top in zip(sides.titles, best) if top == place]
        said = ["right answer"] if right else []
        said += [f"chosen by {' and '.join(marks)}".replace("with the recipe", "the recipe")] if marks else []
        rows.append(
            [
                Text(_one_line(text), "; ".join(said), strong=right),
                Text(_nats(old), strong=best[0] == place),
                Text(_nats(new), strong=best[1] == place),
                Text(gain(new - old, minus=MINUS, digits=2)),
            ]
        )
    html_table.show(
        html_table.table(
            [
                ColumnHead("Log-likelihood of"),
                *(ColumnHead(t, numeric=True) for t in sides.titles),
                ColumnHead("Moved", numeric=True),
            ],
            rows,
            caption="Log-likelihoods of all choices",
            blocks=False,
        )
    )


def _show_generated(flip: Flip, both: Sequence[_RunAnswer], sides: Sides) -> None:
    """Both texts, and their difference word by word."""
    if flip.output_type == "multiple_choice" or not any(one.words for one in both):
        return
    for title, one in zip(sides.titles, both):
        _show_text(title, one.words or "nothing")
    before, after = (one.words for one in both)
    if word_difference.same(before, after):
        st.text("Both texts are the same, but for spaces.")
        return
    st.caption("What changed: struck through is left out, underlined is new")
    html_table.show(word_difference.difference(before, after))


def _show_remarks(flip: Flip, sides: Sides) -> None:
    said = []
    others, total = sides.others(flip), len(sides.names) - (sides.cell.run_id in sides.names)
    if others is not None and total > 0:
        said.append(f"{others:,} of {counted(total, 'other recipe', 'other recipes')} flip it as well.")
    if answer_text.scores_one_text(flip.answer_after, flip.output_type):
        said.append("The task scores one text, so no other answer was recorded.")
    if said:
        st.text(" ".join(said))
