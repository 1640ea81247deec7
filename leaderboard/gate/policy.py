"""The policy file: which tasks count, how much each may lose, and how sure the gate must be.

The schema is strict: an unknown key is a mistake, and all mistakes of a file are reported together, with the nearest
name offered. A policy is data, and may come from anybody: it is small, plain YAML, without aliases.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from leaderboard.errors import LeaderboardError, Unreadable
from leaderboard.readers.finding_words import trouble
from leaderboard.readers.plain_yaml import listed, load_yaml, mistyped, shown

Margin = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
"""Of scores within [0, 1]: 0.02 is two points."""
Against = Literal["base", "blessed"]
_EXAMPLES = {
    "tasks": "{int_mult: {margin: 0.01}}",
    **dict.fromkeys(("TaskPolicy", "SuitePolicy", "OverallPolicy"), "{margin: 0.01}"),
}
"""How a mapping is written, by key or schema."""
Weights = Annotated[dict[str, Annotated[float, Field(gt=0)]], Field(min_length=1)]


class PolicyError(LeaderboardError):
    """A policy that cannot be used; the message lists every mistake found in it."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Margins(_Strict):
    """Other margins for other baselines: an edit may lose more against the unedited model (base) than against an edited
    one, such as its own last version (blessed).
    """

    base: Margin | None = None
    blessed: Margin | None = None


class Requirement(_Strict):
    """What a task and a suite have in common.

    margin: in the metric's own units; where none is given, that of critical or of other tasks. floor: the worst score
    allowed, whatever the baseline had (the highest, where lower is better). required: whether it must be there.
    """

    critical: bool = False
    margin: Margin | Margins | None = None
    floor: float | None = None
    required: bool = True


class TaskPolicy(Requirement):
    """One task. metric: another than the task's primary one, any that the run has, with `name,filter` where
    there are several filters.
    """

    metric: Annotated[str, Field(min_length=1)] | None = None


class SuitePolicy(Requirement):
    """A weighted mean of tasks whose scores lie within [0, 1]."""

    weights: Weights


def _kind_of_weights(value: object) -> str:
    return "each" if isinstance(value, dict) else "rule"


class OverallPolicy(_Strict):
    """One margin for the weighted mean of the tasks, which then decides beside what must not happen to any of them.

    margin: of scores within [0, 1]. weights: `equal` or `by_documents`, over the required tasks that the file
    names, or a weight for each task. floor: the worst mean score allowed.
    """

    margin: Share | Margins
    weights: Annotated[
        Annotated[Literal["equal", "by_documents"], Tag("rule")] | Annotated[Weights, Tag("each")],
        Discriminator(_kind_of_weights),
    ] = "equal"
    floor: float | None = None


class Policy(_Strict):
    """The whole file.

    alpha: the level of every one-sided test. margin, critical_margin: for scores within [0, 1], and relative or scaled
    to the spread for others, as on the board. others: whether tasks that the file does not name are gated with the
    margin of non-critical ones. overall: one margin over the tasks; without it every row decides. allow_unpaired:
    whether tasks without samples are decided by the two scores alone. different_hardware: whether runs on two GPUs, or
    by two engines, are incomparable where `lm_eval noise` has not measured both, or compared with a warning. No key is
    about candidates that collapsed (`compare.collapse`): they always fail.
    """

    alpha: Annotated[float, Field(gt=0, le=0.2)] = 0.05
    margin: Share = 0.02
    critical_margin: Share = 0.01
    tasks: dict[str, TaskPolicy] = Field(default_factory=dict)
    suites: dict[str, SuitePolicy] = Field(default_factory=dict)
    others: Literal["gate", "ignore"] = "gate"
    allow_unpaired: bool = False
    different_hardware: Literal["refuse", "warn"] = "refuse"
    overall: OverallPolicy | None = None

    @property
    def averaged(self) -> tuple[str, ...]:
        """The tasks of the overall mean, known before any run; none without one."""
        if self.overall is None:
            return ()
        if isinstance(self.overall.weights, dict):
            return tuple(self.overall.weights)
        return tuple(name for name, entry in self.tasks.items() if entry.required)

    def own_margin(self, entry: Requirement, against: Against) -> float | None:
        """The margin that the file names for this task or suite and baseline; None where the default applies."""
        if isinstance(entry.margin, Margins):
            return entry.margin.base if against == "base" else entry.margin.blessed
        return entry.margin

    def default_margin(self, entry: Requirement) -> float:
        """The margin of tasks that name none."""
        return self.critical_margin if entry.critical else self.margin


