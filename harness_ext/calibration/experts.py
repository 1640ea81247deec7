"""What a single expert sees: its inputs, and the gradients at its outputs, worked out from those of the module that
holds all experts.

One call computes all experts of a layer, in whatever way the model was told to (a loop, a batched or a grouped
product), and shows neither the inputs nor the outputs of one. They follow from what goes in and what comes out: expert
e gives token t, if sent to it, the part `share[t, e] W_down (act(W_gate x_t) * W_up x_t)` of the output. So nothing of
the model is replaced; the middle of one expert at a time is computed again, in the model's dtype. That the parts of all
experts make up the output is checked, and a model whose experts compute something else is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

from harness_ext.errors import UserError
from harness_ext.methods import registered_methods
from harness_ext.model.layout import Matrix
from harness_ext.model.typed import tensor_of
from harness_ext.recipe.schema import Step

if TYPE_CHECKING:
    from torch import Tensor, nn

# Room for bfloat16, in which a sum may be rounded once an expert.
_CLOSE = 0.05


def check_experts(step: Step, matrices: Sequence[Matrix]) -> None:
    """Raise UserError naming the first expert's matrix that the step's method cannot work on: it has no bias, and what
    an expert of an unknown architecture sees cannot be told.
    """
    method = registered_methods()[step.method]
    for matrix in matrices:
        if matrix.expert is None:
            continue
        if method.moves_bias(step.parameters):
            remedy = "set bias=false, which loses the mean output, or choose" if "bias" in step.parameters else "choose"
            raise UserError(
                f"{matrix.key}: {step.method} moves a bias, and experts have none: {remedy} matrices outside"
                " them, such as attn"
            )
        # The layer of a matrix is known where the architecture is.
        if method.statistics and matrix.layer is None:
            raise UserError(
                f"{matrix.key}: what an expert of this architecture sees is unknown; choose matrices outside the"
                " experts, or a method that needs no calibration"
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


def sights(module: nn.Module, call: ExpertCall, gradient: Tensor | None, expert: int, real: Tensor) -> dict[str, Sight]:
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

    inputs = call.inputs[tokens].detach()
    with torch.enable_grad():
        opened = (inputs @ tensor_of(module, "gate_up_proj")[expert].detach().T).requires_grad_(True)
        middle = _gated(module, opened)
    reached = spread(sent.new_ones(len(tokens), 1))[..., 0]
    if gradient is None:
        return {
            "gate_up_proj": Sight(spread(inputs), None, reached),
            "down_proj": Sight(spread(middle.detach()), None, reached),
        }
    answered = gradient[tokens] * call.shares[tokens, places, None].detach().to(gradient)
    (at_opened,) = torch.autograd.grad(middle, opened, answered @ tensor_of(module, "down_proj")[expert].detach())
    return {
        "gate_up_proj": Sight(spread(inputs), spread(at_opened), reached),
        "down_proj": Sight(spread(middle.detach()), spread(answered), reached),
    }


def check_equation(module: nn.Module, call: ExpertCall, real: Tensor, name: str) -> None:
    """Raise UserError where the parts of all experts, as computed here, do not make up the module's output at real
    tokens, `[b, t]`.
    """
    import torch

    outputs = call.outputs.detach()
    total = torch.zeros_like(outputs, dtype=torch.float32)
    for expert in call.chosen.unique().tolist():
        share = (call.shares.detach() * (call.chosen == expert)).sum(1, keepdim=True)
        total += (
            _gated(module, call.inputs.detach() @ tensor_of(module, "gate_up_proj")[expert].detach().T)
            @ tensor_of(module, "down_proj")[expert].detach().T
            * share
        ).float()
    meant = real.flatten().to(outputs.device)
    total, outputs = total[meant], outputs[meant].float()
    if not float((total - outputs).norm()) <= _CLOSE * float(outputs.norm()):
        raise UserError(
            f"the experts of {name} do not compute what is known of them, so what a single one sees cannot be told:"
            " choose matrices outside them, such as attn, or a method that needs no calibration"
        )


def _gated(module: nn.Module, opened: Tensor) -> Tensor:
    activation = cast("nn.Module", module.act_fn)
    gate, up = opened.chunk(2, dim=-1)
    return activation(gate) * up
