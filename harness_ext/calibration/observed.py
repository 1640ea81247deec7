"""Modules under watch during a pass over calibration documents: what each matrix in them is shown of a batch, and the
statistics that take it in.

Statistics see documents that are padded on the left, so that the answers of a batch stand at the same positions and a
counterfactual input is that of the same place in another prompt. So does the model, unless it would count the padding
as tokens (`COUNTS_PADDING`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, cast

from harness_ext.calibration.batches import PaddedBatch
from harness_ext.calibration.experts import ExpertCall, check_equation, expert_call, sights
from harness_ext.calibration.sinks import SEEN, SeenTokens, sink_tokens
from harness_ext.errors import UserError
from harness_ext.methods.statistic_registry import (
    AnyStatistic,
    SinkTokens,
    Statistic,
    StatisticOfBoth,
    StatisticToldOfSinks,
    registered_statistics,
)
from harness_ext.model.layout import Matrix

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@dataclass
class WatchedMatrix:
    """One matrix under watch, its statistics, and what it has seen: real tokens, sinks among them, and the norms of its
    outputs, summed over all tokens and over those that are no sinks. same_as: another matrix that is multiplied with
    the very same inputs, whose statistics are those of this one too.
    """

    matrix: Matrix
    statistics: dict[str, AnyStatistic] = field(default_factory=dict)
    same_as: WatchedMatrix | None = None
    tokens: int = 0
    sinks: int = 0
    output_norms: tuple[float, float] | None = None

    def update(
        self,
        inputs: Tensor,
        gradients: Tensor | None,
        real: Tensor,
        sinks: SinkTokens,
        originals: Tensor | None = None,
    ) -> None:
        """Take in a batch of what goes into its module and of the gradients at what comes out; see `Statistic`."""
        own_inputs = part_of(inputs, self.matrix.columns).float()
        own_gradients = None if gradients is None else part_of(gradients, self.matrix.rows).float()
        self.tokens += int(real.sum())
        self.sinks += int(sinks.every.sum())
        counted = {"counted": real, "left out": real & ~sinks.every, "alone": sinks.far}
        registered = registered_statistics()
        for name, statistic in self.statistics.items():
            use = registered[name].sinks
            if registered[name].needs_originals:
                assert originals is not None, "only a walk that edits has the unedited model beside it"
                own_originals = part_of(originals, self.matrix.columns).float()
                cast(StatisticOfBoth, statistic).update(own_inputs, own_gradients, counted[use], own_originals)
            elif use == "left out of its mean":
                cast(StatisticToldOfSinks, statistic).update(own_inputs, own_gradients, real, sinks)
            else:
                cast(Statistic, statistic).update(own_inputs, own_gradients, counted[use])

    def see_outputs(self, outputs: Tensor, real: Tensor, sinks: Tensor) -> None:
        """Take in what its module makes of a batch, `[b, t, m]`."""
        norms = part_of(outputs, self.matrix.rows).float().norm(dim=-1).double()
        every, ordinary = self.output_norms or (0.0, 0.0)
        self.output_norms = (every + float(norms[real].sum()), ordinary + float(norms[real & ~sinks].sum()))

    def results(self) -> dict[str, Tensor] | None:
        """Every statistic by name, and under `SEEN` the tokens seen; None where no token, or nothing to compare, was
        seen, which happens to experts.
        """
        found = (self.same_as or self)._values
        return None if found is None else found | {SEEN: self._seen().tensor()}

    @cached_property
    def _values(self) -> dict[str, Tensor] | None:
        """Worked out once for all matrices of the same inputs; what it was made from is let go, since a result may be
        another tensor, as large.
        """
        names = list(self.statistics)
        found = {}
        for name in names if self.tokens else ():
            value = self.statistics.pop(name).result()
            if value is not None:
                found[name] = value
        self.statistics.clear()
        return found if self.tokens and len(found) == len(names) else None

    def _seen(self) -> SeenTokens:
        inputs = self.same_as or self
        if self.output_norms is None:
            return SeenTokens(inputs.tokens, inputs.sinks)
        every, ordinary = self.output_norms
        others = inputs.tokens - inputs.sinks
        return SeenTokens(inputs.tokens, inputs.sinks, ordinary / others if others else every / inputs.tokens)


class NotShared(Exception):
    """Modules that were handed one tensor in an earlier batch were not in this one."""


class SharedInputs:
    """Which modules of a pass are handed the very same tensor (query, key and value; gate and up): what is summed over
    it is then summed once.
    """

    def __init__(self) -> None:
        # The last few, since they are kept alive.
        self._handed: deque[tuple[Tensor, int, ObservedModule]] = deque(maxlen=3)

    def forget(self) -> None:
        """Let go of what was handed before: a batch has ended."""
        self._handed.clear()

    def first_with(self, inputs: Tensor, module: ObservedModule) -> ObservedModule:
        """The first module of the batch that was handed this tensor as it is now; the one that asks, where none was."""
        for tensor, version, other in self._handed:
            if tensor is inputs and version == inputs._version:
                return other
        self._handed.append((inputs, inputs._version, module))
        return module


@dataclass
class ObservedModule:
    """One module under watch: the matrices in it, and which tokens of the batch at hand are real and which are the
    first of a document, `[b, t]`. places: where in its row each token stands that belongs to a place of the row padded
    on the left, `[b, t]`; None where that is the same. calls: how often the module was called for that batch.
    originals: the inputs of the batch at hand in the unedited model, where those are wanted.
    together: what calls saw that is not yet taken in. shared: tells of modules with the very same inputs; None where
    each has its own sums, as with gradients. follows: the first module with the inputs of this one.

    What is seen is reduced as soon as it is there and then let go: in a forward pass when the module is called, else
    when the gradients at the outputs of all its calls have arrived.
    """

    name: str
    items: list[WatchedMatrix]
    backward: bool
    shared: SharedInputs | None = None
    follows: ObservedModule | None = None
    real: Tensor | None = None
    first: Tensor | None = None
    places: Tensor | None = None
    originals: Tensor | None = None
    checked: bool = False
    calls: int = 0
    together: list[tuple[Tensor, Tensor | None]] = field(default_factory=list)

    def begin(self, real: Tensor, first: Tensor) -> None:
        """Start a batch of these real tokens, and these first ones among them."""
        self.real, self.first, self.calls = real, first, 0
        self.places = None if bool(real[:, -1].all()) else _places_from_the_left(real)
        self.together.clear()

    def _padded_on_the_left(self, values: Tensor) -> Tensor:
        """The same with the padding of `[b, t, ...]` on the left."""
        if self.places is None:
            return values
        places = self.places.to(values.device)
        return values.gather(1, places if values.ndim == 2 else places[..., None].expand_as(values))

    def called(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        """A forward hook. Raises UserError where the module does not multiply its input with its weight, as an
        embedding, which looks a row up, or a router, which goes on to choose.
        """
        matrix = self.items[0].matrix
        experts = matrix.expert is not None
        if experts and self.originals is not None:
            raise UserError(
                f"{matrix.parameter} holds experts, and which tokens they see changes with the edits: choose a method"
                " that does not compare with the unedited model, such as svd-llm"
            )
        if not experts and not _multiplies(args, output, matrix.full_shape):
            raise UserError(
                f"{matrix.parameter} does not multiply an input (an embedding is looked up, a router chooses), so there"
                " is nothing to be learned about it: leave it out of matrices"
            )
        if not experts:
            _require_tokens(args, self.real, matrix)
            self._show_outputs(args[0].detach(), output.detach())
            if self._is_summed_elsewhere(args[0]):
                self.calls += 1
                return
        self.calls += 1
        waiting = [expert_call(args, output, self.name) if experts else args[0].detach()]
        if self.backward:
            if not output.requires_grad:
                raise UserError(
                    f"no gradient reaches {matrix.parameter} in every call that this model makes of it: choose a method"
                    " that needs no gradients, such as svd or asvd"
                )
            output.register_hook(lambda gradient: self._show(module, waiting.pop(), gradient))
        else:
            self._show(module, waiting.pop(), None)

    def _is_summed_elsewhere(self, inputs: Tensor) -> bool:
        """Whether the sums of another module serve all matrices of this one. Raises NotShared where those of an earlier
        batch were of the same inputs, and these are not.
        """
        if self.shared is None or inputs.is_inference():
            return False
        first = self.shared.first_with(inputs, self)
        if self.follows is None:
            self.follows = first
            for place, item in enumerate(self.items):
                before = first.items if first is not self else self.items[:place]
                item.same_as = next((o.same_as or o for o in before if o.matrix.columns == item.matrix.columns), None)
        elif self.follows is not first:
            raise NotShared
        return all(item.same_as is not None for item in self.items)

    def _masks(self, device: torch.device) -> tuple[Tensor, Tensor]:
        assert self.real is not None and self.first is not None, "no batch is at hand"
        return self.real.to(device), self.first.to(device)

    def _show_outputs(self, inputs: Tensor, outputs: Tensor) -> None:
        real, first = self._masks(inputs.device)
        # Some models hand their layers all tokens in a row, without the batch.
        inputs, outputs = (values.reshape(*real.shape, -1) for values in (inputs, outputs))
        sinks = sink_tokens(inputs, real, first).every
        for item in self.items:
            item.see_outputs(outputs, real, sinks)

    def _show(self, module: nn.Module, seen: Tensor | ExpertCall, gradient: Tensor | None) -> None:
        real, first = self._masks((seen.inputs if isinstance(seen, ExpertCall) else seen).device)
        if not isinstance(seen, ExpertCall):
            # Some models hand their layers all tokens in a row, without the batch.
            shaped = None if gradient is None else self._padded_on_the_left(gradient.reshape(*real.shape, -1))
            self.together.append((self._padded_on_the_left(seen.reshape(*real.shape, -1)), shaped))
            if shaped is None or len(self.together) == self.calls:
                self._update(self._padded_on_the_left(real), self._padded_on_the_left(first))
            return
        layout = self.items[0].matrix.experts
        assert layout is not None, "what experts of an unknown layout see is not asked for"
        if not self.checked:
            check_equation(module, layout, seen, real, self.name)
            self.checked = True
        gradient = None if gradient is None else gradient.flatten(0, -2)
        for expert in sorted({item.matrix.expert for item in self.items if item.matrix.expert is not None}):
            sight = sights(module, layout, seen, gradient, expert, real)
            for item in self.items:
                if item.matrix.expert == expert:
                    seen_by = sight[item.matrix.parameter.rpartition(".")[2]]
                    inputs, reached = map(self._padded_on_the_left, (seen_by.inputs, seen_by.real))
                    gradients = seen_by.gradients
                    if gradients is not None:
                        gradients = self._padded_on_the_left(gradients)
                    sinks = sink_tokens(inputs, reached, self._padded_on_the_left(first))
                    item.update(inputs, gradients, reached, sinks)

    def _update(self, real: Tensor, first: Tensor) -> None:
        """Take in all calls of a batch. Layers may share a block: the gradient of its weight is a sum over its uses,
        so that they are shown as further tokens of the same documents. Sinks are those of each use.
        """
        import torch

        inputs = torch.cat([seen for seen, _ in self.together], dim=1)
        found = [sink_tokens(seen, real, first) for seen, _ in self.together]
        sinks = SinkTokens(*(torch.cat(masks, dim=1) for masks in zip(*found, strict=True)))
        gradients = [gradient for _, gradient in self.together if gradient is not None]
        gradient = torch.cat(gradients, dim=1) if gradients else None
        originals = self.originals
        if originals is not None:
            originals = self._padded_on_the_left(originals.reshape(*real.shape, -1))
        for item in self.items:
            if item.same_as is None:
                item.update(inputs, gradient, real.repeat(1, len(self.together)), sinks, originals)
        self.together.clear()


def _places_from_the_left(real: Tensor) -> Tensor:
    """Of rows padded on the right, `[b, t]`, which place each place of the row padded on the left is made from."""
    import torch

    width = real.shape[1]
    return (torch.arange(width, device=real.device) + real.sum(1, keepdim=True)) % width


def _require_tokens(args: tuple[Tensor, ...], real: Tensor | None, matrix: Matrix) -> None:
    """Raise UserError where a call has other inputs than one a token of the batch."""
    if real is not None and args[0].numel() != real.numel() * args[0].shape[-1]:
        raise UserError(
            f"{matrix.parameter} is handed {args[0].numel() // args[0].shape[-1]} positions where the documents have"
            f" {real.numel()} tokens, so which is whose cannot be told: choose a method that needs no calibration, such"
            " as svd"
        )


def _multiplies(args: tuple[Tensor, ...], output: object, shape: tuple[int, int]) -> bool:
    """Whether a call of a module looks as if it multiplied its input with a weight `[out, in]`."""
    import torch

    return (
        len(args) > 0
        and isinstance(args[0], torch.Tensor)
        and isinstance(output, torch.Tensor)
        and args[0].is_floating_point()
        and (output.shape[-1], args[0].shape[-1]) == shape
    )


def part_of(values: Tensor, ranges: tuple[tuple[int, int], ...] | None) -> Tensor:
    import torch

    return values if ranges is None else torch.cat([values[..., start:stop] for start, stop in ranges], dim=-1)


class ModuleWatch:
    """Modules under watch while a model runs, until the `with` block ends. watched: the matrices in them. backward:
    whether gradients are to be seen as well. alone: whether all documents are of one token, so that no first one is
    left out.
    """

    def __init__(
        self, model: nn.Module, watched: Sequence[WatchedMatrix], *, backward: bool, share: bool, alone: bool
    ) -> None:
        self._model = model
        self._alone = alone
        self._shared = SharedInputs() if share and not backward else None
        self._stack = ExitStack()
        observed: dict[str, ObservedModule] = {}
        for item in watched:
            name = item.matrix.module
            observed.setdefault(name, ObservedModule(name, [], backward, self._shared)).items.append(item)
        self.observed: Sequence[ObservedModule] = list(observed.values())

    def __enter__(self) -> ModuleWatch:
        for module in self.observed:
            self.hook(module, module.called)
        return self

    def hook(self, module: ObservedModule, hook: Callable[..., None]) -> None:
        """Have a forward hook called wherever a module is used."""
        for name in module.items[0].matrix.modules:
            self._stack.callback(self._model.get_submodule(name).register_forward_hook(hook).remove)

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        # Modules, and this, refer to each other and to themselves: inputs and statistics would wait for the collector.
        if self._shared is not None:
            self._shared.forget()
        for module in self.observed:
            module.follows = None

    def begin(self, batch: PaddedBatch) -> None:
        """Start a batch."""
        import torch

        real = batch.mask.bool()
        first = torch.zeros_like(real) if self._alone else batch.first
        if self._shared is not None:
            self._shared.forget()
        for module in self.observed:
            module.begin(real, first)

    @property
    def called_once(self) -> bool:
        """Whether each module was called exactly once for the batch at hand."""
        return all(module.calls == 1 for module in self.observed)


def are_alone(batches: Sequence[PaddedBatch]) -> bool:
    """Whether there are only documents of one token, of which nothing would be left without the first ones."""
    return all(bool((batch.mask.sum(1) <= 1).all()) for batch in batches)


def results_of(watched: Sequence[WatchedMatrix]) -> dict[str, dict[str, Tensor]]:
    """The statistics by `Matrix.key`; an expert that saw nothing to go by is left out.

    Raises UserError where another matrix was never used.
    """
    gathered: dict[str, dict[str, Tensor]] = {}
    for item in watched:
        if not (item.same_as or item).tokens and item.matrix.expert is None:
            raise UserError(
                f"{item.matrix.parameter} is used by this model without a call of its layer, so nothing can be"
                " learned about it: leave it out of matrices, or choose a method that needs no calibration"
            )
        if (found := item.results()) is not None:
            gathered[item.matrix.key] = found
    return gathered
