"""The edit that a plan measures: the real one, by the code that a run executes, on a matrix of random numbers and on
statistics of random documents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
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

Shape = tuple[int, int]
_NAME = "layer.weight"
_DOCUMENTS = 4
_HEAD = 64


class TrialEdit(NamedTuple):
    """An edit that is measured. few: how many tokens its statistics are of; None for enough to span all directions."""

    step: Step
    shape: Shape
    dtype: str
    device: str
    few: int | None


def of_fresh(trial: TrialEdit, measure: Callable[[Callable[[], object]], float]) -> float:
    """What a measure says of work: the edit of a fresh matrix."""
    statistics = _statistics(trial)
    with TemporaryDirectory() as scratch:
        context = _context(trial.step, made_weight(trial.shape, trial.dtype, trial.device), Path(scratch))
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


def made_weight(shape: Shape, dtype: str, device: str) -> Tensor:
    """Random numbers with a falling spectrum, as trained matrices have one."""
    import torch

    rows, columns = shape
    falls = [(1.0 + torch.arange(count)) ** -0.4 for count in shape]
    value = falls[0][:, None] * torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * falls[1]
    return value.to(dtype=getattr(torch, dtype), device=usable_device("--device", device))


def _statistics(trial: TrialEdit) -> dict[str, Tensor]:
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
    return {name: value.to(device) for name, value in found.items()} | gathered(names, shape, device, trial.few)


def gathered(names: frozenset[str], shape: Shape, device: str, few: int | None) -> dict[str, Tensor]:
    """Of these, what is gathered of random documents. few: see `TrialEdit`."""
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
