"""Peak memory of every shipped recipe, on a random Llama made here that is large enough for its weights to count, against a plain run of lm-eval on the same model.

What a recipe may take more: the largest matrix, a copy of it and its factors, all in fp32; and where it learns from documents, what a pass over them holds, which `lm_eval recipes plan` states
(`evidence.FACTOR_BYTES` bounds it). Resident sets are those of whole processes, in MiB; the slack is for what a process allocates besides.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness_ext.checkpoint import read_checkpoint
from harness_ext.demo import demo_path
from harness_ext.plan import plan
from harness_ext.recipe import parse_recipe, shipped_names
from harness_ext.task_index import tasks_root

pytestmark = pytest.mark.benchmark

WIDTH, INNER, LAYERS = 1024, 4096, 4
SLACK_MIB = 96
SAMPLES = 32
FACTORED = ("svd:factored=true", "svd-llm:factored=true")
# Prints the largest resident set of a child process, in KiB on Linux.
MEASURED = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, capture_output=True); print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"


def peak_mib(folder: Path, module: str, *arguments: str) -> float:
    folder.mkdir()
    command = ("run", "--model", "hf", "--tasks", "int_mult", "--limit", "4", "--device", "cpu", "--log_samples", "--output_path", "out", *arguments)
    done = subprocess.run([sys.executable, "-c", MEASURED, sys.executable, "-m", module, *command], check=True, capture_output=True, text=True, cwd=folder)
    return int(done.stdout) / 1024


def larger_model(folder: Path) -> Path:
    """A random Llama of 67 million parameters with the embedded model's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(demo_path())
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=LAYERS, num_attention_heads=8, tie_word_embeddings=True)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def specification(name: str) -> str:
    learns = any(step.evidence is not None for step in parse_recipe(name).steps)
    return f"{name}{',' if ':' in name else ':'}calibration.samples={SAMPLES}" if learns else name


def test_peak_memory_of_every_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = larger_model(tmp_path / "model")
    arguments = ("--model_args", f"pretrained={model}")
    plain = peak_mib(tmp_path / "plain", "lm_eval", *arguments, "--include_path", str(tasks_root()))
    matrix_and_factors = 4 * (2 * INNER * WIDTH + WIDTH * (INNER + WIDTH)) / 2**20
    checkpoint = read_checkpoint(str(model))
    with capsys.disabled():
        print(f"\nplain lm-eval {plain:.0f} MiB, of which weights {sum(path.stat().st_size for path in model.glob('*.safetensors')) / 2**20:.0f}; one matrix, its copy and its factors {matrix_and_factors:.0f} MiB")
        print(f"{'recipe':<24} {'peak':>6} {'more than plain':>16} {'the plan says':>14} {'of matrix and factors':>22}")
    over = {}
    for number, name in enumerate([*shipped_names(), *FACTORED]):
        recipe = specification(name)
        more = peak_mib(tmp_path / str(number), "harness_ext", *arguments, "--recipe", recipe) - plain
        planned = plan(parse_recipe(recipe), checkpoint).peak_bytes / 2**20
        over[name] = more - planned
        with capsys.disabled():
            print(f"{name:<24} {plain + more:6.0f} {more:+16.0f} {planned:14.0f} {more / matrix_and_factors:21.1f}x")
    assert max(over.values()) < SLACK_MIB, {name: round(value) for name, value in over.items() if value >= SLACK_MIB}
