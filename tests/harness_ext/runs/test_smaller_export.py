"""Models that lost hidden units, written smaller: plain transformers loads them, with the same outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from harness_ext.errors import UserError
from harness_ext.model.digests import model_digest
from harness_ext.recipe.recipe import parse_recipe, recipe_from
from harness_ext.runs.export import export, written
from tests.harness_ext.editing.test_plan import steps_of
from tests.harness_ext.search.plain_search import documents_for, drawing
from tests.tiny_models import outputs

SETTINGS = {"llama": "intermediate_size", "gpt2": "n_inner", "opt": "ffn_dim", "phi3": "intermediate_size"}
SLOW = ("opt", "phi3", "gpt_neox")


def edited(make_lm: Any, family: str, recipe: str = "modegpt-mlp") -> Any:
    lm = make_lm(family)
    lm.apply(parse_recipe(recipe), drawing(documents_for(lm, 4)))
    return lm


@pytest.mark.parametrize("family", ["llama", "gpt2", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_the_smaller_checkpoint_is_the_edited_model(make_lm: Any, family: str, tmp_path: Path) -> None:
    lm = edited(make_lm, family)
    expected = outputs(lm.model)
    told = written(lm, tmp_path / "out", "tiny", ["lm_eval", "export"])
    assert told.words is not None and "32 hidden units instead of 40" in told.words
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config[SETTINGS.get(family, "intermediate_size")] == 32 and "quantization_config" not in config
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert float((outputs(reloaded) - expected).abs().max()) < 1e-4
    receipt = json.loads((tmp_path / "out" / "receipt.json").read_text())
    count = sum(value.numel() for value in reloaded.parameters())
    assert receipt["stored_as"]["parameters"] == count == lm.totals()["parameters_after"]
    assert receipt["weights"]["digest_after"] == model_digest(reloaded)
    assert told.words in (tmp_path / "out" / "README.md").read_text()
    # The model in memory keeps its shapes, and goes back to what it was.
    assert torch.equal(outputs(lm.model), expected)
    lm.undo()


@pytest.mark.parametrize(
    ("family", "recipe", "why"),
    [
        ("bloom", "modegpt-mlp", "a bloom config has no setting"),
        ("llama", "a3-mlp:layers=[0]", "its layers keep from 32 to 40 hidden units"),
        ("llama", "modegpt:epsilon=0.02,matrices=[v_proj,down_proj]", "the same share in every layer would be"),
        ("llama", "modegpt-vo", "a config has one number of heads for all layers"),
        ("gpt2", "modegpt-qk", "a config has one number of heads for all layers"),
    ],
)
def test_where_it_cannot_be_smaller_the_reason_is_told(
    make_lm: Any, family: str, recipe: str, why: str, tmp_path: Path
) -> None:
    lm = edited(make_lm, family, recipe)
    expected = outputs(lm.model)
    told = written(lm, tmp_path / "out", "tiny", ["lm_eval", "export"])
    assert told.words is not None and "as large as before" in told.words and why in told.words
    assert why in json.loads((tmp_path / "out" / "receipt.json").read_text())["not_smaller"]
    assert torch.equal(outputs(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), expected)


def test_what_went_of_heads_is_zero_in_the_smaller_checkpoint(make_lm: Any, tmp_path: Path) -> None:
    lm = edited(make_lm, "llama", "modegpt:rule=uniform")
    expected = outputs(lm.model)
    told = written(lm, tmp_path / "out", "tiny", ["lm_eval", "export"])
    assert told.words is not None and "32 hidden units instead of 40" in told.words
    assert "heads keep their size, with zeros" in told.words
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert float((outputs(reloaded) - expected).abs().max()) < 1e-4


def test_units_are_no_factors(tmp_path: Path) -> None:
    from harness_ext.runs.factored_export import Destination, export_factored_recipe

    both = {"name": "both", "steps": [*steps_of("svd:keep.rank=3"), *steps_of("a3-mlp")]}
    for recipe in (parse_recipe("modegpt"), parse_recipe("a3-mlp"), recipe_from(both, origin="both")):
        with pytest.raises(UserError, match=f"{recipe.label} takes whole units away.*without --format"):
            export_factored_recipe(
                recipe,
                Destination(tmp_path / "out", "factored"),
                {},
                Any,
                [],
                Any,  # type: ignore[arg-type]
            )


def test_other_recipes_are_written_as_ever(make_lm: Any, tmp_path: Path) -> None:
    lm = make_lm("llama")
    lm.apply(parse_recipe("svd:keep.rank=3"), drawing([]))
    assert export(lm, tmp_path / "out", "tiny", ["lm_eval", "export"]) == 0
    assert "stored_as" not in json.loads((tmp_path / "out" / "receipt.json").read_text())
