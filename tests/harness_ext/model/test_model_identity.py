"""Whatever loading can read tells two models apart; what it cannot does not."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from harness_ext.errors import UserError
from harness_ext.model.model_identity import ModelReader, identity


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder whose identity is known, with a neighbour."""
    place = tmp_path / "model"
    place.mkdir()
    (place / "config.json").write_text('{"model_type": "llama"}')
    (place / "model.safetensors").write_bytes(b"weights of before")
    (place / "tokenizer.json").write_text("{}")
    return place


def write(place: Path, name: str, text: str) -> None:
    (place / name).parent.mkdir(parents=True, exist_ok=True)
    (place / name).write_text(text)


def test_the_identity_of_a_plain_folder_is_what_it_always_was(folder: Path) -> None:
    names = ("config.json", "model.safetensors", "tokenizer.json")
    lines = "".join(f"{name} {hashlib.sha256((folder / name).read_bytes()).hexdigest()}\n" for name in names)
    assert identity(str(folder)) == f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


@pytest.mark.parametrize(
    "name",
    [
        "m.gguf",
        "pytorch_model.bin",
        "consolidated.00.pth",
        "tf_model.h5",
        "model.fp16.safetensors",
        "modeling_own.py",
        "merges.txt",
        "spiece.model",
        "vocab.tiktoken",
        "chat_template.jinja",
        "additional_chat_templates/rag.jinja",
        "custom_generate/generate.py",
        "generation_config.json",
        "adapter_model.safetensors",
        "weights-without-suffix",
        "UPPER.GGUF",
        "__0_0.distcp",
    ],
)
def test_a_file_that_a_loader_reads_counts(folder: Path, name: str) -> None:
    before = identity(str(folder))
    write(folder, name, "one")
    one = identity(str(folder))
    write(folder, name, "two")
    assert len({before, one, identity(str(folder))}) == 3


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "LICENSE",
        "notes.md",
        "picture.png",
        ".gitattributes",
        ".cache/huggingface/download/model.safetensors.metadata",
        ".git/HEAD",
        "__pycache__/own.cpython-311.pyc",
        "optimizer.pt",
        "rng_state_0.pth",
        "events.out.tfevents.1.host.0",
        "train.log",
        "checkpoint-500/model.safetensors",
        "results/demo/baseline-0/receipt.json",
        "onnx/model.onnx",
    ],
)
def test_what_no_loader_reads_does_not_count(folder: Path, name: str) -> None:
    before = identity(str(folder))
    write(folder, name, "anything")
    assert identity(str(folder)) == before


def test_own_code_may_read_the_whole_folder_but_not_the_results(folder: Path) -> None:
    arguments = {"pretrained": str(folder), "trust_remote_code": True}
    results = folder / "out"

    def identities() -> dict[str, str]:
        return ModelReader(left_out=results).identities(arguments)

    plain = identities()
    assert plain == ModelReader().identities({"pretrained": str(folder)})
    write(results, "demo/receipt.json", "{}")
    write(folder, "checkpoint-5/model.safetensors", "x")
    assert identities() == plain
    write(folder, "parts/attention.py", "ONE = 1")
    one = identities()
    write(folder, "parts/attention.py", "ONE = 2")
    assert len({plain["pretrained"], one["pretrained"], identities()["pretrained"]}) == 3


def test_own_code_from_another_folder_counts(folder: Path, tmp_path: Path) -> None:
    write(tmp_path, "code/modeling.py", "ONE = 1")
    config = {"auto_map": {"AutoModel": f"{tmp_path / 'code'}--modeling.Own", "AutoConfig": ["a.B", None]}}
    write(folder, "config.json", json.dumps(config))
    arguments = {"pretrained": str(folder), "trust_remote_code": True}
    before, untrusting = ModelReader().identities(arguments), identity(str(folder))
    write(tmp_path, "code/modeling.py", "ONE = 2")
    assert ModelReader().identities(arguments) != before and identity(str(folder)) == untrusting


@pytest.mark.parametrize("index", ["model.safetensors.index.json", "pytorch_model.bin.index.json", "x.index.fp16.json"])
@pytest.mark.parametrize("place", ["../elsewhere/w.bin", "shards/w.bin", "ABSOLUTE", "README.md"])
def test_a_file_that_an_index_names_counts_wherever_it_lies(
    folder: Path, tmp_path: Path, index: str, place: str
) -> None:
    named = str(tmp_path / "absolute" / "w.bin") if place == "ABSOLUTE" else place
    write(folder, index, json.dumps({"weight_map": {"a": named}}))
    missing = identity(str(folder))
    write(folder, named, "one")
    one = identity(str(folder))
    write(folder, named, "two")
    assert len({missing, one, identity(str(folder))}) == 3


