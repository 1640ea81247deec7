"""The leaderboard's table: recipes by tasks. Cells are numbers, so that a click on a head sorts them; what they show is
mark and sign.

Notable choice: settings stand last, unless two rows have the same name: then they stand beside it, where a narrow
screen shows them too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

import streamlit as st

from leaderboard.app.colours import css
from leaderboard.app.menu import COMPARE
from leaderboard.app.page_queries import RunFacts
from leaderboard.app.short_names import COMPARED_WITH, telling_settings
from leaderboard.board.cell import Cell
from leaderboard.board.standings import COLLAPSED, Standing, Standings, gained, have_equal_names, kind
from leaderboard.readers.records import BASELINE
from leaderboard.terminal.format import chance, direction, metric_name, plain
from leaderboard.terminal.marks import cell_text
from leaderboard.terminal.output import as_text

RANK, RECIPE, BEATS_CONTROL, SETTINGS, SIZE, SPEED = (
    "#", "Recipe", "Beats control", "Settings", "Size kept", "Tokens/s",
)  # fmt: skip
UNDER = "\u21b3 "
"""Before the name of a control, which stands under its recipe."""
# what has no number of its own stands below all that has, whatever the direction of the numbers' scale
_BELOW_ALL = -1e12
_COLLAPSED_BELOW = -1e9
ROW_HEIGHT = 31


def table(rows: Sequence[Standing], board: Standings, tasks: Sequence[str], facts: Mapping[str, RunFacts]) -> Any:
    """The rows as a styled frame of numbers."""
    import pandas as pd

    columns = _columns(rows, board, tasks, facts)
    shown: dict[str, Callable[[Any], str]] = {}
    for name, texts in _texts(rows, board, tasks, facts).items():
        columns[name], shown[name] = _shown_as(columns[name], texts)
    frame = pd.DataFrame(columns)
    style = frame.style.format(shown)
    styles = pd.DataFrame("", index=frame.index, columns=frame.columns)
    for task in tasks:
        styles[task] = [_style(row.cells.get(task), row.name in board.best.get(task, ())) for row in rows]
    for name in (RECIPE, RANK, SETTINGS):
        if name in styles:
            styles[name] = [css("undecided") if row.control else "font-weight: 600" * (name == RECIPE) for row in rows]
    return style.apply(lambda _: styles, axis=None)


def column_config(board: Standings, tasks: Sequence[str]) -> dict[str, Any]:
    """How each column is drawn. A head's help says what is measured, on how many documents, from which score."""
    column = st.column_config
    metrics = {task: _about(board, task) for task in tasks}
    return {
        RANK: column.NumberColumn(width=50, pinned=True, help=_about_ranks(board)),
        RECIPE: column.LinkColumn(pinned=True, display_text=r"#(.*)$", help="Opens the comparison in a new tab."),
        BEATS_CONTROL: column.NumberColumn(
            help="Of the tasks on which the recipe is better than the baseline and has a control: on how many it is"
            " better than every control of its own too."
        ),
        SETTINGS: column.TextColumn(
            width=130,
            help="What tells a row from others of its name comes first. Beside other unedited runs, the baseline of"
            f" the rows is the one {COMPARED_WITH}.",
        ),
        SIZE: column.ProgressColumn(
            format="%.1f %%",
            min_value=0,
            max_value=100,
            color="gray",
            width=120,
            help="Share of the model's parameters that is left.",
        ),
        SPEED: column.NumberColumn(format="localized", help="Tokens a second while it was scored."),
        **{task: column.NumberColumn(help=about) for task, about in metrics.items()},
    }


def height(count: int) -> int:
    """Of a table with so many rows, at most a screen."""
    return min(ROW_HEIGHT * (count + 1) + 3, 660)


def link(page: str, row: Standing, model: str) -> str:
    """The address of a page about this row, with the name that is shown behind a `#`."""
    name = plain(f"{UNDER if row.control else ''}{row.recipe}")
    return f"{page}?{urlencode({'recipe': row.name, 'model': model})}#{quote(name, safe=' :=,.()[]-_/' + UNDER)}"


