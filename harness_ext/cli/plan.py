"""How `lm_eval recipes plan` tells a plan: in lines, as plain data, and as a table."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness_ext.editing.plan import Plan, PlannedGroup, PlannedSearch
    from harness_ext.editing.plan_estimate import EstimatedStep
    from harness_ext.recipe.recipe import Recipe
    from leaderboard.terminal.output import Form


def plan_in_form(planned: Plan, name: str, form: Form) -> Iterable[str]:
    """A plan as it is asked for, in lines: JSON has all of it, a table the matrices that are alike, in Markdown with
    what the plan says of sizes and costs below. name: of the model, as the user gave it.
    """
    if form == "json":
        return [json.dumps(plan_data(planned, name), indent=2)]
    return plan_lines(planned, name) if form == "text" else _plan_table(planned, form)


def _plan_table(planned: Plan, form: Form) -> Iterable[str]:
    from leaderboard.terminal.output import written

    rows = [
        {
            "step": group.step,
            "method": group.method,
            "matrices": group.number,
            "what": group.what,
            "rows": group.shape[0],
            "columns": group.shape[1],
            "rank": min(group.shape),
            "rank_after": group.rank_after,
            "rows_after": group.shape_after and group.shape_after[0],
            "columns_after": group.shape_after and group.shape_after[1],
            "parameters": group.shape[0] * group.shape[1],
            "parameters_after": group.parameters_after,
        }
        for group in planned.groups
    ]
    yield written(form, rows)
    if form == "markdown" and rows:
        yield ""
        yield from (f"- {' '.join(line.split())}" for line in [*planned.notes, *_sizes(planned), *_costs(planned)])


def sinks_in(recipe: Recipe) -> str:
    """In which of its statistics sink tokens are counted, and which they are left out of; empty where it has none."""
    from harness_ext.methods.registry import sink_use
    from harness_ext.recipe.schema import statistics_of

    use = sink_use({name for step in recipe.steps for name in statistics_of(step)})
    return "; ".join(
        f"{word} ({', '.join(name for name in use if use[name] == word)})" for word in dict.fromkeys(use.values())
    )


def plan_data(planned: Plan, name: str) -> dict[str, Any]:
    """A plan as JSON has it. name: of the model, as the user gave it."""
    estimate = planned.estimate
    return {
        "recipe": {"label": planned.recipe.label, "recipe_id": planned.recipe.recipe_id},
        "model": {"name": name, "model_type": planned.model_type, "dtype": planned.dtype, "layers": planned.layers},
        "device": planned.device,
        "tokens_per_document": planned.tokens,
        "roles_inferred": planned.inferred,
        "notes": list(planned.notes),
        "matrices": [
            {
                **group._asdict(),
                "shape": list(group.shape),
                "shape_after": group.shape_after and list(group.shape_after),
            }
            for group in planned.groups
        ],
        "parameters": {"before": planned.parameters, "after": planned.parameters_after},
        "bytes": {"before": planned.stored_bytes, "after": planned.bytes_after},
        "seconds": {
            "expected": estimate.seconds,
            "low": estimate.low,
            "high": estimate.high,
            "hashing": estimate.hashing_seconds,
        },
        "peak_bytes": estimate.peak_bytes,
        "if_offloaded": planned.if_offloaded,
        "steps": [
            {**step._asdict(), "seconds": step.seconds, "passes": step.passes._asdict()} for step in estimate.steps
        ],
        "searches": [vars(search) for search in planned.searches],
    }


def plan_lines(planned: Plan, name: str) -> Iterable[str]:
    """A plan for the terminal. name: of the model, as the user gave it."""
    from harness_ext.model.layout import inferred_note

    yield f"{planned.recipe.label} on {name} ({planned.model_type}, {planned.parameters:,} parameters)"
    yield ""
    if not planned.matrices:
        yield "  nothing is edited"
        return
    if planned.inferred:
        yield f"  {inferred_note(planned.model_type)}"
        yield ""
    for note in planned.notes:
        yield f"  {note}"
        yield ""
    yield from _groups(planned)
    yield ""
    yield from _sizes(planned)
    yield from _costs(planned)
    unknown = sum(item.rank_after is None for item in planned.matrices)
    if unknown:
        yield (
            f"  ranks of {_matrices(unknown)} follow from their values or the calibration, and are known when the"
            " recipe runs"
        )


def _groups(planned: Plan) -> Iterable[str]:
    """A line for matrices that are alike; where the recipe has several steps, under the step's method."""
    groups = planned.groups
    width = max(len("matrices"), *(len(_counted(group)) for group in groups))
    several = len({group.step for group in groups}) > 1
    step = None
    wide = max(13, *(len(_shape(group)) for group in groups))
    yield f"  {'matrices'.ljust(width)}  {'shape':>{wide}}  {'rank':>14}  {'parameters of one':>25}"
    for group in groups:
        if several and group.step != step:
            step = group.step
            yield f"  step {step}: {group.method}"
        before, after = group.shape[0] * group.shape[1], group.parameters_after
        yield (
            f"  {_counted(group).ljust(width)}  {_shape(group):>{wide}}  {_rank(group):>14} "
            f" {_change(before, after):>25}"
        )


