"""What a single expert sees: its inputs, and the gradients at its outputs, worked out from those of the module that
holds all experts.

One call computes all experts of a layer, in whatever way the model was told to (a loop, a batched or a grouped
product), and shows neither the inputs nor the outputs of one. They follow from what goes in and what comes out: expert
e gives token t, if sent to it, the part `share[t, e] (W_down m_t + b_down)` of the output, where `m_t` is what the
module's own gating makes of `W x_t + b`, most often `act(W_gate x_t) * W_up x_t`. So nothing of the model is replaced;
the middle of one expert at a time is computed again, in the model's dtype. That the parts of all experts make up the
output is checked, and a model whose experts compute something else is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

from harness_ext.errors import UserError
from harness_ext.methods import registered_methods
from harness_ext.methods.search_registry import check_searchable
from harness_ext.model.expert_layouts import ExpertLayout
from harness_ext.model.layout import Matrix, check_not_shared
from harness_ext.model.typed import tensor_of
from harness_ext.recipe.schema import Step

if TYPE_CHECKING:
    from torch import Tensor, nn

# Room for bfloat16, in which a sum may be rounded once an expert.
_CLOSE = 0.05


def check_experts(step: Step, matrices: Sequence[Matrix]) -> None:
    """Raise UserError naming the first expert's matrix that the step's method cannot work on: most have no bias, and
    what an expert of an unknown architecture sees cannot be told.
    """
    method = registered_methods()[step.method]
    if method.searches:
        check_not_shared(matrices, "a search cannot try edits of it")
    for matrix in matrices:
        if matrix.expert is None:
            continue
        if method.moves_bias(step.parameters) and not (matrix.experts and matrix.experts.biased):
            remedy = "set bias=false, which loses the mean output, or choose" if "bias" in step.parameters else "choose"
            raise UserError(
                f"{matrix.key}: {step.method} moves a bias, and experts have none: {remedy} matrices outside"
                " them, such as attn"
            )
        if method.searches:
            check_searchable([matrix])
        if method.statistics and not (matrix.experts and matrix.experts.routed):
            raise UserError(
                f"{matrix.key}: what an expert of this architecture sees is unknown, and {step.method} learns from it:"
                " choose matrices outside the experts, or a method that needs no calibration, such as svd"
            )


class ExpertCall(NamedTuple):
    """One call of a module of experts: inputs and outputs `[t, d]`, the experts chosen for each token `[t, k]`, and
    their shares `[t, k]`.
    """

    inputs: Tensor
    chosen: Tensor
    shares: Tensor
    outputs: Tensor


class Sight(NamedTuple):
    """What one weight of one expert sees of a batch: inputs `[b, t, n]`, gradients at its outputs `[b, t, m]` (None
    without a backward pass), and which tokens are real and sent to it, `[b, t]`.
    """

    inputs: Tensor
    gradients: Tensor | None
    real: Tensor


def expert_call(arguments: Sequence[object], output: Tensor, name: str) -> ExpertCall:
    """A call of a module of experts, with the gradients cut off. Raises UserError where it is not called with tokens,
    choices and shares.
    """
    import torch

    if len(arguments) != 3 or not all(isinstance(value, torch.Tensor) for value in arguments):
        raise UserError(_unknown(name))
    inputs, chosen, shares = (value.detach() for value in arguments if isinstance(value, torch.Tensor))
    return ExpertCall(inputs.reshape(-1, inputs.shape[-1]), chosen, shares, output.detach().flatten(0, -2))


class ExpertWeights:
    """The weights of one module of experts, and what each of them computes."""

    def __init__(self, module: nn.Module, layout: ExpertLayout) -> None:
        self._module = module
        self._layout = layout

    def opened(self, inputs: Tensor, expert: int) -> Tensor:
        """What the first weight of an expert makes of inputs `[t, n]`."""
        return self._linear(self._layout.opening, inputs, expert)

    def middle(self, opened: Tensor) -> Tensor:
        """What the gate and the activation make of that, `[t, inner]`."""
        gating = getattr(self._module, "_apply_gate", None)
        if self._layout.gated and gating is not None:
            return cast("Tensor", gating(opened))
        activation = cast("nn.Module", self._module.act_fn)
        if not self._layout.gated:
            return cast("Tensor", activation(opened))
        gate, up = opened.chunk(2, dim=-1)
        return cast("Tensor", activation(gate) * up)

    def answer(self, middle: Tensor, expert: int) -> Tensor:
        """What the last weight of an expert makes of the middle: its part of the output, before its share."""
        return self._linear("down_proj", middle, expert)

    def at_middle(self, gradient: Tensor, expert: int) -> Tensor:
        """The gradient at the middle, from that at an expert's part of the output."""
        return gradient @ self._weight("down_proj", expert)

    def _weight(self, name: str, expert: int) -> Tensor:
        value = tensor_of(self._module, name)[expert].detach()
        return value.T if self._layout.transposed else value

    def _linear(self, name: str, inputs: Tensor, expert: int) -> Tensor:
        outputs = inputs @ self._weight(name, expert).T
        return outputs + tensor_of(self._module, f"{name}_bias")[expert].detach() if self._layout.biased else outputs


