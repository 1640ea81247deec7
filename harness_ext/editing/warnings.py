"""Warnings recorded in the receipt."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from harness_ext.calibration.loss import SMALLEST_RISE
from harness_ext.editing.edit_matrix import UNSEEN
from harness_ext.editing.pipeline import AppliedRecipe
from harness_ext.editing.prime_units import is_below_one
from harness_ext.editing.records import standing
from harness_ext.methods import registered_methods
from harness_ext.methods.correction import PULL_BACK
from harness_ext.recipe.recipe import Recipe
from harness_ext.recipe.schema import Step
from harness_ext.recipe.settings import HEAL
from harness_ext.search.policy_masks import FIRST, LAST
from harness_ext.search.runner import found_nothing as search_found_nothing
from leaderboard.readers.receipt import DENSE, MatrixRecord

_TRAINED_BADLY = "lower its learning_rate, or give it more documents"


def receipt_warnings(recipe: Recipe, applied: AppliedRecipe) -> list[str]:
    """All warnings about a recipe as it was carried out."""
    return (
        applied.notes
        + found_nothing(recipe, applied)
        + _searched(applied)
        + _masked(applied)
        + _losses(recipe, applied)
        + _as_asked(recipe, applied)
        + _left_dense(recipe, applied)
        + _shifted(applied)
        + _calibrated(applied)
    )


def found_nothing(recipe: Recipe, applied: AppliedRecipe) -> list[str]:
    """A sentence for each step that looked for edits and found none."""
    what = "the variant is the unedited model" if left_unedited(recipe, applied) else "this step changed nothing"
    return [f"{text}; {what}" for _, text in sorted(_without_edits(recipe, applied).items())]


def _without_edits(recipe: Recipe, applied: AppliedRecipe) -> dict[int, str]:
    """Why a step that looked for edits made none, by its number."""
    searched = {record["step"]: search_found_nothing(record) for record in applied.searches}
    cut = {record.step for record in applied.records if record.rank_after < record.rank_before}
    documents = {row["step"]: row["documents"] for row in applied.losses}
    sentences = {step: text for step, text in searched.items() if text is not None}
    sentences |= {
        number: _removed_nothing(step, [row for row in applied.log if row["step"] == number], documents[number])
        for number, step in enumerate(recipe.steps)
        if is_measured(step) and number not in cut
    }
    return sentences


def _removed_nothing(step: Step, log: Sequence[Mapping[str, Any]], documents: int) -> str:
    tried = sum(bool(row["removes"]) for row in log)
    small = ", or its fraction is less than one component" if "fraction" in step.parameters else ""
    reason = (
        f"removals tried: {tried}, none of which lowers the loss of its {documents} calibration documents"
        if tried
        else f"no component promises to lower the loss of its {documents} calibration documents{small}"
    )
    return f"{step.method} found nothing: {reason}"


def left_unedited(recipe: Recipe, applied: AppliedRecipe) -> bool:
    """Whether all steps looked for edits and found none, so that the model is as it was."""
    looking = all(step.is_search or is_measured(step) for step in recipe.steps if step.healing is None)
    return looking and not any(
        record.digest_before != record.digest_after or record.bias_shift for record in applied.records
    )


def _losses(recipe: Recipe, applied: AppliedRecipe) -> list[str]:
    """By how much a step raised the loss of its own documents, or of those of one of its tasks.

    None of a step without edits: its two losses were measured in batches of different shapes, which in half precision
    do not round alike.
    """
    found = []
    idle = _without_edits(recipe, applied)
    for row in applied.losses:
        if row["step"] in idle:
            continue
        if _rose(row):
            found.append(
                f"{row['method']} raised the loss of its own {row['documents']} calibration documents {_from_to(row)}:"
                f" {_TRAINED_BADLY if row['method'] == HEAL else 'its budget asks for as much'}"
            )
            continue
        found += [
            f"{row['method']} raised the loss of the {task['documents']} calibration documents of {task['task']}"
            f" {_from_to(task)}, though not that of all: what helps one task may harm another"
            for task in row.get("tasks", ())
            if _rose(task)
        ]
    return found


def _masked(applied: AppliedRecipe) -> list[str]:
    """That a mask which was learned does no better than the one before it on documents that it was not learned from."""
    rows = [row for row in applied.log if row.get("stage") in (FIRST, LAST)]
    return [
        f"policy_prune: its mask after {last['trials']} trials has a loss of {last['held_out_loss']:.4g} nats on"
        f" {last['held_out_documents']} documents held out, no less than the mask that it started from"
        f" ({first['held_out_loss']:.4g}): what it learned does not hold beyond its documents; raise masks.steps, or"
        " change masks.learning_rate"
        for first, last in itertools.pairwise(rows)
        if (first["step"], first["stage"], last["stage"]) == (last["step"], FIRST, LAST)
        and last["held_out_documents"]
        and last["held_out_loss"] >= first["held_out_loss"]
    ]


def _rose(row: Mapping[str, Any]) -> bool:
    before, after = row["before"], row["after"]
    return before is not None and (after is None or after - before > SMALLEST_RISE)


def _from_to(row: Mapping[str, Any]) -> str:
    """Both losses, with as many digits as tell them apart."""
    before, after = row["before"], row["after"]
    if after is None:
        return f"from {before:.4g} to a number that is not finite"
    digits = next((count for count in range(4, 17) if f"{before:.{count}g}" != f"{after:.{count}g}"), 4)
    return f"from {before:.{digits}g} to {after:.{digits}g} nats"


def is_measured(step: Step) -> bool:
    """Whether a step that is no search makes only edits that lower the loss of its documents."""
    method = None if step.is_search else registered_methods()[step.method]
    return method is not None and (method.tries or method.searches)


def _calibrated(applied: AppliedRecipe) -> list[str]:
    """What is to be known of the documents that were learned from, once where several steps use them."""
    return list(dict.fromkeys(warning for _, drawn in applied.calibration for warning in drawn.warnings))


def checkpoint_warnings(unexpected: Sequence[str]) -> list[str]:
    """A warning about stored weights that the model has no place for, by name; empty where there are none."""
    if not unexpected:
        return []
    count = "1 weight" if len(unexpected) == 1 else f"{len(unexpected)} weights"
    return [
        f"the checkpoint stores {count} that the model has no place for and were left out, such as {unexpected[0]}: is"
        " this the config.json that belongs to it?"
    ]


def _beyond_budget(recipe: Recipe, records: Sequence[MatrixRecord]) -> list[str]:
    """What holds more than was asked for, since the smallest there is is more: one component, or one unit."""
    short = [one for one in records if is_below_one(recipe.steps[one.step], one.role, one.shape)]
    found = []
    if short:
        shares = [(one, keep.param_fraction) for one in short if (keep := recipe.steps[one.step].keep) is not None]
        whole = sum(one.parameters_before for one in short)
        asked = sum((share or 0) * one.parameters_before for one, share in shares) / whole
        left = sum(one.parameters_after for one in short) / whole
        found.append(
            f"in {len(short)} of {len(records)} matrices or heads the budget comes to less than one component, and"
            " one was kept: they hold more than was asked for"
            + (f", {100 * left:.3g} % of their numbers and not {100 * asked:.3g} %" if asked else "")
        )
    units = [
        (one, asked, left) for one in records for asked, left in _units(recipe.steps[one.step], one) if left > asked
    ]
    if units:
        _, asked, left = units[0]
        found.append(
            f"in {len(units)} of {len(records)} matrices or heads unit_fraction comes to less than one unit, and one"
            f" was kept: {100 * left:.3g} % of them and not {100 * asked:.3g} %"
        )
    return found


def _units(step: Step, record: MatrixRecord) -> list[tuple[float, float]]:
    """The share of units that a step asked of a matrix, and the share that it left; of its rows and of its columns,
    where these are the units. None of a search, whose share is a mean over layers.
    """
    asked = step.parameters.get("unit_fraction")
    if not isinstance(asked, float) or record.method != step.method:
        return []
    kept = zip((record.rows_kept, record.columns_kept), record.shape, strict=True)
    return [(asked + 1e-9, count / full) for count, full in kept if count is not None]


def _as_asked(recipe: Recipe, applied: AppliedRecipe) -> list[str]:
    """Matrices that are not what was asked for: a fraction of few components may be none, a budget less than one, and
    an expert may have seen nothing.
    """
    if all(step.method == "identity" for step in recipe.steps):
        return []
    of = f"of {len(applied.records)} matrices or heads were left as they were"
    unseen = sum(record.fallback == UNSEEN for record in applied.records)
    # What is tried out first is not asked for, nor is how far a correction goes.
    same = (
        sum(
            record.rank_after == record.rank_before and record.relative_error < 1e-6
            for record in applied.records
            if not is_measured(recipe.steps[record.step]) and record.method != PULL_BACK
        )
        - unseen
    )
    found = [f"{same} {of}: what was asked for changes nothing there"] if same else []
    found += _beyond_budget(recipe, applied.records)
    return found + (
        [
            f"{unseen} {of}: no calibration document has a token that reached them (fallback unseen), as happens to"
            " experts; a larger calibration.samples may reach them"
        ]
        if unseen
        else []
    )


def _left_dense(recipe: Recipe, applied: AppliedRecipe) -> list[str]:
    """Matrices that stayed dense though low-rank layers were asked for, as the last edit of each left it."""
    last = standing(applied.records, lambda record: (record.name, record.part))
    asked = [record for record in last if recipe.steps[record.step].factored]
    dense = sum(record.stored == DENSE for record in asked)
    return (
        [
            f"{dense} of {len(asked)} matrices or heads stay dense: at the rank they have, two factors would not be"
            " faster (factored=always has them wherever they hold fewer numbers)"
        ]
        if dense
        else []
    )


def _shifted(applied: AppliedRecipe) -> list[str]:
    """Biases that were shifted by more than an output of their matrix mostly is."""
    shifted = [(item.shift_size, item.record) for item in applied.edited if item.shift_size is not None]
    large = [(size, record) for size, record in shifted if size > 1]
    if not large:
        return []
    most, record = max(large, key=lambda pair: pair[0])
    return [
        f"in {len(large)} of {len(shifted)} matrices or heads the bias is shifted by more than a typical output, most"
        f" in {record.key}: by {most:.3g} times as much. Scores may show the shift rather than what was to be edited;"
        " calibrate on other texts, or set bias=false where the method has it"
    ]


def _searched(applied: AppliedRecipe) -> list[str]:
    """What searches had to do without."""
    return [f"{record['method']}: {note}" for record in applied.searches for note in record["warnings"]]
