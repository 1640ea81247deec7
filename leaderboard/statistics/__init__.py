"""Paired statistics: intervals, tests, equivalence, multiplicity, power. Pure functions of numbers and arrays.

One module for the page, `compare` and `gate` alike. Throughout, `differences` are recipe minus baseline, one per
document, paired; `clusters` (optional) name the group of dependent documents each belongs to; a *drop* is a loss in the
direction that counts. Notable choices:
- Binary scores: Bonett-Price interval, wider by 2 % because it covered 93.0 % at worst, and mid-p McNemar test. Wald's
  has no width when nothing flipped.
- Binary scores against a margin: Tango's score statistic with its exact distribution at the estimated nuisance
  parameter. Bonett-Price's error let 9 % through at a nominal 5 % (200 documents, 2 % flips, all lost), Tango's normal
  limit 6.0 % (300 documents), this 5.2 % at most.
- Other scores, clusters, texts of unlike length: the mean of differences clipped at a stated bound, by a test that
  allows for collapses too rare to have been seen; see `clipped`. With t, and 5 % of documents collapsing, a drop as
  large as the margin passed in 8 to 26 % of cases; with clusters that flip together, in up to 74 %.
- Metrics of a whole corpus (F1, MCC, BLEU): a permutation test, and a t interval with the error of a paired bootstrap;
  see `corpora`.
- One proportion by itself: Wilson's score interval, which stays within [0, 1] and has a width at none and at all of the
  documents.
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
from leaderboard.statistics.clipped import (
    COLLAPSED_SHARE,
    ClippedSample,
    Distances,
    clipped_drop_limit,
    clipped_interval,
    clipped_same_p,
    clipped_sample,
    clipped_tails,
    clipped_within_p,
    documents_for_few_collapses,
    documents_without_collapse,
    fewest_documents,
    share_limit,
    standardised,
)
from leaderboard.statistics.corpora import Corpora, corpus_interval, corpus_test
from leaderboard.statistics.likelihood import choice_divergence
from leaderboard.statistics.means import (
    cluster_sums,
    equivalence_p,
    mirrored,
    paired_interval,
    standard_error,
    within_p,
)
from leaderboard.statistics.middle import (
    MiddleBounds,
    MiddleMargin,
    MiddleTest,
    is_right_or_wrong,
    middle_best_test,
    middle_limits,
)
from leaderboard.statistics.multiplicity import benjamini_hochberg, holm
from leaderboard.statistics.power import (
    POWER,
    Side,
    changed_side,
    clipped_side,
    detectable_difference,
    detectable_within_bound,
    documents_for,
    flip_side,
    normal_side,
    power_of,
)
from leaderboard.statistics.proportions import Limits, wilson
from leaderboard.statistics.suites import Suite, SuitePart, suite
from leaderboard.statistics.values import Estimate, Tails, normal_quantile

__all__ = [
    "COLLAPSED_SHARE",
    "POWER",
    "ClippedSample",
    "Corpora",
    "Distances",
    "Estimate",
    "Flips",
    "Limits",
    "MiddleBounds",
    "MiddleMargin",
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
    "changed_side",
    "choice_divergence",
    "clipped_drop_limit",
    "clipped_interval",
    "clipped_same_p",
    "clipped_sample",
    "clipped_side",
    "clipped_tails",
    "clipped_within_p",
    "cluster_sums",
    "corpus_interval",
    "corpus_test",
    "count_flips",
    "detectable_difference",
    "detectable_within_bound",
    "documents_for",
    "documents_for_few_collapses",
    "documents_without_collapse",
    "equivalence_p",
    "fewest_documents",
    "flip_side",
    "holm",
    "is_right_or_wrong",
    "mid_p_mcnemar",
    "middle_best_test",
    "middle_limits",
    "mirrored",
    "normal_quantile",
    "normal_side",
    "paired_interval",
    "power_of",
    "share_limit",
    "standard_error",
    "standardised",
    "suite",
    "wilson",
    "within_p",
]
