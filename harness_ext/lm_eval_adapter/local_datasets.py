"""Local copies of the data sets of lm-eval's own tasks, and one message for a data set that cannot be loaded.

Our tasks do both for themselves (`task_data`). A copy is a folder named as the data set is on the hub,
`DIR/OWNER/NAME`, with a sub-folder for each configuration or the hub's own layout. It changes only where the items come
from. Of the data sets that `bias_suite` reads from their authors' files, these files serve as well, for a task by
itself as in the suite.

The patch: `ConfigurableTask.download`, while a command builds its tasks, since a task file can name no data folder that
the user chooses. A data set that cannot be loaded raises one of a dozen kinds of exceptions, none of which names the
task; the task is taken from the frames of the traceback.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb
from typing import TYPE_CHECKING, Any, NamedTuple

from harness_ext.errors import UserError
from harness_ext.lm_eval_adapter import dataset_caches
from harness_ext.lm_eval_adapter.borrowed import replaced
from harness_ext.lm_eval_adapter.task_data import DATA_VARIABLE

if TYPE_CHECKING:
    from lm_eval.api.task import Task

_OFFICIAL = {
    ("jannalu/crows_pairs_multilingual", "english"): ("crows_pairs_english", ("crows_pairs",)),
    ("oskarvanderwal/winogender", "all"): ("winogender_all", ("winogender",)),
    ("oskarvanderwal/bbq", "All"): ("bbq", ("bbq",)),
    ("oskarvanderwal/simple-cooccurrence-bias", None): (
        "simple_cooccurrence_bias",
        ("simple_cooccurrence_bias", "winogender"),
    ),
}
"""By data set and configuration: the task of `bias_suite` that reads the authors' files, and the folders that these lie
in, one of which it needs.
"""

_CARDS = ("README.md", ".huggingface.yaml")
_USUAL = {"train", "validation", "test"}
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")


@contextmanager
def loading() -> Iterator[None]:
    """Inside this block lm-eval's own tasks take their data sets from local copies where there are some; one that
    cannot be loaded, or lacks a split, is a UserError with the task, the data set and what to do. All else passes
    unchanged.
    """
    dataset_caches.install()
    try:
        with _copies():
            yield
    except UserError:
        raise
    except Exception as error:
        if (task := _downloading(error)) is not None:
            raise UserError(_message(task, error)) from error
        if (task := _without_split(error)) is not None:
            raise UserError(_no_split(task, error.args[0])) from error
        raise


@contextmanager
def _copies() -> Iterator[None]:
    from lm_eval.api.task import ConfigurableTask

    original = ConfigurableTask.download

    def download(self: Any, dataset_kwargs: dict[str, Any] | None = None, **named: Any) -> None:
        public = self.DATASET_PATH, self.DATASET_NAME
        # The task's own, of which lm-eval takes out what `datasets` no longer knows.
        given = dataset_kwargs if dataset_kwargs is not None else {}
        copy = None if callable(self.config.custom_dataset) else _copy_of(self)
        if copy is not None:
            self.DATASET_PATH, self.DATASET_NAME = str(copy.folder), copy.configuration
            if copy.files:
                given["data_files"] = copy.files
        elif not callable(self.config.custom_dataset) and (official := _official_items(self)) is not None:
            # It stays there, since what a task is covers where its items come from.
            self.config.custom_dataset = official
        try:
            original(self, given, **named)
        finally:
            if copy is not None and copy.files:
                del given["data_files"]
            self.DATASET_PATH, self.DATASET_NAME = public

    with replaced(ConfigurableTask, "download", download):
        yield


class _Copy(NamedTuple):
    """What to load in the place of a task's data set. configuration: None where the folder is that of one. files: by
    split; None where `datasets` finds them.
    """

    folder: Path
    configuration: str | None = None
    files: dict[str, list[str]] | None = None


def _copy_of(task: Task) -> _Copy | None:
    """The local copy of a task's data set; None without one."""
    root = _data_folder(task)
    copy = root / task.DATASET_PATH if root and task.DATASET_PATH else None
    if copy is None or not copy.is_dir():
        return None
    configuration = task.DATASET_NAME
    if configuration and not _has_card_of(copy, configuration) and (copy / configuration).is_dir():
        copy, configuration = copy / configuration, None
    told = configuration or "data_files" in (task.config.dataset_kwargs or {})
    told = told or any((copy / card).is_file() for card in _CARDS)
    return _Copy(copy, configuration, None if told else _files_by_split(task, copy))


