"""The page "From one GPU to a cluster in five commands", command by command, and what its cells leave: the same to the
bit as one serial run.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.harness_ext.sweeps.slurm_of_scripts import slurm_of_scripts

RUN = ("--model", "hf", "--model_args", "pretrained=demo", "--tasks", "int_mult", "--batch_size", "16", "--limit", "16")


def blocks(repository: Path) -> tuple[str, list[list[str]]]:
    """The sweep file of the page, and the words of its commands."""
    text = (repository / "harness_ext" / "sweeps" / "README.md").read_text(encoding="utf-8")
    (file,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (commands,) = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return file, [shlex.split(line, comments=True)[1:] for line in commands.splitlines()]


def left_by(root: Path) -> dict[str, Any]:
    """By recipe: what was asked, the digest of the weights, all scores, and all that stands in the samples."""
    found = {}
    for path in root.glob("demo/*/receipt.json"):
        receipt = json.loads(path.read_text())
        (results,) = path.parent.glob("results_*.json")
        (samples,) = path.parent.glob("samples_*.jsonl")
        scores = json.loads(results.read_text())["results"]
        found[receipt["recipe"]["label"]] = (
            receipt["spec_id"],
            receipt["weights"]["digest_after"],
            scores,
            samples.read_text(),
        )
    return found


def test_the_page_has_a_sweep_file_that_can_be_used(repository: Path, tmp_path: Path) -> None:
    from harness_ext.sweeps.sweep_file import read_sweep

    file, commands = blocks(repository)
    (tmp_path / "sweep.yaml").write_text(file)
    assert read_sweep(tmp_path / "sweep.yaml").all_recipes == [
        "laser",
        "svd:keep.rank_fraction=0.9",
        "svd:keep.rank_fraction=0.5",
    ]
    assert [words[1] for words in commands] == ["plan", "run", "status", "retry", "run"]


def serial_run(lm_eval: Callable[..., Any], folder: Path) -> dict[str, Any]:
    """What one serial run leaves of all that the page's sweep runs."""
    recipes = ("--recipe", "laser", "svd:keep.rank_fraction=0.5", "--control", "random-subspace")
    ran = lm_eval("run", *RUN, *recipes, "--output_path", "serial")
    assert ran.code == 0, ran.err
    serial = left_by(folder / "serial")
    assert len(serial) == 5
    return serial


@pytest.mark.slow
def test_the_five_commands(lm_eval: Callable[..., Any], repository: Path, tmp_path: Path) -> None:
    """Where the fifth goes to this machine instead, it finds all done."""
    file, commands = blocks(repository)
    (tmp_path / "sweep.yaml").write_text(file)
    said = []
    for words in commands:
        ran = lm_eval(*["local" if word == "slurm" else word for word in words])
        assert ran.code == 0, ran.err
        said.append(ran)
    assert "2 of 2 cells to run" in said[0].out and "2 of 2 cells done" in said[1].out
    assert "2 of 2 cells done" in said[2].out and "no cell has failed" in said[3].err
    assert "2 settled before" in said[4].err
    assert left_by(tmp_path / "results") == serial_run(lm_eval, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("submitit") is None, reason="submitit is not installed")
def test_the_fifth_command_on_a_cluster(
    lm_eval: Callable[..., Any], repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Word for word, on a Slurm of scripts: each cell is a job there, and the second depends on the first."""
    state = slurm_of_scripts(tmp_path / "cluster", monkeypatch)
    file, commands = blocks(repository)
    (tmp_path / "sweep.yaml").write_text(file)
    first, again = lm_eval(*commands[4]), lm_eval(*commands[4])
    assert first.code == 0 and "2 of 2 cells done" in first.out, first.err
    assert again.code == 0 and "2 settled before" in again.err, again.err
    texts = {path.name: path.read_text() for path in (state / "scripts").iterdir()}
    assert texts.keys() == {"100", "101"}  # the second driver submits nothing
    assert all("#SBATCH --job-name=lm-eval-sweep-low-rank-" in text for text in texts.values())
    assert all("#SBATCH --partition=gpu\n" in text for text in texts.values())
    assert "#SBATCH --dependency=afterany:100\n" in texts["101"] and "--dependency" not in texts["100"]
    assert left_by(tmp_path / "results") == serial_run(lm_eval, tmp_path)


@pytest.mark.long
def test_damaged_runs_are_made_anew_and_cells_of_other_names_keep_theirs(
    lm_eval: Callable[..., Any], tmp_path: Path
) -> None:
    """Names change with versions of this package: what is there and fits costs a look."""
    text = "name: s\nmodels: [{pretrained: demo}]\ntasks: [int_mult]\nrecipes: [laser]\nrun: {limit: 8}\n"
    (tmp_path / "sweep.yaml").write_text(text)
    assert lm_eval("sweep", "run", "sweep.yaml").code == 0
    before = left_by(tmp_path / "results")
    (samples,) = tmp_path.glob("results/demo/laser-*/samples_*.jsonl")
    samples.write_bytes(samples.read_bytes()[:99])
    assert "1 of 2 cells to run" in lm_eval("sweep", "plan", "sweep.yaml").out
    ran = lm_eval("sweep", "run", "sweep.yaml")
    assert ran.code == 0 and "is damaged" in ran.err and "2 of 2 cells done" in ran.out, ran.err
    (samples,) = tmp_path.glob("results/demo/laser-*/samples_*.jsonl")
    samples.write_text(samples.read_text().replace("0", "1", 1))  # of the same size: the database refuses it
    (tmp_path / "results" / "leaderboard.duckdb").unlink()
    refused, again = (lm_eval("sweep", "run", "sweep.yaml") for _ in range(2))
    assert refused.code == 1 and "1 waiting" in refused.out and "not on the board" in refused.err, refused.err
    assert again.code == 0 and "1 settled before" in again.err, again.err
    assert left_by(tmp_path / "results") == before

    for place in tmp_path.glob("results/sweeps/s/cells/*"):
        place.rename(place.with_name(f"{place.name}-of-before"))
    runs = {path: path.stat().st_ino for path in tmp_path.glob("results/demo/*/receipt.json")}
    assert lm_eval("sweep", "run", "sweep.yaml").code == 0
    assert {path: path.stat().st_ino for path in tmp_path.glob("results/demo/*/receipt.json")} == runs
