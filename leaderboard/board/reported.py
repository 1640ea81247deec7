"""Numbers that papers report, kept as data in `results/published/*.yaml`: shown beside ours where model, task and
recipe agree, always as reported, and part of no verdict.

A file is one table: its paper and source, where in the paper it stands, how sure its numbers are (`paper`: read in the
paper's table; `abstract`: in its abstract; `code`: in the released code or its README; `secondary`: as others cite it),
which of our recipes a method of it stands for and which hub names a model has, and rows of `[before, after]` a metric,
null where none is reported. `where`, `sure` and `setting` may be columns too, and win over the file's. `kept` is the
share of the parameters that is left, in percent; `run` the recipe that computes the row, as `--recipe` reads it, at the
row's own budget. Without `run` it is the method's first recipe as it is; a method without recipes isn't measured. Rows
that share a run though they differ say so in their `setting`: "one recipe computes this and ...". `layers` says how
many a model has, where `run` names one. `means` says of which tasks and metrics a row's score is the mean; `pooled`
names those of them that are a group of tasks, asked as one, in which each document counts the same. `unasked` names
tasks that no task of ours or lm-eval's stands for, such as means over tasks that are not named: their rows are shown,
and cannot be measured. `lacking` says of a method what a recipe of ours lacks to stand for it. `chosen_on` says which
documents a paper chose its rows' settings on, where the runs have these settings and score the documents too.
`headlines` are claims without a cell: a sentence, where it stands, how sure it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, model_validator

from leaderboard.errors import LeaderboardError

_STRICT = ConfigDict(extra="forbid", frozen=True)
_FIXED = ("recipe", "model", "task")
_TEXTS = ("task", "setting", "run", "where")
_OPTIONAL = ("setting", "kept", "run", "where", "sure")
_Sure = Literal["paper", "abstract", "code", "secondary"]
SURE = {
    "paper": "read in the paper",
    "abstract": "in the paper's abstract",
    "code": "in its released code",
    "secondary": "as others cite it",
}
_OF_SURE = {"paper": "in the paper", "abstract": "abstract", "code": "released code", "secondary": "as others cite"}
"""Words of a place that say how sure its reading is."""


class Reported(NamedTuple):
    """One reported pair of scores, in the units of our metric (fractions, not percent). recipes and models: our names
    for the method and model, in small letters where models; hub_names: the models' names as the hub writes them; kept:
    the share of parameters left, a fraction; run: the recipe that computes it; identity: FILE/MODEL/TASK, with what
    else tells it from the file's other rows; layers: how many the paper's model has; asked: whether a task here asks
    what the row's does; members: task and metric of each part, where the row is a mean over tasks; chosen_on: which of
    the documents that its run scores the paper chose the row's setting on; pooled: whether each document of a mean
    counts the same, not each task; lacking: why no recipe stands for the row, where more can be said than that none
    does.
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
    where: str = ""
    kept: float | None = None
    run: str | None = None
    identity: str = ""
    layers: int | None = None
    asked: bool = True
    members: tuple[tuple[str, str], ...] = ()
    chosen_on: str = ""
    pooled: bool = False
    lacking: str = ""

    @property
    def tasks(self) -> tuple[str, ...]:
        """What has to be scored for it."""
        return (self.task,) if self.pooled else tuple(task for task, _ in self.members) or (self.task,)

    def sentence(self) -> str:
        """One line for a person."""
        setting = f" ({self.setting})" if self.setting else ""
        return f"reported by {self.source} ({SURE[self.sure]}): {self.method}, {self.metric} {self.change()}{setting}"

    def change(self) -> str:
        """Both scores as they are printed."""
        return f"{as_printed(self.before)} -> {as_printed(self.after)}"


class Headline(NamedTuple):
    """A claim that no cell of a table states."""

    paper: str
    source: str
    claim: str
    where: str
    sure: str

    def sentence(self) -> str:
        """One line for a person. Where it stands may say by itself how it was read."""
        stands = f"{self.source}; {self.where}"
        sure = "" if _OF_SURE[self.sure] in stands else f", {SURE[self.sure]}"
        return f"{self.paper} ({stands}{sure}): {self.claim}"


