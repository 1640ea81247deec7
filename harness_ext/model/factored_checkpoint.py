"""The format of a factored checkpoint: what its `config.json` says under `quantization_config`, and the layers that are
made of it.

    "quantization_config": {
      "quant_method": "lowrank", "version": 1, "format": "factors", "weights": "factors.safetensors",
      "layers": {"model.layers.0.mlp.up_proj": {"shape": [1536, 576], "parts": [{"rank": 328}]}, ...},
      "biases": []
    }

layers: by the name of the module, the shape `[out, in]` of its weight and its factored parts; `rows` or `columns` are
ranges of it, neither means the whole. Stored are `NAME.lefts.0` `[m, r]` and `NAME.rights.0` `[r, n]` for each part,
`NAME.rest` for what no part covers, and `NAME.bias`. In the format `pifa`, `lefts` are coefficients `[m - r, r]`,
`rights` pivot rows, and `NAME.orders.0` says where each row is. biases: layers that have a bias which the architecture
does not give them. weights: the file, which has a name of its own so that a loader which does not know the format finds
no weights, instead of filling the layers with random numbers.

A checkpoint is untrusted input: every number of it is checked before a layer is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from harness_ext.errors import UserError
from harness_ext.model.checkpoint import indexed_files
from harness_ext.model.geometry import Ranges
from harness_ext.model.safetensors_header import read_header
from harness_ext.model.size import PIFA
from leaderboard.readers.plain_yaml import shown

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from harness_ext.model.low_rank import LowRankLinear

METHOD = "lowrank"
WEIGHTS, WEIGHTS_INDEX = "factors.safetensors", "factors.safetensors.index.json"
_VERSION = 1
_MOST_LAYERS = 100_000
_MOST_PARTS = 10_000
_STRICT = ConfigDict(extra="forbid", frozen=True, strict=True)

_Size = Annotated[int, Field(ge=1, le=2**31)]
_Spans = Annotated[list[tuple[Annotated[int, Field(ge=0)], _Size]], Field(min_length=1, max_length=2**20)]


class FactoredPart(BaseModel):
    """A factored part of a weight: its rank, and its rows or columns; neither means the whole."""

    model_config = _STRICT

    rank: Annotated[int, Field(ge=0)]
    rows: _Spans | None = None
    columns: _Spans | None = None

    @property
    def places(self) -> tuple[Ranges | None, Ranges | None]:
        """Rows and columns as `LowRankPart` has them."""
        return _ranges(self.rows), _ranges(self.columns)


class FactoredLayer(BaseModel):
    """A layer with factored parts."""

    model_config = _STRICT

    shape: tuple[_Size, _Size]
    parts: Annotated[list[FactoredPart], Field(min_length=1, max_length=_MOST_PARTS)]

    @model_validator(mode="after")
    def _fits(self) -> FactoredLayer:
        if any((part.rows, part.columns) == (None, None) for part in self.parts) and len(self.parts) > 1:
            raise ValueError("a part that is the whole must be the only one")
        if any(part.rows and part.columns for part in self.parts) or (
            len({part.rows is None for part in self.parts}) > 1
        ):
            raise ValueError("its parts must be all of rows or all of columns")
        for axis, listed in enumerate(([part.rows for part in self.parts], [part.columns for part in self.parts])):
            _check_spans([span for spans in listed for span in spans or ()], self.shape[axis])
        for part in self.parts:
            if part.rank > min(self.part_shape(part)):
                raise ValueError("the rank {} is beyond a {} x {} part".format(part.rank, *self.part_shape(part)))
        return self

    def part_shape(self, part: FactoredPart) -> tuple[int, int]:
        """`[m, n]` of one part."""
        return _length(part.rows, self.shape[0]), _length(part.columns, self.shape[1])


class FactoredConfig(BaseModel):
    """What a config says of a factored checkpoint."""

    model_config = _STRICT

    quant_method: Literal["lowrank"] = "lowrank"
    version: Literal[1] = 1
    format: Literal["factors", "pifa"] = "factors"
    weights: Literal["factors.safetensors", "factors.safetensors.index.json"] | None = None
    layers: Annotated[dict[str, FactoredLayer], Field(min_length=1, max_length=_MOST_LAYERS)]
    biases: Annotated[list[str], Field(max_length=_MOST_LAYERS)] = Field(default_factory=list)


def read_factored(data: Mapping[str, Any], name: str = "the factored checkpoint") -> FactoredConfig:
    """The checked description. Raises UserError with the first mistake; name: the model, for the message."""
    version = data.get("version")
    if isinstance(version, int) and version > _VERSION:
        raise UserError(f"{name} has the factored format {version}, and this version reads 1: upgrade lm-eval-recipes")
    try:
        # Through JSON's rules, under which a list is a tuple, and nothing else changes its type.
        return FactoredConfig.model_validate_json(_as_json(data))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{name}: the quantization_config of its config.json is wrong at {shown(place) or 'its top'}:"
            f" {first['msg'].removeprefix('Value error, ')}; copy or export it again"
        ) from None


def described(layers: Mapping[str, LowRankLinear], biases: Sequence[str], weights: str, form: str) -> dict[str, Any]:
    """What the config of a checkpoint with these low-rank layers says. layers: by the name of the module."""
    return FactoredConfig(
        format=form,  # type: ignore[arg-type]  # one of the two, as the command's choices are
        weights=weights,  # type: ignore[arg-type]
        layers={name: _layer(layer) for name, layer in sorted(layers.items())},
        biases=sorted(biases),
    ).model_dump(mode="json", exclude_none=True)


def make_layers(model: nn.Module, config: FactoredConfig, name: str) -> None:
    """Put empty low-rank layers, to be loaded, in the places of the layers that a description names; and biases where
    it says so. The model may be without memory (on `meta`).

    Raises UserError where a description does not fit the model.
    """
    import torch

    for place in config.biases:
        layer = _linear(model, place, name)
        if layer.bias is None:
            weight = _weight(layer)
            layer.bias = torch.nn.Parameter(weight.new_zeros(_shape_of(layer)[0]), requires_grad=False)
    for place, described_layer in config.layers.items():
        layer = _linear(model, place, name)
        if _shape_of(layer) != described_layer.shape:
            raise UserError(
                "{}: config.json says that {} is {} x {}, and in a model of its sizes it is {} x {}: use the"
                " config.json that belongs to these weights".format(
                    name, shown(place), *described_layer.shape, *_shape_of(layer)
                )
            )
        parent, _, attribute = place.rpartition(".")
        setattr(model.get_submodule(parent), attribute, empty_layer(layer, described_layer, config.format))


def low_rank_layers(model: nn.Module) -> dict[str, LowRankLinear]:
    """The low-rank layers of a model, by the name of the module."""
    from harness_ext.model.low_rank import LowRankLinear

    return {name: module for name, module in model.named_modules() if isinstance(module, LowRankLinear)}


def check_loaded(model: nn.Module, name: str) -> None:
    """Raise UserError where a low-rank layer was not loaded whole, or holds what no factor can hold; and compute what
    no checkpoint stores.
    """
    import torch

    from harness_ext.model.pivot_rows import PivotRowsLinear

    known = any(getattr(value, "_is_hf_initialized", False) for value in model.parameters())
    for place, layer in low_rank_layers(model).items():
        values = {key: value for key, value in (*layer.named_parameters(), *layer.named_buffers()) if key != "_order"}
        if any(value.device.type == "meta" for value in values.values()):
            continue  # offloaded
        for key, value in values.items():
            if known and not getattr(value, "_is_hf_initialized", False):
                raise UserError(
                    f"{name} lacks the weight {place}.{key}, or has it in another shape than"
                    f" {' x '.join(map(str, value.shape))}, which its config.json says: copy or export it again"
                )
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise UserError(f"{name}: {place}.{key} holds a NaN or an infinity: copy or export it again")
        if isinstance(layer, PivotRowsLinear) and not layer.is_sound():
            raise UserError(f"{name}: an order of rows of {place} is none: copy or export it again")
        layer.reset_order()


def check_stored(model: nn.Module, folder: Path, weights: str) -> None:
    """Raise UserError where the file of a local checkpoint is not there, is cut, or does not hold what its model needs:
    transformers would tell of some of it in words of its own, and fill in the rest.
    """
    path = folder / weights
    if not path.is_file():
        raise UserError(f"{folder} holds no {weights}, in which its weights are: copy or export it again")
    paths = indexed_files(path) if path.suffix == ".json" else [path]
    stored = {name: tensor.shape for part in paths for name, tensor in read_header(part).items()}
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    for name, shape in expected.items():
        if name in stored and tuple(stored[name]) != shape:
            has, wants = (" x ".join(map(str, found)) for found in (stored[name], shape))
            raise UserError(
                f"{folder} lacks the weight {name} in the shape {wants}, which its config.json says, and has it as"
                f" {has}: copy or export it again"
            )
    # Where files have names of their own, transformers alone knows what is what.
    lacking = [name for name in expected if name not in stored and name not in tied and name not in tied.values()]
    if lacking and stored.keys() <= expected.keys():
        raise UserError(f"{folder} lacks the weight {lacking[0]}: copy or export it again")


def make_dense(model: nn.Module, dtype: torch.dtype | None) -> None:
    """Put plain linear layers with the products, in the factors' own dtype or another, in the places of all low-rank
    layers.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    for place, layer in low_rank_layers(model).items():
        weight = layer.product(dtype or layer.lefts[0].dtype)
        rows, columns = weight.shape
        dense: Any = (
            Conv1D(rows, columns)
            if layer.transposed
            else torch.nn.Linear(columns, rows, bias=layer.bias is not None, device="meta")
        )
        dense.weight = torch.nn.Parameter(weight.T.contiguous() if layer.transposed else weight, requires_grad=False)
        dense.bias = layer.bias
        parent, _, attribute = place.rpartition(".")
        setattr(model.get_submodule(parent), attribute, dense)


