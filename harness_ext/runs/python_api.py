"""The front door in Python: what `import harness_ext` offers, each function the same as a command's work.

All of it raises UserError, whose message says what is wrong and what to do, for everything that a user can mend.
"""

from __future__ import annotations

import difflib
import io
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from harness_ext.errors import UserError, nearest
from harness_ext.recipe.recipe import Recipe, parse_recipe, recipe_from
from harness_ext.runs.progress import ProgressReport, report_for
from leaderboard.readers.secrets import redacted

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from typing_extensions import Unpack

    from harness_ext.editing.plan import Plan
    from harness_ext.runs.applied_model import AppliedModel, CalibrationSource
    from harness_ext.runs.run_result import RunResult

AnyRecipe = str | Path | Mapping[str, Any] | Recipe


class ApplySettings(TypedDict, total=False):
    """Settings of `apply`. seed: of everything drawn, in place of the recipe's. batch_size: documents in one forward
    pass while learning. verbose: tell of progress on standard error. The others say how tasks build their prompts, as
    in lm-eval.
    """

    seed: int
    batch_size: int
    verbose: bool
    num_fewshot: int
    system_instruction: str
    apply_chat_template: bool | str
    fewshot_as_multiturn: bool
    include_path: str


class RunSettings(TypedDict, total=False):
    """Settings of `run`, named as the flags of `lm_eval run`. output_path: the folder of the results, by default
    `results`. limit: documents a task, or a share of them below 1. trackers: told of the runs once they are judged
    (wandb, trackio, mlflow). verbose: tell of progress on standard error.
    """

    num_fewshot: int
    batch_size: int | str
    max_batch_size: int
    device: str
    limit: float
    samples: Mapping[str, Sequence[int]]
    output_path: str | Path
    seed: int | Sequence[int | None]
    system_instruction: str
    apply_chat_template: bool | str
    fewshot_as_multiturn: bool
    include_path: str
    gen_kwargs: Mapping[str, Any] | str
    metadata: Mapping[str, Any]
    cache_requests: Mapping[str, bool]
    trust_remote_code: bool
    confirm_run_unsafe_code: bool
    trackers: Sequence[str] | str
    verbose: bool


def load_recipe(recipe: AnyRecipe) -> Recipe:
    """A checked recipe, every default filled in.

    recipe: what the command takes (`laser`, `laser:keep.rank=4`, `mine.yaml`), a path, the plain data that such a file
    holds, or a recipe already.

    Raises RecipeError, a UserError, naming every mistake found, and TypeError for anything else.

        >>> load_recipe("laser:keep.rank=4").steps[0].keep.rank
        4
    """
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, Mapping):
        return recipe_from(recipe, origin=str(recipe.get("name", "given")))
    if not isinstance(recipe, (str, Path)):
        raise TypeError(f"a recipe is a name, a path, a mapping or a Recipe, not {type(recipe).__name__}")
    return parse_recipe(str(recipe))


def plan(recipe: AnyRecipe, *, pretrained: str, **model_args: Any) -> Plan:
    """What a recipe would do to a model, from its config and the headers of its checkpoint; no weight is read.

    pretrained: a hub name, a local folder, or `demo` for the embedded model. model_args: as in lm-eval; of these
    `revision`, `subfolder` and those that spread a model over memory matter. The plan has every matrix with its shape
    and ranks, parameters and bytes before and after, and the expected time in seconds and memory in bytes.

    Raises UserError where the recipe does not fit the model or the checkpoint has no headers to plan from, and
    TypeError for a misspelt argument.

        >>> plan("svd:keep.rank=2", pretrained="demo").matrices[0].rank_after
        2
    """
    from harness_ext.lm_eval_adapter.admission import check_all
    from harness_ext.runs.run_config import resolve_demo

    tokens = model_args.pop("tokens", None)
    _check_model_args("plan", model_args)
    checked = load_recipe(recipe)
    arguments = resolve_demo("hf", {**model_args, "pretrained": pretrained})
    check_all(arguments, [checked])
    return plan_from_headers(checked, arguments, tokens)


