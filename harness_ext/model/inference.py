"""The roles of matrices in models without an entry in `harness_ext.model.architectures`, told from the names of
modules, their classes and their shapes.

Whole matrices only: names say which matrix makes queries, and nothing about its heads. A role is given where all
matrices of an attention, or of an MLP, are there under the names of one convention and their shapes fit together.
Whatever is left has no role, and `Inference.reasons` says why. Embeddings, output heads, norms, routers, convolutions,
adapters, cross-attention and towers for images or sound never have one.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from harness_ext.model.architectures import ATTENTION, MLP
from harness_ext.model.geometry import Ranges

_NUMBERED = re.compile(r"^((?:[^.]+\.)*?)(\d+)\.(.+)$")
# Parts of a model that are not its language model, and models inside it whose outputs are no logits of its tokens.
_FOREIGN = re.compile(r"vision|visual|image|img|audio|speech|video|patcher|depth_decoder|(^|\.)mtp(\.|$)")
# Inside a layer: what attends to another sequence, mixes tokens without attention, chooses, or adjusts.
_NO_ROLE = re.compile(
    r"cross|encoder_attn|encdec|linear_attn|mamba|mlstm|conv|indexer|compressor|router|norm|adapter|lora|laurel|altup"
    r"|hyper_connection|per_layer|(^|\.)gate\.|experts?\.\d",
    re.IGNORECASE,
)
# What an attention that works as a recurrence has beside its projections.
_RECURRENT = re.compile(r"A_log|dt_bias|forget_gate|time_mix|slope|igate|receptance|output_gate")
_NOT_LINEAR = re.compile(r"embedding|norm|router|conv[123]d(?!$)|clip|residual", re.IGNORECASE)
_TRANSPOSED = "Conv1D"

# The names of one convention, below the module of the attention, in the order of `ATTENTION`.
_ATTENTION_NAMES: tuple[tuple[str, ...], ...] = (
    ("q_proj", "k_proj", "v_proj", "o_proj"),
    ("q_proj", "k_proj", "v_proj", "out_proj"),
    ("q_proj", "k_proj", "v_proj", "dense"),
    ("q_proj", "k_proj", "v_proj", "c_proj"),
    ("q_proj.linear", "k_proj.linear", "v_proj.linear", "o_proj.linear"),
    ("query_proj", "key_proj", "value_proj", "out_proj"),
    ("self.query", "self.key", "self.value", "output.dense"),
    ("self_attention.query", "self_attention.key", "self_attention.value", "output.dense"),
    ("q_lin", "k_lin", "v_lin", "out_lin"),
    ("Wq", "Wk", "Wv", "dense"),
    ("Wq", "Wk", "Wv", "Wo"),
    ("wq", "wk", "wv", "wo"),
    ("q", "k", "v", "o"),
    ("project_q", "project_k", "project_v", "attention_out"),
)
# In the order of `MLP`; without a gate, in that of its last two.
_GATED_NAMES: tuple[tuple[str, ...], ...] = (
    ("gate_proj", "up_proj", "down_proj"),
    ("w1", "w3", "w2"),
    ("wi_0", "wi_1", "wo"),
    ("w_in.w_0", "w_in.w_1", "w_out"),
    ("proj_up_gate", "proj_up", "proj_down"),
)
_PLAIN_NAMES: tuple[tuple[str, ...], ...] = (
    ("up_proj", "down_proj"),
    ("fc1", "fc2"),
    ("fc_in", "fc_out"),
    ("c_fc", "c_proj"),
    ("dense_h_to_4h", "dense_4h_to_h"),
    ("intermediate.dense", "output.dense"),
    ("lin1", "lin2"),
    ("wi", "wo"),
)
# Names that could be anything's, trusted only in a module that is named as an MLP is.
_VAGUE_NAMES: tuple[tuple[str, ...], ...] = (
    ("intermediate", "output"),
    ("dense.dense", "output.dense"),
    ("layer_1", "layer_2"),
    ("0", "2"),
)
_MLP_MODULE = re.compile(r"(^|\.)(ff|ffn|mlp|feed_forward)$")
_GATE_UP = ("gate_up_proj", "down_proj")
_FUSED = ("qkv_proj", "query_key_value", "c_attn", "Wqkv", "qkv")
_LATENT = ("kv_a_proj_with_mqa", "kv_b_proj", "q_a_proj", "q_b_proj")
_AFTER_FUSED = ("o_proj", "out_proj", "dense", "c_proj", "Wo")


class InferredRole(NamedTuple):
    """A role that a parameter has by its name, or that the rows of it have; None for all."""

    parameter: str
    role: str
    layer: int
    rows: Ranges | None = None


class Inference(NamedTuple):
    """The roles of a model, in its order, the number of its layers with those that have no role, and why matrices have
    none.
    """

    roles: tuple[InferredRole, ...] = ()
    layers: int = 0
    reasons: tuple[str, ...] = ()


class _Layer(NamedTuple):
    """The weights of linear layers in one numbered layer, `[out, in]`, by name inside it; and all names there."""

    stack: str
    number: int
    weights: Mapping[str, tuple[int, int]]
    every: tuple[str, ...]

    def of(self, module: str, names: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Those weights of a module that have one of the names, by name."""
        found = {name: self.weights.get(_joined(module, name)) for name in names}
        return {name: shape for name, shape in found.items() if shape is not None}


