"""A model's matrices: which parameter, or which part of one, plays which role in which layer.

Everything here follows from the config and from parameter names and shapes, so that a plan needs no weights. What a
kind of model calls things is in `harness_ext.model.architectures`. Without an entry there, roles of whole matrices are
inferred from names (`harness_ext.model.inference`), and what has none still works through globs on parameter names.

Every matrix is spoken of in the orientation `[out, in]` (`y = W x`), however it is stored. A role may be a part of a
fused parameter: its rows (or columns) are given as ranges of that view, so that interleaved layouts need nothing new.
Of the experts in a parameter `[experts, out, in]`, or `[experts, in, out]`, each is a matrix of its own.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

from harness_ext.errors import UserError, nearest
from harness_ext.model.architectures import (
    ATTENTION,
    LATENT,
    MIXER,
    MLP,
    NORMALISED,
    ROLES,
    architecture_of,
    text_config,
)
from harness_ext.model.expert_layouts import ExpertLayout, expert_modules
from harness_ext.model.geometry import Ranges
from harness_ext.model.inference import Inference, infer, is_transposed
from harness_ext.model.rotation import rotation_of

GROUPS: Mapping[str, str] = {
    "attn": "the attention matrices",
    "mlp": "the MLP matrices",
    "mixer": "the matrices in and out of layers that mix tokens without attention, such as state spaces",
    "experts": "the MLP matrices of a mixture's experts",
    "all": "attn, mlp and mixer",
}
_MEMBERS = {"attn": ATTENTION + LATENT, "mlp": MLP, "mixer": MIXER, "all": ROLES}
_OF_ONE_EXPERT = re.compile(r"(.+) expert (\d+)")


@dataclass(frozen=True)
class Matrix:
    """One matrix, or one part of a fused one.

    parameter: the full name of its weight. full_shape: of the whole weight, or of one expert's part of it.
    stored_transposed: kept as `[in, out]`. rows, columns: the part that is meant, as ranges of
    the `[out, in]` view; None for all. expert: its place along the first axis of a weight that holds many experts.
    experts: how the module keeps them, where that is known. also: the other names of a weight that layers share.
    """

    parameter: str
    full_shape: tuple[int, int]
    role: str | None = None
    layer: int | None = None
    stored_transposed: bool = False
    rows: Ranges | None = None
    columns: Ranges | None = None
    head: int | None = None
    expert: int | None = None
    experts: ExpertLayout | None = None
    also: tuple[str, ...] = ()

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
    def modules(self) -> tuple[str, ...]:
        """The names of all modules that have the weight, its owner first."""
        return (self.module, *(name.rpartition(".")[0] for name in self.also))

    @property
    def bias(self) -> str:
        """The name that the bias of this matrix has, or would have; of an expert, that of all experts' biases."""
        return f"{self.module}.bias" if self.expert is None else f"{self.parameter}_bias"

    @property
    def key(self) -> str:
        """A name for the part that no other has: the parameter's, with role, head and expert where it is only a
        part.
        """
        parts = [self.parameter]
        if self.role and (self.rows or self.columns):
            parts.append(self.role)
        if self.head is not None:
            parts.append(f"head {self.head}")
        if self.expert is not None:
            parts.append(f"expert {self.expert}")
        return " ".join(parts)

    @property
    def part(self) -> str | None:
        """What the key says beyond the parameter; None for all of it."""
        return self.key.removeprefix(self.parameter).strip() or None


def _length(ranges: Ranges | None, full: int) -> int:
    return full if ranges is None else sum(stop - start for start, stop in ranges)


class Selection(Protocol):
    """Which matrices are meant, as a step of a recipe says it. matrices: roles, groups or globs on parameter names.
    layers: numbers, negative ones or ranges; None for all. per_head: attention matrices split into their heads.
    """

    @property
    def matrices(self) -> tuple[str, ...]: ...

    @property
    def layers(self) -> tuple[int | str, ...] | None: ...

    @property
    def per_head(self) -> bool: ...


