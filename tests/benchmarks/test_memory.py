"""Peak memory of every shipped recipe while it edits, on a random Llama made here that is large enough for its weights
to count, against the model as it lies in memory.

What a recipe may take more: the largest matrix, a copy of it and its factors; and where it learns from documents, what
a pass over them holds. `lm_eval recipes plan` says how much that is (`collect.FACTOR_BYTES` bounds it for any model),
and the slack is for activations, the workspace of LAPACK, and what the allocator holds on to.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness_ext.demo import demo_path
from harness_ext.editing.plan import plan
from harness_ext.model.checkpoint import read_checkpoint
from harness_ext.recipe.recipe import parse_recipe, shipped_names
from harness_ext.recipe.settings import HEAL

pytestmark = pytest.mark.benchmark

WIDTH, INNER, LAYERS = 768, 3072, 2
SLACK_MIB = 96
LEARNING = "calibration.task=int_mult,calibration.samples=24"
HEALING = "heal.task=int_mult,heal.documents=24"
# Blocks of a megabyte or more go back to the system when they are freed: what is measured is what is in use.
GLIBC = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20), "MALLOC_ARENA_MAX": "2"}
FACTORED = ("svd:factored=true", "svd-llm:factored=true")


def larger_model(folder: Path) -> Path:
    """A random Llama of 19 million parameters with the embedded model's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(demo_path())
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def specification(name: str) -> str:
    steps = parse_recipe(name).steps
    changes = [LEARNING] * any(step.calibration is not None for step in steps)
    changes += [HEALING] * any(step.method == HEAL for step in steps)
    return f"{name}{',' if ':' in name else ':'}{','.join(changes)}" if changes else name


def test_peak_memory_of_every_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = larger_model(tmp_path / "model")
    recipes = {name: specification(name) for name in (*shipped_names(), *FACTORED) if name != "baseline"}
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("peak_memory.py"), model, *recipes.values()],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, **GLIBC},
    )
    found: dict[str, float] = {}
    for line in done.stdout.splitlines():
        if line.startswith("PEAK "):
            found |= json.loads(line.removeprefix("PEAK "))
    checkpoint = read_checkpoint(str(model))
    matrix_and_factors = 4 * (2 * INNER * WIDTH + WIDTH * (INNER + WIDTH)) / 2**20
    weights = sum(path.stat().st_size for path in model.glob("*.safetensors")) / 2**20
    tokens = round(found["tokens"])
    over = {}
    with capsys.disabled():
        print(
            f"\nmodel loaded {found['loaded']:.0f} MiB, of which weights {weights:.0f}; one matrix, its copy and its"
            f" factors {matrix_and_factors:.0f} MiB"
        )
        print(f"{'recipe':<24} {'peak, MiB':>9} {'more':>6} {'of matrix and factors':>22} {'the plan says':>14}")
        for name, recipe in recipes.items():
            more = found[recipe] - found["loaded"]
            planned = plan(parse_recipe(recipe), checkpoint, tokens=tokens).peak_bytes / 2**20
            over[name] = more - planned
            print(f"{name:<24} {found[recipe]:9.0f} {more:+6.0f} {more / matrix_and_factors:21.1f}x {planned:14.0f}")
    assert max(over.values()) < SLACK_MIB, {name: round(value) for name, value in over.items() if value >= SLACK_MIB}