_Part = tuple[str, str, Ranges | None]
"""Name of a weight inside its layer, role, rows."""


def infer(shapes: Mapping[str, Sequence[int]], classes: Mapping[str, str]) -> Inference:
    """The roles that names tell.

    shapes: of every parameter, as stored. classes: the class names of modules, by name; empty where they are not known,
    and then every weight of two dimensions counts as a linear layer's.
    """
    layers = _layers(shapes, classes)
    named = [
        _named(layer, module, names) for names in _ATTENTION_NAMES for layer in layers for module in _modules(layer)
    ]
    conventions = {item for item in named if item is not None}
    found = {place: list(_roles(layer, conventions)) for place, layer in enumerate(layers)}
    first, count = _first_numbers(layers, found)
    roles = tuple(
        InferredRole(f"{layer.stack}{layer.number}.{name}.weight", role, first[layer.stack] + layer.number, rows)
        for place, layer in enumerate(layers)
        for name, role, rows in found[place]
    )
    return Inference(roles, count, tuple(_reasons(layers, found)))


def is_transposed(parameter: str, classes: Mapping[str, str]) -> bool:
    """Whether a weight is kept as `[in, out]`, by the class of its module."""
    return classes.get(parameter.rpartition(".")[0]) == _TRANSPOSED


def _layers(shapes: Mapping[str, Sequence[int]], classes: Mapping[str, str]) -> list[_Layer]:
    """The numbered layers of the language model, in order."""
    weights: dict[tuple[str, int], dict[str, tuple[int, int]]] = defaultdict(dict)
    every: dict[tuple[str, int], list[str]] = defaultdict(list)
    for parameter, shape in shapes.items():
        match = _NUMBERED.match(parameter)
        if match is None or _FOREIGN.search(match[1]):
            continue
        place = match[1], int(match[2])
        every[place].append(match[3])
        if parameter.endswith(".weight") and len(shape) == 2 and _is_linear(parameter, classes):
            rows, columns = reversed(shape) if is_transposed(parameter, classes) else shape
            weights[place][match[3].removesuffix(".weight")] = (rows, columns)
    return [_Layer(stack, number, weights[stack, number], tuple(names)) for (stack, number), names in every.items()]


def _is_linear(parameter: str, classes: Mapping[str, str]) -> bool:
    known = classes.get(parameter.rpartition(".")[0])
    return known is None or known == _TRANSPOSED or not _NOT_LINEAR.search(known)


def _modules(layer: _Layer) -> list[str]:
    """Every module of a layer that may hold an attention or an MLP, the layer itself ("") among them."""
    prefixes = {""}
    for name in layer.weights:
        parts = name.split(".")
        prefixes.update(".".join(parts[:length]) for length in range(1, len(parts)))
    return sorted(prefix for prefix in prefixes if not _NO_ROLE.search(f"{prefix}."))


def _joined(module: str, name: str) -> str:
    return f"{module}.{name}" if module else name


_Convention = tuple[str, str, tuple[str, ...]]
"""Stack, module of the attention, and the names in it."""


def _named(layer: _Layer, module: str, names: tuple[str, ...]) -> _Convention | None:
    """The convention, where a module has matrices under all its names, which take the same inputs."""
    if _is_recurrent(layer, module):
        return None
    shapes = layer.of(module, names)
    if len(shapes) < len(names) or len({shapes[name][1] for name in names[:3]}) > 1:
        return None
    return layer.stack, module, names


def _roles(layer: _Layer, conventions: set[_Convention]) -> Iterator[_Part]:
    """The roles of one layer, in the order of `ROLES`, module by module."""
    for module in _modules(layer):
        if not _is_recurrent(layer, module):
            yield from _attention(layer, module, conventions)
    for module in _modules(layer):
        yield from _mlp(layer, module)