def plan_from_headers(recipe: Recipe, model_args: Mapping[str, Any], tokens: int | None = None) -> Plan:
    """`plan`, for arguments as a command gives them: with `pretrained`, and not checked. Raises UserError."""
    from harness_ext.editing import plan as planning
    from harness_ext.model.checkpoint import read_checkpoint
    from harness_ext.model.completeness import check_headers
    from harness_ext.model.offload import may_offload
    from harness_ext.runs.run_config import resolve_demo

    arguments = resolve_demo("hf", model_args)
    if gguf := arguments.get("gguf_file"):
        raise UserError(f"{gguf} has no safetensors headers to plan from; the recipe can still be run")
    checkpoint = read_checkpoint(
        str(arguments["pretrained"]), str(arguments.get("revision") or "main"), str(arguments.get("subfolder") or "")
    )
    check_headers(checkpoint)
    planned = planning.plan(recipe, checkpoint, str(arguments.get("device") or "cpu"), tokens or planning.TOKENS)
    return replace(planned, spread=may_offload(arguments))


def apply(
    model: PreTrainedModel,
    recipe: AnyRecipe,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    tasks: Sequence[str] | str | None = None,
    documents: Sequence[tuple[str, str]] | None = None,
    texts: Sequence[str] | None = None,
    **settings: Unpack[ApplySettings],
) -> AppliedModel:
    """Apply a recipe to a loaded model, in place, on its own device and in its dtype; undone, bit for bit, when the
    `with` block is left.

    recipe: as `load_recipe` takes it. tokenizer: the model's; only a recipe that reads texts needs it. Such a recipe
    learns from one of: tasks (documents of their training splits, drawn as the command does; none that they score),
    documents (prompts with their right answers, each answer beginning with the space that stands between them) or texts
    (for recipes that need no answers). settings: see `ApplySettings`.

    The result has `receipt` (a dict with the keys of receipt.json; `receipt["warnings"]` lists what is doubtful about
    the edit), `matrices` (a DataFrame, one row a matrix) and `undo`. Without `with` the edit stays until `undo` is
    called, so keep the result: once it is dropped, the edit stays for good. Do not change the model's dtype while a
    recipe is applied: it cannot be undone then. The model keeps its mode, and a failure in the middle leaves it as it
    was.

    Raises UserError where the recipe does not fit the model, nothing is given to learn from, or a recipe is applied
    already. Warns where something is given to learn from and the recipe learns nothing.

        with harness_ext.apply(model, "svd-llm", tokenizer=tok, texts=["Paris is in France.", ...]) as applied:
            print(applied.matrices[["name", "rank_after", "relative_error"]])
            model.generate(**tok("Paris is", return_tensors="pt"))
    """
    from harness_ext.runs.applied_model import CalibrationSource, apply_to_model

    _check_names("apply", settings, ApplySettings)
    asked: dict[str, Any] = dict(settings)
    verbose = bool(asked.pop("verbose", False))
    changed = _with_settings(load_recipe(recipe), asked.pop("seed", None), asked.pop("batch_size", None))
    with _reporting(verbose) as report:
        source = CalibrationSource(tasks, documents, texts, asked)
        _warn_of_unused(source, changed, report)
        return apply_to_model(model, changed, tokenizer, source, report)


