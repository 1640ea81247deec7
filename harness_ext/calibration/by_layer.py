"""Statistics gathered one decoder layer after another, so that a model is run through its calibration documents once,
whatever its size, and what is held is one layer's.

The hidden states of all documents stand before one layer at a time (`DecoderStack`). The layer takes them one step
further while its matrices are under watch; whoever gets their statistics may then edit it. Three ways:

- *forward*, of the model as it is: the states go on as the unedited layer made them;
- *forward, edited* (SFSD, arXiv:2405.13039): matrices are edited stage by stage, and the states go on as the edited
  layer makes them. A stage runs its layer only up to its own last matrix;
- *backward*, for gradients: states are kept before every layer, and gradients go back from the loss, each layer run
  once more as they pass it.

Sums are those of `gather`, to rounding. Where the layers are no plain stack, which a trial shows, `gather` is the way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from harness_ext.calibration.batches import (
    TOKENS_WITH_GRADIENTS,
    PaddedBatch,
    calibration_batches,
    call_of,
    document_losses,
    probes,
)
from harness_ext.calibration.collect import (
    Rest,
    check_pairs,
    frozen,
    gather,
    groups,
    may_be_stopped,
    needs_backward,
    needs_originals,
    require_finite_sum,
    watched_through,
)
from harness_ext.calibration.context import DocumentBatches
from harness_ext.calibration.hidden_states import States
from harness_ext.calibration.observed import ModuleWatch, WatchedMatrix, are_alone
from harness_ext.calibration.unedited_stream import UneditedStream
from harness_ext.model.decoder_stack import DecoderStack, layers_of
from harness_ext.model.layout import Matrix
from harness_ext.progress import Progress

if TYPE_CHECKING:
    import torch
    from lm_eval.models.huggingface import HFLM
    from torch import Tensor

    from harness_ext.methods import Svd
    from harness_ext.progress import Stage

Learned = tuple[Sequence[Matrix], Mapping[str, Mapping[str, "Tensor"]]]
"""Some matrices, and their statistics by `Matrix.key` as `gather` gives them."""
Statistics = Mapping[str, Mapping[str, "Tensor"]]
"""Of some matrices, by `Matrix.key`."""


class LearnedGroup(NamedTuple):
    """Some matrices of a layer, and their statistics. is_last: whether all of the layer's are there now."""

    matrices: Sequence[Matrix]
    statistics: Statistics
    is_last: bool


Stages = Callable[[Sequence[Matrix]], Sequence[Sequence[Matrix]]]
"""Splits the matrices of a layer into those that are learned about, and edited, one after another."""

MadeOfGroup = Callable[[Sequence[Matrix], Statistics], Statistics]
"""What is made of the statistics of a group of matrices, once all of them are there."""

_stacks: WeakKeyDictionary[Any, DecoderStack | None] = WeakKeyDictionary()
"""By the list of a model's layers; None for one that is no plain stack."""


def together(learned: Iterable[Learned], waiting: Sequence[Sequence[Matrix]], make: MadeOfGroup) -> Iterator[Learned]:
    """The groups of a step, each with what is made of its statistics, as soon as all of them are there. waiting: the
    groups, which have every matrix of the step once.
    """
    known: dict[str, Mapping[str, Tensor]] = {}
    for part, statistics in learned:
        known |= {matrix.key: statistics.get(matrix.key, {}) for matrix in part}
        # Else those of groups that are done would be held until the next part is learned.
        del statistics
        ready = [group for group in waiting if all(matrix.key in known for matrix in group)]
        waiting = [group for group in waiting if group not in ready]
        for group in ready:
            yield group, make(group, {matrix.key: known.pop(matrix.key) for matrix in group})


class LearnedComponents(NamedTuple):
    """Components of a matrix that are made of its statistics. names: of those; make: gives the components."""

    names: frozenset[str]
    make: Callable[[Matrix, Mapping[str, Tensor]], Svd]

    def of_each(
        self, matrices: Sequence[Matrix], learned: Mapping[str, Mapping[str, Tensor]]
    ) -> Callable[[Matrix], Svd]:
        """The components of these matrices, by matrix."""
        made = {matrix.key: self.make(matrix, learned[matrix.key]) for matrix in matrices if matrix.key in learned}
        return lambda matrix: made[matrix.key]


def no_components(matrix: Matrix) -> Svd:
    """Where no statistic is of components."""
    raise AssertionError("statistics of components need some")


