"""How models keep the experts of a mixture: which parameters hold them all, and which part of one is whose gate, up and
down projection.

transformers 5 loads the experts of a layer as two parameters, `experts.gate_up_proj` and `experts.down_proj`, with one
expert after another along the first axis. Nearly all models keep them `[experts, out, in]`, gate above up. The shapes
tell whether they are transposed: `down_proj` is as wide as half of `gate_up_proj`, in whichever orientation. What
shapes do not tell is listed here by model type; a test holds the lists against transformers' own classes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from harness_ext.model.geometry import Ranges

# The rows of gate and up take turns.
INTERLEAVED = frozenset({"gpt_oss"})
# `up_proj` and `down_proj` alone, `[experts, out, in]`.
UNGATED = frozenset({"nemotron_h"})
# Every expert is handed every token, weighted beforehand: nothing says which token was sent to which.
WEIGHTED_INPUTS = frozenset({"llama4", "llama4_text"})

_PARAMETER = re.compile(r"(?P<module>(?:.*?\.)??\w+\.(?P<layer>\d+)\.(?:.*\.)?experts)\.(?P<name>gate_up_proj|up_proj)")


class ExpertLayout(NamedTuple):
    """How the weights of a module of experts are kept. opening: the name of the one that the inputs meet first.
    transposed: `[experts, in, out]`. gated: the opening weight holds gate and up. interleaved: their rows take turns.
    biased: beside each weight there is a bias, `[experts, out]`. routed: the module is called with the tokens, the
    experts chosen for each, and their shares.
    """

    opening: str = "gate_up_proj"
    transposed: bool = False
    gated: bool = True
    interleaved: bool = False
    biased: bool = False
    routed: bool = True

    def rows(self, role: str, full: int) -> Ranges | None:
        """The rows of a role in its weight of `full` rows, seen as `[out, in]`; None for all."""
        if role == "down_proj" or not self.gated:
            return None
        place = ("gate_proj", "up_proj").index(role)
        if self.interleaved:
            return tuple((row, row + 1) for row in range(place, full, 2))
        return ((place * full // 2, (place + 1) * full // 2),)


class ExpertModule(NamedTuple):
    """A module of experts. name: of the module. layer: its number. weights: the full name of each role's weight."""

    name: str
    layer: int
    layout: ExpertLayout
    weights: Mapping[str, str]


def expert_modules(model_type: str, shapes: Mapping[str, Sequence[int]]) -> Iterator[ExpertModule]:
    """The modules of experts whose layout is known, in the order of the model. shapes: of all parameters."""
    for name, shape in shapes.items():
        match = _PARAMETER.fullmatch(name)
        if match is None:
            continue
        down = f"{match['module']}.down_proj"
        transposed = _transposed(model_type, match["name"], shape, shapes.get(down, ()))
        if transposed is None:
            continue
        layout = ExpertLayout(
            opening=match["name"],
            transposed=transposed,
            gated=match["name"] == "gate_up_proj",
            interleaved=model_type in INTERLEAVED,
            biased=f"{name}_bias" in shapes and f"{down}_bias" in shapes,
            # Some choices may stand for no expert at all, but for the token itself.
            routed=model_type not in WEIGHTED_INPUTS and shape[0] == shapes[down][0],
        )
        weights = (
            {"gate_proj": name, "up_proj": name, "down_proj": down}
            if layout.gated
            else {
                "up_proj": name,
                "down_proj": down,
            }
        )
        yield ExpertModule(match["module"], int(match["layer"]), layout, weights)


def _transposed(model_type: str, name: str, opening: Sequence[int], down: Sequence[int]) -> bool | None:
    """Whether both weights are kept `[experts, in, out]`; None where their shapes fit neither orientation, or could fit
    both.
    """
    if len(opening) != 3 or len(down) != 3:
        return None
    if name == "up_proj":
        return False if model_type in UNGATED and tuple(opening[1:]) == tuple(reversed(down[1:])) else None
    # [experts, 2 inner, width] and [experts, width, inner], or [experts, width, 2 inner] and [experts, inner, width]:
    # both would need inner = width = 2 inner.
    if opening[1] == 2 * down[2] and opening[2] == down[1]:
        return False
    return True if opening[2] == 2 * down[1] and opening[1] == down[2] else None
