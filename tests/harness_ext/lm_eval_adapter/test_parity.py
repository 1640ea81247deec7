"""Without `--recipe`, the command writes what lm-eval's own command writes, run in the same environment.

Both commands run as processes of their own. Everything in the results file is compared except the fields named below:
dates, durations and what describes the machine at that moment. The samples files are compared byte for byte.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness_ext.demo import demo_path
from harness_ext.lm_eval_adapter.task_index import tasks_root

DIFFERS_BETWEEN_RUNS = {
    "date",
    "start_time",
    "end_time",
    "total_evaluation_time_seconds",
    "pretty_env_info",
    "git_hash",
    "upper_git_hash",
}


def evaluate(module: str, output: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `python -m MODULE run` with few documents, all samples logged below `output`."""
    fixed = [
        "--device",
        "cpu",
        "--batch_size",
        "16",
        "--limit",
        "12",
        "--log_samples",
        "--output_path",
        str(output),
        "--tasks",
        "int_mult,pronoun_bias",
    ]
    return subprocess.run(
        [sys.executable, "-m", module, "run", *fixed, *map(str, arguments)], capture_output=True, text=True, check=True
    )


def results(output: Path) -> dict[str, Any]:
    (path,) = output.rglob("results_*.json")
    # lm-eval writes some functions by their address in memory.
    text = re.sub(r" at 0x[0-9a-f]+>", ">", path.read_text())
    return {key: value for key, value in json.loads(text).items() if key not in DIFFERS_BETWEEN_RUNS}


def samples(output: Path) -> dict[str, bytes]:
    return {path.name.rsplit("_", 1)[0]: path.read_bytes() for path in output.rglob("samples_*.jsonl")}


def folders(output: Path) -> set[Path]:
    return {path.relative_to(output).parent for path in output.rglob("*") if path.is_file()}


def assert_equal(theirs: Path, ours: Path) -> None:
    assert results(ours) == results(theirs)
    assert samples(ours) == samples(theirs)
    assert len(samples(ours)) == 2
    assert folders(ours) == folders(theirs)


def printed_table(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stdout.splitlines() if line.startswith(("|", "hf"))]


@pytest.mark.slow
def test_embedded_model(tmp_path: Path) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    done_by_theirs = evaluate(
        "lm_eval", theirs, "--model", "hf", "--model_args", f"pretrained={demo_path()}", "--include_path", tasks_root()
    )
    done_by_ours = evaluate("harness_ext", ours, "--model", "hf", "--model_args", "pretrained=demo")
    assert_equal(theirs, ours)
    assert printed_table(done_by_ours) == printed_table(done_by_theirs)


@pytest.mark.slow
def test_real_models(real_model: Path, tmp_path: Path) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    arguments = (
        "--model",
        "hf",
        "--model_args",
        f"pretrained={real_model},dtype=float32",
        "--seed",
        "5",
        "--num_fewshot",
        "2",
        "--include_path",
        tasks_root(),
    )
    evaluate("lm_eval", theirs, *arguments)
    evaluate("harness_ext", ours, *arguments)
    assert_equal(theirs, ours)


@pytest.mark.slow
def test_a_config_file(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        f"model: hf\nmodel_args: {{pretrained: {demo_path()}}}\nnum_fewshot: 1\ninclude_path: {tasks_root()}\n"
    )
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    evaluate("lm_eval", theirs, "--config", config)
    evaluate("harness_ext", ours, "--config", config)
    assert_equal(theirs, ours)


def scores_and_samples(output: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    found = results(output)
    return {
        key: found[key] for key in ("results", "versions", "n-shot", "higher_is_better", "n-samples", "task_hashes")
    }, samples(output)


def assert_baseline_equals_plain(pretrained: str, plain_arguments: list[object], tmp_path: Path) -> None:
    plain, ours = tmp_path / "plain", tmp_path / "ours"
    evaluate("lm_eval", plain, "--model", "hf", "--include_path", tasks_root(), *plain_arguments)
    evaluate("harness_ext", ours, "--model", "hf", "--model_args", f"pretrained={pretrained}", "--recipe", "baseline")
    assert scores_and_samples(ours) == scores_and_samples(plain)


def test_the_baseline_recipe_scores_as_plain_lm_eval(tmp_path: Path) -> None:
    assert_baseline_equals_plain("demo", ["--model_args", f"pretrained={demo_path()}"], tmp_path)


@pytest.mark.slow
def test_the_baseline_recipe_scores_as_plain_lm_eval_on_real_models(real_model: Path, tmp_path: Path) -> None:
    assert_baseline_equals_plain(str(real_model), ["--model_args", f"pretrained={real_model}"], tmp_path)
