"""The sweep file: which models, tasks, recipes and controls, and how their cells are cut and run.

Anybody may have written it: it is small, plain YAML without aliases, and every mistake in it is told at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from harness_ext.editing.controls import check_control
from harness_ext.errors import UserError, nearest
from harness_ext.sweeps.engines.slurm_options import slurm_mistakes
from harness_ext.sweeps.recipe_lists import multiplied, readable, recipe_mistakes
from harness_ext.sweeps.run_flags import flag_mistakes
from harness_ext.sweeps.swept_models import model_mistakes, models_in
from harness_ext.sweeps.told_secrets import secret_mistakes
from leaderboard.errors import Unreadable
from leaderboard.readers.finding_words import ANY, trouble
from leaderboard.readers.plain_yaml import listed, load_yaml, shown
from leaderboard.readers.secrets import redacted, secret_values

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TIME = re.compile(r"(\d{1,6})(s|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_MOST = 10_000
"""Models, or recipes, of one sweep."""
BASELINE = "baseline"
_EXAMPLES = {
    "models": f"[{{pretrained: {ANY}}}]",
    "SweptModel": f"{{pretrained: {ANY}}}",
    "exclude": f"[{{model: '*70B', recipe: {ANY}}}]",
    "Exclusion": f"{{model: '*70B', recipe: {ANY}}}",
    "Cutting": "{timeout: 4h}",
    "run": "{limit: 100}",
    "slurm": "{partition: gpu}",
    "model_args": "{dtype: float32}",
}
"""How what is no bare value is written, by key or schema."""

Text = Annotated[str, Field(min_length=1, max_length=10_000)]
Count = Annotated[int, Field(strict=True, ge=1, le=1_000_000)]


class _StrictPart(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SweptModel(_StrictPart):
    """A model. model: lm-eval's backend. gpus: how many a cell of it needs. model_args: further ones."""

    pretrained: Text
    model: Text = "hf"
    dtype: Text | None = None
    revision: Text | None = None
    gpus: Annotated[int, Field(strict=True, ge=0, le=1024)] = 1
    model_args: dict[str, Any] = Field(default_factory=dict)

    @property
    def arguments(self) -> dict[str, Any]:
        """All of `--model_args`."""
        own = {"pretrained": self.pretrained, "dtype": self.dtype, "revision": self.revision}
        return {**{key: value for key, value in own.items() if value is not None}, **self.model_args}


class Exclusion(_StrictPart):
    """Pairs to leave out: patterns (`*70B`) of a model's name and of a recipe as it is written or by its name."""

    model: Text = "*"
    recipe: Text = "*"

    def fits(self, model: str, recipe: str) -> bool:
        """Whether a pair is left out."""
        names = (recipe, recipe.partition(":")[0])
        return fnmatchcase(model, self.model) and any(fnmatchcase(name, self.recipe) for name in names)


class Cutting(_StrictPart):
    """How cells are cut and run. timeout: `90m`, `4h`. retries: after failures of a machine."""

    recipes_per_cell: Count = 4
    timeout: str | None = None
    retries: Annotated[int, Field(strict=True, ge=0, le=100)] = 2

    @field_validator("timeout", mode="before")
    @classmethod
    def _is_a_time(cls, value: object) -> object:
        if value is not None and not (isinstance(value, str) and _TIME.fullmatch(value) and value[0] != "0"):
            raise ValueError("write a number and s, m, h or d, such as 90m or 4h")
        return value

    @property
    def timeout_s(self) -> float | None:
        """Seconds until a cell is ended; None for no end."""
        if self.timeout is None:
            return None
        number, unit = _TIME.fullmatch(self.timeout).groups()  # type: ignore[union-attr]
        return float(int(number) * _SECONDS[unit])


class SweepFile(_StrictPart):
    """What a sweep file says. run: flags of `lm_eval run` without their dashes."""

    name: str
    output_path: Text = "results"
    models: Annotated[list[SweptModel], Field(min_length=1, max_length=_MOST)]
    tasks: Annotated[list[Text], Field(min_length=1, max_length=_MOST)]
    recipes: Annotated[list[Text], Field(min_length=1, max_length=_MOST)]
    controls: Annotated[list[Text], Field(max_length=_MOST)] = []
    exclude: Annotated[list[Exclusion], Field(max_length=_MOST)] = []
    run: dict[str, Any] = Field(default_factory=dict)
    cells: Cutting = Cutting()
    slurm: dict[str, Any] = Field(default_factory=dict)

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        if not _NAME.fullmatch(value):
            raise ValueError("write at most 64 letters, digits, dots, dashes and underscores, a letter or digit first")
        return value

    def recipes_of(self, model: SweptModel) -> list[str]:
        """The recipes of a model, lists multiplied, without what is excluded and without the baseline."""
        return [
            recipe
            for recipe in self.all_recipes
            if not any(entry.fits(model.pretrained, recipe) for entry in self.exclude)
        ]

    @property
    def all_recipes(self) -> list[str]:
        """The recipes with their lists multiplied, each once."""
        return list(dict.fromkeys(one for recipe in self.recipes for one in multiplied(recipe) if one != BASELINE))


