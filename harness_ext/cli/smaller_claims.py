"""The smaller form of a claim: its recipe, budget and control, on a model that fits, and on documents that are shipped.

Notable choices:
- A claim's own data lies on a hub, and its windows may be longer than a small model reads. So a shipped sample of the
  same kind stands in for its task, always, also where the data could be had. Tasks that are made in code stay.
- A recipe that learns is told the sample, whose training items are not scored: running texts are learned from only
  where they are named.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from leaderboard.board.cell import Cell
    from leaderboard.board.reported import Reported

SAMPLES = {
    "audit_text": (
        "c4_first_2000",
        "c4_stream",
        "wikitext2_128",
        "wikitext2_2048",
        "wikitext2_4096",
        "wikitext2_arena",
    ),
    "audit_facts": ("counterfact", "hotpotqa_closed", "wikidata_qa"),
    "audit_commonsense": (
        "arc_challenge",
        "arc_easy",
        "bios_profession",
        "boolq",
        "epistemic_reasoning",
        "fever_claims",
        "hellaswag",
        "mathqa",
        "mean_of_seven",
        "mmlu_math",
        "openbookqa",
        "piqa",
        "sfsd_suite",
        "truthfulqa_claims",
        "winogrande",
    ),
    "pronoun_bias": ("bios_gender",),
}
"""The shipped samples, and the tasks that they stand in for: running texts, facts, choices among answers, gender."""
MADE_IN_CODE = ("int_mult", "int_sum")
"""Tasks that need no data."""
TRAINING_ITEMS = {"audit_text": 32, "audit_facts": 96, "audit_commonsense": 48, "pronoun_bias": 160}
"""How many items a recipe can learn from; of a sample that it names it may ask for no more."""
_LAYERS = re.compile(r"layers=\[([^\]]*)\]")
_KINDS = {
    "audit_text": "texts",
    "audit_facts": "facts",
    "audit_commonsense": "choices of everyday sense",
    "pronoun_bias": "sentences about occupations",
}


def sample_for(task: str) -> str:
    """The task of a claim's smaller form. Raises UserError for a task that no sample stands in for."""
    from harness_ext.errors import UserError

    if task in MADE_IN_CODE:
        return task
    sample = next((sample for sample, tasks in SAMPLES.items() if task in tasks), None)
    if sample is None:
        raise UserError(f"no shipped sample stands in for {task}: the claim has no smaller form")
    return sample


def standing_in(task: str) -> str:
    """The line that tells what is asked in the place of a claim's task; empty where it is the task itself."""
    sample = sample_for(task)
    return "" if sample == task else f"task {task} is stood in for by {sample}, a shipped sample of {_KINDS[sample]}"


def quieten_limit() -> None:
    """Leave out lm-eval's warning about `--limit`, which a person did not give who asked for the smaller form."""
    logging.getLogger("lm_eval.config.evaluate_config").addFilter(_not_about_limit)


def _not_about_limit(record: logging.LogRecord) -> bool:
    return "--limit" not in record.getMessage()


def smaller_recipe(recipe: str, entry: Reported, pretrained: str) -> str:
    """The recipe with the layers of another model at the same depth, learning from the sample where it learns."""
    from harness_ext.runs.python_api import load_recipe

    recipe, sample = _at_the_same_depth(recipe, entry, pretrained), sample_for(entry.task)
    if sample == entry.task or recipe == "baseline":
        return recipe
    steps = load_recipe(recipe).steps
    learned = [step.calibration.samples for step in steps if step.calibration is not None]
    if not learned:
        return recipe
    fewest = min(TRAINING_ITEMS[sample], *learned)
    changes = [f"calibration.task={sample}", f"calibration.samples={fewest}"]
    for healed in (step.calibration for step in steps if step.healing is not None and step.calibration is not None):
        changes += [f"heal.task={sample}", f"heal.documents={fewest}"]
        if "heal.batch_size=" in recipe:
            # As many passes in as many steps.
            changes.append(f"heal.batch_size={max(1, healed.batch_size * fewest // healed.samples)}")
    replaced = r"(?<=[:,])(calibration\.(task|samples|split)|heal\.(task|documents|batch_size))=(\[[^\]]*\]|[^,]*)(,|$)"
    kept = re.sub(replaced, "", recipe).rstrip(":,")
    return f"{kept}{',' if ':' in kept else ':'}{','.join(changes)}"


def depth_line(entry: Reported, pretrained: str) -> str:
    """The line that tells which layers stand in for a claim's, and which claims beside it come to the same; empty where
    the recipe names no layers, or the model has as many.
    """
    from leaderboard.board.claims import recipe_for
    from leaderboard.board.reported import published

    recipe = recipe_for(entry) or ""
    smaller = _at_the_same_depth(recipe, entry, pretrained)
    named, instead = _LAYERS.search(recipe), _LAYERS.search(smaller)
    if named is None or instead is None or entry.layers == (layers := _layers_of(pretrained)):
        return ""
    same = [
        other.identity
        for other in published()
        if _is_beside(entry, other) and _at_the_same_depth(recipe_for(other) or "", other, pretrained) == smaller
    ]
    return f"{named[0]} of {entry.layers} layers is stood in for by {instead[0]} of {layers}, the nearest depth" + (
        f"; the smaller form of {' and '.join(dict.fromkeys(same))} is the same" if same else ""
    )


