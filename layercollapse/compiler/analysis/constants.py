"""Which channels hold one value everywhere, whatever the input: a forward pass over the net.

A pruned row leaves its bias; a batch norm moves it; a rectifier clips it; a sum of constants is a constant. Only a
zero padding ends it, and the padded convolution says so by its taps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from layercollapse.compiler.analysis.norm_constants import normed
from layercollapse.compiler.ir.channel_map import carry, factors, function_of, parts
from layercollapse.compiler.ir.graph import Net, operands, shape, source
from layercollapse.compiler.ir.records import Activation, Affine, ChannelAffine, ConstantMap, Op
from layercollapse.graph.aten import SHAPE_ONLY, packet
from layercollapse.graph.rectifiers import quick_gelu, tanh_gelu

aten = torch.ops.aten


class Constants:
    """What `constants` found."""

    def __init__(self) -> None:
        self._facts: dict[fx.Node, tuple[int, Tensor]] = {}

    def get(self, node: fx.Node, dim: int) -> Tensor | None:
        """float64 (C,) along a dimension (1 or -1), NaN where a channel varies; None if nothing is known."""
        fact = self._facts.get(node)
        return fact[1] if fact is not None and fact[0] == dim else None

    def complete(self, node: fx.Node) -> tuple[int, Tensor] | None:
        """Dimension and values of a tensor whose every channel is constant, or None."""
        fact = self._facts.get(node)
        return fact if fact is not None and not bool(fact[1].isnan().any()) else None

    def put(self, node: fx.Node, dim: int, value: Tensor | None) -> None:
        """Note the values of a node's channels; not one value that broadcasts over more of them."""
        if value is not None and len(value) == shape(node)[dim] and not bool(value.isnan().all()):
            self._facts[node] = (dim, value)


def constants(net: Net) -> Constants:
    """The channels that hold one value over batch and space, for every node of which any is known."""
    known = Constants()
    for node in net.graph.nodes:
        op = net.op(node)
        if op is not None:
            known.put(node, op.channel_dim, _of_record(op, known.get(source(node), op.channel_dim)))
        elif (pair := operands(node)) is not None:
            for dim in (1, -1):
                a, b = (known.get(x, dim) for x in pair)
                if a is not None and b is not None:
                    known.put(node, dim, a + b)
        elif (gate := factors(node)) is not None:
            for dim in (1, -1):
                known.put(node, dim, _product(*(known.get(x, dim) for x in gate)))
        elif (read := function_of(node)) is not None:
            for dim in (1, -1):
                if (value := known.get(read, dim)) is not None:
                    value = node.target(value, *node.args[1:], **node.kwargs)
                    known.put(node, dim, value.masked_fill(~value.isfinite(), torch.nan))
        elif (made := normed(net, node, known.get)) is not None:
            known.put(node, *made)
        elif (joined := parts(node)) is not None:
            dim, values = joined[0], [known.get(x, joined[0]) for x in joined[1]]
            if any(value is not None for value in values):
                varies = [torch.full((shape(x)[dim],), torch.nan, dtype=torch.float64) for x in joined[1]]
                known.put(
                    node, dim, torch.cat([v if v is not None else w for v, w in zip(values, varies, strict=True)])
                )
        elif node.op == "call_function" and node.args and isinstance(node.args[0], fx.Node):
            for dim in (1, -1):
                value, moved = known.get(node.args[0], dim), carry(node, dim)
                if value is not None and moved is not None:
                    known.put(node, moved[0], value.repeat_interleave(moved[1]))
    return known


