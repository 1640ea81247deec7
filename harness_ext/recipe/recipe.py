"""Recipes: which matrices are edited, by which method, keeping how much.

A recipe comes from a shipped file (`laser`), a path (`mine.yaml`), or either with changes
(`laser:layers=[-1],keep.rank=4`). The schema is strict: an unknown key is a mistake, and all
mistakes of a recipe are reported together, with the nearest name offered. A recipe is data: nothing in it is ever
executed.

`recipe_id` hashes what a recipe does (the steps, resolved to the last default), not what it is called.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, get_args

from pydantic import BaseModel, Field, ValidationError, model_validator

from harness_ext.errors import RecipeError, nearest
from harness_ext.methods.search_registry import registered_searches
from harness_ext.recipe.mistakes import sentences
from harness_ext.recipe.other_names import called_here
from harness_ext.recipe.overrides import (
    parse_changes,
    split_outside_brackets,
    split_specification,
    with_changes,
)
from harness_ext.recipe.schema import Step, described, known_methods, step_model
from harness_ext.recipe.settings import EVALUATED, HEAL, STRICT, Heal
from harness_ext.recipe.step_rules import not_counted, not_factored, not_healed
from leaderboard.errors import Unreadable
from leaderboard.readers.plain_yaml import WIDEST_PATH, listed, load_yaml, mistyped, shown

if TYPE_CHECKING:
    from typing_extensions import Self

BASELINE = "baseline"
SHUFFLED_LABELS = "shuffled-labels"
"""A control that is no recipe of its own."""
_UNEDITED = frozenset({BASELINE, "unedited", "plain", "lm_eval", "lm-eval"})
"""Names that readers of a board take for the model as it is."""
IDENTITY = "identity"
SHIPPED = Path(__file__).parent.parent / "recipes"
LARGEST_FILE = 2**23
"""A recipe that a search found lists the documents that it was chosen on."""
MOST_STEPS = 5_000
_LONGEST = 10_000
Hashes = tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")], ...]
Wordings = dict[str, tuple[Annotated[str, Field(pattern=r"^([0-9a-f]{16}( [0-9a-f]{16})*)?$")], ...]]
Group = Literal["", "truncation", "calibrated", "components", "search", "training", "controls", "yardsticks"]
GROUPS: tuple[str, ...] = get_args(Group)
"""The headings of `lm_eval recipes`, in order; a recipe of a user's own may have none, which is the empty one."""


class _Header(BaseModel):
    """The outermost keys of a recipe file."""

    model_config = STRICT

    name: str = Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    summary: str = Field("", max_length=_LONGEST)
    group: Group = ""
    caveats: str = Field("", max_length=_LONGEST)
    source: str = Field("", max_length=_LONGEST)
    steps: list[dict[str, Any]] = Field(max_length=MOST_STEPS)
    heal: Heal | None = None
    chosen_on: Hashes = ()
    wordings: Wordings = Field(default_factory=dict)


_YOUNGER = (("factored", False), ("share_of", "each"), ("output", "tokens"), ("diagonal_in", False))
"""Keys of steps that older recipes do not have, with their defaults."""

FACTORED = "factored"
_FACTORED_REVISION = 2
"""Of `factored: true`, which gave other ranks before they were aligned, and factors wherever they were smaller."""


class Recipe(BaseModel):
    """A whole recipe, every default filled in. `label` is what the user typed for it.

    group: the heading under which `lm_eval recipes` lists it. caveats: where it departs from its source, in sentences.
    chosen_on: hashes (lm-eval's, and digests of what is asked) of the documents on which a search chose these steps;
    where a task would score one of them, it is out of the score of every variant. wordings: by task, what tells each of
    these documents however it is worded, as hashes; a run that scores them in other words says so.
    control_of_revisions: of a control, the `revisions` of the recipe whose control it is.
    """

    model_config = STRICT

    name: str
    label: str
    summary: str
    source: str
    steps: tuple[Step, ...]
    group: Group = ""
    caveats: str = ""
    control: str | None = None
    control_of: str | None = None
    control_of_revisions: dict[str, int] = Field(default_factory=dict)
    chosen_on: Hashes = ()
    wordings: Wordings = Field(default_factory=dict)

    @model_validator(mode="after")
    def _is_what_it_is_called(self) -> Self:
        if (problem := _misnamed(self.name, self.steps)) is not None:
            raise ValueError(problem)
        return self

    @property
    def is_baseline(self) -> bool:
        """Whether this is the model as it is, with which others are compared: by name, and in fact."""
        return self.name == BASELINE and not self.steps

    def place(self, number: int) -> str:
        """What opens a message about one of its steps."""
        return f"recipe {self.label!r}, step {number}: "

    @property
    def recipe_id(self) -> str:
        """SHA-256 over the resolved steps; equal for recipes that do the same under other names."""
        # A key that is younger than the rest is left out at its default, so that recipes without it keep their id.
        steps = [
            {key: value for key, value in step.items() if (key, value) not in _YOUNGER}
            for step in self.resolved()["steps"]
        ]
        return hashlib.sha256(json.dumps(steps, sort_keys=True).encode()).hexdigest()

    @property
    def revisions(self) -> dict[str, int]:
        """The revision of each of its methods and searches whose revision is above 1, by name; of `factored: true` as
        well, which decides about ranks.
        """
        revised = {step.method: described(step.method).revision for step in self.steps}
        if any(step.factored is True for step in self.steps):
            revised[FACTORED] = _FACTORED_REVISION
        return {name: revision for name, revision in sorted(revised.items()) if revision > 1}

    @property
    def fingerprint(self) -> str:
        """What a stored figure is of: the settings, and the revisions by which they mean these weights."""
        return " ".join([self.recipe_id, *(f"{name}={revision}" for name, revision in self.revisions.items())])

    def resolved(self) -> dict[str, Any]:
        """The recipe as plain data, every default written out: what a file that reproduces it holds."""
        steps = [step.model_dump(mode="json", exclude_none=True) for step in self.steps]
        optional = {"group": self.group, "caveats": self.caveats}
        return (
            {"name": self.name, "summary": self.summary}
            | {key: value for key, value in optional.items() if value}
            | {"source": self.source, "steps": steps}
            | ({"chosen_on": list(self.chosen_on)} if self.chosen_on else {})
            | ({"wordings": {task: list(found) for task, found in self.wordings.items()}} if self.wordings else {})
        )

    def for_tasks(self, fit: Callable[[str], Sequence[str]]) -> Recipe:
        """The recipe with `task: evaluated` replaced by the tasks that fit, as a function of the split."""

        def resolve(step: Step) -> Step:
            calibration = step.calibration
            if calibration is None or calibration.task != EVALUATED:
                return step
            return step.model_copy(
                update={"calibration": calibration.model_copy(update={"task": tuple(fit(calibration.split))})}
            )

        return self.model_copy(update={"steps": tuple(resolve(step) for step in self.steps)})


