"""What LASER's tasks report: accuracy and the log-loss of the right answer, side by side, because one can get better while the other gets worse.

`log_loss` is -ln P(right answer | prompt), summed over the answer's tokens. LASER's code divides by their number; tasks do not see tokens. For answers of one token, which is
all but HotpotQA, WikidataQA, epistemic reasoning and part of CounterFact, the two are the same.
"""

from __future__ import annotations

from typing import Any

RANKS = (1, 5, 10)


def closed(doc: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, float]:
    """A choice among labels: `acc` where the right one is the likeliest, half where it shares that place, and `log_loss`."""
    likelihoods = [float(likelihood) for likelihood, _ in results]
    right, best = likelihoods[doc["label"]], max(likelihoods)
    return {"acc": 1.0 / likelihoods.count(best) if right == best else 0.0, "log_loss": -right}


def open_answer(doc: dict[str, Any], results: list[Any]) -> dict[str, float]:
    """A generated answer: `acc` where the right one occurs in it, in any case of letters, and `log_loss`.

    The text is what was generated alone: the released code searches prompt and answer together, so that an answer named in the question always counts there.
    """
    generated, (likelihood, _) = results
    return {"acc": float(doc["answer"].strip().lower() in generated.strip().lower()), "log_loss": -float(likelihood)}


def ranked(doc: dict[str, Any], results: list[Any]) -> dict[str, float]:
    """A fact: `acc` where every token of the answer is the argmax over the vocabulary, `log_loss`, and, where the backend gives ranks, `top_k`: is the first token among the k likeliest?"""
    likelihood, is_greedy = results[0]
    scores = {"acc": float(is_greedy), "log_loss": -float(likelihood)}
    return scores | {f"top_{k}": float(rank <= k) for rank in results[1:] for k in RANKS}
