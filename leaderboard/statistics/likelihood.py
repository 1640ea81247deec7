"""Log-likelihoods: how far the probabilities of a question's choices moved."""

from __future__ import annotations

import numpy as np


def choice_divergence(baseline: np.ndarray, recipe: np.ndarray) -> float:
    """Kullback-Leibler divergence in nats of the recipe's choice probabilities from the baseline's, of one document.

    `baseline` and `recipe` are the choices' log-likelihoods `[k]`; the probabilities are their softmax:
    `sum_k p_k^B ln(p_k^B / p_k^R)`. A choice that the recipe gives no probability at all makes it infinite, unless the
    baseline gave it none either.
    """
    log_p, log_q = _log_softmax(baseline), _log_softmax(recipe)
    p = np.exp(log_p)
    terms = np.where(p > 0, p * np.subtract(log_p, log_q, out=np.zeros_like(log_p), where=p > 0), 0.0)
    return max(0.0, float(np.sum(terms)))


def _log_softmax(values: np.ndarray) -> np.ndarray:
    shifted = values - np.max(values)
    return shifted - np.log(np.sum(np.exp(shifted)))
