"""Choices that live in the URL: every box writes to a query parameter of its name, and a link restores it.

Notable choice: a box that needs a value has no default of its own, because Streamlit leaves defaults out of the URL: a saved link would then turn to whichever
comes first by then. The value is chosen and written before the box is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import streamlit as st

from leaderboard.wording import plain


def one_of(place: Any, label: str, options: Sequence[str], key: str, *, first: str | None = None, words: Callable[[str], str] = plain) -> str:
    """A box with exactly one of `options` (not empty), at first `first` or the first of them. `words` is how an option is written; its name stands in the URL."""
    say_unknown(key, options)
    _keep(key, options, first if first in options else options[0])
    chosen: str | None = place.selectbox(label, options, index=None, key=key, bind="query-params", format_func=words)
    return chosen or options[0]


def any_of(place: Any, label: str, options: Sequence[str], key: str, *, placeholder: str, words: Callable[[str], str] = plain) -> list[str]:
    """A box with any number of `options`; none chosen means that there is no filter."""
    say_unknown(key, options)
    return list(place.multiselect(label, options, key=key, bind="query-params", placeholder=placeholder, format_func=words))


def _keep(key: str, options: Sequence[str], first: str) -> None:
    """Choose before the box is drawn, and put the choice into the URL."""
    if st.session_state.get(key) in options:
        return
    asked = st.query_params.get(key)
    value = asked if asked in options else first
    if key not in st.session_state:  # from its first drawing on, the box itself writes to the URL, and nobody else may
        st.query_params[key] = value
    st.session_state[key] = value


def say_unknown(name: str, known: Sequence[str]) -> None:
    """Say so where the URL names what is not there; Streamlit itself drops it without a word."""
    unknown = [value for value in st.query_params.get_all(name) if value not in known]
    if unknown:
        st.warning(f"The {name} filter of this link names nothing known here and is left out:", icon=":material/filter_alt_off:")
        st.text(plain(", ".join(unknown)))