def walk_through(
    lm: HFLM,
    matrices: Sequence[Matrix],
    names: frozenset[str],
    documents: DocumentBatches,
    decompose: Callable[[Matrix], Svd] | LearnedComponents,
) -> LayerWalk | None:
    """A walk through the layers that hold these matrices; None where the model is no plain stack of them. Arguments and
    errors are those of `gather`.
    """
    check_pairs(names, Counter(document.task for document in documents.documents), documents.size)
    layers, depths = layers_of(lm.model, matrices)
    # A block that layers share sees inputs at each of them.
    shared = any(len(matrix.modules) > 1 or matrix.also for matrix in matrices)
    if layers is None or shared or not may_be_stopped(lm.model):
        return None
    if layers not in _stacks:
        stack, calls = DecoderStack(layers), [call_of(lm, batch) for batch in probes(lm, documents.documents)]
        _stacks[layers] = stack if stack.adds_up(calls) else None
    found = _stacks[layers]
    if found is None:
        return None
    batches = calibration_batches(lm, documents, names)
    return LayerWalk(lm, found, depths, batches, names, decompose, progress=documents.progress)


def gathered(
    lm: HFLM,
    matrices: Sequence[Matrix],
    names: frozenset[str],
    documents: DocumentBatches,
    decompose: Callable[[Matrix], Svd] | LearnedComponents = no_components,
) -> dict[str, dict[str, Tensor]]:
    """What `gather` gives, by one walk through the layers where that can be had: for statistics that fit at once."""
    walk = walk_through(lm, matrices, names, documents, decompose)
    if walk is not None:
        return {key: dict(values) for _, part in walk.as_it_is(matrices) for key, values in part.items()}
    if not isinstance(decompose, LearnedComponents):
        return gather(lm, matrices, names, documents, decompose)
    found: dict[str, dict[str, Tensor]] = {}
    for group in groups(matrices, names | decompose.names):
        learned = gather(lm, group, decompose.names, documents, no_components)
        found |= gather(lm, group, names, documents, decompose.of_each(group, learned))
    return found


