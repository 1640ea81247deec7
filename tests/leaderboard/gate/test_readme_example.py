"""The gate's README, as it stands: its commands from end to end, and its GitHub workflow step by step."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

EXIT_CODES = {"PASS": 0, "WARN": 0, "FAIL": 1, "INCOMPARABLE": 2, "UNDECIDED": 3}

# The inputs that each action documents, in the action.yml or README.md of the release that the workflow names.
DOCUMENTED_INPUTS = {
    # github.com/actions/checkout/blob/v4/action.yml
    "actions/checkout@v4": {"repository", "ref", "token", "path", "fetch-depth", "persist-credentials"},
    # github.com/actions/setup-python/blob/v5/action.yml
    "actions/setup-python@v5": {"python-version", "python-version-file", "cache", "architecture"},
    # github.com/actions/download-artifact/blob/v4/action.yml
    "actions/download-artifact@v4": {
        *("name", "artifact-ids", "path", "pattern", "merge-multiple", "github-token", "repository", "run-id")
    },
    # github.com/actions/upload-artifact/blob/v4/README.md, "Inputs"
    "actions/upload-artifact@v4": {
        *("name", "path", "if-no-files-found", "retention-days", "compression-level", "overwrite"),
        "include-hidden-files",
    },
}
TOKEN, RUN_ID = "${{ github.token }}", "${{ steps.last.outputs.run_id }}"
ONLY_AFTER_A_PUSH, ONLY_ON_PUSH = "steps.last.outputs.run_id != ''", "github.event_name == 'push'"


class Block(NamedTuple):
    """A fenced block of the README: its language and its text."""

    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The name of the file that it shows."""
        named = re.match(r"# (\S+\.yaml)\n", self.text)
        return named[1] if named else None


@pytest.fixture(scope="module")
def blocks(repository: Path) -> list[Block]:
    text = (repository / "leaderboard" / "gate" / "README.md").read_text(encoding="utf-8")
    return [Block(*found) for found in re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)]


@pytest.fixture(scope="module")
def workflow(blocks: list[Block]) -> dict[str, Any]:
    (block,) = [block for block in blocks if block.language == "yaml" and block.file is None]
    return yaml.safe_load(block.text)


@pytest.fixture
def shell_environment(tmp_path: Path, repository: Path) -> dict[str, str]:
    """An environment in which `lm_eval` is this checkout's command."""
    programs = tmp_path / "programs"
    programs.mkdir()
    _program(programs / "lm_eval", f'exec "{sys.executable}" -m harness_ext "$@"')
    path = os.pathsep.join([str(programs), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(repository)}


def _program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)


