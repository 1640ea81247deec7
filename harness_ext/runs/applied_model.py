"""A recipe applied to a loaded model, from Python: what was done, and the way back."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from harness_ext.calibration.given import drawn_from, for_given, from_pairs, from_texts
from harness_ext.editing.warnings import receipt_warnings
from harness_ext.errors import UserError, VariantFailed
from harness_ext.recipe.settings import EVALUATED
from harness_ext.runs import receipt as receipts
from harness_ext.runs.versions import versions
from leaderboard.readers.receipt import FORMAT, Receipt, ReceiptModel, ReceiptTotals, ReceiptWeights

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness_ext.calibration.documents import CalibrationSet
    from harness_ext.editing.pipeline import AppliedRecipe, DrawDocuments
    from harness_ext.lm_eval_adapter.backend import RecipeLM
    from harness_ext.lm_eval_adapter.loaded_model import LoadedModel
    from harness_ext.recipe.recipe import Recipe
    from harness_ext.runs.progress import ProgressReport

_edited: weakref.WeakKeyDictionary[nn.Module, weakref.ref[AppliedModel]] = weakref.WeakKeyDictionary()
"""The models that have a recipe applied, as long as there is something left to undo it by."""

_COLUMNS = ("step", "method", "role", "layer", "shape", "rank_before", "rank_after", "energy_kept", "relative_error")


@dataclass(frozen=True)
class CalibrationSource:
    """Where a recipe's documents come from: at most one of tasks, documents and texts. settings: how the tasks ask, by
    lm-eval's names (`num_fewshot`, ...). include_path: a folder of tasks that the recipe may name.
    """

    tasks: Sequence[str] | str | None = None
    documents: Sequence[tuple[str, str]] | None = None
    texts: Sequence[str] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    include_path: str | None = None

    def check(self, recipe: Recipe) -> None:
        """Raise UserError where more than one is given, or none and the recipe learns from documents that it does not
        name.
        """
        given = [name for name in ("tasks", "documents", "texts") if getattr(self, name) is not None]
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)} are given: a recipe learns from one of them; leave the others out")
        learned = [step.calibration for step in recipe.steps if step.calibration is not None]
        if not given and any(EVALUATED in calibration.tasks for calibration in learned):
            raise UserError(
                f"recipe {recipe.label!r} learns from documents: give documents=[(prompt, answer), ...], texts=[...] or"
                " tasks=[...]"
            )

    def unused(self, recipe: Recipe) -> str | None:
        """A sentence about what is given to a recipe that learns from no documents; None where all is used."""
        given = [name for name in ("tasks", "documents", "texts") if getattr(self, name) is not None]
        if not given or any(step.calibration is not None for step in recipe.steps):
            return None
        return f"recipe {recipe.label!r} learns from no documents: {given[0]} is not used"

    def resolve(self, recipe: Recipe, lm: RecipeLM, report: ProgressReport) -> tuple[Recipe, DrawDocuments]:
        """The recipe with its documents named, and what draws them. Raises UserError where they cannot be had."""
        from harness_ext.lm_eval_adapter.learned_documents import documents_of_named_tasks

        of_named = partial(documents_of_named_tasks, include_path=self.include_path)
        if all(step.calibration is None for step in recipe.steps):
            return recipe, of_named
        if self.tasks is not None:
            return self._of_tasks(recipe, lm, report)
        if self.documents is None and self.texts is None:
            return recipe, of_named
        given = from_pairs(self.documents) if self.documents is not None else from_texts(self.texts or ())
        _check_lengths(given, lm)
        return for_given(recipe, given), lambda calibration: [drawn_from(given, calibration)]

    def _of_tasks(self, recipe: Recipe, lm: RecipeLM, report: ProgressReport) -> tuple[Recipe, DrawDocuments]:
        """As a run on these tasks does it: never a document that the tasks would score."""
        from harness_ext.lm_eval_adapter.config import RunConfig
        from harness_ext.runs.run_config import harness_config
        from harness_ext.runs.session import Session

        if not self.tasks:
            raise UserError("tasks is empty: name at least one, or leave it out")
        name = str(lm.model.config.name_or_path)
        asked = {"model": "hf", "model_args": {"pretrained": name}, "tasks": self.tasks, **self.settings}
        session = Session(RunConfig(harness_config(asked), (), (), name, ()), report)
        session.lm = lm
        resolved = session.spec.resolved(recipe)
        session.spec.hold_out([resolved])
        return resolved, session.documents


def _check_lengths(given: CalibrationSet, lm: RecipeLM) -> None:
    for place, document in enumerate(given.documents):
        tokens = len(lm.tok_encode(document.answer, add_special_tokens=False))
        if tokens > lm.max_length:
            raise UserError(
                f"{given.task}[{place}] has {tokens:,} tokens to predict, and the model reads {lm.max_length:,} at"
                " once: split it"
            )


class AppliedModel:
    """A loaded model with a recipe applied to it, until the end of the `with` block, or `undo`.

    model: the very object that was given. recipe: as it was carried out, every default filled in. receipt: what a run's
    `receipt.json` says, as far as nothing was scored.
    """

    def __init__(self, lm: LoadedModel, recipe: Recipe, receipt: dict[str, Any]) -> None:
        self.model: PreTrainedModel = lm.model
        self.recipe = recipe
        self.receipt = receipt
        self._lm: LoadedModel | None = lm
        _edited[self.model] = weakref.ref(self)

    @property
    def matrices(self) -> pd.DataFrame:
        """One row for each edit of a matrix, or of a part of a fused one, in the order in which they were made.

        Columns: name (of the parameter, with the part), step, method, role, layer, shape `(out, in)`, rank_before,
        rank_after, energy_kept (`||W'||^2 / ||W||^2`) and relative_error (`||W - W'|| / ||W||`), Frobenius norms.
        """
        import pandas as pd

        rows = [
            {
                "name": " ".join(filter(None, (row["name"], row["part"]))),
                **{key: row[key] for key in _COLUMNS},
                "shape": tuple(row["shape"]),
            }
            for row in self.receipt["matrices"]
        ]
        return pd.DataFrame(rows, columns=["name", *_COLUMNS])

    def undo(self) -> None:
        """Put the weights back, bit for bit, and biases and modules that the recipe added away; harmless where that is
        done. Weights that the recipe did not touch stay as they are.

        Raises UserError where the dtype of an edited weight was changed: the model must then be loaded again.
        """
        if self._lm is None:
            return
        try:
            self._lm.undo()
        finally:
            # With it goes the scratch folder that held the originals.
            self._lm = None
            del _edited[self.model]

    def __enter__(self) -> AppliedModel:
        return self

    def __exit__(self, *error: object) -> None:
        self.undo()

    def __repr__(self) -> str:
        done = "applied" if self._lm is not None else "undone"
        return f"<{self.recipe.label} on {self.receipt['model']['name']}: {done}>"


def apply_to_model(
    model: PreTrainedModel,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase | None,
    source: CalibrationSource,
    report: ProgressReport,
) -> AppliedModel:
    """Apply a recipe to a loaded model; see `harness_ext.apply`."""
    from harness_ext.lm_eval_adapter.loaded_model import LoadedModel, in_evaluation_mode

    source.check(recipe)
    if tokenizer is None and any(step.calibration or step.contrast for step in recipe.steps):
        raise UserError(f"recipe {recipe.label!r} reads texts with the model: give its tokenizer, tokenizer=tok")
    started = receipts.now()
    lm = LoadedModel(model, tokenizer)
    _refuse_second(model, recipe)
    with in_evaluation_mode(model), ExitStack() as undo_on_failure:
        resolved, documents = source.resolve(recipe, lm, report)
        before = lm.weights.digest()
        undo_on_failure.callback(lm.undo)
        try:
            applied = lm.apply(resolved, documents, report.progress)
        except VariantFailed as error:
            raise UserError(f"recipe {recipe.label!r} cannot be applied to this model: {error}") from error
        receipt = _receipt(lm, resolved, applied, started, before)
        undo_on_failure.pop_all()
    return AppliedModel(lm, resolved, receipt)


def _refuse_second(model: nn.Module, recipe: Recipe) -> None:
    reference = _edited.get(model)
    earlier = reference() if reference is not None else None
    if earlier is not None:
        raise UserError(
            f"the model has {earlier.recipe.label!r} applied: leave that block before applying {recipe.label!r}, or"
            " write one recipe with the steps of both"
        )


def _receipt(
    lm: LoadedModel, recipe: Recipe, applied: AppliedRecipe, started: str, digest_before: str
) -> dict[str, Any]:
    """What `receipt.json` of a run would say, without what was asked of tasks. The identity of the model is the digest
    of its weights, since a model in memory has no checkpoint to tell it by.
    """
    receipt = Receipt(
        format=FORMAT,
        status="complete",
        failure=None,
        spec_id="",
        recipe_id=recipe.recipe_id,
        started=started,
        model=ReceiptModel(
            name=str(lm.model.config.name_or_path),
            dtype=str(lm.model.dtype).removeprefix("torch."),
            device=str(lm.device),
            model_type=str(lm.model.config.model_type),
            identity=digest_before,
            parameters=lm.weights.size.parameters,
        ),
        recipe=receipts.described(recipe),
        warnings=receipt_warnings(recipe, applied),
        weights=ReceiptWeights(digest_before=digest_before, digest_after=lm.weights.digest()),
        totals=ReceiptTotals(**lm.totals()),
        versions=versions(),
    )
    receipts.close(receipt, applied, {})
    return {key: value for key, value in receipt.to_json().items() if key != "spec_id"}