def _counted(group: PlannedGroup) -> str:
    return f"{group.number} x {group.what}"


def _sizes(planned: Plan) -> Iterable[str]:
    from harness_ext.editing.plan_components import tells_mean_share

    if shared := len({item.matrix.parameter for item in planned.matrices if item.matrix.also}):
        yield f"  shared      {_matrices(shared)} by several layers, each edited once for all of them"
    if beside := _cut_beside(planned):
        yield f"  beside      {_matrices(beside)} lose the rows or columns that belong to those taken away"
    at_most = "at most " if planned.is_upper_bound else ""
    yield (
        f"  parameters  {_change(planned.parameters, planned.parameters_after, at_most)}"
        f" ({planned.parameters_after / planned.parameters:.1%}), {_stored(planned.recipe)}"
    )
    yield f"  bytes       {_change(planned.stored_bytes, planned.bytes_after)}"
    for step in filter(tells_mean_share, planned.recipe.steps):
        yield (
            f"  units       unit_fraction {step.parameters['unit_fraction']:g} is the share that stays, in the mean"
            " over layers; that of each is known when the recipe runs"
        )


def _cut_beside(planned: Plan) -> int:
    """How many matrices lose something with those of the rows."""
    from harness_ext.editing.plan_components import place_of

    lost = {place for item in planned.matrices for place, _ in item.lost}
    return len(lost - {place_of(item.matrix) for item in planned.matrices})


def _stored(recipe: Recipe) -> str:
    """How the edited matrices are kept."""
    from harness_ext.model.size import PIFA
    from harness_ext.recipe.schema import counted_as, takes_units

    if all(map(takes_units, recipe.steps)):
        return "without what is taken away"
    if PIFA in map(counted_as, recipe.steps):
        return "if stored as pivot rows with their places (pifa) where that is smaller"
    factored = {step.factored for step in recipe.steps}
    if False in factored:
        return "if stored as factors where that is smaller"
    return f"computed as two low-rank layers where that is {'faster' if True in factored else 'smaller'}"


def _costs(planned: Plan) -> Iterable[str]:
    estimate = planned.estimate
    between = f"{_duration(estimate.low)} to {_duration(estimate.high)}"
    yield (
        f"  time        about {_duration(estimate.seconds)} ({between}) on {planned.device} for"
        f" {_matrices(len(planned.matrices))}; loading and scoring are not counted"
    )
    yield f"  memory      about {_bytes(estimate.peak_bytes)} beyond the loaded model"
    if planned.if_offloaded is not None:
        yield f"  offload     {planned.if_offloaded}"
    for search in planned.searches:
        yield _searching(search)
    for step in estimate.steps:
        if step.documents:
            yield _calibrating(step, planned)
    if sinks := sinks_in(planned.recipe):
        yield f"  sink tokens {sinks}"
    if planned.training_epochs:
        yield f"  training    {planned.training_epochs} epochs over them"


def _searching(search: PlannedSearch) -> str:
    return (
        f"  search      at most {search.trials} {'trial' if search.trials == 1 else 'trials'} among"
        f" {_matrices(search.matrices)} on {search.documents} documents: at most {math.ceil(search.passes)} passes"
        " of the whole model over them; it edits what it finds"
    )


def _calibrating(step: EstimatedStep, planned: Plan) -> str:
    passes = step.passes
    backward = f" and {_number(passes.backward)} backward" if passes.backward else ""
    return (
        f"  calibration {step.documents} documents of {planned.tokens} tokens:"
        f" {'at most ' if passes.at_most else ''}{_passes(passes.forward)} forward{backward},"
        f" {_duration(step.calibrating_seconds)}"
    )


def _number(passes: float) -> str:
    return f"{passes:.0f}" if passes >= 10 or passes == int(passes) else f"{passes:.1f}"


def _passes(passes: float) -> str:
    return f"{_number(passes)} {'pass' if passes == 1 else 'passes'}"


def _matrices(count: int) -> str:
    return "1 matrix" if count == 1 else f"{count} matrices"


def _shape(group: PlannedGroup) -> str:
    before = "{} x {}".format(*group.shape)
    after = group.shape if group.shape_after is None else group.shape_after
    return before if after == group.shape else f"{before} -> {'{} x {}'.format(*after)}"


def _rank(group: PlannedGroup) -> str:
    if group.rank_after is None or group.shape_after is None:
        return f"{min(group.shape)} -> ?"
    return f"{min(group.shape)} -> {min(group.rank_after, *group.shape_after)}"


def _change(before: int, after: int, at_most: str = "") -> str:
    return f"{at_most}{before:,}" if before == after else f"{before:,} -> {at_most}{after:,}"


def _duration(seconds: float) -> str:
    return (
        f"{max(seconds, 0.01):.2f} s"
        if seconds < 10
        else f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
    )


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")
