"""Whether a net's outputs depend on its inputs: followed channel by channel, through the weights that are not zero."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, fx

from layercollapse._util.sharded import whole
from layercollapse.compiler.analysis.dataflow import Channels, ChannelTransfer, Facts, along, forward
from layercollapse.compiler.ir.graph import Net, shape
from layercollapse.compiler.ir.names import identifier
from layercollapse.compiler.ir.records import Activation, Affine, ConstantMap, Op
from layercollapse.graph.aten import does, layer_of
from layercollapse.graph.operations import Does


def depends(net: Net, zero: Collection[str] | None = None) -> bool:
    """Whether any output depends on an input.

    Args:
        net: as lowered, or later.
        zero: names of weights of the model that count as zero, while nothing else does, whatever its values. None: the
            weights, and the scales, are what they are.
    """
    facts = forward(net, _Transfer(net, zero))
    return any(bool(facts[node].values.any()) for node in net.graph.nodes if node.op == "output")


class _Transfer(ChannelTransfer):
    """Bool (C,): whether a channel depends on an input."""

    def __init__(self, net: Net, zero: Collection[str] | None) -> None:
        self.zero = None if zero is None else {*zero, *map(identifier, zero)}
        self.stored = {node.name: str(node.target) for node in net.graph.nodes if node.op == "get_attr"}

    def record(self, node: fx.Node, op: Op, read: Channels | None) -> Tensor:
        assert read is not None
        channels = op.inputs if isinstance(op, Affine) else shape(node)[op.channel_dim]
        reached = along(read, op.channel_dim)
        reached = read.values.any().expand(channels) if reached is None else reached
        if isinstance(op, ConstantMap):
            return torch.zeros_like(op.bias, dtype=torch.bool)
        if isinstance(op, Affine):
            if self.zero is None:
                return (op.pairs() & op.spread(reached)).any(1)
            dead = op.source is not None and op.source[0] in self.zero
            return op.spread(reached & (not dead)).any(1).expand(op.outputs)
        return reached if isinstance(op, Activation) or self.zero is not None else reached & op.scale.ne(0)

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return a | b

    def multiply(self, a: Tensor | None, b: Tensor | None) -> Tensor | None:
        return None if a is None or b is None or len(a) != len(b) else a | b

    def other(self, node: fx.Node, facts: Facts[Channels]) -> Channels:
        reads = node.all_input_nodes
        if (layer := layer_of(node, self.stored)) is not None:
            reads = [] if self._is_zero(layer[1], facts.net) else [layer[0]]
        reached = node.op == "placeholder" or any(bool(facts[x].values.any()) for x in reads)
        return Channels(None, torch.tensor([reached and does(node) is not Does.SIZE]))

    def _is_zero(self, name: str, net: Net) -> bool:
        return not bool(whole(net.tensors[name] != 0).any()) if self.zero is None else name in self.zero
