"""An edited model as a factored checkpoint: its low-rank layers as two factors each, or as pivot rows, so that it is as
small on disk and in memory as its receipt says, and as fast.

The format is that of `harness_ext.model.factored_checkpoint`. Whatever else the model has is written as it is, in the
dtype that it has: what is loaded again computes the same, to the bit where the format is `factored`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness_ext.errors import UserError
from harness_ext.model.digests import combined, tensor_digest
from harness_ext.model.factored_checkpoint import WEIGHTS, WEIGHTS_INDEX, described, low_rank_layers
from harness_ext.model.low_rank import LowRankLinear
from harness_ext.model.pivot_rows import pivot_rows
from harness_ext.model.size import FACTORS, PIFA
from harness_ext.recipe.schema import counted_as, has_prime_units, takes_units
from harness_ext.runs.export import edited_model, export_card, export_receipt, save, write_folder
from harness_ext.storage import rundir
from leaderboard.readers.secrets import redacted_command

if TYPE_CHECKING:
    from torch import Tensor

    from harness_ext.lm_eval_adapter.backend import RecipeLM
    from harness_ext.recipe.recipe import Recipe
    from harness_ext.runs.applied_model import CalibrationSource
    from harness_ext.runs.progress import ProgressReport

FORMATS = {"factored": FACTORS, "pifa": PIFA}
"""The words of the command, and those of the format."""

_LEAST_ERROR = 1e-5
_OF_ROUNDING = 16


class Destination(NamedTuple):
    """Where a model is written, and how: a key of `FORMATS`."""

    place: Path
    form: str


class WrittenFactors(NamedTuple):
    """What was written of the low-rank layers. layers: how many. largest_error: of a part, relative to the product of
    its factors; 0 where the factors themselves were written. rounded: of how many matrices the rank is lower than the
    recipe asks for, for the multiple that it names or at which factors are faster.
    """

    layers: int
    largest_error: float
    rounded: int


def refuse_shards(asked: bool | None) -> None:
    """Raise UserError where a factored checkpoint is to be written file by file, without a model."""
    if asked:
        raise UserError("what is written file by file (shards) is dense: leave out --shards, or --format")


def export_factored_recipe(
    recipe: Recipe,
    to: Destination,
    model_args: Mapping[str, Any],
    source: CalibrationSource,
    command: list[str],
    report: ProgressReport,
) -> WrittenFactors:
    """Load a model, apply a recipe and write it as a factored checkpoint; arguments as of `export_recipe`. Steps that
    would write products (`factored: false`) make factors where these are faster (`factored: true`).

    Raises UserError where that is not possible, or no matrix is left as factors.
    """
    if to.form not in FORMATS:
        raise UserError(f"format is dense, factored or pifa, and not {to.form!r}")
    if any(takes_units(step) for step in recipe.steps):
        raise UserError(
            f"{recipe.label} takes whole units away, and what it leaves is smaller without being a product of factors,"
            " which would hold more numbers than the matrices have, with zeros in the place of the units: export it"
            " without --format, which leaves hidden units out where the config allows that"
        )
    if any(has_prime_units(step) for step in recipe.steps):
        raise UserError(
            f"{recipe.label} leaves units as they are beside two factors of the rest of a matrix, and one pair of"
            " factors of the whole would hold more numbers than it counts: export it without --format, or set prime=0"
        )
    _check_counted(recipe, to.form)
    lm = edited_model(_with_factors(recipe), to.place, model_args, source, report)
    return export_factored(lm, to, str(model_args["pretrained"]), redacted_command(command))


def export_factored(lm: RecipeLM, to: Destination, model_name: str, command: list[str]) -> WrittenFactors:
    """Write the model as it is, with the recipe that was applied to it, into a new folder.

    Raises UserError where the folder exists or cannot be written, no layer is a low-rank one, or pivot rows would not
    keep the factors.
    """
    form = FORMATS[to.form]
    layers = low_rank_layers(lm.model)
    if not layers:
        raise UserError(
            "no matrix is left as factors: at the ranks that they have these would not be faster. Keep less (say,"
            " keep.param_fraction=0.8), take factors wherever they hold fewer numbers (factored=always), or export"
            " without --format"
        )
    state, error = dict(lm.model.state_dict()), 0.0
    if form == PIFA:
        state, error = _as_pivot_rows(state, layers)
    assert lm.applied is not None
    rounded = sum(
        record.stored == FACTORS and record.rank_asked is not None and record.rank_after < record.rank_asked
        for record in lm.applied.records
    )
    written = WrittenFactors(len(layers), error, rounded)
    config = copy.deepcopy(lm.model.config)
    biases = [name.removesuffix(".bias") for name in lm.weights.added_biases]

    def fill(folder: Path) -> None:
        save(lm, config, state, folder)
        _rename(folder, described(layers, biases, WEIGHTS, form))
        rundir.write_json(folder / rundir.RECEIPT, _receipt(lm, model_name, command, written, state, form))
        (folder / "README.md").write_text(
            export_card(lm, model_name, command, written=_how(written, form)), encoding="utf-8"
        )

    write_folder(to.place, fill)
    return written


def _check_counted(recipe: Recipe, form: str) -> None:
    """Raise UserError where ranks that pivot rows pay for would be written as two factors."""
    if FORMATS[form] != PIFA and any(counted_as(step) == PIFA for step in recipe.steps):
        raise UserError(
            f"{recipe.label} counts in pivot rows (keep.format=pifa), and two factors of its ranks would hold more"
            " numbers than it promises: use --format pifa, or leave keep.format out"
        )


def _with_factors(recipe: Recipe) -> Recipe:
    """The same with low-rank layers: at ranks as asked where pivot rows pay for them, since rounding would give away
    what they have won.
    """
    steps = tuple(
        step if step.factored else step.model_copy(update={"factored": "always" if counted_as(step) == PIFA else True})
        for step in recipe.steps
    )
    return recipe.model_copy(update={"steps": steps})


def _as_pivot_rows(state: Mapping[str, Tensor], layers: Mapping[str, LowRankLinear]) -> tuple[dict[str, Tensor], float]:
    """The state of the model with pivot rows in the place of factors, and the largest relative error of a part."""
    import torch

    changed, largest = dict(state), 0.0
    for name, layer in layers.items():
        for number, part in enumerate(layer.parts):
            rows = pivot_rows(part.left, part.right)
            left, right = rows.coefficients.to(part.left), rows.pivots.to(part.right)
            product = part.left.double() @ part.right.double()
            kept = torch.cat([right.double(), left.double() @ right.double()])[rows.order]
            size = float(product.norm())
            error = float((kept - product).norm()) / size if size else float(kept.norm())
            if not error <= max(_LEAST_ERROR, _OF_ROUNDING * torch.finfo(part.left.dtype).eps):
                raise UserError(f"{name}: pivot rows keep the factors only to {error:.1e}: use --format factored")
            largest = max(largest, error)
            changed[f"{name}.lefts.{number}"], changed[f"{name}.rights.{number}"] = left, right
            changed[f"{name}.orders.{number}"] = rows.order.to(torch.int32)
    return changed, largest


def _rename(folder: Path, description: dict[str, Any]) -> None:
    """Give the weights the names of the format, and put its description into the config."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    file = WEIGHTS_INDEX if index.exists() else WEIGHTS
    (index if index.exists() else single).rename(folder / file)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["quantization_config"] = {**description, "weights": file}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _receipt(
    lm: RecipeLM, model_name: str, command: list[str], written: WrittenFactors, state: Mapping[str, Tensor], form: str
) -> dict[str, Any]:
    """The receipt of any export, and what the folder holds. parameters, bytes: as stored in this format, of which the
    totals know nothing where they are of two factors. pivot_indices: of pivot rows, how many rows are told the places
    of, which are no parameters; a budget in that format counts them.
    """
    parameters = {name: state.get(name, value) for name, value in lm.model.named_parameters()}
    stored = {
        "format": form,
        "layers": written.layers,
        "parameters": sum(value.numel() for value in parameters.values()),
        "bytes": sum(value.numel() * value.element_size() for value in parameters.values()),
        "largest_error": written.largest_error,
    }
    if form == PIFA:
        parts = [part for layer in low_rank_layers(lm.model).values() for part in layer.parts]
        stored["pivot_indices"] = sum(len(part.right) for part in parts)
    digest = combined(parameters, lambda name: tensor_digest(parameters[name]))
    receipt = export_receipt(lm, model_name, command)
    return {**receipt, "stored_as": stored, "weights": {**receipt["weights"], "digest_after": digest}}


def _how(written: WrittenFactors, form: str) -> str:
    """How edited matrices are written, and how the folder is loaded, for the card."""
    kept = (
        f"{written.layers} layers are kept as r of their own rows and what the others are made of (PIFA), within"
        f" {written.largest_error:.1e} of the product of their two factors"
        if form == PIFA
        else f"{written.layers} layers are kept as two low-rank factors each"
    )
    return (
        f"{kept}. The file of the weights has a name of its own, since only what knows the format can load them:"
        " with lm-eval-recipes installed, `import harness_ext` once, and"
        " `transformers.AutoModelForCausalLM.from_pretrained` loads this folder; no code comes with it. `lm_eval run"
        " --model hf` scores it."
    )
