"""A training that was stopped anywhere goes on to the very factors of one that was not; and basis selection as a
command, with its receipt and its controls.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from harness_ext.calibration.batches import summed_loss
from harness_ext.calibration.documents import CalibrationSet, LabelledDocument
from harness_ext.errors import VariantFailed
from harness_ext.progress import Progress
from harness_ext.recipe.recipe import parse_recipe
from harness_ext.storage.resume import ResumeState
from harness_ext.training import trainer

DOCUMENTS = tuple(
    LabelledDocument("t", f"w{number} w{number + 1}", f" w{number + 2}", str(number)) for number in range(5)
)
# Batches of 2, 2 and 1; epochs 0 and 1 keep, 2 to 5 prune, 6 and 7 train the factors.
SHORT = (
    "training.keeping_epochs=2,training.pruning_times=2,training.pruning_epochs=2,training.post_epochs=2,"
    "training.keep_ratio=0.6,training.learning_rate=0.003"
)
RECIPE = f"basis-selection:matrices=[mlp],calibration.batch_size=2,{SHORT}"
DEMO = f"basis-selection:matrices=[down_proj],calibration.samples=32,{SHORT}"


class Stopped(Exception):
    """The end of a process, in miniature."""


class Telling(Progress):
    """What the progress of training was told, as often as that had news."""

    told = total = 0

    def changed(self) -> None:
        training = [stage for stage in self.stages if stage.what == "training"]
        if training:
            self.told, self.total = training[0].done, training[0].total


class Batches:
    """Counts the batches trained on, and stops before the one after so many."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.last = 0, None
        monkeypatch.setattr(trainer, "summed_loss", self)

    def __call__(self, lm, batch) -> torch.Tensor:
        if self.count == self.last:
            raise Stopped
        self.count += 1
        return summed_loss(lm, batch)

    def stop_after(self, more: int | None) -> None:
        self.last = None if more is None else self.count + more


def documents(calibration) -> list[CalibrationSet]:
    return [CalibrationSet("t", "train", 0, DOCUMENTS)]


@pytest.mark.slow
@pytest.mark.parametrize("stops", [[1], [3], [7, 2], [13, 1, 4], [18], [21, 2]])
@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_a_stopped_training_goes_on_to_the_very_same_factors(
    make_lm, plain_family: str, tmp_path: Path, monkeypatch, stops: list[int], seconds: float
) -> None:
    """Stopped inside epochs and at their ends, in each stage, once and again; kept after every batch, and after epochs
    only.
    """
    monkeypatch.setattr(trainer, "KEEP_SECONDS", seconds)
    monkeypatch.setattr(trainer, "KEEP_SHARE", float("inf"))
    batches = Batches(monkeypatch)
    lm = make_lm(plain_family)
    before = lm.weights.digest()
    uninterrupted = lm.apply(parse_recipe(RECIPE), documents)
    digest = lm.weights.digest()
    lm.undo()
    assert batches.count == 24 and digest != before
    for stop in stops:
        batches.stop_after(stop)
        with pytest.raises(Stopped):
            lm.apply(parse_recipe(RECIPE), documents, None, ResumeState(tmp_path))
        assert lm.weights.digest() == before
    batches.stop_after(None)
    progress = Telling()
    resumed = lm.apply(parse_recipe(RECIPE), documents, progress, ResumeState(tmp_path))
    assert lm.weights.digest() == digest and resumed.log == uninterrupted.log
    assert progress.told == progress.total == 40
    trained_twice = batches.count - 2 * 24
    assert 0 <= trained_twice <= (0 if seconds == 0 else 2 * len(stops))


def test_a_finished_training_is_not_done_again(make_lm, tmp_path: Path, monkeypatch) -> None:
    lm = make_lm("llama")
    lm.apply(parse_recipe(RECIPE), documents, None, ResumeState(tmp_path))
    digest = lm.weights.digest()
    lm.undo()
    monkeypatch.setattr(trainer, "summed_loss", lambda lm, batch: pytest.fail("nothing was to be trained"))
    lm.apply(parse_recipe(RECIPE), documents, None, ResumeState(tmp_path))
    assert lm.weights.digest() == digest


@pytest.mark.slow
def test_each_step_keeps_its_own(make_lm, tmp_path: Path) -> None:
    one = parse_recipe(RECIPE)
    two = one.model_copy(update={"steps": (*one.steps, one.steps[0].model_copy(update={"seed": 1}))})
    lm = make_lm("llama")
    applied = lm.apply(two, documents, None, ResumeState(tmp_path))
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")) == [
        "step-0/training.safetensors",
        "step-1/training.safetensors",
    ]
    assert [row["step"] for row in applied.log] == [0] * 8 + [1] * 8


