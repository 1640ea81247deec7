"""Grids of tiles: recipes by models with a sign in each, and layers by matrices with a colour in each.

Notable choices: text is drawn by Vega as text marks, never as HTML; a tile is blank (not drawn) where there is nothing,
never filled with a middle value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import streamlit as st

from leaderboard.app.colours import difference_colour, word_colour
from leaderboard.app.linked_table import RUN_BLUE
from leaderboard.board.across_models import Line, models_of
from leaderboard.board.cell import COMPARED, not_its_control
from leaderboard.board.layers import LayerPlace, matrix_order
from leaderboard.terminal.format import beside_verdict, counted, interval, plain

SIGNS = {
    "better": "+",
    "worse": "-",
    "collapsed": "#",
    "same": "=",
    "undecided": "?",
    "incomparable": "!",
    "failed": "x",
}
NOT_ITS_CONTROL = "(+)"  # better than the baseline, and not better than a control of the recipe's own
LONGEST = 22  # letters of a model's name on an axis
TALL, FLAT = 26, 13  # pixels of a layer, with its number written in each tile and without
LAYERS_IN_WORDS = 24
MEASURES = ("verdicts", "least rank kept", "runs")


def ink() -> str:
    """What to write with in the theme that the page is shown in."""
    return "#fafafa" if st.context.theme.type == "dark" else "#31333f"


def shortened(names: Sequence[str]) -> dict[str, str]:
    """Each name safe to show, cut to its end where it is long, unless two were then alike."""
    short = {name: plain(name) if len(name) <= LONGEST else f"...{plain(name)[-LONGEST:]}" for name in names}
    return (
        short
        if len(set(short.values())) == len(short)
        else {name: f"{place}. {text}" for place, (name, text) in enumerate(short.items(), 1)}
    )


def sign_grid(found: Sequence[Line]) -> Any:
    """An altair chart: a row a recipe, a column a model, in each the verdict's colour and sign."""
    import altair as alt
    import pandas as pd

    models = models_of(found)
    short = shortened(models)
    rows = pd.DataFrame(
        [
            {
                "recipe": _label(line, found),
                "model": short[model],
                "verdict": cell.verdict,
                "sign": NOT_ITS_CONTROL if not_its_control(cell) else SIGNS.get(cell.verdict, ""),
                "delta": interval(cell),
                "control": beside_verdict(cell) or "none was run",
                "name": plain(model),
            }
            for line in found
            for model, cell in line.cells.items()
        ]
    )
    labels = [_label(line, found) for line in found]
    x = alt.X(
        "model:N",
        title=None,
        sort=list(short.values()),
        scale=alt.Scale(domain=list(short.values())),
        axis=alt.Axis(labelAngle=-50, labelLimit=170, labelOverlap=False, ticks=False, domain=False, grid=False),
    )
    y = alt.Y("recipe:N", title=None, sort=labels, axis=alt.Axis(labelLimit=150, ticks=False, domain=False, grid=False))
    tooltip = [
        alt.Tooltip(f"{name}:N", title=title)
        for name, title in (
            ("recipe", "recipe"),
            ("name", "model"),
            ("verdict", "verdict"),
            ("delta", "delta"),
            ("control", "against its control"),
        )
    ]
    base = alt.Chart(rows).encode(x=x, y=y, tooltip=tooltip)
    tiles = base.mark_rect(opacity=0.55, cornerRadius=3, stroke="transparent", strokeWidth=3).encode(
        color=word_colour("verdict", rows["verdict"], legend=True)
    )
    signs = base.mark_text(fontSize=15, fontWeight="bold", color=ink()).encode(text="sign:N")
    slanted = 5 * max(len(text) for text in short.values())  # what the models' names take, in pixels
    return alt.layer(tiles, signs).properties(height=34 * len(found) + slanted + 110).configure_view(strokeOpacity=0)


def _label(line: Line, found: Sequence[Line]) -> str:
    """The recipe's name, as it is written on the axis; a number tells apart two that are written alike."""
    written = plain(line.recipe)
    twins = [other.recipe for other in found if plain(other.recipe) == written]
    return written if len(twins) == 1 else f"{written} ({twins.index(line.recipe) + 1})"


