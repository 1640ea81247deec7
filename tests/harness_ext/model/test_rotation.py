"""What positions turn into each other, against what every model does: scores bear a turn of a pair, and nothing else of
what turns; of what does not turn they bear any mixture.
"""

from __future__ import annotations

import math

import pytest
import torch

from harness_ext.model.architectures import text_config
from harness_ext.model.layout import Layout, Matrix
from harness_ext.model.rotation import Rotation
from tests.harness_ext.model.test_every_type import layout_of
from tests.tiny_models import NOT_BUILT, causal_types, outputs, tiny_config, tiny_model

QUICK = ("llama", "phi", "gpt_neox", "gptj", "gpt2")
KNOWN = (
    "arcee",
    "bloom",
    "codegen",
    "cohere",
    "cohere2",
    "cohere_compass_text",
    "cwm",
    "emu3_text_model",
    "ernie4_5",
    "falcon",
    "falcon_h1",
    "gemma",
    "gemma2",
    "glm",
    "glm4",
    "gpt2",
    "gpt_bigcode",
    "gpt_neo",
    "gpt_neox",
    "gpt_neox_japanese",
    "gpt_oss",
    "gptj",
    "granite",
    "granite_swa",
    "granitemoe",
    "granitemoeshared",
    "helium",
    "hyperclovax",
    "internlm3",
    "iquestcoder",
    "jais2",
    "llama",
    "ministral",
    "ministral3",
    "mistral",
    "mixtral",
    "modernbert-decoder",
    "mpt",
    "nemotron",
    "olmo",
    "openai-gpt",
    "opt",
    "persimmon",
    "phi",
    "phi3",
    "phi4_multimodal",
    "qwen2",
    "qwen2_moe",
    "seed_oss",
    "smollm3",
    "stablelm",
    "starcoder2",
    "vaultgemma",
)
WRAPPED = {"emu3_text_model": "emu3"}
"""Types of a part that is built in a whole."""


def test_the_rotation_is_known_of_these_types() -> None:
    configs = [tiny_config(name).to_dict() for name in causal_types() if name not in NOT_BUILT]
    known = {text_config(config)["model_type"] for config in configs if Layout(config, {}).rotation is not None}
    assert known == set(KNOWN)


def moved_by(model, layout: Layout, queries: torch.Tensor, keys: torch.Tensor) -> float:
    """How far the outputs move where the queries and keys of every head, `[..., d]`, are mixed by `[d, d]` each."""
    assert layout.heads is not None

    def mixing(matrix: Matrix, by: torch.Tensor):
        rows = [row for start, stop in matrix.rows or ((0, matrix.full_shape[0]),) for row in range(start, stop)]

        def mix(module, args, output):
            heads = output[..., rows].unflatten(-1, (-1, by.shape[0]))
            changed = output.clone()
            changed[..., rows] = (heads @ by.T.to(output)).flatten(-2)
            return changed

        return model.get_submodule(matrix.module).register_forward_hook(mix)

    before = outputs(model)
    mixtures = {"q_proj": queries, "k_proj": keys}
    handles = [mixing(one, mixtures[one.role]) for one in layout.matrices if one.role in mixtures]
    assert len(handles) == 2 * layout.layers
    after = outputs(model)
    for handle in handles:
        handle.remove()
    return float((after - before).abs().max() / before.abs().max())


def turned(rotation: Rotation, width: int, angle: float, stretch: float = 1.0) -> torch.Tensor:
    """Every pair turned by an angle and one of the two stretched, `[d, d]`."""
    places = rotation.by_pair(torch.arange(width)[None])[0].tolist()
    made = torch.eye(width, dtype=torch.float64)
    for one, other in places:
        made[one, one] = made[other, other] = math.cos(angle)
        made[one, other], made[other, one] = -math.sin(angle), math.sin(angle)
        made[one] *= stretch
    return made


