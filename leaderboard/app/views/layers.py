"""Which layers and matrices were edited, to what rank, and what became of the score: a map of every receipt of a
model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import streamlit as st

from leaderboard.app import data, layout, linked_table, url_state
from leaderboard.app.charts.grid import MEASURES, place_map, place_sentence
from leaderboard.app.colours import NEUTRAL, word_colour
from leaderboard.app.download import downloads
from leaderboard.app.tables import verdict_words
from leaderboard.board.cell import COMPARED, Cell
from leaderboard.board.layers import LayerEdit, LayerPlace, edits, matrices_of, places, verdicts
from leaderboard.terminal.format import counted, interval, number, percent, plain

ANY = "any number"
RANKS = {
    "under 10 %": (-1.0, 0.1),
    "10 to 50 %": (0.1, 0.5),
    "50 to 90 %": (0.5, 0.9),
    "over 90 %": (0.9, float("inf")),
}
DRAWN, LISTED = 3_000, 2_000  # points of the plot, rows of the table


class Choice(NamedTuple):
    """The edits of the filters, the task whose verdicts are shown, that task's cells by run, and what colours the
    map.
    """

    shown: list[LayerEdit]
    task: str
    by_run: dict[str, Cell]
    measure: str


def main() -> None:
    """Draw the page."""
    st.title("Layers", anchor=False)
    first = layout.answer_or_stop(edits)
    found = first.value
    if not found:
        st.info(
            "No run here has a receipt that names an edited matrix. Runs made with --recipe have one; results of plain"
            " lm_eval do not."
        )
        return
    shown, task, by_run, measure = chosen(found, first)
    if not shown:
        layout.say_nothing_left("edit", ("recipe", "most", "rank", "matrix"))
        return
    show_map(shown, by_run, task, measure)
    show_ranks(shown, by_run, task)
    show_edits(shown, by_run)
    how_to_read()


def chosen(found: Sequence[LayerEdit], answer: data.Answer[list[LayerEdit]]) -> Choice:
    """What the filters leave."""
    first, second = st.columns([2, 2, 4]), st.columns([2, 2, 2, 2])
    overview = layout.further_or_stop(data.overview, answer)
    layout.resolve_model(overview)
    models = {edit.model_key: overview.names.get(edit.model_key, edit.model_name) for edit in found}
    model = url_state.one_of(
        first[0],
        "Model",
        sorted(set(models.values())),
        "model",
        first=_most([models[edit.model_key] for edit in found]),
    )
    of_model = [edit for edit in found if models[edit.model_key] == model]
    runs = {edit.run_id for edit in of_model}
    cells = linked_table.cells_of((edit.model_key for edit in of_model), answer)
    tasks = sorted({cell.task for cell in cells if cell.run_id in runs}) or ["(none)"]
    task = url_state.one_of(first[1], "Verdicts on the task", tasks, "task")
    recipes = url_state.any_of(
        first[2], "Recipes", sorted({edit.recipe for edit in of_model}), "recipe", placeholder="All recipes"
    )
    sizes = [str(size) for size in sorted({edit.edited for edit in of_model})]
    most = url_state.one_of(second[0], "Matrices a run edits, at most", [ANY, *sizes], "most")
    ranks = url_state.any_of(second[1], "Rank kept", list(RANKS), "rank", placeholder="Any rank")
    matrices = url_state.any_of(second[2], "Matrices", matrices_of(of_model), "matrix", placeholder="All matrices")
    measure = url_state.one_of(second[3], "Colour shows", list(MEASURES), "measure")
    shown = [
        edit
        for edit in of_model
        if (not recipes or edit.recipe in recipes)
        and (most == ANY or edit.edited <= int(most))
        and (not matrices or edit.matrix in matrices)
        and (not ranks or any(_in(edit, RANKS[name]) for name in ranks))
    ]
    return Choice(shown, task, verdicts(cells, task), measure)


def _most(names: Sequence[str]) -> str:
    return max(sorted(set(names)), key=names.count)


def _in(edit: LayerEdit, span: tuple[float, float]) -> bool:
    return edit.rank_kept is not None and span[0] < edit.rank_kept <= span[1]


def show_map(shown: Sequence[LayerEdit], by_run: dict[str, Cell], task: str, measure: str) -> None:
    """The map of places, and the same in a sentence."""
    gathered = places(shown, by_run)
    runs = len({edit.run_id for edit in shown})
    said = (
        f"{counted(runs, 'run', 'runs')} edited {counted(len(gathered), 'place', 'places')} (a layer and a matrix)."
        f" {place_sentence(gathered, plain(task))} A place that is not drawn was not edited, or has no such number."
    )
    layout.plot(place_map(gathered, measure), said, title=f"{measure.capitalize()} by layer and matrix")
    downloads([_place(place, task) for place in gathered], "places")


def _place(place: LayerPlace, task: str) -> dict[str, Any]:
    words = (*COMPARED, "incomparable", "failed")
    return {
        "layer": place.layer,
        "matrix": place.matrix,
        "runs": place.runs,
        "least_rank_kept": place.least_kept,
        "most_rank_kept": place.most_kept,
        "task": task,
    } | {word: place.verdicts[word] for word in words}


def show_ranks(shown: Sequence[LayerEdit], by_run: dict[str, Cell], task: str) -> None:
    """The rank kept of each edit against its run's change of score."""
    told = [
        edit
        for edit in shown
        if edit.rank_kept is not None and edit.run_id in by_run and by_run[edit.run_id].improvement is not None
    ]
    if not told:
        return
    st.subheader("Rank kept and score", anchor=False)
    drawn = told[:: -(-len(told) // DRAWN)]
    every = "" if len(drawn) == len(told) else f" Only {len(drawn):,} of {len(told):,} points are drawn, evenly chosen."
    said = (
        "A point is one matrix in one run: from left to right the share of its rank that was kept, upwards what the"
        f" run gained on {plain(task)}, coloured by the run's verdict.{every}"
    )
    layout.plot(rank_chart(drawn, by_run), said, title="Rank kept and change of score")


def rank_chart(drawn: Sequence[LayerEdit], by_run: dict[str, Cell]) -> Any:
    """An altair chart of edits that have a rank, of runs that have an improvement."""
    import altair as alt
    import pandas as pd

    rows = pd.DataFrame(
        [
            {
                "kept": edit.rank_kept,
                "gain": by_run[edit.run_id].improvement,
                "verdict": by_run[edit.run_id].verdict,
                "recipe": plain(edit.recipe),
                "place": f"{plain(edit.matrix)}, layer {'none' if edit.layer is None else edit.layer}",
                "edited": edit.edited,
            }
            for edit in drawn
        ]
    )
    zero = alt.Chart(pd.DataFrame({"zero": [0.0]})).mark_rule(color=NEUTRAL, strokeDash=[4, 3]).encode(y="zero:Q")
    points = (
        alt.Chart(rows)
        .mark_point(filled=True, size=45, opacity=0.55)
        .encode(
            x=alt.X(
                "kept:Q",
                title="share of the rank kept",
                axis=alt.Axis(format="%", tickCount=5),
                scale=alt.Scale(domain=[0, max(1.0, float(rows["kept"].max()))]),
            ),
            y=alt.Y("gain:Q", title="gain of the run (up is better)"),
            color=word_colour("verdict", rows["verdict"], legend=True),
            shape=alt.Shape("verdict:N", legend=None),
            tooltip=[
                alt.Tooltip(f"{name}:N", title=title)
                for name, title in (
                    ("recipe", "recipe"),
                    ("place", "place"),
                    ("verdict", "verdict"),
                    ("edited", "matrices of the run"),
                )
            ],
        )
    )
    return alt.layer(zero, points).properties(height=360).configure_view(strokeOpacity=0)


def show_edits(shown: Sequence[LayerEdit], by_run: dict[str, Cell]) -> None:
    """Every edit of every run; a ticked row opens the run."""
    st.subheader("All edits", anchor=False)
    st.caption(
        "Tick a row's box to open its run."
        + (f" The first {LISTED:,} of {len(shown):,}; the files hold all." if len(shown) > LISTED else "")
    )
    listed = shown[:LISTED]
    linked_table.linked_table(
        [_row(edit, by_run.get(edit.run_id)) for edit in listed],
        [edit.run_id for edit in listed],
        "edits",
        words=["Verdict"],
    )
    downloads([_record(edit, by_run.get(edit.run_id)) for edit in shown], "edits")


def _row(edit: LayerEdit, cell: Cell | None) -> dict[str, Any]:
    return {
        "Recipe": plain(edit.recipe),
        "Layer": "" if edit.layer is None else str(edit.layer),
        "Matrix": plain(edit.matrix) + (f" ({edit.parts} parts)" if edit.parts > 1 else ""),
        "Rank": (
            "" if edit.rank_before is None or edit.rank_after is None else f"{edit.rank_before} -> {edit.rank_after}"
        ),
        "Kept": percent(edit.rank_kept),
        "Verdict": verdict_words(cell) if cell else "",
        "Score minus baseline [95 %]": interval(cell) if cell else "",
        "Energy kept": percent(edit.energy_kept),
        "Relative error": number(edit.relative_error),
        "Matrices of the run": str(edit.edited),
        "Methods": plain(edit.methods or ""),
        "Shape": plain(edit.shape or ""),
    }


def _record(edit: LayerEdit, cell: Cell | None) -> dict[str, Any]:
    """The same with all digits."""
    return {
        "run_id": edit.run_id,
        "model": edit.model_name,
        "recipe": edit.recipe,
        "control": edit.control,
        "layer": edit.layer,
        "matrix": edit.matrix,
        "shape": edit.shape,
        "parts": edit.parts,
        "rank_before": edit.rank_before,
        "rank_after": edit.rank_after,
        "rank_kept": edit.rank_kept,
        "energy_kept": edit.energy_kept,
        "relative_error": edit.relative_error,
        "methods": edit.methods,
        "matrices_of_the_run": edit.edited,
        "task": cell.task if cell else None,
        "metric": cell.metric if cell else None,
        "verdict": cell.verdict if cell else None,
        "delta": cell.delta if cell else None,
        "improvement": cell.improvement if cell else None,
        "low": cell.low if cell else None,
        "high": cell.high if cell else None,
    }


def how_to_read() -> None:
    """The map, explained."""
    with st.expander("How to read this"):
        st.markdown(
            "A tile is one kind of matrix in one layer, over all runs that the filters leave. Heads and experts that"
            " were edited one by one are one tile: their ranks are added up.\n\n- *verdicts*: how many of the runs that"
            " edited it were better (+) and worse or collapsed (-) on the task; green where better ones prevail, red"
            " where the others do.\n- *least rank kept*: the smallest share of its rank that a run left it.\n- *runs*:"
            " how many edited it.\n\nA verdict is the whole run's. Runs that edit every matrix say the same of all of"
            " them; to see what one matrix does, let through runs that edit few."
        )


main()
