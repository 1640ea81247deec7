"""A quicker start: the garbage collector is off while large libraries load.

Loading torch and transformers makes some two million objects that live until the end. Python's garbage collector walks
the young ones again and again meanwhile, frees nothing, and takes about a third of the time. So it is off while they
load, and what was loaded is kept out of later collections (`gc.freeze`), which makes those cheaper too. Only before
torch is there: later a model may be alive, or statistics may wait for the collector, and what is frozen is never freed.
"""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Load libraries, or make many objects that stay, inside this block; nests, and leaves the collector switched as it
    was.
    """
    was_enabled, holds_tensors = gc.isenabled(), "torch" in sys.modules
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
        if was_enabled and not holds_tensors:
            gc.freeze()
            # Extension modules that were loaded before complain at the end if the collector cannot reach their objects.
            atexit.unregister(gc.unfreeze)
            atexit.register(gc.unfreeze)


def preload_harness() -> None:
    """Load lm-eval's evaluator, with the data set libraries that it needs."""
    with quick_imports():
        import lm_eval.evaluator  # noqa: F401


def preload_hf() -> None:
    """Load all that lm-eval's Hugging Face backend needs before it knows the model: torch, and transformers as far as
    every model uses it.
    """
    with quick_imports():
        import lm_eval.evaluator
        import lm_eval.models.huggingface  # noqa: F401
        from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast  # noqa: F401
