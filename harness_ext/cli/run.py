"""`lm_eval run`: lm-eval's command, with `--recipe` and `--control`.

Without them lm-eval does everything, so behaviour and results are its own. The differences: task files come from the
index, our tasks are known, `pretrained=demo` is the embedded model, and a data set that cannot be loaded is one line.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness_ext.cli.config import FILE_KEYS, OUTPUT_FLAGS, asked, read_config_file, run_config, tracker_names
from harness_ext.cli.secrecy import hide
from harness_ext.cli.terminal import add_form_arguments
from harness_ext.errors import UserError
from harness_ext.lm_eval_adapter.flag_values import in_plain_words
from harness_ext.runs.run_config import HF_BACKENDS, resolve_demo
from leaderboard.terminal.path_flags import local_path

EXAMPLES = """
recipes:
  # The embedded model, two recipes, each compared with the unedited model
  $ lm_eval run --model hf --model_args pretrained=demo --tasks int_mult,int_sum \\
      --recipe laser --recipe eigenprune:fraction=0.1

  # What recipes there are
  $ lm_eval recipes
"""


def add_recipes(parser: argparse.ArgumentParser) -> None:
    """Add `--recipe` and `--control` to the parser that lm-eval built for `run`."""
    in_plain_words(parser)
    group = parser.add_argument_group("recipes")
    group.add_argument(
        "--recipe",
        type=str,
        nargs="+",
        action="extend",
        default=None,
        metavar="<recipe>",
        help=(
            "Edit the model's weights before scoring: a name from `lm-eval recipes`, name:key=value,key=value, or a"
            " YAML file. Repeatable; the unedited model is scored too."
        ),
    )
    group.add_argument(
        "--control",
        type=str,
        nargs="+",
        action="extend",
        default=None,
        metavar="<name>",
        help=(
            "Run this recipe as well, at the budget of each --recipe: random-subspace, bottom-k or noise; or"
            " shuffled-labels, for one that learns from documents. Repeatable."
        ),
    )
    before = set(parser._actions)
    add_form_arguments(group)
    group.add_argument(
        "--details", action="store_true", help="Print everything of every row below the table of a run with --recipe"
    )
    group.add_argument(
        "--manifest",
        type=local_path,
        default=None,
        metavar="<file>",
        help=(
            "Write to this file, as JSON, which run folders came of it, and leave the leaderboard's database alone: for"
            " programs that run many commands, and ingest by themselves"
        ),
    )
    group.add_argument(
        "--trackers",
        type=str,
        nargs="+",
        action="extend",
        default=None,
        metavar="<name>",
        help=(
            "Tell these of the runs with --recipe, once they are judged: wandb, trackio, mlflow. One run a variant,"
            " grouped by sweep or baseline; each by its own package, settings and login"
        ),
    )
    _only_whole(parser, [action for action in parser._actions if action not in before])
    parser.epilog = (parser.epilog or "") + EXAMPLES
    parser.set_defaults(func=run)


def _only_whole(parser: argparse.ArgumentParser, actions: Sequence[argparse.Action]) -> None:
    """Have these flags be written out, so that abbreviations of lm-eval's mean what they meant."""
    abbreviated = parser._get_option_tuples

    def of_the_others(option_string: str) -> list[tuple[argparse.Action, str, str | None]]:
        return [found for found in abbreviated(option_string) if found[0] not in actions]

    parser._get_option_tuples = of_the_others  # type: ignore[method-assign]


