"""A search step from its documents to the ordinary steps that it found, with the record that the receipt keeps of
it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from harness_ext.errors import VariantFailed
from harness_ext.methods.search_registry import planned_trials, registered_searches
from harness_ext.recipe.recipe import Recipe, recipe_from
from harness_ext.recipe.schema import Step
from harness_ext.search.evaluator import CandidateEvaluator
from harness_ext.search.scoring import CandidateScore
from harness_ext.search.trials import Trial, finite

if TYPE_CHECKING:
    from harness_ext.calibration.context import StepContext
    from harness_ext.calibration.documents import LabelledDocument
    from harness_ext.model.layout import Matrix


@dataclass
class SearchOutcome:
    """What a search found: the steps to carry out, and its record as plain data, to which `measured` adds the score of
    the edited model.
    """

    steps: tuple[Step, ...]
    record: dict[str, Any]
    evaluator: CandidateEvaluator

    def measured(self) -> None:
        """Score the model as it was edited, on the same documents; of a search that tries nothing out this is the one
        trial.
        """
        started = time.perf_counter()
        made = self.evaluator.as_it_is()
        self.record["after"] = _score(made.score)
        if self.steps and not self.record["trials"]:
            chosen = self.record["chosen"]
            last = next((step for step in reversed(chosen) if "keep" in step), chosen[-1])
            self.record["trials"] = [_row(0, replace(made, setting=last), self.evaluator.parts, chosen)]
        self.record["forward_passes"] = round(self.evaluator.passes, 2)
        self.record["seconds"] += time.perf_counter() - started


def run_search(
    context: StepContext, matrices: tuple[Matrix, ...], documents: Sequence[LabelledDocument]
) -> SearchOutcome:
    """Run the search of one step. Nothing of the model is changed when this returns.

    Raises UserError for what the recipe's author can mend, and VariantFailed, with the record of the trials made so
    far, for what the model makes impossible.
    """
    step = context.step
    search = registered_searches()[step.method]
    started = time.perf_counter()
    planned = planned_trials(step.method, matrices, context.model.weights.layout.layers, step.parameters)
    evaluator: CandidateEvaluator | None = None
    record: dict[str, Any] = {
        "step": context.number,
        "method": step.method,
        "seed": step.seed,
        "documents": len(documents),
        "planned": planned,
    }
    try:
        search.check(matrices, context.model.weights.layout.layers, step.parameters)
        with (
            context.progress.stage("searching", planned, "trials") as stage,
            CandidateEvaluator(context, matrices, documents, stage=stage) as evaluator,
        ):
            found = search.function(evaluator, **step.parameters)
        steps = tuple(
            recipe_from(
                {"name": "found", "steps": [{**one, "factored": step.factored} for one in found.steps]},
                origin=step.method,
            ).steps
        )
    except VariantFailed as error:
        error.searches = [record | (_trials(evaluator) if evaluator is not None else {})]
        raise
    chosen = [one.model_dump(mode="json", exclude_none=True) for one in steps]
    record |= {
        "chosen": chosen,
        "before": _score(evaluator.before.score),
        **_trials(evaluator, found.steps),
        "notes": [*found.notes, *_went_on(evaluator)],
        "warnings": [*found.warnings, *evaluator.notes],
    }
    if not steps:
        record["reason"] = found.reason or f"it chose no edit after {len(evaluator.trials)} trials"
    return SearchOutcome(
        steps, record | {"seconds": time.perf_counter() - started + evaluator.earlier_seconds}, evaluator
    )


def _went_on(evaluator: CandidateEvaluator) -> list[str]:
    return (
        [
            f"went on from {evaluator.resumed} trials that an earlier process had made; its passes and seconds are"
            " counted"
        ]
        if evaluator.resumed
        else []
    )


def _trials(evaluator: CandidateEvaluator, chosen: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """What was tried, and what it took: passes over all documents."""
    return {
        "trials": [_row(place, trial, evaluator.parts, chosen) for place, trial in enumerate(evaluator.trials)],
        "resumed": evaluator.resumed,
        "forward_passes": round(evaluator.passes, 2),
        "backward_passes": evaluator.statistics.backward_passes,
    }


def _row(
    number: int, trial: Trial, parts: Sequence[Sequence[int]], chosen: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """One trial as plain data. parts: those of the documents that are told of by themselves."""
    by_part = (
        {"parts": [{"correct": trial.correct(part), "documents": trial.run(part)} for part in parts]} if parts else {}
    )
    accepted = any(_stands_in(trial.setting, step) for step in chosen)
    return {
        "number": number,
        **trial.setting,
        **_score(trial.score),
        "documents": trial.score.documents,
        **({} if trial.divergence is None else {"divergence": finite(trial.divergence)}),
        "dropped": trial.dropped,
        "accepted": accepted,
        **by_part,
    }


def _stands_in(setting: Mapping[str, Any], step: Mapping[str, Any]) -> bool:
    """Whether the step is this setting, or has it among the ranks that it gives its matrices."""
    if setting == step:
        return True
    own, whole = (one.get("keep", {}).get("ranks") or {} for one in (setting, step))
    return (
        bool(own)
        and own.items() <= whole.items()
        and all(setting.get(key) == step.get(key) for key in ("method", "seed"))
    )


def _score(score: CandidateScore) -> dict[str, Any]:
    return {
        "correct": score.correct,
        "accuracy": score.correct / max(1, score.documents),
        "loss": score.loss if math.isfinite(score.loss) else None,
    }


def found_nothing(record: Mapping[str, Any]) -> str | None:
    """A sentence without its end about a search that found nothing, from its record; None of one that found
    something.
    """
    if record["chosen"]:
        return None
    return f"{record['method']} found nothing: {record.get('reason') or 'it chose no edit'}"


def without_searching(recipe: Recipe | Mapping[str, Any], searches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A recipe as plain data, with the steps that each of its searches found in the place of the search."""
    data = dict(recipe.resolved() if isinstance(recipe, Recipe) else recipe)
    found = {record["step"]: record["chosen"] for record in searches}
    data["steps"] = [step for number, one in enumerate(data["steps"]) for step in found.get(number, [one])]
    return data