@dataclass(frozen=True)
class LayerWalk:
    """A plain stack of layers, and the batches that go through it. depths: the layer of each module under watch.
    layers_on: a device for the layer at hand alone, where the model has no room there; the layer stays there while its
    matrices are edited. losses: once a walk is at its end, the loss of every document by task, of the model that it
    saw: the unedited one, or the one that all edits made. progress: has a stage for each walk.
    """

    lm: HFLM
    stack: DecoderStack
    depths: Mapping[str, int]
    batches: Sequence[PaddedBatch]
    names: frozenset[str]
    decompose: Callable[[Matrix], Svd] | LearnedComponents
    layers_on: torch.device | None = None
    losses: dict[str, list[float]] = field(default_factory=dict)
    progress: Progress = field(default_factory=Progress)

    @property
    def backward(self) -> bool:
        """Whether gradients are wanted."""
        return needs_backward(self.names)

    def as_it_is(self, matrices: Sequence[Matrix]) -> Iterator[Learned]:
        """The matrices layer by layer, with the statistics of the model as it was when this began: a layer may be
        edited when its statistics are there.
        """
        own: list[Matrix] = []
        found: dict[str, Mapping[str, Tensor]] = {}
        for group, more, is_last in self.in_groups(matrices):
            own, found = [*own, *group], {**found, **more}
            del more
            if is_last:
                yield own, found
                # Else they would be held while the next layer's are gathered.
                own, found = [], {}

    def in_groups(self, matrices: Sequence[Matrix]) -> Iterator[LearnedGroup]:
        """As `as_it_is`, each layer in groups that one pass through it holds (`collect.groups`). It may be edited when
        its last group is there: earlier ones are to be put aside until then.
        """
        return self._backward(matrices) if self.backward else self._forward(matrices)

    def _counted(self, layers: int) -> AbstractContextManager[Stage]:
        """The stage of a walk that takes so many layers."""
        return self.progress.stage("calibrating", layers, "layers")

    def as_edited(self, matrices: Sequence[Matrix], stages: Stages) -> Iterator[Learned]:
        """The matrices stage by stage, with the statistics of the model as all edits so far have made it."""
        by_layer = self.by_layer(matrices)
        states = self.entering()
        beside = UneditedStream(self, self.entering()) if needs_originals(self.names) else None
        with self._counted(len(self.stack)) as counted:
            for layer in range(max(by_layer) + 1):
                with self.stack.placed(layer, self.layers_on):
                    if beside is not None:
                        beside.come_to(layer)
                    for stage in stages(by_layer.get(layer, [])):
                        found: dict[str, dict[str, Tensor]] = {}
                        for group in groups(stage, self.names):
                            found |= self._watched(layer, states, group, stop=True, beside=beside)[0]
                        yield stage, found
                        del found
                    self.run_on(layer, states)
                    if beside is not None:
                        beside.go_on()
                counted.advance()
            self._finish(max(by_layer) + 1, states, counted)

    def _forward(self, matrices: Sequence[Matrix]) -> Iterator[LearnedGroup]:
        by_layer = self.by_layer(matrices)
        states, last = self.entering(), max(by_layer)
        with self._counted(len(self.stack)) as counted:
            for layer in range(last + 1):
                own = by_layer.get(layer, [])
                if not own:
                    self._go_on(layer, states, counted)
                    continue
                *before, final = groups(own, self.names)
                with self.stack.placed(layer, self.layers_on):
                    for group in before:
                        yield LearnedGroup(group, self._watched(layer, states, group, stop=True)[0], is_last=False)
                    found, outputs = self._watched(layer, states, final)
                    states.replace(outputs)
                    yield LearnedGroup(final, found, is_last=True)
                # Else they would be held while the next layer's are gathered.
                del found, outputs
                counted.advance()
            self._finish(last + 1, states, counted)

    def measure(self) -> dict[str, list[float]]:
        """The loss of every document by task, of the model as it is."""
        self.losses.clear()
        with self.progress.stage("measuring the loss", len(self.stack), "layers") as counted:
            self._finish(0, self.entering(), counted)
        return self.losses

    def _finish(self, layer: int, states: States, counted: Stage) -> None:
        """Take the states through the other layers, and on to the loss."""
        import torch

        for further in range(layer, len(self.stack)):
            self._go_on(further, states, counted)
        with torch.no_grad():
            for place, batch in enumerate(self.batches):
                for own, part in batch.parts(TOKENS_WITH_GRADIENTS):
                    leaving = states[place][own]
                    found = self.stack.beyond(leaving, lambda: document_losses(self.lm, part))  # noqa: B023 - at once
                    self._note(part, found)

    def _note(self, batch: PaddedBatch, losses: Tensor) -> None:
        for task, loss in zip(batch.tasks, losses.tolist(), strict=True):
            self.losses.setdefault(task, []).append(loss)

    def from_the_last(self, matrices: Sequence[Matrix]) -> Iterator[Learned]:
        """As `as_it_is`, the last layer first, for statistics without gradients."""
        by_layer = self.by_layer(matrices)
        with self._counted(max(by_layer) + len(by_layer)) as counted:
            entering = self._before_each(max(by_layer) + 1, counted)
            for layer in sorted(by_layer, reverse=True):
                found: dict[str, dict[str, Tensor]] = {}
                with self.stack.placed(layer, self.layers_on):
                    for group in groups(by_layer[layer], self.names):
                        found |= self._watched(layer, entering[layer], group, stop=True)[0]
                    del entering[layer:]
                    counted.advance()
                    yield by_layer[layer], found
                    del found

    def _backward(self, matrices: Sequence[Matrix]) -> Iterator[LearnedGroup]:
        by_layer = self.by_layer(matrices)
        # There and back.
        with self._counted(2 * len(self.stack) - min(by_layer)) as counted:
            # A layer takes several times as long on the way back.
            counted.expected = lambda: None
            entering = self._before_each(len(self.stack) + 1, counted)
            gradients = self._gradients_of_loss(entering.pop())
            counted.pace_anew()
            for layer in reversed(range(min(by_layer), len(self.stack))):
                own = by_layer.get(layer, [])
                states = entering.pop()
                with self.stack.placed(layer, self.layers_on):
                    walk = self._with_components(layer, states, own)
                    *earlier, final = groups(own, self.names) if own else [[]]
                    for group in earlier:
                        yield LearnedGroup(
                            group, walk._watched(layer, states, group, gradients=gradients)[0], is_last=False
                        )
                    found, before = walk._watched(layer, states, final, gradients=gradients)
                    gradients = States(before)
                    counted.advance()
                    if own:
                        yield LearnedGroup(final, found, is_last=True)
                    del found, states, before

    def _with_components(self, layer: int, states: States, matrices: Sequence[Matrix]) -> LayerWalk:
        """The walk with the components of these matrices, where those are of what is learned first."""
        if not isinstance(self.decompose, LearnedComponents):
            return self
        if not matrices:
            return replace(self, decompose=no_components)
        first = replace(self, names=self.decompose.names, decompose=no_components)
        learned, _ = first._watched(layer, states, matrices, stop=True)
        return replace(self, decompose=self.decompose.of_each(matrices, learned))

    def _before_each(self, layers: int, counted: Stage) -> list[States]:
        """The states before each of the first layers; the last may be those behind the last layer."""
        entering = [self.entering()]
        for layer in range(layers - 1):
            entering.append(entering[-1].copy())
            self._go_on(layer, entering[-1], counted)
        return entering

    def by_layer(self, matrices: Sequence[Matrix]) -> dict[int, list[Matrix]]:
        """The matrices of each layer that has some."""
        by_layer: dict[int, list[Matrix]] = {}
        for matrix in matrices:
            by_layer.setdefault(self.depths[matrix.module], []).append(matrix)
        return by_layer

    def entering(self) -> States:
        """The states of every batch before the first layer."""
        import torch

        with torch.no_grad():
            return States([self.stack.entering(call_of(self.lm, batch)) for batch in self.batches])

    def _go_on(self, layer: int, states: States, counted: Stage) -> None:
        """Take the states through a layer that nobody watches."""
        with self.stack.placed(layer, self.layers_on):
            self.run_on(layer, states)
        counted.advance()

    def run_on(self, layer: int, states: States) -> None:
        """Take the states through a layer."""
        import torch

        with torch.no_grad():
            for place, batch in enumerate(self.batches):
                states[place] = self.stack.through(layer, states[place], call_of(self.lm, batch))

    def _watched(
        self,
        layer: int,
        states: States,
        group: Sequence[Matrix],
        *,
        gradients: States | None = None,
        stop: bool = False,
        beside: UneditedStream | None = None,
    ) -> tuple[dict[str, dict[str, Tensor]], Sequence[Tensor]]:
        """The statistics of matrices of one layer; and of each batch the states behind it, or where gradients at its
        output are given, those at its input. stop: the states behind it are not wanted. beside: the unedited model at
        the same layer, whose inputs are shown too.
        """

        def run(watched: Sequence[WatchedMatrix], share: bool) -> Sequence[Tensor]:
            watch = ModuleWatch(
                self.lm.model, watched, backward=self.backward, share=share, alone=are_alone(self.batches)
            )
            return self._run(layer, states, watch, gradients, stop=stop, beside=beside)

        assert not isinstance(self.decompose, LearnedComponents), "each layer has its own"
        return watched_through(group, self.names, self.decompose, run)

    def _run(
        self,
        layer: int,
        states: States,
        watch: ModuleWatch,
        gradients: States | None,
        *,
        stop: bool,
        beside: UneditedStream | None,
    ) -> Sequence[Tensor]:
        import torch

        made: list[Tensor] = []
        with frozen(self.stack.layers[layer]), torch.set_grad_enabled(self.backward), watch:
            rest = Rest(watch)
            if stop and watch.observed:
                rest.stop_when_done()
            for place, batch in enumerate(self.batches):
                watch.begin(batch)
                if beside is not None:
                    beside.show(place, watch)
                entering = states[place].detach().requires_grad_(self.backward)
                call = call_of(self.lm, batch)
                output = rest.unless_stopped(lambda: self.stack.through(layer, entering, call))  # noqa: B023 - called at once
                if gradients is not None:
                    assert output is not None
                    (output,) = torch.autograd.grad(output, [entering], gradients[place].to(output.device))
                if output is not None and not stop:
                    made.append(states.kept(output))
        return made

    def _gradients_of_loss(self, states: States) -> States:
        """The gradients of the loss at the output of the last layer. Raises VariantFailed where it is not finite."""
        import torch

        gradients = []
        with frozen(self.lm.model), torch.enable_grad():
            for place, batch in enumerate(self.batches):
                leaving = states[place].detach().requires_grad_(True)
                losses = self.stack.beyond(leaving, lambda: document_losses(self.lm, batch))  # noqa: B023 - called at once
                loss = losses.sum()
                require_finite_sum(loss.detach(), self.lm)
                self._note(batch, losses.detach())
                (gradient,) = torch.autograd.grad(loss, [leaving])
                gradients.append(states.kept(gradient))
        return States(gradients)
