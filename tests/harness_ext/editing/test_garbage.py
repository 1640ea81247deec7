"""What a recipe used is let go when it ends: no tensor waits for the garbage collector, which may come late."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from harness_ext.demo import demo_path
from harness_ext.editing import pipeline
from harness_ext.editing.edit_matrix import edit_matrix
from harness_ext.lm_eval_adapter.backend import RecipeLM
from harness_ext.lm_eval_adapter.fast_import import quick_imports
from harness_ext.lm_eval_adapter.learned_documents import documents_of_named_tasks
from harness_ext.recipe.recipe import parse_recipe, shipped_names
from harness_ext.recipe.settings import HEAL

QUICK = ("modegpt", "svd", "svd-llm")
RECIPES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in shipped_names()]


@pytest.fixture(scope="module")
def lm() -> RecipeLM:
    return RecipeLM(str(demo_path()), device="cpu")


@contextmanager
def unfreed() -> Iterator[list[torch.Tensor]]:
    """Gives the tensors that only the collector can free of those made inside the block."""
    found: list[torch.Tensor] = []
    gc.collect()
    gc.disable()
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found += [left for left in gc.garbage if isinstance(left, torch.Tensor)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@pytest.mark.parametrize("name", RECIPES)
def test_no_tensor_of_a_recipe_waits_for_the_collector(lm: RecipeLM, name: str) -> None:
    steps = parse_recipe(name).steps
    changes = ["calibration.task=int_mult,calibration.samples=8"] * any(step.calibration is not None for step in steps)
    if any(step.method == HEAL for step in steps):
        changes.append("heal.task=int_mult,heal.documents=8,heal.steps=2")
    recipe = parse_recipe(f"{name}:{','.join(changes)}" if changes else name)
    with unfreed() as found:
        lm.apply(recipe, documents_of_named_tasks)
        lm.undo()
    assert [tuple(tensor.shape) for tensor in found] == []


def test_what_lives_when_libraries_load_can_still_be_collected() -> None:
    """A model that refers to itself, say, which its user deletes after tasks were loaded."""
    held: list[object] = [torch.zeros(3)]
    held.append(held)
    left = weakref.ref(held[0])
    with quick_imports():
        pass
    del held
    gc.collect()
    assert left() is None


@pytest.mark.parametrize("recipe", ["svd-llm", "sfsd", "fisher-svd"])
def test_statistics_of_a_layer_are_let_go_before_the_next_are_gathered(
    lm, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: dict[int, list[weakref.ref[torch.Tensor]]] = {}

    def watching(context, matrix, statistics):
        earlier = [one() for layer, own in held.items() if layer != matrix.layer for one in own]
        assert all(one is None for one in earlier)
        held.setdefault(matrix.layer, []).extend(weakref.ref(value) for value in statistics.values())
        return edit_matrix(context, matrix, statistics)

    monkeypatch.setattr(pipeline, "edit_matrix", watching)
    lm.apply(parse_recipe(f"{recipe}:calibration.task=int_mult,calibration.samples=4"), documents_of_named_tasks)
    lm.undo()
    assert len(held) > 1
