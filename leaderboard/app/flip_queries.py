"""What the page Flips asks of the store: the documents whose score changed between two runs, with prompt and answers,
and which documents many recipes flip. Filters, search and limits are SQL's work, so that thousands of documents of
dozens of recipes are quick.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from leaderboard.metrics import ACC_MUTUAL_INFO
from leaderboard.store.database import Store

MOST_DOCUMENTS = 500
"""That the page lists; how many there are is said beside them."""
MOST_LETTERS = 20_000
"""Of a prompt or answer that are read; texts that are cut end in `CUT`."""
CUT = " [cut here]"


def _in_order(run_ids: str) -> str:
    """The scores of runs, copies of one document counted in the order of their scores (`copy`): those of two runs are
    put side by side by it, since files may log them in any order (`logged`).
    """
    return (
        "(SELECT run_id, doc_key, value, occurrence AS logged, row_number() OVER (PARTITION BY run_id, doc_key ORDER BY"
        f" value, occurrence) AS copy FROM sample_scores WHERE run_id IN {run_ids} AND task = $task AND metric ="
        " $metric AND filter = $filter)"
    )


class FlipQuestion(NamedTuple):
    """Which documents are asked for. change: 1 for those whose score rose, -1 for those whose score fell, 0 for both.
    search: a text that prompt, right answer or an answer contains, in any case; empty for all.
    """

    baseline: str
    run: str
    task: str
    metric: str
    filter: str
    change: int = 0
    search: str = ""


class Flip(NamedTuple):
    """A document whose score changed. before, after: its scores; answers as stored, JSON; doubled: its log-likelihoods
    hold each choice twice.
    """

    doc_key: str
    occurrence: int
    doc_id: int | None
    before: float
    after: float
    answer_before: str | None
    answer_after: str | None
    target: str | None
    document: str | None
    output_type: str | None
    doubled: bool
    prompt: str | None


class FlippedDocuments(NamedTuple):
    """The documents, at most `MOST_DOCUMENTS`, and how many there are."""

    shown: list[Flip]
    total: int


def _cut(column: str) -> str:
    return (
        f"CASE WHEN length({column}) > {MOST_LETTERS} THEN concat(left({column}, {MOST_LETTERS}), '{CUT}') ELSE"
        f" {column} END"
    )


def flips(store: Store, question: FlipQuestion) -> FlippedDocuments:
    """The documents whose score changed between two comparable runs, the largest changes first."""
    named = question._asdict() | {"most": MOST_DOCUMENTS, "mutual": ACC_MUTUAL_INFO}
    named["search"] = question.search.strip().lower()
    rows = store.rows(
        "WITH changed AS (SELECT doc_key, r.logged AS occurrence, b.logged, b.value AS before, r.value AS after FROM"
        f" {_in_order('($baseline)')} b JOIN {_in_order('($run)')} r USING (doc_key, copy) WHERE b.value <> r.value AND"
        " ($change = 0 OR sign(r.value - b.value) = $change)), found AS (SELECT c.doc_key, c.occurrence, t.doc_id,"
        f" c.before, c.after, {_cut('s.filtered_responses')} AS answer_before, {_cut('t.filtered_responses')} AS"
        " answer_after, d.target, d.document, (SELECT any_value(output_type) FROM run_tasks WHERE run_id = $run AND"
        " task = $task) AS output_type, EXISTS (FROM scores WHERE run_id = $run AND task = $task AND metric = $mutual)"
        f" AS doubled, {_cut('d.prompt')} AS prompt FROM changed c LEFT JOIN (SELECT * FROM samples WHERE run_id ="
        " $baseline AND task = $task AND filter = $filter) s ON (s.doc_key, s.occurrence) = (c.doc_key, c.logged) LEFT"
        " JOIN (SELECT * FROM samples WHERE run_id = $run AND task = $task AND filter = $filter) t ON (t.doc_key,"
        " t.occurrence) = (c.doc_key, c.occurrence) LEFT JOIN (SELECT doc_key, any_value(target) AS target,"
        " any_value(document) AS document, any_value(prompt) AS prompt FROM docs WHERE task = $task GROUP BY doc_key) d"
        " ON d.doc_key = c.doc_key WHERE $search = '' OR contains(lower(concat_ws(' ', d.prompt, d.target, d.document,"
        " s.filtered_responses, t.filtered_responses)), $search)) SELECT *, count(*) OVER () AS total FROM found ORDER"
        " BY abs(after - before) DESC, doc_id, doc_key, occurrence LIMIT $most",
        named,
    )
    total = rows[0]["total"] if rows else 0
    return FlippedDocuments([Flip(**{name: row[name] for name in Flip._fields}) for row in rows], total)


class OftenFlipped(NamedTuple):
    """A document and how many of the runs looked at lower and raise its score; of copies, those of the one with this
    place in the order of scores.
    """

    doc_key: str
    occurrence: int
    doc_id: int | None
    before: float
    lower: int
    higher: int
    lowered_by: tuple[str, ...] = ()
    raised_by: tuple[str, ...] = ()
    prompt: str | None = None


def often_flipped(store: Store, question: FlipQuestion, runs: tuple[str, ...]) -> list[OftenFlipped]:
    """Every document whose score some of these runs change, those that most change first. The runs are comparable with
    the question's baseline; its own run, change and search have no part.
    """
    rows = store.rows(
        "WITH found AS (SELECT doc_key, any_value(b.logged) AS occurrence, any_value(b.value) AS before,"
        " list(r.run_id ORDER BY r.run_id) FILTER (r.value < b.value) AS lowered_by, list(r.run_id ORDER BY r.run_id)"
        f" FILTER (r.value > b.value) AS raised_by FROM {_in_order('(SELECT unnest($runs))')} r JOIN"
        f" {_in_order('($baseline)')} b USING (doc_key, copy) WHERE r.value <> b.value GROUP BY doc_key, copy) SELECT"
        " f.*, s.doc_id, right(d.prompt, 1000) AS prompt FROM found f LEFT JOIN (SELECT doc_key, occurrence, doc_id"
        " FROM samples WHERE run_id = $baseline AND task = $task AND filter = $filter) s USING (doc_key, occurrence)"
        " LEFT JOIN (SELECT doc_key, any_value(prompt) AS prompt FROM docs WHERE task = $task GROUP BY doc_key) d USING"
        " (doc_key) ORDER BY coalesce(len(lowered_by), 0) + coalesce(len(raised_by), 0) DESC, doc_key, occurrence",
        {name: getattr(question, name) for name in ("baseline", "task", "metric", "filter")} | {"runs": list(runs)},
    )
    return [_often(row) for row in rows]


def _often(row: dict[str, Any]) -> OftenFlipped:
    lowered: tuple[str, ...] = tuple(row.pop("lowered_by") or ())
    raised: tuple[str, ...] = tuple(row.pop("raised_by") or ())
    return OftenFlipped(**row, lower=len(lowered), higher=len(raised), lowered_by=lowered, raised_by=raised)
