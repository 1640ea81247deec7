"""The examples of CONTRIBUTING.md work as they stand, each from a package of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch

KINDS = ("methods", "searches", "statistics")
"""What the examples are of, in their order; the last is a statistic with a method that asks for it."""
MOST_LINES = {"methods": 20, "searches": 25, "statistics": 25}
GROUPS = {"methods": ("methods",), "searches": ("searches",), "statistics": ("statistics", "methods")}


@pytest.fixture
def examples(repository: Path) -> dict[str, str]:
    """The Python blocks of CONTRIBUTING.md, by what they are of."""
    blocks = (repository / "CONTRIBUTING.md").read_text(encoding="utf-8").split("```python\n")[1:]
    return dict(zip(KINDS, (block.split("```")[0] for block in blocks), strict=True))


def install(site: Path, module: str, source: str, groups: Sequence[str]) -> None:
    """Put a module into a folder that looks like site-packages, as a package whose entry points name it."""
    information = site / f"{module}-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    entries = "".join(f"[lm_eval_recipes.{group}]\nown = {module}\n" for group in groups)
    (information / "entry_points.txt").write_text(entries)
    (site / f"{module}.py").write_text(source)


@pytest.fixture
def installed(examples: dict[str, str], tmp_path: Path) -> Path:
    """A folder that looks like site-packages with each example installed as a package."""
    for kind, source in examples.items():
        install(tmp_path / "site", f"somebodys_{kind}", source, GROUPS[kind])
    return tmp_path / "site"


def python(site: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def run_of(site: Path, step: str, cwd: Path) -> dict[str, Any]:
    """The receipt of a run of the embedded model with a recipe of one step."""
    (cwd / "own.yaml").write_text(f"name: own\nsteps:\n- {step}\n")
    arguments = "run --model hf --model_args pretrained=demo --tasks int_mult --limit 8 --device cpu --recipe own.yaml"
    done = python(site, "-m", "harness_ext", *arguments.split(), cwd=cwd)
    assert done.returncode == 0, done.stderr
    (path,) = cwd.glob("results/demo/own-*/receipt.json")
    return json.loads(path.read_text())


@contextmanager
def defined(source: str) -> Iterator[dict[str, Any]]:
    """What an example defines; what it registers is gone afterwards."""
    from harness_ext.methods import registry, search_registry, statistic_registry

    modules = (registry, search_registry, statistic_registry)
    before = [
        registry.registered_methods(),
        search_registry.registered_searches(),
        statistic_registry.registered_statistics(),
    ]
    namespace: dict[str, Any] = {"__name__": "example"}
    try:
        exec(compile(source, "example", "exec"), namespace)
        yield namespace
    finally:
        for module, known in zip(modules, before, strict=True):
            module._registry.clear()
            module._registry.update(known)


def weight_of(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_the_examples_are_short(examples: dict[str, str], kind: str) -> None:
    assert sum(1 for line in examples[kind].splitlines() if line.strip()) <= MOST_LINES[kind]


@pytest.mark.slow
def test_the_method_runs_as_a_step_of_a_recipe(installed: Path, tmp_path: Path) -> None:
    receipt = run_of(installed, "{method: soft_threshold, matrices: [up_proj], layers: [-1], share: 0.3}", tmp_path)
    (record,) = receipt["matrices"]
    assert record["method"] == "soft_threshold" and 0 < record["rank_after"] < record["rank_before"]


def test_the_method_computes_its_formula(examples: dict[str, str]) -> None:
    from harness_ext.methods import Svd

    weight = weight_of(6, 4)
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    with defined(examples["methods"]) as names:
        edited = names["soft_threshold"](weight, svd=Svd(u, s, vh), share=0.5).weight()
    torch.testing.assert_close(torch.linalg.svdvals(edited), (s - 0.5 * s[0]).clamp(min=0), atol=1e-12, rtol=1e-12)


@pytest.mark.slow
def test_the_search_runs_as_a_step_of_a_recipe(installed: Path, tmp_path: Path) -> None:
    """Of each matrix the smallest rank within the tolerance is taken; the trials in the receipt say so."""
    step = "{method: halve_ranks, matrices: [mlp], layers: [-1], tolerance: 0.05, calibration: {samples: 24}}"
    receipt = run_of(installed, step, tmp_path)
    (record,) = receipt["searches"]
    bound = 1.05 * record["before"]["loss"]
    assert record["planned"] == len(record["trials"]) and record["after"]["loss"] <= bound * (1 + 1e-5)
    tried: dict[str, list[tuple[int, float]]] = {}
    for trial in record["trials"]:
        tried.setdefault(trial["matrices"][0], []).append((trial["keep"]["rank"], trial["loss"]))
    expected = {
        key: min(within)
        for key, trials in tried.items()
        if (within := [rank for rank, loss in trials if loss <= bound])
    }
    chosen = {one["matrices"][0]: one["keep"]["rank"] for one in record["chosen"]}
    assert chosen and chosen == expected
    assert {matrix["name"]: matrix["rank_after"] for matrix in receipt["matrices"]} == chosen


class ProductEvaluator:
    """An evaluator of a model that multiplies its matrices; its loss is the mean square of what that is off by."""

    def __init__(self, weights: Sequence[torch.Tensor], targets: numpy.ndarray) -> None:
        self.matrices = [SimpleNamespace(key=str(place), shape=tuple(item.shape)) for place, item in enumerate(weights)]
        self._weights = list(weights)
        self._targets = targets
        self.before = SimpleNamespace(loss=self._loss(self._weights))

    def _loss(self, weights: Sequence[torch.Tensor]) -> float:
        return float(((torch.linalg.multi_dot(list(weights)).numpy() - self._targets) ** 2).mean())

    def truncations(self, matrix: Any, ranks: Sequence[int]) -> Any:
        from harness_ext.search import Nested

        u, s, vh = torch.linalg.svd(self._weights[int(matrix.key)], full_matrices=False)
        return Nested(u * s, vh, tuple(ranks))

    def try_out(self, matrix: Any, alternatives: Any, settings: Sequence[Any]) -> list[Any]:
        place = int(matrix.key)
        weights = [alternatives.weight(number) for number in range(len(settings))]
        return [
            SimpleNamespace(loss=self._loss([*self._weights[:place], weight, *self._weights[place + 1 :]]))
            for weight in weights
        ]

    def take(self, matrix: Any, weight: torch.Tensor, *, note: Any) -> None:
        assert note["matrices"] == [matrix.key]
        self._weights[int(matrix.key)] = weight


@pytest.mark.parametrize("tolerance", [0.0, 0.3, 2.0, 1e9])
def test_the_search_finds_what_a_plain_loop_finds(examples: dict[str, str], tolerance: float) -> None:
    # One row, of which nothing can be halved, is left alone.
    weights = [weight_of(1, 7, 0), weight_of(7, 9, 1), weight_of(9, 8, 2), weight_of(8, 5, 3)]
    targets = torch.linalg.multi_dot(weights).numpy() + numpy.random.default_rng(0).normal(size=(1, 5))
    with defined(examples["searches"]) as names:
        steps = names["halve_ranks"](ProductEvaluator(weights, targets), tolerance=tolerance).steps

    standing = [item.numpy() for item in weights]

    def loss() -> float:
        return float(((numpy.linalg.multi_dot(standing) - targets) ** 2).mean())

    bound, expected = (1 + tolerance) * loss(), []
    for place in (3, 2, 1):
        u, s, vh = numpy.linalg.svd(standing[place], full_matrices=False)
        for rank in (1, 2, 4):
            if rank >= len(s):
                continue
            dense, standing[place] = standing[place], (u[:, :rank] * s[:rank]) @ vh[:rank]
            if rank in {len(s) // 2, len(s) // 4, len(s) // 8} and loss() <= bound:
                expected.append((str(place), rank))
                break
            standing[place] = dense
    assert [(step["matrices"][0], step["keep"]["rank"]) for step in steps] == expected
    assert tolerance < 1e9 or [rank for _, rank in expected] == [1, 1, 1]


@pytest.mark.slow
def test_the_statistic_is_gathered_for_a_step_of_a_recipe(installed: Path, tmp_path: Path) -> None:
    step = "{method: outlier_svd, matrices: [up_proj], keep: {rank: 4}, calibration: {samples: 24}}"
    receipt = run_of(installed, step, tmp_path)
    assert {record["method"] for record in receipt["matrices"]} == {"outlier_svd"}
    assert {record["rank_after"] for record in receipt["matrices"]} == {4}
    assert [drawn["step"] for drawn in receipt["calibration"]] == [0]


def test_the_statistic_is_the_largest_real_input(examples: dict[str, str]) -> None:
    generator = numpy.random.default_rng(0)
    inputs, real = generator.normal(size=(5, 6, 7)), generator.random((5, 6)) < 0.6
    inputs[~real] = 100
    # In a batch without a real token, which an expert may see, there is nothing to learn.
    real[4], inputs[4] = False, 100
    with defined(examples["statistics"]) as names:
        gathered = names["InputMaximum"]()
        for batch in (slice(0, 2), slice(4, 5), slice(2, 4)):
            gathered.update(torch.tensor(inputs[batch]), None, torch.tensor(real[batch]))
    numpy.testing.assert_array_equal(gathered.result().numpy(), numpy.abs(inputs[real]).max(0))


def test_the_method_of_the_statistic_computes_its_formula(examples: dict[str, str]) -> None:
    from harness_ext.methods import Edit, Keep

    def truncate(matrix: torch.Tensor, rank_of: Any) -> Edit:
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        rank = rank_of(s)
        return Edit(u[:, :rank] * s[:rank], vh[:rank])

    weight, largest = weight_of(6, 5), torch.tensor([4.0, 0.0, 1e-2, 1.0, 9.0], dtype=torch.float64)
    with defined(examples["statistics"]) as names:
        edit = names["outlier_svd"](weight, input_maximum=largest, truncate=truncate, keep=Keep(rank=2))
    scale = numpy.array([2.0, 1e-3, 0.1, 1.0, 3.0])
    u, s, vh = numpy.linalg.svd(weight.numpy() * scale, full_matrices=False)
    numpy.testing.assert_allclose(edit.weight().numpy(), (u[:, :2] * s[:2]) @ vh[:2] / scale, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
def test_a_method_may_ask_for_the_statistic_of_a_package_that_it_does_not_import(
    examples: dict[str, str], tmp_path: Path
) -> None:
    head, rest = examples["statistics"].split("@statistic")
    gathered, asking = rest.split("@method")
    # In the order of names the method's package comes first.
    install(tmp_path / "site", "a_method", f"{head}@method{asking}", ["methods"])
    install(tmp_path / "site", "b_statistic", f"{head}@statistic{gathered}", ["statistics"])
    code = (
        "import sys; from harness_ext.recipe.schema import described; method = described('outlier_svd');"
        " print(sorted(method.statistics), method.needs, [*method.parameters], 'torch' in sys.modules)"
    )
    done = python(tmp_path / "site", "-W", "error", "-c", code, cwd=tmp_path)
    assert done.stdout.strip() == "['input_maximum'] texts [] False", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_package_is_named_and_costs_nothing_else(installed: Path, tmp_path: Path, kind: str) -> None:
    (installed / f"somebodys_{kind}.py").write_text("import no_such_module\n")
    done = python(installed, "-m", "harness_ext", "recipes", cwd=tmp_path)
    assert done.returncode == 0 and "laser" in done.stdout
    assert f"the {kind} of somebodys_{kind} cannot be loaded: ModuleNotFoundError" in done.stderr
