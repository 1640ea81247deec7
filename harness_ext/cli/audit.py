"""`lm_eval audit`: is there anything to gain from editing this model, where, and what would break? One command, no
recipe named: a few recipes of each kind with controls, on small samples that are shipped.

Notable choices:
- The runs are ordinary ones: kept, resumed and on the board like all others. The page is made of their judged cells.
- Recipes that learn do so from the samples' training items, of which none is scored.
- A variant costs forward passes over the samples, about 12,500 tokens in 1,002 requests; there are eleven, the
  baseline, five recipes and their controls. Two of the recipes decompose every matrix once, and each learns from 100
  short documents at most.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from contextlib import redirect_stdout
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from harness_ext.cli.exit_codes import MISTAKE
from harness_ext.cli.secrecy import printable
from harness_ext.cli.terminal import add_form_arguments, terminal_style
from harness_ext.errors import UserError
from harness_ext.lm_eval_adapter.subcommand import RecipesCommand, add_model_args

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness_ext.recipe.recipe import Recipe
    from harness_ext.runs.run_result import RunResult
    from leaderboard.report.findings import AuditedRecipe

TASKS = "audit"
CONTROL = "random-subspace"
BATCH_SIZE = "16"
_LEARNED = "[audit_text,audit_facts,audit_commonsense]"
_AT_MOST = 96
_ON_EVERYTHING = f"calibration.task={_LEARNED},calibration.samples={_AT_MOST}"
_NAMES_DOCUMENTS = r"\b(calibration|heal)(\.(task|samples|split|documents))?="
_IN_FULL = "wikidata_qa,int_mult,int_sum,arc_easy,piqa,wikitext,pronoun_bias"
"""Public tasks, and some made in code, that ask at length what the samples ask in short."""
_MOMENTS = ("input_second_moment", "input_cross_moment")
"""Statistics that need more tokens than a matrix has inputs."""
KINDS = {
    "truncation": "From the weights alone",
    "components": "Components that matter little to the answers",
    "calibrated": "Compression that learns from texts",
    "search": "Search: edits that were tried out, and ranks that were chosen",
    "training": "Training",
    "yardsticks": "Yardsticks",
    "": "Others",
}
"""The groups of recipes as headings of the page; controls are not audited."""
EPILOG = """
examples:
  $ lm_eval audit --model_args pretrained=google/gemma-2-2b --device cuda
  $ lm_eval audit --model_args pretrained=demo --limit 40
  $ lm_eval audit --model_args pretrained=demo --recipe aa-svd:calibration.task=audit_text,calibration.samples=32
  $ lm_eval audit --model_args pretrained=demo --markdown > findings.md
"""


class AuditRecipe(NamedTuple):
    """A recipe as the audit asks for it, on few documents, and as it is asked in full."""

    asked: str
    in_full: str


RECIPES = (
    AuditRecipe("laser", "laser"),
    AuditRecipe("eigenprune:calibration.task=audit_facts,calibration.samples=96", "eigenprune"),
    AuditRecipe(f"svd-llm:{_ON_EVERYTHING}", "svd-llm"),
    AuditRecipe(f"zero-sum:{_ON_EVERYTHING}", "zero-sum"),
    AuditRecipe(
        "laser-search:layers=[-1],fractions=[0.1,0.01],calibration.task=[audit_facts,audit_commonsense],"
        "calibration.samples=64",
        "laser-search",
    ),
)
"""One or two of each kind. The search tries six edits, all in the last layer."""


class Audit(RecipesCommand):
    """Look for gains and breakages on small samples, with recipes of each kind."""

    name = "audit"
    logs = True
    summary = "Ask whether a model has anything to gain from recipes"
    description = (
        "Score a model on small shipped samples (facts, arithmetic, commonsense, running text, a stereotype) unedited,"
        " under a few recipes of each kind, and under a control of each; then say in sentences whether there is"
        " anything to gain, where, and what would break. The runs are kept and resumed like all others."
    )
    epilog = EPILOG

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add_model_args(parser, "The model, as in `lm_eval run`: pretrained=NAME,dtype=float16")
        parser.add_argument(
            "--recipe",
            nargs="+",
            action="extend",
            metavar="<recipe>",
            help="In place of the audit's own recipes, and none that is a control; as in `lm_eval run`, but that it"
            " learns from the samples' training items where it names no documents. Repeatable",
        )
        parser.add_argument("--limit", type=float, metavar="<n>", help="At most so many documents of each sample")
        parser.add_argument("--device", metavar="<device>", help="As in `lm_eval run`")
        parser.add_argument(
            "--batch_size", default=BATCH_SIZE, metavar="<n>", help=f"As in `lm_eval run` (default: {BATCH_SIZE})"
        )
        parser.add_argument(
            "--output_path", metavar="<dir>", help="Where runs lie, and their database (default: results)"
        )
        add_form_arguments(parser)
        parser.set_defaults(func=self._run)

    @staticmethod
    def _run(args: argparse.Namespace) -> None:
        from harness_ext.runs.python_api import load_recipe, run

        recipes = [load_recipe(one.asked) for one in _all_asked(args)]
        _refuse_controls(recipes)
        with redirect_stdout(sys.stderr):
            result = run(**_asked(args), recipes=recipes, verbose=True)
        print(printable(_page(args, recipes, result)))
        if result.failed:
            sys.exit(MISTAKE)


def _all_asked(args: argparse.Namespace) -> tuple[AuditRecipe, ...]:
    return tuple(AuditRecipe(on_samples(one), one) for one in args.recipe) if args.recipe else RECIPES


def on_samples(asked: str) -> str:
    """A recipe as it is asked for, and where it learns and no documents are named, learning from the samples' training
    items, as the audit's own recipes do: by default most learn from more than there are.
    """
    from harness_ext.recipe.settings import EVALUATED
    from harness_ext.runs.python_api import load_recipe

    steps = load_recipe(asked).steps
    learned = [step.calibration for step in steps if step.calibration is not None]
    if not learned or any(one.task != EVALUATED for one in learned) or re.search(_NAMES_DOCUMENTS, asked):
        return asked
    fewest = min(_AT_MOST, *(one.samples for one in learned))
    changes = [f"calibration.task={_LEARNED}", f"calibration.samples={fewest}"]
    if any(step.healing is not None for step in steps):
        changes += [f"heal.task={_LEARNED}", f"heal.documents={fewest}"]
    return f"{asked}{',' if ':' in asked else ':'}{','.join(changes)}"


def _refuse_controls(recipes: Sequence[Recipe]) -> None:
    """Raise UserError for controls: a gain is what a recipe has before its control, and these have no idea."""
    if controls := [recipe.label for recipe in recipes if recipe.group == "controls"]:
        raise UserError(
            f"{', '.join(controls)}: a control is no recipe to audit, since a gain counts where a recipe beats its"
            f" control; every recipe gets {CONTROL} by itself, and `lm_eval run --recipe {shlex.quote(controls[0])}"
            " ...` scores a control alone"
        )


def _asked(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `harness_ext.run` that the flags stand for."""
    named = ("limit", "device", "batch_size", "output_path")
    given = {name: value for name in named if (value := getattr(args, name)) is not None}
    return {"model_args": args.model_args, "tasks": [TASKS], "controls": [CONTROL], **given}


