"""Scales and constants that join the record before or after them."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from layercollapse.compiler.ir.records import Affine, ChannelAffine, ConstantMap, input_channels
from layercollapse.compiler.ir.weights import raw_weight, scaled


def after(op: object, scale: ChannelAffine) -> Affine | ConstantMap | ChannelAffine | None:
    """The record of ``scale(op(x))``, or None where they differ on what a channel is (a batch norm of (N, L, C))."""
    if not isinstance(op, Affine | ConstantMap | ChannelAffine) or op.channel_dim != scale.channel_dim:
        return None
    origin = max(op.origin, scale.origin)
    if isinstance(op, Affine):
        s = scale.scale
        border = None if op.border_weight is None else op.border_weight * _rows(s, op.border_weight)
        return replace(
            op,
            weight=scaled(op, row=s),
            bias=op.bias * s + scale.shift,
            border_weight=border,
            source=None,
            origin=origin,
        )
    if isinstance(op, ConstantMap):
        border = None if op.border_weight is None else op.border_weight * _rows(scale.scale, op.border_weight)
        return replace(op, bias=op.bias * scale.scale + scale.shift, border_weight=border, origin=origin)
    uniform = "parameter" if op.uniform and scale.uniform else None
    uniform = op.uniform if op.uniform == scale.uniform else uniform
    factor, shift = op.scale * scale.scale, op.shift * scale.scale + scale.shift
    return replace(op, scale=factor, shift=shift, uniform=uniform, origin=origin)


def before(scale: ChannelAffine, op: Affine) -> Affine:
    """The record of ``op(scale(x))``."""
    index = input_channels(op)
    shape = (*index.shape, *[1] * len(op.geometry.kernel))
    scaled_weight = scaled(op, column=scale.scale) if op.groups == 1 else op.weight * scale.scale[index].reshape(shape)
    new = replace(op, weight=scaled_weight, source=None, origin=max(op.origin, scale.origin))
    if not bool(scale.shift.any()):
        return new
    return add_border_weight(new, (op.weight * scale.shift[index].reshape(shape)).sum(1))


def add_border_weight(op: Affine, border: Tensor) -> Affine:
    """Add the response to a map of ones, float64 (O, *kernel): in the bias where no padding can tell."""
    if not border.any():
        return op
    if not op.geometry.border_sensitive:
        total = border.flatten(1).sum(1) if border.ndim > 1 else border
        return replace(op, weight=raw_weight(op), bias=op.bias + total, source=None)
    return replace(
        op,
        weight=raw_weight(op),
        border_weight=border if op.border_weight is None else op.border_weight + border,
        source=None,
    )


def _rows(values: Tensor, weight: Tensor) -> Tensor:
    """(O,) so that it broadcasts over a weight (O, ...)."""
    return values.reshape(-1, *[1] * (weight.ndim - 1))
