"""What is said of a recipe that is nearly right: the key at its level, the flag that names one recipe."""

from __future__ import annotations

import re

import pytest

from harness_ext.editing.controls import check_control
from harness_ext.errors import RecipeError, UserError, closest
from harness_ext.recipe.mistakes import key_paths
from harness_ext.recipe.other_names import OTHER_NAMES
from harness_ext.recipe.recipe import parse_recipe, refuse_several, shipped_names
from harness_ext.recipe.schema import known_methods, step_model
from harness_ext.recipe.settings import NESTED, Heal


def refused(specification: str) -> str:
    with pytest.raises(RecipeError) as told:
        parse_recipe(specification)
    return str(told.value)


@pytest.mark.parametrize(
    ("specification", "key"),
    [
        ("laser:rank=5", "keep.rank"),
        ("laser:fraction=0.1", "keep.rank_fraction"),
        ("laser:rank_fraction=0.1", "keep.rank_fraction"),
        ("laser:energy=0.5", "keep.energy"),
        ("laser:enrgy=0.5", "keep.energy"),
        ("laser:rnk=3", "keep.rank"),
        ("laser:Keep.rank=4", "keep.rank"),
        ("laser:keep.fraction=0.1", "rank_fraction"),
        ("laser:steps.0.rank=4", "keep.rank"),
        ("svd:param_fraction=0.3", "keep.param_fraction"),
        ("svd-llm:sample=3", "calibration.samples"),
        ("svd-llm:keep.samples=3", "calibration.samples"),
        ("svd-llm:batch-size=3", "calibration.batch_size"),
        ("eigenprune:samples=20", "calibration.samples"),
        ("eigenprune:task=piqa", "calibration.task"),
        ("eigenprune:fractoin=0.3", "fraction"),
        ("eigenprune-greedy:rounds=3", "search.rounds"),
        ("basis-selection:learning_rate=1", "training.learning_rate"),
        ("laser-search:fraction=0.3", "fractions"),
        ("laser-search:samples=10", "calibration.samples"),
        ("laser:layer=3", "layers"),
    ],
)
def test_an_unknown_key_is_told_where_it_lies(specification: str, key: str) -> None:
    assert f"did you mean {key!r}?" in refused(specification)


@pytest.mark.parametrize("name", shipped_names())
def test_every_nested_key_of_a_recipe_is_found_from_its_last_part(name: str) -> None:
    """And at a wrong level it is never called something else. What heals is a key of the recipe, not of a step."""
    *edited, last_step = parse_recipe(name).steps or [None]
    if last_step is not None and last_step.healing is not None:
        of_steps = {path.rpartition(".")[2] for step in edited for path in key_paths(step_model(step.method))}
        for key in Heal.model_fields.keys() - of_steps:
            assert f"did you mean 'heal.{key}'?" in refused(f"{name}:{key}=1"), key
    for step in parse_recipe(name).steps:
        if step.healing is not None:
            continue
        paths = key_paths(step_model(step.method))
        tops = {path for path in paths if "." not in path}
        for path in paths:
            head, _, last = path.rpartition(".")
            if head and last not in tops:
                assert f"did you mean {path!r}?" in refused(f"{name}:{last}=1"), path


def test_a_key_of_what_the_method_does_not_take_says_so() -> None:
    said = "unknown key 'samples', which belongs to `calibration`, and this method takes no `calibration`"
    assert said in refused("laser:samples=3")
    assert "belongs to `keep`" in refused("eigenprune:calibration.rank=3")
    assert "known: decomposition" in refused("svd:k=4")


def test_a_field_that_holds_keys_says_which() -> None:
    said = refused("laser:keep=5")
    assert "steps.0.keep: holds keys of its own, rank, rank_fraction" in said and "write keep.KEY=VALUE" in said


def test_the_fields_that_hold_keys_are_those_of_the_schema() -> None:
    found = {
        name: own.annotation
        for method in known_methods()
        for name, own in step_model(method).model_fields.items()
        if name in NESTED
    }
    assert found == NESTED


@pytest.mark.parametrize(
    ("specification", "flags"),
    [
        ("laser,svd", "--recipe laser --recipe svd"),
        ("laser, svd", "--recipe laser --recipe svd"),
        ("laser svd", "--recipe laser --recipe svd"),
        ("laser;svd", "--recipe laser --recipe svd"),
        ("laser+svd", "--recipe laser --recipe svd"),
        ("[laser,svd]", "--recipe laser --recipe svd"),
        ("laser:keep.rank=5,svd", "--recipe laser:keep.rank=5 --recipe svd"),
        ("laser:keep.rank=5,layers=[0,1],svd:keep.rank=2", "--recipe laser:keep.rank=5,layers=[0,1] --recipe svd:keep"),
        ("a.yaml,svd,b.yml", "--recipe a.yaml --recipe svd --recipe b.yml"),
    ],
)
def test_several_recipes_in_one_flag(specification: str, flags: str) -> None:
    said = refused(specification)
    assert "repeat the flag, " + flags in said


