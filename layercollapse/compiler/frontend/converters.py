"""How each aten operation becomes a record: one function per kind of operation, in the table at the end.

A converter returns the record and the node that it reads, or None to leave the operation as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from layercollapse.compiler.frontend.elementwise import elementwise
from layercollapse.compiler.frontend.model import Model
from layercollapse.compiler.ir.arguments import argument, border_value, float64, named, rank
from layercollapse.compiler.ir.records import Activation, Affine, ChannelAffine, ConvGeometry, Op, Origin, transposed
from layercollapse.compiler.ir.weights import Lazy
from layercollapse.graph.aten import does, module_path, packet, spread
from layercollapse.graph.meta import VALUE
from layercollapse.graph.operations import Does, that
from layercollapse.graph.rectifiers import tanh_gelu

aten = torch.ops.aten

Reading = tuple[Op, fx.Node]


def read(node: fx.Node, model: Model) -> Reading | None:
    """The record of a node and the node that it reads, or None for one that keeps its aten operation."""
    if node.name in model.sites:
        return _rectifier(node, model)
    converter = CONVERTERS.get(packet(node))
    return converter(node, model) if converter is not None else None


def _convolution(node: fx.Node, model: Model) -> Reading | None:
    source, weight = argument(node, 0), model.tensor(argument(node, 1))
    if weight is None or rank(source) != weight.ndim:
        return None  # an input without a batch
    dims = weight.ndim - 2
    kernel = tuple(weight.shape[2:])
    dilation = spread(argument(node, 5, 1), dims)
    padding = argument(node, 4, 0)
    if padding == "valid":
        padding = 0
    elif padding == "same":
        total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        if any(t % 2 for t in total):
            return None  # padded on one side only
        padding = [t // 2 for t in total]
    padding = spread(padding, dims)
    ahead = _padding(source, dims)
    if ahead is not None:
        source, padding = source.args[0], tuple(p + a for p, a in zip(padding, ahead, strict=True))
    geometry = ConvGeometry(kernel, spread(argument(node, 3, 1), dims), padding, dilation)
    op = _affine(node, model, geometry, int(argument(node, 6, 1)))
    return None if op is None else (op, source)


def _transposed(node: fx.Node, model: Model) -> Reading | None:
    source, weight = argument(node, 0), model.tensor(argument(node, 1))
    if weight is None or rank(source) != weight.ndim:
        return None  # an input without a batch
    dims, groups = weight.ndim - 2, int(argument(node, 6, 1))
    stride, padding, more, dilation = (
        spread(argument(node, at, default), dims) for at, default in ((3, 1), (4, 0), (5, 0), (7, 1))
    )
    geometry = ConvGeometry(tuple(weight.shape[2:]), stride, padding, dilation, more)
    op = _affine(node, model, geometry, groups)
    if op is None:
        return None
    op = replace(op, weight=transposed(op.weight, groups))
    if len(op.bias) != len(op.weight):  # there was none
        op = replace(op, bias=torch.zeros(len(op.weight), dtype=torch.float64))
    if replace(geometry, output_padding=None).pointwise and not any(more):
        op = replace(op, geometry=replace(geometry, output_padding=None), source=None)
    return op, source


def _padding(node: Any, dims: int) -> tuple[int, ...] | None:
    """How much a node pads every spatial dimension with zeros, if it does so alike on both sides; else None."""
    if does(node) is not Does.PAD or border_value(node) != 0:
        return None
    amounts = list(node.args[1])
    if len(amounts) > 2 * dims or any(not isinstance(a, int) or a < 0 for a in amounts):
        return None
    low, high = amounts[::2], amounts[1::2]
    if low != high:
        return None
    return (0,) * (dims - len(low)) + tuple(reversed(low))  # the last dimension comes first


def _linear(node: fx.Node, model: Model) -> Reading | None:
    op = _affine(node, model, ConvGeometry(), 1)
    return None if op is None else (op, argument(node, 0))


def _affine(node: fx.Node, model: Model, geometry: ConvGeometry, groups: int) -> Affine | None:
    bias = argument(node, 2)
    w, b = model.tensor(argument(node, 1)), model.tensor(bias)
    if w is None or not w.is_floating_point() or (bias is not None and b is None):
        return None
    path = module_path(node)
    source = (
        model.name(argument(node, 1), f"{path}.weight"),
        None if b is None else model.name(bias, f"{path}.bias"),
    )
    shift = torch.zeros(len(w), dtype=torch.float64) if b is None else float64(b)
    origin = model.origin(argument(node, 1), bias)
    return Affine(Lazy(w), shift, geometry, groups, w.dtype, source=source, origin=origin)  # type: ignore[arg-type]


def _product(node: fx.Node, model: Model) -> Reading | None:
    """``x @ W`` and ``b + x @ W``: a linear layer whose weight lies the other way round."""
    operands: list[Any] = list(node.args)
    bias = operands.pop(0) if packet(node) is aten.addmm else None
    w, b = model.tensor(operands[1]), model.tensor(bias)
    if w is None or w.ndim != 2 or not w.is_floating_point() or node.kwargs or (bias is not None and b is None):
        return None
    if b is not None and b.shape != w.shape[1:]:
        return None
    shift = torch.zeros(w.shape[1], dtype=torch.float64) if b is None else float64(b)
    origin = model.origin(operands[1], bias)
    return Affine(Lazy(w.T), shift, ConvGeometry(), 1, w.dtype, origin=origin), operands[0]  # type: ignore[arg-type]


def _norm_by_running_statistics(node: fx.Node, model: Model) -> Reading | None:
    """``γ (x − μ) / √(σ² + ε) + β``, from the running statistics."""
    arguments: Any = node.args
    source, gamma, beta, mean, variance = arguments[:5]
    training, eps = named(node, "training") or named(node, "use_input_stats"), named(node, "eps")
    mu, var, g, b = (model.tensor(x) for x in (mean, variance, gamma, beta))
    if training or mu is None or var is None or (g is None) != (gamma is None) or (b is None) != (beta is None):
        return None
    scale = (float64(var) + float(eps)).rsqrt()
    if g is not None:
        scale = scale * float64(g)
    shift = -float64(mu) * scale
    if b is not None:
        shift = shift + float64(b)
    if not bool(scale.isfinite().all() & shift.isfinite().all()):
        return None
    # In a model of half precision a batch norm may keep float32 parameters, and still gives what it gets.
    dim, origin = -1 if rank(source) == 2 else 1, model.origin(gamma, beta, mean, variance)
    return ChannelAffine(scale, shift, dim, VALUE[source].dtype, origin=origin), source


def _line(node: fx.Node, model: Model, dim: int, channels: int) -> Reading | None:
    """A rectifier that `layercollapse.linearize` made linear."""
    source, *parts = (argument(node, place) for place in range(3))
    values = [model.tensor(part) for part in parts]
    if any(value is None and part is not None for value, part in zip(values, parts, strict=True)):
        return None
    number = torch.ones((), dtype=torch.float64)
    scale, shift = (
        (default * number if value is None else float64(value)).expand(channels).clone()
        for value, default in zip(values, (1.0, 0.0), strict=True)
    )
    return ChannelAffine(scale, shift, dim, VALUE[node].dtype, origin=Origin.BUFFER), source


def _rectifier(node: fx.Node, model: Model) -> Reading | None:
    site, source = model.sites[node.name], argument(node, 0)
    if rank(source) < 2:
        return None  # (N,): the one neuron has no dimension
    if rank(source) > 2 and site.channel_dim not in (1, -1):
        return None  # records have their channels in dimension 1 or the last
    dim = -1 if rank(source) == 2 else site.channel_dim
    # A rectifier that becomes linear is emitted with parameters: they must not change the dtype of what flows.
    slope, dtype = None, VALUE[node].dtype
    if site.kind == "linear":
        return _line(node, model, dim, site.channels)
    arguments: dict[str, Any] = {}
    if site.kind == "leaky_relu":
        negative = float(argument(node, 1, 0.01))
        slope, arguments = torch.full((site.channels,), negative, dtype=torch.float64), {"negative_slope": negative}
    elif site.kind == "rrelu":
        low, high = float(argument(node, 1, 1 / 8)), float(argument(node, 2, 1 / 3))
        slope, arguments = (
            torch.full((site.channels,), (low + high) / 2, dtype=torch.float64),
            {"lower": low, "upper": high},
        )
        if argument(node, 3, False):
            return None  # random also in evaluation mode
    elif site.kind == "prelu":
        value = model.tensor(argument(node, 1))
        if value is None or (value.numel() > 1 and dim != (-1 if rank(source) == 2 else 1)):
            return None  # its slopes lie along dimension 1, the neurons along the last
        slope = float64(value).flatten().expand(site.channels).clone()
    elif site.kind == "hardtanh":
        arguments = {"min_val": site.lower, "max_val": site.upper}
    elif packet(node) is tanh_gelu:
        arguments = {"factor": float(node.args[1])}  # type: ignore[arg-type]
    elif site.kind == "gelu":
        arguments = {"approximate": str(argument(node, 1, node.kwargs.get("approximate", "none")))}
    elif site.kind in ("elu", "celu"):
        arguments = {"alpha": float(argument(node, 1, node.kwargs.get("alpha", 1.0)))}
        if any(a != 1 for a in node.args[2:]):
            return None  # a SELU written as an ELU with scales
    return Activation(site.name, site.kind, dim, site.lower, site.upper, slope, arguments, dtype), source


CONVERTERS: dict[Any, Callable[[fx.Node, Model], Reading | None]] = {
    **dict.fromkeys((aten.conv1d, aten.conv2d, aten.conv3d), _convolution),
    **dict.fromkeys((aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d), _transposed),
    aten.linear: _linear,
    **dict.fromkeys((aten.addmm, aten.mm, aten.matmul), _product),
    **dict.fromkeys(that(Does.BATCH_NORM), _norm_by_running_statistics),
    aten.instance_norm: _norm_by_running_statistics,
    **dict.fromkeys((aten.mul, aten.div, aten.add, aten.sub, aten.rsub, aten.neg), elementwise),
}
