"""Every metric of a task has a row and a verdict, and the row of the primary one says where they contradict it."""

from __future__ import annotations

import json
import math
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leaderboard.app.tables import further_text
from leaderboard.board.board import board, pair_board
from leaderboard.board.cell import Cell
from leaderboard.board.frame import cells_frame, cells_frame_with_controls
from leaderboard.board.further import all_metrics, contradictions, in_metric, metric_names
from leaderboard.compare.effect import Comparison, Scored
from leaderboard.compare.judge import judge
from leaderboard.ingest import ingest
from leaderboard.metrics import GOLD_LOG_LIKELIHOOD
from leaderboard.readers.discovery import Candidate, find_runs
from leaderboard.readers.reader import read_runs
from leaderboard.store.database import open_store
from leaderboard.terminal.table import render

COUNT = 400


def answers(kit: Any, *, gained: int = 0, lost: int = 0, shift: float = 0.0, noise: float = 0.1) -> tuple[Any, Any]:
    """A question-answering task of the baseline and of a recipe: accuracy, a second metric, perplexity, and responses
    that the right answer's log-likelihood is read from. shift: of that, in nats.
    """
    generator = np.random.default_rng(0)
    likelihoods = generator.normal(-4.0, 1.0, COUNT).clip(-9.0, -1.5)
    moved = likelihoods + shift + generator.normal(0.0, noise, COUNT).clip(-0.4, 0.4)
    tasks = []
    for correct, values in zip(kit.binary(COUNT, 200, lost=lost, gained=gained), (likelihoods, moved)):
        samples = {"acc": correct, "acc_other": list(correct), "perplexity": values.tolist()}
        tasks.append(
            kit.Task(
                samples,
                scores={"perplexity": math.exp(-values.mean())},
                log_likelihoods=values.tolist(),
                output_type="loglikelihood",
                greedy=True,
                higher_is_better={"perplexity": False},
            )
        )
    return tasks[0], tasks[1]


def judged(made: Any, before: Any, after: Any) -> Cell:
    made.run("baseline", {"answers": before})
    made.run("svd", {"answers": after})
    return next(cell for cell in made.board() if cell.recipe == "svd")


def by_metric(cell: Cell) -> dict[str, Cell]:
    return {one.metric: one for one in all_metrics([cell])}


def test_every_metric_has_a_verdict_of_its_own(made: Any, kit: Any) -> None:
    cell = judged(made, *answers(kit, gained=40, shift=0.5))
    found = by_metric(cell)
    assert list(found) == ["acc", "acc_other", "perplexity", GOLD_LOG_LIKELIHOOD]
    assert {name: one.verdict for name, one in found.items()} == dict.fromkeys(found, "better")
    assert [one.is_primary for one in found.values()] == [True, False, False, False]
    assert found["perplexity"].delta < 0 < found["perplexity"].improvement
    assert all(one.baseline_run == cell.baseline_run and one.n == COUNT for one in found.values())
    assert contradictions(cell) == () and not any("but" in note for note in cell.notes)


def test_parity_with_plain_numpy(made: Any, kit: Any) -> None:
    before, after = answers(kit, gained=40, shift=0.05)
    found = by_metric(judged(made, before, after))
    first, second = np.array(before.log_likelihoods), np.array(after.log_likelihoods)
    gold, perplexity = found[GOLD_LOG_LIKELIHOOD], found["perplexity"]
    assert gold.baseline_score == pytest.approx(first.mean(), rel=1e-12)
    assert gold.delta == pytest.approx((second - first).mean(), rel=1e-9)
    assert perplexity.delta == pytest.approx(math.exp(-second.mean()) - math.exp(-first.mean()), rel=1e-9)
    runs = (Scored(float(values.mean()), values) for values in (first, second))
    effect = judge(Comparison(GOLD_LOG_LIKELIHOOD, *runs, higher_is_better=True))
    assert [gold.low, gold.high, gold.p_value] == pytest.approx([effect.low, effect.high, effect.p_value], rel=1e-9)
    assert gold.low < gold.delta < gold.high
    assert gold.margin == pytest.approx(2 * 0.02 * first.std(), rel=1e-9)


@pytest.mark.slow
def test_the_further_metrics_are_a_family_of_their_own(made: Any, kit: Any) -> None:
    before, after = answers(kit, gained=12, lost=4, shift=0.01)
    cell = judged(made, before, after)
    found = by_metric(cell)
    assert cell.q_value == cell.p_value and cell.comparisons == 1
    further = sorted(one.p_value for one in cell.further)
    expected = [min(p * 3 / (i + 1) for i, p in enumerate(further) if i >= rank) for rank in range(3)]
    assert sorted(one.q_value for one in cell.further) == pytest.approx([min(q, 1.0) for q in expected])
    assert all(one.comparisons == 3 for one in cell.further)
    alone = kit.Fabricator(made.root.parent / "alone")
    plain = [replace(task, values={"acc": task.values["acc"]}, greedy=False) for task in (before, after)]
    assert judged(alone, *plain).q_value == found["acc"].q_value


