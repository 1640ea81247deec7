"""The recipe schema: what is accepted, and what a mistake is told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from harness_ext.errors import RecipeError
from harness_ext.methods.budget import Keep
from harness_ext.recipe.recipe import Recipe, parse_recipe, parse_recipes, recipe_from, shipped_names


@pytest.mark.parametrize("name", shipped_names())
def test_every_shipped_recipe_parses_and_is_named_as_its_file(name: str) -> None:
    recipe = parse_recipe(name)
    assert recipe.name == name
    assert recipe.summary.endswith(".")


@pytest.mark.parametrize("name", shipped_names())
def test_a_recipe_printed_in_full_is_the_same_recipe(name: str) -> None:
    recipe = parse_recipe(name)
    again = recipe_from(recipe.resolved(), origin="printed")
    assert again.recipe_id == recipe.recipe_id


def test_changes_reach_nested_keys_and_change_the_identity() -> None:
    recipe = parse_recipe("eigenprune:fraction=0.1,calibration.samples=80,matrices=[k_proj,q_proj]")
    (step,) = recipe.steps
    assert step.parameters == {"fraction": 0.1, "share_of": "each"}
    assert step.calibration.samples == 80
    assert step.matrices == ("k_proj", "q_proj")
    assert recipe.recipe_id != parse_recipe("eigenprune").recipe_id


def test_the_identity_ignores_names_and_spelled_out_defaults() -> None:
    assert parse_recipe("laser").recipe_id == parse_recipe("laser:seed=0,keep.rank_fraction=0.01").recipe_id


def test_a_budget_on_the_command_line_replaces_the_files() -> None:
    (step,) = parse_recipe("laser:keep.rank=3").steps
    assert step.keep == Keep(rank=3)


def test_an_alignment_goes_with_either_budget() -> None:
    def keep(changes: str) -> dict:
        return parse_recipe(f"svd:{changes}").resolved()["steps"][0]["keep"]

    plain = parse_recipe("svd").resolved()["steps"][0]["keep"]
    assert keep("keep.align=64") == {**plain, "align": 64}
    assert keep("keep.align=8,keep.param_fraction=0.8") == {"param_fraction": 0.8, "align": 8}
    assert keep("keep.param_fraction=0.8,keep.align=auto") == {"param_fraction": 0.8, "align": "auto"}
    assert parse_recipe("svd").recipe_id != parse_recipe("svd:keep.align=64").recipe_id
    with pytest.raises(RecipeError, match=r"keep\.align.*found 0"):
        parse_recipe("svd:keep.align=0")


def test_a_file_is_read_and_its_changes_applied(tmp_path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: late\nsteps:\n- {method: truncate_svd, matrices: up_proj, layers: ['-8:'], keep: {rank: 2}}\n- {method:"
        " identity, matrices: [attn]}\n"
    )
    recipe = parse_recipe(f"{path}:steps.0.keep.rank=4")
    assert recipe.label == "late:steps.0.keep.rank=4"
    assert recipe.steps[0].keep.rank == 4
    assert recipe.steps[1].method == "identity"


@pytest.mark.parametrize(
    ("layers", "read"),
    [("[-2:]", ["-2:"]), ("['-2:']", ["-2:"]), ("[:3, 5]", [":3", 5]), ("[1:2,-1]", ["1:2", -1]), ("[0]", [0])],
)
def test_ranges_of_layers_need_no_quotes(layers: str, read: list[int | str]) -> None:
    assert list(parse_recipe(f"laser:layers={layers}").steps[0].layers) == read


def test_a_list_whose_entry_is_wrong_is_not_called_too_short() -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe("laser-search:fractions=[1.5]")
    assert (
        "steps.0.fractions.0: input should be less than or equal to 1 (found 1.5)" in str(caught.value)
        and str(caught.value).count("\n") == 1
    )
    with pytest.raises(RecipeError, match="steps.0.fractions: .*at least 1 item"):
        parse_recipe("laser-search:fractions=[]")


@pytest.mark.parametrize("specification", ["sfsd-surgical:growth=.inf", "noise:relative_error=.nan"])
def test_numbers_are_finite(specification: str) -> None:
    with pytest.raises(RecipeError, match="input should be a finite number"):
        parse_recipe(specification)


def test_the_mistakes_of_several_recipes_are_told_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipes(["laser-search:fractions=[1.5]", "svd", "svd:keep.rank=-3", "lasre"])
    assert all(word in str(caught.value) for word in ("fractions.0", "keep.rank: ", "did you mean 'laser'"))


def test_all_mistakes_are_reported_together_with_the_nearest_names() -> None:
    data = {
        "name": "bad",
        "colour": "red",
        "steps": [
            {"method": "truncate_svd", "matrices": [], "keep": {"rank": 1, "energy": 0.5}, "layer": [1]},
            {"method": "truncate_sdv", "matrices": ["all"]},
            {"method": "eigenprune", "matrices": ["all"], "fraction": 1.5, "calibration": {"sample": 3}},
            {"method": "truncate_svd", "matrices": ["all"]},
            "laser",
            {"method": "svd", "matrices": ["all"]},
            {"method": "truncate_svd", "matrices": ["all"], "layers": ["2:5", -1, "2:x"], "keep": {"rank": 1}},
        ],
    }
    with pytest.raises(RecipeError) as caught:
        recipe_from(data, origin="bad.yaml")
    text = str(caught.value)
    for expected in (
        "bad.yaml",
        "colour: unknown key",
        "steps.0.matrices",
        "exactly one of rank, rank_fraction, energy, param_fraction, ranks; found energy and rank",
        "steps.0.layer: unknown key, did you mean 'layers'?",
        "steps.1.method: unknown method 'truncate_sdv', did you mean 'truncate_svd'?",
        "steps.2.fraction",
        "steps.2.calibration.sample: unknown key, did you mean 'samples'?",
        "steps.3.keep: is missing",
        "steps.4: a step is a mapping",
        "steps.5.method: unknown method 'svd', did you mean 'truncate_svd'?",
        "steps.6.layers: '2:x' is not a number, a negative number or a range such as '-8:' or '2:5'",
    ):
        assert expected in text


@pytest.mark.parametrize(
    ("specification", "expected"),
    [
        ("lasre", "did you mean 'laser'?"),
        ("laser:layrs=[1]", "unknown key 'layrs', did you mean 'layers'?"),
        ("laser:keep.rank=1,keep.energy=0.5", "found energy and rank"),
        ("laser:keep.rank=two", "steps.0.keep.rank"),
        ("laser:layers", "'layers' is not key=value"),
        ("laser:layers=1,layers=2", "layers is given twice"),
        ("laser:steps.3.layers=1", "steps.3.layers names no step"),
        ("laser:layers=[1", "not valid YAML"),
        ("laser:matrices.x=1", "goes through 'matrices'"),
        ("absent.yaml", "absent.yaml"),
    ],
)
def test_a_wrong_specification_says_what_is_wrong(specification: str, expected: str) -> None:
    with pytest.raises(RecipeError, match=".*") as caught:
        parse_recipe(specification)
    assert expected in str(caught.value)


@pytest.mark.parametrize("text", ["- a list", "steps: !!python/object/apply:os.system [true]", "name: [", "\x00"])
def test_a_file_that_is_no_recipe_is_refused_and_nothing_in_it_runs(tmp_path, text: str) -> None:
    path = tmp_path / "evil.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError):
        parse_recipe(str(path))


@pytest.mark.parametrize(
    "written", ["*.q_proj.weight", "[*.q_proj.weight]", '["*.q_proj.weight"]', "[ *.q_proj.weight ]"]
)
def test_a_glob_needs_no_quotes(written: str) -> None:
    assert parse_recipe(f"svd:matrices={written}").steps[0].matrices == ("*.q_proj.weight",)


# Names that mean something


STEP = {"method": "truncate_svd", "matrices": ["up_proj"], "keep": {"rank": 4}}


@pytest.mark.parametrize("name", ["baseline", "Baseline", "BASELINE", "unedited", "plain", "lm_eval", "lm-eval"])
def test_a_recipe_with_steps_cannot_be_called_the_unedited_model(name: str) -> None:
    words = f"'{name}' means the model as it is, and this recipe has steps: give it another name"
    with pytest.raises(RecipeError, match=words):
        recipe_from({"name": name, "steps": [STEP]}, origin="mine.yaml")
    with pytest.raises(ValueError, match=words):
        Recipe(name=name, label="mine", summary="", source="", steps=parse_recipe("laser").steps)


@pytest.mark.parametrize("steps", [[STEP], [{"method": "identity", "matrices": ["all"]}, STEP]])
def test_identity_changes_nothing(steps: list[dict]) -> None:
    with pytest.raises(RecipeError, match="'identity' means a recipe that changes nothing, and this one's steps do"):
        recipe_from({"name": "identity", "steps": steps}, origin="mine.yaml")


def test_settings_cannot_make_an_edit_of_a_recipe_that_makes_none() -> None:
    with pytest.raises(RecipeError, match="it has no steps, so there is nothing to change"):
        parse_recipe("baseline:steps.0.method=truncate_svd")
    with pytest.raises(RecipeError, match="it has no steps, so there is nothing to change"):
        parse_recipe("baseline:keep.rank=3")
    with pytest.raises(RecipeError, match="'identity' means a recipe that changes nothing"):
        parse_recipe("identity:steps.0.method=truncate_svd,keep.rank=3")


def test_the_baseline_is_told_by_its_name_and_by_its_steps() -> None:
    baseline = parse_recipe("baseline")
    assert baseline.is_baseline
    assert not baseline.model_copy(update={"steps": parse_recipe("laser").steps}).is_baseline
    found_nothing = recipe_from({"name": "laser-search-found", "steps": []}, origin="found.yaml")
    assert not found_nothing.is_baseline and found_nothing.recipe_id == baseline.recipe_id


def test_changes_and_copies_of_a_recipe_keep_what_it_was_chosen_on(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    chosen_on, wordings = ["a" * 64, "b" * 64], {"t": ["a" * 16, f"{'a' * 16} {'b' * 16}", ""]}
    path.write_text(yaml.safe_dump({**parse_recipe("laser").resolved(), "chosen_on": chosen_on, "wordings": wordings}))
    changed = parse_recipe(f"{path}:keep.rank=3")
    assert changed.chosen_on == tuple(chosen_on) and changed.recipe_id == parse_recipe("laser:keep.rank=3").recipe_id
    assert recipe_from(changed.resolved(), origin="again").chosen_on == changed.chosen_on
    assert changed.for_tasks(lambda split: ["t"]).chosen_on == changed.chosen_on
    assert changed.resolved()["wordings"] == recipe_from(changed.resolved(), origin="again").resolved()["wordings"]
    assert changed.resolved()["wordings"] == wordings


# Files and settings from anywhere

HEAD = "name: x\nsteps:\n  - method: truncate_svd\n    matrices: [up_proj]\n    keep: "


def refusal(specification: str) -> str:
    """What is said of a recipe that cannot be used."""
    with pytest.raises(RecipeError) as caught:
        parse_recipe(specification)
    assert len(str(caught.value)) < 3_000
    return str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"{HEAD}{{rank: 4, rank: 2}}", "mine.yaml is not valid YAML: 'rank' is given twice (line 5)"),
        (f"{HEAD}{{rank: true}}", "steps.0.keep.rank: should be a number (found true)"),
        (f"{HEAD}{{rank: 4}}\n    per_head: 1", "steps.0.per_head: should be true or false (found 1)"),
        (f"{HEAD}{{rank: 4}}\n    layers: [true]", "steps.0.layers.0: should be a number (found true)"),
        (f"{HEAD}{{rank: 4}}\n    layers: false", "steps.0.layers: should be a number (found false)"),
        (f"{HEAD}{{rank: 4}}\n    layers: 1:30", "YAML reads 1:30 as the number 90"),
        (f"{HEAD}{{ranks: {{a: true}}}}", "steps.0.keep.ranks.a: should be a number (found true)"),
        (f"{HEAD}{{rank: {'9' * 5000}}}", "a number of 5,000 digits is too long (line 5)"),
        (f"{HEAD}{{rank: 010}}", "YAML reads 010 as the number 8"),
        (f"{HEAD}{{energy: .nan}}", "steps.0.keep.energy: "),
        (f"{HEAD}{{rank: '{'9' * 5000}'}}", "steps.0.keep.rank: "),
        (f"{HEAD}{{rank: {'x' * 5000}}}", "steps.0.keep.rank: "),
        (f"{HEAD}{{{'x' * 900}: 1}}", "unknown key"),
        ("name: 2026-01-01\nsteps: []", "YAML reads 2026-01-01 as a date"),
        (f"name: {'x' * 1000}\nsteps: []", "name: text should have at most 200 characters"),
        (f"name: x\nsummary: {'x' * 100_000}\nsteps: []", "summary: text should have at most"),
        (f"name: x\nsummary: {'x' * 1_000_000}\nsteps: []", "a text of 1,000,000 characters is too long (line 2)"),
        (
            "name: x\nsteps:\n" + "- {method: identity, matrices: [all]}\n" * 10_000,
            "steps: list should have at most 5000",
        ),
        (
            f"name: x\nsteps: [{{method: identity, matrices: [all], layers: [{'0,' * 100_001}]}}]",
            "steps.0.layers: list should have at most 100000",
        ),
        ("name: x\nsteps:\n" + "- {method: nothing}\n" * 100, "and 80 more"),
        ("name: x\nsteps: &a [*a]", "aliases"),
        ("name: x\nsteps: 5", "steps: "),
        ("", "mine.yaml is empty: it must hold a mapping with name and steps"),
    ],
)
def test_a_recipe_file_is_plain_data(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    said = refusal(str(tmp_path / "mine.yaml"))
    assert words in said and "mine.yaml" in said


def test_a_recipe_from_a_pipe_a_folder_or_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    for name, words in (("pipe", "it is a pipe or a device"), ("folder", "Is a directory"), ("loop", "symbolic links")):
        assert f"{name}.yaml cannot be read: " in (said := refusal(f"{tmp_path / name}.yaml")) and words in said
    assert "cannot be read: " in refusal("~nobody-of-this-name/x.yaml")
    assert "cannot be read: " in refusal("a\0b.yaml")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ("keep.rank=true", "steps.0.keep.rank: should be a number (found true)"),
        ("per_head=0", "steps.0.per_head: should be true or false (found 0)"),
        (f"keep.rank={'9' * 5000}", "a number of 5,000 digits is too long"),
        ("seed=010", "YAML reads 010 as the number 8"),
        ("seed=2026-01-01", "as a date"),
        ("seed=1:30.5", "as the number"),
        (f"layers={'[' * 5000}", "nested more than 50 deep"),
        ("keep={rank: 1, rank: 2}", "'rank' is given twice"),
        ("keep={rank: 1},keep.energy=0.5", "keep.energy is a part of keep, and both are given"),
        ("steps.²=1", "names no step"),
        (f"steps.{'9' * 5000}.seed=1", "names no step"),
        (f"{'x' * 5000}=1", "unknown key"),
        (f"matrices{'.x' * 5000}=1", "goes through 'matrices'"),
        ("layers=&a [1]", ""),
    ],
)
def test_settings_on_the_command_line_are_plain_data(changes: str, words: str) -> None:
    if words:
        assert words in refusal(f"laser:{changes}")
    else:
        parse_recipe(f"laser:{changes}")


def test_settings_of_a_file_whose_steps_are_no_list(tmp_path: Path) -> None:
    such = "steps: should be a list, such as [{method: VALUE}] (found"
    told = {"5": f"{such} 5)", "abc": "steps: should be a list: write [{method: abc}]", "{a: b}": f"{such} a mapping)"}
    for number, (steps, words) in enumerate(told.items()):
        path = tmp_path / f"{number}.yaml"
        path.write_text(f"name: x\nsteps: {steps}")
        assert words in refusal(f"{path}:seed=1")


def test_changes_of_a_shipped_recipe_are_not_kept() -> None:
    for _ in range(2):
        changed = parse_recipe("svd:keep.rank_fraction=0.125,layers=[0]")
        assert changed.steps[0].keep.rank_fraction == 0.125
        assert parse_recipe("svd").steps[0].keep != changed.steps[0].keep
        assert parse_recipe("svd").recipe_id != changed.recipe_id
