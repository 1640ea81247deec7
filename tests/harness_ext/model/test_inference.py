"""Inferred roles of every causal model that transformers knows, on tiny ones. What a role is, the forward pass says, as
in `test_architectures`: outputs are disturbed, and where the attention or the MLP shows it tells query from key from
value and gate from up.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from harness_ext.model.architectures import ATTENTION, MLP
from harness_ext.model.built import module_classes
from harness_ext.model.layout import Layout, Matrix

sys.path.insert(0, str(Path(__file__).parents[2]))


TOKENS = torch.arange(3, 9)


def moved(model, source: Matrix, position: int, sink: Matrix, amount: float = 0.5) -> torch.Tensor:
    """How the input of `sink` moves, `[t, n]`, when the outputs of `source` are disturbed at one position."""
    seen: list[torch.Tensor] = []
    first, last = (source.rows or ((0, source.full_shape[0]),))[0]
    direction = torch.randn(last - first, generator=torch.Generator().manual_seed(1)) * amount

    def disturb(module, args, output):
        if len(seen) == 0:
            return None
        changed = output.clone()
        # A model may put tokens of its own before those of the prompt.
        changed.view(-1, source.full_shape[0])[position - len(TOKENS), first:last] += direction.to(output)
        return changed

    def watch(module, args, output):
        seen.append(args[0].detach().clone().reshape(-1, sink.full_shape[1])[-len(TOKENS) :])

    # A module that is called again, such as a shared block, is watched at its first place.
    with torch.no_grad():
        handles = [model.get_submodule(sink.module).register_forward_hook(watch)]
        model(input_ids=TOKENS[None])
        calls = len(seen)
        handles.append(model.get_submodule(source.module).register_forward_hook(disturb))
        model(input_ids=TOKENS[None])
    for handle in handles:
        handle.remove()
    assert len(seen) == 2 * calls
    return seen[calls] - seen[0]


def positions(moves: torch.Tensor) -> set[int]:
    return set((moves.abs().amax(dim=1) > 1e-6).nonzero().flatten().tolist())


def check_attention(model, roles: dict[str, Matrix]) -> None:
    q, k, v, o = (roles[role] for role in ATTENTION)
    assert positions(moved(model, q, 2, o)) == {2}, "query"
    felt = positions(moved(model, k, 0, o))
    assert felt and 0 not in felt, f"key {felt}"
    assert 0 in positions(moved(model, v, 0, o)), "value"


def check_mlp(model, roles: dict[str, Matrix]) -> None:
    down = roles["down_proj"]
    for role in MLP[:2]:
        if role in roles:
            once, twice = (moved(model, roles[role], 2, down, amount) for amount in (0.5, 1.0))
            assert positions(once) == {2}, role
            if "gate_proj" in roles:
                straight = bool((twice - 2 * once).abs().amax() < 1e-5)
                assert straight == (role == "up_proj"), f"{role} straight {straight}"


def by_layer(matrices: Sequence[Matrix]) -> dict[int, dict[str, Matrix]]:
    found: dict[int, dict[str, Matrix]] = {}
    for matrix in matrices:
        if matrix.expert is None:
            found.setdefault(matrix.layer, {}).setdefault(matrix.role, matrix)
    return found


def layout_of(model) -> Layout:
    return Layout(
        model.config.to_dict(),
        {name: tuple(value.shape) for name, value in model.named_parameters()},
        module_classes(model),
    )