def shipped_names() -> list[str]:
    """The names of the recipes that come with the package, in order."""
    return list(_shipped_names())


@lru_cache(maxsize=1)
def _shipped_names() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in SHIPPED.glob("*.yaml")))


class RecipeHeading(NamedTuple):
    """What a list says of a recipe."""

    name: str
    summary: str
    group: str


def shipped_headings() -> list[RecipeHeading]:
    """The recipes that come with the package, without reading their steps, which would load every method and search."""
    files = map(_shipped, _shipped_names())
    return [RecipeHeading(data["name"], data.get("summary", ""), data.get("group", "")) for data in files]


def parse_recipe(specification: str) -> Recipe:
    """Read `NAME`, `NAME:key=value,...`, `FILE.yaml` or `FILE.yaml:key=value,...`.

    Nested keys have dots (`calibration.samples=80`); a bare key is set in every step whose method knows it,
    `steps.0.key` in one. Values are YAML.

    Raises RecipeError naming every mistake.
    """
    refuse_several(specification)
    source, colon, changes = split_specification(specification)
    if colon and not changes.strip():
        raise RecipeError(
            f"recipe {shown(specification, WIDEST_PATH)!r}: nothing follows the colon: leave it out, or write"
            " NAME:key=value"
        )
    data = _read(source)
    if changes:
        data = with_changes(data, parse_changes(specification, changes), specification)
    label = (
        specification
        if not source.endswith((".yaml", ".yml"))
        else str(data.get("name", source)) + (f":{changes}" if changes else "")
    )
    return recipe_from(data, origin=specification, label=label)


def parse_recipes(specifications: Sequence[str | Recipe]) -> list[Recipe]:
    """Several of them; what is a recipe already stays as it is. Raises RecipeError with the mistakes of all at once."""
    recipes: list[Recipe] = []
    mistakes: list[str] = []
    for specification in specifications:
        try:
            recipes.append(specification if isinstance(specification, Recipe) else parse_recipe(specification))
        except RecipeError as error:
            mistakes.append(str(error))
    if mistakes:
        raise RecipeError("\n".join(mistakes))
    return recipes


def recipe_from(data: Mapping[str, Any], *, origin: str, label: str | None = None) -> Recipe:
    """Check plain data against the schema. Raises RecipeError with all mistakes at once."""
    mistakes: list[str] = []
    try:
        header = _Header.model_validate(dict(data))
    except ValidationError as error:
        mistakes += sentences(error, "", _Header)
        header = None
    if header is not None and header.heal is not None:
        mistakes += [f"{key}: {trouble}" for key, trouble in mistyped(data["heal"], header.heal, HEAL)]
    given = data.get("steps")
    steps = (
        [_parse_step(step, f"steps.{index}.", mistakes) for index, step in enumerate(given)]
        if isinstance(given, list) and len(given) <= MOST_STEPS
        else []
    )
    if mistakes or header is None:
        raise RecipeError(f"recipe {shown(origin, WIDEST_PATH)!r} cannot be used:{listed(mistakes)}")
    steps_read = tuple(step for step in steps if step is not None)
    if header.heal is not None:
        steps_read += (step_model(HEAL).model_validate(header.heal.step(steps_read)),)
    if (problem := not_healed(steps_read)) is not None:
        raise RecipeError(f"recipe {shown(origin, WIDEST_PATH)!r} cannot be used:\n  - {HEAL}: {problem}")
    if (problem := not_factored(steps_read)) is not None:
        raise RecipeError(f"recipe {shown(origin, WIDEST_PATH)!r} cannot be used:\n  - factored: {problem}")
    if (problem := not_counted(steps_read)) is not None:
        raise RecipeError(f"recipe {shown(origin, WIDEST_PATH)!r} cannot be used:\n  - keep.format: {problem}")
    if (problem := _misnamed(header.name, steps_read)) is not None:
        raise RecipeError(f"recipe {shown(origin, WIDEST_PATH)!r} cannot be used:\n  - name: {problem}")
    return Recipe(
        name=header.name,
        label=label or header.name,
        summary=header.summary,
        group=header.group,
        caveats=header.caveats,
        source=header.source,
        steps=steps_read,
        chosen_on=header.chosen_on,
        wordings=header.wordings,
    )


