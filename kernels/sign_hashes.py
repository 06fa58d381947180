"""sign_hashes in Triton: one read of x, 8 bytes written per row.

    hash[r] = Σ_w mix(mix(word_w) + (w + 1) · PHI),  word_w: the signs of channels 64 w ... 64 w + 63 of row r

A program takes ROWS rows and some of their words, 32 channels at a time. Where a row's words are those of several
programs, they are added by 64-bit atomics to zeros: sums of integers, so no order of arrival can show.
"""

from __future__ import annotations

import itertools

import triton
import triton.language as tl
from torch import Tensor

from layercollapse.kernels.bits import FLOAT_TYPES
from layercollapse.kernels.launch import on_device_of, program_count
from layercollapse.ops.reference import MIX, PHI

ROWS = 32  # of a program: with 128 threads, the two halves of a word are 16 values each
WORD = 64  # channels
DIMS = 3  # dimensions of rows that one launch walks

_PHI, _ROWS = tl.constexpr(PHI), tl.constexpr(ROWS)
_SHIFT_1, _SHIFT_2, _SHIFT_3 = (tl.constexpr(shift) for shift, _ in MIX)
_FACTOR_1, _FACTOR_2, _ = (tl.constexpr(factor) for _, factor in MIX)


@triton.jit
def _mix(z):
    z = (z ^ (z >> _SHIFT_1)) * _FACTOR_1
    z = (z ^ (z >> _SHIFT_2)) * _FACTOR_2
    return z ^ (z >> _SHIFT_3)


@triton.jit
def _half(x_ptr, channel, channels, channel_stride, valid, INFINITY: tl.constexpr):
    """32 bits for each row: the signs of the channels from `channel` on."""
    place = channel + tl.arange(0, 32)
    bits = tl.load(
        x_ptr[:, None] + place[None, :].to(tl.int64) * channel_stride,
        mask=valid[:, None] & (place < channels)[None, :],
        other=0,
    ).to(tl.uint32)
    on = (bits - 1) < INFINITY  # 0 < bits <= INFINITY
    return tl.sum(tl.where(on, (tl.full([32], 1, tl.uint32) << tl.arange(0, 32).to(tl.uint32))[None, :], 0), 1)


@triton.jit(do_not_specialize=["count", "words", "each"])
def _sign_hashes_kernel(
    x_ptr, out_ptr, start, count, channels, words, each, channel_stride, size_1, size_2, stride_0, stride_1, stride_2,
    INFINITY: tl.constexpr, ALONE: tl.constexpr,
):  # fmt: skip
    """Program (i, j): rows from i · ROWS, words [j · each, (j + 1) · each); rows in three dimensions."""
    row = tl.program_id(0).to(tl.int64) * _ROWS + tl.arange(0, _ROWS)
    valid = row < count
    offset = start + row % size_2 * stride_2 + row // size_2 % size_1 * stride_1 + row // size_2 // size_1 * stride_0
    first = tl.program_id(1) * each
    hashes = tl.zeros([_ROWS], tl.uint64)
    key = (first + 1).to(tl.uint64) * _PHI
    for word in range(first, tl.minimum(first + each, words)):
        low = _half(x_ptr + offset, word * 64, channels, channel_stride, valid, INFINITY)
        high = _half(x_ptr + offset, word * 64 + 32, channels, channel_stride, valid, INFINITY)
        bits = low.to(tl.uint64) | (high.to(tl.uint64) << 32)
        hashes += _mix(_mix(bits) + key)
        key += _PHI
    if ALONE:
        tl.store(out_ptr + row, hashes.to(tl.int64, bitcast=True), mask=valid)
    else:
        tl.atomic_add(out_ptr + row, hashes.to(tl.int64, bitcast=True), mask=valid, sem="relaxed")


def sign_hashes_(x: Tensor, channel_dim: int, out: Tensor) -> None:
    """See ``reference.sign_hashes_``: one read of x, any strides."""
    from layercollapse_core import _core

    kind = FLOAT_TYPES[x.dtype]
    channel_dim %= x.dim()
    channels, words = x.shape[channel_dim], triton.cdiv(x.shape[channel_dim], WORD)
    if not out.numel() or not words:
        return
    sizes, strides = _core.hash_rows(x.shape, x.stride(), channel_dim)
    outer, inner = sizes[:-DIMS], [1] * (DIMS - len(sizes)) + sizes[-DIMS:]
    steps = [0] * (DIMS - len(sizes)) + strides[-DIMS:]
    count = inner[0] * inner[1] * inner[2]
    strips = triton.cdiv(count, ROWS)
    each = triton.cdiv(words, min(words, triton.cdiv(program_count(x), strips)))
    with on_device_of(x):
        # Of more dimensions, which are rare, a launch for each place in the outer ones.
        for number, place in enumerate(itertools.product(*map(range, outer))):
            start = sum(index * stride for index, stride in zip(place, strides, strict=False))
            _sign_hashes_kernel[(strips, triton.cdiv(words, each))](
                triton.reinterpret(x, tl.uint32 if kind.width == 4 else tl.uint16), out[number * count :], start,
                count, channels, words, each, x.stride(channel_dim), *inner[1:], *steps,
                INFINITY=kind.infinity, ALONE=each >= words, num_warps=4,
            )  # fmt: skip
