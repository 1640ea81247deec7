"""What is measured: each function yields the rows of one table, the first of them its head."""

from __future__ import annotations

import gc
import math
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

import harness_ext
from harness_ext.methods.search_registry import Search
from harness_ext.methods.statistic_registry import statistics_among
from harness_ext.recipe.recipe import Recipe, shipped_names
from harness_ext.recipe.schema import described
from tests.benchmarks.gpu.made_model import Shapes
from tests.benchmarks.gpu.timing import GIB, Floor, Peak, TimeUp, at_most, clock, seconds, settle

Row = tuple[str, ...]
FRACTIONS = (0.8, 0.6, 0.4, 0.2)
UNDECOMPOSED = frozenset({"noise", "magnitude", "wanda", "random_subspace", "contrast_projection"})
"""Methods that need no decomposition of a weight."""


@dataclass
class Bench:
    """What every section measures with. make: makes the model anew. limit: seconds of one measurement. ends: when no
    more is begun, by `time.monotonic`.
    """

    make: Callable[[], Any]
    tokenizer: Any
    documents: Sequence[tuple[str, str]]
    shapes: Shapes
    limit: float
    ends: float

    def __post_init__(self) -> None:
        self.model = self.make()
        self.device: torch.device = self.model.device
        self._sums = self._sums_now()
        text = [prompt + answer for prompt, answer in self.documents]
        tokens = torch.tensor([self.tokenizer.encode(one) for one in text], device=self.device)
        self.floor = Floor(self.model, list(tokens.split(16)))

    @property
    def left(self) -> float:
        """Seconds that the next measurement may take."""
        return min(self.limit, self.ends - time.monotonic())

    def _sums_now(self) -> list[float]:
        with torch.inference_mode():
            return [float(one.sum(dtype=torch.float64)) for one in self.model.parameters()]

    def mend(self) -> str:
        """Give back what is free; make the model anew where a measurement has left another."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if self._sums_now() == self._sums and all(one.grad is None for one in self.model.parameters()):
            return ""
        self.model = self.floor.model = None
        gc.collect()
        self.model = self.floor.model = self.make()
        return "; left the model changed"

    @contextmanager
    def applied(self, recipe: str | Recipe) -> Iterator[Any]:
        """A recipe on the model as a user has it, with an empty cache on disk."""
        learns = any(step.calibration is not None for step in harness_ext.load_recipe(recipe).steps)
        given = {"documents": self.documents} if learns else {}
        before = os.environ.get("LM_EVAL_RECIPES_CACHE")
        with tempfile.TemporaryDirectory() as cache:
            os.environ["LM_EVAL_RECIPES_CACHE"] = cache
            try:
                with harness_ext.apply(self.model, recipe, tokenizer=self.tokenizer, **given) as applied:
                    yield applied
            finally:
                os.environ.pop("LM_EVAL_RECIPES_CACHE")
                if before is not None:
                    os.environ["LM_EVAL_RECIPES_CACHE"] = before


def attempt(bench: Bench, name: str, columns: int, work: Callable[[], Row]) -> Row:
    """A row; where it could not be measured, one that says why."""
    if bench.left <= 0:
        return (name, *["-"] * (columns - 2), "not begun: no time left")
    limit = bench.left
    try:
        with at_most(limit):
            row = work()
        why = ""
    except TimeUp:
        why = f"longer than {limit:.0f} s"
    except Exception as error:
        why = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:120].replace("|", "/")
    return (name, *["-"] * (columns - 2), why + bench.mend()) if why else (*row[:-1], row[-1] + bench.mend())


def names(asked: Sequence[str]) -> list[str]:
    """The recipes to measure: those asked for, else all that are shipped, searches and training last."""
    shipped = [name for name in shipped_names() if name != "baseline"]
    return list(asked) or sorted(
        shipped, key=lambda name: harness_ext.load_recipe(name).group in ("search", "training")
    )


def recipes(bench: Bench, asked: Sequence[str]) -> Iterator[Row]:
    """Every recipe: seconds, its floor, and memory."""
    yield "recipe", "learn, s", "edit, s", "whole call, s", "floor, s", "ratio", "MiB beyond the model", "note"
    # What is set up once, libraries and the device's, is not the first recipe's.
    attempt(bench, "", 2, lambda: _recipe(bench, "svd:matrices=[q_proj],layers=[0],keep.rank=1")[:2])
    for name in names(asked):
        yield attempt(bench, name, 8, lambda name=name: _recipe(bench, name))


def _recipe(bench: Bench, name: str) -> Row:
    settle(bench.device)
    peak, started = Peak(bench.device), clock(bench.device)
    with bench.applied(name) as applied:
        settle(bench.device)
        whole, more = clock(bench.device) - started, peak.more()
        stages, frame = applied.receipt["seconds"], applied.matrices
    floor = _floor(bench, harness_ext.load_recipe(name), frame)
    note = f"{frame['name'].nunique()} matrices"
    learn, edit = stages["calibrate"], stages["edit"]
    ratio = f"{whole / floor:.1f}" if floor > 0 else "-"
    return name, f"{learn:.2f}", f"{edit:.2f}", f"{whole:.2f}", f"{floor:.2f}", ratio, f"{more / 2**20:,.0f}", note


def _floor(bench: Bench, recipe: Recipe, frame: Any) -> float:
    """One eigendecomposition of each matrix that got a rank, one copy of each that was edited, and one pass for each
    step that learns, with gradients where it needs them.
    """
    edited = frame.drop_duplicates("name")
    ranked = edited[edited["rank_after"].notna() & ~edited["method"].isin(UNDECOMPOSED)]
    decomposing = sum(bench.floor.eigenvectors(*shape) for shape in ranked["shape"])
    size = next(bench.model.parameters()).element_size()
    copying = sum(size * math.prod(shape) for shape in edited["shape"]) / bench.floor.rate()
    passes = sum(bench.floor.passes(_needs_gradients(step.method)) for step in recipe.steps if step.calibration)
    return decomposing + copying + passes


def _needs_gradients(method: str) -> bool:
    found = described(method)
    if isinstance(found, Search):
        return True
    return found.trains or found.searches or any(one.needs_gradients for one in statistics_among(found.statistics))


def factored(bench: Bench) -> Iterator[Row]:
    """The speed of low-rank layers against the dense model, measured before and after them."""
    batch, length = bench.shapes.prompts
    yield (
        "parameters kept",
        "matrices as factors",
        f"prefill {batch} x {length}, tokens/s",
        "of dense",
        "decode of 1, tokens/s",
        "of dense",
        f"decode of {batch}, tokens/s",
        "of dense",
        "note",
    )
    for fraction in FRACTIONS:
        yield attempt(bench, f"{fraction}", 9, lambda fraction=fraction: _factored(bench, fraction))


def _factored(bench: Bench, fraction: float) -> Row:
    before = _speeds(bench)
    with bench.applied(f"svd:factored=true,keep.param_fraction={fraction}"):
        ours = [one for name, one in bench.model.named_modules() if re.fullmatch(r"model\.layers\.\d+\..*_proj", name)]
        of = 7 * bench.shapes.layers
        dense = sum(type(one) is torch.nn.Linear for one in ours)
        speeds = _speeds(bench)
    after = _speeds(bench)
    cells = []
    for now, one, other in zip(speeds, before, after, strict=True):
        cells += [f"{now:,.0f}", f"{now / ((one + other) / 2):.2f}x"]
    return (f"{fraction}", f"{of - dense} of {of}", *cells, "")


def _speeds(bench: Bench) -> list[float]:
    """Tokens a second: of a prefill, of a decode of one sequence, and of a batch."""
    batch, length = bench.shapes.prompts
    tokens = torch.arange(batch * length, device=bench.device).reshape(batch, length) % 256

    @torch.inference_mode()
    def prefill() -> None:
        bench.model.model(input_ids=tokens, use_cache=False)

    prefill()
    prefills = batch * length / seconds(bench.device, prefill, 3)
    return [prefills, _decode(bench, tokens[:1, :64]), _decode(bench, tokens[:, :64])]


def _decode(bench: Bench, prompt: torch.Tensor) -> float:
    """Tokens a second, one at a time for each sequence, after the prompt was read."""

    @torch.inference_mode()
    def decode() -> float:
        out = bench.model(input_ids=prompt, use_cache=True)
        settle(bench.device)
        started = clock(bench.device)
        for _ in range(bench.shapes.new_tokens):
            following = out.logits[:, -1:].argmax(dim=-1)
            out = bench.model(input_ids=following, past_key_values=out.past_key_values, use_cache=True)
        settle(bench.device)
        return clock(bench.device) - started

    decode()
    return len(prompt) * bench.shapes.new_tokens / sorted(decode() for _ in range(3))[1]


def digests(bench: Bench) -> Iterator[Row]:
    """How fast stored bytes are hashed, against the copy alone and against SHA-256 of one core."""
    yield "what", "GiB", "s", "GiB/s", "note"
    size = sum(one.numel() * one.element_size() for one in bench.model.parameters())

    def row(name: str, bytes_: int, work: Callable[[], Any]) -> Row:
        taken = seconds(bench.device, work, 3)
        return name, f"{bytes_ / GIB:.2f}", f"{taken:.3f}", f"{bytes_ / GIB / taken:.2f}", ""

    def of_model() -> Row:
        from harness_ext.model.digests import model_digest

        return row("digest of all weights of the model", size, lambda: model_digest(bench.model))

    def of_one_core() -> Row:
        import hashlib

        block = torch.zeros(2**27, dtype=torch.uint8).numpy()
        return row("SHA-256, bytes in RAM, one core", 2**27, lambda: hashlib.sha256(block).hexdigest())

    def of_copy() -> Row:
        taken = size / bench.floor.rate()
        return "one copy to locked memory", f"{size / GIB:.2f}", f"{taken:.3f}", f"{size / GIB / taken:.2f}", ""

    yield attempt(bench, "digest of all weights of the model", 5, of_model)
    yield attempt(bench, "SHA-256, bytes in RAM, one core", 5, of_one_core)
    yield attempt(bench, "one copy to locked memory", 5, of_copy)


def decompositions(bench: Bench) -> Iterator[Row]:
    """A recipe's edit of one matrix against `torch.linalg.svd` and the product, least of three by the wall."""
    yield "matrix", "rank", "torch.linalg.svd, s", "ours, s", "ratio", "error of the least", "note"
    for projection in ("q_proj", "up_proj", "down_proj"):
        for share in (0.5, 0.01):
            work = lambda projection=projection, share=share: _decomposition(bench, projection, share)  # noqa: E731
            yield attempt(bench, projection, 7, work)


