"""Which matrices of a layer make up a component: the one that a step names, and those that feed it.

What a unit of an MLP is, or a value of a head, is spread over matrices: a row of each that feeds, a column of the one
that reads. Whether a model's matrices fit together so is told from roles, names and shapes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from harness_ext.errors import UserError
from harness_ext.model.layout import Layout, Matrix, check_not_shared
from harness_ext.model.rotation import Rotation


class ComponentKind(NamedTuple):
    """reader: the role that a step names. feeders: the other roles; those of `optional` may be missing. what: a
    component in words. Mostly the one named reads what the others make; keys stand beside queries, and values that are
    mixed by themselves before what reads them. gives_directions: whether the one named is written with directions of
    its own, of size or not, so that the rank that an earlier edit left says nothing of it.
    """

    reader: str
    feeders: tuple[str, ...]
    optional: frozenset[str]
    what: str
    gives_directions: bool = False


UNITS = "units"
"""Names both kinds of component that have units, for a method that edits either: the role of a matrix says which."""
COMPONENTS_OF_UNITS = ("heads", "mlp")
COMPONENTS = {
    "heads": ComponentKind("o_proj", ("q_proj", "k_proj", "v_proj"), frozenset(), "the heads of an attention"),
    "mlp": ComponentKind("down_proj", ("gate_proj", "up_proj"), frozenset({"gate_proj"}), "the MLP of a layer"),
    "scores": ComponentKind("k_proj", ("q_proj",), frozenset(), "the queries and keys of an attention"),
    "values": ComponentKind("o_proj", ("v_proj",), frozenset(), "the values of an attention", True),
    "unattended": ComponentKind("v_proj", ("o_proj",), frozenset(), "the values of an attention"),
}


_NORMALISED = ("q_norm", "k_norm", "q_layernorm", "k_layernorm", "query_norm", "key_norm")


def left_of(total: int, fraction: float) -> int:
    """How many of so many units stay at a share of them: rounded down, and one at least."""
    return max(1, int(fraction * total + 1e-9))


def gives_directions(kind: str | None) -> bool:
    """Whether an edit of this kind of component writes the matrix that a step names with directions of its own."""
    return kind in COMPONENTS and COMPONENTS[kind].gives_directions


def kind_of(kind: str, matrix: Matrix) -> str:
    """The kind of component that a matrix reads, where a method edits this kind, or `UNITS`."""
    if kind != UNITS:
        return kind
    return next((own for own in COMPONENTS_OF_UNITS if COMPONENTS[own].reader == matrix.role), COMPONENTS_OF_UNITS[-1])


def units_of(layout: Layout, matrix: Matrix) -> int:
    """How many units a matrix reads, key-value heads or hidden units; see `UNITS`. One that `feeders_of` takes."""
    if kind_of(UNITS, matrix) == "mlp":
        return matrix.shape[1]
    assert layout.heads is not None, "heads that can be told apart"
    return layout.heads.key_values


def feeders_of(layout: Layout, matrix: Matrix, kind: str) -> dict[str, Matrix]:
    """The matrices that feed this one, by role. Raises UserError, in a sentence, where they do not make a component."""
    kind = kind_of(kind, matrix)
    known = COMPONENTS[kind]
    if matrix.expert is not None:
        raise UserError(
            f"{matrix.key}: units of experts cannot be chosen, since each expert sees few tokens and its layer computes"
            " all of them in one call; choose a method for single matrices, such as svd-llm"
        )
    if matrix.role != known.reader or matrix.head is not None:
        raise UserError(
            f"{matrix.key}: this method edits {known.what} as a whole, and is given one matrix of it for all: set"
            f" matrices=[{known.reader}]"
        )
    own = [
        other
        for other in layout.matrices
        if other.layer == matrix.layer and other.expert is None and _parent(other) == _parent(matrix)
    ]
    found: dict[str, Matrix] = {}
    for role in known.feeders:
        feeding = [other for other in own if other.role == role]
        if len(feeding) > 1 or (not feeding and role not in known.optional):
            raise UserError(
                f"{matrix.key}: {known.what} is edited as a whole, and {len(feeding)} matrices of it are its {role}:"
                " choose a method for single matrices, such as svd-llm"
            )
        if feeding:
            found[role] = feeding[0]
    check_not_shared([matrix, *found.values()], "what feeds it differs from layer to layer")
    if kind in ("values", "unattended", "scores"):
        _check_clamp(layout, matrix)
    if kind in ("heads", "values"):
        _check_heads(layout, matrix.key, matrix.shape[1], found["v_proj"])
    elif kind == "unattended":
        _check_heads(layout, found["o_proj"].key, found["o_proj"].shape[1], matrix)
    if kind == "heads":
        _check_heads(layout, found["q_proj"].key, found["q_proj"].shape[0], found["k_proj"])
        _check_norms(layout, matrix)
    elif kind == "scores":
        _check_heads(layout, found["q_proj"].key, found["q_proj"].shape[0], matrix)
        _check_coordinates(layout, matrix)
    elif kind == "mlp":
        _check_fit(layout, matrix, found)
    return found


def mlps_among(matrices: Sequence[Matrix]) -> list[list[Matrix]]:
    """Those of the matrices that belong to an MLP, by what they are part of, in the order given."""
    known = COMPONENTS["mlp"]
    found: dict[str, list[Matrix]] = {}
    for matrix in matrices:
        if matrix.role in (known.reader, *known.feeders):
            found.setdefault(_parent(matrix), []).append(matrix)
    return list(found.values())


def coordinates_left(width: int, rotation: Rotation, fraction: float) -> tuple[int, int]:
    """How many pairs that turn, and how many coordinates that do not, stay of a head at a share of both; one at least
    of each that there are.
    """
    pairs, others = rotation.width // 2, width - rotation.width
    return left_of(pairs, fraction) if pairs else 0, left_of(others, fraction) if others else 0


def lost_of(layout: Layout, kind: str, role: str, total: int, fraction: float) -> int:
    """How many of the rows, or columns, of a role go at a share that stays: of an attention in every head as many, and
    of scores those coordinates together that positions turn into each other.
    """
    heads = layout.heads
    if kind == "mlp" or heads is None:
        return total - left_of(total, fraction)
    groups = heads.queries if role in ("q_proj", "o_proj") else heads.key_values
    rotation = (layout.rotation if kind == "scores" else None) or Rotation()
    pairs, others = coordinates_left(total // groups, rotation, fraction)
    return total - groups * (2 * pairs + others)


def check_components(layout: Layout, pairs: Iterable[tuple[Matrix, str]]) -> None:
    """Raise UserError naming the first matrix that stands for no component of its kind."""
    for matrix, kind in pairs:
        feeders_of(layout, matrix, kind)


def _check_heads(layout: Layout, key: str, queries: int, shared: Matrix) -> None:
    """key, queries: the matrix of all query heads, and its length there; shared: that of the key and value heads."""
    heads = layout.heads
    if heads is None or layout.no_heads is not None:
        raise UserError(f"{key}: its heads cannot be told apart: {layout.no_heads}; choose another method")
    if queries != heads.queries * heads.width or shared.shape[0] != heads.key_values * heads.width:
        raise UserError(
            f"{key} has {queries} numbers and {shared.key} {shared.shape[0]}, which are not {heads.queries} and"
            f" {heads.key_values} heads of {heads.width}: choose another method"
        )


def _check_clamp(layout: Layout, matrix: Matrix) -> None:
    """What is cut off at a size does not mix, and is not as large as weights and inputs say."""
    if layout.clamp is not None:
        raise UserError(
            f"{matrix.key}: the model cuts queries, keys and values off at {layout.clamp:g} (clip_qkv): they can"
            " neither be mixed nor chosen by their sizes; leave this step out, or choose another method"
        )


def _check_norms(layout: Layout, matrix: Matrix) -> None:
    assert layout.heads is not None, "heads that can be told apart"
    for name, length in layout.vectors.items():
        if length > layout.heads.width and name.startswith(f"{_parent(matrix)}.") and "norm" in name:
            raise UserError(
                f"{matrix.key} reads heads over all of which {name} normalises: without some of them the others would"
                " change too; set matrices=[down_proj]"
            )


def _check_coordinates(layout: Layout, keys: Matrix) -> None:
    normalised = [name for name in layout.vectors if any(word in name for word in _NORMALISED)]
    if normalised:
        raise UserError(
            f"{keys.key}: queries and keys are normalised ({normalised[0]}), so that the others would change with every"
            " coordinate that goes; leave this step, or its k_proj, out"
        )
    if layout.rotation is None:
        raise UserError(
            f"{keys.key}: which coordinates positions rotate together in a {layout.model_type} is not known here; leave"
            " this step, or its k_proj, out"
        )


def _check_fit(layout: Layout, matrix: Matrix, feeders: dict[str, Matrix]) -> None:
    width = matrix.shape[1]
    if layout.units_compared:
        raise UserError(
            f"{matrix.key}: the model sets units to zero by how they compare with all others of a layer"
            " (activation_sparsity_pattern), so that the others would change with every unit that goes; choose a method"
            " for single matrices, such as svd-llm"
        )
    for other in feeders.values():
        if other.shape[0] != width:
            raise UserError(
                f"{matrix.key} reads {width} numbers and {other.key} makes {other.shape[0]}: they are not of the same"
                " units, and cannot be chosen together"
            )
    for name, length in layout.vectors.items():
        if length == width and name.startswith(f"{_parent(matrix)}.") and "norm" in name:
            raise UserError(
                f"{matrix.key} reads what {name} has normalised over all units: without some of them the others would"
                " change too; choose a method for single matrices, such as svd-llm"
            )


def _parent(matrix: Matrix) -> str:
    return matrix.module.rpartition(".")[0]
