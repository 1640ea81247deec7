"""Documents to learn from that ask for the same as scored ones in other words: `what is 3 times 4?` for `3 x 4 =`.

Nothing can be sure of that. A document counts where the right answers are equal and so are all words that tell one
document of its task from the others, or, where the answer is a number, all numbers in the questions, two at least and
in one order. Words that stand in many documents of a task are its template. Few such cases are chance, and nothing is
said of them.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from harness_ext.calibration.documents import AskedDocument, CalibrationSet
from leaderboard.readers.same_document import without_listing

FEWEST = 3
SHARE = 0.1
"""So many of the documents, and this share of the smaller of the two sets, ask for the same before it is said."""
_TEMPLATE_SHARE = 0.1
_WORD = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+")
_FUNCTION = """
a an the is are was were be been do does did has have had of in on at to for from by with as and or but if then that
this these those it its he she they his her their who whom whose which what when where why how not no there can could
will would should may might must question answer s
"""
_NUMBERS = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
nineteen twenty
"""
_FUNCTION_WORDS = frozenset(_FUNCTION.split())
_IN_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS.split())}
Wording = tuple[str, str]
"""A question and its right answer."""
_Sign = tuple[str, tuple[str, ...], tuple[str, ...]]


def with_rewordings(drawn: CalibrationSet, scored: Mapping[str, Sequence[AskedDocument]]) -> CalibrationSet:
    """The set with a warning for every task many of whose scored documents it asks for in other words."""
    warnings = reworded(drawn.task, hashed_signs(drawn), scored)
    return replace(drawn, warnings=(*drawn.warnings, *warnings))


def hashed_signs(drawn: CalibrationSet) -> list[str]:
    """What tells each document of a set from others, however it is worded, sorted: hashes of 16 hexadecimal digits with
    spaces between them, one text a document, which is empty where nothing tells it.
    """
    wordings = [document.wording for document in drawn.documents if document.wording is not None]
    return sorted(" ".join(map(_hashed, signs)) for signs in _signs(wordings))


def reworded(name: str, learned: Sequence[str], scored: Mapping[str, Sequence[AskedDocument]]) -> list[str]:
    """A warning for every task many of whose scored documents are asked for in other words by documents of the task
    `name`. learned: of these, as `hashed_signs` gives it.
    """
    known = {sign for signs in learned for sign in signs.split()}
    warnings = []
    for task, documents in scored.items() if known else ():
        asked = [document.wording for document in documents if document.wording is not None]
        places = _places(asked, known)
        if len(places) >= max(FEWEST, SHARE * min(len(asked), len(learned))):
            question, answer = asked[places[0]]
            warnings.append(
                f"{len(places)} of {len(asked)} scored documents of {task} ask for the same as calibration documents of"
                f" {name} in other words (such as {_short(question)!r} with the answer {_short(answer)!r})"
            )
    return warnings


def asked_in_other_words(scored: Sequence[Wording], learned: Sequence[Wording]) -> list[int]:
    """The places of the scored questions that some question of the others asks in other words."""
    return _places(scored, {_hashed(sign) for signs in _signs(learned) for sign in signs})


def _places(scored: Sequence[Wording], known: Collection[str]) -> list[int]:
    return [place for place, signs in enumerate(_signs(scored)) if any(_hashed(sign) in known for sign in signs)]


def _hashed(sign: _Sign) -> str:
    return hashlib.sha256(repr(sign).encode("utf-8", "replace")).hexdigest()[:16]


def _signs(wordings: Sequence[Wording]) -> Iterator[list[_Sign]]:
    """What tells each question with its answer from others, however it is worded."""
    wordings = [without_listing(*wording) for wording in wordings]
    questions = [_words(question) for question, _ in wordings]
    spread = Counter(word for words in questions for word in set(words))
    most = max(FEWEST, _TEMPLATE_SHARE * len(wordings))
    template = _FUNCTION_WORDS | {word for word, count in spread.items() if count > most and not word[0].isdigit()}
    for words, (_, answer) in zip(questions, wordings, strict=True):
        wanted = _answer(answer)
        numbers = tuple(word for word in words if word[0].isdigit())
        telling = tuple(sorted(word for word in words if word not in template))
        found: list[_Sign] = []
        if len(numbers) > 1 and wanted and wanted[-1][0].isdigit():
            found.append(("numbers", numbers, wanted))
        if wanted and any(word not in numbers for word in telling):
            found.append(("words", telling, wanted))
        yield found


def _words(text: str) -> list[str]:
    found: Iterable[str] = _WORD.findall(text.casefold())
    return [_IN_DIGITS.get(word, word) for word in found]


def _answer(text: str) -> tuple[str, ...]:
    """What an answer says: its last number, or its words."""
    words = _words(text)
    numbers = [word for word in words if word[0].isdigit()]
    return tuple(numbers[-1:] or words)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else "..." + line[-57:]
