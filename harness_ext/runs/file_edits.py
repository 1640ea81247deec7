"""Recipes on a model of which some weights are offloaded: what is not in memory cannot be edited there, so the files of
the checkpoint are edited, one after another, and the model is loaded from the new ones.

They lie beside the runs, in one hidden folder of this process: those of one recipe at a time. It is removed when the
recipe is scored; that of a process that was killed is swept away by the next one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness_ext.errors import UserError
from harness_ext.lm_eval_adapter.offloaded import EditedFiles
from harness_ext.model.stored_model import NotByShards
from harness_ext.runs.shard_export import ShardExport, edits_of_files

if TYPE_CHECKING:
    from harness_ext.recipe.recipe import Recipe
    from harness_ext.runs.progress import ProgressReport


class FileEdits:
    """Edited checkpoints of one model. model_args: as in lm-eval, `demo` resolved, with `device`. folder: where the
    model's runs are.
    """

    def __init__(self, model_args: Mapping[str, Any], folder: Path, report: ProgressReport) -> None:
        self._arguments = model_args
        self._folder = folder / f".weights.tmp-{os.getpid()}"
        self._report = report

    def check(self, recipes: Sequence[Recipe]) -> None:
        """Raise UserError naming every recipe that cannot be carried out on files, and what to do."""
        refused = [sentence for recipe in recipes if recipe.steps and (sentence := self._refusal(recipe))]
        if refused:
            raise UserError("\n".join(refused))

    def _refusal(self, recipe: Recipe) -> str | None:
        try:
            if any(step.factored for step in recipe.steps):
                raise NotByShards("it computes matrices as two low-rank layers, which files of plain weights have not")
            with edits_of_files(recipe, self._arguments):
                return None
        except NotByShards as reason:
            return (
                f"{recipe.label!r} cannot be scored while weights are offloaded, since those are edited in the files of"
                f" the checkpoint: {reason}; give the model more memory, or write the edited model with `lm_eval export"
                " --layers_on DEVICE`, which has one decoder layer there at a time, and score that folder"
            )

    def edit(self, recipe: Recipe) -> EditedFiles:
        """The edited checkpoint; the former one is gone. Raises UserError, and VariantFailed where numbers are at
        fault.
        """
        self.check([recipe])
        self.discard()
        self._folder.mkdir(parents=True)
        name, place = str(self._arguments["pretrained"]), self._folder / "checkpoint"
        self._report.line(f"{recipe.label}: weights are offloaded, so the files of the checkpoint are edited")
        with edits_of_files(recipe, self._arguments) as edits:
            export = ShardExport(recipe, edits, place, self._report, flag="--output_path")
            export.write(self._arguments, name, [])
            assert export.applied is not None
            return EditedFiles(place, export.applied, export.weights.digest())

    def discard(self) -> None:
        """Remove the edited checkpoint, if there is one."""
        shutil.rmtree(self._folder, ignore_errors=True)
