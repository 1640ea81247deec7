"""Exports that load no model: tensors and receipt are those of the ordinary way; kills, full disks, and refusals."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import harness_ext
from harness_ext.errors import UserError
from harness_ext.model.checkpoint import INDEX, SINGLE
from harness_ext.runs import shard_export
from harness_ext.storage.rundir import EXPORTING

SVD = "svd:keep.rank=3,matrices=[all]"
Tensors = dict[str, torch.Tensor]


def sharded(folder: Path, size: str = "12KB") -> Path:
    """The same model in several files."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    (folder / SINGLE).unlink()
    model.save_pretrained(folder, max_shard_size=size)
    return folder


def rewritten(folder: Path, change: Callable[[Tensors], Tensors]) -> Path:
    save_file(change(load_file(folder / SINGLE)), folder / SINGLE, {"format": "pt"})
    return folder


def loaded(folder: Path) -> Tensors:
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict()


def receipt_of(folder: Path) -> dict[str, Any]:
    receipt = json.loads((folder / "receipt.json").read_text())
    for row in receipt["matrices"]:
        del row["seconds"]
    return receipt


def exported_both_ways(recipe: Any, model: Path, tmp_path: Path, **settings: Any) -> tuple[Path, Path]:
    by_shards, plain = tmp_path / "by-shards", tmp_path / "plain"
    for out, shards in ((by_shards, True), (plain, False)):
        # For some model types transformers takes a tokenizer of its own, whatever the folder says.
        tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
        harness_ext.export(recipe, out, pretrained=str(model), shards=shards, tokenizer=tokenizer, **settings)
    return by_shards, plain


def assert_equal(by_shards: Path, plain: Path, *, but: str = "command") -> None:
    ours, theirs = loaded(by_shards), loaded(plain)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype and torch.equal(ours[name], value), name
    receipts = [receipt_of(folder) for folder in (by_shards, plain)]
    for key in receipts[1].keys() - {"command", but}:
        assert receipts[0][key] == receipts[1][key], key
    for path in plain.glob("*.json"):
        if path.name not in (INDEX, "receipt.json"):
            assert (by_shards / path.name).read_text() == path.read_text(), path.name


# The same numbers


@pytest.mark.parametrize("recipe", [SVD, "magnitude:matrices=[all]"])
def test_every_family(make_model, family: str, recipe: str, tmp_path: Path) -> None:
    assert_equal(*exported_both_ways(recipe, make_model(family, dtype="bfloat16"), tmp_path))


def test_every_mixed_architecture(make_model, mixed: str, tmp_path: Path) -> None:
    # Whenever transformers loads Youtu it sets a row of the embedding to zero, which the digest of loaded weights has.
    but = "weights" if mixed == "youtu" else "command"
    assert_equal(*exported_both_ways(SVD, make_model(mixed), tmp_path), but=but)


STEPS = {
    "name": "steps",
    "steps": [
        {"method": "truncate_svd", "matrices": ["attn"], "keep": {"rank": 6}},
        {"method": "noise", "matrices": ["all"], "relative_error": 0.2},
    ],
}
FACTORED = "svd:keep.rank=2,matrices=[attn],factored=true,per_head=true"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "family"),
    [
        (STEPS, "llama"),
        (FACTORED, "gpt2"),
        ("svd:keep.rank=3,matrices=[mlp],factored=true", "llama"),
        ("random-subspace:per_head=true,keep.rank=2", "falcon-grouped"),
        ("svd:keep.rank=3,matrices=['*embed*']", "llama"),
        ("laser-rmt", "mixtral"),
        ("svd:keep.rank=3,decomposition=randomised", "qwen3_moe"),
    ],
    ids=["steps", "factored-heads", "factored", "heads", "embedding", "rank-from-weights", "randomised"],
)
def test_recipes_of_many_kinds(make_model, recipe: Any, family: str, tmp_path: Path) -> None:
    assert_equal(*exported_both_ways(recipe, make_model(family), tmp_path))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_another_dtype(make_model, dtype: str, tmp_path: Path) -> None:
    assert_equal(*exported_both_ways(SVD, make_model("mixtral", dtype="bfloat16"), tmp_path, dtype=dtype))


