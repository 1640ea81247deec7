"""The versions of packages that a run is recorded with."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib import metadata

from harness_ext import __version__

_VERSIONS_OF = ("lm_eval", "torch", "transformers", "accelerate", "safetensors", "datasets", "numpy", "peft")


def versions() -> dict[str, str]:
    """The versions of everything that can change a score."""
    found = {
        "python": platform.python_version(),
        "lm_eval_recipes": __version__,
        "platform": f"{platform.system()} {platform.machine()}",
    }
    for name in _VERSIONS_OF:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if "torch" in sys.modules:
        import torch

        found["torch_threads"] = str(torch.get_num_threads())
        if torch.cuda.is_available():
            found["cuda"] = str(torch.version.cuda)
    return found


def package_version(package: str) -> str | None:
    """The version of an installed package by the name that it is imported by; None where it has none."""
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    distributions = _distributions().get(package)
    return metadata.version(distributions[0]) if distributions else None


@cache
def _distributions() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()
