"""A model as it lies in the files of its checkpoint: which stored tensors make up each parameter, read when asked for.

transformers renames and stacks as it loads: the experts of a layer, stored one by one, become one parameter. Its own
rules say here which stored tensor goes where, asked of a model whose tensors take no memory. A parameter of many
experts is dealt with one expert at a time. What transformers does beyond that (splitting, turning or permuting stored
tensors) is left to loading the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness_ext.model.checkpoint import INDEX, SINGLE, quantisation_method, weight_files
from harness_ext.model.completeness import config_of, refuse_incomplete, silent
from harness_ext.model.config_file import read_config, refuse_impossible
from harness_ext.model.digests import parts_digest, tensor_digest
from harness_ext.model.safetensors_header import TensorPlace, read_places
from harness_ext.model.shard_files import TORCH_NAMES, TensorEntry, read_tensor, same_bytes

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

# Of the first axis: one expert after another.
_STACKS = ("MergeModulelist(dim=0)", "Concatenate(dim=1)")


class NotByShards(Exception):
    """Why a checkpoint cannot be dealt with tensor by tensor; completes "... cannot be edited shard by shard: "."""


class Unit(NamedTuple):
    """A parameter, or the part of it that is one expert's: what is held in memory at a time.

    pieces: the stored tensors that follow on one another along its first axis. row: its place along the first axis of
    its one piece, where that holds all experts; None where each has tensors of its own.
    """

    parameter: str
    expert: int | None
    pieces: tuple[str, ...]
    row: int | None
    dtype: torch.dtype


@dataclass(frozen=True)
class StoredModel:
    """A checkpoint on disk. model: without memory, its parameters named, shaped and typed as loading would make them.
    places: of the stored tensors, those that the model has no place for left out. units: all of its parameters and
    buffers, in order of their files.
    """

    model: PreTrainedModel
    places: Mapping[str, TensorPlace]
    units: tuple[Unit, ...]

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return next(iter(self.places.values())).path.parent

    @property
    def files(self) -> list[str]:
        """The names of the files that hold any of it, in order."""
        return sorted({place.path.name for place in self.places.values()})

    def read(self, unit: Unit) -> Tensor:
        """The unit as loading would make it, on the CPU."""
        import torch

        if len(unit.pieces) == 1:
            return read_tensor(self.places[unit.pieces[0]], unit.row).to(unit.dtype)
        rows = [self.places[name].tensor.shape[0] for name in unit.pieces]
        whole = torch.empty((sum(rows), *self.places[unit.pieces[0]].tensor.shape[1:]), dtype=unit.dtype)
        for name, part in zip(unit.pieces, whole.split(rows), strict=True):
            part.copy_(read_tensor(self.places[name]))
        return whole

    def pieces_of(self, unit: Unit, value: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The unit's stored tensors, by name, with the numbers of `value`; or the one row of a stored tensor."""
        if len(unit.pieces) == 1:
            yield unit.pieces[0], value
            return
        rows = [self.places[name].tensor.shape[0] for name in unit.pieces]
        yield from zip(unit.pieces, value.split(rows), strict=True)

    def in_file(self, file: str) -> list[Unit]:
        """The units that have a piece in a file, those of larger numbers first, else in the order of the file."""
        inside = [unit for unit in self.units if any(self.places[name].path.name == file for name in unit.pieces)]

        def place(unit: Unit) -> tuple[int, int, int]:
            start = min(self.places[name].start for name in unit.pieces if self.places[name].path.name == file)
            return -unit.dtype.itemsize, start, unit.row or 0

        return sorted(inside, key=place)

    def entries(self, file: str) -> list[TensorEntry]:
        """What a file with the same tensors holds, in the order of `in_file`."""
        found: dict[str, TensorEntry] = {}
        for unit in self.in_file(file):
            for name in unit.pieces:
                if self.places[name].path.name == file:
                    found[name] = TensorEntry(name, unit.dtype, self.places[name].tensor.shape)
        return list(found.values())

    def digest_of(self, parameter: str) -> str:
        """The digest that `tensor_digest` gives of the whole parameter, one unit in memory at a time."""
        units = sorted(self.of_parameter(parameter), key=lambda unit: unit.expert or 0)
        if units[0].expert is None:
            return tensor_digest(self.read(units[0]))
        shape = tuple(self.model.get_parameter_or_buffer(parameter).shape)
        return parts_digest(units[0].dtype, shape, (self.read(unit) for unit in units))

    def of_parameter(self, parameter: str) -> list[Unit]:
        """The units of a parameter."""
        return [unit for unit in self.units if unit.parameter == parameter]

    def moved(self, folder: Path) -> StoredModel:
        """The same tensors where `entries` were written to another folder, under the same names of files."""
        places = {name: place for file in self.files for name, place in read_places(folder / file).items()}
        return StoredModel(self.model, places, self.units)


