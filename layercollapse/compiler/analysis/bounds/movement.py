"""Bounds behind operations without weights that move, select, join or average elements."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from layercollapse.compiler.analysis.bounds.interval import Interval, channelwise, unknown
from layercollapse.compiler.analysis.dataflow import Facts, Transfer
from layercollapse.compiler.ir.arguments import argument, border_value, named
from layercollapse.compiler.ir.channel_map import carry
from layercollapse.compiler.ir.graph import dtype, shape
from layercollapse.graph.aten import does, packet
from layercollapse.graph.meta import SHAPE
from layercollapse.graph.operations import RESHAPES, Does

aten = torch.ops.aten


def _of_first(move: Callable[[fx.Node, Interval], Interval | None]) -> Transfer[Interval]:
    """The transfer function of an operation whose first argument alone has values, given how these move."""

    def transfer(node: fx.Node, known: Facts[Interval]) -> Interval | None:
        first = argument(node, 0)
        interval = known.get(first) if isinstance(first, fx.Node) else None
        return None if interval is None or node.kwargs else move(node, interval)

    return transfer


def _same(node: fx.Node, known: Facts[Interval]) -> Interval | None:
    return known.get(argument(node, 0))


def _cast(node: fx.Node, known: Facts[Interval]) -> Interval | None:
    interval = known.get(argument(node, 0))
    return None if interval is None else interval.widened(1, dtype(node))


def _permuted(node: fx.Node, interval: Interval) -> Interval:
    return Interval(*(node.target(end, *node.args[1:]) for end in interval))  # type: ignore[operator]


def _expanded(node: fx.Node, interval: Interval) -> Interval:
    return Interval(*(end.reshape((1,) * (len(shape(node)) - end.ndim) + end.shape) for end in interval))


def _turned(node: fx.Node, interval: Interval) -> Interval:
    return interval.without(named(node, "dims") or range(len(shape(node))))


def _filled(node: fx.Node, interval: Interval) -> Interval | None:
    value = argument(node, 2)
    if not isinstance(value, int | float) or interval.low.ndim != len(shape(node)):
        return None
    return interval.including(float(value))


def _pooled(node: fx.Node, interval: Interval) -> Interval | None:
    if carry(node, 1) is None:
        return None
    ends = interval.without(range(2, len(shape(node))))
    return ends if does(node) is Does.MAXIMUM else ends.widened(_positions(node), dtype(node))


def _somewhere(node: fx.Node, interval: Interval) -> Interval:
    """The channels cannot be followed."""
    return interval.whole(len(shape(node)))


def _reshaped(node: fx.Node, interval: Interval) -> Interval | None:
    """The channels as neighbours in what is one dimension now, or dimensions of their own."""
    arguments: Any = node.args
    before, after = shape(arguments[0]), shape(node)
    if does(node) is Does.RESHAPE and not isinstance(arguments[1], list | tuple):
        return None  # a view of the same bits as another dtype
    viewed, place = _viewed(interval, before, after), carry(node, 1)
    if viewed is None and place is not None and interval.dims == [1]:
        low, high = (end.repeat_interleave(place[1]) for end in interval.along(1, before[1]))
        return channelwise(low, high, place[0], len(after))
    last = interval.without(interval.dims[:-1])
    return viewed or _viewed(last, before, after) or interval.whole(len(after))


def _viewed(interval: Interval, before: tuple[int, ...], after: tuple[int, ...]) -> Interval | None:
    """The interval of a tensor in another shape, if each dimension is made of some whole ones or is a part of one."""
    try:
        # Where one bound holds for all positions the stride is zero, and stays so in a view.
        views = [end.expand(before).view(after) for end in interval]
    except RuntimeError:
        return None
    kept = tuple(slice(None) if step else slice(1) for step in views[0].stride())
    return Interval(*(view[kept] for view in views))


def _sliced(node: fx.Node, interval: Interval) -> Interval:
    return _part(node, interval, named(node, "dim", 0))


def _item(node: fx.Node, known: Facts[Interval]) -> Interval | None:
    """One of the parts of a dimension that is taken apart."""
    split, index = node.args
    if not isinstance(split, fx.Node) or not isinstance(index, int):
        return None
    interval = known.get(argument(split, 0)) if does(split) in (Does.SPLIT, Does.UNBIND) else None
    return None if interval is None else _part(split, interval, named(split, "dim", 0), index)


def _part(node: fx.Node, interval: Interval, dim: int, index: int | None = None) -> Interval:
    """The bounds of positions along a dimension."""
    dim %= interval.low.ndim
    if interval.low.shape[dim] > 1 and len(node.all_input_nodes) == 1:  # the positions are numbers
        parts = (node.target(end, *node.args[1:]) for end in interval)  # type: ignore[operator]
        return Interval(*(part if index is None else part[index] for part in parts))
    ends = interval.without([dim])
    return Interval(*(end.squeeze(dim) for end in ends)) if packet(node) in (aten.select, aten.unbind) else ends


def _padded(node: fx.Node, interval: Interval) -> Interval | None:
    arguments: Any = node.args
    value, rank = border_value(node), len(shape(node))
    if isinstance(value, fx.Node):
        return None
    ends = interval.without(rank - 1 - place // 2 for place, amount in enumerate(arguments[1]) if amount != 0)
    return ends if value is None else ends.including(float(value))


def _reduced(node: fx.Node, interval: Interval) -> Interval | None:
    arguments: Any = node.args
    dims = arguments[1] if len(arguments) > 1 else None
    rank = len(shape(arguments[0]))
    gone = sorted({d % rank for d in ([dims] if isinstance(dims, int) else dims or range(rank))})
    ends = interval.without(gone)
    if does(node) is Does.MEAN:
        ends = ends.widened(_positions(node), dtype(node))
    if len(shape(node)) < rank:
        kept = [slice(None) if d not in gone else 0 for d in range(rank)]
        ends = Interval(*(end[tuple(kept)] for end in ends))
    return ends


def _positions(node: fx.Node) -> int:
    """How many values an average is of, at most."""
    return max(2, math.prod(shape(node.args[0])[1:]))  # type: ignore[arg-type]


def _joined(node: fx.Node, known: Facts[Interval]) -> Interval | None:
    """The interval of a concatenation: each part's channels where these are joined, else what all have in common."""
    arguments: Any = node.args
    if node.kwargs or SHAPE.get(node) is None or not isinstance(arguments[0], list | tuple):
        return None
    rank = len(shape(node))
    dim = argument(node, 1, 0) % rank
    if any(SHAPE.get(x) is None or len(shape(x)) != rank for x in arguments[0]):
        return None
    joined = [(shape(x)[dim], known.get(x)) for x in arguments[0]]
    if any(part is not None and part.low.shape[dim] == size for size, part in joined):
        return _side_by_side(joined, dim, rank)
    intervals = [part for _, part in joined if part is not None]
    if len(intervals) < len(joined):
        return None
    low, high = (torch.stack(torch.broadcast_tensors(*ends)) for ends in zip(*intervals, strict=True))
    return Interval(low.amin(0), high.amax(0))


