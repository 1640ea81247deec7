"""Documents of a model that is edited as it is made: those that its recipe learns from, which are not scored then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness_ext.calibration.documents import PromptSettings, asked_document, document_hash, draw_documents
from harness_ext.errors import UserError
from harness_ext.recipe.settings import EVALUATED, Calibration
from leaderboard.readers.same_document import DocumentText, content_digests, digests_in_samples, plain_requests

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from harness_ext.calibration.documents import CalibrationSet
    from harness_ext.editing.pipeline import AppliedRecipe
    from harness_ext.recipe.recipe import Recipe


def documents_of_named_tasks(calibration: Calibration, include_path: str | None = None) -> list[CalibrationSet]:
    """Calibration documents when the evaluated tasks are not known here: the recipe must name its tasks. include_path:
    a folder of further tasks.
    """
    if EVALUATED in calibration.tasks:
        raise UserError(
            "calibration: which tasks are evaluated is not known here; name one in the recipe: calibration.task=TASK,"
            " and heal.task=TASK where it has heal"
        )
    from harness_ext.lm_eval_adapter.task_index import task_manager
    from harness_ext.lm_eval_adapter.task_loading import check_known, load_tasks

    manager = task_manager(include_path)
    for name in calibration.tasks:
        check_known(name, manager)
    loaded = load_tasks(manager, calibration.tasks).loaded["tasks"]
    scored = {
        hashed
        for task in loaded.values()
        for document in task.eval_docs
        for hashed in asked_document(task, document).identities
    }
    return draw_documents(calibration, loaded, scored, PromptSettings())


def learned_from(recipe: Recipe, applied: AppliedRecipe) -> frozenset[str]:
    """The digests of all documents that a recipe was chosen on or learned from."""
    return frozenset(recipe.chosen_on).union(
        *({document.doc_hash, *document.digests} for _, drawn in applied.calibration for document in drawn.documents)
    )


def refuse_learned(recipe: Recipe | None, learned: frozenset[str], requests: Sequence[Instance]) -> None:
    """Raise UserError where a request is about a document that the recipe was chosen on or learned from."""
    if not learned or recipe is None:
        return
    together: dict[tuple[str | None, int | None], list[Instance]] = {}
    for request in requests:
        together.setdefault((request.task_name, request.doc_id), []).append(request)
    asked = sum(_is_among(of_document, learned) for of_document in together.values())
    if asked:
        raise UserError(
            f"recipe {recipe.label!r} was chosen on or learned from {asked} of the {len(together)} documents"
            " asked here (chosen_on), which cannot be taken out of the score here; run it by `lm_eval run --recipe`"
        )


def _is_among(requests: Sequence[Instance], learned: frozenset[str]) -> bool:
    """Whether the document of these requests is one of those learned from."""
    document = requests[0].doc
    if document_hash(document) in learned:
        return True
    text = DocumentText(plain_requests(request.args for request in requests), "", document)
    return not learned.isdisjoint(content_digests(text) | digests_in_samples(text, 1))