@pytest.mark.parametrize("family", ["llama", "mixtral", "gpt_oss"])
def test_several_files_become_several_files(make_model, family: str, tmp_path: Path) -> None:
    model = sharded(make_model(family, dtype="bfloat16"))
    by_shards, plain = exported_both_ways(SVD, model, tmp_path)
    assert_equal(by_shards, plain)
    names = {path.name for path in model.glob("*.safetensors*")}
    assert len(names) > 3 and names == {path.name for path in by_shards.glob("*.safetensors*")}
    before, after = (json.loads((folder / INDEX).read_text()) for folder in (model, by_shards))
    assert after["weight_map"] == before["weight_map"] and after["metadata"] == before["metadata"]


def _twice(tensors: Tensors) -> Tensors:
    return {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}


def _head_only(tensors: Tensors) -> Tensors:
    embedding = tensors["model.embed_tokens.weight"]
    return {name: value for name, value in tensors.items() if value is not embedding} | {"lm_head.weight": embedding}


def _mixed_dtypes(tensors: Tensors) -> Tensors:
    return {name: value.half() if "k_proj" in name else value for name, value in tensors.items()}


def _with_others(tensors: Tensors) -> Tensors:
    return {
        **tensors,
        "model.layers.9.mlp.up_proj.weight": torch.randn(40, 24),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.randn(3),
        "odd": torch.randn(3).to(torch.bfloat16),
    }


