"""What an emitted model returns: containers as they were, and memory that is as new as the original's was."""

from __future__ import annotations

import numbers
import operator
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import torch
from torch import fx

from layercollapse.compiler.backend.modules import ChannelAffine, ConstantMap, FixedSizes
from layercollapse.errors import LayerCollapseError
from layercollapse.graph.aten import row, shares_memory
from layercollapse.graph.memory import Memory

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
            copy.meta = dict(leaf.meta)
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
        return node.meta.get("shape") is not None
    if node.op != "call_function":
        return True
    schema = getattr(node.target, "_schema", None)
    return node.target is operator.getitem if schema is None else "Tensor" in str(schema.returns[0].type)


def pack(spec: Any, leaves: list[Any]) -> Any:
    """Outputs in their containers: tuples, lists and dicts as they were, whatever the keys.

    Ordered dicts, default dicts, dataclasses and model output classes become plain dicts with the same keys in the same
    order; named tuples, and what else torch takes apart, plain tuples.

    Raises:
        LayerCollapseError: a key is no text, number or None, and no tuple of these.
    """
    if spec.is_leaf():
        return leaves.pop(0)
    children = [pack(child, leaves) for child in _children(spec)]
    if spec.type is list:
        return children
    keys = _keys(spec, len(children))
    return tuple(children) if keys is None else dict(zip(map(_key, keys), children, strict=True))


def _children(spec: Any) -> list[Any]:
    return list(spec.children() if callable(getattr(spec, "children", None)) else spec.children_specs)


def _keys(spec: Any, count: int) -> list[Any] | None:
    """The keys of a dict, or names of the fields of a class that is like one; None for other containers."""
    keys = spec.context
    if spec.type is defaultdict:
        return list(keys[1])
    if isinstance(keys, list) and len(keys) == count:
        mapping = isinstance(spec.type, type) and issubclass(spec.type, Mapping)
        if mapping or all(isinstance(key, str) for key in keys):
            return keys
    if is_dataclass(spec.type) and count:
        # What torch.export registers has the names of the fields that are not None first.
        some = keys[0] if isinstance(keys, list | tuple) and keys else None
        names = [field.name for field in fields(spec.type)]
        return next((n for n in (some, names) if isinstance(n, list) and len(n) == count), None)
    return None


def _key(key: Any) -> Any:
    """A key as it can be written into a graph, equal to what it was: an enumeration's number is a number."""
    if key is None or isinstance(key, bool):
        return key
    if isinstance(key, tuple):
        return tuple(map(_key, key))
    plain: Any = None
    if isinstance(key, str):
        plain = str.__str__(key)
    elif isinstance(key, numbers.Integral):
        plain = int(key)
    elif isinstance(key, float):
        plain = float(key)
    if plain is None or plain != key or hash(plain) != hash(key):
        raise LayerCollapseError(
            "model: expected outputs in dicts whose keys are texts, numbers, None, or tuples of these, got a key of "
            f"type {type(key).__name__}: {key!r}"
        )
    return plain
