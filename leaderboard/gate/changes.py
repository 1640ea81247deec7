"""What changed between two runs, and whose doing a drop can be.

Notable choices: equal weights clear the recipe, whatever else differs, because the model that was scored is the same to
the bit. And where the unedited model, too, scores otherwise than it did when the blessed run was made, that much is not
the recipe's doing. Neither changes the verdict: a model that got worse got worse.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from leaderboard.compare.pairing import Terms
from leaderboard.gate.decision import GateRow
from leaderboard.gate.evaluate import GateStore
from leaderboard.readers.asked import revision_of
from leaderboard.readers.records import Run
from leaderboard.readers.weights_digest import short_digest, weights_differ
from leaderboard.terminal.format import signed

_DIGESTS = ("weights digest", "unedited weights")


class RunChange(NamedTuple):
    """One thing that differs: its name, and what it was and is."""

    what: str
    before: str
    after: str


def changes(baseline: Run, candidate: Run) -> list[RunChange]:
    """Everything known of both runs that differs and can change a score. What either run does not say is left out."""
    before, after = _facts(baseline), _facts(candidate)
    return [
        RunChange(name, before[name], after[name])
        for name in before
        if before[name]
        and after[name]
        and before[name] != after[name]
        and (name not in _DIGESTS or weights_differ(before[name], after[name]))
    ]


def _facts(run: Run) -> dict[str, str]:
    variant, versions = run.variant, _mapping(run.versions)
    facts = {
        "recipe": variant.recipe_label,
        "recipe's steps": _short(variant.recipe_id),
        "revision of its methods": revision_of(run.asked) if variant.recipe_id else None,
        "weights digest": _short(variant.digest_after),
        "model": variant.model_name,
        "model revision": variant.revision,
        "unedited weights": _short(variant.digest_before),
        "lm-eval": run.lm_eval_version or versions.get("lm_eval"),
        "transformers": run.transformers_version or versions.get("transformers"),
        "torch": versions.get("torch") or run.torch_version,
        "lm-eval-recipes": versions.get("lm_eval_recipes"),
        "device": run.device,
        "GPU": run.ran_on.gpu,
        "GPU driver": run.ran_on.driver,
        "engine": " ".join(filter(None, [run.ran_on.engine, run.ran_on.engine_version])),
        "dtype": variant.dtype,
        "backend": run.backend,
        "batch size": run.batch_size,
    }
    return {name: str(value) if value else "" for name, value in facts.items()}


def _mapping(text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _short(digest: str | None) -> str | None:
    return None if digest is None else short_digest(digest)


def same_weights(baseline: Run, candidate: Run) -> bool:
    """Whether both runs scored the same weights, to the bit."""
    return weights_differ(baseline.variant.digest_after, candidate.variant.digest_after) is False


def findings(baseline: Run, candidate: Run, found: list[RunChange]) -> list[str]:
    """What the changes between a run and the one before it say about whose doing a drop is."""
    if same_weights(baseline, candidate):
        return ["the weights are the same to the bit, so the recipe did not do this"]
    said = []
    names = {change.what for change in found}
    if baseline.variant.digest_after is None or candidate.variant.digest_after is None:
        said.append("the weights were not recorded in both runs, so the recipe is neither cleared nor accused")
    elif weights_differ(baseline.variant.digest_after, candidate.variant.digest_after) is None:
        said.append(
            "the two runs name their weights by digests of two kinds, which say nothing of each other, so the recipe is"
            " neither cleared nor accused"
        )
    elif "unedited weights" in names:
        said.append("the unedited model has other weights than it had, so the recipe started from something else")
    elif not names - {"weights digest", "recipe", "recipe's steps", "revision of its methods"}:
        said.append("nothing else that is known differs, so the edit did this")
    return said


def moved_baseline(gate: GateStore, row: GateRow, base_before: Run, base_now: Run, alpha: float) -> str | None:
    """A sentence on whether the unedited model moved between two runs of it, on a row's task; None for a suite, or
    where it cannot be told.
    """
    if row.kind == "suite":
        return None
    if base_before.run_id == base_now.run_id:
        return f"{row.name}: the unedited model did not move"
    subject = gate.subject(base_now, row.name)
    if subject is None or subject.score.score is None:
        return None
    effect = gate.pair(subject, base_before, Terms()).effect
    if effect is None or effect.drop is None:
        return None
    change = signed(0.0 - effect.drop)  # as the gate's tables have it: below zero is worse
    if effect.p_value is not None and effect.p_value <= alpha:
        return f"{row.name}: the unedited model moved too, by {change}: that much is not the recipe's doing"
    return f"{row.name}: the unedited model did not move beyond chance ({change})"
