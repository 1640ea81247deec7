"""Recipes on a model of which some weights are offloaded: what is not in memory cannot be edited there, so the files of
the checkpoint are edited, one after another, and the model is loaded from the new ones.

They lie in the folders of edited weights, in use while a recipe is scored, and kept within a bound: a later command,
or the same one after a kill, does not edit them again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness_ext.editing.edit_matrix import EditedMatrix
from harness_ext.editing.edit_stored import needs_memory
from harness_ext.editing.pipeline import AppliedRecipe
from harness_ext.errors import UserError
from harness_ext.lm_eval_adapter.offloaded import EditedFiles
from harness_ext.lm_eval_adapter.task_identity import digest
from harness_ext.model.stored_model import NotByShards
from harness_ext.runs.shard_export import ShardExport, edits_of_files
from harness_ext.storage import rundir
from harness_ext.storage.weight_folders import WeightFolders
from leaderboard.readers.receipt import MatrixRecord

if TYPE_CHECKING:
    from harness_ext.recipe.recipe import Recipe
    from harness_ext.runs.progress import ProgressReport


class FileEdits:
    """Edited checkpoints of one model. model_args: as in lm-eval, `demo` resolved, with `device`. identity: a hash of
    the model's files.
    """

    def __init__(
        self, model_args: Mapping[str, Any], identity: str, folders: WeightFolders, report: ProgressReport
    ) -> None:
        self._arguments = model_args
        self._identity = identity
        self._folders = folders
        self._report = report

    def check(self, recipes: Sequence[Recipe]) -> None:
        """Raise UserError naming every recipe that cannot be carried out on files, and what to do."""
        refused = [sentence for recipe in recipes if recipe.steps and (sentence := self._refusal(recipe))]
        if refused:
            raise UserError("\n".join(refused))

    def _refusal(self, recipe: Recipe) -> str | None:
        try:
            if (reason := needs_memory(recipe)) is not None:
                raise NotByShards(reason)
            with edits_of_files(recipe, self._arguments):
                return None
        except NotByShards as found:
            return (
                f"{recipe.label!r} cannot be scored while weights are offloaded, since those are edited in the files of"
                f" the checkpoint: {found}; give the model more memory, or write the edited model with `lm_eval export"
                " --layers_on DEVICE`, which has one decoder layer there at a time, and score that folder"
            )

    def edit(self, recipe: Recipe) -> EditedFiles:
        """The edited checkpoint; the former one is no longer in use. Raises UserError, and VariantFailed where numbers
        are at fault.
        """
        self.check([recipe])
        self.discard()
        name = str(self._arguments["pretrained"])
        with edits_of_files(recipe, self._arguments) as edits:
            export = ShardExport(recipe, edits, self._report)

            def write(folder: Path) -> None:
                self._report.line(f"{recipe.label}: weights are offloaded, so the files of the checkpoint are edited")
                export.fill(folder, self._arguments, name, [])

            key = digest([self._identity, export.key(self._arguments)])[:40]
            folder = self._folders.get(key, export.size, write)
            if export.applied is None:
                self._report.line(f"{recipe.label}: weights are offloaded; their files, edited before, are in {folder}")
        return _edited_in(folder)

    def discard(self) -> None:
        """The edited checkpoint, if there is one, is in use no longer."""
        self._folders.release()


def _edited_in(folder: Path) -> EditedFiles:
    """An edited checkpoint, by the receipt in its folder."""
    receipt = json.loads((folder / rundir.RECEIPT).read_text(encoding="utf-8"))
    records = [MatrixRecord.model_validate(record) for record in receipt["matrices"]]
    edited = [EditedMatrix(record, None, None) for record in records]
    applied = AppliedRecipe(edited=edited, seconds_editing=sum(record.seconds for record in records))
    return EditedFiles(folder, applied, receipt["weights"]["digest_after"])