@pytest.mark.parametrize(
    "change",
    [
        _twice,
        _head_only,
        _mixed_dtypes,
        _with_others,
        lambda tensors: {name.removeprefix("model."): value for name, value in tensors.items()},
    ],
    ids=["tied-stored-twice", "tied-head-only", "mixed-dtypes", "others", "no-prefix"],
)
def test_checkpoints_as_they_are_found(make_model, change: Callable[[Tensors], Tensors], tmp_path: Path) -> None:
    assert_equal(*exported_both_ways(SVD, rewritten(make_model("llama"), change), tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["laser", "svd:keep.rank_fraction=0.1,matrices=[k_proj]", "noise:layers=[3]"])
def test_a_trained_model(smollm2: Path, recipe: str, tmp_path: Path) -> None:
    by_shards, plain = tmp_path / "by-shards", tmp_path / "plain"
    harness_ext.export(recipe, by_shards, pretrained=str(smollm2), shards=True)
    harness_ext.export(recipe, plain, pretrained=str(smollm2), shards=False)
    assert_equal(by_shards, plain)


# The choice


def test_it_is_chosen_where_it_is_possible_and_not_elsewhere(
    make_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: object, **settings: object) -> None:
        raise AssertionError("the model was loaded")

    model = str(make_model("llama"))
    monkeypatch.setattr("harness_ext.lm_eval_adapter.model_loading.load_model", never)
    harness_ext.export("laser", tmp_path / "a", pretrained=model)
    with pytest.raises(AssertionError, match="loaded"):
        harness_ext.export("laser", tmp_path / "b", pretrained=model, shards=False)
    with pytest.raises(AssertionError, match="loaded"):
        harness_ext.export("svd-llm", tmp_path / "b", pretrained=model, texts=["w3 w4 w5"])


def _no_change(folder: Path) -> None:
    """As it is."""


def _different_head(folder: Path) -> None:
    rewritten(folder, lambda tensors: {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"] + 1})


def _with_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoConfig": "c.C"}}))


@pytest.mark.parametrize(
    ("recipe", "settings", "change", "words"),
    [
        ("svd-llm", {"texts": ["w3"]}, _no_change, "feature_space learns from documents"),
        ("laser-search", {"documents": [("w3", " w4")]}, _no_change, "laser_search searches"),
        ("basis-selection", {"documents": [("w3", " w4")]}, _no_change, "basis_selection trains"),
        ("contrast-projection", {}, _no_change, "learns from documents"),
        ("svd", {"key_mapping": {"a": "b"}}, _no_change, "key_mapping in --model_args is for the loader"),
        ("svd", {"backend": "seq2seq"}, _no_change, "backend seq2seq"),
        ("svd", {}, _different_head, "ties lm_head.weight and model.embed_tokens.weight, which it stores with"),
        ("svd", {}, _with_code, "code of its own"),
    ],
)
def test_what_cannot_be_says_why_and_what_to_do(
    make_model, recipe: str, settings: dict[str, Any], change: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    model = make_model("llama")
    change(model)
    with pytest.raises(UserError) as caught:
        harness_ext.export(recipe, tmp_path / "out", pretrained=str(model), shards=True, **settings)
    said = str(caught.value)
    assert said.startswith("--shards: ") and words in said
    assert said.endswith("leave --shards out, and the model is loaded for it")
    assert list(tmp_path.iterdir()) == []


def test_pickled_weights_are_loaded(make_model, tmp_path: Path) -> None:
    model = make_model("llama")
    torch.save(load_file(model / SINGLE), model / "pytorch_model.bin")
    (model / SINGLE).unlink()
    settings: dict[str, Any] = {"pretrained": str(model), "use_safetensors": False}
    with pytest.raises(UserError, match="asks for its pickled weights"):
        harness_ext.export(SVD, tmp_path / "out", shards=True, **settings)
    harness_ext.export(SVD, tmp_path / "out", **settings)
    assert (tmp_path / "out" / SINGLE).is_file()


@pytest.mark.parametrize("shards", [True, None])
def test_a_missing_or_damaged_file_is_named(make_model, shards: bool | None, tmp_path: Path) -> None:
    model = sharded(make_model("llama"))
    file = sorted(model.glob("*.safetensors"))[1]
    for spoil, words in ((lambda: os.truncate(file, 2000), "truncated"), (file.unlink, "is missing")):
        spoil()
        with pytest.raises(UserError, match=rf"{file.name}.* {words}"):
            harness_ext.export(SVD, tmp_path / "out", pretrained=str(model), shards=shards)
    assert list(tmp_path.iterdir()) == []


def test_a_weight_that_is_not_a_number_is_named(make_model, tmp_path: Path) -> None:
    def spoilt(tensors: Tensors) -> Tensors:
        tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
        return tensors

    model = rewritten(make_model("llama"), spoilt)
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.up_proj\.weight holds a NaN or an infinity at \[3, 5\]"):
        harness_ext.export(SVD, tmp_path / "out", pretrained=str(model), shards=True)
    assert list(tmp_path.iterdir()) == []


# Kills and full disks


def killed_after(files: int, model: Path, out: Path) -> Path:
    """An export killed by a signal while it writes the file after so many; returns the hidden folder that it leaves."""
    program = (
        "import os, signal, harness_ext\n"
        "from harness_ext.runs import shard_export as s\n"
        "written, count = s.write_shard, [0]\n"
        "def write(path, entries, parts):\n"
        f"    if count[0] == {files}:\n"
        "        path.write_bytes(b'half')\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    count[0] += 1\n"
        "    written(path, entries, parts)\n"
        "s.write_shard = write\n"
        f"harness_ext.export({SVD!r}, {str(out)!r}, pretrained={str(model)!r}, shards=True)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    (left,) = out.parent.glob(f".{out.name}.tmp-*")
    return left


def stopped_after(files: int, model: Path, out: Path) -> Path:
    """An export stopped by the user while it writes the file after so many; returns what it leaves, named as if its
    process were gone.
    """
    written: list[str] = []
    writes = shard_export.write_shard

    def write(path: Path, *rest: Any) -> None:
        if len(written) == files:
            path.write_bytes(b"half")
            raise KeyboardInterrupt
        written.append(path.name)
        writes(path, *rest)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shard_export, "write_shard", write)
        harness_ext.export(SVD, out, pretrained=str(model), shards=True)
    gone = subprocess.Popen(["true"])
    gone.wait()
    return (out.parent / f".{out.name}.tmp-{os.getpid()}").rename(out.parent / f".{out.name}.tmp-{gone.pid}")


def exported_counting(monkeypatch: pytest.MonkeyPatch, model: Path, out: Path, recipe: str = SVD) -> list[str]:
    """Export, and return the files that were written for it."""
    names: list[str] = []
    writes = shard_export.write_shard

    def write(path: Path, *rest: Any) -> None:
        names.append(path.name)
        writes(path, *rest)

    monkeypatch.setattr(shard_export, "write_shard", write)
    harness_ext.export(recipe, out, pretrained=str(model), shards=True)
    monkeypatch.undo()
    return names


@pytest.mark.parametrize("ended", [stopped_after, pytest.param(killed_after, marks=pytest.mark.slow)])
def test_a_killed_export_goes_on_after_its_whole_files(
    make_model, ended: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = sharded(make_model("mixtral"))
    files = sorted(path.name for path in model.glob("*.safetensors"))
    left = ended(3, model, tmp_path / "out")
    # One whole file is spoilt after the kill: it is known by its digest, and made anew.
    with (left / files[1]).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\1")
    assert exported_counting(monkeypatch, model, tmp_path / "out") == [files[1], *files[3:]]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    harness_ext.export(SVD, tmp_path / "plain", pretrained=str(model), shards=False)
    assert_equal(tmp_path / "out", tmp_path / "plain")
    assert not {EXPORTING, "shards.jsonl"} & {path.name for path in (tmp_path / "out").iterdir()}


@pytest.mark.slow
def test_what_was_left_of_another_export_is_not_gone_on_with(
    make_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = sharded(make_model("llama"))
    files = sorted(path.name for path in model.glob("*.safetensors"))
    stopped_after(2, model, tmp_path / "out")
    assert exported_counting(monkeypatch, model, tmp_path / "out", "noise") == files
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    shutil.rmtree(tmp_path / "out")
    stopped_after(2, model, tmp_path / "out")
    os.utime(model / files[0])
    assert exported_counting(monkeypatch, model, tmp_path / "out") == files


def test_a_config_that_changed_meanwhile_makes_another_export(
    make_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dtype is the config's where nobody names one: half of a checkpoint in another would be nobody's model."""
    model = sharded(make_model("llama", dtype="bfloat16"))
    files = sorted(path.name for path in model.glob("*.safetensors"))
    stopped_after(2, model, tmp_path / "out")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))
    assert exported_counting(monkeypatch, model, tmp_path / "out") == files
    found = {value.dtype for path in (tmp_path / "out").glob("*.safetensors") for value in load_file(path).values()}
    assert found == {torch.float32}


def test_exports_of_other_names_leave_it_for_a_week(make_model, tmp_path: Path) -> None:
    model = sharded(make_model("llama"))
    left = stopped_after(1, model, tmp_path / "out")
    harness_ext.export(SVD, tmp_path / "other", pretrained=str(model), shards=True)
    assert left.is_dir()
    old = left.stat().st_mtime - 8 * 24 * 3600
    os.utime(left, (old, old))
    harness_ext.export(SVD, tmp_path / "third", pretrained=str(model), shards=False)
    assert not left.exists()


def test_a_full_disk_is_a_sentence_and_the_whole_files_stay(
    make_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = sharded(make_model("llama"))
    files = sorted(path.name for path in model.glob("*.safetensors"))
    writes = shard_export.write_shard

    def full(path: Path, *rest: Any) -> None:
        if path.name == files[2]:
            raise OSError(errno.ENOSPC, "No space left on device")
        writes(path, *rest)

    monkeypatch.setattr(shard_export, "write_shard", full)
    with pytest.raises(UserError, match=r"out cannot be written: No space left on device; make room and run the same"):
        harness_ext.export(SVD, tmp_path / "out", pretrained=str(model), shards=True)
    monkeypatch.undo()
    assert exported_counting(monkeypatch, model, tmp_path / "out") == files[2:]


def test_a_small_disk_is_told_before_anything_is_edited(
    make_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("llama")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"it takes 0\.0 GiB and 0\.0 GiB are free; make room, or name another folder"):
        harness_ext.export(SVD, tmp_path / "out", pretrained=str(model), shards=True)
    assert list(tmp_path.iterdir()) == []


def test_the_command(lm_eval, tmp_path: Path) -> None:
    asked = ("export", "--model_args", "pretrained=demo", "--recipe", "laser", "--out")
    ran = lm_eval(*asked, "edited", "--shards")
    assert ran.code == 0, ran.err
    assert lm_eval(*asked, "plain", "--no-shards").code == 0
    assert_equal(tmp_path / "edited", tmp_path / "plain")
    ran = lm_eval(*asked[:4], "svd-llm", "--out", "no", "--shards")
    assert ran.code == 2 and "learns from documents" in ran.err and "Traceback" not in ran.err
