"""The backend from Python, and with what lm-eval's own backend can be asked for: dtypes, adapters, a device map."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import harness_ext  # noqa: F401 - registers `hf-recipe`
from harness_ext.errors import UserError
from harness_ext.lm_eval_adapter.backend import RecipeLM
from harness_ext.recipe.recipe import parse_recipe


def no_documents(calibration):
    pytest.fail("no document was to be asked for")


def score(**arguments):
    from lm_eval import simple_evaluate

    from harness_ext.lm_eval_adapter.task_index import task_manager

    return simple_evaluate(
        model="hf-recipe",
        tasks=["int_mult"],
        limit=16,
        batch_size=16,
        device="cpu",
        task_manager=task_manager(),
        **arguments,
    )


@pytest.mark.slow
def test_simple_evaluate_takes_the_backend_by_name() -> None:
    plain = score(model_args="pretrained=demo")
    edited = score(model_args="pretrained=demo,recipe=svd:keep.rank=2")
    as_dict = score(model_args={"pretrained": "demo", "recipe": "svd:keep.rank=2"})
    assert "recipe" not in plain["config"]
    assert (
        edited["config"]["recipe"] == "svd:keep.rank=2"
        and edited["config"]["recipe_id"] == parse_recipe("svd:keep.rank=2").recipe_id
    )
    assert edited["config"]["weights_digest"] == as_dict["config"]["weights_digest"]
    told = ("recipe_name", "recipe_control", "recipe_control_of")
    assert [edited["config"][name] for name in told] == ["svd", None, None]
    assert "recipe_revisions" not in edited["config"]
    assert (
        edited["results"]["int_mult"]["gold_logprob,none"]
        == as_dict["results"]["int_mult"]["gold_logprob,none"]
        != plain["results"]["int_mult"]["gold_logprob,none"]
    )


@pytest.mark.slow
def test_a_calibrated_recipe_from_python_names_its_task() -> None:
    with pytest.raises(
        UserError, match="which tasks are evaluated is not known here; name one in the recipe: calibration.task=TASK"
    ):
        RecipeLM("demo", recipe="eigenprune", device="cpu")
    lm = RecipeLM("demo", recipe="eigenprune:calibration.task=int_mult,calibration.samples=20", device="cpu")
    assert lm.applied is not None and len(lm.applied.calibration[0][1].documents) == 20


# peft asks transformers in a way that is about to change; nothing of ours.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_an_adapter_is_part_of_the_matrix_that_is_edited(make_model, tmp_path: Path) -> None:
    folder, lora = make_adapter(make_model, tmp_path)
    check_adapter(folder, lora)


def make_adapter(make_model, tmp_path: Path) -> tuple[Path, Path]:
    """A tiny Llama and a LoRA adapter for it that matters."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = make_model("llama")
    torch.manual_seed(1)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder),
        LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False),
    )
    model.save_pretrained(tmp_path / "adapter")
    return folder, tmp_path / "adapter"


def check_adapter(folder: Path, lora: Path) -> None:
    lm = RecipeLM(str(folder), peft=str(lora), device="cpu")
    tokens = torch.arange(3, 9)[None]
    with torch.no_grad():
        adapted = lm.model(tokens).logits.clone()
        lm.apply(parse_recipe("identity"), no_documents)
        torch.testing.assert_close(lm.model(tokens).logits, adapted, atol=1e-3, rtol=1e-3)
    lm.undo()
    plain = RecipeLM(str(folder), device="cpu")
    with torch.no_grad():
        assert not torch.allclose(plain.model(tokens).logits, adapted, atol=1e-2)


def test_a_model_under_a_device_map_is_edited(make_model) -> None:
    lm = RecipeLM(str(make_model("llama")), device="cpu", device_map="cpu")
    digest = lm.weights.digest()
    lm.apply(parse_recipe("svd:keep.rank=2"), no_documents)
    assert lm.weights.digest() != digest
    lm.undo()
    assert lm.weights.digest() == digest


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_the_edit_keeps_the_dtype(make_model, dtype: str) -> None:
    lm = RecipeLM(str(make_model("gpt2", dtype=dtype)), device="cpu", dtype=dtype)
    lm.apply(parse_recipe("svd:keep.rank=2"), no_documents)
    assert {value.dtype for value in lm.model.parameters()} == {getattr(torch, dtype)}


def test_offloaded_weights_are_refused(make_lm) -> None:
    lm = make_lm("llama")
    lm.model.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(torch.empty(40, 24, device="meta"))
    with pytest.raises(UserError, match="up_proj.weight is offloaded"):
        lm.apply(parse_recipe("svd"), no_documents)


def test_the_scratch_folder_goes_with_the_model(make_lm) -> None:
    import gc

    lm = make_lm("llama")
    folder = lm.weights._scratch
    assert folder.is_dir()
    del lm
    gc.collect()
    assert not folder.exists()


def test_the_cache_of_answers_is_refused_where_a_recipe_is_applied(tmp_path: Path) -> None:
    from lm_eval.api.model import CachingLM

    CachingLM(RecipeLM("demo", device="cpu"), str(tmp_path / "unedited.db"))
    with pytest.raises(UserError, match=r"--use_cache cannot be combined with a recipe \('svd'\)"):
        CachingLM(RecipeLM("demo", recipe="svd", device="cpu"), str(tmp_path / "edited.db"))


@pytest.mark.filterwarnings("ignore")
def test_a_tokenizer_of_another_model_is_a_sentence(make_model) -> None:
    from harness_ext.demo import demo_path

    lm = RecipeLM(str(make_model("gpt2")), tokenizer=str(demo_path()), device="cpu")
    words = r"the tokenizer gives the token \d+, and the model \(.*\) knows 43: it belongs to another model"
    for encode in (
        lm.tok_encode,
        lambda text: lm.tok_batch_encode(["", text]),
        lambda text: lm.encode_pair(text, " 5"),
    ):
        with pytest.raises(UserError, match=words):
            encode("What is 12 times 7?")
    own = RecipeLM("demo", device="cpu")
    assert own.tok_encode("12 times 7") and own.tok_batch_encode(["12", "times 7"])[0].shape[0] == 2


def test_results_tell_the_revision_of_a_method_where_it_is_above_one() -> None:
    lm = RecipeLM("demo", recipe="contrast-projection", device="cpu")
    assert lm.get_model_info()["recipe_revisions"] == {"contrast_projection": 2}