def run(args: argparse.Namespace) -> None:
    """Run with the recipes that the flags or the file name, or as lm-eval does where there are none."""
    form, details, manifest = args.form, args.details, args.manifest
    from_file = read_config_file(args.config)
    hide(from_file)
    trackers = tracker_names(args, from_file)
    wanted = asked(args, from_file)
    if wanted.recipes or wanted.controls or wanted.in_file:
        from harness_ext.cli.installation import taken_back
        from harness_ext.cli.run_recipes import execute
        from harness_ext.cli.together import together
        from harness_ext.runs.progress import report_for

        # Before libraries are loaded, of which some read only once how much to say.
        report = report_for(args.verbosity or from_file.get("verbosity"))
        with together():
            _refuse_repeated_tasks()
            if warning := taken_back():
                print(f"note: {warning}", file=sys.stderr)
            asked_run = run_config(args, wanted)
            execute(asked_run, report, form, details=details, manifest=manifest, trackers=trackers)
    elif trackers:
        raise UserError(
            "--trackers is for a run with --recipe; lm-eval's own --wandb_args and --trackio_args track a run without"
        )
    elif form != "text" or details or manifest:
        flag = "--details" if details else "--manifest" if manifest else f"--{form}"
        raise UserError(
            f"{flag} is for the table of a run with --recipe; lm-eval's own tables are in the results_*.json that it"
            " writes with --output_path"
        )
    else:
        run_plain(args, from_file)


def _refuse_repeated_tasks() -> None:
    """Raise UserError where `--tasks` is given twice: lm-eval would take the last and say nothing."""
    given = [word for word in sys.argv[1:] if word in ("--tasks", "-t") or word.startswith("--tasks=")]
    if len(given) > 1:
        raise UserError(
            "--tasks is given twice, of which lm-eval takes only the last: name all tasks in one, --tasks NAME,NAME"
        )


def run_plain(args: argparse.Namespace, from_file: Mapping[str, Any]) -> None:
    """Run lm-eval's own command with the namespace it would have parsed."""
    from harness_ext.lm_eval_adapter.fast_import import preload_harness, preload_hf
    from harness_ext.lm_eval_adapter.local_datasets import loading
    from harness_ext.lm_eval_adapter.subcommand import run_without_recipes
    from harness_ext.lm_eval_adapter.task_index import installed

    _place_demo(args, from_file)
    _order_samples(args, from_file)
    for key in (*FILE_KEYS, *OUTPUT_FLAGS):
        delattr(args, key)
    # Another backend may need a package that is missing, which is for lm-eval to say.
    preload_hf() if (args.model or from_file.get("model") or "hf") in HF_BACKENDS else preload_harness()
    # After what was preloaded, which makes lm-eval's task modules quick to load.
    from harness_ext.lm_eval_adapter.task_types import windows_as_text

    with installed(), loading(), windows_as_text():
        run_without_recipes(args)


def _place_demo(args: argparse.Namespace, from_file: Mapping[str, Any]) -> None:
    """Resolve `pretrained=demo`, wherever it is given: a flag's model_args replace those of the file as a whole."""
    from lm_eval.utils import simple_parse_args_string

    given = args.model_args or from_file.get("model_args") or {}
    if isinstance(given, str):
        given = simple_parse_args_string(given)
    if not isinstance(given, Mapping):
        return
    if "recipe" in given and (args.model or from_file.get("model") or "hf") in HF_BACKENDS:
        raise UserError(
            "`recipe=` in --model_args is for --model hf-recipe; with --model hf give it as a flag: --recipe"
            f" {given['recipe']}"
        )
    if "dequantize" in given and (args.model or from_file.get("model") or "hf") in HF_BACKENDS:
        raise UserError(
            "`dequantize=` in --model_args is for runs with --recipe, and lm-eval's own have nothing like it: add"
            " --recipe baseline, which scores the dequantised model as it is"
        )
    resolved = resolve_demo(args.model or from_file.get("model"), given)
    if resolved != dict(given):
        args.model_args = resolved


def _order_samples(args: argparse.Namespace, from_file: Mapping[str, Any]) -> None:
    """Put the places that `--samples` names into ascending order, each once. lm-eval scores the same documents in
    whatever order they are named, but then logs them under each other's ids. What is no such list is for it to refuse.
    """
    given = args.samples or from_file.get("samples")
    if isinstance(given, str):
        try:
            given = json.loads(given if not Path(given).is_file() else Path(given).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
    if isinstance(given, Mapping) and all(
        isinstance(places, list) and all(type(place) is int for place in places) for places in given.values()
    ):
        args.samples = {name: sorted(set(places)) for name, places in given.items()}
