"""Policy files: what they may hold, and how mistakes are told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from leaderboard.gate.policy import Policy, PolicyError, load_policy, policy_from
from leaderboard.readers.plain_yaml import LARGEST_FILE

WHOLE = """
alpha: 0.01
margin: 0.03
critical_margin: 0.005
others: ignore
tasks:
  sums: {critical: true, floor: 0.4}
  products: {metric: "acc,none", margin: {base: 0.05, blessed: 0.01}, required: false}
  plain:
suites:
  arithmetic: {weights: {sums: 2, products: 1}, margin: 0.01, floor: 0.3}
"""


def loaded(tmp_path: Path, text: str) -> Policy:
    """The policy in a file of this text."""
    path = tmp_path / "gate.yaml"
    path.write_text(text, encoding="utf-8")
    return load_policy(path)


def test_a_whole_policy(tmp_path: Path) -> None:
    policy = loaded(tmp_path, WHOLE)
    sums, products, plain = policy.tasks["sums"], policy.tasks["products"], policy.tasks["plain"]
    assert (policy.default_margin(sums), policy.default_margin(plain), policy.own_margin(sums, "base")) == (
        0.005,
        0.03,
        None,
    )
    assert [policy.own_margin(products, role) for role in ("base", "blessed")] == [0.05, 0.01]
    assert (
        plain.required and not products.required and policy.own_margin(policy.suites["arithmetic"], "blessed") == 0.01
    )


def test_an_empty_policy_gates_everything_by_two_points_and_critical_tasks_by_one(tmp_path: Path) -> None:
    policy = loaded(tmp_path, "")
    assert (policy.alpha, policy.margin, policy.critical_margin, policy.others) == (0.05, 0.02, 0.01, "gate")
    assert policy.allow_unpaired is False


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    text = (
        "alhpa: 0.05\nmargin: -1\ntasks:\n  sums: {criticl: true, floor: high}\n  products: 3\n  odd: {margin: {bass:"
        " 0.1}}\nsuites:\n  s: {weights: {}}\n  t: {}\n  u: {weights: {sums: 0}}\n"
    )
    with pytest.raises(PolicyError) as caught:
        loaded(tmp_path, text)
    said = str(caught.value).splitlines()
    assert said[0].endswith("cannot be used:")
    for words in (
        "- alhpa: unknown key, did you mean 'alpha'?",
        "- margin: should be greater than 0 (found -1)",
        "- tasks.sums.criticl: unknown key, did you mean 'critical'?",
        "- tasks.sums.floor: should be a number",
        "- tasks.products: should be a mapping",
        "- tasks.odd.margin.bass: unknown key, did you mean 'base'?",
        "- suites.s.weights: mapping should have at least 1 item",
        "- suites.t.weights: is missing",
        "- suites.u.weights.sums: should be greater than 0",
    ):
        assert any(words in line for line in said), (words, said)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a list", "must hold a mapping"),
        ("tasks: [sums", "is not valid YAML: expected ',' or ']', but got '<stream end>' (line 1)"),
        ("tasks: {sums: 5}", "tasks.sums: should be a mapping, such as {margin: 0.01} (found 5)"),
        ("a: &x [1]\nb: *x\n", "aliases"),
        ("margin: 0.1\nmargin: 0.2\n", "'margin' is given twice (line 2)"),
        ("? [a, b]\n: 1\n", "a key must be plain text"),
        ("tasks: {sums: !!python/object/apply:os.system [ls]}", "is not valid YAML"),
        ("alpha: .nan", "alpha"),
        ("alpha: 0.7", "alpha: should be less than or equal to 0.2"),
        ("tasks: {sums: }\nsuites: {sums: {weights: {a: 1}}}", "a task has this name too"),
        ("[" * 3000, "is not valid YAML"),
        ("1: 2", "1: unknown key"),
        ("tasks: {sums: {margin: true}}", "tasks.sums.margin: should be a number (found true)"),
        ("tasks: {sums: {critical: 1}}", "tasks.sums.critical: should be true or false (found 1)"),
        ("margin: 0:30.5", "YAML reads 0:30.5 as the number"),
    ],
)
def test_what_is_no_policy(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(PolicyError) as caught:
        loaded(tmp_path, text)
    assert words in str(caught.value) and "gate.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("margin", "words"),
    [
        ("-1", "should be greater than 0 (found -1)"),
        ("wide", "should be a number, or a mapping with base and blessed"),
        ("{base: 0}", "should be greater than 0 (found 0)"),
    ],
)
def test_a_wrong_margin_is_one_mistake(tmp_path: Path, margin: str, words: str) -> None:
    with pytest.raises(PolicyError) as caught:
        loaded(tmp_path, f"tasks: {{sums: {{margin: {margin}}}}}")
    assert str(caught.value).count("\n  - ") == 1 and words in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="cannot be read: No such file"):
        load_policy(tmp_path / "none.yaml")
    with pytest.raises(PolicyError, match="cannot be read: Is a directory"):
        load_policy(tmp_path)
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(PolicyError, match="cannot be read: it is a pipe or a device"):
        load_policy(tmp_path / "pipe.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PolicyError, match="not valid YAML"):
        load_policy(tmp_path / "binary.yaml")
    (tmp_path / "large.yaml").write_text("#" * (LARGEST_FILE + 1))
    with pytest.raises(PolicyError, match="more than 1 MiB"):
        load_policy(tmp_path / "large.yaml")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["margin", "tasks", "weights", "base", "floor", "x", "critical"]) | st.text(max_size=3),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@pytest.mark.slow
@settings(max_examples=120, deadline=None)
@given(st.dictionaries(st.sampled_from([*Policy.model_fields, "x"]), VALUES, max_size=4))
def test_any_data_is_a_policy_or_a_clear_refusal(data: dict[str, object]) -> None:
    try:
        policy_from(data, "made up")
    except PolicyError as error:
        assert str(error).startswith("policy made up cannot be used:\n  - ")


@settings(max_examples=80, deadline=None)
@given(
    st.text(max_size=60)
    | st.integers(0, len(WHOLE) - 1).flatmap(
        lambda place: st.text(max_size=3).map(lambda text: WHOLE[:place] + text + WHOLE[place + 1 :])
    )
)
def test_any_text_is_a_policy_or_a_clear_refusal(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        load_policy(path)
    except PolicyError as error:
        assert str(error).startswith("policy ")


def test_the_written_out_policy_is_the_policy() -> None:
    policy = policy_from(yaml.safe_load(WHOLE), "x")
    assert Policy.model_validate_json(policy.model_dump_json()) == policy


@pytest.mark.parametrize("text", ["margin: 2", "critical_margin: 1", "overall: {margin: 2}"])
def test_two_points_are_not_two(tmp_path: Path, text: str) -> None:
    with pytest.raises(PolicyError, match="margin.*less than 1"):
        loaded(tmp_path, text)
