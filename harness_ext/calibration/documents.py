"""Calibration documents: labelled documents of a task's training split, with exactly the prompts that the task would
score.

Prompts and answers come from lm-eval's own request building (few-shot examples, chat template and delimiters included),
so what is measured is what will be asked. A document that is also scored never enters, however it is written: it is
left out, and the receipt counts it (`leaderboard.readers.same_document` says what counts as the same).
"""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from harness_ext.errors import UserError, nearest
from harness_ext.recipe.settings import EVALUATED, Calibration
from leaderboard.metrics import best_value
from leaderboard.readers.same_document import DocumentText, content_digests, plain_requests, right_answer

if TYPE_CHECKING:
    from lm_eval.api.task import Task


@dataclass(frozen=True)
class PromptSettings:
    """How the evaluation builds its prompts; calibration must not differ."""

    system_instruction: str | None = None
    apply_chat_template: bool = False
    fewshot_as_multiturn: bool = False
    fewshot_seed: int | None = 1234
    chat_template: Any = None


@dataclass(frozen=True)
class LabelledDocument:
    """One prompt and its right answer, as text; `doc_hash` is lm-eval's.

    choices: where the task offers some, every one with its prompt; right: the places of the right ones among them, the
    one in `answer` first. digests: what else tells that another document asks for the same. wording: question and right
    answer without examples and template, also where `answer` is another's.
    """

    task: str
    context: str
    answer: str
    doc_hash: str
    choices: tuple[tuple[str, str], ...] = ()
    right: tuple[int, ...] = ()
    digests: tuple[str, ...] = field(default=(), repr=False)
    wording: tuple[str, str] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class CalibrationSet:
    """The documents drawn from one task; `also_scored` were left out because the evaluation reports them.
    shuffled_labels: each has the answer of another. warnings: what a reader of the scores should know of them.
    """

    task: str
    split: str
    seed: int
    documents: tuple[LabelledDocument, ...]
    also_scored: int = 0
    shuffled_labels: bool = False
    warnings: tuple[str, ...] = field(default=(), repr=False)


_EXAMPLES_LOOKED_AT = 100


class AskedDocument(NamedTuple):
    """A document of a task as it is recognised in others. digests: see `leaderboard.readers.same_document`; wording:
    its question and right answer without examples and template, None where the task names no right one.
    """

    doc_hash: str
    digests: frozenset[str]
    wording: tuple[str, str] | None

    def is_among(self, known: Collection[str]) -> bool:
        """Whether the document is one of those whose hashes and digests are given."""
        return self.doc_hash in known or any(digest in known for digest in self.digests)

    @property
    def identities(self) -> frozenset[str]:
        """All hashes that tell this document."""
        return self.digests | {self.doc_hash}


def document_hash(document: Any) -> str:
    """The hash that lm-eval logs with a sample of this document."""
    from lm_eval.utils import handle_non_serializable, hash_string

    return hash_string(json.dumps(document, indent=2, default=handle_non_serializable, ensure_ascii=False))


def asked_document(task: Task, document: Any) -> AskedDocument:
    """How a document of a task is recognised: by itself, and by what the task asks of it."""
    from lm_eval.utils import handle_non_serializable

    source = json.loads(json.dumps(document, default=handle_non_serializable))
    try:
        context = task.fewshot_context(document, num_fewshot=0, gen_prefix=task.doc_to_prefix(document))
        requests = plain_requests(request.args for request in _requests(task, document, context))
        target = str(task.doc_to_target(document))
    except Exception:
        # A task of somebody's own may not be able to ask without examples; its documents still have columns.
        requests, target = (), ""
    text = DocumentText(requests, target, source)
    return AskedDocument(
        document_hash(document), content_digests(text, *_description(task)), right_answer(requests, target)
    )


def _description(task: Task) -> list[str]:
    description = task.config.description
    return [description] if isinstance(description, str) and description else []


def _requests(task: Task, document: Any, context: Any, **template: Any) -> list[Any]:
    built = task.construct_requests(doc=document, ctx=context, metadata=(task.config.task, 0, 1), **template)
    return built if isinstance(built, list) else [built]


