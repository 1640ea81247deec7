"""Chance: the share of right answers of a model that knows nothing of the questions.

In a task of choices it is what guessing gets, one over the number of choices, or what always taking the same place gets
on these documents, where that is more: "yes" is right for 62 % of BoolQ. An edit that makes a model say one thing moves
its score there, up as well as down. An open answer can't be guessed.

A score is above chance where an exact binomial test of the right answers shows it at 5 %, documents that depend on each
other counted as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from leaderboard.store.answer_samples import AnswerSamples, RightAnswers

LEVEL = 0.05
"""Of the one-sided test."""


class AgainstChance(NamedTuple):
    """Right answers of two runs, and the share `level` that is right by chance: 0 of open answers, 1 where it is not
    known. one_place: whether it is that of always taking the same place.
    """

    counts: RightAnswers
    level: float
    one_place: bool = False

    def is_above(self, right: int) -> bool:
        """Whether so many right answers are more than chance gives. Documents of unequal numbers of choices are less
        spread than the binomial distribution of their mean (Hoeffding 1956, Annals of Mathematical Statistics 27:713).
        """
        from scipy.special import betainc

        hits, count = self.independent(right)
        if not hits or self.level >= 1:
            return False
        return self.level == 0 or float(betainc(hits, count - hits + 1, self.level)) <= LEVEL

    def independent(self, right: int) -> tuple[float, float]:
        """Right answers and documents, as if there were only as many as are independent."""
        return right * self.counts.independent / self.counts.documents, float(self.counts.independent)


def answers_and_chance(samples: AnswerSamples, baseline: str, recipe: str, task: str) -> list[AgainstChance]:
    """Those of a task, one a metric and filter that counts right answers."""
    return [_with_chance(samples, baseline, counts) for counts in samples.answers(baseline, recipe, task)]


def _with_chance(samples: AnswerSamples, baseline: str, counts: RightAnswers) -> AgainstChance:
    """Of a single choice all answers are right by chance."""
    if counts.output_type != "multiple_choice":
        return AgainstChance(counts, 0.0)
    choices = samples.choices(baseline, counts.task)
    if choices is None:
        return AgainstChance(counts, 1.0)
    in_one_place = choices.same_place or 0.0
    return AgainstChance(counts, max(choices.guessing, in_one_place), in_one_place > choices.guessing)


def of_metric(answers: Sequence[AgainstChance], metric: str, filter_name: str) -> AgainstChance | None:
    """The one of a metric and filter; None where it does not count right answers, or chance gets all or none."""
    of_it = (one for one in answers if (one.counts.metric, one.counts.filter) == (metric, filter_name))
    return next((one for one in of_it if 0 < one.level < 1), None)


def chance_note(answers: AgainstChance) -> str:
    """The sentence about an edited model that is not shown to know more of a task's answers than chance; empty where it
    is. It has no score, so that rows of one task have one note.
    """
    counts = answers.counts
    if answers.is_above(counts.after):
        return ""
    way = "always taking the same choice" if answers.one_place else "guessing"
    others = "" if answers.is_above(counts.before) else ", nor is the baseline's"
    return f"{counts.metric} is not shown to beat {way} ({answers.level:.3f}){others}"
