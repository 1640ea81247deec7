"""The same command, given again in another process, finds what is done: nothing in a run's identity may depend on the
process.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_second_process_runs_nothing_again(tmp_path: Path) -> None:
    # The configuration of pronoun_bias holds a function, which lm-eval writes by its address.
    command = [
        sys.executable,
        "-m",
        "harness_ext",
        "run",
        "--model_args",
        "pretrained=demo",
        "--tasks",
        "pronoun_bias,int_mult",
        "--limit",
        "4",
        "--device",
        "cpu",
        "--recipe",
        "svd",
    ]
    listings = []
    for _ in range(2):
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
        listings.append(
            {
                path: path.stat().st_mtime_ns
                for path in (tmp_path / "results").rglob("*")
                if path.is_file() and "leaderboard" not in path.name
            }
        )
    assert listings[0] == listings[1]
    assert len([path for path in listings[0] if path.name == "receipt.json"]) == 2
