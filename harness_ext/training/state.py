"""Where a training stands: the trained tensors, the optimiser's moments, the place in the schedule and what was
measured, as one set of tensors that can be kept and taken up again bit for bit.

Whatever is drawn follows from the seed and the place, so no generator's state is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from harness_ext.model.layout import Matrix
from harness_ext.recipe.settings import Training
from harness_ext.training.bases import Bases, FactorPair

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import AdamW


@dataclass
class State:
    """epoch, batch: how many are done, the batches of the epoch at hand. loss: summed over the documents of that epoch
    so far. losses: of each epoch done, a mean over documents.

    totals: of each matrix, the sum of |s| at the first pruning; empty before it. bases: of each round, how many each
    matrix kept.
    """

    parts: dict[str, Bases | FactorPair]
    optimizer: AdamW
    epoch: int = 0
    batch: int = 0
    loss: float = 0.0
    losses: list[float] = field(default_factory=list)
    totals: list[float] = field(default_factory=list)
    bases: list[list[int]] = field(default_factory=list)

    def exchange(
        self, parts: dict[str, Bases | FactorPair], settings: Training, carried: Mapping[Tensor, Any] | None = None
    ) -> None:
        """Train other tensors from now on. carried: the optimiser's memory of those that have one."""
        self.parts = parts
        self.optimizer = optimizer_for(parts, settings)
        self.optimizer.state.update(carried or {})


def optimizer_for(parts: Mapping[str, Bases | FactorPair], settings: Training) -> AdamW:
    """AdamW over everything trained, without memory."""
    from torch.optim import AdamW

    return AdamW(
        [value for part in parts.values() for value in part.trained.values()],
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
    )


def as_tensors(state: State) -> dict[str, Tensor]:
    """The whole of it under plain names."""
    import torch

    found: dict[str, Tensor] = {
        "place": torch.tensor([state.epoch, state.batch]),
        "loss": torch.tensor(state.loss, dtype=torch.float64),
        "losses": torch.tensor(state.losses, dtype=torch.float64),
        "totals": torch.tensor(state.totals, dtype=torch.float64),
        "bases": torch.tensor(state.bases, dtype=torch.int64),
    }
    for key, part in state.parts.items():
        if isinstance(part, Bases):
            found[f"{key}.kept"] = part.kept
        for name, value in part.trained.items():
            found[f"{key}.{name}"] = value
            found |= {f"{key}.{name}.{moment}": kept for moment, kept in state.optimizer.state.get(value, {}).items()}
    return found


def from_tensors(
    kept: Mapping[str, Tensor], matrices: Sequence[Matrix], start: Callable[[Matrix], Bases], settings: Training
) -> State:
    """The state that `as_tensors` took apart. start: gives all bases of a matrix; the factors of the decomposition are
    not kept, being found again.
    """
    parts: dict[str, Bases | FactorPair] = {}
    memory: dict[Tensor, Any] = {}
    for matrix in matrices:
        part = _part(kept, matrix, start)
        parts[matrix.key] = part
        for name, value in part.trained.items():
            prefix = f"{matrix.key}.{name}."
            moments = {full.removeprefix(prefix): moment for full, moment in kept.items() if full.startswith(prefix)}
            if moments:
                # The count of steps stays on the CPU, where AdamW wants it.
                memory[value] = {
                    moment: tensor if moment == "step" else tensor.to(value) for moment, tensor in moments.items()
                }
    epoch, batch = kept["place"].tolist()
    state = State(
        parts,
        optimizer_for(parts, settings),
        epoch=epoch,
        batch=batch,
        loss=float(kept["loss"]),
        losses=kept["losses"].tolist(),
        totals=kept["totals"].tolist(),
        bases=kept["bases"].tolist(),
    )
    state.optimizer.state.update(memory)
    return state


def _part(kept: Mapping[str, Tensor], matrix: Matrix, start: Callable[[Matrix], Bases]) -> Bases | FactorPair:
    full = start(matrix)
    names = ("values", "added_left", "added_right") if f"{matrix.key}.kept" in kept else ("left", "right")
    own = {name: kept[f"{matrix.key}.{name}"].to(full.u).requires_grad_(True) for name in names}
    if "left" in own:
        return FactorPair(**own)
    return replace(full.only(kept[f"{matrix.key}.kept"].to(full.kept)), **own)
