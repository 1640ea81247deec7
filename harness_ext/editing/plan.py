"""What a recipe would do to a model, from its config and the headers of its checkpoint alone: no weight is read.

Times are estimates: a singular value decomposition takes time in proportion to `m n min(m, n)`, and the constant is
measured on this machine, on one small matrix, when the plan is made; leading components alone take a
share of it. What is kept from earlier runs takes next to none.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness_ext.calibration.experts import check_experts
from harness_ext.editing.records import standing
from harness_ext.errors import UserError, located
from harness_ext.methods import registered_methods
from harness_ext.methods.search_registry import Search, check_searchable, planned_trials, registered_searches
from harness_ext.model.checkpoint import Checkpoint
from harness_ext.model.layout import Layout, Matrix
from harness_ext.model.module_replacement import check_replaceable
from harness_ext.model.renames import as_loaded
from harness_ext.model.size import stored_parameters
from harness_ext.recipe.recipe import Recipe
from harness_ext.recipe.schema import Step, described
from harness_ext.training.trainer import check_trainable

_FP32, _FP64 = 4, 8
# Of the time of a singular value decomposition: leading components through the Gram matrix, mostly in fp32
# (tests/benchmarks: a quarter to a half, and more with one thread).
_SHARE_OF_TRUNCATION = 0.5


@dataclass(frozen=True)
class PlannedMatrix:
    """One matrix of one step. rank_after: None where only the weights or the calibration can tell. element_bytes: of a
    number as stored. stays_dense: whether the step computes it dense, though it computes others as factors.
    """

    step: int
    method: str
    matrix: Matrix
    rank_after: int | None
    element_bytes: int
    stays_dense: bool = False

    @property
    def parameters_before(self) -> int:
        """Numbers in the dense matrix."""
        return self.matrix.shape[0] * self.matrix.shape[1]

    @property
    def parameters_after(self) -> int:
        """Numbers after the edit, stored as factors where that is smaller; unchanged where the rank is not known
        yet, or a factored step leaves it dense.
        """
        if self.rank_after is None or self.stays_dense:
            return self.parameters_before
        return stored_parameters(self.matrix.shape, self.rank_after)


@dataclass(frozen=True)
class PlannedSearch:
    """One search. trials: at most. matrices: those among which it chooses. passes: through the whole model over all its
    documents, at most but for checks on two of them; each trial starts at its matrix's layer.
    """

    step: int
    method: str
    matrices: int
    trials: int
    documents: int
    passes: float


@dataclass(frozen=True)
class Plan:
    """The whole of it. parameters, stored_bytes: of the checkpoint. seconds: expected for the decompositions.
    peak_bytes: expected beyond the loaded model. training_epochs: passes over the calibration documents, forward and
    backward. inferred: whether roles are told from names, rather than declared for this kind of model.
    """

    model_type: str
    matrices: tuple[PlannedMatrix, ...]
    parameters: int
    stored_bytes: int
    seconds: float
    peak_bytes: int
    calibration_documents: int
    training_epochs: int = 0
    searches: tuple[PlannedSearch, ...] = ()
    inferred: bool = False

    @property
    def parameters_after(self) -> int:
        """Parameters of the whole model after the recipe."""
        return self.parameters - sum(item.parameters_before - item.parameters_after for item in self._last())

    @property
    def bytes_after(self) -> int:
        """Bytes of the whole model after the recipe, in the stored dtypes."""
        return self.stored_bytes - sum(
            (item.parameters_before - item.parameters_after) * item.element_bytes for item in self._last()
        )

    def _last(self) -> Sequence[PlannedMatrix]:
        return standing(self.matrices, lambda item: (item.matrix.parameter, item.matrix.part))


def plan(recipe: Recipe, checkpoint: Checkpoint) -> Plan:
    """Plan a recipe for a checkpoint.

    Raises UserError where a pattern matches nothing, a rank is beyond a matrix, or the checkpoint has no safetensors
    headers to plan from.
    """
    if not checkpoint.tensors:
        raise UserError(f"{checkpoint.name} has no safetensors headers to plan from; the recipe can still be run")
    checkpoint = as_loaded(checkpoint)
    layout = _layout(checkpoint)
    matrices = _planned_matrices(recipe, checkpoint, layout)
    sizes = {name: _count(tensor.shape) for name, tensor in checkpoint.tensors.items()}
    return Plan(
        model_type=str(checkpoint.config.get("model_type", "unknown")),
        matrices=matrices,
        parameters=sum(sizes.values()),
        stored_bytes=sum(sizes[name] * tensor.element_bytes for name, tensor in checkpoint.tensors.items()),
        seconds=_expected_seconds(matrices),
        peak_bytes=_expected_peak(matrices) + _held_by_training(recipe, matrices) + _held_by_search(recipe, matrices),
        calibration_documents=sum(step.calibration.samples for step in recipe.steps if step.calibration is not None),
        training_epochs=sum(step.training.epochs for step in recipe.steps if step.training is not None),
        searches=tuple(
            _planned_search(number, step, [item.matrix for item in matrices if item.step == number], layout.layers)
            for number, step in enumerate(recipe.steps)
            if step.is_search
        ),
        inferred=layout.inferred and any(item.matrix.role for item in matrices),
    )


def _planned_search(number: int, step: Step, matrices: Sequence[Matrix], layers: int) -> PlannedSearch:
    from harness_ext.calibration.collect import groups

    assert step.calibration is not None
    search, settings = registered_searches()[step.method], step.parameters
    trials = planned_trials(step.method, matrices, layers, settings)
    among = search.among(matrices, layers, settings)
    # An edit of layer l, counted from 0, changes what the layers from l on compute.
    shares = [1 - (matrix.layer or 0) / max(1, layers) for matrix in among]
    tried = min(
        trials * max(shares),
        sum(share * search.trials([matrix.shape], settings) for share, matrix in zip(shares, among, strict=True)),
    )
    gathered = len(search.statistics) * sum(1 for _ in groups(among, search.statistics)) if search.statistics else 0
    # As it is, as it becomes, and once for the states that enter each layer.
    return PlannedSearch(number, step.method, len(among), trials, step.calibration.samples, 3 + gathered + tried)


def planned_matrices(recipe: Recipe, loaded: Checkpoint) -> tuple[PlannedMatrix, ...]:
    """Every matrix of every step, in order. loaded: a checkpoint as `as_loaded` gives it. Raises UserError where the
    recipe does not fit it.
    """
    return _planned_matrices(recipe, loaded, _layout(loaded))


def _layout(loaded: Checkpoint) -> Layout:
    shapes = {name: tensor.shape for name, tensor in loaded.tensors.items()}
    return Layout(loaded.config, shapes, loaded.shared, loaded.modules)


def _planned_matrices(recipe: Recipe, loaded: Checkpoint, layout: Layout) -> tuple[PlannedMatrix, ...]:
    planned: list[PlannedMatrix] = []
    for number, step in enumerate(recipe.steps):
        with located(recipe.place(number)):
            planned += [_planned(number, step, matrix, loaded) for matrix in _selected(layout, step)]
    return tuple(planned)


def _selected(layout: Layout, step: Step) -> Sequence[Matrix]:
    matrices = layout.select(step)
    if not step.is_search:
        check_experts(step, matrices)
    if step.training is not None:
        check_trainable(matrices)
    if step.factored:
        check_replaceable(matrices)
    if step.is_search:
        check_searchable(matrices)
        planned_trials(step.method, matrices, layout.layers, step.parameters)
    return matrices


def _planned(number: int, step: Step, matrix: Matrix, checkpoint: Checkpoint) -> PlannedMatrix:
    with located(f"{matrix.key}: "):
        keep = step.keep_of(matrix.key)
        rank = (
            _rank_without_weights(step, matrix)
            if keep is None
            else None
            if keep.needs_singular_values
            else keep.rank_for(matrix.shape)
        )
    element_bytes = checkpoint.tensors[matrix.parameter].element_bytes
    dense = bool(step.factored) and rank is not None and not step.stores_factors(matrix.shape, rank)
    return PlannedMatrix(number, step.method, matrix, rank, element_bytes, dense)


def _rank_without_weights(step: Step, matrix: Matrix) -> int | None:
    """The rank that a method without a budget leaves, where its parameters alone tell it."""
    if step.is_search or registered_methods()[step.method].rank_from_weights:
        return None
    full = min(matrix.shape)
    if step.parameters.get("share_of") == "all":
        return None
    return full - int(step.parameters["fraction"] * full + 1e-9) if "fraction" in step.parameters else full


def _decompositions(method: str) -> float:
    """The work of a method on a matrix, in singular value decompositions of it; an eigendecomposition of its outputs
    counts as one, and so does what a search needs.
    """
    if method in registered_searches():
        return 1.0
    known = registered_methods()[method]
    if "truncate" in known.engine_arguments:
        return _SHARE_OF_TRUNCATION
    return float("svd" in known.engine_arguments or known.trains or (known.takes_keep and bool(known.statistics)))


def _count(shape: Sequence[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _expected_seconds(planned: Sequence[PlannedMatrix]) -> float:
    work = sum(_decompositions(item.method) * item.parameters_before * min(item.matrix.shape) for item in planned)
    return work * _seconds_per_unit() if work else 0.0


def _seconds_per_unit() -> float:
    """Seconds per `m n min(m, n)` of a singular value decomposition here, in fp32: the best of three on a 256 x 256
    matrix.
    """
    import numpy

    size = 256
    matrix = numpy.random.default_rng(0).standard_normal((size, size), dtype=numpy.float32)
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        numpy.linalg.svd(matrix, full_matrices=False)
        best = min(best, time.perf_counter() - started)
    return best / size**3


def _expected_peak(matrices: Sequence[PlannedMatrix]) -> int:
    """One matrix, its copy, its three factors and their product, in fp64 for a method that truncates by what it learns;
    for statistics, what is held for one group of matrices as well.
    """

    def one(item: PlannedMatrix) -> int:
        rows, columns = item.matrix.shape
        method = described(item.method)
        truncates = isinstance(method, Search) or method.takes_keep
        number = _FP64 if truncates and method.statistics else _FP32
        return number * (4 * rows * columns + min(rows, columns) * (rows + columns + 1))

    return max(map(one, matrices), default=0) + _held_factors(matrices)


def _held_factors(matrices: Sequence[PlannedMatrix]) -> int:
    from harness_ext.calibration.collect import FACTOR_BYTES, held_bytes

    held: Mapping[str, int] = {
        item.matrix.key: held_bytes(item.matrix.shape, described(item.method).statistics) for item in matrices
    }
    return min(max(FACTOR_BYTES, max(held.values(), default=0)), sum(held.values()))


def _held_by_training(recipe: Recipe, matrices: Sequence[PlannedMatrix]) -> int:
    """The most that a training step holds, activations aside: two factors of every matrix in fp32, their gradients and
    two moments each.
    """

    def held(number: int, added: int) -> int:
        return sum(
            4 * _FP32 * (min(item.matrix.shape) + added) * sum(item.matrix.shape)
            for item in matrices
            if item.step == number
        )

    return max(
        (
            held(number, step.training.added_rank)
            for number, step in enumerate(recipe.steps)
            if step.training is not None
        ),
        default=0,
    )


def _held_by_search(recipe: Recipe, matrices: Sequence[PlannedMatrix]) -> int:
    """The most that a search holds: activations of one pass, a few times the widest layer's inputs and outputs; the
    edits that stand while others are tried; and of its documents no more than `STATE_BYTES`, which short ones do not
    come near.
    """
    from harness_ext.search.evaluator import TOKENS_PER_DOCUMENT

    searches = registered_searches()

    def held(number: int, step: Step) -> int:
        own = [item for item in matrices if item.step == number]
        assert step.calibration is not None
        activations = (
            3 * _FP32 * TOKENS_PER_DOCUMENT * step.calibration.batch_size * max(sum(item.matrix.shape) for item in own)
        )
        return activations + (
            sum(item.parameters_before * item.element_bytes for item in own) if searches[step.method].takes_on else 0
        )

    return max((held(number, step) for number, step in enumerate(recipe.steps) if step.is_search), default=0)
