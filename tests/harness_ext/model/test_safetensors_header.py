"""Headers that lie: each is refused in a sentence that names file and tensor, and so is what the library refuses."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from harness_ext.errors import UserError
from harness_ext.model.checkpoint import check_local, read_checkpoint
from harness_ext.model.safetensors_header import StoredTensor, read_header

A = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
B = {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}


def write(path: Path, header: Any, data: bytes = b"\0" * 8) -> Path:
    """A safetensors file of this header (plain data, or its text) and these bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_a_header_that_is_true(tmp_path: Path) -> None:
    header = {"__metadata__": {"format": "pt"}, "a": A, "none": {**A, "shape": [0, 3], "data_offsets": [4, 4]}, "b": B}
    assert read_header(write(tmp_path / "f", header)) == {
        "a": StoredTensor((1,), "F32"),
        "none": StoredTensor((0, 3), "F32"),
        "b": StoredTensor((1,), "F32"),
    }
    assert read_header(write(tmp_path / "f", b'{"a":{"dtype":"F4","shape":[4],"data_offsets":[0,2]}}  ', b"\0\0"))


LIES: list[tuple[Any, bytes, str]] = [
    ({"a": {**A, "shape": [2**40, 2**40]}}, b"\0" * 4, "says of a the shape [1099511627776, 1099511627776] of F32"),
    ({"a": {**A, "shape": [2**63 - 1] * 1000}}, b"\0" * 4, "says of a the shape"),
    ({"a": {**A, "shape": [2]}}, b"\0" * 4, "leaves it 4 bytes"),
    ({"a": {**A, "shape": "abc"}}, b"\0" * 4, "says of a the shape abc, which is no list of sizes"),
    ({"a": {**A, "shape": [-1, -1]}}, b"\0" * 4, "which is no list of sizes"),
    ({"a": {**A, "shape": [1.0]}}, b"\0" * 4, "which is no list of sizes"),
    ({"a": {**A, "shape": [True]}}, b"\0" * 4, "which is no list of sizes"),
    ({"a": {**A, "shape": None}}, b"\0" * 4, "which is no list of sizes"),
    ({"a": {**A, "dtype": "F33"}}, b"\0" * 4, "the dtype F33, which safetensors does not have"),
    ({"a": {**A, "dtype": ["F32"]}}, b"\0" * 4, "which safetensors does not have"),
    ({"a": {**A, "dtype": "F64"}}, b"\0" * 4, "leaves it 4 bytes"),
    ({"a": {**A, "data_offsets": [4, 0]}}, b"\0" * 4, "no beginning and end"),
    ({"a": {**A, "data_offsets": [0, 4, 8]}}, b"\0" * 4, "no beginning and end"),
    ({"a": {**A, "data_offsets": [-4, 0]}}, b"\0" * 4, "no beginning and end"),
    ({"a": {"dtype": "F32", "shape": [1]}}, b"\0" * 4, "not dtype, shape and data_offsets"),
    ({"a": 3}, b"", "not dtype, shape and data_offsets"),
    ({"a": A, "b": {**A, "data_offsets": [2, 6]}}, b"\0" * 6, "says that b begins before the one before it ends"),
    ({"a": A, "b": A}, b"\0" * 4, "begins before the one before it ends"),
    ({"a": B}, b"\0" * 8, "says that a leaves a gap before it"),
    ({"a": A}, b"\0" * 9, "5 bytes that no tensor takes"),
    ({"a": A, "b": B}, b"\0" * 6, "is truncated"),
    ({"a": A, "b": {**B, "data_offsets": [2**62, 2**62 + 4]}}, b"\0" * 8, "is truncated"),
    ({"__metadata__": {"a": 1}, "a": A}, b"\0" * 4, "__metadata__"),
    (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},' * 2, b"", "cannot be read as a safetensors file"),
    (b"[" * 100_000, b"", "cannot be read as a safetensors file"),
    (b"\xff\xfe{}", b"", "cannot be read as a safetensors file"),
    (b"[]", b"", "is no JSON object"),
    ({"a": {**A, "shape": [10**4000]}}, b"\0" * 4, "which is no list of sizes"),
    ({"x" * 10_000: 3}, b"", "not dtype, shape and data_offsets"),
]


@pytest.mark.parametrize(("header", "data", "words"), LIES)
def test_a_header_that_lies_is_refused_as_the_library_refuses_it(
    tmp_path: Path, header: Any, data: bytes, words: str
) -> None:
    path = write(tmp_path / "model.safetensors", header, data)
    with pytest.raises(UserError) as caught:
        read_header(path)
    said = str(caught.value)
    assert said.startswith(f"{path} ") and words in said and len(said) < 500 + len(str(path))


def test_a_tensor_named_twice_is_refused(tmp_path: Path) -> None:
    item = b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    with pytest.raises(UserError, match="its header names a twice"):
        read_header(write(tmp_path / "f", b"{" + item + b"," + item + b"}", b"\0" * 4))


SIZES = st.integers(-1, 3) | st.sampled_from([4, 8, 2**40, 2**63, True, 1.5, "1", None])
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "I8", "F4", "X"]),
        "shape": st.lists(SIZES, max_size=2) | SIZES,
        "data_offsets": st.lists(SIZES, min_size=1, max_size=3) | st.sampled_from([[0, 4], [4, 8], [0, 8]]),
    }
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), ENTRIES, max_size=2), st.sampled_from([0, 4, 8]))
def test_what_the_library_refuses_is_refused_here(
    tmp_path_factory: pytest.TempPathFactory, header: dict[str, Any], length: int
) -> None:
    path = write(tmp_path_factory.mktemp("h") / "f", header, b"\0" * length)
    try:
        with safe_open(path, "pt") as file:
            known = set(file.keys())
    except SafetensorError:
        known = None
    try:
        found = set(read_header(path))
    except UserError:
        found = None
    # Two tensors of one place are refused here alone.
    assert found == known or found is None


