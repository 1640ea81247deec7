"""Documents and texts of a caller's own bear the digests by which a scored document is recognised in them."""

from __future__ import annotations

from harness_ext.calibration.contrast_pairs import contrast_set
from harness_ext.calibration.given import drawn_from, from_pairs, from_texts
from harness_ext.recipe.settings import Calibration
from leaderboard.readers.same_document import DocumentText, content_digests

SCORED = content_digests(DocumentText((("The capital of France is", " Paris"),), "Paris", {"id": 3}))


def test_pairs_and_texts_that_hold_a_scored_document_are_recognised() -> None:
    (pair,) = from_pairs([("the capital of  France is", " PARIS")]).documents
    assert SCORED.intersection(pair.digests) and pair.wording == ("the capital of  France is", " PARIS")
    texts = ["A long text. The capital of France is Paris. It rains.", "The capital\nof France is Paris", "x\ny"]
    found = [bool(SCORED.intersection(document.digests)) for document in from_texts(texts).documents]
    assert found == [True, True, False]


def test_exchanged_answers_do_not_hide_what_was_asked() -> None:
    given = from_pairs([("The capital of France is", " Paris"), ("The capital of Spain is", " Madrid")])
    exchanged = drawn_from(given, Calibration(task="documents", samples=2, shuffled_labels=True))
    assert [document.answer for document in exchanged.documents] == [" Madrid", " Paris"]
    assert [document.digests for document in exchanged.documents] == [document.digests for document in given.documents]


def test_shipped_contrasts_are_recognised() -> None:
    first, *_ = contrast_set("pronouns").documents
    asked = DocumentText((("I think that", " he"), ("I think that", " she")), "0")
    assert content_digests(asked).intersection(first.digests)
