"""Make one affine layer of two: the algebra of layers in sequence and side by side, and the rule for outer taps.

In sequence, for sizes k, strides s, paddings p and dilations d:

    k = k₁ + (k₂ − 1)·s₁      s = s₁·s₂      p = p₁ + p₂·s₁          (extents for k where d > 1)

which is exact where p₂ = 0, and where the first reads one position (k₁ = 1, p₁ = 0); its bias then meets the padding
of the second and becomes a plane. For p₂ > 0 and k₁ > 1 no single convolution is exact at the border: the two stay, or
the padding moves from the second to the first (`repadded`).
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from layercollapse.collapse.fold import add_plane
from layercollapse.collapse.ir import Affine, Net, Scale, Window
from layercollapse.collapse.weights import held, nonzero


def mergeable(first: Affine, second: Affine) -> bool:
    """Whether one layer can do what the two do in sequence, at every position."""
    if len(first.window.kernel) != len(second.window.kernel):
        return False
    if first.window.transposed or second.window.transposed:
        return first.window.pointwise or second.window.pointwise
    reads_one = all(k == 1 for k in first.window.kernel) and not first.window.uneven
    return not second.window.uneven or reads_one


def repadded(first: Affine, second: Affine) -> tuple[Affine, Affine]:
    """The two with the padding moved to the first, p₁ + p₂·s₁ and 0: the same sizes, other values at the border.

    The second then reads what the first makes of zeros, where it read zeros.
    """
    padding = tuple(
        p + q * s for p, q, s in zip(first.window.padding, second.window.padding, first.window.stride, strict=True)
    )
    none = replace(second.window, padding=(0,) * len(padding))
    wide = replace(first, weight=held(first), window=replace(first.window, padding=padding), source=None)
    bare = replace(second, weight=held(second), window=none, plane=None, source=None)
    return wide, bare if second.plane is None else add_plane(bare, second.plane)


def compose(first: Affine, second: Affine) -> Affine:
    """The layer ``second(first(x))`` for two layers that are `mergeable`."""
    one, two = first.window, second.window
    if one.transposed or two.transposed:
        return _compose_channels(first, second)
    dims = len(one.kernel)
    inner = _spread_taps(first.dense(), one.dilation)  # (M, I, *k1)
    outer = _spread_taps(second.dense(), two.dilation)  # (O, M, *k2)
    # One more input channel carries what the first layer adds. Its bias needs it where the second is padded: the
    # first then reads one position, and the bias is a plane with one tap.
    added = first.plane
    if two.uneven:
        added = first.bias.reshape(-1, *[1] * dims)
    if added is not None:
        inner = torch.cat([inner, _spread_taps(added.unsqueeze(1), one.dilation)], dim=1)
    if dims:
        convolve = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[dims - 1]
        weight = convolve(outer, inner, stride=one.stride)
    else:
        weight = outer @ inner
    plane = None
    if added is not None:
        weight, plane = weight[:, :-1], weight[:, -1]
    bias = second.bias
    if not two.uneven:
        bias = bias + second.dense().reshape(*second.dense().shape[:2], -1).sum(2) @ first.bias
    elif second.plane is not None and plane is not None:
        reach = tuple(d * s for d, s in zip(two.dilation, one.stride, strict=True))
        plane = plane + _spread_taps(second.plane.unsqueeze(1), reach).squeeze(1)
    weight, plane, dilation = _gather_taps(weight, plane)
    window = Window(
        kernel=tuple(weight.shape[2:]),
        stride=tuple(a * b for a, b in zip(one.stride, two.stride, strict=True)),
        padding=tuple(a + b * s for a, b, s in zip(one.padding, two.padding, one.stride, strict=True)),
        dilation=dilation,
    )
    weight, groups = regroup(weight, math.gcd(first.groups, second.groups))
    merged = Affine(weight, bias, window, groups, second.dtype)
    return merged if plane is None else add_plane(merged, plane)


def _compose_channels(first: Affine, second: Affine) -> Affine:
    """The layer ``second(first(x))`` where one is a transposed convolution and the other reads one position."""
    inner, outer = first.dense(), second.dense()  # (M, I, *k1), (O, M, *k2), one of them with a single tap
    added = first.bias.reshape(-1, *[1] * len(first.window.kernel))
    window, bias, plane = second.window, second.bias, second.plane
    if first.window.transposed:
        window = first.window
        bias = bias + outer.flatten(1) @ first.bias
        added = torch.zeros(first.outputs, *window.kernel).double() if first.plane is None else first.plane
    weight = torch.einsum("om...,mi...->oi...", outer, torch.cat([inner, added.unsqueeze(1)], dim=1))
    weight, part = weight[:, :-1], weight[:, -1]
    weight, groups = regroup(weight, math.gcd(first.groups, second.groups))
    return add_plane(Affine(weight, bias, window, groups, second.dtype, plane), part)


def diagonal(like: Affine, scale: Scale | None) -> Affine | None:
    """A per-channel scale, or the identity, as a 1×1 convolution with the groups of another layer, or None."""
    channels = like.inputs
    if scale is None:
        ones = torch.ones(channels, dtype=torch.float64)
        scale = Scale(ones, torch.zeros_like(ones), like.channel_dim, like.dtype)
    if like.outputs != channels or len(scale.scale) != channels or scale.channel_dim != like.channel_dim:
        return None
    dims = len(like.window.kernel)
    weight = torch.zeros(channels, channels // like.groups, dtype=torch.float64)
    weight[torch.arange(channels), torch.arange(channels) % weight.shape[1]] = scale.scale
    window = Window((1,) * dims, (1,) * dims, (0,) * dims, (1,) * dims)
    return Affine(weight.reshape(*weight.shape, *window.kernel), scale.shift, window, like.groups, like.dtype)


def add(first: Affine, second: Affine) -> Affine | None:
    """The layer ``first(x) + second(x)``, or None if no one window gives both."""
    one, two = first.window, second.window
    if one.stride != two.stride or first.outputs != second.outputs or first.inputs != second.inputs:
        return None
    if first.groups != second.groups:
        common = math.gcd(first.groups, second.groups)
        first, second = (replace(op, weight=regroup(op.dense(), common)[0], groups=common) for op in (first, second))
    window = _union(one, two)
    if window is None:
        return None
    weight = _align(first.weight, one, window) + _align(second.weight, two, window)
    merged = Affine(weight, first.bias + second.bias, window, first.groups, first.dtype)
    for op in (first, second):
        if op.plane is not None:
            merged = add_plane(merged, _align(op.plane.unsqueeze(1), op.window, window).squeeze(1))
    return merged


def stack(first: Affine, second: Affine) -> Affine | None:
    """The layer whose outputs are those of the first and then those of the second, or None if no one window does."""
    one, two = first.window, second.window
    if len(one.kernel) != len(two.kernel) or one.stride != two.stride or first.inputs != second.inputs:
        return None
    if first.groups > 1 or second.groups > 1 or first.dtype != second.dtype:
        return None
    window = _union(one, two)
    if window is None:
        return None
    weight = torch.cat([_align(op.weight, op.window, window) for op in (first, second)])
    merged = Affine(weight, torch.cat([first.bias, second.bias]), window, 1, first.dtype)
    if first.plane is None and second.plane is None:
        return merged
    planes = [
        op.weight.new_zeros(op.outputs, *op.window.kernel) if op.plane is None else op.plane for op in (first, second)
    ]
    aligned = [_align(p.unsqueeze(1), op.window, window) for p, op in zip(planes, (first, second), strict=True)]
    return add_plane(merged, torch.cat(aligned).squeeze(1))


def _union(one: Window, two: Window) -> Window | None:
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
    return Window(tuple(kernel), one.stride, tuple(padding), tuple(dilation))


def _align(weight: Tensor, window: Window, into: Window) -> Tensor:
    """The taps (O, I, *kernel) of one window at their places in a larger one; zeros elsewhere."""
    out = weight.new_zeros(*weight.shape[:2], *into.kernel)
    places = [slice(None), slice(None)]
    for k, p, d, into_p, into_d in zip(
        window.kernel, window.padding, window.dilation, into.padding, into.dilation, strict=True
    ):
        start, step = (into_p - p) // into_d, max(1, d // into_d)
        places.append(slice(start, start + (k - 1) * step + 1, step))
    out[tuple(places)] = weight
    return out


def trim_kernels(net: Net) -> bool:
    """Outer taps that are zero go, as far as the padding allows the same cut on both sides."""
    changed = False
    for node, op in net.records(Affine):
        if not op.window.kernel or op.window.transposed or not net.permits(trim_kernels, node):
            continue
        if not bool(op.reads().any()):
            continue
        trimmed = _trim(op)
        if trimmed is not None:
            net.set(node, trimmed)
            changed = True
    return changed


def _trim(op: Affine) -> Affine | None:
    used = nonzero(op).flatten(0, 1).any(0)
    if op.plane is not None:
        used |= op.plane.ne(0).any(0)
    cuts = []
    for dim, (k, p, d) in enumerate(zip(op.window.kernel, op.window.padding, op.window.dilation, strict=True)):
        taps = used.movedim(dim, 0).reshape(k, -1).any(1).nonzero().flatten()
        cuts.append(min(int(taps[0]), k - 1 - int(taps[-1]), p // d))
    if not any(cuts):
        return None
    inside = tuple(slice(c, k - c) for c, k in zip(cuts, op.window.kernel, strict=True))
    window = replace(
        op.window,
        kernel=tuple(k - 2 * c for c, k in zip(cuts, op.window.kernel, strict=True)),
        padding=tuple(p - c * d for c, p, d in zip(cuts, op.window.padding, op.window.dilation, strict=True)),
    )
    plane = None if op.plane is None else op.plane[(slice(None), *inside)]
    weight = op.weight[(slice(None), slice(None), *inside)].clone()
    trimmed = replace(op, weight=weight, window=window, plane=None, source=None)
    return trimmed if plane is None else add_plane(trimmed, plane)


def regroup(weight: Tensor, groups: int) -> tuple[Tensor, int]:
    """A dense weight (O, I, ...) that is zero outside its diagonal blocks, as (O, I / groups, ...) and `groups`."""
    if groups == 1:
        return weight, 1
    rows, columns = weight.shape[0] // groups, weight.shape[1] // groups
    blocks = [weight[g * rows : (g + 1) * rows, g * columns : (g + 1) * columns] for g in range(groups)]
    return torch.cat(blocks), groups


def _spread_taps(weight: Tensor, dilation: tuple[int, ...]) -> Tensor:
    """A dilated kernel (O, I, *k) written out with its zeros."""
    if all(d == 1 for d in dilation):
        return weight
    size = [d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:], strict=True)]
    out = weight.new_zeros(*weight.shape[:2], *size)
    out[(slice(None), slice(None), *(slice(None, None, d) for d in dilation))] = weight
    return out


def _gather_taps(weight: Tensor, plane: Tensor | None) -> tuple[Tensor, Tensor | None, tuple[int, ...]]:
    """The reverse: a kernel whose taps all lie on a coarser grid, with the dilation of that grid."""
    dilation = []
    used = weight.ne(0).flatten(0, 1).any(0)
    if plane is not None:
        used |= plane.ne(0).any(0)
    for dim, k in enumerate(weight.shape[2:]):
        taps = used.movedim(dim, 0).reshape(k, -1).any(1).nonzero().flatten().tolist()
        step = math.gcd(k - 1, *taps) if k > 1 else 1
        dilation.append(max(1, step))
    grid = tuple(slice(None, None, d) for d in dilation)
    plane = None if plane is None else plane[(slice(None), *grid)]
    return weight[(slice(None), slice(None), *grid)], plane, tuple(dilation)
