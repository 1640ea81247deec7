"""The papers' numbers: whole, in our units, beside ours only where everything agrees."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from leaderboard.board.board import board
from leaderboard.board.claims import recipe_for
from leaderboard.board.reported import Reported, as_printed, beside, published, published_folder
from leaderboard.errors import LeaderboardError
from leaderboard.ingest import ingest
from leaderboard.store.database import open_store
from leaderboard.terminal.table import render

IN_TOKENS = "log_loss a mean over the tokens of an answer (ours their sum)"


def test_the_known_headline_numbers() -> None:
    (phi,) = beside("microsoft/phi-2", "int_mult", "eigenprune", "acc")
    assert (phi.before, phi.after, phi.sure) == (0.1375, 0.975, "abstract")
    (gptj,) = beside("EleutherAI/gpt-j-6B", "counterfact", "laser-search", "acc")
    assert (gptj.before, gptj.after, gptj.setting) == (0.131, 0.240, f"U_in, layer 27, rho 0.01; {IN_TOKENS}")
    assert gptj.run == "laser:matrices=[up_proj],layers=[27],keep.rank_fraction=0.01"
    (loss,) = beside("/models/somewhere/gpt-j-6b".rpartition("/")[2], "bios_gender", "laser-search", "log_loss")
    assert (loss.before, loss.after, loss.higher_is_better) == (3.86, 4.20, False)


def test_as_many_as_the_tables_have() -> None:
    by_method = {
        name: sum(entry.method == name for entry in published())
        for name in (
            "LASER",
            "feature space",
            "SFSD, searched",
            "SFSD, perplexity search",
            "MoDeGPT",
            "SVD",
            "SVD-LLM with LoRA",
            "LEMS",
        )
    }
    assert by_method == {
        "LASER": 48,
        "feature space": 14,
        "SFSD, searched": 36,
        "SFSD, perplexity search": 24,
        "MoDeGPT": 19,
        "SVD": 3,
        "SVD-LLM with LoRA": 8,
        "LEMS": 18,
    }


@pytest.mark.parametrize(
    "changed",
    [
        ("other/phi-2b", "int_mult", "eigenprune", "acc"),
        ("microsoft/phi-2", "int_sum", "eigenprune", "acc"),
        ("microsoft/phi-2", "int_mult", "laser", "acc"),
        ("microsoft/phi-2", "int_mult", "eigenprune", "f1"),
    ],
)
def test_nothing_where_one_thing_differs(changed: tuple[str, str, str, str]) -> None:
    assert beside(*changed) == ()


def test_every_recipe_named_is_shipped() -> None:
    from harness_ext.recipe.recipe import shipped_names

    assert {recipe for entry in published() for recipe in entry.recipes} - set(shipped_names()) <= {
        "laser-search",
        "sfsd-surgical",
    }


def test_every_task_of_a_row_is_one_or_is_said_to_be_none() -> None:
    from harness_ext.lm_eval_adapter.task_index import task_manager

    known, groups = set(task_manager().all_tasks), set(task_manager().all_groups)
    asked = {task for entry in published() if entry.asked for task in entry.tasks}
    assert asked <= known
    # of a mean over tasks each is scored by itself, unless it is a group's own, of the tasks that the group has
    assert asked & groups == {entry.task for entry in published() if entry.pooled} == {"mmlu_math"}
    assert all(task in known for entry in published() for task, _ in entry.members)
    assert {entry.task for entry in published() if not entry.asked} & known <= groups


def test_a_pooled_mean_has_the_tasks_of_its_group() -> None:
    from harness_ext.lm_eval_adapter.task_index import task_manager

    index = task_manager().task_index
    for entry in published():
        if entry.pooled:
            group = yaml.safe_load(Path(index[entry.task].yaml_path).read_text())
            assert [(part["task"], "acc") for part in group["task"]] == list(entry.members)
            assert group["aggregate_metric_list"] == [{"metric": "acc", "weight_by_size": True}]


def test_what_a_method_lacks_is_told_of_methods_without_a_recipe() -> None:
    for path in published_folder().glob("*.yaml"):
        table = yaml.safe_load(path.read_text())
        assert all(table["recipes"][method] == [] for method in table.get("lacking", {}))
        assert set(table.get("pooled", ())) <= set(table.get("means", {}))
    assert {entry.method for entry in published() if entry.lacking} == {"SFSD, perplexity search"}


def test_scores_are_printed_as_the_papers_have_them() -> None:
    """Every digit of the files, in our units, and never an exponent."""
    for path in published_folder().glob("*.yaml"):
        table = yaml.safe_load(path.read_text())
        units = {name: 100 if metric.get("unit") else 1 for name, metric in table.get("metrics", {}).items()}
        written = [
            f"{Decimal(str(before)) / unit:f} -> {Decimal(str(after)) / unit:f}"
            for row in table.get("rows", ())
            for name, unit in units.items()
            if (pair := dict(zip(table["columns"], row, strict=True))[name]) is not None
            for before, after in [pair]
        ]
        entries = [entry for entry in published() if entry.identity.startswith(f"{path.stem}/")]
        assert [re.sub(r"(\.\d*?)0+\b", r"\1", text).replace(". ", " ").rstrip(".") for text in written] == [
            entry.change() for entry in entries
        ]
    assert [as_printed(score) for score in (52489.0, 105474, 0.6078, 471.83, 7.0)] == [
        *("52489", "105474", "0.6078", "471.83", "7"),
    ]


def test_rows_that_differ_are_measured_by_different_recipes_or_it_is_said() -> None:
    """Two budgets, settings or methods of one table, model, task and metric never share a run without a word."""
    shared: dict[tuple[object, ...], list[Reported]] = {}
    for entry in published():
        if (recipe := recipe_for(entry)) is not None:
            table = entry.identity.partition("/")[0]
            shared.setdefault((table, entry.model, entry.task, entry.metric, recipe), []).append(entry)
    differing = [
        entry.identity
        for entries in shared.values()
        if len({(entry.method, entry.kept, entry.setting) for entry in entries}) > 1
        for entry in entries
        if "one recipe computes this and" not in entry.setting
    ]
    assert differing == []


def test_a_row_with_a_budget_names_the_recipe_that_has_it() -> None:
    """SFSD's shares are of the whole model, or what a search came to: their runs are tested below."""
    rows = [entry for entry in published() if entry.kept is not None and recipe_for(entry) is not None]
    assert all(entry.run for entry in rows)
    others = [entry for entry in rows if not entry.identity.startswith("sfsd")]
    wrong = [
        entry.identity for entry in others if not re.search(rf"fraction(=|: ){entry.kept:g}([,}}]|$)", str(entry.run))
    ]
    assert others and wrong == []


