"""Paired statistics: intervals, tests, equivalence, multiplicity, power. Pure functions of numbers and arrays.

One module for the page, `compare` and `gate` alike. Throughout, `differences` are recipe minus baseline, one per
document, paired; `clusters` (optional) name the group of dependent documents each belongs to; a *drop* is a loss in the
direction that counts. Notable choices:
- Binary scores: Bonett-Price interval, wider by 2 % because it covered 93.0 % at worst, and mid-p McNemar test. Wald's
  has no width when nothing flipped.
- Binary scores against a margin: Tango's score statistic with its exact distribution at the estimated nuisance
  parameter. Bonett-Price's error let 9 % through at a nominal 5 % (200 documents, 2 % flips, all lost), Tango's normal
  limit 6.0 % (300 documents), this 5.2 % at most.
- Other scores: sign-flip test; t interval; with clusters both work on cluster sums, the t interval with G - 1 degrees.
  (A bootstrap of the clusters was tried for few of them: with 8 of unequal size it covered 86 %, t 93 %.)
- Metrics of a whole corpus (F1, MCC, BLEU): a permutation test, and a t interval with the error of a paired bootstrap;
  see `corpora`.
- One proportion by itself: Wilson's score interval, which stays within [0, 1] and has a width at none and at all of the
  documents.
- Scores within [0, 1], clustered or with partial credit: an interval that allows for changes too rare to have been seen
  (`bounded_interval`). With t alone, and whole clusters that flip together, a drop as large as the margin passed in up
  to 74 % of cases.
- A metric whose best value lies in the middle improves when its distance to that value shrinks; see `middle`.
- Everything random takes a seed; equal input gives equal output. Error rates are simulated in the tests, which print
  them as a table.
"""

from leaderboard.statistics.binary import (
    Flips,
    binary_drop_limit,
    binary_equivalence_p,
    binary_within_p,
    bonett_price,
    count_flips,
    mid_p_mcnemar,
)
from leaderboard.statistics.bounded import bounded_interval, bounded_within_p
from leaderboard.statistics.corpora import Corpora, corpus_interval, corpus_test
from leaderboard.statistics.likelihood import choice_divergence, log_ratio
from leaderboard.statistics.means import (
    cluster_sums,
    equivalence_p,
    mirrored,
    paired_interval,
    paired_test,
    standard_error,
    within_p,
)
from leaderboard.statistics.middle import MiddleTest, middle_best_test, middle_within_p
from leaderboard.statistics.multiplicity import benjamini_hochberg, holm
from leaderboard.statistics.power import (
    POWER,
    Side,
    changed_side,
    clipped_side,
    detectable_difference,
    documents_for,
    flip_side,
    normal_side,
    power_of,
)
from leaderboard.statistics.proportions import Limits, wilson
from leaderboard.statistics.resampling import sign_flip_test
from leaderboard.statistics.suites import Suite, SuitePart, suite
from leaderboard.statistics.values import Estimate, Tails, normal_quantile

__all__ = [
    "POWER",
    "Corpora",
    "Estimate",
    "Flips",
    "Limits",
    "MiddleTest",
    "Side",
    "Suite",
    "SuitePart",
    "Tails",
    "benjamini_hochberg",
    "binary_drop_limit",
    "binary_equivalence_p",
    "binary_within_p",
    "bonett_price",
    "bounded_interval",
    "bounded_within_p",
    "changed_side",
    "choice_divergence",
    "clipped_side",
    "cluster_sums",
    "corpus_interval",
    "corpus_test",
    "count_flips",
    "detectable_difference",
    "documents_for",
    "equivalence_p",
    "flip_side",
    "holm",
    "log_ratio",
    "mid_p_mcnemar",
    "middle_best_test",
    "middle_within_p",
    "mirrored",
    "normal_quantile",
    "normal_side",
    "paired_interval",
    "paired_test",
    "power_of",
    "sign_flip_test",
    "standard_error",
    "suite",
    "wilson",
    "within_p",
]
