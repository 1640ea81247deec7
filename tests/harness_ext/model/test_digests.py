"""Digests of weights: what they are of, that they are worked out beside the next edit and waited for, and how many
bytes are hashed and copied for an edit.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch
from blake3 import blake3

from harness_ext.model import digests, weights
from harness_ext.model.digests import KIND, background_digest, model_digest, moved, name_of, named, tensor_digest
from harness_ext.recipe.recipe import parse_recipe


def no_documents(calibration):
    pytest.fail("no document was to be asked for")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int8])
@pytest.mark.parametrize("shape", [(3, 4), (0, 4), (), (600, 700)])
def test_a_digest_is_of_dtype_shape_and_bytes(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    value = (torch.arange(torch.Size(shape).numel()) % 120).reshape(shape).to(dtype)
    expected = blake3(
        f"{dtype} {shape} ".encode() + value.view(torch.uint8 if shape else dtype).numpy().tobytes()
        if dtype != torch.bfloat16 or shape
        else f"{dtype} {shape} ".encode() + value.reshape(1).view(torch.uint8).numpy().tobytes()
    )
    assert tensor_digest(value) == f"{KIND}:{expected.hexdigest()}" == background_digest(value).result()
    if len(shape) == 2 and value.numel():
        assert tensor_digest(value.T) == tensor_digest(value.T.contiguous()) != tensor_digest(value)


def test_a_name_belongs_to_the_tensor_as_it_was_read() -> None:
    value = named(torch.ones(3), "ones")
    assert name_of(value) == "ones" == name_of(moved(value, torch.device("cpu")))
    assert name_of(moved(value, torch.device("meta"))) == "ones"
    assert name_of(value * 1) is None and name_of(value[:]) is None and name_of(value.clone()) is None
    value += 1
    assert name_of(value) is None and name_of(moved(value, torch.device("meta"))) is None
    with torch.inference_mode():
        assert name_of(named(torch.ones(3), "ones")) is None


def test_a_matrix_that_is_read_is_named_by_its_bytes_part_and_arithmetic(make_lm) -> None:
    lm = make_lm("gpt2", dtype="bfloat16")
    matrices = lm.weights.layout.select(parse_recipe("svd:matrices=[q_proj,k_proj],layers=[0,1]").steps[0])
    names = [name_of(lm.weights.read(matrix)) for matrix in matrices]
    assert len(set(names)) == 4 and names == [name_of(lm.weights.read(matrix)) for matrix in matrices]
    assert all(name.startswith(lm.weights.digest_of(m.parameter)) for name, m in zip(names, matrices, strict=True))
    wider = make_lm("gpt2", dtype="float64")
    assert not set(names) & {name_of(wider.weights.read(matrix)) for matrix in matrices}
    lm.apply(parse_recipe("svd:matrices=[q_proj],layers=[0],keep.rank=2"), no_documents)
    # Query, key and value are one parameter here, and the key is what it was.
    changed = [name_of(lm.weights.read(matrix)) != name for matrix, name in zip(matrices, names, strict=True)]
    assert changed == [matrix.layer == 0 and matrix.role == "q_proj" for matrix in matrices]
    lm.undo()
    assert names == [name_of(lm.weights.read(matrix)) for matrix in matrices]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Bytes hashed, by every way to hash, and bytes copied or asked for on the CPU."""
    found: Counter[str] = Counter()
    hash_bytes, to_cpu = digests._digest_on_cpu, digests.on_cpu

    def hashed(data: torch.Tensor) -> str:
        found["hashed"] += data.numel() * data.element_size()
        return hash_bytes(data)

    def copied(value: torch.Tensor) -> torch.Tensor:
        found["copied"] += value.numel() * value.element_size()
        return to_cpu(value)

    class Spy:
        """SHA-256 of more than names is a digest by another way."""

        def __init__(self, data: bytes = b"") -> None:
            found["sha256"] += len(data) if len(data) > 4096 else 0
            self._hasher = real(data)

        def __getattr__(self, name: str) -> object:
            return getattr(self._hasher, name)

    real = hashlib.sha256
    monkeypatch.setattr(digests, "_digest_on_cpu", hashed)
    monkeypatch.setattr(digests, "on_cpu", copied)
    monkeypatch.setattr(weights, "on_cpu", copied)
    monkeypatch.setattr(hashlib, "sha256", Spy)
    return found


