"""Numbers that papers report, kept as data in `results/published/*.yaml`: shown beside ours where model, task and
recipe agree, always as reported, and part of no verdict.

A file is one table: its paper and source, how sure its numbers are (`paper`: stated there; `code`: in the released
code; `secondary`: as others cite it), which of our recipes a method of it stands for and which hub names a model has,
and rows of `[before, after]` a metric.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from leaderboard.errors import LeaderboardError

_STRICT = ConfigDict(extra="forbid", frozen=True)
_FIXED = ("recipe", "model", "task", "setting")
_SURE = {"paper": "stated in the paper", "code": "from its released code", "secondary": "as others cite it"}


class Reported(NamedTuple):
    """One reported pair of scores, in the units of our metric (fractions, not percent). recipes and models: our names
    for the method and model, in small letters where models; hub_names: the models' names as the hub writes them.
    """

    method: str
    model: str
    task: str
    metric: str
    before: float
    after: float
    setting: str
    paper: str
    source: str
    sure: str
    higher_is_better: bool
    recipes: tuple[str, ...]
    models: tuple[str, ...]
    hub_names: tuple[str, ...] = ()

    def sentence(self) -> str:
        """One line for a person."""
        return (
            f"reported by {self.source} ({_SURE[self.sure]}): {self.method}, {self.metric} {self.before:.4g} ->"
            f" {self.after:.4g} ({self.setting})"
        )


class _Metric(BaseModel):
    model_config = _STRICT

    better: Literal["higher", "lower"]
    unit: Literal["percent"] | None = None


class _Table(BaseModel):
    """A file, as it is written."""

    model_config = _STRICT

    paper: str
    source: str
    sure: Literal["paper", "code", "secondary"]
    recipes: dict[str, tuple[str, ...]]
    models: dict[str, tuple[str, ...]]
    metrics: Annotated[dict[str, _Metric], Field(min_length=1)]
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    @model_validator(mode="after")
    def _whole(self) -> _Table:
        if sorted(self.columns) != sorted([*_FIXED, *self.metrics]):
            raise ValueError(f"columns must be {', '.join(_FIXED)} and the metrics, in any order")
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(f"rows.{number} has {len(row)} values for {len(self.columns)} columns")
            values = dict(zip(self.columns, row, strict=True))
            for known, name in ((self.recipes, values["recipe"]), (self.models, values["model"])):
                if name not in known:
                    raise ValueError(f"rows.{number}: {name!r} is not among {', '.join(known)}")
            for metric in self.metrics:
                pair = values[metric]
                if not (
                    isinstance(pair, list) and len(pair) == 2 and all(isinstance(value, (int, float)) for value in pair)
                ):
                    raise ValueError(f"rows.{number}: {metric} must be [before, after]")
        return self

    def reported(self) -> Iterator[Reported]:
        for row in self.rows:
            values = dict(zip(self.columns, row, strict=True))
            for name, metric in self.metrics.items():
                before, after = (value / 100 if metric.unit == "percent" else float(value) for value in values[name])
                yield Reported(
                    values["recipe"],
                    values["model"],
                    values["task"],
                    name,
                    before,
                    after,
                    str(values["setting"]),
                    self.paper,
                    self.source,
                    self.sure,
                    metric.better == "higher",
                    self.recipes[values["recipe"]],
                    tuple(alias.lower() for alias in self.models[values["model"]]),
                    self.models[values["model"]],
                )


def published_folder() -> Path:
    """Where the files lie: inside an installed package, or in the checkout."""
    inside = Path(__file__).parent.parent / "published"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "results" / "published"


@cache
def published(folder: Path | None = None) -> tuple[Reported, ...]:
    """Every reported pair of scores, in the order of files and rows. Raises LeaderboardError naming the file that is
    not as it should be.
    """
    return tuple(
        entry for path in sorted((folder or published_folder()).glob("*.yaml")) for entry in _read(path).reported()
    )


@cache
def beside(model: str, task: str, recipe: str, metric: str) -> tuple[Reported, ...]:
    """What is reported for this model (a hub name or a folder of that name), task, recipe (its name, without settings)
    and metric.
    """
    own = model.rstrip("/").lower()
    return tuple(
        entry
        for entry in published()
        if entry.task == task
        and entry.metric == metric
        and recipe in entry.recipes
        and any(own in (alias, alias.rpartition("/")[2]) for alias in entry.models)
    )


def _read(path: Path) -> _Table:
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        return _Table.model_validate(data if isinstance(data, Mapping) else {})
    except (OSError, yaml.YAMLError, ValueError) as error:
        raise LeaderboardError(
            f"the published numbers in {path} cannot be read: {' '.join(str(error).split())}"
        ) from error
