"""The float types as bit patterns, and how both ops' launchers see memory: shared by Triton and CUDA.

A magnitude is the pattern without its sign. As an integer it has the order of |x|, is 0 for both zeros, and is above
``infinity`` exactly for a NaN. Nothing here is floating-point arithmetic, so subnormals are exact.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

import torch

VECTOR = 16  # bytes that one thread loads at once


class FloatType(NamedTuple):
    """One float type: its code in csrc/dtypes.h, bytes per value, and the magnitude of infinity."""

    code: int
    width: int
    infinity: int


FLOAT_TYPES = {
    torch.float32: FloatType(0, 4, 0x7F800000),
    torch.bfloat16: FloatType(1, 2, 0x7F80),
    torch.float16: FloatType(2, 2, 0x7C00),
}


class Dim(NamedTuple):
    """One dimension of a strided array; stride in entries."""

    size: int
    stride: int


def coalesce(dims: Iterable[Dim]) -> list[Dim]:
    """Drop dimensions of size 1 and join neighbours that step through memory as one; keeps row-major order."""
    result: list[Dim] = []
    for dim in dims:
        if dim.size == 1:
            continue
        if result and result[-1].stride == dim.size * dim.stride:
            result[-1] = Dim(result[-1].size * dim.size, dim.stride)
        else:
            result.append(dim)
    return result


def upper_bits(upper: float, dtype: torch.dtype) -> int:
    """Return the smallest magnitude of dtype that is at least ``upper``, a float above 0, rounded to float32.

    It is infinity + 1 if there is none.
    """
    # Through a tensor, which rounds like the contract's comparison in float32; struct refuses what overflows.
    bits = int(torch.tensor(upper, dtype=torch.float64).float().view(torch.int32))
    if dtype == torch.float32:
        return bits
    if dtype == torch.bfloat16:
        return (bits + 0xFFFF) >> 16
    low, high = 0, FLOAT_TYPES[dtype].infinity + 1
    while low < high:
        middle = (low + high) // 2
        if struct.unpack("<e", struct.pack("<H", middle))[0] < struct.unpack("<f", struct.pack("<I", bits))[0]:
            low = middle + 1
        else:
            high = middle
    return low
