"""Sums, differences, products and quotients with numbers, or with tensors of the model: one value per channel or one.

What is left of a number when all passes are done becomes a number again (`restore_numbers`): it adds no parameter, and
fits every size.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from layercollapse.compiler.frontend.model import Model
from layercollapse.compiler.ir.arguments import argument, fixed, float64, rank
from layercollapse.compiler.ir.graph import Net, operands, sole_user, source
from layercollapse.compiler.ir.records import ChannelAffine, Origin
from layercollapse.graph.aten import packet
from layercollapse.graph.meta import SHAPE, VALUE

aten = torch.ops.aten


def elementwise(node: fx.Node, model: Model) -> tuple[ChannelAffine, fx.Node] | None:
    """The record of ``x ∘ v`` or ``v ∘ x`` for a number or a tensor v of the model, and x."""
    a, b = argument(node, 0), argument(node, 1)
    alpha = node.kwargs.get("alpha", argument(node, 2, 1))
    if set(node.kwargs) - {"alpha"} or not isinstance(alpha, int | float):
        return None
    swapped = not isinstance(a, fx.Node) or model.tensor(a) is not None
    read, value = (b, a) if swapped else (a, b)
    if not isinstance(read, fx.Node) or not _is_plain(read, node):
        return None
    values = _values(value, read, model)
    if values is None:
        return None
    v, dim, uniform, dtype = values
    scale = _operation(packet(node), v, swapped, float(alpha))
    if scale is None or not all(bool(part.isfinite().all()) for part in scale):
        return None
    return ChannelAffine(*scale, dim, dtype, uniform, model.origin(value)), read


def _operation(called: Any, v: Tensor, swapped: bool, alpha: float) -> tuple[Tensor, Tensor] | None:
    """ChannelAffine and shift of an operation with the values v on its right, or its left if swapped."""
    ones, zeros = torch.ones_like(v), torch.zeros_like(v)
    if called is aten.neg:
        return -ones, zeros
    if called is aten.mul:
        return v.clone(), zeros
    if called is aten.div:
        return None if swapped else (1 / v, zeros)
    if called is aten.add:
        return (alpha * ones, v.clone()) if swapped else (ones, alpha * v)
    if called is aten.sub:
        return (-alpha * ones, v.clone()) if swapped else (ones, -alpha * v)
    if called is aten.rsub:  # rsub(x, v) is v - alpha · x
        return None if swapped else (-alpha * ones, v.clone())
    return None


def _values(value: Any, read: fx.Node, model: Model) -> tuple[Tensor, int, str | None, torch.dtype] | None:
    """What a number or a tensor is along the channels of what it meets.

    Returns:
        Values (C,); their dimension, 1 or -1; where one value for all channels came from, see `ChannelAffine`; and the
        dtype.
    """
    size, dim = VALUE[read].shape, channel_dim(read, model)
    if value is None:
        value = 1  # a negation has no second operand
    tensor = model.tensor(value)
    if tensor is not None and read not in model.dims:
        return None  # no layer above could take it
    if model.dims.get(read, 1) not in (1, -1, len(size) - 1):
        return None  # records have their channels in dimension 1 or the last
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number or (tensor is not None and tensor.numel() == 1 and tensor.ndim <= len(size)):
        channels = fixed(size[dim])
        if channels is None or (tensor is not None and not tensor.is_floating_point()):
            return None
        values = torch.tensor([value], dtype=torch.float64) if tensor is None else float64(tensor).flatten()
        dtype = VALUE[read].dtype if tensor is None else tensor.dtype
        return values.expand(channels).clone(), dim, "number" if tensor is None else "parameter", dtype
    if tensor is None or not tensor.is_floating_point():
        return None
    shape = (1,) * (len(size) - tensor.ndim) + tuple(tensor.shape)
    for along in (dim, -1 if dim == 1 else 1):
        if len(shape) == len(size) and shape[along] == size[along] == tensor.numel():
            return float64(tensor).flatten(), -1 if len(size) == 2 else along, None, tensor.dtype
    return None


def _is_plain(read: fx.Node, node: fx.Node) -> bool:
    """Whether an operation changes neither the dtype of what it reads nor its number of dimensions."""
    before, after = VALUE.get(read), VALUE.get(node)
    if not isinstance(before, Tensor) or not isinstance(after, Tensor):
        return False
    return before.is_floating_point() and before.dtype == after.dtype and 1 < before.ndim == after.ndim


def channel_dim(node: fx.Node, model: Model) -> int:
    """Where a tensor's channels lie, as far as that is known: 1 or -1."""
    dim = model.dims.get(node, -1 if rank(node) == 3 else 1)
    return 1 if dim == 1 and rank(node) > 2 else -1


def weighted_sum(node: fx.Node, model: Model) -> tuple[fx.Node, fx.Node, ChannelAffine] | None:
    """``x − y`` and ``x + α y`` of two tensors of one shape as x, y and the scale of y."""
    if packet(node) not in (aten.add, aten.sub) or set(node.kwargs) - {"alpha"} or len(node.args) != 2:
        return None
    factor = node.kwargs.get("alpha", 1)
    if not isinstance(factor, int | float) or (packet(node) is aten.add and factor == 1) or not math.isfinite(factor):
        return None
    x, y = node.args
    if not all(isinstance(part, fx.Node) and _is_plain(part, node) for part in (x, y)):
        return None
    assert isinstance(x, fx.Node)
    assert isinstance(y, fx.Node)
    size = VALUE[y].shape
    dim = channel_dim(y, model)
    channels = fixed(size[dim])
    if model.tensor(x) is not None or model.tensor(y) is not None or channels is None:
        return None
    values = torch.full((channels,), float(-factor if packet(node) is aten.sub else factor), dtype=torch.float64)
    return x, y, ChannelAffine(values, torch.zeros_like(values), dim, VALUE[y].dtype, "number", Origin.BUFFER)


def restore_numbers(net: Net) -> None:
    """Scales that are still the numbers of the model become arithmetic with numbers: ``a − b``, ``2 * x + 1``."""
    for node, op in net.records(ChannelAffine):
        if op.uniform != "number":
            continue
        scale, shift, read = float(op.scale[0]), float(op.shift[0]), source(node)
        total = sole_user(node)
        pair = operands(total)
        if total is not None and pair is not None and pair[0] is not pair[1] and shift == 0:
            total.args = (pair[0] if pair[1] is node else pair[1], read)
            total.target = aten.sub.Tensor if scale == -1 else aten.add.Tensor
            total.kwargs = {} if scale == -1 else {"alpha": scale}
            net.erase(node)
            continue
        with net.graph.inserting_after(node):
            new = read
            if scale != 1:
                new = net.graph.call_function(aten.mul.Tensor, (read, scale))
                SHAPE[new] = SHAPE[node]
        if shift != 0 or new is read:
            with net.graph.inserting_after(node if new is read else new):
                new = net.graph.call_function(aten.add.Tensor, (new, shift))
                SHAPE[new] = SHAPE[node]
        net.replace(node, new)
