"""Every private or undocumented name of lm-eval that this project relies on, and access to them.

`BORROWED` says where each name lies, what it is used for, and what about it is relied on. `from
harness_ext.lm_eval_adapter.borrowed import Entry` gives the object of the entry `Entry`; it is imported when it is
asked for, so that this module costs nothing. Other packages of harness_ext name no private part of lm-eval.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pkgutil import resolve_name
from typing import Any

CONSOLE_SCRIPT_MODULE = "lm_eval.__main__"
"""The module that lm-eval's own console scripts import; it tells them from ours."""


class BorrowedNameGone(ImportError):
    """lm-eval no longer has a name that this project borrows, or has changed it."""


@dataclass(frozen=True)
class BorrowedName:
    """One name. path: `module`, or `module:attribute`. purpose: completes "used to ...".

    parameters: names that a call passes by keyword, or relies on by position. members: attributes or dataclass fields.
    source: phrases that its source code must hold, for what only an instance has and for messages that we match.
    public: listed to notice a change; any module may import it. optional: without it the project works, but slower.
    replaced: a member that is replaced by ours for a while (see `replaced`).
    """

    path: str
    purpose: str
    parameters: tuple[str, ...] = ()
    members: tuple[str, ...] = ()
    source: tuple[str, ...] = ()
    public: bool = False
    optional: bool = False
    replaced: tuple[str, ...] = ()

    @property
    def dotted(self) -> str:
        """The name as it is written in an import or an expression."""
        return self.path.replace(":", ".")

    @property
    def name(self) -> str:
        """The name under which this module gives the object."""
        return self.path.partition(":")[2] or self.path.rpartition(".")[2]


_EXTEND = "add commands and flags to lm-eval's command line"
_INDEX = "keep the index of task files between starts, and to find our tasks without a flag"
_NAMES = "lm_eval.api.registry"
_FRESH = "forget what the modules of tasks registered, before they are loaded anew"
_MODEL = "lm_eval.models.huggingface:HFLM"

