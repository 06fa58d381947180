"""Bounds behind what mixes channels or positions, and cannot leave a ball or a hull: norms and attention.

A layer norm makes γ ⊙ z + β of a row of d entries, with Σ z² ≤ d and Σ z = 0, whatever the row: no entry is beyond
√(d − 1), and what a linear layer reads there is bounded by the part of its weights that is not their mean (w′ = w ⊙ γ):
|w′ · z| ≤ √d ‖w′ − mean(w′)‖. An RMS norm, of which the mean stays, has √d ‖w′‖.

Attention makes weighted means of the values: each lies in the hull of those of its channel, or is 0 where a mask may
leave nothing.

In floating point z is (x − m)(1 + δ) / √(v + ε), of a mean m and a variance v that are sums with errors. Let κ² be
(μ² + σ²) / (σ² + ε) and γ as in `interval`, for d + 8 operations of float32. Added up in any order, m errs by at most
γ √(μ² + σ²); by Welford's updates, which torch makes, or in two passes, v errs by at most 3 γ κ (σ² + ε), to the first
order. So z is scaled by at most 1 + τ, and moved along the ones by at most τ, with τ = 4 γ κ. The margin is for κ = 64:
rows whose mean is at most 64 of their standard deviations √(σ² + ε). No claim here is about other rows, of entries that
are equal in most of their digits: in the end their norm is made of rounding errors, others on another machine, and no
pass keeps it (float32 may make (316, 0, 0) of 10,000,001 and twice 10,000,000, instead of √2 and −√½).
An RMS norm needs no such condition.

Nothing is claimed for an ε below 1e-30, beside which a variance may underflow. One that overflows leaves zeros or NaN.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from layercollapse.compiler.analysis.bounds.interval import ROW_ENTRIES, Interval, rounded, roundoff
from layercollapse.compiler.ir.arguments import argument, float64, named
from layercollapse.compiler.ir.graph import Net, dtype, shape
from layercollapse.compiler.ir.records import Affine
from layercollapse.graph.aten import does, packet
from layercollapse.graph.channel_dims import Move
from layercollapse.graph.operations import RESHAPES, Does

aten = torch.ops.aten

_ROWS_STAY = (*RESHAPES, Does.PERMUTE, Does.SLICE, Does.EXPAND, Does.REPEAT)
_WEIGHTS_STAY = (Does.SAME, Does.CAST, Does.RESHAPE, Does.EXPAND)
STEADY = 64  # the mean of a row, in standard deviations
_SMALLEST = 1e-30
_LARGEST = 2**14  # entries of a row, positions that attend to each other


class Norm(NamedTuple):
    """A layer norm or RMS norm: γ ⊙ z + β over the last dimensions.

    Attributes:
        scale: γ, float64 of the normalized shape.
        shift: β, alike.
        centred: whether the mean goes, as in a layer norm.
        dtype: of the output.
    """

    scale: Tensor
    shift: Tensor
    centred: bool
    dtype: torch.dtype

    @property
    def entries(self) -> int:
        return self.scale.numel()

    @property
    def margin(self) -> float:
        """τ."""
        return 4 * STEADY * roundoff(self.entries + 8, torch.float32)


def norm(net: Net, node: fx.Node) -> Norm | None:
    """The norm that a node is, if the net has its parameters and something is known of what it makes; else None."""
    over = named(node, "normalized_shape") if does(node) is Does.NORM else None
    if over is None or not all(isinstance(entries, int) for entries in over):
        return None  # or as many as the input has
    size, eps = torch.Size(over), named(node, "eps")
    if isinstance(eps, fx.Node) or (eps is not None and eps < _SMALLEST) or not 0 < size.numel() <= _LARGEST:
        return None
    parts = [torch.ones(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)]
    for place, x in enumerate((named(node, "weight"), named(node, "bias"))):
        if x is not None and (stored := net.tensor(x)) is None:
            return None
        if x is not None and stored is not None:
            parts[place] = float64(stored)
    return Norm(parts[0], parts[1], packet(node) is not aten.rms_norm, dtype(node))


def normalized(normal: Norm, rank: int) -> Interval:
    """The interval of a norm's output."""
    reach = math.sqrt(normal.entries - normal.centred) * (1 + normal.margin) + normal.centred * normal.margin
    radius = reach * normal.scale.abs()
    ends = rounded(torch.stack([-radius, normal.shift]), torch.stack([radius, normal.shift]), normal.dtype, 4)
    return Interval(*(end.reshape((1,) * (rank - end.ndim) + end.shape) for end in ends))


