"""What commands on the embedded model left on the disk."""

from __future__ import annotations

import json
from pathlib import Path

from harness_ext.storage import rundir


def receipts(folder: Path) -> dict[str, dict]:
    """Receipts by the recipe's label."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("results/demo/*/receipt.json"))]
    return {receipt["recipe"]["label"]: receipt for receipt in found}


def samples(folder: Path, label: str, task: str) -> list[dict]:
    """The logged samples of the one run of a recipe."""
    (path,) = folder.glob(f"results/demo/{rundir.safe_name(label)}-*/samples_{task}_*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]