def place_map(places: Sequence[LayerPlace], measure: str) -> Any:
    """An altair chart: a row a layer, a column a kind of matrix. measure: one of `MEASURES`."""
    import altair as alt
    import pandas as pd

    rows = pd.DataFrame([_tile(place, measure) for place in places])
    layers = list(dict.fromkeys(rows["layer"]))
    matrices = sorted(set(rows["matrix"]), key=matrix_order)
    in_words = len(layers) <= LAYERS_IN_WORDS
    y = alt.Y(
        "layer:N", title="layer", sort=layers, axis=alt.Axis(ticks=False, domain=False, grid=False, labelOverlap=True)
    )
    x = alt.X(
        "matrix:N",
        title=None,
        sort=matrices,
        axis=alt.Axis(
            orient="top", labelAngle=-35, labelLimit=140, labelOverlap=False, ticks=False, domain=False, grid=False
        ),
    )
    tooltip = [alt.Tooltip(f"{name}:N", title=name) for name in ("layer", "matrix", "runs", "kept", "verdicts")]
    base = alt.Chart(rows).encode(x=x, y=y, tooltip=tooltip)
    tiles = (
        base.transform_filter("isValid(datum.value)")
        .mark_rect(opacity=0.62, cornerRadius=2)
        .encode(color=_colour(measure, rows))
    )
    words = base.mark_text(fontSize=11, color=ink()).encode(text="text:N")
    return (
        alt.layer(tiles, *([words] if in_words else []))
        .properties(height=(TALL if in_words else FLAT) * len(layers) + 190)
        .configure_view(strokeOpacity=0)
    )


def _colour(measure: str, rows: Any) -> Any:
    import altair as alt

    if measure == "verdicts":
        return difference_colour("value", 1.0, "worse or collapsed (-1) to better (1)")
    top = 1.0 if measure == "least rank kept" else float(rows["value"].max())
    return alt.Color(
        "value:Q",
        scale=alt.Scale(domain=[0.0, top or 1.0], range=["rgba(56, 139, 253, 0.12)", RUN_BLUE], clamp=True),
        legend=alt.Legend(
            title=measure,
            orient="bottom",
            gradientLength=160,
            titleLimit=300,
            format="%" if measure == "least rank kept" else "d",
        ),
    )


def _tile(place: LayerPlace, measure: str) -> dict[str, Any]:
    better, worse, compared = place.verdicts["better"], place.harmful, sum(place.verdicts.values())
    kept = (
        ""
        if place.least_kept is None or place.most_kept is None
        else f"{100 * place.least_kept:.0f} to {100 * place.most_kept:.0f} %"
    )
    value, text = {
        "verdicts": (place.balance, "" if place.balance is None else f"+{better} -{worse}"),
        "least rank kept": (place.least_kept, "" if place.least_kept is None else f"{100 * place.least_kept:.0f} %"),
        "runs": (float(place.runs), f"{place.runs:,}"),
    }[measure]
    said = (
        ", ".join(f"{count} {word}" for word, count in sorted(place.verdicts.items()))
        if compared
        else "none on this task"
    )
    return {
        "layer": "none" if place.layer is None else str(place.layer),
        "matrix": plain(place.matrix),
        "value": value,
        "text": text,
        "runs": place.runs,
        "kept": kept,
        "verdicts": said,
    }


def place_sentence(gathered: Sequence[LayerPlace], task: str) -> str:
    """Where runs were better most often, and where worse. Nothing is said to go well or badly without a verdict."""
    told = [place for place in gathered if place.balance is not None]
    if not told:
        return f"None of these runs has a verdict on {task}."
    better = _most_often(told, lambda place: place.verdicts["better"])
    harmful = _most_often(told, lambda place: place.harmful)
    if not better and not harmful:
        return f"On {task} none of these runs is better, and none worse or collapsed."
    gains = f"runs that edit {better} were better most often" if better else "none of these runs is better"
    harm = f"those that edit {harmful} were worse or collapsed most often" if harmful else "none is worse or collapsed"
    return f"On {task} {gains}; {harm}."


def _most_often(told: Sequence[LayerPlace], count: Callable[[LayerPlace], int]) -> str:
    """The place where the largest share of the verdicts is counted, and how many share it; empty where none is."""
    shares = [count(place) / sum(place.verdicts[word] for word in COMPARED) for place in told]
    most = max(shares)
    if not most:
        return ""
    first, *others = (place for place, share in zip(told, shares) if share == most)
    alike = f" and {counted(len(others), 'place', 'places')} alike" if others else ""
    return f"{_name(first)}{alike} ({_words(first)})"


def _name(place: LayerPlace) -> str:
    return f"{plain(place.matrix)} {'outside the layers' if place.layer is None else f'in layer {place.layer}'}"


def _words(place: LayerPlace) -> str:
    return ", ".join(f"{count} {word}" for word, count in sorted(place.verdicts.items()))
