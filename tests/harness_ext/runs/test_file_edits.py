"""Weights that are offloaded: a run edits the files of the checkpoint, and its numbers are those of a run in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness_ext.demo import demo_path
from harness_ext.errors import UserError
from harness_ext.lm_eval_adapter.backend import RecipeLM
from harness_ext.model.digests import model_digest
from harness_ext.model.offload import is_offloaded
from harness_ext.recipe.recipe import parse_recipe
from harness_ext.runs.file_edits import FileEdits
from harness_ext.runs.progress import ProgressReport
from harness_ext.runs.shard_export import ShardExport
from harness_ext.storage.weight_folders import WeightFolders

OFFLOADED = {"parallelize": True, "max_cpu_memory": "1MB"}


@pytest.fixture
def offloaded(tmp_path: Path) -> dict[str, Any]:
    """Arguments that keep the embedded model on the disk."""
    return {**OFFLOADED, "offload_folder": str(tmp_path / "offload")}


def receipts(place: Path) -> dict[str, dict[str, Any]]:
    """The receipts of a folder by the recipe's label, each with its answers."""
    found = {}
    for path in place.rglob("receipt.json"):
        receipt = json.loads(path.read_text())
        (samples,) = path.parent.glob("samples_*.jsonl")
        answers = [json.loads(line)["resps"] for line in samples.read_text().splitlines()]
        found[receipt["recipe"]["label"]] = {**receipt, "answers": answers}
    return found


def file_edits(root: Path, identity: str = "of the embedded model", limit: int = 1 << 30) -> FileEdits:
    """Edits of the embedded model's files, in folders under `root`."""
    arguments = {"pretrained": str(demo_path()), "device": "cpu"}
    return FileEdits(arguments, identity, WeightFolders(root / "weights", limit), ProgressReport(quiet=True))


def command(place: Path, arguments: dict[str, Any], *recipes: str) -> tuple[object, ...]:
    joined = ",".join(f"{name}={value}" for name, value in {"pretrained": "demo", **arguments}.items())
    return ("run", "--model", "hf", "--model_args", joined, "--tasks", "int_mult", "--limit", 6, "--batch_size", 6,
            "--device", "cpu", "--output_path", place, *recipes)  # fmt: skip


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_digests_are_those_of_the_files(offloaded: dict[str, Any], dtype: str) -> None:
    lm, whole = RecipeLM("demo", device="cpu", dtype=dtype, **offloaded), RecipeLM("demo", device="cpu", dtype=dtype)
    assert is_offloaded(lm.model) and not is_offloaded(whole.model)
    assert model_digest(lm.model) == lm.weights.digest() == model_digest(whole.model)
    assert lm.totals() == whole.totals()


@pytest.mark.slow
def test_an_offloaded_run_equals_one_in_memory(lm_eval, offloaded: dict[str, Any], tmp_path: Path) -> None:
    recipes = ("--recipe", "svd", "--recipe", "magnitude", "--control", "random-subspace")
    for name, arguments in (("disk", offloaded), ("memory", {})):
        ran = lm_eval(*command(tmp_path / name, arguments, *recipes))
        assert ran.code == 0, ran.err
    got, expected = receipts(tmp_path / "disk"), receipts(tmp_path / "memory")
    assert got.keys() == expected.keys() and len(got) >= 4
    for label, receipt in got.items():
        assert receipt["answers"] == expected[label]["answers"], label
        assert receipt["weights"] == expected[label]["weights"]
        assert receipt["model"]["parameters"] == expected[label]["model"]["parameters"]
        for got_matrix, matrix in zip(receipt["matrices"], expected[label]["matrices"], strict=True):
            assert {**got_matrix, "seconds": 0} == {**matrix, "seconds": 0}
    assert not list((tmp_path / "disk").rglob(".weights*"))