def sights(
    module: nn.Module, layout: ExpertLayout, call: ExpertCall, gradient: Tensor | None, expert: int, real: Tensor
) -> dict[str, Sight]:
    """What the two weights of one expert see, by the names they have in the module. gradient: at the module's output,
    `[t, d]`. real: `[b, t]`.
    """
    import torch

    tokens, places = torch.where(call.chosen == expert)
    sent = real.to(tokens.device).flatten()[tokens]
    tokens, places = tokens[sent], places[sent]

    def spread(values: Tensor) -> Tensor:
        whole = values.new_zeros(real.numel(), values.shape[-1])
        whole[tokens] = values
        return whole.view(*real.shape, -1)

    weights = ExpertWeights(module, layout)
    inputs = call.inputs[tokens]
    with torch.enable_grad():
        opened = weights.opened(inputs, expert).requires_grad_(True)
        middle = weights.middle(opened)
    reached = spread(sent.new_ones(len(tokens), 1))[..., 0]
    if gradient is None:
        return {
            layout.opening: Sight(spread(inputs), None, reached),
            "down_proj": Sight(spread(middle.detach()), None, reached),
        }
    answered = gradient[tokens] * call.shares[tokens, places, None].to(gradient)
    (at_opened,) = torch.autograd.grad(middle, opened, weights.at_middle(answered, expert))
    return {
        layout.opening: Sight(spread(inputs), spread(at_opened), reached),
        "down_proj": Sight(spread(middle.detach()), spread(answered), reached),
    }


def check_equation(module: nn.Module, layout: ExpertLayout, call: ExpertCall, real: Tensor, name: str) -> None:
    """Raise UserError where the parts of all experts, as computed here, do not make up the module's output at real
    tokens, `[b, t]`.
    """
    import torch

    if call.chosen.shape != call.shares.shape or int(call.chosen.max()) >= len(tensor_of(module, "down_proj")):
        raise UserError(_unknown(name))
    outputs, weights = call.outputs, ExpertWeights(module, layout)
    total = torch.zeros_like(outputs, dtype=torch.float32)
    for expert in call.chosen.unique().tolist():
        share = (call.shares * (call.chosen == expert)).sum(1, keepdim=True)
        middle = weights.middle(weights.opened(call.inputs, expert))
        total += (weights.answer(middle, expert) * share).float()
    meant = real.flatten().to(outputs.device)
    total, outputs = total[meant], outputs[meant].float()
    if not float((total - outputs).norm()) <= _CLOSE * float(outputs.norm()):
        raise UserError(_unknown(name))


def _unknown(name: str) -> str:
    return (
        f"the experts of {name} do not compute what is known of them, so what a single one sees cannot be told: choose"
        " matrices outside them, such as attn, or a method that needs no calibration"
    )