@pytest.mark.parametrize("specification", ["svd:keep.rank=3", "laser-rmt", "identity", "magnitude", "random-subspace"])
@pytest.mark.parametrize("known", [True, False])
def test_stored_bytes_are_hashed_once_before_and_once_after(
    make_lm, counted: Counter[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, specification: str, known: bool
) -> None:
    """And copied to the CPU once to be hashed, once to be kept and once when they are new; no fp32 copy is hashed."""
    monkeypatch.setenv("LM_EVAL_RECIPES_CACHE", str(tmp_path / "file"))
    (tmp_path / "file").touch()
    lm = make_lm("llama", dtype="bfloat16")
    if known:
        lm.weights.digest()
    counted.clear()
    # What goes to the cache of factors is hashed for the cache, beside the edits.
    monkeypatch.setattr("harness_ext.linalg.cache.DiskCache.save", lambda *arguments: None)
    records = lm.apply(parse_recipe(specification), no_documents).records
    written = [record for record in records if record.digest_before != record.digest_after]
    stored = sum(2 * record.parameters_before for record in records)
    changed = sum(2 * record.parameters_before for record in written)
    assert changed and counted["hashed"] == stored + (0 if known else stored) and not counted["sha256"]
    assert counted["copied"] <= counted["hashed"] + stored


def test_a_digest_is_made_beside_the_next_edit_and_awaited_where_the_record_is_closed(
    make_lm, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    waiting: list[Future[str]] = []

    def slow(value: torch.Tensor) -> Future[str]:
        def result() -> str:
            assert go_on.wait(20)
            return tensor_digest(value)

        waiting.append(digests._background().submit(result))
        if len(waiting) == 2:
            assert not any(future.done() for future in waiting)
            go_on.set()
        return waiting[-1]

    monkeypatch.setattr(weights, "background_digest", slow)
    lm = make_lm("llama")
    applied = lm.apply(parse_recipe("svd:matrices=[up_proj,down_proj],layers=[0],keep.rank=3"), no_documents)
    assert len(waiting) == 2
    assert [record.digest_after for record in applied.records] == [
        tensor_digest(lm.model.get_parameter(record.name)) for record in applied.records
    ]


def test_bytes_are_not_written_to_while_they_are_hashed(make_lm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps on one matrix: what the first left is hashed before the second writes."""
    started = threading.Event()

    def slow(value: torch.Tensor) -> Future[str]:
        def result() -> str:
            started.wait(0.2)
            return tensor_digest(value)

        return digests._background().submit(result)

    monkeypatch.setattr(weights, "background_digest", slow)
    lm = make_lm("llama")
    steps = "svd:matrices=[up_proj],layers=[0],keep.rank=5"
    one = lm.apply(parse_recipe(steps), no_documents).records[0].digest_after
    lm.undo()
    first = lm.apply(parse_recipe(steps), no_documents)
    second = lm.apply(parse_recipe(steps.replace("rank=5", "rank=2")), no_documents)
    assert first.records[0].digest_after == one == second.records[0].digest_before != second.records[0].digest_after


def test_what_goes_wrong_with_a_digest_is_raised(make_lm, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(value: torch.Tensor) -> Future[str]:
        failed: Future[str] = Future()
        failed.set_exception(MemoryError("no room to hash"))
        return failed

    lm = make_lm("llama")
    digest = lm.weights.digest()
    with monkeypatch.context() as patched:
        patched.setattr(weights, "background_digest", broken)
        for recipe in ("svd:matrices=[up_proj],layers=[0],keep.rank=5", "svd:keep.rank=5"):
            with pytest.raises(MemoryError, match="no room to hash"):
                lm.apply(parse_recipe(recipe), no_documents)
            assert model_digest(lm.model) == digest, "and the weights are put back"


def as_written_before(folder: Path, digest: Callable[[str], str]) -> None:
    """Rewrite a receipt as an earlier version wrote it: SHA-256 in hex, and no word of which function."""
    path = folder / "receipt.json"
    receipt = json.loads(path.read_text())
    del receipt["weights"]["digest"]
    for place in (receipt["weights"], *receipt["matrices"]):
        for key in ("digest_before", "digest_after"):
            place[key] = digest(place[key])
    path.write_text(json.dumps(receipt))


@pytest.mark.slow
def test_a_run_of_now_is_compared_with_a_baseline_of_before(demo_run, lm_eval, tmp_path: Path) -> None:
    assert demo_run("--recipe", "laser").code == 0
    (folder,) = tmp_path.glob("results/demo/baseline-*")
    (older,) = tmp_path.glob("results/demo/laser-*")
    for place in (folder, older):
        as_written_before(place, lambda name: hashlib.sha256(name.encode()).hexdigest())
    kept = (folder / "receipt.json").read_bytes()
    ran = demo_run("--recipe", "laser", "svd:keep.rank_fraction=0.2", "--details")
    assert ran.code == 0, ran.err
    # Nothing is made twice: what an earlier version left is taken as it is.
    assert ran.err.count("kept from") == 2 and (folder / "receipt.json").read_bytes() == kept
    assert "incomparable" not in ran.out and "worse" in ran.out
    assert len(list(tmp_path.glob("results/demo/*/receipt.json"))) == 3
    (new,) = tmp_path.glob("results/demo/svd*/receipt.json")
    weights_of_now = json.loads(new.read_text())["weights"]
    assert weights_of_now["digest"] == KIND and weights_of_now["digest_before"].startswith(f"{KIND}:")
