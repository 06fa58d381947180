"""masked_topk_ in Triton: R bytes of weights, R / 16 or R / 32 of masks.

    threshold T of a group: its k-th smallest kept magnitude. Cleared: magnitudes < T, and of those equal to T the first
    k - #(magnitude < T) in row-major order, earlier tensors first.

1. gather, bracket: a random sample of each group brackets T.
2. count, sums, select: one read of weights and masks counts what lies below the bracket and, in up to 2048 bins per
   segment, what lies inside; the bin that holds T becomes the next bracket, until it holds one key. For 16-bit types
   that takes one read (a bracket has a few keys), for float32 two. A bracket that missed is replaced by all keys.
   What is proven early makes the remaining launches return at once: the host never waits between passes.
3. apply: one read; writes the vectors and the bytes of the mask that change. Ties go by a prefix over segments, and
   within the one segment where they run out by a prefix over its entries.

Bytes: 16-bit types 2 R + 2 M + what changes (R + M at most), float32 3 R + 3 M + what changes; counters besides.
A NaN, or a k above what is kept, closes a gate that the apply pass looks at first: nothing is changed.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from layercollapse.kernels.topk_call import KEPT_IN_GROUP, NAN, Scratch, masked_topk_with
from layercollapse.kernels.topk_plan import BINS, FIELDS, SAMPLE, Plan

TILE, TILE_STRIDED = 256, 64  # bytes of mask, of 8 entries each, that a program reads at once
PART = 1024  # entries that a program draws

# Columns of the tables in topk_plan, and of the scratch rows in topk_call.
_ADDRESS, _MASK, _BEGIN, _COUNT, _DIMS, _KIND, _INFINITY, _GROUP = map(tl.constexpr, range(8))
_K, _FIRST, _SEGMENTS, _SLOT, _LOW, _HIGH, _END, _GROUP_KIND = map(tl.constexpr, range(8))
_LO, _HI, _SHIFT, _DONE, _THRESHOLD, _KEPT_IN_GROUP = map(tl.constexpr, (0, 1, 2, 3, 4, KEPT_IN_GROUP))
_KEPT, _BELOW, _NAN, _TIES, _EQUAL = map(tl.constexpr, (0, 1, NAN, 3, 4))
_F = tl.constexpr(FIELDS)
_BINS = tl.constexpr(BINS)


@triton.jit
def _key(bits, KIND: tl.constexpr):
    """Magnitude of raw bits as a key: an integer with the order of |w|."""
    if KIND == 0:
        return bits & 0x7FFFFFFF
    magnitude = bits.to(tl.uint32) & 0x7FFF
    if KIND == 2:
        magnitude = magnitude << 16
    if KIND == 3:
        half = magnitude.to(tl.uint16).to(tl.float16, bitcast=True)
        magnitude = half.to(tl.float32).to(tl.uint32, bitcast=True)
    return magnitude


@triton.jit
def _offset(index, dims_ptr, place, most):
    """Entries from the first to row-major position index, in a tensor whose dimensions are at place (see topk_plan)."""
    count = place & 0xFF
    offset = index * 0
    for i in range(most):
        row = dims_ptr + ((place >> 8) + count - 1 - i) * 2
        size = tl.load(row, mask=i < count, other=1)
        offset += index % size * tl.load(row + 1, mask=i < count, other=0)
        index = index // size
    return offset


@triton.jit
def _shift_of(span):
    """Smallest shift with span >> shift < BINS."""
    shift = span * 0
    for _ in range(21):
        shift += ((span >> shift) >= _BINS).to(tl.int64)
    return shift


@triton.jit
def _random(i, salt):
    """Murmur3's last steps: fixed, so that equal input takes equal time."""
    h = (i.to(tl.uint32) + salt) * 0x9E3779B9
    h = (h ^ (h >> 16)) * 0x85EBCA6B
    h = (h ^ (h >> 13)) * 0xC2B2AE35
    return (h ^ (h >> 16)).to(tl.uint64)


