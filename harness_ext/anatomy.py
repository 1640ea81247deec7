"""A model's matrices: which parameter, or which part of one, plays which role in which layer.

Everything here follows from the config and from parameter names and shapes, so that a plan needs no weights. The next family is one entry in `FAMILIES`; an architecture
without an entry still works through globs on parameter names, its roles unknown.

Every matrix is spoken of in the orientation `[out, in]` (`y = W x`), however it is stored. A role may be a part of a fused parameter: its rows (or columns) are given as ranges of that view, so that
interleaved layouts need nothing new.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from harness_ext.errors import UserError
from harness_ext.recipe import Step, nearest

Ranges = tuple[tuple[int, int], ...]
"""Half-open ranges of rows or columns, in order."""

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
ROLES = ATTENTION + MLP
GROUPS: Mapping[str, str] = {
    "attn": "the attention matrices",
    "mlp": "the MLP matrices",
    "all": "attn and mlp",
}


@dataclass(frozen=True)
class Matrix:
    """One matrix, or one part of a fused one.

    parameter: the full name of its weight. stored_transposed: kept as `[in, out]`. rows, columns: the part that is meant, as ranges of the `[out, in]` view; None for all.
    """

    parameter: str
    full_shape: tuple[int, int]
    role: str | None = None
    layer: int | None = None
    stored_transposed: bool = False
    rows: Ranges | None = None
    columns: Ranges | None = None
    head: int | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """`(out, in)` of the part."""
        rows, columns = self.full_shape
        return _length(self.rows, rows), _length(self.columns, columns)

    @property
    def module(self) -> str:
        """The name of the module that owns the weight."""
        return self.parameter.rpartition(".")[0]

    @property
    def bias(self) -> str:
        """The name that the bias of this matrix has, or would have."""
        return f"{self.module}.bias"

    @property
    def key(self) -> str:
        """A name for the part that no other has: the parameter's, with role and head where it is only a part."""
        parts = [self.parameter]
        if self.role and (self.rows or self.columns):
            parts.append(self.role)
        if self.head is not None:
            parts.append(f"head {self.head}")
        return " ".join(parts)


def _length(ranges: Ranges | None, full: int) -> int:
    return full if ranges is None else sum(stop - start for start, stop in ranges)


@dataclass(frozen=True)
class Heads:
    """The attention geometry: query heads, key and value heads (fewer where grouped), and the width of one."""

    queries: int
    key_values: int
    width: int


@dataclass(frozen=True)
class Slot:
    """Where a family keeps a role: a weight inside a layer, and the rows of it, as a function of the attention geometry."""

    module: str
    rows: Callable[[Heads], Ranges] | None = None


@dataclass(frozen=True)
class Family:
    """How one kind of model names its layers and matrices. `layer` is the text between the start of a name, or a dot, and the number."""

    model_types: tuple[str, ...]
    layer: str
    slots: Mapping[str, Slot]
    stored_transposed: bool = False
    heads: Callable[[Mapping[str, Any]], Heads] = field(default=lambda config: _llama_heads(config))


def _llama_heads(config: Mapping[str, Any]) -> Heads:
    queries = int(config["num_attention_heads"])
    width = config.get("head_dim") or int(config["hidden_size"]) // queries
    return Heads(queries, int(config.get("num_key_value_heads") or queries), int(width))


