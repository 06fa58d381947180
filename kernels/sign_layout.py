"""Which of three loops reads an activation, and in what pieces: the same choice for Triton and CUDA.

Samples may be counted in any order, so their dimensions are first sorted by stride and joined. Then
    columns  channels are contiguous (channels-last), or images of short runs are dense: walk rows of C · run columns;
    runs     long contiguous runs of one channel (channels-first);
    strided  anything else, one entry per load.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

from layercollapse.kernels.bits import VECTOR, Dim, coalesce

BLOCK = 512  # words of a tile: 16 bytes for each of 128 threads
UNROLL = 8  # tiles that are loaded before the first is counted
MOST = 65535 // UNROLL * UNROLL  # values that one packed counter takes: it has 16 bits
LONG_RUN = 32768  # bytes of a run from which blocks that end with it waste less than 1 part in 8
STRIDED_DIMS = 4  # sample dimensions that the strided kernel walks
# Entries of a row or a run, and rows of a part, above which it is cut into several: the kernels index within a part by
# 32 bits, and a grid has at most 65,535 splits.
LARGEST = 1 << 30


class Columns(NamedTuple):
    """Rows of `width` contiguous entries, VECTOR-aligned; column i is of channel i // run % C."""

    start: int  # entries from the first of x
    width: int
    run: int
    outer: Dim  # rows: outer.size groups of inner.size
    inner: Dim


class Runs(NamedTuple):
    """For each channel, `outer.size` contiguous runs of `length` entries, VECTOR-aligned."""

    start: int  # entries from the first of x
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
        outer = rows[0] if rows else _ONE
        return Layout([Runs(at, size, channel_stride, outer) for at, size in _cut(run)], repeat)

    row = channels.size * run
    joined = vector // math.gcd(row, vector)  # rows that end on a vector together
    # A row that is too long for a part is cut between channels by the strided loop, which indexes by 64 bits.
    if channel_stride == run and len(rows) <= 2 and aligned() and row * joined <= LARGEST:
        outer, inner = [_ONE, _ONE, *rows][-2:]
        if aligned(row, outer.stride, inner.stride):
            return Layout(list(_columns(row, run, outer, inner)), repeat)
        if len(rows) == 1 and inner.stride == row and inner.size >= joined:
            count = inner.size // joined
            rest = [Dim(inner.size - count * joined, row), *samples[1:]]
            tail = strided(count * joined * row, rest, channel_stride) if rest[0].size else []
            return Layout([*_columns(row * joined, run, _ONE, Dim(count, row * joined)), *tail], repeat)
    return Layout(strided(0, samples, channel_stride), repeat)


def _cut(size: int) -> Iterator[tuple[int, int]]:
    """Yield the first position and the length of the pieces of at most LARGEST that `size` is cut into."""
    return ((at, min(LARGEST, size - at)) for at in range(0, size, LARGEST))


def _columns(width: int, run: int, outer: Dim, inner: Dim) -> Iterator[Columns]:
    """Yield parts of at most LARGEST rows each, together all outer.size · inner.size of them."""
    if outer.size * inner.size <= LARGEST:
        yield Columns(0, width, run, outer, inner)
    elif inner.size <= LARGEST:
        groups = LARGEST // inner.size
        for first in range(0, outer.size, groups):
            some = Dim(min(groups, outer.size - first), outer.stride)
            yield Columns(first * outer.stride, width, run, some, inner)
    else:
        for group in range(outer.size):
            for at, size in _cut(inner.size):
                start = group * outer.stride + at * inner.stride
                yield Columns(start, width, run, _ONE, Dim(size, inner.stride))


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


class ColumnsGrid(NamedTuple):
    """Tiles of `cols` words (a power of two) and BLOCK // cols rows; `splits` programs per strip, `each` rows each."""

    cols: int
    strips: int
    splits: int
    each: int
    rows: int


def columns_grid(part: Columns, vector: int, target: int) -> ColumnsGrid:
    """Cut rows and columns for about `target` programs; `vector` entries are 4 words."""
    words = part.width // vector * 4
    # As few lanes as possible past the end of a row.
    cols = min((BLOCK, BLOCK // 2, BLOCK // 4), key=lambda size: _ceil(words, size) * size)
    if words < cols:
        cols = 1 << (words - 1).bit_length()
    rows, step = part.outer.size * part.inner.size, BLOCK // cols * UNROLL
    strips = _ceil(words, cols)
    splits = max(min(_ceil(target, strips), _ceil(rows, step)), 1)
    each = min(_ceil(_ceil(rows, splits), step) * step, max(step, MOST // step * step))
    return ColumnsGrid(cols, strips, _ceil(rows, each), each, rows)


class RunsGrid(NamedTuple):
    """`parts` programs for each channel, `each` pieces of BLOCK · UNROLL words each, of `pieces` in all."""

    parts: int
    each: int
    pieces: int


def runs_grid(part: Runs, channels: int, vector: int, target: int) -> RunsGrid:
    """Cut the runs of each channel for about `target` programs in all."""
    pieces = part.outer.size * _ceil(part.length // vector * 4, BLOCK * UNROLL)
    each = min(_ceil(pieces, min(_ceil(target, channels), pieces)), MOST // UNROLL)
    return RunsGrid(_ceil(pieces, each), each, pieces)


class StridedGrid(NamedTuple):
    """Tiles of `cols` channels and `tile` samples; `splits` programs per strip, `each` samples each."""

    cols: int
    tile: int
    strips: int
    splits: int
    each: int
    samples: int


def strided_grid(part: Strided, channels: int, target: int) -> StridedGrid:
    """Cut channels and samples for about `target` programs: tiles are wide where memory is."""
    samples = math.prod(dim.size for dim in part.dims)
    cols = 64 if part.channel_stride < max(1, part.dims[-1].stride) else 2
    cols = min(cols, 1 << (channels - 1).bit_length())
    tile, strips = 2 * BLOCK // cols, _ceil(channels, cols)
    splits = min(_ceil(target, strips), _ceil(samples, tile), 65535)
    each = _ceil(_ceil(samples, splits), tile) * tile
    return StridedGrid(cols, tile, strips, _ceil(samples, each), each, samples)


def _ceil(a: int, b: int) -> int:
    return -(-a // b)
