"""Where a run is made, for its receipt: machine, GPUs, engine, and the sweep that asked for it.

Also whether a run that is there already was made in a place like this one. Notable choices:
- A place is an engine and the names of GPUs. Host, driver and number of GPUs may differ within one.
- What the receipt says is read off the loaded model; where a run would be made is known before anything is loaded, from
  the device that was asked for. On a machine with GPUs of several kinds that is more than one name, and a run by any of
  them is taken for one of this place.
- torch is only asked where the system shows a GPU, so that a command whose work is done starts without it.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness_ext.errors import UserError
from harness_ext.ranks.group import current
from harness_ext.runs.versions import package_version
from harness_ext.storage.rundir import safe_name
from leaderboard.readers.ran_on import ORDINARY, ComputePlace, gpu_of
from leaderboard.readers.receipt import LONGEST_NAME, ReceiptRanOn, read_ran_on
from leaderboard.readers.safe_json import mapping

if TYPE_CHECKING:
    from lm_eval.config.evaluate_config import EvaluatorConfig

SWEEP, CELL = "LM_EVAL_SWEEP", "LM_EVAL_SWEEP_CELL"
"""The environment variables by which a sweep tells a run what it is part of."""
_LONGEST = 100
_ENGINES = {
    "lm_eval.models.huggingface": (ORDINARY, "transformers"),
    "lm_eval.models.vllm_causallms": ("vllm", "vllm"),
    "lm_eval.models.sglang_causallms": ("sglang", "sglang"),
}
"""Module of lm-eval's model class -> the engine, and the package whose version it has."""
_GPU_FILES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
_DRIVER_FILE = Path("/sys/module/nvidia/version")


def gathered(lm: Any) -> ReceiptRanOn:
    """Where a loaded model is. lm: lm-eval's model object. Raises UserError for a sweep's name that is none."""
    engine, package = _engine(lm)
    gpus = _gpus_of(lm)
    return ReceiptRanOn(
        host=_short(platform.node()),
        gpus=gpus,
        driver=_short(driver()) if gpus else None,
        ranks=current().ranks,
        engine=engine,
        engine_version=_short(package_version(package)) if package else None,
        sweep=sweep_name(SWEEP),
        cell=sweep_name(CELL),
    )


def sweep_name(variable: str) -> str | None:
    """What the environment says of the sweep; None where it says nothing. Raises UserError for what is no name."""
    text = os.environ.get(variable)
    if not text:
        return None
    if len(text) > _LONGEST or not text.isprintable():
        raise UserError(f"{variable} must be at most {_LONGEST} printable characters, as part of a sweep's name")
    return text


def driver() -> str | None:
    """The version of NVIDIA's driver; None where there is none."""
    try:
        return _DRIVER_FILE.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        pass
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return lines[0].strip() or None if lines else None


@dataclass(frozen=True)
class Here:
    """Where this command makes runs. engine: None where it is not known; gpus: names of those that it may use."""

    engine: str | None
    gpus: frozenset[str]

    @property
    def place(self) -> ComputePlace:
        """As the leaderboard has it."""
        return ComputePlace(self.engine, gpu_of(sorted(self.gpus)))

    @property
    def name(self) -> str:
        """The end of a folder's name that tells runs of this place from those of another."""
        return "-".join(safe_name(part) for part in self.place if part) or "elsewhere"

    def is_not_of(self, receipt: Mapping[str, Any]) -> str | None:
        """Where a run was made, in words, if that is known to be no place like this; None where it may be, and where
        there is no GPU here: what needs one is not made anew on a CPU.
        """
        said = read_ran_on(receipt.get("ran_on"))
        if said is None:
            return None
        other_engine = said.engine is not None and self.engine is not None and said.engine != self.engine
        other_gpu = bool(self.gpus) and (
            not self.gpus.issuperset(said.gpus) if said.gpus else not _device(receipt).startswith("cuda")
        )
        return in_words(ComputePlace(said.engine, gpu_of(list(said.gpus)))) if other_engine or other_gpu else None

    def of_another_kind(self, receipt: Mapping[str, Any]) -> str | None:
        """Where a run was made, in words, if that is a GPU and here is none."""
        said = read_ran_on(receipt.get("ran_on"))
        return None if said is None or self.gpus else gpu_of(list(said.gpus))


def _device(receipt: Mapping[str, Any]) -> str:
    """Where a run was scored; a device `cuda` without a GPU's name has its weights elsewhere, as on disk."""
    return str(mapping(receipt.get("model")).get("device"))


def in_words(place: ComputePlace) -> str:
    """`NVIDIA A100 by vllm`."""
    return f"{place.gpu or 'a CPU'}" + (f" by {place.engine}" if place.engine else "")


def here(harness: EvaluatorConfig) -> Here:
    """Where a command makes its runs, before anything is loaded."""
    model = str(harness.model)
    engine = next((name for name in ("vllm", "sglang") if model.startswith(name)), ORDINARY)
    return Here(engine, frozenset(_gpus_asked(str(harness.device or ""), dict(harness.model_args))))


def _gpus_asked(device: str, model_args: Mapping[str, Any]) -> list[str]:
    """The names of the GPUs that a device means: of `cuda:1` one, else all that can be seen."""
    if device.partition(":")[0] not in ("", "cuda", "auto") or not _may_have_gpus():
        return []
    index = device.partition(":")[2]
    spread = model_args.get("parallelize") or model_args.get("device_map") or current().ranks > 1
    return _names([int(index)] if index.isdecimal() and not spread else None)


def _may_have_gpus() -> bool:
    return not sys.platform.startswith("linux") or any(map(os.path.exists, _GPU_FILES))


def _gpus_of(lm: Any) -> list[str]:
    """The names of the GPUs that a loaded model uses, one an entry."""
    if not _may_have_gpus():
        return []
    parameters = getattr(getattr(lm, "model", None), "parameters", None)
    if not callable(parameters):  # an engine of its own process
        used = getattr(lm, "tensor_parallel_size", 1) * getattr(lm, "data_parallel_size", 1)
        return _names(range(used))
    devices = {parameter.device for parameter in parameters()}
    places = sorted({device.index or 0 for device in devices if device.type == "cuda"})
    ranks = current().ranks
    return _names(range(ranks) if places and ranks > 1 else places)


def _names(places: Iterable[int] | None) -> list[str]:
    """The names of GPUs by their places among those that can be seen, of all if None."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    wanted = range(count) if places is None else (place for place in places if place < count)
    return [torch.cuda.get_device_name(place)[:LONGEST_NAME] for place in wanted]


def _engine(lm: Any) -> tuple[str | None, str | None]:
    """The engine of a model object, and the package that has its version."""
    for base in type(lm).__mro__:
        if base.__module__ in _ENGINES:
            return _ENGINES[base.__module__]
    return None, None


def _short(text: str | None) -> str | None:
    return text[:LONGEST_NAME] or None if text else None