@pytest.mark.parametrize(
    "model_type", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in KNOWN]
)
def test_scores_bear_what_the_rotation_says_and_nothing_else(model_type: str) -> None:
    model = tiny_model(WRAPPED.get(model_type, model_type))
    try:
        outputs(model.double())
    except RuntimeError:
        model.float()
    layout = layout_of(model)
    rotation, heads = layout.rotation, layout.heads
    assert rotation is not None and heads is not None and heads.width >= 4
    if any("q_norm" in name or "q_layernorm" in name for name in layout.vectors):
        pytest.skip("queries and keys are normalised after they are made, and methods of scores refuse them")
    width, turning = heads.width, rotation.width
    # A norm without weights would show here.
    assert moved_by(model, layout, 2 * torch.eye(width), torch.eye(width) / 2) < 1e-5
    if turning:
        angle = turned(rotation, width, 0.7)
        assert moved_by(model, layout, angle, angle) < 1e-5
        assert moved_by(model, layout, angle, torch.eye(width)) > 1e-4
        stretched, shrunk = turned(rotation, width, 0.0, 1.5), turned(rotation, width, 0.0, 1 / 1.5)
        assert moved_by(model, layout, stretched, shrunk) > 1e-4
    if turning < width:
        drawn = torch.randn(width - turning, width - turning, generator=torch.Generator().manual_seed(0)).double()
        mixture = torch.block_diag(torch.eye(turning, dtype=torch.float64), drawn + 3 * torch.eye(len(drawn)))
        assert moved_by(model, layout, mixture, torch.linalg.inv(mixture).T) < 1e-5
        assert moved_by(model, layout, mixture, torch.eye(width)) > 1e-4


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "phi", "partial_rotary_factor": 0.4}, Rotation(32)),
        ({"model_type": "phi"}, Rotation(40)),
        ({"model_type": "phi", "rope_parameters": {"partial_rotary_factor": 0.4}}, Rotation(32)),
        ({"model_type": "gpt_neox", "rotary_pct": 0.25}, Rotation(20)),
        ({"model_type": "gpt_neox", "rotary_pct": 1}, Rotation(80)),
        # A number of coordinates that is odd is that of one pair more.
        ({"model_type": "gpt_neox", "rotary_pct": 0.0625}, Rotation(6)),
        *(
            ({"model_type": "phi", "partial_rotary_factor": one}, Rotation(40))
            for one in ("most", math.nan, math.inf, -1)
        ),
    ],
)
def test_a_share_is_read_from_either_place(config: dict, expected: Rotation) -> None:
    sizes = {"hidden_size": 320, "num_attention_heads": 4}
    assert Layout({**sizes, **config}, {}).rotation == expected


def test_a_number_of_coordinates_is_read() -> None:
    sizes = {"model_type": "gptj", "n_head": 4, "n_embd": 1024}
    assert Layout(sizes, {}).rotation == Rotation(64, neighbours=True)
    assert Layout({**sizes, "rotary_dim": 32}, {}).rotation == Rotation(32, neighbours=True)
    for strange in (None, "64", -2, 63, 10**9, math.nan):
        assert Layout({**sizes, "rotary_dim": strange}, {}).rotation is None
    assert Layout({"model_type": "nobody"}, {}).rotation is None


@pytest.mark.parametrize("neighbours", [False, True])
def test_pairs_are_gathered_and_given_back(neighbours: bool) -> None:
    rotation = Rotation(6, neighbours)
    places = torch.arange(8).repeat(2, 1)
    pairs = rotation.by_pair(places)
    expected = [[0, 1], [2, 3], [4, 5]] if neighbours else [[0, 3], [1, 4], [2, 5]]
    assert pairs.tolist() == [expected, expected]
    marked = rotation.by_coordinate(torch.tensor([[True, False, False], [False, False, True]]))
    assert [row.nonzero().flatten().tolist() for row in marked] == [expected[0], expected[2]]
