"""Trials: what is known of an edit that was tried on the calibration documents, and which of several is the best."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from harness_ext.errors import UserError, VariantFailed
from harness_ext.search.scoring import CandidateScore

if TYPE_CHECKING:
    from torch import Tensor

NOT_RUN = "-"


class Partial(NamedTuple):
    """Alternatives in the middle of their documents: right `[alternatives, documents]`, bool, loss likewise, and which
    documents were run, `[documents]`.
    """

    right: Tensor
    loss: Tensor
    seen: Tensor

    @property
    def correct(self) -> Tensor:
        """Documents right so far, `[alternatives]`."""
        return (self.right & self.seen).sum(1)

    @property
    def leading(self) -> Tensor:
        """The most documents that one which may still be chosen has right so far; a loss that is not finite rules one
        out.
        """
        return self.correct.where(self.losses.isfinite(), 0).max()

    @property
    def rest(self) -> int:
        """Documents not run yet."""
        return int((~self.seen).sum())

    @property
    def losses(self) -> Tensor:
        """The summed loss so far, `[alternatives]`."""
        return (self.loss * self.seen).sum(1)


Hopeless = Callable[[Partial], "Tensor"]
"""Which alternatives can no longer matter, `[alternatives]`, bool."""


@dataclass(frozen=True)
class Trial:
    """One edit that was tried. setting: the ordinary steps, or the part of one, that it stands for. right: a digit for
    each document, 1 or 0, or `-` where it was dropped before. loss: the mean over those run. divergence: from the
    unedited model, in nats, the mean likewise; None where a search does not measure it.
    """

    setting: Mapping[str, Any]
    right: str
    loss: float
    divergence: float | None = None

    @property
    def dropped(self) -> bool:
        """Whether it was given up before its last document."""
        return NOT_RUN in self.right

    @property
    def score(self) -> CandidateScore:
        """Over the documents that were run."""
        return CandidateScore(self.right.count("1"), len(self.right) - self.right.count(NOT_RUN), self.loss)

    @property
    def eligible(self) -> bool:
        """Whether it can be chosen: all its documents were run, and their loss is finite."""
        return not self.dropped and math.isfinite(self.loss)

    def correct(self, places: Sequence[int]) -> int:
        """How many of these documents are right."""
        return sum(self.right[place] == "1" for place in places)

    def run(self, places: Sequence[int]) -> int:
        """On how many of these documents it was run."""
        return sum(self.right[place] != NOT_RUN for place in places)


def cannot_win(bar: CandidateScore | None) -> Hopeless:
    """For a search of the highest accuracy, and among equals the lowest loss: an alternative is hopeless where all the
    rest right would not bring it up to the best.

    bar: the best so far, over all documents. One that could at most draw level with it is hopeless as soon as its loss
    is the higher: losses are never negative.
    """

    def hopeless(partial: Partial) -> Tensor:
        best = partial.leading if bar is None else partial.leading.clamp(min=bar.correct)
        reachable = partial.correct + partial.rest
        lost = (reachable < best) | ~partial.losses.isfinite()
        return (
            lost
            if bar is None
            else lost | ((reachable == bar.correct) & (partial.losses > bar.loss * bar.documents * (1 + 1e-9)))
        )

    return hopeless


def not_worse(trial: Trial, before: Trial) -> bool:
    """Whether an edit can be made at all: it answers no fewer documents right than the model before it, and their loss
    is no higher.
    """
    return trial.eligible and trial.score.correct >= before.score.correct and trial.loss <= before.loss


def cannot_improve(before: Trial, bar: CandidateScore | None) -> Hopeless:
    """As `cannot_win`, for a search whose edit must be `not_worse` than the model before it: an alternative is hopeless
    where it can only be worse, or where one that is not answers more.

    before: the unedited model. bar: the best so far that is not worse. Alternatives beside it give no bar: one that
    leads may turn out to be worse.
    """
    least = max(before.score.correct, 0 if bar is None else bar.correct)

    def hopeless(partial: Partial) -> Tensor:
        reachable = partial.correct + partial.rest
        documents = before.score.documents
        lost = (reachable < least) | ~(partial.losses <= before.loss * documents * (1 + 1e-9))
        return (
            lost
            if bar is None
            else lost | ((reachable == bar.correct) & (partial.losses > bar.loss * documents * (1 + 1e-9)))
        )

    return hopeless


def best_improvement(trials: Sequence[Trial], before: Trial) -> Trial | None:
    """The best (see `best_of`) of the trials that are not worse than the model before; None where all are. Raises what
    `best_of` raises where nothing was tried, or no loss is finite.
    """
    fit = [trial for trial in trials if not_worse(trial, before)]
    broken = not any(math.isfinite(trial.loss) for trial in trials)
    return best_of(trials if broken else fit) if fit or broken else None


def all_worse(documents: int) -> str:
    """Why a search found nothing, whose edit must be `not_worse` on so many documents than the model before it."""
    return (
        f"every edit that it tried was worse than the unedited model on its {documents} calibration documents (fewer"
        " right, or a higher loss)"
    )


def best_of(trials: Sequence[Trial]) -> Trial:
    """The trial of the highest accuracy; among equals that of the lowest loss; among those the first. Raises
    VariantFailed where no loss is finite, and UserError where nothing was tried.
    """
    if not trials:
        raise UserError(
            "nothing was tried: the settings leave no edit that changes a matrix; give smaller fractions, fewer"
            " clusters, or other matrices"
        )
    eligible = [trial for trial in trials if trial.eligible]
    if not eligible:
        raise VariantFailed(
            "non_finite_loss",
            f"of the {len(trials)} trials none has a finite loss on the calibration documents: no edit can be chosen",
        )
    return min(eligible, key=lambda trial: (-trial.score.correct, trial.loss))


def trial_of(
    setting: Mapping[str, Any],
    right: Tensor,
    loss: Tensor,
    ran: Tensor | None = None,
    divergence: Tensor | None = None,
) -> Trial:
    ran = ran if ran is not None else right.new_ones(len(right))
    digits = "".join(
        NOT_RUN if not was else str(int(one)) for one, was in zip(right.tolist(), ran.tolist(), strict=True)
    )
    apart = None if divergence is None else float(divergence[ran].mean())
    return Trial(setting, digits, float(loss[ran].mean()), apart)


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def scored(trial: Trial) -> str:
    """A trial's accuracy in words: "61.2 %"."""
    return f"{100 * trial.score.correct / max(1, trial.score.documents):.1f} %"


def told_setting(setting: Mapping[str, Any]) -> str:
    """What a trial's setting edits, in few words: matrices and what is kept of them; how many where there are many."""
    keep = setting.get("keep") or {}
    kept = {name: value for name, value in keep.items() if name != "ranks"}
    ranks = keep.get("ranks") or {}
    matrices = [str(name) for name in setting.get("matrices") or ranks]
    what = matrices[0] if len(matrices) == 1 else f"{len(matrices)} matrices" if matrices else "all matrices"
    if len(ranks) == 1:
        kept["rank"] = next(iter(ranks.values()))
    others = {name: value for name, value in setting.items() if isinstance(value, (int, float)) and name != "seed"}
    return " ".join([what, *(f"{name} {value}" for name, value in {**kept, **others}.items())])


def least_moved(trials: Sequence[Trial]) -> Trial:
    """The first of those whose predictions moved least. Raises VariantFailed where none has finite ones."""
    finite = [trial for trial in trials if trial.divergence is not None and math.isfinite(trial.divergence)]
    if not finite:
        raise VariantFailed(
            "non_finite_loss",
            f"of the {len(trials)} plans none has finite predictions on the calibration documents: none can be chosen",
        )
    return min(finite, key=lambda trial: trial.divergence or 0.0)
