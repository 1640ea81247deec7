"""When a row says *collapsed*, and when it does not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from leaderboard.board.cell import Cell
from leaderboard.compare import collapse
from leaderboard.metrics import GOLD_LOG_LIKELIHOOD
from leaderboard.store.answer_samples import Likelihoods
from tests.leaderboard.board.judging import judged, recipe_cell


def texts(
    kit: Any, changes: Any, *, start: float = -3.0, words: float | None = None, metric: str = "perplexity"
) -> Any:
    """A baseline's and a recipe's task of texts that lose `changes` `[n]` of their log-likelihood, in nats."""
    before = [start - 0.01 * (i % 7) for i in range(len(changes))]
    after = [value - change for value, change in zip(before, changes)]
    return tuple(_of_texts(kit, values, words, metric) for values in (before, after))


def _of_texts(kit: Any, values: list[float], words: float | None, metric: str) -> Any:
    count = (words or 1.0) * len(values)
    exponent = -sum(values) / count
    return kit.Task(
        {metric: values if words is None else [[value, words] for value in values]},
        scores={metric: math.exp(exponent) if "perplexity" in metric else exponent / math.log(2)},
        log_likelihoods=values,
        output_type="loglikelihood" if words is None else "loglikelihood_rolling",
        higher_is_better={metric: False},
    )


def words_of(made: Any, pair: Any) -> Cell:
    return judged(made, *pair)


def test_a_task_that_counts_words_is_not_judged_by_its_bytes() -> None:
    class Samples:
        def __init__(self, *names: str) -> None:
            self.names = names

        def likelihoods(self, *_: str) -> list[Likelihoods]:
            return [Likelihoods("task", name, "none", 60, 0.0) for name in self.names]

    def chosen(*names: str) -> list[str]:
        return [one.metric for one in collapse._likelihoods(Samples(*names), "a", "b", "task")]

    wikitext = ("bits_per_byte", "byte_perplexity", "word_perplexity", GOLD_LOG_LIKELIHOOD)
    assert chosen(*wikitext) == ["word_perplexity"]
    assert chosen(*wikitext[:2], GOLD_LOG_LIKELIHOOD) == ["bits_per_byte", "byte_perplexity"]
    assert chosen(GOLD_LOG_LIKELIHOOD) == [GOLD_LOG_LIKELIHOOD] and chosen() == []


class TestLikelihood:
    """Texts that become unlikely."""

    def test_ten_times_worse_is_collapsed(self, made: Any, kit: Any) -> None:
        cell = words_of(made, texts(kit, [3.0 + 0.1 * (i % 5) for i in range(60)]))
        assert cell.verdict == "collapsed"
        assert cell.notes[0].startswith("perplexity 20.7 -> 507, 25 times worse on 60 documents, surely more than")
        assert cell.documents_needed is None and cell.detectable is None

    @pytest.mark.parametrize("times", [1.0, 2.0, 5.0, 9.0])
    def test_less_is_worse(self, made: Any, kit: Any, times: float) -> None:
        cell = words_of(made, texts(kit, [math.log(times) + 0.01 * (i % 5 - 2) for i in range(60)]))
        assert cell.verdict in ("same", "worse", "undecided") and cell.collapse == ()

    def test_a_few_odd_documents_do_not_do_it(self, made: Any, kit: Any) -> None:
        changes = [400.0] * 5 + [0.02 * (i % 3 - 1) for i in range(95)]
        cell = words_of(made, texts(kit, changes))
        assert cell.score is not None and cell.score > 1e8 and cell.verdict != "collapsed"

    @pytest.mark.parametrize("count", [1, 2, 3, 5])
    def test_a_few_documents_do_not_do_it(self, made: Any, kit: Any, count: int) -> None:
        assert words_of(made, texts(kit, [20.0] * count)).verdict != "collapsed"

    def test_copies_are_one_document(self, made: Any, kit: Any) -> None:
        task = texts(kit, [20.0] * 40)
        for side in task:
            side.fields = {"passage": ["one"] * 20 + ["two"] * 20}
            side.metadata = {"cluster_by": "passage"}
        assert words_of(made, task).verdict != "collapsed"

    def test_perplexity_a_word(self, made: Any, kit: Any) -> None:
        changes = [50 * (2.6 + 0.02 * (i % 5)) for i in range(60)]
        cell = words_of(made, texts(kit, changes, start=-150.0, words=50.0, metric="word_perplexity"))
        assert cell.verdict == "collapsed" and cell.notes[0].startswith("word_perplexity 20.")

    def test_bytes_are_counted_by_six(self, made: Any, kit: Any) -> None:
        changes = [300 * (0.43 + 0.002 * (i % 5)) for i in range(60)]  # a byte 1.5 times worse, a word 13 times
        cell = words_of(made, texts(kit, changes, start=-150.0, words=300.0, metric="bits_per_byte"))
        assert cell.verdict == "collapsed"
        assert cell.notes[0].startswith("bits_per_byte, as a perplexity a word, 20.")

    def test_no_finite_likelihood_counts_as_lost(self, made: Any, kit: Any) -> None:
        changes = [3.0 + 0.1 * (i % 5) for i in range(60)]
        before, after = texts(kit, changes)
        after.values = {
            "perplexity": [math.nan if i % 2 else value for i, value in enumerate(after.values["perplexity"])]
        }
        cell = words_of(made, (before, after))
        assert cell.verdict == "collapsed" and "infinite" in cell.notes[0]


def questions(kit: Any, right: Any, choices: int = 4, metric: str = "acc", **options: Any) -> Any:
    """Multiple choice of which `right` `[n]` says where the likeliest choice is the right one."""

    class Chosen(kit.Task):  # type: ignore[misc, name-defined]
        def _line(self, name: str, i: int) -> dict[str, Any]:
            line = super()._line(name, i)
            gold = i % choices
            best = gold if right[i] else (gold + 1) % choices
            pairs = [[str(-1.0 if place == best else -2.0 - place), "False"] for place in range(choices)]
            return line | {"target": str(gold), "filtered_resps": pairs, "resps": [[pair] for pair in pairs]}

    return Chosen({metric: [float(value) for value in right]}, **options)


def answers(kit: Any, text: str, changes: Any) -> tuple[Any, Any]:
    """Answers of one text that lose `changes` `[n]` of their log-likelihood, in nats; no metric is of it."""

    class Answered(kit.Task):  # type: ignore[misc, name-defined]
        def _line(self, name: str, i: int) -> dict[str, Any]:
            line = super()._line(name, i)
            asked = {"arg_0": line["arguments"]["gen_args_0"]["arg_0"], "arg_1": f" {text}"}
            return line | {"target": text, "arguments": {"gen_args_0": asked}}

    nothing, before = [0.0] * len(changes), [-30.0 - 0.01 * (i % 7) for i in range(len(changes))]
    after = [value - change for value, change in zip(before, changes)]
    first, second = (
        Answered({"acc": nothing}, log_likelihoods=v, output_type="loglikelihood") for v in (before, after)
    )
    return first, second


def probes(kit: Any) -> tuple[Any, Any]:
    """A bias probe before and after, the second unbiased."""
    before, after = [0.8 + 0.1 * (i % 5) for i in range(100)], [0.01 * (i % 5 - 2) for i in range(100)]
    first, second = (questions(kit, values, 2, "likelihood_diff") for values in (before, after))
    return first, second


class TestRightAnswers:
    """Right answers whose likelihood no metric reports."""

    @pytest.mark.parametrize(
        ("text", "word"),
        [
            ("yes", "collapsed"),
            ("the capital of the country in which he was born", "undecided"),
            ("\u6771\u4eac\u90fd\u5343\u4ee3\u7530\u533a\u4e38\u306e\u5185\u4e00\u4e01\u76ee", "undecided"),
        ],
    )
    def test_a_long_answer_may_lose_a_few_nats(self, made: Any, kit: Any, text: str, word: str) -> None:
        cell = words_of(made, answers(kit, text, [4.0 + 0.1 * (i % 5) for i in range(60)]))
        assert cell.verdict == word
        assert cell.notes[0].startswith("perplexity a word of the right answers ") == (word == "collapsed")

    def test_a_long_answer_that_is_lost(self, made: Any, kit: Any) -> None:
        changes = [40.0 + 0.1 * (i % 5) for i in range(60)]
        cell = words_of(made, answers(kit, "the capital of the country in which he was born", changes))
        assert cell.verdict == "collapsed"


class TestElsewhere:
    """Tasks that cannot tell by themselves."""

    def test_a_bias_metric_in_a_collapsed_model_is_never_better(self, made: Any, kit: Any) -> None:
        before, after = texts(kit, [9.0 + 0.1 * (i % 5) for i in range(60)])
        probe = probes(kit)
        made.run("baseline", {"sums": before, "bias": probe[0]})
        made.run("laser", {"sums": after, "bias": probe[1]})
        made.run("mild", {"sums": before, "bias": probe[1]})
        cells = made.board()
        cell = recipe_cell(cells, task="bias")
        assert cell.improvement is not None and cell.improvement > 0.5 and cell.verdict == "collapsed"
        assert cell.notes[0] == "collapsed on sums; this task cannot tell by itself"
        assert recipe_cell(cells, "mild", "bias").verdict == "better"

    def test_where_the_perplexity_is_infinite(self, made: Any, kit: Any) -> None:
        before, after = texts(kit, [9.0 + 0.1 * (i % 5) for i in range(60)])
        after.values, after.scores = {"perplexity": [-math.inf] * 60}, {"perplexity": math.inf}
        first, second = probes(kit)
        made.run("baseline", {"sums": before, "bias": first})
        made.run("laser", {"sums": after, "bias": second})
        cells = made.board()
        assert recipe_cell(cells).verdict == "failed"
        assert recipe_cell(cells, task="bias").verdict == "collapsed"

    def test_equal_weights_in_another_run(self, made: Any, kit: Any) -> None:
        before, after = texts(kit, [9.0 + 0.1 * (i % 5) for i in range(60)])
        first, second = probes(kit)
        made.run("baseline", {"sums": before, "bias": first})
        made.run("laser", {"sums": after}, folder="one")
        made.run("laser", {"bias": second}, folder="two", spec_id="2" * 64)
        cell = recipe_cell(made.board(), task="bias")
        assert cell.verdict == "collapsed" and cell.notes[0].startswith("collapsed on sums")


def chance_pair(kit: Any, count: int, before: float, after: float, choices: int = 4, seed: int = 0) -> Any:
    generator = np.random.default_rng(seed)
    right = generator.permutation(count) < before * count
    kept = generator.permutation(count) < after * count
    return questions(kit, right, choices), questions(kit, kept, choices)


class TestChance:
    """Answers that are no better than guessing."""

    def test_from_half_to_a_quarter_of_four_choices(self, made: Any, kit: Any) -> None:
        cell = words_of(made, chance_pair(kit, 200, 0.6, 0.25))
        assert cell.verdict == "collapsed"
        assert cell.notes[0] == "acc 60.0 % -> 25.0 % of 200 answers, no better than chance (25.0 %)"

    def test_worse_and_above_chance(self, made: Any, kit: Any) -> None:
        assert words_of(made, chance_pair(kit, 200, 0.6, 0.45)).verdict == "worse"

    def test_a_baseline_at_chance_has_nothing_to_lose(self, made: Any, kit: Any) -> None:
        cell = words_of(made, chance_pair(kit, 200, 0.27, 0.15))
        assert cell.verdict != "collapsed"

    def test_few_documents_cannot_tell(self, made: Any, kit: Any) -> None:
        assert words_of(made, chance_pair(kit, 12, 0.6, 0.25)).verdict != "collapsed"

    def test_two_choices_barely_above_chance(self, made: Any, kit: Any) -> None:
        assert words_of(made, chance_pair(kit, 400, 0.56, 0.52, choices=2)).verdict != "collapsed"

    def test_no_right_answer_where_none_can_be_guessed(self, made: Any, kit: Any) -> None:
        before, after = kit.pair(100, 50, lost=50, output_type="generate_until")
        cell = words_of(made, (before, after))
        assert cell.verdict == "collapsed" and cell.notes[0] == (
            "acc: none of 100 answers is right, of the baseline's 50.0 %"
        )

    def test_few_right_answers_may_be_lost(self, made: Any, kit: Any) -> None:
        before, after = kit.pair(100, 8, lost=8, output_type="generate_until")
        assert words_of(made, (before, after)).verdict == "worse"
