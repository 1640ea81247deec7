"""The smaller form of claims: every one with a recipe has one, offline, on the embedded model."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from harness_ext.cli.smaller_claims import (
    MADE_IN_CODE,
    TRAINING_ITEMS,
    _scaled,
    depth_line,
    sample_for,
    smaller_recipe,
    smaller_sentences,
    standing_in,
)
from harness_ext.errors import UserError
from leaderboard.board.cell import Cell
from leaderboard.board.claims import of_identity, recipe_for
from leaderboard.board.reported import published
from tests.harness_ext.cli.calling import called

call = partial(called, "claims")
ROWS = {entry.identity.partition("/")[0]: entry.identity for entry in reversed(published()) if recipe_for(entry)}
"""The first row of every table that has a recipe."""


def test_every_task_that_is_asked_has_a_sample() -> None:
    for task in {entry.task for entry in published() if entry.asked}:
        assert sample_for(task) in {*MADE_IN_CODE, *TRAINING_ITEMS}
    assert standing_in("int_mult") == ""
    assert standing_in("piqa") == (
        "task piqa is stood in for by audit_commonsense, a shipped sample of choices of everyday sense"
    )
    with pytest.raises(UserError, match=r"no shipped sample stands in for no_such_task"):
        sample_for("no_such_task")


def test_what_learns_from_the_task_learns_from_its_sample() -> None:
    def asked(identity: str) -> str:
        entry = of_identity(identity)[0]
        return smaller_recipe(str(recipe_for(entry)), entry, "demo")

    learned = "calibration.task=audit_text,calibration.samples=32"
    assert asked("svd-llm/llama-7b/wikitext2_2048/fwsvd/80") == f"fwsvd:keep.param_fraction=0.8,{learned}"
    assert asked("svd-llm-v2/llama-7b/wikitext2_2048/svd-llm-v2") == f"svd-llm-v2:param_fraction=0.8,{learned}"
    assert asked("lowrankarena/llama-7b/wikitext2_arena/zs-svd") == (
        f"zero-sum:param_fraction=0.8,ridge=0.0001,{learned}"
    )
    assert asked("lowrankarena/llama-7b/wikitext2_arena/aa-svd") == (
        f"aa-svd:keep.param_fraction=0.8,heal.loss=blocks,heal.steps=200,heal.weight_decay=0.01,{learned},"
        "heal.task=audit_text,heal.documents=32,heal.batch_size=4"
    )
    assert asked("svd-llm/llama-7b/wikitext2_2048/svd-llm-with-lora/80") == (
        f"svd-llm-lora:keep.param_fraction=0.8,{learned},heal.task=audit_text,heal.documents=32"
    )
    assert asked("sfsd/llama-7b/boolq/feature-space/80") == (
        "sfsd-released:keep.param_fraction=0.79,calibration.task=audit_commonsense,calibration.samples=48"
    )
    # the sample has a training split, and need not be searched on what is scored
    assert asked("laser-text/gpt-j/counterfact") == (
        "laser-compose:calibration.task=audit_facts,calibration.samples=96"
    )
    assert asked("svd-llm/llama-7b/wikitext2_2048/svd/80") == "svd:keep={param_fraction: 0.8}"
    assert asked("eigenpruning/phi-2/int_mult") == "eigenprune-released:calibration.samples=320"
    assert asked("lowrankarena-dense/llama-7b/wikitext2_arena") == "baseline"


@pytest.mark.parametrize(
    ("part", "layers", "fewer", "scaled"),
    [
        ("27", 28, 2, "1"),
        ("0", 28, 2, "0"),
        ("-1", 32, 30, "29"),
        ("-20:", 32, 2, "1:2"),
        ("-5:", 32, 2, "1:2"),
        ("-20:", 32, 30, "11:30"),
        (":8", 32, 16, "0:4"),
        ("8:16", 32, 4, "1:2"),
        ("-1:", 32, 1, "0:1"),
        (":", 32, 7, "0:7"),
    ],
)
def test_layers_and_ranges_keep_their_share_of_the_depth(part: str, layers: int, fewer: int, scaled: str) -> None:
    assert _scaled(part, layers, fewer) == scaled
    assert _scaled(_scaled(part, layers, layers), layers, fewer) == scaled


def test_every_row_that_names_layers_says_of_how_many_and_tells_what_stands_in() -> None:
    rows = [entry for entry in published() if "layers=" in str(recipe_for(entry))]
    assert len(rows) > 80 and all(entry.layers for entry in rows)
    for entry in rows:
        assert f" of {entry.layers} layers is stood in for by layers=[" in depth_line(entry, "demo")
    (deepest,) = of_identity("sfsd-surgical/mistral-7b/boolq/sfsd-searched/94")
    assert depth_line(deepest, "demo") == (
        "layers=[-20:] of 32 layers is stood in for by layers=[1:2] of 2, the nearest depth; the smaller form of"
        " sfsd-surgical/mistral-7b/boolq/sfsd-searched/99 and sfsd-surgical/mistral-7b/boolq/sfsd-searched/97 is the"
        " same"
    )
    assert depth_line(of_identity("svd-llm/llama-7b/wikitext2_2048/svd/80")[0], "demo") == ""
    assert depth_line(deepest._replace(layers=2), "demo") == ""


@pytest.mark.slow
def test_samples_have_the_training_items_that_recipes_are_told() -> None:
    from harness_ext.task_index import task_manager

    tasks = task_manager().load(list(TRAINING_ITEMS))["tasks"]
    assert {name: len(list(task.training_docs())) for name, task in tasks.items()} == TRAINING_ITEMS


@pytest.mark.slow
@pytest.mark.parametrize(
    "identity",
    [
        "svd-llm/llama-7b/wikitext2_2048/svd-llm-whitening/80",
        "svd-llm/llama-7b/wikitext2_2048/svd-llm-with-lora/80",
        "lowrankarena-dense/llama-7b/boolq",
        *(
            pytest.param(identity, marks=pytest.mark.long)
            for identity in [*ROWS.values(), "laser/roberta/bios_gender", "sfsd/llama-7b/piqa/feature-space/80"]
        ),
    ],
)
def test_a_row_of_every_table_has_a_smaller_form(
    identity: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "run", identity, "--smaller", "--limit", "12", "--device", "cpu") == 0
    shown = capsys.readouterr().out
    assert standing_in(of_identity(identity)[0].task) in shown
    last = shown.strip().splitlines()[-1]
    assert last.endswith("so the claim is as open as before")
    if recipe_for(of_identity(identity)[0]) != "baseline":
        assert "measured" in last
        # a search that keeps no edit has no budget that a control could take
        assert "random-subspace" in last or ", +0.0000 [" in last


def cell(metric: str, **more: Any) -> Cell:
    about = {"improvement": 0.1, "delta": 0.1, "low": 0.05, "high": 0.15} | more
    return Cell("demo", "laser", "1", "audit_facts", metric, "none", 20, 0.4, 0.5, "better", **about)


@pytest.mark.parametrize(
    ("beside", "said"),
    [
        ("log_loss", "log_loss: laser on 20 documents: reported "),
        (
            "gold_logprob",
            "gold_logprob, where the claim has log_loss (reported 9.07 -> 7.69, +1.3800), of which it is the negative:"
            " measured 0.4 -> 0.5, +0.1000 ",
        ),
        ("acc_norm", "log_loss: nothing was measured of it, since audit_facts has no such metric"),
    ],
)
def test_every_metric_of_a_claim_is_told(beside: str, said: str) -> None:
    rows = of_identity("laser/roberta/wikidata_qa")
    assert [row.metric for row in rows] == ["acc", "log_loss"]
    told = list(smaller_sentences(rows, [cell("acc", further=(cell(beside),))]))
    assert len(told) == 2 and any(line.startswith("acc: laser on 20 documents: reported 0.28 -> ") for line in told)
    assert any(line.startswith(said) for line in told) and told[-1].endswith("so the claim is as open as before")
    other, first = smaller_sentences(rows, [cell("log_odds")])
    assert first.startswith("log_odds, where the claim has acc: measured ") and other.startswith("log_loss: nothing")


def test_a_further_metric_has_its_control() -> None:
    pair = cell("acc", control="noise", baseline_run="2")
    control = replace(cell("acc", control="noise", further=(replace(cell("gold_logprob"), score=0.45),)), run_id="2")
    edited = cell("acc", further=(cell("gold_logprob"),), against_controls=(pair,))
    *_, said = smaller_sentences(of_identity("laser/roberta/wikidata_qa"), [edited, control])
    against = "its noise: +0.0500, and the edit against it +0.0500 (not judged: only acc is judged against controls)"
    assert said.startswith("gold_logprob") and against in said