@triton.jit
def _gather_kernel(segments_ptr, groups_ptr, dims_ptr, sample_ptr, most_dims, SAMPLE: tl.constexpr, PART: tl.constexpr):
    """Program (g, j): PART random kept entries of group g, as keys; 2^32 - 1 where none was drawn."""
    group = groups_ptr + tl.program_id(0) * _F
    i = tl.program_id(1) * PART + tl.arange(0, PART)
    segments = tl.load(group + _SEGMENTS)
    slot = tl.load(group + _SLOT)
    if segments * slot <= SAMPLE:
        which = i.to(tl.int64) // slot
        at = i.to(tl.int64) % slot
    else:
        which = ((_random(i, 1) * segments.to(tl.uint64)) >> 32).to(tl.int64)
        at = ((_random(i, 65537) * slot.to(tl.uint64)) >> 32).to(tl.int64)
    valid = which < segments
    segment = segments_ptr + (tl.load(group + _FIRST) + which) * _F
    valid &= at < tl.load(segment + _COUNT, mask=valid, other=0)
    byte_ptr = (tl.load(segment + _MASK, mask=valid, other=0) + at // 8).to(tl.pointer_type(tl.uint8))
    valid &= ((tl.load(byte_ptr, mask=valid, other=0).to(tl.int64) >> (at % 8)) & 1) != 0
    address = tl.load(segment + _ADDRESS, mask=valid, other=0)
    kind = tl.load(segment + _KIND, mask=valid, other=0)
    place = tl.load(segment + _DIMS, mask=valid, other=0)
    begin = tl.load(segment + _BEGIN, mask=valid, other=0)
    at = tl.where(place == 0, at, _offset(begin + at, dims_ptr, place, most_dims))
    wide = tl.load((address + at * 4).to(tl.pointer_type(tl.uint32)), mask=valid & (kind == 0), other=0)
    narrow = tl.load((address + at * 2).to(tl.pointer_type(tl.uint16)), mask=valid & (kind != 0), other=0)
    key = tl.where(kind == 0, _key(wide, 0), _key(narrow, 1))
    key = tl.where(kind == 2, _key(narrow, 2), tl.where(kind == 3, _key(narrow, 3), key))
    tl.store(sample_ptr + tl.program_id(0) * SAMPLE + i, tl.where(valid, key, 0xFFFFFFFF))


@triton.jit
def _bracket_kernel(groups_ptr, sample_ptr, state_ptr, SAMPLE: tl.constexpr):
    """Program g: the range of keys between two ranks of the sample of group g, found bit by bit."""
    group = groups_ptr + tl.program_id(0) * _F
    key = tl.load(sample_ptr + tl.program_id(0) * SAMPLE + tl.arange(0, SAMPLE))
    low = tl.load(group + _LOW)
    high = tl.load(group + _HIGH)
    end = tl.load(group + _END)
    lo = tl.full([], 0, tl.uint32)
    hi = tl.full([], 0, tl.uint32)
    for i in range(31):
        bit = (tl.full([], 1, tl.uint32) << 30) >> i
        lo = tl.where(tl.sum((key < (lo | bit)).to(tl.int32)) <= low, lo | bit, lo)
        hi = tl.where(tl.sum((key < (hi | bit)).to(tl.int32)) <= high, hi | bit, hi)
    size = tl.sum((key != 0xFFFFFFFF).to(tl.int32))
    lo = tl.where((low >= 0) & (low < size), lo.to(tl.int64), 0)
    hi = tl.where(high < size, hi.to(tl.int64) + 1, end)
    empty = tl.load(group + _K) == 0
    lo = tl.where(empty, 0, lo)
    hi = tl.where(empty, 0, tl.maximum(hi, lo + 1))
    state = state_ptr + tl.program_id(0) * _F
    tl.store(state + _LO, lo)
    tl.store(state + _HI, hi)
    tl.store(state + _SHIFT, _shift_of(tl.maximum(hi - lo - 1, 0)))


@triton.jit
def _count_kernel(
    ids_ptr, segments_ptr, dims_ptr, state_ptr, result_ptr, bins_ptr, gate_ptr, most_dims,
    KIND: tl.constexpr, STRIDED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Program i: kept entries of segment ids[i], those below its group's range, and those inside by bins."""
    index = tl.load(ids_ptr + tl.program_id(0))
    segment = segments_ptr + index * _F
    state = state_ptr + tl.load(segment + _GROUP) * _F
    if tl.load(state + _DONE) != 0:
        return
    lo = tl.load(state + _LO).to(tl.uint32)
    span = tl.load(state + _HI).to(tl.uint32) - lo
    shift = tl.load(state + _SHIFT).to(tl.uint32)
    last_bin = tl.where(span == 0, 0, (span - 1) >> shift)
    row = bins_ptr + index * _BINS
    for b in range(0, last_bin + 1, 128):
        tl.store(row + b + tl.arange(0, 128), tl.zeros([128], tl.int32))  # a row has a multiple of 128 bins
    tl.debug_barrier()  # the atomics below come from other threads than these stores

    count = tl.load(segment + _COUNT).to(tl.int32)
    begin = tl.load(segment + _BEGIN)
    place = tl.load(segment + _DIMS)
    mask_ptr = tl.load(segment + _MASK).to(tl.pointer_type(tl.uint8))
    if KIND == 0:
        x_ptr = tl.load(segment + _ADDRESS).to(tl.pointer_type(tl.uint32))
    else:
        x_ptr = tl.load(segment + _ADDRESS).to(tl.pointer_type(tl.uint16))
    if not STRIDED:
        x_ptr = tl.multiple_of(x_ptr, 16)
    bit = tl.arange(0, 8)[None, :]
    kept = tl.zeros([TILE], tl.int32)
    below = tl.zeros([TILE], tl.int32)
    first = tl.zeros([TILE], tl.int32)
    last = tl.zeros([TILE], tl.int32)
    top = tl.zeros([TILE], tl.uint32)
    for at in range(0, tl.cdiv(count, 8), TILE):
        byte = at + tl.arange(0, TILE)
        entry = byte[:, None] * 8 + bit
        if STRIDED:
            valid = entry < count
            bits = tl.load(x_ptr + _offset(begin + entry, dims_ptr, place, most_dims), mask=valid, other=0)
        else:
            valid = (byte * 8 < count)[:, None]
            bits = tl.load(x_ptr + entry, mask=valid, other=0)
        packed = tl.load(mask_ptr + byte, mask=byte * 8 < count, other=0).to(tl.int32)
        keep = (((packed[:, None] >> bit) & 1) != 0) & valid
        key = _key(bits, KIND)
        top = tl.maximum(top, tl.max(key, 1))
        inside = keep & (key - lo < span)
        bin_ = (key - lo) >> shift
        kept += tl.sum(keep.to(tl.int32), 1)
        below += tl.sum((keep & (key < lo)).to(tl.int32), 1)
        # The outer bins are counted in registers: constant and two-valued data would queue up at one address.
        first += tl.sum((inside & (bin_ == 0)).to(tl.int32), 1)
        last += tl.sum((inside & (bin_ == last_bin)).to(tl.int32), 1)
        middle = inside & (bin_ != 0) & (bin_ != last_bin)
        tl.atomic_add(row + bin_, tl.full([TILE, 8], 1, tl.int32), mask=middle, sem="relaxed")
    result = result_ptr + index * _F
    tl.store(result + _KEPT, tl.sum(kept.to(tl.int64), 0))
    tl.store(result + _BELOW, tl.sum(below.to(tl.int64), 0))
    tl.store(row, tl.sum(first, 0))
    if last_bin != 0:
        tl.store(row + last_bin, tl.sum(last, 0))
    nan = tl.max(top, 0) > tl.load(segment + _INFINITY).to(tl.uint32)
    tl.store(result + _NAN, nan.to(tl.int64))
    if nan:
        tl.atomic_max(gate_ptr, 1, sem="relaxed")


@triton.jit
def _sums_kernel(groups_ptr, state_ptr, bins_ptr, sums_ptr, COLS: tl.constexpr, ROWS: tl.constexpr):
    """Program (g, j): COLS bins from j · COLS, summed over the segments of group g."""
    group = groups_ptr + tl.program_id(0) * _F
    state = state_ptr + tl.program_id(0) * _F
    column = tl.program_id(1) * COLS + tl.arange(0, COLS)
    span = tl.load(state + _HI) - tl.load(state + _LO)
    used = ((span - 1) >> tl.load(state + _SHIFT)) + 1
    if (tl.load(state + _DONE) != 0) | (tl.program_id(1) * COLS >= used):
        return
    first = tl.load(group + _FIRST)
    end = first + tl.load(group + _SEGMENTS)
    total = tl.zeros([COLS], tl.int64)
    for begin in range(first, end, ROWS):
        segment = begin + tl.arange(0, ROWS)[:, None]
        count = tl.load(bins_ptr + segment * _BINS + column[None, :], mask=(segment < end) & (column < used), other=0)
        total += tl.sum(count.to(tl.int64), 0)
    tl.store(sums_ptr + tl.program_id(0) * _BINS + column, total)


@triton.jit
def _select_kernel(groups_ptr, state_ptr, result_ptr, bins_ptr, sums_ptr, thresholds_ptr, gate_ptr, ROWS: tl.constexpr):
    """Program g: narrow the range of group g to the bin that holds T, or fix T and deal out its ties."""
    group = groups_ptr + tl.program_id(0) * _F
    state = state_ptr + tl.program_id(0) * _F
    if tl.load(state + _DONE) != 0:
        return
    k = tl.load(group + _K)
    first = tl.load(group + _FIRST)
    end = first + tl.load(group + _SEGMENTS)
    kept = tl.zeros([ROWS], tl.int64)
    below = tl.zeros([ROWS], tl.int64)
    for begin in range(first, end, ROWS):
        segment = begin + tl.arange(0, ROWS)
        kept += tl.load(result_ptr + segment * _F + _KEPT, mask=segment < end, other=0)
        below += tl.load(result_ptr + segment * _F + _BELOW, mask=segment < end, other=0)
    tl.store(state + _KEPT_IN_GROUP, tl.sum(kept, 0))
    if k > tl.sum(kept, 0):
        tl.atomic_max(gate_ptr, 1, sem="relaxed")
    if (k == 0) | (k > tl.sum(kept, 0)):
        tl.store(state + _DONE, 1)
        return

    lo = tl.load(state + _LO)
    shift = tl.load(state + _SHIFT)
    hi = tl.load(state + _HI)
    column = tl.arange(0, _BINS)
    sums = tl.load(
        sums_ptr + tl.program_id(0) * _BINS + column, mask=column <= ((hi - lo - 1) >> shift), other=0
    )  # fmt: skip
    rank = k - tl.sum(below, 0)
    if (rank < 1) | (rank > tl.sum(sums, 0)):  # the bracket missed
        end_key = tl.load(group + _END)
        tl.store(state + _LO, 0)
        tl.store(state + _HI, end_key)
        tl.store(state + _SHIFT, _shift_of(end_key - 1))
        return
    passed = tl.cumsum(sums, 0) < rank
    bin_ = tl.sum(passed.to(tl.int64), 0)
    rank -= tl.sum(tl.where(passed, sums, 0), 0)
    lo += bin_ << shift
    tl.store(state + _LO, lo)
    if shift != 0:
        hi = tl.minimum(hi, lo + (tl.full([], 1, tl.int64) << shift))
        tl.store(state + _HI, hi)
        tl.store(state + _SHIFT, _shift_of(hi - lo - 1))
        return
    tl.store(state + _DONE, 1)
    tl.store(state + _THRESHOLD, lo)
    kind = tl.load(group + _GROUP_KIND)
    key = lo.to(tl.uint32)
    value = tl.where(kind == 2, _key(key, 2), tl.where(kind == 3, _key(key, 3), key))
    tl.store(thresholds_ptr + tl.program_id(0), value)
    for begin in range(first, end, ROWS):
        segment = begin + tl.arange(0, ROWS)
        equal = tl.load(bins_ptr + segment * _BINS + bin_, mask=segment < end, other=0).to(tl.int64)
        before = tl.cumsum(equal, 0) - equal
        result = result_ptr + segment * _F
        tl.store(result + _TIES, tl.minimum(tl.maximum(rank - before, 0), equal), mask=segment < end)
        tl.store(result + _EQUAL, equal, mask=segment < end)
        rank -= tl.sum(equal, 0)


@triton.jit
def _apply_kernel(
    ids_ptr, segments_ptr, dims_ptr, state_ptr, result_ptr, gate_ptr, most_dims,
    KIND: tl.constexpr, STRIDED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Program i: clear the keep-bits of segment ids[i] and zero every entry without one."""
    if tl.load(gate_ptr) != 0:
        return
    index = tl.load(ids_ptr + tl.program_id(0))
    segment = segments_ptr + index * _F
    threshold = tl.load(state_ptr + tl.load(segment + _GROUP) * _F + _THRESHOLD).to(tl.uint32)
    ties = tl.load(result_ptr + index * _F + _TIES)
    # Ties run out in one segment of a group at most: elsewhere all of them go, or none.
    cut = (ties != 0) & (ties != tl.load(result_ptr + index * _F + _EQUAL))
    bound = tl.where((ties != 0) & ~cut, threshold + 1, threshold)

    count = tl.load(segment + _COUNT).to(tl.int32)
    begin = tl.load(segment + _BEGIN)
    place = tl.load(segment + _DIMS)
    mask_ptr = tl.load(segment + _MASK).to(tl.pointer_type(tl.uint8))
    if KIND == 0:
        x_ptr = tl.load(segment + _ADDRESS).to(tl.pointer_type(tl.uint32))
    else:
        x_ptr = tl.load(segment + _ADDRESS).to(tl.pointer_type(tl.uint16))
    if not STRIDED:
        x_ptr = tl.multiple_of(x_ptr, 16)
    bit = tl.arange(0, 8)[None, :]
    for at in range(0, tl.cdiv(count, 8), TILE):
        byte = at + tl.arange(0, TILE)
        entry = byte[:, None] * 8 + bit
        if STRIDED:
            valid = entry < count
            entry_ptr = x_ptr + _offset(begin + entry, dims_ptr, place, most_dims)
        else:
            valid = (byte * 8 < count)[:, None]
            entry_ptr = x_ptr + entry
        bits = tl.load(entry_ptr, mask=valid, other=0)
        packed = tl.load(mask_ptr + byte, mask=byte * 8 < count, other=0).to(tl.int32)
        keep = (((packed[:, None] >> bit) & 1) != 0) & valid
        key = _key(bits, KIND)
        drop = keep & (key < bound)
        if cut:
            tie = keep & (key == threshold)
            tied = tl.sum(tie.to(tl.int32), 1)
            before = (tl.cumsum(tied, 0) - tied)[:, None] + tl.cumsum(tie.to(tl.int32), 1)
            drop |= tie & (before <= ties)
            ties -= tl.sum(tied, 0)
        dropped = tl.sum(tl.where(drop, 1 << bit, 0), 1)
        tl.store(mask_ptr + byte, (packed & ~dropped).to(tl.uint8), mask=dropped != 0)
        clear = valid & (~keep | drop) & (bits != 0)
        if STRIDED:
            tl.store(entry_ptr, tl.zeros([TILE, 8], bits.dtype), mask=clear)
        else:
            changed = tl.max(clear.to(tl.int32), 1) != 0
            tl.store(entry_ptr, tl.where(clear, 0, bits), mask=tl.broadcast_to(changed[:, None], [TILE, 8]))


def masked_topk_(weights: Sequence[Tensor], masks: Sequence[Tensor], k: Sequence[int], scope: str) -> Tensor:
    """See ``reference.masked_topk_`` and, for errors and CUDA graphs, `topk_call.masked_topk_with`."""
    return masked_topk_with(_launch, weights, masks, k, scope)


def _launch(plan: Plan, scratch: Scratch) -> None:
    segments, groups, dims, ids = plan.tables
    gate, state, result, thresholds, bins, sums, sample = scratch
    if plan.rounds:
        keys = triton.reinterpret(sample, tl.uint32)
        _gather_kernel[(plan.groups, SAMPLE // PART)](
            segments, groups, dims, keys, plan.most_dims, SAMPLE=SAMPLE, PART=PART, num_warps=4
        )
        _bracket_kernel[(plan.groups,)](groups, keys, state, SAMPLE=SAMPLE, num_warps=16)
    for number in range(max(1, plan.rounds)):  # with nothing to clear, one pass looks for NaN
        for kind, strided, first, count in plan.classes:
            _count_kernel[(count,)](
                ids[first:], segments, dims, state, result, bins, gate, plan.most_dims,
                KIND=kind, STRIDED=strided, TILE=TILE_STRIDED if strided else TILE, num_warps=4,
            )  # fmt: skip
        if number < plan.rounds:
            _sums_kernel[(plan.groups, BINS // 128)](groups, state, bins, sums, COLS=128, ROWS=32, num_warps=4)
            bits = triton.reinterpret(thresholds, tl.uint32)
            _select_kernel[(plan.groups,)](groups, state, result, bins, sums, bits, gate, ROWS=512, num_warps=8)
    for kind, strided, first, count in plan.classes:
        _apply_kernel[(count,)](
            ids[first:], segments, dims, state, result, gate, plan.most_dims,
            KIND=kind, STRIDED=strided, TILE=TILE_STRIDED if strided else TILE, num_warps=4,
        )  # fmt: skip
