"""Statistics: what a method needs to know about how the model uses its matrices, gathered in one streaming pass over
calibration documents.

Only the statistics that a method names are gathered. They see documents that are padded on the left, so that the
answers of a batch stand at the same positions and a counterfactual input is that of the same place in another prompt.
So does the model, unless it would count the padding as tokens (`COUNTS_PADDING`). Losses are per document, so the batch
size changes nothing but speed.

Gradients are those at the outputs of modules, reduced as the backward pass reaches each and then let go; weights get
none. A pass holds the factors, or the second moments, of the matrices it works on; matrices are taken in groups that
fit `FACTOR_BYTES`, one pass a group, so that memory stays bounded for any model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from harness_ext.calibration.batches import PaddedBatch, batches_of, summed_loss
from harness_ext.calibration.context import DocumentBatches
from harness_ext.calibration.experts import ExpertCall, check_equation, expert_call, sights
from harness_ext.calibration.sinks import SEEN, SeenTokens, sink_tokens
from harness_ext.errors import UserError, VariantFailed
from harness_ext.methods.statistic_registry import (
    AnyStatistic,
    SinkTokens,
    Statistic,
    StatisticToldOfSinks,
    registered_statistics,
    statistics_among,
)
from harness_ext.model.layout import Matrix

if TYPE_CHECKING:
    import torch
    from lm_eval.models.huggingface import HFLM
    from torch import Tensor, nn

    from harness_ext.methods import Svd

FACTOR_BYTES = 2 << 30


@dataclass
class _Watched:
    """One matrix under watch, its statistics, and what it has seen: real tokens, sinks among them, and the norms of its
    outputs, summed over all tokens and over those that are no sinks.
    """

    matrix: Matrix
    statistics: dict[str, AnyStatistic] = field(default_factory=dict)
    tokens: int = 0
    sinks: int = 0
    output_norms: tuple[float, float] | None = None

    def update(self, inputs: Tensor, gradients: Tensor | None, real: Tensor, sinks: SinkTokens) -> None:
        """Take in a batch of what goes into its module and of the gradients at what comes out; see `Statistic`."""
        own_inputs = part_of(inputs, self.matrix.columns).float()
        own_gradients = None if gradients is None else part_of(gradients, self.matrix.rows).float()
        self.tokens += int(real.sum())
        self.sinks += int(sinks.every.sum())
        counted = {"counted": real, "left out": real & ~sinks.every, "alone": sinks.far}
        registered = registered_statistics()
        for name, statistic in self.statistics.items():
            use = registered[name].sinks
            if use == "left out of its mean":
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
        if not self.tokens:
            return None
        found = {
            name: value for name, statistic in self.statistics.items() if (value := statistic.result()) is not None
        }
        return found | {SEEN: self._seen().tensor()} if len(found) == len(self.statistics) else None

    def _seen(self) -> SeenTokens:
        if self.output_norms is None:
            return SeenTokens(self.tokens, self.sinks)
        every, ordinary = self.output_norms
        others = self.tokens - self.sinks
        return SeenTokens(self.tokens, self.sinks, ordinary / others if others else every / self.tokens)


def gather(
    lm: HFLM,
    matrices: Sequence[Matrix],
    names: frozenset[str],
    documents: DocumentBatches,
    decompose: Callable[[Matrix], Svd],
) -> dict[str, dict[str, Tensor]]:
    """Gather the named statistics of every matrix over all documents; keyed by `Matrix.key`, then by statistic, with
    the tokens seen under `SEEN`. An expert that saw nothing to go by is left out.

    Sink tokens (`sink_tokens`) are in the statistics that are registered so.

    decompose: gives the factors of a matrix, called once each. documents.advance is told the number of documents done.

    Raises UserError where a batch of one cannot give what is asked (some statistics compare documents of a
    batch), and VariantFailed where the loss is not finite.
    """
    check_pairs(names, Counter(document.task for document in documents.documents), documents.size)
    batches = list(batches_of(lm, documents.documents, documents.size))
    backward = any(item.needs_gradients for item in statistics_among(names))
    gathered: dict[str, dict[str, Tensor]] = {}
    for group in groups(matrices, names):
        watched = [_Watched(matrix, _start(names, matrix, decompose)) for matrix in group]
        _one_pass(lm, watched, batches, documents.advance, backward=backward)
        for item in watched:
            if not item.tokens and item.matrix.expert is None:
                raise UserError(
                    f"{item.matrix.parameter} is used by this model without a call of its layer, so nothing can be"
                    " learned about it: leave it out of matrices, or choose a method that needs no calibration"
                )
            if (found := item.results()) is not None:
                gathered[item.matrix.key] = found
            # A result may be another tensor, as large as what it was made from.
            item.statistics.clear()
    return gathered


def check_pairs(names: frozenset[str], documents: Mapping[str, int], batch_size: int) -> None:
    """Raise UserError where a method compares documents with one another and some would stand alone. documents: how
    many, by task.
    """
    if not any(item.compares_documents for item in statistics_among(names)):
        return
    if batch_size < 2:
        raise UserError(
            "this method compares each calibration document with the next of its batch: set calibration.batch_size to 2"
            " or more"
        )
    alone = [task for task, count in documents.items() if count < 2]
    if alone:
        raise UserError(
            f"this method compares each calibration document with another of its task, and {' and '.join(alone)} would"
            " give only one: raise calibration.samples"
        )


def _start(names: frozenset[str], matrix: Matrix, decompose: Callable[[Matrix], Svd]) -> dict[str, AnyStatistic]:
    registered = registered_statistics()
    chosen = [registered[name] for name in sorted(names)]
    return {item.name: item.make(decompose(matrix)) if item.needs_components else item.make() for item in chosen}


def held_bytes(shape: tuple[int, int], names: frozenset[str]) -> int:
    """What a pass holds for one matrix `[m, n]`: the numbers of its statistics in fp64, and factors in fp32 where one
    of them is of components.
    """
    rows, columns = shape
    chosen = statistics_among(names)
    factors = 4 * min(rows, columns) * (rows + columns) if any(item.needs_components for item in chosen) else 0
    return factors + 8 * sum(item.numbers(shape) for item in chosen)


def groups(matrices: Sequence[Matrix], names: frozenset[str]) -> Iterator[list[Matrix]]:
    """The matrices in runs of which one pass holds no more than `FACTOR_BYTES`; a larger one is a run by itself."""
    group: list[Matrix] = []
    held = 0
    for matrix in matrices:
        size = held_bytes(matrix.shape, names)
        if group and held + size > FACTOR_BYTES:
            yield group
            group, held = [], 0
        group.append(matrix)
        held += size
    if group:
        yield group


@dataclass
class _Observed:
    """One module under watch: the matrices in it, and which tokens of the batch at hand are real
    and which are the first of a document, `[b, t]`. places: where in its row each token stands that belongs to a place
    of the row padded on the left, `[b, t]`; None where that is the same. calls: how often the module was called for
    that batch. together: what calls saw that is not yet taken in.

    What is seen is reduced as soon as it is there and then let go: in a forward pass when the module is called, else
    when the gradients at the outputs of all its calls have arrived.
    """

    name: str
    items: list[_Watched]
    backward: bool
    real: Tensor | None = None
    first: Tensor | None = None
    places: Tensor | None = None
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
        if not experts and not _multiplies(args, output, matrix.full_shape):
            raise UserError(
                f"{matrix.parameter} does not multiply an input (an embedding is looked up, a router chooses), so there"
                " is nothing to be learned about it: leave it out of matrices"
            )
        if not experts:
            _require_tokens(args, self.real, matrix)
            self._show_outputs(args[0].detach(), output.detach())
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
        for item in self.items:
            item.update(inputs, gradient, real.repeat(1, len(self.together)), sinks)
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


def _one_pass(
    lm: HFLM,
    watched: Sequence[_Watched],
    batches: Sequence[PaddedBatch],
    progress: Callable[[int], Any],
    *,
    backward: bool,
) -> None:
    import torch

    modules = dict(lm.model.named_modules())
    observed: dict[str, _Observed] = {}
    for item in watched:
        observed.setdefault(item.matrix.module, _Observed(item.matrix.module, [], backward)).items.append(item)
    with ExitStack() as stack:
        stack.enter_context(frozen(lm.model))
        stack.enter_context(torch.set_grad_enabled(backward))
        for module in observed.values():
            for name in module.items[0].matrix.modules:
                stack.callback(modules[name].register_forward_hook(module.called).remove)
        # Of documents of one token, nothing would be left.
        alone = all(bool((batch.mask.sum(1) <= 1).all()) for batch in batches)
        embedded: list[Tensor] = []
        if backward:
            stack.callback(lm.model.get_input_embeddings().register_forward_hook(_begin_here(embedded)).remove)
        rest = _Rest(list(observed.values()))
        if not backward and _may_be_stopped(lm.model):
            for module in observed.values():
                for name in module.items[0].matrix.modules:
                    stack.callback(modules[name].register_forward_hook(rest.stop_before).remove)
        for batch in batches:
            for module in observed.values():
                real = batch.mask.bool()
                module.begin(real, torch.zeros_like(real) if alone else batch.first)
            embedded.clear()
            loss = rest.loss_unless_stopped(lm, batch)
            if loss is not None:
                _require_finite(loss, lm)
                if backward:
                    torch.autograd.grad(loss, embedded)
            progress(batch.tokens.shape[0])


def _require_finite(loss: Tensor, lm: HFLM) -> None:
    import torch

    if torch.isfinite(loss):
        return
    in_float64 = lm.model.dtype == torch.float64
    hint = "; in float64 the attention of some models cannot take padding: load the model in float32"
    raise VariantFailed(
        "non_finite_loss",
        "the calibration loss is not finite: the model or a prompt is broken; nothing was edited"
        + (hint if in_float64 else ""),
    )


class _Enough(Exception):
    """Ends a forward pass of which the rest is asked by nobody."""


@dataclass
class _Rest:
    """What comes after the last watched module of a forward pass: done once, for the first batch, which shows that each
    is called once and that the loss is finite. In edits made one matrix after another, half of all work is such a rest.
    """

    observed: Sequence[_Observed]
    needless: bool = False

    def stop_before(self, *_: object) -> None:
        """A forward hook, behind the one that watches."""
        if self.needless and all(module.calls for module in self.observed):
            raise _Enough

    def loss_unless_stopped(self, lm: HFLM, batch: PaddedBatch) -> Tensor | None:
        """The loss of a batch; None where the pass was ended before it."""
        try:
            loss = summed_loss(lm, batch)
        except _Enough:
            return None
        self.needless = all(module.calls == 1 for module in self.observed)
        return loss


def _may_be_stopped(model: nn.Module) -> bool:
    """Whether a forward pass may end in the middle: not where weights are moved in and out around each module, nor
    where a module is called once for every part of a text.
    """
    chunked = getattr(getattr(model, "config", None), "chunk_size_feed_forward", 0)
    return not chunked and getattr(model, "hf_device_map", None) is None


def _begin_here(embedded: list[Tensor]) -> Callable[..., Tensor]:
    """A forward hook that makes a module's output the place where the backward pass ends: all that follows gets
    gradients, without any for the weights.
    """

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_(True))
        # Some models change what they get from it in place, which a leaf does not let them.
        return embedded[-1].clone()

    return hook


def part_of(values: Tensor, ranges: tuple[tuple[int, int], ...] | None) -> Tensor:
    import torch

    return values if ranges is None else torch.cat([values[..., start:stop] for start, stop in ranges], dim=-1)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No gradients for the weights: only those of activations are wanted, and they alone should take memory."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
