"""Interval bounds of every channel, and the rectifiers that they prove linear.

A forward pass over the net with an interval per channel, valid at every position (interval bound propagation, as in
Gowal et al., arXiv 1810.12715, per channel instead of per activation). Without an input box the bounds are algebra
alone: a rectifier gives nothing below its lower bend, a sum of non-negative terms is not negative, a layer norm makes
rows of one length at most, a table of embeddings has no other rows.

Sound in floating point, with the rounding of `interval` for sums, and that of `mixing` for norms and attention. This
holds for batch norms as one scale and one shift, which is how the net evaluates them, for layer norms of rows that are
not constant but for rounding, and not for arithmetic of less precision than the dtype's, such as TF32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from layercollapse.compiler.analysis.bounds import mixing
from layercollapse.compiler.analysis.bounds.interval import ROW_ENTRIES, Interval, channelwise, rounded, total, unknown
from layercollapse.compiler.analysis.bounds.movement import MOVEMENT
from layercollapse.compiler.analysis.constants import rectified
from layercollapse.compiler.analysis.dataflow import Facts, Transfer, by_kind, forward
from layercollapse.compiler.ir.arguments import argument
from layercollapse.compiler.ir.graph import Net, dtype, shape, source
from layercollapse.compiler.ir.records import Activation, Affine, ChannelAffine, ConstantMap
from layercollapse.entropy.layer import MIXED, OFF, ON, SATURATED
from layercollapse.errors import LayerCollapseError
from layercollapse.graph.aten import does, row
from layercollapse.graph.meta import OPEN, SHAPE
from layercollapse.graph.operations import Does
from layercollapse.graph.rectifiers import QUICK

aten = torch.ops.aten

# Where the smooth rectifiers have their one minimum: they fall before it and rise after it.
_LOWEST = {
    "gelu": -0.7517915,
    "quick_gelu": -1.2784645 / QUICK,
    "silu": -1.2784645,
    "mish": -1.1924312,
    "hardswish": -1.5,
}

Box = Mapping[str, tuple[Any, Any]]


def proven_states(net: Net, box: Box | None = None) -> dict[str, Tensor]:
    """States of the piecewise linear sites whose every neuron stays in one piece for all inputs in a box.

    Args:
        net: as lowered, before any pass.
        box: name of an input -> its lowest and highest value: numbers, or tensors (C,) for inputs (N, C, ...). None,
            and inputs that it leaves out, stand for all numbers.

    Returns:
        Site -> int8 (C,), see `layercollapse.entropy.layer.STATES`; none is mixed.

    Raises:
        LayerCollapseError: the box names an input that is not there, or its ends do not fit.
    """
    return {site: states for site, states in neuron_states(net, box).items() if not bool((states == MIXED).any())}


def neuron_states(net: Net, box: Box | None = None) -> dict[str, Tensor]:
    """As `proven_states`, of every piecewise linear site of which anything is known: neurons not proven are mixed."""
    intervals = bounds(net, box)
    by_site = {}
    for node, op in net.records(Activation):
        read = intervals.get(source(node))
        if read is None or op.kind in (*_LOWEST, "elu", "celu", "selu"):
            continue
        interval = read.along(op.channel_dim, shape(node)[op.channel_dim])
        states = torch.full((len(interval.low),), MIXED, dtype=torch.int8)
        on = interval.low >= op.lower
        if op.upper is not None:
            on &= interval.high <= op.upper
            states[interval.low >= op.upper] = SATURATED
        states[interval.high <= op.lower] = OFF
        states[on] = ON
        by_site[op.site] = states
    return by_site


def bounds(net: Net, box: Box | None = None) -> dict[fx.Node, Interval]:
    """Bounds of every tensor of which something is known; see `proven_states` for the arguments."""
    names = [str(node.target) for node in net.graph.nodes if node.op == "placeholder"]
    for name in box or {}:
        if name not in names:
            raise LayerCollapseError(f"box: expected the inputs {', '.join(names)}, got {name!r}")

    def transfer(node: fx.Node, known: Facts[Interval]) -> Interval | None:
        if node.op == "call_function" and (SHAPE.get(node) is None or not dtype(node).is_floating_point):
            return None
        interval = _input(node, box or {}) if node.op == "placeholder" else _transfer(node, known)
        if interval is None or not bool((interval.low.isfinite() | interval.high.isfinite()).any()):
            return None
        return interval.without(dim for dim in interval.dims if dim in (OPEN.get(node) or ()))

    return forward(net, transfer)


def _input(node: fx.Node, box: Box) -> Interval | None:
    size = SHAPE.get(node)
    if str(node.target) not in box or size is None or len(size) < 2:
        return None
    given = box[str(node.target)]
    try:
        low, high = (torch.as_tensor(end, dtype=torch.float64, device="cpu").flatten() for end in given)
    except (TypeError, ValueError, RuntimeError):
        low, high = torch.ones(1), torch.zeros(1)
    if any(len(end) not in (1, size[1]) for end in (low, high)) or not bool((low <= high).all()):
        raise LayerCollapseError(
            f"box: expected low and high for {node.target!r} as numbers or tensors ({size[1]},), low not above high, "
            f"got {given!r}"
        )
    return channelwise(low, high, 1, len(size))


def _by_channel(of: Callable[[Any, Interval], Interval]) -> Transfer[Interval]:
    """The transfer function of a record, given how the bounds of the channels, (C,), follow from its input's."""

    def transfer(node: fx.Node, known: Facts[Interval]) -> Interval:
        op, read = known.net.op(node), known.get(source(node))
        assert op is not None
        channels = op.inputs if isinstance(op, Affine) else shape(node)[op.channel_dim]
        along = unknown(channels) if read is None else read.along(op.channel_dim, channels)
        return channelwise(*of(op, along), op.channel_dim, len(shape(node)))

    return transfer


