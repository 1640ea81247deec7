"""Controls at another recipe's own budget: the same matrices, the same ranks, another method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness_ext.errors import UserError
from harness_ext.methods import registered_methods
from harness_ext.recipe import Recipe, parse_recipe, recipe_from, shipped_names


def control_recipe(name: str, recipe: Recipe, receipt: Mapping[str, Any]) -> Recipe:
    """The control `name` on the matrices of a receipt, each at the rank that the recipe left it.

    Any shipped recipe of one step whose method takes a rank and needs no calibration can be a control; `random-subspace` is made to be one.

    Raises UserError where `name` cannot be one.
    """
    own = parse_recipe(name)
    method = registered_methods()[own.steps[0].method] if len(own.steps) == 1 else None
    if method is None or not method.takes_keep or method.statistics:
        fit = [other for other in shipped_names() if _fit(other)]
        raise UserError(f"{name!r} cannot be a control: it must be a recipe of one step that keeps a given rank; choose from {', '.join(fit)}")
    # A matrix edited twice is in the receipt twice; the last rank is the one it was left with.
    left = {" ".join(filter(None, (record["name"], record.get("part")))): record["rank_after"] for record in receipt["matrices"]}
    by_rank: dict[int, list[str]] = {}
    for key, rank in left.items():
        by_rank.setdefault(rank, []).append(key)
    steps = [{"method": own.steps[0].method, "matrices": keys, "keep": {"rank": rank}, "seed": own.steps[0].seed} for rank, keys in sorted(by_rank.items())]
    label = f"{recipe.label}+{name}"
    data = {"name": own.name, "summary": f"{own.summary.rstrip('.')}. Control at the budget of {recipe.label}.", "source": own.source, "steps": steps}
    return recipe_from(data, origin=label, label=label).model_copy(update={"control": own.name, "control_of": recipe.recipe_id})


def _fit(name: str) -> bool:
    recipe = parse_recipe(name)
    if len(recipe.steps) != 1:
        return False
    method = registered_methods()[recipe.steps[0].method]
    return method.takes_keep and not method.statistics