class Layout:
    """The matrices of one model, found by name and shape, and chosen by the words of a recipe.

    config: the model's config as plain data. shapes: every parameter's name and stored shape. shared: the other names
    of parameters that have several. classes: the class names of modules, which tell more of a model without an entry
    among the architectures.

    clamp: the size at which queries, keys and values are cut off, None where they are not. units_compared: whether
    hidden units of an MLP are set to zero by how they compare with the others (Gemma 3n). rotation: which coordinates
    of queries and keys positions turn into each other, None where that is not known.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        shapes: Mapping[str, Sequence[int]],
        shared: Mapping[str, tuple[str, ...]] | None = None,
        classes: Mapping[str, str] | None = None,
    ) -> None:
        self._shared = shared or {}
        self.model_type = str(config.get("model_type", "unknown"))
        self.vectors = {name: int(shape[0]) for name, shape in shapes.items() if len(shape) == 1}
        self._shapes = {name: tuple(map(int, shape)) for name, shape in shapes.items() if _is_matrix(name, shape)}
        self.architecture = architecture_of(config)
        self._classes = classes or {}
        self._inference = infer(shapes, self._classes) if self.architecture is None else Inference()
        # Where the language model is one part among others, a tower for images may name its layers alike.
        text = text_config(config)
        self.clamp = _clamp_of(text)
        sparsity = text.get("activation_sparsity_pattern")
        self.units_compared = any(sparsity) if isinstance(sparsity, list | tuple) else bool(sparsity)
        wrapped = text is not config and any("language_model." in name for name in shapes)
        inside = r"(?:.*\.)?language_model\." if wrapped else ""
        self._layer = (
            re.compile(rf"^{inside}(?:.*\.)?{re.escape(self.architecture.layer)}(\d+)\.(.+?)(?:\.weight)?$")
            if self.architecture
            else None
        )
        self.heads = self.architecture.heads(text) if self.architecture else None
        self.rotation = rotation_of(text, self.heads) if self.heads is not None else None
        self._expert_modules = [
            module
            for module in expert_modules(str(text.get("model_type")), shapes)
            if not wrapped or "language_model." in module.name
        ]
        self._expert_layouts = {
            name: module.layout for module in self._expert_modules for name in module.weights.values()
        }
        self.matrices: tuple[Matrix, ...] = tuple(
            sorted([*self._by_role(), *self._of_experts()], key=lambda matrix: matrix.layer or 0)
        )
        numbered = 1 + max((matrix.layer for matrix in self.matrices if matrix.layer is not None), default=-1)
        self.layers = max(numbered, self._inference.layers)
        self._joined = self.heads is not None and any(
            tuple(shape) == (self.heads.queries * self.heads.width,)
            for name, shape in shapes.items()
            if self.heads.queries > 1 and name.endswith(("q_norm.weight", "q_layernorm.weight"))
        )
        self.experts = max((shape[0] for shape in self._shapes.values() if len(shape) == 3), default=0)

    @property
    def inferred(self) -> bool:
        """Whether roles were told from names, rather than declared for this kind of model."""
        return bool(self._inference.roles)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why matrices of a model without an entry have no role."""
        return self._inference.reasons

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles this model has; empty where none is declared and none can be told from names."""
        found = {matrix.role for matrix in self.matrices}
        return tuple(role for role in ROLES if role in found)

    def select(self, step: Selection) -> tuple[Matrix, ...]:
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
        if step.per_head:
            mistakes += self._not_by_head(chosen.values())
        layers = self._layers(step.layers, mistakes)
        if mistakes:
            raise UserError(
                f"this model ({self.model_type}, {self.layers or 'unknown'} layers) does not fit the recipe:"
                + "".join(f"\n  - {mistake}" for mistake in mistakes)
            )
        order = {key: place for place, key in enumerate(self._parts)}
        kept = sorted(
            (matrix for matrix in chosen.values() if layers is None or matrix.layer in layers),
            key=lambda matrix: order.get(matrix.key, len(order)),
        )
        if not kept:
            where = sorted({matrix.layer for matrix in chosen.values() if matrix.layer is not None})
            raise UserError(
                f"matrices {list(step.matrices)} have no match in layers {list(step.layers or ())} of this model"
                f" ({self.layers} layers)" + (f": they are in {where}" if where else "")
            )
        return tuple(part for matrix in kept for part in (self._per_head(matrix) if step.per_head else (matrix,)))

    def _by_role(self) -> Iterator[Matrix]:
        if self.architecture is None or self.heads is None or self._layer is None:
            for inferred in self._inference.roles:
                for whole in self._wholes(inferred.parameter):
                    also = self._shared.get(whole.parameter, ())
                    yield replace(whole, role=inferred.role, layer=inferred.layer, rows=inferred.rows, also=also)
            return
        owners: dict[tuple[int, str], str] = {}
        for name in self._shapes:
            if match := self._layer.search(name):
                owners[int(match[1]), match[2]] = name
        for layer in sorted({layer for layer, _ in owners}):
            for slot in self.architecture.slots:
                for whole in self._wholes(owners.get((layer, slot.name))):
                    rows = slot.rows(self.heads, whole.full_shape[0]) if slot.rows else None
                    also = self._shared.get(whole.parameter, ())
                    yield replace(whole, role=slot.role, layer=layer, rows=rows, also=also)

    def _of_experts(self) -> Iterator[Matrix]:
        for module in self._expert_modules:
            for role, name in module.weights.items():
                wholes = self._wholes(name)
                rows = module.layout.rows(role, wholes[0].full_shape[0])
                for whole in wholes:
                    yield replace(whole, role=role, layer=module.layer, rows=rows)

    def _not_by_head(self, chosen: Iterable[Matrix]) -> Iterator[str]:
        """What is wrong with editing the attention of these head by head, where the architecture has no such heads."""
        reason = self.no_heads
        attention = [matrix.role for matrix in chosen if matrix.role in _MEMBERS["attn"]]
        if reason and attention:
            yield (
                f"per_head: {attention[0]} of a {self.model_type} cannot be edited head by head: {reason}; set"
                " per_head=false"
            )

    @property
    def no_heads(self) -> str | None:
        """Why no matrix can be edited head by head; None where they can."""
        if self.architecture is None:
            return "its role is inferred from names, which do not tell whether heads are independent"
        if self.architecture.no_heads is None and self._joined:
            return NORMALISED
        return self.architecture.no_heads

    def _wholes(self, name: str | None) -> list[Matrix]:
        """The parameter as one matrix, or as one for each of its experts; nothing for None."""
        if name is None:
            return []
        *experts, rows, columns = self._shapes[name]
        layout = self._expert_layouts.get(name)
        transposed = layout.transposed if layout is not None else self._stored_transposed(name)
        whole = Matrix(name, (columns, rows) if transposed else (rows, columns), stored_transposed=transposed)
        return [replace(whole, expert=number, experts=layout) for number in range(experts[0])] if experts else [whole]

    def _stored_transposed(self, name: str) -> bool:
        if self.architecture is None or self._layer is None:
            return is_transposed(name, self._classes)
        return self.architecture.stored_transposed and bool(self._layer.search(name))

    def _matching(self, pattern: str) -> list[Matrix]:
        if part := self._parts.get(pattern):
            return [part]
        if match := _OF_ONE_EXPERT.fullmatch(pattern):
            return [matrix for matrix in self._matching(match[1]) if matrix.expert == int(match[2])]
        if pattern == "experts":
            return [matrix for matrix in self.matrices if matrix.expert is not None]
        roles = _MEMBERS.get(pattern, (pattern,))
        by_role = [matrix for matrix in self.matrices if matrix.role in roles]
        if by_role or pattern in ROLES or pattern in GROUPS:
            return by_role
        by_name = [matrix for name in fnmatch.filter(self._shapes, pattern) for matrix in self._named(name)]
        return by_name or self._apart(pattern)

    def _apart(self, pattern: str) -> list[Matrix]:
        """The experts' matrices whose names in a checkpoint that keeps each by itself match a pattern."""
        return [
            matrix
            for matrix in self.matrices
            if matrix.expert is not None
            and fnmatch.fnmatchcase(f"{matrix.module}.{matrix.expert}.{matrix.role}.weight", pattern)
        ]

    @cached_property
    def _parts(self) -> dict[str, Matrix]:
        """Every matrix and every head of one by its key, which is how a recipe made from a receipt names them."""
        return {part.key: part for matrix in self.matrices for part in (matrix, *self._per_head(matrix))}

    @cached_property
    def _owned(self) -> dict[tuple[str, int | None], list[Matrix]]:
        """The roles in each parameter, or in each expert's part of it."""
        owned: dict[tuple[str, int | None], list[Matrix]] = {}
        for matrix in self.matrices:
            owned.setdefault((matrix.parameter, matrix.expert), []).append(matrix)
        return owned

    def _named(self, name: str) -> Iterator[Matrix]:
        """What a parameter's name means: its one role where it has one, else the whole of it."""
        for whole in self._wholes(name):
            owners = self._owned.get((name, whole.expert), [])
            yield (
                owners[0]
                if len(owners) == 1 and owners[0].rows is None
                else replace(whole, layer=owners[0].layer if owners else None)
            )

    def _unmatched(self, pattern: str) -> str:
        known = (
            f"it has {', '.join(self.roles)}"
            if self.roles
            else (
                f"the roles of a {self.model_type} are unknown: use globs on parameter names, such as"
                f" {self._example()!r}"
            )
        )
        if self.reasons and (pattern in ROLES or pattern in GROUPS):
            known += f" ({'; '.join(self.reasons)})"
        if "expert" in pattern:
            if not self.experts:
                return f"matrices: {pattern!r} names experts, and this model has none; {known}"
            if (match := _OF_ONE_EXPERT.fullmatch(pattern)) and self._matching(match[1]):
                return f"matrices: {pattern!r} matches nothing; the experts of this model are 0 to {self.experts - 1}"
        if pattern in ROLES or pattern in GROUPS:
            return f"matrices: no {pattern} here; {known}"
        return (
            f"matrices: {pattern!r} matches no role, group or 2-D parameter;"
            f" {nearest(pattern, [*self.roles, *GROUPS, *self._shapes])}"
        )

    def _example(self) -> str:
        name = next(
            (name for name, shape in self._shapes.items() if len(shape) == 2 and re.search(r"\d", name)), None
        ) or next(iter(self._shapes), "*.weight")
        return re.sub(r"\d+", "*", name)

    def _layers(self, wanted: Iterable[int | str] | None, mistakes: list[str]) -> frozenset[int] | None:
        if wanted is None:
            return None
        chosen: set[int] = set()
        if not self.layers:
            mistakes.append(
                "layers: this architecture's layers are unknown; put their numbers into the globs, such as"
                f" {self._example()!r}"
            )
            return frozenset()
        for item in wanted:
            found = layer_numbers(item, self.layers)
            if not found:
                mistakes.append(
                    f"layers: {item!r} holds none of 0 to {self.layers - 1}: a range ends before its second number"
                    if ":" in str(item)
                    else f"layers: {item!r} is outside 0 to {self.layers - 1}"
                )
            chosen.update(found)
        return frozenset(chosen)

    def _per_head(self, matrix: Matrix) -> Iterable[Matrix]:
        """Split an attention matrix into its heads: rows of q, k and v, columns of o. Others stay whole."""
        if self.heads is None or matrix.role not in ATTENTION or (self.architecture and self.architecture.no_heads):
            return (matrix,)
        count = self.heads.key_values if matrix.role in ("k_proj", "v_proj") else self.heads.queries
        width = self.heads.width
        spans = [(number * width, (number + 1) * width) for number in range(count)]
        if matrix.role == "o_proj":
            return [replace(matrix, head=number, columns=(span,)) for number, span in enumerate(spans)]
        rows = matrix.rows or ((0, matrix.full_shape[0]),)
        return [replace(matrix, head=number, rows=_within(rows, *span)) for number, span in enumerate(spans)]


