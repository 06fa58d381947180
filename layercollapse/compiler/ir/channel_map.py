"""Operations without weights that work on every channel alone: where each channel of their inputs comes out.

And those that work on every entry alone: functions of it, and gates, the products of two tensors.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from layercollapse.compiler.ir.arguments import named
from layercollapse.compiler.ir.graph import Net, alike, shape, source
from layercollapse.graph.aten import does, packet
from layercollapse.graph.channel_dims import Move
from layercollapse.graph.meta import SHAPE
from layercollapse.graph.operations import RESHAPES, Does

aten = torch.ops.aten


def carry(node: fx.Node, dim: int) -> tuple[int, int] | None:
    """How an operation moves channels: None unless each output channel is made of one input channel alone, in order.

    Args:
        node: the operation; its first argument is the tensor.
        dim: channel dimension of that tensor, 1 or -1.

    Returns:
        (channel dimension of the output, number of neighbouring output entries that each channel becomes: H·W for a
        flatten of (N, C, H, W), else 1). A channel that is constant stays so, with the same value.
    """
    first = node.args[0] if node.args else None
    if not isinstance(first, fx.Node) or SHAPE.get(first) is None or SHAPE.get(node) is None:
        return None
    if any(SHAPE.get(other) is not None for other in node.all_input_nodes if other is not first):
        return None  # it moves by what another tensor says
    place = _PLACES.get(does(node))
    return None if place is None or len(shape(first)) < 2 else place(node, dim)


def parts(node: Any) -> tuple[int, list[fx.Node]] | None:
    """The channel dimension, 1 or -1, and the tensors of a concatenation along what may be their channels, or None.

    It is the parts' records that say whether the dimension is that of their channels.
    """
    if does(node) is not Does.JOIN or SHAPE.get(node) is None or not isinstance(node.args[0], list | tuple):
        return None
    joined, rank = list(node.args[0]), len(shape(node))
    if rank < 2 or any(not isinstance(x, fx.Node) or len(SHAPE.get(x) or ()) != rank for x in joined):
        return None
    along = (node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)) % rank
    if along not in (1, rank - 1):
        return None
    return -1 if along == rank - 1 else 1, joined


def _moved(node: fx.Node, dim: int) -> tuple[int, int] | None:
    before, after = shape(source(node)), shape(node)
    if node.kwargs or (does(node) is Does.RESHAPE and not isinstance(node.args[1], list | tuple)):
        return None  # a view of the same bits as another dtype
    move = Move(node.target, node.args[1:], {}, before, after)  # type: ignore[arg-type]
    place = move.place(dim)
    if does(node) in (Does.PERMUTE, Does.MEAN) and move.place(0) != 0:
        return None
    if place is None:
        whole = packet(node) is aten.flatten and dim == 1 and len(after) == 2 and after[0] == before[0]
        return (-1, max(1, after[1] // max(1, before[1]))) if whole else None
    if place not in (1, len(after) - 1) or after[place] != before[dim]:
        return None
    return -1 if place == len(after) - 1 else 1, 1


def _turned(node: fx.Node, dim: int) -> tuple[int, int] | None:
    rank, dims = len(shape(node)), named(node, "dims", ())
    return (dim, 1) if dims and dim % rank not in {d % rank for d in dims} else None


def _pooled(node: fx.Node, dim: int) -> tuple[int, int] | None:
    return (1, 1) if dim == 1 and len(shape(source(node))) > 2 else None


def _averaged(node: fx.Node, dim: int) -> tuple[int, int] | None:
    """None, too, of an average pooling that does not give a constant its value at the border."""
    padding = named(node, "padding", 0)
    padded = any(padding) if isinstance(padding, list | tuple) else bool(padding)
    if named(node, "divisor_override") is not None or (padded and named(node, "count_include_pad", True)):
        return None
    return _pooled(node, dim)


# What an operation does -> where it puts the channels; see `carry`.
_PLACES: dict[Does, Callable[[fx.Node, int], tuple[int, int] | None]] = {
    Does.SAME: lambda node, dim: (dim, 1),
    **dict.fromkeys((*RESHAPES, Does.PERMUTE, Does.SLICE, Does.EXPAND, Does.REPEAT, Does.MEAN), _moved),
    Does.TURN: _turned,
    **dict.fromkeys((Does.MAXIMUM, Does.INTERPOLATE, Does.RESAMPLE), _pooled),
    Does.AVERAGE: _averaged,
}


def function_of(node: fx.Node) -> fx.Node | None:
    """The tensor of which a node gives a continuous function of each entry, of numbers alone otherwise; or None."""
    reads = node.all_input_nodes
    if does(node) not in (Does.FUNCTION, Does.GATE) or len(reads) != 1 or reads[0] is not node.args[0]:
        return None
    read = reads[0]
    same = SHAPE.get(read) == SHAPE.get(node) is not None
    return read if same and len(shape(node)) > 1 else None


def factors(node: Any) -> tuple[fx.Node, fx.Node] | None:
    """The two tensors of a product ``a * b``, of which the first has the product's shape, or None.

    The other has the same, or one entry for all positions: the gate of a squeeze and excitation.
    """
    if packet(node) is not aten.mul or node.kwargs or any(not isinstance(x, fx.Node) for x in node.args):
        return None
    a, b = node.args
    size = SHAPE.get(node)
    if a is b or size is None or len(size) < 2 or any(SHAPE.get(x) is None for x in (a, b)):
        return None
    if shape(a) != size:
        a, b = b, a
    if shape(a) != size or len(shape(b)) != len(size) or shape(b)[:2] != size[:2]:
        return None
    if any(own not in (1, other) for own, other in zip(shape(b)[2:], size[2:], strict=True)):
        return None
    return (a, b) if alike(a, b) else None


def affine_readers(net: Net, node: fx.Node, dim: int) -> dict[fx.Node, list[int]] | None:
    """The affine layers that read a tensor, also as a part of concatenations, and from which of their inputs on.

    None if anything else reads it.
    """
    readers: dict[fx.Node, list[int]] = {}
    waiting = [(node, 0)]
    while waiting:
        whole, place = waiting.pop()
        for user in whole.users:
            op, joined = net.affine(user), parts(user)
            if op is not None and op.channel_dim == dim:
                readers.setdefault(user, []).append(place)
            elif joined is not None and joined[0] == dim:
                starts = itertools.accumulate((shape(x)[dim] for x in joined[1]), initial=place)
                waiting += [(user, start) for start, x in zip(starts, joined[1], strict=False) if x is whole]
            else:
                return None
    return readers
