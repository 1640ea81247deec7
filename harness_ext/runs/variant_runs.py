"""The runs of a command's variants in the folder of its model: where each belongs, and which is there already."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from harness_ext.recipe.recipe import Recipe
from harness_ext.runs import ran_on
from harness_ext.runs.lent_scores import is_of, lent
from harness_ext.runs.progress import ProgressReport
from harness_ext.runs.remote_copy import RemoteCopy
from harness_ext.runs.spec import RunSpec
from harness_ext.storage import rundir
from harness_ext.storage.rundir import FinishedRun

if TYPE_CHECKING:
    from lm_eval.config.evaluate_config import EvaluatorConfig


class VariantRuns:
    """Runs of one command. harness: what was asked. folder: of the model's runs. remote: where more may be fetched."""

    def __init__(
        self, harness: EvaluatorConfig, spec: RunSpec, folder: Path, remote: RemoteCopy, report: ProgressReport
    ) -> None:
        self._harness = harness
        self._spec = spec
        self._folder = folder
        self._remote = remote
        self._report = report
        self._aside: set[str] = set()

    def find(self, recipe: Recipe) -> FinishedRun | None:
        """The whole run of this variant, made in a place like this one, that is there already."""
        place = self.place(recipe)
        asked = (self._spec.spec_id(recipe), self._spec.former_spec_id(recipe))
        self._remote.bring(*asked)
        elsewhere: dict[Path, str] = {}
        damaged = {} if not place.exists() else {place: f"{rundir.RECEIPT} is missing or cannot be read"}
        of_another: FinishedRun | None = None
        for run in rundir.finished_runs(self._folder):
            damaged.pop(run.path, None)
            if run.receipt.get("spec_id") not in asked or run.failed:
                continue
            damage, where = run.damage, self._here.is_not_of(run.receipt)
            if damage is None and where is None and is_of(run, recipe):
                self._tell_kept(recipe, run)
                return run
            if damage is not None:
                damaged[run.path] = damage
            elif where is not None:
                elsewhere[run.path] = where
            else:
                of_another = run
        for path, damage in damaged.items():
            self._report.warn(f"{recipe.label}: the run in {path} is damaged ({damage}) and is made anew")
        for path, where in elsewhere.items():
            self._report.line(
                f"{recipe.label}: the run in {path} was made on {where}, whose rounding may differ from that of"
                f" {ran_on.in_words(self._here.place)}: it stays, and this is scored here as well"
            )
        if of_another is not None and (mine := self._lent(recipe, of_another)) is not None:
            return mine
        if place in elsewhere:
            self._aside.add(recipe.recipe_id)
        return None

    def _lent(self, recipe: Recipe, run: FinishedRun) -> FinishedRun | None:
        """The scores of the same control of another recipe, as this one's; None where there is no room for them."""
        try:
            mine = lent(run, recipe)
        except OSError:
            return None
        self._report.line(f"{recipe.label}: the edit is that of {run.path}, whose scores are taken over")
        return mine

    def _tell_kept(self, recipe: Recipe, run: FinishedRun) -> None:
        where = self._here.of_another_kind(run.receipt)
        made = "" if where is None else f"; it was made on {where}, this is {ran_on.in_words(self._here.place)}"
        self._report.line(f"{recipe.label}: kept from {run.path} (same model, tasks and settings{made})")
        for warning in self._spec.reworded(recipe):
            self._report.line(f"{recipe.label}: {warning}")

    @cached_property
    def _here(self) -> ran_on.Here:
        return ran_on.here(self._harness)

    def place(self, recipe: Recipe) -> Path:
        """The folder of a variant made here. What a killed command left beside it goes on where the same GPU and engine
        are, on whatever host.
        """
        told = self._here.place.is_told or recipe.recipe_id in self._aside
        made_on = f"-{self._here.name}" if told else ""
        return self._folder / f"{rundir.safe_name(recipe.label)}-{self._spec.spec_id(recipe)[:10]}{made_on}"
