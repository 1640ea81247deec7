"""What is wrong with the models of a sweep file, as far as it can be told before one is loaded: by the rules that
`lm_eval run` has for them.

The models are plain data here, whatever a file may hold. What is of another type than it should be is not looked at:
the schema tells it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness_ext.demo import demo_path
from harness_ext.errors import UserError
from harness_ext.lm_eval_adapter.admission import argument_mistakes, file_mistakes, refuse_backend
from harness_ext.lm_eval_adapter.engines import ENGINES, check_installed, editing_arguments, engine_mistakes, number_of
from harness_ext.runs.run_config import DEMO, RECIPE_BACKENDS

_OWN = ("pretrained", "dtype", "revision")
"""Arguments that stand beside model_args."""
_DEFAULT = "hf"
_EDITED = RECIPE_BACKENDS | ENGINES.keys()
_PIECES = tuple(name for engine in ENGINES.values() for name in engine.gpus)
"""Arguments that say over how many GPUs an engine spreads a model, and how many copies of it there are."""


def models_in(data: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The models of a sweep file that are mappings, with their keys: `models.0`."""
    models = data.get("models")
    for number, model in enumerate(models if isinstance(models, list) else ()):
        if isinstance(model, Mapping):
            yield f"models.{number}", model


def model_mistakes(data: Mapping[str, Any]) -> Iterator[str]:
    """What the file alone shows."""
    seen: dict[tuple[Any, str], str] = {}
    for place, model in models_in(data):
        yield from _of_sizes(place, model)
        yield from _of_places(place, model)
        if (known := _arguments(model)) is None:
            continue
        backend, arguments = known
        if backend not in _EDITED:
            yield from (f"{place}.model: {sentence}" for sentence in _refused(backend))
        if _edits(backend):
            yield from (f"{_key(place, name)}: {told}" for name, told in _of_arguments(backend, arguments))
        identity = (backend, repr(sorted(arguments.items(), key=str)))
        if (first := seen.setdefault(identity, place)) != place:
            yield f"{place}: is the same as {first}: leave one of them out"


def model_mistakes_here(data: Mapping[str, Any]) -> Iterator[str]:
    """What is not on this machine: packages, folders, files in them."""
    recipes = data.get("recipes")
    edits = isinstance(recipes, list) and any(recipe != "baseline" for recipe in recipes)
    for place, model in models_in(data):
        if (known := _arguments(model)) is None:
            continue
        backend, arguments = known
        engine = ENGINES.get(backend)
        if engine is not None:
            try:
                check_installed(engine)
            except UserError as error:
                yield f"{place}.model: {error}"
        if _edits(backend):
            yield from (f"{_key(place, name)}: {told}" for name, told in _of_files(arguments, to_be_edited=edits))


def _of_files(arguments: Mapping[str, Any], *, to_be_edited: bool) -> Iterator[tuple[str, str]]:
    embedded = arguments["pretrained"] == DEMO and not (Path(DEMO) / "config.json").is_file()
    try:
        yield from file_mistakes(
            {**arguments, "pretrained": str(demo_path())} if embedded else arguments, to_be_edited=to_be_edited
        )
    except (OSError, ValueError) as error:
        yield "pretrained", f"{arguments['pretrained']} cannot be read: {getattr(error, 'strerror', None) or error}"


def _edits(backend: str) -> bool:
    """Whether a backend's arguments mean what they mean to one that edits: it is one, or a name mistyped for one."""
    from lm_eval.models import MODEL_MAPPING

    return backend in _EDITED or backend not in MODEL_MAPPING


def _refused(backend: str) -> Iterator[str]:
    try:
        refuse_backend(backend)
    except UserError as error:
        yield str(error)


def _of_arguments(backend: str, arguments: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    engine = ENGINES.get(backend)
    if engine is None:
        yield from argument_mistakes(arguments)
        return
    yield from engine_mistakes(engine, arguments)
    try:
        followed = editing_arguments(engine, arguments)
    except (TypeError, ValueError):
        return  # a length that is no number, which is told
    # The length was checked by the engine's own name of it.
    yield from ((name, told) for name, told in argument_mistakes(followed) if name != "max_length")


def _of_sizes(place: str, model: Mapping[str, Any]) -> Iterator[str]:
    arguments, gpus = model.get("model_args"), model.get("gpus", 1)
    numbers = {name: number_of(arguments.get(name)) for name in _PIECES} if isinstance(arguments, Mapping) else {}
    given = {name: int(number) for name, number in numbers.items() if number is not None and number >= 1}
    if not given or not isinstance(gpus, int):
        return
    if math.prod(given.values()) > gpus:
        asked = " times ".join(f"{name}={number}" for name, number in given.items())
        yield f"{place}.gpus: {gpus} are fewer than {asked} needs"


def _of_places(place: str, model: Mapping[str, Any]) -> Iterator[str]:
    arguments = model.get("model_args")
    for key in arguments if isinstance(arguments, Mapping) else ():
        if key in _OWN:
            yield f"{place}.model_args.{key}: belongs beside model_args: {place}.{key}"


def _arguments(model: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """The backend, and all of `--model_args`; None where one of them is of a wrong type."""
    backend, inner = model.get("model", _DEFAULT), model.get("model_args", {})
    own = {key: model[key] for key in _OWN if model.get(key) is not None}
    right = isinstance(backend, str) and isinstance(inner, Mapping) and all(isinstance(own[key], str) for key in own)
    return (backend, {**own, **inner}) if right and own.get("pretrained") else None


def _key(place: str, name: str) -> str:
    return f"{place}.{name}" if name in _OWN else f"{place}.model_args.{name}"
