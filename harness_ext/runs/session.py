"""One command: a model loaded at most once, tasks built once, every variant scored and written, or found to be there
already.

The order is the baseline, then each recipe followed by its controls. A variant whose run directory stands is not run
again: `spec_id` hashes everything that was asked, down to the contents of the checkpoint and of the documents. The
model is loaded when the first variant needs it, so a command whose work is done only reads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness_ext.calibration.collect import check_pairs
from harness_ext.editing.controls import NoControl, check_control, control_recipe
from harness_ext.editing.plan_matrices import planned_matrices
from harness_ext.editing.warnings import checkpoint_warnings, receipt_warnings
from harness_ext.errors import UserError, VariantFailed, located
from harness_ext.lm_eval_adapter import admission
from harness_ext.lm_eval_adapter.chat_template import ChatTemplate
from harness_ext.lm_eval_adapter.unchanged import Unchanged
from harness_ext.model.checkpoint import Checkpoint
from harness_ext.model.completeness import check_headers
from harness_ext.model.dtype_speed import advice
from harness_ext.model.offload import is_offloaded
from harness_ext.ranks.group import current
from harness_ext.ranks.shared_resume import SharedResumeState
from harness_ext.recipe.recipe import Recipe, parse_recipe, parse_recipes
from harness_ext.recipe.schema import statistics_of
from harness_ext.recipe.settings import Calibration
from harness_ext.runs import ran_on
from harness_ext.runs import receipt as receipts
from harness_ext.runs.failures import failures_of_machine, require_finite_results
from harness_ext.runs.file_edits import FileEdits
from harness_ext.runs.progress import ProgressReport
from harness_ext.runs.remote_copy import RemoteCopy
from harness_ext.runs.spec import RunSpec
from harness_ext.runs.stored_model import model_to_be_loaded, stored_model
from harness_ext.runs.time_left import TimeLeft, Work, expected_work
from harness_ext.runs.variant_runs import VariantRuns
from harness_ext.storage import rundir
from harness_ext.storage.resume import ResumeState
from harness_ext.storage.rundir import FinishedRun
from harness_ext.storage.weight_folders import user_folders
from leaderboard.readers.receipt import Receipt, ReceiptTotals, ReceiptWeights

if TYPE_CHECKING:
    from harness_ext.calibration.documents import CalibrationSet
    from harness_ext.editing.pipeline import AppliedRecipe
    from harness_ext.lm_eval_adapter.backend import RecipeLM
    from harness_ext.lm_eval_adapter.config import RunConfig
    from harness_ext.lm_eval_adapter.throughput import Speed


@dataclass(frozen=True)
class VariantOutcome:
    """One variant of the command: its recipe, its run directory, and whether that was there before."""

    recipe: Recipe
    run: FinishedRun
    reused: bool


class ControlNotMade(NamedTuple):
    """A control that cannot be one of a recipe: the recipe's label, the control's name, and why."""

    recipe: str
    control: str
    reason: str


class Session:
    """Everything that the variants of one command share.

    config: what was asked. report: told what happens. not_made: controls left out so far. Nothing is loaded or written
    before `run`.
    """

    def __init__(self, config: RunConfig, report: ProgressReport) -> None:
        self.config = config
        self.harness = config.harness
        self.report = report
        self.root = rundir.results_root(Path(self.harness.output_path))
        self.folder = self.root / rundir.safe_name(config.model_name)
        self.spec = RunSpec(config, report)
        self._remote = RemoteCopy(config.remote, self.folder, report)
        self._runs = VariantRuns(self.harness, self.spec, self.folder, self._remote, report)
        self._baseline_speed: dict[str, float | None] = {}
        self._to_check: list[Recipe] = []
        self._work: dict[str, Work] = {}
        self._unchanged = Unchanged()
        self.not_made: list[ControlNotMade] = []
        self._seconds_loading = 0.0
        self._planned = True
        self._ranks = current()

    def run(self) -> Iterator[VariantOutcome]:
        """Yield every variant as it is finished or found. Raises UserError before anything is loaded, where the asking
        is at fault, and at the end where runs could not be uploaded.
        """
        recipes = parse_recipes(self.config.recipes)
        for variable in (ran_on.SWEEP, ran_on.CELL):
            ran_on.sweep_name(variable)
        if self._ranks.first:
            self.spec.begin()
        self._check_asked(recipes)
        if self._ranks.first:
            rundir.prepare_root(self.root)
            rundir.sweep(self.folder)
            self._remote.begin()
        baseline = parse_recipe("baseline")
        variants = [baseline, *(self.spec.resolved(recipe) for recipe in recipes)]
        self.spec.hold_out(variants)
        self._check_fit(variants)
        self._load_while_hashing()
        most = len(variants) + (len(variants) - 1) * len(self.config.controls)
        time_left = TimeLeft(self._work, self.report.progress.clock)
        with self.report.progress.stage("scoring", most, "variants") as stage:
            stage.expected = time_left.seconds
            for outcome in self._outcomes(variants):
                if outcome.recipe.is_baseline:
                    time_left.scored(outcome.run.receipt)
                time_left.finished(outcome.recipe.label, reused=outcome.reused)
                stage.advance()
                if self._ranks.first:
                    self._remote.send(outcome.run)
                yield outcome
        self._remote.end()

    def _outcomes(self, variants: Sequence[Recipe]) -> Iterator[VariantOutcome]:
        """Each of them that differs from those before, followed by its controls."""
        seen: dict[str, str] = {}
        for recipe in variants:
            if recipe.recipe_id in seen:
                if not recipe.is_baseline:
                    same = seen[recipe.recipe_id]
                    what = "given twice" if same == recipe.label else f"the same as {same}"
                    self.report.line(f"{recipe.label}: {what}, and run once")
                continue
            seen[recipe.recipe_id] = recipe.label
            outcome = self._variant(recipe)
            yield outcome
            if recipe.is_baseline:
                continue
            for name in self.config.controls:
                if outcome.run.failed:
                    self.report.not_run(f"{recipe.label}+{name}", "the recipe whose budget it takes failed")
                    continue
                try:
                    control = control_recipe(name, recipe, outcome.run.receipt)
                except NoControl as reason:
                    self.report.not_run(f"{recipe.label}+{name}", str(reason))
                    self.not_made.append(ControlNotMade(recipe.label, name, str(reason)))
                    continue
                yield self._variant(control)

    @property
    def loading_arguments(self) -> dict[str, Any]:
        """lm-eval's arguments for the model that recipes edit."""
        return {key: value for key, value in self.harness.model_args.items() if key != "recipe"}

    def _check_asked(self, recipes: Sequence[Recipe]) -> None:
        edited = [recipe for recipe in recipes if recipe.steps]
        if self.config.controls and not edited:
            raise UserError(
                "--control takes the budget of another recipe, and the baseline has none: name a recipe that edits, or"
                " leave --control out"
            )
        for name in self.config.controls:
            check_control(name)
        admission.check_all(self.loading_arguments, recipes, self.harness.device)

    def _check_fit(self, recipes: Sequence[Recipe]) -> None:
        """Find out what will not work before the model is loaded and scored: matrices and ranks from the headers,
        calibration from the tasks.
        """
        self.spec.task_settings  # noqa: B018 - taken before drawing documents settles the number of shots
        self._check_chat_template()
        loaded = self._headers()
        self._to_check = [recipe for recipe in recipes if recipe.steps]
        self._planned = loaded is not None
        mistakes: list[str] = []
        for recipe in recipes:
            try:
                if loaded is not None:
                    planned_matrices(recipe, loaded)
                self._check_calibration(recipe)
            except UserError as error:
                mistakes.append(str(error))
        if mistakes:
            if loaded is not None:
                # A pattern that matches nothing may be the fault of weights that are not there.
                check_headers(stored_model(self.loading_arguments))
            raise UserError("\n".join(mistakes))
        if loaded is not None:
            self._work = expected_work(self._to_check, self.config.controls, loaded)

    def _headers(self) -> Checkpoint | None:
        return model_to_be_loaded(self.loading_arguments)

    def _check_calibration(self, recipe: Recipe) -> None:
        for number, step in enumerate(recipe.steps):
            if step.calibration is None:
                continue
            with located(recipe.place(number)):
                counts = {drawn.task: len(drawn.documents) for drawn in self.documents(step.calibration)}
                check_pairs(statistics_of(step), counts, step.calibration.batch_size)

    @cached_property
    def _chat_template(self) -> ChatTemplate:
        return ChatTemplate(self.loading_arguments, self.harness.apply_chat_template)

    def _check_chat_template(self) -> None:
        """Ask the template for the first conversation of every task."""
        if not self.harness.apply_chat_template:
            return
        prompts = self.spec.prompts(self._chat_template.apply)
        for name, task in self.spec.tasks.by_name.items():
            self._chat_template.check(task, self.spec.first_document(name), prompts)

    def _load_while_hashing(self) -> None:
        """Load the model before its identity is known, where nothing can be there already, so that large files are
        hashed and loaded side by side.
        """

        def nothing_is_there() -> bool:
            return self.spec.model_is_being_read and not any(rundir.finished_runs(self.folder))

        if not self._ranks.from_first("whether to load at once", nothing_is_there):
            return
        try:
            self.lm  # noqa: B018 - loaded when first asked for
        except UserError:
            # A file that cannot be read is told as such.
            self.spec.model  # noqa: B018
            raise

    def _variant(self, recipe: Recipe) -> VariantOutcome:
        """A variant that is found or made. With several ranks the first decides, and tells the others."""
        self.spec.model  # noqa: B018 - the first rank tells it to all
        kept = self._told(f"what is there of {recipe.label}", lambda: self._runs.find(recipe))
        if kept is not None:
            return VariantOutcome(recipe, kept, reused=True)
        return VariantOutcome(recipe, self._made(recipe), reused=False)

    def _made(self, recipe: Recipe) -> FinishedRun:
        """Apply, score and write a variant, and tell that it is done."""
        started = time.perf_counter()
        run = self._make(recipe)
        self.report.finished(recipe, run, time.perf_counter() - started)
        return run

    def _told(self, what: str, look: Callable[[], FinishedRun | None]) -> FinishedRun | None:
        """A run that the first rank finds or writes, or None, on every rank."""

        def as_data() -> list[Any] | None:
            run = look()
            return None if run is None else [str(run.path), run.receipt]

        told = self._ranks.from_first(what, as_data)
        return None if told is None else FinishedRun(Path(told[0]), told[1])

    def _place(self, recipe: Recipe) -> Path:
        return self._runs.place(recipe)

    def _make(self, recipe: Recipe) -> FinishedRun:
        seconds = dict.fromkeys(("load", "evaluate"), 0.0)
        started = receipts.now()
        lm = self.lm
        seconds["load"], self._seconds_loading = self._seconds_loading, 0.0
        place, receipt = self._place(recipe), receipts.opened(self.config, self.spec, lm, recipe, started)
        receipt.warnings = [*checkpoint_warnings(lm.unexpected_weights), *self.spec.reworded(recipe)]
        resume = SharedResumeState(ResumeState(place.parent / f".{place.name}.work"), self._ranks)
        results: dict[str, Any] | None = None
        try:
            with self._ranks.failing_together(recipe.label), failures_of_machine(lm):
                self._apply(recipe, receipt, resume)
                with timed(seconds, "evaluate"), self.report.stage(f"{recipe.label}: evaluating"):
                    results = self._evaluate(lm)
                receipt.totals = ReceiptTotals.model_validate(lm.totals() | self._speed(recipe, lm.speed))
                receipt.speed = lm.speed.phases()
                require_finite_results(results)
        except VariantFailed as error:
            receipts.mark_failed(receipt, error)
            results = None
        finally:
            applied = lm.applied
            if not recipe.is_baseline:
                lm.undo()
        receipts.close(receipt, applied, seconds)
        run = self._told(
            f"the run of {recipe.label}", lambda: receipts.write(place, receipt, results, self.config, self.report)
        )
        assert run is not None, "the first rank has written it"
        if not run.failed:
            resume.remove()
        return run

    def _apply(self, recipe: Recipe, receipt: Receipt, resume: ResumeState) -> AppliedRecipe | None:
        """Apply a recipe to the model, and put into the receipt what became of its weights; None for the baseline."""
        lm = self.lm
        before = self._base_digest if recipe.is_baseline else lm.weights.digest()
        receipt.weights = self._weights(recipe, before, before)
        applied: AppliedRecipe | None = None
        if not recipe.is_baseline:
            applied = lm.apply(recipe, self.documents, self.report.progress, resume)
            # What was chosen on documents and learns from them again is told once.
            receipt.warnings = list(dict.fromkeys([*receipt.warnings, *receipt_warnings(recipe, applied)]))
            self._tell_resumed(recipe, applied)
            receipt.weights = self._weights(recipe, before, lm.weights.digest())
        receipt.totals = ReceiptTotals(**lm.totals())
        return applied

    def _weights(self, recipe: Recipe, before: str, after: str) -> ReceiptWeights:
        """The digests, which are the same on all ranks. Raises UserError where they are not."""
        first, *others = self._ranks.exchange(f"weights of {recipe.label}", [before, after])
        for rank, other in enumerate(others, start=1):
            if other != first:
                own, its = next(pair for pair in zip(first, other, strict=True) if pair[0] != pair[1])
                raise UserError(
                    f"{recipe.label}: the processes hold different weights, {own} in rank 0 and {its} in rank {rank},"
                    " so that their scores are of different models: start the command without accelerate launch or"
                    " torchrun, or on devices of one kind"
                )
        return ReceiptWeights(digest_before=before, digest_after=after)

    def _tell_resumed(self, recipe: Recipe, applied: AppliedRecipe) -> None:
        for record in applied.searches:
            if record["resumed"]:
                self.report.line(
                    f"{recipe.label}: went on from {record['resumed']} trials that an earlier process had made"
                )

    @cached_property
    def lm(self) -> RecipeLM:
        """The loaded model; loaded when first asked for."""
        from harness_ext.lm_eval_adapter.fast_import import preload_hf

        harness = self.harness
        name = self.config.model_name
        started = time.perf_counter()
        preload_hf()
        from harness_ext.lm_eval_adapter.model_loading import load_model

        arguments = self.loading_arguments
        extra = {"batch_size": harness.batch_size, "max_batch_size": harness.max_batch_size, "device": harness.device}
        self._unchanged.collect()
        with self.report.stage(f"loading {name}"):
            lm = load_model(name, arguments, extra, self.config.secrets)
            lm.progress = self.report.progress
            if arguments.get("peft"):
                # Before the baseline: it must have the very weights that the recipes start from.
                lm.merge_adapter()
        self.spec.model  # noqa: B018 - the first rank tells it to all
        if self._ranks.first:
            self.spec.check_model_unchanged()
        self._seconds_loading = time.perf_counter() - started
        if self._ranks.first and (slow := advice(next(lm.model.parameters()).dtype, lm.device)) is not None:
            self.report.line(f"{name}: {slow}")
        if is_offloaded(lm.model):
            placed = {**arguments, "device": str(lm.device)}
            lm.files = FileEdits(placed, self.spec.model_identity, user_folders(), self.report)
        lm.check_editable(self._to_check)
        if not self._planned:
            # Without headers to plan from, only the loaded model tells whether the recipes fit it.
            for recipe in self._to_check:
                planned_matrices(recipe, lm.checkpoint)
        return lm

    def take_model_of(self, other: Session) -> None:
        """Use the model that another session of the same model arguments has loaded, if it has, at this session's batch
        size (a number).
        """
        if "lm" in vars(other):
            self.lm = other.lm
            self.lm.batch_size_per_gpu = int(self.harness.batch_size)

    @cached_property
    def _base_digest(self) -> str:
        from harness_ext.model.weights import model_digest

        return model_digest(self.lm.model)

    def documents(self, calibration: Calibration) -> list[CalibrationSet]:
        """Draw the documents of a step: of the evaluated tasks, or of those that it names, none of them scored. Raises
        UserError where they cannot be had.
        """
        template = self._chat_template.apply if self.harness.apply_chat_template else None
        return self.spec.calibration_documents(calibration, template)

    def _speed(self, recipe: Recipe, speed: Speed) -> dict[str, float | None]:
        """Tokens per second of the baseline and of the variant, both while they were scored by this process: figures of
        another time would be of another load.
        """
        found = speed.figures()
        if recipe.is_baseline:
            self._baseline_speed = found
        return {f"{name}_before": self._baseline_speed.get(name) for name in found} | {
            f"{name}_after": value for name, value in found.items()
        }

    def _evaluate(self, lm: RecipeLM) -> dict[str, Any] | None:
        from harness_ext.lm_eval_adapter.evaluate import evaluate
        from harness_ext.lm_eval_adapter.throughput import Speed

        lm.speed = Speed()
        tasks = self.spec.tasks
        return evaluate(lm, tasks.as_named, tasks.manager, self.config, self._unchanged)


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] += time.perf_counter() - started
