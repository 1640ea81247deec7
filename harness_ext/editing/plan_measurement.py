"""What an edit takes on a device: measured there, on random numbers, for a plan.

An edit is the real one, by the code that a run executes: its seconds, and the most bytes that its tensors hold at once.
A matrix too large for that is measured at two smaller sizes, and the time is carried on as `a m n + b m n min(m, n)`:
a part for reading, hashing and writing, and a part for decomposing, of methods that decompose.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from harness_ext.calibration.cache import StatisticsCache
from harness_ext.calibration.context import EditableModel, StepContext
from harness_ext.editing.edit_matrix import change_of, edit_matrix
from harness_ext.errors import VariantFailed
from harness_ext.linalg.components import Component
from harness_ext.linalg.decompose import Decomposer
from harness_ext.linalg.devices import usable_device
from harness_ext.methods import registered_methods
from harness_ext.methods.registry import HEALED, MASKED, PRIMED, RANKED, SEARCHED, SHARED, TRAINED, TRIED
from harness_ext.methods.sola import prime_count
from harness_ext.methods.statistic_registry import RegisteredStatistic, SinkTokens, statistics_among
from harness_ext.model.components import COMPONENTS, UNITS
from harness_ext.model.geometry import Heads
from harness_ext.model.layout import Matrix
from harness_ext.model.seeding import generator_for
from harness_ext.model.weights import Weights
from harness_ext.progress import Progress
from harness_ext.recipe.schema import Step, method_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness_ext.search.factorisations import Factorisation


Shape = tuple[int, int]
FIRST_SIDE = 96
"""The smaller side of the first matrix that is measured; the next have twice of it."""
PATIENCE_SECONDS = 2.0
"""What is measured of one kind of matrix is no longer doubled where the next would take longer than this."""
MEASURED_SECONDS = 0.1
MOST_ATTEMPTS = 50
_NAME = "layer.weight"
_DOCUMENTS = 4
_HEAD = 64


class MeasuredEdit(NamedTuple):
    """One edit. seconds: expected. bytes: held at once at most. exact: whether a matrix of this very shape was
    measured.
    """

    seconds: float
    bytes: float
    exact: bool


class _Trial(NamedTuple):
    """An edit that is measured. few: how many tokens its statistics are of; None for enough to span all directions."""

    step: Step
    shape: Shape
    dtype: str
    device: str
    few: int | None


class _Measured(NamedTuple):
    """One size: its shape, the seconds, and the bytes."""

    shape: Shape
    seconds: float
    bytes: int


def measured_edit(
    step: Step, key: str, shape: Shape, dtype: str, device: str, tokens: int | None = None
) -> MeasuredEdit:
    """What a step's edit of a matrix of this shape takes. key: of such a matrix; `keep.ranks` goes by it. dtype: of the
    weight, by torch's name. tokens: that its statistics are of, where these are too few to span what the matrix has:
    methods that go by second moments then find the other directions in the weights, which takes more. Raises UserError
    where there is no such device.
    """
    few = tokens if tokens is not None and tokens < min(shape) else None
    return _measured_edit(f"{few} {step.model_dump_json()}", key, shape, dtype, device, _Hidden(step, few))


class _Hidden:
    """A step for a cache that goes by its text, and few tokens (see `_Trial`)."""

    def __init__(self, step: Step, few: int | None) -> None:
        self.step, self.few = step, few

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hidden)

    def __hash__(self) -> int:
        return 0


@cache
def _measured_edit(about: str, key: str, shape: Shape, dtype: str, device: str, hidden: _Hidden) -> MeasuredEdit:
    found: list[_Measured] = []
    side = FIRST_SIDE
    while True:
        tried = scaled(shape, side)
        few = _scaled_few(hidden.few, shape, tried)
        made = _Trial(_scaled_step(hidden.step, key, shape, tried), tried, dtype, device, few)
        found.append(_one_edit(made))
        if tried == shape or found[-1].seconds * 8 > PATIENCE_SECONDS:
            break
        side *= 2
    return _carried_on(found, shape, decomposes=decomposes(hidden.step.method))


@cache
def bytes_on_trial(
    factorisation: Factorisation, shape: Shape, dtype: str, device: str, tokens: int | None = None
) -> float:
    """The most bytes that a search of ranks holds at once of a matrix of this shape: what it decomposes by a
    factorisation, and the factors that it tries. Measured on a smaller one: all that counts grows as its numbers do.
    tokens: see `measured_edit`.
    """
    import torch

    from harness_ext.search.factorisations import STATISTICS, decomposed

    tried = scaled(shape, 2 * FIRST_SIDE)
    few = _scaled_few(tokens, shape, tried) if tokens is not None and tokens < min(shape) else None
    weight, learned = _weight(tried, dtype, device), _gathered(STATISTICS[factorisation], tried, device, few)
    largest = max(1, square(tried) // sum(tried))

    def work() -> None:
        read = weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)
        made = decomposed(read, factorisation, learned)
        # Held together, as in the search.
        factors = [factor.to(read) for factor in made.serving(largest)]
        del factors

    return live_bytes(work) * square(shape) / square(tried)


def decomposes(name: str) -> bool:
    method = registered_methods()[name]
    return bool({"svd", "truncate", "keep", "remember"} & method.engine_arguments) or method.rank_from_weights


def _carried_on(found: list[_Measured], shape: Shape, *, decomposes: bool) -> MeasuredEdit:
    last = found[-1]
    if last.shape == shape:
        return MeasuredEdit(last.seconds, last.bytes, True)
    numbers, cube = square(shape), _cube(shape)
    share = numbers / square(last.shape)
    if not decomposes:
        return MeasuredEdit(last.seconds * share, last.bytes * share, False)
    if len(found) == 1:
        return MeasuredEdit(last.seconds * cube / _cube(last.shape), last.bytes * share, False)
    before = found[-2]
    growth = square(last.shape) / square(before.shape)
    excess = last.seconds - growth * before.seconds
    by_cube = max(0.0, excess / (_cube(last.shape) - growth * _cube(before.shape)))
    by_square = max(0.0, last.seconds - by_cube * _cube(last.shape)) / square(last.shape)
    return MeasuredEdit(by_square * numbers + by_cube * cube, last.bytes * share, False)


def square(shape: Shape) -> int:
    return shape[0] * shape[1]


def _cube(shape: Shape) -> int:
    return shape[0] * shape[1] * min(shape)


def scaled(shape: Shape, side: int) -> Shape:
    """The shape with a smaller side of `side`, or the shape itself where that is no larger, or nearly so small."""
    small = min(shape)
    if small <= 1.5 * side:
        return shape
    rows, columns = (max(1, round(length * side / small)) for length in shape)
    return rows, columns


def _scaled_step(step: Step, key: str, shape: Shape, tried: Shape) -> Step:
    """The step with its ranks in proportion, and with the share of this matrix alone."""
    if step.keep is None:
        return step.model_copy(update=step.parameters_of(key))
    keep = step.keep.of(key)
    if keep.rank is not None:
        keep = keep.model_copy(update={"rank": min(*tried, round(keep.rank * min(tried) / min(shape)))})
    return step.model_copy(update={"keep": keep})


def _scaled_few(few: int | None, shape: Shape, tried: Shape) -> int | None:
    """As many tokens in proportion to the smaller side."""
    return None if few is None else max(1, round(few * min(tried) / min(shape)))


def _one_edit(trial: _Trial) -> _Measured:
    """The median of some, after one that makes things ready; then the bytes."""
    seconds: list[float] = []
    while len(seconds) < 2 or (len(seconds) < MOST_ATTEMPTS and sum(seconds[1:]) < MEASURED_SECONDS):
        seconds.append(_of_fresh(trial, lambda work: _seconds_of(work, trial.device)))
    return _Measured(trial.shape, median(seconds[1:]), int(_of_fresh(trial, live_bytes)))


def _of_fresh(trial: _Trial, measure: Callable[[Callable[[], object]], float]) -> float:
    """What a measure says of the edit of a fresh matrix."""
    statistics = _statistics(trial)
    with TemporaryDirectory() as scratch:
        context = _context(trial.step, _weight(trial.shape, trial.dtype, trial.device), Path(scratch))
        return measure(lambda: _edited(context, trial.shape, statistics))


def _edited(context: StepContext, shape: Shape, statistics: Mapping[str, Tensor]) -> None:
    try:
        if registered_methods()[context.step.method].component is not None:
            _component_edited(context, shape, statistics)
        else:
            edit_matrix(context, Matrix(_NAME, shape), statistics)
    except VariantFailed:
        # Random numbers may be none for a method; what it did until then is measured.
        return


def _component_edited(context: StepContext, shape: Shape, statistics: Mapping[str, Tensor]) -> None:
    """What a method makes of a component: matrices of the same shape feed it (of keys, stand beside it), all that may,
    in heads of a common width.
    """
    matrix, step = Matrix(_NAME, shape), context.step
    weight, method = context.model.weights.read(matrix), registered_methods()[step.method]
    total = shape[0] if method.component in ("scores", "unattended") else shape[1]
    width = total if total % _HEAD else _HEAD
    heads = Heads(total // width, total // width, width)
    feeding = weight if method.component == "scores" else weight.T.contiguous()
    kind = "mlp" if method.component == UNITS else method.component or ""
    component = Component(dict.fromkeys(COMPONENTS[kind].feeders, feeding), {}, heads)
    drawing = {"generator": generator_for(step.seed, matrix)} if "generator" in method.engine_arguments else {}
    edit = method.function(weight, **statistics, component=component, **drawing, **step.parameters)
    # All of it stands while what was written is read again and compared.
    change_of(weight, context.model.weights.values(matrix))
    del edit


def _context(step: Step, weight: Tensor, scratch: Path) -> StepContext:
    model = _one_matrix(weight)
    editable = EditableModel(cast("Any", None), Weights(model, scratch), Decomposer(), StatisticsCache(scratch))
    return StepContext(editable, step.model_copy(update={"factored": False}), 0, Progress())


def _one_matrix(weight: Tensor) -> nn.Module:
    """A module with one linear layer, and a config that says nothing."""
    import torch
    from transformers import PretrainedConfig

    model = torch.nn.Module()
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype, device="meta")
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    layer.bias = torch.nn.Parameter(weight.new_zeros(weight.shape[0]), requires_grad=False)
    model.layer = layer
    model.config = PretrainedConfig()  # type: ignore[assignment]  # as a model of transformers has it
    return model


def _weight(shape: Shape, dtype: str, device: str) -> Tensor:
    """Random numbers with a falling spectrum, as trained matrices have one."""
    import torch

    rows, columns = shape
    falls = [(1.0 + torch.arange(count)) ** -0.4 for count in shape]
    value = falls[0][:, None] * torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * falls[1]
    return value.to(dtype=getattr(torch, dtype), device=usable_device("--device", device))


def _statistics(trial: _Trial) -> dict[str, Tensor]:
    """Statistics of random documents, such as the step's method asks for."""
    import torch

    step, shape, device = trial.step, trial.shape, trial.device
    names = method_of(step).statistics
    rank = min(shape)
    found: dict[str, Tensor] = {}
    for name in sorted(names & (SEARCHED | TRIED)):
        found[name] = torch.arange(rank) < max(1, rank // 50)
    for name in sorted(names & RANKED):
        found[name] = torch.tensor(max(1, rank // 50))
    for name in sorted(names & MASKED):
        found[name] = torch.arange(shape[1]) < 0.8 * shape[1]
    for name in sorted(names & PRIMED):
        # By columns: the second moment of the others is a further matrix, which units by rows do not need.
        found[name] = (torch.arange(shape[1]) < prime_count(shape[1], step.parameters["prime"]))[None]
    if names & TRAINED:
        found |= {"trained_left": torch.randn(shape[0], rank), "trained_right": torch.randn(rank, shape[1])}
    if names & SHARED:
        left, right = torch.randn(shape[0], rank), torch.randn(rank, shape[1])
        found |= {"shared_left": left, "shared_right": right, "shared_place": torch.tensor([0, 1])}
    if names & HEALED:
        left, right = torch.randn(shape[0], rank), torch.randn(rank, shape[1])
        found |= {"healed_left": left, "healed_right": right, "healed_adds": torch.tensor(False)}
    return {name: value.to(device) for name, value in found.items()} | _gathered(names, shape, device, trial.few)


def _gathered(names: frozenset[str], shape: Shape, device: str, few: int | None) -> dict[str, Tensor]:
    """Of these, what is gathered of random documents. few: see `_Trial`."""
    import torch

    found: dict[str, Tensor] = {}
    for item in statistics_among(names):
        if item.needs_components:
            found[item.name] = torch.randn(min(shape))
            continue
        statistic: Any = item.make()
        # Documents are compared with one another, so that there are always some.
        update(statistic, item, *activations(shape, _DOCUMENTS, 8 if few is None else -(-few // _DOCUMENTS), device))
        value = statistic.result()
        if few is None and value.shape == (shape[1],) * 2:
            # A moment of so few tokens has no full rank.
            value = value + 0.1 * torch.eye(shape[1]).to(value)
        found[item.name] = value.to(device)
    return found


def activations(shape: Shape, documents: int, tokens: int, device: str) -> tuple[Tensor, Tensor]:
    import torch

    made = torch.Generator().manual_seed(1)
    inputs, gradients = (torch.randn(documents, tokens, width, generator=made) for width in reversed(shape))
    return inputs.to(device), gradients.to(device)


def update(statistic: Any, item: RegisteredStatistic, inputs: Tensor, gradients: Tensor | None) -> None:
    """Have a statistic take in a batch, as a pass would."""
    import torch

    real = torch.ones(inputs.shape[:2], dtype=torch.bool, device=inputs.device)
    first = torch.zeros_like(real)
    first[:, 0] = True
    if item.needs_originals:
        statistic.update(inputs, gradients, real, inputs)
    elif item.sinks == "left out of its mean":
        statistic.update(inputs, gradients, real, SinkTokens(first, first))
    else:
        statistic.update(inputs, gradients, first if item.sinks == "alone" else real)


def timed(work: Callable[[], object], device: str, *, in_threads: bool = False) -> float:
    """The median of some, after one that makes things ready. in_threads: whether other threads do it."""
    first = _seconds_of(work, device, in_threads=in_threads)
    if first > PATIENCE_SECONDS / 2:
        return first
    seconds: list[float] = []
    while len(seconds) < 3 or (len(seconds) < MOST_ATTEMPTS and sum(seconds) < MEASURED_SECONDS):
        seconds.append(_seconds_of(work, device, in_threads=in_threads))
    return median(seconds)


def _seconds_of(work: Callable[[], object], device: str, *, in_threads: bool = False) -> float:
    """On a CPU those that this thread, or this process, computes: what else the machine does is none of them."""
    import torch

    on_card = device.startswith("cuda")
    clock = time.perf_counter if on_card else time.process_time if in_threads else time.thread_time
    started = clock()
    work()
    if on_card:
        torch.cuda.synchronize()
    return clock() - started


def live_bytes(work: Callable[[], object]) -> int:
    """The most bytes that tensors made while `work` runs held at once, with what decompositions hold inside
    (`_workspace`); what libraries hold else is not seen.
    """
    import torch
    from torch.multiprocessing.reductions import StorageWeakRef
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    held: dict[int, tuple[Any, int]] = {}
    peak = 0

    def storages(values: Any) -> list[Any]:
        found = [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]
        return [value.untyped_storage() for value in found if value.device.type != "meta"]

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal peak
            made = function(*args, **(kwargs or {}))
            for key in [key for key, (reference, _) in held.items() if reference.expired()]:
                del held[key]
            # What was there before, such as the model's weights, shows up again in views of it.
            given = {storage._cdata for storage in storages((args, kwargs))}
            for storage in storages(made):
                if storage._cdata not in given:
                    held.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
            peak = max(peak, sum(size for _, size in held.values()) + _workspace(str(function), args))
            return made

    with Watching():
        work()
    return peak


def _workspace(function: str, given: Sequence[Any]) -> int:
    """Bytes that LAPACK works in during a decomposition, by the least that its documentation asks for: `syevd` with
    vectors `1 + 6 n + 2 n^2` numbers, `gesdd` of the first vectors `4 k^2 + 7 k`, k the smaller side, and the copy of
    the matrix that it destroys. A solution by a Cholesky factor is worked out in copies of both.
    """
    if function.startswith("aten.cholesky_solve"):
        return sum(int(value.numel() * value.element_size()) for value in given[:2])
    if not function.startswith(("aten._linalg_eigh", "aten._linalg_svd")):
        return 0
    side = min(given[0].shape[-2:])
    numbers = 1 + 6 * side + 2 * side**2 if "eigh" in function else 7 * side + 4 * side**2 + given[0].numel()
    return int(numbers * given[0].element_size())
