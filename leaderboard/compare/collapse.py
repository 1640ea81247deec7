"""Collapse: when a recipe has ruined the model, whatever a task's own metric says. The one place that defines it.

A model that no longer speaks may look cured: of nonsense, a bias probe finds as much one way as the other. So a row
says *collapsed* where one of these holds against the unedited model, on the same documents:

- *Likelihood.* The right answers, or the texts, are ten times less likely a word: the ratio of the two perplexities,
  `exp(-sum of log-likelihoods / sum of words)`, is 10 or more with no document counted for more than 1,000 times a
  word, and with 95 % certainty it is more than the square root of 10, about three times. A right answer's words are
  those between spaces, or one for every 12 bytes where that is more (languages without spaces), so that a long answer
  is not called collapsed for a few nats. A perplexity that a task declares takes their place, as it is declared; where
  it counts bytes, six of them are a word.
- *Chance.* The baseline's answers are better than chance, the recipe's are not (exact binomial tests at 5 %) and are
  worse (mid-p McNemar at 5 %), and with 95 % certainty they keep less than half of what the baseline's had above
  chance (`compare.chance`). An open answer can't be guessed: there the recipe has to be without a right answer, where
  it is certain to keep less than a tenth of the baseline's.

A few odd documents can do neither: the bound on each and the certainty (`statistics.clipped`, with documents that
depend on each other taken together) ask for many: ten where they are a hundred times worse, twenty where thirty. Of
models that are up to three times worse, or lose a fifth of their right answers, less than 1 in 200 is called collapsed
(`tests/leaderboard/compare/test_collapse_error_rates.py`); of real edits of SmolLM2 that left its perplexity within
three times of the baseline's, none was in 27,200 draws of 10 to 100 documents.

A task cannot tell that has no right answers (a bias probe), few documents, or a baseline at chance. Its rows are called
collapsed where another task shows it of the same weights: see `board.cell.with_collapses`. A task that can tell speaks
for itself; where the same weights collapsed elsewhere, a note says so.

Nothing here depends on a margin, a correction or other rows, so a verdict of an earlier version is only worded anew.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np

from leaderboard import metrics
from leaderboard import statistics as stats
from leaderboard.compare.chance import LEVEL, AgainstChance, answers_and_chance
from leaderboard.statistics.proportions import wilson
from leaderboard.store.answer_samples import AnswerSamples, Likelihoods, TextLikelihoods

COLLAPSED = "collapsed"
TIMES_WORSE = 10.0
"""The ratio of perplexities a word from which on a model has collapsed."""
MOST_TIMES = 1000.0
"""What one document counts for at most."""
BOUND = math.log(MOST_TIMES)
"""The same in nats a word."""
FEWEST = 10
"""Documents of which the likelihoods say something."""
_KEPT_OF_CHOICES, _KEPT_OF_OPEN = 1 / 2, 1 / 10


def collapse_signs(samples: AnswerSamples, baseline: str, recipe: str, task: str) -> tuple[str, ...] | None:
    """What shows that the recipe's run collapsed on a task, in sentences; empty where nothing does, None where the task
    cannot tell: it has no right answers, too few documents, or a baseline at chance.
    """
    likelihoods = _likelihoods(samples, baseline, recipe, task)
    answers = answers_and_chance(samples, baseline, recipe, task)
    unlikely = (
        _less_likely(one, samples.texts(baseline, recipe, one))
        for one in likelihoods
        if one.drop >= math.log(TIMES_WORSE)
    )
    signs = tuple(filter(None, [next(filter(None, unlikely), None), _by_chance(answers)]))
    if not signs and all(one.documents < FEWEST for one in likelihoods) and not any(map(_can_tell, answers)):
        return None
    return signs


def possible_collapse(samples: AnswerSamples, baseline: str, recipe: str, task: str) -> tuple[str, ...]:
    """A sentence about a collapse that is seen and not certain, where `collapse_signs` finds none."""
    for found in _likelihoods(samples, baseline, recipe, task):
        if found.drop >= math.log(TIMES_WORSE):
            before, after = _means(samples.texts(baseline, recipe, found))
            count = f"{found.documents:,} {'document does' if found.documents == 1 else 'documents do'}"
            return (f"looks collapsed, which {count} not make certain: {_change(found.metric, before, after)}",)
    return ()


def _likelihoods(samples: AnswerSamples, baseline: str, recipe: str, task: str) -> list[Likelihoods]:
    """Those that a task declares, or else its right answers'; by words where it counts them, rather than by bytes."""
    found = samples.likelihoods(baseline, recipe, task)
    declared = [one for one in found if one.metric != metrics.GOLD_LOG_LIKELIHOOD] or found
    return [one for one in declared if "byte" not in one.metric] or declared