def _has_card_of(copy: Path, configuration: str) -> bool:
    """Whether a folder is laid out as on the hub, its card telling the files of this configuration, and they are
    there.
    """
    import datasets

    try:
        return configuration in datasets.get_dataset_config_names(str(copy))
    except (OSError, ValueError):
        return False


def _files_by_split(task: Task, folder: Path) -> dict[str, list[str]] | None:
    """The files of a task's splits by their own names, `dev.jsonl` or `dev-00000-of-00001.parquet`: `datasets` would
    take `dev` for `validation`. None where it knows the splits better, by its other names of the usual three.
    """
    wanted = _splits_of(task)
    found: dict[str, list[str]] = {}
    for path in sorted(folder.iterdir()):
        split = _SHARD.sub("", path.name.partition(".")[0])
        if split in wanted and path.is_file():
            found.setdefault(split, []).append(path.name)
    return found if found.keys() == wanted or found.keys() - _USUAL else None


def _splits_of(task: Task) -> set[str]:
    config = task.config
    examples = getattr(config.fewshot_config, "split", None) or config.fewshot_split
    return {split for split in (config.training_split, config.validation_split, config.test_split, examples) if split}


def _data_folder(task: Task) -> Path | None:
    named = (task.config.metadata or {}).get("data_dir") or os.environ.get(DATA_VARIABLE)
    return Path(str(named)).expanduser() if named else None


def _official_items(task: Task) -> Callable[..., Any] | None:
    """What makes a task's documents of its data set's official files; None where there are none."""
    suite_task, folders = _OFFICIAL.get((task.DATASET_PATH, task.DATASET_NAME), ("", ()))
    root = _data_folder(task)
    if root is None or not any((root / folder).is_dir() for folder in folders):
        return None
    from harness_ext.lm_eval_adapter.borrowed import load_yaml
    from harness_ext.lm_eval_adapter.task_index import tasks_root

    suite = load_yaml(tasks_root() / "bias" / "bias_suite.yaml")
    (items,) = (
        entry["custom_dataset"] for entry in suite["task"] if isinstance(entry, dict) and entry["task"] == suite_task
    )
    return items


def _downloading(error: Exception) -> Task | None:
    """The task whose data set was being loaded when `error` was raised; None where it comes from elsewhere, or from a
    function of the task's own.
    """
    from lm_eval.api.task import ConfigurableTask

    for frame, _ in walk_tb(error.__traceback__):
        owner = frame.f_locals.get("self")
        if frame.f_code.co_name == "download" and isinstance(owner, ConfigurableTask):
            return None if callable(owner.config.custom_dataset) else owner
    return None


def _without_split(error: Exception) -> Task | None:
    """The task whose data set has no such split as it asks for; None where the error is another."""
    from lm_eval.api.task import ConfigurableTask

    if not isinstance(error, KeyError):
        return None
    for frame, _ in walk_tb(error.__traceback__):
        owner = frame.f_locals.get("self")
        if isinstance(owner, ConfigurableTask) and not callable(owner.config.custom_dataset):
            (split,) = error.args
            splits = getattr(owner, "dataset", None)
            if split in _splits_of(owner) and isinstance(splits, Mapping) and split not in splits:
                return owner
    return None


def _no_split(task: Task, split: str) -> str:
    copy = _copy_of(task)
    name = "/".join(part for part in (task.DATASET_PATH, task.DATASET_NAME) if part)
    where = f"in {copy.folder}" if copy else "on the Hugging Face hub, or in that hub's cache"
    way_out = f"; put it there as {split}.jsonl, {split}.parquet or the like" if copy else ""
    return (
        f"task {task.config.task}: its data set {name} has no split {split!r} {where}; it has"
        f" {', '.join(task.dataset)}{way_out}"
    )


def _message(task: Task, error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    arguments = ", ".join(repr(part) for part in (task.DATASET_PATH, task.DATASET_NAME) if part)
    folder = "/".join(part for part in ("DIR", task.DATASET_PATH, task.DATASET_NAME) if part)
    return (
        f"task {task.config.task}: its data set cannot be loaded ({reason}). It is lm-eval's own task, which takes its"
        " items from the Hugging Face hub or from that hub's cache: "
        f"where there is a network, run it once, or `datasets.load_dataset({arguments})`, and name the folder of that"
        f" cache here by HF_HOME=DIR; or put the splits (train.jsonl, test.parquet ...) into {folder} "
        f'and name DIR by {DATA_VARIABLE}=DIR or --metadata \'{{"data_dir": "DIR"}}\''
    )
