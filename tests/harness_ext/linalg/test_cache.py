"""The cache of decompositions: it may fail in any way without changing a bit."""

from __future__ import annotations

import gc
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness_ext.errors import UserError
from harness_ext.linalg import cache as disk
from harness_ext.linalg.cache import DiskCache, lasting
from harness_ext.linalg.decompose import Decomposer, NotConverged
from harness_ext.recipe.recipe import parse_recipe
from tests.harness_ext.linalg.matrices import fixed, no_documents, not_converged


def both(kept: DiskCache | Path | None, weight: torch.Tensor) -> list[torch.Tensor]:
    factors = Decomposer(kept)
    found = [
        *factors.of(weight),
        factors.truncate(weight, fixed(3)).weight(),
        factors.truncate(weight, fixed(29)).weight(),
    ]
    factors.flush()
    return found


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) and a.stride() == b.stride() for a, b in zip(one, other, strict=True))


def test_kept_decompositions_are_read_back_bit_for_bit_and_not_made_again(
    weight: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cold = both(tmp_path, weight)
    for name in ("svd", "eigh"):
        monkeypatch.setattr(torch.linalg, name, lambda *args, **kwargs: pytest.fail("decomposed twice"))
    assert equal(cold, both(tmp_path, weight.clone()))
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors"}


@pytest.mark.parametrize(
    "specification",
    ["svd:keep.rank=5", "svd:keep.rank=23", "identity", "laser-rmt", "svd:decomposition=randomised,keep.rank=1"],
)
def test_an_edit_is_the_same_with_and_without_the_cache(
    make_lm, specification: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def digest(cache: Path) -> str:
        monkeypatch.setenv("LM_EVAL_RECIPES_CACHE", str(cache))
        lm = make_lm("gpt2")
        lm.apply(parse_recipe(specification), no_documents)
        return lm.weights.digest()

    (tmp_path / "none").touch()
    assert digest(tmp_path / "a") == digest(tmp_path / "a") == digest(tmp_path / "b") == digest(tmp_path / "none")


def damage_middle(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "cut to nothing": lambda path: path.write_bytes(b""),
    "one bit": damage_middle,
    "not safetensors": lambda path: path.write_bytes(b"\xff" * 200),
    "deleted": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_made_again(damage: str, weight: torch.Tensor, tmp_path: Path) -> None:
    cold = both(tmp_path, weight)
    for path in tmp_path.iterdir():
        DAMAGES[damage](path)
    assert equal(cold, both(tmp_path, weight))
    assert equal(cold, both(tmp_path, weight))


def test_the_file_of_another_matrix_is_not_taken(weight: torch.Tensor, tmp_path: Path) -> None:
    both(tmp_path, weight)
    names = {path.name.split("-", 1)[1]: path for path in tmp_path.iterdir()}
    other = weight.flip(0).contiguous()
    cold = both(None, other)
    both(tmp_path, other)
    for path in tmp_path.iterdir():
        source = names[path.name.split("-", 1)[1]]
        if path != source:
            path.write_bytes(source.read_bytes())
    assert equal(cold, both(tmp_path, other))


def test_a_fallback_is_kept_with_the_factors(
    weight: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = torch.linalg.svd

    def fails_in_fp32(matrix: torch.Tensor, **options: bool):
        if matrix.dtype == torch.float32:
            raise torch.linalg.LinAlgError("did not converge")
        return real(matrix, **options)

    monkeypatch.setattr(torch.linalg, "svd", fails_in_fp32)
    for _ in range(2):
        factors = Decomposer(tmp_path)
        svd = factors.of(weight)
        assert svd.s.dtype == torch.float32 and list(factors.fallbacks.values()) == ["fp64"]
        torch.testing.assert_close((svd.u * svd.s) @ svd.vh, weight, atol=1e-5, rtol=1e-5)
        monkeypatch.setattr(torch.linalg, "svd", not_converged)
    with pytest.raises(NotConverged, match="in fp64 neither"):
        Decomposer().of(weight)


def sizes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def save(cache: DiskCache, name: str, count: int, value: float = 0.0) -> None:
    cache.save(name, {"a": torch.full((count,), float(value))})
    disk.flush()


def test_the_folder_stays_within_its_bound_and_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    def names() -> set[str]:
        return {path.stem for path in tmp_path.iterdir()}

    earlier, cache = DiskCache(tmp_path, 13_500), DiskCache(tmp_path, 13_500)
    for number in range(3):
        save(earlier, str(number), 1000, number)
        os.utime(tmp_path / f"{number}.safetensors", (1000 + number, 1000 + number))
    assert cache.load("0", {"a": (1000,)}, torch.device("cpu")).tensors["a"][0] == 0
    save(cache, "3", 1000)
    assert names() == {"0", "2", "3"} and sizes(tmp_path) <= 13_500
    save(cache, "large", 4000)
    assert names() == {"0", "2", "3"}
    assert cache.load("0", {"a": (999,)}, torch.device("cpu")) is None


def test_what_a_session_used_makes_no_room_and_what_finds_none_is_not_serialised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that is larger than the folder, gone through twice: what was kept the first time is found the second."""
    copies, real = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda value: copies.append(value.numel()) or real(value))
    for session in range(2):
        cache, found = DiskCache(tmp_path, 13_500), []
        for number in range(6):
            if cache.load(str(number), {"a": (1000,)}, torch.device("cpu")) is not None:
                found.append(number)
            else:
                save(cache, str(number), 1000, number)
        assert found == ([0, 1, 2] if session else [])
        assert {path.stem for path in tmp_path.iterdir()} == {"0", "1", "2"}
        assert copies.count(1000) == (9 if session else 6), "hashed and written if kept, checked if found, else neither"


def test_what_waits_to_be_written_is_found_and_what_was_changed_meanwhile_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, go_on, real = threading.Event(), threading.Event(), disk._digest

    def slow(tensors):
        held.set()
        assert go_on.wait(20)
        return real(tensors)

    monkeypatch.setattr(disk, "_digest", slow)
    cache, other = DiskCache(tmp_path), DiskCache(tmp_path)
    one, two = torch.ones(10), torch.ones(10)
    cache.save("one", {"a": one}, "a note")
    cache.save("two", {"a": two})
    assert held.wait(20) and not list(tmp_path.glob("*.safetensors"))
    for reader in (cache, other):
        entry = reader.load("one", {"a": (10,)}, torch.device("cpu"))
        assert torch.equal(entry.tensors["a"], one) and entry.note == "a note"
        assert reader.load("one", {"a": (11,)}, torch.device("cpu")) is None
    two += 1
    assert cache.load("two", {"a": (10,)}, torch.device("cpu")) is None
    go_on.set()
    disk.flush()
    assert [path.stem for path in tmp_path.iterdir()] == ["one"]
    assert DiskCache(tmp_path).load("one", {"a": (10,)}, torch.device("cpu")).note == "a note"


def test_the_last_may_be_written_while_it_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Counted(dict[Path, Any]):
        """What is being written, all of it done as soon as somebody has looked how much it is."""

        def __len__(self) -> int:
            found = super().__len__()
            disk.flush()
            return found

    monkeypatch.setattr(disk, "_writing", Counted())
    monkeypatch.setattr(disk, "_MOST_WAITING", 1)
    cache = DiskCache(tmp_path)
    for name in ("one", "two", "three"):
        cache.save(name, {"a": torch.ones(10)})
    disk.flush()
    assert {path.stem for path in tmp_path.iterdir()} == {"one", "two", "three"}


@pytest.mark.slow
def test_a_process_that_ends_writes_what_waits_and_one_that_is_killed_leaves_a_sound_folder(
    tmp_path: Path, repository: Path
) -> None:
    code = (
        "import os, signal, sys, torch; from pathlib import Path; from harness_ext.linalg.cache import DiskCache\n"
        "cache = DiskCache(Path(sys.argv[1]))\n"
        "for number in range(3): cache.save(str(number), {'a': torch.full((100_000,), float(number))})\n"
        "if sys.argv[2] == 'kill': os.kill(os.getpid(), signal.SIGKILL)"
    )
    for how in ("kill", "end"):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path), how], cwd=repository, timeout=120, check=False
        )
        assert done.returncode == (-signal.SIGKILL if how == "kill" else 0)
        for number in range(3):
            found = DiskCache(tmp_path).load(str(number), {"a": (100_000,)}, torch.device("cpu"))
            assert (found is None and how == "kill") or bool((found.tensors["a"] == number).all())


def test_what_cannot_be_removed_stays_and_the_rest_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    earlier, cache = DiskCache(tmp_path, limit_bytes=3000), DiskCache(tmp_path, limit_bytes=3000)
    (tmp_path / "folder.safetensors").mkdir()
    for name in ("foreign", "old"):
        save(earlier, name, 300)
    unlink = Path.unlink

    def refused(path: Path, missing_ok: bool = False) -> None:
        if path.name.startswith("foreign"):
            raise PermissionError(path)
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refused)
    save(cache, "new", 300)
    assert {path.name for path in tmp_path.iterdir()} == {
        "folder.safetensors",
        "foreign.safetensors",
        "new.safetensors",
    }


def test_the_bound_is_also_a_share_of_what_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = disk.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: usage._replace(free=10_000))
    cache = DiskCache(tmp_path)
    save(cache, "small", 500)
    save(cache, "large", 2000)
    assert [path.stem for path in tmp_path.iterdir()] == ["small"]


def test_what_a_killed_process_left_is_swept_and_what_is_being_written_is_not(tmp_path: Path) -> None:
    for name, age in ((".old.writing", 2 * 3600), (".new.writing", 0)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    save(DiskCache(tmp_path), "a", 3)
    assert {path.name for path in tmp_path.iterdir()} == {".new.writing", "a.safetensors"}


def test_a_full_disk_costs_time_only(weight: torch.Tensor, tmp_path: Path) -> None:
    cold = both(None, weight)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
        assert equal(cold, both(tmp_path, weight))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_goes_away_is_made_again(weight: torch.Tensor, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "factors"
    factors = Decomposer(folder)
    factors.of(weight)
    for _ in range(2):
        factors.flush()
        for path in folder.iterdir() if folder.exists() else ():
            path.unlink()
        if folder.exists():
            folder.rmdir()
        factors.of(weight)
    factors.of(weight + 1)
    factors.flush()
    assert list(folder.iterdir())


WRITER = """
import sys, torch
from pathlib import Path
from harness_ext.linalg.cache import DiskCache
from harness_ext.linalg.decompose import Decomposer
torch.set_num_threads(1)
weight = torch.randn(60, 60, generator=torch.Generator().manual_seed(5))
for number in range(40):
    factors = Decomposer(DiskCache(Path(sys.argv[1]), 150_000))
    for shift in range(4):
        assert torch.isfinite(factors.of(weight + shift).s).all()
        factors.truncate(weight + shift, lambda singular_values: 7)
print(float(factors.of(weight).s.double().sum()))
"""


@pytest.mark.slow
def test_processes_that_share_a_small_folder_do_not_disturb_each_other(tmp_path: Path, repository: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=repository,
        )
        for _ in range(2)
    ]
    results = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    assert len({out for out, _ in results}) == 1
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".writing")]


def test_the_users_cache_is_taken_unless_it_is_off_or_cannot_be_written(
    weight: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def place_of_files() -> str:
        factors = Decomposer(lasting(tmp_path / "scratch"))
        factors.of(weight)
        factors.flush()
        (path,) = tmp_path.rglob("*.safetensors")
        path.unlink()
        return str(path.parent.relative_to(tmp_path))

    monkeypatch.setenv("LM_EVAL_RECIPES_CACHE", str(tmp_path / "cache"))
    assert place_of_files() == "cache/factors"
    monkeypatch.setenv(disk.LIMIT_VARIABLE, "0")
    assert place_of_files() == "scratch/factors"
    monkeypatch.setenv(disk.LIMIT_VARIABLE, "0.5")
    assert place_of_files() == "cache/factors"
    (tmp_path / "file").touch()
    monkeypatch.setenv("LM_EVAL_RECIPES_CACHE", str(tmp_path / "file"))
    assert place_of_files() == "scratch/factors"
    for wrong in ("much", "nan", "inf"):
        monkeypatch.setenv(disk.LIMIT_VARIABLE, wrong)
        with pytest.raises(UserError, match="must be a number of GiB"):
            lasting(tmp_path)


def test_the_scratch_folder_goes_with_its_model_whatever_is_still_being_written(
    make_lm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "none").touch()
    monkeypatch.setenv("LM_EVAL_RECIPES_CACHE", str(tmp_path / "none"))
    real = disk._digest
    monkeypatch.setattr(disk, "_digest", lambda tensors: time.sleep(0.05) or real(tensors))
    lm = make_lm("llama")
    scratch = lm.weights._scratch
    lm.apply(parse_recipe("svd:matrices=[up_proj],keep.rank=3"), no_documents)
    assert disk._writing and (scratch / "factors").exists()
    del lm
    gc.collect()
    assert not disk._writing and not scratch.exists()


def test_another_number_of_threads_is_another_name() -> None:
    names = {disk._computed_by("cpu", threads) for threads in (1, 2)}
    assert len(names) == 2
