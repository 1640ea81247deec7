"""The example of CONTRIBUTING.md works as it stands, from a package of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch


@pytest.fixture
def example(repository: Path) -> str:
    """The Python block of CONTRIBUTING.md."""
    text = (repository / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return text.split("```python\n")[1].split("```")[0]


@pytest.fixture
def installed(example: str, tmp_path: Path) -> Path:
    """A folder that looks like site-packages with the example installed as a package."""
    site = tmp_path / "site"
    information = site / "somebodys_methods-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: somebodys-methods\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[lm_eval_recipes.methods]\nsoft = somebodys_methods\n")
    (site / "somebodys_methods.py").write_text(example)
    return site


def command(site: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(
        [sys.executable, "-m", "harness_ext", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_example_is_short(example: str) -> None:
    assert sum(1 for line in example.splitlines() if line.strip()) <= 20


def test_the_example_runs_as_a_step_of_a_recipe(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "soft.yaml").write_text(
        "name: soft\nsteps:\n- {method: soft_threshold, matrices: [up_proj], layers: [-1], share: 0.3}\n"
    )
    arguments = [
        "run",
        "--model",
        "hf",
        "--model_args",
        "pretrained=demo",
        "--tasks",
        "int_mult",
        "--limit",
        "8",
        "--device",
        "cpu",
        "--recipe",
        "soft.yaml",
    ]
    done = command(installed, *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("results/demo/soft-*/receipt.json")
    (record,) = json.loads(path.read_text())["matrices"]
    assert record["method"] == "soft_threshold" and 0 < record["rank_after"] < record["rank_before"]


def test_the_example_computes_its_formula(example: str) -> None:
    namespace: dict[str, object] = {"__name__": "example"}
    exec(compile(example, "example", "exec"), namespace)
    from harness_ext.methods import Svd
    from harness_ext.methods.registry import _registry

    _registry.pop("soft_threshold")
    weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    edited = namespace["soft_threshold"](weight, svd=Svd(u, s, vh), share=0.5).weight()  # type: ignore[operator]
    torch.testing.assert_close(torch.linalg.svdvals(edited), (s - 0.5 * s[0]).clamp(min=0), atol=1e-12, rtol=1e-12)


def test_a_broken_package_is_named_and_costs_nothing_else(installed: Path, tmp_path: Path) -> None:
    (installed / "somebodys_methods.py").write_text("import no_such_module\n")
    done = command(installed, "recipes", cwd=tmp_path)
    assert done.returncode == 0 and "laser" in done.stdout
    assert "the methods of somebodys_methods cannot be loaded: ModuleNotFoundError" in done.stderr