def _decomposition(bench: Bench, projection: str, share: float) -> Row:
    place = f"model.layers.0.{'self_attn' if projection == 'q_proj' else 'mlp'}.{projection}"
    weight = bench.model.get_submodule(place).weight
    rows, columns = weight.shape
    rank = max(1, int(share * min(rows, columns)))
    original = weight.detach().to(torch.float32, copy=True)

    def plainly() -> torch.Tensor:
        left, values, right = torch.linalg.svd(original, full_matrices=False)
        (left[:, :rank] * values[:rank] @ right[:rank]).to(weight.dtype)
        return values

    values = plainly()
    theirs = min(_wall(bench.device, plainly) for _ in range(3))
    recipe = harness_ext.load_recipe(f"svd:matrices=[{projection}],layers=[0],keep.rank={rank}")
    ours = []
    for _ in range(3):
        with bench.applied(recipe) as applied:
            edited = bench.model.get_submodule(place).weight.detach()
            error = float((edited.double() - original.double()).norm())
            ours.append(applied.receipt["seconds"]["edit"])
    ratio = error / float(values[rank:].double().norm())
    shape, best = f"{projection}, {rows} x {columns}", min(ours)
    return shape, str(rank), f"{theirs:.3f}", f"{best:.3f}", f"{theirs / best:.1f}x", f"{ratio:.5f}", ""


def _wall(device: torch.device, work: Callable[[], Any]) -> float:
    settle(device)
    started = time.perf_counter()
    work()
    settle(device)
    return time.perf_counter() - started
