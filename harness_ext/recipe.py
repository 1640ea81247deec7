"""Recipes: which matrices are edited, by which method, keeping how much.

A recipe comes from a shipped file (`laser`), a path (`mine.yaml`), or either with changes (`laser:layers=[-1],keep.rank=4`). The schema is strict: an unknown key is a mistake, and all
mistakes of a recipe are reported together, with the nearest name offered. A recipe is data: nothing in it is ever executed.

`recipe_id` hashes what a recipe does (the steps, resolved to the last default), not what it is called.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, field_validator

from harness_ext.errors import UserError
from harness_ext.keep import Keep
from harness_ext.methods import Method, registered_methods
from harness_ext.search import Searcher, registered_searches

SHIPPED = Path(__file__).parent / "recipes"
EVALUATED = "evaluated"
"""Stands, as a calibration task, for every evaluated task that has labelled training documents."""

_STRICT = ConfigDict(extra="forbid", frozen=True)


class RecipeError(UserError):
    """A recipe that cannot be used; the message lists every mistake found in it."""


class Calibration(BaseModel):
    """Where a method's evidence comes from: labelled documents of a task, never the documents that are scored.

    task: one task or several, or `evaluated`. split: `test` takes documents out of the scored split, and so out of the score of every variant, for tasks that have no other. samples: documents in all, drawn evenly from the tasks by `seed`. batch_size: documents in one forward pass.
    shuffled_labels: the answers change places among the documents of a task; a control, what is learned from them is not about the questions.
    """

    model_config = _STRICT

    task: str | tuple[str, ...] = EVALUATED
    split: Literal["train", "validation", "test"] = "train"
    samples: Annotated[int, Field(ge=1)] = 160
    seed: int = 0
    batch_size: Annotated[int, Field(ge=1)] = 16
    shuffled_labels: bool = False

    @property
    def tasks(self) -> tuple[str, ...]:
        """The named tasks as a tuple."""
        return (self.task,) if isinstance(self.task, str) else self.task


class Search(BaseModel):
    """How edits are tried out on the calibration documents. rounds: at most; each renews the gradients. at_once: candidates of the first trial of a round, halved while the loss does not fall, and at last tried one by one."""

    model_config = _STRICT

    rounds: Annotated[int, Field(ge=1)] = 8
    at_once: Annotated[int, Field(ge=1)] = 16


class Training(BaseModel):
    """How basis selection trains on the calibration documents; names after arXiv:2405.15877, values ours. One optimiser step a batch of `calibration.batch_size` documents.

    keep_ratio: of each matrix's sum of |s|, what its bases have left after pruning. pruning_times: rounds in which that falls there. keeping_epochs, pruning_epochs, post_epochs: before pruning, after
    each round, and of the two factors at last. added_rank: new bases a matrix. loss: `text` for all tokens of prompt and right answer (language modelling), `answer` for those of the answer.
    """

    model_config = _STRICT

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


class Step(BaseModel):
    """One method on a set of matrices. Subclassed for each method, whose own parameters become fields.

    factored: whether the model computes with two thin layers where they are smaller than the matrix; its outputs are those of the dense product within rounding, in less time and memory.
    """

    model_config = _STRICT

    method: str
    matrices: tuple[str, ...] = Field(min_length=1)
    layers: tuple[int | str, ...] | None = None
    per_head: bool = False
    seed: int = 0
    factored: bool = False

    @field_validator("matrices", "layers", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, (str, int)) else value

    @property
    def keep_budget(self) -> Keep | None:
        """What the step keeps; None for a method that decides by itself."""
        return getattr(self, "keep", None)

    @property
    def evidence(self) -> Calibration | None:
        """Which documents the step's evidence comes from; None for a method that looks at weights, or at a contrast set, alone."""
        return getattr(self, "calibration", None)

    @property
    def contrast_set(self) -> str | None:
        """The shipped contrast set that the step's evidence comes from; None for evidence from a task, or none."""
        return getattr(self, "contrast", None)

    @property
    def trials(self) -> Search | None:
        """How edits are tried out; None for a method that tries none."""
        return getattr(self, "search", None)

    @property
    def learning(self) -> Training | None:
        """How the step trains; None for a method that does not."""
        return getattr(self, "training", None)

    @property
    def is_search(self) -> bool:
        """Whether the step looks for ordinary steps, and edits nothing itself."""
        return self.method in registered_searches()

    @property
    def one_after_another(self) -> bool:
        """Whether evidence for a matrix is gathered after the matrices before it were edited, rather than on the model as it was."""
        return getattr(self, "sequential", False)

    @property
    def parameters(self) -> dict[str, Any]:
        """The settings of the method itself, as keyword arguments."""
        return {name: getattr(self, name) for name in described(self.method).parameters}


