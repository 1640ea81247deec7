"""The project's tasks as lm-eval loads them, once for the session: those made in code, and those with the invented
items of `fixtures`.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness_ext.demo_training.data import task_module

if TYPE_CHECKING:
    from types import ModuleType

TASKS = Path(__file__).resolve().parents[2] / "tasks"
FIXTURES = Path(__file__).resolve().parent / "fixtures"
NAMES = ("int_mult", "int_sum", "int_mult_clean", "int_sum_clean", "pronoun_bias")
FROM_FILES = (
    "counterfact",
    "hotpotqa_closed",
    "fever_claims",
    "bios_gender",
    "bios_profession",
    "truthfulqa_claims",
    "epistemic_reasoning",
    "wikidata_qa",
    "eigenpruning_cb",
    "eigenpruning_copa",
    "eigenpruning_rte",
    "stereoset",
    "winobias_type1",
    "winobias_type2",
)
AUDIT = ("audit_facts", "audit_arithmetic", "audit_commonsense", "audit_text")
CUT = ("wikitext2_128", "wikitext2_2048", "wikitext2_4096", "wikitext2_arena", "c4_stream", "c4_first_2000")
GROUPS = (
    *("laser_suite", "eigenpruning_suite", "sfsd_suite", "basel_suite", "bias_suite", "winobias"),
    *("collateral", "lowrankarena", "mmlu_math", "audit"),
)


def manager(**metadata: Any) -> Any:
    """A task manager that knows our tasks alone."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(TASKS), include_defaults=False, metadata=metadata)


def load(*names: str, **metadata: Any) -> dict[str, Any]:
    """Our tasks by name, with these settings."""
    return manager(**metadata).load(list(names))["tasks"]


def module(path: str) -> ModuleType:
    """A module of `tasks/`, by its path there."""
    name = f"tests_of_{path.replace('/', '_').removesuffix('.py')}"
    if name not in sys.modules:
        specification = importlib.util.spec_from_file_location(name, TASKS / path)
        assert specification is not None and specification.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def requests(task: Any, document: dict[str, Any]) -> list[Any]:
    """What lm-eval asks the model about one document."""
    built = task.construct_requests(document, task.fewshot_context(document, 0), metadata=(task.config.task, 0, 1))
    return built if isinstance(built, list) else [built]


@pytest.fixture(scope="session")
def tasks() -> dict[str, Any]:
    return load(*NAMES)


@pytest.fixture(scope="session")
def file_tasks() -> dict[str, Any]:
    """The tasks whose items come from files, with the fixtures' items."""
    return load(*FROM_FILES, data_dir=str(FIXTURES))


@pytest.fixture(scope="session")
def arithmetic() -> ModuleType:
    return task_module("arithmetic")


@pytest.fixture(scope="session")
def bias() -> ModuleType:
    return task_module("bias")
