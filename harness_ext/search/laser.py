"""LASER's searches (arXiv:2312.13558): one matrix and one fraction of its rank; several, taken on greedily; and few
matrices, found by a gradient and cut in clusters (arXiv:2510.20800).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from harness_ext.methods.budget import Keep
from harness_ext.methods.search_registry import GRID, Fraction, Fractions, SearchResult, search

if TYPE_CHECKING:
    from torch import Tensor

    from harness_ext.methods import Svd
    from harness_ext.model.layout import Matrix
    from harness_ext.search.evaluator import CandidateEvaluator
    from harness_ext.search.scoring import CandidateScore
    from harness_ext.search.trials import Hopeless, Partial, Trial

Positive = Annotated[int, Field(ge=1)]
Clusters = Annotated[tuple[Positive, ...], Field(min_length=1)]


def grid_of(shape: tuple[int, int], fractions: Sequence[float]) -> dict[float, int]:
    """The fractions that change a matrix of this shape, with their ranks: of several that come to one rank the first,
    and none that leaves it at full rank.
    """
    ranks: dict[int, float] = {}
    for fraction in fractions:
        ranks.setdefault(Keep(rank_fraction=fraction).rank_for(shape), fraction)
    return {fraction: rank for rank, fraction in ranks.items() if rank < min(shape)}


def _count(shapes: Sequence[tuple[int, int]], settings: Mapping[str, Any]) -> int:
    return sum(len(grid_of(shape, settings["fractions"])) for shape in shapes)


def truncation(matrix: Matrix, fraction: float) -> dict[str, Any]:
    """The ordinary step that a trial stands for."""
    return {"method": "truncate_svd", "matrices": [matrix.key], "keep": {"rank_fraction": fraction}}


@search(summary="Try every fraction of every matrix, and choose the one that answers best.", trials=_count, revision=2)
def laser_search(evaluator: CandidateEvaluator, /, *, fractions: Fractions = GRID) -> SearchResult:
    """The paper's search: one matrix is truncated, every other left. Chosen by accuracy; among equals by the lower
    loss; among those by the order of the matrices in the model, then of the fractions.

    An edit that answers fewer documents right than the model as it is, or raises their loss, is not chosen (ours);
    where all of them do, none is.
    """
    from harness_ext.search.trials import all_worse, best_improvement, cannot_improve

    tried: dict[str, list[Any]] = {}
    # From the last layer on: passes are shortest there, and the best found so far spares the longer ones. What is
    # chosen does not depend on it.
    for matrix in reversed(evaluator.matrices):
        grid = grid_of(matrix.shape, fractions)
        if not grid:
            continue
        bar = _bar([trial for trials in tried.values() for trial in trials], evaluator.before)
        settings = [truncation(matrix, fraction) for fraction in grid]
        tried[matrix.key] = evaluator.try_out(
            matrix,
            evaluator.truncations(matrix, list(grid.values())),
            settings,
            cannot_improve(evaluator.before, bar),
        )
    in_order = [trial for matrix in evaluator.matrices for trial in tried.get(matrix.key, [])]
    best = best_improvement(in_order, evaluator.before)
    if best is None:
        return SearchResult((), reason=all_worse(len(evaluator.documents)))
    return SearchResult((best.setting,))


def _bar(trials: Sequence[Trial], before: Trial) -> CandidateScore | None:
    from harness_ext.search.trials import best_of, not_worse

    fit = [trial for trial in trials if not_worse(trial, before)]
    return best_of(fit).score if fit else None


@search(
    summary="Truncate matrix after matrix, from the last layer on, and keep what answers better.",
    trials=_count,
    takes_on=True,
    revision=2,
)
def laser_compose(evaluator: CandidateEvaluator, /, *, fractions: Fractions = GRID) -> SearchResult:
    """The paper's greedy composition: from the largest layer and the smallest fraction, each truncation tried on top of
    those kept before, and kept if the accuracy rises; else the matrix is as it was. One that raises the loss is not
    kept (ours).

    Within a layer matrices are taken from the last to the first; for each, fractions from the smallest, and a larger
    one takes the place of a smaller that was kept if it answers better still (ours).
    """
    standing = evaluator.before.score
    kept: list[Mapping[str, Any]] = []
    for matrix in reversed(evaluator.matrices):
        grid = dict(sorted(grid_of(matrix.shape, fractions).items()))
        if not grid:
            continue
        alternatives = evaluator.truncations(matrix, list(grid.values()))
        best: int | None = None
        for place, trial in enumerate(
            evaluator.try_out(
                matrix, alternatives, [truncation(matrix, fraction) for fraction in grid], _cannot_rise_above(standing)
            )
        ):
            if trial.eligible and trial.score.correct > standing.correct and trial.loss <= standing.loss:
                best, standing = place, trial.score
        if best is not None:
            chosen = truncation(matrix, list(grid)[best])
            kept.append(chosen)
            evaluator.take(matrix, alternatives.weight(best), note=chosen)
    reason = (
        f"no edit that it tried answered more of its {standing.documents} calibration documents right than the unedited"
        " model without raising their loss"
    )
    return SearchResult(tuple(kept), reason="" if kept else reason)


def _cannot_rise_above(standing: CandidateScore) -> Hopeless:
    """For a search that takes what is better than what stands: an alternative is hopeless where all the rest right
    would not make it so, or where its loss is the higher already.
    """

    def hopeless(partial: Partial) -> Tensor:
        reachable = partial.correct + partial.rest
        most = standing.loss * standing.documents * (1 + 1e-9)
        return (reachable <= standing.correct) | ~(partial.losses <= most)

    return hopeless


def _count_clusters(shapes: Sequence[tuple[int, int]], settings: Mapping[str, Any]) -> int:
    """Whole, the `top` largest grids; in clusters, those of the best `refined` of these matrices, whichever they will
    be. No more clusters than a matrix has rows.
    """
    counts = set(settings["clusters"])
    grids = {shape: len(grid_of(shape, settings["fractions"])) for shape in shapes}
    whole = sorted((grids[shape] for shape in shapes), reverse=True)
    clustered = sorted(
        (grids[shape] * sum(1 < count <= shape[0] for count in counts) for shape in shapes), reverse=True
    )
    return (sum(whole[: settings["top"]]) if 1 in counts else 0) + sum(
        clustered[: min(settings["top"], settings["refined"])]
    )


@search(
    summary=(
        "Find the few matrices whose singular values the loss would have smaller, try every fraction of these, and of"
        " the best also in clusters of rows."
    ),
    trials=_count_clusters,
    statistics=("singular_value_gradients",),
    revision=2,
)
def laser_gradient(
    evaluator: CandidateEvaluator,
    /,
    *,
    top: Positive = 5,
    refined: Positive = 1,
    fractions: Fractions = GRID,
    clusters: Clusters = (1, 2, 4, 8, 16),
    grouping: Literal["block", "subspace"] = "block",
    beyond: Fraction = 0.01,
) -> SearchResult:
    """Gradient-guided, clustered LASER; every choice here is ours, since no code was released.

    `g_i = u_i^T G v_i` on all documents; a matrix is worth `sum_{i > beyond r} s_i max(0, g_i)`, what the removal of
    these components would lower the loss by, to first order. The `top` matrices are tried whole, with each fraction;
    the best `refined` of them (without whole trials, those worth most) in each number of clusters as well. Chosen as in
    `laser_search`. Components are those of the truncations, whose factors are `u_i` and `s_i v_i` or `s_i u_i` and
    `v_i`: either way their gradient is `s_i g_i`.
    """
    from harness_ext.search.trials import all_worse, best_improvement

    gradients = evaluator.statistics.gather(
        evaluator.matrices, frozenset({"singular_value_gradients"}), lambda matrix: _components(evaluator, matrix)
    )
    worth = {
        matrix.key: _worth(gradients[matrix.key]["singular_value_gradients"], beyond)
        for matrix in evaluator.matrices
        if grid_of(matrix.shape, fractions)
    }
    promising = sorted(worth, key=lambda key: -worth[key])[:top]
    trials = _ClusterTrials(evaluator, fractions, grouping)
    if 1 in clusters:
        trials.make(promising, (1,))
    # A matrix whose trials were all worse comes after those that had another.
    refinable = list(dict.fromkeys([*trials.best_matrices(), *promising]))[:refined]
    trials.make(refinable, [count for count in clusters if count > 1])
    best = best_improvement(trials.in_order(), evaluator.before)
    listed = ", ".join(f"{key} ({worth[key]:.3g})" for key in promising)
    return SearchResult(
        (best.setting,) if best is not None else (),
        (f"of {len(worth)} matrices these were tried, with the fall of the loss that the gradient promises: {listed}",),
        reason="" if best is not None else all_worse(len(evaluator.documents)),
    )


@dataclass
class _ClusterTrials:
    """Trials of matrices, whole or in clusters of rows, with every fraction."""

    evaluator: CandidateEvaluator
    fractions: Sequence[float]
    grouping: str
    made: list[Trial] = field(default_factory=list)

    def make(self, keys: Sequence[str], counts: Sequence[int]) -> None:
        """Try these matrices, from the last layer on as in `laser_search`, in each of these numbers of clusters."""
        from harness_ext.search.candidates import Joined
        from harness_ext.search.trials import cannot_improve

        for matrix in reversed([matrix for matrix in self.evaluator.matrices if matrix.key in keys]):
            grid = tuple(grid_of(matrix.shape, self.fractions))
            fit = [count for count in counts if count <= matrix.shape[0]]
            if not fit:
                continue
            settings = [self._setting(matrix, fraction, count) for count in fit for fraction in grid]
            alternatives = Joined(
                tuple(_clustered(self.evaluator, matrix, grid, count, self.grouping) for count in fit)
            )
            before = self.evaluator.before
            hopeless = cannot_improve(before, _bar(self.made, before))
            self.made.extend(self.evaluator.try_out(matrix, alternatives, settings, hopeless))

    def _setting(self, matrix: Matrix, fraction: float, count: int) -> dict[str, Any]:
        if count == 1:
            return truncation(matrix, fraction)
        return clustered(matrix, fraction, count, self.grouping, self.evaluator.step.seed)

    def in_order(self) -> list[Trial]:
        """The trials in the order of the model's matrices."""
        order = {matrix.key: place for place, matrix in enumerate(self.evaluator.matrices)}
        return sorted(self.made, key=lambda trial: order[trial.setting["matrices"][0]])

    def best_matrices(self) -> list[str]:
        """The matrices of trials that are not worse than the unedited model, the best trial's first."""
        from harness_ext.search.trials import not_worse

        fit = [trial for trial in self.in_order() if not_worse(trial, self.evaluator.before)]
        ranked = sorted(fit, key=lambda trial: (-trial.score.correct, trial.loss))
        return [trial.setting["matrices"][0] for trial in ranked]


