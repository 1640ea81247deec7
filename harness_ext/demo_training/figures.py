"""The figures of the embedded model's table: what `harness_ext.demo_training.table` measured, as data and as Markdown.

`table.json` holds every score and verdict by seed, one row of the table a line. The table of the model's card is
written from it, and a test compares them. Mean and range are worked out here and stored nowhere, so that there is one
truth.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Literal

from harness_ext.demo_training.spread import TASKS
from harness_ext.editing.controls import SHUFFLED_LABELS

TABLE = Path(__file__).resolve().parent / "table.json"
Kind = Literal["baseline", "recipe", "control", "fine-tuning"]
CONTROLS = ("random-subspace", "noise", "bottom-k", SHUFFLED_LABELS)
_MARKED = ("better", "worse", "collapsed", "incomparable", "failed")


@dataclass(frozen=True)
class Row:
    """One recipe, one control of one, or one fine-tuning, over the seeds.

    recipe: its name, or that of the recipe whose control this is. fingerprint: that recipe's, as it was shipped then;
    None of a fine-tuning. scores, verdicts: by task, one value for each seed,
    or a single one where no seed changes anything; a failed run has the score None and the verdict `failed`. kept:
    share of the parameters if stored as factors; None where every run failed. seconds: to find and make the edit,
    scoring apart. trials: what a search tried; None for what searches nothing. All three are means over the seeds.
    """

    kind: Kind
    recipe: str
    control: str | None
    fingerprint: str | None
    kept: float | None
    seconds: float
    trials: float | None
    scores: dict[str, list[float | None]]
    verdicts: dict[str, list[str]]


def write(rows: Iterable[Row], path: Path = TABLE) -> None:
    """Store the rows, each on a line of its own, so that a change of one is seen as such."""
    lines = ",\n ".join(json.dumps(asdict(row)) for row in rows)
    path.write_text(f"[{lines}]\n", encoding="utf-8")


def read(path: Path = TABLE) -> list[Row]:
    """The stored rows."""
    return [Row(**row) for row in json.loads(path.read_text(encoding="utf-8"))]


def full_table(rows: Sequence[Row]) -> str:
    """Every row: the recipes, each followed by its controls, in Markdown."""
    lines = [
        f"| {_name(row)} | {' | '.join(_cell(row, task) for task in TASKS)} | {_kept(row)} | {_effort(row)} |"
        for row in rows
    ]
    return "\n".join([_header("recipe", *map(_code, TASKS), "kept", "seconds"), *lines])


def _header(*names: str) -> str:
    return f"| {' | '.join(names)} |\n{'|---' * len(names)}|"


def _code(name: str) -> str:
    return f"`{name}`"


def _name(row: Row) -> str:
    if row.kind == "control":
        return _code(f"+{row.control}")
    return row.recipe if row.kind == "fine-tuning" else _code(row.recipe)


def _kept(row: Row) -> str:
    return "" if row.kept is None else f"{row.kept:.0%}"


def _effort(row: Row) -> str:
    """Seconds, and the number of trials of a search."""
    unit = "trial" if row.trials == 1 else "trials"
    return f"{row.seconds:.1f}" + (f", {row.trials:.0f} {unit}" if row.trials else "")


def _shown(score: float, task: str) -> str:
    """Accuracy in %, log-odds in their own units."""
    # Zero is added so that a small negative number is not shown as -0.00.
    return f"{round(score, 2) + 0.0:.2f}" if task == "pronoun_bias" else f"{100 * score:.1f}"


def _known(row: Row, task: str) -> list[float]:
    return [score for score in row.scores[task] if score is not None]


def _mean(row: Row, task: str) -> str:
    scores = _known(row, task)
    return _shown(mean(scores), task) if scores else "failed"


def _cell(row: Row, task: str) -> str:
    """Mean, lowest and highest seed, and in how many of the seeds the board has a word for it; *same* and *undecided*
    go without saying.
    """
    scores, words = _known(row, task), row.verdicts[task]
    parts = [_mean(row, task)] if scores else []
    if len({_shown(score, task) for score in scores}) > 1:
        parts.append(f"({_shown(min(scores), task)} to {_shown(max(scores), task)})")
    parts += [
        f"**{word}**" + (f" {words.count(word)}/{len(words)}" if len(words) > 1 else "")
        for word in _MARKED
        if word in words
    ]
    return " ".join(parts)