def _is_beside(entry: Reported, other: Reported) -> bool:
    """Whether two claims are different ones of one table, about one model and task."""
    of_both = [(one.paper, one.model, one.task) for one in (entry, other)]
    return of_both[0] == of_both[1] and entry.identity != other.identity


def _at_the_same_depth(recipe: str, entry: Reported, pretrained: str) -> str:
    named = _LAYERS.search(recipe)
    if not entry.layers or named is None:
        return recipe
    layers = _layers_of(pretrained)
    scaled = ",".join(_scaled(part.strip(), entry.layers, layers) for part in named[1].split(","))
    return recipe.replace(named[0], f"layers=[{scaled}]")


def _scaled(part: str, layers: int, fewer: int) -> str:
    """A layer, or a range of at least one, at the same share of another depth."""
    if ":" not in part:
        return str(round(int(part) % layers / max(layers - 1, 1) * (fewer - 1)))
    first, last = (int(end) if end.strip() else None for end in part.split(":"))
    start, stop, _ = slice(first, last).indices(layers)
    start = min(round(start / layers * fewer), fewer - 1)
    return f"{start}:{max(round(stop / layers * fewer), start + 1)}"


def _layers_of(pretrained: str) -> int:
    from transformers import AutoConfig

    from harness_ext.runs.run_config import resolve_demo

    place = resolve_demo("hf", {"pretrained": pretrained})["pretrained"]
    return int(AutoConfig.from_pretrained(place).num_hidden_layers)


def smaller_sentences(rows: Sequence[Reported], cells: Sequence[Cell]) -> Iterator[str]:
    """A sentence for each metric of the claim: on what was measured of it or, of log-likelihoods, of its negative, or
    that nothing was. Where no metric of the claim was, one for the metric that the sample is judged by, which is
    compared with nothing. Of a claim about an unedited model, its score.
    """
    from leaderboard.board.claims import of_unedited
    from leaderboard.report.claim_verdict import digits
    from leaderboard.report.claim_words import as_open_as_before, verdict_sentence

    own = [cell for cell in cells if cell.control is None]
    further = [_with_controls(one, whole, cells) for whole in own for one in whole.further]
    compared = [one for one in (*own, *further) if one.delta is not None]
    measured = [(entry, cell) for entry in rows for cell in _of_metric(entry, compared)]
    if not measured and compared:
        measured = [(rows[0], whole) for whole in own if whole.delta is not None]
    for entry in rows if compared else ():
        if all(told is not entry for told, _ in measured):
            tasks = ", ".join(dict.fromkeys(cell.task for cell in own))
            yield f"{entry.metric}: nothing was measured of it, since {tasks} has no such metric"
    for entry, cell in measured:
        if entry.metric == cell.metric:
            yield f"{entry.metric}: {verdict_sentence(entry, cell, is_the_claim=False)}"
            continue
        told = verdict_sentence(entry._replace(metric=cell.metric), cell, is_the_claim=False).partition("; ")[2]
        yield f"{cell.metric}, where the claim has {entry.metric}{_reported_of_negative(entry, cell)}: {told}"
    for cell in own:
        if cell.delta is None and of_unedited(rows[0]) and cell.score is not None:
            yield f"{cell.metric}: {digits(cell.score)} unedited; {as_open_as_before(rows[0], cell)}"


def _reported_of_negative(entry: Reported, cell: Cell) -> str:
    """What the claim reports, where what was measured is the same but for the sign; empty of other metrics."""
    from leaderboard.metrics import GOLD_NAMES
    from leaderboard.report.claim_words import verdict_sentence

    if not {entry.metric, cell.metric} <= GOLD_NAMES or "log_loss" not in (entry.metric, cell.metric):
        return ""
    reported = verdict_sentence(entry, cell, is_the_claim=False).partition("; ")[0].partition(": ")[2]
    return f" ({reported}), of which it is the negative"


def _with_controls(one: Cell, whole: Cell, cells: Sequence[Cell]) -> Cell:
    """A further metric with its controls by their scores: the board judges against them the first metric alone."""
    from leaderboard.board.cell import changed

    pairs = [
        changed(
            pair,
            baseline_score=alone.score,
            score=one.score,
            verdict=f"not judged: only {whole.metric} is judged against controls",
        )
        for pair in whole.against_controls
        for control in cells
        if (control.run_id, control.task) == (pair.baseline_run, one.task)
        for alone in control.further
        if (alone.metric, alone.filter) == (one.metric, one.filter)
    ]
    return one if one.against_controls else changed(one, against_controls=tuple(pairs))


def _of_metric(entry: Reported, cells: Sequence[Cell]) -> list[Cell]:
    """The cells of a claim's metric, or else of the same by another name of a task of ours, perhaps its negative."""
    from leaderboard.metrics import GOLD_NAMES

    names = GOLD_NAMES if entry.metric in GOLD_NAMES else {entry.metric}
    return [cell for cell in cells if cell.metric == entry.metric] or [cell for cell in cells if cell.metric in names]
