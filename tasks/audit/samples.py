"""The audit's small samples: facts, sums, everyday sense and pages of English, all written for this project.

`facts.json`, `commonsense.json` and `pages.json` hold what was written; here it becomes documents. Notable choices:
- Which items are for training and which are scored depends on `SEED` and the item alone. No fact, sum, sentence or page is in both; a country may be asked for its capital in one and for its currency in the other.
- A fact counts when its answer is the likeliest of the whole vocabulary, token by token, as in `int_mult`: among a few candidates even small models know nearly all of them.
- The wrong answers of a sum are numbers near by. Half of the everyday items are twins: the same two words, of which another is meant when the end of the sentence changes.
- A page is one paragraph: its first three words are given, the others are predicted.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datasets import DatasetDict

SEED = 0
TRAIN_FRACTION = 0.4
PAGES_TO_LEARN = 0.3
"""Fewer, so that 72 pages are scored: below 59 documents no change of a perplexity is called better, or the same."""
CHOICES = 4
GIVEN_WORDS = 3
SUMS = 120
"""Scored sums, and as many to learn from."""
OPERATIONS = {"+": 60, "-": 60, "x": 20}
"""The sign of an operation, and the largest number that it is asked of."""


class Divided(NamedTuple):
    """Documents to learn from, and those that are scored."""

    train: list[dict[str, Any]]
    test: list[dict[str, Any]]

    def as_data(self) -> DatasetDict:
        """As lm-eval takes them."""
        from datasets import Dataset, DatasetDict

        return DatasetDict({name: Dataset.from_list(documents) for name, documents in self._asdict().items()})


def _written(name: str) -> Any:
    return json.loads((Path(__file__).resolve().parent / name).read_text(encoding="utf-8"))


def _divided(documents: Sequence[dict[str, Any]], name: str, to_learn: float = TRAIN_FRACTION) -> Divided:
    """Shuffled by the seed and the name, and cut: this share to learn from comes first."""
    order = list(documents)
    random.Random(f"{SEED}:{name}").shuffle(order)
    cut = round(to_learn * len(order))
    return Divided(order[:cut], order[cut:])


def _joined(parts: Sequence[Divided], name: str) -> Divided:
    """All parts, mixed, so that the first few documents are of every part."""
    joined = Divided([one for part in parts for one in part.train], [one for part in parts for one in part.test])
    for split, documents in joined._asdict().items():
        random.Random(f"{SEED}:{name}:{split}").shuffle(documents)
    return joined


def _with_choices(prompt: str, right: str, wrong: Sequence[str], **more: str) -> dict[str, Any]:
    """A question with its answers in an order drawn by the question."""
    choices = [right, *wrong]
    random.Random(f"{SEED}:{prompt}:{right}").shuffle(choices)
    return {"prompt": prompt, "choices": choices, "label": choices.index(right), **more}


def fact_documents() -> Divided:
    """Facts of ten relations, 60 % of each scored."""
    return _joined([_divided(_of_relation(relation), relation["relation"]) for relation in _written("facts.json")], "facts")


def _of_relation(relation: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"prompt": relation["prompt"].format(subject), "target": f" {answer}", "relation": relation["relation"]}
        for subject, answer in relation["pairs"]
    ]


def sum_documents() -> Divided:
    """Sums, differences and products in turn, none below zero and none twice."""
    draw, found = random.Random(f"{SEED}:sums"), {}
    while len(found) < 2 * SUMS:
        sign = list(OPERATIONS)[len(found) % len(OPERATIONS)]
        right, left = sorted(draw.randint(2, OPERATIONS[sign]) for _ in range(2))
        answer = {"+": left + right, "-": left - right, "x": left * right}[sign]
        prompt = f"{left} {sign} {right} ="
        found.setdefault(prompt, _with_choices(prompt, str(answer), _near(answer, prompt), operation=sign))
    documents = list(found.values())
    random.Random(f"{SEED}:order").shuffle(documents)
    return Divided(documents[:SUMS], documents[SUMS:])


def _near(answer: int, prompt: str) -> list[str]:
    """Wrong answers: off by one, by two or by ten, none below zero."""
    numbers = [answer + away for away in (-10, -2, -1, 1, 2, 10) if answer + away >= 0]
    return [str(number) for number in random.Random(f"{SEED}:{prompt}:wrong").sample(numbers, CHOICES - 1)]


def everyday_documents() -> Divided:
    """Beginnings of sentences, each with an ending that makes sense and one that does not; and twins, in which one word decides who is meant."""
    written = _written("commonsense.json")
    endings = _divided([_with_choices(beginning, right, [wrong]) for beginning, right, wrong in written["endings"]], "endings")
    twins = _divided(written["twins"], "twins")
    both = Divided(*([document for twin in part for document in _both(*twin)] for part in twins))
    return _joined([endings, both], "everyday")


def _both(beginning: str, first: str, second: str, of_first: str, of_second: str) -> list[dict[str, Any]]:
    """The two documents of a pair, which stay in one split: what is said of the first, and what of the second."""
    return [
        _with_choices(beginning, f"{first} {of_first}", [f"{second} {of_first}"]),
        _with_choices(beginning, f"{second} {of_second}", [f"{first} {of_second}"]),
    ]


def page_documents() -> Divided:
    """Paragraphs of eight registers, nine of each scored and four to learn from."""
    parts = [
        _divided([_page(text, register) for text in texts], register, PAGES_TO_LEARN)
        for register, texts in _written("pages.json").items()
    ]
    return _joined(parts, "pages")


def _page(text: str, register: str) -> dict[str, Any]:
    words = text.split(" ")
    given, predicted = " ".join(words[:GIVEN_WORDS]), " ".join(words[GIVEN_WORDS:])
    return {"prompt": given, "text": f" {predicted}", "words": len(words) - GIVEN_WORDS, "register": register}


def facts(**metadata: Any) -> DatasetDict:
    """lm-eval's `custom_dataset` of `audit_facts`. `metadata` is the task's, which changes nothing; so below."""
    return fact_documents().as_data()


def sums(**metadata: Any) -> DatasetDict:
    """That of `audit_arithmetic`."""
    return sum_documents().as_data()


def everyday(**metadata: Any) -> DatasetDict:
    """That of `audit_commonsense`."""
    return everyday_documents().as_data()


def pages(**metadata: Any) -> DatasetDict:
    """That of `audit_text`."""
    return page_documents().as_data()


def score_fact(doc: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, float]:
    """Score one fact: `acc`, 1 where every token of the answer is the likeliest of all, and `gold_logprob`, the natural log-probability of the answer."""
    ((likelihood, is_greedy),) = results
    return {"acc": float(is_greedy), "gold_logprob": float(likelihood)}


def score_page(doc: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, tuple[float, int]]:
    """Score one page: the log-likelihood of what is predicted, over its words and over its bytes."""
    ((likelihood, _),) = results
    return {"word_perplexity": (likelihood, doc["words"]), "bits_per_byte": (likelihood, len(doc["text"].encode()))}
