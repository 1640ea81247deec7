"""Calibration documents that a caller hands over, in place of those of a task: prompts with their right answers, or
plain texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from harness_ext.calibration.documents import CalibrationSet, LabelledDocument, document_hash, with_answers_of_others
from harness_ext.errors import UserError
from harness_ext.recipe.recipe import Recipe
from harness_ext.recipe.schema import Step, described
from harness_ext.recipe.settings import Calibration
from leaderboard.readers.same_document import DocumentText, content_digests, text_digests

DOCUMENTS, TEXTS = "documents", "texts"
_LABELLED = "labelled documents"


def from_pairs(pairs: Sequence[tuple[str, str]]) -> CalibrationSet:
    """Prompts with their right answers. The answer begins with what stands between the two, mostly a space.

    Raises UserError for anything but pairs of texts.
    """
    if isinstance(pairs, str) or not all(_is_pair(pair) for pair in pairs):
        raise UserError("documents must be pairs of texts: documents=[(prompt, answer), ...]")
    return _given(
        DOCUMENTS,
        [
            LabelledDocument(
                DOCUMENTS,
                prompt,
                answer,
                document_hash([prompt, answer]),
                digests=_sorted(content_digests(DocumentText(((prompt, answer),), answer))),
                wording=(prompt, answer),
            )
            for prompt, answer in pairs
        ],
    )


def from_texts(texts: Sequence[str]) -> CalibrationSet:
    """Whole texts, of which every token is predicted. Raises UserError for anything but texts."""
    if isinstance(texts, str) or not all(isinstance(text, str) and text for text in texts):
        raise UserError('texts must be a list of texts, none of them empty: texts=["...", ...]')
    return _given(
        TEXTS,
        [LabelledDocument(TEXTS, "", text, document_hash(text), digests=_sorted(text_digests(text))) for text in texts],
    )


def _sorted(digests: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(digests))


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, (tuple, list)) and len(pair) == 2 and all(isinstance(text, str) for text in pair)


def _given(name: str, documents: Sequence[LabelledDocument]) -> CalibrationSet:
    if not documents:
        raise UserError(f"{name} is empty: give at least one, or leave it out")
    return CalibrationSet(name, "given", 0, tuple(documents))


def for_given(recipe: Recipe, given: CalibrationSet) -> Recipe:
    """The recipe as it is carried out on documents that were handed over: every step that learns, learns from all of
    them.

    Raises UserError where a step learns from right answers and texts were given.
    """

    def resolve(step: Step) -> Step:
        if step.calibration is None:
            return step
        if given.task == TEXTS and _needs_answers(step):
            raise UserError(
                f"recipe {recipe.label!r} learns from right answers ({step.method}), which texts have none of: give"
                " documents=[(prompt, answer), ...] or tasks=[...]"
            )
        documents = {"task": given.task, "samples": len(given.documents)}
        return step.model_copy(update={"calibration": step.calibration.model_copy(update=documents)})

    return recipe.model_copy(update={"steps": tuple(map(resolve, recipe.steps))})


def _needs_answers(step: Step) -> bool:
    return described(step.method).needs == _LABELLED or any(
        own is not None and own.loss == "answer" for own in (step.training, step.healing)
    )


def drawn_from(given: CalibrationSet, calibration: Calibration) -> CalibrationSet:
    """The documents of a step: all of them, the answers exchanged where the step says so. Raises UserError where there
    is one alone to exchange.
    """
    if not calibration.shuffled_labels:
        return given
    if len(given.documents) < 2:
        raise UserError("calibration: one document has no other to exchange answers with; give more")
    exchanged = with_answers_of_others(given.documents, f"{calibration.seed}:{given.task}:answers")
    return CalibrationSet(given.task, given.split, calibration.seed, tuple(exchanged), shuffled_labels=True)
