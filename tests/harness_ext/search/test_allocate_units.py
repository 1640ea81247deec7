"""Units over layers, end to end on small models: shares are what the formulas say of hidden states seen by hooks."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch

from harness_ext.editing.controls import NoControl, control_recipe, why_not
from harness_ext.editing.plan import plan
from harness_ext.errors import UserError
from harness_ext.model.checkpoint import read_checkpoint
from harness_ext.recipe.recipe import parse_recipe
from tests.harness_ext.search.plain_search import documents_for, drawing, read_all
from tests.harness_ext.search.test_searches import found_by


def cosines(lm: Any, layers: Any, documents: Any) -> numpy.ndarray:
    """Of every layer, one document at a time without padding: `[layers, tokens]`."""
    seen: list[list[numpy.ndarray]] = [[] for _ in layers]

    def hook_for(place: int) -> Any:
        def hook(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            x, y = (value[0].double().numpy() for value in (before, after))
            seen[place].append((x * y).sum(1) / numpy.linalg.norm(x, axis=1) / numpy.linalg.norm(y, axis=1))

        return hook

    handles = [layer.register_forward_hook(hook_for(place), with_kwargs=True) for place, layer in enumerate(layers)]
    read_all(lm, documents, handles)
    return numpy.stack([numpy.concatenate(own) for own in seen])


def layers_in(lm: Any) -> Any:
    return lm.model.model.layers if hasattr(lm.model, "model") else lm.model.transformer.h


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_layer_keeps_one_share_of_everything_by_its_influence(make_lm: Any, family: str) -> None:
    lm = make_lm(family)
    documents = documents_for(lm, 12)
    influence = 1 - cosines(lm, layers_in(lm), documents).mean(1)
    powers = numpy.exp(-influence / 0.3)
    expected = 1 - len(powers) * 0.3 * powers / powers.sum()
    assert expected.min() > 0.2 and expected.max() - expected.min() > 1e-3
    chosen = found_by(lm, "modegpt:unit_fraction=0.7,epsilon=0.3", documents)
    assert [step["method"] for step in chosen] == ["select_coordinates", "mix_unattended_values", "mlp_select"]
    for step in chosen:
        assert list(step["unit_fraction"]) == step["matrices"]
        numpy.testing.assert_allclose(list(step["unit_fraction"].values()), expected, atol=1e-5)
    assert (chosen[2]["ranking"], chosen[2]["refit"]) == ("leverage", True)


def test_the_scale_of_scores_is_that_of_the_coordinates_and_changes_no_older_recipe(make_lm: Any) -> None:
    lm = make_lm("llama")
    scored = found_by(lm, "modegpt:unit_fraction=0.7,scale=rank", documents_for(lm, 4))
    as_ever = found_by(lm, "modegpt:unit_fraction=0.7", documents_for(lm, 4))
    assert [step.get("scale") for step in scored] == ["rank", None, None]
    assert [step.get("scale") for step in as_ever] == ["head", None, None]
    assert [step | {"scale": None} for step in scored] == [step | {"scale": None} for step in as_ever]
    assert parse_recipe("modegpt").recipe_id.startswith("8245f920e6fe5033")


def test_values_by_their_principal_directions_and_no_older_recipe_changes(make_lm: Any) -> None:
    """FLAT-LLM's setting: principal values, hidden units by leverage, layers by their angle."""
    lm = make_lm("llama")
    recipe = "modegpt:matrices=[v_proj,down_proj],rule=angular,unit_fraction=0.7"
    flat, plain = (found_by(lm, f"{recipe}{more}", documents_for(lm, 4)) for more in (",mixing=pca", ""))
    assert [step.get("ranking") for step in flat] == ["pca", "leverage"]
    assert [step | {"ranking": None} for step in flat] == [step | {"ranking": None} for step in plain]
    assert plain[0]["ranking"] == "leading"


