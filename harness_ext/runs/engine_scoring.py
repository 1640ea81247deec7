"""A run whose variants are scored by an inference engine: first all edits, each written to a folder, then all scores.

Recipes learn and edit on the Hugging Face backend, as they do without an engine. It is gone before the engine starts,
which wants the memory for itself. A folder of edited weights is kept for later commands, within a bound; so is, until
the variant is scored, what became of the edit, so that the same command after a kill does not edit it again.
"""

from __future__ import annotations

import gc
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness_ext.editing.warnings import checkpoint_warnings
from harness_ext.errors import UserError, VariantFailed
from harness_ext.lm_eval_adapter.engines import Engine, check_memory, editing_arguments
from harness_ext.lm_eval_adapter.running_engine import EngineWeights, RunningEngine
from harness_ext.recipe.recipe import Recipe
from harness_ext.runs import export
from harness_ext.runs import receipt as receipts
from harness_ext.runs.failures import failures_of_machine, require_finite_results
from harness_ext.runs.progress import ProgressReport
from harness_ext.runs.ran_on import gathered
from harness_ext.runs.session import Session, VariantOutcome, timed
from harness_ext.runs.spec import digest
from harness_ext.runs.versions import versions
from harness_ext.storage.resume import ResumeState
from harness_ext.storage.rundir import FinishedRun
from harness_ext.storage.weight_folders import WeightFolders, user_folders
from leaderboard.readers.receipt import Receipt, ReceiptTotals, ReceiptWeights, public_receipt
from leaderboard.readers.secrets import redacted_command

if TYPE_CHECKING:
    from harness_ext.editing.pipeline import AppliedRecipe
    from harness_ext.lm_eval_adapter.config import RunConfig

_CHECKED_OF_A_TASK, _CHECKED_TEXTS = 8, 32
_TWO_BYTES = ("float16", "bfloat16", "half")
_EDITED = "edited"
_FOLDER = re.compile("[0-9a-f]{40}")
_SENTENCE = "The recipe for bread is flour, water, salt and time. Most of the work is done by waiting for it to rise."


@dataclass
class _Edited:
    """A variant that is edited and not scored yet. receipt: closed, without scores."""

    receipt: Receipt
    weights: EngineWeights
    resume: ResumeState
    seconds: float

    def keep(self) -> None:
        """Leave what a later process needs to score it."""
        weights = vars(self.weights).copy()
        folder = weights.pop("folder")
        row = {"receipt": public_receipt(self.receipt.to_json()), "folder": folder and folder.name, "weights": weights}
        self.resume.append(_EDITED, row)


