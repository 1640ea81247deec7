"""What a model answered, from its stored responses: in words, and how sure it was.

Responses come from files that anybody may have written: whatever cannot be read so is shown as it stands.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np

from leaderboard.compare.choice_shift import log_likelihoods, target_index
from leaderboard.terminal.format import plain


class ModelAnswer(NamedTuple):
    """The answer in words, and its margin in nats: the right choice's log-likelihood minus the best other's, or that of
    the right text alone. None where there is none.
    """

    words: str
    margin: float | None = None


def read_answer(
    responses: str | None, target: str | None, document: str | None, output_type: str | None, doubled: bool
) -> ModelAnswer:
    """`responses` is the stored JSON of one document's filtered responses; `doubled`: its second half are the choices
    without their question.
    """
    value = _json(responses)
    likelihoods = log_likelihoods(value) if output_type in ("multiple_choice", "loglikelihood") else None
    if likelihoods is None:
        return ModelAnswer(_text(value, responses))
    if doubled:
        likelihoods = likelihoods[: len(likelihoods) // 2]
    if len(likelihoods) == 1:
        said = "the right text is the likeliest" if _greedy(value) else "another text is likelier"
        return ModelAnswer(said, float(likelihoods[0]))
    chosen, right = int(np.argmax(likelihoods)), target_index(target, len(likelihoods))
    texts = choice_texts(document, len(likelihoods))
    margin = None if right is None else float(likelihoods[right] - np.max(np.delete(likelihoods, right)))
    return ModelAnswer(_choice(chosen, texts), margin)


def right_answer(target: str | None, document: str | None, choices: int | None = None) -> str:
    """The target, with the choice's text where it is a number of one."""
    texts = choice_texts(document, choices)
    right = target_index(target, len(texts)) if texts else None
    return (target or "") if right is None else _choice(right, texts)


def choice_texts(document: str | None, count: int | None) -> list[str]:
    """The texts of a document's choices: the one list of `count` texts that it holds; empty where there is none, or
    more than one.
    """
    value = _json(document)
    lists = _lists(value) if isinstance(value, dict) else []
    fitting = [texts for texts in lists if len(texts) > 1 and (count is None or len(texts) == count)]
    return fitting[0] if len(fitting) == 1 else []


def likelihood_rows(
    responses: str | None, target: str | None, document: str | None, doubled: bool
) -> list[tuple[str, float, bool]]:
    """(choice, log-likelihood, whether it is the right one) of every choice; empty where there are fewer than two."""
    found = log_likelihoods(_json(responses))
    if found is None or len(found) < 2:
        return []
    found = found[: len(found) // 2] if doubled else found
    texts, right = choice_texts(document, len(found)), target_index(target, len(found))
    return [(_choice(i, texts), float(value), i == right) for i, value in enumerate(found)]


def question(prompt: str) -> str:
    """What a prompt asks, on one line: its last paragraph, behind any examples."""
    paragraphs = [" ".join(plain(part).split()) for part in prompt.split("\n\n")]
    return next((part for part in reversed(paragraphs) if part), "")


def gold_log_likelihood(
    responses: str | None, target: str | None, output_type: str | None, doubled: bool
) -> float | None:
    """The right answer's log-likelihood in nats: of the right choice, or of the one text that was scored. None where
    there is none.
    """
    found = log_likelihoods(_json(responses)) if output_type in ("multiple_choice", "loglikelihood") else None
    if found is None:
        return None
    found = found[: len(found) // 2] if doubled else found
    right = 0 if len(found) == 1 else target_index(target, len(found))
    return None if right is None else float(found[right])


def scores_one_text(responses: str | None, output_type: str | None) -> bool:
    """Whether the task only asked how likely the right text is, so that no other answer was recorded."""
    found = log_likelihoods(_json(responses)) if output_type == "loglikelihood" else None
    return found is not None and len(found) == 1


def _choice(index: int, texts: list[str]) -> str:
    return f"choice {index}: {texts[index]}" if index < len(texts) else f"choice {index}"


def _lists(value: dict[str, Any]) -> list[list[str]]:
    inner = [item for outer in value.values() for item in ([outer] if not isinstance(outer, dict) else outer.values())]
    return [item for item in inner if isinstance(item, list) and all(isinstance(text, str) for text in item)]


def _greedy(value: Any) -> bool:
    """The second part of a lone (log-likelihood, is it the greedy one) pair, which is stored as text."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    return isinstance(value, list) and len(value) == 2 and str(value[1]) == "True"


def _text(value: Any, stored: str | None) -> str:
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, str) else (stored or "")


def _json(text: str | None) -> Any:
    try:
        return json.loads(text or "null")
    except (ValueError, RecursionError):
        return None
