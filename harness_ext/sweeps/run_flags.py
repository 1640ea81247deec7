"""The `run:` of a sweep file: flags of `lm_eval run` in the same words, checked by lm-eval's own parser. Of our own
flags it may have `trackers`, which each cell tells of its runs.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, NoReturn

from harness_ext.errors import nearest
from harness_ext.lm_eval_adapter.flag_values import check_device, check_limit
from harness_ext.lm_eval_adapter.subcommand import add_run_arguments
from harness_ext.runs.trackers import unknown_trackers
from leaderboard.readers.plain_yaml import shown

_ELSEWHERE = {
    "model": "models.N.model",
    "model_args": "models.N.model_args",
    "tasks": "tasks",
    "recipe": "recipes",
    "control": "controls",
    "output_path": "output_path",
    "config": "the sweep file itself",
}
_NONE_HERE = frozenset({"help", "log_samples", "show_config", "use_cache", "cache_requests", "predict_only"})
"""Flags that make no sense for a cell: samples are always logged with a recipe, and caches are refused."""

_LEAST = {"num_fewshot": 0, "max_batch_size": 1}
_ARGUMENT = re.compile(r"^argument \S+: ")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


@lru_cache(maxsize=1)
def _parser() -> _Parser:
    parser = _Parser(add_help=False, allow_abbrev=False)
    add_run_arguments(parser)
    parser.add_argument("--trackers", nargs="+")
    return parser


@lru_cache(maxsize=1)
def _known() -> dict[str, argparse.Action]:
    return {
        option.removeprefix("--"): action
        for action in _parser()._actions
        for option in action.option_strings
        if option.startswith("--") and option.removeprefix("--") not in _NONE_HERE | _ELSEWHERE.keys()
    }


def flag_mistakes(run: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with each flag, a sentence each, beginning with its name."""
    for name, value in run.items():
        if name in _ELSEWHERE:
            yield f"{name}: is given by `{_ELSEWHERE[name]}`"
        elif name not in _known():
            yield f"{shown(str(name))}: no flag of `lm_eval run` that a cell can have; {nearest(str(name), _known())}"
        elif name == "trackers" and (mistakes := unknown_trackers(words({name: value})[1:])):
            yield from (f"{name}: {mistake}" for mistake in mistakes)
        else:
            try:
                with contextlib.redirect_stderr(io.StringIO()):
                    _check(name, getattr(_parser().parse_args(words({name: value})), name, None))
            except (ValueError, SystemExit, TypeError) as error:
                trouble = _ARGUMENT.sub("", str(error)) or "cannot be read"
                yield f"{name}: {trouble}" + ("" if repr(value) in trouble else f" (found {shown(repr(value))})")
    if run.get("samples") and run.get("limit") is not None:
        yield "samples: and `limit` are both given, and lm-eval takes one of them: leave one out"


def _check(name: str, value: Any) -> None:
    """Raise ValueError for a value that can be read and makes no sense."""
    if value is None:
        return
    if name == "limit":
        check_limit(value)
    elif name == "device":
        check_device(value)
    elif name in _LEAST and value < _LEAST[name]:
        raise ValueError(f"give a whole number from {_LEAST[name]}")


def words(run: Mapping[str, Any]) -> list[str]:
    """The flags as words of a command line: true is the flag alone, false nothing, a list the flag with its values."""
    found: list[str] = []
    for name, value in run.items():
        if value is False or value is None:
            continue
        found.append(f"--{name}")
        if value is True:
            continue
        found += [_word(one) for one in value] if isinstance(value, list) else [_word(value)]
    return found


def _word(value: Any) -> str:
    if isinstance(value, Mapping):
        import json

        return json.dumps(value)
    return str(value)
