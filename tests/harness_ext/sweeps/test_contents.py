"""A cell's name holds the contents of what its words point to: nothing that changed counts as done."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness_ext.sweeps import contents
from harness_ext.sweeps.cells import cells_of, is_of_now
from harness_ext.sweeps.contents import task_files
from harness_ext.sweeps.sampled_digests import SampledDigests
from harness_ext.sweeps.sweep_file import sweep_from

RECIPE = "name: mine\nsteps: [{method: truncate_svd, matrices: [all], keep: {rank_fraction: 0.5}}]\n"
TASK = "task: mine\ninclude: common_yaml\ndataset_kwargs: {data_files: data/items.jsonl}\n"
FILES = {
    "recipe.yaml": RECIPE,
    "tasks/mine.yaml": TASK,
    "tasks/common_yaml": "output_type: multiple_choice\n",
    "tasks/utils.py": "def doc(item): return item\n",
    "data/items.jsonl": '{"a": 1}\n',
    "model/config.json": '{"model_type": "gpt2"}',
    "places.json": '{"mine": [0, 1]}',
}


def weights(path: Path, *, count: int = 4, marked: int | None = None) -> None:
    """A safetensors file of tensors of 1 MiB of zeros, one of them of ones."""
    size = 1 << 20
    header = json.dumps(
        {
            f"t{number}": {"dtype": "U8", "shape": [size], "data_offsets": [number * size, (number + 1) * size]}
            for number in range(count)
        }
    ).encode()
    body = b"".join((b"\1" if number == marked else b"\0") * size for number in range(count))
    path.write_bytes(struct.pack("<Q", len(header)) + header + body)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    weights(tmp_path / "model" / "model.safetensors")
    return tmp_path


def keys() -> list[str]:
    """Of a model of this machine and one of the hub: baseline and recipe of each."""
    data: dict[str, Any] = {
        "name": "s",
        "models": [{"pretrained": "model"}, {"pretrained": "org/of-the-hub"}],
        "tasks": ["mine"],
        "recipes": ["recipe.yaml"],
        "run": {"include_path": "tasks", "samples": "places.json"},
    }
    return [cell.key for cell in cells_of(sweep_from(data, "sweep.yaml"))]


@pytest.mark.parametrize(
    ("change", "renamed"),
    [
        (lambda: Path("recipe.yaml").write_text(RECIPE.replace("0.5", "0.05")), [1, 3]),
        (lambda: Path("tasks/mine.yaml").write_text(TASK + "num_fewshot: 2\n"), [0, 1, 2, 3]),
        (lambda: Path("tasks/common_yaml").write_text("output_type: generate_until\n"), [0, 1, 2, 3]),
        (lambda: Path("tasks/utils.py").write_text("def doc(item): return {}\n"), [0, 1, 2, 3]),
        (lambda: Path("data/items.jsonl").write_text('{"a": 2}\n'), [0, 1, 2, 3]),
        (lambda: Path("places.json").write_text('{"mine": [1, 2]}'), [0, 1, 2, 3]),
        (lambda: Path("model/config.json").write_text('{"model_type": "llama"}'), [0, 1]),
        (lambda: weights(Path("model/model.safetensors"), marked=2), [0, 1]),
        # what changes no result
        (lambda: Path("recipe.yaml").write_text("# a word\n" + RECIPE.replace("mine", "yours")), []),
        (lambda: Path("tasks/sweep.yaml").write_text("name: s\nrecipes: [laser]\n"), []),
        (lambda: Path("model/README.md").write_text("about it"), []),
        (lambda: [os.utime(path, (1, 1)) for path in Path().rglob("*")], []),
    ],
)
def test_a_name_holds_contents(folder: Path, change: Callable[[], object], renamed: list[int]) -> None:
    before = keys()
    assert keys() == before
    change()
    assert [number for number, (old, new) in enumerate(zip(before, keys())) if old != new] == renamed


def test_names_are_the_same_wherever_the_files_lie(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Another machine mounts them elsewhere."""
    before, elsewhere = keys(), tmp_path_factory.mktemp("elsewhere") / "copy"
    folder.rename(elsewhere)
    monkeypatch.chdir(elsewhere)
    assert keys() == before


def test_another_version_of_the_package_edits_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So does `lm_eval run`; baselines it keeps."""
    before = keys()
    monkeypatch.setattr(contents, "__version__", "999")
    assert [old == new for old, new in zip(before, keys())] == [True, False, True, False]


def test_a_cell_knows_whether_its_files_changed_since(folder: Path) -> None:
    data = {"name": "s", "models": [{"pretrained": "demo"}], "tasks": ["int_mult"], "recipes": ["recipe.yaml"]}
    sweep = sweep_from(data, "x")
    baseline, edited = cells_of(sweep)
    assert is_of_now(baseline, sweep) and is_of_now(edited, sweep)
    (folder / "recipe.yaml").write_text(RECIPE.replace("0.5", "0.4"))
    assert is_of_now(baseline, sweep) and not is_of_now(edited, sweep)


def test_tasks_that_are_files_and_folders_are_followed_round_in_circles_once(folder: Path) -> None:
    (folder / "tasks" / "common_yaml").write_text("include:\n  - mine.yaml\n  - 'gone.yaml'\n")
    for tasks in (["tasks/mine.yaml"], ["tasks"], ["int_sum,tasks/*.yaml"]):
        found = {path.name for path in task_files(tasks, None)}
        assert found == {"mine.yaml", "common_yaml", "utils.py", "items.jsonl"}, tasks
    assert list(task_files(["int_mult"], "no-such-folder")) == []


@pytest.mark.parametrize("text", ["a" * 300 + ".json", "x" * 10**6, "include: /dev/zero\n", "include: [" + "b" * 5000])
def test_a_task_file_that_makes_no_sense_is_looked_at_and_no_more(folder: Path, text: str) -> None:
    (folder / "tasks" / "mine.yaml").write_text(text)
    (folder / "tasks" / "utils.py").unlink()
    assert [path.name for path in task_files([], "tasks")] == ["mine.yaml"] and keys()


@pytest.mark.parametrize("name", ["model.safetensors", "model.gguf"])
def test_every_matrix_of_a_large_file_is_looked_at(tmp_path: Path, name: str) -> None:
    path, digests = tmp_path / name, set()
    for marked in (None, 0, 1, 2, 3):
        weights(path, marked=marked)
        digests.add(SampledDigests().digest(path))
    assert len(digests) == 5
    assert SampledDigests().digest(tmp_path / "gone") == "missing"
