"""The schema of a recipe's step: the keys that every method has, and those of its own, read from its signature. It is
strict: an unknown key is a mistake.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    create_model,
    field_validator,
)

from harness_ext.errors import UserError, closest, nearest
from harness_ext.methods import Method, registered_methods
from harness_ext.methods.budget import Keep, pays
from harness_ext.methods.search_registry import Search, registered_searches
from harness_ext.model.layout import Matrix, layer_numbers
from harness_ext.model.size import FACTORS, PIFA, stored_parameters
from leaderboard.readers.plain_yaml import shown

EVALUATED = "evaluated"
"""Stands, as a calibration task, for every evaluated task that has labelled training documents."""

# A mixture of 128 experts has some 20,000 matrices.
MOST_ENTRIES = 100_000

# A receipt is JSON, which has no infinities.
STRICT = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _each_once(tasks: tuple[str, ...]) -> tuple[str, ...]:
    twice = sorted({task for task in tasks if tasks.count(task) > 1})
    if not tasks or twice:
        raise ValueError(f"names {shown(repr(twice[0]))} twice: name each once" if twice else "names no task")
    return tasks


Tasks = str | Annotated[tuple[str, ...], AfterValidator(_each_once)]
"""One task or several, each of which gives its share of the documents."""


class Calibration(BaseModel):
    """Where a method's statistics come from: labelled documents of a task, never the documents that are scored.

    task: one task or several, or `evaluated`. split: `test` takes documents out of the scored split, and so out of the
    score of every variant, for tasks that have no other. samples: documents in all, drawn evenly from the tasks by
    `seed`. batch_size: documents in one forward pass.
    shuffled_labels: the answers change places among the documents of a task; a control, what is learned from them is
    not about the questions.
    """

    model_config = STRICT

    task: Tasks = EVALUATED
    split: Literal["train", "validation", "test"] = "train"
    samples: Annotated[int, Field(ge=1)] = 160
    seed: int = 0
    batch_size: Annotated[int, Field(ge=1)] = 16
    shuffled_labels: bool = False

    @property
    def tasks(self) -> tuple[str, ...]:
        """The named tasks as a tuple."""
        return (self.task,) if isinstance(self.task, str) else self.task


class SearchSettings(BaseModel):
    """How edits are tried out on the calibration documents. rounds: at most; each renews the gradients. at_once:
    candidates of the first trial of a round, halved while the loss does not fall, and at last tried one by one.
    """

    model_config = STRICT

    rounds: Annotated[int, Field(ge=1)] = 8
    at_once: Annotated[int, Field(ge=1)] = 16


class Masking(BaseModel):
    """How keep-probabilities of units are learned, with forward passes over the calibration documents alone.

    unit_fraction: `floor` of that share of the heads stays, and of the hidden units, one at least of each; which
    layers they are in follows from the probabilities. start: what these start from, a ranking or the seed. steps: of
    the policy gradient, each on one batch of `calibration.batch_size` documents, under as many masks as `draws` says;
    0 keeps the mask that it starts from. held_out: the share of each task's documents that is learned nothing from, and
    measures what was learned. columns: how many of them each matrix keeps, by its name, in place of `unit_fraction`.
    """

    model_config = STRICT

    unit_fraction: Annotated[float, Field(gt=0, le=1)] = 0.8
    start: Literal["wanda-sp", "random"] = "wanda-sp"
    steps: Annotated[int, Field(ge=0)] = 64
    draws: Annotated[int, Field(ge=2)] = 2
    learning_rate: Annotated[float, Field(gt=0)] = 0.05
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.25
    columns: Annotated[dict[str, Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=MOST_ENTRIES)] | None = (
        None
    )

    def held_out_of(self, documents: int) -> int:
        """How many of so many documents of a task are held out."""
        return int(self.held_out * documents + 1e-9)


class Training(BaseModel):
    """How basis selection trains on the calibration documents; names after arXiv:2405.15877, values ours. One optimiser
    step a batch of `calibration.batch_size` documents.

    keep_ratio: of each matrix's sum of |s|, what its bases have left after pruning. pruning_times: rounds in which that
    falls there. keeping_epochs, pruning_epochs, post_epochs: before pruning, after
    each round, and of the two factors at last. added_rank: new bases a matrix. loss: `text` for all tokens of prompt
    and right answer (language modelling), `answer` for those of the answer.
    """

    model_config = STRICT

    keep_ratio: Annotated[float, Field(gt=0, le=1)] = 0.8
    pruning_times: Annotated[int, Field(ge=1)] = 4
    keeping_epochs: Annotated[int, Field(ge=0)] = 4
    pruning_epochs: Annotated[int, Field(ge=1)] = 2
    post_epochs: Annotated[int, Field(ge=0)] = 8
    added_rank: Annotated[int, Field(ge=0)] = 4
    learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    loss: Literal["text", "answer"] = "text"

    @property
    def epochs(self) -> int:
        """How often every document is seen."""
        return self.keeping_epochs + self.pruning_times * self.pruning_epochs + self.post_epochs


class Healing(BaseModel):
    """How matrices that earlier steps edited are trained on calibration documents. One optimiser step (AdamW) a batch
    of `calibration.batch_size` documents.

    rank: of what is added to a dense matrix, and, with `factors: lora`, to each factor of a matrix of low rank.
    factors: whether such factors are trained as a whole. order: both at once, or the left ones for half of the steps
    and then the right ones. loss: as in `Training`; or `blocks`, one decoder layer after another, for so many steps
    each: how far its outputs are from those of the unedited model's layer.
    """

    model_config = STRICT

    steps: Annotated[int, Field(ge=1)] = 64
    rank: Annotated[int, Field(ge=1)] = 8
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    factors: Literal["whole", "lora"] = "whole"
    order: Literal["together", "left-then-right"] = "together"
    loss: Literal["text", "answer", "blocks"] = "text"


class Heal(Healing):
    """The key `heal` of a recipe, which stands for a last step of the method `heal`: how matrices are trained, on which
    and how many documents, and the seed of both. task, split, batch_size: as in `Calibration`.
    """

    documents: Annotated[int, Field(ge=1)] = 256
    task: Tasks = EVALUATED
    split: Literal["train", "validation", "test"] = "train"
    seed: int = 0
    batch_size: Annotated[int, Field(ge=1)] = 16

    def step(self, earlier: Sequence[Step]) -> dict[str, Any]:
        """The step that it stands for, as plain data. earlier: the steps of the recipe; where there is one, its
        matrices are named, else all, of which those that were edited are trained.
        """
        chosen: dict[str, Any] = {"matrices": ["all"]}
        if len(earlier) == 1:
            chosen = earlier[0].model_dump(exclude_none=True, include={"matrices", "layers", "per_head"})
        factored = {step.factored for step in earlier} if earlier else set()
        documents = {"task": self.task, "split": self.split, "samples": self.documents, "seed": self.seed}
        return {
            "method": HEAL,
            **chosen,
            "seed": self.seed,
            "factored": next(iter(factored)) if len(factored) == 1 else False,
            "healing": self.model_dump(include=set(Healing.model_fields)),
            "calibration": {**documents, "batch_size": self.batch_size},
        }


UNIT_FRACTION = "unit_fraction"
"""The setting of methods of components that says how much of each stays."""
HEAL = "heal"
"""The method that trains what earlier steps edited, and the key of a recipe that adds such a step."""

NESTED: dict[str, type[BaseModel]] = {
    "keep": Keep,
    "calibration": Calibration,
    "search": SearchSettings,
    "training": Training,
    "healing": Healing,
    "masks": Masking,
}
"""The fields of a step that hold keys of their own."""
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


def _method_name(step: Step) -> str:
    """What edits, by its name: of a search that is told what to find, that."""
    method = edits_by(step)
    return step.method if method is None else method.name


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


def not_counted(steps: Sequence[Step]) -> str | None:
    """Why what one of these steps keeps cannot be counted in pivot rows; None where it can, or need not be."""
    for step in steps:
        if counted_as(step) != PIFA:
            continue
        method = described(step.method)
        if isinstance(method, Method) and (method.shares or method.rank_from_weights or method.primes):
            return (
                f"pifa keeps each matrix as rows of its own at one rank, and {step.method} makes it of"
                f" {'a basis that others share' if method.shares else 'several pieces'}: leave it out, or choose"
                " another method"
            )
        if step.factored is True:
            return (
                "factored=true takes two factors for their speed, and at the ranks of pifa they have none: leave"
                " factored out, and export with --format pifa"
            )
        if any(other.healing is not None for other in steps):
            return f"{HEAL} trains two factors, which at the ranks of pifa are larger than the matrix: leave one out"
    return None


def not_factored(steps: Sequence[Step]) -> str | None:
    """Why what one of these steps leaves cannot be kept as two factors for each matrix; None where it can."""
    for step in steps:
        if step.factored and has_prime_units(step):
            return (
                f"{_method_name(step)} leaves some rows or columns of a matrix beside two factors of the rest, and two"
                " factors of the whole would hold more numbers than it counts: leave factored out, or set prime=0"
            )
    return None


def not_healed(steps: Sequence[Step]) -> str | None:
    """Why a step of these cannot train what those before it edited; None where it can, or none is to."""
    places = [place for place, step in enumerate(steps) if step.healing is not None]
    if not places:
        return None
    if places[0] == 0:
        return (
            "it trains what earlier steps edited, and there is none before it: write a step that edits, or leave it out"
        )
    for step in steps[: places[-1]]:
        if takes_units(step):
            return (
                f"it trains whole matrices, and the units that {step.method} takes away would come back: leave it out,"
                " or choose another method"
            )
        if has_prime_units(step):
            return (
                "it trains two factors of each matrix, and would no longer leave the prime units of"
                f" {_method_name(step)} as they are: leave it out, or set prime=0"
            )
        if (method := edits_by(step)) is not None and method.shares:
            return (
                f"it trains the factors of each matrix by themselves, and those of {method.name} would no longer be"
                " shared: leave it out, or choose another method"
            )
    return None


def known_methods() -> Mapping[str, Method | Search]:
    """All that a step may name: methods, and searches."""
    return {**registered_methods(), **registered_searches()}


def key_paths(model: type[Step]) -> list[str]:
    """The keys of a step, and with dots those that lie in them: `keep`, `keep.rank`."""
    paths = []
    for name, own in model.model_fields.items():
        nested = NESTED[name].model_fields if own.annotation is NESTED.get(name) else ()
        paths += [name, *(f"{name}.{key}" for key in nested)]
    return paths


def meant(key: str, paths: Sequence[str]) -> str:
    """A phrase about an unknown key (`rank`, `calibration.rank`): which of the known ones was meant, at whatever level,
    or why there is none of that name.
    """
    last = key.rpartition(".")[2]
    by_last: dict[str, str] = {}
    for path in paths:
        by_last.setdefault(path.rpartition(".")[2], path)
    if last not in by_last and (owner := next((own for own in NESTED if last in NESTED[own].model_fields), None)):
        if owner == "healing":
            return f"did you mean '{HEAL}.{last}'?"
        return f"which belongs to `{owner}`, and this method takes no `{owner}`"
    close = last if last in by_last else closest(last, by_last)
    if close is None:
        return nearest(last, (path for path in paths if "." not in path))
    is_beside = by_last[close].rpartition(".")[0] == key.rpartition(".")[0]
    return f"did you mean {(close if is_beside else by_last[close])!r}?"


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