def as_printed(score: float) -> str:
    """A score with all digits that it was written with, and no exponent."""
    return f"{score:.10f}".rstrip("0").rstrip(".")


class _Metric(BaseModel):
    model_config = _STRICT

    better: Literal["higher", "lower"]
    unit: Literal["percent"] | None = None


class _Headline(BaseModel):
    model_config = _STRICT

    claim: str
    where: str
    sure: _Sure


class _Table(BaseModel):
    """A file, as it is written."""

    model_config = _STRICT

    paper: str
    source: str
    where: str = ""
    sure: _Sure = "secondary"
    setting: str = ""
    recipes: dict[str, tuple[str, ...]] = {}
    models: dict[str, tuple[str, ...]] = {}
    layers: dict[str, int] = {}
    means: dict[str, dict[str, str]] = {}
    pooled: tuple[str, ...] = ()
    unasked: tuple[str, ...] = ()
    lacking: dict[str, str] = {}
    chosen_on: str = ""
    metrics: dict[str, _Metric] = {}
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[Any, ...], ...] = ()
    headlines: tuple[_Headline, ...] = ()

    @model_validator(mode="after")
    def _whole(self) -> _Table:
        if not self.rows and not self.headlines:
            raise ValueError("it has neither rows nor headlines")
        needed = {*_FIXED, *self.metrics} if self.rows else set()
        if (
            not needed <= set(self.columns) <= needed | set(_OPTIONAL)
            or len(set(self.columns)) < len(self.columns)
            or (self.rows and not self.metrics)
        ):
            raise ValueError(
                f"columns must be {', '.join(_FIXED)} and the metrics, in any order; {', '.join(_OPTIONAL)} may be"
            )
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(f"rows.{number} has {len(row)} values for {len(self.columns)} columns")
            if wrong := self._wrong_in(dict(zip(self.columns, row, strict=True))):
                raise ValueError(f"rows.{number}: {wrong}")
        return self

    def _wrong_in(self, values: Mapping[str, Any]) -> str | None:
        for known, name in ((self.recipes, values["recipe"]), (self.models, values["model"])):
            if name not in known:
                return f"{name!r} is not among {', '.join(known)}"
        if (sure := values.get("sure")) is not None and sure not in SURE:
            return f"{sure!r} is not among {', '.join(SURE)}"
        if wrong := [name for name in _TEXTS if not isinstance(values.get(name), (str, type(None)))]:
            return f"{wrong[0]} must be text, not {values[wrong[0]]!r}: quote it, if it has a colon"
        kept = values.get("kept")
        if kept is not None and not (isinstance(kept, (int, float)) and 0 < kept <= 100):
            return f"kept must be a percentage, not {kept!r}"
        pairs = [values[metric] for metric in self.metrics]
        if not any(pair is not None for pair in pairs):
            return "no metric has values"
        for metric, pair in zip(self.metrics, pairs, strict=True):
            if pair is not None and not (
                isinstance(pair, list) and len(pair) == 2 and all(isinstance(value, (int, float)) for value in pair)
            ):
                return f"{metric} must be [before, after]"
        return None

    def reported(self, file: str) -> Iterator[Reported]:
        """Every pair of the table. file: its name, without the ending."""
        rows = [dict(zip(self.columns, row, strict=True)) for row in self.rows]
        for values, identity in zip(rows, _identities(file, rows), strict=True):
            for name, metric in self.metrics.items():
                if values[name] is None:
                    continue
                before, after = (value / 100 if metric.unit == "percent" else float(value) for value in values[name])
                yield Reported(
                    values["recipe"],
                    values["model"],
                    values["task"],
                    name,
                    before,
                    after,
                    str(self._of(values, "setting")),
                    self.paper,
                    self.source,
                    self._of(values, "sure"),
                    metric.better == "higher",
                    self.recipes[values["recipe"]],
                    tuple(alias.lower() for alias in self.models[values["model"]]),
                    self.models[values["model"]],
                    str(self._of(values, "where")),
                    None if values.get("kept") is None else values["kept"] / 100,
                    values.get("run"),
                    identity,
                    self.layers.get(values["model"]),
                    values["task"] not in self.unasked,
                    tuple(self.means.get(values["task"], {}).items()),
                    self.chosen_on,
                    values["task"] in self.pooled,
                    self.lacking.get(values["recipe"], ""),
                )

    def _of(self, values: Mapping[str, Any], name: str) -> str:
        return getattr(self, name) if values.get(name) is None else values[name]