class _Header(BaseModel):
    """The outermost keys of a recipe file."""

    model_config = _STRICT

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    summary: str = ""
    source: str = ""
    steps: list[dict[str, Any]]


class Recipe(BaseModel):
    """A whole recipe, every default filled in. `label` is what the user typed for it."""

    model_config = _STRICT

    name: str
    label: str
    summary: str
    source: str
    steps: tuple[Step, ...]
    control: str | None = None
    control_of: str | None = None

    @property
    def is_baseline(self) -> bool:
        """Whether the recipe leaves the model as it is."""
        return not self.steps

    @property
    def recipe_id(self) -> str:
        """SHA-256 over the resolved steps; equal for recipes that do the same under other names."""
        # A key that is younger than the rest is left out at its default, so that recipes without it keep their id.
        steps = [{key: value for key, value in step.items() if (key, value) != ("factored", False)} for step in self.resolved()["steps"]]
        return hashlib.sha256(json.dumps(steps, sort_keys=True).encode()).hexdigest()

    def resolved(self) -> dict[str, Any]:
        """The recipe as plain data, every default written out: what a file that reproduces it holds."""
        steps = [step.model_dump(mode="json", exclude_none=True) for step in self.steps]
        return {"name": self.name, "summary": self.summary, "source": self.source, "steps": steps}

    def for_tasks(self, fit: Callable[[str], Sequence[str]]) -> Recipe:
        """The recipe with `task: evaluated` replaced by the tasks that fit, as a function of the split."""

        def resolve(step: Step) -> Step:
            calibration = step.evidence
            if calibration is None or calibration.task != EVALUATED:
                return step
            return step.model_copy(update={"calibration": calibration.model_copy(update={"task": tuple(fit(calibration.split))})})

        return self.model_copy(update={"steps": tuple(resolve(step) for step in self.steps)})


def described(name: str) -> Method | Searcher:
    """What goes under this name in a step: a method, or a search. Raises KeyError."""
    return known_methods()[name]


def known_methods() -> Mapping[str, Method | Searcher]:
    """All that a step may name: methods, and searches."""
    return {**registered_methods(), **registered_searches()}


@cache
def step_model(method_name: str) -> type[Step]:
    """The schema of a step with this method: the common keys, plus `keep`, and `calibration` with `sequential`, `search` or `training`, or `contrast`, where it takes them, plus its own parameters.

    A search takes `calibration` and its own parameters.
    """
    method = described(method_name)
    fields: dict[str, Any] = {name: (parameter.annotation, parameter.default) for name, parameter in method.parameters.items()}
    if isinstance(method, Searcher):
        return create_model(f"{method.name} step", __base__=Step, calibration=(Calibration, Calibration()), **fields)
    if method.takes_keep:
        fields["keep"] = (Keep, ...)
    if method.contrasts:
        fields["contrast"] = (Literal["pronouns"], "pronouns")
    elif method.statistics:
        fields["calibration"] = (Calibration, Calibration())
        fields |= {"search": (Search, Search())} if method.searches else {"training": (Training, Training())} if method.trains else {"sequential": (bool, False)}
    return create_model(f"{method.name} step", __base__=Step, **fields)


