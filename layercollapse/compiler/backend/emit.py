"""From records back to a plain `nn.Module` with ordinary parameters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from layercollapse.compiler.backend import modules as emitted
from layercollapse.compiler.backend.containers import is_plain
from layercollapse.compiler.backend.contract import Outputs
from layercollapse.compiler.backend.outputs import own_memory, pack
from layercollapse.compiler.frontend.elementwise import restore_numbers
from layercollapse.compiler.ir.graph import Net, shape, source
from layercollapse.compiler.ir.names import identifier
from layercollapse.compiler.ir.records import (
    Activation,
    Affine,
    ChannelAffine,
    ConstantMap,
    ConvGeometry,
    Op,
    Origin,
    transposed,
)
from layercollapse.compiler.ir.weights import raw_weight
from layercollapse.graph.meta import MAPS, SHAPE

aten = torch.ops.aten

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardtanh": nn.Hardtanh,
    "leaky_relu": nn.LeakyReLU,
    "rrelu": nn.RReLU,
    "gelu": nn.GELU,
    "quick_gelu": emitted.QuickGELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "hardswish": nn.Hardswish,
    "elu": nn.ELU,
    "celu": nn.CELU,
    "selu": nn.SELU,
}


def emit(net: Net, device: torch.device | None = None, shared: dict[str, Tensor] | None = None) -> fx.GraphModule:
    """Build the module; the net is used up.

    Every record is let go once it is built: the algebra's float64 weights and the modules are not all there at once.

    Args:
        net: what to build.
        device: of the parameters that the algebra made; the model's own keep theirs.
        shared: parameters of layers that did not change, by name, to be shared with other modules of the same model;
            what is missing is added.

    Returns:
        A module with readable, hierarchical names, in evaluation mode; ``print(module.code)`` shows its forward.
        Layers that shared their parameters (a module called twice, tied weights) and did not change share them again.
        A parameter that did not change is frozen if it was, and a buffer stays one, also where it is a layer's weight.
        What the algebra made is what the most trainable of the tensors was that it knows to have gone into it; it takes
        no gradient if the whole model took none.
    """
    shared = {} if shared is None else shared
    for node, layer in net.records(Affine):
        if layer.border_weight is not None:
            _split_border(net, node, layer)
    _require_sizes(net)
    restore_numbers(net)
    modules: dict[str, Any] = {}
    for node in net.graph.nodes:
        if node.op == "call_module":
            op = net.ops.pop(str(node.target))
            modules[str(node.target)] = _shared(_of_origin(build(op, device), op), op, shared, net)
            del op
    return _assemble(net, modules, shared)


def _split_border(net: Net, node: fx.Node, op: Affine) -> None:
    """A layer with a border weight becomes the layer without, plus a constant map."""
    assert op.border_weight is not None
    values = ConstantMap(op.border_weight, torch.zeros_like(op.bias), op.geometry, (), op.dtype, op.origin)
    net.set(node, replace(op, weight=raw_weight(op), border_weight=None, source=None))
    border = net.insert(f"{node.target}_border", values, source(node), after=node)
    SHAPE[border] = shape(node)
    with net.graph.inserting_after(border):
        total = net.graph.call_function(aten.add.Tensor, (node, border))
    SHAPE[total] = shape(node)
    net.reroute(node, total)


def _of_origin(module: nn.Module, op: Op) -> nn.Module:
    """The module with what the algebra made as what it was made of: parameters, frozen ones, or buffers."""
    origin = Origin.TRAINED if isinstance(op, Activation) else op.origin
    if origin is Origin.BUFFER:
        for name in [name for name, value in module.named_parameters(recurse=False)]:
            emitted.to_buffer(module, name)
    return module if origin is Origin.TRAINED else module.requires_grad_(False)


def _shared(module: nn.Module, op: Op, shared: dict[str, Tensor], net: Net) -> nn.Module:
    """The module of an unchanged layer, with the parameters of others that have the same source."""
    if isinstance(op, Affine) and op.source is not None:
        for attribute, name in zip(("weight", "bias"), op.source, strict=True):
            if name is None:
                continue
            if name in net.buffers and attribute in module._parameters:
                emitted.to_buffer(module, attribute)
            own = getattr(module, attribute)
            if isinstance(own, nn.Parameter):
                own.requires_grad_(op.origin is Origin.TRAINED and name not in net.frozen)
            setattr(module, attribute, shared.setdefault(identifier(name), own))
    return module


def _assemble(net: Net, modules: dict[str, Any], shared: dict[str, Tensor]) -> fx.GraphModule:
    records, frozen = set(modules), {identifier(name) for name in net.frozen}
    own: dict[str, Tensor] = {}
    for node in list(net.graph.nodes):
        if node.op == "get_attr":
            name = str(node.target)
            value: Any = own.get(name, shared.get(name))
            if value is None:
                value = net.tensors[name].detach().clone()
                if name in net.parameters:
                    grad = (value.is_floating_point() or value.is_complex()) and name not in frozen
                    value = nn.Parameter(value, requires_grad=grad)
                    shared[name] = value
            own[name] = value
            # The weight of a layer that has changed may also be used as it was, by an embedding that is tied to it; and
            # what a layer is called may be the name of a tensor.
            parent, _, attribute = name.rpartition(".")
            target = name
            while modules.get(target, value) is not value or (
                parent in records and getattr(modules[parent], attribute, value) is not value
            ):
                attribute += "_"
                target = f"{parent}.{attribute}" if parent else attribute
            node.target = target
            modules[target] = value
    if net.memory is not None:
        own_memory(net.graph, modules, net.memory)
    output = next(node for node in net.graph.nodes if node.op == "output")
    leaves = list(output.args[0])
    if is_plain(net.out_spec):
        output.args = (pack(net.out_spec, leaves),)
    else:
        name = "outputs"
        while any(target == name or target.startswith(f"{name}.") for target in modules):
            name += "_"
        modules[name] = Outputs(net.out_spec)
        with net.graph.inserting_before(output):
            output.args = (net.graph.call_module(name, (leaves,)),)
    # GraphModule registers plain tensors as buffers and keeps modules and parameters as they are.
    model = fx.GraphModule(modules, net.graph, class_name="Collapsed").eval()
    return model if net.trains else model.requires_grad_(False)


def _require_sizes(net: Net) -> None:
    """A flatten in front of weights for maps of one size takes no others: expanding to it is a view, or an error."""
    for node in list(net.graph.nodes):
        size = MAPS.get(node)
        if size is None:
            continue
        read = node.args[0]
        with net.graph.inserting_before(node):
            node.replace_input_with(read, net.graph.call_function(aten.expand.default, (read, [-1, -1, *size])))


def build(op: Op, device: torch.device | None) -> nn.Module:
    """The module of one record; a border weight, which `emit` splits off before, is not part of it."""
    if isinstance(op, Affine):
        return _affine(op, device)
    if isinstance(op, ChannelAffine):
        channels = len(op.scale) if op.uniform is None else 1
        scale = None if op.shifts_only else op.scale[:channels]
        shift = None if op.scales_only else op.shift[:channels]
        module: nn.Module = emitted.ChannelAffine(channels, op.channel_dim, scale is not None, shift is not None)
        return _filled(module, op.dtype, device, scale=scale, shift=shift)
    if isinstance(op, ConstantMap):
        windows = [_plain(geometry) for geometry in (*op.before, op.geometry) if geometry.kernel]
        module = emitted.ConstantMap(len(op.bias), windows, bordered=op.border_weight is not None)
        weight = None if op.border_weight is None else op.border_weight.unsqueeze(1)
        return _filled(module, op.dtype, device, weight=weight, bias=op.bias)
    assert isinstance(op, Activation)
    if op.kind == "prelu":
        assert op.slope is not None
        same = bool((op.slope == op.slope[0]).all())
        module = nn.PReLU(1 if same else len(op.slope))
        return _filled(module, op.dtype, device, weight=op.slope[:1] if same else op.slope)
    return (emitted.TanhGELU if "factor" in op.arguments else _ACTIVATIONS[op.kind])(**op.arguments)


def _affine(op: Affine, device: torch.device | None) -> nn.Module:
    # A zero that was a parameter of the model's stays one; one that the passes made is none.
    own = bool(op.bias.any()) if op.source is None else op.source[1] is not None
    bias = op.bias if own else None
    if not op.geometry.kernel:
        module: nn.Module = nn.Linear(op.inputs, op.outputs, bias=bias is not None, device="meta")
    else:
        more = op.geometry.output_padding
        kinds: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
        if more is not None:
            kinds = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
        module = kinds[len(op.geometry.kernel) - 1](
            op.inputs,
            op.outputs,
            op.geometry.kernel,
            stride=op.geometry.stride,
            padding=op.geometry.padding,
            dilation=op.geometry.dilation,
            groups=op.groups,
            bias=bias is not None,
            device="meta",
            **({} if more is None else {"output_padding": more}),
        )
    weight = transposed(op.weight, op.groups) if op.geometry.transposed else op.weight
    return _filled(module, op.dtype, device, weight=weight, bias=bias)


def _filled(module: nn.Module, dtype: torch.dtype, device: torch.device | None, **values: Tensor | None) -> nn.Module:
    for name, value in values.items():
        if value is not None:
            setattr(module, name, nn.Parameter(value.to(device=device, dtype=dtype, copy=True).contiguous()))
    return module


def _plain(geometry: ConvGeometry) -> list[list[int]]:
    parts = [geometry.kernel, geometry.stride, geometry.padding, geometry.dilation]
    return [list(part) for part in (parts if geometry.output_padding is None else [*parts, geometry.output_padding])]