def stored_model(folder: Path, name: str, dtype: str) -> StoredModel:
    """The model of a checkpoint in a local folder, no tensor of it read.

    name: as the user gave it, for messages. dtype: that lm-eval would load it in (`auto`, `float32`, ...).

    Raises NotByShards, and UserError for a checkpoint that cannot be loaded in any way.
    """
    config = read_config(folder / "config.json", name)
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

    if quantisation_method(config) is not None:
        raise NotByShards("its weights are quantised, and are unpacked only as the model is loaded")
    if "auto_map" in config:
        raise NotByShards("its model class is code of its own, which says only when it loads what it does with them")
    if config.get("model_type") in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        raise NotByShards("it has an encoder")
    places = _places(folder)
    refuse_impossible(name, {key: place.tensor for key, place in places.items()}, config)
    try:
        with silent():
            return _stored_model(config, places, name, dtype)
    except (ImportError, AttributeError, TypeError) as error:
        raise NotByShards(f"this release of transformers does not tell how it loads ({error})") from error


def _places(folder: Path) -> dict[str, TensorPlace]:
    if not any((folder / name).is_file() for name in (SINGLE, INDEX)):
        raise NotByShards(f"it has neither {SINGLE} nor {INDEX}")
    files = weight_files(folder)
    if any(path.parent != folder for path in files):
        raise NotByShards("its index names files in folders of their own")
    places = {name: place for path in files for name, place in read_places(path).items()}
    odd = next((place.tensor.dtype for place in places.values() if place.tensor.dtype not in TORCH_NAMES), None)
    if odd is not None:
        raise NotByShards(f"it holds numbers of the kind {odd}")
    return places


