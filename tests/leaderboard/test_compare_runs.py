"""Two runs compared by themselves, without a store: their cells and how their answers shifted."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from leaderboard.board.cell import Cell
from leaderboard.compare_runs import compare_paths
from leaderboard.errors import LeaderboardError
from leaderboard.terminal.table import render, render_unshared


class TestCompare:
    """Two paths, no store."""

    @pytest.mark.slow
    def test_the_second_against_the_first(self, made: Any, kit: Any) -> None:
        before, after = kit.pair(400, 200, lost=60)
        a, b = made.plain({"sums": before}), made.plain({"sums": after}, model="another", folder="b")
        (cell,) = compare_paths(a, b).cells
        assert (cell.verdict, cell.delta) == ("worse", pytest.approx(-0.15))
        assert "400 documents; baseline 0.5000" in render([cell], width=80, color=False)
        (back,) = compare_paths(b.parent, a.parent).cells
        assert (back.verdict, back.delta) == ("better", pytest.approx(0.15))

    @pytest.mark.slow
    def test_what_only_one_has_is_told(self, made: Any, kit: Any) -> None:
        before, after = kit.pair(40, 20, lost=3)
        more = kit.Task(
            {"acc": before.values["acc"], "acc_norm": before.values["acc"]}, log_likelihoods=kit.likelihoods(40, 5)
        )
        a = made.run("baseline", {"sums": more, "words": more, "first": before, "second": before})
        b = made.run("laser", {"sums": after, "words": after, "b\x1bonly": after, "filtered": after})
        found = compare_paths(a, b)
        assert [only.sentences() for only in found.unshared] == [
            ["Only A has the tasks first, second", "Only A has the metric acc_norm of sums, words"],
            ["Only B has the tasks b\x1bonly, filtered"],
        ]
        assert render_unshared(found.unshared) == [
            "Only A has the tasks first, second",
            "Only A has the metric acc_norm of sums, words",
            "Only B has the tasks b only, filtered",
        ]
        nothing, more_of_a = compare_paths(
            b, made.run("svd", {"sums": more, "words": before, "b\x1bonly": before, "filtered": before})
        ).unshared
        assert nothing.sentences() == [] and more_of_a.sentences() == ["Only B has the metric acc_norm of sums"]

    def test_two_revisions_of_a_model_are_told_apart(self, made: Any, kit: Any) -> None:
        before, after = kit.pair(40, 20, lost=3)
        a = made.run("laser", {"sums": before})
        receipt = json.loads((a / "receipt.json").read_text())
        other = receipt["model"] | {"identity": "f" * 64}
        b = made.run("laser", {"sums": after}, folder="b")
        (b / "receipt.json").write_text(json.dumps(json.loads((b / "receipt.json").read_text()) | {"model": other}))
        first, second = (only.label for only in compare_paths(a, b).unshared)
        assert first == f"laser on tiny ({receipt['model']['identity'][:8]})" and second == "laser on tiny (ffffffff)"

    def test_two_runs_without_a_task_in_common(self, made: Any, kit: Any) -> None:
        before, after = kit.pair(40, 20, lost=3)
        (cell,), found = compare_paths(made.run("baseline", {"sums": before}), made.run("laser", {"words": after}))
        assert cell.verdict == "incomparable" and render_unshared(found) == [
            "Only A has the task sums",
            "Only B has the task words",
        ]

    @pytest.mark.slow
    def test_what_cannot_be_compared(self, made: Any, kit: Any) -> None:
        before, after = kit.pair(9, 3)
        a, b = made.run("baseline", {"sums": before}), made.run("laser", {"sums": after})
        for first, second, words in (
            (a, a, "the same run"),
            (a, made.root, "give two paths"),
            (a, b / "nothing", "there is nothing at this path"),
        ):
            with pytest.raises(LeaderboardError, match=words):
                compare_paths(first, second)
        with pytest.raises(LeaderboardError, match="failed run"):
            compare_paths(a, made.failed("svd", {"sums": after}))


class TestChoices:
    """Changed answers, divergence and the right answer's log-likelihood, of two runs compared by themselves."""

    def runs(
        self, made: Any, kit: Any, before: Any, after: Any, output_type: str = "multiple_choice", target: str = "0"
    ) -> Cell:
        """The cell of two runs whose filtered responses are given."""
        paths = []
        for recipe, responses in (("baseline", before), ("laser", after)):
            task = kit.Task(
                {"acc": [1.0] * len(responses)},
                output_type=output_type,
                log_likelihoods=kit.likelihoods(len(responses), len(paths)),
            )
            path = made.run(recipe, {"sums": task}, weights={"digest_before": "w", "digest_after": "w"})
            samples = next(path.glob("samples_*.jsonl"))
            lines = [
                json.loads(line) | {"filtered_resps": response, "target": target}
                for line, response in zip(samples.read_text().splitlines(), responses)
            ]
            samples.write_text("".join(json.dumps(line) + "\n" for line in lines))
            paths.append(path)
        return compare_paths(*paths).cells[0]

    def test_multiple_choice(self, made: Any, kit: Any) -> None:
        before = [[["-1.0", "True"], ["-2.0", "False"]]] * 4
        after = [[["-1.0", "True"], ["-2.0", "False"]]] * 3 + [[["-3.0", "False"], ["-2.0", "True"]]]
        choices = self.runs(made, kit, before, after).choices
        p, q = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1))
        divergence = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
        assert choices.documents == 4 and choices.changed == 0.25
        assert choices.divergence.value == pytest.approx(divergence / 4) and choices.gold_drop.value == pytest.approx(
            0.5
        )

    def test_generation(self, made: Any, kit: Any) -> None:
        choices = self.runs(made, kit, [["4"], ["5"]], [["4"], ["6"]], "generate_until").choices
        assert (choices.changed, choices.divergence, choices.gold_drop) == (0.5, None, None)

    def test_one_answer_has_a_log_likelihood_and_no_choice(self, made: Any, kit: Any) -> None:
        choices = self.runs(
            made, kit, [["-1.5", "True"]] * 3, [["-2.0", "True"]] * 3, "loglikelihood", " right"
        ).choices
        assert (choices.changed, choices.divergence, choices.gold_drop.value) == (None, None, 0.5)

    @pytest.mark.parametrize(
        "response", [None, [], "x", [["y", "True"]], [[float("nan"), True]], [{}], [["-1", "True"]] * 3]
    )
    def test_responses_of_another_form_have_none(self, made: Any, kit: Any, response: Any) -> None:
        good = [["-1.0", "True"], ["-2.0", "False"]]
        assert self.runs(made, kit, [good, good], [good, response]).choices is None

    @pytest.mark.slow
    def test_an_unknown_right_answer_only_costs_its_drop(self, made: Any, kit: Any) -> None:
        good = [["-1.0", "True"], ["-2.0", "False"]]
        for target in ("7", "a word"):
            fresh = type(made)(made.root / target)
            choices = self.runs(fresh, kit, [good], [good], target=target).choices
            assert choices.changed == 0 and choices.gold_drop is None

    def test_the_table_says_it(self, made: Any, kit: Any) -> None:
        good = [["-1.0", "True"], ["-2.0", "False"]]
        text = render([self.runs(made, kit, [good] * 3, [good] * 3)], width=120)
        assert "answers changed 0.0%, choice divergence 0.0000 [0.0000, 0.0000] nats" in text
