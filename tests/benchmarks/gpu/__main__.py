"""Time and memory of every recipe on a model of 7B's shapes made of random numbers, against the least that the device
allows, measured in the same run; the speed of factored layers; digests; decompositions. Prints tables in Markdown.

    python -m tests.benchmarks.gpu [--device cuda|cpu] [--shapes 7b|small] [--layers N] [--recipes NAME ...]

It needs the package and PyTorch, and reads nothing from a network. A recipe that fails, or runs longer than its limit,
is a row that says so.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

SECTIONS = ("digests", "decompositions", "factored", "recipes")


def main() -> None:
    """Measure what the command line asks for."""
    asked = _arguments()
    started = time.monotonic()
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        os.environ.setdefault(name, "1")
    import torch

    from tests.benchmarks.gpu import sections
    from tests.benchmarks.gpu.made_model import SHAPES, made_documents, made_model, made_tokenizer

    device = torch.device(asked.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    shapes = SHAPES[asked.shapes or ("7b" if device.type == "cuda" else "small")]
    shapes = shapes._replace(
        **{key: value for key in ("layers", "documents", "tokens") if (value := getattr(asked, key)) is not None}
    )
    bench = sections.Bench(
        make=lambda: made_model(shapes, device, dtype),
        tokenizer=made_tokenizer(),
        documents=made_documents(shapes),
        shapes=shapes,
        limit=asked.limit,
        ends=started + 60 * asked.minutes,
    )
    bytes_ = sum(one.numel() * one.element_size() for one in bench.model.parameters())
    print(
        f"{_name_of(device)}, torch {torch.__version__}, {torch.get_num_threads()} threads; Llama of {shapes.layers}"
        f" layers, {shapes.width} x {shapes.inner}, {str(dtype).removeprefix('torch.')}, {bytes_ / 2**30:.2f} GiB;"
        f" {shapes.documents} documents of {shapes.tokens} tokens; seconds of the"
        f" {'wall' if device.type == 'cuda' else 'processor, to learn and to edit of the wall'}",
        flush=True,
    )
    for section in asked.sections:
        measure = getattr(sections, section)
        print(f"\n### {section.capitalize()}\n", flush=True)
        _print(measure(bench, asked.recipes) if section == "recipes" else measure(bench))
    print(f"\n{(time.monotonic() - started) / 60:.1f} minutes in all", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.gpu", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--device", help="cuda, where there is one, or cpu")
    parser.add_argument("--shapes", choices=("7b", "small"), help="by default 7b on a GPU, small on a CPU")
    parser.add_argument("--layers", type=int, help="by default 8, and 2 of the small shapes")
    parser.add_argument("--documents", type=int, help="that recipes learn from")
    parser.add_argument("--tokens", type=int, help="of each document")
    parser.add_argument("--recipes", nargs="+", default=[], help="by default all that are shipped")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--limit", type=float, default=300, help="seconds of one row")
    parser.add_argument("--minutes", type=float, default=60, help="after which no row is begun or goes on")
    return parser.parse_args()


def _name_of(device: object) -> str:
    import torch

    if getattr(device, "type", "") == "cuda":
        return torch.cuda.get_device_name()
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return f"{found[1] if found else platform.processor()}, {os.cpu_count()} cores"


def _print(rows: Iterator[tuple[str, ...]]) -> None:
    for number, row in enumerate(rows):
        print(f"| {' | '.join(row)} |", flush=True)
        if not number:
            print("|" + "---|" * len(row), flush=True)


if __name__ == "__main__":
    sys.exit(main())