def test_the_row_says_that_the_right_answers_became_less_likely(made: Any, kit: Any) -> None:
    cell = judged(made, *answers(kit, gained=60, shift=-0.5))
    assert cell.verdict == "better"
    (said,) = contradictions(cell)
    assert said == cell.notes[0]
    assert (
        said.startswith("better by acc, but worse by perplexity +") and "and worse by gold_loglikelihood -0.5" in said
    )
    for width in (80, 120):
        lines = render([cell], width=width).splitlines()
        assert all(len(line) <= width for line in lines)
        place = next(i for i, line in enumerate(lines) if "! better by acc" in line)
        assert "svd" in lines[place - 4] and [line.split()[1] for line in lines[place - 3 : place]] == [
            "acc_other",
            "perplexity",
            GOLD_LOG_LIKELIHOOD,
        ]
    assert "\x1b[33;1m    ! better by acc" in render([cell], color=True)


def test_the_row_says_that_the_right_answers_became_no_likelier(made: Any, kit: Any) -> None:
    cell = judged(made, *answers(kit, gained=60, shift=0.0, noise=0.01))
    assert by_metric(cell)[GOLD_LOG_LIKELIHOOD].verdict == "same"
    assert contradictions(cell)[0].startswith("better by acc, while the right answers became no likelier: same by gold")
    assert not [note for note in cell.notes if note.startswith("same by")]


@pytest.mark.parametrize(("shift", "said"), [(0.0, 1), (0.6, 0)])
def test_few_documents_are_no_contradiction_where_their_interval_shows_a_gain(
    made: Any, kit: Any, shift: float, said: int
) -> None:
    """Of 50 documents nothing without limits is called better."""
    tasks = []
    for task in answers(kit, gained=60, shift=shift):
        kept = {name: values[175:225] for name, values in task.values.items() if name != "perplexity"}
        tasks.append(replace(task, values=kept, scores={}, log_likelihoods=task.log_likelihoods[175:225]))
    cell = judged(made, *tasks)
    gold = by_metric(cell)[GOLD_LOG_LIKELIHOOD]
    assert (cell.verdict, gold.verdict) == ("better", "undecided") and (gold.low > 0) == (said == 0)
    found = contradictions(cell)
    assert len(found) == said and all("are not shown to have become likelier: undecided" in text for text in found)


def test_a_loss_that_the_primary_metric_does_not_show(made: Any, kit: Any) -> None:
    cell = judged(made, *answers(kit, shift=-0.5))
    assert cell.verdict == "same" and contradictions(cell)[0].startswith("same by acc, but worse by perplexity +")
    assert "] (lower is better) and worse by gold_loglikelihood -" in contradictions(cell)[0]
    assert "perplexity worse +" in further_text(cell) and " (lower is better); gold_loglik" in further_text(cell)


def test_a_task_that_reports_it_by_its_own_name_has_no_second_row(made: Any, kit: Any) -> None:
    before, after = answers(kit, gained=40, shift=0.5)
    for task in (before, after):
        task.values["log_loss"] = [-value for value in task.log_likelihoods]
        task.higher_is_better["log_loss"] = False
    found = by_metric(judged(made, before, after))
    assert "log_loss" in found and GOLD_LOG_LIKELIHOOD not in found
    assert found["log_loss"].verdict == "better" and found["log_loss"].delta < 0


def test_frames_and_metrics_to_choose_from(made: Any, kit: Any) -> None:
    made.run("baseline", {"answers": (tasks := answers(kit, gained=60, shift=-0.5))[0]})
    made.run("svd", {"answers": tasks[1]})
    cells = made.board()
    frame = cells_frame(cells)
    assert list(frame["metric"]) == ["acc", "acc_other", "perplexity", GOLD_LOG_LIKELIHOOD] * 2
    assert list(frame["primary"]) == [True, False, False, False] * 2 and str(frame["primary"].dtype) == "bool"
    assert len(cells_frame_with_controls(cells)) == 8
    assert metric_names(cells) == ["acc", "acc_other", GOLD_LOG_LIKELIHOOD, "perplexity"]
    assert [cell.verdict for cell in in_metric(cells, "perplexity")] == ["baseline", "worse"]
    assert in_metric(cells, "acc") == cells and in_metric(cells, "bleu") == []


@pytest.mark.slow
def test_sql_shows_them_all_and_the_store_remembers_them(made: Any, kit: Any, database: Path) -> None:
    before, after = answers(kit, gained=60, shift=-0.5)
    made.run("baseline", {"answers": before})
    made.run("svd", {"answers": after})
    ingest(made.root, database)
    with open_store(database) as store:
        connection = store.connection
        rows = connection.execute(
            "SELECT metric, is_primary, verdict FROM v_verdicts WHERE recipe = 'svd' ORDER BY is_primary DESC, metric"
        ).fetchall()
        kept = connection.execute("SELECT count(*) FROM comparisons").fetchone()
        documents = connection.execute(
            "SELECT count(*), avg(value) FROM sample_scores JOIN runs USING (run_id) WHERE metric = ? AND path LIKE"
            " '%baseline%'",
            [GOLD_LOG_LIKELIHOOD],
        ).fetchone()
    assert rows == [
        ("acc", True, "better"),
        ("acc_other", False, "better"),
        (GOLD_LOG_LIKELIHOOD, False, "worse"),
        ("perplexity", False, "worse"),
    ]
    assert kept == (4,)
    assert documents == (COUNT, pytest.approx(np.mean(before.log_likelihoods)))