def empty_layer(layer: Any, of: FactoredLayer, form: str) -> LowRankLinear:
    """A low-rank layer to stand for a linear one, whose numbers are still to be loaded."""
    import torch

    from harness_ext.model.low_rank import LowRankLinear, LowRankPart
    from harness_ext.model.pivot_rows import PivotRowsLinear

    weight = _weight(layer)
    dense = weight.new_empty(of.shape)
    parts, orders = [], []
    for part in of.parts:
        rows, columns = of.part_shape(part)
        left = (rows - part.rank, part.rank) if form == PIFA else (rows, part.rank)
        parts.append(LowRankPart(*part.places, weight.new_empty(left), weight.new_empty(part.rank, columns)))
        orders.append(torch.empty(rows, dtype=torch.int32, device=weight.device))
    transposed = not isinstance(layer, torch.nn.Linear)
    if form == PIFA:
        return PivotRowsLinear(dense, parts, layer.bias, orders=orders, transposed=transposed)
    return LowRankLinear(dense, parts, layer.bias, transposed=transposed)


def _linear(model: nn.Module, place: str, name: str) -> Any:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    try:
        layer = model.get_submodule(place) if place else None
    except AttributeError:
        layer = None
    if not isinstance(layer, (nn.Linear, Conv1D)):
        raise UserError(
            f"{name}: config.json names {shown(place)} as a factored layer, which is no linear layer of a model of its"
            " kind: use the config.json that belongs to these weights"
        )
    return layer