class EngineSession(Session):
    """A session that edits on the Hugging Face backend and scores by the engine that the command names."""

    def __init__(self, config: RunConfig, report: ProgressReport) -> None:
        super().__init__(config, report)
        assert config.engine is not None
        self.engine: Engine = config.engine
        self._edited: dict[Path, _Edited] = {}

    @property
    def loading_arguments(self) -> dict[str, Any]:
        """Those of the Hugging Face backend, which edits."""
        return editing_arguments(self.engine, self.harness.model_args)

    def take_model_of(self, other: Session) -> None:
        """Nothing: an engine is started anew, since batch sizes are among its arguments."""

    def _check_fit(self, recipes: Sequence[Recipe]) -> None:
        """As without an engine, and whether its GPUs can hold the weights."""
        super()._check_fit(recipes)
        if (found := self._headers()) is not None:
            short = self.loading_arguments.get("dtype") in _TWO_BYTES
            bytes_of = [min(tensor.element_bytes, 2 if short else 8) for tensor in found.tensors.values()]
            sizes = [prod(tensor.shape) for tensor in found.tensors.values()]
            size = sum(count * each for count, each in zip(sizes, bytes_of))
            check_memory(self.engine, self.harness.model_args, size)

    def _load_while_hashing(self) -> None:
        """Nothing: whether the model must be loaded is known only by its identity."""

    def _outcomes(self, variants: Sequence[Recipe]) -> Iterator[VariantOutcome]:
        """All variants edited, then one after another scored. A mistake in an edit is raised after what was edited
        before it is scored.
        """
        outcomes: list[VariantOutcome] = []
        mistake: UserError | None = None
        try:
            try:
                for outcome in super()._outcomes(variants):
                    outcomes.append(outcome)  # noqa: PERF402 - what came before a mistake is kept
            except UserError as error:
                mistake = error
            self._free_model()
            for outcome in outcomes:
                edited = self._edited.pop(outcome.run.path, None)
                yield outcome if edited is None else self._scored(outcome, edited)
        finally:
            self._running.close()
            self._folders.release()
        if mistake is not None:
            raise mistake

    @cached_property
    def _folders(self) -> WeightFolders:
        return user_folders()

    @cached_property
    def _running(self) -> RunningEngine:
        harness = self.harness
        extra = {"batch_size": harness.batch_size, "max_batch_size": harness.max_batch_size, "device": harness.device}
        running = RunningEngine(self.engine, harness.model_args, extra, self._texts, self.report.progress)
        running.secrets = self.config.secrets
        return running

    def _texts(self) -> list[str]:
        """Texts of some scored documents, by which the engine's way back to the original weights is checked."""
        texts: list[str] = []
        for name, task in self.spec.tasks.by_name.items():
            with suppress(Exception):  # of anybody's task; one that gives no text is not needed here
                documents = self.spec.first_documents(name, _CHECKED_OF_A_TASK)
                texts += [str(task.doc_to_text(document)).strip() for document in documents]
        return [*(f"{text} {_SENTENCE}" for text in texts[:_CHECKED_TEXTS]), _SENTENCE]

    def _made(self, recipe: Recipe) -> FinishedRun:
        """Edit a variant and write its weights, unless that is done; it is scored later. One that cannot be edited is
        done with that.
        """
        place = self._place(recipe)
        resume = ResumeState(place.parent / f".{place.name}.work")
        edited = self._edited_before(recipe, resume) or self._edit(recipe, place, resume)
        if isinstance(edited, FinishedRun):
            return edited
        self._edited[place] = edited
        return FinishedRun(place, edited.receipt.to_json())

    def _edited_before(self, recipe: Recipe, resume: ResumeState) -> _Edited | None:
        """What an earlier process has edited and not scored, if it was asked for the same by the same versions and its
        weights are still there.
        """
        try:
            row = resume.rows(_EDITED)[-1]
            receipt, weights = Receipt.model_validate(row["receipt"]), EngineWeights(**row["weights"])
            name = row["folder"]
            if name is not None and not _FOLDER.fullmatch(name):
                return None
        except (IndexError, KeyError, TypeError, ValueError):
            return None  # nothing is there, or it is not as it was written
        if receipt.spec_id != self.spec.spec_id(recipe) or receipt.versions != versions():
            return None
        if name is not None:
            if (folder := self._folders.kept(name)) is None:
                return None
            weights = replace(weights, folder=folder)
            self.report.line(f"{recipe.label}: an earlier command has edited it; its weights are in {folder}")
        receipt.command = redacted_command(self.config.command)
        return _Edited(receipt, weights, resume, 0.0)

    def _edit(self, recipe: Recipe, place: Path, resume: ResumeState) -> _Edited | FinishedRun:
        """Edit a variant and write its weights. Returns its run where it cannot be edited."""
        began, started = time.perf_counter(), receipts.now()
        lm = self.lm
        seconds = {"load": self._seconds_loading, "evaluate": 0.0}
        self._seconds_loading = 0.0
        receipt = receipts.opened(self.config, self.spec, lm, recipe, started)
        receipt.warnings = [*checkpoint_warnings(lm.unexpected_weights), *self.spec.reworded(recipe)]
        applied: AppliedRecipe | None = None
        weights: EngineWeights | None = None
        try:
            with failures_of_machine():
                applied = self._apply(recipe, receipt, resume)
                weights = EngineWeights() if applied is None else self._written(recipe, receipt)
        except VariantFailed as error:
            receipts.mark_failed(receipt, error)
        finally:
            if not recipe.is_baseline:
                lm.undo()
        receipts.close(receipt, applied, seconds)
        if weights is None:
            run = receipts.write(place, receipt, None, self.config, self.report)
            self.report.finished(recipe, run, time.perf_counter() - began)
            return run
        edited = _Edited(receipt, weights, resume, time.perf_counter() - began)
        edited.keep()
        return edited

    def _written(self, recipe: Recipe, receipt: Receipt) -> EngineWeights:
        """Write the model as it is to a folder of its own. Raises VariantFailed where its architecture has no place for
        what was made of it, and UserError where the disk has none.
        """
        lm = self.lm
        assert lm.applied is not None
        if made_dense := lm.weights.make_dense():
            lm.applied.edited = [
                replace(edited, written=record, digest_after=None)
                for edited, record in zip(
                    lm.applied.edited, export.records_made_dense(lm, lm.applied.records, made_dense), strict=True
                )
            ]
            receipt.warnings = [
                *receipt.warnings,
                f"{len(made_dense)} layers that the recipe computes as two low-rank ones were scored as their products,"
                f" since {self.engine.name} loads plain weights: its speed is that of dense layers",
            ]
            receipt.weights = ReceiptWeights(
                digest_before=receipt.weights.digest_before, digest_after=lm.weights.digest()
            )
        try:
            config, state = export.checkpoint_of(lm)
        except UserError as error:
            raise VariantFailed("no_plain_checkpoint", f"{error}; {self.engine.name} loads nothing else") from error
        kind = [receipt.weights.digest_after, self.spec.model_identity, config.to_dict(), versions()["transformers"]]
        size = sum(value.numel() * value.element_size() for value in state.values())
        with self.report.progress.stage(f"{recipe.label}: writing the edited weights"):
            folder = self._folders.get(digest(kind)[:40], size, lambda place: export.save(lm, config, state, place))
        changed = receipt.weights.digest_after != receipt.weights.digest_before
        return EngineWeights(folder, new_config=config is not lm.model.config, changed=changed)

    def _free_model(self) -> None:
        """Give back the memory of the model that was edited."""
        lm = vars(self).pop("lm", None)
        if lm is None:
            return
        import torch

        del lm
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _scored(self, outcome: VariantOutcome, edited: _Edited) -> VariantOutcome:
        """Score an edited variant, and write its run."""
        began = time.perf_counter()
        recipe, receipt, place = outcome.recipe, edited.receipt, outcome.run.path
        seconds = {"evaluate": 0.0}
        results: dict[str, Any] | None = None
        try:
            with failures_of_machine():
                lm: Any = self._running.with_weights(edited.weights)
                receipt.ran_on = gathered(lm)
                self._unchanged.collect()
                speed = self._running.measured()
                if dtype := self._running.dtype:
                    receipt.model = receipt.model.model_copy(update={"dtype": dtype})
                tasks = self.spec.tasks
                from harness_ext.lm_eval_adapter.evaluate import evaluate

                with timed(seconds, "evaluate"), self.report.stage(f"{recipe.label}: evaluating"):
                    results = evaluate(lm, tasks.as_named, tasks.manager, self.config, self._unchanged)
                before = receipt.totals.to_json() if receipt.totals is not None else {}
                receipt.totals = ReceiptTotals.model_validate(before | self._speed(recipe, speed))
                receipt.speed = speed.phases()
                require_finite_results(results)
        except VariantFailed as error:
            receipts.mark_failed(receipt, error)
            results = None
        load, self._running.seconds_starting = self._running.seconds_starting, 0.0
        receipts.finish(receipt, load=receipt.seconds["load"] + load, **seconds)
        run = receipts.write(place, receipt, results, self.config, self.report)
        if not run.failed:
            edited.resume.remove()
        self.report.finished(recipe, run, edited.seconds + time.perf_counter() - began)
        return VariantOutcome(recipe, run, reused=False)
