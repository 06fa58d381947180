"""The pass for layer norms: their scale and shift per channel join the layers that read them."""

from __future__ import annotations

from typing import Any

import torch

from layercollapse.compiler.ir.arguments import float64, named
from layercollapse.compiler.ir.graph import Net, shape, shared
from layercollapse.compiler.ir.records import ChannelAffine
from layercollapse.compiler.ir.scaling import before
from layercollapse.compiler.passes.context import PassContext
from layercollapse.graph.aten import packet

aten = torch.ops.aten


def strip_norms(net: Net, context: PassContext) -> bool:
    """A layer norm over the last dimension that only affine layers read gives them its weight and bias.

    Not where one of these layers shares its weights with another, or with an embedding: both would be stored then.
    """
    changed = False
    for node in list(net.graph.nodes):
        arguments: list[Any] = list(node.args)
        if packet(node) is not aten.layer_norm or len(arguments) < 3 or node.kwargs or len(arguments[1]) != 1:
            continue
        weight, bias = net.tensor(named(node, "weight")), net.tensor(named(node, "bias"))
        if weight is None or (bias is None) != (named(node, "bias") is None) or len(shape(node)) < 2:
            continue
        readers = [(user, net.affine(user)) for user in node.users]
        if not all(op is not None and op.channel_dim == -1 and not shared(net, op) for user, op in readers):
            continue
        scale = float64(weight)
        shift = torch.zeros_like(scale) if bias is None else float64(bias)
        for user, op in readers:
            assert op is not None
            net.set(user, before(ChannelAffine(scale, shift, -1, op.dtype), op))
        node.args = (*arguments[:2], None, None, *arguments[4:])
        changed = True
    return changed
