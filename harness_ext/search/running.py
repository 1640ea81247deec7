"""A search step from its documents to the ordinary steps that it found, with the record that the receipt keeps of it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness_ext.errors import UserError
from harness_ext.receipt import VariantFailed
from harness_ext.recipe import Recipe, Step, recipe_from
from harness_ext.search import nothing_to_try, registered_searches
from harness_ext.search.bench import Bench
from harness_ext.search.scoring import Score
from harness_ext.search.trials import Trial

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM

    from harness_ext.anatomy import Matrix
    from harness_ext.evidence.documents import LabelledDocument
    from harness_ext.factors import Factors
    from harness_ext.surgery import Progress
    from harness_ext.weights import Weights
    from harness_ext.workplace import Workplace


@dataclass
class Outcome:
    """What a search found: the steps to carry out, and its record as plain data, to which `measured` adds the score of the edited model."""

    steps: tuple[Step, ...]
    record: dict[str, Any]
    bench: Bench

    def measured(self) -> None:
        """Score the model as it was edited, on the same documents."""
        started = time.perf_counter()
        self.record["after"] = _score(self.bench.as_it_is().score)
        self.record["seconds"] += time.perf_counter() - started


def find(
    lm: HFLM, weights: Weights, factors: Factors, step: Step, number: int, matrices: tuple[Matrix, ...], documents: Sequence[LabelledDocument],
    progress: Progress, work: Workplace | None, where: str,
) -> Outcome:
    """Run the search of one step. Nothing of the model is changed when this returns.

    Raises UserError for what the recipe's author can mend, and VariantFailed, with the record of the trials made so far, for what the model makes impossible.
    """
    search = registered_searches()[step.method]
    started = time.perf_counter()
    planned = search.trials([matrix.shape for matrix in matrices], step.parameters)
    if not planned:
        raise UserError(f"{where}{nothing_to_try(len(matrices))}")
    progress.start(f"{step.method}: searching", planned)
    bench: Bench | None = None
    record: dict[str, Any] = {"step": number, "method": step.method, "seed": step.seed, "documents": len(documents), "planned": planned}
    try:
        with Bench(lm, weights, factors, step, matrices, documents, work, progress.advance) as bench:
            found = search.function(bench, **step.parameters)
        steps = tuple(recipe_from({"name": "found", "steps": [{**one, "factored": step.factored} for one in found.steps]}, origin=step.method).steps)
    except UserError as error:
        raise UserError(f"{where}{error}") from None
    except VariantFailed as error:
        error.searches = [record | (_trials(bench) if bench is not None else {})]
        raise
    finally:
        progress.stop()
    record |= {"chosen": [one.model_dump(mode="json", exclude_none=True) for one in steps], "before": _score(bench.before.score), **_trials(bench), "notes": list(found.notes), "warnings": list(bench.notes)}
    return Outcome(steps, record | {"seconds": time.perf_counter() - started}, bench)


def _trials(bench: Bench) -> dict[str, Any]:
    return {"trials": [_row(place, trial) for place, trial in enumerate(bench.trials)], "forward_passes": round(bench.passes, 2)}


def _row(number: int, trial: Trial) -> dict[str, Any]:
    return {"number": number, **trial.setting, **_score(trial.score), "documents": trial.score.documents, "dropped": trial.dropped}


def _score(score: Score) -> dict[str, Any]:
    return {"correct": score.correct, "accuracy": score.correct / max(1, score.documents), "loss": score.loss if math.isfinite(score.loss) else None}


def without_searching(recipe: Recipe | Mapping[str, Any], searches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A recipe as plain data, with the steps that each of its searches found in the place of the search."""
    data = dict(recipe.resolved() if isinstance(recipe, Recipe) else recipe)
    found = {record["step"]: record["chosen"] for record in searches}
    data["steps"] = [step for number, one in enumerate(data["steps"]) for step in found.get(number, [one])]
    return data