def _audited(recipe: Recipe, result: RunResult) -> AuditedRecipe:
    from leaderboard.report.findings import AuditedRecipe

    receipts = [run.receipt for run in result.runs if run.receipt["recipe"]["label"] == recipe.label]
    doubts = [str(warning) for receipt in receipts[:1] for warning in (*receipt["warnings"], *too_few_tokens(receipt))]
    return AuditedRecipe(recipe.label, KINDS[recipe.group], tuple(doubts), result.failed.get(recipe.label))


def too_few_tokens(receipt: Mapping[str, Any]) -> list[str]:
    """That a recipe learned the moments of a matrix's inputs from fewer tokens than it has inputs, if so."""
    tokens = [one["tokens"] for one in receipt.get("statistics", ()) if one["name"] in _MOMENTS]
    inputs = max((matrix["shape"][1] for matrix in receipt.get("matrices", ())), default=0)
    if not tokens or min(tokens) >= inputs:
        return []
    return [
        f"it learned from {min(tokens):,} tokens, and its widest matrix has {inputs:,} inputs, so that most directions"
        " there were seen little or not at all: what it breaks here, it may not break with more texts"
    ]


def in_full(recipes: Sequence[Recipe], args: argparse.Namespace) -> str:
    """The command that asks the same of public tasks, by a recipe's own defaults where it is one of the audit's."""
    from harness_ext.runs.python_api import load_recipe

    named = {load_recipe(one.asked).label: one.in_full for one in (*RECIPES, *_all_asked(args))}
    model_args = ",".join(f"{key}={value}" for key, value in args.model_args.items())
    words = ["lm_eval", "run", "--model", "hf", "--model_args", model_args, "--tasks", _IN_FULL]
    words += ["--recipe", *(named.get(recipe.label, recipe.label) for recipe in recipes), "--control", CONTROL]
    words += ["--device", args.device] if args.device else []
    return printable(shlex.join([*words, "--batch_size", str(args.batch_size)]))


def _page(args: argparse.Namespace, recipes: Sequence[Recipe], result: RunResult) -> str:
    from leaderboard.report.findings import finding_rows, findings_page
    from leaderboard.report.findings_forms import as_markdown_page, as_terminal_page
    from leaderboard.terminal.output import written

    ordered = sorted(recipes, key=lambda recipe: list(KINDS).index(recipe.group))
    audited = [_audited(recipe, result) for recipe in ordered]
    if args.form in ("json", "csv"):
        return written(args.form, finding_rows(audited, result.cells))
    commands = {
        KINDS[group]: in_full(list(of_group), args) for group, of_group in groupby(ordered, lambda one: one.group)
    }
    model = next((cell.model for cell in result.cells), str(args.model_args["pretrained"]))
    page = findings_page(model, audited, result.cells, commands)
    return as_markdown_page(page) if args.form == "markdown" else as_terminal_page(page, terminal_style().width)