def shipped_names() -> list[str]:
    """The names of the recipes that come with the package, in order."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def nearest(name: str, known: Iterable[str]) -> str:
    """A phrase offering the known name nearest to a mistyped one, or listing a few where none is near."""
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}" if names else "none are known"


def parse_recipe(specification: str) -> Recipe:
    """Read `NAME`, `NAME:key=value,...`, `FILE.yaml` or `FILE.yaml:key=value,...`.

    Nested keys have dots (`calibration.samples=80`); a bare key is set in every step whose method knows it, `steps.0.key` in one. Values are YAML.

    Raises RecipeError naming every mistake.
    """
    source, _, changes = _split_specification(specification)
    data = _read(source)
    if changes:
        data = _with_changes(data, _parse_changes(specification, changes), specification)
    label = specification if not source.endswith((".yaml", ".yml")) else str(data.get("name", source)) + (f":{changes}" if changes else "")
    return recipe_from(data, origin=specification, label=label)


def parse_recipes(specifications: Sequence[str]) -> list[Recipe]:
    """Several of them. Raises RecipeError with the mistakes of all at once."""
    recipes: list[Recipe] = []
    mistakes: list[str] = []
    for specification in specifications:
        try:
            recipes.append(parse_recipe(specification))
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
        mistakes += _sentences(error, "", _Header)
        header = None
    given = data.get("steps")
    steps = [_parse_step(step, f"steps.{index}.", mistakes) for index, step in enumerate(given)] if isinstance(given, list) else []
    if mistakes or header is None:
        listing = "".join(f"\n  - {mistake}" for mistake in mistakes)
        raise RecipeError(f"recipe {origin!r} cannot be used:{listing}")
    return Recipe(name=header.name, label=label or header.name, summary=header.summary, source=header.source, steps=tuple(step for step in steps if step is not None))


def _split_specification(specification: str) -> tuple[str, str, str]:
    # A Windows path may hold a colon after its drive letter; the changes never start with a path separator.
    head, colon, tail = specification.partition(":")
    if colon and tail[:1] in "\\/":
        inner, colon, tail = tail.partition(":")
        head = f"{head}:{inner}"
    return head, colon, tail


def _read(source: str) -> dict[str, Any]:
    is_file = source.endswith((".yaml", ".yml"))
    path = Path(source).expanduser() if is_file else SHIPPED / f"{source}.yaml"
    if not is_file and source not in shipped_names():
        raise RecipeError(f"unknown recipe {source!r}: {nearest(source, shipped_names())} (`lm_eval recipes` lists them; a file's name ends in .yaml)")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"recipe file {source} cannot be read: {error.strerror or error}; give the path of a YAML file, or a name from `lm_eval recipes`") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe file {source} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise RecipeError(f"recipe file {source} must hold a mapping with name and steps, not {type(data).__name__}")
    return data


def _parse_step(step: Any, where: str, mistakes: list[str]) -> Step | None:
    if not isinstance(step, dict):
        mistakes.append(f"{where[:-1]}: a step is a mapping with at least method and matrices")
        return None
    methods = known_methods()
    name = step.get("method")
    if name not in methods:
        problem = f"unknown method {name!r}, {nearest(str(name), methods)}" if name is not None else f"is missing; known: {', '.join(methods)}"
        mistakes.append(f"{where}method: {problem}")
        return None
    model = step_model(name)
    try:
        return model.model_validate(step)
    except ValidationError as error:
        mistakes += _sentences(error, where, model)
        return None


_KEYS_OF = {"calibration": Calibration, "keep": Keep, "search": Search, "training": Training}


def _sentences(error: ValidationError, where: str, model: type[BaseModel]) -> list[str]:
    """All of pydantic's findings but those that follow from others: a list whose entries are wrong is not too short as well."""
    found = error.errors()
    inside = {item["loc"][:length] for item in found for length in range(len(item["loc"]))}
    return [_sentence(item, where, model) for item in found if not (item["type"] == "too_short" and item["loc"] in inside)]


