"""What a command asks for, as an identity: the model's contents, the settings, the tasks and their documents.

Two variants with the same `spec_id` would score the same, so the second need not be run. Only contents count: a copied
model folder is the same model, a changed task file is another task. Everything is worked out when first asked for, and
without torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness_ext import __version__
from harness_ext.calibration.documents import (
    AskedDocument,
    PromptSettings,
    asked_document,
    draw_documents,
    drawing_order,
    fit_tasks,
    shares,
)
from harness_ext.calibration.rewording import reworded, with_rewordings
from harness_ext.errors import UserError
from harness_ext.lm_eval_adapter import task_code, task_identity
from harness_ext.lm_eval_adapter.task_identity import digest
from harness_ext.lm_eval_adapter.task_loading import FreshTasks, check_known, load_tasks
from harness_ext.model.model_identity import ModelReader
from harness_ext.ranks.group import current
from harness_ext.recipe.recipe import Recipe
from harness_ext.recipe.settings import EVALUATED
from harness_ext.runs.progress import ProgressReport
from harness_ext.runs.scored_places import Places, check_places, places_by_task, scored_hashes, scored_places
from harness_ext.runs.versions import package_version, versions
from harness_ext.storage.rundir import learned_by_export, merged_wordings, results_root, wordings_of_export
from leaderboard.readers.secrets import without_secrets

if TYPE_CHECKING:
    from lm_eval.api.group import Group
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager

    from harness_ext.calibration.documents import CalibrationSet
    from harness_ext.lm_eval_adapter.config import RunConfig
    from harness_ext.lm_eval_adapter.fresh_modules import LoadRecord
    from harness_ext.recipe.settings import Calibration

_SETTINGS = (
    "batch_size",
    "max_batch_size",
    "device",
    "num_fewshot",
    "limit",
    "samples",
    "gen_kwargs",
    "system_instruction",
    "apply_chat_template",
    "fewshot_as_multiturn",
    "predict_only",
    "seed",
)


class LoadedTasks(NamedTuple):
    """The tasks of a command, built: by name, and as the user named them (groups whole), which is how lm-eval sums them
    up. record: what was seen while they were built.
    """

    manager: TaskManager
    by_name: dict[str, Task]
    as_named: list[Task | Group]
    record: LoadRecord


class RunSpec:
    """The identity of what was asked. config: the command. report: told while the tasks are built."""

    def __init__(self, config: RunConfig, report: ProgressReport) -> None:
        self._config = config
        self._harness = config.harness
        self._report = report
        self._for_calibration: dict[tuple[str, ...], FreshTasks] = {}
        self._drawn: dict[str, str] = {}
        self._reader = ModelReader(left_out=results_root(Path(self._harness.output_path)))
        self._asked: dict[tuple[str, int], AskedDocument] = {}
        if self._harness.samples:
            self._harness.samples = places_by_task(self._harness.samples)

    @cached_property
    def tasks(self) -> LoadedTasks:
        """The evaluated tasks, built once; lm-eval is handed these same objects for every variant. Raises UserError for
        an unknown one, and for one whose items cannot be had.
        """
        from harness_ext.lm_eval_adapter.config import resolve_tasks

        with self._report.stage("building tasks"):
            manager = resolve_tasks(self._harness)
            loaded, record = load_tasks(manager, list(self._harness.tasks))
        check_places(self._harness.samples or {}, loaded["tasks"])
        groups = list(loaded.get("groups", {}).values())
        inner = {group.name for outer in groups for group in outer.get_all_groups() if group is not outer}
        grouped = {task.task_name for group in groups for task in group.get_all_tasks()}
        alone = [task for name, task in loaded["tasks"].items() if name not in grouped]
        as_named = [*(group for group in groups if group.name not in inner), *alone]
        return LoadedTasks(manager, loaded["tasks"], as_named, record)

    def hold_out(self, recipes: Sequence[Recipe]) -> None:
        """Take documents out of the score of every variant, where a recipe learns from the scored split
        (`calibration.split: test`, LASER's protocol), or was chosen on some of it (`chosen_on`).

        A document that several tasks ask about, in whatever form, is out of the score of all of them. What an exported
        model learned from counts as well. Call it before anything else is asked of this object. Raises UserError where
        nothing would be left to score.
        """
        learned = {hashed for recipe in recipes for hashed in recipe.chosen_on}
        learned |= learned_by_export(self._model_folder)
        for calibration in (step.calibration for recipe in recipes for step in recipe.steps):
            if calibration is not None and calibration.split == "test":
                learned |= self._to_be_drawn(calibration)
        if not learned:
            return
        scored = {name: self._scored_places(name) for name in self.tasks.by_name}
        left = {
            name: Places(place for place in places if not self.asked(name, place).is_among(learned))
            for name, places in scored.items()
        }
        if empty := [name for name, places in left.items() if not places]:
            raise UserError(
                f"calibration: every scored document of {empty[0]!r} is one that a recipe learns from or was chosen on,"
                " there or in another task, which leaves none to score; lower calibration.samples"
            )
        # Where a recipe was chosen on documents of other tasks, what is asked stays what was asked.
        if left != scored:
            self._harness.samples, self._harness.limit = left, None
            for name, places in scored.items():
                if out := len(places) - len(left[name]):
                    self._report.line(
                        f"{name}: {out} of {len(places)} documents are out of every score, since a recipe or the model"
                        " learned from them, or was chosen on them"
                    )

    @property
    def _model_folder(self) -> str:
        arguments = self._harness.model_args
        return str(Path(str(arguments.get("pretrained", "")), str(arguments.get("subfolder") or "")))

    def reworded(self, recipe: Recipe) -> list[str]:
        """Warnings about scored documents that ask in other words for what the recipe was chosen on, or what an
        exported model learned from.
        """
        wordings = merged_wordings(recipe.wordings, wordings_of_export(self._model_folder))
        return [warning for task, of in wordings.items() for warning in reworded(task, of, self.scored_contents)]

    def _to_be_drawn(self, calibration: Calibration) -> set[str]:
        """Hashes and digests of the scored documents that a step will learn from."""
        learned: set[str] = set()
        for name, share in shares(calibration.tasks, calibration.samples).items():
            candidates = self._scored_places(name) if name in self.tasks.by_name else []
            if candidates and share >= len(candidates):
                raise UserError(
                    f"calibration: {share} of the {len(candidates)} scored documents of {name!r} were asked for,"
                    " which leaves none to score; lower calibration.samples"
                )
            for place in drawing_order(calibration, name, candidates)[:share]:
                learned |= self.asked(name, place).identities
        return learned

    def asked(self, name: str, place: int) -> AskedDocument:
        """How the document at a place of a task's scored split is recognised."""
        key = (name, place)
        if key not in self._asked:
            task = self.tasks.by_name[name]
            self._asked[key] = asked_document(task, task.eval_docs[place])
        return self._asked[key]

    @cached_property
    def scored_contents(self) -> dict[str, list[AskedDocument]]:
        """What will be reported, by task: how each document is recognised."""
        return {name: [self.asked(name, place) for place in self._scored_places(name)] for name in self.tasks.by_name}

    @cached_property
    def scored_identities(self) -> frozenset[str]:
        """Every hash that tells a document that will be reported."""
        return frozenset().union(*(asked.identities for of in self.scored_contents.values() for asked in of))

    def _scored_places(self, name: str) -> list[int]:
        """The places of a task's scored documents in its split, ascending."""
        return scored_places(self.tasks.by_name[name], (self._harness.samples or {}).get(name), self._harness.limit)

    @cached_property
    def scored_documents(self) -> dict[str, list[str]]:
        """The hashes of the documents that will be reported, by task, sorted."""
        samples, limit = self._harness.samples or {}, self._harness.limit
        return {name: scored_hashes(task, samples.get(name), limit) for name, task in self.tasks.by_name.items()}

    @cached_property
    def model(self) -> dict[str, str]:
        """The contents of the checkpoint, and of all else that the model's arguments name: adapter, delta, tokenizer,
        ... With several ranks the first reads them, and this is a message to the others.
        """
        return dict(
            current().from_first("the model's files", lambda: self._reader.identities(self._harness.model_args))
        )

    def begin(self) -> None:
        """Start to hash the model's files beside what else is done."""
        self._reader.begin(self._harness.model_args)

    @property
    def model_is_being_read(self) -> bool:
        """Whether asking for `model` would wait for files that are being hashed."""
        return "model" not in vars(self) and self._reader.busy

    @property
    def model_identity(self) -> str:
        """`model` as one text: that of the checkpoint where there is nothing beside it."""
        return self.model["pretrained"] if len(self.model) == 1 else f"sha256:{digest(self.model)}"

    def check_model_unchanged(self) -> None:
        """Raise UserError where the model's files are not what they were when this command read them first."""
        before, now = self.model, self._reader.identities(self._harness.model_args)
        changed = [name for name in before if before[name] != now.get(name)]
        if changed or before.keys() != now.keys() or self._reader.changed():
            value = self._harness.model_args[changed[0]] if changed else self._harness.model_args["pretrained"]
            raise UserError(
                f"{value} was changed while this command ran, so what it loaded cannot be told from what it began with:"
                " wait until nothing writes there, and run the same command again"
            )

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All that can change a score besides the recipe and the tasks. Whoever asks, with whatever token, asks for
        the same.
        """
        return dict(without_secrets(self._as_asked))

    @cached_property
    def _as_asked(self) -> dict[str, Any]:
        arguments = {key: value for key, value in self._harness.model_args.items() if key != "pretrained"}
        # A flag gives text where a file gives a number.
        asked = {name: getattr(self._harness, name) for name in _SETTINGS}
        asked |= {
            "batch_size": str(asked["batch_size"]),
            "limit": None if asked["limit"] is None else float(asked["limit"]),
        }
        comparable = {
            name: version for name, version in versions().items() if name in ("lm_eval", "transformers", "torch")
        }
        engine = self._config.engine
        # Left out where the model is scored by the backend that edits it, so that such runs keep their id.
        scored_by = {} if engine is None else {"engine": {engine.name: package_version(engine.module)}}
        return {**asked, **scored_by, "model_args": arguments, "model": self.model, "versions": comparable}

    @property
    def settings_id(self) -> str:
        """The settings as a digest."""
        return digest(self.settings)

    @cached_property
    def task_settings(self) -> dict[str, dict[str, Any]]:
        """Each task as it will be asked: its identity, whichever documents are scored; version, configuration and the
        scored documents, as digests, and how many documents.
        """

        def describe(name: str, task: Task) -> dict[str, Any]:
            # The metadata holds the model's arguments, which are in the settings.
            configuration = {key: value for key, value in task.dump_config().items() if key != "metadata"}
            documents = self.scored_documents[name]
            return {
                "version": str(task.VERSION),
                "config": digest(task_identity.plain(configuration)),
                "documents": digest(documents),
                "scored": len(documents),
                "identity": self._identity(task, self.tasks.record),
            }

        return {name: describe(name, task) for name, task in self.tasks.by_name.items()}

    def _identity(self, task: Task, record: LoadRecord) -> str:
        return task_identity.task_identity(task, record, self._shots(task), frozenset(self._harness.model_args))

    def _shots(self, task: Task) -> int:
        """How many few-shot examples lm-eval gives: a task that says 0 gets none, whatever the command says."""
        own, asked = task.config.num_fewshot, self._harness.num_fewshot
        return int(own or 0) if own == 0 or asked is None else int(asked)

    @cached_property
    def _shared_code(self) -> dict[str, Any]:
        """What tasks have in common: how groups sum them up, and the versions of the packages that their code uses."""
        record = self.tasks.record
        outermost = [item for item in self.tasks.as_named if hasattr(item, "get_all_groups")]
        groups = [
            [group.name, list(group.child_names), group.aggregate_metric_list]
            for outer in outermost
            for group in (outer, *outer.get_all_groups())
        ]
        roots = [path for task in self.tasks.by_name.values() for path in task_identity.task_roots(task)]
        packages = task_code.imported_packages(roots, record.reads)
        return {
            "groups": task_identity.plain(groups),
            "code": record.digest(task_identity.files_of(groups)),
            "packages": {name: found for name in sorted(packages) if (found := package_version(name)) is not None},
        }

    def calibration_documents(self, calibration: Calibration, chat_template: Any = None) -> list[CalibrationSet]:
        """Draw the documents of a step: of the evaluated tasks, or of those that it names, none of them scored.

        chat_template: of the model's tokenizer; None where prompts are to be plain. Raises UserError where they cannot
        be had.
        """
        harness, manager = self._harness, self.tasks.manager
        tasks = dict(self.tasks.by_name)
        for name in calibration.tasks:
            if name not in tasks and name != EVALUATED:
                check_known(name, manager)
        if named := self._named_only_by(calibration):
            tasks |= named.loaded["tasks"]
        for task in tasks.values():
            if harness.num_fewshot is not None and task.get_config("num_fewshot") != 0:
                task.set_config(key="num_fewshot", value=harness.num_fewshot)
        drawn = draw_documents(calibration, tasks, self.scored_identities, self.prompts(chat_template))
        return [with_rewordings(documents, self.scored_contents) for documents in drawn]

    def prompts(self, chat_template: Any = None) -> PromptSettings:
        """How the command has prompts built. chat_template: see `calibration_documents`."""
        harness = self._harness
        return PromptSettings(
            harness.system_instruction,
            chat_template is not None,
            bool(harness.fewshot_as_multiturn),
            harness.seed[3] if harness.seed else None,
            chat_template,
        )

    def first_document(self, name: str) -> Any:
        """The first document of a task that will be scored."""
        return self.first_documents(name, 1)[0]

    def first_documents(self, name: str, count: int) -> list[Any]:
        """The first documents of a task that will be scored."""
        return [self.tasks.by_name[name].eval_docs[place] for place in self._scored_places(name)[:count]]

    def _named_only_by(self, calibration: Calibration) -> FreshTasks | None:
        """The tasks that a step takes its documents from and that are not evaluated, built once; None where there are
        none, or one is unknown.
        """
        evaluated = self.tasks
        missing = tuple(name for name in calibration.tasks if name not in evaluated.by_name)
        if not missing or any(name not in evaluated.manager.all_tasks for name in missing):
            return None
        if missing not in self._for_calibration:
            # Taken before modules of the evaluated tasks make room.
            self.task_settings, self._shared_code  # noqa: B018
            self._for_calibration[missing] = load_tasks(evaluated.manager, missing, more=True)
        return self._for_calibration[missing]

    def _calibration_digest(self, calibration: Calibration) -> str:
        """What a step learns from: the documents drawn for it with their prompts, and the identities of the tasks that
        are not evaluated.
        """
        self.task_settings  # noqa: B018 - taken before drawing documents settles the number of shots
        key = digest(calibration.model_dump(mode="json"))
        if key not in self._drawn:
            named = self._named_only_by(calibration)
            tasks = named.loaded["tasks"] if named else {}
            identities = {name: self._identity(task, named.record) for name, task in tasks.items()} if named else {}
            drawn = [repr(found) for found in self.calibration_documents(calibration)]
            self._drawn[key] = digest([identities, drawn])
        return self._drawn[key]

    def spec_id(self, recipe: Recipe) -> str:
        """What is asked of one variant, as a digest. The baseline does not depend on our code, every other recipe on
        its version, on the revisions of its methods and on the documents that it learns from.
        """
        return self._spec_id(recipe, self.settings)

    def former_spec_id(self, recipe: Recipe) -> str:
        """The same as it was while a token of the command counted."""
        return self._spec_id(recipe, self._as_asked)

    def _spec_id(self, recipe: Recipe, settings: Mapping[str, Any]) -> str:
        learned = [step.calibration for step in recipe.steps if step.calibration is not None]
        revised = {"own": recipe.revisions, "control of": recipe.control_of_revisions}
        return digest(
            {
                "recipe": recipe.recipe_id,
                "made_by": None if recipe.is_baseline else __version__,
                "settings": settings,
                "tasks": self.task_settings,
                "code": self._shared_code,
                "calibration": [self._calibration_digest(calibration) for calibration in learned],
            }
            # Left out where all are the first, so that runs of such recipes keep their id.
            | ({"revisions": revised} if any(revised.values()) else {})
        )

    def resolved(self, recipe: Recipe) -> Recipe:
        """The recipe with the evaluated tasks that can give it labelled documents filled in."""
        return recipe.for_tasks(lambda split: fit_tasks(self.tasks.by_name, split))
