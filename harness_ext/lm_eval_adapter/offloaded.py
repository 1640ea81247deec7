"""What the backend asks of whoever edits a checkpoint's files in the place of weights that are not in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from harness_ext.editing.pipeline import AppliedRecipe
    from harness_ext.recipe.recipe import Recipe


class EditedFiles(NamedTuple):
    """An edited checkpoint: its folder, what was done, and the digest of all its weights as `Weights.digest` has it."""

    folder: Path
    applied: AppliedRecipe
    digest: str


class FileEditor(Protocol):
    """Carries out recipes on the files of a model's checkpoint."""

    def check(self, recipes: Sequence[Recipe]) -> None:
        """Raise UserError where one cannot be carried out so."""

    def edit(self, recipe: Recipe) -> EditedFiles:
        """The edited checkpoint, in the place of any former one."""
        ...

    def discard(self) -> None:
        """It is not needed any more."""
