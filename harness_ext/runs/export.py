"""An edited model as a checkpoint that plain transformers loads: safetensors, tokenizer, receipt and a model card.

A bias shift needs a bias. Where the architecture has none in a layer but can be told to (`attention_bias`, `mlp_bias`),
the config is told, and the other layers get biases of zero; where it cannot be told, the export is refused rather than
the shift dropped. The folder is written beside its place and renamed when whole.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from harness_ext.calibration.rewording import hashed_signs
from harness_ext.editing.warnings import found_nothing, left_unedited
from harness_ext.errors import UserError, VariantFailed
from harness_ext.linalg.devices import usable_device
from harness_ext.model.digests import KIND
from harness_ext.recipe.overrides import split_specification
from harness_ext.runs.run_config import resolve_demo
from harness_ext.runs.smaller_export import NotSmaller, smaller
from harness_ext.runs.versions import versions
from harness_ext.search.runner import without_searching
from harness_ext.storage import rundir
from harness_ext.storage.disk import disk_trouble
from leaderboard.readers.receipt import DENSE, FACTORS, MatrixRecord
from leaderboard.readers.secrets import redacted_command, secret_values

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel

    from harness_ext.editing.pipeline import AppliedRecipe
    from harness_ext.lm_eval_adapter.backend import RecipeLM
    from harness_ext.model.weights import Weights
    from harness_ext.recipe.recipe import Recipe
    from harness_ext.runs.applied_model import CalibrationSource
    from harness_ext.runs.progress import ProgressReport


class EditedModel(Protocol):
    """What receipt and card of an exported model are made from: a loaded model, or one that stayed on disk."""

    recipe: Recipe | None
    applied: AppliedRecipe | None
    loaded_from: str
    dequantized_from: str | None

    @property
    def model(self) -> PreTrainedModel: ...

    @property
    def weights(self) -> Weights: ...

    def totals(self) -> dict[str, Any]: ...


class Exported(NamedTuple):
    """What was written. products: layers of which the factors were multiplied out. words: how hidden units that went
    are written, None where none did.
    """

    products: int
    words: str | None = None


_BIAS_SWITCHES = ("attention_bias", "mlp_bias", "bias")


def export_recipe(
    recipe: Recipe,
    place: Path,
    model_args: Mapping[str, Any],
    source: CalibrationSource,
    command: list[str],
    report: ProgressReport,
) -> Exported:
    """Load a model, apply a recipe and write it; see `export` for what is written.

    model_args: as in lm-eval, with `pretrained` and `device`, and `layers_on` where that is asked for. source: what the
    recipe learns from, where it does.
    command: how the export was asked for, for receipt and card.

    Raises UserError where that is not possible.
    """
    lm = edited_model(recipe, place, model_args, source, report)
    with report.progress.stage(f"writing {place}"):
        return written(lm, place, str(model_args["pretrained"]), redacted_command(command))


def edited_model(
    recipe: Recipe, place: Path, model_args: Mapping[str, Any], source: CalibrationSource, report: ProgressReport
) -> RecipeLM:
    """Load a model and apply a recipe, to be written to a place; see `export_recipe`. Raises UserError."""
    from harness_ext.lm_eval_adapter.fast_import import preload_hf

    asked = dict(model_args)
    layers_on = asked.pop("layers_on", None)
    arguments = checked_arguments(recipe, place, asked | ({} if layers_on is None else {"device": "cpu"}))
    preload_hf()
    from harness_ext.lm_eval_adapter.model_loading import load_model

    name = str(model_args["pretrained"])
    with report.progress.stage(f"loading {name}"):
        lm = load_model(name, {**arguments, "recipe": None}, secrets=secret_values(model_args))
    lm.layers_on = None if layers_on is None else usable_device("--layers_on", layers_on)
    resolved, documents = source.resolve(recipe, lm, report)
    try:
        lm.apply(resolved, documents, report.progress)
    except VariantFailed as error:
        raise UserError(f"recipe {recipe.label!r} cannot be applied to this model: {error}") from error
    assert lm.applied is not None
    sentences = found_nothing(resolved, lm.applied)
    if left_unedited(resolved, lm.applied):
        raise UserError(f"there is nothing to export: {'; '.join(sentences)}")
    for sentence in sentences:
        report.warn(sentence)
    return lm


def checked_arguments(recipe: Recipe, place: Path, model_args: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a model that is to be exported, `demo` resolved. Raises UserError where it cannot be."""
    from harness_ext.lm_eval_adapter import admission

    if not recipe.steps:
        raise UserError(f"{recipe.label} edits nothing, so there is nothing to export: name another recipe")
    if not model_args.get("pretrained"):
        raise UserError("no model given: add --model_args pretrained=NAME (a hub name, a local folder, or `demo`)")
    _refuse_existing(place)
    arguments = resolve_demo("hf", model_args)
    admission.check_all(arguments, [recipe])
    return arguments