def _identities(file: str, rows: list[dict[str, Any]]) -> list[str]:
    """A row's name: FILE/MODEL/TASK, longer by method, share kept and a number only where it would not be the one."""

    def named(values: Mapping[str, Any], parts: int) -> tuple[str, ...]:
        kept = "" if values.get("kept") is None else f"{values['kept']:g}"
        return (_slug(values["model"]), values["task"], _slug(values["recipe"]), kept)[:parts]

    counts = [Counter(named(values, parts) for values in rows) for parts in range(5)]
    seen: Counter[tuple[str, ...]] = Counter()
    identities = []
    for values in rows:
        parts = next((parts for parts in (2, 3, 4) if counts[parts][named(values, parts)] == 1), 4)
        name = named(values, parts)
        seen[name] += 1
        number = [str(seen[name])] if counts[parts][name] > 1 else []
        identities.append("/".join([file, *(part for part in name if part), *number]))
    return identities


def _slug(name: str) -> str:
    """A name as a part of an identity: small letters, digits, dots and dashes."""
    letters = name.lower().replace("*", " star")
    return "-".join("".join(one if one.isalnum() or one in ".+" else " " for one in letters).split())


def published_folder() -> Path:
    """Where the files lie: inside an installed package, or in the checkout."""
    inside = Path(__file__).parent.parent / "published"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "results" / "published"


@cache
def published(folder: Path | None = None) -> tuple[Reported, ...]:
    """Every reported pair of scores, in the order of files and rows. Raises LeaderboardError naming the file that is
    not as it should be.
    """
    return tuple(entry for path in _files(folder) for entry in _read(path).reported(path.stem))


@cache
def headlines(folder: Path | None = None) -> tuple[Headline, ...]:
    """Every claim without a cell, in the order of the files. Raises LeaderboardError as `published` does."""
    return tuple(
        Headline(table.paper, table.source, one.claim, one.where, one.sure)
        for table in map(_read, _files(folder))
        for one in table.headlines
    )


def _files(folder: Path | None) -> list[Path]:
    return sorted((folder or published_folder()).glob("*.yaml"))


@cache
def beside(model: str, task: str, recipe: str, metric: str) -> tuple[Reported, ...]:
    """What is reported for this model (a hub name or a folder of that name), task, recipe (its name, without settings)
    and metric.
    """
    found = _about(model, recipe)
    return tuple(entry for entry in found if entry.task == task and entry.metric == metric)


@cache
def is_claimed(model: str, task: str, recipe: str, metric: str) -> bool:
    """Whether something is reported for these, by itself or as a part of a mean."""
    return any((task, metric) in (entry.members or ((entry.task, entry.metric),)) for entry in _about(model, recipe))


@cache
def _about(model: str, recipe: str) -> tuple[Reported, ...]:
    own = model.rstrip("/").lower()
    return tuple(
        entry
        for entry in published()
        if recipe in entry.recipes and any(own in (alias, alias.rpartition("/")[2]) for alias in entry.models)
    )


@cache
def _read(path: Path) -> _Table:
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        return _Table.model_validate(data if isinstance(data, Mapping) else {})
    except (OSError, yaml.YAMLError, ValueError) as error:
        raise LeaderboardError(
            f"the published numbers in {path} cannot be read: {' '.join(str(error).split())}"
        ) from error
