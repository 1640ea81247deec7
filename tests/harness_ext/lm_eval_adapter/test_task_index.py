"""The task index gives what lm-eval gives, notices every change, and never stands in the way."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from lm_eval.tasks import TaskManager, manager
from lm_eval.tasks._index import Entry, Kind, TaskIndex

from harness_ext.errors import UserError
from harness_ext.lm_eval_adapter import task_cache, task_index
from harness_ext.lm_eval_adapter.task_cache import SavedIndex, TaskRow

TASK = "task: {name}\ndataset_path: x\noutput_type: {output_type}\n"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("LM_EVAL_RECIPES_CACHE", str(folder))
    # lm-eval's logging keeps its records to itself once it is set up; the tests listen.
    monkeypatch.setattr(logging.getLogger("lm_eval"), "propagate", True)
    return folder


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands in for lm-eval's own: a template, a task with a tag, a group, a Python task, a file that is
    no task.
    """
    folder = tmp_path / "lm_eval" / "tasks"
    (folder / "sub").mkdir(parents=True)
    (folder / "_template").write_text(
        "output_type: multiple_choice\ntag: [common]\ndoc_to_text: !function utils.text\n"
    )
    (folder / "a.yaml").write_text("include: _template\ntask: a\ntag: [first, second]\n")
    (folder / "sub" / "b.yaml").write_text("include: ../_template\ntask: b\n")
    (folder / "group.yaml").write_text("group: g\ntask: [a, b]\n")
    (folder / "code.yaml").write_text("task: c\nclass: !function code.Task\n")
    (folder / "broken.yaml").write_text("just: a mapping\n")
    monkeypatch.setattr(task_index, "default_root", lambda: folder)
    return folder


def plain(entries: dict[str, Entry]) -> dict[str, tuple[object, ...]]:
    return {name: (entry.name, entry.kind, entry.yaml_path, entry.tags, entry.cfg) for name, entry in entries.items()}


