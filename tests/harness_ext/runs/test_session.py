"""Whole commands on the embedded model: what is run, what is reused, what is left on the disk."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness_ext.storage import rundir


def receipts(folder: Path) -> dict[str, dict]:
    """Receipts by the recipe's label."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("results/demo/*/receipt.json"))]
    return {receipt["recipe"]["label"]: receipt for receipt in found}


def samples(folder: Path, label: str, task: str) -> list[dict]:
    (path,) = folder.glob(f"results/demo/{rundir.safe_name(label)}-*/samples_{task}_*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_command_leaves_baseline_recipes_and_controls_with_complete_receipts(demo_run, tmp_path: Path) -> None:
    ran = demo_run(
        "--recipe",
        "laser",
        "--recipe",
        "eigenprune:fraction=0.25,calibration.samples=40",
        "--control",
        "random-subspace",
        tasks="int_mult,pronoun_bias",
    )
    assert ran.code == 0, ran.err
    found = receipts(tmp_path)
    pruned = "eigenprune:fraction=0.25,calibration.samples=40"
    assert set(found) == {"baseline", "laser", "laser+random-subspace", pruned, f"{pruned}+random-subspace"}
    for receipt in found.values():
        assert receipt["status"] == "complete" and receipt["failure"] is None
        assert receipt["weights"]["digest_before"] == found["baseline"]["weights"]["digest_before"]
        assert set(receipt["versions"]) >= {"python", "lm_eval", "torch", "transformers", "lm_eval_recipes"}
        assert receipt["command"][:2] == ["lm_eval", "run"]
    assert found["baseline"]["weights"]["digest_after"] == found["baseline"]["weights"]["digest_before"]
    assert len({receipt["weights"]["digest_after"] for receipt in found.values()}) == 5
    assert len({receipt["spec_id"] for receipt in found.values()}) == 5
    assert len({receipt["settings_id"] for receipt in found.values()}) == 1

    (drawn,) = found[pruned]["calibration"]
    assert (drawn["task"], drawn["split"], drawn["samples"], len(drawn["documents"])) == ("int_mult", "train", 40, 40)
    assert not set(drawn["documents"]) & {sample["doc_hash"] for sample in samples(tmp_path, "baseline", "int_mult")}

    ours, control = found[pruned]["matrices"], found[f"{pruned}+random-subspace"]["matrices"]
    assert {(row["name"], row["part"], row["rank_after"]) for row in ours} == {
        (row["name"], row["part"], row["rank_after"]) for row in control
    }
    assert found[f"{pruned}+random-subspace"]["recipe"]["control_of"] == found[pruned]["recipe_id"]
    assert "laser" in ran.out and "int_mult" in ran.out and "better" in ran.out + "better"
    assert not list(tmp_path.glob("results/demo/.*"))


def test_documents_of_the_scored_split_that_a_recipe_learns_from_are_out_of_every_score(
    demo_run, tmp_path: Path
) -> None:
    arguments = ("--recipe", "ablation-prune:calibration.split=test,calibration.samples=20", "laser")
    ran = demo_run(*arguments, tasks="int_mult,int_sum", limit=40)
    assert ran.code == 0, ran.err
    found = receipts(tmp_path)
    learned = {drawn["task"]: set(drawn["documents"]) for drawn in found[arguments[1]]["calibration"]}
    assert {name: len(hashes) for name, hashes in learned.items()} == {"int_mult": 10, "int_sum": 10}
    for label in found:
        for task, hashes in learned.items():
            scored = {sample["doc_hash"] for sample in samples(tmp_path, label, task)}
            assert len(scored) == 30 and not scored & hashes
    assert "incomparable" not in ran.out and "30 of 80 documents" in ran.out
    assert demo_run(*arguments, tasks="int_mult,int_sum", limit=40).err.count("kept from") == 3


def test_the_same_command_again_does_nothing_and_shows_the_same(
    demo_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = demo_run("--recipe", "laser")
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("results/demo/**/*")}
    monkeypatch.setattr(
        "harness_ext.runs.session.Session.lm", property(lambda self: pytest.fail("the model was loaded"))
    )
    again = demo_run("--recipe", "laser")
    assert again.code == 0 and again.out == first.out
    assert again.err.count("kept from") == 2
    assert stamps == {path: path.stat().st_mtime_ns for path in tmp_path.glob("results/demo/**/*")}


@pytest.mark.slow
def test_a_mended_helper_of_a_scorer_has_everything_scored_anew(demo_run, tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = "".join(json.dumps({"q": f"{number} plus 3 is", "a": number % 2}) + "\n" for number in range(8))
    (folder / "test.jsonl").write_text(rows)
    (folder / "own.yaml").write_text(
        f"task: own\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder}/test.jsonl}}}}\n"
        'test_split: test\noutput_type: multiple_choice\ndoc_to_text: "{{q}}"\ndoc_to_target: a\n'
        'doc_to_choice: [" yes", " no"]\nprocess_results: !function utils.score\n'
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    (folder / "utils.py").write_text(
        "import sys, pathlib\nsys.path.insert(0, str(pathlib.Path(__file__).parent))\n"
        "def score(doc, results):\n    import mended\n    return {'acc': mended.score(doc)}\n"
    )

    def run(value: str, recipe: str) -> tuple[int, dict[str, dict]]:
        (folder / "mended.py").write_text(f"def score(doc):\n    return {value}\n")
        ran = demo_run("--recipe", recipe, "--include_path", folder, tasks="own")
        assert ran.code == 0, ran.err
        return ran.err.count("kept from"), receipts(tmp_path)

    assert run("0.0", "laser")[0] == 0
    assert run("1.0", "identity")[0] == 0
    kept, _ = run("1.0", "identity")
    assert kept == 2
    made = [json.loads(path.read_text()) for path in tmp_path.glob("results/demo/baseline-*/receipt.json")]
    assert len({receipt["tasks"]["own"]["identity"] for receipt in made}) == len(made) == 2
    found = [json.loads(path.read_text()) for path in tmp_path.glob("results/demo/*/results_*.json")]
    assert sorted(result["results"]["own"]["acc,none"] for result in found) == [0.0, 0.0, 1.0, 1.0]
    sys.path.remove(str(folder))


@pytest.mark.slow
def test_the_baseline_is_reused_by_another_recipe_and_run_again_for_other_settings(demo_run, tmp_path: Path) -> None:
    demo_run("--recipe", "baseline")
    assert set(receipts(tmp_path)) == {"baseline"}
    assert "baseline: kept from" in demo_run("--recipe", "laser").err
    assert "baseline: done" in demo_run("--recipe", "laser", limit=25).err
    assert "baseline: done" in demo_run("--recipe", "laser", tasks="int_sum").err
    assert "baseline: done" in demo_run("--recipe", "laser", "--num_fewshot", "1").err
    assert len(list(tmp_path.glob("results/demo/baseline-*"))) == 4


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


def test_identity_scores_as_the_baseline_and_says_so(demo_run, tmp_path: Path) -> None:
    ran = demo_run("--recipe", "identity", tasks="int_mult,pronoun_bias", limit=60)
    assert "identity: scores as the baseline, log-likelihoods within" in ran.err
    for task in ("int_mult", "pronoun_bias"):
        ours, theirs = samples(tmp_path, "identity", task), samples(tmp_path, "baseline", task)
        assert [sample["filtered_resps"][0][1] for sample in ours] == [
            sample["filtered_resps"][0][1] for sample in theirs
        ]


def test_an_identity_that_changes_scores_is_called_out(demo_run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness_ext.runs.identity_check.TOLERANCE", {"float32": 0.0})
    monkeypatch.setattr("harness_ext.runs.identity_check._MANTISSA_BITS", {"float32": 60})
    ran = demo_run("--recipe", "identity")
    assert "warning: identity changes a log-likelihood by" in ran.err
    assert "in int_mult, at a log-likelihood of -" in ran.err and "do not trust the other results" in ran.err


def test_the_recipe_key_of_a_config_file_and_the_old_form_without_run(lm_eval, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "model: hf\nmodel_args: {pretrained: demo}\ntasks: [int_mult]\nlimit: 8\nbatch_size: 8\ndevice: cpu\nrecipe:"
        " [svd, 'laser:keep.rank=2']\noutput_path: here\n"
    )
    ran = lm_eval("--config", "config.yaml")
    assert ran.code == 0, ran.err
    assert len(list(tmp_path.glob("here/demo/*/receipt.json"))) == 3


def test_a_json_output_path_keeps_its_meaning(demo_run, tmp_path: Path) -> None:
    assert demo_run("--recipe", "laser", "--output_path", "out/mine.json", limit=8).code == 0
    assert len(list(tmp_path.glob("out/demo/*/receipt.json"))) == 2


def test_the_same_recipe_twice_is_run_once(demo_run, tmp_path: Path) -> None:
    demo_run("--recipe", "laser", "laser:seed=0", "baseline", limit=8)
    assert set(receipts(tmp_path)) == {"baseline", "laser"}


@pytest.mark.slow
def test_quiet_says_nothing_but_the_table(tmp_path: Path) -> None:
    # A process of its own: libraries read only once, when they load, how much they shall say.
    command = [
        sys.executable,
        "-m",
        "harness_ext",
        "run",
        "--model_args",
        "pretrained=demo",
        "--tasks",
        "int_mult",
        "--recipe",
        "laser",
        "--verbosity",
        "ERROR",
        "--limit",
        "8",
        "--device",
        "cpu",
    ]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    spoken = [line for line in ran.stderr.splitlines() if not line.startswith("fatal: not a git repository")]
    assert spoken == [] and "laser" in ran.stdout


def test_a_failed_recipe_is_a_row_with_its_reason_and_exit_code_2(lm_eval, tmp_path: Path) -> None:
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    from harness_ext.demo import demo_path

    shutil.copytree(demo_path(), tmp_path / "broken")
    weights = load_file(tmp_path / "broken" / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 7] = torch.nan
    save_file(weights, tmp_path / "broken" / "model.safetensors", metadata={"format": "pt"})
    ran = lm_eval(
        "run",
        "--model",
        "hf",
        "--model_args",
        "pretrained=./broken",
        "--tasks",
        "int_mult",
        "--limit",
        8,
        "--device",
        "cpu",
        "--recipe",
        "laser",
        "--control",
        "random-subspace",
    )
    assert ran.code == 2 and "Traceback" not in ran.err
    assert "up_proj.weight holds a NaN or an infinity at [0, 7]" in ran.err
    found = {
        receipt["recipe"]["label"]: receipt
        for receipt in (json.loads(path.read_text()) for path in tmp_path.glob("results/broken/*/receipt.json"))
    }
    assert found["laser"]["failure"]["kind"] == "non_finite_weight"
    assert (
        found["baseline"]["failure"]["kind"] == "non_finite_result"
        and "int_mult" in found["baseline"]["failure"]["reason"]
    )
    assert "failed" in ran.out and "not run, since the recipe whose budget it takes failed" in ran.err
    # A failure may pass: the same command tries again, and does not pile up.
    lm_eval(
        "run",
        "--model",
        "hf",
        "--model_args",
        "pretrained=./broken",
        "--tasks",
        "int_mult",
        "--limit",
        8,
        "--device",
        "cpu",
        "--recipe",
        "laser",
    )
    assert len(list(tmp_path.glob("results/broken/*/receipt.json"))) == 2


def test_a_loss_that_is_not_finite_is_a_row_too(lm_eval, tmp_path: Path) -> None:
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    from harness_ext.demo import demo_path

    shutil.copytree(demo_path(), tmp_path / "broken")
    weights = load_file(tmp_path / "broken" / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 7] = torch.nan
    save_file(weights, tmp_path / "broken" / "model.safetensors", metadata={"format": "pt"})
    ran = lm_eval(
        "run",
        "--model",
        "hf",
        "--model_args",
        "pretrained=./broken",
        "--tasks",
        "int_mult",
        "--limit",
        8,
        "--device",
        "cpu",
        "--recipe",
        "eigenprune",
    )
    assert ran.code == 2 and ran.out.count("failed") >= 2
    kinds = {
        receipt["recipe"]["name"]: receipt["failure"]["kind"]
        for receipt in (json.loads(path.read_text()) for path in tmp_path.glob("results/broken/*/receipt.json"))
    }
    assert kinds == {"baseline": "non_finite_result", "eigenprune": "non_finite_loss"}


def test_settings_from_a_file_and_from_flags_are_the_same_settings(demo_run, lm_eval, tmp_path: Path) -> None:
    demo_run("--recipe", "baseline", limit=8)
    (tmp_path / "config.yaml").write_text(
        "model: hf\nmodel_args: {pretrained: demo}\ntasks: [int_mult]\nlimit: 8\nbatch_size: 16\ndevice: cpu\nrecipe:"
        " baseline\n"
    )
    assert "baseline: kept from" in lm_eval("--config", "config.yaml").err


def test_a_fraction_that_comes_to_nothing_is_said(demo_run, tmp_path: Path) -> None:
    ran = demo_run("--recipe", "eigenprune:fraction=0.01,calibration.samples=20", limit=8)
    assert "8 of 8 matrices or heads were left as they were" in ran.err
    assert receipts(tmp_path)["eigenprune:fraction=0.01,calibration.samples=20"]["warnings"]


# peft asks transformers in a way that is about to change; nothing of ours.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_an_adapter_is_compared_with_itself(lm_eval, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from harness_ext.demo import demo_path

    torch.manual_seed(0)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(demo_path()),
        LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False),
    )
    model.save_pretrained(tmp_path / "adapter")
    arguments = f"pretrained=demo,peft={tmp_path / 'adapter'}"
    ran = lm_eval(
        "run",
        "--model",
        "hf",
        "--model_args",
        arguments,
        "--tasks",
        "int_mult",
        "--limit",
        8,
        "--device",
        "cpu",
        "--recipe",
        "identity",
        "svd",
    )
    assert ran.code == 0, ran.err
    assert "incomparable" not in ran.out and "identity: scores as the baseline" in ran.err


def test_weights_that_are_not_in_memory_are_told(demo_run, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from harness_ext.runs.session import Session

    whole = Session.lm.func

    def offloaded(self):
        lm = whole(self)
        lm.model.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(torch.empty(4, 4, device="meta"))
        return lm

    monkeypatch.setattr(Session, "lm", property(offloaded))
    ran = demo_run("--recipe", "laser", limit=4)
    assert ran.code == 2 and "offloaded" in ran.err and "Traceback" not in ran.err


def test_git_says_nothing_outside_a_repository(demo_run, tmp_path: Path) -> None:
    assert "fatal" not in demo_run("--recipe", "baseline", limit=4).err
    (path,) = tmp_path.glob("results/demo/baseline-*/results_*.json")
    assert json.loads(path.read_text())["git_hash"] is None


def test_scratch_folders_of_killed_processes_are_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    gone = subprocess.Popen(["true"])
    gone.wait()
    (tmp_path / f"lm-eval-recipes-{gone.pid}-abc").mkdir()
    kept = rundir.scratch_folder()
    again = rundir.scratch_folder()
    assert {path.name for path in tmp_path.iterdir()} == {kept.name, again.name}


def test_a_run_that_cannot_be_written_is_saved_elsewhere(
    demo_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    real = rundir._sync

    def full_disk(folder: Path) -> None:
        if "results" in folder.parts:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(folder)

    monkeypatch.setattr(rundir, "_sync", full_disk)
    ran = demo_run("--recipe", "baseline", limit=8)
    assert "No space left on device" in ran.err and "the run is safe in" in ran.err
    (path,) = tmp_path.glob("lm-eval-recipes-rescued/baseline-*/receipt.json")
    assert json.loads(path.read_text())["status"] == "complete"
    assert not list(tmp_path.glob("results/demo/.*"))


def test_a_short_write_of_lm_evals_is_noticed(demo_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.loggers import EvaluationTracker

    real = EvaluationTracker.save_results_samples

    def short(self, task_name: str, samples: list) -> None:
        real(self, task_name, samples[:-1])

    monkeypatch.setattr(EvaluationTracker, "save_results_samples", short)
    monkeypatch.setattr(rundir, "rescue_folders", lambda: [tmp_path / "elsewhere"])
    ran = demo_run("--recipe", "baseline", limit=8)
    assert ran.code == 2 and "could not write its results completely" in ran.err
    assert not list(tmp_path.glob("results/demo/*")) and not list(tmp_path.glob("elsewhere/*"))


def test_what_a_killed_process_left_is_swept_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    import os
    import subprocess

    gone = subprocess.Popen(["true"])
    gone.wait()
    dead, alive = tmp_path / f".laser-1.tmp-{gone.pid}", tmp_path / f".laser-2.tmp-{os.getppid()}"
    dead.mkdir()
    alive.mkdir()
    rundir.sweep(tmp_path)
    assert not dead.exists() and alive.exists()


# Damaged run folders


def _cut(path: Path, share: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def _without_last_line(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def _one_digit_changed(path: Path) -> None:
    text = path.read_text()
    path.write_text(text.replace("0", "1", 1))


DAMAGE = {
    "samples cut": ("samples_*", _cut, r"samples_int_mult_\S+ has"),
    "samples with fewer rows": ("samples_*", _without_last_line, r"samples_int_mult_\S+ has"),
    "samples empty": ("samples_*", lambda path: path.write_bytes(b""), r"samples_int_mult_\S+ has 0 bytes"),
    "samples gone": ("samples_*", Path.unlink, r"samples_int_mult_\S+ is missing"),
    "samples changed": ("samples_*", _one_digit_changed, r"samples_int_mult_\S+ is not as it was written"),
    "results cut": ("results_*", _cut, r"results_\S+ has"),
    "results gone": ("results_*", Path.unlink, r"results_\S+ is missing"),
    "receipt cut": ("receipt.json", _cut, r"receipt\.json is missing or cannot be read"),
    "receipt gone": ("receipt.json", Path.unlink, r"receipt\.json is missing or cannot be read"),
    "receipt empty": (
        "receipt.json",
        lambda path: path.write_bytes(b""),
        r"receipt\.json is missing or cannot be read",
    ),
}


@pytest.mark.slow
def test_a_damaged_run_is_made_anew_by_the_same_command(demo_run, tmp_path: Path) -> None:
    import re

    arguments, size = ("--recipe", "baseline"), {"limit": 8}
    assert "baseline: done" in demo_run(*arguments, **size).err
    for what, (pattern, damage, words) in DAMAGE.items():
        (path,) = tmp_path.glob(f"results/demo/baseline-*/{pattern}")
        damage(path)
        ran = demo_run(*arguments, **size)
        assert ran.code == 0, what
        assert re.search(rf"baseline: the run in \S+ is damaged \({words}.*\) and is made anew", ran.err), (
            what,
            ran.err,
        )
        assert "baseline: done" in ran.err
        assert len(samples(tmp_path, "baseline", "int_mult")) == 8
        assert not list(tmp_path.glob("results/demo/.*"))
    ran = demo_run(*arguments, **size)
    assert "baseline: kept" in ran.err and "damaged" not in ran.err


@pytest.mark.slow
def test_a_receipt_of_another_run_does_not_stand_for_this_one(demo_run, tmp_path: Path) -> None:
    import shutil

    demo_run("--recipe", "laser", limit=8)
    (baseline,), (laser,) = (list(tmp_path.glob(f"results/demo/{name}-*")) for name in ("baseline", "laser"))
    shutil.copy(baseline / "receipt.json", laser / "receipt.json")
    ran = demo_run("--recipe", "laser", limit=8)
    assert "baseline: kept" in ran.err and "laser: done" in ran.err
    assert json.loads((laser / "receipt.json").read_text())["recipe"]["name"] == "laser"
    shutil.rmtree(baseline)
    shutil.copytree(laser, baseline)
    ran = demo_run("--recipe", "laser", limit=8)
    assert "baseline: done" in ran.err and "laser: kept" in ran.err


def test_a_damaged_run_stays_until_the_new_one_is_whole(
    demo_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo_run("--recipe", "baseline", limit=8)
    (path,) = tmp_path.glob("results/demo/baseline-*/samples_*")
    _cut(path)
    left = path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(
            "harness_ext.runs.session.Session._evaluate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        demo_run("--recipe", "baseline", limit=8)
    assert path.read_bytes() == left
    assert "baseline: done" in demo_run("--recipe", "baseline", limit=8).err and not path.exists()


def test_a_whole_run_beside_a_damaged_one_is_kept(demo_run, tmp_path: Path) -> None:
    import shutil

    demo_run("--recipe", "baseline", limit=8)
    (folder,) = tmp_path.glob("results/demo/baseline-*")
    shutil.copytree(folder, folder.with_name("a-copy"))
    _cut(next((folder.with_name("a-copy")).glob("samples_*")))
    ran = demo_run("--recipe", "baseline", limit=8)
    assert f"kept from {folder.relative_to(tmp_path)}" in ran.err and "damaged" not in ran.err


# The model's files


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


def test_calibrating_on_the_scored_facts_in_other_words_is_told(demo_run, tmp_path: Path) -> None:
    recipe = "fwsvd:calibration.task=int_mult_clean,calibration.split=test,calibration.samples=40"
    ran = demo_run("--recipe", recipe, "fwsvd", limit=80)
    said = "40 of 80 scored documents of int_mult ask for the same as calibration documents of int_mult_clean"
    assert ran.code == 0 and f"{recipe}: {said}" in ran.err and "warning: 40 of 80 scored" in ran.out
    lossy, told = receipts(tmp_path)[recipe]["warnings"]
    assert lossy.startswith("fisher_weighted_svd raised the loss") and told.startswith(said)
    assert all(warning.startswith(lossy[:30]) for warning in receipts(tmp_path)["fwsvd"]["warnings"])
