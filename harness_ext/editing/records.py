"""The receipt: everything that was done to a model, as rows and totals that can be joined with its scores.

A failure is recorded like a success, with its reason: a recipe that could not be applied is a row on the board, never a
missing one.
"""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any, TypeVar

from harness_ext.errors import VariantFailed
from harness_ext.model.size import ModelSize

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
DENSE, FACTORS = "dense", "factors"
_HEAD = re.compile(r"\bhead \d+")
_VERSIONS_OF = ("lm_eval", "torch", "transformers", "accelerate", "safetensors", "datasets", "numpy", "peft")

Edited = TypeVar("Edited")


@dataclass(frozen=True)
class MatrixRecord:
    """What became of one matrix, or of one part of a fused one.

    rank_before: min(m, n). energy_kept: `||W'||^2 / ||W||^2`. relative_error: `||W - W'|| / ||W||`, of the stored
    values, Frobenius norms.
    digest_before, digest_after: of the whole parameter, or of the one expert of it. parameters_after: of two factors,
    where they hold less than the dense matrix.
    decomposition: `gram_fp32`, `gram_fp64`, `svd` or `randomised`; None for a method that makes none of the matrix, or
    its own. excess_error: a bound on `error / least possible error - 1` at this rank, in the norm that the
    method truncates in and before the result is rounded to the stored dtype; for `randomised` an estimate, and for
    `svd`, which is what the others are held against, None.
    stored: as `factors`, two thin layers that the model computes with, or written back `dense`.
    """

    step: int
    method: str
    name: str
    part: str | None
    role: str | None
    layer: int | None
    shape: tuple[int, int]
    rank_before: int
    rank_after: int
    energy_kept: float
    relative_error: float
    digest_before: str
    digest_after: str
    seconds: float
    bias_shift: bool
    parameters_before: int
    parameters_after: int
    fallback: str | None = None
    decomposition: str | None = None
    excess_error: float | None = None
    stored: str = DENSE


@dataclass(frozen=True)
class Totals:
    """Sums over the whole model. The figures after an edit are those of factored storage, for matrices that it makes
    smaller; dense otherwise. Of a recipe that is factored, they are those of the model as it runs.

    bytes: of all parameters in the model's dtypes. flops_per_token: two for each weight that multiplies a token,
    attention scores left out.
    """

    parameters_before: int
    parameters_after: int
    bytes_before: int
    bytes_after: int
    flops_per_token_before: int
    flops_per_token_after: int
    matrices_edited: int


def totals(size: ModelSize, records: Sequence[MatrixRecord] = (), added: Collection[Tensor] = ()) -> Totals:
    """Sum up a model and what was done to it. size: of the model before. added: parameters (biases) that the edits
    made.
    """
    last = standing(records, lambda record: (record.name, record.part))
    saved = [(record.name, record.parameters_before - record.parameters_after) for record in last]
    return Totals(
        parameters_before=size.parameters,
        parameters_after=size.parameters - sum(count for _, count in saved) + sum(value.numel() for value in added),
        bytes_before=size.stored_bytes,
        bytes_after=size.stored_bytes
        - sum(count * size.element_bytes[name] for name, count in saved)
        + sum(value.numel() * value.element_size() for value in added),
        flops_per_token_before=size.flops_per_token,
        flops_per_token_after=round(size.flops_per_token - 2 * sum(count * size.used[name] for name, count in saved)),
        matrices_edited=len(_whole(last)),
    )


def standing(edits: Iterable[Edited], place: Callable[[Edited], tuple[str, str | None]]) -> list[Edited]:
    """The edits that no later one overwrote, in order. place: the parameter of one, and the part of it; None for all.

    A later edit of the whole, or of one head, leaves nothing of an earlier one's low rank.
    """
    last: dict[tuple[str, ...], Edited] = {}
    inside: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for edit in edits:
        name, part = place(edit)
        key = (name, *(part or "").split())
        for other in (*inside.get(key, ()), *(key[:length] for length in range(1, len(key)))):
            last.pop(other, None)
        last.pop(key, None)
        last[key] = edit
        for length in range(1, len(key) + 1):
            inside.setdefault(key[:length], set()).add(key)
    return list(last.values())


def _whole(records: Iterable[MatrixRecord]) -> set[tuple[str, str]]:
    """The matrices that the records are of, heads of one counted together."""
    return {(record.name, _HEAD.sub("", record.part or "")) for record in records}


def versions() -> dict[str, str]:
    """The versions of everything that can change a score."""
    from harness_ext import __version__

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


def rows(records: Iterable[MatrixRecord]) -> list[dict[str, Any]]:
    """The records as plain data."""
    return [asdict(record) for record in records]


def failure(error: VariantFailed) -> Mapping[str, str | None]:
    """The failure as plain data."""
    return {"kind": error.kind, "reason": error.reason, "where": error.where}
