"""The project's tasks as lm-eval loads them, once for the session."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness_ext.demo.data import task_module

if TYPE_CHECKING:
    from types import ModuleType

TASKS = Path(__file__).resolve().parents[2] / "tasks"
NAMES = ("int_mult", "int_sum", "int_mult_clean", "int_sum_clean", "pronoun_bias")


@pytest.fixture(scope="session")
def tasks() -> dict[str, Any]:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(TASKS), include_defaults=False).load(list(NAMES))["tasks"]


@pytest.fixture(scope="session")
def arithmetic() -> ModuleType:
    return task_module("arithmetic")


@pytest.fixture(scope="session")
def bias() -> ModuleType:
    return task_module("bias")
