"""Choices that live in the URL: every box writes to a query parameter of its name, and a link restores it.

Notable choice: a box that needs a value has no default of its own, because Streamlit leaves defaults out of the URL: a
saved link would then turn to whichever comes first by then. The value is chosen and written before the box is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import streamlit as st

from leaderboard.terminal.format import plain


def one_of(
    place: Any,
    label: str,
    options: Sequence[str],
    key: str,
    *,
    first: str | None = None,
    words: Callable[[str], str] = plain,
) -> str:
    """A box with exactly one of `options` (not empty), at first `first` or the first of them. `words` is how an option
    is written, in the box and in the URL.
    """
    written = _written(options, words)
    names = list(written)
    say_unknown(key, names)
    _keep(key, names, next((name for name, option in written.items() if option == first), names[0]))
    return written[place.selectbox(label, names, index=None, key=key, bind="query-params") or names[0]]


def any_of(
    place: Any, label: str, options: Sequence[str], key: str, *, placeholder: str, words: Callable[[str], str] = plain
) -> list[str]:
    """A box with any number of `options`; none chosen means that there is no filter."""
    written = _written(options, words)
    say_unknown(key, list(written))
    return [
        written[name]
        for name in place.multiselect(label, list(written), key=key, bind="query-params", placeholder=placeholder)
    ]


def by_id(place: Any, label: str, labels: Mapping[str, str], key: str, *, first: str | None = None) -> str | None:
    """A box of things with long ids and short labels; the id is what stands in the URL, and there it may be shortened.
    None while nothing is chosen.
    """
    asked = st.query_params.get(key) or first
    ids = list(labels)
    at = next((i for i, name in enumerate(ids) if asked and name.startswith(asked)), None)
    if asked and at is None:
        st.warning(f"The {key} of this link is not known here:", icon=":material/filter_alt_off:")
        st.text(plain(asked))
    chosen: str | None = place.selectbox(
        label, ids, index=at, key=f"{key} {asked}", format_func=labels.__getitem__, placeholder="Choose"
    )
    if chosen and chosen != st.query_params.get(key):
        st.query_params[key] = chosen
    return chosen


def _written(options: Sequence[str], words: Callable[[str], str]) -> dict[str, str]:
    """Each option under the words for it; a number tells apart those that are written alike."""
    found: dict[str, str] = {}
    for option in options:
        text, count = words(option), 2
        while text in found:
            text, count = f"{words(option)} ({count})", count + 1
        found[text] = option
    return found


def _keep(key: str, options: Sequence[str], first: str) -> None:
    """Choose before the box is drawn, and put the choice into the URL."""
    if st.session_state.get(key) in options:
        return
    asked = st.query_params.get(key)
    value = asked if asked is not None and asked in options else first
    if key not in st.session_state:  # from its first drawing on, the box itself writes to the URL, and nobody else may
        st.query_params[key] = value
    st.session_state[key] = value


def say_unknown(name: str, known: Sequence[str]) -> None:
    """Say so where the URL names what is not there; Streamlit itself drops it without a word."""
    unknown = [value for value in st.query_params.get_all(name) if value not in known]
    if unknown:
        st.warning(
            f"The {name} filter of this link names nothing known here and is left out:",
            icon=":material/filter_alt_off:",
        )
        st.text(plain(", ".join(unknown)))