def load_policy(path: Path) -> Policy:
    """Read a policy file. Raises `PolicyError` naming every mistake."""
    try:
        data = load_yaml(path, "policy", hint="give the path of a YAML file with --policy")
    except Unreadable as error:
        raise PolicyError(str(error)) from None
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise PolicyError(
            f"policy {path} must hold a mapping with keys such as tasks and margin, not {type(data).__name__}"
        )
    return policy_from(data, str(path))


def policy_from(data: Mapping[str, Any], origin: str) -> Policy:
    """Check plain data against the schema. Raises `PolicyError` with all mistakes at once."""
    tasks = data.get("tasks")
    if isinstance(tasks, dict):  # `int_mult:` with nothing after it names a task with nothing special
        data = {**data, "tasks": {name: {} if entry is None else entry for name, entry in tasks.items()}}
    try:
        policy = Policy.model_validate(data)
    except ValidationError as error:
        raise _refusal(origin, filter(None, map(_sentence, error.errors(include_url=False)))) from None
    mistakes = [f"{key}: {trouble}" for key, trouble in mistyped(data, policy)]
    mistakes += [f"suites.{name}: a task has this name too" for name in policy.suites if name in policy.tasks]
    mistakes += _mistakes_of_overall(policy)
    if mistakes:
        raise _refusal(origin, mistakes)
    return policy


def _refusal(origin: str, mistakes: Iterable[str]) -> PolicyError:
    return PolicyError(f"policy {origin} cannot be used:{listed(mistakes)}")


def _sentence(item: Mapping[str, Any]) -> str | None:
    """One of pydantic's findings as a sentence that names the key and the trouble; None where another says it: a margin
    is tried as a number and as a mapping.
    """
    # which of a union's branches, or that a key is meant: no key of the file
    inner = {"Margins", "float", "constrained-float", "[key]", "rule", "each"}
    place = [str(part) for part in item["loc"]]
    branch = "Margins" in place
    key = ".".join(part for part in place if part not in inner and not part.startswith("function-"))
    if item["type"] == "extra_forbidden":
        known = _known_keys(place, branch)
        close = difflib.get_close_matches(place[-1], known, n=1, cutoff=0.5)
        return f"{shown(key)}: unknown key, " + (
            f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
        )
    if item["type"] == "missing":
        return f"{key}: is missing"
    value = item.get("input")
    numeric = isinstance(value, (int, float))
    if branch and item["type"] == "model_type":
        return None if numeric else f"{key}: should be a number, or a mapping with base and blessed"
    if not numeric and place[-1] in ("float", "constrained-float"):
        return None
    return f"{shown(key)}: {trouble(item, _EXAMPLES).removeprefix('input ')}"


def _mistakes_of_overall(policy: Policy) -> list[str]:
    if policy.overall is None:
        return []
    found = []
    if not policy.averaged:
        found.append("overall: averages no task; name the tasks under tasks, or give overall.weights for each")
    margin = policy.overall.margin
    if isinstance(margin, Margins) and None in (margin.base, margin.blessed):
        found.append("overall.margin: should be a number, or have both base and blessed")
    return found


def _known_keys(place: list[str], branch: bool) -> list[str]:
    model: type[BaseModel] = Policy
    if branch:
        model = Margins
    elif place[0] == "overall" and len(place) > 1:
        model = OverallPolicy
    elif len(place) > 2:
        model = TaskPolicy if place[0] == "tasks" else SuitePolicy
    return list(model.model_fields)
