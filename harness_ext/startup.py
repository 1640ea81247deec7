"""A quicker start: what can be saved while libraries load, without touching them.

Notable choice. Importing torch and transformers allocates some two million objects that live until the end. Python's garbage collector
walks the young ones again and again meanwhile, finds nothing, and takes a quarter of the time. So it is off while they load, and what
was loaded is moved out of its sight afterwards, which also makes every later collection cheaper.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Load libraries inside this block; nests, and leaves the collector as it found it."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.freeze()
            gc.enable()