def run(
    *,
    model: str = "hf",
    model_args: Mapping[str, Any] | str,
    tasks: Sequence[str] | str,
    recipes: Iterable[AnyRecipe] | str,
    controls: Iterable[str] | str = (),
    **settings: Unpack[RunSettings],
) -> RunResult:
    """Score a model unedited, under every recipe, and under the controls of each, as `lm_eval run --recipe` does; runs
    that are there already are not made again.

    model_args: as in lm-eval, a mapping or `key=value,...`, with `pretrained`. recipes: as `load_recipe` takes each.
    settings: see `RunSettings`. The result has the run folders, the judged cells, and both as a table (`to_frame`); a
    recipe that could not be carried through is in its `failed`, and a control that could not be run is warned of.
    Nothing is printed unless `verbose=True`.

    Raises UserError for mistakes, before anything is computed where they can be seen then, and LeaderboardError for a
    database in the results folder that cannot be used.

        >>> result = run(model_args={"pretrained": "demo"}, tasks=["int_mult"], recipes=["laser"], limit=20)
        >>> result.to_frame()[["task", "recipe", "metric", "score", "verdict"]]
    """
    from harness_ext.runs.execution import execute
    from harness_ext.runs.run_config import harness_config, recipe_run_config
    from harness_ext.runs.run_result import judged_runs, run_result
    from harness_ext.runs.trackers import asked_trackers, track, tracked_runs

    _check_names("run", settings, RunSettings)
    asked = {"model": model, "model_args": _copied(model_args), "tasks": _copied(tasks), **settings}
    verbose, trackers = bool(asked.pop("verbose", False)), asked_trackers(asked.pop("trackers", None), "trackers:")
    if "output_path" in asked:
        asked["output_path"] = str(asked["output_path"])
    names = [controls] if isinstance(controls, str) else list(controls)
    loaded = [load_recipe(recipe) for recipe in ([recipes] if isinstance(recipes, str) else recipes)]
    if not loaded:
        raise UserError("recipes is empty: name at least one")
    with _reporting(verbose) as report:
        told = {**asked, "recipes": [recipe.label for recipe in loaded], "controls": names}
        command = (redacted(f"harness_ext.run({', '.join(f'{key}={value!r}' for key, value in told.items())})"),)
        config = recipe_run_config(harness_config(asked), loaded, names, command)
        executed = execute(config, report)
        judged = judged_runs(executed, report)
        if trackers:
            runs = [outcome.run for outcome in executed.outcomes]
            track(trackers, tracked_runs(runs, judged, config.secrets), report)
    if executed.mistake is not None:
        raise executed.mistake
    return run_result(executed, judged, names)


def export(
    recipe: AnyRecipe,
    out: str | Path,
    *,
    pretrained: str,
    tasks: Sequence[str] | str | None = None,
    documents: Sequence[tuple[str, str]] | None = None,
    texts: Sequence[str] | None = None,
    **model_args: Any,
) -> Path:
    """Load a model, apply a recipe and write the result as a checkpoint that plain transformers loads: safetensors,
    tokenizer, receipt.json and a model card.

    out: the folder to write, which must not exist. pretrained: a hub name, a local folder, or `demo`. tasks, documents,
    texts: what a recipe that learns learns from, as in `apply`. model_args: as in lm-eval; `device` is by default the
    CPU. One more, `shards`, is ours: the checkpoint is edited and written file by file, without loading the model,
    where that is possible; True refuses any other way, False loads the model. `layers_on` names a device for the
    decoder layer at hand alone, while the model stays in memory. Returns the folder. Matrices that the
    recipe computes as two low-rank layers are written as their products; `format="factored"` or `"pifa"`, ours too,
    writes a factored checkpoint instead (see `harness_ext.runs.factored_export`).

    Raises UserError where the folder exists, the recipe does not fit the model, or the architecture cannot hold a bias
    that the recipe adds, and TypeError for a misspelt argument.

        >>> export("laser", "edited", pretrained="demo")
        PosixPath('edited')
    """
    from harness_ext.runs.applied_model import CalibrationSource
    from harness_ext.runs.export import export_recipe
    from harness_ext.runs.factored_export import Destination, export_factored_recipe, refuse_shards
    from harness_ext.runs.shard_export import export_by_shards

    form, shards, layers_on = (model_args.pop(name, None) for name in ("format", "shards", "layers_on"))
    form = form or "dense"
    _check_model_args("export", model_args)
    loaded, place = load_recipe(recipe), Path(out)
    source = CalibrationSource(tasks, documents, texts)
    source.check(loaded)
    with _reporting(False) as report:
        _warn_of_unused(source, loaded, report)
        arguments = {"device": "cpu", **model_args, "pretrained": pretrained}
        asked = arguments if layers_on is None else arguments | {"layers_on": layers_on}
        told = {"pretrained": pretrained, **model_args} | ({"format": form} if form != "dense" else {})
        command = [_export_command(loaded, out, source, told)]
        if form != "dense":
            refuse_shards(shards)
            export_factored_recipe(loaded, Destination(place, form), asked, source, command, report)
            return place
        if shards is not False:
            done = export_by_shards(loaded, place, arguments, command, report, required=shards is True)
            if done is not None:
                return place
        export_recipe(loaded, place, asked, source, command, report)
    return place