def clustered(matrix: Matrix, fraction: float, clusters: int, grouping: str, seed: int) -> dict[str, Any]:
    """The ordinary step that a trial in clusters stands for."""
    return {
        "method": "truncate_clusters",
        "matrices": [matrix.key],
        "keep": {"rank_fraction": fraction},
        "clusters": clusters,
        "grouping": grouping,
        "seed": seed,
    }


def _components(evaluator: CandidateEvaluator, matrix: Matrix) -> Svd:
    """The factors of a truncation at full rank, in the form of a decomposition of singular values one."""
    from harness_ext.methods import Svd

    whole = evaluator.truncations(matrix, [min(matrix.shape)])
    return Svd(whole.left, whole.left.new_ones(min(matrix.shape)), whole.right)


def _worth(gains: Tensor, beyond: float) -> float:
    """gains: by how much each component's removal lowers the loss, `[r]`."""
    first = Keep(rank_fraction=beyond).rank_for((len(gains), len(gains)))
    return float(gains.clamp(min=0)[first:].sum())


def _clustered(
    evaluator: CandidateEvaluator, matrix: Matrix, fractions: Sequence[float], clusters: int, grouping: str
) -> Any:
    """One matrix at every fraction, in so many clusters: nested truncations of each where the clusters do not depend on
    the rank.
    """
    import torch

    from harness_ext.methods.clustered_svd import blocks, truncate_clusters
    from harness_ext.search.candidates import Dense, Grouped, Nested

    if clusters == 1:
        return evaluator.truncations(matrix, list(grid_of(matrix.shape, fractions).values()))
    weight = evaluator.weight(matrix)
    if grouping == "block":
        parts = []
        for rows in blocks(weight.shape[0], clusters):
            u, s, vh = torch.linalg.svd(weight[rows], full_matrices=False)
            parts.append(
                (
                    rows,
                    Nested(
                        u * s,
                        vh,
                        tuple(
                            Keep(rank_fraction=fraction).rank_for((len(rows), weight.shape[1]))
                            for fraction in fractions
                        ),
                    ),
                )
            )
        return Grouped(tuple(parts))
    keeps = [Keep(rank_fraction=fraction) for fraction in fractions]
    return Dense(
        torch.stack(
            [
                truncate_clusters(
                    weight, keep=keep, generator=evaluator.generator(matrix), clusters=clusters, grouping="subspace"
                ).weight()
                for keep in keeps
            ]
        )
    )
