"""From `--recipe` to a run directory: weight edits before lm-evaluation-harness scores a model.

Importing this package registers the backend `hf-recipe` with lm-eval, so that `simple_evaluate(model="hf-recipe", ...)`
works from Python. The registration is a placeholder: torch and transformers load when the backend is first used.
"""

from __future__ import annotations

__version__ = "0.1.0"

BACKEND = "hf-recipe"
BACKEND_TARGET = "harness_ext.lm_eval_adapter.backend:RecipeLM"


def register_backend() -> None:
    """Make `hf-recipe` known to lm-eval's model registry; harmless where it is known already."""
    # lm-eval fills its registry when this package is imported; an entry of ours made before would make it look filled.
    import lm_eval.models  # noqa: F401

    from harness_ext.lm_eval_adapter.borrowed import model_registry

    if BACKEND not in model_registry:
        model_registry.register(BACKEND, target=BACKEND_TARGET)


register_backend()
