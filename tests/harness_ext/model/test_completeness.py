"""A checkpoint that lacks weights is refused, by headers and by loading alike; one that rightly lacks some is not."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness_ext.errors import UserError
from harness_ext.lm_eval_adapter.backend import RecipeLM
from harness_ext.model.checkpoint import read_checkpoint
from harness_ext.model.completeness import check_headers, refuse_incomplete, refusing_incomplete_adapters

Change = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


@pytest.fixture
def changed(make_model, tmp_path: Path) -> Callable[..., Path]:
    """A copy of a tiny model with its weights changed: `changed("llama", lambda state: ...)`."""

    def make(family: str, change: Change, **config: Any) -> Path:
        folder = tmp_path / f"changed-{family}"
        shutil.copytree(make_model(family), folder)
        save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
        said = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(said | config))
        return folder

    return make


def without(*parts: str) -> Change:
    return lambda state: {name: value for name, value in state.items() if not any(part in name for part in parts)}


def renamed(old: str, new: str) -> Change:
    return lambda state: {name.replace(old, new): value for name, value in state.items()}


def load(folder: Path, **arguments: Any) -> RecipeLM:
    return RecipeLM(str(folder), device="cpu", dtype="float32", **arguments)


def refused(folder: Path, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_headers(read_checkpoint(str(folder)))
    with pytest.raises(UserError, match=words):
        load(folder)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("family", "change", "words"),
    [
        ("llama", without("layers.1.mlp.down_proj"), r"lacks the weight model\.layers\.1\.mlp\.down_proj\.weight, "),
        ("llama", without("layernorm"), r"layers\.0\.input_layernorm\.weight and 5 more, which the config asks for"),
        ("llama", without("layers.2."), r"layers\.2\.input_layernorm\.weight and 8 more"),
        ("llama", without("model.norm"), r"lacks the weight model\.norm\.weight, "),
        ("llama", without("embed_tokens"), r"lacks the weight lm_head\.weight and 1 more"),
        ("llama", renamed("q_proj", "query"), r"layers\.0\.self_attn\.q_proj\.weight and 2 more"),
        ("mistral", without("lm_head"), r"lacks the weight lm_head\.weight, "),
        ("llama-biased", without("q_proj.bias"), r"layers\.0\.self_attn\.q_proj\.bias and 2 more"),
        ("gpt2", without("h.1.attn.c_attn.bias"), r"transformer\.h\.1\.attn\.c_attn\.bias, "),
        ("mixtral", without("layers.1.mlp.gate", "layers.1.block_sparse_moe.gate"), r"layers\.1\.mlp\.gate\.weight"),
        ("mixtral", without("layers.1.mlp.experts", "layers.1.block_sparse_moe.experts"), r"experts\.down_proj and 1"),
    ],
)
def test_a_checkpoint_that_lacks_weights_is_refused(changed, family: str, change: Change, words: str) -> None:
    refused(changed(family, change), words)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"num_hidden_layers": 12}, r"lacks the weight model\.layers\.3\.input_layernorm\.weight and 80 more"),
        (
            {"intermediate_size": 48},
            r"mlp\.down_proj\.weight is stored as 24 x 40 and the config asks for 24 x 48 \(and",
        ),
        ({"vocab_size": 50}, r"embed_tokens\.weight is stored as 43 x 24 and the config asks for 50 x 24"),
        ({"attention_bias": True}, r"lacks the weight model\.layers\.0\.self_attn\.k_proj\.bias"),
    ],
)
def test_weights_that_do_not_fit_their_config_are_refused(changed, config: dict[str, Any], words: str) -> None:
    refused(changed("llama", dict, **config), words)


@pytest.mark.filterwarnings("ignore")
def test_a_shape_is_refused_even_where_transformers_is_told_to_ignore_it(changed) -> None:
    folder = changed("llama", dict, intermediate_size=48)
    with pytest.raises(UserError, match="is stored as 24 x 40"):
        load(folder, ignore_mismatched_sizes=True)


def test_an_index_whose_shards_lack_what_it_lists_is_refused(changed) -> None:
    folder = changed("llama", without("layers.0.mlp.up_proj"))
    names = [*load_file(folder / "model.safetensors"), "model.layers.0.mlp.up_proj.weight"]
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "part.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, r"lacks the weight model\.layers\.0\.mlp\.up_proj\.weight, ")


def test_pickled_weights_are_checked_as_they_are_loaded(changed) -> None:
    folder = changed("llama", dict)
    state = without("layers.1.mlp.down_proj")(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.down_proj\.weight"):
        load(folder, use_safetensors=False)


def test_the_backend_of_lm_evals_own_function_refuses_too(changed) -> None:
    folder = changed("llama", without("layers.1.mlp.down_proj"))
    with pytest.raises(UserError, match="lacks the weight"):
        RecipeLM.create_from_arg_string(f"pretrained={folder},recipe=laser", {"device": "cpu"})


# Whole ones


def test_every_architecture_is_whole_as_it_is_saved(make_model, every_family: str) -> None:
    check_headers(read_checkpoint(str(make_model(every_family))))


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("llama", without("lm_head")),  # tied
        ("llama", renamed("model.", "")),
        ("gpt2", renamed("transformer.", "")),
        ("llama", lambda state: state | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(3)}),
        ("gpt2", lambda state: state | {"transformer.h.0.attn.masked_bias": torch.tensor(-1e4)}),
        ("gpt2", lambda state: state | {"lm_head.weight": state["transformer.wte.weight"].clone()}),
    ],
)
def test_a_checkpoint_that_rightly_lacks_or_has_a_name_is_whole(changed, family: str, change: Change) -> None:
    folder = changed(family, change)
    check_headers(read_checkpoint(str(folder)))
    assert load(folder).unexpected_weights == []


def test_weights_without_a_place_are_told_and_left_out(changed) -> None:
    folder = changed("llama", lambda state: state | {"model.extra": torch.zeros(2)})
    check_headers(read_checkpoint(str(folder)))
    assert load(folder).unexpected_weights == ["model.extra"]


@pytest.mark.parametrize("config", [{"model_type": "novel"}, {"quantization_config": {"quant_method": "gptq"}}])
def test_of_what_headers_cannot_tell_nothing_is_said(changed, config: dict[str, Any]) -> None:
    check_headers(read_checkpoint(str(changed("llama", without("layers.1."), **config))))


def test_a_buffer_that_a_model_computes_may_be_missing() -> None:
    computed = {"model.rotary_emb.inv_freq", "h.0.attn.masked_bias", "embeddings.position_ids"}
    refuse_incomplete("m", {"missing_keys": computed, "mismatched_keys": set()})
    with pytest.raises(UserError, match=r"m lacks the weight layers\.2\.norm and 1 more, which"):
        refuse_incomplete("m", {"missing_keys": {*computed, "layers.10.norm", "layers.2.norm"}, "mismatched_keys": ()})


# Adapters


@pytest.fixture
def adapter(make_model, tmp_path: Path) -> tuple[Path, Path]:
    """A tiny model and an adapter of it."""
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    base = make_model("llama")
    settings = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), settings).save_pretrained(tmp_path / "adapter")
    return base, tmp_path / "adapter"


def tear(folder: Path, names: Iterable[str]) -> None:
    path = folder / "adapter_model.safetensors"
    save_file(without(*names)(load_file(path)), path)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_adapter_that_lacks_weights_is_refused(adapter: tuple[Path, Path]) -> None:
    base, folder = adapter
    assert load(base, peft=str(folder)).unexpected_weights == []
    tear(folder, ["layers.1.self_attn.q_proj.lora_A", "layers.2."])
    with pytest.raises(UserError, match=r"the adapter \S+ lacks the weight \S+layers\.1\S+lora_A\S* and 2 more"):
        load(base, peft=str(folder))


def test_other_warnings_of_the_block_are_given_on() -> None:
    with pytest.warns(UserWarning, match="something else"), refusing_incomplete_adapters("a"):
        warnings.warn("something else", stacklevel=1)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_model_with_an_adapter_inside_is_not_edited_and_its_weights_are_checked(
    adapter: tuple[Path, Path], tmp_path: Path
) -> None:
    base, folder = adapter
    both = tmp_path / "both"
    shutil.copytree(base, both)
    for path in folder.glob("adapter_*"):
        shutil.copy(path, both)
    with pytest.raises(UserError, match=r"has an adapter beside its weights .* pretrained=MODEL,peft=ADAPTER"):
        load(both).weights  # noqa: B018 - the access raises
    path = both / "model.safetensors"
    save_file(without("layers.1.mlp.down_proj")(load_file(path)), path, {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks the weight model\.layers\.1\.mlp\.down_proj\.weight"):
        load(both)
