"""masked_topk_ in Triton: R bytes of weights, R / 16 or R / 32 of masks.

    threshold T of a group: its k-th smallest kept magnitude. Cleared: magnitudes < T, and of those equal to T the first
    k - #(magnitude < T) in row-major order, earlier tensors first.

1. bracket: a random sample of each group brackets T; a small group is read whole, and T is known.
2. count, several rounds: one read of weights and masks counts what lies below the bracket and, in up to 2048 bins, what
   lies inside. The last program of a group finds the bin that holds T: the next range, until it is one key. For 16-bit
   types one read proves T (a bracket has a few keys), for float32 two. A bracket that missed is replaced by all keys.
   Rounds after the proof return at once: the host never waits between launches.
3. apply: one read; writes the vectors and the bytes of the mask that change. Ties go by a prefix over segments, and
   within the one segment where they run out by a prefix over its entries.

Bytes: 16-bit types 2 R + 2 M + what changes (R + M at most), float32 3 R + 3 M + what changes; counters besides.
A NaN, or a k above what is kept, closes a gate that the apply pass looks at first: nothing is changed.

Tables and scratch are those of csrc/plan/topk_plan.h; the CUDA kernels (csrc/cuda/masked_topk.cu) also list the keys
inside a bracket of float32, which spares them the second read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import triton
import triton.language as tl
from layercollapse_core._core import TopkPlan, topk_columns
from torch import Tensor

from layercollapse.kernels import topk_plan
from layercollapse.kernels.bits import FLOAT_TYPES
from layercollapse.kernels.tables import Kept, Table
from layercollapse.kernels.topk_call import masked_topk_again_with, masked_topk_with
from layercollapse.kernels.triton_launch import Launch

TILE, TILE_STRIDED = 256, 64  # bytes of mask, of 8 entries each, that a program reads at once
SAMPLE = topk_columns["SAMPLE"]
REGISTERS = 128  # of the count kernel: what its last program needs more, it spills, and the loop over values does not
RANKS = 4  # numbers k of a plan whose rows are kept on the device

# Columns and values of the tables.
_FIELDS = tl.constexpr(topk_columns["FIELDS"])
_STATE_FIELDS = tl.constexpr(topk_columns["STATE_FIELDS"])
_BINS = tl.constexpr(topk_columns["BINS"])
_PART = tl.constexpr(topk_columns["PART"])
_ADDRESS = tl.constexpr(topk_columns["ADDRESS"])
_MASK = tl.constexpr(topk_columns["MASK"])
_BEGIN = tl.constexpr(topk_columns["BEGIN"])
_COUNT = tl.constexpr(topk_columns["COUNT"])
_DIMS = tl.constexpr(topk_columns["DIMS"])
_KIND = tl.constexpr(topk_columns["KIND"])
_GROUP = tl.constexpr(topk_columns["GROUP"])
_ROW = tl.constexpr(topk_columns["ROW"])
_FIRST = tl.constexpr(topk_columns["FIRST"])
_SEGMENTS = tl.constexpr(topk_columns["SEGMENTS"])
_PLACES = tl.constexpr(topk_columns["PLACES"])
_SLOT = tl.constexpr(topk_columns["SLOT"])
_END = tl.constexpr(topk_columns["END"])
_GROUP_KIND = tl.constexpr(topk_columns["GROUP_KIND"])
_SUMS = tl.constexpr(topk_columns["SUMS"])
_SAMPLE_ROW = tl.constexpr(topk_columns["SAMPLE_ROW"])
_DRAWN = tl.constexpr(topk_columns["DRAWN"])
_LO = tl.constexpr(topk_columns["LO"])
_HI = tl.constexpr(topk_columns["HI"])
_SHIFT = tl.constexpr(topk_columns["SHIFT"])
_STAGE = tl.constexpr(topk_columns["STAGE"])
_THRESHOLD = tl.constexpr(topk_columns["THRESHOLD"])
_KEPT = tl.constexpr(topk_columns["KEPT"])
_K = tl.constexpr(topk_columns["K"])
_RANK = tl.constexpr(topk_columns["RANK"])
_BOUND = tl.constexpr(topk_columns["BOUND"])
_SPLIT = tl.constexpr(topk_columns["SPLIT"])
_KEPT_SUM = tl.constexpr(topk_columns["KEPT_SUM"])
_BELOW_SUM = tl.constexpr(topk_columns["BELOW_SUM"])
_TICKET = tl.constexpr(topk_columns["TICKET"])
_DRAW_TICKET = tl.constexpr(topk_columns["DRAW_TICKET"])
_GUESSED = tl.constexpr(topk_columns["GUESSED"])
_PROVEN = tl.constexpr(topk_columns["PROVEN"])
_DONE = tl.constexpr(topk_columns["DONE"])
_WIDE = tl.constexpr(topk_columns["WIDE"])
_BFLOAT16 = tl.constexpr(topk_columns["BFLOAT16"])
_COMMON_BFLOAT16 = tl.constexpr(topk_columns["COMMON_BFLOAT16"])
_COMMON_FLOAT16 = tl.constexpr(topk_columns["COMMON_FLOAT16"])
_FLOAT16 = tl.constexpr(topk_columns["FLOAT16"])


@triton.jit
def _key(bits, KIND: tl.constexpr):
    """Magnitude of raw bits as a key: an integer with the order of |w|."""
    if KIND == _WIDE:
        return bits & 0x7FFFFFFF
    magnitude = bits.to(tl.uint32) & 0x7FFF
    if KIND == _COMMON_BFLOAT16:
        magnitude = magnitude << 16
    if KIND == _COMMON_FLOAT16:
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
def _infinity(KIND: tl.constexpr):
    """Key of infinity."""
    if KIND == _BFLOAT16:
        return 0x7F80
    if KIND == _FLOAT16:
        return 0x7C00
    return 0x7F800000


@triton.jit
def _draw(i, group, segments_ptr, dims_ptr, most_dims):
    """Keys number i of a group's sample; 2^32 - 1 where the entry is none that is kept."""
    segments = tl.load(group + _SEGMENTS)
    slot = tl.load(group + _SLOT)
    drawn = tl.load(group + _DRAWN)
    if drawn == 0:  # the group is read whole
        which = i.to(tl.int64) // slot
        at = i.to(tl.int64) % slot
        valid = i < tl.load(group + _PLACES)
    else:
        which = ((_random(i, 1) * segments.to(tl.uint64)) >> 32).to(tl.int64)
        at = ((_random(i, 65537) * slot.to(tl.uint64)) >> 32).to(tl.int64)
        valid = i < drawn
    segment = segments_ptr + (tl.load(group + _FIRST) + which) * _FIELDS
    valid &= at < tl.load(segment + _COUNT, mask=valid, other=0)
    byte_ptr = (tl.load(segment + _MASK, mask=valid, other=0) + at // 8).to(tl.pointer_type(tl.uint8))
    valid &= ((tl.load(byte_ptr, mask=valid, other=0).to(tl.int64) >> (at % 8)) & 1) != 0
    address = tl.load(segment + _ADDRESS, mask=valid, other=0)
    kind = tl.load(segment + _KIND, mask=valid, other=0)
    place = tl.load(segment + _DIMS, mask=valid, other=0)
    begin = tl.load(segment + _BEGIN, mask=valid, other=0)
    at = tl.where(place == 0, at, _offset(begin + at, dims_ptr, place, most_dims))
    wide = tl.load((address + at * 4).to(tl.pointer_type(tl.uint32)), mask=valid & (kind == _WIDE), other=0)
    narrow = tl.load((address + at * 2).to(tl.pointer_type(tl.uint16)), mask=valid & (kind != _WIDE), other=0)
    key = tl.where(kind == _WIDE, _key(wide, _WIDE), narrow.to(tl.uint32) & 0x7FFF)
    key = tl.where(kind == _COMMON_BFLOAT16, _key(narrow, _COMMON_BFLOAT16), key)
    key = tl.where(kind == _COMMON_FLOAT16, _key(narrow, _COMMON_FLOAT16), key)
    return tl.where(valid, key, 0xFFFFFFFF)


@triton.jit
def _bracket_kernel(
    parts_ptr, segments_ptr, groups_ptr, dims_ptr, ranks_ptr, sample_ptr, state_ptr, gate_ptr, most_dims,
    SAMPLE: tl.constexpr,
):  # fmt: skip
    """Program i: draw a part of a group's sample. The last of a group: the keys of two ranks, found bit by bit."""
    part = tl.load(parts_ptr + tl.program_id(0))
    index = part >> 8
    group = groups_ptr + index * _FIELDS
    state = state_ptr + index * _STATE_FIELDS
    k = tl.load(ranks_ptr + index * 3)
    segments = tl.load(group + _SEGMENTS)
    drawn = tl.load(group + _DRAWN)
    row = sample_ptr + tl.load(group + _SAMPLE_ROW)
    if (k != 0) & (segments == 0):
        tl.store(state + _STAGE, _DONE)
        tl.atomic_max(gate_ptr, 1, sem="relaxed")
    last = (k != 0) & (segments != 0)
    length = tl.where(drawn == 0, tl.load(group + _PLACES), drawn)
    if last:
        i = (part & 255).to(tl.int32) * _PART + tl.arange(0, _PART)
        tl.store(row + i, _draw(i, group, segments_ptr, dims_ptr, most_dims), mask=i < length)
        tl.debug_barrier()  # the ticket is taken by one thread, for all
        last = tl.atomic_add(state + _DRAW_TICKET, 1) == (length + _PART - 1) // _PART - 1
    if not last:
        return
    i = tl.arange(0, SAMPLE)
    key = tl.load(row + i, mask=i < length, other=0xFFFFFFFF, cache_modifier=".cg")
    low = tl.load(ranks_ptr + index * 3 + 1)
    high = tl.load(ranks_ptr + index * 3 + 2)
    end = tl.load(group + _END)
    lo = tl.full([], 0, tl.uint32)
    hi = tl.full([], 0, tl.uint32)
    for step in range(31):
        bit = (tl.full([], 1, tl.uint32) << 30) >> step
        lo = tl.where(tl.sum((key < (lo | bit)).to(tl.int32)) <= low, lo | bit, lo)
        hi = tl.where(tl.sum((key < (hi | bit)).to(tl.int32)) <= high, hi | bit, hi)
    size = tl.sum((key != 0xFFFFFFFF).to(tl.int32))
    lo = tl.where((low >= 0) & (low < size), lo.to(tl.int64), 0)
    hi = tl.where(high < size, hi.to(tl.int64) + 1, end)
    hi = tl.maximum(hi, lo + 1)
    too_many = (drawn == 0) & (high >= size)  # and there is one counter only
    lo = tl.where(too_many, 0, lo)
    hi = tl.where(too_many, 0, hi)
    tl.store(state + _LO, lo)
    tl.store(state + _HI, hi)
    tl.store(state + _SHIFT, _shift_of(tl.maximum(hi - lo - 1, 0)))
    tl.store(state + _K, k)


@triton.jit
def _count_kernel(
    ids_ptr, segments_ptr, groups_ptr, dims_ptr, state_ptr, sums_ptr, ties_ptr, bins_ptr, thresholds_ptr, gate_ptr,
    n_segments, most_dims, KIND: tl.constexpr, STRIDED: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Program i: kept entries of segment ids[i], those below its group's range, and those inside by bins.

    The last program of a group narrows the range to the bin that holds T, or fixes T and deals out its ties.
    """
    index = tl.load(ids_ptr + tl.program_id(0))
    segment = segments_ptr + index * _FIELDS
    number = tl.load(segment + _GROUP)
    state = state_ptr + number * _STATE_FIELDS
    if tl.load(state + _STAGE) == _DONE:
        return
    lo = tl.load(state + _LO).to(tl.uint32)
    span = tl.load(state + _HI).to(tl.uint32) - lo
    shift = tl.load(state + _SHIFT).to(tl.uint32)
    last_bin = tl.where(span == 0, 0, (span - 1) >> shift).to(tl.int32)
    row = bins_ptr + tl.load(segment + _ROW)
    for b in range(0, last_bin + 1, 128):
        column = b + tl.arange(0, 128)
        tl.store(row + column, tl.zeros([128], tl.int32), mask=column <= last_bin)
    tl.debug_barrier()  # the atomics below come from other threads than these stores

    count = tl.load(segment + _COUNT).to(tl.int32)
    begin = tl.load(segment + _BEGIN)
    place = tl.load(segment + _DIMS)
    mask_ptr = tl.load(segment + _MASK).to(tl.pointer_type(tl.uint8))
    if KIND == _WIDE:
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
    tl.store(row, tl.sum(first, 0))
    if last_bin != 0:
        tl.store(row + last_bin, tl.sum(last, 0))
    if tl.max(top, 0) > _infinity(KIND):
        tl.atomic_max(gate_ptr, 1, sem="relaxed")
        tl.atomic_max(gate_ptr + 1, n_segments - index, sem="relaxed")  # the first segment of all
    tl.atomic_add(state + _KEPT_SUM, tl.sum(kept.to(tl.int64), 0), sem="relaxed")
    tl.atomic_add(state + _BELOW_SUM, tl.sum(below.to(tl.int64), 0), sem="relaxed")
    tl.debug_barrier()
    group = groups_ptr + number * _FIELDS
    sums = sums_ptr + tl.load(group + _SUMS)
    for b in range(0, last_bin + 1, 128):
        column = b + tl.arange(0, 128)
        own = tl.load(row + column, mask=column <= last_bin, other=0, cache_modifier=".cg").to(tl.int64)
        tl.atomic_add(sums + column, own, mask=own != 0, sem="relaxed")
    tl.debug_barrier()  # the ticket is taken by one thread, for all
    begin = tl.load(group + _FIRST)
    segments = tl.load(group + _SEGMENTS)
    if tl.atomic_add(state + _TICKET, 1) != segments - 1:
        return

    tl.store(state + _TICKET, 0)
    guessed = tl.load(state + _STAGE) == _GUESSED
    k = tl.load(state + _K)
    kept_sum = tl.load(state + _KEPT_SUM, cache_modifier=".cg")
    below_sum = tl.load(state + _BELOW_SUM, cache_modifier=".cg")
    known = tl.load(state + _KEPT)
    kept_all = tl.where(guessed, kept_sum, known)
    rank = tl.where(guessed, k - below_sum, tl.load(state + _RANK))
    column = tl.arange(0, _BINS)
    totals = tl.load(sums + column, mask=column <= last_bin, other=0, cache_modifier=".cg")
    from_key = tl.load(state + _LO)
    to_key = tl.load(state + _HI)
    step = tl.load(state + _SHIFT)
    tl.debug_barrier()  # every thread has read what is reset now
    tl.store(sums + column, tl.zeros([_BINS], tl.int64), mask=column <= last_bin)
    tl.store(state + _KEPT_SUM, 0)
    tl.store(state + _BELOW_SUM, 0)
    tl.store(state + _KEPT, kept_all)
    if k > kept_all:
        tl.atomic_max(gate_ptr, 1, sem="relaxed")
    if (k == 0) | (k > kept_all):
        tl.store(state + _STAGE, _DONE)
        return

    if (rank < 1) | (rank > tl.sum(totals, 0)):  # the bracket missed
        end_key = tl.load(group + _END)
        tl.store(state + _LO, 0)
        tl.store(state + _HI, end_key)
        tl.store(state + _SHIFT, _shift_of(end_key - 1))
        tl.store(state + _STAGE, _PROVEN)
        tl.store(state + _RANK, k)
        if tl.load(group + _DRAWN) == 0:  # only where another stream writes to the weights
            tl.atomic_max(gate_ptr, 1, sem="relaxed")
        return
    passed = tl.cumsum(totals, 0) < rank
    bin_ = tl.sum(passed.to(tl.int64), 0)
    rank -= tl.sum(tl.where(passed, totals, 0), 0)
    equal = tl.sum(tl.where(column == bin_, totals, 0), 0)
    from_key += bin_ << step
    if step != 0:
        to_key = tl.minimum(to_key, from_key + (tl.full([], 1, tl.int64) << step))
        tl.store(state + _LO, from_key)
        tl.store(state + _HI, to_key)
        tl.store(state + _SHIFT, _shift_of(to_key - from_key - 1))
        tl.store(state + _STAGE, _PROVEN)
        tl.store(state + _RANK, rank)
        return
    split = rank < equal
    tl.store(state + _STAGE, _DONE)
    tl.store(state + _THRESHOLD, from_key)
    tl.store(state + _BOUND, tl.where(split, from_key, from_key + 1))
    tl.store(state + _SPLIT, split.to(tl.int64))
    group_kind = tl.load(group + _GROUP_KIND)
    magnitude = from_key.to(tl.uint32)
    value = tl.where(group_kind == _COMMON_BFLOAT16, _key(magnitude, _COMMON_BFLOAT16), magnitude)
    value = tl.where(group_kind == _COMMON_FLOAT16, _key(magnitude, _COMMON_FLOAT16), value)
    tl.store(thresholds_ptr + number, value)
    if not split:
        return
    for place in range(begin, begin + segments, ROWS):
        member = place + tl.arange(0, ROWS)
        inside = member < begin + segments
        its_row = tl.load(segments_ptr + member * _FIELDS + _ROW, mask=inside, other=0)
        tied = tl.load(bins_ptr + its_row + bin_, mask=inside, other=0, cache_modifier=".cg").to(tl.int64)
        before = tl.cumsum(tied, 0) - tied
        tl.store(ties_ptr + member * 2, tl.minimum(tl.maximum(rank - before, 0), tied), mask=inside)
        tl.store(ties_ptr + member * 2 + 1, tied, mask=inside)
        rank -= tl.sum(tied, 0)


@triton.jit
def _apply_kernel(
    ids_ptr, segments_ptr, dims_ptr, state_ptr, ties_ptr, thresholds_ptr, gate_ptr, n_groups, most_dims,
    KIND: tl.constexpr, STRIDED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Program i: clear the keep-bits of segment ids[i] and zero every entry without one."""
    if tl.load(gate_ptr) != 0:
        if tl.program_id(0) == 0:
            for group in range(0, n_groups, 128):
                place = group + tl.arange(0, 128)
                tl.store(thresholds_ptr + place, tl.full([128], 0x7FC00000, tl.uint32), mask=place < n_groups)
        return
    index = tl.load(ids_ptr + tl.program_id(0))
    segment = segments_ptr + index * _FIELDS
    state = state_ptr + tl.load(segment + _GROUP) * _STATE_FIELDS
    threshold = tl.load(state + _THRESHOLD).to(tl.uint32)
    bound = tl.load(state + _BOUND).to(tl.uint32)
    split = tl.load(state + _SPLIT) != 0
    ties = tl.load(ties_ptr + index * 2, mask=split, other=0)
    # Ties run out in one segment of a group at most: elsewhere all of them go, or none.
    cut = (ties != 0) & (ties != tl.load(ties_ptr + index * 2 + 1, mask=split, other=0))
    bound = tl.where((ties != 0) & ~cut, threshold + 1, bound)

    count = tl.load(segment + _COUNT).to(tl.int32)
    begin = tl.load(segment + _BEGIN)
    place = tl.load(segment + _DIMS)
    mask_ptr = tl.load(segment + _MASK).to(tl.pointer_type(tl.uint8))
    if KIND == _WIDE:
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
    return masked_topk_with(_Plan, weights, masks, k, scope)


def masked_topk_again_(
    weights: Sequence[Tensor], masks: Sequence[Tensor], scope: str
) -> Callable[[Sequence[int]], Tensor]:
    """See ``Backend``."""
    return masked_topk_again_with(_Plan, weights, masks, scope)


class _Plan(topk_plan.Plan):
    """A plan of the C++ core, and the rows that hold k on the device, which change with it."""

    def __init__(self, weights: Sequence[Tensor], masks: Sequence[Tensor], scope: str) -> None:
        self._plan = plan = TopkPlan(
            [weight.data_ptr() for weight in weights],
            [mask.data_ptr() for mask in masks],
            [FLOAT_TYPES[weight.dtype].code for weight in weights],
            [weight.shape for weight in weights],
            [weight.stride() for weight in weights],
            scope == "global",
            topk_plan.segments_wanted(weights[0]),
            topk_plan.SHORTEST,
            SAMPLE,
            lists=False,
            kept=True,  # drawn at once, 16,384 entries take more registers than there are
            tails=False,  # a mask of single entries would cost the wide loads
        )
        self.table = Table(torch.from_numpy(plan.table), weights[0])
        self.segments = plan.segments
        self._places = plan.scratch
        self.scratch = self._places[-1]
        self._ranks: Kept[Table] = Kept(RANKS)
        self._bracket = Launch(_bracket_kernel, plan.parts, {"SAMPLE": SAMPLE}, num_warps=16)
        self._count, self._apply = [], []
        for kind, strided, first, count in plan.classes:
            constants = {"KIND": kind, "STRIDED": strided, "TILE": TILE_STRIDED if strided else TILE}
            both = {"ROWS": 512} | constants
            self._count.append((first, Launch(_count_kernel, count, both, num_warps=4, maxnreg=REGISTERS)))
            self._apply.append((first, Launch(_apply_kernel, count, constants, num_warps=4)))

    def _ranks_of(self, k: Sequence[int], like: Tensor) -> Tensor:
        key = tuple(k)
        ranks = self._ranks.get(
            key,
            lambda: Table(torch.from_numpy(self._plan.ranks(key)), like),
            like,
            "masked_topk_",
            "tensors, k and scope",
        )
        return ranks.here()

    def launch(self, k: Sequence[int], scratch: Tensor, thresholds: Tensor) -> None:
        plan = self._plan
        columns = topk_columns["FIELDS"]
        counts = [plan.segments * columns, plan.groups * columns, plan.dims * 2, plan.segments, plan.parts]
        segments, groups, dims, ids, parts = self.table.here().split(counts)
        gate, state, sums, ties, bins, _, _, sample = (scratch[a:b] for a, b in pairwise(self._places))
        gate, state, sums, ties = (part.view(torch.int64) for part in (gate, state, sums, ties))
        bins = bins[: bins.numel() // 4 * 4].view(torch.int32)
        keys = triton.reinterpret(sample.view(torch.int32), tl.uint32)
        bits = triton.reinterpret(thresholds.view(torch.int32), tl.uint32)
        scratch[: self._places[3]].zero_()
        thresholds.zero_()
        rounds = plan.rounds(k)
        if rounds:
            ranks = self._ranks_of(k, scratch)
            self._bracket(parts, segments, groups, dims, ranks, keys, state, gate, plan.most_dims)
        for _ in range(max(1, rounds)):  # with nothing to clear, one pass looks for NaN
            for first, count in self._count:
                count(
                    ids[first:], segments, groups, dims, state, sums, ties, bins, bits, gate, plan.segments,
                    plan.most_dims,
                )  # fmt: skip
        for first, apply in self._apply:
            apply(ids[first:], segments, dims, state, ties, bits, gate, plan.groups, plan.most_dims)

    def outcome(self, k: Sequence[int], scratch: Tensor) -> tuple[int, int, int]:
        return self._plan.outcome(k, scratch[: self._places[2]].view(torch.int64).tolist())
