"""Experiment trackers: one run a variant, told once all is stored; stand-ins for the clients, and the real ones."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

WANDB = """
import json, os
def init(**given):
    return Run(given)
class Run:
    def __init__(self, given):
        self.told = {"init": given, "metrics": {}, "summary": {}}
        self.summary = self.told["summary"]
    def __enter__(self):
        return self
    def __exit__(self, *error):
        with open(os.environ["TOLD"], "a") as file:
            file.write(json.dumps(self.told) + chr(10))
    def log(self, metrics):
        self.told["metrics"].update(metrics)
"""
TRACKIO = """
import json, os
told = {}
class Run:
    def log(self, metrics):
        told["metrics"] = metrics
def init(**given):
    told.clear()
    told["init"] = given
    return Run()
def finish():
    with open(os.environ["TOLD"], "a") as file:
        file.write(json.dumps(told) + chr(10))
"""
BROKEN = "raise SystemExit('no login')"


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put a package of this name and source where it is found first; what it is told goes to the file `told`."""
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("TOLD", str(tmp_path / "told"))
    monkeypatch.delenv("LM_EVAL_SWEEP", raising=False)

    def place(name: str, source: str) -> Path:
        (folder / f"{name}.py").write_text(source)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return tmp_path / "told"

    yield place
    for name in ("wandb", "trackio", "mlflow"):
        if str(folder) in str(getattr(sys.modules.get(name), "__file__", "")):
            del sys.modules[name]


