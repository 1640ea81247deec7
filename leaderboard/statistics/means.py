"""Means of paired differences: their error, clustered or not, and t intervals."""

from __future__ import annotations

import math

import numpy as np

from leaderboard.statistics.values import Estimate, quantile, upper_tail


def paired_interval(differences: np.ndarray, clusters: np.ndarray | None = None, confidence: float = 0.95) -> Estimate:
    """t interval of the mean difference, `[n] -> Estimate`; NaN limits where one document or cluster gives no
    variance.
    """
    mean = float(np.mean(differences))
    error, degrees = standard_error(differences, clusters)
    half = quantile(confidence, degrees) * error if degrees > 0 else math.nan
    return Estimate(mean, mean - half, mean + half, error, degrees)


def standard_error(differences: np.ndarray, clusters: np.ndarray | None = None) -> tuple[float, float]:
    """Standard error of the mean of `[n]` paired differences and its degrees of freedom, clustered where clusters are
    given.

    Source: Miller (2024), arXiv:2411.00640, with the small-sample factor G / (G - 1).
    """
    count, residuals = len(differences), differences - np.mean(differences)
    if clusters is None:
        return (
            (float(np.sqrt(np.sum(residuals**2) / (count * (count - 1)))), count - 1.0)
            if count > 1
            else (math.nan, 0.0)
        )
    sums = cluster_sums(residuals, clusters)
    groups = len(sums)
    if groups < 2:
        return math.nan, 0.0
    return float(np.sqrt(groups / (groups - 1) * np.sum(sums**2)) / count), groups - 1.0


def cluster_sums(values: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Sums of `[n]` values by cluster, `[G]`."""
    _, positions = np.unique(clusters, return_inverse=True)
    return np.bincount(positions.ravel(), weights=values)


def within_p(estimate: Estimate, margin: float) -> float:
    """One-sided p of "the true mean is `-margin` or less", of an estimate in which below zero is worse. 1.0 where there
    is no variance estimate.

    Uses the centre of the interval, which for Bonett-Price is the adjusted difference.
    """
    centre = (estimate.low + estimate.high) / 2
    if math.isnan(centre) or not margin > 0:
        return 1.0
    if estimate.standard_error == 0:
        return 0.0 if centre > -margin else 1.0
    return upper_tail((margin + centre) / estimate.standard_error, estimate.degrees)


def equivalence_p(estimate: Estimate, margin: float) -> float:
    """Two one-sided tests: p of "the true difference is outside (-margin, margin)". 1.0 where there is no variance
    estimate.
    """
    return max(within_p(estimate, margin), within_p(mirrored(estimate), margin))


def mirrored(estimate: Estimate) -> Estimate:
    """The same estimate of the difference the other way round."""
    return Estimate(-estimate.value, -estimate.high, -estimate.low, estimate.standard_error, estimate.degrees)
