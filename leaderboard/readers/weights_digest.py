"""What two digests of weights tell of each other.

A digest names its function: `blake3:...`. Receipts of earlier versions hold SHA-256 in hex without a name. Two digests
of one kind are equal exactly where the weights are; two of different kinds say nothing of each other. Whether two runs
began from one model then follows from the identity of its checkpoint, which is the digest of its files or its commit,
and from the dtype that it was loaded in.
"""

from __future__ import annotations

_UNNAMED = "sha256"
_DIGITS = 12

SQL_SAME = """(
    {one} = {other}
    OR split_part(concat(if(contains({one}, ':'), '', '{unnamed}:'), {one}), ':', 1)
        <> split_part(concat(if(contains({other}, ':'), '', '{unnamed}:'), {other}), ':', 1)
        AND {same_checkpoint}
)"""


def kind_of(digest: str) -> str:
    """The function that a digest is of."""
    name, found, _ = digest.partition(":")
    return name if found else _UNNAMED


def weights_differ(one: str | None, other: str | None) -> bool | None:
    """Whether two digests are of different weights; None where that is not known."""
    if one is None or other is None or kind_of(one) != kind_of(other):
        return None
    return one != other


def began_alike(
    one: str | None, other: str | None, checkpoint: str | None, others_checkpoint: str | None
) -> bool | None:
    """Whether two runs in one dtype began from the same weights, by the digests of these and, where they are of two
    kinds, by the identities of the checkpoints. None where neither tells.
    """
    differ = weights_differ(one, other)
    if differ is not None:
        return not differ
    if one is None or other is None or checkpoint is None or others_checkpoint is None:
        return None
    return checkpoint == others_checkpoint


def sql_same(one: str, other: str, same_checkpoint: str) -> str:
    """An SQL condition: two columns hold digests of the same weights, or digests of two kinds and the condition on the
    checkpoints holds.
    """
    return SQL_SAME.format(one=one, other=other, unnamed=_UNNAMED, same_checkpoint=same_checkpoint)


def short_digest(digest: str) -> str:
    """The kind, where it is named, and the first digits."""
    name, found, digits = digest.rpartition(":")
    return f"{name}{found}{digits[:_DIGITS]}"