def test_a_file_as_the_value_of_a_setting_is_no_second_recipe() -> None:
    refuse_several("snp:unit_fraction=0.7,calibration.task=tasks/x.yaml")


@pytest.mark.parametrize("name", ["bottom-k,noise", "bottom-k noise", "noise,shuffled-labels"])
def test_several_controls_in_one_flag(name: str) -> None:
    with pytest.raises(UserError, match="repeat the flag, --control .* --control"):
        check_control(name)


@pytest.mark.parametrize(
    "specification", ["laser:matrices=[up_proj,down_proj],layers=[0]", "eigenprune:calibration.task=noise"]
)
def test_settings_are_no_list_of_recipes(specification: str) -> None:
    assert parse_recipe(specification).label == specification


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("LASER", "laser"),
        ("laser_search", "laser-search"),
        ("Svd_LLM", "svd-llm"),
        ("random subspace", "random-subspace"),
    ],
)
def test_case_and_joints_of_a_name_do_not_count(given: str, name: str) -> None:
    assert f"did you mean {name!r}?" in refused(given)
    assert closest(given, shipped_names()) == name


@pytest.mark.parametrize(
    ("name", "offered"),
    [
        ("foo", "choose from bottom-k, identity, laser, noise, random-subspace, svd, wanda-sp, shuffled-labels"),
        ("nois", "did you mean 'noise'?"),
        ("random-subspce:keep.rank=2", "did you mean 'random-subspace'?"),
    ],
)
def test_a_control_that_is_none_is_offered_controls(name: str, offered: str) -> None:
    with pytest.raises(UserError) as told:
        check_control(name)
    assert str(told.value) == f"unknown control {name!r}: {offered}"


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_what_the_field_calls_a_method_leads_to_its_recipe(name: str) -> None:
    assert name not in shipped_names() and parse_recipe(OTHER_NAMES[name]).steps
    assert f"that method is here as {OTHER_NAMES[name]} (" in refused(f"{name}:seed=1")


@pytest.mark.parametrize("name", ["ERC-SVD", "GFWSVD", "Kfac_SVD", "zs svd"])
def test_joints_and_case_of_a_name_of_the_field_do_not_count(name: str) -> None:
    assert "that method is here as" in refused(name)


def test_other_near_misses() -> None:
    assert "nothing follows the colon" in refused("laser:")
    assert "called 'laser', without .yaml" in refused("nowhere/laser.yaml")
    assert "--control shuffled-labels" in refused("shuffled-labels")
    with pytest.raises(UserError, match="did you mean 'shuffled-labels'"):
        check_control("shuffled_labels")


@pytest.mark.parametrize("share", ["{}", "0", "2", "{up_proj: 2}", "half"])
def test_a_share_of_units_is_a_share_or_one_for_each_matrix(share: str) -> None:
    with pytest.raises(RecipeError, match="give a share above 0 and at most 1, or a mapping with one for each matrix"):
        parse_recipe(f"modegpt-mlp:unit_fraction={share}")


@pytest.mark.parametrize(
    ("specification", "said"),
    [
        ("lems:least=0.5,most=0.3", "least: 0.5 is above most, 0.3, and no rank lies between them"),
        ("d-rank:threshold=2.0", "threshold: it belongs to the rule marchenko-pastur, and d-rank has none"),
        (
            "d-rank:rule=uniform",
            "value_shift: it belongs to the rule d-rank, and uniform has none; set value_shift=0.0",
        ),
        ("modegpt:unit_fraction=0.2", "unit_fraction: a share of 0.8 of the units is to go, .* more than 0.8"),
    ],
)
def test_settings_of_a_search_that_contradict_each_other_are_refused_before_a_model_is_loaded(
    specification: str, said: str
) -> None:
    assert re.search(said, refused(specification))


def test_settings_that_only_meet_are_taken() -> None:
    for specification in ("lems:least=0.5,most=0.5", "modegpt:unit_fraction=0.2,rule=uniform"):
        assert parse_recipe(specification).steps


@pytest.mark.parametrize(
    ("specification", "told"),
    [
        ("aa-svd:anchor=1.5", "steps.0.anchor: input should be less than or equal to 1, or 'aces' (found 1.5)"),
        ("aa-svd:anchor=ace", "steps.0.anchor: should be a number, or 'aces' (found 'ace')"),
        ("modegpt-mlp:refit=never", "steps.0.refit: should be true or false, or 'auto' (found 'never')"),
        ("svd-llm:calibration.task=5", 'steps.0.calibration.task: should be a text: write "5"'),
        ("svd-llm:calibration.task=[a, 1]", 'steps.0.calibration.task.1: should be a text: write "1"'),
        ("svd-llm:calibration.task=[]", "steps.0.calibration.task: names no task"),
        ("svd:heal.task=[a, b, a]", "heal.task: names 'a' twice: name each once"),
        ("svd:factored=sometimes", "steps.0.factored: give true, false or always (found 'sometimes')"),
    ],
)
def test_a_value_that_may_be_of_several_kinds_is_one_mistake(specification: str, told: str) -> None:
    assert refused(specification).splitlines()[1:] == [f"  - {told}"]
