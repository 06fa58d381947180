"""What a node of a captured graph is: its row in the table of operations, and other questions asked of single nodes."""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from layercollapse.graph import rectifiers
from layercollapse.graph.meta import ABSORBED, MODULES, VALUE
from layercollapse.graph.operations import NO_ROW, OPERATIONS, RESIZES, Does, Operation, having, that

aten = torch.ops.aten


# Operations that do the same for maps of every height and width; and of sizes: what a pooling keeps.
ANY_SIZE = that(*RESIZES) | having("any_size") | {operator.add, operator.sub, operator.mul, operator.floordiv}


def rectifier_of(node: fx.Node) -> rectifiers.Rectifier | None:
    """The rectifier that a node calls, or None."""
    rectifier = None if node in ABSORBED else rectifiers.BY_OPERATOR.get(packet(node))
    return rectifier if rectifier is not None and rectifier_call(node, rectifier) is not None else None


def bends(node: fx.Node) -> bool:
    """Whether a node calls a rectifier that has not been made linear."""
    rectifier = rectifier_of(node)
    return rectifier is not None and rectifier.kind != "linear"


def rectifier_call(node: fx.Node, rectifier: rectifiers.Rectifier) -> tuple[str, float, float | None] | None:
    """Kind and bends of a call, see `rectifiers.describe`."""
    value: Any = VALUE[node.args[0]]
    return rectifiers.describe(rectifier, value.dtype, tuple(node.args[1:]), dict(node.kwargs))


def layer_of(node: fx.Node, tensors: Mapping[str, str]) -> tuple[fx.Node, str] | None:
    """The input of a layer and the name of its weight, or None if a node is no layer whose weight is a tensor.

    The weight may be one of several in a tensor (of experts, say), that the data choose.
    """
    for read, applied in _pairs(node):
        weight = applied
        while isinstance(weight, fx.Node) and (row(weight).view or row(weight).chooses):
            weight = weight.args[0]
        if isinstance(weight, fx.Node) and weight.name in tensors:
            return read, tensors[weight.name]
    return None


def weight_of(node: fx.Node, tensors: Mapping[str, str]) -> str | None:
    """The name of the weight that a node applies to its input, or None if it is no affine layer with weights."""
    layer = layer_of(node, tensors)
    return None if layer is None else layer[1]


def _pairs(node: fx.Node) -> list[tuple[Any, Any]]:
    """What may be a layer's input and weight: of a product of two tensors, either."""
    arguments = list(node.args)
    if packet(node) is aten.einsum:
        arguments = list(arguments[1])  # type: ignore[arg-type]
        return [(arguments[0], arguments[1]), (arguments[1], arguments[0])] if len(arguments) == 2 else []
    places = row(node).places
    if places is None or len(arguments) <= places[1]:
        return []
    read, weight = (arguments[place] for place in places)
    return [(read, weight), (weight, read)] if row(node).either else [(read, weight)]


def computed(graph: fx.Graph, tensors: Collection[str]) -> set[fx.Node]:
    """The nodes whose values follow from the tensors of these names alone: parameters, and what is made of some."""
    known: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op != "call_function":
            if node.name in tensors:
                known.add(node)
            continue
        random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        inputs = node.all_input_nodes
        if inputs and not random and not mutates(node) and known.issuperset(inputs):
            known.add(node)
    return known


def has_weight(node: fx.Node, constant: Collection[fx.Node]) -> bool:
    """Whether a node is an affine layer whose weight is a parameter, or made of some (weight norm): see `computed`."""
    return any(isinstance(weight, fx.Node) and weight in constant for _, weight in _pairs(node))


def packet(node: Any) -> Any:
    """The overload packet that a node calls (`aten.add` for `aten.add.Tensor`), or None."""
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return None
    return getattr(node.target, "overloadpacket", node.target)


def row(node: Any) -> Operation:
    """The row of the operation that a node calls; one that nobody follows for what has none."""
    return OPERATIONS.get(packet(node), NO_ROW)


def does(node: Any) -> Does:
    """What a node does: `OTHER` for one that is no call of an operation with a row."""
    return row(node).does


def spread(value: Any, dims: int) -> tuple[Any, ...]:
    """A setting as one value for each dimension: aten takes one for all too, alone or in a list."""
    values = list(value) if isinstance(value, list | tuple) else [value]
    return tuple(values * dims if len(values) == 1 else values)


def example_shape(value: Any) -> tuple[int, ...] | None:
    """A tensor's shape for the example inputs, None of anything else."""
    return tuple(example_size(size) for size in value.shape) if isinstance(value, Tensor) else None


def example_size(size: Any) -> Any:
    """A size for the example inputs: of symbolic ones, one may be 1 in a sum and an expression before it.

    Of one that the data decide (as many rows as a mask keeps), a guess.
    """
    if not isinstance(size, torch.SymInt):
        return size
    if size.node.hint is not None:
        return size.node.hint
    import sympy  # which `import torch` leaves for later, too

    return int(size.node.expr.xreplace(dict.fromkeys(size.node.expr.free_symbols, sympy.Integer(16))))


def mutates(node: fx.Node) -> bool:
    """Whether a node changes one of its arguments."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def shares_memory(node: fx.Node) -> bool:
    """Whether a node's tensor may be a view of its first argument, or an item of a list of such views."""
    if row(node).view or node.target is operator.getitem:
        return True
    schema = getattr(node.target, "_schema", None)
    return schema is not None and not schema.is_mutable and any(a.alias_info is not None for a in schema.arguments)


def functional(node: fx.Node) -> Any:
    """The operation that does the same out of place, `aten.relu.default` for `aten.relu_.default`, or None."""
    target: Any = node.target
    twin = getattr(aten, str(target.overloadpacket.__name__).removesuffix("_"), None)
    overload = getattr(twin, target._overloadname, None) if twin is not None else None
    return overload if overload is not None and not overload._schema.is_mutable else None


def module_path(node: fx.Node) -> str:
    """Path of the innermost module whose forward made the call; '' for the model itself."""
    stack = MODULES.get(node) or {}
    path = list(stack.values())[-1][0] if stack else ""
    return path if isinstance(path, str) else ""
