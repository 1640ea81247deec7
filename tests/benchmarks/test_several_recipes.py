"""A baseline and three recipes in one command, against four separate runs of plain lm-eval; and the memory of a recipe against a plain run.

Both on the embedded model, in one go, so that the ratio holds on a noisy machine; and for memory also on a model made here that is large enough for its weights to count.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness_ext.demo import demo_path
from harness_ext.task_index import tasks_root

pytestmark = pytest.mark.benchmark

COMMON = ("run", "--model", "hf", "--tasks", "int_mult,int_sum,pronoun_bias", "--device", "cpu", "--batch_size", "64", "--log_samples", "--output_path", "out")
RECIPES = ("laser", "svd", "eigenprune")
# Prints the largest resident set of a child process, in KiB on Linux.
MEASURED = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, capture_output=True); print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"


def seconds(folder: Path, module: str, *arguments: str) -> float:
    folder.mkdir(exist_ok=True)
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", module, *arguments], check=True, capture_output=True, cwd=folder)
    return time.perf_counter() - started


def peak_mib(folder: Path, module: str, *arguments: str) -> float:
    folder.mkdir(exist_ok=True)
    done = subprocess.run([sys.executable, "-c", MEASURED, sys.executable, "-m", module, *arguments], check=True, capture_output=True, text=True, cwd=folder)
    return int(done.stdout) / 1024


def test_a_baseline_and_three_recipes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = [seconds(tmp_path / f"theirs{number}", "lm_eval", *COMMON, "--model_args", f"pretrained={demo_path()}", "--include_path", str(tasks_root())) for number in range(1 + len(RECIPES))]
    ours = [seconds(tmp_path / f"ours{number}", "harness_ext", *COMMON, "--model_args", "pretrained=demo", "--recipe", *RECIPES) for number in range(2)]
    again = seconds(tmp_path / "ours1", "harness_ext", *COMMON, "--model_args", "pretrained=demo", "--recipe", *RECIPES)
    with capsys.disabled():
        print(f"\n{1 + len(RECIPES)} separate runs of lm-eval                        {sum(theirs):7.1f} s")
        print(f"baseline and {len(RECIPES)} recipes in one command, no index yet {ours[0]:7.1f} s   {sum(theirs) / ours[0]:5.1f}x")
        print(f"the same, with the task index                    {ours[1]:7.1f} s   {sum(theirs) / ours[1]:5.1f}x")
        print(f"the same command again, nothing left to do       {again:7.1f} s")
    assert ours[1] < sum(theirs)


def test_peak_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = larger_model(tmp_path / "model")
    common = ("run", "--model", "hf", "--tasks", "int_mult", "--limit", "4", "--device", "cpu", "--log_samples", "--output_path", "out", "--model_args", f"pretrained={folder}")
    plain = peak_mib(tmp_path / "plain", "lm_eval", *common, "--include_path", str(tasks_root()))
    matrix_and_factors = 4 * (2 * 4096 * 1024 + 1024 * (4096 + 1024)) / 2**20
    with capsys.disabled():
        print(f"\npeak memory, plain lm-eval                {plain:7.0f} MiB   (weights {sum(path.stat().st_size for path in folder.glob('*.safetensors')) / 2**20:.0f} MiB)")
        for recipe in RECIPES:
            peak = peak_mib(tmp_path / recipe, "harness_ext", *common, "--recipe", recipe)
            print(f"peak memory, baseline and {recipe:<12}    {peak:7.0f} MiB   {peak - plain:+.0f} MiB; one matrix, its copy and its factors are {matrix_and_factors:.0f} MiB")


def larger_model(folder: Path) -> Path:
    """A random Llama of 150 million parameters with the embedded model's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(demo_path())
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=1024, intermediate_size=4096, num_hidden_layers=9, num_attention_heads=8, tie_word_embeddings=True)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
