"""What a row says where a document may lie beyond the bound: words that are withheld, and what is said instead."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from leaderboard import statistics as stats
from leaderboard.board.cell import Cell, with_verdicts
from leaderboard.compare import needs
from leaderboard.compare.clipping import Clipping
from leaderboard.compare.effect import Comparison, Effect, Scored
from leaderboard.compare.judge import judge
from leaderboard.compare.needs import Levels
from leaderboard.gate.decision import GateRow, decide


def scored(values: np.ndarray) -> Scored:
    return Scored(float(np.mean(values)), values)


def compared(baseline: np.ndarray, recipe: np.ndarray, metric: str = "gold_log_likelihood", **terms: Any) -> Effect:
    """Log-likelihoods of the right answers, which have no bounds."""
    return judge(
        Comparison(metric, scored(baseline), scored(recipe), terms.pop("higher", True), limits_at=0.05, **terms)
    )


def board_word(effect: Effect) -> tuple[str, tuple[str, ...]]:
    """The word of a board of this row alone."""
    names = ("delta", "low", "high", "p_value", "p_same", "improvement", "margin", "clipping", "notes")
    row = Cell("m", "r", "1", "t", "ll", "none", effect.count, 0.0, 0.0, "undecided")
    (cell,) = with_verdicts([_with(row, {name: getattr(effect, name) for name in names})])
    return cell.verdict, cell.notes


def _with(row: Cell, fields: dict[str, Any]) -> Cell:
    from leaderboard.board.cell import changed

    return changed(row, **fields)


def documents_needed(effect: Effect) -> int:
    """On a board of this row alone."""
    assert effect.needs is not None
    found = needs.lacking(effect.needs, effect.count, Levels(0.05, 0.025))
    assert found is not None
    return found.documents


def gate_row(effect: Effect) -> GateRow:
    """The row of a gate of this task alone."""
    names = ("drop", "drop_low", "drop_high", "margin", "p_worse", "notes")
    names += ("clipping",)
    row = GateRow("base", "t", documents=effect.count, **{name: getattr(effect, name) for name in names})
    return decide([row], 0.05)[0]


@pytest.mark.slow
def test_thirty_documents_and_a_rare_collapse_are_never_called_the_same_better_or_passed() -> None:
    """With a twentieth of documents collapsing, and the others gaining what makes up for it."""
    generator = np.random.default_rng(5)
    words, verdicts = set(), set()
    for _ in range(300):
        baseline = generator.normal(-5, 1, 30)
        lost = generator.random(30) < 0.05
        recipe = baseline + np.where(lost, -4.0, 0.2) + generator.normal(0, 0.05, 30)
        effect = compared(baseline, recipe)
        words.add(board_word(effect)[0])
        verdicts.add(gate_row(effect).verdict)
    assert words <= {"undecided", "worse"} and "PASS" not in verdicts


def test_nothing_collapsed_among_enough_documents_is_the_same() -> None:
    generator = np.random.default_rng(0)
    baseline = generator.normal(-5, 1, 400)
    for count, word, gate in ((50, "undecided", "UNDECIDED"), (400, "same", "PASS")):
        effect = compared(baseline[:count], baseline[:count] + generator.normal(0, 0.02, count))
        assert (effect.clipping.lost, effect.clipping.gained) == (0, 0) and effect.clipping.bound == pytest.approx(
            20 * effect.margin
        )
        found, notes = board_word(effect)
        assert (found, gate_row(effect).verdict) == (word, gate)
        assert "no document counted for more than" in " ".join(notes) and "the plain mean change is" in " ".join(notes)
        assert effect.needs is not None and effect.needs.enough == (59 if count < 59 else 0)
        assert 59 <= documents_needed(effect) < 80


def test_no_change_has_one_sign() -> None:
    note = Clipping(0.5, 0, 0, 0.1, 0.0).note(-0.0, 0.0)
    assert "mean change +0, no" in note and note == Clipping(0.5, 0, 0, 0.1, 0.0).note(0.0, -0.0)


def test_the_note_of_a_mean_says_which_way_is_good_where_that_is_not_up() -> None:
    baseline = np.random.default_rng(0).normal(5, 1, 100)
    for terms, way in (({}, ""), ({"higher": False}, " (lower is better)"), ({"best_value": 5.0}, " (best at 5)")):
        effect = compared(baseline, baseline + 0.5, metric="made_up", **terms)
        assert effect.notes[0].startswith(f"interval and verdict: mean change +0.5{way}, no document counted")
        assert effect.delta == pytest.approx(0.5)
    words = np.full(100, 20.0)
    effect = judge(
        Comparison(
            "word_perplexity",
            Scored(float(np.exp(baseline.sum() / words.sum())), -baseline, words),
            Scored(float(np.exp((baseline + 0.5).sum() / words.sum())), -baseline - 0.5, words),
            False,
        )
    )
    assert effect.delta > 0 > (effect.improvement or 0.0) and " (lower is better), no document" in effect.notes[0]


def test_gains_that_pay_for_collapses_are_not_better() -> None:
    """Each twelfth document collapses; the clipped mean is better all the same, and the plain mean much worse."""
    generator = np.random.default_rng(0)
    baseline = generator.normal(-5, 1, 240)
    recipe = baseline + np.where(np.arange(240) % 12 == 0, -9.0, 0.3) + generator.normal(0, 0.02, 240)
    effect = compared(baseline, recipe)
    assert effect.improvement > 0 > effect.delta and effect.p_value < 0.001 and effect.clipping.lost == 20
    assert effect.clipping.limit == pytest.approx(stats.share_limit(20, 240))
    word, notes = board_word(effect)
    assert word == "undecided" and notes[0].startswith("20 of 240 documents got far worse, so up to 12 % of all may")
    row = gate_row(effect)
    assert row.verdict == "UNDECIDED" and row.reasons[0].startswith("20 of 240 documents got far worse")
    mirrored = compared(recipe, baseline, bound=effect.clipping.bound)  # healed: worse by what the others lose
    assert mirrored.clipping.gained == 20 and mirrored.p_worse < 0.001 and mirrored.delta > 0
    assert board_word(mirrored)[0] == "worse"


def test_worse_is_never_withheld() -> None:
    generator = np.random.default_rng(0)
    baseline = generator.normal(-5, 1, 100)
    effect = compared(baseline, baseline - np.where(np.arange(100) < 40, 5.0, 0.1))
    assert effect.clipping.limit > 0.4 and board_word(effect)[0] == "worse" and gate_row(effect).verdict == "FAIL"


def test_scores_within_zero_and_one_are_not_clipped_unless_the_task_says_so() -> None:
    generator = np.random.default_rng(0)
    baseline = generator.uniform(0.3, 0.7, 300)
    recipe = np.clip(baseline + generator.normal(0, 0.02, 300), 0, 1)
    plain, own = (compared(baseline, recipe, "f1_of_answers", bound=bound) for bound in (None, 0.4))
    assert plain.clipping is None and not any("no document counted" in note for note in plain.notes)
    assert own.clipping.bound == 0.4 and any("no document counted for more than 0.4" in note for note in own.notes)
    assert own.p_same < plain.p_same < 0.05
    # a bound that is not above the margin says nothing
    assert compared(baseline, recipe, "f1_of_answers", bound=0.01).clipping is None


def test_a_bound_of_the_task_is_taken_for_scores_without_limits() -> None:
    generator = np.random.default_rng(0)
    baseline = generator.normal(-5, 1, 100)
    recipe = baseline + generator.normal(0, 0.5, 100)
    assert compared(baseline, recipe, bound=3.0).clipping.bound == 3.0
    assert compared(baseline, recipe).clipping.bound == pytest.approx(0.8 * np.std(baseline))


def test_too_few_documents_are_told_how_many_are_needed() -> None:
    """All of 100 documents lose a little: no test of the mean can tell that from gains that were not seen."""
    generator = np.random.default_rng(0)
    baseline = generator.uniform(0.4, 0.6, 100)
    recipe = baseline - 0.02 + generator.normal(0, 0.001, 100)
    effect = compared(baseline, recipe, "f1_of_answers")
    assert effect.p_worse > 0.05 and documents_needed(effect) == pytest.approx(184, abs=3)
    assert board_word(effect)[0] == "undecided"
    tripled = compared(*(np.tile(values, 3) for values in (baseline, recipe)), "f1_of_answers")
    assert tripled.p_worse < 0.025 and board_word(tripled)[0] == "worse"


@pytest.mark.slow
def test_three_hundred_clusters_of_three_decide() -> None:
    """A tenth of the answers flips, three points more of them to wrong: as often as by the cluster-robust t test."""
    generator, found, by_t = np.random.default_rng(1), 0, 0
    names = np.repeat(np.arange(300), 3)
    for _ in range(100):
        before = (generator.random(900) < 0.5).astype(float)
        flips = generator.random(900) < np.where(before == 1, 0.13, 0.07)
        recipe = np.where(flips, 1 - before, before)
        effect = compared(before, recipe, "acc", clusters=names)
        found += effect.p_worse < 0.025
        by_t += stats.paired_interval(recipe - before, names).high < 0
    assert found >= 0.9 * by_t > 60


@pytest.mark.parametrize("best", [0.0, 0.5])
def test_a_bias_that_collapses_is_counted(best: float) -> None:
    generator = np.random.default_rng(0)
    baseline = 1 + best + generator.normal(0, 0.3, 60)
    recipe = baseline + np.where(np.arange(60) < 6, 8.0, -0.2)
    effect = compared(baseline, recipe, "odds", best_value=best)
    assert effect.clipping is not None and (effect.clipping.lost, effect.clipping.gained) == (6, 0)
    assert board_word(effect)[0] in ("undecided", "worse") and gate_row(effect).verdict != "PASS"


def texts(count: int, change: float) -> tuple[Scored, Scored]:
    generator = np.random.default_rng(3)
    words = generator.integers(200, 900, count).astype(float)
    before = -3 * words + generator.normal(0, 5, count)
    after = before + change * words + generator.normal(0, 0.005, count) * words
    return tuple(Scored(float(np.exp(-ll.sum() / words.sum())), ll, words) for ll in (before, after))


def test_perplexity_says_what_it_counts_and_how_many_texts_it_needs() -> None:
    few, many = (judge(Comparison("word_perplexity", *texts(count, 0.0), False, limits_at=0.05)) for count in (62, 200))
    assert board_word(few)[0] == "undecided" and documents_needed(few) > 62 and gate_row(few).verdict == "UNDECIDED"
    assert board_word(many)[0] == "same" and gate_row(many).verdict == "PASS"
    assert "no document counted for more than +49% of the perplexity" in many.notes[0]
    worse = judge(Comparison("word_perplexity", *texts(62, -0.1), False, limits_at=0.05))
    assert board_word(worse)[0] == "worse" and worse.drop == pytest.approx(worse.delta)


def test_gate_and_board_agree_on_the_margin() -> None:
    """The limit lies below the margin where, and only where, the margin is excluded."""
    generator = np.random.default_rng(0)
    for _ in range(60):
        baseline = generator.normal(0, 1, 150)
        recipe = baseline + generator.normal(-0.01, generator.uniform(0.05, 0.4), 150)
        effect = compared(baseline, recipe)
        sample = stats.clipped_sample(recipe - baseline, effect.clipping.bound)
        assert (effect.drop_high < effect.margin) == (stats.clipped_within_p(sample, effect.margin) < 0.05)
        assert (effect.low > 0 or effect.high < 0) == (effect.p_value < 0.05)


def test_the_sentence() -> None:
    assert Clipping(1.0, 3, 0, 0.049, 0.0).doubt(400, 0.02) is None
    assert Clipping(1.0, 0, 0, 0.0951, 0.0).doubt(30, 0.02) == (
        "none of 30 documents got far worse, but up to 10 % of all may (95 % limit): neither same nor better can be"
        " said before that is less than 5 %. While none does, 59 independent documents are enough"
    )


class TestWhatIsPossible:
    """Intervals end where differences of two scores do, and cover as often near an end of the scale as elsewhere."""

    @pytest.mark.parametrize(("hits", "lost", "gained"), [(50, 0, 0), (0, 0, 2), (49, 1, 1), (1, 1, 0), (50, 50, 0)])
    def test_of_right_and_wrong_answers(self, hits: int, lost: int, gained: int, kit: Any) -> None:
        before, after = (np.array(values) for values in kit.binary(50, hits, lost=lost, gained=gained))
        effect = compared(before, after, "acc")
        assert -1 <= effect.low <= effect.delta <= effect.high <= 1

    @pytest.mark.parametrize(
        ("documents", "right", "loss", "gain"),
        [
            (40, 0.98, 0.0, 0.02),
            (80, 0.98, 0.0, 0.02),
            (150, 0.99, 0.0, 0.01),
            (40, 0.02, 0.02, 0.0),
            (20, 0.78, 0.02, 0.2),
        ],
    )
    def test_the_truth_is_inside_near_an_end_of_the_scale(
        self, documents: int, right: float, loss: float, gain: float
    ) -> None:
        """loss, gain: the shares of all documents that change. The unedited score is as much an estimate as the other:
        an interval that ends where the seen one leaves no room covers 44 to 58 % here.
        """
        generator, inside, draws = np.random.default_rng(1), 0, 400
        for _ in range(draws):
            kind = generator.choice(4, documents, p=[right - loss, loss, gain, 1 - right - gain])
            before, after = np.isin(kind, (0, 1)).astype(float), np.isin(kind, (0, 2)).astype(float)
            effect = compared(before, after, "acc")
            inside += effect.low <= gain - loss <= effect.high
        assert inside / draws > 0.915  # 0.95 less three standard errors

    def test_of_partial_credit_clusters_and_shares(self) -> None:
        generator = np.random.default_rng(0)
        before, after = np.full(12, 0.97), np.full(12, 0.99)
        clusters = np.repeat(np.arange(4), 3)
        for terms in ({}, {"clusters": clusters}, {"best_value": 0.5}):
            effect = compared(before, after, "mc2", **terms)
            assert -1 <= effect.low <= effect.delta <= effect.high <= 1
            assert -1 <= effect.drop_low <= effect.drop_high <= 1
        shares = (generator.random(40) < 0.5).astype(float)
        effect = compared(shares, 1 - shares, "pct_stereotype", best_value=0.5)
        assert effect.drop_high is None or effect.drop_high <= 0.5

    def test_of_percent(self) -> None:
        # a share in percent is beyond the range of its metric: nothing is known of its limits
        percent = compared(np.array([97.0, 99.0] * 20), np.array([98.0, 99.0] * 20), "acc")
        assert percent.high is not None and percent.low is not None


def test_a_perplexity_of_zero_has_no_margin() -> None:
    """What no text can have, and a rounded file can."""
    run = Scored(0.0, np.full(3, 9e9), np.full(3, 1.0))
    effect = judge(Comparison("word_perplexity", run, run, False))
    assert effect.p_value is None and "not above zero" in effect.notes[0]


def test_a_plain_mean_that_is_worse_is_never_called_the_same_or_better_or_passed() -> None:
    """Two of a hundred documents lose far more than they count for, and the rest gain a little."""
    generator = np.random.default_rng(0)
    baseline = generator.normal(-5, 1, 300)
    for lost, rest, word in ((30.0, 0.05, "better"), (8.0, 0.0, "same")):
        changes = np.where(np.arange(300) % 50 == 0, -lost, rest) + generator.normal(0, 0.01, 300)
        effect = compared(baseline, baseline + changes)
        assert (
            effect.clipping.plain_improvement == pytest.approx(changes.mean())
            and effect.clipping.plain_improvement < -effect.margin
        )
        assert effect.clipping.limit < 0.05 and (effect.p_same < 0.05 or effect.improvement > 0), word
        found, notes = board_word(effect)
        assert found == ("undecided" if word == "better" else "worse") and notes[0].startswith(
            "the plain mean is worse by 0."
        ), (word, found, notes)
        assert gate_row(effect).verdict != "PASS"


@pytest.mark.slow
def test_what_could_be_shown_is_shown() -> None:
    """A true drop of the size that is promised, of partial credit and of log-likelihoods."""
    for metric, spread, bound in (("f1_of_answers", 0.05, None), ("f1_of_answers", 0.05, 0.4), ("gold_ll", 0.05, 0.8)):
        for count in (60, 200):
            generator, shown = np.random.default_rng(count), 0
            for _ in range(150):
                baseline = generator.uniform(0.3, 0.7, count)
                drawn = generator.normal(0, spread, count)
                pilot = compared(baseline, np.clip(baseline + drawn - drawn.mean(), 0, 1), metric, bound=bound)
                size = needs.detectable(pilot.needs, count, 0.025)
                effect = compared(baseline, np.clip(baseline + drawn - size, 0, 1), metric, bound=bound)
                shown += effect.p_value < 0.05 and effect.improvement < 0
            assert shown / 150 > 0.65, (metric, count, shown)