@pytest.mark.slow
def test_a_run_stored_before_lacks_it_and_the_row_says_what_to_do(made: Any, kit: Any, database: Path) -> None:
    before, after = answers(kit, gained=60, shift=-0.5)
    made.run("baseline", {"answers": before})
    ingest(made.root, database)
    with open_store(database, read_only=False) as store:
        for table in ("scores", "sample_scores"):  # as an earlier version left them
            store.connection.execute(f"DELETE FROM {table} WHERE metric = ?", [GOLD_LOG_LIKELIHOOD])
    made.run("svd", {"answers": after})
    assert len(ingest(made.root, database).added) == 1
    with open_store(database) as store:
        (cell,) = [cell for cell in board(store) if cell.recipe == "svd"]
    found = by_metric(cell)
    assert found["perplexity"].verdict == "worse" and cell.verdict == "better"
    gold = found[GOLD_LOG_LIKELIHOOD]
    assert gold.verdict == "incomparable" and gold.delta is None
    assert "`lm_eval ingest --rebuild` reads every run anew" in gold.notes[0]
    ingest(made.root, database, rebuild=True)
    with open_store(database) as store:
        (cell,) = [cell for cell in board(store) if cell.recipe == "svd"]
    assert by_metric(cell)[GOLD_LOG_LIKELIHOOD].verdict == "worse"


def test_it_is_no_part_of_a_runs_id(made: Any, kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made.run("baseline", {"answers": answers(kit)[0]})

    def run_id() -> tuple[str, bool]:
        (found,) = find_runs(made.root)
        assert isinstance(found, Candidate)
        (run,) = read_runs(found)
        return run.run_id, any(score.metric == GOLD_LOG_LIKELIHOOD for score in run.scores)

    with_it = run_id()
    monkeypatch.setattr("leaderboard.readers.samples_reader.with_gold", lambda samples, metrics: samples)
    assert with_it[1] and run_id() == (with_it[0], False)


@pytest.mark.slow
def test_a_pair_of_runs_has_them_too(made: Any, kit: Any) -> None:
    before, after = answers(kit, gained=60, shift=-0.5)
    made.run("baseline", {"answers": before})
    made.run("svd", {"answers": after})
    store = ingest(made.root, None).store
    assert store is not None
    with closing(store.connection):
        runs = {
            row["path"].rpartition("/")[2][:3]: row["run_id"] for row in store.rows("SELECT path, run_id FROM runs")
        }
        (cell,) = pair_board(store, runs["bas"], runs["svd"])
    assert [one.verdict for one in all_metrics([cell])] == ["better", "better", "worse", "worse"]


def test_a_metric_that_no_document_bears_has_no_row(made: Any, kit: Any) -> None:
    before, after = answers(kit, gained=40, shift=0.5)
    for name, task in (("baseline", before), ("svd", after)):
        path = made.run(name, {"answers": task})
        (results,) = path.glob("results_*.json")
        data = json.loads(results.read_text())
        data["results"]["answers"]["of_the_whole,none"] = 0.5
        results.write_text(json.dumps(data))
    (cell,) = [cell for cell in made.board() if cell.recipe == "svd"]
    assert list(by_metric(cell)) == ["acc", "acc_other", "perplexity", GOLD_LOG_LIKELIHOOD]


@pytest.mark.slow
def test_many_metrics_leave_the_terminal_readable(made: Any, kit: Any) -> None:
    before, after = answers(kit, gained=40, shift=0.5)
    for task in (before, after):
        task.values.update({f"bias_score_{i}": list(task.values["acc"]) for i in range(20)})
    cell = judged(made, before, after)
    lines = render([cell], width=80).splitlines()
    assert len(cell.further) == 23 and sum(line.startswith("  + ") for line in lines) == 6
    assert any("18 more metrics: on the page" in line for line in lines)


@pytest.mark.slow
def test_all_real_files_still_make_a_board(shared: Path) -> None:
    report = ingest(shared / "data" / "lm_eval_results", None)
    assert report.store is not None and not report.rejected
    with closing(report.store.connection):
        cells = board(report.store)
        gold = report.store.rows("SELECT task, score FROM scores WHERE metric = ?", [GOLD_LOG_LIKELIHOOD])
    assert [row["task"].partition("_202")[0] for row in gold] == ["asdiv"] and gold[0]["score"] < 0
    assert all(cell.metric for cell in all_metrics(cells) if cell.verdict != "failed")