def _misnamed(name: str, steps: Sequence[Step]) -> str | None:
    """Why a recipe of these steps may not have this name; None where it may."""
    if steps and name.lower() in _UNEDITED:
        return f"{name!r} means the model as it is, and this recipe has steps: give it another name"
    if name.lower() == IDENTITY and any(step.method != IDENTITY for step in steps):
        return f"{name!r} means a recipe that changes nothing, and this one's steps do: give it another name"
    return None


def refuse_several(specification: str, flag: str = "--recipe") -> None:
    """Raise RecipeError where a specification names several recipes at once, each with its own changes: a flag names
    one.
    """
    names: list[str] = []
    text = specification.strip()
    for part in split_outside_brackets(text[1:-1] if text[:1] == "[" else text, ", ;+|\t\n"):
        head = part.partition(":")[0]
        is_change = "=" in head  # whose value may be a file's name
        if head in (*shipped_names(), SHUFFLED_LABELS) or (head.endswith((".yaml", ".yml")) and not is_change):
            names.append(part)
        elif names:
            names[-1] += f"{',' if ':' in names[-1] else ':'}{part}"
    if len(names) > 1 and not Path(specification.partition(":")[0]).exists():
        repeated = " ".join(f"{flag} {name}" for name in names)
        raise RecipeError(f"{shown(text, WIDEST_PATH)!r} names {len(names)} recipes: repeat the flag, {repeated}")


def _read(source: str) -> dict[str, Any]:
    is_file = source.endswith((".yaml", ".yml"))
    if source == SHUFFLED_LABELS:
        raise RecipeError(f"{source!r} is a control, and no recipe: --control {source}")
    if not is_file and source not in shipped_names():
        here = called_here(source)
        offered = nearest(source, shipped_names()) if here is None else f"that method is here as {here}"
        raise RecipeError(
            f"unknown recipe {shown(source, WIDEST_PATH)!r}: {offered} (`lm_eval recipes` lists them; a file's name"
            " ends in .yaml)"
        )
    try:
        if not is_file:
            return deepcopy(_shipped(source))
        data = load_yaml(Path(source).expanduser(), "recipe file", hint=_instead_of(source), largest=LARGEST_FILE)
    except Unreadable as error:
        raise RecipeError(str(error)) from None
    except RuntimeError as error:  # `~NAME` of nobody
        raise RecipeError(f"recipe file {source} cannot be read: {error}") from None
    if data is None:
        raise RecipeError(f"recipe file {source} is empty: it must hold a mapping with name and steps")
    if not isinstance(data, dict):
        raise RecipeError(f"recipe file {source} must hold a mapping with name and steps, not {type(data).__name__}")
    return data


@lru_cache(maxsize=64)
def _shipped(name: str) -> dict[str, Any]:
    """What the file of a shipped recipe says. A sweep asks for one a thousand times, with other changes each."""
    data: dict[str, Any] = load_yaml(SHIPPED / f"{name}.yaml", "recipe file")
    return data


def _instead_of(file: str) -> str:
    """What to give instead of a file that is not there."""
    name = Path(file).stem
    if name in shipped_names():
        return f"the recipe that comes with this is called {name!r}, without .yaml"
    return "give the path of a YAML file, or a name from `lm_eval recipes`"


def _parse_step(step: Any, where: str, mistakes: list[str]) -> Step | None:
    if not isinstance(step, dict):
        mistakes.append(f"{where[:-1]}: a step is a mapping with at least method and matrices")
        return None
    methods = known_methods()
    name = step.get("method")
    if name not in methods:
        problem = (
            f"unknown method {shown(name)!r}, {nearest(str(name), methods)}"
            if name is not None
            else f"is missing; known: {', '.join(methods)}"
        )
        mistakes.append(f"{where}method: {problem}")
        return None
    model = step_model(name)
    try:
        read = model.model_validate(step)
    except ValidationError as error:
        mistakes += sentences(error, where, model)
        return None
    mistakes += [f"{where}{key}: {trouble}" for key, trouble in mistyped(step, read)]
    if read.is_search and (contradiction := registered_searches()[read.method].contradiction(read.parameters)):
        mistakes.append(f"{where}{contradiction}")
    return read
