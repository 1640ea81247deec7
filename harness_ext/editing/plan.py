"""What a recipe would do to a model, from its config and the headers of its checkpoint alone: no weight is read.

Time and memory are estimates, from measurements on the device that will do it (`plan_estimate`); they are made when
they are asked for. What is kept from earlier runs takes next to no time.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from harness_ext.editing.plan_components import Place, place_of
from harness_ext.editing.plan_matrices import PlannedMatrix, layout_of, planned_in_layout, torch_name
from harness_ext.editing.plan_sizes import Saved, saved_by
from harness_ext.editing.records import standing
from harness_ext.errors import BudgetTooSmall, UserError
from harness_ext.methods.search_registry import planned_trials
from harness_ext.model.checkpoint import Checkpoint
from harness_ext.model.layout import Matrix, whole_note
from harness_ext.model.renames import as_loaded
from harness_ext.model.size import stored_parameters
from harness_ext.recipe.recipe import Recipe
from harness_ext.recipe.schema import search_of
from harness_ext.recipe.settings import HEAL

if TYPE_CHECKING:
    from harness_ext.editing.plan_estimate import PlanEstimate

TOKENS = 64
"""Tokens of a calibration document, where nobody says how many it has."""


@dataclass(frozen=True)
class PlannedSearch:
    """One search. trials: at most. matrices: those among which it chooses. passes: through the whole model over all its
    documents, at most but for checks on two of them; each trial starts at its matrix's layer. tried: of them, those
    of trials. param_fraction: what stays at most of the numbers in its matrices, 1 where it has no such budget.
    """

    step: int
    method: str
    matrices: int
    trials: int
    documents: int
    passes: float
    tried: float = 0.0
    param_fraction: float = 1.0


class PlannedGroup(NamedTuple):
    """Matrices of one step that are alike. what: their role, or their names with `*` for the numbers in them. number:
    how many there are. counted_as, numbers: as in `PlannedMatrix`. shape_after: without what is taken away of its
    component, None where only the run tells.
    """

    step: int
    method: str
    what: str
    shape: tuple[int, int]
    rank_after: int | None
    counted_as: str
    numbers: int | None
    shape_after: tuple[int, int] | None
    number: int

    @property
    def parameters_after(self) -> int:
        """Of one matrix, stored at low rank where that is smaller."""
        if self.shape_after is None or self.rank_after is None:
            return self.shape[0] * self.shape[1]
        if self.shape_after != self.shape:
            return self.shape_after[0] * self.shape_after[1]
        if self.numbers is not None:
            return self.numbers
        return stored_parameters(self.shape, self.rank_after, self.counted_as)


@dataclass(frozen=True)
class Plan:
    """The whole of it. parameters, stored_bytes: of the checkpoint. training_epochs: passes over the calibration
    documents, forward and backward. inferred: whether roles are told from names, rather than declared for this kind of
    model. device: that will do it. tokens: of a calibration document. layers, products, dtype: of the model, its linear
    layers by shape, with how many there are of each. vocabulary: rows of its embedding. tensors: in the checkpoint.
    spread: whether the model is asked to be spread over what memory there is, so that some of it may be left out.
    notes: what of the recipe has no effect on this model, a sentence each.
    """

    recipe: Recipe
    model_type: str
    matrices: tuple[PlannedMatrix, ...]
    parameters: int
    stored_bytes: int
    calibration_documents: int
    training_epochs: int = 0
    searches: tuple[PlannedSearch, ...] = ()
    inferred: bool = False
    device: str = "cpu"
    tokens: int = TOKENS
    layers: int = 0
    products: tuple[tuple[tuple[int, int], int], ...] = ()
    dtype: str = "float32"
    vocabulary: int = 1
    tensors: int = 0
    spread: bool = False
    notes: tuple[str, ...] = ()

    @cached_property
    def estimate(self) -> PlanEstimate:
        """Seconds, bytes and passes, step by step, measured on the device when first asked for. Raises UserError where
        the device cannot be used.
        """
        from harness_ext.editing.plan_estimate import estimated

        return estimated(self)

    @property
    def seconds(self) -> float:
        """Expected for everything but loading and scoring."""
        return self.estimate.seconds

    @property
    def peak_bytes(self) -> int:
        """Expected beyond the loaded model."""
        return self.estimate.peak_bytes

    @property
    def if_offloaded(self) -> str | None:
        """What a run does where some weights find no room in memory, as a clause; None where all are in memory."""
        from harness_ext.editing.edit_stored import needs_memory

        if not self.spread:
            return None
        if (reason := needs_memory(self.recipe)) is not None:
            return f"where memory is short, a run is refused: {reason}"
        return "where memory is short, a copy of the checkpoint's files is edited and loaded in the model's place"

    @property
    def groups(self) -> list[PlannedGroup]:
        """The matrices by step, role, shape and rank, in the order of the first of each."""
        counts = Counter(
            (
                item.step,
                item.method,
                _kind(item.matrix),
                item.matrix.shape,
                item.rank_after,
                item.counted_as,
                item.numbers,
                item.shape_after,
            )
            for item in self.matrices
        )
        return [PlannedGroup(*kind, count) for kind, count in counts.items()]

    @property
    def is_upper_bound(self) -> bool:
        """Whether the sizes afterwards may come out smaller: where ranks are not known yet, and where two steps edit a
        matrix, of which the later gives nothing back that the earlier one left out.
        """
        touched = {
            (place, item.step)
            for item in self.matrices
            if item.method != HEAL
            for place in (_place(item), *(place for place, _ in item.lost))
        }
        return any(item.rank_after is None for item in self.matrices) or len({place for place, _ in touched}) < len(
            touched
        )

    @property
    def parameters_after(self) -> int:
        """Parameters of the whole model after the recipe; at most, where `is_upper_bound` says so."""
        saved = sum(one.numbers for one in self._saved())
        return self.parameters - saved - sum(numbers for numbers, _ in self._saved_by_budgets())

    @property
    def bytes_after(self) -> int:
        """Bytes of the whole model after the recipe, in the stored dtypes; at most as `parameters_after`."""
        saved = sum(one.numbers * one.element_bytes for one in self._saved())
        return self.stored_bytes - saved - sum(numbers * width for numbers, width in self._saved_by_budgets())

    def _saved_by_budgets(self) -> Iterator[tuple[int, int]]:
        """The numbers that each search with a budget saves at least, and the bytes of one; none where a later step
        edits some of its matrices again, by ranks of its own, as heal does not.
        """
        ranked = [item for item in self.matrices if item.method != HEAL]
        last = Counter(item.step for item in standing(ranked, _place))
        for search in self.searches:
            own = [item for item in self.matrices if item.step == search.step]
            if search.param_fraction < 1 and last[search.step] == len(own):
                whole = sum(item.parameters_before for item in own)
                yield whole - math.floor(search.param_fraction * whole + 1e-6), min(item.element_bytes for item in own)

    def _saved(self) -> list[Saved]:
        return saved_by(self.recipe, self.matrices)


def _place(item: PlannedMatrix) -> Place:
    return place_of(item.matrix)


def plan(recipe: Recipe, checkpoint: Checkpoint, device: str = "cpu", tokens: int = TOKENS) -> Plan:
    """Plan a recipe for a checkpoint. device: that will do it. tokens: of a calibration document.

    Raises UserError where a pattern matches nothing, a rank is beyond a matrix, a budget is too small, or the
    checkpoint has no safetensors headers to plan from.
    """
    if not checkpoint.tensors:
        raise UserError(f"{checkpoint.name} has no safetensors headers to plan from; the recipe can still be run")
    return plan_of_loaded(recipe, as_loaded(checkpoint), device, tokens)


def plan_of_loaded(recipe: Recipe, checkpoint: Checkpoint, device: str = "cpu", tokens: int = TOKENS) -> Plan:
    """`plan`, for a checkpoint as `as_loaded` gives it."""
    layout = layout_of(checkpoint)
    matrices = planned_in_layout(recipe, checkpoint, layout)
    sizes = {name: _count(tensor.shape) for name, tensor in checkpoint.tensors.items()}
    return Plan(
        recipe=recipe,
        model_type=str(checkpoint.config.get("model_type", "unknown")),
        matrices=matrices,
        parameters=sum(sizes.values()),
        stored_bytes=sum(sizes[name] * tensor.element_bytes for name, tensor in checkpoint.tensors.items()),
        calibration_documents=sum(step.calibration.samples for step in recipe.steps if step.calibration is not None),
        training_epochs=math.ceil(sum(step.training_passes for step in recipe.steps)),
        searches=tuple(
            _planned_search(recipe, number, [item.matrix for item in matrices if item.step == number], layout.layers)
            for number, step in enumerate(recipe.steps)
            if step.is_search
        ),
        inferred=layout.inferred and any(item.matrix.role for item in matrices),
        device=device,
        tokens=tokens,
        layers=layout.layers,
        products=_products(checkpoint),
        vocabulary=_vocabulary(checkpoint),
        tensors=len(sizes),
        dtype=torch_name(Counter(tensor.dtype for tensor in checkpoint.tensors.values()).most_common(1)[0][0]),
        notes=_notes(recipe, matrices),
    )


def _notes(recipe: Recipe, matrices: Sequence[PlannedMatrix]) -> tuple[str, ...]:
    """Of steps that edit, and not of those that train what others left."""
    own = [
        (step, [item.matrix for item in matrices if item.step == number])
        for number, step in enumerate(recipe.steps)
        if step.healing is None
    ]
    return tuple(dict.fromkeys(told for step, chosen in own if (told := whole_note(step, chosen)) is not None))


def _products(loaded: Checkpoint) -> tuple[tuple[tuple[int, int], int], ...]:
    """The shapes that multiply every token, `[out, in]`, and how many there are of each: all matrices but the
    embedding, which serves as the output head where that has none of its own. Of experts, all: it is not known here how
    many a token is sent to, and those of a batch reach most.
    """
    shapes: Counter[tuple[int, int]] = Counter()
    for name, tensor in loaded.tensors.items():
        if len(tensor.shape) == 3 and "experts" in name:
            shapes[tensor.shape[1], tensor.shape[2]] += tensor.shape[0]
        elif len(tensor.shape) == 2:
            shapes[tensor.shape[0], tensor.shape[1]] += 1
    embeddings = _embeddings(loaded)
    if any(name.startswith(("lm_head", "embed_out")) for name in loaded.tensors) and embeddings:
        shapes[embeddings[0][0], embeddings[0][-1]] -= 1
    return tuple((shape, count) for shape, count in shapes.items() if count > 0)


def _embeddings(loaded: Checkpoint) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for name, tensor in loaded.tensors.items() if "embed" in name or ".wte." in name]


def _vocabulary(loaded: Checkpoint) -> int:
    """Rows of the embedding; of the tallest matrix where none is called so."""
    embeddings = _embeddings(loaded)
    return embeddings[0][0] if embeddings else max((shape[0] for shape, _ in _products(loaded)), default=1)


def _kind(matrix: Matrix) -> str:
    """What matrices that are alike have in common: the role, or the name without its numbers."""
    name = matrix.role or re.sub(r"\d+", "*", matrix.parameter)
    parts = [word for word, number in (("head", matrix.head), ("expert", matrix.expert)) if number is not None]
    return " ".join([name, *(f"{word} *" for word in parts)])


def _planned_search(recipe: Recipe, number: int, matrices: Sequence[Matrix], layers: int) -> PlannedSearch:
    from harness_ext.calibration.collect import groups

    step = recipe.steps[number]
    assert step.calibration is not None
    search, settings = search_of(step), step.parameters
    trials = planned_trials(step.method, matrices, layers, settings)
    try:
        search.check(matrices, layers, settings)
    except BudgetTooSmall as error:
        raise UserError(f"{recipe.place(number)}{error}") from None
    among = search.among(matrices, layers, settings)
    # An edit of layer l, counted from 0, changes what the layers from l on compute.
    shares = [1 - (matrix.layer or 0) / max(1, layers) for matrix in among]
    tried = min(
        trials * max(shares),
        sum(share * search.trials([matrix.shape], settings) for share, matrix in zip(shares, among, strict=True)),
    )
    gathered = len(search.statistics) * sum(1 for _ in groups(among, search.statistics)) if search.statistics else 0
    gathered *= search.gatherings(settings)
    # As it is, as it becomes, and once for the states that enter each layer.
    passes = 3 + gathered + tried
    budget = settings.get("param_fraction", 1.0)
    return PlannedSearch(number, step.method, len(among), trials, step.calibration.samples, passes, tried, budget)


def _count(shape: Sequence[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
