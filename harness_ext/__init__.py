"""From `--recipe` to a run directory: weight edits before lm-evaluation-harness scores a model.

    import harness_ext as recipes

    with recipes.apply(model, "laser") as applied:  # any loaded transformers model; undone on leaving, bit for bit
        print(applied.matrices)

Importing this package registers the backend `hf-recipe` with lm-eval, so that `simple_evaluate(model="hf-recipe", ...)`
works from Python. The registration is a placeholder: torch and transformers load when the backend is first used. The
other public names load when they are first asked for. It also has `AutoModelForCausalLM.from_pretrained` load factored
checkpoints (`lm_eval export --format factored`).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from harness_ext.model.registration import register_factored_checkpoints

if TYPE_CHECKING:
    from harness_ext.errors import UserError
    from harness_ext.lm_eval_adapter.task_index import task_manager
    from harness_ext.runs.python_api import apply, export, load_recipe, plan, run

__version__ = "0.1.0"

__all__ = ["UserError", "apply", "export", "load_recipe", "plan", "register_backend", "run", "task_manager"]

BACKEND = "hf-recipe"
BACKEND_TARGET = "harness_ext.lm_eval_adapter.backend:RecipeLM"

_PYTHON_API = "harness_ext.runs.python_api"
_MODULES = dict.fromkeys(("apply", "export", "load_recipe", "plan", "run"), _PYTHON_API) | {
    "UserError": "harness_ext.errors",
    "task_manager": "harness_ext.lm_eval_adapter.task_index",
}


def register_backend() -> None:
    """Make `hf-recipe` known to lm-eval's model registry; harmless where it is known already.

    Importing the package does it. Example: `lm_eval.simple_evaluate(model="hf-recipe", model_args=...)`.
    """
    # lm-eval fills its registry when this package is imported; an entry of ours made before would make it look filled.
    import lm_eval.models  # noqa: F401

    from harness_ext.lm_eval_adapter.borrowed import model_registry

    if BACKEND not in model_registry:
        model_registry.register(BACKEND, target=BACKEND_TARGET)


def __getattr__(name: str) -> Any:
    """A public name, loaded when first asked for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_backend()
register_factored_checkpoints()
