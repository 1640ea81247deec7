"""The schema of a recipe's step: the keys that every method has, and those of its own, read from its signature. It is
strict: an unknown key is a mistake.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import (
    BaseModel,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    create_model,
    field_validator,
)

from harness_ext.errors import UserError
from harness_ext.methods import Method, registered_methods
from harness_ext.methods.budget import Keep, pays
from harness_ext.methods.search_registry import Search, registered_searches
from harness_ext.model.layout import Matrix, layer_numbers
from harness_ext.model.size import FACTORS, stored_parameters
from harness_ext.recipe.settings import (
    MOST_ENTRIES,
    STRICT,
    Calibration,
    Healing,
    Masking,
    SearchSettings,
    Training,
)

UNIT_FRACTION = "unit_fraction"
"""The setting of methods of components that says how much of each stays."""
SOME_STEPS = frozenset({"keep", "calibration", "sequential", "contrast", "search", "masks", "training", "healing"})
"""The common fields that a step has only where its method takes them."""


class Step(BaseModel):
    """One method on a set of matrices. Subclassed for each method, whose own parameters become fields.

    factored: whether the model computes with two low-rank layers; its outputs are those of the dense product within
    rounding. `true`: where they are faster than the matrix (`methods.budget.pays`), at ranks rounded down for that
    (`keep.align: auto`, where the step says nothing of it). `always`: wherever they hold fewer numbers, at ranks as
    asked; beside `keep.format: pifa`, wherever pivot rows do, so that an export has them.
    """

    model_config = STRICT

    method: str
    matrices: tuple[str, ...] = Field(min_length=1, max_length=MOST_ENTRIES)
    layers: tuple[int | str, ...] | None = Field(None, max_length=MOST_ENTRIES)
    per_head: bool = False
    seed: int = 0
    factored: bool | Literal["always"] = False

    if TYPE_CHECKING:
        # Fields of the subclasses whose methods take them; `__getattr__` answers None for the others.
        keep: Keep | None
        calibration: Calibration | None
        sequential: bool | None
        contrast: str | None
        search: SearchSettings | None
        masks: Masking | None
        training: Training | None
        healing: Healing | None

    @field_validator("matrices", "layers", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, (str, int)) else value

    @field_validator("factored", mode="wrap")
    @classmethod
    def _one_of_three(cls, value: Any, read: ValidatorFunctionWrapHandler) -> Any:
        try:
            return read(value)
        except ValidationError:
            raise ValueError("give true, false or always") from None

    @field_validator("layers")
    @classmethod
    def _can_be_read(cls, layers: tuple[int | str, ...] | None) -> tuple[int | str, ...] | None:
        for item in layers or ():
            layer_numbers(item, 0)
        return layers

    def __getattr__(self, name: str) -> Any:
        """None for a field of `SOME_STEPS` that this step's method does not take."""
        if name in SOME_STEPS:
            return None
        return super().__getattr__(name)  # type: ignore[misc]  # pydantic hides its own from type checkers

    @property
    def is_search(self) -> bool:
        """Whether the step looks for ordinary steps, and edits nothing itself."""
        return self.method in registered_searches()

    @property
    def trains(self) -> bool:
        """Whether the step trains matrices on its documents."""
        return self.training is not None or self.healing is not None

    @property
    def trains_blocks(self) -> bool:
        """Whether the step trains one decoder layer after another."""
        return self.healing is not None and self.healing.loss == "blocks"

    @property
    def training_passes(self) -> float:
        """How often a training sees every document; 0 where the step trains nothing."""
        if self.training is not None:
            return float(self.training.epochs)
        if self.healing is None or self.calibration is None:
            return 0.0
        return self.healing.steps * min(1.0, self.calibration.batch_size / self.calibration.samples)

    def keep_of(self, key: str) -> Keep | None:
        """The budget of one matrix, by its name, aligned where it is to be computed as fast factors; None where the
        method takes none. Raises UserError where ranks are given and its is not among them.
        """
        if self.keep is None:
            return None
        keep = self.keep.of(key)
        return keep.aligned if self.factored is True else keep

    def stores_factors(self, shape: tuple[int, int], rank: int) -> bool:
        """Whether a matrix `[m, n]` that an edit leaves at this rank is kept as two factors."""
        if self.factored is True:
            return pays(shape, rank)
        return bool(self.factored) and stored_parameters(shape, rank, counted_as(self)) < shape[0] * shape[1]

    @property
    def parameters(self) -> dict[str, Any]:
        """The settings of the method itself, as keyword arguments."""
        return {name: getattr(self, name) for name in described(self.method).parameters}

    def parameters_of(self, key: str) -> dict[str, Any]:
        """The settings for one matrix, by its name. Raises UserError where every matrix has a share of its own, and
        none is given for this one.
        """
        settings = self.parameters
        shares = settings.get(UNIT_FRACTION)
        if not isinstance(shares, Mapping):
            return settings
        if key not in shares:
            named = f"{', '.join(list(shares)[:3])}{', ...' if len(shares) > 3 else ''}"
            raise UserError(f"{UNIT_FRACTION} has no share for {key}; it names {named}")
        return {**settings, UNIT_FRACTION: shares[key]}


