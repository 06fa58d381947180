"""Which of three loops reads an activation, and in what pieces: the same choice for Triton and CUDA.

Samples may be counted in any order, so their dimensions are first sorted by stride and joined. Then
    columns  channels are contiguous (channels-last), or images of short runs are dense: walk rows of C · run columns;
    runs     long contiguous runs of one channel (channels-first);
    strided  anything else, one entry per load.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from layercollapse.kernels.bits import VECTOR, Dim, coalesce

LONG_RUN = 32768  # bytes of a run from which blocks that end with it waste less than 1 part in 8
STRIDED_DIMS = 4  # sample dimensions that the strided kernel walks


class Columns(NamedTuple):
    """Rows of `width` contiguous entries, VECTOR-aligned; column i is of channel i // run % C."""

    width: int
    run: int
    outer: Dim  # rows: outer.size groups of inner.size
    inner: Dim


class Runs(NamedTuple):
    """For each channel, `outer.size` contiguous runs of `length` entries, VECTOR-aligned."""

    length: int
    channel_stride: int
    outer: Dim


class Strided(NamedTuple):
    """Samples in STRIDED_DIMS dimensions of any stride."""

    start: int  # entries from the first of x
    dims: tuple[Dim, ...]
    channel_stride: int


Part: TypeAlias = Columns | Runs | Strided
_ONE = Dim(1, 0)


class Layout(NamedTuple):
    """What to read, together all of x once; every value read counts `repeat` times (expanded dimensions)."""

    parts: list[Part]
    repeat: int


def plan(shape: Sequence[int], strides: Sequence[int], channel_dim: int, width: int, address: int) -> Layout:
    """Choose the loops for a non-empty activation.

    Args:
        shape: sizes.
        strides: of the same length, in entries.
        channel_dim: 0 to len(shape) - 1.
        width: bytes of an entry.
        address: of the first entry, for its alignment.
    """
    channels = Dim(shape[channel_dim], strides[channel_dim])
    samples = [Dim(n, s) for d, (n, s) in enumerate(zip(shape, strides, strict=True)) if d != channel_dim and n > 1]
    repeat = math.prod(dim.size for dim in samples if dim.stride == 0)
    samples = coalesce(sorted((dim for dim in samples if dim.stride), key=lambda dim: -dim.stride))
    vector = VECTOR // width

    def aligned(*entries: int) -> bool:
        return address % VECTOR == 0 and all(entry % vector == 0 for entry in entries)

    contiguous = bool(samples) and samples[-1].stride == 1
    run = samples[-1].size if contiguous else 1
    rows = samples[:-1] if contiguous else samples
    channel_stride = channels.stride if channels.size > 1 else run
    if run * width >= LONG_RUN and len(rows) <= 1 and aligned(run, channel_stride, *(row.stride for row in rows)):
        return Layout([Runs(run, channel_stride, rows[0] if rows else _ONE)], repeat)

    row = channels.size * run
    if channel_stride == run and len(rows) <= 2 and aligned():
        outer, inner = [_ONE, _ONE, *rows][-2:]
        if aligned(row, outer.stride, inner.stride):
            return Layout([Columns(row, run, outer, inner)], repeat)
        joined = vector // math.gcd(row, vector)  # rows that end on a vector together
        if len(rows) == 1 and inner.stride == row and inner.size >= joined:
            count = inner.size // joined
            rest = [Dim(inner.size - count * joined, row), *samples[1:]]
            tail = strided(count * joined * row, rest, channel_stride) if rest[0].size else []
            return Layout([Columns(row * joined, run, _ONE, Dim(count, row * joined)), *tail], repeat)
    return Layout(strided(0, samples, channel_stride), repeat)


def strided(start: int, dims: Sequence[Dim], channel_stride: int) -> list[Part]:
    """Cut more than STRIDED_DIMS dimensions into several parts along the shortest."""
    if len(dims) <= STRIDED_DIMS:
        return [Strided(start, (*[_ONE] * (STRIDED_DIMS - len(dims)), *dims), channel_stride)]
    shortest = min(dims, key=lambda dim: dim.size)
    rest = [dim for dim in dims if dim is not shortest]
    return [
        part
        for index in range(shortest.size)
        for part in strided(start + index * shortest.stride, rest, channel_stride)
    ]
