"""Mistakes: a message that says what, where and what to do, exit code 2, no traceback, nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harness_ext.demo import demo_path


def assert_told(ran, *words: str) -> None:
    assert ran.code == 2, ran.err
    assert "Traceback" not in ran.err
    for word in words:
        assert word in ran.err, ran.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--recipe", "lazer"], ["unknown recipe 'lazer': did you mean 'laser'?"]),
        (["--recipe", "laser:keep.rank=1,keep.energy=0.5"], ["exactly one of", "found energy and rank"]),
        (["--recipe", "laser:matrices=[gate_prj],layers=[5]"], ["did you mean 'gate_proj'?", "5 is outside 0 to"]),
        (["--recipe", "laser:keep.rank=5000"], ["rank 5000 is beyond a", "its largest rank is"]),
        (["--recipe", "eigenprune:calibration.batch_size=1"], ["calibration.batch_size"]),
        (["--recipe", "svd:keep.param_fraction=0"], ["keep.param_fraction: input should be greater than 0"]),
        (
            ["--recipe", "svd:matrices=[up_proj expert 3]"],
            ["'up_proj expert 3' names experts, and this model has none; it has q_proj"],
        ),
        (["--recipe", "svd:matrices=[experts]"], ["'experts' names experts, and this model has none"]),
        (
            ["--recipe", "fwsvd:calibration.split=validation"],
            ["int_mult has no validation split", "calibration.split=test"],
        ),
        (
            ["--recipe", "fwsvd:calibration.task=int_mult,calibration.split=validation"],
            ["task 'int_mult' has no validation split", "name another: calibration.task=TASK"],
        ),
        (
            ["--recipe", "wanda:matrices=[model.embed_tokens.weight]"],
            ["model.embed_tokens.weight does not multiply an input", "leave it out of matrices"],
        ),
        (
            ["--recipe", "fwsvd:matrices=[model.embed_tokens.weight]"],
            ["model.embed_tokens.weight does not multiply an input"],
        ),
        (
            ["--recipe", "eigenprune:calibration.samples=100000"],
            ["100000 documents of 'int_mult' were asked for", "lower calibration.samples"],
        ),
        (["--recipe", "eigenprune:calibration.task=no_such"], ["there is no task 'no_such'", "--include_path DIR"]),
        (["--recipe", "laser", "--control", "eigenprune"], ["'eigenprune' cannot be a control", "random-subspace"]),
        (["--recipe", "laser", "--use_cache", "cache"], ["--use_cache cannot be combined with --recipe"]),
        (["--recipe", "laser", "--predict_only"], ["--predict_only computes no scores"]),
        (
            ["--recipe", "laser", "--cache_requests", "true"],
            ["--cache_requests cannot be combined with --recipe", "an earlier version of the task"],
        ),
        (["--recipe", "laser", "--model", "vllm"], ["vllm", "use --model hf"]),
        (["--recipe", "laser", "--tasks", "int_malt"], ["--tasks is given twice", "name all tasks in one"]),
    ],
)
def test_a_mistake_in_the_command(demo_run, tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    assert_told(demo_run(*arguments, limit=4), *words)
    assert not list(tmp_path.glob("results/demo/.*"))
    assert not [
        path
        for path in tmp_path.glob("results/demo/*/receipt.json")
        if json.loads(path.read_text())["recipe"]["name"] != "baseline"
    ]


def test_a_task_that_is_not_there(demo_run, tmp_path: Path) -> None:
    ran = demo_run("--recipe", "laser", tasks="int_malt", limit=4)
    assert_told(ran, "no task is called 'int_malt'", "int_mult")
    assert not list(tmp_path.glob("results/demo/*"))


@pytest.mark.slow
def test_one_recipe_that_does_not_fit_is_told_before_anything_is_loaded(demo_run, tmp_path: Path) -> None:
    ran = demo_run(
        "--recipe",
        "svd",
        "laser:matrices=[up_prj]",
        "laser:keep.rank=999",
        "eigenprune:calibration.samples=1",
        tasks="int_mult,int_sum",
        limit=4,
    )
    assert_told(ran, "did you mean 'up_proj'?", "rank 999 is beyond", "1 samples are too few for 2 tasks")
    assert "loading" not in ran.err and not list(tmp_path.glob("results/demo/*"))


@pytest.mark.slow
def test_a_mistake_that_shows_late_costs_nothing_that_was_finished(
    demo_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness_ext.runs.session.Session._check_fit", lambda self, recipes: None)
    ran = demo_run("--recipe", "svd", "laser:matrices=[up_prj]", limit=4)
    assert_told(ran, "did you mean 'up_proj'?")
    assert "svd" in ran.out and (tmp_path / "results" / "leaderboard.duckdb").is_file()


@pytest.mark.slow
def test_one_document_of_a_task_has_nothing_to_be_compared_with(demo_run) -> None:
    assert_told(
        demo_run("--recipe", "eigenprune:calibration.samples=3", tasks="int_mult,int_sum", limit=4),
        "int_sum would give only one",
        "raise calibration.samples",
    )


@pytest.mark.slow
def test_a_task_without_answers(lm_eval, tmp_path: Path) -> None:
    """One that scores whole texts, named or evaluated."""
    (tmp_path / "texts.jsonl").write_text('{"text": "one two"}\n{"text": "three"}\n')
    task = {
        "task": "whole_texts",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"train": str(tmp_path / "texts.jsonl")}},
        "training_split": "train",
        "test_split": "train",
    }
    (tmp_path / "texts.yaml").write_text(
        json.dumps({**task, "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}"})
    )
    arguments = (
        "run",
        "--model",
        "hf",
        "--model_args",
        "pretrained=demo",
        "--device",
        "cpu",
        "--include_path",
        tmp_path,
        "--tasks",
    )
    assert_told(
        lm_eval(*arguments, "int_mult", "--recipe", "fwsvd:calibration.task=whole_texts"),
        "task 'whole_texts' scores whole texts of any length, which recipes learn from as windows",
        "name another: calibration.task=TASK",
    )
    assert_told(
        lm_eval(*arguments, "whole_texts", "--recipe", "fwsvd"),
        "no evaluated task can give labelled documents (whole_texts scores whole texts of any length, which recipes",
    )


@pytest.mark.slow
def test_a_budget_that_cannot_be_met_is_said(demo_run, tmp_path: Path) -> None:
    ran = demo_run("--recipe", "svd:keep.param_fraction=0.0001", limit=4)
    assert (
        ran.code == 0
        and "the budget comes to less than one component, and one was kept: they hold more than was asked for"
        in ran.err
    )
    (path,) = tmp_path.glob("results/demo/svd*/receipt.json")
    receipt = json.loads(path.read_text())
    assert {row["rank_after"] for row in receipt["matrices"]} == {1} and "hold more than was asked for" in receipt[
        "warnings"
    ][0]


@pytest.mark.slow
def test_statistics_that_are_singular_are_recorded_with_what_was_done_instead(demo_run, tmp_path: Path) -> None:
    """Two documents move the outputs along fewer directions than are to be kept."""
    ran = demo_run("--recipe", "svd-llm:calibration.samples=2,calibration.batch_size=2,keep.rank_fraction=1.0", limit=4)
    assert ran.code == 0, ran.err
    (path,) = tmp_path.glob("results/demo/svd-llm*/receipt.json")
    assert {row["fallback"] for row in json.loads(path.read_text())["matrices"]} == {"weight_directions"}


@pytest.mark.slow
def test_statistics_that_are_not_finite_are_a_failed_row_with_its_place(
    demo_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness_ext.calibration.statistics import InputMagnitude

    monkeypatch.setattr(InputMagnitude, "result", lambda self: self._total * float("inf"))
    ran = demo_run("--recipe", "asvd:calibration.samples=4", limit=4)
    assert ran.code == 2 and "Traceback" not in ran.err
    (path,) = tmp_path.glob("results/demo/asvd*/receipt.json")
    failure = json.loads(path.read_text())["failure"]
    assert (failure["kind"], failure["where"]) == ("non_finite_statistic", "model.layers.0.self_attn.q_proj.weight")
    assert "load the model in float32 or bfloat16" in failure["reason"] and failure["reason"] in " ".join(
        ran.out.split()
    ) + " ".join(ran.err.split())


def test_all_documents_to_learn_from(demo_run) -> None:
    assert_told(
        demo_run("--recipe", "ablation-prune:calibration.split=test,calibration.samples=24", limit=24),
        "24 of the 24 scored documents of 'int_mult'",
        "lower calibration.samples",
    )


def test_no_document_to_score(demo_run) -> None:
    assert_told(demo_run("--recipe", "laser", limit=0), "--limit 0 leaves no document")


def test_a_control_of_the_baseline(demo_run) -> None:
    assert_told(demo_run("--recipe", "baseline", "--control", "random-subspace", limit=4), "the baseline has none")


def test_a_recipe_among_the_model_arguments(lm_eval) -> None:
    assert_told(
        lm_eval("run", "--model", "hf", "--model_args", "pretrained=demo,recipe=laser", "--tasks", "int_mult"),
        "--recipe laser",
    )


@pytest.mark.slow
def test_a_calibrated_recipe_without_a_task_that_has_answers(demo_run) -> None:
    assert_told(
        demo_run("--recipe", "eigenprune", tasks="pronoun_bias", limit=4),
        "pronoun_bias has no right answers",
        "name one that can: calibration.task=TASK",
    )
    assert demo_run("--recipe", "ablation-prune:calibration.task=pronoun_bias", tasks="pronoun_bias", limit=4).code == 0


@pytest.fixture
def broken_model(lm_eval, tmp_path: Path) -> Callable[[Callable[[Path], None]], object]:
    """Run a recipe on a copy of the embedded model after doing something to it."""

    def run(harm: Callable[[Path], None]):
        folder = tmp_path / "model"
        shutil.copytree(demo_path(), folder)
        harm(folder)
        return lm_eval(
            "run",
            "--model",
            "hf",
            "--model_args",
            f"pretrained={folder}",
            "--tasks",
            "int_mult",
            "--limit",
            4,
            "--device",
            "cpu",
            "--recipe",
            "laser",
        )

    return run


def test_a_missing_weights_file(broken_model) -> None:
    assert_told(
        broken_model(lambda folder: (folder / "model.safetensors").unlink()), "holds no weights", "model.safetensors"
    )


def test_a_truncated_weights_file(broken_model) -> None:
    def cut(folder: Path) -> None:
        with (folder / "model.safetensors").open("r+b") as file:
            file.truncate(100_000)

    assert_told(broken_model(cut), "model.safetensors is truncated", "fetch or copy it again")


def test_a_truncated_header(broken_model) -> None:
    def cut(folder: Path) -> None:
        with (folder / "model.safetensors").open("r+b") as file:
            file.truncate(7)

    assert_told(broken_model(cut), "model.safetensors is truncated or not a safetensors file")


def test_a_shard_that_the_index_names_and_the_folder_lacks(broken_model) -> None:
    def split(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}})
        )

    assert_told(broken_model(split), "model-00001-of-00002.safetensors is missing")


def test_a_folder_without_config(broken_model) -> None:
    assert_told(
        broken_model(lambda folder: (folder / "config.json").unlink()), "is no model folder: it has no config.json"
    )


def pickle_weights(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def test_pickled_weights_need_leave(broken_model) -> None:
    assert_told(broken_model(pickle_weights), "holds pickled weights", "use_safetensors=False")


@pytest.mark.slow
def test_pickled_weights_with_leave(lm_eval, tmp_path: Path) -> None:
    shutil.copytree(demo_path(), tmp_path / "model")
    pickle_weights(tmp_path / "model")
    ran = lm_eval(
        "run",
        "--model",
        "hf",
        "--model_args",
        f"pretrained={tmp_path / 'model'},use_safetensors=False",
        "--tasks",
        "int_mult",
        "--limit",
        4,
        "--device",
        "cpu",
        "--recipe",
        "laser",
    )
    assert ran.code == 0, ran.err


@pytest.mark.slow
def test_a_model_that_is_not_there(lm_eval) -> None:
    arguments = ("--tasks", "int_mult", "--device", "cpu", "--recipe", "laser")
    assert_told(
        lm_eval("run", "--model", "hf", "--model_args", "pretrained=./nowhere", *arguments),
        "there is no model folder ./nowhere",
    )
    assert_told(
        lm_eval("run", "--model", "hf", "--model_args", "pretrained=nobody/nothing", *arguments),
        "'nobody/nothing' is neither a local folder nor to be had from the hub",
    )


def test_a_quantised_model(broken_model) -> None:
    def quantise(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"] = {
            "quant_method": "gptq",
            "bits": 4,
            "group_size": 128,
            "sym": True,
            "desc_act": False,
        }
        (folder / "config.json").write_text(json.dumps(config))

    assert_told(broken_model(quantise), "is quantised (gptq)", "cannot be edited")


def test_a_results_folder_that_is_a_file(demo_run, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    assert_told(
        demo_run("--recipe", "laser", "--output_path", "taken", limit=4),
        "results cannot be written to taken",
        "--output_path",
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be kept from /proc in the same way everywhere")
def test_a_results_folder_that_cannot_be_written(demo_run) -> None:
    assert_told(
        demo_run("--recipe", "laser", "--output_path", "/proc/results", limit=4),
        "results cannot be written to /proc/results",
    )


@pytest.mark.slow
def test_a_newer_database_is_told_before_anything_is_computed(demo_run, tmp_path: Path) -> None:
    import duckdb

    assert demo_run("--recipe", "baseline", limit=4).code == 0
    with duckdb.connect(str(tmp_path / "results" / "leaderboard.duckdb")) as connection:
        connection.sql(
            "insert into schema_migrations (select number + 1000, name, * exclude (number, name) from"
            " schema_migrations)"
        )
    ran = demo_run("--recipe", "laser", limit=4)
    assert_told(ran, "this version knows", "upgrade lm-eval-recipes")
    assert "evaluating" not in ran.err


def test_a_file_that_is_no_database(demo_run, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "leaderboard.duckdb").write_text("hello")
    assert_told(demo_run("--recipe", "laser", limit=4), "leaderboard.duckdb")


@pytest.mark.slow
def test_a_busy_database_costs_only_its_own_update(demo_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert demo_run("--recipe", "baseline", limit=4).code == 0
    database = tmp_path / "results" / "leaderboard.duckdb"
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import duckdb, sys, time; c = duckdb.connect(sys.argv[1]); print('held', flush=True); time.sleep(60)",
            str(database),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        monkeypatch.setattr("harness_ext.runs.execution.PATIENCE_SECONDS", 0.2)
        ran = demo_run("--recipe", "laser", limit=4)
        holder.kill()
    assert_told(ran, "busy", "the runs are safe in", "lm_eval ingest")
    assert "laser" in ran.out
    assert demo_run("--recipe", "laser", limit=4).code == 0


def test_tasks_given_twice_would_be_the_last_alone(demo_run, tmp_path: Path) -> None:
    assert_told(
        demo_run("--tasks", "int_sum", "--recipe", "laser", limit=4),
        "--tasks is given twice, of which lm-eval takes only the last",
        "--tasks NAME,NAME",
    )
    assert not list(tmp_path.glob("results/*"))


@pytest.mark.slow
def test_a_recipe_given_twice_is_run_once_and_said(demo_run, tmp_path: Path) -> None:
    ran = demo_run("--recipe", "laser", "--recipe", "laser:keep.rank_fraction=0.01", "laser", limit=4)
    assert ran.code == 0, ran.err
    assert "laser:keep.rank_fraction=0.01: the same as laser, and run once" in ran.err
    assert "laser: given twice, and run once" in ran.err
    assert len(list(tmp_path.glob("results/demo/laser*"))) == 1
