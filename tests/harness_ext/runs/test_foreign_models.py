"""Models that plain lm_eval loads and that are no ordinary folder: GGUF, adapters on the hub, encoder-decoders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from harness_ext.demo import demo_path

pytestmark = pytest.mark.slow

HEADS, WIDTH, HIDDEN, WORDS = 4, 64, 128, 490


def gguf_model(path: Path) -> None:
    """A Llama of two layers with random weights."""
    gguf = pytest.importorskip("gguf")
    draw = torch.Generator().manual_seed(0)
    writer = gguf.GGUFWriter(str(path), "llama")
    for name, value in (
        *(("context_length", 64), ("embedding_length", WIDTH), ("block_count", 2), ("feed_forward_length", HIDDEN)),
        *(("head_count", HEADS), ("head_count_kv", 2), ("layer_norm_rms_eps", 1e-6), ("vocab_size", WORDS)),
        *(("rope_freq_base", 10000.0), ("rope_dimension_count", WIDTH // HEADS), ("file_type", 0)),
    ):
        getattr(writer, f"add_{name}")(value)

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(f"{name}.weight", (torch.randn(shape, generator=draw) * 0.2).numpy())

    def add_ones(name: str) -> None:
        writer.add_tensor(f"{name}.weight", torch.ones(WIDTH).numpy())

    add("token_embd", WORDS, WIDTH)
    add_ones("output_norm")
    for layer in range(2):
        for name, shape in {
            "attn_q": (WIDTH, WIDTH),
            "attn_k": (WIDTH // 2, WIDTH),
            "attn_v": (WIDTH // 2, WIDTH),
            "attn_output": (WIDTH, WIDTH),
            "ffn_gate": (HIDDEN, WIDTH),
            "ffn_up": (HIDDEN, WIDTH),
            "ffn_down": (WIDTH, HIDDEN),
        }.items():
            add(f"blk.{layer}.{name}", *shape)
        add_ones(f"blk.{layer}.attn_norm")
        add_ones(f"blk.{layer}.ffn_norm")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def scores(folder: Path) -> dict[str, float]:
    """The mean log-likelihood of the right answers, by recipe."""
    found = {}
    for path in folder.rglob("results_*.json"):
        receipt = json.loads((path.parent / "receipt.json").read_text())
        found[receipt["recipe"]["name"]] = json.loads(path.read_text())["results"]["int_sum"]["gold_logprob,none"]
    return found


def command(*model_args: str) -> tuple[object, ...]:
    joined = ("run", "--model", "hf", "--model_args", ",".join(model_args))
    return (*joined, "--tasks", "int_sum", "--limit", 6, "--batch_size", 6, "--device", "cpu")


def test_a_gguf_file_is_edited_and_exported(lm_eval, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    gguf_model(tmp_path / "m" / "m.gguf")
    named = (f"pretrained={tmp_path / 'm'}", "gguf_file=m.gguf", f"tokenizer={demo_path()}", "dtype=float32")
    ran = lm_eval(*command(*named), "--recipe", "svd")
    assert ran.code == 0, ran.err
    found = scores(tmp_path / "results")
    assert found["svd"] != found["baseline"]
    exported = lm_eval("export", "--model_args", ",".join(named), "--recipe", "svd", "--out", "edited")
    assert exported.code == 0, exported.err
    assert "quantization_config" not in json.loads((tmp_path / "edited" / "config.json").read_text())
    again = lm_eval(*command(f"pretrained={tmp_path / 'edited'}", "dtype=float32"), "--recipe", "baseline",
                    "--output_path", "again")  # fmt: skip
    assert again.code == 0, again.err
    assert scores(tmp_path / "again")["baseline"] == pytest.approx(found["svd"], abs=1e-5)


def test_a_mistaken_recipe_is_told_before_a_gguf_file_is_scored(lm_eval, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    gguf_model(tmp_path / "m" / "m.gguf")
    named = (f"pretrained={tmp_path / 'm'}", "gguf_file=m.gguf", f"tokenizer={demo_path()}")
    ran = lm_eval(*command(*named), "--recipe", "svd:keep.rank=5000")
    assert ran.code == 2 and "rank 5000 is beyond" in ran.err, ran.err
    assert not list((tmp_path / "results").rglob("receipt.json"))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_an_adapter_on_the_hub(lm_eval, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    hub = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    monkeypatch.setenv("HF_HUB_CACHE", str(hub))

    def put(name: str, source: Path, commit: str) -> None:
        repository = hub / f"models--{name.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(commit)
        shutil.copytree(source, repository / "snapshots" / commit)

    settings = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(demo_path()), settings).save_pretrained(tmp_path / "ad")
    put("org/base", demo_path(), "a" * 40)
    put("org/adapter", tmp_path / "ad", "b" * 40)
    ran = lm_eval(*command("pretrained=org/base", "peft=org/adapter"), "--recipe", "laser")
    assert ran.code == 0, ran.err
    assert set(scores(tmp_path / "results")) == {"baseline", "laser"}


def test_an_encoder_decoder_takes_an_edit_of_its_weights(lm_eval, tmp_path: Path) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    sizes = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
    special = {"pad_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 0}
    T5ForConditionalGeneration(T5Config(vocab_size=WORDS, **sizes, **special)).save_pretrained(tmp_path / "m")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo_path() / name, tmp_path / "m")
    where = [f"{side}.block.*.DenseReluDense.wo.weight" for side in ("encoder", "decoder")]
    recipe = f"svd:keep.rank=2,matrices=[{','.join(where)}]"
    ran = lm_eval(*command(f"pretrained={tmp_path / 'm'}"), "--recipe", recipe)
    assert ran.code == 0, ran.err
    found = scores(tmp_path / "results")
    assert found["svd"] != found["baseline"]
    refused = lm_eval(*command(f"pretrained={tmp_path / 'm'}"), "--recipe", "svd-llm", "--output_path", "other")
    assert refused.code == 2 and "t5 is an encoder-decoder, and 'svd-llm' learns from documents" in refused.err
    assert not list((tmp_path / "other").rglob("receipt.json"))