Check = Callable[[Mapping[str, Any]], Iterable[str]]
"""Further sentences about the plain data of a file, each beginning with its key."""


def read_sweep(path: Path, *checks: Check) -> SweepFile:
    """Read a sweep file. Raises UserError naming every mistake in it, those that `checks` find among them."""
    try:
        data = load_yaml(path, "sweep", hint="name the sweep's YAML file")
    except Unreadable as error:
        raise UserError(str(error)) from None
    return sweep_from(data, str(path), *checks)


def sweep_from(data: Any, origin: str, *checks: Check) -> SweepFile:
    """Check plain data. Raises UserError naming every mistake in it, those that `checks` find among them."""
    if not isinstance(data, Mapping):
        raise UserError(f"sweep {origin} must be a mapping with name, models, tasks and recipes")
    mistakes: list[str] = []
    sweep: SweepFile | None = None
    try:
        sweep = SweepFile.model_validate(dict(data))
    except ValidationError as error:
        mistakes += [_sentence(item) for item in error.errors(include_url=False)]
    mistakes += _of_values(data)
    for check in checks:
        mistakes += check(data)
    if mistakes or sweep is None:
        told = redacted(listed(mistakes, most=len(mistakes)), secret_values(data))  # what was found is repeated
        raise UserError(f"sweep {origin} cannot be used:{told}")
    return sweep


def _of_values(data: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong within values, whatever else is wrong with the file."""
    yield from recipe_mistakes(_texts(data, "recipes"))
    for place, control in _texts(data, "controls"):
        try:
            check_control(control)
        except UserError as error:
            yield f"{place}: {error}"
    for key in ("tasks", "controls"):
        yield from _repeated(_texts(data, key))
    if isinstance(run := data.get("run"), Mapping):
        yield from (f"run.{sentence}" for sentence in flag_mistakes(run))
    if isinstance(slurm := data.get("slurm"), Mapping):
        yield from slurm_mistakes(slurm)
    yield from model_mistakes(data)
    yield from secret_mistakes(data)
    yield from _of_pairs(data)


def _of_pairs(data: Mapping[str, Any]) -> Iterator[str]:
    """What only models and recipes together show, as far as they can be read."""
    names = [str(model.get("pretrained")) for _, model in models_in(data)]
    recipes = [one for _, text in _texts(data, "recipes") for one in readable(text) if one != BASELINE]
    entries = data.get("exclude")
    for number, raw in enumerate(entries if isinstance(entries, list) else ()):
        try:
            entry = Exclusion.model_validate(raw)
        except ValidationError:
            continue
        if not any(entry.fits(name, recipe) for name in names for recipe in recipes):
            yield f"exclude.{number}: fits no pair of a model and a recipe, so that it would exclude nothing"
    if not recipes and data.get("controls"):
        yield "controls: take the budget of a recipe, and `recipes` names none that edits"


def _texts(data: Mapping[str, Any], key: str) -> Iterator[tuple[str, str]]:
    values = data.get(key)
    for number, value in enumerate(values if isinstance(values, list) else ()):
        if isinstance(value, str) and value:
            yield f"{key}.{number}", value


def _repeated(texts: Iterable[tuple[str, str]]) -> Iterator[str]:
    seen: dict[str, str] = {}
    for place, text in texts:
        for one in (part.strip() for part in text.split(",")):
            if one in seen:
                yield f"{place}: {one} stands in {seen[one]} already: leave one of them out"
            seen.setdefault(one, place)


def _sentence(item: Mapping[str, Any]) -> str:
    """One of pydantic's findings: the key, the trouble, and the nearest key that there is."""
    place = [str(part) for part in item["loc"]]
    key = shown(".".join(place))
    if item["type"] == "extra_forbidden":
        return f"{key}: unknown key; {nearest(place[-1], _known(place))}"
    if item["type"] == "missing":
        return f"{key}: is missing"
    return f"{key}: {trouble(item, _EXAMPLES)}"


def _known(place: list[str]) -> Iterable[str]:
    inner: dict[str, type[BaseModel]] = {"models": SweptModel, "exclude": Exclusion, "cells": Cutting}
    return (inner.get(place[0], SweepFile) if len(place) > 1 else SweepFile).model_fields