def scans(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Collects the folders that are parsed, which the cache is there to avoid."""
    collected: list[Path] = []
    scan = task_index.scan
    monkeypatch.setattr(task_index, "scan", lambda folder: (collected.append(folder), scan(folder))[1])
    return collected


def test_entries_equal_lm_evals_at_first_and_from_the_cache(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = scans(monkeypatch)
    expected = TaskIndex.build([root])
    for _ in range(2):
        entries = task_index.entries_of(root)
        assert list(entries) == list(expected)
        assert plain(entries) == plain(expected)
        assert all(isinstance(entry, Entry) for entry in entries.values())
    assert parsed == [root]
    assert entries["c"].kind is Kind.PY_TASK
    assert entries["common"].tags == {"b"}


CHANGES: dict[str, Callable[[Path], None]] = {
    "task touched": lambda root: os.utime(root / "a.yaml", ns=(1, 1)),
    "template without extension touched": lambda root: os.utime(root / "_template", ns=(1, 1)),
    "task added": (
        lambda root: (root / "sub" / "new.yaml").write_text(TASK.format(name="new", output_type="x")) and None
    ),
    "task removed": lambda root: (root / "sub" / "b.yaml").unlink(),
    "task moved": lambda root: (root / "a.yaml").rename(root / "sub" / "a2.yaml") and None,
    "same time, other size": lambda root: rewrite_at_same_time(root / "a.yaml"),
}


def rewrite_at_same_time(path: Path) -> None:
    before = path.stat()
    path.write_text(path.read_text() + "# more\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("change", list(CHANGES))
def test_stale_after(change: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task_index.entries_of(root)
    CHANGES[change](root)
    parsed = scans(monkeypatch)
    entries = task_index.entries_of(root)
    assert parsed == [root]
    assert set(entries) == set(TaskIndex.build([root]))


def test_python_files_do_not_matter(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task_index.entries_of(root)
    (root / "utils.py").write_text("")
    (root / "__pycache__").mkdir()
    (root / "__pycache__" / "utils.cpython-311.pyc").write_bytes(b"")
    parsed = scans(monkeypatch)
    task_index.entries_of(root)
    assert parsed == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"format": 1}',
        b"\xff\xfe",
        b'{"format": 99, "fingerprint": "F", "rows": [], "warnings": []}',
    ],
)
def test_a_damaged_file_is_made_anew(content: bytes, root: Path) -> None:
    expected = plain(task_index.entries_of(root))
    path = task_cache.cache_file(root, __import__("lm_eval").__version__)
    assert path is not None
    path.write_bytes(content.replace(b'"F"', json.dumps(task_cache.fingerprint(root)).encode()))
    assert plain(task_index.entries_of(root)) == expected
    assert json.loads(path.read_bytes())["rows"]


@pytest.mark.parametrize("file", ["/etc/task.yaml", "../outside.yaml", "sub/../../outside.yaml"])
def test_a_path_out_of_the_folder_is_refused(file: str, tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    assert task_cache.write(path, "key", SavedIndex([TaskRow("a", "TASK", file, [], None)], []))
    assert task_cache.read(path, "key") is None


def test_what_is_written_is_read(tmp_path: Path) -> None:
    saved = SavedIndex(
        [TaskRow("a", "TASK", "sub/a.yaml", ["t"], "multiple_choice"), TaskRow("t", "TAG", None, ["a"], None)],
        ["careful"],
    )
    path = tmp_path / "deep" / "index.json"
    assert task_cache.write(path, "key", saved)
    assert task_cache.read(path, "key") == saved
    assert task_cache.read(path, "another key") is None
    assert [item.name for item in path.parent.iterdir()] == ["index.json"]


def test_without_a_place_for_it_all_works_as_before(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "a_file").write_text("")
    monkeypatch.setenv("LM_EVAL_RECIPES_CACHE", str(tmp_path / "a_file" / "below"))
    assert set(task_index.entries_of(root)) == set(TaskIndex.build([root]))

    def no_home() -> Path:
        raise RuntimeError

    monkeypatch.delenv("LM_EVAL_RECIPES_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert task_cache.cache_folder() is None
    assert set(task_index.entries_of(root)) == set(TaskIndex.build([root]))


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("LM_EVAL_RECIPES_CACHE")
    assert task_cache.cache_folder() == tmp_path / "lm-eval-recipes"
    assert task_cache.cache_file(tmp_path, "1") != task_cache.cache_file(tmp_path, "2")
    assert task_cache.cache_file(tmp_path / "x", "1") != task_cache.cache_file(tmp_path / "y", "1")


def test_what_lm_eval_warns_of_is_told_at_every_start(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "sub" / "twice.yaml").write_text(TASK.format(name="a", output_type="x"))
    said = []
    for build in (
        lambda: TaskIndex.build([root]),
        lambda: task_index.entries_of(root),
        lambda: task_index.entries_of(root),
    ):
        caplog.clear()
        build()
        said.append([record.getMessage() for record in caplog.records if record.levelno == logging.WARNING])
    assert said[0] == said[1] == said[2]
    assert len(said[0]) == 1


def test_users_folder_comes_last_and_overrides(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    users = tmp_path / "users"
    users.mkdir()
    (users / "a.yaml").write_text(TASK.format(name="a", output_type="generate_until"))
    (users / "mult.yaml").write_text(TASK.format(name="int_mult", output_type="generate_until"))
    build = task_index.find_seam()[1].build  # type: ignore[index]
    entries = build([root, users])
    assert entries["a"].yaml_path == users / "a.yaml"
    assert entries["int_mult"].yaml_path == users / "mult.yaml"
    assert entries["int_sum"].yaml_path is not None and task_index.tasks_root() in entries["int_sum"].yaml_path.parents
    assert sum("overrides existing task" in record.getMessage() for record in caplog.records) == 2


@pytest.mark.parametrize(("name", "wrong"), [("nope", "does not exist"), ("mine.yaml", "is a file")])
def test_a_users_folder_that_is_none_is_told(name: str, wrong: str, root: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(TASK.format(name="mine", output_type="multiple_choice"))
    with pytest.raises(UserError, match=f"--include_path: .*{name} {wrong}"):
        task_index.task_manager([tmp_path, tmp_path / name])


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [[], ["--recipe", "baseline"]])
def test_the_command_names_the_folder_that_is_not_there(lm_eval, recipe: list[str], tmp_path: Path) -> None:
    model = ("--model", "hf", "--model_args", "pretrained=demo", "--device", "cpu")
    ran = lm_eval("run", *model, "--tasks", "mine", "--include_path", tmp_path / "nope", *recipe)
    assert ran.code == 2 and f"--include_path: {tmp_path / 'nope'} does not exist" in ran.err
    assert "Traceback" not in ran.err and "no task is called" not in ran.err


def test_our_folder_given_by_the_user_is_not_read_twice(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    build = task_index.find_seam()[1].build  # type: ignore[index]
    assert "int_mult" in build([root, task_index.tasks_root()])
    assert not [record for record in caplog.records if "overrides" in record.getMessage()]


def test_without_lm_evals_own_tasks_ours_are_not_added(root: Path, tmp_path: Path) -> None:
    build = task_index.find_seam()[1].build  # type: ignore[index]
    assert build([tmp_path / "lm_eval" / "tasks" / "sub"]).keys() == {"b", "common"}


def test_the_seam_is_restored(root: Path) -> None:
    before = manager.TaskIndex, manager.load_yaml
    with pytest.raises(ZeroDivisionError), task_index.installed(listing=True):
        assert manager.TaskIndex is not before[0]
        with task_index.installed():
            pass
        assert manager.TaskIndex is not before[0]
        raise ZeroDivisionError
    assert (manager.TaskIndex, manager.load_yaml) == before


def test_another_lm_eval_works_without_the_index(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delattr(manager, "TaskIndex")
    with task_index.installed():
        assert not hasattr(manager, "TaskIndex")
    assert "--include_path" in caplog.text


@pytest.fixture(scope="module")
def lm_evals_manager() -> TaskManager:
    return TaskManager()


@pytest.mark.slow
def test_all_entries_equal_lm_evals(lm_evals_manager: TaskManager) -> None:
    ours = {path.stem for path in task_index.tasks_root().rglob("*.yaml")}
    for _ in range(2):
        through_index = task_index.task_manager()
        entries = {name: entry for name, entry in through_index.task_index.items() if not _is_ours(entry)}
        expected = lm_evals_manager.task_index
        assert {name: entry for name, entry in plain(entries).items() if name in expected} == plain(expected)
        added = through_index.task_index.keys() - expected.keys()
        assert ours <= added
        assert all(_is_ours(through_index.task_index[name]) for name in added)


def _is_ours(entry: Entry) -> bool:
    if entry.kind is Kind.TAG:
        return entry.name.startswith("recipe_")
    return entry.yaml_path is not None and task_index.tasks_root() in entry.yaml_path.parents


@pytest.mark.slow
@pytest.mark.parametrize(
    "what", ["tasks", *(pytest.param(what, marks=pytest.mark.long) for what in ("groups", "subtasks", "tags"))]
)
def test_ls_prints_what_lm_eval_prints_and_our_tasks(what: str) -> None:
    printed = {}
    for module in ("lm_eval", "harness_ext"):
        done = subprocess.run([sys.executable, "-m", module, "ls", what], capture_output=True, text=True, check=True)
        # Columns are as wide as their longest cell, and ours may be longer.
        printed[module] = [[cell.strip(" -") for cell in line.split("|")] for line in done.stdout.splitlines()]
    added = [line for line in printed["harness_ext"] if line not in printed["lm_eval"]]
    assert [line for line in printed["harness_ext"] if line not in added] == printed["lm_eval"]
    if what in ("tasks", "subtasks"):
        assert any("int_mult" in line for line in added)
    assert len(added) < 60


@pytest.mark.slow
def test_validate_knows_our_tasks_and_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    (tmp_path / "mine.yaml").write_text(TASK.format(name="mine_only", output_type="multiple_choice"))
    command = [sys.executable, "-m", "harness_ext", "validate", "--include_path", str(tmp_path), "--tasks"]
    assert (
        "All tasks found"
        in subprocess.run([*command, "int_mult,mine_only,arc_easy"], capture_output=True, text=True, check=True).stdout
    )
    missing = subprocess.run([*command, "int_mult,not_there"], capture_output=True, text=True, check=False)
    assert missing.returncode == 1 and "not_there" in missing.stdout


def test_names_are_told_from_a_current_index_alone(root: Path) -> None:
    assert task_index.indexed_kinds() == {}
    entries = task_index.entries_of(root)
    ours = task_index.our_kinds()
    built = TaskIndex.build([task_index.tasks_root()]).values()
    assert ours == {entry.name: entry.kind.name.removeprefix("PY_") for entry in built if entry.kind is not Kind.TAG}
    kinds = {name: entry.kind.name.removeprefix("PY_") for name, entry in entries.items()}
    assert task_index.indexed_kinds() == kinds | ours and kinds["c"] == "TASK" and kinds["g"] == "GROUP"
    CHANGES["task removed"](root)
    assert task_index.indexed_kinds() == {}
