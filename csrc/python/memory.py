"""Which bytes a strided array covers: rules that need neither torch nor NumPy."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence


def reach(shape: Sequence[int], strides: Sequence[int]) -> int | None:
    """Return the entries from the first to past the last, or None if two may share a place.

    Args:
        shape: sizes, none of them 0.
        strides: in entries.
    """
    last = 0
    for stride, size in sorted((stride, size) for stride, size in zip(strides, shape, strict=True) if size > 1):
        if stride <= last:
            return None
        last += stride * (size - 1)
    return last + 1


Owner = tuple[str, int]


def overlap(spans: Iterable[tuple[int, int, Owner]]) -> tuple[Owner, Owner] | None:
    """Return the owners of two of the (address, bytes, owner) that share a byte, or None."""
    for (begin, size, owner), (other, _, other_owner) in itertools.pairwise(sorted(spans)):
        if begin + size > other:
            return owner, other_owner
    return None
