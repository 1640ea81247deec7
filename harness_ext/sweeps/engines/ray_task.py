"""What Ray runs for a cell, on whatever machine. One that does not see the cell's folder works in a folder of its own,
and its records come back as texts.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from harness_ext.sweeps.worker import call
from leaderboard.readers.sweep_state import ASKED, ENDED, JOB, MANIFEST, OUTPUT

RECORDS = (JOB, OUTPUT, MANIFEST, ENDED)
"""The last says that the others are whole."""


def work(folder: str, asked: str, environment: str) -> str:
    """Run a job where Ray put it. The records that its folder lacks, as JSON: none where this machine sees the folder.

    folder: the job's. asked: the text of its `asked.json`. environment: JSON of variables to add.
    """
    try:
        seen = (Path(folder) / ASKED).read_text(encoding="utf-8") == asked
    except OSError:
        seen = False
    if seen:
        call(folder, environment)
        return "{}"
    with tempfile.TemporaryDirectory(prefix="lm-eval-sweep-") as own:
        here = json.loads(asked)
        # What the command is to leave in the job's folder, such as its manifest, comes back with the records.
        here["command"] = [
            own + word.removeprefix(folder) if Path(folder) in Path(word).parents else word for word in here["command"]
        ]
        (Path(own) / ASKED).write_text(json.dumps(here), encoding="utf-8")
        call(own, environment)
        left = [Path(own) / name for name in RECORDS]
        return json.dumps({path.name: path.read_text(errors="replace") for path in left if path.exists()})