@pytest.mark.slow
def test_what_a_killed_process_left_is_swept(lm_eval, offloaded: dict[str, Any], tmp_path: Path) -> None:
    left = tmp_path / "results" / "demo" / ".weights.tmp-999999999"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_text("half")
    ran = lm_eval(*command(tmp_path / "results", offloaded, "--recipe", "baseline"))
    assert ran.code == 0 and not left.exists(), ran.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        ("laser-search:calibration.split=train", "laser_search searches"),
        ("svd-llm", "feature_space learns from documents"),
    ],
)
def test_recipes_that_need_activations_are_refused_before_anything_is_scored(
    lm_eval, offloaded: dict[str, Any], tmp_path: Path, recipe: str, reason: str
) -> None:
    ran = lm_eval(*command(tmp_path / "results", offloaded, "--recipe", recipe))
    assert ran.code == 2 and reason in ran.err and "--layers_on" in ran.err and "Traceback" not in ran.err
    assert not receipts(tmp_path / "results")


def test_all_that_cannot_be_done_on_files_is_named_at_once(tmp_path: Path) -> None:
    edits = file_edits(tmp_path)
    edits.check([parse_recipe("svd"), parse_recipe("baseline")])
    with pytest.raises(UserError) as refused:
        edits.check([parse_recipe("svd:factored=true"), parse_recipe("svd-llm")])
    assert "two low-rank layers" in str(refused.value) and "'svd-llm'" in str(refused.value)


def test_an_export_of_offloaded_weights_goes_by_shards(lm_eval, offloaded: dict[str, Any], tmp_path: Path) -> None:
    joined = ",".join(f"{name}={value}" for name, value in offloaded.items())
    ran = lm_eval("export", "--model_args", f"pretrained=demo,{joined}", "--recipe", "svd", "--out", "edited",
                  "--shards")  # fmt: skip
    assert ran.code == 0, ran.err
    memory = RecipeLM("demo", recipe="svd", device="cpu")
    assert RecipeLM(str(tmp_path / "edited"), device="cpu").weights.digest() == memory.weights.digest()


def test_weights_that_are_not_where_they_were_put_are_told(offloaded: dict[str, Any], tmp_path: Path) -> None:
    """What was loaded is checked against what was written."""
    lm = RecipeLM(str(demo_path()), device="cpu", **offloaded)
    edits = file_edits(tmp_path)
    lm.files = edits
    digest = lm.weights.digest()
    lm.apply(parse_recipe("svd"), lambda calibration: [])
    assert lm.weights.digest() != digest and lm.applied is not None
    lm.undo()
    assert lm.weights.digest() == digest and lm.applied is None
    edited = edits.edit
    edits.edit = lambda recipe: edited(recipe)._replace(digest="blake3:other")  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="are not those that were written there"):
        lm.apply(parse_recipe("svd"), lambda calibration: [])
    lm.undo()
    assert lm.weights.digest() == digest


@pytest.mark.slow
def test_files_edited_before_are_taken_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    svd, magnitude = parse_recipe("svd"), parse_recipe("magnitude")
    first = file_edits(tmp_path).edit(svd)
    with monkeypatch.context() as later:
        later.setattr(ShardExport, "fill", lambda *_: pytest.fail("it is edited again"))
        again = file_edits(tmp_path).edit(svd)
    assert (again.folder, again.digest) == (first.folder, first.digest)
    assert again.applied.records == first.applied.records and again.applied.records
    assert file_edits(tmp_path, identity="of another model").edit(svd).folder != first.folder
    assert file_edits(tmp_path).edit(magnitude).digest != first.digest


def test_edited_files_are_kept_within_the_bound(tmp_path: Path) -> None:
    edits = file_edits(tmp_path, limit=0)
    first = edits.edit(parse_recipe("svd")).folder
    assert (first / "model.safetensors").is_file()
    second = edits.edit(parse_recipe("magnitude")).folder
    assert second.is_dir() and not first.exists()
    edits.discard()
    assert not list((tmp_path / "weights").iterdir())


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ShardExport, "size", 1 << 60)
    with pytest.raises(UserError, match=r"edited weights .* cannot be written to .*LM_EVAL_RECIPES_CACHE"):
        file_edits(tmp_path).edit(parse_recipe("svd"))
