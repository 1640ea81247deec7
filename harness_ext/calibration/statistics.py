"""Statistics of calibration documents, streamed: each keeps a running value of fixed size, never the activations.

A statistic sees, batch by batch, the true input x of a matrix (`[batch, tokens, in]`), the gradient g of the documents'
loss at its output (`[batch, tokens, out]`), and which tokens are real. A class is registered under the name by which
methods ask for it; `harness_ext.methods.statistic_registry` says what it must have.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from harness_ext.linalg.devices import full_rate_fp64
from harness_ext.methods.statistic_registry import one_per_component, statistic

if TYPE_CHECKING:
    from torch import Tensor

    from harness_ext.methods import Svd
    from harness_ext.methods.statistic_registry import SinkTokens

# More blocks spare more of the upper half, and make smaller products.
_BLOCKS, _SMALLEST_BLOCK = 8, 256
GRADIENT_BATCHES = 16
"""How many batches documents are dealt to where gradients of whole batches count."""


@statistic(name="input_mean_with_sinks", needs="inputs")
class InputMean:
    """The mean input over real tokens, `[n]`, accumulated in fp64."""

    def __init__(self) -> None:
        self._total: Tensor | None = None
        self._tokens = 0

    def update(self, inputs: Tensor, gradients: Tensor | None, real: Tensor) -> None:
        """See `Statistic`."""
        chosen = inputs[real].double()
        total = chosen.sum(0)
        self._total = total if self._total is None else self._total + total
        self._tokens += chosen.shape[0]

    def result(self) -> Tensor | None:
        """The mean, `[n]`, fp64; None where no token counts, which happens to experts."""
        assert self._total is not None, "no batch was seen"
        return self._total / self._tokens if self._tokens else None


@statistic(name="input_mean", needs="inputs", sinks="left out")
class OrdinaryInputMean(InputMean):
    """The mean input over real tokens that are no sinks, `[n]`, fp64: what an output is shifted by for every token."""


@statistic(name="far_input_mean", needs="inputs", sinks="alone")
class FarInputMean(InputMean):
    """The mean input over the tokens whose input is far out, `[n]`, fp64; zero where there are none."""

    def result(self) -> Tensor:
        """The mean, `[n]`, fp64."""
        assert self._total is not None, "no batch was seen"
        return self._total / max(1, self._tokens)


@statistic(name="input_magnitude", needs="inputs")
class InputMagnitude(InputMean):
    """The mean absolute input over real tokens, `[n]`, fp64."""

    def update(self, inputs: Tensor, gradients: Tensor | None, real: Tensor) -> None:
        """See `Statistic`."""
        super().update(inputs.abs(), gradients, real)


@statistic(name="input_second_moment_diagonal", needs="inputs")
class InputSquare(InputMean):
    """The mean squared input over real tokens, `[n]`, fp64."""

    def update(self, inputs: Tensor, gradients: Tensor | None, real: Tensor) -> None:
        """See `Statistic`."""
        super().update(inputs.double() ** 2, gradients, real)


@statistic(name="input_second_moment", needs="inputs", numbers=lambda shape: shape[1] ** 2)
class InputSecondMoment:
    """The mean of `x x^T` over real tokens, `[n, n]`, accumulated in fp64: small eigenvalues of covariances of outputs
    are differences of large numbers. Only the lower half is summed, in blocks of rows. A GPU that is slow in fp64 makes
    the products of each batch in fp32 and adds them up in fp64.
    """

    def __init__(self, total: Tensor | None = None) -> None:
        """total: zeros `[n, n]`, fp64, to sum into; made where there are none."""
        self._total = total
        self._tokens = 0

    def update(self, inputs: Tensor, gradients: Tensor | None, real: Tensor) -> None:
        """See `Statistic`."""
        import torch

        chosen = inputs[real]
        size = chosen.shape[1]
        if self._total is None:
            self._total = chosen.new_zeros(size, size, dtype=torch.float64)
        if _multiplies_in_fp64(chosen):
            chosen = chosen.double()
        for rows in _blocks(size):
            left, right, total = chosen[:, rows].T, chosen[:, : rows.stop], self._total[rows, : rows.stop]
            if chosen.dtype == torch.float64:
                total.addmm_(left, right)
            else:
                total += left @ right
        self._tokens += chosen.shape[0]

    def result(self) -> Tensor:
        """The mean, `[n, n]`, fp64."""
        total, tokens = self.summed()
        # In its place, since another as large would be held beside it; a mean is the sum of one.
        self._tokens = 1
        return total.div_(tokens)

    def summed(self) -> tuple[Tensor, int]:
        """The sum over tokens, `[n, n]`, fp64, and how many there were."""
        assert self._total is not None, "no batch was seen"
        for rows in _blocks(len(self._total)):
            diagonal = self._total[rows, rows]
            diagonal.copy_(diagonal.tril() + diagonal.tril(-1).T)
            self._total[: rows.start, rows] = self._total[rows, : rows.start].T
        return self._total, self._tokens


@statistic(name="input_second_moment_by_halves", needs="inputs", numbers=lambda shape: 2 * shape[1] ** 2)
class InputSecondMomentByHalves:
    """The sums of `x x^T` over real tokens of every other document, and of those between, both divided by the number of
    tokens of all, `[2, n, n]`, fp64: they add up to the mean, and what is made from one can be tested on the other. The
    second is zero where there is one document.
    """

    def __init__(self) -> None:
        self._sums: Tensor | None = None
        self._halves: tuple[InputSecondMoment, ...] = ()
        self._documents = 0

    def update(self, inputs: Tensor, gradients: Tensor | None, real: Tensor) -> None:
        """See `Statistic`."""
        import torch

        if self._sums is None:
            self._sums = inputs.new_zeros(2, inputs.shape[-1], inputs.shape[-1], dtype=torch.float64)
            self._halves = tuple(InputSecondMoment(half) for half in self._sums)
        places = torch.arange(self._documents, self._documents + len(inputs), device=real.device)
        for number, half in enumerate(self._halves):
            half.update(inputs, None, real & (places % 2 == number)[:, None])
        self._documents += len(inputs)

    def result(self) -> Tensor:
        """Both, `[2, n, n]`, fp64."""
        assert self._sums is not None, "no batch was seen"
        if self._halves:
            self._sums.div_(sum(half.summed()[1] for half in self._halves))
            self._halves = ()
        return self._sums


@statistic(name="gradient_second_moment", needs="gradients", numbers=lambda shape: shape[0] ** 2)
class GradientSecondMoment(InputSecondMoment):
    """The mean of `g g^T` over real tokens, `[m, m]`, fp64, g the gradient of the documents' loss at the outputs."""

    def update(self, inputs: Tensor, gradients: Tensor | None, real: Tensor) -> None:
        """See `Statistic`."""
        assert gradients is not None
        super().update(gradients, None, real)


