"""Where the variants to write one network differ: the smallest parts of which each can be chosen by itself.

Nodes are the same in two nets if they have one name, do the same to tensors of the same sizes, and read nodes of the
same names. What is not the same in all nets falls into regions that do not touch: between them stands a node that all
nets share, so that whatever is taken in one region fits whatever is taken in the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor, fx

from layercollapse.compiler.ir.graph import Net
from layercollapse.compiler.ir.records import Activation, Affine, ChannelAffine, ConstantMap
from layercollapse.compiler.tuning.variants import Variant
from layercollapse.graph.meta import SHAPE, inherit


@dataclass(frozen=True)
class Region:
    """A part of a network that some variants write differently.

    Attributes:
        names: of its nodes, in any variant.
        reads: names of the tensors around it that it reads, in any variant.
        layers: names of its layers with weights, and of the constant maps that some have become, in any variant.
        variants: variant -> the part as a net of its own, whose inputs are `reads`; of those that write it alike, the
            first.
    """

    names: frozenset[str]
    reads: tuple[str, ...]
    layers: tuple[str, ...]
    variants: dict[Variant, Net]


def regions(nets: Mapping[Variant, Net]) -> list[Region]:
    """The regions of nets that started as one, by variant, in the order of the first; they stay as they are."""
    parts = []
    for names in _groups(list(nets.values())):
        inside = {variant: _inside(net, names) for variant, net in nets.items()}
        reads = {x.name for nodes in inside.values() for node in nodes for x in node.all_input_nodes if x not in nodes}
        variants: dict[Variant, Net] = {}
        for variant, net in nets.items():
            part = cut(net, names, inside[variant], sorted(reads))
            if all(structure(part) != structure(other) for other in variants.values()):
                variants[variant] = part
        layers = [
            [str(node.target) for node in part.graph.nodes if isinstance(part.op(node), Affine | ConstantMap)]
            for part in variants.values()
        ]
        named = dict.fromkeys(name for some in sorted(layers, key=len, reverse=True) for name in some)
        if len(variants) > 1:
            parts.append(Region(frozenset(names), tuple(sorted(reads)), tuple(named), variants))
    return parts


def _groups(nets: list[Net]) -> list[set[str]]:
    """Names of the nodes that are not the same in all nets; those that one of them connects, together."""
    seen = [{node.name: (_does(net, node), _reads(node, str)) for node in net.graph.nodes} for net in nets]
    same = {name for name, what in seen[0].items() if all(other.get(name) == what for other in seen)}
    group: dict[str, set[str]] = {}
    for net in nets:
        for node in net.graph.nodes:
            if node.op == "output" or node.name in same:
                continue
            joined = {node.name}.union(*(group.get(x.name, set()) for x in (node, *node.all_input_nodes)))
            for name in joined:
                group[name] = joined
    order = dict.fromkeys(node.name for net in nets for node in net.graph.nodes)
    return list({id(group[name]): group[name] for name in order if name in group}.values())


def structure(net: Net) -> Any:
    """What a net does to tensors of which sizes, whatever its nodes are called and its weights are."""
    number = {node: str(index) for index, node in enumerate(net.graph.nodes)}
    return tuple((_does(net, node), _reads(node, number.__getitem__)) for node in net.graph.nodes)


def _does(net: Net, node: fx.Node) -> Any:
    op = net.op(node)
    sizes = tuple(SHAPE.get(x) for x in (node, *node.all_input_nodes))
    if isinstance(op, Affine):
        return op.size, op.geometry, op.groups, op.border_weight is None, op.dtype, sizes
    if isinstance(op, ChannelAffine):
        return op.shifts_only, op.scales_only, op.uniform, op.channel_dim, op.dtype, sizes
    if isinstance(op, ConstantMap):
        return None if op.border_weight is None else op.border_weight.shape, op.geometry, op.before, op.dtype, sizes
    if isinstance(op, Activation):
        return op.kind, op.channel_dim, op.dtype, sizes
    return node.op, node.target if node.op == "call_function" else "", sizes


def _reads(node: fx.Node, name: Any) -> str:
    return str(fx.map_arg((node.args, node.kwargs), name))


def _inside(net: Net, names: set[str]) -> set[fx.Node]:
    """The nodes of these names, and what gives them anything but tensors, or tensors of the model."""
    inside = {node for node in net.graph.nodes if node.name in names}
    todo = list(inside)
    while todo:
        for node in todo.pop().all_input_nodes:
            if node not in inside and (node.op == "get_attr" or not _tensor(node)):
                inside.add(node)
                todo.append(node)
    return inside


def cut(net: Net, names: set[str], inside: set[fx.Node], reads: list[str]) -> Net:
    """Nodes as a net of its own.

    Args:
        net: with the nodes; it stays as it is.
        names: of the nodes.
        inside: these nodes, and what gives them anything but tensors, or tensors of the model.
        reads: names of the tensors that become inputs. The outputs are what others read.
    """
    graph = fx.Graph()
    inputs = {name: graph.placeholder(name) for name in reads}
    new: dict[fx.Node, fx.Node] = {}
    for node in net.graph.nodes:
        if node.name in inputs:
            new[node] = inputs[node.name]
            inherit(new[node], node)
        elif node in inside:
            new[node] = graph.node_copy(node, new.__getitem__)
    outputs = [copy for node, copy in new.items() if node.name in names and not inside.issuperset(node.users)]
    graph.output(outputs)
    part = Net(graph, pytree.tree_structure(outputs))
    used = {str(node.target) for node in graph.nodes}
    part.ops = {target: op for target, op in net.ops.items() if target in used}
    part.tensors = {name: tensor for name, tensor in net.tensors.items() if name in used}
    part.parameters, part.frozen, part.buffers, part.trains = net.parameters, net.frozen, net.buffers, net.trains
    return part


def _tensor(node: fx.Node) -> bool:
    """Whether a node gives one tensor; an input is never computed anew."""
    return node.op == "placeholder" or SHAPE.get(node) is not None


class Recorder(fx.Interpreter):
    """A forward pass of a net that takes down what some nodes give.

    Args:
        net: what runs.
        model: what it was emitted as.
        names: of the nodes.

    Attributes:
        seen: name -> value; of a floating-point tensor its size, strides and dtype alone, on "meta".
    """

    def __init__(self, net: Net, model: fx.GraphModule, names: set[str]) -> None:
        super().__init__(model, graph=net.graph)
        self.net, self.names = net, names
        self.seen: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self.names:
            self.seen[n.name] = value.to("meta") if isinstance(value, Tensor) and value.is_floating_point() else value
        return value

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        op = self.net.ops[target]
        # A number in the code is none of the model's modules (see `restore_numbers`), and changes values alone.
        number = isinstance(op, ChannelAffine) and op.uniform == "number"
        return args[0] if number else self.submodules[target](*args, **kwargs)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self.net.tensors[target]
