"""One task, all models: on how many did a recipe help? Signs in a grid of recipes and models, counts in words, every
number in a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from leaderboard.app import layout, linked_table, url_state
from leaderboard.app.charts.grid import NOT_ITS_CONTROL, SIGNS, shortened, sign_grid
from leaderboard.app.colours import tinted
from leaderboard.app.download import downloads
from leaderboard.app.tables import control_text, notes, verdict_words
from leaderboard.board import across_models
from leaderboard.board.across_models import Line
from leaderboard.board.cell import COMPARED, Cell
from leaderboard.board.standings import gained
from leaderboard.compare.collapse import COLLAPSED
from leaderboard.terminal.format import beside_verdict, counted, interval, number, plain
from leaderboard.terminal.marks import MINUS, gain

DRAWN = 40  # recipes in the grid
MOST_TASKS = 12  # columns of the table over tasks


def main() -> None:
    """Draw the page."""
    st.title("Across models", anchor=False)
    first = layout.overview_or_stop()
    cells = linked_table.cells_of(
        (run.model_key for run in first.value.runs.values() if not across_models.unedited(run.recipe)), first
    )
    tasks = across_models.tasks(cells)
    if not tasks:
        st.info("Every run here is of an unedited model: this page compares what a recipe did to several models.")
        return
    found, task = chosen(cells, tasks)
    if not found:
        layout.say_nothing_left("recipe", ("recipe", "least"))
        return
    show_grid(found)
    show_counts(found)
    show_tasks(cells, tasks, [line.recipe for line in found], task)
    show_numbers(found)
    how_to_read()


def chosen(cells: Sequence[Cell], tasks: Sequence[str]) -> tuple[list[Line], str]:
    """The lines of the task, recipes and least number of models in the filters."""
    places = st.columns([2, 3, 2])
    task = url_state.one_of(places[0], "Task", tasks, "task")
    lines = across_models.lines(cells, task)
    recipes = url_state.any_of(
        places[1], "Recipes", [line.recipe for line in lines], "recipe", placeholder="All recipes"
    )
    most = max(len(line.cells) for line in lines)
    options = [str(count) for count in range(1, most + 1)]
    least = int(url_state.one_of(places[2], "On at least so many models", options, "least", first="2"))
    return [line for line in lines if len(line.cells) >= least and (not recipes or line.recipe in recipes)], task


def show_grid(found: Sequence[Line]) -> None:
    """The signs."""
    drawn = found[:DRAWN]
    if len(found) > DRAWN:
        st.caption(
            f"The first {DRAWN} of {len(found)} recipes, those on most models; choose others above. The tables hold"
            " all."
        )
    recipes = [line for line in drawn if not line.control]
    best = max(recipes or drawn, key=lambda line: (line.count("better") - line.harmful, line.compared))
    models = counted(len(across_models.models_of(drawn)), "model", "models")
    kinds = ((len(recipes), "recipe"), (len(drawn) - len(recipes), "control"))
    listed = " and ".join(counted(number, kind, f"{kind}s") for number, kind in kinds if number)
    said = f"{listed} on {models}." if len(drawn) > 1 else ""
    layout.plot(
        sign_grid(drawn),
        f"{said} {plain(best.recipe)}: {across_models.sentence(best)}. Signs:"
        f" {', '.join(f'{sign} {word}' for word, sign in SIGNS.items())}, {NOT_ITS_CONTROL} better, but not than its"
        " own control; a blank is a model that the recipe was not run on.".strip(),
        title="Recipes by models",
        cells=[cell for line in drawn for cell in line.cells.values()],
    )


def show_counts(found: Sequence[Line]) -> None:
    """One row a recipe, in words."""
    st.subheader("On how many models", anchor=False)
    rows = [
        {
            "Recipe": plain(line.recipe),
            "Verdicts": across_models.sentence(line).partition("; ")[0].partition(" (")[0],
            "Better than its control": (
                f"on {line.beats_controls} of {line.controlled}" if line.controlled else "no control was run"
            ),
            "Up / down": f"{line.up} / {line.down}",
            "Sign test p": number(line.p_value),
            "q": number(line.q_value),
            "No verdict": ", ".join(
                f"{line.count(word)} {word}" for word in ("incomparable", "failed") if line.count(word)
            ),
        }
        for line in found
    ]
    _show(rows, "counts")
    counts = [
        {
            "recipe": line.recipe,
            "task": line.task,
            "control": line.control,
            "models": len(line.cells),
            "compared": line.compared,
        }
        | {word: line.count(word) for word in (*COMPARED, "incomparable", "failed")}
        | {"up": line.up, "down": line.down, "sign_test_p": line.p_value, "sign_test_q": line.q_value}
        | {"compared_with_controls": line.controlled, "better_than_controls": line.beats_controls}
        for line in found
    ]
    downloads(counts, "recipes-across-models")


def _show(rows: Sequence[dict[str, Any]], key: str) -> None:
    """A table of recipes whose names stay in view. key: of its state."""
    st.dataframe(
        tinted(rows, []),
        hide_index=True,
        placeholder="",
        width="stretch",
        key=key,
        column_config={"Recipe": st.column_config.TextColumn(pinned=True)},
    )


def show_tasks(cells: Sequence[Cell], tasks: Sequence[str], recipes: Sequence[str], task: str) -> None:
    """The same counts for the other tasks: one row a recipe, one column a task."""
    if len(tasks) < 2:
        return
    st.subheader("On other tasks", anchor=False)
    shown = [task, *(name for name in tasks if name != task)][:MOST_TASKS]
    if len(tasks) > MOST_TASKS:
        st.caption(f"{MOST_TASKS} of {len(tasks)} tasks, those of most models.")
    by_task = {name: {line.recipe: line for line in across_models.lines(cells, name)} for name in shown}
    rows = [
        {"Recipe": plain(recipe)} | {plain(name): _brief(by_task[name].get(recipe)) for name in shown}
        for recipe in recipes
    ]
    _show(rows, "tasks")
    downloads(rows, "recipes-across-tasks")


def _brief(line: Line | None) -> str:
    """`better on 7 of 9, worse on 1`; a blank where nothing was run."""
    if line is None:
        return ""
    if not line.compared:
        return "no verdict"
    worse = "".join(f", {word} on {line.count(word)}" for word in ("worse", COLLAPSED) if line.count(word))
    control = f", than its control on {line.beats_controls}" if line.controlled else ""
    return f"better on {line.count('better')} of {line.compared}{worse}{control}"


def show_numbers(found: Sequence[Line]) -> None:
    """Every difference: one row a recipe, one column a model; beneath it one row a run."""
    st.subheader("Differences from each model's baseline", anchor=False)
    models = across_models.models_of(found)
    short = shortened(models)
    rows = [
        {"Recipe": plain(line.recipe)} | {short[model]: _text(line.cells.get(model)) for model in models}
        for line in found
    ]
    st.dataframe(
        tinted(rows, list(short.values())),
        hide_index=True,
        placeholder="",
        width="stretch",
        key="models",
        column_config={"Recipe": st.column_config.TextColumn(pinned=True)},
    )
    runs = [cell for line in found for cell in line.cells.values()]
    downloads([_record(cell) for cell in runs], "differences-across-models")
    with st.expander(f"All {len(runs)} runs"):
        st.caption("Tick a row's box to open its run.")
        linked_table.linked_table(
            [_row(cell) for cell in runs], [cell.run_id for cell in runs], "runs", words=["Verdict"]
        )


def _text(cell: Cell | None) -> str:
    if cell is None:
        return ""
    mark = " unpaired" if cell.unpaired else ""
    number = gain(gained(cell), minus=MINUS)
    text = " ".join(filter(None, [verdict_words(cell), f"{number}{mark}" if number else ""]))
    beside = "" if cell.verdict == "better" else beside_verdict(cell)
    return ", ".join(filter(None, [text, beside, plain(cell.subset or "")]))


def _row(cell: Cell) -> dict[str, Any]:
    return {
        "Recipe": plain(cell.name),
        "Model": plain(cell.model),
        "Verdict": verdict_words(cell),
        "Score minus baseline [95 %]": interval(cell),
        "Against its control": "; ".join(map(control_text, cell.against_controls)),
        "Score": number(cell.score),
        "Baseline": number(cell.baseline_score),
        "Notes": notes(cell),
    }


def _record(cell: Cell) -> dict[str, Any]:
    """The same with all digits."""
    return {
        "recipe": cell.recipe,
        "name": cell.name,
        "model": cell.model,
        "task": cell.task,
        "metric": cell.metric,
        "filter": cell.filter,
        "verdict": cell.verdict,
        "delta": cell.delta,
        "low": cell.low,
        "high": cell.high,
        "unpaired": cell.unpaired,
        "improvement": cell.improvement,
        "p_value": cell.p_value,
        "q_value": cell.q_value,
        "score": cell.score,
        "baseline_score": cell.baseline_score,
        "better_than_controls": cell.beats_controls,
        "documents": cell.n,
        "parameters_kept": cell.parameters_kept,
        "run_id": cell.run_id,
        "baseline_run": cell.baseline_run,
    }


def how_to_read() -> None:
    """The counts, explained."""
    with st.expander("How to read this"):
        st.markdown(
            "*Better on 7 of 9*: of the nine models with a verdict, the recipe was significantly better on seven."
            " Incomparable and failed runs are counted beside, not among them. A model without a run is a blank, and no"
            " number here is a mean over models. A recipe's latest run on a model speaks for it. *Better than its"
            " control* counts the models where it is also significantly better than every control of its own: an edit"
            " of the same size without the recipe's idea.\n\n*Up / down* counts"
            " the signs of the differences, significant or not: up is an improvement, whichever way the metric runs."
            " The sign test asks whether as many ups and downs would come about by chance, if up and down were equally"
            " likely; fewer than five are not tested. q is its p after correction over the recipes of the task"
            " (Benjamini-Hochberg). It takes the models as independent: of several fine-tunings of one model, it is too"
            " sure."
        )


main()
