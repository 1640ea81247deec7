"""How likely two runs found the same texts and right answers, and how many answers they got right: summed up for many
pairs of runs at once, so that the few that look collapsed can be looked at document by document. Nothing here judges.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from leaderboard import metrics
from leaderboard.store.database import Store

if TYPE_CHECKING:
    import numpy as np

LETTERS_PER_WORD = 6
"""Bytes that count as a word where a metric counts bytes: an English word with its space."""

_Pair = tuple[str, str]  # baseline, recipe's run
_Place = tuple[str, str, str]  # baseline, recipe's run, task
_UNITS = {
    name: 1 / LETTERS_PER_WORD if "byte" in name else 1.0
    for name, known in metrics.METRICS.items()
    if known.of_likelihoods or name == metrics.GOLD_LOG_LIKELIHOOD
}
"""Metric whose samples are log-likelihoods in nats -> words for each unit of its weights."""
_RIGHT = {
    "multiple_choice": ("acc", "acc_norm"),
    "loglikelihood": ("acc",),
    "generate_until": ("acc", "exact_match", "em", "exact"),
}
"""Kind of task -> its metrics that are 1 for a right answer and 0 for a wrong one."""
_PAIRED = (
    "FROM (SELECT unnest($1) AS baseline, unnest($2) AS recipe) p JOIN sample_scores r ON r.run_id = p.recipe JOIN"
    " sample_scores b ON b.run_id = p.baseline AND (b.task, b.metric, b.filter, b.doc_key, b.occurrence) = (r.task,"
    " r.metric, r.filter, r.doc_key, r.occurrence)"
)
_KNOWN = (
    f"b.value IS NOT NULL AND r.parts IS NULL AND (b.weight IS NOT NULL OR r.metric <> '{metrics.GOLD_LOG_LIKELIHOOD}')"
)
_WORDS = "coalesce(b.weight, 1) * u.words"


class Likelihoods(NamedTuple):
    """Log-likelihoods of the same texts in two runs. drop: how much less likely the second finds them, in nats a word,
    no text counted for more than the bound asked for.
    """

    task: str
    metric: str
    filter: str
    documents: int
    drop: float


class TextLikelihoods(NamedTuple):
    """The same text by text: log-likelihoods `[n]` in nats, -inf where the second run's is no finite number; words of
    each; and the cluster of each, where texts depend on each other.
    """

    before: np.ndarray
    after: np.ndarray
    words: np.ndarray
    clusters: np.ndarray | None


class RightAnswers(NamedTuple):
    """How many answers are right in either run. independent: documents that do not depend on others, or clusters of
    such that do.
    """

    task: str
    metric: str
    filter: str
    output_type: str
    documents: int
    independent: int
    before: int
    after: int
    lost: int
    gained: int


class ChanceLevels(NamedTuple):
    """Of a task's documents: the share of right answers that guessing gets, and that always taking the same place
    gets (None where all right answers have one place or more than there are choices, so that they are not places).
    """

    guessing: float
    same_place: float | None


class AnswerSamples:
    """Sums of pairs of runs, task by task. A query costs some ten milliseconds however little it returns, so `fetch`
    asks for many pairs at once. bound: by how many nats a word a text counts at most.
    """

    def __init__(self, store: Store, bound: float) -> None:
        self._store, self._bound = store, bound
        self._asked: set[_Pair] = set()
        self._likelihoods: dict[_Place, list[Likelihoods]] = {}
        self._answers: dict[_Place, list[RightAnswers]] = {}
        self._choices: dict[tuple[str, str], ChanceLevels | None] = {}

    def likelihoods(self, baseline: str, recipe: str, task: str) -> list[Likelihoods]:
        """Those of a task's texts and right answers, one a metric and filter."""
        self._need((baseline, recipe))
        return self._likelihoods.get((baseline, recipe, task), [])

    def answers(self, baseline: str, recipe: str, task: str) -> list[RightAnswers]:
        """Those of a task, one a metric and filter."""
        self._need((baseline, recipe))
        return self._answers.get((baseline, recipe, task), [])

    def _need(self, pair: _Pair) -> None:
        if pair not in self._asked:
            self.fetch([pair])

    def fetch(self, pairs: Iterable[_Pair]) -> None:
        """Read these pairs of (baseline, recipe's run) in place of what was read before."""
        self._asked = set(pairs)
        self._likelihoods, self._answers = {}, {}
        if not self._asked:
            return
        sides = [list(side) for side in zip(*sorted(self._asked))]
        for row in self._store.rows(
            f"SELECT p.baseline, p.recipe, r.task, r.metric, r.filter, count(*) AS documents, sum(greatest(-$5 *"
            f" {_WORDS}, least($5 * {_WORDS}, coalesce(b.value - r.value, $5 * {_WORDS})))) / sum({_WORDS}) AS drop"
            f" {_PAIRED} JOIN (SELECT unnest($3) AS metric, unnest($4) AS words) u ON u.metric = r.metric WHERE"
            f" {_KNOWN} GROUP BY ALL HAVING sum(coalesce(b.weight, 1)) > 0"
            " ORDER BY r.task, r.metric, r.filter",
            [*sides, list(_UNITS), list(_UNITS.values()), self._bound],
        ):
            place = (row.pop("baseline"), row.pop("recipe"), row["task"])
            self._likelihoods.setdefault(place, []).append(Likelihoods(**row))
        kinds = [(kind, metric) for kind, names in _RIGHT.items() for metric in names]
        for row in self._store.rows(
            "SELECT p.baseline, p.recipe, r.task, r.metric, r.filter, t.output_type, count(*) AS documents,"
            " count(DISTINCT coalesce(r.cluster, r.doc_key)) AS independent, count(*) FILTER (b.value = 1) AS before,"
            " count(*) FILTER (r.value = 1) AS after, count(*) FILTER (b.value = 1 AND r.value = 0) AS lost, count(*)"
            f" FILTER (b.value = 0 AND r.value = 1) AS gained {_PAIRED} JOIN run_tasks t ON (t.run_id, t.task) ="
            " (r.run_id, r.task) JOIN (SELECT unnest($3) AS kind, unnest($4) AS metric) u ON (u.kind, u.metric) ="
            " (t.output_type, r.metric) GROUP BY ALL HAVING bool_and(coalesce(b.value IN (0, 1) AND r.value IN (0,"
            " 1), false)) ORDER BY r.task, r.metric, r.filter",
            [*sides, *([*side] for side in zip(*kinds))],
        ):
            place = (row.pop("baseline"), row.pop("recipe"), row["task"])
            self._answers.setdefault(place, []).append(RightAnswers(**row))

    def texts(self, baseline: str, recipe: str, of: Likelihoods) -> TextLikelihoods:
        """Text by text, in an order that is the same for equal stores."""
        import numpy as np

        columns = self._store.columns(
            f"SELECT b.value AS before, coalesce(r.value, -1e300) AS after, coalesce(b.weight, 1) * $6 AS words,"
            f" coalesce(r.cluster, r.doc_key) AS cluster {_PAIRED} WHERE r.task = $3 AND r.metric = $4 AND r.filter ="
            f" $5 AND {_KNOWN} ORDER BY r.doc_key, r.occurrence",
            [[baseline], [recipe], of.task, of.metric, of.filter, _UNITS[of.metric]],
        )
        before, after, words = (np.ma.getdata(columns[name]).astype(float) for name in ("before", "after", "words"))
        clusters = np.ma.getdata(columns["cluster"]).astype(str)
        alone = len(set(clusters.tolist())) == len(clusters)
        return TextLikelihoods(before, np.where(after <= -1e299, -math.inf, after), words, None if alone else clusters)

    def choices(self, run: str, task: str) -> ChanceLevels | None:
        """Of a multiple-choice task of a run, counted once; None where its responses are of no known form. Ask of the
        baseline, which many runs share.
        """
        if (run, task) not in self._choices:
            self._choices[run, task] = self._counted_choices(run, task)
        return self._choices[run, task]

    def _counted_choices(self, run: str, task: str) -> ChanceLevels | None:
        rows = self._store.rows(
            # a response a choice, `[["-1.5","False"],["-2.5","True"]]`
            "WITH asked AS (SELECT ((length(filtered_responses) - length(replace(filtered_responses, '],[', ''))) // 3"
            " + 1) // CASE WHEN EXISTS (FROM scores WHERE run_id = $1 AND task = $2 AND metric = $3) THEN 2 ELSE 1 END"
            " AS choices, d.target FROM samples s LEFT JOIN (SELECT doc_key, any_value(target) AS target FROM docs"
            " WHERE task = $2 GROUP BY doc_key) d USING (doc_key) WHERE s.run_id = $1 AND s.task = $2 AND s.filter ="
            " (SELECT min(filter) FROM samples WHERE run_id = $1 AND task = $2)), places AS (SELECT target, count(*)"
            " AS n FROM asked GROUP BY target) SELECT (SELECT avg(1 / choices) FROM asked) AS guessing, (SELECT"
            " CASE WHEN count(*) > 1 AND count(*) = count(target) AND count(*) <= (SELECT max(choices) FROM asked)"
            " THEN max(n) / sum(n) END"
            " FROM places) AS same_place",
            [run, task, metrics.ACC_MUTUAL_INFO],
        )
        row = rows[0]
        return None if row["guessing"] is None else ChanceLevels(**row)
