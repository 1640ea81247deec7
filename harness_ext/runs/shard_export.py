"""An edited checkpoint written shard by shard: no weight is loaded into a model, and memory holds one matrix with what
its edit takes. For recipes that need nothing but the weights.

Each file of the checkpoint becomes one of the same name, its tensors under the same names and in the dtype that loading
would give them. What a kill leaves stays in the hidden folder of the export: the same command goes on after the last
whole file, told by its digest.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness_ext.editing.edit_matrix import EditedMatrix
from harness_ext.editing.edit_stored import PlacedEdit, StoredEdits, needs_a_model, scratch
from harness_ext.editing.pipeline import AppliedRecipe
from harness_ext.editing.records import totals
from harness_ext.errors import UserError, VariantFailed
from harness_ext.model.checkpoint import INDEX, SINGLE
from harness_ext.model.digests import tensor_digest
from harness_ext.model.offload import PLACEMENT
from harness_ext.model.safetensors_header import read_places
from harness_ext.model.shard_files import read_tensor, write_shard
from harness_ext.model.stored_model import NotByShards, StoredModel, stored_model
from harness_ext.runs.export import checked_arguments, export_card, export_receipt
from harness_ext.runs.versions import versions
from harness_ext.storage import rundir
from harness_ext.storage.disk import disk_trouble
from harness_ext.storage.resume import ResumeState
from leaderboard.readers.receipt import FACTORS, MatrixRecord
from leaderboard.readers.secrets import redacted_command

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from harness_ext.model.weights import Weights
    from harness_ext.recipe.recipe import Recipe
    from harness_ext.runs.progress import ProgressReport

# What changes nothing about how weights are loaded, or is followed here.
_FOLLOWED = {
    *("pretrained", "revision", "subfolder", "token", "device", "dtype", "tokenizer", "use_fast_tokenizer"),
    *("add_bos_token", "batch_size", "max_batch_size", "max_length", "truncation", "logits_cache", "backend"),
    *("prefix_token_id", "chat_template_args", "enable_thinking", "think_end_token", "trust_remote_code"),
    *("low_cpu_mem_usage", "use_safetensors", "softmax_dtype", "mixed_precision_dtype", "attn_implementation"),
    *PLACEMENT,
}
_SHARDS = "shards"


def export_by_shards(
    recipe: Recipe,
    place: Path,
    model_args: Mapping[str, Any],
    command: list[str],
    report: ProgressReport,
    *,
    required: bool,
) -> int | None:
    """Export without loading the model, and return the number of layers whose factors were multiplied out, as `export`
    does; None, with nothing done, where the recipe or the checkpoint needs the model.

    required: raise UserError in place of that. Raises UserError where there can be no such export at all.
    """
    arguments = checked_arguments(recipe, place, model_args)
    try:
        with edits_of_files(recipe, arguments) as edits:
            return ShardExport(recipe, edits, report).write(place, arguments, str(model_args["pretrained"]), command)
    except VariantFailed as error:
        raise UserError(f"recipe {recipe.label!r} cannot be applied to this model: {error}") from error
    except NotByShards as reason:
        if not required:
            return None
        raise UserError(
            f"--shards: {recipe.label!r} on {model_args['pretrained']} cannot be exported shard by shard: {reason};"
            " leave --shards out, and the model is loaded for it"
        ) from None


@contextmanager
def edits_of_files(recipe: Recipe, arguments: Mapping[str, Any]) -> Iterator[StoredEdits]:
    """The edits of a recipe on the files of a checkpoint, checked; none is made yet. arguments: of the model, as in
    lm-eval, `demo` resolved. Raises NotByShards where they take a loaded model, and UserError.
    """
    if (reason := needs_a_model(recipe)) is not None:
        raise NotByShards(reason)
    folder, dtype = _folder(arguments), _dtype(arguments)
    stored = stored_model(folder, str(arguments["pretrained"]), dtype)
    with scratch() as temporary:
        yield StoredEdits(stored, recipe, _device(arguments), temporary)


def _folder(arguments: Mapping[str, Any]) -> Path:
    """The local folder of the checkpoint; of a hub name, that of its snapshot, its files fetched."""
    others = sorted(name for name, value in arguments.items() if name not in _FOLLOWED and value)
    if others:
        raise NotByShards(f"{others[0]} in --model_args is for the loader of models")
    if arguments.get("use_safetensors") is False:
        raise NotByShards("use_safetensors=False asks for its pickled weights")
    name, subfolder = str(arguments["pretrained"]), str(arguments.get("subfolder") or "")
    folder = Path(name, subfolder).expanduser()
    return folder if folder.is_dir() else _fetched(name, subfolder, arguments)


def _fetched(name: str, subfolder: str, arguments: Mapping[str, Any]) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    def fetch(file: str) -> Path:
        revision = str(arguments.get("revision") or "main")
        return Path(
            hf_hub_download(name, file, subfolder=subfolder or None, revision=revision, token=arguments.get("token"))
        )

    try:
        folder = fetch("config.json").parent
        try:
            fetch(SINGLE)
        except EntryNotFoundError:
            for file in sorted(set(json.loads(fetch(INDEX).read_text(encoding="utf-8"))["weight_map"].values())):
                fetch(file)
    except Exception as error:
        # The loader of models says in its own words what is wrong with a name.
        raise NotByShards(f"its files cannot be had from the hub one by one ({type(error).__name__})") from None
    return folder


def _dtype(arguments: Mapping[str, Any]) -> str:
    dtype = arguments.get("dtype") or "auto"
    if not isinstance(dtype, str):
        raise NotByShards(f"its dtype is given as {dtype!r}, not by name")
    if arguments.get("backend") not in (None, "default", "causal"):
        raise NotByShards(f"it is loaded by the backend {arguments['backend']}")
    return dtype


def _device(arguments: Mapping[str, Any]) -> Any:
    import torch

    try:
        return torch.device(str(arguments.get("device") or "cpu"))
    except RuntimeError as error:
        raise UserError(f"--device {arguments['device']} is no device: {str(error).splitlines()[0]}") from None


class ShardExport:
    """One export. It has what receipt and card are made from, once it is written."""

    def __init__(self, recipe: Recipe, edits: StoredEdits, report: ProgressReport) -> None:
        self.recipe: Recipe | None = recipe
        self.applied: AppliedRecipe | None = None
        self.loaded_from = str(edits.stored.folder)
        self.dequantized_from: str | None = None
        self._edits = edits
        self._stored = edits.stored
        self._report = report
        self._label = recipe.label
        self._digests: dict[str, str] = {}
        self._done: dict[int, MatrixRecord] = {}

    @property
    def model(self) -> PreTrainedModel:
        """The model, without memory for its weights."""
        return self._stored.model

    @property
    def weights(self) -> Weights:
        """The weights, of which the digests are known."""
        return self._edits.weights

    def totals(self) -> dict[str, Any]:
        """Parameters, bytes and operations of the model, before and after the edits."""
        assert self.applied is not None
        return totals(self.weights.size, self.applied.records).to_json()

    def write(self, place: Path, arguments: Mapping[str, Any], model_name: str, command: list[str]) -> int:
        """Write all of it to a new folder. Returns the number of layers whose factors were multiplied out. Raises
        UserError, and VariantFailed where numbers are at fault.
        """
        try:
            with rundir.writing_on(place, self.key(arguments), _can_go_on) as folder:
                self._refuse_small_disk(place, folder)
                return self.fill(folder, arguments, model_name, command)
        except (UserError, VariantFailed):
            raise
        except Exception as error:
            if (trouble := disk_trouble(error)) is None:
                raise
            raise UserError(
                f"{place} cannot be written: {trouble}; make room and run the same command again, which goes on from"
                " the last whole file, or name another folder with --out"
            ) from error

    def key(self, arguments: Mapping[str, Any]) -> str:
        """What tells the written numbers from others. arguments: of the model."""
        return _key(self.recipe, self._stored, arguments)

    @property
    def size(self) -> int:
        """Bytes of the weights that are written."""
        return sum(place.tensor.element_bytes * _count(place.tensor.shape) for place in self._stored.places.values())

    def fill(self, folder: Path, arguments: Mapping[str, Any], model_name: str, command: list[str]) -> int:
        """Write all of it into a folder, or what is not there of it; otherwise as `write`. Raises OSError where the
        disk has no room.
        """
        what = f"{self._label}: editing shard by shard"
        with self._report.progress.stage(what, self._edits.count, "matrices"):
            self._write_shards(folder, ResumeState(folder))
        self._finish(folder)
        return self._describe(folder, arguments, model_name, command)

    def _refuse_small_disk(self, place: Path, folder: Path) -> None:
        """Say before hours are spent that there is no room for what is still to be written."""
        there = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        free = shutil.disk_usage(folder).free
        if self.size - there > free:
            raise UserError(
                f"{place} cannot be written: it takes {(self.size - there) / 2**30:,.1f} GiB and {free / 2**30:,.1f}"
                " GiB are free; make room, or name another folder with --out"
            )

    def _write_shards(self, folder: Path, state: ResumeState) -> None:
        whole = {row["file"]: row for row in state.rows(_SHARDS)}
        for file in self._stored.files:
            row = whole.get(file)
            if row is None or self._parts_in(folder / file) != row["parts"]:
                row = self._written(folder, file)
                state.append(_SHARDS, row)
            else:
                self._report.progress.advance(len(row["edits"]))
            self._digests |= row["digests"]
            self._done |= {place: MatrixRecord.model_validate(record) for place, record in row["edits"]}

    def _written(self, folder: Path, file: str) -> dict[str, Any]:
        """Write one file, and return what is to be known of it."""
        edits: list[PlacedEdit] = []
        digests: dict[str, str] = {}
        of_parts: list[str] = []

        def parts() -> Iterator[Tensor]:
            for unit in self._stored.in_file(file):
                edited = self._edits.edited(unit)
                if unit.expert is None:
                    digests[unit.parameter] = edited.digest
                edits.extend(edited.edits)
                self._report.progress.advance(len(edited.edits))
                for name, piece in self._stored.pieces_of(unit, edited.value):
                    if self._stored.places[name].path.name == file:
                        of_parts.append(edited.digest if piece is edited.value else tensor_digest(piece))
                        yield piece
                del edited

        write_shard(folder / file, self._stored.entries(file), parts())
        rows = [[edit.place, edit.record.to_json()] for edit in edits]
        return {"file": file, "parts": of_parts, "edits": rows, "digests": digests}

    def _parts_in(self, path: Path) -> list[str] | None:
        """The digests of what a written file holds, part by part; None where it is not whole."""
        try:
            places = read_places(path)
            return [
                tensor_digest(read_tensor(places[name], unit.row))
                for unit in self._stored.in_file(path.name)
                for name in unit.pieces
                if self._stored.places[name].path.name == path.name
            ]
        except (UserError, KeyError):
            return None

    def _finish(self, folder: Path) -> None:
        """The index, where there are several files, and the digests of parameters that lie in several tensors."""
        written = self._stored.moved(folder)
        names = [name for name, _ in self.model.named_parameters()]
        self._edits.weights.written = {name: self._digests.get(name) or written.digest_of(name) for name in names}
        records = [self._done[place] for place in sorted(self._done)]
        seconds = sum(record.seconds for record in records)
        edited = [EditedMatrix(record, None, None) for record in records]
        self.applied = AppliedRecipe(edited=edited, seconds_editing=seconds)
        if self._stored.files != [SINGLE]:
            weight_map = {name: place.path.name for name, place in sorted(written.places.items())}
            size = sum(place.tensor.element_bytes * _count(place.tensor.shape) for place in written.places.values())
            about = {"total_parameters": self.model.num_parameters(), "total_size": size}
            rundir.write_json(folder / INDEX, {"metadata": about, "weight_map": weight_map})

    def _describe(self, folder: Path, arguments: Mapping[str, Any], model_name: str, command: list[str]) -> int:
        """Config, tokenizer, receipt and card."""
        from harness_ext.lm_eval_adapter.fast_import import preload_hf

        preload_hf()
        from harness_ext.lm_eval_adapter.loaded_model import tokenizer_as_loaded

        assert self.applied is not None
        config = self.model.config
        config.dtype = str(self.model.dtype).removeprefix("torch.")
        config.architectures = [type(self.model).__name__]
        config.save_pretrained(folder)
        _save_generation_config(self.model, Path(self.loaded_from), folder)
        tokenizer_as_loaded(arguments, config).save_pretrained(folder)
        made_dense = sorted({record.name for record in self.applied.records if record.stored == FACTORS})
        asked = redacted_command(command)
        rundir.write_json(folder / rundir.RECEIPT, export_receipt(self, model_name, asked, made_dense))
        card = export_card(self, model_name, asked, made_dense)
        (folder / "README.md").write_text(card, encoding="utf-8")
        (folder / f"{_SHARDS}.jsonl").unlink()
        return len(made_dense)


def _save_generation_config(model: PreTrainedModel, source: Path, folder: Path) -> None:
    """The checkpoint's own, as loading would take it, or the one that follows from the config."""
    from transformers import GenerationConfig

    if not model.can_generate():
        return
    try:
        settings = GenerationConfig.from_pretrained(source)
    except OSError:
        settings = model.generation_config
    settings.save_pretrained(folder)


def _can_go_on(error: BaseException) -> bool:
    """Whether the same command can go on after this: the user stopped it, or the disk took no more."""
    return isinstance(error, KeyboardInterrupt) or disk_trouble(error) is not None


def _key(recipe: Recipe | None, stored: StoredModel, arguments: Mapping[str, Any]) -> str:
    """What tells an export from others: all that its numbers depend on. The files of the checkpoint by their size and
    their time, since to hash them takes as long as to read them.
    """
    assert recipe is not None
    paths = sorted({place.path for place in stored.places.values()})
    stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    made_as = [stored.model.config.to_dict(), [(unit.parameter, unit.expert, str(unit.dtype)) for unit in stored.units]]
    told = [recipe.recipe_id, recipe.revisions, stamps, made_as, arguments.get("device"), versions()]
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


def _count(shape: Sequence[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
