"""Facts about this installation: whose `lm_eval` script it has, and how to mend it.

Two packages own the script names `lm_eval` and `lm-eval`: lm-eval and this one. pip installs ours last, as the
dependent; an upgrade of lm-eval, or another installer's order, can take the names back. `lm-eval-recipes` and
`python -m harness_ext` are never contested.
"""

from __future__ import annotations

import json
import shutil
import sysconfig
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

from harness_ext.lm_eval_adapter.borrowed import CONSOLE_SCRIPT_MODULE

DISTRIBUTION = "lm-eval-recipes"
SCRIPTS = ("lm_eval", "lm-eval")
_OURS, _UPSTREAMS = b"harness_ext.cli", CONSOLE_SCRIPT_MODULE.encode()


class Script(NamedTuple):
    """A console script: where it is (None: absent), and whose: `ours`, `lm-eval's` or `unknown`."""

    name: str
    path: Path | None
    owner: str


def script(name: str, path: Path | None) -> Script:
    """What `path` runs, told from the module it imports."""
    if path is None or not path.is_file():
        return Script(name, None, "unknown")
    try:
        content = path.read_bytes()
    except OSError:
        return Script(name, path, "unknown")
    return Script(name, path, "ours" if _OURS in content else "lm-eval's" if _UPSTREAMS in content else "unknown")


def environment_scripts() -> list[Script]:
    """The contested scripts in this environment's own folder."""
    folder = Path(sysconfig.get_path("scripts"))
    return [script(name, folder / name) for name in SCRIPTS]


def path_script() -> Script:
    """The `lm_eval` that a shell would run."""
    path = shutil.which("lm_eval")
    return script("lm_eval", Path(path) if path else None)


def mend_command() -> str:
    """The command that puts our scripts back; for an installation from a folder, from that folder."""
    target = DISTRIBUTION
    try:
        origin = json.loads(distribution(DISTRIBUTION).read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        origin = {}
    url = str(origin.get("url", ""))
    if url.startswith("file://") and "dir_info" in origin:
        target = ("-e " if origin["dir_info"].get("editable") else "") + url.removeprefix("file://")
    return f"pip install --force-reinstall --no-deps {target}"


def taken_back() -> str | None:
    """One line for the user where a contested script of this environment is not ours; None where all is well."""
    lost = [item for item in environment_scripts() if item.path and item.owner != "ours"]
    if not lost:
        return None
    names = " and ".join(f"`{item.name}`" for item in lost)
    return (
        f"{names} in this environment {'is' if len(lost) == 1 else 'are'} lm-eval's own, without --recipe; mend with"
        f" `{mend_command()}`, or use `lm-eval-recipes`"
    )
