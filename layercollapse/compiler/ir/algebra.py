"""Make one affine layer of two: the algebra of layers in sequence and side by side.

In sequence, for sizes k, strides s, paddings p and dilations d:

    k = k₁ + (k₂ − 1)·s₁      s = s₁·s₂      p = p₁ + p₂·s₁          (extents for k where d > 1)

which is exact where p₂ = 0, and where the first reads one position (k₁ = 1, p₁ = 0); its bias then meets the padding
of the second and becomes its border weight. For p₂ > 0 and k₁ > 1 no single convolution is exact at the border: the two
stay, or the padding moves from the second to the first (`repadded`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from layercollapse.compiler.ir.records import (
    Affine,
    ChannelAffine,
    ConvGeometry,
    Origin,
    ungrouped,
)
from layercollapse.compiler.ir.scaling import add_border_weight
from layercollapse.compiler.ir.weights import Deferred, raw_weight


def mergeable(first: Affine, second: Affine) -> bool:
    """Whether one layer can do what the two do in sequence, at every position."""
    if len(first.geometry.kernel) != len(second.geometry.kernel):
        return False
    if first.geometry.transposed or second.geometry.transposed:
        return first.geometry.pointwise or second.geometry.pointwise
    reads_one = all(k == 1 for k in first.geometry.kernel) and not first.geometry.border_sensitive
    return not second.geometry.border_sensitive or reads_one


def movable(first: Affine, second: Affine) -> bool:
    """Whether the padding of the second layer may move to the first, see `repadded`: neither is transposed."""
    return not (first.geometry.transposed or second.geometry.transposed)


def repadded(first: Affine, second: Affine) -> tuple[Affine, Affine]:
    """The two with the padding moved to the first, p₁ + p₂·s₁ and 0: the same sizes, other values at the border.

    The second then reads what the first makes of zeros, where it read zeros.
    """
    padding = tuple(
        p + q * s
        for p, q, s in zip(first.geometry.padding, second.geometry.padding, first.geometry.stride, strict=True)
    )
    none = replace(second.geometry, padding=(0,) * len(padding))
    wide = replace(first, weight=raw_weight(first), geometry=replace(first.geometry, padding=padding), source=None)
    bare = replace(second, weight=raw_weight(second), geometry=none, border_weight=None, source=None)
    return wide, bare if second.border_weight is None else add_border_weight(bare, second.border_weight)


def compose(first: Affine, second: Affine) -> Affine:
    """The layer ``second(first(x))`` for two layers that are `mergeable`; its weight is computed when it is read.

    What the first layer adds (its bias where the second is padded: the first then reads one position, and the bias is
    a border weight of one tap) is one more of its input channels.
    """
    one, two = first.geometry, second.geometry
    groups = math.gcd(first.groups, second.groups)
    geometry = _composed_geometry(one, two)
    taps = _Taps.of(one, two, geometry)
    size = (second.outputs, first.inputs // groups, *geometry.kernel)
    parts = (second.groups, first.groups, taps)
    weight: Any = Deferred(
        size, (raw_weight(second), raw_weight(first)), lambda outer, inner: _multiplied(outer, inner, *parts)
    )
    added, bias = first.border_weight, second.bias
    if two.border_sensitive:
        added = first.bias.reshape(-1, *[1] * len(one.kernel))
    elif bool(first.bias.any()):
        ones = second.weight.flatten(2).sum(2) if two.kernel else second.weight
        bias = bias + (ones.unflatten(0, (second.groups, -1)) @ first.bias.reshape(second.groups, -1, 1)).flatten()
    origin = max(first.origin, second.origin)
    merged = Affine(weight, bias, geometry, groups, second.dtype, second.border_weight, origin=origin)
    if added is None or not bool(added.any()):
        return merged
    return add_border_weight(
        merged, _multiplied(second.weight, added.unsqueeze(1), second.groups, second.groups, taps)[:, 0]
    )


def _composed_geometry(one: ConvGeometry, two: ConvGeometry) -> ConvGeometry:
    """The window of two layers in sequence; one of them reads one position where the other is transposed."""
    if one.transposed or two.transposed:
        return one if one.transposed else two
    kernel, dilation = [], []
    for k1, d1, s1, k2, d2 in zip(one.kernel, one.dilation, one.stride, two.kernel, two.dilation, strict=True):
        steps = [step for k, step in ((k1, d1), (k2, s1 * d2)) if k > 1]
        dilation.append(math.gcd(*steps) or 1)
        kernel.append((d1 * (k1 - 1) + s1 * d2 * (k2 - 1)) // dilation[-1] + 1)
    return ConvGeometry(
        kernel=tuple(kernel),
        stride=tuple(a * b for a, b in zip(one.stride, two.stride, strict=True)),
        padding=tuple(a + b * s for a, b, s in zip(one.padding, two.padding, one.stride, strict=True)),
        dilation=tuple(dilation),
    )


@dataclass(frozen=True)
class _Taps:
    """Where the taps of two layers in sequence lie in the kernel of the one that they become.

    Attributes:
        outer: from one tap of the second layer to the next, for every axis; inner: of the first.
    """

    outer: tuple[int, ...]
    inner: tuple[int, ...]

    @classmethod
    def of(cls, one: ConvGeometry, two: ConvGeometry, both: ConvGeometry) -> _Taps:
        if both.transposed:  # the taps of the one that has several, in their order
            return cls((1,) * len(both.kernel), (1,) * len(both.kernel))
        # Along an axis of a single tap there is no next one.
        outer = (max(1, s * d // g) for s, d, g in zip(one.stride, two.dilation, both.dilation, strict=True))
        return cls(tuple(outer), tuple(max(1, d // g) for d, g in zip(one.dilation, both.dilation, strict=True)))


def _multiplied(outer: Tensor, inner: Tensor, outer_groups: int, inner_groups: int, taps: _Taps) -> Tensor:
    """The weight of two layers in sequence, (O, I / g, *kernel) with g the common divisor of their groups.

    The blocks of the layer with more groups are multiplied one by one, for every tap of the layer with fewer taps: a
    depthwise convolution of C channels and a 1x1 one take a product with every weight, not C of them.

    Args:
        outer: float64 (O, M / g2, *k2), of the second layer.
        inner: float64 (M, I / g1, *k1), of the first.
        outer_groups: g2.
        inner_groups: g1.
        taps: where they lie.
    """
    groups = math.gcd(outer_groups, inner_groups)
    if outer_groups > groups:
        inner, inner_groups = regroup(inner, inner_groups, groups), groups
    # (N, A, C, *k2) and (N, C, B, *k1), with N the blocks, C the channels between the two in each of them.
    left = outer.unflatten(0, (outer_groups, -1))
    right = inner.unflatten(0, (max(outer_groups, inner_groups), -1))
    within = len(right) // outer_groups  # blocks of the first layer in each of the second
    left = left.unflatten(2, (within, -1)).transpose(1, 2).flatten(0, 1)
    k2, k1 = left.shape[3:], right.shape[3:]
    steps = tuple(zip(k2, taps.outer, k1, taps.inner, strict=True))
    kernel = [(a - 1) * s + (b - 1) * t + 1 for a, s, b, t in steps]
    blocks, rows, columns = len(left), left.shape[1], right.shape[2]
    by_outer = math.prod(k2) <= math.prod(k1)
    out: Tensor | None = None
    places: Any
    for index in itertools.product(*(range(k) for k in (k2 if by_outer else k1))):
        tap: Any = (..., *index)
        if by_outer:
            product = (left[tap] @ right.flatten(2)).unflatten(2, (columns, *k1))
            places = [slice(i * s, i * s + (b - 1) * t + 1, t) for i, (_, s, b, t) in zip(index, steps, strict=True)]
        else:
            flat = left.movedim(2, -1).flatten(1, -2) @ right[tap]
            product = flat.unflatten(1, (rows, *k2)).movedim(-1, 2)
            places = [slice(i * t, i * t + (a - 1) * s + 1, s) for i, (a, s, _, t) in zip(index, steps, strict=True)]
        if list(product.shape[3:]) == kernel:
            out = product if out is None else out + product
            continue
        if out is None:
            out = product.new_zeros(blocks, rows, columns, *kernel)
        out[(slice(None), slice(None), slice(None), *places)] += product
    assert out is not None
    # Blocks of the first layer within one of the second are inputs of the same outputs.
    out = out.unflatten(0, (outer_groups, within)).transpose(1, 2).flatten(2, 3)
    return out.flatten(0, 1)


def diagonal(like: Affine, scale: ChannelAffine | None) -> Affine | None:
    """A per-channel scale, or the identity, as a 1×1 convolution with the groups of another layer, or None."""
    channels = like.inputs
    if scale is None:
        ones = torch.ones(channels, dtype=torch.float64)
        scale = ChannelAffine(ones, torch.zeros_like(ones), like.channel_dim, like.dtype, origin=Origin.BUFFER)
    if like.outputs != channels or len(scale.scale) != channels or scale.channel_dim != like.channel_dim:
        return None
    dims = len(like.geometry.kernel)
    geometry = ConvGeometry((1,) * dims, (1,) * dims, (0,) * dims, (1,) * dims)
    size = (channels, channels // like.groups, *geometry.kernel)

    def spread(values: Tensor) -> Tensor:
        weight = values.new_zeros(size[:2])
        weight[torch.arange(channels), torch.arange(channels) % size[1]] = values
        return weight.reshape(size)

    weight: Any = Deferred(size, (scale.scale,), spread)
    return Affine(weight, scale.shift, geometry, like.groups, like.dtype, origin=scale.origin)


def add(first: Affine, second: Affine) -> Affine | None:
    """The layer ``first(x) + second(x)``, or None if no one window gives both; its weight is computed when read."""
    one, two = first.geometry, second.geometry
    if one.stride != two.stride or first.outputs != second.outputs or first.inputs != second.inputs:
        return None
    geometry = _union(one, two)
    if geometry is None:
        return None
    groups = math.gcd(first.groups, second.groups)
    size = (first.outputs, first.inputs // groups, *geometry.kernel)

    def summed(a: Tensor, b: Tensor) -> Tensor:
        # The one with more taps, or fewer groups, may be as large as the sum.
        a, b = (regroup(weight, op.groups, groups) for weight, op in ((a, first), (b, second)))
        return _align(a, one, geometry).add_(_align(b, two, geometry))

    weight: Any = Deferred(size, (raw_weight(first), raw_weight(second)), summed)
    origin = max(first.origin, second.origin)
    merged = Affine(weight, first.bias + second.bias, geometry, groups, first.dtype, origin=origin)
    return _with_borders(merged, (first, second), sum)


def total(one: Affine | ChannelAffine | None, two: Affine | ChannelAffine | None) -> Affine | ChannelAffine | None:
    """The record that adds two over one tensor, None for the tensor itself; or None if no one record does.

    The first is a layer, or else a scale, if there is one.
    """
    if isinstance(one, Affine):
        other = two if isinstance(two, Affine) else diagonal(one, two)
        return None if other is None else add(one, other)
    if one is None or isinstance(two, Affine) or (two is not None and two.channel_dim != one.channel_dim):
        return None
    if two is None:
        return replace(one, scale=one.scale + 1)
    uniform = one.uniform if one.uniform == two.uniform else None
    origin = max(one.origin, two.origin)
    return replace(one, scale=one.scale + two.scale, shift=one.shift + two.shift, uniform=uniform, origin=origin)


def unbiased(op: Affine | ChannelAffine) -> Affine | ChannelAffine:
    """A record that adds nothing."""
    if isinstance(op, ChannelAffine):
        return replace(op, shift=torch.zeros_like(op.shift))
    return replace(op, weight=raw_weight(op), bias=torch.zeros_like(op.bias), border_weight=None, source=None)


def covers(first: Affine, second: Affine) -> bool:
    """Whether the first layer has every tap and every pair of channels that the second has, over one tensor."""
    one, two = first.geometry, second.geometry
    if (
        one.stride != two.stride
        or second.groups % first.groups
        or (first.border_weight is None and second.border_weight is not None)
    ):
        return False
    return one == two or _union(one, two) == one


def stack(first: Affine, second: Affine) -> Affine | None:
    """The layer whose outputs are those of the first and then those of the second, or None if no one window does."""
    one, two = first.geometry, second.geometry
    if len(one.kernel) != len(two.kernel) or one.stride != two.stride or first.inputs != second.inputs:
        return None
    if first.groups > 1 or second.groups > 1 or first.dtype != second.dtype:
        return None
    geometry = _union(one, two)
    if geometry is None:
        return None
    size = (first.outputs + second.outputs, first.inputs, *geometry.kernel)
    weight: Any = Deferred(
        size,
        (raw_weight(first), raw_weight(second)),
        lambda a, b: torch.cat([_align(a, one, geometry), _align(b, two, geometry)]),
    )
    origin = max(first.origin, second.origin)
    merged = Affine(weight, torch.cat([first.bias, second.bias]), geometry, 1, first.dtype, origin=origin)
    return _with_borders(merged, (first, second), torch.cat)


def _with_borders(merged: Affine, ops: Sequence[Affine], join: Callable[[list[Tensor]], Any]) -> Affine:
    """A layer made of others with what their border weights, each in the merged geometry, are together."""
    if all(op.border_weight is None for op in ops):
        return merged
    borders = [
        op.bias.new_zeros(op.outputs, *op.geometry.kernel) if op.border_weight is None else op.border_weight
        for op in ops
    ]
    aligned = [_align(p.unsqueeze(1), op.geometry, merged.geometry) for p, op in zip(borders, ops, strict=True)]
    return add_border_weight(merged, join(aligned).squeeze(1))


def _union(one: ConvGeometry, two: ConvGeometry) -> ConvGeometry | None:
    """The window over the taps of both, if it gives the same output size for every input size."""
    if one.transposed or two.transposed:
        return one if one == two else None
    kernel, padding, dilation = [], [], []
    for k1, p1, d1, k2, p2, d2 in zip(
        one.kernel, one.padding, one.dilation, two.kernel, two.padding, two.dilation, strict=True
    ):
        d = d2 if k1 == 1 else d1 if k2 == 1 else math.gcd(d1, d2)
        r1, r2 = d1 * (k1 - 1) - p1, d2 * (k2 - 1) - p2  # reach to the right of the position
        if p1 - r1 != p2 - r2 or (p1 - p2) % d:
            return None
        kernel.append((max(p1, p2) + max(r1, r2)) // d + 1)
        padding.append(max(p1, p2))
        dilation.append(d)
    return ConvGeometry(tuple(kernel), one.stride, tuple(padding), tuple(dilation))


def _align(weight: Tensor, geometry: ConvGeometry, into: ConvGeometry) -> Tensor:
    """The taps (O, I, *kernel) of one window at their places in a larger one; zeros elsewhere."""
    out = weight.new_zeros(*weight.shape[:2], *into.kernel)
    places = [slice(None), slice(None)]
    for k, p, d, into_p, into_d in zip(
        geometry.kernel, geometry.padding, geometry.dilation, into.padding, into.dilation, strict=True
    ):
        start, step = (into_p - p) // into_d, max(1, d // into_d)
        places.append(slice(start, start + (k - 1) * step + 1, step))
    out[tuple(places)] = weight
    return out


def regroup(weight: Tensor, groups: int, fewer: int) -> Tensor:
    """A weight (O, I / groups, ...) as that of a layer with fewer groups, a divisor: zero but for its own blocks."""
    if groups == fewer:
        return weight
    return torch.cat([ungrouped(block, groups // fewer) for block in weight.chunk(fewer)])
