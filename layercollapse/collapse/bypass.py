"""Rules for rectifiers of which some neurons bend and others only multiply: those that are on, or below a leaky bend.

For a layer L₁, a rectifier and a layer L₂, each the sole reader of the one before, and neurons S that only multiply by
their slopes s:

    y = L₂[:, rest] · act(L₁[rest] · x) + (L₂[:, S] · diag(s) · L₁[S]) · x

One more layer beside the two replaces |S| neurons: d·o multiply-accumulates instead of |S|·(d + o) for linear layers
with d inputs and o outputs. For d = o that is less from |S| > d/2 on, an eighth of the 4·d neurons of a transformer's
MLP.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, fx

from layercollapse.collapse.cost import macs
from layercollapse.collapse.ir import Affine, Net, Rectify, Scale, operands, shape, sole_user, source
from layercollapse.collapse.merge import add, compose, mergeable
from layercollapse.collapse.norms import shared
from layercollapse.collapse.weights import scaled, taken

aten = torch.ops.aten


class _Bypass(NamedTuple):
    """The layers that take the place of two, `first` and `second` as far as they stay."""

    first: Affine
    second: Affine
    line: Affine


class _Place(NamedTuple):
    """What a sum adds to the second layer and the bypass can join.

    Attributes:
        total: the sum.
        other: a layer over what the bypass reads, or that tensor, or a scale of it.
        both: the layer that does its work and the bypass's, if it is one.
    """

    total: fx.Node
    other: fx.Node
    both: Affine | None = None


def straighten(net: Net) -> bool:
    """A rectifier is a scale once nothing reads its neurons that bend."""
    changed = False
    for node, op in net.records(Rectify):
        if op.straight is None and op.fixed is None:
            continue
        unknown = torch.full((shape(node)[op.channel_dim],), torch.nan, dtype=torch.float64)
        scale, shift = (unknown if values is None else values for values in (op.straight, op.fixed))
        if not bool((scale.isnan() & shift.isnan()).any()):
            net.set(node, Scale(scale.nan_to_num(0.0), shift.nan_to_num(0.0), op.channel_dim, op.dtype))
            changed = True
    return changed


def carry_straight(net: Net) -> bool:
    """The neurons of a rectifier that only multiply become a layer beside the two around it, where that is less work.

    One site at a time: what is left of the layers decides for the next.
    """
    for node, op in net.records(Rectify):
        first, second = source(node), sole_user(node)
        if op.straight is None or second is None or sole_user(first) is not node:
            continue
        if not net.permits(carry_straight, node):
            continue
        new = _bypass(net, first, op, second)
        if new is None:
            continue
        place = _beside(net, first, second, new.line)
        if _pays(net, first, second, new, place):
            net.carried[op.site] = int((~op.straight.isnan()).sum())
            _set(net, node, op, new)
            _join(net, first, second, new.line, place)
            return True
    return False


def _bypass(net: Net, first: fx.Node, op: Rectify, second: fx.Node) -> _Bypass | None:
    """The three layers, or None where they would not be exact, or another layer has the weights of one."""
    one, two = net.affine(first), net.affine(second)
    if one is None or two is None or op.straight is None or not one.channel_dim == op.channel_dim == two.channel_dim:
        return None
    if one.groups > 1 or two.groups > 1 or shared(net, one) or shared(net, two):
        return None
    stays = op.straight.isnan()
    if bool(stays.all()) or not bool(stays.any()) or not mergeable(one, two):
        return None
    head = _taken(one, ~stays)
    slopes = op.straight[~stays]
    plane = None if head.plane is None else head.plane * slopes.reshape(-1, *[1] * (head.plane.ndim - 1))
    head = replace(head, weight=scaled(head, row=slopes), bias=head.bias * slopes, plane=plane)
    tail = replace(two, weight=taken(two, columns=~stays), bias=torch.zeros_like(two.bias), plane=None, source=None)
    return _Bypass(_taken(one, stays), replace(two, weight=taken(two, columns=stays), source=None), compose(head, tail))


def _taken(op: Affine, rows: Tensor) -> Affine:
    """A layer with some of its outputs."""
    plane = None if op.plane is None else op.plane[rows]
    return replace(op, weight=taken(op, rows), bias=op.bias[rows], plane=plane, source=None)


def _beside(net: Net, first: fx.Node, second: fx.Node, line: Affine) -> _Place | None:
    """Where a sum has a term that the bypass can join: a residual network's skip, or the layer in it."""
    read, top = source(first), second
    while (total := sole_user(top)) is not None and (pair := operands(total)) is not None and pair[0] is not pair[1]:
        other = pair[1] if pair[0] is top else pair[0]
        op = net.op(other)
        if other is read:
            return _Place(total, other)
        if op is not None and source(other) is read and sole_user(other) is total:
            both = add(op, line) if isinstance(op, Affine) and not shared(net, op) else None
            if both is not None or isinstance(op, Scale):
                return _Place(total, other, both)
        top = total
    return None


def _pays(net: Net, first: fx.Node, second: fx.Node, new: _Bypass, place: _Place | None) -> bool:
    """Whether multiply-accumulates fall, and time where that is measured."""
    old = [(node, op) for node in (first, second) if (op := net.affine(node)) is not None]
    line = new.line
    if place is not None and place.both is not None and (beside := net.affine(place.other)) is not None:
        old, line = [*old, (place.other, beside)], place.both
    made = [(first, new.first), (second, new.second), (second, line)]
    if sum(macs(op, shape(node)) for node, op in made) >= sum(macs(op, shape(node)) for node, op in old):
        return False
    if net.clock is None:
        return True
    reads = shape(source(first))
    now = sum(net.clock(op, shape(source(node))) for node, op in old)
    one, two = net.clock(new.first, reads), net.clock(new.second, shape(source(second)))
    return one + two + net.clock(line, reads) < now


def _set(net: Net, node: fx.Node, op: Rectify, new: _Bypass) -> None:
    """Give the layers around a rectifier, and the rectifier, what the bypass leaves."""
    assert op.straight is not None
    stays, first, second = op.straight.isnan(), source(node), sole_user(node)
    assert second is not None
    slope, fixed = (None if values is None else values[stays] for values in (op.slope, op.fixed))
    net.set(first, new.first)
    net.set(node, replace(op, slope=slope, fixed=fixed, straight=None))
    net.set(second, new.second)
    for made in (first, node):
        size = list(shape(made))
        size[op.channel_dim] = int(stays.sum())
        made.meta["shape"] = tuple(size)


def _join(net: Net, first: fx.Node, second: fx.Node, line: Affine, place: _Place | None) -> None:
    """Add the bypass to what the second layer makes, or to what is added to that anyway."""
    if place is not None and place.both is not None:
        net.set(place.other, place.both)
        return
    made = net.insert(f"{second.target}_bypass", line, source(first), after=second)
    made.meta["shape"] = shape(second)
    if place is not None:
        with net.graph.inserting_before(place.total):
            total = net.graph.call_function(aten.add.Tensor, (place.other, made))
        place.total.replace_input_with(place.other, total)
    else:
        with net.graph.inserting_after(made):
            total = net.graph.call_function(aten.add.Tensor, (second, made))
        net.reroute(second, total)
    total.meta["shape"] = shape(second)
