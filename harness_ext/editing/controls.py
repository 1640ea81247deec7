"""Controls for another recipe, at the budget of its own receipt: as much done to the same matrices, with no knowledge
of what matters in them.

The budget is the rank that each matrix was left at, for a control that keeps a rank; the distance that it was moved,
for `noise`; and the recipe itself for `shuffled-labels`, which is that recipe with the answers of its calibration
documents exchanged. A search is controlled by a search: on exchanged answers, or, for `random-subspace`, by as many
trials of random directions in as many matrices of the same sizes drawn at random (`harness_ext.search.random_search`),
of which the best is chosen in the same way. Units that a recipe takes away whole (of MLPs, say) have no rank, nor have
those that it leaves as they are: there `random-subspace` is the recipe with units drawn at random, and whatever reads
them refitted as by its own; where masks of units are learned, it takes as many units from every matrix, without trials,
and `wanda-sp` is the mask that they start from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from harness_ext.errors import UserError, closest
from harness_ext.methods import Method, registered_methods
from harness_ext.methods.correction import RESTORE
from harness_ext.methods.registry import TEXTS
from harness_ext.model.components import COMPONENTS, COMPONENTS_OF_UNITS
from harness_ext.recipe.recipe import (
    SHUFFLED_LABELS,
    Recipe,
    parse_recipe,
    recipe_from,
    refuse_several,
    shipped_names,
)
from harness_ext.recipe.schema import Step, chooses_units, described, takes_units
from harness_ext.recipe.settings import HEAL
from harness_ext.storage.rundir import searched_on
from leaderboard.readers.receipt import FACTORS

RANDOM_SUBSPACE = "random-subspace"
IDENTITY = "identity"
FIRST_MASK = "wanda-sp"
"""The control of recipes that learn masks: what they start from."""


class _Left(NamedTuple):
    """How a recipe left a matrix: at which rank, whether as two low-rank layers, and in which format it is counted."""

    rank: int
    factored: bool
    counted_as: str = FACTORS


class NoControl(Exception):
    """A control that says nothing about this recipe; the message says why, and is a clause."""


def check_control(name: str) -> None:
    """Raise UserError where no recipe could have this control."""
    refuse_several(name, "--control")
    if closest(name, [SHUFFLED_LABELS]) and name not in (SHUFFLED_LABELS, *shipped_names()):
        raise UserError(f"unknown control {name!r}: did you mean {SHUFFLED_LABELS!r}?")
    if name == SHUFFLED_LABELS:
        return
    head = name.partition(":")[0]
    if head not in shipped_names() and not head.endswith((".yaml", ".yml")):
        close = closest(head, _fitting())
        offered = f"choose from {', '.join(_fitting())}" if close is None else f"did you mean {close!r}?"
        raise UserError(f"unknown control {name!r}: {offered}")
    if not _fit(parse_recipe(name)):
        raise UserError(
            f"{name!r} cannot be a control: it must be a recipe of one step that keeps a given rank or moves a given"
            f" distance; choose from {', '.join(_fitting())}"
        )


def _fitting() -> list[str]:
    return [*(other for other in shipped_names() if _fit(parse_recipe(other))), SHUFFLED_LABELS]


def control_recipe(name: str, recipe: Recipe, receipt: Mapping[str, Any]) -> Recipe:
    """The control `name` of a recipe that left this receipt.

    Any shipped recipe of one step that needs no calibration, and whose method takes a rank or a `relative_error`, can
    be one; `random-subspace`, `bottom-k` and `noise` are made to be. `identity` takes the same matrices at full rank.

    Raises UserError where `name` cannot be a control, and NoControl where it cannot be one of this recipe.
    """
    check_control(name)
    if _edited_nothing(receipt):
        raise NoControl("the recipe edited nothing: its variant is the unedited model, and there is nothing to control")
    # Its budget follows from what was found, and so from the documents that this was chosen on.
    about = {
        "label": f"{recipe.label}+{name}",
        "control": name if name == SHUFFLED_LABELS else parse_recipe(name).name,
        "control_of": recipe.recipe_id,
        "control_of_revisions": recipe.revisions,
        "chosen_on": tuple(sorted(searched_on(receipt).union(recipe.chosen_on))),
    }
    return _made(name, recipe, receipt).model_copy(update=about)


def _edited_nothing(receipt: Mapping[str, Any]) -> bool:
    """Whether the weights are what they were, as where a search found nothing."""
    if not receipt["matrices"]:
        return bool(receipt.get("searches"))
    return all(
        record.get("digest_after") is not None
        and record["digest_before"] == record["digest_after"]
        and not record.get("bias_shift")
        for record in receipt["matrices"]
    )


def why_not(name: str, recipe: Recipe) -> str | None:
    """Why the control `name` says nothing about a recipe, a clause; None where the recipe alone does not tell: it may
    still be that its receipt does.
    """
    if not recipe.steps:
        return "the recipe edits nothing"
    if name == SHUFFLED_LABELS:
        if all(step.calibration is None for step in recipe.steps):
            return "the recipe learns nothing from calibration documents"
        if all(step.calibration is None or described(step.method).needs == TEXTS for step in recipe.steps):
            return "the recipe learns from texts alone, and not from which answer is right"
        return None
    own = parse_recipe(name)
    if own.name == FIRST_MASK and not any(step.masks is not None and step.masks.steps for step in recipe.steps):
        return "the recipe learns no mask that could start from it"
    if own.name == FIRST_MASK and any(
        step.masks is not None and step.masks.start != FIRST_MASK for step in recipe.steps
    ):
        return "its masks start from random ones (masks.start); random-subspace draws as many units at random"
    by_rank = own.name not in (RANDOM_SUBSPACE, IDENTITY) and _method(own).takes_keep
    # What a recipe learns its mask from is no like of what it learned.
    if own.name != FIRST_MASK and all(step.method == own.steps[0].method for step in recipe.steps):
        same = f"at the ranks that the recipe leaves, {own.name} is the same edit"
        return same if by_rank else f"the recipe is itself what {own.name} does, and would be compared with its like"
    chosen, whole = ([of(step) for step in recipe.steps] for of in (chooses_units, takes_units))
    if own.name == RANDOM_SUBSPACE and any(chosen) and not all(chosen):
        what = "take units away" if any(whole) else "keep units as they are"
        return f"some of its steps {what} and others cut ranks; control each in a recipe of its own"
    if by_rank and any(whole):
        return (
            "the recipe takes whole units away, which leaves no rank to meet; random-subspace, which draws the units at"
            " random, and noise can be its controls"
        )
    if by_rank and any(chosen):
        return (
            "the recipe leaves units as they are beside what it cuts, which no rank of the whole stands for;"
            " random-subspace, which draws the units at random, and noise can be its controls"
        )
    return None


def _made(name: str, recipe: Recipe, receipt: Mapping[str, Any]) -> Recipe:
    if (reason := why_not(name, recipe)) is not None:
        raise NoControl(reason)
    if name == SHUFFLED_LABELS:
        return _with_shuffled_labels(recipe)
    label = f"{recipe.label}+{name}"
    own = parse_recipe(name)
    if own.name == FIRST_MASK:
        return _with_first_masks(recipe, label)
    if own.name == RANDOM_SUBSPACE and any(chooses_units(step) for step in recipe.steps):
        return _with_random_units(recipe, receipt, label, own.steps[0].seed)
    if own.name == RANDOM_SUBSPACE and any(step.is_search for step in recipe.steps):
        data = {
            "name": own.name,
            "summary": (
                f"As many trials as {recipe.label} made, of random directions in matrices of the same sizes drawn at"
                " random, and the best of them."
            ),
            "steps": _searched_at_random(recipe, receipt, own.steps[0].seed),
        }
        return recipe_from(data, origin=label, label=label)
    data = {
        "name": own.name,
        "summary": f"{own.summary.rstrip('.')}. Control at the budget of {recipe.label}.",
        "source": own.source,
        "steps": [*_of_the_size(own.steps[0], _before_healing(receipt)), *_healing(recipe)],
    }
    return recipe_from(data, origin=label, label=label)


def _with_first_masks(recipe: Recipe, label: str) -> Recipe:
    """The recipe with the masks that its own start from, and no step beyond."""
    steps = [step.model_dump(mode="json", exclude_none=True) for step in recipe.steps]
    for step in steps:
        if "masks" in step:
            step["masks"]["steps"] = 0
    summary = f"{recipe.summary.rstrip('.')}. Control: the mask that it starts from."
    data = {"name": FIRST_MASK, "summary": summary, "source": recipe.source, "steps": steps}
    return recipe_from(data, origin=label, label=label)


def _with_random_units(recipe: Recipe, receipt: Mapping[str, Any], label: str, seed: int) -> Recipe:
    """The recipe with its units drawn at random by the seed: as many in every layer as a search gave it; of masks, as
    many in each matrix as its own kept.
    """
    found = {record["step"]: record["chosen"] for record in receipt.get("searches", [])}
    steps: list[dict[str, Any]] = []
    for number, step in enumerate(recipe.steps):
        own = step.model_dump(mode="json", exclude_none=True)
        if step.masks is None:
            steps += [{**one, "ranking": "random", "seed": seed} for one in found.get(number, [own])]
            continue
        drawn = {"start": "random", "steps": 0, "columns": _columns_left(number, receipt)}
        steps.append({**own, "seed": seed, "masks": {**own["masks"], **drawn}})
    summary = f"{recipe.summary.rstrip('.')}. Control: as many units drawn at random, everything else alike."
    data = {"name": RANDOM_SUBSPACE, "summary": summary, "source": recipe.source, "steps": steps}
    return recipe_from(data, origin=label, label=label)


def _columns_left(number: int, receipt: Mapping[str, Any]) -> dict[str, int]:
    """How many columns a step left of each matrix that reads units, whatever earlier steps had taken."""
    readers = {COMPONENTS[kind].reader for kind in COMPONENTS_OF_UNITS}
    own = [record for record in receipt["matrices"] if record["step"] == number and record["role"] in readers]
    return {
        _key(record): record.get("columns_of_step", record.get("columns_kept", record["shape"][1])) for record in own
    }


def _healing(recipe: Recipe) -> list[dict[str, Any]]:
    """The steps of a recipe that train what others edited: its control is trained alike."""
    return [step.model_dump(mode="json", exclude_none=True) for step in recipe.steps if step.healing is not None]


def _before_healing(receipt: Mapping[str, Any]) -> Mapping[str, Any]:
    """The receipt with the edits alone, without what was then made of them by training."""
    return {**receipt, "matrices": [record for record in receipt["matrices"] if record.get("method") != HEAL]}


def _searched_at_random(recipe: Recipe, receipt: Mapping[str, Any], seed: int) -> list[dict[str, Any]]:
    """The recipe with each search replaced by its control: the ranks at which the winner left its matrices, and as many
    trials as were made.
    """
    steps = []
    for number, step in enumerate(recipe.steps):
        if not step.is_search:
            steps.append(step.model_dump(mode="json", exclude_none=True))
            continue
        edited = [record for record in receipt["matrices"] if record["step"] == number]
        if not edited:
            raise NoControl("the search found nothing to edit")
        _check_cut(edited)
        (made,) = [record["trials"] for record in receipt["searches"] if record["step"] == number]
        # A matrix edited twice is in the receipt twice; the last rank is the one it was left with. It may be the whole.
        last = {_key(record): record for record in edited}
        left = {key: one["rank_after"] for key, one in last.items() if one["rank_after"] < one["rank_before"]}
        common = step.model_dump(
            mode="json", exclude_none=True, include={"matrices", "layers", "per_head", "factored", "calibration"}
        )
        steps.append(
            {
                **common,
                "method": "search_at_random",
                "seed": seed,
                "instead_of": left,
                "tries": max(1, len(made)),
            }
        )
    return steps


def _of_the_size(step: Step, receipt: Mapping[str, Any]) -> list[dict[str, Any]]:
    method = registered_methods()[step.method]
    if method.takes_keep:
        return _by_rank(step, receipt)
    if "relative_error" in method.parameters:
        return _by_distance(step, receipt)
    return [{"method": step.method, "matrices": list(dict.fromkeys(_key(record) for record in receipt["matrices"]))}]


def _by_rank(step: Step, receipt: Mapping[str, Any]) -> list[dict[str, Any]]:
    # A matrix edited twice is in the receipt twice; the last rank is the one it was left with.
    left = {
        _key(record): _Left(record["rank_after"], record.get("stored") == FACTORS, record.get("counted_as", FACTORS))
        for record in receipt["matrices"]
    }
    _check_cut(receipt["matrices"])
    alike: dict[_Left, list[str]] = {}
    for key, how in left.items():
        alike.setdefault(how, []).append(key)
    return [
        {
            "method": step.method,
            "matrices": keys,
            "keep": {"rank": how.rank, "format": how.counted_as},
            "seed": step.seed,
            "factored": "always" if how.factored else False,
        }
        for how, keys in sorted(alike.items())
    ]


def _check_cut(records: Sequence[Mapping[str, Any]]) -> None:
    if all(record["rank_after"] == record["rank_before"] for record in records):
        raise NoControl(
            "the recipe left every matrix at full rank, where this control changes nothing; noise can be its control"
        )


def _by_distance(step: Step, receipt: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One step for each matrix, at the distance that the receipt has; edits in succession add up as if at right angles,
    as random ones nearly are. One that was put back is where it began.
    """
    squares: dict[str, float] = {}
    # An error is relative to the matrix as it stood before its edit: its square size then, over the unedited one's.
    sizes: dict[str, float] = {}
    for record in receipt["matrices"]:
        key = _key(record)
        size = sizes.get(key, 1.0)
        squares[key] = squares.get(key, 0.0) + size * record["relative_error"] ** 2
        kept = record.get("energy_kept")
        sizes[key] = size if kept is None else size * kept
        if record.get("method") == RESTORE:
            del squares[key], sizes[key]
    return [
        {"method": step.method, "matrices": [key], "relative_error": square**0.5, "seed": step.seed}
        for key, square in squares.items()
    ]


def _with_shuffled_labels(recipe: Recipe) -> Recipe:
    def shuffled(step: Step) -> Step:
        return (
            step
            if step.calibration is None
            else step.model_copy(update={"calibration": step.calibration.model_copy(update={"shuffled_labels": True})})
        )

    summary = f"{recipe.summary.rstrip('.')}. Control: the answers of the calibration documents exchanged."
    return recipe.model_copy(
        update={"name": SHUFFLED_LABELS, "steps": tuple(map(shuffled, recipe.steps)), "summary": summary}
    )


def _key(record: Mapping[str, Any]) -> str:
    return " ".join(filter(None, (record["name"], record.get("part"))))


def _method(recipe: Recipe) -> Method:
    return registered_methods()[recipe.steps[0].method]


def _fit(recipe: Recipe) -> bool:
    if len(recipe.steps) != 1 or recipe.steps[0].is_search:
        return False
    method = _method(recipe)
    plain = method.takes_keep or "relative_error" in method.parameters or recipe.name == IDENTITY
    return recipe.name == FIRST_MASK or (plain and not method.statistics)