def _weight(layer: Any) -> Tensor:
    weight: Tensor = layer.weight
    return weight


def _shape_of(layer: Any) -> tuple[int, int]:
    from torch import nn

    first, second = layer.weight.shape
    return (first, second) if isinstance(layer, nn.Linear) else (second, first)


def _layer(layer: LowRankLinear) -> FactoredLayer:
    return FactoredLayer(
        shape=(layer.out_features, layer.in_features),
        parts=[
            FactoredPart(rank=len(part.right), rows=_spans(part.rows), columns=_spans(part.columns))
            for part in layer.parts
        ],
    )


def _check_spans(spans: Sequence[tuple[int, int]], full: int) -> None:
    ordered = sorted(spans)
    ends = [0, *(stop for _, stop in ordered)]
    for before, (start, stop) in zip(ends, ordered, strict=False):
        if not before <= start < stop <= full:
            raise ValueError(f"{start} to {stop} is no range of {full} rows or columns, or is listed twice")


def _length(spans: Sequence[tuple[int, int]] | None, full: int) -> int:
    return full if spans is None else sum(stop - start for start, stop in spans)


def _ranges(spans: Sequence[tuple[int, int]] | None) -> Ranges | None:
    return None if spans is None else tuple((start, stop) for start, stop in spans)


def _spans(ranges: Ranges | None) -> list[tuple[int, int]] | None:
    return None if ranges is None else list(ranges)


def _as_json(data: Mapping[str, Any]) -> str:
    import json

    return json.dumps(dict(data), default=str)
