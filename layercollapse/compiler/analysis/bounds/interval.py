"""Lowest and highest values of a tensor, and sums of them that hold for floating-point sums in any order.

A network computes every sum of n products as Σ tᵢ(1 + δᵢ) with |δᵢ| ≤ γ = nu / (1 − nu), u the unit roundoff of the
dtype that it adds in, in whatever order it adds; each end is moved outward by γ Σ |tᵢ|, tᵢ the terms of that end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

# Entries of the rows of a weight that are looked at together: a dozen temporaries of the largest layer of a Swin-T were
# three times its size.
ROW_ENTRIES = 2**18


class Interval(NamedTuple):
    """Bounds of a tensor of some rank: low and high, float64 of that rank; what has size one holds for all positions.

    Only dimensions of a size that the network fixes are held in full: channels, heads, features.
    """

    low: Tensor
    high: Tensor

    @property
    def dims(self) -> list[int]:
        """The dimensions along which the bounds differ, or may."""
        return [dim for dim, size in enumerate(self.low.shape) if size > 1]

    def along(self, dim: int, channels: int) -> Interval:
        """The bounds of every channel of a dimension, 1 or -1, whatever the position: low and high, (channels,)."""
        ends = self.without(d for d in self.dims if d != dim % self.low.ndim)
        return Interval(*(end.flatten().expand(channels) for end in ends))

    def without(self, dims: Iterable[int]) -> Interval:
        """The same bounds for all positions along some dimensions."""
        gone = sorted({dim % self.low.ndim for dim in dims})
        return Interval(self.low.amin(gone, keepdim=True), self.high.amax(gone, keepdim=True)) if gone else self

    def whole(self, rank: int) -> Interval:
        """One low and one high for all of a tensor of some rank, made of elements of this one."""
        return Interval(self.low.amin().reshape((1,) * rank), self.high.amax().reshape((1,) * rank))

    def including(self, value: float) -> Interval:
        """Bounds of these values and a number."""
        return Interval(self.low.clamp(max=value), self.high.clamp(min=value))

    def widened(self, count: int, dtype: torch.dtype) -> Interval:
        """As `rounded`, of weighted means of these values."""
        return rounded(self.low[None], self.high[None], dtype, count)


def channelwise(low: Tensor, high: Tensor, dim: int, rank: int) -> Interval:
    """The bounds of every channel, (C,), of a tensor of some rank."""
    size = [1] * rank
    size[dim] = -1
    return Interval(low.reshape(size), high.reshape(size))


def unknown(channels: int) -> Interval:
    """The interval of channels that may have any value: (channels,)."""
    every = torch.full((channels,), math.inf, dtype=torch.float64)
    return Interval(-every, every)


def rounded(low: Tensor, high: Tensor, dtype: torch.dtype, count: int = 2) -> Interval:
    """Sums over dimension 0 of the terms of each end, moved outward by what rounding in `count` operations may do."""
    gamma = roundoff(count, dtype)
    return Interval(low.sum(0) - gamma * low.abs().sum(0), high.sum(0) + gamma * high.abs().sum(0))


def total(a: Interval, b: Interval, dtype: torch.dtype) -> Interval:
    """The interval of a sum of two tensors, of which either may be one value for many positions of the other."""
    low, high = (torch.stack(torch.broadcast_tensors(*ends)) for ends in zip(a, b, strict=True))
    return rounded(low, high, dtype)


def roundoff(count: int, dtype: torch.dtype) -> float:
    """γ = nu / (1 − nu); half-precision layers accumulate in float32 and round once."""
    once = torch.finfo(dtype).eps / 2
    unit = min(once, torch.finfo(torch.float32).eps / 2)
    return count * unit / (1 - count * unit) + once
