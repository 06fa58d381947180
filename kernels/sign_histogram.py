"""sign_histogram in Triton: one read of x, N bytes; besides it only counters.

    out[c] += (#x < 0, #x == 0, #x > 0, #NaN [, #x >= upper])   over all samples of channel c

Signs are taken from raw bits, two 16-bit values at a time in a 32-bit word. With m = w & 0x7fff7fff, the sum
m + 0x7fff7fff has the bits 15 and 31 set exactly where a half is not ±0 (no sum carries into the next half), so

    negative = (m + 0x7fff7fff) &  w & 0x80008000        NaN: bit of m + (0x7fff - infinity)
    positive = (m + 0x7fff7fff) & ~w & 0x80008000        x >= upper: bit of m + (0x8000 - upper), and positive

are counted by adding them, shifted to bits 0 and 16, into one packed counter per word. NaNs are only noticed in the
loop; a program that met one reads its part again to take them out. Zeros are what is left. One 64-bit atomic per
counter, channel and program: sums of integers, so no order of arrival can show.

csrc/plan/sign_plan.h cuts activations into columns, runs and strided parts, and each of these into a line of units, of
which every program takes as many.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from layercollapse_core import _core
from torch import Tensor

from layercollapse.kernels.bits import FLOAT_TYPES, VECTOR
from layercollapse.kernels.launch import on_device_of, program_count

LIMITS = _core.SignLimits()
# Programs that a multiprocessor holds at once, of 128 threads with the registers that `kernels.compile` prints.
RESIDENT = {_core.Columns: 4, _core.Runs: 8, _core.Strided: 2}


@triton.jit
def _tally(
    word, negative, positive, above, suspect, nan_gap, upper_gap,
    MAGNITUDE: tl.constexpr, SIGN: tl.constexpr, SHIFT: tl.constexpr, UPPER: tl.constexpr,
):  # fmt: skip
    """Count one tile of words, as if none was NaN; bits SIGN of suspect tell where one was."""
    magnitude = word & MAGNITUDE
    nonzero = magnitude + MAGNITUDE
    inverse = word ^ 0xFFFFFFFF  # ~word, which the interpreter of Triton 3.6 cannot take of unsigned values
    negative += (nonzero & word & SIGN) >> SHIFT
    positive += (nonzero & inverse & SIGN) >> SHIFT
    if UPPER:
        above += ((magnitude + upper_gap) & inverse & SIGN) >> SHIFT
    suspect |= magnitude + nan_gap
    return negative, positive, above, suspect


@triton.jit
def _tally_nan(
    word, negative, positive, nan_gap, MAGNITUDE: tl.constexpr, SIGN: tl.constexpr, SHIFT: tl.constexpr
):  # fmt: skip
    """Count the NaNs of one tile by their sign bit."""
    nan = ((word & MAGNITUDE) + nan_gap) & SIGN
    return negative + ((nan & word) >> SHIFT), positive + ((nan & (word ^ 0xFFFFFFFF)) >> SHIFT)


@triton.jit
def _any(suspect, SIGN: tl.constexpr):
    return tl.max(((suspect & SIGN) != 0).to(tl.int32)) != 0


@triton.jit
def _first_unit(program, units):
    """First of the units of a program: they are shared as evenly as whole ones can be."""
    return program.to(tl.int64) * units // tl.num_programs(0)


@triton.jit
def _next_units(unit, stop, chunks, most):
    """Strip of a unit, its chunk there, and how many chunks follow that one set of counters takes."""
    strip = unit // chunks
    chunk = unit - strip * chunks
    return strip, chunk, tl.minimum(tl.minimum(stop - unit, chunks - chunk), most)


@triton.jit
def _columns_row(row, x_ptr, word, last, width, outer_stride, inner_stride, inner_size, NESTED: tl.constexpr):
    """Load the words `word` [1, COLS] of rows [ROWS, 1]; strides in vectors."""
    if NESTED:
        place = (row // inner_size).to(tl.int64) * outer_stride + (row % inner_size).to(tl.int64) * inner_stride
    else:
        place = row.to(tl.int64) * inner_stride
    return tl.load(x_ptr + place * 4 + word, mask=(row < last) & (word < width * 4), other=0)


@triton.jit
def _add_columns(out_ptr, index, packed, word, width, run, channels, repeat, PACKED: tl.constexpr, RUNS: tl.constexpr,
                 N_OUT: tl.constexpr):  # fmt: skip
    """Add one counter of every column, packed [COLS], to its channel."""
    if PACKED:
        count = tl.interleave(packed & 0xFFFF, packed >> 16).to(tl.int32)
        column = tl.interleave(word * 2, word * 2 + 1)
        end = width * 8
    else:
        count = packed.to(tl.int32)
        column = word
        end = width * 4
    if RUNS:
        # Neighbours of one channel give one sum: the running total at its last column less that before its first.
        total = tl.cumsum(count, 0)
        first = tl.min(column, 0)
        last = tl.max(column, 0)
        ends = ((column + 1) % run == 0) | (column == last) | (column + 1 == end)
        starts = (column % run == 0) & (column != first)
        count = tl.where(ends, total, 0) - tl.where(starts, total - count, 0)
    channel = column // run % channels
    tl.atomic_add(
        out_ptr + channel.to(tl.int64) * N_OUT + index,
        count.to(tl.int64) * repeat,
        mask=(column < end) & (count != 0),
        sem="relaxed",
    )


@triton.jit(do_not_specialize=["start", "units", "chunks", "most", "rows", "width", "outer_stride", "inner_stride",
                               "inner_size", "run", "channels", "repeat", "nan_gap", "upper_gap"])  # fmt: skip
def _columns_kernel(
    x_ptr,  # words
    out_ptr,  # int64 (channels, N_OUT)
    start, units, chunks, most, rows, width, outer_stride, inner_stride, inner_size, run, channels, repeat, nan_gap,
    upper_gap,
    N_OUT: tl.constexpr, MAGNITUDE: tl.constexpr, SIGN: tl.constexpr, SHIFT: tl.constexpr, PACKED: tl.constexpr,
    RUNS: tl.constexpr, NESTED: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """A strip is COLS words of a row, a chunk ROWS rows; start, width and strides are in vectors of 4 words.

    Rows and words of a row are at most `LIMITS.largest`.
    """
    UPPER: tl.constexpr = N_OUT == 5
    x_ptr += start.to(tl.int64) * 4
    lane = tl.arange(0, ROWS)[:, None]
    nan_gap = nan_gap.to(tl.uint32)
    upper_gap = upper_gap.to(tl.uint32)
    unit = _first_unit(tl.program_id(0), units)
    stop = _first_unit(tl.program_id(0) + 1, units)
    while unit < stop:
        strip, chunk, taken = _next_units(unit, stop, chunks, most)
        unit += taken
        word = strip.to(tl.int32) * COLS + tl.arange(0, COLS)
        first = chunk.to(tl.int32) * ROWS
        last = tl.minimum(first + taken.to(tl.int32) * ROWS, rows)
        negative = tl.zeros([ROWS, COLS], tl.uint32)
        positive = tl.zeros([ROWS, COLS], tl.uint32)
        above = tl.zeros([ROWS, COLS], tl.uint32)
        suspect = tl.zeros([ROWS, COLS], tl.uint32)
        for row in range(first, last, ROWS * UNROLL):
            for u in tl.static_range(UNROLL):
                tile = _columns_row(row + u * ROWS + lane, x_ptr, word[None, :], last, width, outer_stride,
                                    inner_stride, inner_size, NESTED)  # fmt: skip
                negative, positive, above, suspect = _tally(
                    tile, negative, positive, above, suspect, nan_gap, upper_gap, MAGNITUDE, SIGN, SHIFT, UPPER
                )
        nan_negative = tl.zeros([ROWS, COLS], tl.uint32)
        nan_positive = tl.zeros([ROWS, COLS], tl.uint32)
        if _any(suspect, SIGN):
            for row in range(first, last, ROWS):
                tile = _columns_row(row + lane, x_ptr, word[None, :], last, width, outer_stride, inner_stride,
                                    inner_size, NESTED)  # fmt: skip
                nan_negative, nan_positive = _tally_nan(
                    tile, nan_negative, nan_positive, nan_gap, MAGNITUDE, SIGN, SHIFT
                )
        # No half of a packed sum over all these rows wraps: they are at most 65535.
        ONES: tl.constexpr = 0x00010001 if PACKED else 1
        negative_sum = tl.sum(negative - nan_negative, 0)
        positive_sum = tl.sum(positive - nan_positive, 0)
        nan = tl.sum(nan_negative + nan_positive, 0)
        zero = (last - first).to(tl.uint32) * ONES - negative_sum - positive_sum - nan
        _add_columns(out_ptr, 0, negative_sum, word, width, run, channels, repeat, PACKED, RUNS, N_OUT)
        _add_columns(out_ptr, 1, zero, word, width, run, channels, repeat, PACKED, RUNS, N_OUT)
        _add_columns(out_ptr, 2, positive_sum, word, width, run, channels, repeat, PACKED, RUNS, N_OUT)
        if tl.max(nan, 0) != 0:
            _add_columns(out_ptr, 3, nan, word, width, run, channels, repeat, PACKED, RUNS, N_OUT)
        if UPPER:
            above_sum = tl.sum(above - nan_positive, 0)
            _add_columns(out_ptr, 4, above_sum, word, width, run, channels, repeat, PACKED, RUNS, N_OUT)


@triton.jit
def _sum_halves(counter, PACKED: tl.constexpr):
    if PACKED:
        return tl.sum((counter & 0xFFFF).to(tl.int64)) + tl.sum((counter >> 16).to(tl.int64))
    return tl.sum(counter.to(tl.int64))


@triton.jit
def _add_channel(out_ptr, channel, negative, positive, nan, above, total, repeat, N_OUT: tl.constexpr):
    """Add the counts of one program, scalars, to a channel."""
    place = out_ptr + channel.to(tl.int64) * N_OUT
    tl.atomic_add(place, negative * repeat, sem="relaxed")
    tl.atomic_add(place + 1, (total - negative - positive - nan) * repeat, sem="relaxed")
    tl.atomic_add(place + 2, positive * repeat, sem="relaxed")
    if nan != 0:
        tl.atomic_add(place + 3, nan * repeat, sem="relaxed")
    if N_OUT == 5:
        tl.atomic_add(place + 4, above * repeat, sem="relaxed")


@triton.jit(do_not_specialize=["start", "units", "chunks", "most", "width", "channel_stride", "outer_stride", "repeat",
                               "nan_gap", "upper_gap"])  # fmt: skip
def _runs_kernel(
    x_ptr,  # words
    out_ptr,  # int64 (channels, N_OUT)
    start, units, chunks, most, width, channel_stride, outer_stride, repeat, nan_gap, upper_gap,
    N_OUT: tl.constexpr, MAGNITUDE: tl.constexpr, SIGN: tl.constexpr, SHIFT: tl.constexpr, PACKED: tl.constexpr,
    BLOCK: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """A strip is a channel, a chunk BLOCK · UNROLL words of a run, or the rest of it.

    Start, width (of a run) and strides are in vectors of 4 words. The words of a run are at most `LIMITS.largest`.
    """
    UPPER: tl.constexpr = N_OUT == 5
    x_ptr += start.to(tl.int64) * 4
    per_run = tl.cdiv(width * 4, BLOCK * UNROLL)
    lane = tl.arange(0, BLOCK)
    nan_gap = nan_gap.to(tl.uint32)
    upper_gap = upper_gap.to(tl.uint32)
    unit = _first_unit(tl.program_id(0), units)
    stop = _first_unit(tl.program_id(0) + 1, units)
    while unit < stop:
        channel, first, taken = _next_units(unit, stop, chunks, most)
        unit += taken
        begin_piece = first.to(tl.int32)
        end_piece = (first + taken).to(tl.int32)
        negative = tl.zeros([BLOCK], tl.uint32)
        positive = tl.zeros([BLOCK], tl.uint32)
        above = tl.zeros([BLOCK], tl.uint32)
        suspect = tl.zeros([BLOCK], tl.uint32)
        words = tl.zeros([], tl.int64)
        for piece in range(begin_piece, end_piece):
            run_ptr = x_ptr + ((piece // per_run).to(tl.int64) * outer_stride + channel * channel_stride) * 4
            begin = (piece % per_run).to(tl.int64) * (BLOCK * UNROLL)
            words += tl.minimum(width * 4 - begin, BLOCK * UNROLL)
            for u in tl.static_range(UNROLL):
                place = begin + u * BLOCK + lane
                tile = tl.load(run_ptr + place, mask=place < width * 4, other=0)
                negative, positive, above, suspect = _tally(
                    tile, negative, positive, above, suspect, nan_gap, upper_gap, MAGNITUDE, SIGN, SHIFT, UPPER
                )
        nan_negative = tl.zeros([BLOCK], tl.uint32)
        nan_positive = tl.zeros([BLOCK], tl.uint32)
        if _any(suspect, SIGN):
            for piece in range(begin_piece, end_piece):
                run_ptr = x_ptr + ((piece // per_run).to(tl.int64) * outer_stride + channel * channel_stride) * 4
                begin = (piece % per_run).to(tl.int64) * (BLOCK * UNROLL)
                for u in range(UNROLL):
                    place = begin + u * BLOCK + lane
                    tile = tl.load(run_ptr + place, mask=place < width * 4, other=0)
                    nan_negative, nan_positive = _tally_nan(
                        tile, nan_negative, nan_positive, nan_gap, MAGNITUDE, SIGN, SHIFT
                    )
        total = words * (2 if PACKED else 1)
        less = _sum_halves(nan_negative, PACKED)
        more = _sum_halves(nan_positive, PACKED)
        _add_channel(
            out_ptr, channel, _sum_halves(negative, PACKED) - less, _sum_halves(positive, PACKED) - more, less + more,
            _sum_halves(above, PACKED) - more, total, repeat, N_OUT,
        )  # fmt: skip


@triton.jit(do_not_specialize=["start", "units", "chunks", "most", "channels", "channel_stride", "samples", "size1",
                               "size2", "size3", "stride0", "stride1", "stride2", "stride3", "repeat", "nan_gap",
                               "upper_gap"])  # fmt: skip
def _strided_kernel(
    x_ptr,  # entries
    out_ptr,  # int64 (channels, N_OUT)
    start, units, chunks, most, channels, channel_stride, samples, size1, size2, size3, stride0, stride1, stride2,
    stride3, repeat, nan_gap, upper_gap,
    N_OUT: tl.constexpr, LEFT: tl.constexpr, SAMPLES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """A strip is CHANNELS channels, a chunk SAMPLES samples."""
    UPPER: tl.constexpr = N_OUT == 5
    nan_gap = nan_gap.to(tl.uint32)
    upper_gap = upper_gap.to(tl.uint32)
    unit = _first_unit(tl.program_id(0), units)
    stop = _first_unit(tl.program_id(0) + 1, units)
    while unit < stop:
        strip, chunk, taken = _next_units(unit, stop, chunks, most)
        unit += taken
        channel = strip * CHANNELS + tl.arange(0, CHANNELS)
        first = chunk * SAMPLES
        last = tl.minimum(first + taken * SAMPLES, samples)
        negative = tl.zeros([SAMPLES, CHANNELS], tl.uint32)
        positive = tl.zeros([SAMPLES, CHANNELS], tl.uint32)
        above = tl.zeros([SAMPLES, CHANNELS], tl.uint32)
        nan_negative = tl.zeros([SAMPLES, CHANNELS], tl.uint32)
        nan_positive = tl.zeros([SAMPLES, CHANNELS], tl.uint32)
        suspect = tl.zeros([SAMPLES, CHANNELS], tl.uint32)
        for begin in range(first, last, SAMPLES):
            index = begin + tl.arange(0, SAMPLES)
            inside = index < last
            offset = start + index % size3 * stride3
            index = index // size3
            offset += index % size2 * stride2
            index = index // size2
            offset += index % size1 * stride1 + index // size1 * stride0
            tile = tl.load(
                x_ptr + offset[:, None] + channel[None, :] * channel_stride,
                mask=inside[:, None] & (channel < channels)[None, :],
                other=0,
            )
            word = tile.to(tl.uint32) << LEFT  # as if the type had 32 bits: the sign on top
            negative, positive, above, suspect = _tally(
                word, negative, positive, above, suspect, nan_gap, upper_gap, 0x7FFFFFFF, 0x80000000, 31, UPPER
            )
            nan_negative, nan_positive = _tally_nan(
                word, nan_negative, nan_positive, nan_gap, 0x7FFFFFFF, 0x80000000, 31
            )
        less = tl.sum(nan_negative.to(tl.int64), 0)
        more = tl.sum(nan_positive.to(tl.int64), 0)
        minus = tl.sum(negative.to(tl.int64), 0) - less
        plus = tl.sum(positive.to(tl.int64), 0) - more
        place = out_ptr + channel * N_OUT
        valid = channel < channels
        tl.atomic_add(place, minus * repeat, mask=valid & (minus != 0), sem="relaxed")
        tl.atomic_add(place + 1, (last - first - minus - plus - less - more) * repeat, mask=valid, sem="relaxed")
        tl.atomic_add(place + 2, plus * repeat, mask=valid & (plus != 0), sem="relaxed")
        tl.atomic_add(place + 3, (less + more) * repeat, mask=valid & (less + more != 0), sem="relaxed")
        if UPPER:
            tl.atomic_add(place + 4, (tl.sum(above.to(tl.int64), 0) - more) * repeat, mask=valid, sem="relaxed")


def sign_histogram_(x: Tensor, channel_dim: int, upper: float | None, out: Tensor) -> None:
    """See ``reference.sign_histogram_``: one read of x, any strides."""
    width = FLOAT_TYPES[x.dtype].width
    parts, repeat = _core.sign_plan(x.shape, x.stride(), channel_dim % x.dim(), width, x.data_ptr(), LIMITS)
    with on_device_of(x):
        for part in parts:
            _launch(part, x, upper, out, repeat)


def _launch(part: _core.Columns | _core.Runs | _core.Strided, x: Tensor, upper: float | None, out: Tensor,
            repeat: int) -> None:  # fmt: skip
    channels, n_out = out.shape
    vector = VECTOR // FLOAT_TYPES[x.dtype].width
    units, resident = part.strips * part.chunks, program_count(x, RESIDENT[type(part)])
    line = (units, part.chunks, part.most)
    strided = isinstance(part, _core.Strided)
    common = {"repeat": repeat, "N_OUT": n_out, "num_warps": 4, **_constants(x.dtype, upper, packed=not strided)}
    if isinstance(part, _core.Columns):
        (groups, outer_stride), (inner_size, inner_stride) = part.outer, part.inner
        _columns_kernel[(_core.block_count(units, resident, LIMITS.unroll),)](
            triton.reinterpret(x, tl.uint32), out, part.start // vector, *line, groups * inner_size,
            part.width // vector, outer_stride // vector, inner_stride // vector, inner_size, part.run, channels,
            RUNS=part.run > 1, NESTED=groups > 1, ROWS=LIMITS.block // part.cols, COLS=part.cols,
            UNROLL=LIMITS.unroll, **common,
        )  # fmt: skip
    elif isinstance(part, _core.Runs):
        _runs_kernel[(_core.block_count(units, resident, 1),)](
            triton.reinterpret(x, tl.uint32), out, part.start // vector, *line, part.width // vector,
            part.channel_stride // vector, part.outer[1] // vector, BLOCK=LIMITS.block, UNROLL=LIMITS.unroll, **common,
        )  # fmt: skip
    else:
        sizes, strides = zip(*part.dims, strict=True)
        _strided_kernel[(_core.block_count(units, resident, 1),)](
            triton.reinterpret(x, tl.uint16 if vector == 8 else tl.uint32), out, part.start, *line, channels,
            part.channel_stride, math.prod(sizes), *sizes[1:], *strides, SAMPLES=part.tile, CHANNELS=part.cols,
            **common,
        )  # fmt: skip


def _constants(dtype: torch.dtype, upper: float | None, packed: bool) -> Mapping[str, Any]:
    """Return the arguments of the kernels that depend on the type alone."""
    kind = FLOAT_TYPES[dtype]
    top = 1 << (8 * kind.width - 1)
    nan_gap = top - 1 - kind.infinity
    upper_gap = 0 if upper is None else top - _core.magnitude_at_least(kind.code, upper)
    if not packed:
        left = 32 - 8 * kind.width
        return {"nan_gap": nan_gap << left, "upper_gap": upper_gap << left, "LEFT": left}
    pair = 0x00010001 if kind.width == 2 else 1
    return {
        "nan_gap": nan_gap * pair,
        "upper_gap": upper_gap * pair,
        "MAGNITUDE": (top - 1) * pair,
        "SIGN": top * pair,
        "SHIFT": 8 * kind.width - 1,
        "PACKED": kind.width == 2,
    }