BORROWED = (
    # The command line
    BorrowedName(
        "lm_eval._cli:HarnessCLI", _EXTEND, members=("parse_args", "execute"), source=("self._subparsers = ",)
    ),
    BorrowedName(
        "lm_eval._cli.run:Run", _EXTEND, members=("_add_args", "_execute"), source=("self._parser.add_argument",)
    ),
    BorrowedName("lm_eval._cli.run:Run._execute", "run without a recipe", parameters=("args",)),
    BorrowedName("lm_eval._cli.utils:MergeDictAction", "parse --model_args as `run` does"),
    BorrowedName("lm_eval.__main__:cli_evaluate", "tell lm-eval's console script from ours"),
    BorrowedName("lm_eval.utils:setup_logging", "set up logging as lm-eval does", public=True),
    BorrowedName("lm_eval.utils:simple_parse_args_string", "parse model_args", ("args_string",), public=True),
    # The configuration of a run
    BorrowedName(
        "lm_eval.config.evaluate_config:EvaluatorConfig",
        "read and check the settings of a run with recipes",
        members=("from_cli", "load_yaml_config", "process_tasks", "hf_hub_log_args", "metadata"),
        source=("Tasks not found: ",),
        public=True,
    ),
    # Tasks
    BorrowedName(
        "lm_eval.tasks.manager",
        _INDEX,
        members=("TaskIndex", "load_yaml"),
        optional=True,
        replaced=("TaskIndex", "load_yaml"),
    ),
    BorrowedName("lm_eval.tasks._index:TaskIndex", _INDEX, members=("build",), optional=True),
    BorrowedName("lm_eval.tasks._index:TaskIndex.build", _INDEX, ("paths", "resolve_includes"), optional=True),
    BorrowedName(
        "lm_eval.tasks._index:Entry", _INDEX, members=("name", "kind", "yaml_path", "cfg", "tags"), optional=True
    ),
    BorrowedName("lm_eval.tasks._index:Kind", _INDEX, members=("TASK", "TAG"), optional=True),
    BorrowedName("lm_eval.tasks._index:log", "keep the index's warnings", members=("addFilter",), optional=True),
    BorrowedName("lm_eval.tasks._yaml_loader:load_yaml", _INDEX, ("path", "resolve_func"), optional=True),
    BorrowedName(
        "lm_eval.api.task:ConfigurableTask",
        "load data sets from local copies, and to make several requests from one document",
        members=("download", "construct_requests", "DATASET_PATH", "DATASET_NAME", "dump_config", "doc_iterator"),
        source=("Custom kwargs can be passed",),
        public=True,
        replaced=("download",),
    ),
    BorrowedName("lm_eval.api.task:ConfigurableTask.download", "load data sets from local copies", ("dataset_kwargs",)),
    BorrowedName(f"{_NAMES}:Registry", _FRESH, source=("self._objs: dict",)),
    BorrowedName(f"{_NAMES}:filter_registry", _FRESH, public=True),
    BorrowedName(f"{_NAMES}:aggregation_registry", _FRESH, public=True),
    BorrowedName(f"{_NAMES}:metric_registry", _FRESH, public=True),
    BorrowedName(f"{_NAMES}:metric_agg_registry", _FRESH, public=True),
    BorrowedName(f"{_NAMES}:higher_is_better_registry", _FRESH, public=True),
    BorrowedName("lm_eval.api.samplers:SAMPLER_REGISTRY", _FRESH, public=True),
    # The model
    BorrowedName("lm_eval.api.registry:model_registry", "register the backend hf-recipe", members=("register",)),
    BorrowedName("lm_eval.api.registry:Registry.register", "register the backend hf-recipe", ("aliases", "target")),
    BorrowedName(
        _MODEL,
        "apply recipes to the model that lm-eval loads",
        members=("create_from_arg_obj", "get_model_info", "prefix_token_id", "max_length"),
        source=("self._model = ", "self.batch_size_per_gpu = ", "self._rank = 0", "self._world_size = 1"),
        public=True,
    ),
    BorrowedName(
        "lm_eval.models.huggingface",
        "tell how far scoring is, and share it out among ranks",
        members=("tqdm", "Collator"),
        source=("pbar.update(1)", "pbar.close()", ".get_original(res)"),
        public=True,
        replaced=("tqdm", "Collator"),
    ),
    BorrowedName(
        "lm_eval.models.utils:Collator",
        "share out batches among ranks",
        members=("get_batched", "get_original"),
        source=("self._reorder_indices", "self._group_by"),
    ),
    BorrowedName(f"{_MODEL}._detect_batch_size", "find one batch size for all ranks", ("requests", "pos")),
    BorrowedName(
        f"{_MODEL}._loglikelihood_tokens",
        "share out windows of texts among ranks",
        ("requests", "disable_tqdm", "override_bs"),
    ),
    BorrowedName(f"{_MODEL}._model_call", "time scoring", ("inps", "attn_mask", "labels")),
    BorrowedName(f"{_MODEL}._model_generate", "time generating", ("context",)),
    BorrowedName(f"{_MODEL}._encode_pair", "tokenise documents as lm-eval does", ("context", "continuation")),
    BorrowedName(
        f"{_MODEL}._create_model",
        "refuse a checkpoint that lacks weights",
        ("pretrained", "peft"),
        source=("self.AUTO_MODEL_CLASS.from_pretrained(",),
    ),
    BorrowedName(
        f"{_MODEL}._get_backend",
        "tell before a model is loaded whether it has an encoder",
        ("backend",),
        source=("in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",),
    ),
    BorrowedName(
        f"{_MODEL}._create_tokenizer",
        "keep the tokenizer that a loaded model came with, and to try a chat template before a model is loaded",
        ("pretrained", "tokenizer", "revision", "gguf_file", "add_bos_token", "subfolder"),
    ),
    BorrowedName(
        "lm_eval.models.utils:configure_pad_token",
        "write the tokenizer of a model that is exported without loading it",
        ("tokenizer", "model_config"),
        public=True,
    ),
    BorrowedName(
        f"{_MODEL}.apply_chat_template",
        "try a chat template before a model is loaded",
        ("chat_history", "add_generation_prompt"),
        source=("self.chat_template_args",),
        public=True,
    ),
    BorrowedName(f"{_MODEL}.set_cache_hook", "refuse the cache of answers", ("cache_hook",), public=True),
    BorrowedName(
        "lm_eval.api.model:CachingLM", "refuse the cache of answers", source=("lm.set_cache_hook(",), public=True
    ),
    BorrowedName(f"{_MODEL}.tok_encode", "tokenise answers", ("string", "add_special_tokens"), public=True),
    # Scoring and its files
    BorrowedName(
        "lm_eval.evaluator",
        "look up the commit without git's complaint, and facts about the machine once a session",
        members=("get_git_commit_hash", "add_env_info", "simple_evaluate"),
        public=True,
        replaced=("get_git_commit_hash", "add_env_info"),
    ),
    BorrowedName(
        "lm_eval.loggers.utils:add_env_info",
        "collect facts about the machine once a session",
        ("storage",),
        source=('"upper_git_hash": ',),
    ),
    BorrowedName(
        "lm_eval.api.task:Task",
        "build the prompts of a task once a session",
        members=("build_all_requests", "dump_config", "set_fewshot_seed"),
        source=("self._instances = ", "self.fewshot_rnd = "),
        public=True,
        replaced=("build_all_requests",),
    ),
    BorrowedName(
        "lm_eval.api.instance:Instance",
        "ask the same requests of the next variant",
        members=("resps", "filtered_resps"),
        public=True,
    ),
    BorrowedName(
        "lm_eval.api.metrics",
        "work out the standard error of a perplexity faster",
        members=("perplexity", "bootstrap_stderr", "sample_stddev"),
        replaced=("bootstrap_stderr",),
    ),
    BorrowedName(
        "lm_eval.api.metrics:bootstrap_stderr",
        "work out the standard error of a perplexity faster",
        ("f", "xs", "iters"),
    ),
    BorrowedName("lm_eval.loggers.utils:get_commit_from_path", "look up the commit", ("repo_path",)),
    BorrowedName("lm_eval.evaluator_utils:get_sample_size", "count scored documents", ("task", "limit"), public=True),
    BorrowedName("lm_eval.utils:handle_non_serializable", "hash documents as lm-eval does", ("o",), public=True),
    BorrowedName("lm_eval.utils:hash_string", "hash documents as lm-eval does", ("string",), public=True),
    BorrowedName(
        "lm_eval.loggers:EvaluationTracker",
        "write results and samples",
        members=("save_results_aggregated", "save_results_samples", "recreate_metadata_card"),
        source=("self.date_id = ", "self.general_config_tracker = ", "self.output_path = "),
        public=True,
    ),
)


