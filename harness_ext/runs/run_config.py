"""What a run with recipes is configured by, for the command line and for Python: lm-eval's configuration, checked for
settings that make no sense with a recipe.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness_ext.errors import UserError
from harness_ext.lm_eval_adapter.config import RunConfig
from harness_ext.lm_eval_adapter.engines import ENGINES, check_engine, editing_arguments
from harness_ext.lm_eval_adapter.flag_values import check_batch_size, check_device, check_limit
from harness_ext.ranks.group import current
from harness_ext.ranks.launch import check_all_started, check_model, check_nodes, launched
from harness_ext.storage.remote import RemoteResults, is_remote

if TYPE_CHECKING:
    from lm_eval.config.evaluate_config import EvaluatorConfig

    from harness_ext.recipe.recipe import Recipe

HF_BACKENDS = frozenset({"hf", "hf-auto", "huggingface"})
RECIPE_BACKENDS = HF_BACKENDS | {"hf-recipe"}
DEMO = "demo"


def harness_config(settings: Mapping[str, Any]) -> EvaluatorConfig:
    """lm-eval's configuration from settings by the names of its flags; samples are always logged, since the paired
    statistics need them, and results go to the folder `results` unless `output_path` says otherwise.

    Raises UserError for what lm-eval refuses, in its own words.
    """
    from lm_eval.config.evaluate_config import EvaluatorConfig

    asked = {key: value for key, value in settings.items() if value is not None}
    try:
        return EvaluatorConfig.from_cli(Namespace(**{"output_path": "results", **asked, "log_samples": True}))
    except (OSError, TypeError, ValueError) as error:
        raise UserError(str(error)) from error


def recipe_run_config(
    harness: EvaluatorConfig, recipes: Sequence[str | Recipe], controls: Sequence[str], command: Sequence[str]
) -> RunConfig:
    """Settle what recipes need in lm-eval's configuration. command: how the run was asked for, for its receipts.

    Raises UserError for settings that make no sense with a recipe.
    """
    if not recipes:
        raise UserError(
            "--control needs --recipe: a control is compared with the recipe whose budget it takes; name both, for"
            " example --recipe laser --control random-subspace"
        )
    _refuse(harness)
    # lm-eval reads a folder called `nan` or `7` as a number.
    harness.model_args["pretrained"] = name = str(harness.model_args["pretrained"])
    harness.model_args = resolve_demo(harness.model, harness.model_args)
    # lm-eval merges model_args into the metadata of tasks (for those that need a tokenizer), so the folder goes there
    # too.
    harness.metadata = {
        **harness.metadata,
        **{key: harness.model_args[key] for key in ("pretrained",) if key in harness.metadata},
    }
    remote = RemoteResults(str(harness.output_path)) if is_remote(harness.output_path) else None
    if remote is not None:
        harness.output_path = str(remote.mirror)
    return RunConfig(harness, tuple(recipes), tuple(controls), name, tuple(command), remote)


def _refuse(harness: EvaluatorConfig) -> None:
    from harness_ext.lm_eval_adapter.admission import check_arguments, refuse_backend

    _check_launch(harness)
    engine = ENGINES.get(str(harness.model))
    if harness.model not in RECIPE_BACKENDS and engine is None:
        refuse_backend(str(harness.model))
    if not harness.model_args.get("pretrained"):
        raise UserError(
            "no model given: add --model_args pretrained=NAME (a hub name, a local folder, or `demo` for the embedded"
            " model)"
        )
    if engine is not None:
        check_engine(engine, harness.model_args)
    check_arguments(harness.model_args if engine is None else editing_arguments(engine, harness.model_args))
    if "recipe" in harness.model_args:
        raise UserError("the recipe is given twice: by --recipe and by `recipe=` in --model_args; keep one of them")
    if harness.predict_only:
        raise UserError("--predict_only computes no scores, and --recipe compares scores: leave one of them out")
    if harness.use_cache:
        raise UserError(
            "--use_cache cannot be combined with --recipe: its cache is keyed by the model's name and would return the"
            " unedited model's answers; leave it out (finished recipes are not run again anyway)"
        )
    if harness.cache_requests.get("cache_requests"):
        raise UserError(
            "--cache_requests cannot be combined with --recipe: its cache is keyed by the task's name and would return"
            " the prompts of an earlier version of the task; leave it out"
        )
    try:
        flag = "--batch_size"
        check_batch_size(harness.batch_size)
        flag = "--device"
        check_device(harness.device)
        flag = "--limit"
        check_limit(1 if harness.limit is None else harness.limit)
    except ValueError as error:
        raise UserError(f"{flag} {error}") from None
    if not harness.tasks:
        raise UserError("no task given: add --tasks NAME[,NAME...] (`lm_eval ls tasks` lists them)")


def _check_launch(harness: EvaluatorConfig) -> None:
    check_nodes()
    check_all_started()
    check_model(str(harness.model), harness.model_args)
    if launched().ranks > 1 and current().ranks == 1:
        raise UserError(
            "harness_ext.run is one process, and this is one of several: start `accelerate launch -m harness_ext run"
            " ... --recipe ...` instead"
        )


def resolve_demo(model: str | None, model_args: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `model_args` in which `pretrained=demo` is the folder of the embedded model.

    Only for the Hugging Face backends and for engines, and not where the working directory has a model folder of that
    name, which lm-eval would load.
    """
    resolved = dict(model_args)
    if (model or "hf") not in (*RECIPE_BACKENDS, *ENGINES) or resolved.get("pretrained") != DEMO:
        return resolved
    if (Path(DEMO) / "config.json").is_file():
        print(f"note: {DEMO} is taken to be the folder ./{DEMO}, not the embedded model", file=sys.stderr)
        return resolved
    from harness_ext.demo import demo_path

    resolved["pretrained"] = str(demo_path())
    return resolved
