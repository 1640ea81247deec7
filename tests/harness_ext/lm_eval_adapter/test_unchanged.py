"""What is worked out once a session is what lm-eval would have worked out anew."""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval.api import metrics
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from harness_ext.lm_eval_adapter import bootstrap
from harness_ext.lm_eval_adapter.backend import RecipeLM
from harness_ext.lm_eval_adapter.borrowed import add_env_info
from harness_ext.lm_eval_adapter.task_index import task_manager
from harness_ext.lm_eval_adapter.unchanged import EncodedPairs, Unchanged


@pytest.fixture
def task() -> ConfigurableTask:
    found: ConfigurableTask = task_manager().load(["int_mult"])["tasks"]["int_mult"]
    return found


def built(task: ConfigurableTask, shots: int, seed: int | None, **arguments: Any) -> list[Instance]:
    """The requests as lm-eval's evaluator has them built."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    task.set_config(key="num_fewshot", value=shots)
    task.set_fewshot_seed(seed=seed)
    task.build_all_requests(**{"limit": 20, **arguments})
    return task.instances


def asked(requests: Sequence[Instance]) -> list[Any]:
    return [(one.request_type, one.doc, one.arguments, one.idx, one.metadata, one.doc_id) for one in requests]


@pytest.mark.slow
def test_requests_are_built_once_and_come_back_unanswered(
    task: ConfigurableTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    unchanged, made = Unchanged(), []
    original = type(task).fewshot_context
    monkeypatch.setattr(type(task), "fewshot_context", lambda *a, **k: (made.append(1), original(*a, **k))[1])
    with unchanged.reused():
        first = built(task, 2, 1234)
        answers = [one.resps for one in first]
        for one in first:
            one.resps.append((1.0, True))
            one.filtered_resps["none"] = 1.0
        expected = asked(copy.deepcopy(first))
        state = random.getstate(), task.sampler.rnd.getstate(), torch.get_rng_state().tolist()
        again = built(task, 2, 1234)
    assert len(made) == 20 and asked(again) == expected
    assert all(one.resps == [] and one.filtered_resps == {} for one in again)
    assert answers == [[(1.0, True)]] * len(answers)  # those of the first variant's samples
    assert (random.getstate(), task.sampler.rnd.getstate(), torch.get_rng_state().tolist()) == state


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shots", "seed", "arguments"),
    [
        (1, 1234, {}),
        (2, 5, {}),
        (2, None, {}),
        (2, 1234, {"limit": 19}),
        (2, 1234, {"limit": None, "samples": [3, 5]}),
        (2, 1234, {"system_instruction": "Be exact."}),
    ],
)
def test_requests_are_built_again_where_they_could_differ(
    task: ConfigurableTask, shots: int, seed: int | None, arguments: dict[str, Any]
) -> None:
    with Unchanged().reused():
        first = asked(built(task, 2, 1234))
        again = asked(built(task, shots, seed, **arguments))
    assert again != first
    if seed is not None:
        assert again == asked(built(task, shots, seed, **arguments))


@pytest.mark.slow
def test_facts_about_the_machine_are_lm_evals_and_collected_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval import evaluator

    threads: list[str] = []

    def collecting(storage: dict[str, Any]) -> None:
        threads.append(threading.current_thread().name)
        add_env_info(storage)

    monkeypatch.setattr("lm_eval.loggers.utils.add_env_info", collecting)
    expected: dict[str, Any] = {}
    add_env_info(expected)
    unchanged = Unchanged()
    for _ in range(3):
        with unchanged.reused():
            found: dict[str, Any] = {"git_hash": None}
            evaluator.add_env_info(found)
        assert found.pop("git_hash") is None
        assert list(found) == list(expected)
        assert {**found, "pretty_env_info": ""} == {**expected, "pretty_env_info": ""}
    assert len(threads) == 1 and threads != [threading.current_thread().name]


@pytest.mark.slow
def test_the_commit_above_is_looked_up_for_every_variant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval import evaluator

    git = tmp_path / ".git"
    git.mkdir()
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    unchanged, found = Unchanged(), []
    for commit in ("one", "two"):
        (git / "HEAD").write_text("ref: main")
        (git / "main").write_text(commit)
        with unchanged.reused():
            storage: dict[str, Any] = {}
            evaluator.add_env_info(storage)
        found.append(storage["upper_git_hash"])
    assert found == ["one", "two"]


def test_tokens_are_those_of_the_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, made = RecipeLM(), []
    original = lm.tok_encode
    monkeypatch.setattr(lm, "tok_encode", lambda *a, **k: (made.append(1), original(*a, **k))[1])
    pairs = [("3 * 4 =", " 12"), ("3 * 4 = ", "12"), ("3 * 4", " = 12")]
    first = [lm.encode_pair(*pair) for pair in pairs]
    again = [lm.encode_pair(*pair) for pair in pairs]
    assert first == again == [super(RecipeLM, lm)._encode_pair(*pair) for pair in pairs]
    assert len(made) == 2 * len(pairs) * 2
    again[0][0].append(7)  # whoever changes them changes his own
    assert lm.encode_pair(*pairs[0]) == first[0]


def test_tokens_of_another_tokenizer_are_not_taken() -> None:
    kept = EncodedPairs()
    one, other = object(), object()
    assert kept.get(("a", "b"), (one, None), lambda *_: ([1], [2])) == ([1], [2])
    assert kept.get(("a", "b"), (one, None), lambda *_: ([3], [4])) == ([1], [2])
    assert kept.get(("a", "b"), (one, True), lambda *_: ([5], [6])) == ([5], [6])
    assert kept.get(("a", "b"), (other, True), lambda *_: ([7], [8])) == ([7], [8])
    assert kept.get(("a", "b"), (), lambda *_: ([9], [9])) == ([9], [9])


def test_tokens_are_kept_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness_ext.lm_eval_adapter.unchanged._KEPT_TOKENS", 5)
    kept, encoder = EncodedPairs(), (object(),)
    for text in "abc":
        kept.get((text, text), encoder, lambda *_: ([1], [2]))
    again = [kept.get((text, text), encoder, lambda *_: ([0], [0])) for text in "abc"]
    assert again == [([1], [2]), ([1], [2]), ([0], [0])]


@pytest.mark.parametrize("count", [1, 2, 3, 50, 333])
@pytest.mark.parametrize("iterations", [1, 999, 1000, 2500])
def test_the_error_of_a_perplexity_is_lm_evals_to_the_last_bit(
    count: int, iterations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")
    if iterations == 1:
        iterations = 2  # of one resample there is no deviation
    draw = random.Random(count)
    values = [-draw.expovariate(0.3) for _ in range(count)]
    expected = metrics.bootstrap_stderr(metrics.perplexity, values, iterations)

    def never(*_: Any) -> float:
        raise AssertionError("lm-eval's own was called")

    assert bootstrap.bootstrap_stderr(never, metrics.perplexity, values, iterations) == expected


def compensated(values: Sequence[float]) -> float:
    """`sum` of CPython 3.12 and later, number by number."""
    total, lost = 0.0, 0.0
    for value in values:
        added = total + value
        lost += (total - added) + value if abs(total) >= abs(value) else (value - added) + total
        total = added
    return total + lost


def test_both_ways_in_which_python_sums_are_known() -> None:
    rows = np.random.default_rng(0).standard_normal((40, 300)) * np.logspace(0, 9, 300)
    assert bootstrap._compensated_sums(rows).tolist() == [compensated(row) for row in rows.tolist()]
    plain = []
    for row in rows.tolist():
        total = 0.0
        for value in row:
            total += value
        plain.append(total)
    assert bootstrap._plain_sums(rows).tolist() == plain


@pytest.mark.parametrize(
    ("statistic", "values"),
    [
        (metrics.median, [1.0, 2.0]),
        (metrics.f1_score, [(1, 1), (0, 1)]),
        (metrics.perplexity, []),
        (metrics.perplexity, [-1, -2.0]),
        (metrics.perplexity, [np.float64(-1.0)]),
    ],
)
def test_other_statistics_stay_with_lm_eval(statistic: Any, values: list[Any]) -> None:
    assert bootstrap.bootstrap_stderr(lambda *given: given, statistic, values, 7) == (statistic, values, 7)


def test_an_unknown_way_of_summing_stays_with_lm_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "mean", lambda items: sum(items) / len(items) + 1e-9)
    assert bootstrap.bootstrap_stderr(lambda *_: -1.0, metrics.perplexity, [-1.0, -2.0], 10) == -1.0
