"""What the launcher set, and what it must not: read from the environment, before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from harness_ext.errors import UserError

ENGINES = frozenset({"vllm", "sglang"})
"""Backends that start processes of their own."""
_NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class Launch(NamedTuple):
    """This process among those of the command: its number, from 0, and how many there are."""

    rank: int
    ranks: int


def launched() -> Launch:
    """What the launcher says; one process where there was none. Raises UserError for what cannot be understood."""
    ranks = _number("WORLD_SIZE", 1)
    if ranks <= 1:
        return Launch(0, 1)
    if missing := [name for name in _NEEDED if not os.environ.get(name)]:
        raise UserError(
            f"WORLD_SIZE says that there are several processes ({ranks}), and {', '.join(missing)} is not set: start"
            " the command by accelerate launch or torchrun, or unset WORLD_SIZE and use --model_args parallelize=True"
        )
    return Launch(_number("RANK", 0), ranks)


def check_nodes() -> None:
    """Raise UserError where the processes are on several machines."""
    ranks = _number("WORLD_SIZE", 1)
    local, nodes = _number("LOCAL_WORLD_SIZE", ranks), _number("GROUP_WORLD_SIZE", 1)
    if nodes > 1 or local != ranks:
        raise UserError(
            f"the {ranks} processes are on several machines, and --recipe works within one: start the command on one"
            " machine, or let `lm_eval sweep` give every machine runs of its own"
        )


def check_all_started() -> None:
    """Raise UserError where accelerate was asked for several processes and started one as if it were alone, which it
    does on CPUs, with a single GPU, and where its configuration file says so.
    """
    # Set by its launcher of single processes; the address only where it was asked for several.
    if os.environ.get("ACCELERATE_USE_CPU") and os.environ.get("MASTER_ADDR") and _number("WORLD_SIZE", 1) <= 1:
        raise UserError(
            "accelerate launch was asked for several processes, and this one is told of no other: add --multi_gpu, on"
            " CPUs too, and leave out --cpu; or leave out --num_processes, and unset MASTER_ADDR if it is set"
        )


def check_model(model: str, model_args: Mapping[str, Any]) -> None:
    """Refuse what several processes cannot load together, and what one cannot load alone. Raises UserError."""
    ranks = launched().ranks
    if ranks == 1:
        if model_args.get("tp_plan"):
            raise UserError(
                "tp_plan cuts each matrix into pieces for several processes, and this is one: start the command by"
                " torchrun --nproc_per_node N -m harness_ext run ..., or use --model_args parallelize=True, which"
                " spreads whole layers over devices"
            )
        return
    if model in ENGINES:
        raise UserError(
            f"{model} starts processes of its own, and this is one of {ranks} already: start the command without"
            " accelerate launch or torchrun, and use --model_args tensor_parallel_size=N or data_parallel_size=N"
        )
    for name in ("parallelize", "device_map"):
        if model_args.get(name):
            raise UserError(
                f"{name} spreads one model over all devices, and each of {ranks} processes would: leave it out, or"
                " start the command without accelerate launch or torchrun"
            )


def _number(name: str, otherwise: int) -> int:
    value = os.environ.get(name) or str(otherwise)
    if not value.isdecimal():
        raise UserError(f"{name}={value} in the environment is no number of processes: unset it")
    return int(value)
