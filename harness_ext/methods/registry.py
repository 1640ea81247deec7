"""The mathematics: one pure, typed function of tensors per method.

A method is registered by a decorator, and its schema is read from its signature, so that a new method is one function
in one file:

    @method(summary="Keep the largest singular components.")
    def truncate_svd(weight: Tensor, /, *, truncate: Truncate, keep: Keep) -> Edit: ...

The one positional argument is the matrix, `[out, in]`, in fp32. Keyword arguments are of three kinds, told apart by
name:

- what the engine hands over (`ENGINE_ARGUMENTS`): `svd`, `truncate`, `keep`, `generator`, and `remember`, which calls
  a function of tensors and keeps what it returns for the next time (`remember(function, *tensors)`): a decomposition
  from which every rank is a slice need be made only once; `original`, the matrix before all steps of the recipe; and
  `component`, the matrices that feed this one, for a method that is registered with a kind of component and returns a
  `ComponentEdit` of all of them;
- statistics of calibration documents (`harness_ext.methods.statistic_registry`); the module that registers one must be
  imported before the method is registered, which the entry points of other packages see to;
- everything else is a parameter that a recipe may set: it needs an annotation, and its default is the recipe's default.

A method that keeps leading components asks for `truncate`, which is several times faster than `svd` and lasts over runs
like it (of a matrix that the method made from the weight, where it says what from: `MadeFrom`); one that works on
components one by one, or on all of them, asks for `svd`.

Another package names its modules of methods in the entry-point group `lm_eval_recipes.methods`.

Methods never see a model, a file or global state, and draw only from the generator they are given. This package imports
no torch when it is loaded: a recipe must be readable, and its mistakes nameable, in well under a second.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from harness_ext.linalg.edits import AnyEdit
from harness_ext.methods.discovery import import_modules_of, load_entry_points
from harness_ext.methods.statistic_registry import Sinks, known_statistics, registered_statistics, statistics_among

if TYPE_CHECKING:
    from torch import Tensor

SEARCHED = frozenset({"removed_components"})
TRAINED = frozenset({"trained_left", "trained_right"})
HEALED = frozenset({"healed_left", "healed_right", "healed_adds"})
SHARED = frozenset({"shared_left", "shared_right", "shared_place"})
TRIED = frozenset({"accepted_components"})
RANKED = frozenset({"count_among_all"})
MASKED = frozenset({"kept_units"})
PRIMED = frozenset({"prime_units"})
"""What a method may ask for like a statistic, but no pass gathers. What is searched for takes many passes, and the
other statistics of such a method come from the same search. What is trained (two factors of the matrix, `[m, r]` and
`[r, n]`) comes alone, and so does what is healed (two factors, and whether they are added to the matrix). What is tried
(`[r]`, bool) and what is ranked (a count, 0-d) follow from the statistics that the method asks for as well, those of
all matrices of the step together; what is shared (two factors, and the place in a group) from those of a few. Which
units stay (`[u]`, bool) is learned by masks of all matrices together, and comes alone; which are prime (bool, by rows
or by columns) follows for all matrices of an MLP from a statistic of the one that reads its units.
"""
NOT_GATHERED = SEARCHED | TRAINED | HEALED | SHARED | TRIED | RANKED | MASKED | PRIMED

SINKS_OF_OTHERS: dict[str, Sinks] = {
    "accepted_components": "left out of its mean",
    "healed_left": "counted",
    "healed_right": "counted",
    "kept_units": "counted",
    "prime_units": "counted",
    "removed_components": "left out of its mean",
    "shared_left": "counted",
    "shared_right": "counted",
    "trained_left": "counted",
    "trained_right": "counted",
}
"""Whether sink tokens belong in what no pass gathers: a search goes by the effects, at all tokens, of removals that
keep the mean of those that are no sinks; training goes by what the model answers.
"""

TEXTS = "texts"
NEEDS = ("nothing", "nothing, its texts are shipped", TEXTS, "labelled documents", "training")
"""What a method may need, from little to much. Texts are taken from labelled documents too, prompt and right answer,
but without labels any would do.
"""

ORIGINAL = "original"
ENGINE_ARGUMENTS = frozenset({"svd", "truncate", "keep", "generator", "remember", "component", ORIGINAL})
"""What every method may ask for; and it may ask for statistics."""


def call(function: Callable[..., tuple[Tensor, ...]], *arguments: Tensor) -> tuple[Tensor, ...]:
    """What `remember` is where nothing is remembered: the call itself."""
    return function(*arguments)


class Parameter(NamedTuple):
    """One setting of a method that a recipe may give: its annotation, and its default (`...`: required)."""

    annotation: Any
    default: Any


@dataclass(frozen=True)
class Method:
    """A registered method: the function, and what its signature says about it.

    statistics: of calibration documents, and what is searched for or trained on them; empty for a method that looks at
    weights alone. engine_arguments: all that it is handed, these among them. revision: from 1; raised when the same
    settings give other weights, so that no stored run by an earlier one is taken for one by this. component: the kind
    of component that it edits as a whole (`harness_ext.model.components`), None for a single matrix. only_if: of a
    statistic that not every setting uses, the setting and its value with which it is asked for; see `with_settings`.
    """

    name: str
    function: Callable[..., AnyEdit]
    summary: str
    engine_arguments: frozenset[str]
    parameters: Mapping[str, Parameter]
    statistics: frozenset[str] = frozenset()
    rank_from_weights: bool = False
    shifts_bias: bool = False
    revision: int = 1
    component: str | None = None
    only_if: Mapping[str, tuple[str, Any]] = field(default_factory=dict)

    def with_settings(self, parameters: Mapping[str, Any]) -> Method:
        """The same, asking for no statistic that these settings do not use."""
        unused = {name for name, (setting, value) in self.only_if.items() if parameters[setting] != value}
        statistics, arguments = self.statistics - unused, self.engine_arguments - unused
        return replace(self, statistics=statistics, engine_arguments=arguments) if unused else self

    @property
    def takes_keep(self) -> bool:
        """Whether a step with this method must say what to keep."""
        return "keep" in self.engine_arguments

    @property
    def searches(self) -> bool:
        """Whether its statistics are found by trying edits out."""
        return bool(self.statistics & SEARCHED)

    @property
    def tries(self) -> bool:
        """Whether its edits are tried out before they are made, and made only as far as the measured loss falls."""
        return bool(self.statistics & TRIED)

    @property
    def learns_masks(self) -> bool:
        """Whether which units stay is learned from losses under masks."""
        return bool(self.statistics & MASKED)

    @property
    def decides_among_all(self) -> bool:
        """Whether it must know of all matrices of a step before it edits the first."""
        return self.tries or bool(self.statistics & RANKED)

    @property
    def gathered(self) -> frozenset[str]:
        """Those of its statistics that a pass over the documents gathers."""
        return self.statistics - NOT_GATHERED

    @property
    def trains(self) -> bool:
        """Whether its factors are trained on the calibration documents."""
        return bool(self.statistics & TRAINED)

    @property
    def shares(self) -> bool:
        """Whether matrices of a few layers are edited together."""
        return bool(self.statistics & SHARED)

    @property
    def primes(self) -> bool:
        """Whether the matrices of an MLP are edited by what is learned of one of them: which units are prime."""
        return bool(self.statistics & PRIMED)

    @property
    def heals(self) -> bool:
        """Whether it trains what earlier steps of the recipe edited."""
        return bool(self.statistics & HEALED)

    @property
    def contrasts(self) -> bool:
        """Whether its statistics come from a contrast set rather than from a task."""
        return any(item.needs == "contrasts" for item in statistics_among(self.statistics))

    @property
    def compares_with_unedited(self) -> bool:
        """Whether its statistics are of the unedited model too, so that it edits one matrix after another."""
        return any(item.needs_originals for item in statistics_among(self.statistics))

    @property
    def needs(self) -> str:
        """What a user must have for it: one of `NEEDS`."""
        if not self.statistics:
            return NEEDS[0]
        answers = (
            self.searches
            or self.learns_masks
            or any(item.needs_gradients for item in statistics_among(self.statistics))
        )
        return NEEDS[4 if self.trains or self.heals else 1 if self.contrasts else 3 if answers else 2]

    def moves_bias(self, parameters: Mapping[str, Any]) -> bool:
        """Whether an edit with these settings moves a bias, so that what has none (an expert) must be refused: always,
        or as the setting `bias` says.
        """
        return self.shifts_bias and bool(parameters.get("bias", True))


def sink_use(names: Iterable[str]) -> dict[str, Sinks]:
    """Whether sink tokens belong in each of these statistics, by name; nothing is said of what follows from others."""
    known = SINKS_OF_OTHERS | {item.name: item.sinks for item in statistics_among(names)}
    return {name: known[name] for name in sorted(names) if name in known}


_registry: dict[str, Method] = {}
_ONLY_IF = "asked_only_if"
"""The attribute of a function that `only_if` sets."""


def method(
    *,
    summary: str,
    name: str | None = None,
    rank_from_weights: bool = False,
    shifts_bias: bool = False,
    revision: int = 1,
    component: str | None = None,
) -> Callable[[Callable[..., AnyEdit]], Callable[..., AnyEdit]]:
    """Register a function as a method under its own name, or under `name`. rank_from_weights: it finds the rank itself,
    so that no plan can tell it. shifts_bias: its edits move a bias; where it has a setting `bias`, only those with that
    set. revision: raise it when the same settings give other weights; runs by an earlier one are then made anew.
    component: the kind of component that it edits as a whole; it is given the matrix that reads from it.

    Raises TypeError where the signature is not one that the engine can call, and ValueError for a name already taken by
    another function, or a revision that is no whole number from 1 on.
    """
    check_revision(revision)

    def register(function: Callable[..., AnyEdit]) -> Callable[..., AnyEdit]:
        registered = replace(
            _describe(function, name or function.__name__, summary),
            rank_from_weights=rank_from_weights,
            shifts_bias=shifts_bias,
            revision=revision,
            component=component,
            only_if=getattr(function, _ONLY_IF, {}),
        )
        _check_only_if(registered, inspect.signature(function).parameters)
        known = _registry.get(registered.name)
        if known is not None and known.function.__module__ != function.__module__:
            raise ValueError(f"method {registered.name!r} is already registered by {known.function.__module__}")
        _registry[registered.name] = registered
        return function

    return register


def only_if(**uses: tuple[str, Any]) -> Callable[[Callable[..., AnyEdit]], Callable[..., AnyEdit]]:
    """Below `method`: each of these statistics is asked for only where a setting has a value, `statistic=("setting",
    value)`; elsewhere the argument is left at its default.
    """

    def note(function: Callable[..., AnyEdit]) -> Callable[..., AnyEdit]:
        setattr(function, _ONLY_IF, uses)
        return function

    return note


def check_revision(revision: object) -> None:
    """Raise ValueError where this is no revision of a method or a search."""
    if not isinstance(revision, int) or isinstance(revision, bool) or revision < 1:
        raise ValueError(f"revision must be a whole number from 1 on, not {revision!r}")


def _check_only_if(registered: Method, arguments: Mapping[str, inspect.Parameter]) -> None:
    for name, (setting, _) in registered.only_if.items():
        if name not in registered.statistics or setting not in registered.parameters:
            raise TypeError(f"method {registered.name!r}: only_if names a statistic and a setting that it has")
        if arguments[name].default is inspect.Parameter.empty:
            raise TypeError(f"method {registered.name!r}: {name!r} needs a default for settings that do not use it")


def _describe(function: Callable[..., AnyEdit], name: str, summary: str) -> Method:
    arguments = keyword_arguments(function, f"method {name!r}")
    asked = {argument.name for argument in arguments}
    statistics = frozenset(asked & (known_statistics().keys() | NOT_GATHERED))
    engine = statistics | (asked & ENGINE_ARGUMENTS)
    parameters = {
        argument.name: parameter_of(function, argument) for argument in arguments if argument.name not in engine
    }
    return Method(name, function, summary, engine, parameters, statistics)


def keyword_arguments(function: Callable[..., Any], what: str) -> list[inspect.Parameter]:
    """The arguments of a function after what it is handed first. Raises TypeError where one could be given by its
    place.
    """
    arguments = [
        argument
        for argument in inspect.signature(function).parameters.values()
        if argument.kind is not inspect.Parameter.POSITIONAL_ONLY
    ]
    for argument in arguments:
        if argument.kind is not inspect.Parameter.KEYWORD_ONLY:
            raise TypeError(
                f"{what}: {argument.name!r} must be keyword-only; write `(first, /, *, {argument.name}, ...)`"
            )
    return arguments


def parameter_of(function: Callable[..., Any], argument: inspect.Parameter) -> Parameter:
    """One argument as a setting of a recipe, its postponed annotation resolved; only settings are, since the tensors'
    annotations would need torch.
    """
    if argument.annotation is inspect.Parameter.empty:
        raise TypeError(f"{function.__name__}: parameter {argument.name!r} has no type annotation")
    annotation = argument.annotation
    if isinstance(annotation, str):
        annotation = eval(annotation, function.__globals__)
    return Parameter(annotation, ... if argument.default is argument.empty else argument.default)


@cache
def _load_all() -> None:
    import_modules_of("harness_ext.methods")
    # After the methods here, whose settings no statistic from outside can take the names of; before those that may ask
    # for one.
    registered_statistics()
    load_entry_points("methods")


def registered_methods() -> Mapping[str, Method]:
    """All methods by name, in the order of their names."""
    _load_all()
    return dict(sorted(_registry.items()))