def _gpt2_heads(config: Mapping[str, Any]) -> Heads:
    heads = int(config["n_head"])
    return Heads(heads, heads, int(config["n_embd"]) // heads)


def _third(number: int) -> Callable[[Heads], Ranges]:
    """The rows of query (0), key (1) or value (2) in a matrix that stacks the three."""
    return lambda heads: ((number * heads.queries * heads.width, (number + 1) * heads.queries * heads.width),)


FAMILIES: tuple[Family, ...] = (
    Family(
        model_types=("llama", "mistral", "qwen2", "qwen3"),
        layer="layers.",
        slots={role: Slot(f"{'self_attn' if role in ATTENTION else 'mlp'}.{role}") for role in ROLES},
    ),
    Family(
        model_types=("gpt2",),
        layer="h.",
        slots={
            "q_proj": Slot("attn.c_attn", _third(0)),
            "k_proj": Slot("attn.c_attn", _third(1)),
            "v_proj": Slot("attn.c_attn", _third(2)),
            "o_proj": Slot("attn.c_proj"),
            "up_proj": Slot("mlp.c_fc"),
            "down_proj": Slot("mlp.c_proj"),
        },
        stored_transposed=True,
        heads=_gpt2_heads,
    ),
)


class Anatomy:
    """The matrices of one model, found by name and shape, and chosen by the words of a recipe.

    config: the model's config as plain data. shapes: every parameter's name and stored shape.
    """

    def __init__(self, config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> None:
        self.model_type = str(config.get("model_type", "unknown"))
        self._shapes = {name: (int(shape[0]), int(shape[1])) for name, shape in shapes.items() if len(shape) == 2}
        self.family = next((family for family in FAMILIES if self.model_type in family.model_types), None)
        self.heads = self.family.heads(config) if self.family else None
        self.matrices: tuple[Matrix, ...] = tuple(self._by_role())
        self.layers = 1 + max((matrix.layer for matrix in self.matrices if matrix.layer is not None), default=-1)

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles this model has; empty for an architecture without an entry."""
        found = {matrix.role for matrix in self.matrices}
        return tuple(role for role in ROLES if role in found)

    def select(self, step: Step, where: str = "") -> tuple[Matrix, ...]:
        """The matrices that a step means, in the order of the model, each once.

        Raises UserError naming every pattern and layer that matches nothing, with the nearest that would.
        """
        mistakes: list[str] = []
        chosen: dict[str, Matrix] = {}
        for pattern in step.matrices:
            found = self._matching(pattern)
            if not found:
                mistakes.append(self._unmatched(pattern))
            chosen.update((matrix.key, matrix) for matrix in found)
        layers = self._layers(step.layers, mistakes)
        if mistakes:
            raise UserError(f"{where}this model ({self.model_type}, {self.layers} layers) does not fit the recipe:" + "".join(f"\n  - {mistake}" for mistake in mistakes))
        order = {key: place for place, key in enumerate(self._parts)}
        kept = sorted((matrix for matrix in chosen.values() if layers is None or matrix.layer in layers), key=lambda matrix: order.get(matrix.key, len(order)))
        if not kept:
            raise UserError(f"{where}matrices {list(step.matrices)} have no match in layers {list(step.layers or ())} of this model ({self.layers} layers)")
        return tuple(part for matrix in kept for part in (self._per_head(matrix) if step.per_head else (matrix,)))

    def _by_role(self) -> Iterator[Matrix]:
        if self.family is None or self.heads is None:
            return
        pattern = re.compile(rf"(?:^|\.){re.escape(self.family.layer)}(\d+)\.(.+)\.weight$")
        owners: dict[tuple[int, str], str] = {}
        for name in self._shapes:
            if match := pattern.search(name):
                owners[int(match[1]), match[2]] = name
        for layer in sorted({layer for layer, _ in owners}):
            for role, slot in self.family.slots.items():
                if (name := owners.get((layer, slot.module))) is not None:
                    rows = slot.rows(self.heads) if slot.rows else None
                    yield replace(self._whole(name), role=role, layer=layer, rows=rows)

    def _whole(self, name: str) -> Matrix:
        rows, columns = self._shapes[name]
        transposed = self.family is not None and self.family.stored_transposed and bool(re.search(rf"(?:^|\.){re.escape(self.family.layer)}\d+\.", name))
        return Matrix(name, (columns, rows) if transposed else (rows, columns), stored_transposed=transposed)

    def _matching(self, pattern: str) -> list[Matrix]:
        roles = {"attn": ATTENTION, "mlp": MLP, "all": ROLES}.get(pattern, (pattern,))
        by_role = [matrix for matrix in self.matrices if matrix.role in roles]
        if by_role or pattern in ROLES or pattern in GROUPS:
            return by_role
        if part := self._parts.get(pattern):
            return [part]
        return [self._named(name) for name in fnmatch.filter(self._shapes, pattern)]

    @cached_property
    def _parts(self) -> dict[str, Matrix]:
        """Every matrix and every head of one by its key, which is how a recipe made from a receipt names them."""
        return {part.key: part for matrix in self.matrices for part in (matrix, *self._per_head(matrix))}

    def _named(self, name: str) -> Matrix:
        owners = [matrix for matrix in self.matrices if matrix.parameter == name]
        return owners[0] if len(owners) == 1 and owners[0].rows is None else replace(self._whole(name), layer=owners[0].layer if owners else None)

    def _unmatched(self, pattern: str) -> str:
        if pattern in ROLES or pattern in GROUPS:
            known = f"it has {', '.join(self.roles)}" if self.roles else f"the roles of a {self.model_type} are unknown: use globs on parameter names, such as {self._example()!r}"
            return f"matrices: no {pattern} here; {known}"
        return f"matrices: {pattern!r} matches no role, group or 2-D parameter; {nearest(pattern, [*self.roles, *GROUPS, *self._shapes])}"

    def _example(self) -> str:
        name = next(iter(self._shapes), "*.weight")
        return re.sub(r"\d+", "*", name)

    def _layers(self, wanted: Iterable[int | str] | None, mistakes: list[str]) -> frozenset[int] | None:
        if wanted is None:
            return None
        chosen: set[int] = set()
        if not self.layers:
            mistakes.append(f"layers: this architecture's layers are unknown; put their numbers into the globs, such as {self._example()!r}")
            return frozenset()
        for item in wanted:
            found = _layer_numbers(item, self.layers)
            if found is None:
                mistakes.append(f"layers: {item!r} is not a number, a negative number or a range such as '-8:' or '2:5'")
            elif not found:
                mistakes.append(f"layers: {item!r} is outside 0 to {self.layers - 1}")
            chosen.update(found or ())
        return frozenset(chosen)

    def _per_head(self, matrix: Matrix) -> Iterable[Matrix]:
        """Split an attention matrix into its heads: rows of q, k and v, columns of o. Others stay whole."""
        if self.heads is None or matrix.role not in ATTENTION:
            return (matrix,)
        count = self.heads.key_values if matrix.role in ("k_proj", "v_proj") else self.heads.queries
        start = matrix.rows[0][0] if matrix.rows else 0

        def head(number: int) -> Matrix:
            span: Ranges = ((start + number * self.heads.width, start + (number + 1) * self.heads.width),)
            return replace(matrix, head=number, **({"columns": span} if matrix.role == "o_proj" else {"rows": span}))

        return [head(number) for number in range(count)]


def _layer_numbers(item: int | str, count: int) -> list[int] | None:
    """The layers that one entry means; empty where they lie outside, None where it cannot be read."""
    text = str(item)
    if re.fullmatch(r"-?\d+", text):
        number = int(text)
        return [number % count] if count and -count <= number < count else []
    match = re.fullmatch(r"(-?\d+)?:(-?\d+)?", text)
    if not match:
        return None
    start, stop = (int(bound) if bound else None for bound in match.groups())
    return list(range(count))[start:stop]
