"""Other Python processes, for tests that kill them or let several write at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[2]


def child(program: str, *arguments: object) -> subprocess.Popen[str]:
    """Another Python process that can import the checkout; what it says is kept."""
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(_CHECKOUT)},
    )