def rows_of(net: Net, node: fx.Node) -> Norm | None:
    """The norm over the last dimension that a tensor's rows are made by, wherever they were moved to since; or None."""
    while does(node) is Does.SAME or (does(node) in _ROWS_STAY and _rows_stay(node)):
        node = node.args[0]  # type: ignore[assignment]
    normal = norm(net, node)
    return normal if normal is not None and normal.scale.ndim == 1 else None


def _rows_stay(node: fx.Node) -> bool:
    arguments: Any = node.args
    if node.kwargs or (does(node) is Does.RESHAPE and not isinstance(arguments[1], list | tuple)):
        return False
    before, after = shape(arguments[0]), shape(node)
    place = Move(node.target, arguments[1:], {}, before, after).place(-1)  # type: ignore[arg-type]
    return place == len(after) - 1 and before[-1] == after[-1]


def read(op: Affine, normal: Norm) -> Interval:
    """The interval of a linear layer that reads the rows of a norm: (O,)."""
    rows = max(1, ROW_ENTRIES // normal.entries)
    ends = [_rows(op, normal, *part) for part in zip(op.weight.split(rows), op.bias.split(rows), strict=True)]
    return Interval(*(torch.cat(end) for end in zip(*ends, strict=True)))


def _rows(op: Affine, normal: Norm, weight: Tensor, bias: Tensor) -> Interval:
    scaled = weight * normal.scale  # (O, d)
    level = scaled.mean(1) if normal.centred else torch.zeros_like(bias)
    radius, tau = math.sqrt(normal.entries), normal.margin
    spread = (scaled - level[:, None]).norm(dim=1)
    reach = (1 + tau) * radius * spread + tau * normal.entries * level.abs()
    # What the sum of the terms' sizes is at most.
    sizes = (1 + 2 * tau) * radius * scaled.norm(dim=1) + weight.abs() @ normal.shift.abs()
    before, here = roundoff(4, normal.dtype), roundoff(normal.entries + 2, op.dtype)
    slack = (before + here * (1 + before)) * sizes + here * bias.abs()
    middle = weight @ normal.shift + bias
    return Interval(middle - reach - slack, middle + reach + slack)


def attended(node: fx.Node) -> tuple[fx.Node, bool] | None:
    """The values that a node takes weighted means of over their positions, and whether a mask may leave none; or None.

    The weights are those of an attention, or a softmax over the last dimension.
    """
    arguments: Any = node.args
    if packet(node) is aten.scaled_dot_product_attention:
        return None if named(node, "dropout_p") else (arguments[2], named(node, "attn_mask") is not None)
    if packet(node) not in (aten.matmul, aten.bmm):
        return None
    weights, values = arguments[:2]
    while does(weights) in _WEIGHTS_STAY and shape(weights)[-1] == shape(weights.args[0])[-1]:
        weights = weights.args[0]
    if packet(weights) is not aten.softmax or argument(weights, 1) not in (-1, len(shape(weights)) - 1):
        return None
    return (values, False) if isinstance(values, fx.Node) and len(shape(values)) > 1 else None


def mean_of(node: fx.Node, values: fx.Node, interval: Interval, masked: bool) -> Interval:
    """The interval of weighted means of values over their positions, the last dimension but one."""
    before, after = shape(values), shape(node)
    # Unless each head reads values of its own: for all of them.
    gone = [len(before) - 2] if before[:-2] == after[:-2] else range(len(before) - 1)
    ends = interval.without(gone).including(0.0) if masked else interval.without(gone)
    ends = Interval(*(end.reshape((1,) * (len(after) - end.ndim) + end.shape) for end in ends))
    # In half precision the weights are rounded, too, and what comes of them.
    return ends.widened(2 * _LARGEST + 8, dtype(node)).widened(2, dtype(node))