def test_files_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "nowhere").symlink_to("gone")
    for name, words in (
        ("pipe", "it is a pipe or a device"),
        ("loop", "symbolic links"),
        ("nowhere", "is missing"),
        (".", "Is a directory"),
    ):
        with pytest.raises(UserError, match=words):
            read_header(tmp_path / name)


# A whole folder


def folder(path: Path, **files: Any) -> Path:
    """A model folder with a config, an index and shards; a name's `_` is a dot."""
    path.mkdir()
    (path / "config.json").write_text("{}")
    for name, content in files.items():
        if name == "index":
            (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": content}))
        else:
            write(path / f"{name}.safetensors", content, b"\0" * 4)
    return path


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"index": {"a": "/etc/passwd"}}, "index.json names '/etc/passwd', which is no file of its folder"),
        ({"index": {"a": "../other/x.safetensors"}}, "names '../other/x.safetensors', which is no file of its folder"),
        ({"index": {"a": "s/../../x.safetensors"}}, "which is no file of its folder"),
        ({"index": {"a": "."}}, "which is no file of its folder"),
        ({"index": {"a": "a\0b"}}, "which is no file of its folder"),
        ({"index": {"a": ""}}, "as the file of a"),
        ({"index": {"a": 3}}, "index.json names 3 as the file of a"),
        ({"index": {"a": "s.safetensors"}}, "s.safetensors is missing"),
        ({"index": {}}, "has no weight_map"),
        ({"index": []}, "has no weight_map"),
        (
            {"index": {"a": "s.safetensors", "b": "t.safetensors"}, "s": {"a": A}, "t": {"a": A}},
            "has the weight a twice, in s.safetensors and in t.safetensors",
        ),
        ({"model": {"x.weight": {**A, "dtype": "I32"}}}, "the weight x.weight is stored as I32, whole numbers"),
        ({"model": {"x.weight": {**A, "dtype": "BOOL", "shape": [4]}}}, "the weight x.weight is stored as BOOL"),
    ],
)
def test_a_folder_whose_files_lie(tmp_path: Path, files: dict[str, Any], words: str) -> None:
    path = folder(tmp_path / "model", **files)
    for check in (check_local, read_checkpoint):
        with pytest.raises(UserError) as caught:
            check(str(path))
        assert words in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"num_hidden_layers": 10**7}, "num_hidden_layers is 10000000, and its weights are 1 tensors"),
        ({"vision_config": {"n_layer": "abc"}}, 'n_layer is "abc", and its weights are 1 tensors'),
        ({"text_config": {"n_layer": "abc"}}, 'text_config.n_layer is "abc", and it must be a whole number'),
        ({"n_layers": -1}, "n_layers is -1, and it must be a whole number, 0 or more"),
    ],
)
def test_a_config_of_absurdly_many_layers(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    path = folder(tmp_path / "model", model={"a": A})
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"config.json says {words}"):
        check_local(str(path))


def test_shards_in_a_subfolder_and_behind_links_are_read(tmp_path: Path) -> None:
    path = folder(tmp_path / "model", index={"a": "s/a.safetensors", "b": "b.safetensors"})
    (path / "s").mkdir()
    write(path / "s" / "a.safetensors", {"a": A}, b"\0" * 4)
    # As the hub's cache has them.
    write(tmp_path / "blob", {"b": A}, b"\0" * 4)
    (path / "b.safetensors").symlink_to(tmp_path / "blob")
    assert set(read_checkpoint(str(path)).tensors) == {"a", "b"}


@pytest.mark.parametrize("content", [b"", b"hello" * 100, b"PK\x03\x04" + b"\0" * 500])
def test_pickles_that_are_none_are_a_sentence(tmp_path: Path, content: bytes) -> None:
    from harness_ext.demo import demo_path
    from harness_ext.lm_eval_adapter.model_loading import load_model

    shutil.copytree(demo_path(), tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(UserError, match="the model '.*' cannot be loaded: "):
        load_model("mine", {"pretrained": str(tmp_path / "model"), "use_safetensors": False, "device": "cpu"})


def test_integers_that_are_no_weights_or_are_quantised_are_no_fault(tmp_path: Path) -> None:
    path = folder(tmp_path / "model", model={"h.0.attn.bias": {**A, "dtype": "U8", "shape": [4]}})
    check_local(str(path))
    path = folder(tmp_path / "packed", model={"x.weight": {**A, "dtype": "I32"}})
    (path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "fp8"}}))
    check_local(str(path))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda path: path.write_bytes(b"\xff\xfe"), "config.json is not UTF-8 text"),
        (lambda path: path.write_text("[" * 100_000), "config.json is nested too deeply"),
        (lambda path: path.write_text("[]"), "config.json must hold a JSON object"),
        (lambda path: path.write_text('{"a": 1'), "is not JSON, or is cut off"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "config.json cannot be read: it is a pipe or a device"),
        (lambda path: (path.unlink(), path.symlink_to(path)), "config.json cannot be read: Too many levels"),
        (lambda path: (path.unlink(), path.mkdir()), "config.json cannot be read: Is a directory"),
    ],
)
def test_a_config_that_cannot_be_read(tmp_path: Path, harm: Callable[[Path], object], words: str) -> None:
    path = folder(tmp_path / "model", model={"a": A})
    harm(path / "config.json")
    with pytest.raises(UserError) as caught:
        check_local(str(path))
    assert words in str(caught.value)
