"""The house keeps its order: packages in layers, one meaning a class name, short parameter lists."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

LAYERS = {
    "harness_ext": (
        "errors",
        "progress",
        "demo",
        "storage",
        "ranks",
        "model",
        "linalg",
        "methods",
        "recipe",
        "calibration",
        "training",
        "search",
        "editing",
        "lm_eval_adapter",
        "runs",
        "sweeps",
        "cli",
        "demo_training",
    ),
    "leaderboard": (
        "errors",
        "commands",
        "metrics",
        "statistics",
        "readers",
        "store",
        "compare",
        "board",
        "terminal",
        "gate",
        "judging",
        "ingest",
        "watch",
        "compare_runs",
        "report",
        "postgres",
        "api",
        "app",
    ),
}
"""From the lowest up: a module imports from its own package and from those before it, never from one behind it."""
SHIMS = {"lm", "task_index", "task_requests", "task_data"}
"""Former places of names that others hold; they only re-export."""
MOST_PARAMETERS = 6
REGISTERING = {"method", "search"}
"""Decorators whose functions have the settings of a recipe as keyword arguments, which are not counted."""


def is_registered(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether one of its decorators registers a function as a method or a search."""
    calls = [decorator for decorator in function.decorator_list if isinstance(decorator, ast.Call)]
    return any(isinstance(call.func, ast.Name) and call.func.id in REGISTERING for call in calls)


def modules(repository: Path, package: str) -> Iterator[tuple[Path, ast.Module]]:
    """Every module of a package with its syntax tree."""
    for path in sorted((repository / package).rglob("*.py")):
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every module that a module names in an import, wherever that stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


@pytest.mark.parametrize("package", LAYERS)
def test_imports_point_down(repository: Path, package: str) -> None:
    layers = LAYERS[package]
    wrong: list[str] = []
    for path, tree in modules(repository, package):
        inside = path.relative_to(repository / package)
        layer = inside.parts[0].removesuffix(".py")
        if layer in SHIMS or layer.startswith("__") or layer == "_wheel":
            continue
        for line, name in imported(tree):
            parts = name.split(".")
            above = layers[layers.index(layer) + 1 :]
            if parts[0] == package and len(parts) > 1 and parts[1] in above:
                wrong.append(f"{package}/{inside}:{line} imports {name}")
    assert wrong == []


@pytest.mark.parametrize("package", LAYERS)
def test_every_module_is_in_a_layer(repository: Path, package: str) -> None:
    names = {path.name.removesuffix(".py") for path in (repository / package).iterdir() if path.suffix in ("", ".py")}
    data = {"recipes", "contrasts", "pictures"}
    assert {name for name in names if not name.startswith("_")} - set(LAYERS[package]) - SHIMS - data == set()


def test_the_leaderboard_needs_neither_torch_nor_lm_eval(repository: Path) -> None:
    heavy = {"torch", "transformers", "lm_eval", "harness_ext", "datasets"}
    assert [
        (path.name, name)
        for path, tree in modules(repository, "leaderboard")
        for _, name in imported(tree)
        if name.split(".")[0] in heavy
    ] == []


def test_a_class_name_means_one_thing(repository: Path) -> None:
    defined: dict[str, list[str]] = defaultdict(list)
    for package in LAYERS:
        for path, tree in modules(repository, package):
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef):
                    defined[node.name].append(str(path.relative_to(repository)))
    assert {name: places for name, places in defined.items() if len(places) > 1} == {}


def test_no_function_takes_more_than_six_parameters(repository: Path) -> None:
    wrong: list[str] = []
    for package in LAYERS:
        for path, tree in modules(repository, package):
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    arguments = [*node.args.posonlyargs, *node.args.args]
                    if not is_registered(node):
                        arguments += node.args.kwonlyargs
                    if sum(argument.arg not in ("self", "cls") for argument in arguments) > MOST_PARAMETERS:
                        wrong.append(f"{path.relative_to(repository)}:{node.lineno} {node.name}")
    assert wrong == []
