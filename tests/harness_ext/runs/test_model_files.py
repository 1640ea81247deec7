"""The files of a model that a command runs: others under the same name, changed meanwhile, or not whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


def write_tiny_task(folder: Path) -> None:
    folder.mkdir()
    (folder / "utils.py").write_text(
        "from datasets import Dataset\n\ndef load(**kwargs):\n"
        "    rows = [{'q': f'w{n} w{n + 1}', 'a': f'w{n + 2}'} for n in range(20)]\n"
        "    return {'train': Dataset.from_list(rows[:10]), 'test': Dataset.from_list(rows[10:])}\n"
    )
    (folder / "tiny.yaml").write_text(
        "task: tiny\ncustom_dataset: !function utils.load\noutput_type: loglikelihood\ntraining_split:"
        " train\ntest_split: test\ndoc_to_text: '{{q}}'\ndoc_to_target: ' {{a}}'\nmetric_list:\n- {metric: acc,"
        " aggregation: mean, higher_is_better: true}\nmetadata: {version: 1}\n"
    )


@pytest.mark.slow
def test_other_weights_under_the_same_name_are_another_baseline(lm_eval, make_model, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "model"
    arguments = (
        "run",
        "--model",
        "hf",
        "--model_args",
        f"pretrained={folder}",
        "--tasks",
        "tiny",
        "--include_path",
        tmp_path / "tasks",
        "--device",
        "cpu",
        "--batch_size",
        4,
        "--recipe",
        "baseline",
    )
    write_tiny_task(tmp_path / "tasks")
    shutil.copytree(make_model("llama", seed=1), folder)
    assert "baseline: done" in lm_eval(*arguments).err
    assert "baseline: kept" in lm_eval(*arguments).err
    shutil.rmtree(folder)
    shutil.copytree(make_model("llama", seed=2), folder)
    ran = lm_eval(*arguments)
    assert "baseline: done" in ran.err, ran.err


@pytest.mark.slow
def test_a_model_that_changes_while_the_command_runs_is_told(
    lm_eval, make_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from harness_ext.lm_eval_adapter.backend import RecipeLM

    folder = tmp_path / "model"
    shutil.copytree(make_model("llama", seed=5), folder)
    other, real = make_model("llama", seed=6), RecipeLM._create_model
    write_tiny_task(tmp_path / "tasks")

    def overtaken(self, *args, **kwargs) -> None:
        shutil.copy(other / "model.safetensors", folder)
        real(self, *args, **kwargs)

    arguments = ("run", "--model", "hf", "--model_args", f"pretrained={folder}", "--tasks", "tiny", "--device", "cpu")
    arguments += ("--include_path", tmp_path / "tasks", "--batch_size", 4, "--recipe", "baseline")
    with monkeypatch.context() as patched:
        patched.setattr(RecipeLM, "_create_model", overtaken)
        ran = lm_eval(*arguments)
    assert ran.code == 2 and "was changed while this command ran" in ran.err
    assert not list(tmp_path.glob("results/*/*/receipt.json"))
    assert "baseline: done" in lm_eval(*arguments).err
    (folder / "README.md").write_text("not part of the model")
    assert "baseline: kept" in lm_eval(*arguments).err


@pytest.mark.slow
@pytest.mark.parametrize("overtaken", [False, True])
def test_files_are_hashed_while_the_model_loads(
    lm_eval, make_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overtaken: bool
) -> None:
    import shutil
    import threading

    from harness_ext.lm_eval_adapter.backend import RecipeLM
    from harness_ext.model import file_digests

    folder = tmp_path / "model"
    shutil.copytree(make_model("llama", seed=5), folder)
    other, real, hashed = make_model("llama", seed=6), RecipeLM._create_model, file_digests._hashed
    write_tiny_task(tmp_path / "tasks")
    loading = threading.Event()

    def load(self, *args, **kwargs) -> None:
        if overtaken:
            shutil.copy(other / "model.safetensors", folder)
        loading.set()
        real(self, *args, **kwargs)

    def hashing(descriptor: int) -> str:
        assert loading.wait(120)
        return hashed(descriptor)

    monkeypatch.setattr(RecipeLM, "_create_model", load)
    monkeypatch.setattr(file_digests, "_hashed", hashing)
    arguments = ("run", "--model", "hf", "--model_args", f"pretrained={folder}", "--tasks", "tiny", "--device", "cpu")
    ran = lm_eval(*arguments, "--include_path", tmp_path / "tasks", "--batch_size", 4, "--recipe", "baseline")
    receipts = list(tmp_path.glob("results/*/*/receipt.json"))
    if overtaken:
        assert ran.code == 2 and "was changed while this command ran" in ran.err and not receipts
    else:
        assert ran.code == 0 and json.loads(receipts[0].read_text())["seconds"]["load"] > 0


@pytest.mark.slow
def test_a_checkpoint_that_lacks_weights_is_refused_by_every_command(
    lm_eval, make_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    import harness_ext
    from harness_ext.errors import UserError

    folder = tmp_path / "model"
    shutil.copytree(make_model("llama", seed=7), folder)
    state = load_file(folder / "model.safetensors")
    torn = {name: value for name, value in state.items() if "layers.2.mlp.down_proj" not in name}
    save_file(torn, folder / "model.safetensors", {"format": "pt"})
    write_tiny_task(tmp_path / "tasks")
    words = "lacks the weight model.layers.2.mlp.down_proj.weight, which the config asks for"
    arguments = ("--model_args", f"pretrained={folder}", "--device", "cpu")
    on_task = ("--tasks", "tiny", "--include_path", tmp_path / "tasks")
    for recipe in ("baseline", "identity", "svd:matrices=[down_proj],layers=[2]"):
        ran = lm_eval("run", "--model", "hf", *arguments, *on_task, "--recipe", recipe)
        assert ran.code == 2 and words in ran.err and "done" not in ran.err, recipe
    ran = lm_eval("recipes", "plan", "laser", "--model_args", f"pretrained={folder}")
    assert ran.code == 2 and words in ran.err and not ran.out
    ran = lm_eval("export", *arguments, "--recipe", "laser", "--out", "edited")
    assert ran.code == 2 and words in ran.err and not (tmp_path / "edited").exists()
    asked = {"model_args": {"pretrained": str(folder)}, "tasks": ["tiny"], "include_path": str(tmp_path / "tasks")}
    for call in (
        lambda: harness_ext.plan("laser", pretrained=str(folder)),
        lambda: harness_ext.export("laser", tmp_path / "edited", pretrained=str(folder)),
        lambda: harness_ext.run(**asked, recipes=["laser"], output_path=tmp_path / "results"),
    ):
        with pytest.raises(UserError, match="lacks the weight"):
            call()
    assert not list(tmp_path.glob("results/*/*/receipt.json"))


@pytest.mark.slow
def test_weights_without_a_place_are_warned_of_in_every_receipt(lm_eval, make_model, tmp_path: Path) -> None:
    """A config with fewer layers than are stored gives another model, of which nothing is random."""
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(make_model("llama", seed=8), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    write_tiny_task(tmp_path / "tasks")
    on_task = ("--tasks", "tiny", "--include_path", tmp_path / "tasks", "--device", "cpu", "--batch_size", 4)
    ran = lm_eval("run", "--model", "hf", "--model_args", f"pretrained={folder}", *on_task, "--recipe", "laser")
    assert ran.code == 0, ran.err
    words = "the checkpoint stores 9 weights that the model has no place for and were left out, such as model.layers.2."
    for path in tmp_path.glob("results/*/*/receipt.json"):
        assert [warning for warning in json.loads(path.read_text())["warnings"] if warning.startswith(words)]
    assert ran.err.count(words) == 2
