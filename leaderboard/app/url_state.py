"""Choices that live in the URL: the one truth of every box, so that a copied link shows what its sender saw.

Notable choices:
- Model, task and recipe travel: a click in the menu clears the URL, and `carry`, which the entry script calls before
  any page is drawn, writes back what was chosen. Streamlit's own binding of boxes forgets it at that click.
- A default stands in the URL too, so that a link goes on meaning what it showed. A default does not travel, except the
  model: otherwise a task that nobody chose would rank the board.
- What a link names and nobody knows is said, and left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import streamlit as st

from leaderboard.terminal.format import plain

MODEL, TASK, RECIPE = "model", "task", "recipe"
CARRIED = (MODEL, TASK, RECIPE)
_MEMORY = "choices that travel"
_CHOSEN = "choices of this session"


def carry() -> None:
    """Bring what was chosen to the page that is shown now, and remember what its link says."""
    memory = _memory()
    for key in CARRIED:
        found = st.query_params.get_all(key)
        if found:
            if key == MODEL or found != _chosen_here().get(key):  # else a default, which stays
                memory[key] = found
        elif memory.get(key):
            st.query_params[key] = memory[key]


def put(key: str, values: Sequence[str], *, travels: bool = True) -> None:
    """Write a choice into the URL. travels: to other pages too, for the keys that do."""
    if st.query_params.get_all(key) != list(values):
        if values:
            st.query_params[key] = list(values)
        else:
            st.query_params.pop(key, None)
    _chosen_here()[key] = list(values)
    if key in CARRIED and travels:
        _memory()[key] = list(values)


def clear(keys: Sequence[str]) -> None:
    """Take choices out of the URL, and out of what travels."""
    for key in keys:
        put(key, [])


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
    asked = st.query_params.get(key)
    if asked not in written:
        say_unknown(key, names)
        asked = next((name for name, option in written.items() if option == first), names[0])
        put(key, [asked], travels=key == MODEL)
    st.session_state[key] = asked
    place.selectbox(label, names, key=key, on_change=_chosen, args=(key,))
    return written[str(asked)]


def maybe_one_of(
    place: Any, label: str, options: Sequence[str], key: str, *, nothing: str, words: Callable[[str], str] = plain
) -> str | None:
    """A box with one of `options`, or `nothing`, which is how it stands at first and in no URL."""
    written = _written(options, words)
    asked = st.query_params.get(key)
    if asked not in written:
        say_unknown(key, list(written))
        if asked is not None:
            st.query_params.pop(key, None)
        asked = nothing
    st.session_state[key] = asked
    place.selectbox(label, [nothing, *written], key=key, on_change=_chosen, args=(key, nothing))
    return written.get(str(asked))


def follow(place: Any, label: str, options: Sequence[str], key: str, current: str) -> None:
    """A box that shows `current`, which the URL says in other words, and writes to the URL once another is chosen."""
    names = [plain(option) for option in options]
    if key not in st.query_params:
        put(key, [plain(current)])
    box = f"{key} followed"
    st.session_state[box] = plain(current)
    place.selectbox(label, names, key=box, on_change=_chosen_id, args=(key, box))


def any_of(
    place: Any, label: str, options: Sequence[str], key: str, *, placeholder: str, words: Callable[[str], str] = plain
) -> list[str]:
    """A box with any number of `options`; none chosen means that there is no filter."""
    written = _written(options, words)
    say_unknown(key, list(written))
    asked = [name for name in st.query_params.get_all(key) if name in written]
    if asked != st.query_params.get_all(key):
        put(key, asked, travels=False)
    st.session_state[key] = asked
    place.multiselect(label, list(written), key=key, placeholder=placeholder, on_change=_chosen, args=(key,))
    return [written[name] for name in asked]


def switch(place: Any, label: str, key: str, *, on: bool = False, help_text: str | None = None) -> bool:
    """A switch that stands in the URL once it is not as it was at first."""
    asked = st.query_params.get(key)
    value = on if asked is None else asked.lower() in ("true", "1", "yes", "on")
    st.session_state[key] = value
    place.toggle(label, key=key, help=help_text, on_change=_switched, args=(key, on))
    return value


def tabs(labels: Sequence[str], key: str) -> Sequence[Any]:
    """Tabs of which the open one stands in the URL, unless it is the first; `open` of each says whether to fill it."""
    asked = st.query_params.get(key)
    st.session_state[key] = asked if asked in labels else labels[0]
    return st.tabs(labels, key=key, on_change=_chosen, args=(key, labels[0]))


def text(place: Any, label: str, key: str, *, placeholder: str = "") -> str:
    """A line of text to search for, at first empty."""
    value = st.query_params.get(key, "")
    st.session_state[key] = value
    place.text_input(
        label, key=key, placeholder=placeholder, icon=":material/search:", label_visibility="collapsed",
        on_change=_chosen, args=(key, ""),
    )  # fmt: skip
    return value


def by_id(place: Any, label: str, labels: Mapping[str, str], key: str, *, first: str | None = None) -> str | None:
    """A box of things with long ids and short labels; the id is what stands in the URL, and there it may be shortened.
    None while nothing is chosen.
    """
    asked = st.query_params.get(key) or first
    ids = list(labels)
    at = next((name for name in ids if asked and name.startswith(asked)), None)
    if asked and at is None:
        st.warning(f"The {key} of this link is not known here:", icon=":material/filter_alt_off:")
        st.text(plain(asked))
    if at is not None and at != st.query_params.get(key):
        put(key, [at], travels=False)
    box = f"{key} by id"
    st.session_state[box] = at
    place.selectbox(
        label, ids, key=box, format_func=labels.__getitem__, placeholder="Choose", index=None,
        on_change=_chosen_id, args=(key, box),
    )  # fmt: skip
    return at


def say_unknown(name: str, known: Sequence[str]) -> None:
    """Say so where a link names what is not there. What was chosen on another page and is not here needs no word."""
    asked = st.query_params.get_all(name)
    unknown = [value for value in asked if value not in known]
    if unknown and asked != _chosen_here().get(name):
        _memory().pop(name, None)
        st.warning(
            f"The {name} filter of this link names nothing known here and is left out:",
            icon=":material/filter_alt_off:",
        )
        st.text(plain(", ".join(unknown)))


def _chosen(key: str, nothing: object = None) -> None:
    value = st.session_state[key]
    values = value if isinstance(value, list) else [] if value == nothing else [value]
    put(key, values)


def _chosen_id(key: str, box: str) -> None:
    value = st.session_state[box]
    put(key, [] if value is None else [value])


def _switched(key: str, on: bool) -> None:
    value = bool(st.session_state[key])
    put(key, [] if value == on else [str(value).lower()])


def _memory() -> dict[str, list[str]]:
    memory: dict[str, list[str]] = st.session_state.setdefault(_MEMORY, {})
    return memory


def _chosen_here() -> dict[str, list[str]]:
    """What a box of this session was set to, by a hand or by a page."""
    chosen: dict[str, list[str]] = st.session_state.setdefault(_CHOSEN, {})
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
