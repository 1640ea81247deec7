"""`lm_eval claims`: what papers report, and whether it is true: listed, shown, and measured by a command."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness_ext.cli.ingest import add_database_argument
from harness_ext.cli.terminal import add_form_arguments
from harness_ext.errors import UserError
from harness_ext.lm_eval_adapter.subcommand import RecipesCommand, add_model_args
from leaderboard.commands import is_default, run_arguments
from leaderboard.terminal.path_flags import database_path

if TYPE_CHECKING:
    from harness_ext.recipe.recipe import Recipe
    from harness_ext.recipe.settings import Calibration
    from leaderboard.board.cell import Cell
    from leaderboard.board.reported import Reported

SMALLER_LIMIT = 200
"""Documents of a claim's smaller form."""
_AS_IN_RUN = ("limit", "device", "batch_size", "seed", "include_path", "output_path")
"""Options that are handed on to `lm_eval run` as they are given."""
_BY_DEFAULT = "begins with the start token where the tokenizer sets one by default, as Llama's does"
_EACH = f"each {_BY_DEFAULT}; code of papers has one before the whole text, or none"
_WITHOUT = "add_bos_token=False in --model_args leaves it out"
_WINDOWS = {
    "wikitext2_128": f"{_EACH}: {_WITHOUT}",
    "wikitext2_2048": f"{_EACH} (LLaMA-7B unedited: 5.68 and 5.67): {_WITHOUT}",
    "wikitext2_4096": f"{_EACH}: {_WITHOUT}",
    "c4_first_2000": f"only the first {_BY_DEFAULT}: the texts are joined and tokenised at once",
}
"""Tasks whose windows may begin otherwise than a paper's, and how."""
EPILOG = """
examples:
  $ lm_eval claims
  $ lm_eval claims list --model llama-7b --task wikitext2_2048
  $ lm_eval claims show eigenpruning/phi-2/int_mult
  $ lm_eval claims run eigenpruning/phi-2/int_mult --device cuda
  $ lm_eval claims run eigenpruning/phi-2/int_mult --smaller
"""


class Claims(RecipesCommand):
    """List, show and measure the claims of papers."""

    name = "claims"
    summary = "List what papers report, and measure whether it is true"
    description = (
        "List the published claims that are known here, show one with its protocol, or measure it: the paper's model,"
        " task and setting, a control of the same budget, and a sentence that says whether the claim holds. Alone it"
        " lists."
    )
    epilog = EPILOG

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        actions = parser.add_subparsers(metavar="[ACTION]")
        listed = actions.add_parser("list", help="List claims, a line each, with what was measured of them")
        for one, inner in ((parser, False), (listed, True)):
            default = argparse.SUPPRESS if inner else ""
            for name, what in (("paper", "paper or method"), ("model", "model"), ("task", "task")):
                one.add_argument(
                    f"--{name}",
                    default=default,
                    metavar="<text>",
                    help=f"Only claims whose {what} has this in its name, blanks, dashes and case aside",
                )
            add_database_argument(one, inner=inner)
            add_form_arguments(one, **({"default": argparse.SUPPRESS} if inner else {}))
            one.set_defaults(func=self._list)
        show = actions.add_parser("show", help="Show one claim: where it stands, its setting, what was measured of it")
        run = actions.add_parser("run", help="Measure one claim, with its control, and say whether it holds")
        for one in (show, run):
            one.add_argument("claim", metavar="CLAIM", help="PAPER/MODEL/TASK, as `claims` lists it, or its beginning")
        add_database_argument(show, inner=True)
        show.set_defaults(func=self._show)
        _add_run_arguments(run)
        run.set_defaults(func=self._run, logs=True)

    @staticmethod
    def _list(args: argparse.Namespace) -> None:
        from harness_ext.cli.claim_listing import chosen, listing, rows_of, why_none
        from leaderboard.terminal.output import terminal_style, written

        wanted = {name: getattr(args, name) for name in ("paper", "model", "task")}
        entries, others = chosen(wanted)
        states = _states(_stored_cells(args.database), entries)
        if args.form == "text":
            print("\n".join(listing(entries, others, states, terminal_style().width)) or why_none(wanted))
            return
        rows = rows_of(entries, others, states)
        print(written(args.form, rows, rows_of(entries, others, states, as_text=True)))

    @staticmethod
    def _show(args: argparse.Namespace) -> None:
        from leaderboard.board.claims import of_identity, recipe_for
        from leaderboard.report.claim_words import claim_lines

        rows = of_identity(args.claim)
        told = list(_sentences(rows, _stored_cells(args.database)))
        facts = _facts_of(recipe_for(rows[0]), ", ".join(rows[0].tasks))
        command = shlex.join(["lm_eval", "claims", "run", rows[0].identity, *run_arguments(args.database)])
        print("\n".join(claim_lines(rows, command, facts)))
        if told:
            print("\n" + "\n".join(told))

    @staticmethod
    def _run(args: argparse.Namespace) -> None:
        from harness_ext.cli.run_recipes import quoted
        from harness_ext.cli.smaller_claims import depth_line, quieten_limit, standing_in
        from harness_ext.runs.python_api import run
        from leaderboard.board.claims import of_identity
        from leaderboard.report.claim_words import claim_lines

        rows = of_identity(args.claim)
        _refuse_database(args.database)
        asked = _protocol(rows[0], args)
        pretrained = str(asked["model_args"]["pretrained"])
        stand_in = [standing_in(rows[0].task), depth_line(rows[0], pretrained)] if args.smaller else []
        told = claim_lines(rows, _as_command(asked), _facts_of(asked["recipes"][0], ", ".join(asked["tasks"])))
        print("\n".join([*told, *filter(None, stand_in)]), flush=True)
        if args.smaller and args.limit is None:
            quieten_limit()
        result = run(**asked, verbose=True)
        found = list(_sentences(rows, result.cells, is_the_claim=_is_of_the_claim(rows[0], args)))
        reasons = [f"the recipe failed: {reason}" for reason in result.failed.values()]
        print("\n" + "\n".join(found or reasons or ["no score of the claim's metric came of it"]), flush=True)
        database = quoted(result.database)
        edited = result.runs[:2][-1].path  # the unedited model's comes first
        print(f"\nruns      {result.runs[0].path.parent}", file=sys.stderr)
        print(f"details   lm_eval show --database {database} {quoted(edited)}", file=sys.stderr)
        print(f"browse    lm_eval leaderboard --database {database}", file=sys.stderr)


