"""What an emitted model returns: containers as they were, and memory that is as new as the original's was."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx

from layercollapse.compiler.backend.containers import children
from layercollapse.compiler.backend.modules import ChannelAffine, ConstantMap, FixedSizes
from layercollapse.graph.aten import row, shares_memory
from layercollapse.graph.memory import Memory
from layercollapse.graph.meta import SHAPE, inherit

aten = torch.ops.aten

# A node that makes memory, and which of the tensors that it gives lies there.
_Owner = tuple[fx.Node, Any]


class _Place(NamedTuple):
    """Where a node's tensor may lie: in memory that these make, and whether its elements may overlap."""

    owners: frozenset[_Owner]
    overlaps: bool = False


def own_memory(graph: fx.Graph, modules: Mapping[str, Any], memory: Sequence[Memory]) -> None:
    """Copy each output that may be memory which the original's is not: an input, the model's, or another output's.

    A change in place of such an output would change later calls, or be refused. What is new anyway is not copied.

    Args:
        graph: of the emitted model; its output holds the leaves in a flat list.
        modules: what its `call_module` nodes call, by name.
        memory: of the original's outputs; where it is of another number of them, all are to be new.
    """
    output = next(node for node in graph.nodes if node.op == "output")
    leaves = list(output.args[0])
    known = memory if len(memory) == len(leaves) else [Memory()] * len(leaves)
    places = _places(graph, modules)
    given: dict[_Owner, set[int]] = defaultdict(set)  # memory -> the outputs that have it
    copies: dict[fx.Node, list[int]] = defaultdict(list)  # node -> the outputs that are copies of it
    for at, (leaf, own) in enumerate(zip(leaves, known, strict=True)):
        if not isinstance(leaf, fx.Node) or not _is_tensor(leaf):
            continue
        owners, overlaps = places[leaf]
        if overlaps <= own.overlaps and all(
            _permitted(owner[0], own, modules) and given[owner] <= own.others for owner in owners
        ):
            for owner in owners:
                given[owner].add(at)
            continue
        # Outputs that were one tensor stay one.
        copy = next((leaves[other] for other in copies[leaf] if other in own.others), None)
        if copy is None:
            with graph.inserting_before(output):
                copy = graph.call_function(aten.clone.default, (leaf,))
            inherit(copy, leaf)
        copies[leaf].append(at)
        leaves[at] = copy
    output.args = (leaves,)


def _permitted(maker: fx.Node, own: Memory, modules: Mapping[str, Any]) -> bool:
    """Whether an output may be the memory that a node makes."""
    if maker.op == "placeholder":
        return own.of_input
    stays = maker.op == "get_attr" or isinstance(_called(maker, modules), ConstantMap)
    return own.of_model or not stays


def _places(graph: fx.Graph, modules: Mapping[str, Any]) -> dict[fx.Node, _Place]:
    places: dict[fx.Node, _Place] = {}
    for node in graph.nodes:
        sources = _read(node, modules)
        overlaps = row(node).overlaps or isinstance(_called(node, modules), ConstantMap)
        if not sources:
            places[node] = _Place(frozenset({(node, None)}), overlaps)
            continue
        owners = frozenset[_Owner]().union(*(places[source].owners for source in sources))
        if node.target is operator.getitem and owners == {(sources[0], None)}:
            owners = frozenset({(sources[0], node.args[1])})  # one of several tensors, each of which is new
        places[node] = _Place(owners, overlaps or any(places[source].overlaps for source in sources))
    return places


def _read(node: fx.Node, modules: Mapping[str, Any]) -> list[fx.Node]:
    """The nodes whose memory a node's tensor may be; none where it makes its own."""
    if node.op == "call_module":
        module = _called(node, modules)
        empty = isinstance(module, ChannelAffine) and module.scale is None and module.shift is None
        return node.all_input_nodes if empty or isinstance(module, FixedSizes) else []
    if node.op != "call_function":
        return []
    if row(node).shares:
        return node.all_input_nodes
    # The sizes and the like that follow a tensor may be nodes, too.
    return node.all_input_nodes[:1] if shares_memory(node) else []


def _called(node: fx.Node, modules: Mapping[str, Any]) -> Any:
    return modules[str(node.target)] if node.op == "call_module" else None


def _is_tensor(node: fx.Node) -> bool:
    """Whether a node gives a tensor: outputs may be numbers, too."""
    if node.op == "placeholder":
        return SHAPE.get(node) is not None
    if node.op != "call_function":
        return True
    schema = getattr(node.target, "_schema", None)
    return node.target is operator.getitem if schema is None else "Tensor" in str(schema.returns[0].type)


def pack(spec: Any, leaves: list[Any]) -> Any:
    """Outputs in their containers, where these are plain; see `containers.is_plain`."""
    if spec.is_leaf():
        return leaves.pop(0)
    parts = [pack(child, leaves) for child in children(spec)]
    return dict(zip(spec.context, parts, strict=True)) if spec.type is dict else spec.type(parts)
