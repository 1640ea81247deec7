"""The heads of an attention, from a config, and the rows that a role has in a matrix that several share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Ranges = tuple[tuple[int, int], ...]
"""Half-open ranges of rows or columns, in order."""

_FUSED_ROLES = ("q_proj", "k_proj", "v_proj")


@dataclass(frozen=True)
class Heads:
    """The attention geometry: query heads, key and value heads (fewer where grouped), and the width of one."""

    queries: int
    key_values: int
    width: int


Rows = Callable[[Heads, int], Ranges]
"""The rows of a role, from the attention geometry and the number of rows of the whole parameter."""


def llama_heads(config: Mapping[str, Any]) -> Heads:
    queries = int(config["num_attention_heads"])
    width = config.get("head_dim") or int(config["hidden_size"]) // queries
    return Heads(queries, int(config.get("num_key_value_heads") or queries), int(width))


def equal_heads(count: str, width: str) -> Callable[[Mapping[str, Any]], Heads]:
    """As many key and value heads as query heads; `count` and `width` are the config's keys for the heads and for the
    width of all.
    """
    return lambda config: Heads(int(config[count]), int(config[count]), int(config[width]) // int(config[count]))


def falcon_heads(config: Mapping[str, Any]) -> Heads:
    queries = int(config["num_attention_heads"])
    # Outside the new architecture num_kv_heads is not looked at: one for all, or one each.
    grouped = int(config.get("num_kv_heads") or queries)
    key_values = grouped if config["new_decoder_architecture"] else 1 if config["multi_query"] else queries
    return Heads(queries, key_values, int(config["hidden_size"]) // queries)


def bigcode_heads(config: Mapping[str, Any]) -> Heads:
    queries = int(config["n_head"])
    return Heads(queries, 1 if config.get("multi_query", True) else queries, int(config["n_embd"]) // queries)


def zamba_heads(config: Mapping[str, Any]) -> Heads:
    # The shared attention reads the embeddings beside the hidden states, so it is twice as wide.
    queries = int(config["num_attention_heads"])
    return Heads(queries, int(config.get("num_key_value_heads") or queries), 2 * int(config["hidden_size"]) // queries)


def headless(config: Mapping[str, Any]) -> Heads:
    return Heads(0, 0, 0)


def stacked(role: str) -> Rows:
    """All queries, then all keys, then all values."""

    def rows(heads: Heads, full: int) -> Ranges:
        sizes = [heads.width * count for count in (heads.queries, heads.key_values, heads.key_values)]
        number = _FUSED_ROLES.index(role)
        return ((sum(sizes[:number]), sum(sizes[: number + 1])),)

    return rows


def interleaved(role: str) -> Rows:
    """For each key and value head in turn: the queries that it serves, the key, the value."""

    def rows(heads: Heads, full: int) -> Ranges:
        serves = heads.queries // heads.key_values
        first, count = {"q_proj": (0, serves), "k_proj": (serves, 1), "v_proj": (serves + 1, 1)}[role]
        starts = [(group * (serves + 2) + first) * heads.width for group in range(heads.key_values)]
        return tuple((start, start + count * heads.width) for start in starts)

    return rows


def bigcode(role: str) -> Rows:
    """Stacked where all query heads share a key and a value, interleaved where each has its own."""
    return lambda heads, full: (stacked if heads.key_values < heads.queries else interleaved)(role)(heads, full)


def codegen(role: str) -> Rows:
    """Made for four processors: for each of them a quarter of the queries, of the values and of the keys."""
    number = ("q_proj", "v_proj", "k_proj").index(role)

    def rows(heads: Heads, full: int) -> Ranges:
        quarter, size = full // 4, full // 12
        return tuple((part * quarter + number * size, part * quarter + (number + 1) * size) for part in range(4))

    return rows


def half(number: int) -> Rows:
    """The first (0) or second (1) half of the rows."""
    return lambda heads, full: ((number * full // 2, (number + 1) * full // 2),)