def _stored_model(config: Mapping[str, Any], places: Mapping[str, TensorPlace], name: str, dtype: str) -> StoredModel:
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            blank = AutoModelForCausalLM.from_config(config_of(config))
    except Exception as error:
        # Whatever a config from anywhere brings about: the loader of models says it in its own words.
        raise NotByShards(f"transformers cannot tell its parameters from its config ({error})") from error
    targets = _targets(blank, list(places))
    places = _without_doubles(blank, places, targets)
    state = {
        key: torch.empty(place.tensor.shape, dtype=getattr(torch, TORCH_NAMES[place.tensor.dtype]), device="meta")
        for key, place in places.items()
    }
    model, info = type(blank).from_pretrained(
        None,
        config=config_of(config),
        state_dict=state,
        device_map={"": "meta"},
        dtype=dtype if dtype == "auto" else getattr(torch, dtype),
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    refuse_incomplete(name, info)
    model.tie_weights()
    return _put_together(model, places, {key: targets[key] for key in places})


class _Target(NamedTuple):
    """Where a stored tensor goes: the parameter. Of a stack also its patterns, and the one that took the tensor."""

    parameter: str
    patterns: tuple[str, ...] = ()
    pattern: str = ""


def _targets(blank: PreTrainedModel, stored: Sequence[str]) -> dict[str, _Target]:
    """Where each stored tensor goes, as `transformers.core_model_loading` decides it; those of no place left out."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    transforms = get_model_conversion_mapping(blank)
    renamings = [item for item in transforms if isinstance(item, WeightRenaming)]
    converters = [item for item in transforms if isinstance(item, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    state, prefix = blank.state_dict(), blank.base_model_prefix
    found: dict[str, _Target] = {}
    # Some rules depend on what came before, so the order is that of the loader.
    for name in sorted(stored, key=dot_natural_key):
        renamed, pattern = rename_source_key(name, renamings, converters, prefix, state)
        if renamed not in state and name in state:
            renamed, pattern = rename_source_key(name, [], [], prefix, state)
        if renamed not in state:
            continue
        patterns = _stack(by_pattern[pattern]) if pattern is not None else ()
        found[name] = _Target(renamed, patterns, pattern or "")
    return found


def _stack(converter: Any) -> tuple[str, ...]:
    """The patterns whose tensors a converter stacks, expert by expert, one pattern above the next. Raises NotByShards
    for one that does anything else.
    """
    operations = [f"{type(item).__name__}(dim={getattr(item, 'dim', None)})" for item in converter.operations]
    patterns = tuple(converter.source_patterns)
    fits = operations == list(_STACKS) or (operations == [_STACKS[0]] and len(patterns) == 1)
    if not fits or len(converter.target_patterns) != 1:
        raise NotByShards(
            f"transformers makes {', '.join(converter.target_patterns)} of {', '.join(patterns)} as it loads, by more"
            " than renaming and stacking"
        )
    return patterns


def _without_doubles(
    blank: PreTrainedModel, places: Mapping[str, TensorPlace], targets: Mapping[str, _Target]
) -> dict[str, TensorPlace]:
    """The stored tensors that have a place in the model, and of one that is stored under two tied names the first."""
    stored: dict[str, list[str]] = {}
    for name, target in targets.items():
        stored.setdefault(target.parameter, []).append(name)
        if not target.patterns and len(stored[target.parameter]) > 1:
            raise NotByShards(f"it has {' and '.join(stored[target.parameter])}, which are loaded as one weight")
    dropped = set()
    for one, other in blank.all_tied_weights_keys.items():
        if one in stored and other in stored:
            if not same_bytes(places[stored[one][0]], places[stored[other][0]]):
                raise NotByShards(f"its config ties {one} and {other}, which it stores with different numbers")
            dropped.add(stored[one][0])
    return {name: place for name, place in places.items() if name in targets and name not in dropped}


def _put_together(
    model: PreTrainedModel, places: Mapping[str, TensorPlace], targets: Mapping[str, _Target]
) -> StoredModel:
    values = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    first = {id(value): name for name, value in reversed(list(values.items()))}
    stacked: dict[str, dict[str, list[str]]] = {}
    whole: dict[str, list[Unit]] = {}
    for name, target in targets.items():
        parameter = first[id(values[target.parameter])]
        if target.patterns:
            stacked.setdefault(parameter, {key: [] for key in target.patterns})[target.pattern].append(name)
        else:
            whole[parameter] = list(_plain_units(parameter, name, values[parameter]))
    for parameter, by_pattern in stacked.items():
        whole[parameter] = list(_stacked_units(parameter, list(by_pattern.values()), values[parameter]))
    units = tuple(unit for units in whole.values() for unit in units)
    found = StoredModel(model, places, units)
    _check(found, values, {first[id(value)] for name, value in model.named_parameters()})
    return found


def _plain_units(parameter: str, name: str, value: Tensor) -> Iterator[Unit]:
    if value.ndim == 3 and "experts" in parameter:
        yield from (Unit(parameter, row, (name,), row, value.dtype) for row in range(value.shape[0]))
    else:
        yield Unit(parameter, None, (name,), None, value.dtype)


def _stacked_units(parameter: str, columns: Sequence[Sequence[str]], value: Tensor) -> Iterator[Unit]:
    from transformers.core_model_loading import dot_natural_key

    ordered = [sorted(names, key=dot_natural_key) for names in columns]
    if any(len(names) != value.shape[0] for names in ordered):
        raise NotByShards(f"the tensors that {parameter} is made of are not all there")
    for expert, pieces in enumerate(zip(*ordered, strict=True)):
        yield Unit(parameter, expert, pieces, None, value.dtype)


def _check(stored: StoredModel, values: Mapping[str, Tensor], parameters: Iterable[str]) -> None:
    """Raise NotByShards where the shapes of what was put together are not those of the model."""
    made: dict[str, tuple[int, ...]] = {}
    for unit in stored.units:
        shapes = [stored.places[name].tensor.shape for name in unit.pieces]
        if unit.row is not None or unit.expert is None:
            made[unit.parameter] = shapes[0]
        else:
            made[unit.parameter] = (unit.expert + 1, sum(shape[0] for shape in shapes), *shapes[0][1:])
    for name in parameters:
        if made.get(name) != tuple(values[name].shape):
            raise NotByShards(f"{name} would not be put together as transformers does it")
