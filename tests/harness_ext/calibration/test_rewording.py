"""Questions that others ask in other words are found, and few of those that only look alike."""

from __future__ import annotations

import re

from harness_ext.calibration.documents import AskedDocument, CalibrationSet, LabelledDocument
from harness_ext.calibration.rewording import asked_in_other_words, hashed_signs, reworded, with_rewordings

PRODUCTS = [(left, right) for left in range(3, 9) for right in range(3, 9)]
CAPITALS = [(f"{name}land", f" {name}ville") for name in ("Al", "Bel", "Cor", "Dun", "El", "Far", "Gor", "Hal", "Il")]


def asked(wordings: list[tuple[str, str]]) -> dict[str, list[AskedDocument]]:
    return {"scored_task": [AskedDocument("", frozenset(), wording) for wording in wordings]}


def drawn(wordings: list[tuple[str, str]]) -> CalibrationSet:
    documents = tuple(LabelledDocument("learned", *wording, "", wording=wording) for wording in wordings)
    return CalibrationSet("learned", "train", 0, documents)


def test_numbers_with_the_same_answer_in_any_words() -> None:
    scored = [(f"{left}*{right}=", f" {left * right}") for left, right in PRODUCTS]
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight"]
    for form in ("what is {} times {}?", "The product of {} and {} is"):
        learned = [(form.format(*pair), f"{pair[0] * pair[1]}") for pair in PRODUCTS[:20]]
        assert asked_in_other_words(scored, learned) == list(range(20))
    spelt = [(f"{words[left]} times {words[right]}", f" {left * right}") for left, right in PRODUCTS]
    assert len(asked_in_other_words(scored, spelt)) == len(scored)
    assert asked_in_other_words([("3*4=", " 12")], [("4 times 3", " 12")]) == []
    sums = [(f"{left} plus {right}", f" {left + right}") for left, right in PRODUCTS]
    assert asked_in_other_words(scored, sums) == []


def test_names_with_the_same_answer_in_other_templates() -> None:
    scored = [(f"The capital of {land} is", city) for land, city in CAPITALS]
    learned = [(f"Which city is {land}'s capital? Answer:", city) for land, city in CAPITALS]
    assert len(asked_in_other_words(scored, learned)) == len(CAPITALS)
    listed = [(f"{question}\nA. Rome\nB.{city}\n", " B") for question, city in learned]
    assert len(asked_in_other_words(scored, listed)) == len(CAPITALS)
    others = [(question, CAPITALS[place - 1][1]) for place, (question, _) in enumerate(learned)]
    assert asked_in_other_words(scored, others) == []


def test_numbers_of_a_shared_passage_are_no_question() -> None:
    scored = [(f"In 1914 and 1918 wars. Is it {word}?", " yes") for word in ("red", "blue", "green", "old")]
    learned = [(f"In 1914 and 1918 wars. Is it {word}?", " yes") for word in ("tall", "small", "new", "cold")]
    assert asked_in_other_words(scored, learned) == []


def test_a_large_share_is_told_and_a_few_are_not() -> None:
    scored = [(f"{left}*{right}=", f" {left * right}") for left, right in PRODUCTS]
    learned = [(f"what is {left} times {right}?", f" {left * right}") for left, right in PRODUCTS]
    (said,) = with_rewordings(drawn(learned), asked(scored)).warnings
    assert said == (
        "36 of 36 scored documents of scored_task ask for the same as calibration documents of learned in other words"
        " (such as '3*3=' with the answer '9')"
    )
    # As later commands find it: from hashes alone.
    kept = hashed_signs(drawn(learned))
    assert reworded("learned", kept, asked(scored)) == [said] and reworded("learned", [], asked(scored)) == []
    assert len(kept) == 36 and all(re.fullmatch("[0-9a-f]{16}", one) for signs in kept for one in signs.split())
    unlike = [(f"Who wrote novel {name}?", f" {name}sson") for name in map(str, range(34))]
    assert not with_rewordings(drawn([*learned[:2], *unlike]), asked(scored)).warnings
    assert with_rewordings(drawn([*learned[:5], *unlike]), asked(scored)).warnings
    for count in (2, 5):
        some = hashed_signs(drawn([*learned[:count], *unlike]))
        assert bool(reworded("learned", some, asked(scored))) == (count == 5)
