"""From a captured graph to the records of `ir`.

Convolutions, linear layers, batch norms and rectifiers become records in float64; everything else keeps its aten
operation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from layercollapse.collapse.ir import Affine, Net, Op, Rectify, Scale, Window
from layercollapse.graph import Capture, Site
from layercollapse.nodes import module_path, packet

aten = torch.ops.aten

_CONVOLUTIONS = {aten.conv1d: 1, aten.conv2d: 2, aten.conv3d: 3}
# Nothing happens here in evaluation mode, to values or shapes.
_NOTHING = {aten.dropout, aten.feature_dropout, aten.clone, aten.detach, aten.alias, aten.contiguous}


def lower(capture: Capture, model: nn.Module) -> Net:
    """Rewrite a captured graph into records, with the model's present values.

    Args:
        capture: of the model.
        model: where the tensors are read; it is not changed.

    Returns:
        A net that computes what the model computes in evaluation mode.
    """
    state = {**dict(model.named_buffers()), **dict(model.named_parameters(remove_duplicate=False)), **capture.constants}
    values = {name: state[target].detach() for name, target in capture.tensors.items()}
    net = Net(fx.Graph(), capture.out_spec)
    sites = {site.node: site for site in capture.sites}
    new: dict[fx.Node, fx.Node] = {}

    def attribute(node: fx.Node) -> fx.Node:
        name = _identifier(capture.tensors[node.name])
        if name not in net.tensors:
            net.tensors[name] = values[node.name]
            if isinstance(state[capture.tensors[node.name]], nn.Parameter):
                net.parameters.add(name)
        return net.graph.get_attr(name)

    attributes: dict[fx.Node, fx.Node] = {}

    def mapped(node: fx.Node) -> fx.Node:
        if node in new:
            return new[node]
        if node not in attributes:
            attributes[node] = attribute(node)
            attributes[node].meta["shape"] = _shape(node)
        return attributes[node]

    for node in capture.graph.nodes:
        if node.op == "placeholder":
            if node.name in values:
                continue
            new[node] = net.graph.placeholder(node.name)
        elif node.op == "output":
            net.graph.output(fx.map_arg(node.args[0], mapped))
            continue
        elif packet(node) in _NOTHING and not _trains(node):
            new[node] = mapped(node.args[0])
            continue
        else:
            op = _record(node, values, capture.tensors, sites)
            if op is None:
                new[node] = net.graph.call_function(
                    node.target, fx.map_arg(node.args, mapped), fx.map_arg(node.kwargs, mapped)
                )
            else:
                target = _free(net, _identifier(_path(node, op, model)))
                net.ops[target] = op
                new[node] = net.graph.call_module(target, (mapped(node.args[0]),))
        new[node].meta["shape"] = _shape(node)
    net.sweep()
    return net


def _record(
    node: fx.Node, values: Mapping[str, Tensor], names: Mapping[str, str], sites: Mapping[str, Site]
) -> Op | None:
    """The record of a node, or None for one that keeps its aten operation."""
    called = packet(node)
    if called in _CONVOLUTIONS:
        return _convolution(node, _CONVOLUTIONS[called], values, names)
    if called is aten.linear:
        return _affine(node, Window(), 1, values, names)
    if called is aten.batch_norm:
        return _batch_norm(node, values)
    if node.name in sites:
        return _rectify(node, sites[node.name], values)
    return None


def _convolution(node: fx.Node, dims: int, values: Mapping[str, Tensor], names: Mapping[str, str]) -> Affine | None:
    weight = _argument(node, 1)
    if not isinstance(weight, fx.Node) or weight.name not in values or _rank(node.args[0]) != dims + 2:
        return None
    kernel = tuple(values[weight.name].shape[2:])
    stride = _spread(_argument(node, 3, 1), dims)
    dilation = _spread(_argument(node, 5, 1), dims)
    padding = _argument(node, 4, 0)
    if padding == "valid":
        padding = 0
    elif padding == "same":
        total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        if any(t % 2 for t in total):
            return None  # padded on one side only
        padding = [t // 2 for t in total]
    window = Window(kernel, stride, _spread(padding, dims), dilation)
    return _affine(node, window, int(_argument(node, 6, 1)), values, names)


def _affine(
    node: fx.Node, window: Window, groups: int, values: Mapping[str, Tensor], names: Mapping[str, str]
) -> Affine | None:
    weight, bias = _argument(node, 1), _argument(node, 2)
    if not isinstance(weight, fx.Node) or weight.name not in values:
        return None
    if bias is not None and (not isinstance(bias, fx.Node) or bias.name not in values):
        return None
    w = values[weight.name]
    if not w.is_floating_point():
        return None
    b = _float64(values[bias.name]) if bias is not None else torch.zeros(len(w), dtype=torch.float64)
    source = (names[weight.name], names[bias.name] if bias is not None else None)
    return Affine(_float64(w), b, window, groups, w.dtype, source=source)


def _batch_norm(node: fx.Node, values: Mapping[str, Tensor]) -> Scale | None:
    """``γ (x − μ) / √(σ² + ε) + β``, from the running statistics."""
    arguments: Any = node.args[:8]
    _, gamma, beta, mean, variance, training, _, eps = arguments
    statistics = [values.get(x.name) if isinstance(x, fx.Node) else None for x in (mean, variance)]
    if training or statistics[0] is None or statistics[1] is None:
        return None
    mu, var = _float64(statistics[0]), _float64(statistics[1])
    scale = (var + float(eps)).rsqrt()
    if isinstance(gamma, fx.Node):
        scale = scale * _float64(values[gamma.name])
    shift = -mu * scale
    if isinstance(beta, fx.Node):
        shift = shift + _float64(values[beta.name])
    dim = -1 if _rank(node) == 2 else 1
    return Scale(scale, shift, dim, values[gamma.name].dtype if isinstance(gamma, fx.Node) else statistics[0].dtype)


def _rectify(node: fx.Node, site: Site, values: Mapping[str, Tensor]) -> Rectify | None:
    rank = _rank(node)
    dim = -1 if rank == 2 else site.channel_dim
    slope, dtype = None, torch.float32
    arguments: dict[str, Any] = {}
    if site.kind == "leaky_relu":
        negative = float(_argument(node, 1, 0.01))
        slope, arguments = torch.full((site.channels,), negative, dtype=torch.float64), {"negative_slope": negative}
    elif site.kind == "prelu":
        weight = node.args[1]
        if not isinstance(weight, fx.Node) or weight.name not in values:
            return None
        value = values[weight.name]
        if len(value) > 1 and dim != (-1 if rank == 2 else 1):
            return None  # its slopes lie along dimension 1, the neurons along the last
        slope, dtype = _float64(value).expand(site.channels).clone(), value.dtype
    elif site.kind == "hardtanh":
        arguments = {"min_val": site.lower, "max_val": site.upper}
    elif site.kind == "gelu":
        arguments = {"approximate": str(_argument(node, 1, node.kwargs.get("approximate", "none")))}
    elif site.kind in ("elu", "celu"):
        arguments = {"alpha": float(_argument(node, 1, node.kwargs.get("alpha", 1.0)))}
        if len(node.args) > 2 and any(a != 1 for a in node.args[2:]):
            return None  # a SELU written as an ELU with scales
    return Rectify(site.name, site.kind, dim, site.lower, site.upper, slope, arguments, dtype)


def _path(node: fx.Node, op: Op, model: nn.Module) -> str:
    """Where the emitted module stands: where its weight stood, or its rectifier module, or beside a functional call."""
    if isinstance(op, Affine) and op.source is not None:
        return op.source[0].rpartition(".")[0] or node.name
    path = module_path(node)
    if path and next(model.get_submodule(path).children(), None) is None:
        return path
    kind = op.kind if isinstance(op, Rectify) else node.name
    return f"{path}.{kind}" if path else kind


def _float64(value: Tensor) -> Tensor:
    """The algebra runs on the CPU: it is small, and not every accelerator has float64."""
    return value.cpu().double()


def _argument(node: fx.Node, position: int, default: Any = None) -> Any:
    return node.args[position] if len(node.args) > position else default


def _spread(value: Any, dims: int) -> tuple[int, ...]:
    values = [value] if isinstance(value, int) else list(value)
    return tuple(int(v) for v in (values * dims if len(values) == 1 else values))


def _trains(node: fx.Node) -> bool:
    return packet(node) in (aten.dropout, aten.feature_dropout) and bool(_argument(node, 2, False))


def _rank(node: Any) -> int:
    return node.meta["val"].ndim if isinstance(node, fx.Node) else 0


def _shape(node: fx.Node) -> tuple[int, ...] | None:
    """Shape for the example inputs: a dynamic size is its example value."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return None
    return tuple(int(s) if isinstance(s, int) else int(s.node.hint) for s in value.shape)


def _identifier(path: str) -> str:
    """A dotted path whose parts may be attributes of a module (`#` and the like become `_`)."""
    return re.sub(r"[^\w.]", "_", path)


def _free(net: Net, path: str) -> str:
    """The path, or the path with the smallest suffix that no record has yet: a module called twice is two records."""
    target, count = path, 1
    while target in net.ops:
        count += 1
        target = f"{path}_{count}"
    return target