def _side_by_side(joined: list[tuple[int, Interval | None]], dim: int, rank: int) -> Interval:
    parts = [part or channelwise(*unknown(size), dim, rank) for size, part in joined]
    others = torch.broadcast_shapes(*(part.low.select(dim, 0).shape for part in parts))
    sizes = [(*others[:dim], size, *others[dim:]) for size, _ in joined]
    low, high = (
        torch.cat([end.expand(size) for end, size in zip(ends, sizes, strict=True)], dim)
        for ends in zip(*parts, strict=True)
    )
    return Interval(low, high)


# What an operation does, or an operation -> its transfer function. Where channels cannot be followed there is one low
# and one high for all elements.
MOVEMENT: dict[Any, Transfer[Interval]] = {
    Does.SAME: _same,
    Does.CAST: _cast,
    **dict.fromkeys(RESHAPES, _of_first(_reshaped)),
    Does.PERMUTE: _of_first(_permuted),
    Does.SLICE: _of_first(_sliced),
    operator.getitem: _item,
    Does.EXPAND: _of_first(_expanded),
    Does.SELECT: _of_first(_somewhere),
    Does.REPEAT: _of_first(_somewhere),
    Does.TURN: _of_first(_turned),
    Does.JOIN: _joined,
    Does.PAD: _of_first(_padded),
    aten.masked_fill: _of_first(_filled),
    Does.MAXIMUM: _of_first(_pooled),
    Does.AVERAGE: _of_first(_pooled),
    Does.INTERPOLATE: _of_first(_pooled),
    Does.MEAN: _of_first(_reduced),
    Does.EXTREME: _of_first(_reduced),
}
