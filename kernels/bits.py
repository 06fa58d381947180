"""The float types as bit patterns: shared by Triton and CUDA.

A magnitude is the pattern without its sign. As an integer it has the order of |x|, is 0 for both zeros, and is above
``infinity`` exactly for a NaN. Nothing here is floating-point arithmetic, so subnormals are exact.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


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
