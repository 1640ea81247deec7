"""Searches: which matrices, and which ranks. A search is a step of a recipe whose outcome is a list of ordinary steps.

A search is registered by a decorator, and its schema is read from its signature, so that a new one is one function in
one file:

    @search(summary="...", trials=lambda shapes, settings: ...)
    def laser_search(evaluator: CandidateEvaluator, /, *, fractions: Fractions = GRID) -> SearchResult: ...

Another package names its modules of searches in the entry-point group `lm_eval_recipes.searches`, and imports what it
needs from `harness_ext.search`.

The evaluator hands over the matrices and the calibration documents, and tries edits out on them
(`harness_ext.search.evaluator`). Nothing is written to the model while a search runs: what it finds is
carried out afterwards, by the same code as any other step. This package imports no torch when it is loaded, for the
reasons that `harness_ext.methods.registry` gives.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from harness_ext.errors import UserError
from harness_ext.methods.discovery import import_modules_of, load_entry_points
from harness_ext.methods.registry import Parameter, check_revision, keyword_arguments, parameter_of, registered_methods
from harness_ext.model.layout import check_not_shared

if TYPE_CHECKING:
    from harness_ext.model.layout import Matrix

Fraction = Annotated[float, Field(gt=0, le=1)]
Fractions = Annotated[tuple[Fraction, ...], Field(min_length=1)]
GRID: tuple[float, ...] = (0.9, 0.8, 0.6, 0.4, 0.2, 0.1, 0.05, 0.01)
"""The fractions of full rank that LASER's search tries (arXiv:2312.13558)."""


@dataclass(frozen=True)
class SearchResult:
    """What a search chose: ordinary steps as data, in the order in which they are to be carried out; none where nothing
    was worth doing. notes: what a reader should know. warnings: what whoever reads the scores must. reason: where there
    are no steps, why, as a clause with the number of documents.
    """

    steps: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...] = field(default=())
    warnings: tuple[str, ...] = field(default=())
    reason: str = ""


Among = Callable[[Sequence["Matrix"], int, Mapping[str, Any]], Sequence["Matrix"]]


def everything(matrices: Sequence[Matrix], layers: int, settings: Mapping[str, Any]) -> Sequence[Matrix]:
    """All of its matrices: what a search tries edits of that leaves none out."""
    return matrices


Check = Callable[[Sequence["Matrix"], int, Mapping[str, Any]], None]


def possible(matrices: Sequence[Matrix], layers: int, settings: Mapping[str, Any]) -> None:
    """Settings that any matrices can meet: nothing to refuse."""


Contradiction = Callable[[Mapping[str, Any]], str]
StatisticsBySettings = Callable[[Mapping[str, Any]], frozenset[str]]


def consistent(settings: Mapping[str, Any]) -> str:
    """Settings of which each value goes with every other: nothing to say."""
    return ""


def once(settings: Mapping[str, Any]) -> int:
    """Statistics that a search gathers one time, whatever its settings."""
    return 1


def never(settings: Mapping[str, Any]) -> bool:
    """Edits of one matrix at a time, whatever the settings."""
    return False


@dataclass(frozen=True)
class Search:
    """A registered search. trials: how many edits it will try at most, from the shapes of its matrices and its
    settings. statistics: those that it gathers. takes_on: whether edits stand while others are tried. revision: from 1;
    raised when the same settings find other edits, as a method's is.

    among: which of its matrices it tries edits of, in a model of so many layers, from its settings; UserError where
    that is none. finds: of a search for steps that take whole units away, the method of those steps by the role of the
    matrix that stands for a component.
    contradiction: what its settings, taken together, are at fault for, empty where nothing; a recipe is refused for it
    when it is read, before a model is loaded. check: raises what these matrices, in a model of so many layers, make
    impossible: UserError, or BudgetTooSmall for a budget; a plan is refused for it, and a run before anything is
    gathered.

    statistics_by: those that it gathers by its settings, None where these make no difference; it then decomposes what
    it tries by a factorisation, one matrix at a time (`harness_ext.search.factorisations`). gatherings: how often it
    gathers them. tries_plans: whether by its settings it keeps factors of every matrix, and tries ranks for all of them
    together.
    """

    name: str
    function: Callable[..., SearchResult]
    summary: str
    trials: Callable[[Sequence[tuple[int, int]], Mapping[str, Any]], int]
    parameters: Mapping[str, Parameter]
    statistics: frozenset[str] = frozenset()
    takes_on: bool = False
    among: Among = everything
    engine_arguments: frozenset[str] = frozenset()
    needs: str = "labelled documents"
    revision: int = 1
    finds: Mapping[str, str] = field(default_factory=dict)
    contradiction: Contradiction = consistent
    check: Check = possible
    statistics_by: StatisticsBySettings | None = None
    gatherings: Callable[[Mapping[str, Any]], int] = once
    tries_plans: Callable[[Mapping[str, Any]], bool] = never

    @property
    def components(self) -> Mapping[str, str]:
        """The kinds of components that it takes units of, each by the role of the matrix that stands for one."""
        kinds = {role: registered_methods()[name].component for role, name in self.finds.items()}
        return {role: kind for role, kind in kinds.items() if kind is not None}

    def with_settings(self, settings: Mapping[str, Any]) -> Search:
        """The search as a step asks for it, with the statistics that its settings use."""
        return self if self.statistics_by is None else replace(self, statistics=self.statistics_by(settings))