def why_unfit(task: Task, split: str) -> str | None:
    """Why a task cannot give labelled documents from this split, or None if it can."""
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        return (
            "scores whole texts of any length, which recipes learn from as windows (such as wikitext2_2048), or as"
            " texts=[...] in Python"
        )
    if split == "test":
        return None
    if not (task.has_training_docs() if split == "train" else task.has_validation_docs()):
        return (
            f"has no {'training' if split == 'train' else 'validation'} split (calibration.split=test takes documents"
            " out of the score instead)"
        )
    if split == "validation" and not task.has_test_docs():
        return "is scored on its validation split"
    return None


def _why_not_by_itself(task: Task, split: str) -> str | None:
    """As `why_unfit`, for a task that nobody named: one without right answers, or of whole texts, must be asked for."""
    if isinstance(task.config.metadata, dict) and task.config.metadata.get("whole_texts"):
        return "has texts without answers, and must be named to be used"
    if _best_in_the_middle(task):
        return "has no right answers, since its metrics are best in the middle, and must be named to be used"
    return why_unfit(task, split)


def _best_in_the_middle(task: Task) -> bool:
    """Whether a task says so of a metric of its own, or every metric is one of lm-eval's that are known to be."""
    metadata = task.config.metadata if isinstance(task.config.metadata, dict) else {}
    metrics = [str(entry["metric"]) for entry in task.config.metric_list or ()]
    return bool(metadata.get("best_value")) or (
        bool(metrics) and all(best_value(metric, None) is not None for metric in metrics)
    )


def fit_tasks(tasks: Mapping[str, Task], split: str) -> list[str]:
    """The tasks that `evaluated` stands for: those that can give labelled documents with right answers from this split,
    in order.
    """
    return [name for name, task in tasks.items() if _why_not_by_itself(task, split) is None]


def draw_documents(
    calibration: Calibration,
    tasks: Mapping[str, Task],
    scored: Collection[str],
    settings: PromptSettings,
) -> list[CalibrationSet]:
    """Draw the documents that a recipe asks for, as evenly from its tasks as the number allows.

    tasks: every task that may be named, built. scored: hashes and digests of all documents that will be reported.

    Raises UserError where a task is unknown, has no labelled documents in the split, or has fewer than asked.
    """
    names = calibration.tasks
    if EVALUATED in names or not names:
        names = tuple(fit_tasks(tasks, calibration.split))
        if not names:
            reasons = "; ".join(f"{name} {_why_not_by_itself(task, calibration.split)}" for name, task in tasks.items())
            raise UserError(
                f"calibration: no evaluated task can give labelled documents ({reasons}); name one that can:"
                " calibration.task=TASK"
            )
    for name in names:
        if name not in tasks:
            raise UserError(f"calibration: there is no task {name!r} here: {nearest(name, tasks)}")
        if reason := why_unfit(tasks[name], calibration.split):
            raise UserError(f"calibration: task {name!r} {reason}; name another: calibration.task=TASK")
    if calibration.samples < len(names):
        raise UserError(
            f"calibration: {calibration.samples} samples are too few for {len(names)} tasks; give at least one"
            f" for each: calibration.samples={len(names)}"
        )
    return [
        _draw(tasks[name], name, calibration, share, scored, settings)
        for name, share in shares(names, calibration.samples).items()
    ]