def test_what_was_kept_before_a_divergence_stays(make_lm, tmp_path: Path, monkeypatch) -> None:
    lm = make_lm("llama")
    Batches(monkeypatch).stop_after(7)
    with pytest.raises(Stopped):
        lm.apply(parse_recipe(RECIPE), documents, None, ResumeState(tmp_path))
    kept = (tmp_path / "step-0" / "training.safetensors").read_bytes()
    monkeypatch.setattr(trainer, "summed_loss", lambda lm, batch: torch.tensor(float("nan")))
    with pytest.raises(VariantFailed, match="the training loss is not finite in epoch 3 of 8"):
        lm.apply(parse_recipe(RECIPE), documents, None, ResumeState(tmp_path))
    assert (tmp_path / "step-0" / "training.safetensors").read_bytes() == kept


# As a command.


def receipts(folder: Path) -> dict[str, dict]:
    return {
        receipt["recipe"]["label"]: receipt
        for receipt in (json.loads(path.read_text()) for path in folder.glob("demo/*/receipt.json"))
    }


@pytest.mark.slow
def test_a_run_its_receipt_and_its_controls(demo_run, tmp_path: Path) -> None:
    ran = demo_run("--recipe", DEMO, "--control", "random-subspace", "shuffled-labels", limit=8)
    assert ran.code == 0, ran.err
    found = receipts(tmp_path / "results")
    assert set(found) == {"baseline", DEMO, f"{DEMO}+random-subspace", f"{DEMO}+shuffled-labels"} and {
        receipt["status"] for receipt in found.values()
    } == {"complete"}
    ours, shuffled = found[DEMO], found[f"{DEMO}+shuffled-labels"]
    assert [row["stage"] for row in ours["log"]] == ["keeping"] * 2 + ["pruning"] * 4 + ["post"] * 2 and found[
        "baseline"
    ]["log"] == []
    kept = [row["bases"] for row in ours["log"] if "bases" in row][-1]
    assert {matrix["name"]: matrix["rank_after"] for matrix in ours["matrices"]} == {
        name: min(count + 4, 128) for name, count in kept.items()
    }
    assert [drawn["documents"] for drawn in shuffled["calibration"]] == [
        drawn["documents"] for drawn in ours["calibration"]
    ]
    assert (
        len(ours["calibration"][0]["documents"]) == 32
        and ours["weights"]["digest_after"] != shuffled["weights"]["digest_after"]
    )
    by_rank = {matrix["name"]: matrix["rank_after"] for matrix in found[f"{DEMO}+random-subspace"]["matrices"]}
    assert by_rank == {matrix["name"]: matrix["rank_after"] for matrix in ours["matrices"]}
    assert not list(tmp_path.glob("results/demo/.*"))


@pytest.mark.slow
def test_a_divergence_is_a_row_with_its_reason(demo_run, tmp_path: Path) -> None:
    ran = demo_run("--recipe", DEMO.replace("0.003", "1.0e30").replace("[down_proj]", "[all]"), limit=4)
    assert ran.code == 2 and "Traceback" not in ran.err
    (failed,) = [receipt for receipt in receipts(tmp_path / "results").values() if receipt["status"] == "failed"]
    assert (
        failed["failure"]["kind"] == "non_finite_loss" and "lower training.learning_rate" in failed["failure"]["reason"]
    )


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "harness_ext",
        "run",
        "--model",
        "hf",
        "--model_args",
        "pretrained=demo",
        "--tasks",
        "int_mult",
        "--limit",
        "8",
        "--batch_size",
        "8",
        "--device",
        "cpu",
        "--recipe",
        "basis-selection:training.post_epochs=40",
        "--output_path",
    ]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    folder = tmp_path / "killed"
    sizes = []
    for _ in range(3):
        process = subprocess.Popen([*command, str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = stamps(folder)
        while len(stamps(folder) - before) < 1 and process.poll() is None:
            time.sleep(0.02)
        time.sleep(0.7)
        assert process.poll() is None, "it ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        sizes.append(epochs_kept(folder))
    assert sizes == sorted(set(sizes)) and sizes[0] > 0 and sizes[-1] < 60
    subprocess.run([*command, str(folder)], check=True, capture_output=True)
    ours, whole = (
        {label: (receipt["weights"], receipt["log"]) for label, receipt in receipts(root).items()}
        for root in (folder, tmp_path / "whole")
    )
    assert ours == whole and len(ours) == 2
    assert not list(folder.glob("demo/.*"))


def stamps(folder: Path) -> set[int]:
    """When each state of the training was written."""
    return {path.stat().st_mtime_ns for path in folder.glob("demo/.*.work/step-0/training.safetensors")}


def epochs_kept(folder: Path) -> int:
    from safetensors.torch import load_file

    (path,) = folder.glob("demo/.*.work/step-0/training.safetensors")
    return int(load_file(path)["place"][0])