def _layer(node: fx.Node, known: Facts[Interval]) -> Interval | None:
    op = known.net.affine(node)
    rows = mixing.rows_of(known.net, source(node)) if op is not None and op.channel_dim == -1 else None
    if op is None or rows is None:
        return _by_channel(_affine)(node, known)
    return channelwise(*mixing.read(op, rows), op.channel_dim, len(shape(node)))


def _attribute(node: fx.Node, known: Facts[Interval]) -> Interval | None:
    return _stored(known.net.tensors[str(node.target)]) if _is_read(node) else None


def _is_read(node: fx.Node) -> bool:
    """Whether a tensor of the model is more than a table, which may be large, or the weight of a norm."""
    return any(does(user) not in (Does.TABLE, Does.NORM) for user in node.users)


def _stored(value: Tensor) -> Interval | None:
    """The interval of a tensor of the model along the last of its dimensions that has more than one entry."""
    if not value.is_floating_point() or 0 in value.shape:
        return None
    every = Interval(value.detach().cpu(), value.detach().cpu())
    return Interval(*(end.double() for end in every.without(every.dims[:-1])))


def _sum(node: fx.Node, known: Facts[Interval]) -> Interval | None:
    a, b = (known.get(x) if isinstance(x, fx.Node) else None for x in node.args[:2])
    return None if a is None or b is None or node.kwargs.get("alpha", 1) != 1 else total(a, b, dtype(node))


def _looked_up(node: fx.Node, known: Facts[Interval]) -> Interval | None:
    stored = known.net.tensor(argument(node, 0))
    if stored is None:
        return None
    table = stored.detach().cpu()
    return channelwise(table.amin(0).double(), table.amax(0).double(), -1, len(shape(node)))


def _bounded(node: fx.Node, known: Facts[Interval]) -> Interval | None:
    """The range of a function that has one."""
    size = (1,) * len(shape(node))
    ends = row(node).range
    return None if ends is None else Interval(*(torch.full(size, end, dtype=torch.float64) for end in ends))


def _normed(node: fx.Node, known: Facts[Interval]) -> Interval | None:
    norm = mixing.norm(known.net, node)
    return None if norm is None else mixing.normalized(norm, len(shape(node)))


def _attended(node: fx.Node, known: Facts[Interval]) -> Interval | None:
    mean = mixing.attended(node)
    values = None if mean is None else known.get(mean[0])
    return None if mean is None or values is None else mixing.mean_of(node, mean[0], values, mean[1])


