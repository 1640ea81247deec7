"""Documents that ask for the same have a digest in common however they are written, and others have none."""

from __future__ import annotations

from typing import Any

import pytest

from leaderboard.readers.same_document import (
    DocumentText,
    content_digests,
    digests_in_samples,
    fold,
    in_one_order,
    requests_of,
    right_answer,
    text_digests,
    without_listing,
)


def continuation(prompt: str, answer: str, **columns: Any) -> frozenset[str]:
    """Of a document with one right continuation."""
    return content_digests(DocumentText(((prompt, answer),), answer, {"q": prompt, "a": answer, **columns}))


def choice(prompt: str, choices: list[str], right: int, **columns: Any) -> frozenset[str]:
    """Of a document of multiple choice."""
    requests = tuple((prompt, f" {one}") for one in choices)
    return content_digests(DocumentText(requests, str(right), {"q": prompt, "c": choices, "a": right, **columns}))


PLAIN = continuation("What is 3 + 4 ?", " 7")


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(continuation("What is 3 + 4 ?", " 7", extra="column"), id="one more column"),
        pytest.param(continuation("What is  3 + 4 ?", " 7"), id="one more space"),
        pytest.param(continuation("What is 3+4?", "7", n=1), id="no space beside signs"),
        pytest.param(continuation("WHAT is 3 + 4 ?", " 7", n=1), id="case"),
        pytest.param(continuation("Question: what is 3 + 4\nAnswer:", " 7.", n=1), id="headings and marks"),
        pytest.param(continuation("What is 3 + 4 ?\n(1) 5 (2) 7\nAnswer:", " 2", n=1), id="choices listed"),
        pytest.param(continuation("What\u00a0is\t3 + 4\n?", " 7", n=1), id="other kinds of space"),
        pytest.param(continuation("\ufeffWhat is\u200b 3 + 4 ?", " 7", n=1), id="invisible"),
        pytest.param(continuation("What is \uff13 \uff0b \uff14 ?", " \uff17", n=1), id="full width"),
        pytest.param(
            content_digests(DocumentText((("What is 3 + 4 ?", " 7"),), " 7", {"a": " 7", "q": "What is 3 + 4 ?"})),
            id="order of columns",
        ),
        pytest.param(content_digests(DocumentText((("What is 3 + 4 ?", ""),), "7")), id="written by the model"),
        pytest.param(
            content_digests(DocumentText((("Sums.\n\nWhat is 3 + 4 ?", " 7"),), "7"), "Sums."), id="description"
        ),
        pytest.param(
            digests_in_samples(DocumentText((("What is 1 + 1 ? 2\n\nWhat is 3 + 4 ?", " 7"),), "7"), 1), id="examples"
        ),
        pytest.param(text_digests("A text.\nWhat is 3 + 4 ? 7.\nMore."), id="a line of a text"),
    ],
)
def test_the_same_in_another_form(other: frozenset[str]) -> None:
    assert PLAIN & other


@pytest.mark.parametrize(
    "other",
    [
        continuation("What is 4 + 3 ?", " 7"),
        continuation("What is 3 + 4 ?", " 8"),
        continuation("What is 3 - 4 ?", " 7"),
        continuation("What is 34 ?", " 7"),
        continuation("What is 3.4 ?", " 7"),
        continuation("What is 3 + 4 ?\n(1) 5 (2) 7\nAnswer:", " 1"),
        content_digests(DocumentText((), "7", {"q": 3})),
        text_digests("What is 3 + 4 ?"),
    ],
)
def test_another_document(other: frozenset[str]) -> None:
    assert not PLAIN & other


def test_where_a_number_ends_is_kept() -> None:
    assert not continuation("1 11", " 12") & continuation("11 1", " 12")
    assert not continuation("Is it 3? 4!", " 7") & continuation("Is it 34!", " 7")
    assert not continuation("sum 1", " 12") & continuation("sum 11", " 2")


def test_choices_in_another_order() -> None:
    first = choice("Which is red?", ["blood", "snow", "coal"], 0)
    assert first & choice("Which is red?", ["coal", "Blood", "snow"], 1, extra=1)
    assert first & choice("Which is red?", ["grass", "blood"], 1)  # prompt and right answer
    assert not first & choice("Which is white?", ["blood", "snow", "coal"], 1)
    listed = choice("Which is red?\nA. blood\nB. snow\nAnswer:", ["A", "B"], 0)
    assert listed & choice("Which is red?\nA. snow\nB. blood\nAnswer:", ["A", "B"], 1)
    assert listed & choice("Which is red?\nA. coal\nB. blood\nAnswer:", ["A", "B"], 1)  # the same right answer
    assert not listed & choice("Which is red?\nA. coal\nB. blood\nAnswer:", ["A", "B"], 0)
    contexts = DocumentText((("The cat", " slept."), ("The dog", " slept.")), " slept.")
    assert content_digests(contexts) & content_digests(contexts._replace(requests=contexts.requests[::-1]))


def test_quotes_dashes_and_accents_fold_to_one_form() -> None:
    assert fold("\u201cIt\u2019s\u201d \u2013 x") == fold('"it\'s" - X')
    assert fold("caf\u00e9") == fold("cafe\u0301") != fold("cafe")
    assert fold("Stra\u00dfe") == fold("STRASSE")


def test_listings_are_found_and_prose_is_left() -> None:
    assert in_one_order("Q? (A) b (B) a\nAnswer:") == in_one_order("Q? (A) a (B) b\nAnswer:")
    assert in_one_order("I. Newton wrote B. Pascal") == "I. Newton wrote B. Pascal"


def test_a_question_without_its_listing() -> None:
    assert without_listing("Q?\nA. red\nB. blue\nAnswer:", " B") == ("Q?\n\n\nAnswer:", "blue")
    assert without_listing("Q?\n1) red\n2) blue\nAnswer:", " 1") == ("Q?\n\n\nAnswer:", "red")
    assert without_listing("Q?\nA. red\nB. blue\nAnswer:", " blue")[1] == " blue"
    assert without_listing("Q?\nA. red\nB. blue\nAnswer:", " C")[1] == " C"
    assert without_listing("Q?", " A") == ("Q?", " A")


def test_requests_in_every_form_that_lm_eval_has_written() -> None:
    pair = (("q", " a"),)
    assert requests_of({"gen_args_0": {"arg_0": "q", "arg_1": " a"}}) == pair
    assert requests_of([["q", " a"]]) == requests_of(["q", " a"]) == pair
    assert requests_of({"gen_args_0": {"arg_0": "q", "arg_1": {"until": []}}}) == (("q", ""),)
    # With an image the text is not all that is asked.
    assert requests_of({"gen_args_0": {"arg_0": "q", "arg_1": {}, "arg_2": {"visual": "x"}}}) == ()
    assert requests_of(None) == requests_of("q") == requests_of([[7]]) == ()


def test_the_right_answer_is_named_by_place_or_text() -> None:
    requests = (("q", " yes"), ("q", " no"))
    assert right_answer(requests, "1") == right_answer(requests, "No") == ("q", " no")
    assert right_answer(requests, "maybe") is None and right_answer((), "1") is None
    assert right_answer((("a whole text", ""),), "a whole text") == ("a whole text", "")