def shares(names: Sequence[str], samples: int) -> dict[str, int]:
    """How many of the documents each task gives: as evenly as the number allows, the first ones one more."""
    return {name: samples // len(names) + (place < samples % len(names)) for place, name in enumerate(names)}


def drawing_order(calibration: Calibration, name: str, places: Iterable[int]) -> list[int]:
    """The places of a task's documents in the order in which they are drawn; each task is shuffled by itself."""
    order = list(places)
    random.Random(f"{calibration.seed}:{name}").shuffle(order)
    return order


def _draw(
    task: Task,
    name: str,
    calibration: Calibration,
    share: int,
    scored: Collection[str],
    settings: PromptSettings,
) -> CalibrationSet:
    task.set_fewshot_seed(seed=settings.fewshot_seed)
    chosen: list[LabelledDocument] = []
    also_scored = 0
    for document in _in_drawing_order(task, calibration, name):
        if len(chosen) == share:
            break
        asked = asked_document(task, document)
        if asked.is_among(scored):
            also_scored += 1
            continue
        labelled = _labelled(task, name, document, asked.doc_hash, settings)
        chosen.append(replace(labelled, digests=tuple(sorted(asked.digests)), wording=asked.wording))
    if len(chosen) < share:
        left_out = f" ({also_scored} more are also scored, and so left out)" if also_scored else ""
        raise UserError(
            f"calibration: {share} documents of {name!r} were asked for, and its {calibration.split} split has"
            f" {len(chosen)}{left_out}; lower calibration.samples, or heal.documents where heal asks for them"
        )
    if calibration.shuffled_labels:
        if len(chosen) < 2:
            raise UserError(
                f"calibration: one document of {name!r} has nobody to change answers with; raise calibration.samples"
            )
        chosen = with_answers_of_others(chosen, f"{calibration.seed}:{name}:answers")
    return CalibrationSet(
        name,
        calibration.split,
        calibration.seed,
        tuple(chosen),
        also_scored,
        calibration.shuffled_labels,
        _scored_examples(task, name, scored),
    )


def _in_drawing_order(task: Task, calibration: Calibration, name: str) -> Iterator[Any]:
    """The documents of the split."""
    source: Sequence[Any] = {
        "train": task.training_docs,
        "validation": task.validation_docs,
        "test": lambda: task.eval_docs,
    }[calibration.split]()
    return (source[place] for place in drawing_order(calibration, name, range(len(source))))


def _scored_examples(task: Task, name: str, scored: Collection[str]) -> tuple[str, ...]:
    """A warning where the examples before each question, which bear their answers, come from scored documents."""
    if not task.config.num_fewshot or not scored:
        return ()
    pool: Sequence[Any] = task.fewshot_docs()
    looked_at = range(0, len(pool), max(1, len(pool) // _EXAMPLES_LOOKED_AT))
    shared = sum(asked_document(task, pool[place]).is_among(scored) for place in looked_at)
    if not shared:
        return ()
    return (
        f"{shared} of {len(looked_at)} documents that may be an example before a calibration question of {name} are"
        " scored too, and an example bears its answer: give the task a fewshot_split that is not scored",
    )


def with_answers_of_others(documents: Sequence[LabelledDocument], seed: str) -> list[LabelledDocument]:
    """Every document with the answer of another, in a cycle through all of them drawn by the seed (Sattolo's
    algorithm).

    Of another document, not another answer: two documents may have the same one. With two answers in all, exchanging
    them would not hide what is right but turn it round. Where there are choices, the place of the right one is
    another's too (counted round where there are fewer).
    """
    order = list(range(len(documents)))
    draw = random.Random(seed)
    for last in range(len(order) - 1, 0, -1):
        other = draw.randrange(last)
        order[last], order[other] = order[other], order[last]

    def exchanged(document: LabelledDocument, other: LabelledDocument) -> LabelledDocument:
        right = tuple(dict.fromkeys(place % len(document.choices) for place in other.right)) if document.choices else ()
        return replace(document, answer=other.answer, right=right)

    return [exchanged(document, documents[place]) for document, place in zip(documents, order, strict=True)]


def _labelled(task: Task, name: str, document: Any, hashed: str, settings: PromptSettings) -> LabelledDocument:
    context = task.fewshot_context(
        document,
        num_fewshot=task.config.num_fewshot or 0,
        system_instruction=settings.system_instruction,
        apply_chat_template=settings.apply_chat_template,
        fewshot_as_multiturn=settings.fewshot_as_multiturn,
        chat_template=settings.chat_template,
        gen_prefix=task.doc_to_prefix(document),
    )
    template = {"apply_chat_template": settings.apply_chat_template, "chat_template": settings.chat_template}
    requests = _requests(task, document, context, **template)
    target = task.doc_to_target(document)
    if task.OUTPUT_TYPE == "multiple_choice":
        # With several contexts and one ending (Winogrande), doc_to_text holds the index of the right context.
        gold = task.doc_to_text(document) if task.multiple_input else target
        names = task.doc_to_choice(document)
        right = [
            names.index(one) if isinstance(one, str) else int(one)
            for one in (gold if isinstance(gold, list) else [gold])
        ]
        # Scores that compare with an unconditional likelihood ask for each choice once more; those come last.
        choices = tuple((request.args[0], request.args[1]) for request in requests[: len(names)])
        return LabelledDocument(name, *choices[right[0]], hashed, choices, tuple(right))
    if task.OUTPUT_TYPE == "loglikelihood":
        context, answer = requests[0].args[:2]
        return LabelledDocument(name, context, answer, hashed)
    answer = target[0] if isinstance(target, list) else target
    return LabelledDocument(name, requests[0].args[0], f"{task.config.target_delimiter}{answer}", hashed)
