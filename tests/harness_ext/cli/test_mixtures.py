"""The commands on mixtures whose experts transformers fuses as it loads them: every name for experts works, what cannot
work is refused before anything is scored, and an exported edit is the checkpoint's own format.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness_ext.model.checkpoint import read_checkpoint

pytestmark = pytest.mark.slow
NAMES = ("experts", "model.layers.*.mlp.experts.down_proj", "model.layers.*.mlp.experts.*.down_proj.weight")


@pytest.fixture(scope="module", params=["deepseek_v3", "qwen3_next", "gpt_oss"])
def mixture(request: pytest.FixtureRequest, make_model) -> Path:
    """A tiny mixture of each layout."""
    return make_model(request.param)


def run(lm_eval, model: Path, *arguments: object):
    return lm_eval(
        "run", "--model", "hf", "--model_args", f"pretrained={model}", "--device", "cpu", "--batch_size", 8,
        "--tasks", "int_sum", "--limit", 6, *arguments,
    )  # fmt: skip


def test_every_name_for_experts_works(lm_eval, mixture: Path) -> None:
    found = {}
    for place, name in enumerate(NAMES):
        ran = run(lm_eval, mixture, "--recipe", f"svd:matrices=['{name}'],keep.rank=2", "--output_path", f"{place}")
        assert ran.code == 0, ran.err
        receipts = [json.loads(path.read_text()) for path in Path(f"{place}").rglob("receipt.json")]
        (rows,) = (receipt["matrices"] for receipt in receipts if receipt["matrices"])
        found[name] = {(row["name"], row["part"], row["role"]) for row in rows}
    everything, fused, apart = (found[name] for name in NAMES)
    assert fused == apart == {row for row in everything if row[2] == "down_proj"}
    assert {part for _, part, _ in fused} == {f"expert {number}" for number in range(4)}


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("laser-search", "a search cannot try edits of experts; choose matrices outside them, such as attn"),
        ("basis-selection", "experts cannot be trained; choose matrices outside them, such as attn"),
        ("svd:matrices=['*.experts.9.down_proj.weight']", "names experts|matches no role"),
        ("svd:matrices=['down_proj expert 4']", "the experts of this model are 0 to 3"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_scored(lm_eval, mixture: Path, recipe: str, said: str) -> None:
    ran = run(lm_eval, mixture, "--recipe", recipe, "--output_path", "runs")
    assert ran.code and any(words in ran.err for words in said.split("|")), ran.err
    assert not list(Path("runs").rglob("receipt.json"))
    planned = lm_eval("recipes", "plan", recipe, "--model_args", f"pretrained={mixture}")
    assert planned.code and any(words in planned.err for words in said.split("|")), planned.err


def test_an_export_has_the_checkpoints_own_names_and_loads_to_equal_weights(lm_eval, mixture: Path) -> None:
    from transformers import AutoModelForCausalLM

    recipe = "svd:matrices=[experts],keep.rank=2"
    planned = lm_eval("recipes", "plan", recipe, "--model_args", f"pretrained={mixture}")
    assert planned.code == 0 and "expert" in planned.out, planned.err
    ran = lm_eval("export", "--recipe", recipe, "--model_args", f"pretrained={mixture}", "--out", "edited")
    assert ran.code == 0, ran.err
    before, after = read_checkpoint(str(mixture)), read_checkpoint("edited")
    assert before.tensors == after.tensors
    digest = json.loads(Path("edited/receipt.json").read_text())["weights"]["digest_after"]
    from harness_ext.model.weights import model_digest

    assert model_digest(AutoModelForCausalLM.from_pretrained("edited", dtype="float32")) == digest
