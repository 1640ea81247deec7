"""Whole commands on the embedded model: what is run, what is reused, what is left on the disk."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from harness_ext.methods import registered_methods, registry
from tests.harness_ext.runs.outputs import receipts, samples


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_recipes_that_have_the_same_control_have_it_each_and_it_is_scored_once(demo_run, tmp_path: Path) -> None:
    cut = "keep.param_fraction=0.6"
    recipes = (f"svd:{cut}", f"svd-llm:{cut},calibration.samples=20")
    words = (*(word for recipe in recipes for word in ("--recipe", recipe)), "--control", "random-subspace")
    ran = demo_run(*words, limit=40)
    assert ran.code == 0, ran.err
    own, other = (f"{recipe}+random-subspace" for recipe in recipes)
    assert f"{other}: the edit is that of " in ran.err
    found = receipts(tmp_path)
    assert [found[label]["recipe"]["control_of"] for label in (own, other)] == [
        found[recipe]["recipe_id"] for recipe in recipes
    ]
    taken = found[other]
    assert taken["scored_as"]["label"] == own and "scored_as" not in found[own]
    assert taken["weights"] == found[own]["weights"] and taken["variant_id"] != found[own]["variant_id"]
    assert samples(tmp_path, other, "int_mult") == samples(tmp_path, own, "int_mult")

    import duckdb

    with duckdb.connect(tmp_path / "results" / "leaderboard.duckdb", read_only=True) as store:
        pairs = store.sql(
            "select v.recipe_label, c.control from control_verdicts c join runs r using (run_id) join variants v using"
            " (variant_id)"
        ).fetchall()
    assert sorted(pairs) == [(recipe, "random-subspace") for recipe in sorted(recipes)]

    again = demo_run(*words, limit=40)
    assert again.code == 0 and again.err.count("kept from") == 5, again.err


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


def test_identity_scores_as_the_baseline_and_says_so(demo_run, tmp_path: Path) -> None:
    ran = demo_run("--recipe", "identity", tasks="int_mult,pronoun_bias", limit=60)
    assert "identity: scores as the baseline, log-likelihoods within" in ran.err
    for task in ("int_mult", "pronoun_bias"):
        ours, theirs = samples(tmp_path, "identity", task), samples(tmp_path, "baseline", task)
        assert [sample["filtered_resps"][0][1] for sample in ours] == [
            sample["filtered_resps"][0][1] for sample in theirs
        ]


@pytest.mark.slow
def test_what_is_worked_out_once_changes_no_file(demo_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import nullcontext

    from harness_ext.lm_eval_adapter.unchanged import EncodedPairs, Unchanged

    arguments = ("--recipe", "noise", "laser", "--num_fewshot", "2", "--output_path")
    demo_run(*arguments, "once", tasks="int_mult,pronoun_bias")
    monkeypatch.setattr(Unchanged, "reused", lambda self: nullcontext())
    monkeypatch.setattr(EncodedPairs, "get", lambda self, pair, encoder, encode: encode(*pair))
    demo_run(*arguments, "anew", tasks="int_mult,pronoun_bias")

    def written(root: Path) -> dict[tuple[str, str], bytes | dict[str, object]]:
        found: dict[tuple[str, str], bytes | dict[str, object]] = {}
        for path in root.rglob("*_*.json*"):
            name = (path.parent.name, path.name.rpartition("_")[0])
            if path.suffix == ".jsonl":
                found[name] = path.read_bytes()
            else:
                passing = ("date", "start_time", "end_time", "total_evaluation_time_seconds", "pretty_env_info")
                # lm-eval writes some functions by their address in memory.
                results = json.loads(re.sub(r" at 0x[0-9a-f]+>", ">", path.read_text()))
                found[name] = {key: value for key, value in results.items() if key not in passing}
        return found

    once = written(tmp_path / "once")
    assert len(once) == 9 and once == written(tmp_path / "anew")


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_json_output_path_keeps_its_meaning(demo_run, tmp_path: Path) -> None:
    assert demo_run("--recipe", "laser", "--output_path", "out/mine.json", limit=8).code == 0
    assert len(list(tmp_path.glob("out/demo/*/receipt.json"))) == 2


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_budget_that_the_model_cannot_meet_fails_one_variant_and_the_others_go_on(demo_run, tmp_path: Path) -> None:
    searched = "zero-sum:param_fraction=0.000001,calibration.samples=8"
    ran = demo_run("--recipe", searched, "svd:keep.param_fraction=0.8", limit=4)
    assert ran.code == 2 and "error:" not in ran.err
    paths = tmp_path.glob("results/demo/*/receipt.json")
    found = {receipt["recipe"]["label"]: receipt for receipt in (json.loads(path.read_text()) for path in paths)}
    failure = found[searched]["failure"]
    assert failure["kind"] == "budget_too_small" and "is too small for a rank of 1 in every matrix" in failure["reason"]
    assert found["svd:keep.param_fraction=0.8"]["status"] == "complete"
    assert failure["reason"] in " ".join(ran.out.split())  # the table wraps what it tells


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_settings_from_a_file_and_from_flags_are_the_same_settings(demo_run, lm_eval, tmp_path: Path) -> None:
    demo_run("--recipe", "baseline", limit=8)
    (tmp_path / "config.yaml").write_text(
        "model: hf\nmodel_args: {pretrained: demo}\ntasks: [int_mult]\nlimit: 8\nbatch_size: 16\ndevice: cpu\nrecipe:"
        " baseline\n"
    )
    assert "baseline: kept from" in lm_eval("--config", "config.yaml").err


@pytest.mark.slow
def test_a_fraction_that_comes_to_nothing_is_said(demo_run, tmp_path: Path) -> None:
    ran = demo_run("--recipe", "eigenprune:fraction=0.01,calibration.samples=20", limit=8)
    assert "8 of 8 matrices or heads were left as they were" in ran.err
    assert receipts(tmp_path)["eigenprune:fraction=0.01,calibration.samples=20"]["warnings"]


# peft asks transformers in a way that is about to change; nothing of ours.
@pytest.mark.slow
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


@pytest.mark.slow
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


def test_a_processor_that_is_slow_in_the_models_dtype_is_told_once(
    demo_run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said = "takes 3.0 times as long in float32"
    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(
        "harness_ext.runs.session.advice",
        lambda *given: asked.append(tuple(map(str, given))) or f"this processor {said}",
    )
    ran = demo_run("--recipe", "laser", limit=4)
    assert ran.code == 0 and ran.err.count(said) == 1
    assert asked == [("torch.float32", "cpu")]
    # Nothing is loaded, and nothing said, where all is there.
    assert said not in demo_run("--recipe", "laser", limit=4).err


@pytest.mark.slow
def test_git_says_nothing_outside_a_repository(demo_run, tmp_path: Path) -> None:
    assert "fatal" not in demo_run("--recipe", "baseline", limit=4).err
    (path,) = tmp_path.glob("results/demo/baseline-*/results_*.json")
    assert json.loads(path.read_text())["git_hash"] is None


@pytest.mark.slow
def test_calibrating_on_the_scored_facts_in_other_words_is_told(demo_run, tmp_path: Path) -> None:
    recipe = "fwsvd:calibration.task=int_mult_clean,calibration.split=test,calibration.samples=40"
    ran = demo_run("--recipe", recipe, "fwsvd", "--details", limit=80)
    said = "40 of 80 scored documents of int_mult ask for the same as calibration documents of int_mult_clean"
    assert ran.code == 0 and f"{recipe}: {said}" in ran.err and "warning: 40 of 80 scored" in ran.out
    lossy, told = receipts(tmp_path)[recipe]["warnings"]
    assert lossy.startswith("fisher_weighted_svd raised the loss") and told.startswith(said)
    assert all(warning.startswith(lossy[:30]) for warning in receipts(tmp_path)["fwsvd"]["warnings"])


@pytest.mark.slow
def test_a_run_by_an_earlier_revision_of_a_method_is_made_anew(
    demo_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruned = "ablation-prune:calibration.samples=8"
    arguments = ("--recipe", "laser", pruned, "--control", "noise")
    known = registered_methods()["ablation_prune"]
    with monkeypatch.context() as patched:
        patched.setitem(registry._registry, "ablation_prune", replace(known, revision=1))
        assert demo_run(*arguments, limit=8).code == 0
    before = receipts(tmp_path)
    assert "revisions" not in before[pruned]["recipe"]
    assert "control_of_revisions" not in before[f"{pruned}+noise"]["recipe"]

    ran = demo_run(*arguments, "--details", limit=8)
    assert ran.code == 0, ran.err
    anew = {line.split(": done")[0] for line in ran.err.splitlines() if ": done" in line}
    assert anew == {pruned, f"{pruned}+noise"} and ran.err.count("kept from") == 3
    paths = list(tmp_path.glob("results/demo/*/receipt.json"))
    assert len(paths) == 7
    after = {receipt["spec_id"]: receipt["recipe"] for path in paths if (receipt := json.loads(path.read_text()))}
    revised = {recipe["label"]: recipe for recipe in after.values() if recipe["resolved"] and len(recipe) > 7}
    assert revised[pruned]["revisions"] == {"ablation_prune": 2}
    assert revised[f"{pruned}+noise"]["control_of_revisions"] == {"ablation_prune": 2} and len(revised) == 2
    assert f"{pruned} [revision 2]" in ran.out and "against its control noise" in ran.out
    assert demo_run(*arguments, limit=8).err.count("kept from") == 5
