"""The float types as bit patterns, and how both ops' launchers see memory: shared by Triton and CUDA.

A magnitude is the pattern without its sign. As an integer it has the order of |x|, is 0 for both zeros, and is above
``infinity`` exactly for a NaN. Nothing here is floating-point arithmetic, so subnormals are exact.
"""

from __future__ import annotations

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
