"""Passes for constant tensors that meet others: a sum with one is a shift, a product with one is a scale."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx

from layercollapse.compiler.analysis.constants import constants
from layercollapse.compiler.analysis.dataflow import Channels, Facts
from layercollapse.compiler.ir.channel_map import affine_readers, carry, factors
from layercollapse.compiler.ir.graph import Net, dtype, operands
from layercollapse.compiler.ir.records import ChannelAffine
from layercollapse.compiler.passes.context import PassContext
from layercollapse.graph.aten import packet
from layercollapse.graph.meta import DTYPE, SHAPE

aten = torch.ops.aten


def constants_in_sums(net: Net, context: PassContext) -> bool:
    """A sum with a constant tensor is a shift."""
    return _as_scales(net, operands)


def constants_in_products(net: Net, context: PassContext) -> bool:
    """A product with a constant tensor is a scale: the gate of a squeeze and excitation that reads nothing any more."""
    return _as_scales(net, factors)


def _as_scales(net: Net, pair_of: Callable[[fx.Node], tuple[fx.Node, fx.Node] | None]) -> bool:
    known = constants(net)
    changed = False
    for node in list(net.graph.nodes):
        pair = pair_of(node)
        for kept, other in () if pair is None else (pair, pair[::-1]):
            if SHAPE[kept] == SHAPE[node]:
                changed = _as_scale(net, node, kept, other, known) or changed
            if not node.users:
                break
    return changed


def _as_scale(net: Net, node: fx.Node, kept: fx.Node, other: fx.Node, known: Facts[Channels]) -> bool:
    """Put a scale of what varies in the place of a sum or a product with what is constant."""
    dim, value = known.get(other, (None, None))
    if dim is None or value is None or bool(value.isnan().any()):
        return False
    if kept in known and not bool(known[kept].values.isnan().any()):
        return False
    if len({DTYPE[x] for x in (kept, node) if x in DTYPE}) > 1:
        return False  # a mask, which the constant makes numbers of: a scale may go into the layer that reads it
    if len(value) != SHAPE[kept][dim]:
        return False  # one for all channels: the gate of a position
    if packet(other) is aten.flatten and carry(other, 1) != (-1, 1) and not affine_readers(net, node, dim):
        return False  # a value for every position: more parameters, for maps of one size
    product = packet(node) is aten.mul
    scale, shift = (value, torch.zeros_like(value)) if product else (torch.ones_like(value), value)
    name = f"{_layer_above(other)}_{'scale' if product else 'shift'}"
    net.replace(node, net.insert(name, ChannelAffine(scale, shift, dim, dtype_of(net, other)), kept, after=kept))
    return True


def dtype_of(net: Net, node: fx.Node) -> torch.dtype:
    """The dtype of the nearest record at or above a node, or of the input that it is made of."""
    while (op := net.op(node)) is None and node.all_input_nodes:
        node = node.all_input_nodes[0]
    if op is not None:
        return op.dtype
    return net.tensors[str(node.target)].dtype if node.op == "get_attr" else dtype(node)


def _layer_above(node: fx.Node) -> str:
    """The name of the layer that made a node's values, or of the node if a graph without names made them."""
    while node.op == "call_function" and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return str(node.target) if node.op == "call_module" else node.name
