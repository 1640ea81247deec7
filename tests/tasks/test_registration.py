"""Names: every task documented, none that lm-eval has already, every group whole; and the prompts in the README are the
tasks' own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import yaml

from .conftest import AUDIT, CUT, FROM_FILES, GROUPS, NAMES, TASKS, manager
from .prompts import README, written


class _Loader(yaml.SafeLoader):
    """Reads task files without importing their functions."""


_Loader.add_constructor("!function", lambda loader, node: node.value)

FILES = {
    path.relative_to(TASKS).as_posix(): yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    for path in sorted(TASKS.rglob("*.yaml"))
}


@pytest.fixture(scope="module")
def upstream() -> dict[str, Any]:
    """lm-eval's whole index: tasks, groups and tags."""
    from harness_ext.lm_eval_adapter.task_index import default_root, entries_of

    return entries_of(default_root())


def test_every_task_and_group_is_known_to_the_tests_and_documented():
    found = set(manager().all_tasks)
    assert found == {*NAMES, *AUDIT, *FROM_FILES, *CUT, *GROUPS, "recipe_demo"}
    text = (TASKS / "README.md").read_text(encoding="utf-8")
    assert [name for name in sorted(found) if f"`{name}`" not in text] == []


def test_no_name_is_lm_evals(upstream):
    assert len(upstream) > 10_000
    assert {*NAMES, *AUDIT, *FROM_FILES, *CUT, *GROUPS, "recipe_demo"} & set(upstream) == set()


def test_every_member_of_a_group_exists(upstream):
    known = set(upstream) | set(manager().all_tasks)
    for file, content in FILES.items():
        members = (
            [member if isinstance(member, str) else member["task"] for member in content["task"]]
            if "group" in content
            else []
        )
        assert [name for name in members if name not in known] == [], file


def test_groups_hold_what_their_papers_name():
    members = {
        content["group"]: [member if isinstance(member, str) else member["task"] for member in content["task"]]
        for content in FILES.values()
        if "group" in content
    }
    assert members["laser_suite"] == list(FROM_FILES[:8])
    assert members["eigenpruning_suite"] == [
        "int_mult",
        "int_sum",
        "eigenpruning_cb",
        "eigenpruning_copa",
        "eigenpruning_rte",
    ]
    assert members["sfsd_suite"] == [
        "boolq",
        "piqa",
        "hellaswag",
        "winogrande",
        "arc_easy",
        "arc_challenge",
        "wikitext2_128",
        "wikitext2_2048",
    ]
    assert members["basel_suite"] == ["gsm8k", "hendrycks_math", "humaneval", "mbpp"]
    assert {
        "stereoset",
        "winobias_type1",
        "winobias_type2",
        "crows_pairs_english",
        "winogender_all",
        "bbq",
        "simple_cooccurrence_bias",
    } <= set(members["bias_suite"])


def test_every_task_says_version_source_and_primary_metric(tasks, file_tasks):
    for name, task in {**tasks, **file_tasks}.items():
        metadata = task.config.metadata
        assert metadata["version"] == 1.0 and (
            "arXiv:" in metadata["source"] or "made in code" in metadata["source"]
        ), name
        assert metadata["primary_metric"] in {entry["metric"] for entry in task.config.metric_list}, name
    for name in CUT:
        (content,) = (content for file, content in FILES.items() if file.endswith(f"/{name}.yaml"))
        assert {"version", "source", "primary_metric"} <= set(content["metadata"]), name


def test_tag_holds_the_tasks_made_in_code():
    assert {content["task"] for content in FILES.values() if content.get("tag") == "recipe_demo"} == set(NAMES)


def test_tasks_that_run_model_written_code_keep_lm_evals_guard(upstream):
    from harness_ext.lm_eval_adapter.task_index import default_root

    for name in ("humaneval", "mbpp"):
        content = yaml.load((default_root() / upstream[name].row.file).read_text(encoding="utf-8"), Loader=_Loader)
        assert content["unsafe_code"] is True


@pytest.mark.slow
def test_the_command_that_validates_finds_all_groups():
    command = [sys.executable, "-m", "harness_ext", "validate", "--tasks", ",".join(GROUPS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0 and "All tasks found and valid" in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
def test_the_readme_shows_the_prompts_as_they_are():
    text = README.read_text(encoding="utf-8")
    assert text == written(text), "run `python tests/tasks/prompts.py --write`"
