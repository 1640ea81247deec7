"""A model that lost hidden units as a plain smaller checkpoint: the zeros in their place are left out, and the config
says the smaller width.

Plain transformers, and whatever else reads its checkpoints, loads it as any other model, with the same outputs. That
takes a config that has the width in one number, the same in every layer. Whether the config means the matrices is not
guessed: the shapes that it calls for are compared with those that are written.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness_ext.errors import UserError
from harness_ext.model.components import feeders_of
from harness_ext.model.digests import combined, tensor_digest
from harness_ext.model.slices import places

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel

    from harness_ext.lm_eval_adapter.backend import RecipeLM
    from harness_ext.model.layout import Layout, Matrix

_WIDTHS = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "d_ff", "inner_dim")
"""What configs call the width of an MLP."""
_OF_HEADS = ("q_proj", "k_proj", "v_proj", "o_proj")
Shapes = Callable[["PretrainedConfig"], Mapping[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Smaller:
    """A checkpoint without the units that went. units, before: of every MLP. setting: the name in the config.
    attention_with_zeros: whether coordinates or values of heads went too, which are zero here.
    """

    config: PretrainedConfig
    state: dict[str, Tensor]
    units: int
    before: int
    setting: str
    attention_with_zeros: bool

    @property
    def words(self) -> str:
        """How it is written, for the card and the terminal."""
        zeros = (
            "; heads keep their size, with zeros where they, their coordinates or values went"
            if self.attention_with_zeros
            else ""
        )
        return (
            f"written smaller: every MLP has {self.units} hidden units instead of {self.before} ({self.setting} in the"
            f" config), and plain transformers loads it as any model of its kind{zeros}"
        )

    def receipt(self, model: PreTrainedModel) -> dict[str, Any]:
        """What the receipt of an export says of it: what is stored, and the digest of that."""
        stored = {name: self.state[name] for name, _ in model.named_parameters()}
        return {
            "stored_as": {
                "format": "smaller",
                "units": self.units,
                "units_before": self.before,
                "setting": self.setting,
                "parameters": sum(value.numel() for value in stored.values()),
                "bytes": sum(value.numel() * value.element_size() for value in stored.values()),
            },
            "digest": combined(stored, lambda name: tensor_digest(stored[name])),
        }


class NotSmaller(Exception):
    """Why a model that lost units can only be written with zeros in their place; a clause."""


def smaller(lm: RecipeLM, config: PretrainedConfig, state: Mapping[str, Tensor], shapes: Shapes) -> Smaller | None:
    """The checkpoint without the hidden units that the recipe took away; None where it took nothing away whole. shapes:
    those of the weights that a config calls for. Raises NotSmaller.
    """
    assert lm.applied is not None
    lost = [record for record in lm.applied.records if (record.rows_kept, record.columns_kept) != (None, None)]
    if not lost:
        return None
    cut = {
        record.name: record.columns_kept
        for record in lost
        if record.role == "down_proj" and record.columns_kept is not None
    }
    if not cut:
        raise NotSmaller(
            "heads went, or are narrower in coordinates of their own, and a config has one number of heads for all"
            " layers, and one width for their queries, keys and values"
        )
    layout = lm.weights.layout
    readers = [matrix for matrix in layout.matrices if matrix.role == "down_proj"]
    units, before = _one_width(readers, cut)
    written = _without_units(layout, readers, dict(state), units)
    for setting in _WIDTHS:
        # Some say nothing, and mean four times the hidden size.
        if hasattr(config, setting) and getattr(config, setting) in (before, None):
            told = copy.deepcopy(config)
            setattr(told, setting, units)
            if _fits(told, written, shapes):
                heads = any(record.role in _OF_HEADS for record in lost)
                return Smaller(told, written, units, before, setting, heads)
    raise NotSmaller(f"a {config.model_type} config has no setting that gives every MLP {units} hidden units")


def _one_width(readers: Sequence[Matrix], cut: Mapping[str, int]) -> tuple[int, int]:
    """How many units every layer keeps, and had."""
    widths = {(cut.get(matrix.parameter, matrix.shape[1]), matrix.shape[1]) for matrix in readers}
    if len(widths) > 1:
        kept = sorted(width for width, _ in widths)
        raise NotSmaller(
            f"its layers keep from {kept[0]} to {kept[-1]} hidden units, and a config has one width for all of them:"
            " the same share in every layer would be written smaller"
        )
    return widths.pop()


def _fits(config: PretrainedConfig, state: Mapping[str, Tensor], shapes: Shapes) -> bool:
    """Whether a config calls for weights of just these shapes."""
    try:
        expected = shapes(config)
    except (ValueError, RuntimeError, UserError):
        return False
    return {name: tuple(value.shape) for name, value in state.items()} == dict(expected)


def _without_units(
    layout: Layout, readers: Sequence[Matrix], state: dict[str, Tensor], units: int
) -> dict[str, Tensor]:
    """The weights without the columns that are zero, and what feeds them."""
    for reader in readers:
        kept = _kept(reader, state[reader.parameter], units)
        gone: dict[str, tuple[Matrix, list[int]]] = {}
        for feeder in feeders_of(layout, reader, "mlp").values():
            rows = places(feeder.rows or ((0, feeder.full_shape[0]),))
            dropped = set(range(reader.shape[1])).difference(kept)
            _, known = gone.setdefault(feeder.parameter, (feeder, []))
            known += [rows[unit] for unit in dropped]
        state[reader.parameter] = _of(state[reader.parameter], reader, 1, kept)
        for name, (feeder, rows) in gone.items():
            left = sorted(set(range(feeder.full_shape[0])).difference(rows))
            state[name] = _of(state[name], feeder, 0, left)
            if feeder.bias in state:
                state[feeder.bias] = state[feeder.bias][left].contiguous()
    return state


def _kept(reader: Matrix, value: Tensor, units: int) -> list[int]:
    """The columns that are not zero, and where these are fewer than were kept, the first that are."""
    columns = value.T if reader.stored_transposed else value
    alive = columns.ne(0).any(0)
    found: list[int] = alive.nonzero().flatten().tolist()
    if len(found) > units:
        raise NotSmaller(f"{reader.parameter} was edited again after units went, and reads {len(found)} of them")
    return sorted(found + (~alive).nonzero().flatten().tolist()[: units - len(found)])


def _of(value: Tensor, matrix: Matrix, axis: int, kept: Iterable[int]) -> Tensor:
    import torch

    stored = 1 - axis if matrix.stored_transposed else axis
    return value.index_select(stored, torch.tensor(list(kept), device=value.device)).contiguous()