def _told(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_one_run_a_variant_with_its_verdict(stand_in, demo_run, monkeypatch: pytest.MonkeyPatch) -> None:
    told = stand_in("wandb", WANDB)
    ran = demo_run("--recipe", "svd", "--control", "noise", "--trackers", "wandb", "--json")
    assert ran.code == 0, ran.err
    baseline, svd, noise = _told(told)
    assert [run["init"]["name"] for run in (baseline, svd, noise)] == ["baseline", "svd", "svd+noise"]
    assert len({run["init"]["group"] for run in (baseline, svd, noise)}) == 1
    assert len({run["init"]["id"] for run in (baseline, svd, noise)}) == 3
    row = next(row for row in json.loads(ran.out) if (row["recipe"], row["metric"]) == ("svd", "acc"))
    key = "int_mult/acc"
    assert svd["metrics"][f"{key}/score"] == pytest.approx(row["score"])
    assert svd["metrics"][f"{key}/difference"] == pytest.approx(row["delta"])
    assert svd["metrics"][f"{key}/low"] == pytest.approx(row["low"])
    assert svd["metrics"][f"{key}/high"] == pytest.approx(row["high"])
    assert svd["summary"][f"{key}/verdict"] == row["verdict"]
    assert f"{key}/against noise/difference" in svd["metrics"]
    assert svd["init"]["config"]["recipe"]["steps"] and svd["init"]["config"]["model"]["name"] == "demo"
    assert noise["init"]["config"]["control"] == "noise"

    # The same command again keeps the runs, there as well; in a sweep, its name is the group.
    monkeypatch.setenv("LM_EVAL_SWEEP", "first-sweep")
    assert demo_run("--recipe", "svd", "--control", "noise", "--trackers", "wandb").code == 0
    again = _told(told)[3:]
    assert [run["init"]["id"] for run in again] == [run["init"]["id"] for run in (baseline, svd, noise)]
    assert {run["init"]["group"] for run in again} == {"first-sweep"}


@pytest.mark.slow
def test_a_tracker_that_fails_costs_a_warning_and_the_next_is_told(stand_in, demo_run, tmp_path: Path) -> None:
    stand_in("wandb", BROKEN)
    told = stand_in("trackio", TRACKIO)
    ran = demo_run("--recipe", "svd", "--trackers", "wandb,trackio")
    assert ran.code == 0, ran.err
    assert "warning: wandb could not be told of the runs (no login)" in ran.err and "trackio: 2 runs tracked" in ran.err
    assert len(list(tmp_path.glob("results/demo/*/receipt.json"))) == 2
    assert [run["init"]["name"].rsplit("-", 1)[0] for run in _told(told)] == ["baseline", "svd"]


@pytest.mark.slow
def test_a_secret_is_not_told(stand_in, lm_eval) -> None:
    token = "hf_inventedINVENTEDinventedINVENTED00"
    told = stand_in("wandb", WANDB)
    ran = lm_eval(
        *("run", "--model", "hf", "--model_args", f"pretrained=demo,token={token}", "--tasks", "int_mult"),
        *("--limit", 4, "--batch_size", 4, "--device", "cpu", "--recipe", "svd", "--trackers", "wandb"),
    )
    assert ran.code == 0, ran.err
    assert len(_told(told)) == 2 and token not in told.read_text()


def test_mistakes_are_told_at_once_before_anything_is_loaded(demo_run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness_ext.runs.trackers.find_spec", lambda name: None)
    ran = demo_run("--recipe", "svd", "--trackers", "wandb,weights,mlflow")
    assert ran.code == 2 and "loading" not in ran.err
    assert "no tracker is called 'weights'" in ran.err
    assert "--trackers wandb needs the package wandb, which is not installed: pip install wandb" in ran.err
    assert "--trackers mlflow needs the package mlflow" in ran.err
    assert "names none" in demo_run("--recipe", "svd", "--trackers", ",").err


@pytest.mark.slow
def test_python_and_a_file_name_them_by_the_same_word(stand_in, lm_eval, tmp_path: Path) -> None:
    import harness_ext

    told = stand_in("wandb", WANDB)
    settings = {"tasks": ["int_mult"], "limit": 4, "batch_size": 4, "device": "cpu", "trackers": ["wandb"]}
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps({"model_args": {"pretrained": "demo"}, "recipe": "svd", **settings}))
    ran = lm_eval("run", "--config", file)
    assert ran.code == 0 and "wandb: 2 runs tracked" in ran.err, ran.err
    harness_ext.run(model_args={"pretrained": "demo"}, recipes="svd", **settings)
    by_file, by_python = _told(told)[:2], _told(told)[2:]
    # The same runs, which are kept: there as well.
    assert by_file == by_python and [run["init"]["name"] for run in by_file] == ["baseline", "svd"]
    assert "int_mult/acc/difference" in by_file[1]["metrics"]


@pytest.mark.slow
def test_a_cell_of_a_sweep_tells_of_its_runs(stand_in, demo_run, monkeypatch: pytest.MonkeyPatch) -> None:
    told = stand_in("wandb", WANDB)
    monkeypatch.setenv("LM_EVAL_SWEEP", "first-sweep")
    ran = demo_run("--recipe", "svd", "--trackers", "wandb", "--manifest", "cell.json")
    assert ran.code == 0, ran.err
    baseline, svd = _told(told)
    assert {run["init"]["group"] for run in (baseline, svd)} == {"first-sweep"}
    assert "int_mult/acc/difference" in svd["metrics"] and svd["summary"]["int_mult/acc/verdict"]


def test_a_sweep_file_names_them_among_its_flags() -> None:
    from harness_ext.sweeps.run_flags import flag_mistakes, words

    assert words({"trackers": ["wandb", "mlflow"]}) == ["--trackers", "wandb", "mlflow"]
    assert not list(flag_mistakes({"trackers": "wandb,mlflow"}))
    assert list(flag_mistakes({"trackers": ["wandb", "weights"]})) == [
        "trackers: no tracker is called 'weights'; known: mlflow, trackio, wandb"
    ]


def test_mistakes_in_a_file_name_it(stand_in, lm_eval, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import harness_ext
    from harness_ext.errors import UserError

    file = tmp_path / "run.yaml"
    for trackers, message in (
        ("[wandb]", f"`trackers:` in {file}: wandb needs the package wandb, which is not installed"),
        ("5", f"`trackers:` in {file} must be a name or a list of names, not 5; write for example `trackers: [wandb"),
    ):
        file.write_text(f"model_args: {{pretrained: demo}}\ntasks: [int_mult]\nrecipe: svd\ntrackers: {trackers}\n")
        with monkeypatch.context() as patch:
            patch.setattr("harness_ext.runs.trackers.find_spec", lambda name: None)
            ran = lm_eval("run", "--config", file)
        assert ran.code == 2 and message in ran.err, ran.err
    file.write_text("model_args: {pretrained: demo}\ntasks: [int_mult]\ntrackers: wandb\n")
    stand_in("wandb", WANDB)
    assert "--trackers is for a run with --recipe" in lm_eval("run", "--config", file).err
    with pytest.raises(UserError, match="no tracker is called 'weights'"):
        harness_ext.run(model_args={"pretrained": "demo"}, tasks="int_mult", recipes="svd", trackers="weights")


def test_trackers_are_for_recipes(stand_in, lm_eval) -> None:
    stand_in("wandb", WANDB)
    ran = lm_eval("run", "--model", "hf", "--model_args", "pretrained=demo", "--trackers", "wandb")
    assert ran.code == 2 and "--trackers is for a run with --recipe" in ran.err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed")
def test_the_real_mlflow_keeps_one_run_a_variant(demo_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    for _ in range(2):
        ran = demo_run("--recipe", "svd", "--trackers", "mlflow")
        assert ran.code == 0 and "mlflow: 2 runs tracked" in ran.err, ran.err
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    runs = {
        run.info.run_name: run.data for run in mlflow.search_runs(search_all_experiments=True, output_format="list")
    }
    assert set(runs) == {"baseline", "svd"}
    (difference,) = [key for key in runs["svd"].metrics if key.endswith("/difference") and "acc" in key]
    assert runs["svd"].params["model.name"] == "demo"
    assert runs["svd"].tags[f"verdict.{difference.replace('/difference', '/verdict')}"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_the_real_wandb_writes_offline(demo_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    ran = demo_run("--recipe", "svd", "--trackers", "wandb")
    assert ran.code == 0 and "wandb: 2 runs tracked" in ran.err, ran.err
    assert len(list(tmp_path.glob("wandb/offline-run-*/*.wandb"))) == 2
