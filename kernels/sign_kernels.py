"""sign_histogram in Triton: one read of x, N bytes; besides it only counters.

    out[c] += (#x < 0, #x == 0, #x > 0, #NaN [, #x >= upper])   over all samples of channel c

Signs are taken from raw bits, two 16-bit values at a time in a 32-bit word. With m = w & 0x7fff7fff, the sum
m + 0x7fff7fff has the bits 15 and 31 set exactly where a half is not ±0 (no sum carries into the next half), so

    negative = (m + 0x7fff7fff) &  w & 0x80008000        NaN: bit of m + (0x7fff - infinity)
    positive = (m + 0x7fff7fff) & ~w & 0x80008000        x >= upper: bit of m + (0x8000 - upper), and positive

are counted by adding them, shifted to bits 0 and 16, into one packed counter per word. NaNs are only noticed in the
loop; a program that met one reads its part again to take them out. Zeros are what is left. One 64-bit atomic per
counter, channel and program: sums of integers, so no order of arrival can show.
"""

from __future__ import annotations

import triton
import triton.language as tl

# int64 of a row of a list's table.
_COLUMNS_WORDS, _RUNS_WORDS = tl.constexpr(16), tl.constexpr(12)


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
def _part_of(unit, table_ptr, parts, WORDS: tl.constexpr):
    """Row of the table, of WORDS int64, that has this unit.

    It begins with: first unit, the one after its last, address of x, address of out, chunks, most.
    """
    row = 0
    size = parts
    while size > 1:  # the last that begins at or before it
        half = size // 2
        row = tl.where(tl.load(table_ptr + (row + half) * WORDS) <= unit, row + half, row)
        size -= half
    return table_ptr + row * WORDS


@triton.jit
def _units_of(row_ptr, unit, stop):
    """Pointers of a part, and what of it comes next, as `_next_units`."""
    begin = tl.load(row_ptr)
    end = tl.minimum(tl.load(row_ptr + 1), stop)
    x_ptr = tl.multiple_of(tl.load(row_ptr + 2).to(tl.pointer_type(tl.uint32)), 16)
    out_ptr = tl.load(row_ptr + 3).to(tl.pointer_type(tl.int64))
    strip, chunk, taken = _next_units(unit - begin, end - begin, tl.load(row_ptr + 4), tl.load(row_ptr + 5))
    return x_ptr, out_ptr, strip, chunk, taken


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


