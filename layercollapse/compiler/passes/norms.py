"""The pass for layer norms: their scale and shift per channel join the layers that read them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from layercollapse.compiler.ir.arguments import float64
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
        weight, bias = (_tensor(net, x) for x in (*arguments[2:4], None)[:2])
        if weight is None or (bias is None and arguments[3:4] not in ([], [None])) or len(shape(node)) < 2:
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


def _tensor(net: Net, x: Any) -> Tensor | None:
    return net.tensors.get(str(x.target)) if isinstance(x, fx.Node) and x.op == "get_attr" else None
