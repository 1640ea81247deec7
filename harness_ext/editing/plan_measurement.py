"""What an edit, a statistic and a forward pass take on a device: measured there, on random numbers, for a plan.

An edit is the real one, by the code that a run executes: its seconds, and the most bytes that its tensors hold at once.
A matrix too large for that is measured at two smaller sizes, and the time is carried on as `a m n + b m n min(m, n)`:
a part for reading, hashing and writing, and a part for decomposing, of methods that decompose.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from harness_ext.calibration.cache import StatisticsCache
from harness_ext.calibration.context import EditableModel, StepContext
from harness_ext.calibration.sinks import sink_tokens
from harness_ext.editing.edit_matrix import edit_matrix
from harness_ext.errors import UserError, VariantFailed
from harness_ext.linalg.decompose import Decomposer
from harness_ext.methods import registered_methods
from harness_ext.methods.registry import RANKED, SEARCHED, TRAINED, TRIED
from harness_ext.methods.statistic_registry import SinkTokens, statistics_among
from harness_ext.model.digests import tensor_digest
from harness_ext.model.layout import Matrix
from harness_ext.model.weights import Weights
from harness_ext.progress import Progress
from harness_ext.recipe.schema import Step

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from harness_ext.methods import Svd

Shape = tuple[int, int]
FIRST_SIDE = 96
"""The smaller side of the first matrix that is measured; the next have twice of it."""
PATIENCE_SECONDS = 2.0
"""What is measured of one kind of matrix is no longer doubled where the next would take longer than this."""
MEASURED_SECONDS = 0.1
MOST_ATTEMPTS = 50
WIDEST = 1024
"""The widest decoder layer that is made to be measured; what it takes beside its products grows with the width."""
_NAME = "layer.weight"
_DOCUMENTS = 4


class MeasuredEdit(NamedTuple):
    """One edit. seconds: expected. bytes: held at once at most. exact: whether a matrix of this very shape was
    measured.
    """

    seconds: float
    bytes: float
    exact: bool


class _Measured(NamedTuple):
    """One size: its shape, the seconds, and the bytes."""

    shape: Shape
    seconds: float
    bytes: int


def measured_edit(step: Step, key: str, shape: Shape, dtype: str, device: str) -> MeasuredEdit:
    """What a step's edit of a matrix of this shape takes. key: of such a matrix; `keep.ranks` goes by it. dtype: of the
    weight, by torch's name. Raises UserError where there is no such device.
    """
    return _measured_edit(step.model_dump_json(), key, shape, dtype, device, _Hidden(step))


class _Hidden:
    """A step for a cache that goes by its text."""

    def __init__(self, step: Step) -> None:
        self.step = step

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hidden)

    def __hash__(self) -> int:
        return 0


@cache
def _measured_edit(about: str, key: str, shape: Shape, dtype: str, device: str, hidden: _Hidden) -> MeasuredEdit:
    found: list[_Measured] = []
    side = FIRST_SIDE
    while True:
        tried = _scaled(shape, side)
        found.append(_one_edit(_scaled_step(hidden.step, key, shape, tried), tried, dtype, device))
        if tried == shape or found[-1].seconds * 8 > PATIENCE_SECONDS:
            break
        side *= 2
    return _carried_on(found, shape, decomposes=_decomposes(hidden.step.method))


def _decomposes(name: str) -> bool:
    method = registered_methods()[name]
    return bool({"svd", "truncate", "keep", "remember"} & method.engine_arguments) or method.rank_from_weights


def _carried_on(found: list[_Measured], shape: Shape, *, decomposes: bool) -> MeasuredEdit:
    last = found[-1]
    if last.shape == shape:
        return MeasuredEdit(last.seconds, last.bytes, True)
    square, cube = _square(shape), _cube(shape)
    share = square / _square(last.shape)
    if not decomposes:
        return MeasuredEdit(last.seconds * share, last.bytes * share, False)
    if len(found) == 1:
        return MeasuredEdit(last.seconds * cube / _cube(last.shape), last.bytes * share, False)
    before = found[-2]
    growth = _square(last.shape) / _square(before.shape)
    excess = last.seconds - growth * before.seconds
    by_cube = max(0.0, excess / (_cube(last.shape) - growth * _cube(before.shape)))
    by_square = max(0.0, last.seconds - by_cube * _cube(last.shape)) / _square(last.shape)
    return MeasuredEdit(by_square * square + by_cube * cube, last.bytes * share, False)


def _square(shape: Shape) -> int:
    return shape[0] * shape[1]


def _cube(shape: Shape) -> int:
    return shape[0] * shape[1] * min(shape)


def _scaled(shape: Shape, side: int) -> Shape:
    """The shape with a smaller side of `side`, or the shape itself where that is no larger, or nearly so small."""
    small = min(shape)
    if small <= 1.5 * side:
        return shape
    rows, columns = (max(1, round(length * side / small)) for length in shape)
    return rows, columns


def _scaled_step(step: Step, key: str, shape: Shape, tried: Shape) -> Step:
    """The step with its ranks in proportion."""
    if step.keep is None:
        return step
    keep = step.keep.of(key)
    if keep.rank is not None:
        keep = keep.model_copy(update={"rank": min(*tried, round(keep.rank * min(tried) / min(shape)))})
    return step.model_copy(update={"keep": keep})


def _one_edit(step: Step, shape: Shape, dtype: str, device: str) -> _Measured:
    """The mean of some, after one that makes things ready; then the bytes."""
    seconds: list[float] = []
    while len(seconds) < 2 or (len(seconds) < MOST_ATTEMPTS and sum(seconds[1:]) < MEASURED_SECONDS):
        seconds.append(_of_fresh(step, shape, dtype, device, _seconds_of))
    mean = sum(seconds[1:]) / len(seconds[1:])
    return _Measured(shape, mean, int(_of_fresh(step, shape, dtype, device, live_bytes)))


def _of_fresh(
    step: Step, shape: Shape, dtype: str, device: str, measure: Callable[[Callable[[], object]], float]
) -> float:
    """What a measure says of the edit of a fresh matrix."""
    statistics = _statistics(step, shape, device)
    with TemporaryDirectory() as scratch:
        context = _context(step, _weight(shape, dtype, device), Path(scratch))
        return measure(lambda: _edited(context, shape, statistics))


def _seconds_of(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _edited(context: StepContext, shape: Shape, statistics: Mapping[str, Tensor]) -> None:
    try:
        edit_matrix(context, Matrix(_NAME, shape), statistics)
    except VariantFailed:
        # Random numbers may be none for a method; what it did until then is measured.
        return


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
    return value.to(dtype=getattr(torch, dtype), device=_device(device))


def _device(name: str) -> torch.device:
    import torch

    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from None
    return device


def _statistics(step: Step, shape: Shape, device: str) -> dict[str, Tensor]:
    """Statistics of random documents, such as the step's method asks for."""
    import torch

    names = registered_methods()[step.method].statistics
    rank = min(shape)
    found: dict[str, Tensor] = {}
    for name in sorted(names & (SEARCHED | TRIED)):
        found[name] = torch.arange(rank) < max(1, rank // 50)
    for name in sorted(names & RANKED):
        found[name] = torch.tensor(max(1, rank // 50))
    if names & TRAINED:
        found |= {"trained_left": torch.randn(shape[0], rank), "trained_right": torch.randn(rank, shape[1])}
    for item in statistics_among(names):
        if item.needs_components:
            found[item.name] = torch.randn(rank)
            continue
        statistic: Any = item.make()
        _update(statistic, item.sinks, *_activations(shape, _DOCUMENTS, 8, device))
        value = statistic.result()
        # A moment of so few tokens has no full rank.
        found[item.name] = value + 0.1 * torch.eye(shape[1]).to(value) if value.shape == (shape[1],) * 2 else value
    return {name: value.to(device) for name, value in found.items()}


def _activations(shape: Shape, documents: int, tokens: int, device: str) -> tuple[Tensor, Tensor]:
    import torch

    made = torch.Generator().manual_seed(1)
    inputs, gradients = (torch.randn(documents, tokens, width, generator=made) for width in reversed(shape))
    return inputs.to(device), gradients.to(device)


def _update(statistic: Any, use: str, inputs: Tensor, gradients: Tensor) -> None:
    import torch

    real = torch.ones(inputs.shape[:2], dtype=torch.bool, device=inputs.device)
    first = torch.zeros_like(real)
    first[:, 0] = True
    if use == "left out of its mean":
        statistic.update(inputs, gradients, real, SinkTokens(first, first))
    else:
        statistic.update(inputs, gradients, first if use == "alone" else real)


class BatchSize(NamedTuple):
    """A batch of calibration documents."""

    documents: int
    tokens: int


@cache
def gathering_seconds(names: frozenset[str], shape: Shape, batch: BatchSize, device: str) -> float:
    """What the statistics of one matrix take of a pass, for one batch; smaller matrices stand for large ones."""
    import torch

    tried = _scaled(shape, 512) if min(shape) > 1024 else shape
    inputs, gradients = _activations(tried, batch.documents, min(batch.tokens, 128), device)
    total = _timed(lambda: _looked_at(inputs, gradients), device)
    for item in statistics_among(names):
        rank = min(tried)
        svd: Svd | Any = _factors(tried, rank, device) if item.needs_components else None
        statistic = item.make(svd) if item.needs_components else item.make()
        with torch.no_grad():
            total += _timed(lambda: _update(statistic, item.sinks, inputs, gradients), device)  # noqa: B023 - at once
    return total * _square(shape) / _square(tried) * max(1.0, batch.tokens / 128)


def _looked_at(inputs: Tensor, outputs: Tensor) -> None:
    """What the pass itself does with what it sees of a matrix: it finds sinks, twice, and sizes of outputs."""
    import torch

    real = torch.ones(inputs.shape[:2], dtype=torch.bool, device=inputs.device)
    for _ in range(2):
        sinks = sink_tokens(inputs, real, real).every
    norms = outputs.float().norm(dim=-1).double()
    float(norms[real].sum()), float(norms[real & ~sinks].sum()), int(real.sum())


def _factors(shape: Shape, rank: int, device: str) -> Svd:
    import torch

    from harness_ext.methods import Svd

    rows, columns = shape
    return Svd(*(torch.randn(size).to(device) for size in ((rows, rank), (rank,), (rank, columns))))


@cache
def product_seconds(shape: Shape, tokens: int, dtype: str, device: str) -> float:
    """What a linear layer of this shape takes for so many tokens; a part of a large one stands for it."""
    import torch

    rows, columns = (min(length, 4096) for length in shape)
    some = min(tokens, 1024)
    weight = torch.randn(rows, columns).to(dtype=getattr(torch, dtype), device=device)
    inputs = torch.randn(some, columns).to(weight)
    with torch.no_grad():
        seconds = _timed(lambda: torch.nn.functional.linear(inputs, weight), device)
    return seconds * _square(shape) / (rows * columns) * tokens / some


class HostSeconds(NamedTuple):
    """What a forward pass takes beside its products: once, and for each decoder layer. document: to turn one into
    tokens, which every pass does.
    """

    once: float
    layer: float
    document: float


@cache
def host_seconds(width: int, batch: BatchSize, dtype: str, device: str) -> HostSeconds:
    """Norms, attention, activation functions and the calls of modules, at a model's width; and a tokenizer of few
    words.
    """
    few = BatchSize(batch.documents, min(batch.tokens, 128))
    narrow = max(64, 64 * (min(width, WIDEST) // 64))
    one, three = (_small_forward(layers, narrow, few, dtype, device) for layers in (1, 3))
    products = 7 * product_seconds((narrow, narrow), few.documents * few.tokens, dtype, device)
    share = max(1.0, width / narrow) * batch.tokens / few.tokens
    layer = max(0.0, (three - one) / 2 - products)
    return HostSeconds(max(0.0, one - layer - products) * share, layer * share, _tokenising_seconds())


def _small_forward(layers: int, width: int, batch: BatchSize, dtype: str, device: str) -> float:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": width, "intermediate_size": width, "num_attention_heads": width // 64, "vocab_size": 64}
    config = AutoConfig.for_model("llama", num_hidden_layers=layers, **sizes)
    model = AutoModelForCausalLM.from_config(config).to(dtype=getattr(torch, dtype), device=device).eval()
    tokens = torch.zeros(batch, dtype=torch.long, device=device)
    mask = torch.ones_like(tokens)
    mask[0, 0] = 0

    def loss() -> None:
        logits = model(input_ids=tokens, attention_mask=mask).logits
        logits.float().log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None]).sum().item()

    with torch.no_grad():
        return _timed(loss, device)


def _tokenising_seconds() -> float:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{number}": number for number in range(32)}
    made = Tokenizer(models.WordLevel(words, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made)
    text = " ".join(words)
    # lm-eval encodes the prompt, and the prompt with its answer.
    return _timed(lambda: [tokenizer.encode(text) for _ in range(2 * 50)], "cpu") / 50


@cache
def hashing_seconds_per_byte() -> float:
    """What a digest of weights takes."""
    import torch

    size = 1 << 22
    value = torch.zeros(size, dtype=torch.uint8)
    return _timed(lambda: tensor_digest(value), "cpu") / size


def _timed(work: Callable[[], object], device: str) -> float:
    """The mean of some, after one that makes things ready: what else the machine does now, it will do then."""
    import torch

    def run() -> float:
        started = time.perf_counter()
        work()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter() - started

    first = run()
    if first > PATIENCE_SECONDS / 2:
        return first
    seconds: list[float] = []
    while sum(seconds) < MEASURED_SECONDS:
        seconds.append(run())
    return sum(seconds) / len(seconds)


def live_bytes(work: Callable[[], object]) -> int:
    """The most bytes that tensors made while `work` runs held at once; what libraries hold inside is not seen."""
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
            peak = max(peak, sum(size for _, size in held.values()))
            return made

    with Watching():
        work()
    return peak
