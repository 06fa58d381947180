"""What a node of a captured graph is: tables of aten operations, and questions asked of single nodes."""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from layercollapse import rectifiers

aten = torch.ops.aten


def by_dims(*kinds: str) -> set[Any]:
    """The aten operations of some kinds for one, two and three spatial dimensions: `max_pool1d` to `max_pool3d`."""
    return {getattr(aten, f"{kind}{dims}d") for kind in kinds for dims in (1, 2, 3)}


# Operations with a weight: packet -> (position of the input, position of the weight, the input's channel dim of
# the output). matmul and friends count when the second operand is a parameter.
WEIGHTED: dict[Any, tuple[int, int, int]] = {
    aten.conv1d: (0, 1, 1),
    aten.conv2d: (0, 1, 1),
    aten.conv3d: (0, 1, 1),
    aten.convolution: (0, 1, 1),
    aten.conv_transpose1d: (0, 1, 1),
    aten.conv_transpose2d: (0, 1, 1),
    aten.conv_transpose3d: (0, 1, 1),
    aten.linear: (0, 1, -1),
    aten.addmm: (1, 2, -1),
    aten.mm: (0, 1, -1),
    aten.matmul: (0, 1, -1),
}
LAST_DIM = {aten.layer_norm, aten.native_layer_norm, aten.rms_norm}
FIRST_DIM = {
    aten.batch_norm,
    aten._native_batch_norm_legit_no_training,
    aten.group_norm,
    aten.instance_norm,
}
# Operations that keep the channel dimension though they change the shape.
_POOLING = by_dims("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool")
RESIZING = (
    _POOLING
    | by_dims("upsample_nearest", "_upsample_nearest_exact")
    | {
        aten.cat,
        aten.pad,
        aten.constant_pad_nd,
        aten.upsample_linear1d,
        aten.upsample_bilinear2d,
        aten.upsample_trilinear3d,
        aten.upsample_bicubic2d,
        aten._upsample_bilinear2d_aa,
        aten._upsample_bicubic2d_aa,
        # What decomposition makes of some of these.
        aten._adaptive_avg_pool2d,
        aten._adaptive_avg_pool3d,
        aten.max_pool2d_with_indices,
        aten.max_pool3d_with_indices,
    }
)
# Operations that do the same for maps of every height and width.
ANY_SIZE = RESIZING | {
    *(aten.add, aten.sub, aten.mul, aten.neg, aten.mean, aten.amax, aten.flatten, aten.squeeze),
    # Of sizes: what a pooling keeps.
    *(aten.sym_size, operator.add, operator.sub, operator.mul, operator.floordiv),
}
# Weightless operations that pass an affine function on.
AFFINE = {
    aten.batch_norm,
    aten._native_batch_norm_legit_no_training,
    aten.add,
    aten.sub,
    aten.neg,
    aten.clone,
    aten.contiguous,
    aten.dropout,
    aten.feature_dropout,
    aten.to,
    aten._to_copy,
    aten.detach,
    aten.alias,
    aten.flatten,
    aten.view,
    aten.reshape,
    aten._unsafe_view,
    aten.permute,
    aten.transpose,
    aten.t,
    aten.squeeze,
    aten.unsqueeze,
    aten.cat,
    aten.mean,
    aten.avg_pool1d,
    aten.avg_pool2d,
    aten.avg_pool3d,
    aten.adaptive_avg_pool1d,
    aten.adaptive_avg_pool2d,
    aten.adaptive_avg_pool3d,
    aten.pad,
    aten.constant_pad_nd,
}
VIEWS = {
    aten.view,
    aten.reshape,
    aten._unsafe_view,
    aten.flatten,
    aten.unflatten,
    aten.permute,
    aten.transpose,
    aten.t,
    aten.squeeze,
    aten.unsqueeze,
    aten.slice,
    aten.select,
    aten.narrow,
    aten.chunk,
    aten.split,
    aten.split_with_sizes,
    aten.expand,
    aten.alias,
    aten.detach,
    aten.contiguous,
    aten.to,
    aten.dropout,
    aten.feature_dropout,
}
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
# Operations that read only the shape of their tensor: nothing depends on the data through them.
SHAPE_ONLY = {
    aten.sym_size,
    aten.zeros_like,
    aten.ones_like,
    aten.full_like,
    aten.new_zeros,
    aten.new_ones,
    aten.new_full,
    aten.empty_like,
}


def rectifier_of(node: fx.Node) -> rectifiers.Rectifier | None:
    """The rectifier that a node calls, or None."""
    row = rectifiers.BY_OPERATOR.get(packet(node))
    return row if row is not None and rectifier_call(node, row) is not None else None


def rectifier_call(node: fx.Node, row: rectifiers.Rectifier) -> tuple[str, float, float | None] | None:
    """Kind and bends of a call, see `rectifiers.describe`."""
    value: Any = node.args[0].meta["val"]  # type: ignore[union-attr]
    return rectifiers.describe(row, value.dtype, tuple(node.args[1:]), dict(node.kwargs))


def weight_of(node: fx.Node, tensors: Mapping[str, str]) -> str | None:
    """The name of the weight that a node applies to its input, or None if it is no affine layer with weights."""
    positions = WEIGHTED.get(packet(node))
    if positions is None or len(node.args) <= positions[1]:
        return None
    weight = node.args[positions[1]]
    while isinstance(weight, fx.Node) and packet(weight) in VIEWS:
        weight = weight.args[0]
    return tensors.get(weight.name) if isinstance(weight, fx.Node) else None


def computed(node: Any, tensors: Collection[str]) -> bool:
    """Whether a node's value follows from the tensors of these names alone: a parameter, or what is made of some."""
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return isinstance(node, fx.Node) and node.name in tensors
    random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    inputs = node.all_input_nodes
    return bool(inputs) and not random and not mutates(node) and all(computed(source, tensors) for source in inputs)


def has_weight(node: fx.Node, tensors: Collection[str]) -> bool:
    """Whether a node is an affine layer whose weight is a tensor of these names, or made of some (weight norm)."""
    positions = WEIGHTED.get(packet(node))
    return positions is not None and len(node.args) > positions[1] and computed(node.args[positions[1]], tensors)


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