def _add_run_arguments(run: argparse.ArgumentParser) -> None:
    add_model_args(
        run,
        "Added to the paper's model: dtype=float16, parallelize=True; with pretrained= it is another model",
        required=False,
    )
    run.add_argument(
        "--control",
        nargs="+",
        metavar="<name>",
        help="Controls (default: random-subspace)",
    )
    run.add_argument(
        "--smaller",
        action="store_true",
        help="The same recipe, budget and control on a model that fits (the embedded one, or --model_args pretrained=)"
        f" and at most {SMALLER_LIMIT} documents of a shipped sample in place of the claim's task, without data from a"
        " hub: it shows that the way works, and is not the claim",
    )
    run.add_argument("--limit", type=float, metavar="<n>", help="At most so many documents; all by default")
    run.add_argument("--device", metavar="<device>", help="As in `lm_eval run`")
    run.add_argument("--batch_size", metavar="<n>", help="As in `lm_eval run`")
    run.add_argument("--seed", type=int, metavar="<n>", help="As in `lm_eval run`")
    run.add_argument("--include_path", metavar="<dir>", help="As in `lm_eval run`")
    run.add_argument(
        "--output_path",
        default=None,
        metavar="<dir>",
        help="Where runs lie, and beside them their database, leaderboard.duckdb, which `claims --database` reads"
        " (default: results)",
    )
    # Told why it is none of this command's flags, rather than that there is no such flag.
    run.add_argument("--database", type=database_path, default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def _refuse_database(database: Path) -> None:
    """Raise UserError for a database that is named: it follows from where the runs lie."""
    if is_default(database):
        return
    folder = run_arguments(database)
    instead = f", here {shlex.join(folder)}" if folder else ", and `lm_eval ingest` takes them into another one"
    raise UserError(
        "claims run has no --database, since runs are taken into the one beside them, as in `lm_eval run`:"
        f" --output_path names their folder{instead}"
    )


def _protocol(entry: Reported, args: argparse.Namespace) -> dict[str, Any]:
    """The claim as arguments of `harness_ext.run`. Raises UserError where no recipe, no task or no model of the hub
    stands for it.
    """
    from harness_ext.cli.smaller_claims import sample_for, smaller_recipe
    from leaderboard.board.claims import of_unedited, recipe_for, why_not_measured

    recipe = recipe_for(entry)
    given = dict(args.model_args or {})
    if recipe is None:
        raise UserError(f"the claim is shown, and cannot be measured: {why_not_measured(entry)}")
    model = "demo" if args.smaller else next(iter(entry.hub_names), None)
    if "pretrained" not in given and model is None:
        raise UserError(f"no name of {entry.model} on the hub is known: give one with --model_args pretrained=")
    smaller = {"limit": SMALLER_LIMIT} if args.smaller else {}
    return {
        "model_args": {"pretrained": model, **given},
        "tasks": [sample_for(entry.task)] if args.smaller else list(entry.tasks),
        "recipes": [smaller_recipe(recipe, entry, str(given.get("pretrained", model))) if args.smaller else recipe],
        "controls": args.control or ([] if of_unedited(entry) else ["random-subspace"]),
        **smaller,
        **{name: value for name in _AS_IN_RUN if (value := getattr(args, name)) is not None},
    }


def _facts_of(recipe: str | None, task: str) -> list[tuple[str, str]]:
    """What a claim's row does not say of what is run: where the recipe departs from its source, the documents that it
    learns from, and how the task's windows begin.
    """
    from harness_ext.runs.python_api import load_recipe

    if recipe is None:
        return []
    loaded = load_recipe(recipe)
    used = [step.calibration for step in loaded.steps if step.calibration is not None]
    learned = dict.fromkeys(_learned_from(calibration, task) for calibration in used)
    return [
        ("caveats", _caveats_of(loaded, recipe)),
        *(("learns", f"from {text}") for text in learned),
        ("windows", _WINDOWS.get(task, "")),
    ]


def _caveats_of(loaded: Recipe, recipe: str) -> str:
    """The caveats are written for the recipe as it is shipped, and a claim's run may set what they are about."""
    from harness_ext.recipe.overrides import parse_changes, split_specification

    if not loaded.caveats:
        return ""
    changed = ", ".join(parse_changes(recipe, split_specification(recipe)[2]))
    shipped = f" as it is shipped (this run sets {changed} itself)" if changed else ""
    return f"of the recipe {loaded.name}{shipped}: {loaded.caveats}"


def _learned_from(calibration: Calibration, task: str) -> str:
    from harness_ext.recipe.settings import EVALUATED

    tasks = ", ".join(task if one == EVALUATED else one for one in calibration.tasks)
    if calibration.split == "test":
        return f"{calibration.samples} of the documents of {tasks} that would be scored, which are out of every score"
    split = {"train": "training"}.get(calibration.split, calibration.split)
    return f"{calibration.samples} documents of the {split} split of {tasks}"


def _as_command(asked: dict[str, Any]) -> str:
    """What is run, as one would type it, but for secrets."""
    from harness_ext.cli.secrecy import printable

    given = ",".join(f"{key}={value}" for key, value in asked["model_args"].items())
    words = ["lm_eval", "run", "--model", "hf", "--model_args", given, "--tasks", *asked["tasks"]]
    words += ["--recipe", *asked["recipes"]]
    words += ["--control", *asked["controls"]] if asked["controls"] else []
    for name in _AS_IN_RUN:
        words += [f"--{name}", f"{asked[name]:.12g}" if name == "limit" else str(asked[name])] if name in asked else []
    return printable(shlex.join(words))


def _is_of_the_claim(entry: Reported, args: argparse.Namespace) -> bool:
    """Whether what is run is the claim, and neither a smaller form nor another model."""
    from leaderboard.board.claims import is_of_model

    given = (args.model_args or {}).get("pretrained")
    return not args.smaller and (given is None or is_of_model(entry, str(given)))


def _stored_cells(database: Path) -> Sequence[Cell]:
    """What was measured here; nothing where the default database is not there. Raises MissingDatabase for another."""
    from leaderboard.board.board import board
    from leaderboard.errors import MissingDatabase
    from leaderboard.store.database import open_store

    try:
        with open_store(database, read_only=True) as store:
            return board(store)
    except MissingDatabase:
        if not is_default(database):
            raise
        return []


def _states(cells: Sequence[Cell], entries: Sequence[Reported]) -> dict[Reported, str]:
    """The state of each claim that was measured: the words of its runs, each once."""
    from leaderboard.board.claims import claims
    from leaderboard.report.claim_words import judged_claim

    states: dict[Reported, list[str]] = {}
    for claim in claims(cells, entries):
        if claim.cell is not None:
            states.setdefault(claim.reported, []).append(judged_claim(claim.reported, claim.cell).word)
    return {entry: ", ".join(dict.fromkeys(words)) for entry, words in states.items()}


def _sentences(rows: Sequence[Reported], cells: Sequence[Cell], *, is_the_claim: bool = True) -> Iterator[str]:
    """A sentence for each run of the claim, a metric each. Of a smaller form, the model is another's."""
    from harness_ext.cli.smaller_claims import smaller_sentences
    from leaderboard.board.claims import claims
    from leaderboard.report.claim_words import verdict_sentence

    if is_the_claim:
        for claim in claims(cells, rows):
            if claim.cell is not None:
                yield f"{claim.reported.metric}: {verdict_sentence(claim.reported, claim.cell)}"
        return
    yield from smaller_sentences(rows, cells)
