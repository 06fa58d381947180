"""Which bytes a strided array covers: rules that need neither torch nor NumPy."""

from __future__ import annotations

from collections.abc import Sequence


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


def overlap(begins: Sequence[int], sizes: Sequence[int]) -> tuple[int, int] | None:
    """Return the positions of two blocks of memory that share a byte, or None.

    Args:
        begins: addresses.
        sizes: bytes; blocks of none are left out.
    """
    end, previous = 0, -1
    # Sorting positions, not tuples: for 2,000 blocks half the time, and nothing for the garbage collector to visit.
    for index in sorted(range(len(begins)), key=begins.__getitem__):
        if sizes[index]:
            if begins[index] < end:
                return previous, index
            end, previous = begins[index] + sizes[index], index
    return None
