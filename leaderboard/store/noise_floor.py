"""The noise floor: how many answers flip when rounding alone changes.

Two runs of one unedited model, alike in everything but the batch size, differ by rounding alone. So does a run of a
recipe that only decomposes and recomposes, `identity`, from its baseline, and it comes at no cost. The share of their
answers that flip is what a recipe's flips have to exceed. Notable choices: such a pair is known by what the runs say of
themselves, whoever made them, so a rebuild finds it again; only scores of 0 and 1 have one; both runs of a pair were
made by one engine on one kind of GPU, as far as both say (`compare.hardware`); where several pairs were measured, those
with the baseline at hand count, and of them the largest.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from leaderboard.errors import LeaderboardError
from leaderboard.readers.ran_on import ComputePlace, sql_gpu
from leaderboard.readers.weights_digest import sql_same
from leaderboard.store.database import Store, open_store

UNCHANGING = "identity"
"""The method that gives every matrix back as it was, but for rounding."""

# Alike: model, task as far as both say, its settings, documents, versions, device, dtype. Different: the batch size of
# two unedited runs of the same weights; of an unchanging recipe and its baseline nothing but how the weights are
# rounded. Copies of one document may stand in any order: their scores are compared as a group.
# A pair may have been made by two versions that name the weights by other digests. Both are of one model key, in which
# the identity of the checkpoint is, where the run has one.
_SAME_AFTER, _SAME_BEFORE = (
    sql_same(f"vo.{column}", f"vn.{column}", "vn.identity IS NOT NULL") for column in ("digest_after", "digest_before")
)
_PAIRS = f"""
INSERT INTO noise_floors
WITH pairs AS (
    SELECT vn.model_key, o.run_id AS other, n.run_id AS run, tn.task, o.batch_size AS other_size, n.batch_size AS size
    FROM runs n JOIN variants vn USING (variant_id)
    JOIN variants vo ON vo.model_key = vn.model_key AND vo.dtype IS NOT DISTINCT FROM vn.dtype
    JOIN runs o ON o.variant_id = vo.variant_id AND o.run_id <> n.run_id AND o.status = 'complete'
        AND CASE
            WHEN vn.recipe_name = 'baseline' AND vo.recipe_name = 'baseline'
                THEN {_SAME_AFTER} AND o.batch_size <> n.batch_size
            WHEN vn.recipe_name = 'baseline' AND list_contains($unchanging, vo.variant_id)
                OR vo.recipe_name = 'baseline' AND list_contains($unchanging, vn.variant_id)
                THEN {_SAME_BEFORE} AND o.batch_size IS NOT DISTINCT FROM n.batch_size
            ELSE false
        END
      AND o.device IS NOT DISTINCT FROM n.device AND o.lm_eval_version IS NOT DISTINCT FROM n.lm_eval_version
      AND o.transformers_version IS NOT DISTINCT FROM n.transformers_version
      AND o.torch_version IS NOT DISTINCT FROM n.torch_version
      AND coalesce({sql_gpu("o")} = {sql_gpu("n")}, true) AND coalesce(o.engine = n.engine, true)
    JOIN run_tasks tn ON tn.run_id = n.run_id
    JOIN run_tasks t ON t.run_id = o.run_id AND t.task = tn.task AND t.documents_hash = tn.documents_hash
        AND t.version IS NOT DISTINCT FROM tn.version
      AND t.num_fewshot IS NOT DISTINCT FROM tn.num_fewshot
      AND t.chat_template_hash IS NOT DISTINCT FROM tn.chat_template_hash
      AND t.system_instruction_hash IS NOT DISTINCT FROM tn.system_instruction_hash
      AND t.generation_arguments IS NOT DISTINCT FROM tn.generation_arguments
      AND coalesce(t.identity = tn.identity, t.config_hash = tn.config_hash, true)
    WHERE n.run_id = $run AND n.status = 'complete'
), scored AS (
    SELECT run_id, task, metric, filter, doc_key, count(*) AS copies, sum(value) AS hits,
        bool_and(coalesce(value IN (0, 1), false)) AS plain
    FROM sample_scores
    WHERE (run_id, task) IN (SELECT run, task FROM pairs UNION SELECT other, task FROM pairs)
    GROUP BY ALL
)
SELECT p.model_key, p.other, p.run, sn.task, sn.metric, sn.filter, sum(sn.copies),
    CAST(sum(abs(sn.hits - so.hits)) AS INTEGER), p.other_size, p.size
