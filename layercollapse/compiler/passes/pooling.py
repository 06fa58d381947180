"""Passes that move a layer behind what makes its input smaller: pooling, means, flatten.

A layer that reads one position commutes with every average over positions whose weights sum to one, and then has
fewer positions to work on. An average pooling is itself a convolution, and a flatten in front of a linear layer makes
a convolution of it whose kernel is the whole map: both can be composed with the convolution before them.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from layercollapse.compiler.analysis.cost import macs
from layercollapse.compiler.ir.algebra import compose, mergeable
from layercollapse.compiler.ir.channel_map import carry
from layercollapse.compiler.ir.graph import Net, shape, sole_user, source
from layercollapse.compiler.ir.records import Affine, ConvGeometry
from layercollapse.compiler.passes.context import Group, PassContext
from layercollapse.graph.aten import does, packet, row, spread
from layercollapse.graph.meta import MAPS, SHAPE
from layercollapse.graph.operations import Does

aten = torch.ops.aten


def sink_layers(net: Net, context: PassContext) -> bool:
    """A layer that reads one position moves behind an average that alone reads it, if that leaves fewer positions."""
    changed = False
    for node, op in net.records(Affine):
        user = sole_user(node)
        if user is None or does(user) not in (Does.AVERAGE, Does.MEAN) or not _reads_one_position(op):
            continue
        if not context.permits(Group.POOLING, node, user):
            continue
        place = carry(user, op.channel_dim)
        if place is None:
            continue
        moved = _at(op, place[0], len(shape(user)))
        if moved is None or math.prod(shape(user)) // op.outputs >= math.prod(shape(node)) // op.outputs:
            continue
        pooled = list(shape(user))
        pooled[place[0]] = op.inputs
        size = shape(user)
        user.replace_input_with(node, source(node))
        below = net.insert(str(node.target), moved, user, after=user)
        SHAPE[below], SHAPE[user] = size, tuple(pooled)
        net.reroute(user, below)
        net.erase(node)
        changed = True
    return changed


def _reads_one_position(op: Affine) -> bool:
    return not op.geometry.kernel or (op.geometry.pointwise and op.border_weight is None)


def _at(op: Affine, dim: int, rank: int) -> Affine | None:
    """The same layer over a tensor with its channels along another dimension, or with fewer dimensions."""
    dims = rank - 2 if dim == 1 else 0
    if dims == len(op.geometry.kernel):
        return op if dim == op.channel_dim else None
    if dim == 1 and op.geometry.kernel:
        geometry = ConvGeometry((1,) * dims, (1,) * dims, (0,) * dims, (1,) * dims)
        return replace(op, weight=op.weight.reshape(*op.size[:2], *geometry.kernel), geometry=geometry, source=None)
    if dim == -1 and op.groups == 1 and rank == 2:
        return replace(op, weight=op.weight.flatten(1), geometry=ConvGeometry(), source=None)
    return op if not op.geometry.kernel and dim == -1 else None


def merge_with_pooling(net: Net, context: PassContext) -> bool:
    """A convolution and the average pooling that alone reads it are one convolution, if that is less work."""
    changed = False
    for node, op in net.records(Affine):
        user = sole_user(node)
        pool = _pooling(user, op) if user is not None else None
        if user is None or pool is None or not mergeable(op, pool):
            continue
        merged = compose(op, pool)
        if macs(merged, shape(user)) > macs(op, shape(node)) or not context.permits(Group.POOLING, node, user):
            continue
        net.set(node, merged)
        SHAPE[node] = shape(user)
        net.replace(user, node)
        changed = True
    return changed


def _pooling(node: fx.Node, op: Affine) -> Affine | None:
    """An average pooling of what a convolution gives, as a depthwise convolution."""
    window, dims = average_window(node), len(op.geometry.kernel)
    if window is None or len(window.kernel) != dims:
        return None
    divisor: Any = (node.args[6] if len(node.args) > 6 else None) or math.prod(window.kernel)
    weight = torch.full((op.outputs, 1, *window.kernel), 1 / divisor, dtype=torch.float64)
    bias = torch.zeros(op.outputs, dtype=torch.float64)
    return Affine(weight, bias, window, op.outputs, op.dtype)


def average_window(node: fx.Node) -> ConvGeometry | None:
    """The window of an average pooling (N, C, *spatial) that weighs all alike; None of anything else."""
    if does(node) is not Does.AVERAGE or row(node).one_size or len(SHAPE.get(node) or ()) < 3:
        return None
    dims = len(shape(node)) - 2
    defaults: list[Any] = [None, None, None, 0, False, True, None]
    arguments: list[Any] = [*node.args, *defaults[len(node.args) :]]
    if node.kwargs or len(arguments) > len(defaults):
        return None
    kernel, stride, padding = (spread(a, dims) for a in (arguments[1], arguments[2] or arguments[1], arguments[3]))
    if arguments[4] or (any(padding) and not arguments[5]):
        return None  # windows beyond the border, or with weights that differ there
    return ConvGeometry(kernel, stride, padding, (1,) * dims) if len(kernel) == dims else None


def merge_through_flatten(net: Net, context: PassContext) -> bool:
    """A convolution, and the linear layer that alone reads its flattened map, are one linear layer, if that is less
    work: its weights are those of the second, spread over the positions that the first reads.

    They fit maps of one size, where the two took all that flatten to as many values: the flatten then says which.
    """
    changed = False
    for node, op in net.records(Affine):
        user = sole_user(node)
        below = sole_user(user) if user is not None and packet(user) is aten.flatten else None
        second = net.affine(below)
        if user is None or below is None or second is None or not op.geometry.kernel or op.geometry.transposed:
            continue
        if not context.permits(Group.POOLING, node, user, below):
            continue
        if second.geometry.kernel or carry(user, 1) != (-1, math.prod(shape(node)[2:])) or len(shape(user)) != 2:
            continue
        size = shape(source(node))
        if any(s > 1 for s in op.geometry.stride):
            continue  # the network also takes inputs of other sizes, which leave as many positions
        if second.inputs != math.prod(shape(node)[1:]) or size[1] != op.inputs:
            continue
        weights = second.outputs * math.prod(size[1:])
        if weights > macs(op, shape(node)) + second.weight.numel():
            continue
        merged = _through_flatten(op, second, shape(node)[2:], size[2:])
        flat = (size[0], merged.inputs)
        user.replace_input_with(node, source(node))
        SHAPE[user] = flat
        if not op.geometry.pointwise:
            MAPS[user] = size[2:]  # flattened, maps of another size may have as many positions
        net.set(below, merged)
        net.erase(node)
        changed = True
    return changed


def _through_flatten(op: Affine, second: Affine, written: tuple[int, ...], read: tuple[int, ...]) -> Affine:
    """The linear layer ``second(flatten(op(x)))`` for maps of the sizes that the convolution makes and reads."""
    dims, geometry = len(read), op.geometry
    rows = second.weight.reshape(second.outputs, op.outputs, *written)
    turn: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[dims - 1]
    parts = zip(read, written, geometry.extent, geometry.stride, geometry.padding, strict=True)
    beyond = [size - ((out - 1) * s - 2 * p + extent) for size, out, extent, s, p in parts]  # what no window reaches
    ones = op.bias.reshape(-1, *[1] * dims).expand(-1, *written)
    if op.border_weight is not None:
        convolve: Any = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
        settings = (geometry.stride, geometry.padding, geometry.dilation)
        ones = ones + convolve(rows.new_ones(1, 1, *read), op.border_weight.unsqueeze(1), None, *settings).squeeze(0)
    weight = turn(rows, op.dense(), None, geometry.stride, geometry.padding, 0, 1, geometry.dilation)
    weight = F.pad(weight, [amount for more in reversed(beyond) for amount in (0, more)])
    bias = second.bias + (rows * ones).flatten(1).sum(1)
    return Affine(weight.flatten(1), bias, ConvGeometry(), 1, second.dtype)