def _product(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The constants of a product: where both factors are, or one is zero."""
    unknown = [torch.full_like(x, torch.nan) for x in (a, b) if x is not None]
    if not unknown:
        return None
    a, b = (unknown[0] if x is None else x for x in (a, b))
    return (a * b).masked_fill((a == 0) | (b == 0), 0.0) if len(a) == len(b) else None


def _of_record(op: Op, value: Tensor | None) -> Tensor | None:
    """The constants of a record's output, given those of its input."""
    if isinstance(op, Affine):
        return _affine(op, value)
    if isinstance(op, ConstantMap):
        return (
            op.bias if op.border_weight is None else op.bias.masked_fill(op.border_weight.flatten(1).any(1), torch.nan)
        )
    if isinstance(op, ChannelAffine):
        # A scale of zero makes a constant of anything.
        varies = torch.full_like(op.scale, torch.nan) if value is None else value
        return torch.where(op.scale == 0, op.shift, op.scale * varies + op.shift)
    value = None if value is None else rectified(op, value)
    if op.fixed is None or value is None:
        return value if op.fixed is None else op.fixed
    return torch.where(value.isnan(), op.fixed, value)


def _affine(op: Affine, value: Tensor | None) -> Tensor | None:
    unknown, out = op.writes(), op.bias.clone()
    # A constant that meets a zero padding is not constant at the border.
    if value is not None and not op.geometry.border_sensitive:
        weight = op.weight.flatten(2).sum(2) if op.geometry.kernel else op.weight  # (O, I / groups)
        unknown = (op.pairs() & op.spread(value.isnan())).any(1)
        filled = value.nan_to_num(0.0)
        out += weight @ filled if op.groups == 1 else (weight * op.spread(filled)).sum(1)
    if op.border_weight is not None:
        unknown = unknown | op.border_weight.flatten(1).any(1)
    return out.masked_fill(unknown, torch.nan)


def depends(net: Net) -> bool:
    """Whether any output depends on an input, followed channel by channel through the weights that are not zero."""
    reached: dict[fx.Node, Tensor | bool] = {}  # bool (C,) for a record and what carries its channels on
    dims: dict[fx.Node, int] = {}
    for node in net.graph.nodes:
        op, pair = net.op(node), operands(node)
        first = node.args[0] if node.args else None
        if node.op == "output":
            return any(_any(reached[x]) for x in node.all_input_nodes)
        if op is not None:
            dims[node] = op.channel_dim
            value = reached[source(node)]
            same = isinstance(value, Tensor) and dims.get(source(node)) == op.channel_dim
            reached[node] = _through(op, value if same else _any(value))
        elif pair is not None and all(isinstance(reached[x], Tensor) for x in pair) and dims[pair[0]] == dims[pair[1]]:
            reached[node], dims[node] = reached[pair[0]] | reached[pair[1]], dims[pair[0]]
        elif (joined := parts(node)) is not None and all(
            dims.get(x) == joined[0] and isinstance(reached[x], Tensor) for x in joined[1]
        ):
            dims[node], reached[node] = joined[0], torch.cat([reached[x] for x in joined[1]])  # type: ignore[misc]
        elif (read := function_of(node)) is not None and read in dims:
            dims[node], reached[node] = dims[read], reached[read]
        elif isinstance(first, fx.Node) and first in dims and (place := carry(node, dims[first])) is not None:
            value = reached[first]
            dims[node] = place[0]
            reached[node] = value.repeat_interleave(place[1]) if isinstance(value, Tensor) else value
        elif packet(node) in SHAPE_ONLY:
            reached[node] = False
        else:
            reached[node] = node.op == "placeholder" or any(_any(reached[x]) for x in node.all_input_nodes)
    raise AssertionError("a graph ends with its output")


def _any(reached: Tensor | bool) -> bool:
    return bool(reached.any()) if isinstance(reached, Tensor) else reached


def _through(op: Op, reached: Tensor | bool) -> Tensor | bool:
    """The channels of a record's output that depend on the inputs, given those of its input."""
    if isinstance(op, ConstantMap):
        return torch.zeros(len(op.bias), dtype=torch.bool)
    if isinstance(op, Affine):
        return (op.pairs() & (op.spread(reached) if isinstance(reached, Tensor) else reached)).any(1)
    if isinstance(op, ChannelAffine):
        return op.scale.ne(0) & reached
    return reached


def rectified(op: Activation, value: Tensor) -> Tensor:
    """The rectifier's value, float64 (C,), at one value per channel; NaN stays NaN."""
    call: dict[str, Any] = {
        "gelu": torch.nn.functional.gelu,
        "quick_gelu": quick_gelu,
        "silu": torch.nn.functional.silu,
        "mish": torch.nn.functional.mish,
        "hardswish": torch.nn.functional.hardswish,
        "elu": torch.nn.functional.elu,
        "celu": torch.nn.functional.celu,
        "selu": torch.nn.functional.selu,
    }
    if "factor" in op.arguments:
        return tanh_gelu(value, **op.arguments)
    if op.kind in call:
        return call[op.kind](value, **op.arguments)
    if op.slope is not None:
        return torch.where(value > 0, value, value * op.slope)
    return value.clamp(min=op.lower, max=op.upper)