def _is_recurrent(layer: _Layer, module: str) -> bool:
    return any(_RECURRENT.search(name) for name in layer.every if name.startswith(module and f"{module}."))


def _attention(layer: _Layer, module: str, conventions: set[_Convention]) -> Iterator[_Part]:
    """Queries and outputs at the least: a layer may share the keys and values of another."""
    for names in _ATTENTION_NAMES:
        shapes = layer.of(module, names)
        known = (layer.stack, module, names) in conventions and not layer.of(module, _LATENT)
        if known and names[0] in shapes and names[3] in shapes:
            yield from ((_joined(module, name), ATTENTION[names.index(name)], None) for name in shapes)
            return
    if layer.of(module, _FUSED):
        yield from ((_joined(module, name), "o_proj", None) for name in list(layer.of(module, _AFTER_FUSED))[:1])


def _mlp(layer: _Layer, module: str) -> Iterator[_Part]:
    for names in _GATED_NAMES:
        shapes = list(layer.of(module, names).values())
        if len(shapes) == 3 and shapes[0] == shapes[1] and shapes[1][0] == shapes[2][1]:
            yield from ((_joined(module, name), role, None) for name, role in zip(names, MLP, strict=True))
            return
    fused = list(layer.of(module, _GATE_UP).values())
    if len(fused) == 2 and fused[0][0] == 2 * fused[1][1]:
        half = fused[1][1]
        yield _joined(module, _GATE_UP[0]), "gate_proj", ((0, half),)
        yield _joined(module, _GATE_UP[0]), "up_proj", ((half, 2 * half),)
        yield _joined(module, _GATE_UP[1]), "down_proj", None
        return
    for names in (*_PLAIN_NAMES, *(_VAGUE_NAMES if _MLP_MODULE.search(module) else ())):
        shapes = list(layer.of(module, names).values())
        if len(shapes) == 2 and shapes[0][0] == shapes[1][1]:
            yield from ((_joined(module, name), role, None) for name, role in zip(names, MLP[1:], strict=True))
            return


def _first_numbers(layers: Sequence[_Layer], found: Mapping[int, Sequence[_Part]]) -> tuple[dict[str, int], int]:
    """What to add to the numbers of each stack, and how many layers there are in all. Stacks that hold attention and
    MLP of the same layers share their numbers; others, such as an encoder and a decoder, follow one another.
    """
    kinds: dict[str, set[str]] = defaultdict(set)
    lengths: dict[str, int] = defaultdict(int)
    for place, layer in enumerate(layers):
        lengths[layer.stack] = max(lengths[layer.stack], layer.number + 1)
        if found[place]:
            kinds[layer.stack].update("attn" if role in ATTENTION else "mlp" for _, role, _ in found[place])
    first: dict[str, int] = defaultdict(int)
    taken: set[str] = set()
    start = after = 0
    for stack, of_stack in kinds.items():
        if taken & of_stack:
            start, taken = after, set()
        first[stack] = start
        taken |= of_stack
        after = max(after, start + lengths[stack])
    return first, after


_REASONS = (
    (
        "|".join(f"{name}$" for name in _LATENT),
        "latent attention makes queries, keys and values through narrow matrices, such as {}",
    ),
    (
        "|".join(f"(^|\\.){name}$" for name in (*_FUSED, "query_key", "kv_proj")),
        "queries, keys and values are fused, in an order that no name tells, in {}",
    ),
    (
        r"linear_attn|mamba|mixer|mlstm|time_mix|receptance|conv|temporal_block|forget_gate|(^|\.)b_proj",
        "a recurrence, such as {}",
    ),
)


def _reasons(layers: Sequence[_Layer], found: Mapping[int, Sequence[_Part]]) -> Iterator[str]:
    """Why weights have no role, each reason once with the first name."""
    if not any(layer.weights for layer in layers):
        yield "there are no numbered layers with matrices"
    told: set[str] = set()
    deep = next((name for layer in layers for name in layer.every if re.search(r"attn\.q$", name)), None)
    if deep is not None:
        yield f"attention is kept in weights of three dimensions, such as {deep}"
    for place, layer in enumerate(layers):
        held = {name for name, _, _ in found[place]}
        for name in layer.weights:
            reason = "names of no known convention, such as {}"
            reason = next((text for pattern, text in _REASONS if re.search(pattern, name)), reason)
            if name not in held and reason not in told and not re.search(r"gate$|router|norm|adapter", name):
                told.add(reason)
                yield reason.format(name)