FROM pairs p JOIN scored sn ON sn.run_id = p.run AND sn.task = p.task
JOIN scored so ON so.run_id = p.other AND (so.task, so.metric, so.filter, so.doc_key) = (sn.task, sn.metric, sn.filter,
    sn.doc_key)
GROUP BY ALL
HAVING bool_and(sn.plain AND so.plain)
"""


class Floor(NamedTuple):
    """One measurement, of one metric of a task. place: where both runs were made, as far as both say."""

    model_key: str
    run_id: str
    other_run_id: str
    task: str
    metric: str
    filter: str
    documents: int
    flips: int
    batch_size: str | None
    other_batch_size: str | None
    place: ComputePlace = ComputePlace()

    @property
    def rate(self) -> float:
        """The share of answers that changed."""
        return self.flips / self.documents


Floors = Mapping[tuple[str, str, str, str], list[Floor]]
"""(model_key, task, metric, filter) -> its measurements."""


def unchanging(recipe_resolved: str | None) -> bool:
    """Whether a resolved recipe (JSON) only gives every matrix back."""
    try:
        steps = json.loads(recipe_resolved or "null")["steps"]
        return bool(steps) and {step["method"] for step in steps} == {UNCHANGING}
    except (ValueError, TypeError, KeyError):
        return False


def record(store: Store, run_id: str) -> None:
    """Measure the run just stored, unedited or unchanged, against every run that rounding alone tells from it. Part of
    the run's own transaction.
    """
    variants = store.rows(
        "SELECT variant_id, recipe_resolved FROM variants WHERE recipe_name <> 'baseline' AND model_key IN"
        " (SELECT model_key FROM runs JOIN variants USING (variant_id) WHERE run_id = ?)",
        [run_id],
    )
    same = [row["variant_id"] for row in variants if unchanging(row["recipe_resolved"])]
    store.connection.execute(_PAIRS, {"run": run_id, "unchanging": same})


def floors(store: Store) -> dict[tuple[str, str, str, str], list[Floor]]:
    """(model_key, task, metric, filter) -> its measurements, of runs that are still there."""
    names = ", ".join(f"f.{name}" for name in Floor._fields if name != "place")
    found: dict[tuple[str, str, str, str], list[Floor]] = defaultdict(list)
    for row in store.rows(
        f"SELECT {names}, CASE WHEN r.engine = o.engine THEN r.engine END AS engine, CASE WHEN {sql_gpu('r')} ="
        f" {sql_gpu('o')} THEN {sql_gpu('r')} END AS gpu"
        " FROM noise_floors f JOIN runs r ON r.run_id = f.run_id JOIN runs o ON o.run_id = f.other_run_id"
        " ORDER BY f.task, f.metric, f.filter, f.run_id, f.other_run_id"
    ):
        floor = Floor(place=ComputePlace(row.pop("engine"), row.pop("gpu")), **row)
        found[floor.model_key, floor.task, floor.metric, floor.filter].append(floor)
    return found


def floors_in(database: Path, patience_s: float) -> Floors:
    """The measurements that a database holds; none where there is no such file, or it cannot be read."""
    if not database.exists():
        return {}
    try:
        with open_store(database, read_only=True, timeout_s=patience_s) as store:
            return floors(store)
    except LeaderboardError:  # the comparison at hand needs no database
        return {}


def together(first: Floors, second: Floors) -> Floors:
    """The measurements of two stores, each once."""
    keys = dict.fromkeys([*first, *second])
    return {key: list(dict.fromkeys([*first.get(key, ()), *second.get(key, ())])) for key in keys}


def rate(measured: Iterable[Floor], baseline: str) -> float | None:
    """The noise floor of comparisons with a baseline run; None where nothing was measured."""
    all_of_them = list(measured)
    own = [floor for floor in all_of_them if baseline in (floor.run_id, floor.other_run_id)]
    return max((floor.rate for floor in own or all_of_them), default=None)
