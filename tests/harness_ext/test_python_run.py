"""`harness_ext.run`: runs from Python, and their tables."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import harness_ext as recipes
import leaderboard
from harness_ext.errors import UserError


def frame_of(result, control: str | None = None):
    """The rows of primary metrics, by recipe."""
    frame = result.to_frame(control)
    return frame[frame.primary].set_index("recipe")


def test_a_run_is_the_commands(demo_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    assert demo_run("--recipe", "laser", "--control", "random-subspace", "noise").code == 0
    monkeypatch.chdir(tmp_path)
    folders = {path: path.stat().st_mtime_ns for path in Path("results/demo").iterdir()}
    capfd.readouterr()
    result = recipes.run(
        model="hf",
        model_args={"pretrained": "demo"},
        tasks=["int_mult"],
        recipes=["laser"],
        controls=["random-subspace", "noise"],
        limit=24,
        batch_size=16,
        device="cpu",
    )
    assert capfd.readouterr() == ("", "")
    # Nothing was made again: the settings are those of the command.
    assert {run.path: run.path.stat().st_mtime_ns for run in result.runs} == folders
    assert result.failed == {} and result.database == Path("results/leaderboard.duckdb")
    frame = result.to_frame()
    assert list(frame.columns) == [
        *("model", "task", "recipe", "control", "metric", "n", "baseline_score", "score", "delta", "low", "high"),
        *("verdict", "p", "q", "lost", "gained", "run_id", "unpaired", "label", "scored"),
        *("documents_needed", "needed_for", "clipped_at", "primary", "chance"),
        *("control_run", "control_delta", "control_low", "control_high", "control_verdict"),
        *("control_p", "control_q", "control_unpaired", "control_clipped_at"),
    ]
    board = leaderboard.board("results").to_frame()
    assert frame.dtypes.equals(board.dtypes) and frame.iloc[:, :17].equals(board.iloc[:, :17])
    recipes_run = ["baseline", "laser", "laser+noise", "laser+random-subspace"]
    assert list(frame[frame.primary].recipe) == list(frame[~frame.primary].recipe) == recipes_run
    assert list(frame.metric) == ["acc", "gold_logprob"] * 4
    laser = frame_of(result).loc["laser"]
    assert laser.delta == pytest.approx(laser.score - laser.baseline_score) and laser.low < laser.delta < laser.high
    for control in ("random-subspace", "noise"):
        framed = frame_of(result, control)
        assert framed.loc["laser"].control_delta == pytest.approx(laser.score - framed.loc[f"laser+{control}"].score)
        assert framed.loc["laser"].control_verdict in ("better", "worse", "collapsed", "same", "undecided")
        assert framed.drop(index="laser").control_verdict.isna().all()
    assert frame_of(result).equals(frame_of(result, "random-subspace"))
    with pytest.raises(UserError, match="no control 'nois' was run: did you mean 'noise'"):
        result.to_frame("nois")


@pytest.mark.slow
def test_what_a_run_takes_and_where_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    mine = recipes.load_recipe("svd:keep.rank=2")
    result = recipes.run(
        model_args="pretrained=demo",
        tasks="int_mult",
        recipes=[mine, {"name": "mine", "steps": mine.resolved()["steps"]}, "identity"],
        limit=4,
        device="cpu",
        output_path=tmp_path / "elsewhere",
        verbose=True,
    )
    assert "identity: scores as the baseline" in capfd.readouterr().err
    assert [run.path.parent for run in result.runs] == [tmp_path / "elsewhere" / "demo"] * 3
    assert list(frame_of(result).index) == ["baseline", "identity", "svd:keep.rank=2"]
    assert result.to_frame().control_delta.isna().all()
    assert result.runs[1].receipt["command"][0].startswith("harness_ext.run(model='hf', model_args='pretrained=demo'")


@pytest.mark.slow
def test_runs_that_were_copied_are_judged_all_the_same(demo_run, tmp_path: Path, monkeypatch) -> None:
    import shutil

    assert demo_run("--recipe", "laser").code == 0
    (tmp_path / "copy").mkdir()
    shutil.move(tmp_path / "results", tmp_path / "copy" / "results")
    monkeypatch.chdir(tmp_path / "copy")
    result = recipes.run(
        model_args={"pretrained": "demo"}, tasks=["int_mult"], recipes="laser", limit=24, batch_size=16, device="cpu"
    )
    assert list(frame_of(result).index) == ["baseline", "laser"]


@pytest.mark.slow
def test_a_control_that_cannot_be_run_is_told(tmp_path: Path) -> None:
    asked = {"model_args": {"pretrained": "demo"}, "tasks": ["int_mult"], "limit": 4, "device": "cpu"}
    with pytest.warns(UserWarning, match=r"laser\+shuffled-labels: not run, since "):
        result = recipes.run(**asked, recipes=["laser"], controls=["shuffled-labels"], output_path=tmp_path)
    assert list(frame_of(result).index) == ["baseline", "laser"]


@pytest.mark.slow
def test_a_variant_that_fails_is_told(make_model, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = make_model("llama")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.2.mlp.up_proj.weight"][0, 0] = torch.inf
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    result = recipes.run(
        model_args={"pretrained": str(folder)},
        tasks=["int_mult"],
        recipes=["svd:keep.rank=2,matrices=[up_proj]"],
        limit=2,
        device="cpu",
        output_path=tmp_path,
    )
    assert "svd:keep.rank=2,matrices=[up_proj]" in result.failed
    assert "failed" in set(result.to_frame().verdict)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "trtllm"}, "the backend 'trtllm' does not allow"),
        ({"model_args": {}}, "no model given"),
        ({"tasks": []}, "no task given"),
        ({"tasks": ["int_mul"]}, "did you mean int_mult"),
        ({"recipes": []}, "recipes is empty: name at least one"),
        ({"recipes": ["lasr"]}, "unknown recipe 'lasr'"),
        ({"controls": ["laser-search"]}, "cannot be a control"),
        ({"limit": -1}, "leaves no document to score"),
        ({"limit": "20"}, "'20' is no number: give a number of documents"),
    ],
)
def test_mistakes_of_a_run(tmp_path: Path, changes: dict, words: str) -> None:
    asked = {"model_args": {"pretrained": "demo"}, "tasks": ["int_mult"], "recipes": ["laser"], "device": "cpu"}
    with pytest.raises(UserError, match=words):
        recipes.run(**{**asked, "output_path": tmp_path, **changes})
