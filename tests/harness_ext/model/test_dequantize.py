"""`dequantize=true`: checkpoints of four formats are loaded, edited and scored as the weights that they stand for."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from harness_ext.errors import UserError
from harness_ext.lm_eval_adapter.backend import RecipeLM
from tests.quantised_models import FORMATS, quantised_pair


@pytest.fixture(scope="module", params=FORMATS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """The name of a format, a checkpoint in it, and one of the weights that it stands for."""
    package = FORMATS[request.param].package
    if package is not None and importlib.util.find_spec(package) is None:
        pytest.skip(f"needs the package {package}")
    return request.param, *quantised_pair(tmp_path_factory.mktemp(request.param), request.param)


def run(lm_eval: Any, arguments: str, place: Path, *more: object) -> dict[str, dict[str, Any]]:
    """The receipts of a run by recipe, each with its samples."""
    ran = lm_eval("run", "--model", "hf", "--model_args", arguments, "--tasks", "int_sum", "--limit", 8,
                  "--batch_size", 4, "--device", "cpu", "--output_path", place, *more)  # fmt: skip
    assert ran.code == 0, ran.err
    found = {}
    for path in place.rglob("receipt.json"):
        receipt = json.loads(path.read_text())
        (samples,) = path.parent.glob("samples_*.jsonl")
        rows = [json.loads(line) for line in samples.read_text().splitlines()]
        found[receipt["recipe"]["name"]] = {**receipt, "answers": [row["resps"] for row in rows]}
    return found


def test_the_weights_are_those_of_the_formula(pair: tuple[str, Path, Path]) -> None:
    kind, packed, plain = pair
    lm, expected = RecipeLM(str(packed), dequantize=True, device="cpu"), RecipeLM(str(plain), device="cpu")
    assert lm.dequantized_from == kind and expected.dequantized_from is None
    weights = dict(lm.model.named_parameters())
    assert weights.keys() == dict(expected.model.named_parameters()).keys()
    for name, value in expected.model.named_parameters():
        assert weights[name].dtype == value.dtype and torch.equal(weights[name], value), name
    assert lm.weights.digest() == expected.weights.digest()


@pytest.mark.slow
def test_scores_are_those_of_the_plain_checkpoint(lm_eval, pair: tuple[str, Path, Path], tmp_path: Path) -> None:
    kind, packed, plain = pair
    recipes = ("--recipe", "svd", "--control", "random-subspace")
    got = run(lm_eval, f"pretrained={packed},dequantize=true", tmp_path / "packed", *recipes)
    expected = run(lm_eval, f"pretrained={plain}", tmp_path / "plain", *recipes)
    assert got.keys() == expected.keys() == {"baseline", "svd", "random-subspace"}
    for name, receipt in got.items():
        assert receipt["answers"] == expected[name]["answers"] and receipt["weights"] == expected[name]["weights"]
        assert receipt["model"]["dequantized_from"] == kind
        assert "dequantized_from" not in expected[name]["model"]


def test_an_export_is_plain(lm_eval, pair: tuple[str, Path, Path], tmp_path: Path) -> None:
    kind, packed, plain = pair
    for name, arguments in (("a", f"pretrained={packed},dequantize=true"), ("b", f"pretrained={plain}")):
        ran = lm_eval("export", "--model_args", arguments, "--recipe", "svd", "--out", tmp_path / name)
        assert ran.code == 0, ran.err
    got, expected = (RecipeLM(str(tmp_path / name), device="cpu").weights.digest() for name in "ab")
    assert got == expected
    assert "quantization_config" not in json.loads((tmp_path / "a" / "config.json").read_text())
    assert json.loads((tmp_path / "a" / "receipt.json").read_text())["model"]["dequantized_from"] == kind
    refused = lm_eval("export", "--model_args", f"pretrained={packed},dequantize=true", "--recipe", "svd", "--out",
                      tmp_path / "c", "--shards")  # fmt: skip
    assert refused.code == 2 and "dequantize in --model_args is for the loader of models" in refused.err


@pytest.mark.slow
def test_a_plan_is_that_of_the_plain_checkpoint(lm_eval, pair: tuple[str, Path, Path]) -> None:
    _, packed, plain = pair

    def planned(arguments: str) -> dict[str, Any]:
        ran = lm_eval("recipes", "plan", "svd", "--json", "--model_args", arguments)
        assert ran.code == 0, ran.err
        return json.loads(ran.out)

    got, expected = planned(f"pretrained={packed},dequantize=true"), planned(f"pretrained={plain}")
    for part in ("matrices", "parameters", "bytes"):
        assert got[part] == expected[part]


def test_without_asking_it_is_refused_where_it_stays_packed(lm_eval, pair: tuple[str, Path, Path], monkeypatch) -> None:
    kind, packed, _ = pair
    monkeypatch.setattr("harness_ext.lm_eval_adapter.admission.stays_packed", lambda config: True)
    model = ("--model_args", f"pretrained={packed}")
    for command in (
        ("run", "--model", "hf", *model, "--tasks", "int_sum", "--recipe", "svd"),
        ("recipes", "plan", "svd", *model),
        ("export", *model, "--recipe", "svd", "--out", "out"),
    ):
        ran = lm_eval(*command)
        assert ran.code == 2 and f"is quantised ({kind})" in ran.err and "add dequantize=true" in ran.err


def test_a_model_in_memory_is_not_dequantised(pair: tuple[str, Path, Path]) -> None:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(pair[2])
    with pytest.raises(UserError, match=r"dequantize is for a checkpoint.*call its dequantize\(\)"):
        RecipeLM(model, dequantize=True)


def test_without_a_recipe_it_is_told_what_it_is_for(lm_eval) -> None:
    ran = lm_eval("run", "--model", "hf", "--model_args", "pretrained=demo,dequantize=true", "--tasks", "int_sum")
    assert ran.code == 2 and "add --recipe baseline" in ran.err
