"""The right answer's log-likelihood, out of samples as lm-eval has written them since 0.4."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leaderboard.readers.gold_answer import gold_log_likelihoods, responses_of
from leaderboard.readers.samples import Samples
from leaderboard.readers.samples_reader import SampleForm, SamplesReader

ACC = frozenset({"acc"})


def line(number: int, choices: Sequence[Any], likelihoods: Sequence[float], target: Any, **more: Any) -> dict[str, Any]:
    """A sample as lm-eval writes it since 0.4.4. choices: texts, or (prompt, text) pairs."""
    pairs = [choice if isinstance(choice, tuple) else (f"Question {number}:", choice) for choice in choices]
    answers = [[str(likelihood), "False"] for likelihood in likelihoods]
    return {
        "doc_id": number,
        "doc": {"question": f"{number}?"},
        "target": target,
        "arguments": {f"gen_args_{i}": {"arg_0": prompt, "arg_1": text} for i, (prompt, text) in enumerate(pairs)},
        "resps": [[answer] for answer in answers],
        "filtered_resps": answers,
        "filter": "none",
        "metrics": ["acc"],
        "doc_hash": f"{number:064x}",
        "prompt_hash": f"{number:064x}",
        "target_hash": f"{number:064x}",
    } | more


def read(folder: Path, lines: Sequence[Mapping[str, Any]], names: frozenset[str] = ACC) -> Samples:
    path = folder / "samples_made.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in lines), encoding="utf-8")
    return SamplesReader().read(path, SampleForm("made", names))


def gold(folder: Path, lines: Sequence[Mapping[str, Any]], names: frozenset[str] = ACC) -> list[float] | None:
    return gold_log_likelihoods(read(folder, lines, names), names)


CHOICES, LIKELIHOODS = (" red", " blue", " green"), (-3.5, -1.25, -2.0)


def test_the_target_is_a_place(tmp_path: Path) -> None:
    lines = [line(i, CHOICES, LIKELIHOODS, str(i), acc=float(i == 1)) for i in range(3)]
    assert gold(tmp_path, lines) == list(LIKELIHOODS)
    assert gold(tmp_path, [one | {"target": int(one["target"])} for one in lines]) == list(LIKELIHOODS)


def test_the_target_is_a_text(tmp_path: Path) -> None:
    lines = [line(i, CHOICES, LIKELIHOODS, CHOICES[i].strip(), acc=float(i == 1)) for i in range(3)]
    assert gold(tmp_path, lines) == list(LIKELIHOODS)


def test_numbers_that_are_choices_are_not_taken_for_places(tmp_path: Path) -> None:
    numbers = (" 2", " 1", " 0")
    lines = [line(i, numbers, LIKELIHOODS, numbers[i].strip(), acc=float(i == 1)) for i in range(3)]
    assert gold(tmp_path, [*lines, line(3, numbers, (-1.0, -2.0, -3.0), "2", acc=1.0)]) == [*LIKELIHOODS, -1.0]


def test_two_prompts_before_one_ending_are_told_apart_by_the_score(tmp_path: Path) -> None:
    prompts = (("The cup fell off the shelf; the cup", " broke."), ("The cup fell off the shelf; the shelf", " broke."))
    lines = [line(i, prompts, (-4.0, -2.0), "broke.", acc=float(i)) for i in range(2)]
    assert gold(tmp_path, lines) == [-4.0, -2.0]


def test_the_older_form_has_numbers_and_nested_lists(tmp_path: Path) -> None:
    lines = [
        line(i, CHOICES, LIKELIHOODS, CHOICES[i], acc=float(i == 1))
        | {
            "arguments": [[f"Question {i}:", choice] for choice in CHOICES],
            "resps": [[[value, False]] for value in LIKELIHOODS],
        }
        for i in range(3)
    ]
    assert gold(tmp_path, lines) == list(LIKELIHOODS)


def test_one_request_is_its_own_answer(tmp_path: Path) -> None:
    lines = [line(i, [" 91"], [-0.5 * i], " 91", gold_logprob=-0.5 * i) for i in range(3)]
    assert gold(tmp_path, lines, frozenset({"gold_logprob"})) == [0.0, -0.5, -1.0]
    other = [one | {"target": "another"} for one in lines]
    assert gold(tmp_path, other, frozenset({"gold_logprob"})) is None
    assert gold(tmp_path, [one | {"acc": 0.0} for one in other]) == [0.0, -0.5, -1.0]  # the flag says False
    assert gold(tmp_path, [one | {"acc": 1.0} for one in other]) is None


def test_the_second_half_of_mutual_information_is_left_out(tmp_path: Path) -> None:
    names = frozenset({"acc", "acc_mutual_info"})
    doubled = [("Question:", text) for text in CHOICES] + [("", text) for text in CHOICES]
    lines = [
        line(i, doubled, (*LIKELIHOODS, -0.1, -0.2, -0.3), str(i), acc=float(i == 1), acc_mutual_info=1.0)
        for i in range(3)
    ]
    assert gold(tmp_path, lines, names) == list(LIKELIHOODS)


@pytest.mark.parametrize(
    "changes",
    [
        {"acc": 1.0},  # the likeliest is another
        {"acc": 0.37},  # a share of probability, as of several right answers
        {"target": "[0, 2]"},
        {"target": "7"},
        {"target": "None"},
        {"resps": [["red"]]},  # a generated text
        {"resps": [["-300.5"]]},  # of a text scored whole
        {"resps": [[["a", "False"]], [["b", "False"]], [["c", "False"]]]},
        {"resps": []},
        {"resps": None},
        {"resps": [[["-1.0", "False"]], [["-1.0", "maybe"]], [["-3.0", "False"]]]},
    ],
)
def test_one_doubtful_document_leaves_the_task_without(tmp_path: Path, changes: Mapping[str, Any]) -> None:
    lines = [line(i, CHOICES, LIKELIHOODS, "0", acc=0.0) for i in range(3)]
    assert gold(tmp_path, lines) == [-3.5] * 3
    assert gold(tmp_path, [*lines[:2], lines[2] | changes]) is None


def test_a_probe_for_bias_has_no_right_answer(tmp_path: Path) -> None:
    lines = [line(i, (" she", " he"), (-0.9, -1.5), "0", stereotyped=1.0) for i in range(3)]
    assert gold(tmp_path, lines, frozenset({"stereotyped"})) is None


def test_likelihoods_beyond_numbers_are_kept_as_they_are(tmp_path: Path) -> None:
    lines = [line(i, CHOICES, (-math.inf, -1.0, -2.0), str(i), acc=float(i == 1)) for i in range(3)]
    assert gold(tmp_path, lines) == [-math.inf, -1.0, -2.0]


def test_both_ways_of_reading_responses_agree() -> None:
    generator = np.random.default_rng(0)
    texts = []
    for count in generator.integers(1, 6, size=200):
        values = generator.normal(-5, 3, count).astype(np.float32)
        rows = [[[str(value), str(bool(value > -4))]] for value in values]
        texts.append(json.dumps(rows, separators=(",", ":")))
    numbers = [text.replace('"True"', "true").replace('"False"', "false") for text in texts]
    found = responses_of(texts)
    assert found is not None and found == responses_of(numbers)
    expected = [[float(row[0][0]) for row in json.loads(text)] for text in texts]
    assert found.likelihoods == expected


def test_parity_with_plain_numpy(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    likelihoods, right = generator.normal(-8, 3, (300, 3)), generator.integers(0, 3, 300)
    right[:100] = likelihoods[:100].argmax(axis=1)
    lines = [
        line(i, CHOICES, row.tolist(), str(place), acc=float(row.argmax() == place))
        for i, (row, place) in enumerate(zip(likelihoods, right))
    ]
    np.testing.assert_array_equal(np.array(gold(tmp_path, lines)), likelihoods[np.arange(300), right])


def test_real_samples_have_it_only_where_they_tell_it(shared: Path) -> None:
    names = frozenset({"acc", "acc_norm", "f1", "exact_match", "bleu"})
    read = {}
    for path in sorted((shared / "data" / "lm_eval_results").glob("*.jsonl")):
        samples = SamplesReader().read(path, SampleForm("real", names))
        read[path.name] = responses_of(samples.responses), gold_log_likelihoods(samples, names)
    assert len(read) == 8
    likelihoods = {name[4:].partition("-")[0]: values for name, (found, values) in read.items() if found is not None}
    # Of five choices 0.4.0 logged the text of the first: nothing says which one is right. The others generate.
    assert set(likelihoods) == {"_mathqa.jsonl", "samples_asdiv_2024"} and likelihoods["_mathqa.jsonl"] is None
    values = likelihoods["samples_asdiv_2024"]
    assert values is not None and len(values) == 50 and values[0] == -9.536740890325746e-07 and max(values) <= 0
