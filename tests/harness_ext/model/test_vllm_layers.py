"""vLLM loads a factored checkpoint and computes what transformers computes of it.

vLLM wants an environment of its own, with this package in it (`pip install --no-deps`): `VLLM_PYTHON` names its Python.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import harness_ext

PYTHON = os.environ.get("VLLM_PYTHON") or (sys.executable if find_spec("vllm") else None)
TOKENS = [3, 4, 5, 6, 7, 8, 9, 10]
SCRIPT = f"""
import json, sys
from vllm import LLM, SamplingParams
engine = LLM(sys.argv[1], dtype="float32", max_model_len=64, enforce_eager=True, enable_prefix_caching=False)
settings = SamplingParams(max_tokens=1, prompt_logprobs=1, temperature=0)
(found,) = engine.generate([{{"prompt_token_ids": {TOKENS}}}], settings)
print("FOUND", json.dumps([found[token].logprob for found, token in zip(found.prompt_logprobs[1:], {TOKENS[1:]})]))
"""


@pytest.mark.slow
@pytest.mark.skipif(PYTHON is None, reason="vLLM is not installed here, and VLLM_PYTHON names no Python that has it")
@pytest.mark.parametrize(
    ("specification", "form"),
    [
        ("svd:keep.param_fraction=0.6", "factored"),
        # One of the three matrices of a layer, as heads, with the others dense beside it.
        ("svd:matrices=[q_proj,o_proj],per_head=true,keep.rank=8", "pifa"),
    ],
)
def test_scores_are_those_of_transformers(specification: str, form: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    out = harness_ext.export(specification, tmp_path / "out", pretrained="demo", format=form)
    settings = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "PYTHONPATH": str(Path(harness_ext.__file__).parents[1]),
    }
    assert PYTHON is not None
    ran = subprocess.run(
        [PYTHON, "-c", SCRIPT, str(out)], capture_output=True, text=True, env={**os.environ, **settings}, check=False
    )
    lines = [line for line in ran.stdout.splitlines() if line.startswith("FOUND ")]
    assert lines, ran.stderr[-3000:]
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(out)(torch.tensor([TOKENS])).logits[0].log_softmax(-1)
    expected = [float(logits[place, token]) for place, token in enumerate(TOKENS[1:])]
    assert json.loads(lines[0].removeprefix("FOUND ")) == pytest.approx(expected, abs=1e-4)
