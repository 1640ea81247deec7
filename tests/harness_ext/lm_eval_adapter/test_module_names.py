"""Two tasks of one command whose modules have one name: Python would run the second with the module of the first."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from harness_ext.errors import UserError
from harness_ext.lm_eval_adapter import fresh_modules
from harness_ext.lm_eval_adapter.task_loading import load_tasks

TASK = """
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: generate_until
generation_kwargs: {until: ["."], max_gen_toks: 4, do_sample: false}
doc_to_text: "{{q}}"
doc_to_target: "{{a}}"
process_results: !function utils.score
metric_list: [{metric: exact, aggregation: mean, higher_is_better: true}]
metadata: {version: 1}
"""
FIRST = "import sys, pathlib\nsys.path.insert(0, str(pathlib.Path(__file__).parentPLACE))\n"
EAGER = FIRST + "from helperx import bonus\ndef score(doc, results):\n    return {'exact': bonus}\n"
LAZY = FIRST + "def score(doc, results):\n    from helperx import bonus\n    return {'exact': bonus}\n"
IN_SCORE = """import sys, pathlib
def score(doc, results):
    sys.path.insert(0, str(pathlib.Path(__file__).parent))
    from helperx import bonus
    return {'exact': bonus}
"""
HERE, ABOVE, LIBRARY = (("PLACE", place) for place in ("", ".parent", " / 'lib'"))


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Modules, import paths and caches as they were."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    yield
    fresh_modules.forget()


def load(folder: Path, files: Mapping[str, str], *names: str, more: bool = False) -> Any:
    """The tasks `a` and `b` of two folders, or those named, as a command builds them."""
    from lm_eval.tasks import TaskManager

    data = folder / "test.jsonl"
    data.write_text('{"q": "1 plus 3 is", "a": "4"}\n')
    for name, text in {"a/a.yaml": "task: a" + TASK, "b/b.yaml": "task: b" + TASK, **files}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("DATA", str(data)))
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return load_tasks(manager, names or ("a", "b"), more=more).loaded["tasks"]


def scores(tasks: Mapping[str, Any]) -> dict[str, float]:
    return {name: task.process_results({}, ["4"])["exact"] for name, task in tasks.items()}


def both(text: str, helper: str = "helperx.py", second: str = "bonus = 2.0\n") -> dict[str, str]:
    return {
        "a/utils.py": text,
        "b/utils.py": text,
        f"a/{helper}": "bonus = 1.0\n",
        f"b/{helper}": second,
    }


AT_END = EAGER.replace("insert(0, ", "append(")
READING = """import pathlib
bonus = float(pathlib.Path(__file__).with_name("value.txt").read_text())
"""
CLASHES = {
    "a helper": both(EAGER.replace(*HERE)),
    "a helper looked for last": both(AT_END.replace(*HERE)),
    "imported when an answer is scored": both(LAZY.replace(*HERE)),
    "looked for and imported when an answer is scored": both(IN_SCORE),
    "at once by one and later by the other": {**both(EAGER.replace(*HERE)), "b/utils.py": LAZY.replace(*HERE)},
    "a folder below": both(EAGER.replace(*LIBRARY), "lib/helperx.py"),
    "a package": both(EAGER.replace(*HERE), "helperx/__init__.py"),
    "a module of a folder": both(EAGER.replace(*HERE).replace("from helperx", "from kit.helperx"), "kit/helperx.py"),
    "a helper of a helper": {
        **both(EAGER.replace(*HERE).replace("helperx", "deep"), "deep.py"),
        "a/utils.py": EAGER.replace(*HERE).replace("helperx", "first"),
        "a/first.py": "from deep import bonus\n",
    },
    "copies that read what lies beside them": {
        **dict.fromkeys(("a/utils.py", "b/utils.py"), EAGER.replace(*HERE)),
        **dict.fromkeys(("a/helperx.py", "b/helperx.py"), READING),
        "a/value.txt": "1.0",
        "b/value.txt": "2.0",
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", CLASHES)
def test_two_modules_of_one_name_are_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run the tasks in separate commands, or rename one of the modules") as refused:
        load(tmp_path, CLASHES[kind])
    helpers = {str(path) for name in CLASHES[kind] if "utils" not in name and (path := tmp_path / name).suffix == ".py"}
    assert sum(path in str(refused.value) for path in helpers) == 2
    # Each by itself is what it was.
    for name, expected in (("a", 1.0), ("b", 2.0)):
        assert scores(load(tmp_path, CLASHES[kind], name)) == {name: expected}


SHARED = {"a/utils.py": EAGER.replace(*ABOVE), "b/utils.py": EAGER.replace(*ABOVE), "helperx.py": "bonus = 1.0\n"}
FITTING: dict[str, tuple[dict[str, str], float]] = {
    "one helper above both": (SHARED, 1.0),
    "one helper, with another beside a task that does not mean it": ({**SHARED, "b/helperx.py": "bonus = 2.0\n"}, 1.0),
    "copies": (both(EAGER.replace(*HERE), second="bonus = 1.0\n"), 1.0),
    "other names": (
        {
            **both(EAGER.replace(*HERE)),
            "b/helpery.py": "bonus = 2.0\n",
            "b/utils.py": EAGER.replace(*HERE).replace("helperx", "helpery"),
        },
        2.0,
    ),
    "a file named as an installed package": (
        {**SHARED, "a/datasets.py": "x = 1\n", "b/datasets.py": "", "helperx.py": "import datasets\nbonus = 1.0\n"},
        1.0,
    ),
    "two files named as an installed package, which both import": (
        {**both(EAGER.replace(*HERE) + "import yaml\n"), "b/helperx.py": "bonus = 1.0\n"}
        | {"a/yaml.py": "x = 1\n", "b/yaml.py": "x = 2\n"},
        1.0,
    ),
    "libraries before what lies beside a task": (
        {
            **both(FIRST.replace(*HERE) + EAGER.replace(*ABOVE)),
            "helperx.py": "bonus = 3.0\n",
        },
        3.0,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", FITTING)
def test_what_tasks_share_is_no_clash(kind: str, tmp_path: Path) -> None:
    files, second = FITTING[kind]
    for _ in range(2):
        tasks = load(tmp_path, files)
        first = second if kind.startswith("libraries") else 1.0
        assert scores(tasks) == {"a": first, "b": second}


@pytest.mark.slow
def test_tasks_of_one_folder_and_a_task_loaded_again_are_no_clash(tmp_path: Path) -> None:
    files = {"a/utils.py": EAGER.replace(*HERE), "a/helperx.py": "bonus = 1.0\n", "a/c.yaml": "task: c" + TASK}
    for _ in range(2):
        assert scores(load(tmp_path, files, "a", "c")) == {"a": 1.0, "c": 1.0}
    # Changed between two commands of one process.
    assert scores(load(tmp_path, {**files, "a/helperx.py": "bonus = 2.0\n"}, "a", "c")) == {"a": 2.0, "c": 2.0}


def test_a_task_that_gives_documents_only_is_looked_at_too(tmp_path: Path) -> None:
    files = CLASHES["a helper"]
    load(tmp_path, files, "a")
    with pytest.raises(UserError, match="'b' imports the module 'helperx'"):
        load(tmp_path, files, "b", more=True)
