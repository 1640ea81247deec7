"""LowRankArena's retained quality: by hand, and with the means that its own dense rows state."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from leaderboard.board.cell import Cell
from leaderboard.board.reported import published
from leaderboard.board.retained_quality import (
    CHOICES,
    MATHQA,
    MMLU_MATH,
    PERPLEXITIES,
    ArenaQuality,
    retained_parts,
    retained_qualities,
)

SIZES = dict(zip(MMLU_MATH, (100, 100, 378, 270, 216)))
DENSE = {
    "LLaMA-7B": ArenaQuality(5.67, 7.20, 0.649, 0.261, 0.278),
    "Llama-3.1-8B": ArenaQuality(6.24, 9.10, 0.716, 0.396, 0.437),
    "Qwen3-8B-Base": ArenaQuality(7.00, 11.78, 0.704, 0.542, 0.729),
}


def cell(task: str, metric: str, before: float, after: float, **more: Any) -> Cell:
    return Cell("m", "svd-llm", "run", task, metric, "none", SIZES.get(task, 1000), before, after, "worse", **more)


def board() -> list[Cell]:
    """Perplexities doubled, accuracies halved, MathQA kept."""
    choices = [cell(task, "acc", 0.6, 0.3) for task in CHOICES]
    subjects = [cell(task, "acc", 0.4, 0.2) for task in MMLU_MATH]
    perplexities = [cell(task, "token_perplexity", 6.0, 12.0) for task in PERPLEXITIES]
    return [*perplexities, *choices, cell(MATHQA, "acc", 0.25, 0.25), *subjects]


def qualities(cells: list[Cell]) -> dict[str, float]:
    return {run: found.quality for run, found in retained_qualities(cells).items()}


def test_the_mean_of_five_ratios() -> None:
    assert set(retained_parts(DENSE["LLaMA-7B"], DENSE["LLaMA-7B"])) == {1}
    assert qualities(board()) == {"run": pytest.approx((0.5 + 0.5 + 0.5 + 1 + 0.5) / 5)}
    assert retained_qualities(board())["run"].parts == pytest.approx((0.5, 0.5, 0.5, 1, 0.5))


def test_where_a_run_collapsed_stands_beside_what_it_retains() -> None:
    broken = [replace(one, verdict="collapsed") if one.task == "piqa" else one for one in board()]
    elsewhere = replace(broken[2], task="sciq")
    assert broken[2].task != "piqa" and retained_qualities(board())["run"].collapsed == ()
    assert retained_qualities([*broken, replace(elsewhere, verdict="collapsed")])["run"].collapsed == ("piqa",)


@pytest.mark.parametrize("model", DENSE)
def test_the_mean_of_choices_is_that_of_the_published_dense_rows(model: str) -> None:
    rows = [one for one in published() if one.model == model and one.method == "dense" and one.task in CHOICES]
    by_task = {one.task: one.after for one in rows}
    assert set(by_task) == set(CHOICES)
    cells = [cell(task, "acc_norm", value, value) for task, value in by_task.items()]
    others = [one for one in board() if one.task not in CHOICES]
    halved = qualities([*others, *cells])["run"]
    assert halved == pytest.approx((0.5 + 0.5 + 1 + 1 + 0.5) / 5)
    assert sum(by_task.values()) / len(CHOICES) == pytest.approx(DENSE[model].choices, abs=6e-4)


def test_normalised_accuracy_comes_first_wherever_it_stands() -> None:
    norm = cell("piqa", "acc_norm", 0.6, 0.6)
    plain = cell("piqa", "acc", 0.6, 0.3)
    others = [one for one in board() if one.task != "piqa"]
    first = qualities([*others, replace(norm, further=(plain,))])
    assert first == qualities([*others, replace(plain, further=(norm,))])
    assert first["run"] > qualities(board())["run"]


def test_subjects_count_by_their_size() -> None:
    cells = [replace(one, score=0.4) if one.task == MMLU_MATH[0] else one for one in board()]
    assert qualities(cells)["run"] == pytest.approx((0.5 * 3 + 1 + (0.2 * 964 + 0.4 * 100) / 1064 / 0.4) / 5)


@pytest.mark.parametrize("task", [*PERPLEXITIES, *CHOICES, MATHQA, *MMLU_MATH])
def test_nothing_is_said_without_every_part_in_full(task: str) -> None:
    assert qualities([one for one in board() if one.task != task]) == {}
    cut = [replace(one, subset="first 20 of 60 documents") if one.task == task else one for one in board()]
    assert qualities(cut) == {}
    unknown = [replace(one, score=None) if one.task == task else one for one in board()]
    assert qualities(unknown) == {}


@pytest.mark.parametrize("task", ["wikitext2_arena", "arc_easy", MATHQA, MMLU_MATH[0]])
@pytest.mark.parametrize(
    "changes", [{"verdict": "incomparable"}, {"verdict": "failed"}, {"shots": 3}, {"rephrased": "chat template"}]
)
def test_nothing_is_said_of_what_was_asked_otherwise(task: str, changes: dict[str, Any]) -> None:
    """Or of what cannot be compared with the unedited model's."""
    assert qualities([replace(one, **changes) if one.task == task else one for one in board()]) == {}
    as_asked = [replace(one, shots=5 if one.task in MMLU_MATH else 0) for one in board()]
    assert qualities(as_asked) == qualities(board())


def test_a_number_that_cannot_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="above zero"):
        retained_parts(DENSE["LLaMA-7B"], ArenaQuality(0.0, 7.2, 0.6, 0.2, 0.2))
    assert qualities([replace(one, baseline_score=0.0) if one.task == MATHQA else one for one in board()]) == {}