def test_a_share_of_the_whole_model_is_turned_into_one_of_its_matrices() -> None:
    """LLaMA-7B: a recipe's share is of 6.476 of the 6.738 billion parameters; the others stay."""
    rows = [entry for entry in published() if entry.identity.startswith("sfsd/") and entry.run]
    assert len(rows) == 28
    for entry in rows:
        share = float(str(entry.run).rpartition("param_fraction")[2].strip("=: }"))
        left = 6.738 - 6.476 + 6.476 * share
        assert entry.setting.startswith(f"{left:.1f} of 6.7 billion")
        assert entry.kept == pytest.approx(left / 6.738, abs=0.01)


def test_a_search_goes_as_far_as_its_row() -> None:
    rows = [entry for entry in published() if entry.method == "SFSD, searched"]
    assert {(entry.run, entry.setting) for entry in rows} == {
        (
            f"sfsd-surgical:layers=[-{blocks}:]",
            f"after {7 * blocks} linear layers, the last {blocks} blocks; ours with the bias that keeps the mean, which"
            " is zero in the released code",
        )
        for blocks in (5, 10, 20)
    }


def test_several_tables_say_the_same_of_one_cell() -> None:
    """LLaMA-7B at 80 % of the parameters stands in the ablation as in the table it is from."""
    scores = {
        entry.after
        for entry in published()
        if entry.task == "wikitext2_2048"
        and entry.kept == 0.8
        and entry.recipes == ("svd-llm",)
        and "V2" in entry.paper
    }
    assert scores == {7.94}


def test_printed_means_are_those_of_their_rows_or_it_is_said() -> None:
    means = [entry for entry in published() if entry.identity.startswith("sfsd/") and entry.task == "sfsd_suite"]
    assert len(means) == 6
    for mean in means:
        rows = [
            entry.after
            for entry in published()
            if (entry.method, entry.kept) == (mean.method, mean.kept)
            and entry.paper == mean.paper
            and not entry.members
        ]
        found = 100 * sum(rows) / 6
        assert len(rows) == 6
        said = mean.setting.endswith(f"of the six it is {int(100 * found + 1e-6) / 100}")
        assert said or found == pytest.approx(100 * mean.after, abs=0.006)


@pytest.mark.slow
def test_it_stands_beside_the_cell_and_in_no_verdict(made: Any, kit: Any, database: Path) -> None:
    base, edited = kit.pair(20, 5, lost=1)
    made.run("baseline", {"int_mult": base}, model="microsoft/phi-2")
    made.run("eigenprune", {"int_mult": edited}, model="microsoft/phi-2")
    ingest([made.root], database)
    with open_store(database) as store:
        cells = {cell.recipe: cell for cell in board(store)}
    assert [entry.after for entry in cells["eigenprune"].reported] == [0.975] and cells["baseline"].reported == ()
    assert "reported by arXiv:2404.03147 (in the paper's abstract)" in " ".join(
        render(list(cells.values()), width=120).split()
    )


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("sure", "certain", "sure"),
        ("rows", [["LASER", "GPT-J", "t", [1, 2]]], "4 values for 7 columns"),
        ("rows", [["LASER", "GPT-J", "t", [1, 2], None, {"ranks": 8}, None]], "setting must be text, not {'ranks': 8}"),
        ("columns", ["model"], "columns must be"),
        ("extra", 1, "extra"),
    ],
)
def test_a_file_with_a_mistake_is_named(tmp_path: Path, key: str, value: object, message: str) -> None:
    data = yaml.safe_load((published_folder() / "laser.yaml").read_text())
    data[key] = value
    (tmp_path / "laser.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(LeaderboardError, match=r"laser\.yaml cannot be read") as caught:
        published(tmp_path)
    assert message in str(caught.value)


def test_a_log_loss_over_several_tokens_is_said_to_be_another() -> None:
    for entry in published():
        if entry.paper.startswith("LASER") and entry.metric == "log_loss":
            of_one_token = entry.task in {"fever_claims", "bios_gender", "bios_profession", "truthfulqa_claims"}
            assert entry.setting.endswith(IN_TOKENS) is not of_one_token