def _columns(
    rows: Sequence[Standing], board: Standings, tasks: Sequence[str], facts: Mapping[str, RunFacts]
) -> dict[str, list[Any]]:
    model = st.query_params.get("model", "")
    settings = telling_settings(rows)
    beside_name = have_equal_names(rows)
    columns: dict[str, list[Any]] = {
        RANK: [None if row.rank is None else row.rank.place for row in rows],
        RECIPE: [link(COMPARE.name, row, model) for row in rows],
        **({SETTINGS: settings} if beside_name else {}),
        **{task: [_value(row.cells.get(task)) for row in rows] for task in tasks},
    }
    if any(row.better for row in rows):
        columns[BEATS_CONTROL] = [row.beaten + row.beaten / row.better / 1000 if row.better else None for row in rows]
    if any(settings) and not beside_name:
        columns[SETTINGS] = settings
    if any(row.parameters_kept is not None for row in rows):
        columns[SIZE] = [None if row.parameters_kept is None else 100 * row.parameters_kept for row in rows]
    speeds = [_speed(facts.get(row.run_id)) for row in rows]
    if any(speeds):
        columns[SPEED] = speeds
    return columns


def _texts(
    rows: Sequence[Standing], board: Standings, tasks: Sequence[str], facts: Mapping[str, RunFacts]
) -> dict[str, list[str]]:
    """What is shown in place of numbers."""
    return {
        RANK: ["" if row.rank is None else str(row.rank) for row in rows],
        **{
            task: [
                cell_text(cell, best=row.name in board.best.get(task, ())) if (cell := row.cells.get(task)) else ""
                for row in rows
            ]
            for task in tasks
        },
        **(
            {BEATS_CONTROL: [f"{row.beaten} of {row.better}" if row.better else "" for row in rows]}
            if any(row.better for row in rows)
            else {}
        ),
    }


def _shown_as(numbers: Sequence[float | None], texts: Sequence[str]) -> tuple[list[float | None], Callable[[Any], str]]:
    """The numbers, and what shows each as its text. Pandas formats by value, and cells of one value may have several
    marks: then the lower row gets the next smaller number.
    """
    text_of: dict[float, str] = {}
    distinct = []
    for number, text in zip(numbers, texts):
        while number is not None and text_of.setdefault(number, text) != text:
            number = math.nextafter(number, -math.inf)
        distinct.append(number)
    return distinct, lambda number: text_of.get(number, str(number))


def _value(cell: Cell | None) -> float | None:
    """What the cell sorts by: the improvement, with collapsed models below all others, and then what has none."""
    if cell is None:
        return None
    if cell.verdict == BASELINE:
        return 0.0
    if cell.verdict == COLLAPSED:
        return _COLLAPSED_BELOW + (gained(cell) or 0.0)
    found = gained(cell)
    return _BELOW_ALL if found is None else found


def _style(cell: Cell | None, best: bool) -> str:
    if cell is None:
        return ""
    return css(kind(cell)) + ("; font-weight: 700" if best else "")


def _speed(run: RunFacts | None) -> int | None:
    return None if run is None or run.tokens_per_second_after is None else round(run.tokens_per_second_after)


def _about(board: Standings, task: str) -> str:
    cells = [row.cells[task] for row in board.rows if task in row.cells and row.cells[task].metric]
    if not cells:
        return "No run has a score."
    shown = next((cell for cell in cells if cell.verdict == BASELINE), cells[0])
    counts = sorted({cell.n for cell in cells if cell.n is not None})
    n = "" if not counts else f", n {counts[0]:,}" + (f" to {counts[-1]:,}" if len(counts) > 1 else "")
    scores = {cell.baseline_score for cell in cells if cell.baseline_score is not None}
    base = f", baseline {next(iter(scores)):.4g}" if len(scores) == 1 else ""
    level = f", {told}" if (told := chance(cells)) else ""
    return as_text(f"{metric_name(shown)}, {direction(shown)}{n}{base}{level}")


def _about_ranks(board: Standings) -> str:
    if not board.ranked_on:
        return "No task is common to the rows."
    over = "this task" if len(board.ranked_on) == 1 else f"{len(board.ranked_on)} tasks"
    return (
        f"Place by the mean rank over {over}. Same, undecided and gains that the control has too count as no"
        " difference."
    )