def export(lm: RecipeLM, place: Path, model_name: str, command: list[str]) -> int:
    """Write the model as it is, with the recipe that was applied to it, into a new folder. Plain transformers has no
    place for low-rank layers: they become the products of their factors, in the model too.

    Hidden units that the recipe took away are left out where the architecture has a setting for that.

    Returns the number of layers that became products.

    Raises UserError where the folder exists or cannot be written, or where the architecture cannot hold a bias that the
    recipe made.
    """
    return written(lm, place, model_name, command).products


def written(lm: RecipeLM, place: Path, model_name: str, command: list[str]) -> Exported:
    """Do what `export` does, and tell all about it."""
    _refuse_existing(place)
    dense = lm.weights.make_dense()
    config, state = checkpoint_of(lm)
    receipt = export_receipt(lm, model_name, command, dense)
    words = None
    try:
        if (less := smaller(lm, config, state, _shapes)) is not None:
            config, state, words = less.config, less.state, less.words
            about = less.receipt(lm.model)
            digests = {**receipt["weights"], "digest_after": about["digest"]}
            receipt |= {"stored_as": about["stored_as"], "weights": digests}
    except NotSmaller as reason:
        words = f"written with zeros in the place of the units that went, as large as before: {reason}"
        receipt["not_smaller"] = str(reason)

    def fill(folder: Path) -> None:
        save(lm, config, state, folder)
        rundir.write_json(folder / rundir.RECEIPT, receipt)
        how = None if words is None else f"{words}."
        (folder / "README.md").write_text(export_card(lm, model_name, command, dense, how), encoding="utf-8")

    write_folder(place, fill)
    return Exported(len(dense), words)


def write_folder(place: Path, fill: Callable[[Path], None]) -> None:
    """Have a new folder filled beside its place, and rename it when it is whole. Raises UserError where the place
    exists or cannot be written.
    """
    _refuse_existing(place)
    rundir.sweep_exports(place)
    try:
        with rundir.writing(place) as folder:
            (folder / rundir.EXPORTING).touch()
            fill(folder)
            (folder / rundir.EXPORTING).unlink()
    except Exception as error:
        if (trouble := disk_trouble(error)) is None:
            raise
        raise UserError(
            f"{place} cannot be written: {trouble}; make room, or name another folder with --out"
        ) from error


def _refuse_existing(place: Path) -> None:
    if place.exists():
        raise UserError(f"{place} exists already; name a folder that does not, with --out")


def save(lm: RecipeLM, config: PretrainedConfig, state: dict[str, Tensor], folder: Path) -> None:
    """Write config, weights and tokenizer of a model, with another config and other weights than its own."""
    before = lm.model.config
    if getattr(config, "quantization_config", None) is not None:
        # What was dequantised as it was loaded is written as plain weights.
        config = copy.deepcopy(config)
        del config.quantization_config
    try:
        lm.model.config = config
        lm.model.save_pretrained(folder, state_dict=state)
    finally:
        lm.model.config = before
    for weights in folder.glob("*.safetensors"):  # which the library keeps from everybody but the owner
        weights.chmod((folder / "config.json").stat().st_mode)
    lm.tokenizer.save_pretrained(folder)


def checkpoint_of(lm: RecipeLM) -> tuple[PretrainedConfig, dict[str, Tensor]]:
    """Config and weights of a model as it is, for `save`. Raises UserError where the architecture cannot hold a bias
    that the recipe made.
    """
    return _with_biases(lm.model.config, dict(lm.model.state_dict()), lm.weights.added_biases)


def _with_biases(
    config: PretrainedConfig, state: dict[str, Tensor], added: list[str]
) -> tuple[PretrainedConfig, dict[str, Tensor]]:
    if not added:
        return config, state
    switched = copy.deepcopy(config)
    for switch in _BIAS_SWITCHES:
        if getattr(switched, switch, None) is False:
            setattr(switched, switch, True)
            if set(added) <= set(expected := _shapes(switched)):
                return switched, {
                    **state,
                    **{name: _zeros(state, name, shape) for name, shape in expected.items() if name not in state},
                }
    raise UserError(
        f"the recipe gives {added[0]} (and {len(added) - 1} more) a bias, which a {config.model_type} checkpoint cannot"
        " hold: choose matrices that have a bias, or a recipe that shifts none (bias=false, where the method has it)"
    )


def _shapes(config: PretrainedConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights that a config calls for; nothing is allocated."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return {
            name: tuple(value.shape) for name, value in AutoModelForCausalLM.from_config(config).state_dict().items()
        }


