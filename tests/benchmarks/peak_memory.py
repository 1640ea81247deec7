"""Load a model, then apply and undo one recipe after another; prints the resident memory after loading and its peak
during each recipe, in MiB, and how many tokens a document has, as JSON (Linux).

    python peak_memory.py MODEL RECIPE...

One process serves them all: the kernel is told to forget the peak before each recipe, and the C library to give back
what is free. What is loaded once, such as lm-eval's tasks, is loaded before the first figure.
"""

from __future__ import annotations

import ctypes
import gc
import json
import re
import sys
from pathlib import Path


def resident_mib(what: str) -> float:
    """`VmRSS`, the resident set now, or `VmHWM`, its peak."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def settle() -> None:
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def main(model: str, recipes: list[str]) -> None:
    from harness_ext.lm_eval_adapter.backend import RecipeLM
    from harness_ext.lm_eval_adapter.learned_documents import documents_of_named_tasks
    from harness_ext.recipe.recipe import parse_recipe

    lm = RecipeLM(model, device="cpu")
    digest = lm.weights.digest()
    lm.apply(
        parse_recipe("asvd:layers=[0],matrices=[k_proj],calibration.task=int_mult,calibration.samples=2"),
        documents_of_named_tasks,
    )
    assert lm.applied is not None
    learned = [document for _, drawn in lm.applied.calibration for document in drawn.documents]
    tokens = sum(len(lm.tok_encode(one.context + one.answer)) for one in learned) / len(learned)
    lm.undo()
    settle()
    print("PEAK " + json.dumps({"loaded": resident_mib("VmRSS"), "tokens": tokens}), flush=True)
    for recipe in recipes:
        settle()
        Path("/proc/self/clear_refs").write_text("5")
        lm.apply(parse_recipe(recipe), documents_of_named_tasks)
        peak = resident_mib("VmHWM")
        lm.undo()
        print("PEAK " + json.dumps({recipe: peak}), flush=True)
    assert lm.weights.digest() == digest


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
