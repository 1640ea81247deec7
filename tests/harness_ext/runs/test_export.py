"""Exported checkpoints: loaded by plain transformers, they give the edited model's logits."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness_ext.calibration.documents import CalibrationSet, LabelledDocument
from harness_ext.errors import UserError
from harness_ext.recipe.recipe import parse_recipe
from harness_ext.runs.export import export
from harness_ext.storage.rundir import EXPORTING

TOKENS = torch.arange(3, 15).reshape(2, 6)
DOCUMENTS = tuple(
    LabelledDocument("t", f"w{number} w{number + 1}", f" w{number + 2}", str(number)) for number in range(6)
)


def documents(calibration):
    return [CalibrationSet("t", "train", 0, DOCUMENTS)]


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def test_every_family_reloads_to_the_edited_logits(make_lm, family: str, tmp_path: Path) -> None:
    lm = make_lm(family)
    lm.apply(parse_recipe("svd:keep.rank=3"), documents)
    expected = logits(lm.model)
    export(lm, tmp_path / "out", "tiny", ["lm_eval", "export"])
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), expected, atol=0, rtol=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon"])
@pytest.mark.parametrize("specification", ["svd:keep.rank=3", "eigenprune:matrices=[all],fraction=0.3,per_head=false"])
def test_the_reloaded_checkpoint_gives_the_edited_logits(
    make_lm, family: str, dtype: str, specification: str, tmp_path: Path
) -> None:
    lm = make_lm(family, dtype=dtype)
    before = logits(lm.model)
    lm.apply(parse_recipe(specification), documents)
    expected = logits(lm.model)
    export(lm, tmp_path / "out", "tiny", ["lm_eval", "export"])
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=dtype)
    torch.testing.assert_close(logits(reloaded), expected, atol=0, rtol=0)
    assert not torch.equal(expected, before)
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("w3 w4")["input_ids"] == lm.tokenizer("w3 w4")["input_ids"]
    assert {path.suffix for path in (tmp_path / "out").iterdir()} <= {".json", ".safetensors", ".md"}
    # The model in memory is as it was: it can still be undone.
    lm.undo()
    assert torch.equal(logits(lm.model), before)


def test_a_bias_that_the_architecture_cannot_hold_is_refused(
    make_lm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = make_lm("llama")
    lm.apply(parse_recipe("eigenprune:matrices=[up_proj],per_head=false"), documents)
    monkeypatch.setattr("harness_ext.runs.export._BIAS_SWITCHES", ())
    with pytest.raises(UserError, match="up_proj.bias .* a bias, which a llama checkpoint cannot hold"):
        export(lm, tmp_path / "out", "tiny", [])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("recipe", ["svd", "svd:keep.rank=3"])
def test_the_card_says_what_the_recipes_words_do_not_describe(make_lm, recipe: str, tmp_path: Path) -> None:
    lm = make_lm("llama")
    lm.apply(parse_recipe(recipe), documents)
    export(lm, tmp_path / "out", "tiny", ["lm_eval", "export"])
    card = (tmp_path / "out" / "README.md").read_text()
    assert ("which summary and caveats describe: keep.rank=3." in card) is (":" in recipe) is ("Changed from" in card)


@pytest.mark.slow
def test_the_command_writes_receipt_and_card(lm_eval, tmp_path: Path) -> None:
    ran = lm_eval("export", "--model_args", "pretrained=demo", "--recipe", "laser", "--out", "edited")
    assert ran.code == 0, ran.err
    receipt = json.loads((tmp_path / "edited" / "receipt.json").read_text())
    assert [row["rank_after"] for row in receipt["matrices"]] == [1]
    assert "laser" in (tmp_path / "edited" / "README.md").read_text()
    scored = lm_eval(
        "run",
        "--model",
        "hf",
        "--model_args",
        "pretrained=edited",
        "--tasks",
        "int_mult",
        "--limit",
        8,
        "--device",
        "cpu",
        "--recipe",
        "baseline",
    )
    assert scored.code == 0, scored.err


@pytest.mark.slow
def test_the_command_learns_from_a_task_of_ones_own_and_others_may_read_the_weights(lm_eval, tmp_path: Path) -> None:
    files = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "test")}
    for start, path in enumerate(files.values()):
        numbers = range(100 * start, 100 * start + 20)
        Path(path).write_text("".join(f'{{"q": "{n} + 1 =", "a": "{n + 1}"}}\n' for n in numbers))
    task = {"task": "own", "dataset_path": "json", "dataset_kwargs": {"data_files": files}, "training_split": "train"}
    task |= {"test_split": "test", "output_type": "loglikelihood", "doc_to_text": "{{q}}", "doc_to_target": "{{a}}"}
    (tmp_path / "own.yaml").write_text(json.dumps(task))
    asked = ("export", "--model_args", "pretrained=demo", "--out", "edited")
    recipe = ("--recipe", "svd-llm:calibration.task=own,calibration.samples=8")
    unknown = lm_eval(*asked, *recipe)
    assert unknown.code == 2 and "there is no task 'own'" in unknown.err and "--include_path DIR" in unknown.err
    ran = lm_eval(*asked, *recipe, "--include_path", tmp_path)
    assert ran.code == 0, ran.err
    modes = {
        path.stat().st_mode for path in (tmp_path / "edited").iterdir() if path.suffix in (".json", ".safetensors")
    }
    assert len(modes) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--recipe", "baseline"), "nothing to export"),
        (("--recipe", "laser", "--out", "."), "exists already"),
        (("--recipe", "laser", "--model", "vllm"), "use --model hf"),
        (("--recipe", "ablation-prune"), "calibration.task=TASK"),
    ],
)
def test_mistakes(lm_eval, arguments: tuple[str, ...], words: str) -> None:
    ran = lm_eval("export", "--model_args", "pretrained=demo", "--out", "edited", *arguments)
    assert ran.code == 2 and words in ran.err and "Traceback" not in ran.err


# Disks that take no more, and exports that were killed

FULL = "Error while serializing: I/O error: No space left on device (os error 28)"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (SafetensorError(FULL), "No space left on device"),
        (SafetensorError('I/O error: Read-only file system (os error 30) at path "/x/.tmpY"'), "Read-only file system"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "Disk quota exceeded"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
    ],
)
def test_a_disk_that_takes_no_more_is_a_sentence_and_leaves_nothing(
    make_lm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    lm = make_lm("llama")
    lm.apply(parse_recipe("svd:keep.rank=3"), documents)

    def half(folder: Path, **settings: object) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise error

    monkeypatch.setattr(lm.model, "save_pretrained", half)
    with pytest.raises(UserError) as caught:
        export(lm, tmp_path / "out", "tiny", [])
    said = f"{tmp_path / 'out'} cannot be written: {words}; make room, or name another folder with --out"
    assert str(caught.value) == said
    assert list(tmp_path.iterdir()) == []


def test_an_error_that_is_not_the_disks_keeps_its_traceback(
    make_lm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = make_lm("llama")
    lm.apply(parse_recipe("svd:keep.rank=3"), documents)

    def broken(folder: Path, **settings: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(lm.model, "save_pretrained", broken)
    with pytest.raises(KeyError):
        export(lm, tmp_path / "out", "tiny", [])
    assert list(tmp_path.iterdir()) == []


def test_what_killed_exports_left_is_swept_by_the_next_and_nothing_else(make_lm, tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    left = {
        f".out.tmp-{gone.pid}": True,
        f".other.tmp-{gone.pid}": True,
        f".out.tmp-{os.getppid()}": False,
        f".strangers.tmp-{gone.pid}": False,
        ".mine": False,
    }
    for name in left:
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"half")
    (tmp_path / f".other.tmp-{gone.pid}" / EXPORTING).touch()
    lm = make_lm("llama")
    lm.apply(parse_recipe("svd:keep.rank=3"), documents)
    export(lm, tmp_path / "out", "tiny", [])
    there = {path.name for path in tmp_path.iterdir()}
    assert there == {"out", *(name for name, swept in left.items() if not swept)}
    assert EXPORTING not in {path.name for path in (tmp_path / "out").iterdir()}
