"""Samples that two runs have in common, as arrays, and how many samples bear a metric. Nothing here judges.

Sums and joins happen in SQL, p-values do not (DuckDB has no binomial or normal distribution).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from leaderboard.store.database import Store
from leaderboard.store.queries import ScoreRow

if TYPE_CHECKING:
    import numpy as np


class MetricSamples(NamedTuple):
    """One metric's samples of two runs, paired: arrays of one length in a fixed order, masked where a value is
    missing. copies: how many of them are of a document that was there before; if those are more than a few, `cluster`
    holds copies together.
    """

    baseline: np.ma.MaskedArray
    recipe: np.ma.MaskedArray
    baseline_weight: np.ma.MaskedArray
    recipe_weight: np.ma.MaskedArray
    baseline_parts: np.ma.MaskedArray
    recipe_parts: np.ma.MaskedArray
    cluster: np.ma.MaskedArray
    copies: int = 0


_ARRAYS = MetricSamples._fields[:-1]
_FEW_COPIES = 1.02
"""Copies are no independent documents. They may be taken for such while the variance of a mean, counted as if all its
documents were independent, is too small by at most this factor: with groups of m, sum(m^2) / n."""

_Key = tuple[str, str, str, str, str]  # baseline, recipe's run, task, metric, filter
_SCORES = "sample_scores"
# Files may log copies of one document in any order. Those of two runs are put side by side by their scores.
_IN_ORDER_OF_SCORES = (
    "(SELECT * REPLACE (row_number() OVER (PARTITION BY run_id, task, metric, filter, doc_key ORDER BY value, weight,"
    " parts) AS occurrence) FROM sample_scores WHERE (run_id IN (SELECT unnest($1)) OR run_id IN (SELECT unnest($2)))"
    " AND task IN (SELECT unnest($3)))"
)


def _joined(source: str) -> str:
    """The pairs of samples, from a table of them or a query in its place."""
    return (
        f"FROM (SELECT unnest($1) AS baseline, unnest($2) AS recipe) p JOIN {source} r ON r.run_id = p.recipe JOIN"
        " scores s ON s.run_id = p.recipe AND NOT s.is_group AND (s.task, s.metric, s.filter) = (r.task, r.metric,"
        f" r.filter) JOIN {source} b ON b.run_id = p.baseline AND (b.task, b.metric, b.filter, b.doc_key, b.occurrence)"
        " = (r.task, r.metric, r.filter, r.doc_key, r.occurrence) "
    )


_PLAIN = (
    "b.value IN (0, 1) AND r.value IN (0, 1) AND b.weight IS NULL AND r.weight IS NULL AND b.parts IS NULL AND r.parts"
    " IS NULL AND r.cluster IS NULL AND s.best_value IS NULL"
)


class PairedSamples:
    """The documents that two runs have in common, metric by metric.

    A query costs some ten milliseconds however little it returns, so `fetch` asks for many pairs at once. Scores of 0
    and 1 come as four counts a task, because nothing else of them enters a test; all others come document by document.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._asked: set[tuple[str, str]] = set()
        self._found: dict[_Key, MetricSamples] = {}

    def of(self, baseline: str, recipe: str, score: ScoreRow) -> MetricSamples | None:
        """The samples of the recipe's score in both runs, in an order that is the same for both; None
        where they share no document.
        """
        if (baseline, recipe) not in self._asked:
            self.fetch([(baseline, recipe)])
        return self._found.get((baseline, recipe, score.task, score.metric, score.filter))

    def fetch(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Read these pairs of (baseline, recipe's run) in place of what was read before."""
        self._asked, self._found = set(pairs), {}
        if not self._asked:
            return
        sides = [list(side) for side in zip(*sorted(self._asked))]
        rows = self._store.rows(
            "SELECT p.baseline, p.recipe, r.task, r.metric, r.filter, count(*) FILTER (b.value = 1 AND r.value = 1) AS"
            " right_in_both, count(*) FILTER (b.value = 1 AND r.value = 0) AS lost, count(*) FILTER (b.value = 0 AND"
            " r.value = 1) AS gained, count(*) FILTER (b.value = 0 AND r.value = 0) AS wrong_in_both,"
            f" bool_and(coalesce({_PLAIN}, false)) AS plain, bool_or(r.occurrence > 0) AS copies {_joined(_SCORES)}"
            " GROUP BY ALL",
            sides,
        )
        keys = {(row["baseline"], row["recipe"], row["task"], row["metric"], row["filter"]): row for row in rows}
        self._found = {key: _from_counts(row) for key, row in keys.items() if row["plain"] and not row["copies"]}
        for copies, source in ((False, _SCORES), (True, _IN_ORDER_OF_SCORES)):
            others = [key for key, row in keys.items() if key not in self._found and row["copies"] == copies]
            if others:
                self._found |= self._documents(others, source)

    def _documents(self, wanted: list[_Key], source: str) -> dict[_Key, MetricSamples]:
        import numpy as np

        pairs = sorted({key[:2] for key in wanted})
        tasks = sorted({key[2:] for key in wanted})
        columns = self._store.columns(
            "SELECT p.baseline AS baseline_run, p.recipe AS recipe_run, r.task, r.metric, r.filter, b.value AS"
            " baseline, r.value AS recipe, b.weight AS baseline_weight, r.weight AS recipe_weight, b.parts AS"
            f" baseline_parts, r.parts AS recipe_parts, r.cluster AS cluster, r.doc_key AS document {_joined(source)}"
            " JOIN (SELECT unnest($3) AS task, unnest($4) AS metric, unnest($5) AS filter) w ON (w.task, w.metric,"
            " w.filter) = (r.task, r.metric, r.filter) ORDER BY p.baseline, p.recipe, r.task, r.metric, r.filter,"
            " r.doc_key, r.occurrence",
            [*(list(side) for side in zip(*pairs)), *(list(side) for side in zip(*tasks))],
        )
        keys = list(
            zip(*(columns[name].tolist() for name in ("baseline_run", "recipe_run", "task", "metric", "filter")))
        )
        starts = [i for i, key in enumerate(keys) if i == 0 or key != keys[i - 1]]
        chosen = set(wanted)
        return {
            keys[start]: _with_copies(
                MetricSamples._make([np.ma.asarray(columns[name][start:end]) for name in _ARRAYS] + [0]),
                columns["document"][start:end],
            )
            for start, end in zip(starts, [*starts[1:], len(keys)])
            if keys[start] in chosen
        }


def _with_copies(samples: MetricSamples, documents: np.ndarray) -> MetricSamples:
    """The samples with what is to be known of documents that occur more than once. documents: the key of each."""
    import numpy as np

    keys = np.ma.getdata(documents).astype(str)
    sizes = np.unique(keys, return_counts=True)[1]
    copies = len(keys) - len(sizes)
    apart = np.ma.getmaskarray(samples.cluster).any()
    if apart and (sizes**2).sum() > _FEW_COPIES * len(keys):
        samples = samples._replace(cluster=np.ma.asarray(keys.astype(object)))
    return samples._replace(copies=int(copies))


def _from_counts(row: dict[str, Any]) -> MetricSamples:
    """Right and wrong answers of two runs from how often each combination occurs."""
    import numpy as np

    counts = [row[name] for name in ("right_in_both", "lost", "gained", "wrong_in_both")]
    missing = np.ma.masked_all(sum(counts), dtype=float)
    texts = np.ma.masked_all(sum(counts), dtype=object)
    baseline, recipe = (
        np.ma.asarray(np.repeat(values, counts)) for values in ([1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0])
    )
    return MetricSamples(baseline, recipe, missing, missing, texts, texts, texts)


class SampleCounts:
    """How many samples bear a metric of a run's task, of all runs or of some; counted when first asked, because a board
    of remembered comparisons never asks.
    """

    def __init__(self, store: Store, run_ids: list[str] | None = None) -> None:
        self._store, self._run_ids = store, run_ids
        self._found: dict[tuple[str, str, str, str], int] | None = None

    def of(self, run_id: str, task: str, metric: str, filter_name: str) -> int:
        """The number of samples."""
        if self._found is None:
            some, parameters = (
                ("", []) if self._run_ids is None else (" WHERE run_id IN (SELECT unnest($1))", [self._run_ids])
            )
            rows = self._store.connection.execute(
                f"SELECT run_id, task, metric, filter, count(*) FROM sample_scores{some} GROUP BY ALL", parameters
            ).fetchall()
            self._found = {(row[0], row[1], row[2], row[3]): row[4] for row in rows}
        return self._found.get((run_id, task, metric, filter_name), 0)
