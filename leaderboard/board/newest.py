"""The runs that came last, each with its outcome in short; controls left out."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from leaderboard.store.database import Store

_NEWEST = """
WITH newest AS (
    SELECT r.run_id, v.model_key, v.recipe_label, r.status, r.started
    FROM runs r JOIN variants v USING (variant_id) WHERE v.control IS NULL
    ORDER BY r.started DESC NULLS LAST, r.run_id LIMIT $1
)
SELECT n.*, any_value(d.label) AS label,
    list({task: d.task, verdict: d.verdict, improvement: d.improvement, beats_controls: d.beats_controls}
        ORDER BY d.task) FILTER (d.verdict IS NOT NULL) AS outcome
FROM newest n LEFT JOIN v_verdicts d ON d.run_id = n.run_id AND d.is_primary
GROUP BY ALL ORDER BY n.started DESC NULLS LAST, n.run_id
"""


class Outcome(NamedTuple):
    """What a run is on one task, against its baseline."""

    task: str
    verdict: str
    improvement: float | None
    beats_controls: bool | None


class NewestRun(NamedTuple):
    """A run in a list by age. outcome: empty where it was not judged yet."""

    run_id: str
    model_key: str
    name: str
    status: str
    started: datetime | None
    outcome: tuple[Outcome, ...]


def newest(store: Store, count: int) -> list[NewestRun]:
    """The last runs, the newest first."""
    return [
        NewestRun(
            row["run_id"],
            row["model_key"],
            row["label"] or row["recipe_label"],
            row["status"],
            row["started"],
            tuple(Outcome(**each) for each in row["outcome"] or ()),
        )
        for row in store.rows(_NEWEST, [count])
    ]
