"""Interval bounds of every channel, and the rectifiers that they prove linear.

A forward pass over the net with an interval per channel, valid at every position (interval bound propagation, as in
Gowal et al., arXiv 1810.12715, per channel instead of per activation). Without an input box the bounds are algebra
alone: a rectifier gives nothing below its lower bend, a sum of non-negative terms is not negative.

Sound in floating point: the network computes every sum of n products as Σ tᵢ(1 + δᵢ) with |δᵢ| ≤ γ = nu / (1 − nu), u
the unit roundoff of the layer's dtype, in whatever order it adds; each endpoint is moved outward by γ Σ |tᵢ|, tᵢ the
terms of that endpoint (sums without a layer, and averages, as float32). This holds for batch norms as one scale and one
shift, which is how the net evaluates them, and not for arithmetic of less precision than the dtype's, such as TF32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from layercollapse.collapse.carry import AVERAGES, INTERPOLATIONS, carry, parts
from layercollapse.collapse.facts import rectified
from layercollapse.collapse.ir import Affine, Field, Net, Rectify, Scale, operands, shape, source
from layercollapse.counts import MIXED, OFF, ON, SATURATED
from layercollapse.errors import LayerCollapseError
from layercollapse.nodes import packet

aten = torch.ops.aten

# Where the smooth rectifiers have their one minimum: they fall before it and rise after it.
_LOWEST = {"gelu": -0.7517915, "silu": -1.2784645, "mish": -1.1924312, "hardswish": -1.5}
_SQUASHED = {aten.softmax: (0.0, 1.0), aten.sigmoid: (0.0, 1.0), aten.tanh: (-1.0, 1.0), aten.relu: (0.0, math.inf)}
_ROW_ENTRIES = 2**18


class Interval(NamedTuple):
    """Bounds along a dimension (1 or -1): low and high, float64 (C,)."""

    dim: int
    low: Tensor
    high: Tensor


Box = Mapping[str, tuple[Any, Any]]


def proven_states(net: Net, box: Box | None = None) -> dict[str, Tensor]:
    """States of the piecewise linear sites whose every neuron stays in one piece for all inputs in a box.

    Args:
        net: as lowered, before any rule.
        box: name of an input -> its lowest and highest value: numbers, or tensors (C,) for inputs (N, C, ...). None,
            and inputs that it leaves out, stand for all numbers.

    Returns:
        Site -> int8 (C,), see `layercollapse.counts.STATES`; none is mixed.

    Raises:
        LayerCollapseError: the box names an input that is not there, or its ends do not fit.
    """
    return {site: states for site, states in neuron_states(net, box).items() if not bool((states == MIXED).any())}


def neuron_states(net: Net, box: Box | None = None) -> dict[str, Tensor]:
    """As `proven_states`, of every piecewise linear site of which anything is known: neurons not proven are mixed."""
    intervals = bounds(net, box)
    found = {}
    for node, op in net.records(Rectify):
        interval = intervals.get(source(node))
        if interval is None or interval.dim != op.channel_dim or op.kind in (*_LOWEST, "elu", "celu", "selu"):
            continue
        states = torch.full((len(interval.low),), MIXED, dtype=torch.int8)
        on = interval.low >= op.lower
        if op.upper is not None:
            on &= interval.high <= op.upper
            states[interval.low >= op.upper] = SATURATED
        states[interval.high <= op.lower] = OFF
        states[on] = ON
        found[op.site] = states
    return found


def bounds(net: Net, box: Box | None = None) -> dict[fx.Node, Interval]:
    """Bounds of every tensor of which something is known; see `proven_states` for the arguments."""
    known: dict[fx.Node, Interval] = {}
    names = [str(node.target) for node in net.graph.nodes if node.op == "placeholder"]
    for name in box or {}:
        if name not in names:
            raise LayerCollapseError(f"box: expected the inputs {', '.join(names)}, got {name!r}")
    for node in net.graph.nodes:
        interval = _input(node, box or {}) if node.op == "placeholder" else _of(net, node, known)
        if interval is not None and bool((interval.low.isfinite() | interval.high.isfinite()).any()):
            known[node] = interval
    return known


def _input(node: fx.Node, box: Box) -> Interval | None:
    size = node.meta.get("shape")
    if str(node.target) not in box or size is None or len(size) < 2:
        return None
    came = box[str(node.target)]
    try:
        low, high = (torch.as_tensor(end, dtype=torch.float64, device="cpu").flatten() for end in came)
    except (TypeError, ValueError, RuntimeError):
        low, high = torch.ones(1), torch.zeros(1)
    if any(len(end) not in (1, size[1]) for end in (low, high)) or not bool((low <= high).all()):
        raise LayerCollapseError(
            f"box: expected low and high for {node.target!r} as numbers or tensors ({size[1]},), low not above high, "
            f"got {came!r}"
        )
    return Interval(-1 if len(size) == 2 else 1, low.expand(size[1]).clone(), high.expand(size[1]).clone())


def _of(net: Net, node: fx.Node, known: Mapping[fx.Node, Interval]) -> Interval | None:
    op = net.op(node)
    if isinstance(op, Field):
        return _field(op)
    if op is not None:
        interval = known.get(source(node))
        if interval is not None and interval.dim != op.channel_dim:
            interval = None
        if isinstance(op, Affine):
            return _affine(op, interval)
        if isinstance(op, Scale):
            return _scale(op, interval)
        return _rectify(op, interval, node)
    pair = operands(node)
    if pair is not None:
        a, b = (known.get(x) for x in pair)
        if a is None or b is None or a.dim != b.dim:
            return None
        return Interval(a.dim, *_rounded(torch.stack([a.low, b.low]), torch.stack([a.high, b.high]), torch.float32))
    return _operation(net, node, known)


def _operation(net: Net, node: fx.Node, known: Mapping[fx.Node, Interval]) -> Interval | None:
    """Pooling, flatten, embeddings, and functions with a bounded range."""
    if node.op != "call_function" or node.meta.get("shape") is None:
        return None
    called, size = packet(node), shape(node)
    arguments: Any = node.args
    if called is aten.embedding and isinstance(arguments[0], fx.Node) and arguments[0].op == "get_attr":
        table = net.tensors[str(arguments[0].target)].detach().cpu().double()
        return Interval(-1, table.amin(0), table.amax(0))
    if called in _SQUASHED and len(size) > 1:
        low, high = (torch.full((size[1],), end, dtype=torch.float64) for end in _SQUASHED[called])
        return Interval(-1 if len(size) == 2 else 1, low, high)
    joined = parts(node)
    if joined is not None:
        return _joined(joined[0], joined[1], known)
    interval = known.get(arguments[0]) if arguments and isinstance(arguments[0], fx.Node) else None
    place = carry(node, interval.dim) if interval is not None else None
    if interval is None or place is None:
        return None
    low, high = interval.low, interval.high
    if called in AVERAGES | INTERPOLATIONS:
        # An average of n values is a sum of n products; n is at most the number of positions.
        positions = max(2, math.prod(shape(arguments[0])[1:]))
        low, high = _widened(low, high, positions, torch.float32)
    dim, repeat = place
    return Interval(dim, low.repeat_interleave(repeat), high.repeat_interleave(repeat))


def _joined(dim: int, joined: list[fx.Node], known: Mapping[fx.Node, Interval]) -> Interval:
    """Of a concatenation: what is known of each part."""
    ends: tuple[list[Tensor], list[Tensor]] = [], []
    for x in joined:
        interval = known.get(x)
        if interval is None or interval.dim != dim:
            every = torch.full((shape(x)[dim],), math.inf, dtype=torch.float64)
            interval = Interval(dim, -every, every)
        ends[0].append(interval.low)
        ends[1].append(interval.high)
    return Interval(dim, torch.cat(ends[0]), torch.cat(ends[1]))


def _affine(op: Affine, interval: Interval | None) -> Interval | None:
    weight = op.dense().flatten(2) if op.window.kernel else op.dense().unsqueeze(2)  # (O, I, taps)
    every = torch.full((op.inputs,), math.inf, dtype=torch.float64)
    low, high = (-every, every) if interval is None else (interval.low, interval.high)
    if op.window.uneven:
        low, high = low.clamp(max=0), high.clamp(min=0)  # the padding is zero
    count = weight.shape[1] * weight.shape[2] + 2
    plane = torch.zeros(op.outputs, 0, dtype=torch.float64) if op.plane is None else op.plane.flatten(1)
    ends: list[tuple[Tensor, Tensor]] = []
    # Some rows at a time: a dozen temporaries of the largest layer of a Swin-T were three times its size.
    rows = max(1, _ROW_ENTRIES // max(1, weight.shape[1] * weight.shape[2]))
    for part, bias, taps in zip(weight.split(rows), op.bias[:, None].split(rows), plane.split(rows), strict=True):
        up, down = part.clamp(min=0).sum(2), part.clamp(max=0).sum(2)  # (O, I)
        terms = [_product(up, low) + _product(down, high), bias, taps.clamp(max=0)]
        tops = [_product(up, high) + _product(down, low), bias, taps.clamp(min=0)]
        ends.append(_rounded(torch.cat(terms, 1).T, torch.cat(tops, 1).T, op.dtype, count))
    return Interval(op.channel_dim, *(torch.cat(end) for end in zip(*ends, strict=True)))


def _scale(op: Scale, interval: Interval | None) -> Interval:
    every = torch.full_like(op.scale, math.inf)
    low, high = (-every, every) if interval is None else (interval.low, interval.high)
    ends = torch.stack([_product(op.scale, low), _product(op.scale, high)])
    return Interval(
        op.channel_dim,
        *_rounded(torch.stack([ends.amin(0), op.shift]), torch.stack([ends.amax(0), op.shift]), op.dtype, 4),
    )


def _field(op: Field) -> Interval:
    taps = torch.zeros(len(op.bias), 1, dtype=torch.float64) if op.plane is None else op.plane.flatten(1)
    low = torch.cat([taps.clamp(max=0), op.bias[:, None]], 1)
    high = torch.cat([taps.clamp(min=0), op.bias[:, None]], 1)
    return Interval(op.channel_dim, *_rounded(low.T, high.T, op.dtype, taps.shape[1] + 2))


def _rectify(op: Rectify, interval: Interval | None, node: fx.Node) -> Interval | None:
    if interval is None:
        size = shape(node)
        every = torch.full((size[op.channel_dim],), math.inf, dtype=torch.float64)
        interval = Interval(op.channel_dim, -every, every)
    ends = torch.stack([rectified(op, interval.low), rectified(op, interval.high)]).nan_to_num(
        nan=0.0, posinf=math.inf, neginf=-math.inf
    )
    low, high = ends.amin(0), ends.amax(0)
    turn = _LOWEST.get(op.kind, op.lower)
    inside = (interval.low < turn) & (interval.high > turn)
    bottom = rectified(op, torch.full_like(low, turn))
    # The value at the turn, a little lower for the smooth ones: the turn is known to seven digits.
    low = torch.where(inside, torch.minimum(low, bottom - (1e-6 if op.kind in _LOWEST else 0.0)), low)
    if op.kind in _LOWEST or op.kind in ("elu", "celu", "selu"):
        low, high = _widened(low, high, 16, op.dtype)
    return Interval(op.channel_dim, low, high)


def _product(weight: Tensor, value: Tensor) -> Tensor:
    """``weight * value`` with 0 · ∞ = 0: a channel that nothing reads bounds nothing."""
    return torch.where(weight == 0, 0.0, weight * value)


def _rounded(low: Tensor, high: Tensor, dtype: torch.dtype, count: int = 2) -> tuple[Tensor, Tensor]:
    """Sums over dim 0 of the terms of each end, moved outward by what rounding may do to them."""
    gamma = _gamma(count, dtype)
    return low.sum(0) - gamma * low.abs().sum(0), high.sum(0) + gamma * high.abs().sum(0)


def _widened(low: Tensor, high: Tensor, count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return _rounded(low[None], high[None], dtype, count)


def _gamma(count: int, dtype: torch.dtype) -> float:
    """γ = nu / (1 − nu); half-precision layers accumulate in float32 and round once."""
    once = torch.finfo(dtype).eps / 2
    unit = min(once, torch.finfo(torch.float32).eps / 2)
    return count * unit / (1 - count * unit) + once
