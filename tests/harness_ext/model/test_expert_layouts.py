"""What is known of the layout of experts, against transformers' own modules."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness_ext.model.expert_layouts import INTERLEAVED, UNGATED, WEIGHTED_INPUTS, expert_modules

DECORATED = re.compile(r"^@use_experts_implementation(?:\(([^)]*)\))?\nclass \w+\(", re.MULTILINE)
PLAIN = {"m.layers.0.mlp.experts.gate_up_proj": (4, 80, 24), "m.layers.0.mlp.experts.down_proj": (4, 24, 40)}
TRANSPOSED = {"m.layers.0.mlp.experts.gate_up_proj": (4, 24, 80), "m.layers.0.mlp.experts.down_proj": (4, 40, 24)}


def said_by_transformers() -> dict[str, set[str]]:
    """By the folder of a model: what its modules of experts are decorated with that is not the default."""
    import transformers

    found: dict[str, set[str]] = {}
    for path in (Path(transformers.__file__).parent / "models").glob("*/modeling_*.py"):
        for match in DECORATED.finditer(path.read_text(encoding="utf-8")):
            words = {word.strip() for word in (match[1] or "").split(",")} - {""}
            found.setdefault(path.parent.name, set()).update(words)
    return found


def test_what_shapes_do_not_tell_is_what_transformers_says_of_its_models() -> None:
    said = said_by_transformers()
    assert len(said) > 40
    assert {name for name, words in said.items() if "is_concatenated=False" in words} == INTERLEAVED
    assert {name for name, words in said.items() if "has_gate=False" in words} == UNGATED
    assert not WEIGHTED_INPUTS & set(said)


@pytest.mark.parametrize(("shapes", "transposed"), [(PLAIN, False), (TRANSPOSED, True)])
def test_shapes_tell_the_orientation(shapes: dict[str, tuple[int, ...]], transposed: bool) -> None:
    (module,) = expert_modules("novel", shapes)
    assert (module.name, module.layer, module.layout.transposed) == ("m.layers.0.mlp.experts", 0, transposed)
    assert set(module.weights) == {"gate_proj", "up_proj", "down_proj"} and not module.layout.biased


def test_no_shapes_fit_both_orientations() -> None:
    for inner in range(1, 9):
        for width in range(1, 17):
            shapes = dict(zip(PLAIN, ((4, 2 * inner, width), (4, width, inner)), strict=True))
            (module,) = expert_modules("novel", shapes)
            assert not module.layout.transposed
            shapes = dict(zip(PLAIN, ((4, width, 2 * inner), (4, inner, width)), strict=True))
            (module,) = expert_modules("novel", shapes)
            assert module.layout.transposed


@pytest.mark.parametrize(
    "shapes",
    [
        {"m.layers.0.mlp.experts.gate_up_proj": (4, 80, 24)},
        {**PLAIN, "m.layers.0.mlp.experts.down_proj": (4, 24, 41)},
        {**PLAIN, "m.layers.0.mlp.experts.down_proj": (24, 40)},
        {"m.layers.0.mlp.experts.up_proj": (4, 40, 24), "m.layers.0.mlp.experts.down_proj": (4, 24, 40)},
        {name.replace("experts", "shared_experts"): shape for name, shape in PLAIN.items()},
    ],
)
def test_what_does_not_fit_has_no_roles(shapes: dict[str, tuple[int, ...]]) -> None:
    assert not list(expert_modules("novel", shapes))


def test_a_choice_that_stands_for_no_expert_keeps_what_experts_see_unknown() -> None:
    more = {**PLAIN, "m.layers.0.mlp.experts.gate_up_proj": (6, 80, 24)}
    ((some,), (every,)) = (list(expert_modules("novel", shapes)) for shapes in (more, PLAIN))
    assert every.layout.routed and not some.layout.routed


def test_interleaved_rows_take_turns_and_others_are_halves() -> None:
    (interleaved,) = expert_modules("gpt_oss", TRANSPOSED)
    assert interleaved.layout.rows("gate_proj", 6) == ((0, 1), (2, 3), (4, 5))
    assert interleaved.layout.rows("up_proj", 6) == ((1, 2), (3, 4), (5, 6))
    assert interleaved.layout.rows("down_proj", 6) is None
    (halves,) = expert_modules("novel", PLAIN)
    assert halves.layout.rows("gate_proj", 6) == ((0, 3),) and halves.layout.rows("up_proj", 6) == ((3, 6),)
    (ungated,) = expert_modules(
        "nemotron_h", {"m.layers.0.mlp.experts.up_proj": (4, 40, 24), "m.layers.0.mlp.experts.down_proj": (4, 24, 40)}
    )
    assert set(ungated.weights) == {"up_proj", "down_proj"} and ungated.layout.rows("up_proj", 40) is None