def _zeros(state: Mapping[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    return state[f"{name.rpartition('.')[0]}.weight"].new_zeros(shape)


def records_made_dense(
    lm: EditedModel, records: Iterable[MatrixRecord], made_dense: Collection[str]
) -> list[MatrixRecord]:
    """What became of each matrix, of which some layers' factors were multiplied out since."""
    return [
        (
            record.model_copy(update={"stored": DENSE, "digest_after": lm.weights.digest_of(record.name)})
            if record.name in made_dense and record.stored == FACTORS
            else record
        )
        for record in records
    ]


def export_receipt(
    lm: EditedModel, model_name: str, command: list[str], made_dense: Collection[str] = ()
) -> dict[str, Any]:
    """What `receipt.json` of an exported model says. made_dense: the layers whose factors were multiplied out."""
    assert lm.recipe is not None and lm.applied is not None
    records = records_made_dense(lm, lm.applied.records, made_dense)
    calibration = _calibration(lm.applied)
    return {
        "format": rundir.EXPORT,
        "command": command,
        "model": {
            "name": model_name,
            "dtype": str(lm.model.dtype).removeprefix("torch."),
            "model_type": lm.model.config.model_type,
            **({} if lm.dequantized_from is None else {"dequantized_from": lm.dequantized_from}),
        },
        "recipe": {"label": lm.recipe.label, "recipe_id": lm.recipe.recipe_id, "resolved": lm.recipe.resolved()},
        "weights": {"digest_after": lm.weights.digest(), "digest": KIND},
        "matrices": [record.to_json() for record in records],
        "made_dense": sorted(made_dense),
        "totals": lm.totals(),
        "calibration": calibration,
        "chosen_on": _chosen_on(lm),
        "wordings": _wordings(lm),
        "versions": versions(),
    }


def _calibration(applied: AppliedRecipe) -> list[dict[str, Any]]:
    return [
        {
            "step": step,
            "task": drawn.task,
            "split": drawn.split,
            "documents": [document.doc_hash for document in drawn.documents],
            "contents": sorted({digest for document in drawn.documents for digest in document.digests}),
            "wordings": hashed_signs(drawn),
        }
        for step, drawn in applied.calibration
    ]


def _chosen_on(lm: EditedModel) -> list[str]:
    """Hashes and digests of the documents that are in the weights, by learning or by choosing, of this recipe and of
    those that the model was exported with before.
    """
    assert lm.recipe is not None and lm.applied is not None
    before = rundir.learned_by_export(lm.loaded_from)
    return sorted(rundir.learned_from(_calibration(lm.applied)).union(lm.recipe.chosen_on, before))


def _wordings(lm: EditedModel) -> dict[str, list[str]]:
    """By task, the hashed wordings of these documents."""
    assert lm.recipe is not None and lm.applied is not None
    learned = rundir.wordings_learned(_calibration(lm.applied))
    return rundir.merged_wordings(learned, lm.recipe.wordings, rundir.wordings_of_export(lm.loaded_from))


def _written_dense(made_dense: Collection[str]) -> str:
    """How edited matrices are written, for the card."""
    products = (
        f" The recipe computes {len(made_dense)} layers as two low-rank ones; here they are the products of those,"
        " since this format has no place for them: no smaller, and no faster."
        if made_dense
        else ""
    )
    return f"written back dense.{products}"


def _digest(hashes: Sequence[str]) -> str:
    return hashlib.sha256("".join(f"{one}\n" for one in hashes).encode()).hexdigest()


def export_card(
    lm: EditedModel, model_name: str, command: list[str], made_dense: Collection[str] = (), written: str | None = None
) -> str:
    """The model card of an exported model; see `export_receipt`. written: how the edited matrices are, as what follows
    "and"; None where they are dense.
    """
    written = written or _written_dense(made_dense)
    import yaml

    assert lm.recipe is not None and lm.applied is not None
    found = without_searching(lm.recipe, lm.applied.searches)
    # thousands of hashes, which the receipt has
    given = [found.pop(name, None) for name in ("chosen_on", "wordings")]
    recipe = yaml.safe_dump(found, sort_keys=False, allow_unicode=True)
    learned = _chosen_on(lm)
    apart = (
        " The documents that it learned from, or was chosen on, are under `chosen_on` in `receipt.json`"
        f" ({len(learned):,} hashes, one a line of SHA-256 {_digest(learned)}): `lm_eval run"
        " --recipe` leaves them out of this model's score, and any other score on them is no evidence."
        if learned
        else ""
    )
    if learned and (lm.applied.searches or any(given)):
        apart += " A file of the recipe below needs `chosen_on` and `wordings` from there to do so too."
    changes = split_specification(lm.recipe.label)[2]
    changed = (
        f" Changed from the recipe as it is shipped or filed, which summary and caveats describe: {changes}."
        if changes
        else ""
    )
    totals = lm.totals()
    return (
        f"---\nlibrary_name: transformers\nbase_model: {model_name}\n---\n\n# {model_name}, edited by"
        f" {lm.recipe.label}\n\n{totals['matrices_edited']} weight matrices of `{model_name}` were edited by the"
        f" recipe below and {written} Whether that helped, hurt or made no difference on a task is not said here:"
        f" measure it.{changed}{apart}\n\n    {' '.join(command)}\n\n```yaml\n{recipe}```\n\n`receipt.json`"
        " lists every matrix: shape, rank, energy kept, error, digests.\n"
    )
