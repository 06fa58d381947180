"""Which channels hold one value everywhere, whatever the input: a forward pass over the net.

A pruned row leaves its bias; a batch norm moves it; a rectifier clips it; a sum of constants is a constant. Only a
zero padding ends it, and the padded convolution says so by its taps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from layercollapse.compiler.analysis.dataflow import Channels, ChannelTransfer, Facts, along, forward
from layercollapse.compiler.analysis.norm_constants import normed
from layercollapse.compiler.ir.graph import Net, shape
from layercollapse.compiler.ir.records import Activation, Affine, ChannelAffine, ConstantMap, Op
from layercollapse.graph.rectifiers import quick_gelu, tanh_gelu


def constants(net: Net) -> Facts[Channels]:
    """The channels that hold one value over batch and space: float64 (C,), NaN where a channel varies."""
    transfer = _Transfer()

    def known(node: fx.Node, facts: Facts[Channels]) -> Channels | None:
        """The values of a node's channels; not one value that broadcasts over more of them."""
        fact = transfer(node, facts)
        if fact is None or fact.dim is None or len(fact.values) != shape(node)[fact.dim]:
            return None
        return None if bool(fact.values.isnan().all()) else fact

    return forward(net, known)


class _Transfer(ChannelTransfer):
    """float64 (C,), NaN where a channel varies."""

    def record(self, node: fx.Node, op: Op, read: Channels | None) -> Tensor | None:
        value = along(read, op.channel_dim)
        if isinstance(op, Affine):
            return _affine(op, value)
        if isinstance(op, ConstantMap):
            border = op.border_weight
            return op.bias if border is None else op.bias.masked_fill(border.flatten(1).any(1), torch.nan)
        if isinstance(op, ChannelAffine):
            # A scale of zero makes a constant of anything.
            varies = torch.full_like(op.scale, torch.nan) if value is None else value
            return torch.where(op.scale == 0, op.shift, op.scale * varies + op.shift)
        value = None if value is None else rectified(op, value)
        if op.fixed is None or value is None:
            return value if op.fixed is None else op.fixed
        return torch.where(value.isnan(), op.fixed, value)

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b

    def multiply(self, a: Tensor | None, b: Tensor | None) -> Tensor | None:
        """Constant where both factors are, or one is zero."""
        unknown = [torch.full_like(x, torch.nan) for x in (a, b) if x is not None]
        a, b = (unknown[0] if x is None else x for x in (a, b))
        return (a * b).masked_fill((a == 0) | (b == 0), 0.0) if len(a) == len(b) else None

    def apply(self, node: fx.Node, values: Tensor) -> Tensor:
        values = node.target(values, *node.args[1:], **node.kwargs)  # type: ignore[operator]
        return values.masked_fill(~values.isfinite(), torch.nan)

    def unknown(self, channels: int) -> Tensor:
        return torch.full((channels,), torch.nan, dtype=torch.float64)

    def other(self, node: fx.Node, facts: Facts[Channels]) -> Channels | None:
        return normed(node, facts)


def _affine(op: Affine, value: Tensor | None) -> Tensor | None:
    unknown, out = op.writes(), op.bias.clone()
    # A constant that meets a zero padding is not constant at the border.
    if value is not None and not op.geometry.border_sensitive:
        weight = op.weight.flatten(2).sum(2) if op.geometry.kernel else op.weight  # (O, I / groups)
        unknown = (op.pairs() & op.spread(value.isnan())).any(1)
        filled = value.nan_to_num(0.0)
        out += weight @ filled if op.groups == 1 else (weight * op.spread(filled)).sum(1)
    if op.border_weight is not None:
        unknown = unknown | op.border_weight.flatten(1).any(1)
    return out.masked_fill(unknown, torch.nan)


def rectified(op: Activation, value: Tensor) -> Tensor:
    """The rectifier's value, float64 (C,), at one value per channel; NaN stays NaN."""
    call: dict[str, Any] = {
        "gelu": torch.nn.functional.gelu,
        "quick_gelu": quick_gelu,
        "silu": torch.nn.functional.silu,
        "mish": torch.nn.functional.mish,
        "hardswish": torch.nn.functional.hardswish,
        "elu": torch.nn.functional.elu,
        "celu": torch.nn.functional.celu,
        "selu": torch.nn.functional.selu,
    }
    if "factor" in op.arguments:
        return tanh_gelu(value, **op.arguments)
    if op.kind in call:
        return call[op.kind](value, **op.arguments)
    if op.slope is not None:
        return torch.where(value > 0, value, value * op.slope)
    return value.clamp(min=op.lower, max=op.upper)