def planned_trials(name: str, matrices: Sequence[Matrix], layers: int, settings: Mapping[str, Any]) -> int:
    """How many edits of these matrices, in a model of so many layers, a search will try at most. Raises UserError where
    its settings leave it without any.
    """
    search = registered_searches()[name]
    trials = search.trials([matrix.shape for matrix in search.among(matrices, layers, settings)], settings)
    if not trials:
        raise UserError(
            f"there is nothing to try: no setting of this search changes any of the {len(matrices)} chosen"
            " matrices; give smaller ranks or fractions, fewer clusters, or other matrices"
        )
    return trials


def check_searchable(matrices: Sequence[Matrix]) -> None:
    """Raise UserError naming the first matrix that edits cannot be tried on: one call computes all experts of a layer,
    and nothing can be put in the place of one; and a trial starts at one layer, where a shared block is in several.
    """
    for matrix in matrices:
        if matrix.expert is not None:
            raise UserError(
                f"{matrix.key}: a search cannot try edits of experts; choose matrices outside them, such as attn"
            )
        check_not_shared([matrix], "a search cannot try edits of it")


_registry: dict[str, Search] = {}


def search(
    *,
    summary: str,
    trials: Callable[[Sequence[tuple[int, int]], Mapping[str, Any]], int],
    statistics: tuple[str, ...] = (),
    takes_on: bool = False,
    among: Among = everything,
    revision: int = 1,
) -> Callable[[Callable[..., SearchResult]], Callable[..., SearchResult]]:
    """Register a function as a search under its own name; see `Search`.

    Raises TypeError where an argument other than the evaluator is not keyword-only, and ValueError for a name already
    taken by a function of another module, or a revision that is no whole number from 1 on.
    """
    check_revision(revision)

    def register(function: Callable[..., SearchResult]) -> Callable[..., SearchResult]:
        name = function.__name__
        known = _registry.get(name)
        if known is not None and known.function.__module__ != function.__module__:
            raise ValueError(f"search {name!r} is already registered by {known.function.__module__}")
        parameters = {
            argument.name: parameter_of(function, argument)
            for argument in keyword_arguments(function, f"search {name!r}")
        }
        _registry[name] = Search(
            name,
            function,
            summary,
            trials,
            parameters,
            frozenset(statistics),
            takes_on,
            among,
            revision=revision,
        )
        return function

    return register


def of_components(finds: Mapping[str, str]) -> Callable[[Callable[..., SearchResult]], Callable[..., SearchResult]]:
    """Say of a registered search, above its decorator, that the steps it finds take whole units away; see
    `Search.finds`.
    """

    def register(function: Callable[..., SearchResult]) -> Callable[..., SearchResult]:
        _registry[function.__name__] = replace(_registry[function.__name__], finds=finds)
        return function

    return register


def refusing(contradiction: Contradiction) -> Callable[[Callable[..., SearchResult]], Callable[..., SearchResult]]:
    """Say of a registered search, above its decorator, what its settings may be at fault for; see `contradiction`."""

    def register(function: Callable[..., SearchResult]) -> Callable[..., SearchResult]:
        _registry[function.__name__] = replace(_registry[function.__name__], contradiction=contradiction)
        return function

    return register


def checking(check: Check) -> Callable[[Callable[..., SearchResult]], Callable[..., SearchResult]]:
    """Say of a registered search, above its decorator, what of its settings its matrices may make impossible; see
    `Search.check`.
    """

    def register(function: Callable[..., SearchResult]) -> Callable[..., SearchResult]:
        _registry[function.__name__] = replace(_registry[function.__name__], check=check)
        return function

    return register


def gathering(
    *, by: StatisticsBySettings | None = None, times: Callable[[Mapping[str, Any]], int] = once
) -> Callable[[Callable[..., SearchResult]], Callable[..., SearchResult]]:
    """Say of a registered search, above its decorator, which statistics it gathers by its settings, and how often; see
    `Search.statistics_by` and `Search.gatherings`.
    """

    def register(function: Callable[..., SearchResult]) -> Callable[..., SearchResult]:
        known = _registry[function.__name__]
        _registry[function.__name__] = replace(known, statistics_by=by, gatherings=times)
        return function

    return register


def trying_plans(
    by: Callable[[Mapping[str, Any]], bool],
) -> Callable[[Callable[..., SearchResult]], Callable[..., SearchResult]]:
    """Say of a registered search, above its decorator, by which settings it tries ranks for all matrices together; see
    `Search.tries_plans`.
    """

    def register(function: Callable[..., SearchResult]) -> Callable[..., SearchResult]:
        _registry[function.__name__] = replace(_registry[function.__name__], tries_plans=by)
        return function

    return register


@cache
def _load_all() -> None:
    import_modules_of("harness_ext.search")
    load_entry_points("searches")
    # A step names either by the same key.
    for name in sorted(_registry.keys() & registered_methods().keys()):
        module = _registry.pop(name).function.__module__
        warnings.warn(f"the search {name} of {module} is left out: a method has that name", stacklevel=2)


def registered_searches() -> Mapping[str, Search]:
    """All searches by name, in the order of their names."""
    _load_all()
    return dict(sorted(_registry.items()))
