"""apply_mask_ in Triton: one read of R bytes of weights and of their masks (R / 16 or R / 32), a write of what changes.

    w[i] = 0 where bit i of the mask is 0

All tensors go in one launch, a program per tile, over the table of csrc/plan/mask_plan.h, which stays on the device for
the next call with the same tensors. Values are read in the order of memory; where the row-major order is another one
(`channels_last`), each keep-bit is looked up by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from layercollapse.kernels.bits import FLOAT_TYPES
from layercollapse.kernels.launch import on_device
from layercollapse.kernels.tables import Kept, Table, tensors_key
from layercollapse.kernels.triton_launch import Launch

TILE = 2048  # entries: with 128 threads, 16 each, 32 or 64 bytes
PART = 256  # entries at once where each is looked up: addresses of 64 bits take registers
CACHED = 16  # tables kept

# Layout of the table, as in csrc/plan/mask_plan.h (tests/ops/test_apply_mask.py compares them).
ROW_WORDS, DIM_WORDS, DIMS_SHIFT, PLACE_SHIFT = 5, 3, 8, 16
_ROW, _DIM, _DIMS_SHIFT, _PLACE_SHIFT = map(tl.constexpr, (ROW_WORDS, DIM_WORDS, DIMS_SHIFT, PLACE_SHIFT))


@dataclass(frozen=True)
class Plan:
    """The plan of one list of tensors: its table, rows of weights, the launch for all of their tiles."""

    table: Table
    rows: int
    launch: Launch | None  # None: there are no entries


@triton.jit
def _octets(x_ptr, mask_ptr, count, TILE: tl.constexpr):
    """A tile whose keep-bits have the order of its values, up to `count` of them."""
    byte = tl.arange(0, TILE // 8)
    bit = tl.arange(0, 8)[None, :]
    entry = byte[:, None] * 8 + bit
    if count >= TILE:
        packed = tl.load(mask_ptr + byte).to(tl.int32)[:, None]
        bits = tl.load(x_ptr + entry)
        clear = (((packed >> bit) & 1) == 0) & (bits != 0)
        changed = tl.max(clear.to(tl.int32), 1) != 0
        tl.store(x_ptr + entry, tl.where(clear, 0, bits), mask=tl.broadcast_to(changed[:, None], [TILE // 8, 8]))
    else:
        packed = tl.load(mask_ptr + byte, mask=byte * 8 < count, other=0).to(tl.int32)[:, None]
        bits = tl.load(x_ptr + entry, mask=entry < count, other=0)
        tl.store(x_ptr + entry, 0, mask=(entry < count) & (((packed >> bit) & 1) == 0) & (bits != 0))


@triton.jit
def _entries(x_ptr, mask_ptr, table_ptr, info, begin, count, TILE: tl.constexpr, PART: tl.constexpr):
    """A tile from entry `begin` in the order of memory, where keep-bits have another."""
    dims = ((info >> _DIMS_SHIFT) & 0xFF).to(tl.int32)
    for part in range(0, TILE, PART):
        entry = begin + part + tl.arange(0, PART)
        valid = entry < count
        dim_ptr = table_ptr + (info >> _PLACE_SHIFT) + dims * _DIM
        offset = entry * 0
        place = entry * 0
        index = entry
        for _ in range(dims):
            dim_ptr -= _DIM
            size = tl.load(dim_ptr)
            at = index % size
            index = index // size
            offset += at * tl.load(dim_ptr + 1)
            place += at * tl.load(dim_ptr + 2)
        keep = (tl.load(mask_ptr + place // 8, mask=valid, other=0).to(tl.int64) >> (place % 8)) & 1
        bits = tl.load(x_ptr + offset, mask=valid & (keep == 0), other=0)
        tl.store(x_ptr + offset, 0, mask=valid & (keep == 0) & (bits != 0))


@triton.jit
def _apply_mask_kernel(table_ptr, rows, TILE: tl.constexpr, PART: tl.constexpr):
    """Program i: tile i of the table."""
    tile = tl.program_id(0)
    row = 0
    size = rows
    while size > 1:  # the last row that begins at or before this tile
        half = size // 2
        first = tl.load(table_ptr + (row + half) * _ROW + 3)
        row = tl.where(first <= tile, row + half, row)
        size -= half
    row_ptr = table_ptr + row * _ROW
    address = tl.load(row_ptr)
    mask_ptr = tl.load(row_ptr + 1).to(tl.pointer_type(tl.uint8))
    count = tl.load(row_ptr + 2)
    begin = (tile - tl.load(row_ptr + 3)) * TILE
    info = tl.load(row_ptr + 4)
    plain = ((info >> _DIMS_SHIFT) & 0xFF) == 0
    if (info & 0xF) == 2:
        narrow_ptr = address.to(tl.pointer_type(tl.uint16))
        if plain:
            _octets(tl.multiple_of(narrow_ptr, 16) + begin, mask_ptr + begin // 8, count - begin, TILE)
        else:
            _entries(narrow_ptr, mask_ptr, table_ptr, info, begin, count, TILE, PART)
    else:
        wide_ptr = address.to(tl.pointer_type(tl.uint32))
        if plain:
            _octets(tl.multiple_of(wide_ptr, 16) + begin, mask_ptr + begin // 8, count - begin, TILE)
        else:
            _entries(wide_ptr, mask_ptr, table_ptr, info, begin, count, TILE, PART)


_plans: Kept[Plan] = Kept(CACHED)


def apply_mask_(weights: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
    """See ``reference.apply_mask_``; a CUDA graph needs one ordinary call with the same tensors before it."""
    apply_mask_again_(weights, masks)()


def apply_mask_again_(weights: Sequence[Tensor], masks: Sequence[Tensor]) -> Callable[[], None]:
    """See ``Backend``."""
    device = weights[0].device
    with on_device(device):
        key = tensors_key(weights, masks)
        plan = _plans.get(key, lambda: _build(weights, masks), weights[0], "apply_mask_", "tensors")

    def call() -> None:
        if plan.launch is not None:
            with on_device(device):
                plan.launch(plan.table.here(), plan.rows)

    return call


def _build(weights: Sequence[Tensor], masks: Sequence[Tensor]) -> Plan:
    from layercollapse_core import _core

    plain = [weight.is_contiguous() for weight in weights]
    words, rows, tiles = _core.mask_table(
        TILE,
        [weight.data_ptr() for weight in weights],
        [mask.data_ptr() for mask in masks],
        [FLOAT_TYPES[weight.dtype].code for weight in weights],
        [(w.numel(),) if p else w.shape for w, p in zip(weights, plain, strict=True)],
        [(1,) if p else w.stride() for w, p in zip(weights, plain, strict=True)],
    )
    launch = Launch(_apply_mask_kernel, tiles, {"TILE": TILE, "PART": PART}, num_warps=4) if tiles else None
    return Plan(Table(torch.tensor(words, dtype=torch.int64), weights[0]), rows, launch)