def __getattr__(name: str) -> Any:
    entry = next((entry for entry in BORROWED if entry.name == name), None)
    if entry is None:
        raise AttributeError(f"{__name__} borrows nothing called {name!r}")
    try:
        return resolve_name(entry.path)
    except (ImportError, AttributeError) as error:
        raise BorrowedNameGone(_sentence(entry, f"is gone ({error})")) from error


def problem(entry: BorrowedName) -> str | None:
    """What about a borrowed name is not as this project relies on, in a sentence; None where all is well.

    Imports the module that the name lies in, which for the model's is torch.
    """
    try:
        thing = resolve_name(entry.path)
    except (ImportError, AttributeError) as error:
        return _sentence(entry, f"is gone ({error})")
    lacking = [f"takes no {name!r}" for name in entry.parameters if name not in _parameters(thing)]
    lacking += [f"has no {name!r}" for name in entry.members if not _has(thing, name)]
    lacking += [f"no longer says {phrase!r}" for phrase in entry.source if phrase not in inspect.getsource(thing)]
    return _sentence(entry, " and ".join(lacking)) if lacking else None


def _sentence(entry: BorrowedName, what: str) -> str:
    return f"lm-eval's {entry.dotted} {what}; it is used to {entry.purpose}"


def _parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


def _has(thing: Any, name: str) -> bool:
    return hasattr(thing, name) or name in getattr(thing, "__dataclass_fields__", ())


@cache
def _replaceable() -> frozenset[str]:
    return frozenset(f"{entry.dotted}.{member}" for entry in BORROWED for member in entry.replaced)


@contextmanager
def replaced(owner: Any, name: str, replacement: Any) -> Iterator[None]:
    """Inside this block an attribute of a module or class of lm-eval is ours; nests.

    Raises AssertionError for an attribute that the table does not list as replaced.
    """
    path = f"{owner.__module__}.{owner.__qualname__}" if isinstance(owner, type) else owner.__name__
    assert f"{path}.{name}" in _replaceable(), f"{path}.{name} is not in the table of borrowed names"
    before = getattr(owner, name)
    setattr(owner, name, replacement)
    try:
        yield
    finally:
        setattr(owner, name, before)