def test_angles_are_those_between_hidden_states(make_lm: Any) -> None:
    lm = make_lm("llama")
    documents = documents_for(lm, 8)
    angles = numpy.arccos(cosines(lm, layers_in(lm), documents)).mean(1)
    (step,) = found_by(lm, "modegpt:matrices=[down_proj],rule=angular,unit_fraction=0.4", documents)
    kept = numpy.array(list(step["unit_fraction"].values()))
    assert kept.mean() == pytest.approx(0.4) and kept.max() < 1
    numpy.testing.assert_allclose(kept / kept.mean(), angles / angles.mean(), rtol=1e-5)


def moments(lm: Any, layers: Any, documents: Any) -> list[numpy.ndarray]:
    """Of the hidden units of every layer, one document at a time: `[n, n]`."""
    seen: list[list[numpy.ndarray]] = [[] for _ in layers]
    handles = [
        layer.mlp.down_proj.register_forward_pre_hook(
            lambda module, args, place=place: seen[place].append(args[0][0].double().numpy())
        )
        for place, layer in enumerate(layers)
    ]
    read_all(lm, documents, handles)
    return [states.T @ states / len(states) for states in map(numpy.concatenate, seen)]


def test_by_variance_every_layer_has_one_share_of_it(make_lm: Any) -> None:
    lm = make_lm("llama")
    documents = documents_for(lm, 8)
    reached = []
    for moment in moments(lm, layers_in(lm), documents):
        values, vectors = numpy.linalg.eigh(moment + 1e-2 * numpy.eye(len(moment)))
        order = numpy.argsort(-1 / (vectors**2 @ values**-0.5) ** 2)
        left = [
            moment[unit, unit] - moment[unit, own] @ numpy.linalg.pinv(moment[numpy.ix_(own, own)]) @ moment[own, unit]
            for place, unit in enumerate(order)
            for own in [order[:place]]
        ]
        reached.append(numpy.cumsum(left) / numpy.sum(left))
    specification = "modegpt:matrices=[down_proj],rule=cumulative-variance,ranking=zca,unit_fraction=0.4"
    (step,) = found_by(lm, specification, documents)
    kept = [round(share * len(own)) for share, own in zip(step["unit_fraction"].values(), reached, strict=True)]
    assert step["ranking"] == "zca" and numpy.mean(list(step["unit_fraction"].values())) <= 0.4 + 1e-9
    # One tau lies between what every layer has reached, and what it had a unit before.
    assert max(own[count - 2] for own, count in zip(reached, kept, strict=True)) < min(
        own[count - 1] for own, count in zip(reached, kept, strict=True)
    )
    assert sum(kept) >= 0.4 * sum(map(len, reached)) - len(kept)


def test_by_variance_of_hidden_units_alone(make_lm: Any) -> None:
    lm = make_lm("llama")
    with pytest.raises(UserError, match="of the variance of hidden units, and k_proj has none: set matrices="):
        lm.apply(parse_recipe("modegpt:rule=cumulative-variance"), drawing(documents_for(lm, 4)))


def test_its_control_has_the_same_shares_and_the_receipt_tells_them(make_lm: Any) -> None:
    lm, recipe = make_lm("llama"), parse_recipe("modegpt:epsilon=0.05")
    documents, digest = documents_for(lm, 8), lm.weights.digest()
    applied = lm.apply(recipe, drawing(documents))
    (record,) = applied.searches
    receipt = {"matrices": [one.to_json() for one in applied.records], "searches": applied.searches}
    size = lm.totals()["parameters_after"]
    widths = {(one.name, one.part): (one.rows_kept, one.columns_kept) for one in applied.records}
    (note,) = record["notes"]
    assert note.startswith("share of its units that each layer loses, by block-influence with epsilon ")
    assert all(f"{layer}: " in note for layer in range(lm.weights.layout.layers))
    lm.undo()
    control = control_recipe("random-subspace", recipe, receipt)
    assert [step.ranking for step in control.steps] == ["random"] * 3  # type: ignore[attr-defined]
    assert [step.parameters["unit_fraction"] for step in control.steps] == [
        step["unit_fraction"] for step in record["chosen"]
    ]
    again = lm.apply(control, drawing(documents))
    assert lm.totals()["parameters_after"] == size
    assert {(one.name, one.part): (one.rows_kept, one.columns_kept) for one in again.records} == widths
    lm.undo()
    assert lm.weights.digest() == digest
    with pytest.raises(NoControl, match="takes whole units away"):
        control_recipe("bottom-k", recipe, receipt)
    assert why_not("random-subspace", recipe) is None


