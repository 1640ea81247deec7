"""Cells of the board as tables: as text for the eye, and as values for a file. What is missing stays blank, and no
number is a mean over tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from leaderboard.app.page_queries import RunFacts
from leaderboard.board.cell import Cell
from leaderboard.board.further import all_metrics, good_way
from leaderboard.readers.records import BASELINE
from leaderboard.terminal.format import (
    NOTHING,
    against_controls,
    could_show,
    interval,
    metric_name,
    number,
    percent,
    plain,
    signed,
    undecided,
)
from leaderboard.terminal.marks import p_text, words_of

_NO_FACTS: Mapping[str, RunFacts] = {}


def notes(cell: Cell) -> str:
    """What is still to be said of a cell, on one line."""
    return "; ".join(filter(None, [*against_controls(cell), undecided(cell), *map(plain, cell.notes)]))


def control_text(pair: Cell) -> str:
    """`undecided +0.0125 [-0.0300, +0.0550] (random-subspace)`."""
    difference = "" if pair.delta is None else f" {interval(pair)}"
    return f"{pair.verdict}{difference} ({plain(pair.control or '')})"


def verdict_words(cell: Cell, *, is_pair: bool = False) -> str:
    """A cell's verdict; of a better one, which of the three kinds it is. is_pair: against a control or another run,
    where no control has a say.
    """
    return words_of(cell) if cell.verdict == "better" and not is_pair else cell.verdict


def further_text(cell: Cell) -> str:
    """`acc_norm same -0.0010; gold_loglikelihood worse -0.8770`; scores where there is nothing to compare with."""
    words = (
        f"{plain(metric_name(one))}"
        f" {number(one.score) if one.delta is None else f'{one.verdict} {signed(one.delta)}{good_way(one)}'}"
        for one in cell.further
    )
    return "; ".join(words)


def cell_rows(
    cells: Sequence[Cell], *, with_model: bool, facts: Mapping[str, RunFacts] = _NO_FACTS, are_pairs: bool = False
) -> list[dict[str, Any]]:
    """The cells as rows of text for a table. facts: of the runs, for their speed; a column that would be empty
    throughout is left out. are_pairs: of runs with others than their baseline.
    """
    fast = any(_speed(facts.get(cell.run_id)) for cell in cells)
    sizes = any(could_show(cell) for cell in cells)
    controls = any(cell.against_controls for cell in cells)
    further = any(cell.further for cell in cells)
    floor = any(cell.noise_floor is not None for cell in cells)
    reported = any(cell.reported for cell in cells)
    return [
        ({"Model": plain(cell.model)} if with_model else {})
        | {
            "Task": plain(cell.task),
            "Verdict": verdict_words(cell, is_pair=are_pairs),
            "Recipe": plain(cell.name),
            "Score minus baseline [95 %]": interval(cell),
        }
        | ({"Against its control": "; ".join(map(control_text, cell.against_controls))} if controls else {})
        | ({"Further metrics": further_text(cell)} if further else {})
        | ({"Could show": could_show(cell) or ""} if sizes else {})
        | {
            "Score": number(cell.score),
            "Baseline": number(cell.baseline_score),
            "Lost / gained": NOTHING if cell.lost is None else f"{cell.lost} / {cell.gained}",
        }
        | ({"Noise floor": _floor(cell)} if floor else {})
        | {"Kept": percent(cell.parameters_kept)}
        | ({"Tokens/s": _speed(facts.get(cell.run_id))} if fast else {})
        | (
            {
                "Reported by papers": "; ".join(
                    f"{entry.change()} reported by {plain(entry.source)}" for entry in cell.reported
                )
            }
            if reported
            else {}
        )
        | {
            "Notes": notes(cell),
            "Metric": plain(metric_name(cell)),
            "Documents": cell.subset or (NOTHING if cell.n is None else f"{cell.n:,}"),
            "q": p_text(cell.q_value),
        }
        for cell in cells
    ]


def cell_records(cells: Sequence[Cell], facts: Mapping[str, RunFacts] = _NO_FACTS) -> list[dict[str, Any]]:
    """Every number in full, for a file: the same rows, and behind each those of the task's further metrics."""
    names = (
        "model",
        "task",
        "recipe",
        "run_id",
        "verdict",
        "metric",
        "filter",
        "n",
        "delta",
        "low",
        "high",
        "score",
        "baseline_score",
        "baseline_run",
        "lost",
        "gained",
        "flip_rate",
        "noise_floor",
        "p_value",
        "q_value",
        "margin",
        "detectable",
        "documents_needed",
        "documents_needed_together",
        "needed_for",
        "comparisons",
        "parameters_kept",
        "control",
        "unpaired",
        "clipped_at",
        "name",
        "subset",
        "is_primary",
        "chance",
    )
    return [
        {name: getattr(cell, name) for name in names}
        | {"too_few_documents": cell.too_few is not None or cell.says_nothing}
        | {"tokens_per_second": None if (run := facts.get(cell.run_id)) is None else run.tokens_per_second_after}
        | {
            "against_controls": "; ".join(map(control_text, cell.against_controls)) or None,
            "reported_by_papers": "; ".join(entry.sentence() for entry in cell.reported) or None,
            "notes": notes(cell),
        }
        for cell in all_metrics(cells)
    ]


def reported_rows(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """What papers report for these models, tasks and recipes, beside what was measured here."""
    return [
        {
            "Task": plain(cell.task),
            "Recipe": plain(cell.name),
            "Metric": entry.metric,
            "Ours": f"{number(cell.baseline_score)} -> {number(cell.score)}",
            "Reported": entry.change(),
            "Ours, difference": signed(cell.delta),
            "Reported, difference": signed(entry.after - entry.before),
            "Method, as reported": entry.method,
            "Setting": entry.setting,
            "Source": entry.source,
            "How sure": entry.sure,
        }
        for cell in cells
        for entry in cell.reported
    ]


def by_age(cells: Sequence[Cell]) -> list[Cell]:
    """The cells from the earliest run to the latest, and then those of the baselines: the last of a recipe speaks for
    it, and the latest baseline for the unedited model.
    """
    return sorted(cells, key=lambda cell: (cell.verdict == BASELINE, cell.started is not None, cell.started or 0))


def _speed(run: RunFacts | None) -> str:
    """Tokens per second while scoring, and how many times the baseline's."""
    if run is None or run.tokens_per_second_after is None:
        return ""
    before, after = run.tokens_per_second_before, run.tokens_per_second_after
    return f"{after:,.0f}" + (f" ({after / before:.2f}x)" if before and before != after else "")


def _floor(cell: Cell) -> str:
    if cell.noise_floor is None or cell.flip_rate is None:
        return ""
    beyond = "within" if cell.flip_rate <= cell.noise_floor else "above"
    return f"{percent(cell.noise_floor)}, flips {percent(cell.flip_rate)}: {beyond}"
