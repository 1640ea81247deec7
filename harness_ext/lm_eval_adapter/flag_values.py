"""Values of lm-eval's flags that it would find wrong only with the model loaded, or would tell of in Python's words."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from typing import Any

from harness_ext.errors import UserError

_AUTO = re.compile(r"auto(:\d+(\.\d+)?)?")
_DEVICE = re.compile(r"cpu|cuda|mps|(cuda|npu|xpu|hpu):\d+|mps:0")
_LARGEST_SEED = 2**32 - 1
"""NumPy's; the other generators take more."""


def in_plain_words(parser: argparse.ArgumentParser) -> None:
    """Have a parser of lm-eval's `run` say in a sentence what is wrong with `--seed` and `--batch_size`."""
    for action in parser._actions:
        if action.dest == "seed":
            action.type = _seed_type(action.type)
        elif action.dest == "batch_size":
            action.type = _batch_size


def check_batch_size(value: Any) -> None:
    """Raise ValueError for a batch size that no backend takes."""
    text = str(value)
    if _AUTO.fullmatch(text):
        return
    try:
        right = int(text) >= 1
    except ValueError:
        right = False
    if not right:
        raise ValueError(f"{text!r} is no batch size: give a whole number from 1, auto, or auto:N")


def check_device(value: Any) -> None:
    """Raise ValueError for a device that lm-eval does not know: it would take another without a word."""
    if value is not None and not _DEVICE.fullmatch(str(value)):
        raise ValueError(f"{str(value)!r} is no device: give cpu, cuda, cuda:N, mps, npu:N, xpu:N or hpu:N")


def check_present(device: str) -> None:
    """Raise UserError for a device by a number that this machine has not: lm-eval would take another without a word.
    The first is lm-eval's default, and stands for the processor where there is none.
    """
    import torch

    number = device.partition(":")[2]
    if number and int(number) and (count := torch.cuda.device_count()) <= int(number):
        there = (
            "no GPU" if count == 0 else "1 GPU, cuda:0" if count == 1 else f"{count} GPUs, cuda:0 to cuda:{count - 1}"
        )
        raise UserError(f"--device {device}: this machine has {there}; name one that is there, or cpu")


def check_limit(value: Any) -> None:
    """Raise ValueError for a limit that leaves no document, or is no number."""
    if not isinstance(value, int | float):
        raise ValueError(f"{value!r} is no number: give a number of documents, or a share between 0 and 1")
    if not 0 < value < math.inf:
        raise ValueError(
            f"{value:g} leaves no document to score: give a number of documents, or a share between 0 and 1"
        )


def _batch_size(text: str) -> str:
    try:
        check_batch_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _seed_type(of_lm_eval: Any) -> Callable[[str], Any]:
    def seeds(text: str) -> Any:
        try:
            found = of_lm_eval(text)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{text!r} is no seed: give one whole number for all, or four with commas between them (Python, NumPy,"
                " torch, few-shot examples), such as 0,1234,1234,1234; None leaves one unset"
            ) from None
        if found[1] is not None and not 0 <= found[1] <= _LARGEST_SEED:
            raise argparse.ArgumentTypeError(f"{text!r} gives NumPy the seed {found[1]}: it takes 0 to {_LARGEST_SEED}")
        return found

    return seeds
