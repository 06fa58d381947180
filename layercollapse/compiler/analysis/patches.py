"""What a layer reads at some of its output positions, as rows of features: for fits of its weights."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from layercollapse.compiler.ir.records import ConvGeometry


def patches(x: Tensor, window: ConvGeometry, positions: Tensor) -> Tensor:
    """What a layer reads at some of its output positions.

    Args:
        x: (N, C, *spatial), or (N, *, C) where the window is empty.
        window: of the layer; zeros are read beyond the border.
        positions: int64 (R,), of the outputs (N, *spatial), or (N, *), as if flattened.

    Returns:
        (R, C * taps), entries in the order of a weight (O, C, *kernel).
    """
    if not window.kernel:
        return x.flatten(0, -2)[positions]
    sizes = tuple(
        (size + 2 * p - extent) // s + 1
        for size, p, extent, s in zip(x.shape[2:], window.padding, window.extent, window.stride, strict=True)
    )
    n, *places = torch.unravel_index(positions.to(x.device), (len(x), *sizes))
    padded = F.pad(x, [p for p in reversed(window.padding) for _ in range(2)])
    taps = []
    for tap in itertools.product(*(range(k) for k in window.kernel)):
        at = [i * s + t * d for i, s, t, d in zip(places, window.stride, tap, window.dilation, strict=True)]
        place: Any = (n, slice(None), *at)
        taps.append(padded[place])
    return torch.stack(taps, 2).flatten(1)


def inner_columns(channels: int, kernel: tuple[int, ...], inner: tuple[int, ...]) -> Tensor:
    """Which of the features of a kernel are those of a smaller one in its middle: int64, in the order of `patches`."""
    grid = torch.arange(channels * math.prod(kernel)).reshape(channels, *kernel)
    cuts = [slice((k - i) // 2, (k - i) // 2 + i) for k, i in zip(kernel, inner, strict=True)]
    return grid[(slice(None), *cuts)].flatten()
