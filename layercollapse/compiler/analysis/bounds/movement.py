"""Bounds behind operations without weights that move, select, join or average elements."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from layercollapse.compiler.analysis.bounds.interval import Interval, channelwise, unknown
from layercollapse.compiler.ir.arguments import argument
from layercollapse.compiler.ir.channel_map import CASTS, MAXIMA, SAME, VIEWS, carry
from layercollapse.compiler.ir.graph import dtype, shape
from layercollapse.graph.aten import packet
from layercollapse.graph.operations import Does, that

aten = torch.ops.aten

_RESHAPES, _PERMUTES, _PARTS = that(Does.RESHAPE), that(Does.PERMUTE), that(Does.SLICE)
_SPLITS = that(Does.SPLIT, Does.UNBIND)
_REDUCTIONS = {aten.mean, aten.amax, aten.amin}
_SELECTS = that(Does.SELECT) | {aten.repeat, aten.tile, aten.repeat_interleave}
# Means of neighbours; a resampling may leave their range.
_NEIGHBOURS = that(Does.MAXIMUM, Does.AVERAGE, Does.INTERPOLATE) | {aten.mean}


def moved_bounds(node: fx.Node, known: Mapping[fx.Node, Interval]) -> Interval | None:
    """Of an operation that gives elements of its first argument, or means of them; None if nothing is known.

    Where channels cannot be followed there is one low and one high for all elements.
    """
    arguments: Any = node.args
    called = packet(node)
    if called is aten.cat:
        return _joined(node, known)
    if called is operator.getitem and packet(arguments[0]) in _SPLITS:
        split, index = arguments
        return _part(split, split.args, known.get(split.args[0]), index)
    interval = known.get(arguments[0]) if arguments and isinstance(arguments[0], fx.Node) else None
    if interval is None or node.meta.get("shape") is None:
        return None
    size = shape(node)
    if called in SAME:
        return interval
    if called in CASTS:
        return interval.widened(1, dtype(node)) if dtype(node).is_floating_point else None
    if node.kwargs:
        return None
    if called in _RESHAPES:
        return _reshaped(node, interval)
    if called in _PERMUTES:
        return Interval(*(node.target(end, *arguments[1:]) for end in interval))  # type: ignore[operator]
    if called in _PARTS:
        return _part(node, arguments, interval)
    if called in (aten.expand, aten.expand_as):
        return Interval(*(end.reshape((1,) * (len(size) - end.ndim) + end.shape) for end in interval))
    if called is aten.roll:
        dims = arguments[2] if len(arguments) > 2 else []
        return interval.without([dims] if isinstance(dims, int) else dims or range(len(size)))
    if called in (aten.pad, aten.constant_pad_nd):
        return _padded(node, interval)
    if called is aten.masked_fill and isinstance(arguments[2], int | float):
        return interval.including(float(arguments[2])) if interval.low.ndim == len(size) else None
    if called in _REDUCTIONS:
        return _reduced(node, interval)
    if called in _NEIGHBOURS and carry(node, 1) is not None:
        ends = interval.without(range(2, len(size)))
        return ends if called in MAXIMA else ends.widened(_positions(node), dtype(node))
    return interval.whole(len(size)) if called in _SELECTS else None


def _reshaped(node: fx.Node, interval: Interval) -> Interval | None:
    """The channels as neighbours in what is one dimension now, or dimensions of their own."""
    arguments: Any = node.args
    before, after = shape(arguments[0]), shape(node)
    if packet(node) in VIEWS and not isinstance(arguments[1], list | tuple):
        return None  # a view of the same bits as another dtype
    found, place = _viewed(interval, before, after), carry(node, 1)
    if found is None and place is not None and interval.dims == [1]:
        low, high = (end.repeat_interleave(place[1]) for end in interval.along(1, before[1]))
        return channelwise(low, high, place[0], len(after))
    last = interval.without(interval.dims[:-1])
    return found or _viewed(last, before, after) or interval.whole(len(after))


def _viewed(interval: Interval, before: tuple[int, ...], after: tuple[int, ...]) -> Interval | None:
    """Of a tensor in another shape, if each of its dimensions is made of some whole ones or is a part of one."""
    try:
        # Where one bound holds for all positions the stride is zero, and stays so in a view.
        views = [end.expand(before).view(after) for end in interval]
    except RuntimeError:
        return None
    kept = tuple(slice(None) if step else slice(1) for step in views[0].stride())
    return Interval(*(view[kept] for view in views))


def _part(node: fx.Node, arguments: Any, interval: Interval | None, index: int | None = None) -> Interval | None:
    """Of positions along a dimension: `split` and its kin take it last, the others first."""
    if interval is None:
        return None
    called = packet(node)
    place = 1 if called in _PARTS or called is aten.unbind else 2
    dim = (arguments[place] if len(arguments) > place else 0) % interval.low.ndim
    if interval.low.shape[dim] > 1 and len(node.all_input_nodes) == 1:  # the positions are numbers
        parts = (node.target(end, *arguments[1:]) for end in interval)  # type: ignore[operator]
        return Interval(*(part if index is None else part[index] for part in parts))
    ends = interval.without([dim])
    return Interval(*(end.squeeze(dim) for end in ends)) if called in (aten.select, aten.unbind) else ends


def _padded(node: fx.Node, interval: Interval) -> Interval | None:
    arguments: Any = node.args
    mode, value = argument(node, 2, "constant"), argument(node, 3)
    if packet(node) is aten.constant_pad_nd:
        mode, value = "constant", argument(node, 2)
    if isinstance(value, fx.Node):
        return None
    rank = len(shape(node))
    ends = interval.without(rank - 1 - place // 2 for place, amount in enumerate(arguments[1]) if amount != 0)
    return ends.including(float(value or 0)) if mode == "constant" else ends


def _reduced(node: fx.Node, interval: Interval) -> Interval | None:
    arguments: Any = node.args
    dims = arguments[1] if len(arguments) > 1 else None
    rank = len(shape(arguments[0]))
    gone = sorted({d % rank for d in ([dims] if isinstance(dims, int) else dims or range(rank))})
    ends = interval.without(gone)
    if packet(node) is aten.mean:
        ends = ends.widened(_positions(node), dtype(node))
    if len(shape(node)) < rank:
        kept = [slice(None) if d not in gone else 0 for d in range(rank)]
        ends = Interval(*(end[tuple(kept)] for end in ends))
    return ends


def _positions(node: fx.Node) -> int:
    """How many values an average is of, at most."""
    return max(2, math.prod(shape(node.args[0])[1:]))  # type: ignore[arg-type]


def _joined(node: fx.Node, known: Mapping[fx.Node, Interval]) -> Interval | None:
    """Of a concatenation: each part's channels where these are joined, else what all parts have in common."""
    arguments: Any = node.args
    if node.kwargs or node.meta.get("shape") is None or not isinstance(arguments[0], list | tuple):
        return None
    rank = len(shape(node))
    dim = argument(node, 1, 0) % rank
    if any(x.meta.get("shape") is None or len(shape(x)) != rank for x in arguments[0]):
        return None
    joined = [(shape(x)[dim], known.get(x)) for x in arguments[0]]
    if any(part is not None and part.low.shape[dim] == size for size, part in joined):
        return _side_by_side(joined, dim, rank)
    found = [part for _, part in joined if part is not None]
    if len(found) < len(joined):
        return None
    low, high = (torch.stack(torch.broadcast_tensors(*ends)) for ends in zip(*found, strict=True))
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