@statistic(name="batch_gradients", needs="gradients", numbers=lambda shape: GRADIENT_BATCHES * shape[0] * shape[1] // 2)
class BatchGradients:
    """The gradient of the matrix in the mean loss of each batch of documents, `[k, m, n]`, fp32: document i belongs to
    batch `i mod k`, with k = `GRADIENT_BATCHES`, or the number of documents where that is smaller.

    So what is held is of fixed size, and a batch is the same however the documents are run through the model. The
    published batches are 16 or 32 as well, of many more texts.
    """

    def __init__(self) -> None:
        self._totals: Tensor | None = None
        self._documents = 0

    def update(self, inputs: Tensor, gradients: Tensor | None, real: Tensor) -> None:
        """See `Statistic`."""
        assert gradients is not None
        if self._totals is None:
            self._totals = inputs.new_zeros(GRADIENT_BATCHES, gradients.shape[2], inputs.shape[2])
        for x, g, own in zip(inputs, gradients, real, strict=True):
            self._totals[self._documents % GRADIENT_BATCHES].addmm_(g[own].T, x[own])
            self._documents += 1

    def result(self) -> Tensor:
        """The mean over the documents of each batch, `[k, m, n]`."""
        import torch

        assert self._totals is not None, "no batch was seen"
        batches = torch.arange(min(GRADIENT_BATCHES, self._documents), device=self._totals.device)
        documents = (self._documents - 1 - batches) // GRADIENT_BATCHES + 1
        return self._totals[: len(batches)].div_(documents[:, None, None])


@statistic(name="original_input_mean", needs="originals")
class OriginalInputMean(InputMean):
    """The mean input of the unedited model over real tokens, `[n]`, fp64."""

    def update(  # type: ignore[override]
        self, inputs: Tensor, gradients: Tensor | None, real: Tensor, originals: Tensor
    ) -> None:
        """See `StatisticOfBoth`."""
        super().update(originals, gradients, real)


@statistic(name="input_cross_moment", needs="originals", numbers=lambda shape: shape[1] ** 2)
class InputCrossMoment:
    """The mean of `x x'^T` over real tokens, `[n, n]`, fp64: x the input in the unedited model, x' the one that the
    edits before it leave. Not symmetric; the original comes first.
    """

    def __init__(self) -> None:
        self._total: Tensor | None = None
        self._tokens = 0

    def update(self, inputs: Tensor, gradients: Tensor | None, real: Tensor, originals: Tensor) -> None:
        """See `StatisticOfBoth`."""
        import torch

        before, after = originals[real], inputs[real]
        if _multiplies_in_fp64(after):
            before, after = before.double(), after.double()
        if self._total is None:
            self._total = after.new_zeros(after.shape[1], after.shape[1], dtype=torch.float64)
        if after.dtype == torch.float64:
            self._total.addmm_(before.T, after)
        else:
            self._total += before.T @ after
        self._tokens += after.shape[0]

    def result(self) -> Tensor:
        """The mean, `[n, n]`, fp64."""
        assert self._total is not None, "no batch was seen"
        self._total.div_(self._tokens)
        self._tokens = 1
        return self._total


def _squared_columns(g: Tensor, x: Tensor) -> Tensor:
    """The squared columns of `g^T x`, summed, `[n]`: g `[tokens, m]`, x `[tokens, n]`; by the way of fewer products."""
    tokens, rows, columns = x.shape[0], g.shape[1], x.shape[1]
    if rows * columns < tokens * (rows + columns):
        return sum((g[:, block].T @ x).square().sum(0) for block in _blocks(rows))  # type: ignore[return-value]
    # The true value is a sum of squares; rounding may leave a tiny negative one.
    return ((g @ g.T @ x) * x).sum(0).clamp(min=0)


def _multiplies_in_fp64(inputs: Tensor) -> bool:
    return inputs.device.type == "cpu" or full_rate_fp64(inputs.device)


def _blocks(size: int) -> Iterator[slice]:
    """Blocks of rows of a square matrix."""
    block = max(_SMALLEST_BLOCK, -(-size // _BLOCKS))
    for start in range(0, size, block):
        yield slice(start, min(start + block, size))


@statistic(name="contrast_differences", needs="contrasts")
class ContrastDifferences:
    """The input at the last token of each pair's first text minus that of its second, `[pairs, n]`, fp64; the two of a
    pair stand next to each other in a batch.
    """

    def __init__(self) -> None:
        self._differences: list[Tensor] = []

    def update(self, inputs: Tensor, gradients: Tensor | None, real: Tensor) -> None:
        """See `Statistic`. Padding is on the left, so the last place is each text's last token."""
        last, seen = inputs[:, -1].double(), real[:, -1]
        # An expert may see one of a pair, or neither.
        self._differences.append((last[0::2] - last[1::2])[seen[0::2] & seen[1::2]])

    def result(self) -> Tensor | None:
        """All differences, in order; None where both of a pair were never seen."""
        import torch

        found = torch.cat(self._differences)
        return found if len(found) else None


@statistic(name="fisher_information", needs="gradients")
class FisherInformation:
    """The empirical Fisher information of a matrix, summed over its rows: mean over documents of `sum_i (dL/dW_ij)^2`,
    `[n]` (arXiv:2207.00112).

    A document's gradient is `G = g^T x`; its squared columns sum to `diag(x^T (g g^T) x)`, so that no `[m, n]` gradient
    of a short document is ever made. Of a long one, whose tokens by tokens would be more, G is made in blocks of rows.
    """

    def __init__(self) -> None:
        self._total: Tensor | None = None
        self._documents = 0

    def update(self, inputs: Tensor, gradients: Tensor | None, real: Tensor) -> None:
        """See `Statistic`."""
        assert gradients is not None
        for own_inputs, own_gradients, own in zip(inputs, gradients, real, strict=True):
            x, g = own_inputs[own].double(), own_gradients[own].double()
            squared = _squared_columns(g, x)
            self._total = squared if self._total is None else self._total + squared
        self._documents += inputs.shape[0]

    def result(self) -> Tensor:
        """The mean over documents, `[n]`, fp64."""
        assert self._total is not None, "no batch was seen"
        return self._total / self._documents


@statistic(name="counterfactual_effects", needs="components", numbers=one_per_component, compares_documents=True)
class CounterfactualEffects:
    """How much the loss would rise, to first order, if one singular component saw another example's input
    (arXiv:2404.03147).

    `E[b, t, i] = <g[b, t], u_i> s_i (v_i . dx[b, t])`, where dx is the input of the next example in the batch minus
    this one's, at the same position counted from the answer. The result is the maximum over examples and tokens, `[r]`:
    a component that never matters, anywhere, has a low one. Sink tokens count: `eigenprune` without them leaves SmolLM2
    a perplexity of WikiData's answers of 548, with them 291 (of 734).
    """

    def __init__(self, svd: Svd) -> None:
        self._svd = svd
        self._maximum: Tensor | None = None

    def update(self, inputs: Tensor, gradients: Tensor | None, real: Tensor) -> None:
        """See `Statistic`. Positions at which either example is padding are left out."""
        assert gradients is not None
        difference = inputs.roll(-1, dims=0) - inputs
        both = real & real.roll(-1, dims=0)
        left = gradients[both] @ self._svd.u.to(gradients)
        right = difference[both] @ self._svd.vh.T.to(difference)
        effects = left * right * self._svd.s.to(left)
        if effects.shape[0] == 0:
            return
        maximum = effects.max(dim=0).values
        self._maximum = maximum if self._maximum is None else self._maximum.maximum(maximum)

    def result(self) -> Tensor | None:
        """The running maximum, `[r]`, fp32; None where no two tokens could be compared, which happens to experts."""
        return self._maximum


@statistic(name="ablation_effects", needs="components", numbers=one_per_component, sinks="left out of its mean")
class AblationEffects:
    """How much the loss changes, to first order, if one singular component always saw the mean input: the effect of
    removing it and keeping the mean output.

    `E[i] = mean over tokens of <g, u_i> s_i (v_i . (x_mean - x))`, `[r]`; negative where the removal helps. x_mean is
    `input_mean`, without sink tokens, as the edit has it; the effects are those at all tokens, since the edit changes
    all of them. One pass suffices, since the sum splits into `sum <g, u_i> (v_i . x_mean) - sum <g, u_i> (v_i . x)`.
    This is our reconstruction: the gradient of a singular value, `dL/ds_i = u_i^T G v_i`, with centred inputs.

    First order tells little of a token far out, and many components that share its output are missed together more than
    one by one. Of SmolLM2's layer 11, where the first token is far out, the best six of one removal each leave a
    perplexity of WikiData's answers of 514 to 918 (of 734). The best 2 % of every layer at once leave 25,000, and 66
    where components with more than a hundredth of such an output stay. What is removed at once has to be tried out.
    """

    def __init__(self, svd: Svd) -> None:
        self._svd = svd
        self._sums: tuple[Tensor, ...] | None = None
        self._tokens = 0
        self._ordinary = 0

    def update(self, inputs: Tensor, gradients: Tensor | None, real: Tensor, sinks: SinkTokens) -> None:
        """See `StatisticToldOfSinks`."""
        assert gradients is not None
        left = (gradients[real] @ self._svd.u.to(gradients)).double()
        right = (inputs[real] @ self._svd.vh.T.to(inputs)).double()
        ordinary = ~sinks.every[real]
        new = (left.sum(0), right[ordinary].sum(0), (left * right).sum(0))
        self._sums = new if self._sums is None else tuple(old + more for old, more in zip(self._sums, new, strict=True))
        self._tokens += left.shape[0]
        self._ordinary += int(ordinary.sum())

    def result(self) -> Tensor | None:
        """The mean over all real tokens, `[r]`, fp32; None where all were sinks, which happens to experts."""
        assert self._sums is not None, "no batch was seen"
        if not self._ordinary:
            return None
        left, right, products = self._sums
        effects = self._svd.s.to(left) * (left * right / self._ordinary - products) / self._tokens
        return effects.float()


@statistic(name="singular_value_gradients", needs="components", numbers=one_per_component)
class SingularValueGradients:
    """The gradient of the loss in every singular value, `dL/ds_i = u_i^T G v_i`, `[r]`: the sum over tokens of `(g .
    u_i) (v_i . x)`, so that no `[m, n]` gradient is ever made.

    The loss is the mean over documents. Removing component i changes it, to first order, by `-s_i u_i^T G v_i`.
    """

    def __init__(self, svd: Svd) -> None:
        self._svd = svd
        self._total: Tensor | None = None
        self._documents = 0

    def update(self, inputs: Tensor, gradients: Tensor | None, real: Tensor) -> None:
        """See `Statistic`."""
        assert gradients is not None
        left = gradients[real] @ self._svd.u.to(gradients)
        right = inputs[real] @ self._svd.vh.T.to(inputs)
        new = (left * right).double().sum(0)
        self._total = new if self._total is None else self._total + new
        self._documents += inputs.shape[0]

    def result(self) -> Tensor:
        """The mean over documents, `[r]`, fp64."""
        assert self._total is not None, "no batch was seen"
        return self._total / self._documents