@triton.jit
def _columns_strip(
    x_ptr, out_ptr, strip, chunk, taken, rows, width, outer_stride, inner_stride, inner_size, run, channels, repeat,
    nan_gap, upper_gap,
    N_OUT: tl.constexpr, MAGNITUDE: tl.constexpr, SIGN: tl.constexpr, SHIFT: tl.constexpr, PACKED: tl.constexpr,
    RUNS: tl.constexpr, NESTED: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Count `taken` chunks, of ROWS rows each, of a strip, COLS words of a row; see `columns_kernel`."""
    UPPER: tl.constexpr = N_OUT == 5
    lane = tl.arange(0, ROWS)[:, None]
    word = strip.to(tl.int32) * COLS + tl.arange(0, COLS)
    first = chunk.to(tl.int32) * ROWS
    last = tl.minimum(first + taken.to(tl.int32) * ROWS, rows)
    negative = tl.zeros([ROWS, COLS], tl.uint32)
    positive = tl.zeros([ROWS, COLS], tl.uint32)
    above = tl.zeros([ROWS, COLS], tl.uint32)
    suspect = tl.zeros([ROWS, COLS], tl.uint32)
    for row in range(first, last, ROWS * UNROLL):
        for u in tl.static_range(UNROLL):
            tile = _columns_row(row + u * ROWS + lane, x_ptr, word[None, :], last, width, outer_stride, inner_stride,
                                inner_size, NESTED)  # fmt: skip
            negative, positive, above, suspect = _tally(
                tile, negative, positive, above, suspect, nan_gap, upper_gap, MAGNITUDE, SIGN, SHIFT, UPPER
            )
    nan_negative = tl.zeros([ROWS, COLS], tl.uint32)
    nan_positive = tl.zeros([ROWS, COLS], tl.uint32)
    if _any(suspect, SIGN):
        for row in range(first, last, ROWS):
            tile = _columns_row(row + lane, x_ptr, word[None, :], last, width, outer_stride, inner_stride, inner_size,
                                NESTED)  # fmt: skip
            nan_negative, nan_positive = _tally_nan(tile, nan_negative, nan_positive, nan_gap, MAGNITUDE, SIGN, SHIFT)
    # No half of a packed sum over all these rows wraps: they are at most 65535.
    ONES: tl.constexpr = 0x00010001 if PACKED else 1
    negative = tl.sum(negative - nan_negative, 0)
    positive = tl.sum(positive - nan_positive, 0)
    nan = tl.sum(nan_negative + nan_positive, 0)
    zero = (last - first).to(tl.uint32) * ONES - negative - positive - nan
    _add_columns(out_ptr, 0, negative, word, width, run, channels, repeat, PACKED, RUNS, N_OUT)
    _add_columns(out_ptr, 1, zero, word, width, run, channels, repeat, PACKED, RUNS, N_OUT)
    _add_columns(out_ptr, 2, positive, word, width, run, channels, repeat, PACKED, RUNS, N_OUT)
    if tl.max(nan, 0) != 0:
        _add_columns(out_ptr, 3, nan, word, width, run, channels, repeat, PACKED, RUNS, N_OUT)
    if UPPER:
        above = tl.sum(above - nan_positive, 0)
        _add_columns(out_ptr, 4, above, word, width, run, channels, repeat, PACKED, RUNS, N_OUT)


@triton.jit(do_not_specialize=["start", "units", "chunks", "most", "rows", "width", "outer_stride", "inner_stride",
                               "inner_size", "run", "channels", "repeat", "nan_gap", "upper_gap"])  # fmt: skip
def columns_kernel(
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
    x_ptr += start.to(tl.int64) * 4
    unit = _first_unit(tl.program_id(0), units)
    stop = _first_unit(tl.program_id(0) + 1, units)
    while unit < stop:
        strip, chunk, taken = _next_units(unit, stop, chunks, most)
        unit += taken
        _columns_strip(
            x_ptr, out_ptr, strip, chunk, taken, rows, width, outer_stride, inner_stride, inner_size, run, channels,
            repeat, nan_gap.to(tl.uint32), upper_gap.to(tl.uint32),
            N_OUT, MAGNITUDE, SIGN, SHIFT, PACKED, RUNS, NESTED, ROWS, COLS, UNROLL,
        )  # fmt: skip


@triton.jit(do_not_specialize=["parts", "units"])
def columns_list_kernel(
    table_ptr,  # int64 (parts, _COLUMNS_WORDS)
    parts, units,
    N_OUT: tl.constexpr, MAGNITUDE: tl.constexpr, SIGN: tl.constexpr, SHIFT: tl.constexpr, PACKED: tl.constexpr,
    RUNS: tl.constexpr, NESTED: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Count many parts: rows of the table have what `_part_of` says, then the arguments of `columns_kernel`."""
    unit = _first_unit(tl.program_id(0), units)
    stop = _first_unit(tl.program_id(0) + 1, units)
    while unit < stop:
        row_ptr = _part_of(unit, table_ptr, parts, _COLUMNS_WORDS)
        x_ptr, out_ptr, strip, chunk, taken = _units_of(row_ptr, unit, stop)
        unit += taken
        _columns_strip(
            x_ptr, out_ptr, strip, chunk, taken, tl.load(row_ptr + 6).to(tl.int32), tl.load(row_ptr + 7).to(tl.int32),
            tl.load(row_ptr + 8), tl.load(row_ptr + 9), tl.load(row_ptr + 10).to(tl.int32),
            tl.load(row_ptr + 11).to(tl.int32), tl.load(row_ptr + 12).to(tl.int32), tl.load(row_ptr + 13),
            tl.load(row_ptr + 14).to(tl.uint32), tl.load(row_ptr + 15).to(tl.uint32),
            N_OUT, MAGNITUDE, SIGN, SHIFT, PACKED, RUNS, NESTED, ROWS, COLS, UNROLL,
        )  # fmt: skip


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


@triton.jit
def _runs_strip(
    x_ptr, out_ptr, channel, first, taken, width, channel_stride, outer_stride, repeat, nan_gap, upper_gap,
    N_OUT: tl.constexpr, MAGNITUDE: tl.constexpr, SIGN: tl.constexpr, SHIFT: tl.constexpr, PACKED: tl.constexpr,
    BLOCK: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Count `taken` chunks of a channel; see `runs_kernel`."""
    UPPER: tl.constexpr = N_OUT == 5
    per_run = tl.cdiv(width * 4, BLOCK * UNROLL)
    lane = tl.arange(0, BLOCK)
    negative = tl.zeros([BLOCK], tl.uint32)
    positive = tl.zeros([BLOCK], tl.uint32)
    above = tl.zeros([BLOCK], tl.uint32)
    suspect = tl.zeros([BLOCK], tl.uint32)
    words = tl.zeros([], tl.int64)
    for piece in range(first.to(tl.int32), (first + taken).to(tl.int32)):
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
        for piece in range(first.to(tl.int32), (first + taken).to(tl.int32)):
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


@triton.jit(do_not_specialize=["start", "units", "chunks", "most", "width", "channel_stride", "outer_stride", "repeat",
                               "nan_gap", "upper_gap"])  # fmt: skip
def runs_kernel(
    x_ptr,  # words
    out_ptr,  # int64 (channels, N_OUT)
    start, units, chunks, most, width, channel_stride, outer_stride, repeat, nan_gap, upper_gap,
    N_OUT: tl.constexpr, MAGNITUDE: tl.constexpr, SIGN: tl.constexpr, SHIFT: tl.constexpr, PACKED: tl.constexpr,
    BLOCK: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """A strip is a channel, a chunk BLOCK · UNROLL words of a run, or the rest of it.

    Start, width (of a run) and strides are in vectors of 4 words. The words of a run are at most `LIMITS.largest`.
    """
    x_ptr += start.to(tl.int64) * 4
    unit = _first_unit(tl.program_id(0), units)
    stop = _first_unit(tl.program_id(0) + 1, units)
    while unit < stop:
        channel, chunk, taken = _next_units(unit, stop, chunks, most)
        unit += taken
        _runs_strip(
            x_ptr, out_ptr, channel, chunk, taken, width, channel_stride, outer_stride, repeat, nan_gap.to(tl.uint32),
            upper_gap.to(tl.uint32), N_OUT, MAGNITUDE, SIGN, SHIFT, PACKED, BLOCK, UNROLL,
        )  # fmt: skip


@triton.jit(do_not_specialize=["parts", "units"])
def runs_list_kernel(
    table_ptr,  # int64 (parts, _RUNS_WORDS)
    parts, units,
    N_OUT: tl.constexpr, MAGNITUDE: tl.constexpr, SIGN: tl.constexpr, SHIFT: tl.constexpr, PACKED: tl.constexpr,
    BLOCK: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Count many parts: rows of the table have what `_part_of` says, then the arguments of `runs_kernel`."""
    unit = _first_unit(tl.program_id(0), units)
    stop = _first_unit(tl.program_id(0) + 1, units)
    while unit < stop:
        row_ptr = _part_of(unit, table_ptr, parts, _RUNS_WORDS)
        x_ptr, out_ptr, channel, chunk, taken = _units_of(row_ptr, unit, stop)
        unit += taken
        _runs_strip(
            x_ptr, out_ptr, channel, chunk, taken, tl.load(row_ptr + 6).to(tl.int32), tl.load(row_ptr + 7),
            tl.load(row_ptr + 8), tl.load(row_ptr + 9), tl.load(row_ptr + 10).to(tl.uint32),
            tl.load(row_ptr + 11).to(tl.uint32), N_OUT, MAGNITUDE, SIGN, SHIFT, PACKED, BLOCK, UNROLL,
        )  # fmt: skip


@triton.jit(do_not_specialize=["start", "units", "chunks", "most", "channels", "channel_stride", "samples", "size1",
                               "size2", "size3", "stride0", "stride1", "stride2", "stride3", "repeat", "nan_gap",
                               "upper_gap"])  # fmt: skip
def strided_kernel(
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
