"""Two texts, word by word: what is left out is struck through, what is new is underlined, so that colour is not the
only sign. All text is escaped.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import zip_longest

MOST_WORDS = 1_000
"""Of each text that are compared: the time is quadratic in them."""


def visible(text: str) -> str:
    """The text with its lines, and a sign in place of every other control character, those that turn the direction of
    writing included.
    """
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "\ufffd" for letter in text)


def difference(before: str, after: str) -> str:
    """HTML of both texts as one. Spaces do not count, and stand as they are in `after`."""
    left, right = (_words(text) for text in (before, after))
    cut = len(left) > MOST_WORDS or len(right) > MOST_WORDS
    left, right = left[:MOST_WORDS], right[:MOST_WORDS]
    parts = []
    bare = [[word.strip() for word in words] for words in (left, right)]
    for tag, a, b, c, d in SequenceMatcher(a=bare[0], b=bare[1]).get_opcodes():
        if tag == "equal":
            parts.append(_escaped(right[c:d]))
        else:
            parts += [_marked("del", left[a:b]), _marked("ins", right[c:d])]
    end = f" [cut after {MOST_WORDS:,} words]" if cut else ""
    return f'<div class="lb-diff" dir="auto">{"".join(parts)}{end}</div>'


def same(before: str, after: str) -> bool:
    """Whether the two are the same but for spaces."""
    return all(one == other for one, other in zip_longest(before.split(), after.split()))


def _words(text: str) -> list[str]:
    """Each with the spaces behind it."""
    return re.findall(r"\S+\s*", visible(text))


def _escaped(words: Sequence[str]) -> str:
    return html.escape("".join(words))


def _marked(tag: str, words: Sequence[str]) -> str:
    return f"<{tag}>{_escaped(words)}</{tag}>" if words else ""