def _clamp_of(config: Mapping[str, Any]) -> float | None:
    """`clip_qkv`, which MPT and DBRX have among the settings of attention, and OLMo by itself."""
    attention = config.get("attn_config")
    of_attention = attention.get("clip_qkv") if isinstance(attention, Mapping) else None
    found = config.get("clip_qkv") or of_attention
    return float(found) if isinstance(found, int | float) and found else None


def inferred_note(model_type: str) -> str:
    """What a plan, a receipt and a run say of roles that no entry declares."""
    return (
        f"the roles of this model ({model_type}) are inferred from the names and classes of its modules, not declared"
    )


def whole_note(step: Selection, chosen: Sequence[Matrix]) -> str | None:
    """What a plan and a receipt say of a step that asks for heads and names no matrix that has any; None of others."""
    if not step.per_head or any(matrix.head is not None for matrix in chosen):
        return None
    named = f"{', '.join(step.matrices[:3])}{', ...' if len(step.matrices) > 3 else ''}"
    return (
        f"per_head splits attention matrices into their heads, and {named} names none: every matrix of that step is"
        " edited as a whole"
    )


def _within(ranges: Ranges, start: int, stop: int) -> Ranges:
    """Part of a part: places `start` to `stop` among those that the ranges list."""
    found: list[tuple[int, int]] = []
    place = 0
    for low, high in ranges:
        first, last = max(start, place), min(stop, place + high - low)
        if first < last:
            found.append((low + first - place, low + last - place))
        place += high - low
    return tuple(found)