def _export_command(recipe: Recipe, out: str | Path, source: CalibrationSource, model_args: Mapping[str, Any]) -> str:
    """The call, for receipt and card: documents and texts by their number, since they may be long, and no token."""
    told = {key: repr(value) for key, value in model_args.items()}
    if source.tasks is not None:
        told["tasks"] = repr(_copied(source.tasks))
    for name in ("documents", "texts"):
        given = getattr(source, name)
        if given is not None:
            told[name] = f"[... {len(given)} {name}]" if isinstance(given, Sequence) else "[...]"
    arguments = [repr(recipe.label), repr(str(out)), *(f"{key}={value}" for key, value in told.items())]
    return redacted(f"harness_ext.export({', '.join(arguments)})")


def _warn_of_unused(source: CalibrationSource, recipe: Recipe, report: ProgressReport) -> None:
    unused = source.unused(recipe)
    if unused is not None:
        report.warn(unused)


def _copied(value: Any) -> Any:
    """lm-eval changes what it is given."""
    return value if isinstance(value, str) else dict(value) if isinstance(value, Mapping) else list(value)


def _check_names(function: str, settings: Mapping[str, Any], known: type) -> None:
    for name in settings:
        if name not in known.__annotations__:
            raise TypeError(
                f"{function}() got an unexpected keyword argument {name!r}; {nearest(name, known.__annotations__)}"
            )


_MODEL_ARGS = (
    *("add_bos_token", "attn_implementation", "autogptq", "backend", "batch_size", "cache_dir", "chat_template_args"),
    *("config", "delta", "dequantize", "device", "device_map", "dtype", "enable_thinking", "experts_implementation"),
    *("force_download", "gguf_file", "gptqmodel", "key_mapping", "load_in_4bit", "load_in_8bit", "local_files_only"),
    *("logits_cache",),
    *("low_cpu_mem_usage", "max_batch_size", "max_cpu_memory", "max_length", "max_memory", "max_memory_per_gpu"),
    *("mixed_precision_dtype", "offload_buffers", "offload_folder", "offload_state_dict", "parallelize", "peft"),
    *("prefix_token_id", "proxies", "quantization_config", "revision", "softmax_dtype", "subfolder", "think_end_token"),
    *("token", "tokenizer", "torch_dtype", "tp_plan", "tp_size", "truncation", "trust_remote_code"),
    *("use_fast_tokenizer", "use_kernels", "use_safetensors", "variant", "weights_only"),
)
"""Arguments of models that lm-eval and transformers know; others are handed on to the model's config."""


def _check_model_args(function: str, model_args: Mapping[str, Any]) -> None:
    """Raise TypeError for what is nearly, but not quite, an argument that is known."""
    for name in model_args:
        if name not in _MODEL_ARGS and (close := difflib.get_close_matches(name, _MODEL_ARGS, n=1, cutoff=0.85)):
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}; did you mean {close[0]!r}?")


def _with_settings(recipe: Recipe, seed: int | None, batch_size: int | None) -> Recipe:
    """The recipe with a seed, and a batch size of its calibration, in place of its own. Raises RecipeError for values
    that a recipe cannot have.
    """
    if seed is None and batch_size is None:
        return recipe
    data = recipe.resolved()
    for step in data["steps"]:
        step |= {} if seed is None else {"seed": seed}
        if "calibration" in step:
            step["calibration"] |= {} if seed is None else {"seed": seed}
            step["calibration"] |= {} if batch_size is None else {"batch_size": batch_size}
    return recipe.model_copy(update={"steps": recipe_from(data, origin=recipe.label).steps})


class _Collecting(ProgressReport):
    """A report that says nothing, and keeps what the user must know."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        """Keep the text for the end."""
        self.warnings.append(text)

    def not_run(self, what: str, reason: str) -> None:
        """The command says so in its news, which is not told here."""
        self.warn(f"{what}: not run, since {reason}")


@contextmanager
def _reporting(verbose: bool) -> Iterator[ProgressReport]:
    """A report for the block: the command's, or one that is silent, with the libraries silent as well and what the user
    must know as Python warnings at the end.
    """
    if verbose:
        yield report_for(None)
        return
    report, log = _Collecting(), logging.getLogger("lm_eval")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        # Libraries draw progress bars there whatever they are told.
        with redirect_stderr(io.StringIO()):
            yield report
    finally:
        log.setLevel(before)
    for text in report.warnings:
        warnings.warn(text, stacklevel=4)