def described(name: str) -> Method | Search:
    """What goes under this name in a step: a method, or a search. Raises KeyError."""
    return known_methods()[name]


def method_of(step: Step) -> Method:
    """The method of an ordinary step, which asks for the statistics that its settings use."""
    return registered_methods()[step.method].with_settings(step.parameters)


def search_of(step: Step) -> Search:
    """The search of a step that is one, with the statistics that its settings use."""
    return registered_searches()[step.method].with_settings(step.parameters)


def statistics_of(step: Step) -> frozenset[str]:
    """The names of all that a step learns of its matrices, or searches by."""
    return search_of(step).statistics if step.is_search else method_of(step).statistics


def component_of(step: Step) -> str | None:
    """The kind of component that a step edits as a whole; None where it edits single matrices, or searches."""
    method = described(step.method)
    return method.component if isinstance(method, Method) else None


def takes_units(step: Step) -> bool:
    """Whether a step takes whole units of components away, or is a search for steps that do."""
    method = described(step.method)
    return bool(method.components) if isinstance(method, Search) else method.component is not None


def edits_by(step: Step) -> Method | None:
    """The method of an ordinary step; that of the steps which a search finds, where its setting `factorisation` names
    it, else None.
    """
    return registered_methods().get(step.parameters.get("factorisation", "") if step.is_search else step.method)


def has_prime_units(step: Step) -> bool:
    """Whether a step, or the steps that a search finds, keep some units of MLPs as they are, and truncate the rest of
    the matrices.
    """
    method = edits_by(step)
    if method is None or not method.primes:
        return False
    share = step.parameters.get("prime")
    return bool(method.parameters["prime"].default if share is None else share)


def chooses_units(step: Step) -> bool:
    """Whether a step goes by units of components, of which a control draws as many at random."""
    return takes_units(step) or has_prime_units(step)


def components_among(step: Step, matrices: Sequence[Matrix]) -> list[tuple[Matrix, str]]:
    """The matrices that stand for components, each with the kind of its own; none where a step is of single matrices.
    Raises UserError for a matrix of which a search would know no component.
    """
    method = described(step.method)
    if not isinstance(method, Search):
        return [(matrix, method.component) for matrix in matrices] if method.component is not None else []
    for matrix in matrices if method.components else ():
        if matrix.role not in method.components:
            raise UserError(
                f"{matrix.key}: this search takes units of components away, and is given one matrix for each: set"
                f" matrices=[{', '.join(method.components)}], or some of them"
            )
    return [(matrix, method.components[matrix.role or ""]) for matrix in matrices if method.components]


def counted_as(step: Step) -> str:
    """The format in which what a step keeps is counted, `factors` or `pifa`."""
    return FACTORS if step.keep is None else step.keep.form


def known_methods() -> Mapping[str, Method | Search]:
    """All that a step may name: methods, and searches."""
    return {**registered_methods(), **registered_searches()}


def _one_or_by_name(value: Any, read: ValidatorFunctionWrapHandler) -> Any:
    try:
        found = read(value)
    except ValidationError:
        found = None
    if not found:
        raise ValueError("give a share above 0 and at most 1, or a mapping with one for each matrix by its name")
    return found


@cache
def step_model(method_name: str) -> type[Step]:
    """The schema of a step with this method: the common keys, plus `keep`, and `calibration` with `sequential`,
    `search`, `masks`, `training` or `healing`, or `contrast`, where it takes them, plus its own parameters.

    A search takes `calibration` and its own parameters.
    """
    method = described(method_name)
    fields: dict[str, Any] = {
        name: (parameter.annotation, parameter.default) for name, parameter in method.parameters.items()
    }
    if isinstance(method, Search):
        return create_model(f"{method.name} step", __base__=Step, calibration=(Calibration, Calibration()), **fields)
    if method.component is not None and UNIT_FRACTION in fields:
        one, default = fields[UNIT_FRACTION]
        either: Any = Union[one, dict.__class_getitem__((str, one))]  # noqa: UP007 - what it is is known only now
        fields[UNIT_FRACTION] = (Annotated[either, WrapValidator(_one_or_by_name)], default)
    if method.takes_keep:
        fields["keep"] = (Keep, ...)
    if method.contrasts:
        fields["contrast"] = (Literal["pronouns"], "pronouns")
    elif method.statistics:
        fields["calibration"] = (Calibration, Calibration())
        fields |= (
            {"search": (SearchSettings, SearchSettings())}
            if method.searches
            else {"masks": (Masking, Masking())}
            if method.learns_masks
            else {"training": (Training, Training())}
            if method.trains
            else {"healing": (Healing, Healing())}
            if method.heals
            else {"sequential": (Literal[True], True)}
            if method.compares_with_unedited
            else {"sequential": (Literal[False], False)}
            if method.shares or method.primes
            else {"sequential": (bool, False)}
        )
    return create_model(f"{method.name} step", __base__=Step, **fields)
