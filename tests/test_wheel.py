"""The wheel in an environment of its own: what it carries, what it puts where, and that its commands work.

The environment sees the libraries of the one that runs the tests, so that nothing is fetched; with
`LM_EVAL_RECIPES_FULL_INSTALL` set, everything is installed into an empty one from the package index, under the pinned
set.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from harness_ext.cli.doctor import PACKAGES

pytestmark = pytest.mark.wheel

NOT_CARRIED = ("harness_ext/_wheel.py", "harness_ext/demo_training/", "leaderboard/pictures/")
SHOULD_CARRY = (
    "harness_ext/tasks/arithmetic/int_mult.yaml",
    "harness_ext/tasks/arithmetic/utils.py",
    "harness_ext/tasks/bias/pronoun_bias.yaml",
    "harness_ext/recipes/laser.yaml",
    "harness_ext/recipes/eigenprune.yaml",
    "harness_ext/demo/model/model.safetensors",
    "harness_ext/demo/model/tokenizer.json",
    "harness_ext/py.typed",
    "leaderboard/app/serve.py",
    "leaderboard/store/migrations/0001_first.sql",
)


def run(*command: object, **options: object) -> subprocess.CompletedProcess[str]:
    words = [str(part) for part in command]
    return subprocess.run(words, capture_output=True, text=True, check=True, **options)  # type: ignore


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, repository)
    (path,) = folder.glob("lm_eval_recipes-*.whl")
    return path


class Environment:
    """A virtual environment with the wheel in it."""

    def __init__(self, folder: Path) -> None:
        self.scripts = folder / ("Scripts" if os.name == "nt" else "bin")
        self.python = self.scripts / "python"
        self.variables = {
            **os.environ,
            "PATH": f"{self.scripts}{os.pathsep}{os.environ['PATH']}",
            "LM_EVAL_RECIPES_CACHE": str(folder / "cache"),
        }
        self.variables.pop("PYTHONPATH", None)

    def run(self, *command: object, cwd: Path, code: int = 0) -> str:
        done = subprocess.run(
            [str(part) for part in command], cwd=cwd, env=self.variables, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    @property
    def site_packages(self) -> Path:
        return Path(run(self.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())


@pytest.fixture(scope="module")
def environment(wheel: Path, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", folder)
    made = Environment(folder)
    if os.environ.get("LM_EVAL_RECIPES_FULL_INSTALL"):
        run(
            made.python,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--constraint",
            repository / "constraints.txt",
            wheel,
            env=made.variables,
        )
    else:
        run(made.python, "-m", "pip", "install", "--quiet", "--no-deps", wheel, env=made.variables)
        # A plain path line: the libraries are seen, the checkout (by way of their own .pth file) is not.
        (made.site_packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return made


def test_contents(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        "harness_ext",
        "leaderboard",
        next(name.split("/")[0] for name in names if name.endswith("METADATA")).split("/")[0],
    }
    assert set(SHOULD_CARRY) <= set(names)
    assert not [name for name in names if "__pycache__" in name or name.endswith(".duckdb")]
    assert sum(info.file_size for info in zipfile.ZipFile(wheel).infolist()) < 30e6


def test_every_data_file_of_the_packages_is_carried(wheel: Path, repository: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = run("git", "-C", repository, "ls-files", "harness_ext", "leaderboard", "tasks").stdout.splitlines()
    expected = {
        f"harness_ext/{name}" if name.startswith("tasks/") else name
        for name in tracked
        if (repository / name).is_file() and not name.startswith(NOT_CARRIED)
    }
    assert expected <= names and not [name for name in names if name.startswith(NOT_CARRIED)]


def test_nothing_lands_at_the_top(environment: Environment) -> None:
    installed = {path.name for path in environment.site_packages.iterdir()}
    assert not installed & {"tasks", "tests", "results"}
    assert {"harness_ext", "leaderboard"} <= installed


def test_the_scripts_are_ours(environment: Environment, tmp_path: Path) -> None:
    for script in ("lm_eval", "lm-eval", "lm-eval-recipes"):
        assert "recipes" in environment.run(environment.scripts / script, "--help", cwd=tmp_path)
    assert "laser" in environment.run(environment.python, "-m", "harness_ext", "recipes", cwd=tmp_path)
    report = environment.run("lm-eval-recipes", "doctor", cwd=tmp_path)
    assert "FAIL" not in report
    for package in PACKAGES:
        assert package in report


def test_a_recipe_runs_from_the_wheel(environment: Environment, tmp_path: Path) -> None:
    arguments = [
        "run",
        "--model",
        "hf",
        "--model_args",
        "pretrained=demo",
        "--tasks",
        "int_mult",
        "--recipe",
        "laser",
        "--limit",
        "8",
        "--device",
        "cpu",
        "--batch_size",
        "8",
    ]
    printed = environment.run("lm_eval", *arguments, cwd=tmp_path)
    assert "laser" in printed
    assert (tmp_path / "results" / "leaderboard.duckdb").is_file()
    assert len(list(tmp_path.rglob("receipt.json"))) == 2
    sources = environment.run(
        environment.python,
        "-c",
        "import harness_ext, leaderboard; print(harness_ext.__file__, leaderboard.__file__)",
        cwd=tmp_path,
    )
    assert sources.count(str(environment.site_packages)) == 2


def test_the_backend_works_from_python(environment: Environment, tmp_path: Path) -> None:
    code = (
        "import harness_ext\nfrom lm_eval import simple_evaluate\nfrom harness_ext.task_index import task_manager\ndone"
        " = simple_evaluate(model='hf-recipe', model_args='pretrained=demo,recipe=laser', tasks=['int_mult'], limit=4,"
        " device='cpu', task_manager=task_manager())\nprint(sorted(done['results']))\n"
    )
    assert "['int_mult']" in environment.run(environment.python, "-c", code, cwd=tmp_path)


def test_doctor_sees_that_lm_eval_took_its_script_back(environment: Environment, wheel: Path, tmp_path: Path) -> None:
    script = environment.scripts / "lm_eval"
    ours = script.read_text()
    script.write_text(ours.replace("harness_ext.cli", "lm_eval.__main__").replace("main", "cli_evaluate"))
    try:
        report = environment.run("lm-eval-recipes", "doctor", cwd=tmp_path, code=1)
        assert f"{script} was taken back" in report and "pip install --force-reinstall --no-deps" in report
        run(
            environment.python,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--force-reinstall",
            "--no-deps",
            wheel,
            env=environment.variables,
        )
        assert "FAIL" not in environment.run("lm-eval-recipes", "doctor", cwd=tmp_path)
    finally:
        script.write_text(ours)