def _sentence(item: Mapping[str, Any], where: str, model: type[BaseModel]) -> str:
    """Turn one of pydantic's findings into a sentence that names the key, the trouble and the nearest known key."""
    location = [str(part) for part in item["loc"]]
    key = where + ".".join(location)
    match item["type"]:
        case "extra_forbidden":
            owner = _KEYS_OF.get(location[-2], model) if len(location) > 1 else model
            return f"{key}: unknown key, {nearest(location[-1], owner.model_fields)}"
        case "missing":
            hint = "; give one of rank, rank_fraction, energy, param_fraction, ranks" if location[-1] == "keep" else ""
            return f"{key}: is missing{hint}"
        case _:
            message = item["msg"].removeprefix("Value error, ")
            value = item.get("input")
            shown = f" (found {value!r})" if isinstance(value, (str, int, float, bool)) else ""
            return f"{key}: {message[0].lower()}{message[1:]}{shown}"


# An asterisk at the start of a value is YAML's sign for an alias, which one line can have no use for, and anybody else's for a glob; likewise `-2:`, a mapping's key there and a range of layers here.
_GLOB_OR_RANGE = re.compile(r"(^\s*|[\[,]\s*)(\*[^\],\s]*|-?\d*:(?:-?\d+)?(?=\s*(?:[\],]|$)))")


def _parse_changes(specification: str, text: str) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for item in _split_outside_brackets(text):
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            raise RecipeError(f"recipe {specification!r}: {item!r} is not key=value")
        if key.strip() in changes:
            raise RecipeError(f"recipe {specification!r}: {key.strip()} is given twice")
        try:
            changes[key.strip()] = yaml.safe_load(_GLOB_OR_RANGE.sub(r'\1"\2"', value))
        except yaml.YAMLError:
            raise RecipeError(f"recipe {specification!r}: the value of {key.strip()} is not valid YAML: {value!r}") from None
    return changes


def _split_outside_brackets(text: str) -> list[str]:
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part for part in parts if part.strip()]


def _with_changes(data: dict[str, Any], changes: Mapping[str, Any], specification: str) -> dict[str, Any]:
    """Set the changed keys. A budget on the command line replaces the file's, whichever measure that had."""
    steps = [dict(step) if isinstance(step, dict) else step for step in data.get("steps") or []]
    replaced: set[int] = set()
    for key, value in changes.items():
        head, _, rest = key.partition(".")
        if head == "steps":
            number, _, path = rest.partition(".")
            if not number.isdigit() or int(number) >= len(steps) or not path:
                raise RecipeError(f"recipe {specification!r}: {key} names no step; it has steps.0 to steps.{len(steps) - 1}")
            targets, path = [int(number)], path
        else:
            targets, path = [index for index, step in enumerate(steps) if _knows(step, head)], key
        if not targets:
            known = {name for step in steps for name in _known_keys(step)}
            raise RecipeError(f"recipe {specification!r}: unknown key {key!r}, {nearest(head, known)}")
        for index in targets:
            if path.startswith("keep.") and index not in replaced:
                steps[index]["keep"] = {}
                replaced.add(index)
            _set(steps[index], path.split("."), value, specification)
    return {**data, "steps": steps}


def _known_keys(step: Any) -> set[str]:
    name = step.get("method") if isinstance(step, dict) else None
    return set(step_model(str(name)).model_fields) - {"method"} if name in known_methods() else set()


def _knows(step: Any, key: str) -> bool:
    return key in _known_keys(step)


def _set(target: dict[str, Any], path: list[str], value: Any, specification: str) -> None:
    for part in path[:-1]:
        inner = target.get(part)
        if inner is not None and not isinstance(inner, dict):
            raise RecipeError(f"recipe {specification!r}: {'.'.join(path)} goes through {part!r}, which is a plain value")
        target[part] = dict(inner or {})
        target = target[part]
    target[path[-1]] = value
