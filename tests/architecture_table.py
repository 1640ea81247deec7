"""The table of architectures, as harness_ext/model/ARCHITECTURES.md shows it.

`python tests/architecture_table.py` prints the file, `--write` writes it; a slow test compares the two. Each row is
what a plan makes of the config of a tiny model, built without weights.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness_ext.model.architectures import ATTENTION, LATENT
from harness_ext.model.checkpoint import Checkpoint
from harness_ext.model.layout import Layout
from harness_ext.model.renames import as_loaded
from tests.tiny_models import NOT_BUILT, causal_types, tiny_config

TABLE = Path(__file__).resolve().parents[1] / "harness_ext" / "model" / "ARCHITECTURES.md"
INTRODUCTION = """# Architectures

Every model type that transformers {version} has a causal model of, {count} in all: the roles of its matrices, whether
they are declared (`architectures.py`, `expert_layouts.py`) or inferred from names (`inference.py`), whether its experts
are matrices of their own, and whether attention can be edited head by head. What has no role is still reached by globs
on parameter names. Of {built} types a tiny model is built in the tests, whose forward pass proves the roles.

Written by `python tests/architecture_table.py --write`, kept equal to the code by a test.

Roles: `q k v o` are `q_proj` to `o_proj`, `gate up down` those of the MLP; `q_a kv_a q_b kv_b` make queries, keys and
values through latents; `in out` are those of a mixer without attention. Experts "by glob" have no role.

| type | roles | which are | experts | per head | without a role, and why |
|---|---|---|---|---|---|
"""


class TableRow(NamedTuple):
    """One type. reasons: why matrices have no role, or why nothing is known."""

    model_type: str
    roles: str
    source: str
    experts: str
    per_head: str
    reasons: str

    def text(self) -> str:
        return "| " + " | ".join(self) + " |"


def rendered() -> str:
    """The whole file."""
    import transformers

    types = causal_types()
    rows = [row_of(model_type).text() for model_type in sorted(types)]
    introduction = INTRODUCTION.format(
        version=transformers.__version__, count=len(types), built=len(types) - len(NOT_BUILT)
    )
    return introduction + "\n".join(rows) + "\n"


def row_of(model_type: str) -> TableRow:
    """The row of a type, from the config of a tiny model of it."""
    try:
        loaded = as_loaded(Checkpoint(model_type, tiny_config(model_type).to_dict(), {}))
    except Exception:
        loaded = Checkpoint(model_type, {}, {})
    if not loaded.tensors:
        return TableRow(model_type, "", "not tried", "", "", NOT_BUILT[model_type])
    shapes = {name: tensor.shape for name, tensor in loaded.tensors.items()}
    layout = Layout(loaded.config, shapes, loaded.shared, loaded.modules)
    return TableRow(
        model_type,
        " ".join(role.removesuffix("_proj") for role in layout.roles),
        _source(layout),
        _experts(layout, shapes),
        ("yes" if layout.no_heads is None else "no") if set(layout.roles) & {*ATTENTION, *LATENT} else "",
        _reasons(layout),
    )


def _source(layout: Layout) -> str:
    if layout.architecture is not None:
        return "declared"
    return "inferred" if layout.inferred else "experts alone" if layout.roles else "none"


def _experts(layout: Layout, shapes: dict[str, tuple[int, ...]]) -> str:
    if any(matrix.expert is not None for matrix in layout.matrices):
        return "yes"
    return "by glob" if any("experts" in name and len(shape) == 3 for name, shape in shapes.items()) else ""


def _reasons(layout: Layout) -> str:
    complete = {"q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"} <= set(layout.roles)
    if layout.architecture is not None or complete:
        return ""
    return "; ".join(layout.reasons)


def main() -> None:
    """Print the file, or write it."""
    parser = argparse.ArgumentParser(description="The table of architectures.")
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.name}")
    if parser.parse_args().write:
        TABLE.write_text(rendered(), encoding="utf-8")
    else:
        print(rendered(), end="")


if __name__ == "__main__":
    main()
