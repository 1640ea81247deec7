"""The audit's samples: right answers, splits that share nothing, and items that stay as they are."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from typing import Any

import pytest

from leaderboard.statistics.clipped import documents_without_collapse

from .conftest import AUDIT, load, module

SIZES = {
    "audit_facts": (96, 146),
    "audit_arithmetic": (120, 120),
    "audit_commonsense": (48, 72),
    "audit_text": (32, 72),
}


@pytest.fixture(scope="module")
def loaded() -> dict[str, Any]:
    return load("audit")


@pytest.fixture(scope="module")
def samples() -> Any:
    return module("audit/samples.py")


def test_the_group_has_a_sample_of_each_kind(loaded: dict[str, Any]) -> None:
    assert set(loaded) == {*AUDIT, "pronoun_bias"}


@pytest.mark.parametrize("name", AUDIT)
def test_splits_have_their_sizes_and_share_nothing(loaded: dict[str, Any], name: str) -> None:
    task = loaded[name]
    train, test = task.training_docs(), task.test_docs()
    assert (len(train), len(test)) == SIZES[name]
    asked = [json.dumps([doc["prompt"], sorted(doc.get("choices", []))]) for doc in (*train, *test)]
    assert len(set(asked)) == len(asked)


def test_twins_stay_in_one_split(samples: Any) -> None:
    """Both documents of a pair have the same beginning, which no other split has."""
    train, test = ({doc["prompt"] for doc in split} for split in samples.everyday_documents())
    assert not train & test


def test_every_sum_is_right_and_wrong_ones_are_near(samples: Any) -> None:
    for doc in (doc for split in samples.sum_documents() for doc in split):
        left, sign, right = re.fullmatch(r"(\d+) ([+x-]) (\d+) =", doc["prompt"]).groups()
        answer = {"+": int(left) + int(right), "-": int(left) - int(right), "x": int(left) * int(right)}[sign]
        numbers = [int(choice) for choice in doc["choices"]]
        assert numbers[doc["label"]] == answer and len(set(numbers)) == samples.CHOICES
        assert all(number >= 0 and abs(number - answer) in (0, 1, 2, 10) for number in numbers)


@pytest.mark.parametrize("name", ["sum_documents", "everyday_documents"])
def test_the_place_of_the_right_answer_tells_nothing(samples: Any, name: str) -> None:
    docs = [doc for split in getattr(samples, name)() for doc in split]
    places = Counter(doc["label"] for doc in docs)
    expected = len(docs) / len(docs[0]["choices"])
    assert all(abs(count - expected) < 3 * expected**0.5 for count in places.values())


def test_no_fact_is_asked_twice_and_every_relation_is_in_both_splits(samples: Any) -> None:
    train, test = samples.fact_documents()
    relations = Counter(doc["relation"] for doc in test)
    assert set(relations) == {doc["relation"] for doc in train} and len(relations) == 10
    assert min(relations.values()) >= 10
    assert all(
        doc["target"].startswith(" ") and doc["target"].strip() not in doc["prompt"].split() for doc in (*train, *test)
    )


def test_the_first_documents_are_of_many_kinds(samples: Any) -> None:
    assert len({doc["relation"] for doc in samples.fact_documents().test[:40]}) >= 8
    assert len({doc["register"] for doc in samples.page_documents().test[:20]}) >= 6


def test_scored_pages_are_enough_to_be_called_better(samples: Any) -> None:
    """A perplexity is better or the same only where few documents can have collapsed, and none is not enough of few."""
    assert len(samples.page_documents().test) >= documents_without_collapse(0)


def test_no_two_pages_have_a_sentence_or_a_turn_in_common(samples: Any) -> None:
    """What is scored stands nowhere in what recipes learn from, nor twice."""
    seen: dict[str, str] = {}
    for doc in (doc for split in samples.page_documents() for doc in split):
        words = (doc["prompt"] + doc["text"]).lower().split()
        for turn in {" ".join(words[start : start + 6]) for start in range(len(words) - 5)}:
            assert seen.setdefault(turn, doc["text"]) == doc["text"], turn


def test_a_page_is_whole_and_plain(samples: Any) -> None:
    for doc in (doc for split in samples.page_documents() for doc in split):
        text = doc["prompt"] + doc["text"]
        assert text.isascii() and "  " not in text and len(text.split(" ")) == doc["words"] + samples.GIVEN_WORDS


def test_items_are_pinned(samples: Any) -> None:
    """Scores of one version of the package are those of another only where the items are the same."""
    made = [samples.fact_documents(), samples.sum_documents(), samples.everyday_documents(), samples.page_documents()]
    assert hashlib.sha256(json.dumps(made).encode()).hexdigest()[:16] == "44055e96f8deba55"


def test_scores(samples: Any) -> None:
    assert samples.score_fact({}, [(-1.5, True)]) == {"acc": 1.0, "gold_logprob": -1.5}
    page = {"text": " to and fro", "words": 3}
    assert samples.score_page(page, [(-6.0, False)]) == {"word_perplexity": (-6.0, 3), "bits_per_byte": (-6.0, 11)}
