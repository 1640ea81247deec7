"""What has an encoder, and what is a decoder by itself of the same type: in memory and from a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import harness_ext as recipes
from harness_ext.errors import UserError
from harness_ext.lm_eval_adapter.admission import has_encoder
from harness_ext.lm_eval_adapter.backend import RecipeLM

from ...tiny_models import tiny_config, tiny_model

DOCUMENTS = [("w1 w2 w3", " w4"), ("w5 w6 w7 w8", " w9"), ("w3 w9", " w11 w12"), ("w7 w1", " w2")]


@pytest.fixture(scope="module")
def tokenizer(make_model):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(make_model("llama"))


def whole(name: str, model_type: str, **flags: bool):
    """A tiny model with encoder and decoder."""
    import transformers

    torch.manual_seed(0)
    model = getattr(transformers, name)(tiny_config(model_type)).eval()
    for flag, value in flags.items():
        setattr(model.config, flag, value)
    return model


@pytest.mark.parametrize(
    ("name", "matrices", "flags"),
    [
        ("BartForConditionalGeneration", "*.decoder.*.fc1.weight", {}),
        ("T5ForConditionalGeneration", "decoder.*.wo.weight", {}),
        ("T5ForConditionalGeneration", "decoder.*.wo.weight", {"is_encoder_decoder": False}),
    ],
)
def test_a_model_with_an_encoder_learns_nothing(name: str, matrices: str, flags: dict, tokenizer) -> None:
    model_type = name.partition("For")[0].lower()
    model = whole(name, model_type, **flags)
    assert has_encoder(model) and RecipeLM(model, tokenizer=tokenizer).backend == "seq2seq"
    for backend in ("default", "causal", "seq2seq"):
        lm = RecipeLM(model, tokenizer=tokenizer, backend=backend)
        with pytest.raises(UserError, match=f"{model_type} is an encoder-decoder, and 'asvd' learns from documents"):
            lm.check_editable([recipes.load_recipe("asvd")])
    with pytest.raises(UserError, match=f"{model_type} is an encoder-decoder, and 'svd-llm' learns from documents"):
        recipes.apply(model, "svd-llm", tokenizer=tokenizer, documents=DOCUMENTS)
    with recipes.apply(model, f"svd:keep.rank=2,matrices=['{matrices}']") as applied:
        assert len(applied.matrices) == 2


@pytest.mark.parametrize("model_type", ["bart", "marian"])
def test_a_decoder_by_itself_learns_and_is_scored_as_one(model_type: str, tokenizer) -> None:
    from lm_eval.api.instance import Instance

    model = tiny_model(model_type)
    assert not has_encoder(model)
    lm = RecipeLM(model, tokenizer=tokenizer, backend="default")
    context, answer = "w5 w6 w7 w8 w9", " w10 w11"
    ((said, _),) = lm.loglikelihood([Instance("loglikelihood", {}, (context, answer), 0)])
    before, after = (lm.tok_encode(text.strip()) for text in (context, answer))
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([before + after[:-1]])).logits[0, -len(after) :].double()
    expected = logits.log_softmax(-1).gather(1, torch.tensor(after)[:, None]).sum()
    assert said == pytest.approx(float(expected), abs=1e-4)
    with recipes.apply(model, "asvd", tokenizer=tokenizer, documents=DOCUMENTS) as applied:
        assert len(applied.matrices) == 12


@pytest.mark.slow
def test_a_decoder_in_a_folder_is_loaded_when_it_is_asked_for(lm_eval, tmp_path: Path, tokenizer) -> None:
    tiny_model("bart").save_pretrained(tmp_path / "decoder")
    tokenizer.save_pretrained(tmp_path / "decoder")
    whole("BartForConditionalGeneration", "bart").save_pretrained(tmp_path / "whole")
    tokenizer.save_pretrained(tmp_path / "whole")

    def ran(model_args: str, recipe: str):
        settings = ("--tasks", "int_sum", "--limit", 6, "--batch_size", 6, "--device", "cpu", "--recipe", recipe)
        return lm_eval("run", "--model", "hf", "--model_args", model_args, *settings)

    learns = "svd-llm:calibration.samples=8"
    refused = ran(f"pretrained={tmp_path / 'decoder'}", learns)
    assert refused.code == 2 and "is the decoder of a bart by itself" in refused.err
    done = ran(f"pretrained={tmp_path / 'decoder'},backend=causal", learns)
    assert done.code == 0, done.err
    refused = ran(f"pretrained={tmp_path / 'whole'}", learns)
    assert refused.code == 2 and "bart is an encoder-decoder, and 'svd-llm:" in refused.err
