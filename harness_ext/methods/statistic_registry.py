"""Statistics of calibration documents: what a method may ask for by naming an argument so.

A statistic is registered by a decorator that says what its gathering takes, so that a new one is one class in one
place:

    @statistic(name="input_mean", needs="inputs")
    class InputMean: ...

A class has `update` and `result`, see `Statistic`, and one object of it is made for each matrix. What it needs, and how
many numbers it holds, is known without making one: a plan reads no model. A statistic is told apart from a setting by
its name alone, so that no method can have a setting of that name.

`harness_ext.calibration.statistics` has those that come with this package, and `harness_ext.calibration.collect`
gathers them. This package imports no torch when it is loaded.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeVar, get_args

from harness_ext.methods.discovery import load_entry_points

if TYPE_CHECKING:
    from torch import Tensor

Needs = Literal["inputs", "originals", "contrasts", "gradients", "components"]
"""What gathering a statistic takes. inputs: a forward pass over any texts. originals: the same, of the model before all
edits beside the edited one, see `StatisticOfBoth`. contrasts: a forward pass over the pairs of a contrast set.
gradients: a backward pass from the right answers as well. components: gradients, and the factors of the matrix, which
the class is made with: `Class(svd)`.
"""
Sinks = Literal["counted", "left out", "left out of its mean", "alone"]
"""Whether sink tokens (`harness_ext.calibration.sinks`) belong in a statistic; in these words receipts say it. counted:
they do, as in anything that a least-squares fit is made of. left out: of a mean, which would be theirs; `real` marks
none of them. left out of its mean: of a mean that a statistic of all tokens needs; `update` is told of them, see
`StatisticToldOfSinks`. alone: `real` marks only those that are far out.
"""
Numbers = Callable[[tuple[int, int]], int]
"""How many numbers one object holds, from the shape of its matrix `[m, n]`."""


class Statistic(Protocol):
    """What the gathering pass needs of a statistic: a running value of fixed size, never the activations."""

    def update(self, inputs: Tensor, gradients: Tensor | None, real: Tensor) -> None:
        """Take in one batch: inputs `[b, t, n]`, gradients `[b, t, m]`, both fp32, and real `[b, t]`, true where the
        token is not padding, and of an expert where it was sent there.

        gradients: of the documents' summed loss, at the outputs of the matrix; None in a pass whose statistics need
        none.
        """

    def result(self) -> Tensor | None:
        """The value over everything seen; None where nothing of it could be used."""


class SinkTokens(NamedTuple):
    """Which tokens are sinks of a matrix, `[b, t]`: every one, and those among them whose input is far out."""

    every: Tensor
    far: Tensor


class StatisticToldOfSinks(Protocol):
    """What the gathering pass needs of a statistic that is registered with `sinks="left out of its mean"`."""

    def update(self, inputs: Tensor, gradients: Tensor | None, real: Tensor, sinks: SinkTokens) -> None:
        """As `Statistic.update`; sinks: which of the real tokens are sinks."""

    def result(self) -> Tensor | None:
        """As `Statistic.result`."""


class StatisticOfBoth(Protocol):
    """What the gathering pass needs of a statistic that is registered with `needs="originals"`."""

    def update(self, inputs: Tensor, gradients: Tensor | None, real: Tensor, originals: Tensor) -> None:
        """As `Statistic.update`; originals: the inputs of the same tokens in the unedited model, `[b, t, n]`, fp32."""

    def result(self) -> Tensor | None:
        """As `Statistic.result`."""


AnyStatistic = Statistic | StatisticToldOfSinks | StatisticOfBoth


@dataclass(frozen=True)
class RegisteredStatistic:
    """A statistic by name: how one object is made, what it takes, and whether sink tokens belong in it.

    compares_documents: it compares each document with the next of its batch, so that a batch must hold two or more.
    """

    name: str
    make: Callable[..., AnyStatistic]
    needs: Needs
    numbers: Numbers
    compares_documents: bool = False
    sinks: Sinks = "counted"

    @property
    def needs_gradients(self) -> bool:
        """Whether it takes a backward pass."""
        return self.needs in ("gradients", "components")

    @property
    def needs_originals(self) -> bool:
        """Whether it compares a layer's inputs with those of the unedited model."""
        return self.needs == "originals"

    @property
    def needs_components(self) -> bool:
        """Whether it is made with the factors of the matrix."""
        return self.needs == "components"


def one_per_input(shape: tuple[int, int]) -> int:
    """n numbers for a matrix `[m, n]`."""
    return shape[1]


def one_per_component(shape: tuple[int, int]) -> int:
    """r numbers for a matrix `[m, n]`, r = min(m, n)."""
    return min(shape)


SHIPPED = "harness_ext.calibration.statistics"
"""The module of the shipped ones, named as an entry point names one: nothing here knows what it holds."""
_registry: dict[str, RegisteredStatistic] = {}
StatisticClass = TypeVar("StatisticClass", bound=Callable[..., AnyStatistic])


def statistic(
    *,
    name: str,
    needs: Needs,
    numbers: Numbers = one_per_input,
    compares_documents: bool = False,
    sinks: Sinks = "counted",
) -> Callable[[StatisticClass], StatisticClass]:
    """Register a class as the statistic that methods ask for by an argument of this name; see `RegisteredStatistic`.

    Raises ValueError where the name is no name of an argument or is already taken by a class of another module, and
    where `needs` is none of `Needs`, or `sinks` none of `Sinks`; TypeError where the class lacks what `Statistic` asks
    for.
    """
    if not name.isidentifier() or needs not in get_args(Needs):
        raise ValueError(f"statistic {name!r}: give the name of an argument, and needs as one of {get_args(Needs)}")
    if sinks not in get_args(Sinks):
        raise ValueError(f"statistic {name!r}: give sinks as one of {get_args(Sinks)}")

    def register(made: StatisticClass) -> StatisticClass:
        if missing := [part for part in ("update", "result") if not callable(getattr(made, part, None))]:
            raise TypeError(f"statistic {name!r}: {made.__name__} has no {' and no '.join(missing)}")
        known = _registry.get(name)
        if known is not None and known.make.__module__ != made.__module__:
            raise ValueError(f"statistic {name!r} is already registered by {known.make.__module__}")
        _registry[name] = RegisteredStatistic(name, made, needs, numbers, compares_documents, sinks)
        return made

    return register


def known_statistics() -> Mapping[str, RegisteredStatistic]:
    """Those of this package, and those of other packages whose modules were imported so far; by name."""
    # By its name: it is of a layer above this one, and registers what it holds.
    importlib.import_module(SHIPPED)
    return dict(sorted(_registry.items()))


@cache
def _load_all() -> None:
    load_entry_points("statistics")


def registered_statistics() -> Mapping[str, RegisteredStatistic]:
    """All statistics by name, in the order of their names."""
    _load_all()
    return known_statistics()


def statistics_among(names: Iterable[str]) -> list[RegisteredStatistic]:
    """The registered ones among these names; what is searched for or trained is none."""
    registered = registered_statistics()
    return [registered[name] for name in sorted(names) if name in registered]