def _means(texts: TextLikelihoods) -> tuple[float, float]:
    """Log-likelihoods a word, before and after."""
    total = float(np.sum(texts.words))
    return float(np.sum(texts.before)) / total, float(np.sum(texts.after)) / total


def _change(metric: str, before: float, after: float) -> str:
    """`word_perplexity 20.1 -> 2.2e+08`."""
    name = "perplexity a word of the right answers" if metric == metrics.GOLD_LOG_LIKELIHOOD else _named(metric)
    return f"{name} {_perplexity(before)} -> {_perplexity(after)}"


def _less_likely(found: Likelihoods, texts: TextLikelihoods) -> str | None:
    """The sentence about texts or right answers that have become unlikely; None where they have not for certain."""
    with np.errstate(invalid="ignore"):
        changes = np.nan_to_num(texts.after - texts.before, nan=0.0, neginf=-np.inf)
    sample = stats.clipped_sample(changes, BOUND, texts.clusters, texts.words)
    if sample.units < 2 or not -sample.mean >= math.log(TIMES_WORSE):
        return None
    surely = -stats.clipped_drop_limit(sample.mirrored, LEVEL)
    if not surely > math.log(TIMES_WORSE) / 2:
        return None
    before, after = _means(texts)
    return (
        f"{_change(found.metric, before, after)}, {_times(before - after)} worse on"
        f" {found.documents:,} documents, surely more than {_times(surely)} (95 % limit, no document counted for more"
        f" than {MOST_TIMES:,.0f} times)"
    )


def _by_chance(answers: Sequence[AgainstChance]) -> str | None:
    """The sentence about answers that are no better than chance: one of the metrics shows it, and none of the others
    denies it.
    """
    if any(one.is_above(one.counts.after) for one in answers):
        return None
    lost = (_chance_sentence(one) for one in answers if one.is_above(one.counts.before) and _lost_it(one))
    return next(lost, None)


def _can_tell(answers: AgainstChance) -> bool:
    """Whether answers at chance would be called a collapse."""
    ruined = math.floor(answers.level * answers.counts.documents)
    return answers.is_above(answers.counts.before) and _little_left(answers, ruined)


def _lost_it(answers: AgainstChance) -> bool:
    """Whether the answers are worse, and for certain most of what was above chance is gone."""
    counts = answers.counts
    share = counts.independent / counts.documents
    tails = stats.mid_p_mcnemar(math.floor(counts.lost * share), math.ceil(counts.gained * share))
    return tails.less <= LEVEL and _little_left(answers, counts.after)


def _little_left(answers: AgainstChance, right: int) -> bool:
    """Whether so many right answers keep for certain little of what the baseline's had above chance."""
    counts, chance = answers.counts, answers.level
    hits, count = answers.independent(right)
    most = float(wilson(hits, count, 1 - 2 * LEVEL).high)
    kept = _KEPT_OF_CHOICES if chance else _KEPT_OF_OPEN
    return most - chance < kept * (counts.before / counts.documents - chance)


def _chance_sentence(answers: AgainstChance) -> str:
    counts, chance = answers.counts, answers.level
    before, after = (100 * right / counts.documents for right in (counts.before, counts.after))
    if not chance:
        return f"{counts.metric}: none of {counts.documents:,} answers is right, of the baseline's {before:.1f} %"
    return (
        f"{counts.metric} {before:.1f} % -> {after:.1f} % of {counts.documents:,} answers, no better than chance"
        f" ({100 * chance:.1f} %)"
    )


def _named(metric: str) -> str:
    return f"{metric}, as a perplexity a word," if "byte" in metric else metric


def _perplexity(mean: float) -> str:
    """Of a mean log-likelihood in nats."""
    return f"{math.exp(-mean):.3g}" if -mean < 700 else "infinite"


def _times(nats: float) -> str:
    if nats >= 700:
        return "infinitely many times"
    times = math.exp(nats)
    return f"{times:,.0f} times" if 10 <= times < 1e6 else f"{times:.2g} times"


def to_json(signs: tuple[str, ...] | None) -> str | None:
    """For the store."""
    return None if signs is None else json.dumps(list(signs), ensure_ascii=False)


def from_json(text: str | None) -> tuple[str, ...] | None:
    """From the store."""
    return None if text is None else tuple(json.loads(text))
