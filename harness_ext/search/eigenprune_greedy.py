"""A greedy search for components to remove: candidates to first order, accepted by the loss that is measured (ours).

In each round the ablation effect of every component is measured on the model as edited so far; the best candidates of
all matrices together are removed on trial. Where the loss of the calibration documents falls they stay removed; where
it does not, half as many are tried, down to two, and then they and the best candidate of every other matrix one by one:
the best to first order is often a large component, for which first order is not enough, and one matrix of such ones can
hold all the first places. The search ends with the first round that accepts nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from harness_ext.calibration.by_layer import gathered
from harness_ext.calibration.context import DocumentBatches
from harness_ext.search.removals import EditedSite, RemovalCandidate, RemovalTrials

if TYPE_CHECKING:
    from torch import Tensor

    from harness_ext.recipe.settings import SearchSettings


def greedy_search(site: EditedSite, documents: DocumentBatches, settings: SearchSettings) -> RemovalTrials:
    """Remove what lowers the loss, few components at a time. documents.advance is told the number of rounds done.

    Raises VariantFailed where the loss is not finite.
    """
    # Its rounds are what is counted, not the trials within them.
    quiet = DocumentBatches(documents.documents, documents.size, progress=documents.progress)
    trials = RemovalTrials(site, quiet)
    for _ in range(settings.rounds):
        with trials.standing():
            effects = gathered(site.lm, site.matrices, frozenset({"ablation_effects"}), quiet, site.decompose)
        groups = _groups(_candidates(effects, trials.removed), settings.at_once)
        accepted = any(trials.attempt(group) for group in groups)
        documents.advance(1)
        if not accepted:
            break
    return trials


def _candidates(effects: Mapping[str, Mapping[str, Tensor]], removed: Mapping[str, Tensor]) -> list[RemovalCandidate]:
    """Components still there whose removal should lower the loss, the best first; equal ones in the order of the
    matrices.
    """
    found = [
        RemovalCandidate(float(effect), key, component)
        for key, values in effects.items()
        for component, effect in enumerate(values["ablation_effects"].tolist())
        if effect < 0 and not removed[key][component]
    ]
    return sorted(found, key=lambda candidate: candidate.effect)


def _groups(candidates: Sequence[RemovalCandidate], at_once: int) -> Iterator[Sequence[RemovalCandidate]]:
    """The best `at_once`, the better half of them, the better quarter and so on down to two; then each by itself, and
    the best of every matrix that has none among them.
    """
    best = candidates[:at_once]
    size = len(best)
    while size > 1:
        yield best[:size]
        size //= 2
    seen = {candidate.key for candidate in best}
    others: dict[str, RemovalCandidate] = {}
    for candidate in candidates:
        if candidate.key not in seen:
            others.setdefault(candidate.key, candidate)
    for candidate in (*best, *others.values()):
        yield [candidate]
