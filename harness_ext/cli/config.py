"""What a `run` was asked to do: lm-eval's own configuration plus our keys, `recipe`, `control` and `trackers`.

Notable choices. Our keys are taken out of the YAML file and the flags before lm-eval sees them, because its
`EvaluatorConfig` rejects what it does not know; everything else is read, merged and checked by lm-eval itself. A flag
replaces the key of the same name in the file, as lm-eval does for its own. With a recipe, `output_path` defaults to
`results` and samples are always logged, since the paired statistics need them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness_ext.cli.secrecy import printable
from harness_ext.errors import UserError
from harness_ext.lm_eval_adapter.config import RunConfig
from harness_ext.runs.run_config import recipe_run_config

if TYPE_CHECKING:
    from lm_eval.config.evaluate_config import EvaluatorConfig

KEYS = ("recipe", "control")
TRACKERS = "trackers"
FILE_KEYS = (*KEYS, TRACKERS)
"""Our keys of a `--config` file, which are flags of `run` as well."""
OUTPUT_FLAGS = ("form", "details", "manifest")
"""Our flags of `run` for what it tells at its end. No `--config` file has them."""
_EXAMPLES = {TRACKERS: "[wandb, mlflow]"}


@dataclass(frozen=True)
class Asked:
    """Our keys as given by the flags and the `--config` file, flags first."""

    recipes: tuple[str, ...]
    controls: tuple[str, ...]
    in_file: bool


def read_config_file(path: str | None) -> dict[str, Any]:
    """The mapping in a `--config` file, read by lm-eval; empty without one.

    A file that lm-eval would refuse gives an empty mapping too: the refusal is lm-eval's to word, when it reads the
    file itself.
    """
    if not path:
        return {}
    from lm_eval.config.evaluate_config import EvaluatorConfig

    try:
        return EvaluatorConfig.load_yaml_config(path)
    except (OSError, TypeError, ValueError):
        return {}
    except RecursionError:
        raise UserError(f"configuration {path} is not valid YAML: nested too deeply") from None


def asked(args: argparse.Namespace, from_file: Mapping[str, Any]) -> Asked:
    """Which recipes and controls the flags and the file name.

    Raises `UserError` where the file's key is not a name or a list of names, or is empty.
    """
    values = {}
    for key in KEYS:
        flag = getattr(args, key, None)
        values[key] = tuple(flag) if flag else _names(key, from_file, args.config)
    return Asked(values["recipe"], values["control"], in_file=any(key in from_file for key in KEYS))


def tracker_names(args: argparse.Namespace, from_file: Mapping[str, Any]) -> tuple[str, ...]:
    """The trackers that the flag names, or else the file. Raises UserError for those that cannot be had."""
    from harness_ext.runs.trackers import asked_trackers

    if args.trackers is not None:
        return asked_trackers(args.trackers)
    return asked_trackers(_names(TRACKERS, from_file, args.config) or None, f"`trackers:` in {args.config}:")


def _names(key: str, from_file: Mapping[str, Any], path: str | None) -> tuple[str, ...]:
    if key not in from_file:
        return ()
    value = from_file[key]
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise UserError(
            f"`{key}:` in {path} must be a name or a list of names, not {value!r}; write for example `{key}:"
            f" {_EXAMPLES.get(key, '[laser, svd]')}` or remove the key"
        )
    return tuple(names)


def run_config(args: argparse.Namespace, wanted: Asked) -> RunConfig:
    """Let lm-eval build and check its configuration, then settle what recipes need.

    Raises `UserError` for a file that is no plain data, for what lm-eval refuses (in its own words) and for settings
    that make no sense with a recipe.
    """
    if args.config and Path(args.config).is_file():
        from leaderboard.errors import Unreadable
        from leaderboard.readers.plain_yaml import load_yaml

        try:
            load_yaml(Path(args.config), "configuration")
        except Unreadable as error:
            raise UserError(str(error)) from None
    return recipe_run_config(_harness_config(args), wanted.recipes, wanted.controls, command_line())


def command_line() -> tuple[str, ...]:
    """`sys.argv` as it can be typed again elsewhere: the program by its name, not by its place."""
    program = Path(sys.argv[0])
    return (*(("python", "-m", "harness_ext") if program.name == "__main__.py" else (program.name,)), *sys.argv[1:])


def _harness_config(args: argparse.Namespace) -> EvaluatorConfig:
    from lm_eval.config import evaluate_config

    class EvaluatorConfig(evaluate_config.EvaluatorConfig):
        """lm-eval's configuration, read from a file that may hold our keys as well."""

        __slots__ = ()

        def __repr__(self) -> str:
            """Without secrets: lm-eval prints it."""
            return printable(super().__repr__()).replace(type(self).__qualname__, "EvaluatorConfig", 1)

        @staticmethod
        def load_yaml_config(config_path: str | Path) -> dict[str, Any]:
            values = evaluate_config.EvaluatorConfig.load_yaml_config(config_path)
            return {
                "output_path": "results",
                **{key: value for key, value in values.items() if key not in FILE_KEYS},
                "log_samples": True,
            }

    flags = {key: value for key, value in vars(args).items() if key not in (*FILE_KEYS, *OUTPUT_FLAGS)}
    flags["log_samples"] = True
    if not args.config:
        flags["output_path"] = args.output_path or "results"
    try:
        return EvaluatorConfig.from_cli(argparse.Namespace(**flags))
    except (OSError, TypeError, ValueError) as error:
        raise UserError(str(error)) from error