def test_uniform_shares_need_no_hidden_states_and_are_those_of_the_parts(make_lm: Any, monkeypatch: Any) -> None:
    lm = make_lm("llama")
    documents = documents_for(lm, 6)
    monkeypatch.setattr("harness_ext.search.statistics.layer_changes", None)
    lm.apply(parse_recipe("modegpt:rule=uniform,matrices=[down_proj]"), drawing(documents))
    found = {one.key: lm.weights.values(one) for one in lm.weights.layout.matrices}
    lm.undo()
    lm.apply(parse_recipe("modegpt-mlp"), drawing(documents))
    assert all(torch.equal(lm.weights.values(one), found[one.key]) for one in lm.weights.layout.matrices)


def test_half_precision_models_keep_their_dtype(make_lm: Any) -> None:
    lm = make_lm("llama", dtype="bfloat16")
    lm.apply(parse_recipe("modegpt"), drawing(documents_for(lm, 4)))
    assert {value.dtype for value in lm.model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("family", "changes", "why"),
    [
        ("llama", "matrices=[v_proj,o_proj]", "would be mixed twice"),
        ("llama", "matrices=[q_proj]", r"set matrices=\[k_proj, v_proj, o_proj, down_proj\], or some"),
        ("llama", "unit_fraction=0.1", r"raise unit_fraction or cap"),
        ("mixtral", "matrices=[down_proj]", "units of experts cannot be chosen"),
        ("qwen3", "unit_fraction=0.8", "are normalised"),
        ("llama", "matrices=[down_proj],scale=rank", "no k_proj is named"),
        ("llama", "matrices=[o_proj,down_proj],mixing=pca", "no v_proj is named"),
    ],
)
def test_what_cannot_be_is_refused(make_lm: Any, family: str, changes: str, why: str) -> None:
    lm = make_lm(family)
    with pytest.raises(UserError, match=why):
        lm.apply(parse_recipe(f"modegpt:{changes}"), drawing(documents_for(lm, 4)))


def test_all_units_kept_is_the_model_itself(make_lm: Any) -> None:
    lm = make_lm("llama")
    digest = lm.weights.digest()
    applied = lm.apply(parse_recipe("modegpt:unit_fraction=1.0"), drawing(documents_for(lm, 4)))
    assert lm.weights.digest() == digest and not applied.records
    assert applied.searches[0]["reason"] == "its budget, unit_fraction 1, takes no units away"


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_plan_of_one_share_for_all_layers_says_what_a_run_leaves(make_lm: Any, family: str) -> None:
    lm = make_lm(family)
    recipe = parse_recipe("modegpt:rule=uniform,unit_fraction=0.5")
    planned = plan(recipe, read_checkpoint(lm.loaded_from))
    lm.apply(recipe, drawing(documents_for(lm, 4)))
    assert planned.parameters_after == lm.totals()["parameters_after"] < planned.parameters
    assert all(item.rank_after is not None for item in planned.matrices)
    by_layer = plan(parse_recipe("modegpt:unit_fraction=0.5"), read_checkpoint(lm.loaded_from))
    assert all(item.rank_after is None for item in by_layer.matrices)


@pytest.mark.slow
def test_a_plan_knows_it_and_refuses_what_a_run_would(make_lm: Any) -> None:
    from harness_ext.editing.plan_estimate import estimated

    planned = plan(parse_recipe("modegpt"), read_checkpoint(make_lm("llama").loaded_from))
    assert [search.trials for search in planned.searches] == [1]
    assert estimated(planned).seconds > 0
    with pytest.raises(UserError, match="are normalised"):
        plan(parse_recipe("modegpt"), read_checkpoint(make_lm("qwen3").loaded_from))
