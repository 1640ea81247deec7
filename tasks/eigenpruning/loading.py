"""The three SuperGLUE tasks of eigenpruning (arXiv 2404.03147, code tvergara/eigenpruning), with the prompts of its released code.

lm-eval has `cb`, `copa` and `sglue_rte` with other prompts and other labels, so these have names of their own. As in the paper, the training split is for choosing and the
validation split is scored. An answer counts when each of its tokens is the argmax over the whole vocabulary; the released code looks at its first token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from harness_ext.errors import UserError
from harness_ext.lm_eval_adapter.task_data import Row, Source

if TYPE_CHECKING:
    from datasets import DatasetDict

CB_PROMPT = "Premise: {premise}\n\nHypothesis: {hypothesis}\n\nDoes the premise entail, contradict or is neutral to the hypothesis?\nAnswer (entail, contradict, neutral):"
COPA_PROMPT = "Premise: {premise}\n\nChoice 1: {choice1}\n\nChoice 2: {choice2}\n\nWhat is the correct choice?\nThe correct choice is choice"
RTE_PROMPT = "Premise: {premise}\n\nHypothesis: {hypothesis}\n\nDoes the premise entail or contradict to the hypothesis?\nAnswer (entails or contradicts): The premise"

# In the order of the hub's numbers.
CB_LABELS = ("entailment", "contradiction", "neutral")
RTE_LABELS = ("entailment", "not_entailment")


def cb(**settings: Any) -> DatasetDict:
    """CommitmentBank: entailment, contradiction or neither."""
    return _superglue(Source("eigenpruning_cb", "super_glue/CB", settings), "cb", CB_PROMPT, ("premise", "hypothesis"), CB_LABELS)


def copa(**settings: Any) -> DatasetDict:
    """Choice of Plausible Alternatives."""
    return _superglue(Source("eigenpruning_copa", "super_glue/COPA", settings), "copa", COPA_PROMPT, ("premise", "choice1", "choice2"), ())


def rte(**settings: Any) -> DatasetDict:
    """Recognizing Textual Entailment."""
    return _superglue(Source("eigenpruning_rte", "super_glue/RTE", settings), "rte", RTE_PROMPT, ("premise", "hypothesis"), RTE_LABELS)


def _superglue(source: Source, name: str, prompt: str, fields: tuple[str, ...], labels: tuple[str, ...]) -> DatasetDict:
    def documents(split: str, file: str) -> Iterator[Row]:
        columns = (*fields, "label")
        items = source.hub("aps/super_glue", name, split, columns) if source.local is None else source.read(source.file(file), columns)
        return ({"prompt": prompt.format(**{field: item[field] for field in fields}), "label": _label(source, item, labels)} for item in items)

    return source.splits(train=documents("train", "train.jsonl"), validation=documents("validation", "val.jsonl"))


def _label(source: Source, item: Mapping[str, Any], labels: tuple[str, ...]) -> int:
    """SuperGLUE's own files name the label, the hub numbers it."""
    label = item["label"]
    if isinstance(label, str) and label in labels:
        return labels.index(label)
    if isinstance(label, int) and 0 <= label < (len(labels) or 2):
        return label
    raise UserError(f"task {source.task}: an item has the label {label!r}, where {' or '.join(labels) or '0 or 1'} was wanted; provide the official training and validation files")


def process_results(doc: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, float]:
    """Score one document.

    Returns `acc`, 1.0 where the right answer is the argmax over the whole vocabulary; `acc_choices`, 1.0 where it is the likeliest of the answers that the prompt names;
    and `log_loss`, -ln P(right answer).
    """
    likelihood, is_greedy = results[doc["label"]]
    return {"acc": float(is_greedy), "acc_choices": float(likelihood > max(other for place, (other, _) in enumerate(results) if place != doc["label"])), "log_loss": -float(likelihood)}
