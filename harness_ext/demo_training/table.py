"""Measure every shipped recipe, its controls and the fine-tuning reference on the embedded model, and write the table
of the model's card.

`python -m harness_ext.demo_training.table --out DIR` runs sessions of the project's own command, so every number comes
from a run directory under `DIR/runs`; started again, it goes on from where it stopped. Recipes and controls that draw
anything, documents or directions, are run from each seed, the others once. The verdicts are those of one board of all
these runs. Finished runs are not run again, so begin in an empty folder after the code of a method has changed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any, NamedTuple

from harness_ext.demo import demo_path
from harness_ext.demo_training import card, figures
from harness_ext.demo_training.figures import CONTROLS, Kind, Row
from harness_ext.demo_training.finetune import FineTuning, fine_tune
from harness_ext.demo_training.spread import TASKS, run_on_tasks, scores
from harness_ext.editing.controls import SHUFFLED_LABELS
from harness_ext.errors import UserError
from harness_ext.methods.registry import NEEDS
from harness_ext.recipe.recipe import Recipe, parse_recipe, shipped_names
from harness_ext.recipe.schema import described
from harness_ext.runs.progress import ProgressReport, report_for
from leaderboard.errors import LeaderboardError

if TYPE_CHECKING:
    from harness_ext.calibration.documents import LabelledDocument
    from harness_ext.runs.session import Session
    from harness_ext.storage.rundir import FinishedRun

SEEDS = (0, 1, 2)
STEPS = (1, 10, 30, 100)
DRAWN_CONTROLS = ("random-subspace", "noise")
NEEDS_ANSWERS = NEEDS[NEEDS.index("labelled documents") :]
TEACHER = "ablation-prune"
"""The recipe whose calibration documents the fine-tuning gets."""


class Command(NamedTuple):
    """One command: what stands after `--recipe` and after `--control`."""

    recipes: tuple[str, ...]
    controls: tuple[str, ...]


class Place(NamedTuple):
    """What a row of the table is about; see `Row`."""

    kind: Kind
    recipe: str
    control: str | None


class Variant(NamedTuple):
    """One run, and where in the table it belongs. seconds: to find and make the edit, or to train, scoring apart."""

    place: Place
    run: FinishedRun
    seconds: float


def commands(names: Iterable[str], seed: int) -> list[Command]:
    """The commands that run these recipes and their controls from one seed: one for each set of controls."""
    by_controls: dict[tuple[str, ...], list[str]] = {}
    for recipe in map(parse_recipe, names):
        by_controls.setdefault(_controls(recipe, seed), []).append(_from_seed(recipe, seed))
    return [Command(tuple(recipes), controls) for controls, recipes in by_controls.items()]


def _controls(recipe: Recipe, seed: int) -> tuple[str, ...]:
    """What shows something about a recipe: nothing where it is itself a control or changes nothing; exchanged answers
    only where it learns from answers, not from texts alone.
    """
    if recipe.is_baseline or recipe.name in (*CONTROLS, "identity"):
        return ()
    drawn = tuple(f"{name}:seed={seed}" for name in DRAWN_CONTROLS)
    learns = any(described(step.method).needs in NEEDS_ANSWERS for step in recipe.steps)
    return (*drawn, "bottom-k", SHUFFLED_LABELS) if learns else (*drawn, "bottom-k")


def _from_seed(recipe: Recipe, seed: int) -> str:
    """The recipe with its draws from this seed: calibration documents, and whatever else a method that calibrates or
    draws may draw.
    """
    calibrated = any(step.calibration is not None for step in recipe.steps)
    draws = any(
        "generator" in described(step.method).engine_arguments and step.parameters.get("decomposition") != "exact"
        for step in recipe.steps
    )
    changes = ([f"calibration.seed={seed}"] if calibrated else []) + ([f"seed={seed}"] if calibrated or draws else [])
    return f"{recipe.name}:{','.join(changes)}" if changes else recipe.name


def session(model: str, command: Command, out: Path, report: ProgressReport) -> Session:
    """The session of `lm_eval run` with these recipes and controls on the tasks of the table."""
    from harness_ext.cli import RecipesCLI
    from harness_ext.cli.config import asked, run_config
    from harness_ext.runs.session import Session

    arguments = [*run_on_tasks(model), "--output_path", str(out / "runs"), "--recipe", *command.recipes]
    arguments += ["--control", *command.controls] if command.controls else []
    parsed = RecipesCLI()._parser.parse_args(arguments)
    return Session(replace(run_config(parsed, asked(parsed, {})), command=("lm_eval", *arguments)), report)


def of_recipes(names: Sequence[str], seed: int, out: Path, report: ProgressReport) -> Iterator[Variant]:
    """The recipes and their controls from one seed, the baseline first."""
    for command in commands(names, seed):
        known: dict[str, str] = {}
        for outcome in session("demo", command, out, report).run():
            recipe, run = outcome.recipe, outcome.run
            if recipe.control_of is None:
                known[recipe.recipe_id] = recipe.name
            kind: Kind = "baseline" if recipe.is_baseline else "control" if recipe.control else "recipe"
            seconds = run.receipt["seconds"]
            yield Variant(
                Place(kind, known[recipe.control_of or recipe.recipe_id], recipe.control),
                run,
                seconds["calibrate"] + seconds["edit"],
            )


def documents_of(recipe: str, seed: int, out: Path, report: ProgressReport) -> list[LabelledDocument]:
    """The calibration documents that a session on these tasks draws for the recipe from this seed."""
    from harness_ext.calibration.documents import PromptSettings, draw_documents

    spec = session("demo", Command((recipe,), ()), out, report).spec
    calibration = spec.resolved(parse_recipe(recipe)).steps[0].calibration
    assert calibration is not None
    asked = calibration.model_copy(update={"seed": seed})
    sets = draw_documents(asked, spec.tasks.by_name, spec.scored_identities, PromptSettings())
    return [document for drawn in sets for document in drawn.documents]


def of_fine_tuning(seed: int, out: Path, report: ProgressReport) -> Iterator[Variant]:
    """The embedded model, fine-tuned on the documents that `TEACHER` gets from this seed, and scored unedited."""
    documents = documents_of(TEACHER, seed, out, report)
    for steps in STEPS:
        folder = out / "fine-tuned" / f"steps-{steps}-seed-{seed}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        seconds = fine_tune(FineTuning(steps), documents, folder)
        (outcome,) = session(str(folder), Command(("baseline",), ()), out, report).run()
        yield Variant(
            Place("fine-tuning", f"fine-tuning, {steps} {'step' if steps == 1 else 'steps'}", None),
            outcome.run,
            seconds,
        )


def verdicts(variants: Sequence[Variant]) -> dict[tuple[Path, str], str]:
    """What the board says of each run and task; fine-tuned models are compared with the unedited model as recipes are.
    Raises UserError for a run that cannot be read.
    """
    from leaderboard.board.board import board
    from leaderboard.ingest import ingest
    from leaderboard.store.queries import runs

    paths = list(dict.fromkeys(variant.run.path.resolve() for variant in variants))
    report = ingest(paths, None)
    assert report.store is not None
    with closing(report.store.connection):
        if report.rejected:
            raise UserError(
                "\n".join(
                    f"{path} cannot be used: {reason}; remove it and run the same command again"
                    for path, reason in report.rejected
                )
            )
        places = {run.run_id: Path(run.path).resolve() for run in runs(report.store)}
        baseline = next(run for run, path in places.items() if path == paths[0])
        return {(places[cell.run_id], cell.task): cell.verdict for cell in board(report.store, baseline_run=baseline)}


def rows(variants: Sequence[Variant]) -> list[Row]:
    """The rows of the table: baseline, fine-tuning, then each recipe before its controls."""
    found = verdicts(variants)
    by_place: dict[Place, list[Variant]] = {}
    for variant in variants:
        by_place.setdefault(variant.place, []).append(variant)
    return [_row(place, by_place[place], found) for place in sorted(by_place, key=_order)]


def _order(place: Place) -> tuple[int, str, int]:
    if place.kind in ("baseline", "fine-tuning"):
        return int(place.kind == "fine-tuning"), "", 0
    return 2, place.recipe, 0 if place.control is None else 1 + CONTROLS.index(place.control)


def _row(place: Place, variants: Sequence[Variant], found: Mapping[tuple[Path, str], str]) -> Row:
    if len({variant.run.path for variant in variants}) == 1:
        variants = variants[:1]
    of_runs = [dict.fromkeys(TASKS) if variant.run.failed else scores(variant.run.path) for variant in variants]
    words = [
        {task: "failed" if variant.run.failed else found[variant.run.path.resolve(), task] for task in TASKS}
        for variant in variants
    ]
    totals = [variant.run.receipt["totals"] for variant in variants if not variant.run.failed]
    return Row(
        *place,
        fingerprint=None if place.kind == "fine-tuning" else parse_recipe(place.recipe).fingerprint,
        kept=(
            round(mean(total["parameters_after"] / total["parameters_before"] for total in totals), 4)
            if totals
            else None
        ),
        seconds=round(mean(variant.seconds for variant in variants), 3),
        trials=_trials([variant.run.receipt for variant in variants]),
        scores={task: [None if (score := run[task]) is None else round(score, 6) for run in of_runs] for task in TASKS},
        verdicts={task: [run[task] for run in words] for task in TASKS},
    )


def _trials(receipts: Sequence[Mapping[str, Any]]) -> float | None:
    counts = [
        sum(len(search["trials"]) for search in searches)
        for receipt in receipts
        if (searches := receipt.get("searches"))
    ]
    return round(mean(counts), 1) if counts else None


def measure(names: Sequence[str], seeds: Sequence[int], out: Path, report: ProgressReport) -> list[Row]:
    """Run what is not there yet, and make the rows."""
    import torch

    # As the model was made: the order of a sum, and so the last digits, should not hang on the number of cores.
    torch.set_num_threads(1)
    variants = [
        variant
        for seed in seeds
        for variant in (*of_recipes(names, seed, out, report), *of_fine_tuning(seed, out, report))
    ]
    return rows(variants)


def publish() -> None:
    """Write the model's card from the stored figures."""
    (demo_path() / "README.md").write_text(card.render(), encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m harness_ext.demo_training.table",
        description="Measure every recipe on the embedded model, and write the table of the model's card.",
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the runs; the same command goes on from what is there"
    )
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=list(SEEDS),
        help="seeds of all that is drawn; others than %(default)s are printed, not stored",
    )
    parser.add_argument(
        "--recipe",
        action="append",
        choices=shipped_names(),
        metavar="NAME",
        help="this shipped recipe alone, printed, not stored (repeatable)",
    )
    options = parser.parse_args(arguments)
    try:
        found = measure(options.recipe or shipped_names(), options.seeds, options.out, report_for(None))
    except (UserError, LeaderboardError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if options.recipe or tuple(options.seeds) != SEEDS:
        print(figures.full_table(found))
        return
    figures.write(found)
    publish()


if __name__ == "__main__":
    main()