def _affine(op: Affine, interval: Interval) -> Interval:
    weight = op.weight.flatten(2) if op.geometry.kernel else op.weight.unsqueeze(2)  # (O, I / groups, taps)
    low, high = interval.including(0.0) if op.geometry.border_sensitive else interval  # the padding is zero
    low, high = op.spread(low), op.spread(high)  # (O, I / groups) or (1, I)
    count = weight.shape[1] * weight.shape[2] + 2
    border = (
        torch.zeros(op.outputs, 0, dtype=torch.float64) if op.border_weight is None else op.border_weight.flatten(1)
    )
    ends: list[Interval] = []
    rows = max(1, ROW_ENTRIES // max(1, weight.shape[1] * weight.shape[2]))
    for start in range(0, op.outputs, rows):
        some = slice(start, start + rows)
        part, bias, taps = weight[some], op.bias[some, None], border[some]
        least, most = (end[some] if op.groups > 1 else end for end in (low, high))
        up, down = part.clamp(min=0).sum(2), part.clamp(max=0).sum(2)  # (O, I / groups)
        terms = [_product(up, least) + _product(down, most), bias, taps.clamp(max=0)]
        tops = [_product(up, most) + _product(down, least), bias, taps.clamp(min=0)]
        ends.append(rounded(torch.cat(terms, 1).T, torch.cat(tops, 1).T, op.dtype, count))
    return Interval(*(torch.cat(end) for end in zip(*ends, strict=True)))


def _scale(op: ChannelAffine, interval: Interval) -> Interval:
    ends = torch.stack([_product(op.scale, end) for end in interval])
    return rounded(torch.stack([ends.amin(0), op.shift]), torch.stack([ends.amax(0), op.shift]), op.dtype, 4)


def _constant_map(op: ConstantMap) -> Interval:
    taps = (
        torch.zeros(len(op.bias), 1, dtype=torch.float64) if op.border_weight is None else op.border_weight.flatten(1)
    )
    low = torch.cat([taps.clamp(max=0), op.bias[:, None]], 1)
    high = torch.cat([taps.clamp(min=0), op.bias[:, None]], 1)
    return rounded(low.T, high.T, op.dtype, taps.shape[1] + 2)


def _rectify(op: Activation, interval: Interval) -> Interval:
    ends = torch.stack([rectified(op, end) for end in interval]).nan_to_num(nan=0.0, posinf=math.inf, neginf=-math.inf)
    low, high = ends.amin(0), ends.amax(0)
    turn = _LOWEST.get(op.kind, op.lower)
    inside = (interval.low < turn) & (interval.high > turn)
    bottom = rectified(op, torch.full_like(low, turn))
    # The value at the turn, a little lower for the smooth ones: the turn is known to seven digits.
    low = torch.where(inside, torch.minimum(low, bottom - (1e-6 if op.kind in _LOWEST else 0.0)), low)
    smooth = op.kind in _LOWEST or op.kind in ("elu", "celu", "selu")
    return Interval(low, high).widened(16, op.dtype) if smooth else Interval(low, high)


def _multiplied(node: fx.Node, known: Facts[Interval]) -> Interval | None:
    """The interval of a product of two tensors: a gate from 0 to 1 keeps the sign of what it multiplies."""
    factors = [known.get(x) for x in node.all_input_nodes]
    if not all(isinstance(x, fx.Node) for x in node.args) or len(factors) != 2 or factors == [None, None]:
        return None  # or a square
    every = torch.full((1,) * len(shape(node)), math.inf, dtype=torch.float64)
    a, b = (interval or Interval(-every, every) for interval in factors)
    ends = torch.stack(torch.broadcast_tensors(*(_product(x, y) for x in a for y in b)))
    return rounded(ends.amin(0)[None], ends.amax(0)[None], dtype(node))


def _product(weight: Tensor, value: Tensor) -> Tensor:
    """``weight * value`` with 0 · ∞ = 0: a channel that nothing reads bounds nothing."""
    return torch.where((weight == 0) | (value == 0), 0.0, weight * value)


_transfer = by_kind(
    {
        Affine: _layer,
        ChannelAffine: _by_channel(_scale),
        ConstantMap: _by_channel(lambda op, _: _constant_map(op)),
        Activation: _by_channel(_rectify),
        "get_attr": _attribute,
        **MOVEMENT,
        aten.add: _sum,
        aten.mul: _multiplied,
        aten.embedding: _looked_up,
        **dict.fromkeys((Does.FUNCTION, Does.GATE, Does.SHARE), _bounded),
        Does.NORM: _normed,
        **dict.fromkeys((Does.LAYER, Does.MIX), _attended),
    }
)
