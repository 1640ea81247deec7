"""The memory of an export that loads no model, on a checkpoint of two layers in the shapes of a 70B model: 3.2 GiB of
random numbers in bfloat16, whose largest matrices take 0.88 GiB in fp32.

The recipe is the randomised decomposition of one down projection to a small rank, since its arithmetic is cheap: what
is measured is what an edit of one matrix holds. Loading the model alone would take 3.2 GiB more.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness_ext.conftest import _tokenizer

WIDTH, INNER, KEYS, VOCABULARY = 8192, 28672, 1024, 64
LARGEST_MIB = WIDTH * INNER * 4 / 2**20
# As stored, in fp32, its approximation, the product that it is written from, and one more while it is compared.
MATRICES_HELD = 5.5
RECIPE = "svd:layers=[1],matrices=[down_proj],keep.rank=8,decomposition=randomised"
PROGRAM = """
import re, sys
from pathlib import Path
import harness_ext

def mib(what):
    return int(re.search(what + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

model, out, recipe = sys.argv[1:]
# What is imported is not counted.
harness_ext.export("laser", out + "-small", pretrained="demo", shards=True)
Path("/proc/self/clear_refs").write_text("5")
before = mib("VmRSS")
harness_ext.export(recipe, out, pretrained=model, shards=True)
print("PEAK", mib("VmHWM") - before)
"""


def large_checkpoint(folder: Path) -> Path:
    import torch
    from transformers import LlamaConfig

    from harness_ext.model.shard_files import TensorEntry, write_shard

    folder.mkdir()
    sizes = {"hidden_size": WIDTH, "intermediate_size": INNER, "num_attention_heads": 64, "num_key_value_heads": 8}
    LlamaConfig(vocab_size=VOCABULARY, num_hidden_layers=2, dtype="bfloat16", **sizes).save_pretrained(folder)
    _tokenizer(folder)
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(
        ("model.embed_tokens.weight", "lm_head.weight"), (VOCABULARY, WIDTH)
    )
    shapes["model.norm.weight"] = (WIDTH,)
    for layer in ("model.layers.0.", "model.layers.1."):
        shapes |= dict.fromkeys((f"{layer}input_layernorm.weight", f"{layer}post_attention_layernorm.weight"), (WIDTH,))
        shapes |= dict.fromkeys((f"{layer}self_attn.{name}_proj.weight" for name in "qo"), (WIDTH, WIDTH))
        shapes |= dict.fromkeys((f"{layer}self_attn.{name}_proj.weight" for name in "kv"), (KEYS, WIDTH))
        shapes |= dict.fromkeys((f"{layer}mlp.{name}_proj.weight" for name in ("gate", "up")), (INNER, WIDTH))
        shapes[f"{layer}mlp.down_proj.weight"] = (WIDTH, INNER)
    numbers = (torch.randn(1 << 22) * 0.02).to(torch.bfloat16)

    def value(shape: tuple[int, ...]) -> torch.Tensor:
        count = torch.Size(shape).numel()
        return numbers.repeat(-(-count // len(numbers)))[:count].reshape(shape)

    entries = [TensorEntry(name, torch.bfloat16, shape) for name, shape in shapes.items()]
    write_shard(folder / "model.safetensors", entries, (value(shape) for shape in shapes.values()))
    return folder


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_memory_is_that_of_one_matrix(tmp_path: Path) -> None:
    if shutil.disk_usage(tmp_path).free < 9 << 30:
        pytest.skip("needs 9 GiB of disk")
    model = large_checkpoint(tmp_path / "model")
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(model), str(tmp_path / "out"), RECIPE],
        check=False,
        capture_output=True,
        text=True,
        # Blocks of a megabyte or more go back to the system when they are freed: what is measured is what is in use.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20), "MALLOC_ARENA_MAX": "2"},
    )
    assert ran.returncode == 0, ran.stderr
    found = re.search(r"PEAK ([\d.]+)", ran.stdout)
    assert found is not None and float(found[1]) < MATRICES_HELD * LARGEST_MIB
    (row,) = json.loads((tmp_path / "out" / "receipt.json").read_text())["matrices"]
    assert (row["shape"], row["rank_after"]) == ([WIDTH, INNER], 8)
    assert (tmp_path / "out" / "model.safetensors").stat().st_size > 3 << 30
    # Gigabytes that pytest would keep.
    for folder in (model, tmp_path / "out"):
        shutil.rmtree(folder)
