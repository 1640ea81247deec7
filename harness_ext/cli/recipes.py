"""`lm_eval recipes`: list the recipes or show one, without loading torch, or plan one for a model from its headers."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness_ext.cli.ingest import add_database_argument
from harness_ext.cli.plan import plan_in_form, sinks_in
from harness_ext.cli.terminal import add_form_arguments, tell
from harness_ext.lm_eval_adapter.subcommand import RecipesCommand, add_model_args
from leaderboard.commands import RUN_HELP

if TYPE_CHECKING:
    from harness_ext.recipe.recipe import Recipe, RecipeHeading
    from leaderboard.terminal.output import Form

EPILOG = """
examples:
  $ lm_eval recipes
  $ lm_eval recipes show laser > mine.yaml
  $ lm_eval recipes show --from demo/laser-search > found.yaml
  $ lm_eval recipes plan svd:keep.rank_fraction=0.25 --model_args pretrained=demo
"""


class Recipes(RecipesCommand):
    """List, show and plan recipes."""

    name = "recipes"
    summary = "List, show and plan recipes"
    description = "List, show and plan recipes."
    epilog = EPILOG

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        actions = parser.add_subparsers(metavar="[ACTION]")
        listed = actions.add_parser("list", help="List the recipes by group, a line each; so does the command alone")
        add_form_arguments(parser)
        add_form_arguments(listed, default=argparse.SUPPRESS)
        show = actions.add_parser("show", help="Print a recipe as a file that reproduces it, every default written out")
        show.add_argument(
            "recipe", metavar="RECIPE", nargs="?", help="A name, name:key=value,key=value, or a YAML file"
        )
        show.add_argument(
            "--from",
            metavar="RUN",
            dest="run",
            help=f"A run instead ({RUN_HELP}): its recipe, with what its searches found in their place",
        )
        add_database_argument(show)
        show.set_defaults(func=self._show)
        planned = actions.add_parser(
            "plan", help="Say what a recipe would do to a model, from its config and headers alone"
        )
        planned.add_argument("recipe", metavar="RECIPE", help="A name, name:key=value,key=value, or a YAML file")
        add_model_args(planned, "As in `lm-eval run`: pretrained=NAME, also revision and subfolder")
        planned.add_argument(
            "--device",
            default="cpu",
            metavar="<device>",
            help="What will do it; edits and passes are measured there (default: cpu)",
        )
        planned.add_argument(
            "--tokens",
            type=int,
            metavar="N",
            help="Tokens of a calibration document (default: 64)",
        )
        add_form_arguments(planned, default=argparse.SUPPRESS)
        planned.set_defaults(func=self._plan, logs=True)
        for action in (parser, listed):
            action.set_defaults(func=self._list)

    def _list(self, args: argparse.Namespace) -> None:
        from harness_ext.methods.discovery import KINDS, load_entry_points
        from harness_ext.recipe.recipe import parse_recipe, shipped_headings, shipped_names

        if args.form != "text":
            _write_listing([parse_recipe(name) for name in shipped_names()], args.form)
            return
        # The list reads no step, so nothing else here tells the author of a package that it cannot be loaded.
        for kind in KINDS:
            load_entry_points(kind)
        print("\n".join(_listing(shipped_headings())))
        print("\n`lm_eval recipes show NAME` has the rest, as a file.")
        print("`--recipe NAME:key=value` changes it.")

    def _show(self, args: argparse.Namespace) -> None:
        import yaml

        from harness_ext.errors import UserError
        from harness_ext.recipe.recipe import parse_recipe

        if (args.recipe is None) == (args.run is None):
            raise UserError("name a recipe, or a run with --from: one of the two")
        recipe = _recipe_of_run(_place_of(args)) if args.run is not None else parse_recipe(args.recipe)
        print(f"# needs {_needs(recipe)}")
        if sinks := sinks_in(recipe):
            print(f"# sink tokens: {sinks}")
        print(yaml.safe_dump(recipe.resolved(), sort_keys=False, allow_unicode=True, width=100), end="")

    def _plan(self, args: argparse.Namespace) -> None:
        from harness_ext.errors import UserError
        from harness_ext.lm_eval_adapter.admission import check_all
        from harness_ext.progress import progress_for
        from harness_ext.runs.python_api import load_recipe, plan_from_headers
        from harness_ext.runs.run_config import resolve_demo

        arguments = args.model_args
        if not arguments.get("pretrained"):
            raise UserError("no model given: add --model_args pretrained=NAME (a hub name, a local folder, or `demo`)")
        recipe = load_recipe(args.recipe)
        check_all(resolve_demo("hf", arguments), [recipe])
        if args.tokens is not None and args.tokens < 1:
            raise UserError(f"--tokens {args.tokens} must be 1 or more")
        name = arguments["pretrained"]
        with progress_for(quiet=False).stage(f"measuring {recipe.label} for {name}"):
            planned = plan_from_headers(recipe, {**arguments, "device": args.device}, args.tokens)
        print("\n".join(plan_in_form(planned, str(name), args.form)))


def _place_of(args: argparse.Namespace) -> Path:
    """Where the run of `--from` lies."""
    from leaderboard.board.named_runs import place_of

    found = place_of(args.run, args.database, "--from")
    tell(found.notes)
    return found.path


def _write_listing(recipes: Sequence[Recipe], form: Form) -> None:
    from leaderboard.terminal.output import OurText, written

    rows = [
        {
            "name": recipe.name,
            "group": recipe.group or None,
            "summary": recipe.summary,
            "needs": _needs(recipe),
            "source": recipe.source or None,
            "caveats": recipe.caveats or None,
        }
        for recipe in recipes
    ]
    shown = [
        {"recipe": row["name"], "what it does": OurText(row["summary"]), "needs": OurText(row["needs"])} for row in rows
    ]
    print(written(form, rows, shown))


def _recipe_of_run(place: Path) -> Recipe:
    """The recipe that a run folder, or its receipt, tells of, without searches. Raises UserError where it tells of
    none.
    """
    from harness_ext.errors import UserError
    from harness_ext.recipe.recipe import recipe_from
    from harness_ext.search.runner import found_nothing, without_searching
    from harness_ext.storage.rundir import RECEIPT, merged_wordings, searched_on, wordings_searched_on

    path = place / RECEIPT if place.is_dir() else place
    try:
        receipt = json.loads(path.read_text(encoding="utf-8"))
        failed = receipt["status"] != "complete"
        data = without_searching(receipt["recipe"]["resolved"], receipt.get("searches", []))
        # No later run may score what this one, or the runs that its recipe comes from, chose on.
        data["chosen_on"] = sorted(searched_on(receipt).union(data.get("chosen_on", ())))
        data["wordings"] = merged_wordings(wordings_searched_on(receipt), data.get("wordings", {}))
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror or error}; give a run folder, such as results/MODEL/RECIPE-ID"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is not the receipt of a run") from None
    if failed:
        raise UserError(f"the run in {place} failed, and its recipe found nothing; run it again")
    if receipt.get("searches"):
        if not data["steps"]:
            reasons = "; ".join(reason for record in receipt["searches"] if (reason := found_nothing(record)))
            raise UserError(f"the run in {place} has no recipe to show: {reasons}; its variant is the unedited model")
        # What was found is not a search any more, and what was said of the search does not hold of it.
        data = {key: value for key, value in data.items() if key not in ("group", "caveats")} | {
            "name": f"{data['name']}-found",
            "summary": f"What {receipt['recipe']['label']} found on {receipt['model']['name']}.",
        }
    # A receipt is a file from anywhere: what is printed must be a recipe.
    return recipe_from(data, origin=str(path))


def _listing(recipes: Sequence[RecipeHeading]) -> Iterable[str]:
    """The recipes under their headings, a line each, names and summaries aligned."""
    from harness_ext.recipe.recipe import GROUPS

    width = max(len(recipe.name) for recipe in recipes) + 2
    # The group of recipes without one comes first among the names, and last on the screen.
    for group in (*filter(None, GROUPS), ""):
        of_group = [recipe for recipe in recipes if recipe.group == group]
        if of_group:
            yield ("" if group == GROUPS[1] else "\n") + (group or "other").upper()
            yield from (f"{recipe.name.ljust(width)}{recipe.summary}" for recipe in of_group)


def _needs(recipe: Recipe) -> str:
    """The most that any of its methods needs: nothing, texts, labelled documents, ..."""
    from harness_ext.methods.registry import NEEDS
    from harness_ext.recipe.schema import described

    return max((described(step.method).needs for step in recipe.steps), key=NEEDS.index, default="nothing")
