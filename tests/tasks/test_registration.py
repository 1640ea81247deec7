"""Names: every task documented, none that lm-eval has already."""

from __future__ import annotations

from pathlib import Path

import lm_eval.tasks
import yaml
from lm_eval.tasks import TaskManager

from .conftest import NAMES, TASKS


def test_every_task_is_documented_and_listed():
    found = TaskManager(include_path=str(TASKS), include_defaults=False).all_tasks
    assert set(NAMES) <= set(found)
    text = (TASKS / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in found)


def test_no_name_clashes_with_lm_eval():
    # Folder and file names are a cheap stand-in for its 14,000 parsed files; each task of ours has its name as a file name.
    upstream = {path.stem for path in Path(lm_eval.tasks.__file__).parent.rglob("*.yaml")}
    assert not upstream & {*NAMES, "recipe_demo"}


def test_tag_holds_all_tasks():
    tagged = [path.stem for path in TASKS.rglob("*.yaml")
              if "recipe_demo" in yaml.load(path.read_text(), Loader=_Loader)["tag"]]
    assert set(tagged) >= set(NAMES)


class _Loader(yaml.SafeLoader):
    """Reads task files without importing their functions."""


_Loader.add_constructor("!function", lambda loader, node: node.value)
