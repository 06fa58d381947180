"""What a node of a captured graph is: tables of aten operations, and questions asked of single nodes."""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from layercollapse.graph import rectifiers
from layercollapse.graph.operations import OPERATIONS, RESIZES, Does, that

aten = torch.ops.aten


def by_dims(*kinds: str) -> set[Any]:
    """The aten operations of some kinds for one, two and three spatial dimensions: `max_pool1d` to `max_pool3d`."""
    return {getattr(aten, f"{kind}{dims}d") for kind in kinds for dims in (1, 2, 3)}


# Operations with a weight: packet -> positions of the input and the weight.
WEIGHTED: dict[Any, tuple[int, int]] = {packet: row.places for packet, row in OPERATIONS.items() if row.places}
# Products of two tensors: layers where one is the model's.
_OF_TWO = {aten.mm, aten.matmul, aten.bmm, aten._grouped_mm, aten.addmm, aten.baddbmm}
# What takes some of the weights of a tensor, as the data say.
_CHOOSES = {aten.index, aten.index_select, aten.clone, aten._to_copy}
# Those that decide the channel dimension of their result.
DIMS: dict[Any, int] = {packet: row.dim for packet, row in OPERATIONS.items() if row.dim is not None}
RESIZING = that(*RESIZES)
# Operations that do the same for maps of every height and width; and of sizes: what a pooling keeps.
ANY_SIZE = RESIZING | {
    *(packet for packet, row in OPERATIONS.items() if row.any_size),
    *(operator.add, operator.sub, operator.mul, operator.floordiv),
}
VIEWS = {packet for packet, row in OPERATIONS.items() if row.view}
# Operations that may give a view of what they read, or the tensor itself, and whose schema does not say so.
MAY_SHARE = {
    aten._unsafe_view,
    aten.alpha_dropout,
    aten.feature_alpha_dropout,
    aten.native_dropout,
    aten.atleast_1d,
    aten.atleast_2d,
    aten.atleast_3d,
    aten.broadcast_tensors,
    aten.broadcast_to,
    aten.cartesian_prod,
    aten.conj_physical,
    aten.einsum,
    aten.histogramdd,
    aten.meshgrid,
    aten.sum_to_size,
    aten.type_as,
    aten.unsafe_chunk,
    aten.unsafe_split,
    aten.unsafe_split_with_sizes,
}
# Operations that may give a tensor of which several elements are one place in memory.
OVERLAPPING = {aten.as_strided, aten.broadcast_tensors, aten.broadcast_to, aten.expand, aten.expand_as, aten.meshgrid}
# Nothing depends on the data through them.
SHAPE_ONLY = that(Does.SIZE)

# Set in the metadata of a rectifier's call that is a part of another rectifier (see `written`).
ABSORBED = "absorbed"
# In the metadata of a rectifier that the model writes out, where it is to stay so: the calls that it makes.
WRITTEN = "written"


def rectifier_of(node: fx.Node) -> rectifiers.Rectifier | None:
    """The rectifier that a node calls, or None."""
    row = None if ABSORBED in node.meta else rectifiers.BY_OPERATOR.get(packet(node))
    return row if row is not None and rectifier_call(node, row) is not None else None


def rectifier_call(node: fx.Node, row: rectifiers.Rectifier) -> tuple[str, float, float | None] | None:
    """Kind and bends of a call, see `rectifiers.describe`."""
    value: Any = node.args[0].meta["val"]  # type: ignore[union-attr]
    return rectifiers.describe(row, value.dtype, tuple(node.args[1:]), dict(node.kwargs))


def layer_of(node: fx.Node, tensors: Mapping[str, str]) -> tuple[fx.Node, str] | None:
    """The input of a layer and the name of its weight, or None if a node is no layer whose weight is a tensor.

    The weight may be one of several in a tensor (of experts, say), that the data choose.
    """
    for read, applied in _pairs(node):
        weight = applied
        while isinstance(weight, fx.Node) and (packet(weight) in VIEWS or packet(weight) in _CHOOSES):
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
    called, arguments = packet(node), list(node.args)
    if called is aten.einsum:
        arguments = list(arguments[1])  # type: ignore[arg-type]
        return [(arguments[0], arguments[1]), (arguments[1], arguments[0])] if len(arguments) == 2 else []
    if called not in WEIGHTED or len(arguments) <= WEIGHTED[called][1]:
        return []
    read, weight = (arguments[place] for place in WEIGHTED[called])
    return [(read, weight), (weight, read)] if called in _OF_TWO else [(read, weight)]


def computed(graph: fx.Graph, tensors: Collection[str]) -> set[fx.Node]:
    """The nodes whose values follow from the tensors of these names alone: parameters, and what is made of some."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op != "call_function":
            if node.name in tensors:
                found.add(node)
            continue
        random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        inputs = node.all_input_nodes
        if inputs and not random and not mutates(node) and found.issuperset(inputs):
            found.add(node)
    return found


def has_weight(node: fx.Node, made: Collection[fx.Node]) -> bool:
    """Whether a node is an affine layer whose weight is a parameter, or made of some (weight norm): see `computed`."""
    return any(isinstance(weight, fx.Node) and weight in made for _, weight in _pairs(node))


def packet(node: Any) -> Any:
    """The overload packet that a node calls (`aten.add` for `aten.add.Tensor`), or None."""
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return None
    return getattr(node.target, "overloadpacket", node.target)


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
    if packet(node) in VIEWS or node.target is operator.getitem:
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
    stack = node.meta.get("nn_module_stack") or {}
    path = list(stack.values())[-1][0] if stack else ""
    return path if isinstance(path, str) else ""