def test_links_count_by_what_they_lead_to(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    blob = tmp_path / "blob"
    (copy / "model.safetensors").rename(blob)
    (copy / "model.safetensors").symlink_to(blob)
    (tmp_path / "linked").symlink_to(copy)
    assert identity(str(folder)) == identity(str(copy)) == identity(str(tmp_path / "linked"))
    blob.write_bytes(b"weights of after!")
    assert identity(str(folder)) != identity(str(copy)) == identity(str(tmp_path / "linked"))


def test_a_link_that_leads_round_in_a_circle_ends(folder: Path) -> None:
    arguments = {"pretrained": str(folder), "trust_remote_code": True}
    before = ModelReader().identities(arguments)
    (folder / "again").symlink_to(folder)
    assert ModelReader().identities(arguments) == before


def _in_place(path: Path) -> None:
    path.write_bytes(b"weights of after!")


def _replaced(path: Path) -> None:
    new = path.with_name("new.tmp")
    new.write_bytes(b"weights of after!")
    os.replace(new, path)


@pytest.mark.parametrize("change", [_in_place, _replaced])
def test_a_file_of_the_same_size_and_time_is_hashed_again(folder: Path, change: Callable[[Path], None]) -> None:
    path, reader = folder / "model.safetensors", ModelReader()
    before, status = reader.identity(str(folder)), path.stat()
    change(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size and path.stat().st_mtime_ns == status.st_mtime_ns
    assert reader.identity(str(folder)) != before


def test_a_file_that_stays_is_hashed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = ModelReader()
    before = reader.identity(str(folder))
    # Whatever is read from now on is read as an empty file.
    monkeypatch.setattr("harness_ext.model.file_digests._BLOCK", 0)
    assert reader.identity(str(folder)) == before != ModelReader().identity(str(folder))


@pytest.mark.parametrize("name", ["peft", "delta", "tokenizer", "config", "gguf_file", "chat_template", "own_table"])
def test_every_argument_that_names_a_path_counts(folder: Path, tmp_path: Path, name: str) -> None:
    is_file = name in ("gguf_file", "chat_template")
    place = tmp_path / "beside" / ("file" if is_file else "")
    write(tmp_path, "beside/file", "one")
    arguments = {"pretrained": str(folder), name: str(place)}
    before = ModelReader().identities(arguments)
    assert before.keys() == {"pretrained", name}
    write(tmp_path, "beside/file", "two")
    after = ModelReader().identities(arguments)
    assert after["pretrained"] == before["pretrained"] and after[name] != before[name]


def test_a_gguf_file_is_looked_for_where_it_is_loaded_from(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = {"pretrained": str(folder), "gguf_file": "m.gguf"}
    write(folder, "m.gguf", "inside")
    inside = ModelReader().identities(arguments)
    write(tmp_path, "m.gguf", "here")
    assert ModelReader().identities(arguments)["gguf_file"] != inside["gguf_file"]


def test_words_and_places_to_write_are_no_paths(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "cpu/file", "x")
    arguments = {"pretrained": str(folder), "device": "cpu", "offload_folder": str(tmp_path), "dtype": "x" * 5000}
    assert ModelReader().identities(arguments).keys() == {"pretrained"}


def test_a_subfolder_is_a_model_of_its_own(folder: Path) -> None:
    write(folder, "inner/config.json", "{}")
    arguments = {"pretrained": str(folder), "subfolder": "inner"}
    before = ModelReader().identities(arguments)
    write(folder, "model.safetensors", "other")
    assert ModelReader().identities(arguments) == before
    write(folder, "inner/config.json", "[]")
    assert ModelReader().identities(arguments) != before


def test_a_file_that_cannot_be_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=r"config\.json cannot be read: Permission denied"):
        ModelReader().identity(str(folder))


# Hub names


def in_hub_cache(cache: Path, name: str, commit: str, file: str) -> None:
    repository = cache / f"models--{name.replace('/', '--')}"
    write(repository, "refs/main", commit)
    write(repository, f"snapshots/{commit}/{file}", "{}")


@pytest.mark.parametrize(
    ("argument", "file"),
    [("pretrained", "config.json"), ("peft", "adapter_config.json"), ("tokenizer", "tokenizer.json")],
)
def test_a_hub_name_is_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path, argument: str, file: str
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    in_hub_cache(tmp_path / "hub", "org/name", "a" * 40, file)
    arguments = {"pretrained": str(folder), argument: "org/name"}
    assert ModelReader().identities(arguments)[argument] == f"org/name@{'a' * 40}"
    in_hub_cache(tmp_path / "hub", "org/name", "b" * 40, file)
    assert ModelReader().identities(arguments)[argument] == f"org/name@{'b' * 40}"
    assert ModelReader().identities({**arguments, "revision": "a" * 40})[argument] == f"org/name@{'a' * 40}"


def test_a_hub_name_that_is_not_to_be_had() -> None:
    with pytest.raises(UserError, match="'nobody/nothing' is neither a local folder nor to be had from the hub"):
        identity("nobody/nothing")