@pytest.mark.slow
def test_the_commands_end_as_the_readme_says(
    blocks: list[Block], shell_environment: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    ends: list[str] = []
    for block in blocks:
        if block.language == "sh":
            for line in block.text.splitlines():
                command, _, expected = line.partition("  # ")
                ran = _ran(command, folder, shell_environment)
                expected = expected.strip()
                assert ran.returncode == EXIT_CODES.get(expected, 0), (line, ran.stdout, ran.stderr)
                if expected:
                    assert ran.stdout.splitlines()[-1].startswith(f"{expected}, exit code"), ran.stdout
                    ends.append(expected)
        elif block.file is not None:
            (folder / block.file).write_text(block.text)
    assert ends == ["PASS", "PASS", "FAIL", "PASS"]


def _ran(command: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    # GitHub runs a step by `bash -e`, https://docs.github.com/actions/reference/workflow-syntax ("shell").
    words = ["bash", "-e", "-c", command]
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_every_artifact_is_uploaded_and_every_input_documented(workflow: dict[str, Any]) -> None:
    steps = list(_steps(workflow))
    for step in steps:
        assert ("uses" in step) != ("run" in step)
        if "uses" in step:
            assert step.get("with", {}).keys() <= DOCUMENTED_INPUTS[step["uses"]]
    uploaded = {step["with"]["name"] for step in _using(steps, "actions/upload-artifact")}
    downloads = _using(steps, "actions/download-artifact")
    assert [step["with"]["name"] for step in downloads] == ["blessed-run"] and uploaded == {"blessed-run"}
    for step in downloads:
        # Without a token and the run's id, artifacts are of this very run only.
        assert step["with"]["github-token"] == TOKEN and step["with"]["run-id"] == RUN_ID
    assert workflow["permissions"] == {"contents": "read", "actions": "read"}
    identities = [step["id"] for step in steps if "id" in step]
    assert set(re.findall(r"steps\.(\w+)\.", str(workflow))) <= set(identities)


def _steps(workflow: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for job in workflow["jobs"].values():
        yield from job["steps"]


def _using(steps: list[dict[str, Any]], action: str) -> list[dict[str, Any]]:
    return [step for step in steps if step.get("uses", "").startswith(f"{action}@")]


class Hub:
    """What GitHub keeps between runs of the workflow, and what it does for one: artifacts by the id of their run."""

    def __init__(self, folder: Path, environment: dict[str, str], repository: Path) -> None:
        self.folder, self.environment, self.repository = folder, environment, repository
        self.artifacts = folder / "artifacts"
        self.artifacts.mkdir(parents=True)
        programs = Path(environment["PATH"].split(os.pathsep)[0])
        # What `gh run list ... --jq '.[0].databaseId // empty'` prints: the newest run's id, or nothing.
        _program(programs / "gh", f'[ -n "$GH_TOKEN" ] && ls -1 "{self.artifacts}" | sort -n | tail -n 1')
        # Installing is not for a test; the files that pip is given must be there.
        _program(programs / "pip", '[ "$1 $2" = "install -c" ] && [ -f "$3" ] && [ -f "$4/pyproject.toml" ]')

    def run(self, workflow: dict[str, Any], event: str, number: int, files: dict[str, str]) -> tuple[int, Path]:
        """Run all steps for an event, up to the one that fails; returns its exit code, and the checkout."""
        work = self.folder / f"run-{number}"
        work.mkdir()
        for name, text in files.items():
            (work / name).write_text(text)
        for name in ("constraints.txt", "pyproject.toml"):
            shutil.copy(self.repository / name, work)
        outputs = work / "outputs.txt"
        outputs.touch()
        known = {"GITHUB_OUTPUT": str(outputs), "GITHUB_STEP_SUMMARY": str(work / "summary.md")}
        for step in _steps(workflow):
            last = dict(line.split("=", 1) for line in outputs.read_text().splitlines()).get("run_id", "")
            if not {None: True, ONLY_AFTER_A_PUSH: last != "", ONLY_ON_PUSH: event == "push"}[step.get("if")]:
                continue
            if "run" in step:
                secrets = {key: value.replace(TOKEN, "a-token") for key, value in step.get("env", {}).items()}
                ran = _ran(step["run"], work, {**self.environment, **known, **secrets})
                if ran.returncode != 0:
                    return ran.returncode, work
            else:
                self._act(step, work, {RUN_ID: last}, number)
        return 0, work

    def _act(self, step: dict[str, Any], work: Path, values: dict[str, str], number: int) -> None:
        given = step.get("with", {})
        if step["uses"].startswith("actions/upload-artifact"):
            # With one path its least common ancestor is the artifact's root, and hidden files stay out.
            hidden = shutil.ignore_patterns(".*")
            shutil.copytree(work / given["path"], self.artifacts / str(number) / given["name"], ignore=hidden)
        elif step["uses"].startswith("actions/download-artifact"):
            run = values[given["run-id"]]
            shutil.copytree(self.artifacts / run / given["name"], work / given["path"])


@pytest.mark.slow
def test_the_workflow_judges_pull_requests_by_the_last_push(
    blocks: list[Block], workflow: dict[str, Any], shell_environment: dict[str, str], repository: Path, tmp_path: Path
) -> None:
    recipes = [block.text for block in blocks if block.file == "slim.yaml"]
    (policy,) = [block.text for block in blocks if block.file == "gate.yaml"]
    good, smaller, broken = ({"slim.yaml": recipe, "gate.yaml": policy} for recipe in recipes)
    hub = Hub(tmp_path / "hub", shell_environment, repository)
    assert hub.run(workflow, "pull_request", 1, good)[0] == 0
    assert list(hub.artifacts.iterdir()) == []
    assert hub.run(workflow, "push", 2, good)[0] == 0
    code, work = hub.run(workflow, "pull_request", 3, smaller)
    summary = (work / "summary.md").read_text()
    assert code == 0 and "blessed" in summary and "passed on main" in summary
    assert (work / "gate.xml").is_file()
    assert hub.run(workflow, "push", 4, broken)[0] == EXIT_CODES["FAIL"]
    assert [path.name for path in hub.artifacts.iterdir()] == ["2"]