def check_not_shared(matrices: Sequence[Matrix], why: str, else_do: str = "") -> None:
    """Raise UserError naming the first matrix that several layers share, with what cannot be done to it, and what else
    helps than other matrices.
    """
    for matrix in matrices:
        if matrix.also:
            raise UserError(
                f"{matrix.key} is also the weight of {matrix.modules[1]}: layers share it, and {why}; choose matrices"
                f" that a layer has for itself{else_do}"
            )


def _is_matrix(name: str, shape: Sequence[int]) -> bool:
    """One matrix, or one for each expert. Other weights of three dimensions exist, such as those of convolutions, and
    biases of two: one for each expert.
    """
    if name.endswith(("_bias", ".bias")):
        return False
    return len(shape) == 2 or (len(shape) == 3 and "experts" in name)


def layer_numbers(item: int | str, count: int) -> list[int]:
    """The layers that one entry means in a model of so many; empty where they lie outside. Raises ValueError for what
    cannot be read.
    """
    text = str(item)
    if re.fullmatch(r"-?\d+", text):
        number = int(text)
        return [number % count] if count and -count <= number < count else []
    match = re.fullmatch(r"(-?\d+)?:(-?\d+)?", text)
    if not match:
        raise ValueError(f"{item!r} is not a number, a negative number or a range such as '-8:' or '2:5'")
    start, stop = (int(bound) if bound else None for bound in match.groups())
    return list(range(count))[start:stop]
