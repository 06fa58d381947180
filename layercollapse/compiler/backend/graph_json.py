"""A graph of modules and aten operations as JSON, and back.

What a file may name is limited to the modules below and to aten operations that change nothing and open no file: one
from a stranger computes, at worst, a wrong number.
"""

from __future__ import annotations

import builtins
import keyword
import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from layercollapse.compiler.backend import containers
from layercollapse.compiler.backend.contract import Loss, Outputs
from layercollapse.compiler.backend.modules import (
    ChannelAffine,
    ConstantMap,
    FixedSizes,
    FixedValue,
    QuickGELU,
    TanhGELU,
    to_buffer,
)
from layercollapse.errors import LayerCollapseError
from layercollapse.graph.arguments import Arguments
from layercollapse.graph.rectifiers import quick_gelu, tanh_gelu

_CONVOLUTION = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")


# Module -> the attributes that its constructor takes.
_MODULES: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    **{kind.__name__: (kind, _CONVOLUTION) for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d)},
    **{
        kind.__name__: (
            kind,
            (*_CONVOLUTION, "output_padding"),
        )
        for kind in (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    },
    "Linear": (nn.Linear, ("in_features", "out_features")),
    "ChannelAffine": (ChannelAffine, ("channels", "channel_dim")),
    "ConstantMap": (ConstantMap, ("channels", "windows")),
    "FixedSizes": (FixedSizes, ("input", "sizes")),
    "FixedValue": (FixedValue, ("input",)),
    "Arguments": (Arguments, ("given", "without")),
    "Loss": (Loss, ("integer", "floating", "single")),
    "ReLU": (nn.ReLU, ()),
    "ReLU6": (nn.ReLU6, ()),
    "Hardtanh": (nn.Hardtanh, ("min_val", "max_val")),
    "LeakyReLU": (nn.LeakyReLU, ("negative_slope",)),
    "PReLU": (nn.PReLU, ("num_parameters",)),
    "RReLU": (nn.RReLU, ("lower", "upper")),
    "GELU": (nn.GELU, ("approximate",)),
    "QuickGELU": (QuickGELU, ()),
    "TanhGELU": (TanhGELU, ("factor",)),
    "SiLU": (nn.SiLU, ()),
    "Mish": (nn.Mish, ()),
    "Hardswish": (nn.Hardswish, ()),
    "ELU": (nn.ELU, ("alpha",)),
    "CELU": (nn.CELU, ("alpha",)),
    "SELU": (nn.SELU, ()),
}


# Module -> its optional tensors -> the argument that says whether each exists.
_OPTIONAL = {
    **{f"Conv{part}{dims}d": {"bias": "bias"} for part in ("", "Transpose") for dims in (1, 2, 3)},
    "Linear": {"bias": "bias"},
    "ChannelAffine": {"scale": "scaled", "shift": "shifted"},
    "ConstantMap": {"weight": "bordered"},
}


# What a graph computes with sizes.
_SIZES = {
    operator: "getitem add sub mul floordiv truediv mod pow neg pos abs eq ne lt le gt ge and_ or_ not_",
    math: "ceil floor trunc",
    torch: "sym_min sym_max sym_int sym_float sym_not sym_ite sym_sum",
    builtins: "round",
}


_OPERATORS: dict[str, Any] = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module, names in _SIZES.items()
    for name in names.split()
    if hasattr(module, name)
}
_OPERATORS |= {f"rectifiers.{f.__name__}": f for f in (quick_gelu, tanh_gelu)}
_FORBIDDEN = {"from_file", "_print", "_assert_async", "_assert_tensor_metadata", "set_data", "save", "load"}


_DTYPES = {str(v).removeprefix("torch."): v for v in vars(torch).values() if isinstance(v, torch.dtype)}


_ENUMS: dict[str, dict[str, Any]] = {
    "dtype": _DTYPES,
    "layout": {"strided": torch.strided},
    "memory_format": {
        "contiguous": torch.contiguous_format,
        "preserve": torch.preserve_format,
        "channels_last": torch.channels_last,
        "channels_last_3d": torch.channels_last_3d,
    },
}


def describe(model: fx.GraphModule) -> dict[str, Any]:
    """The graph of a model, its modules and its output containers; raises for what no file may name."""
    nodes, modules = [], {}
    for node in model.graph.nodes:
        target = node.target
        if node.op == "call_function":
            target = _function_name(target)
        elif node.op == "call_module":
            module = model.get_submodule(str(target))
            name = type(module).__name__
            if isinstance(module, Outputs):
                modules[str(target)] = {"type": name, "containers": containers.describe(module.spec, _encode)}
                nodes.append(_node(node, target))
                continue
            attributes = _MODULES[name][1]
            modules[str(target)] = {"type": name, **{a: getattr(module, a) for a in attributes}}
            for tensor, argument in _OPTIONAL.get(name, {}).items():
                modules[str(target)][argument] = getattr(module, tensor) is not None
        nodes.append(_node(node, target))
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {
        "nodes": nodes,
        "modules": modules,
        "parameters": list(parameters),
        "frozen": [name for name, parameter in parameters.items() if not parameter.requires_grad],
        "tied": tied_names(model),
        "complex": [name for name, value in model.state_dict().items() if value.is_complex()],
    }


def _node(node: fx.Node, target: Any) -> dict[str, Any]:
    arguments = {"args": _encode(node.args), "kwargs": _encode(dict(node.kwargs))}
    return {"name": node.name, "op": node.op, "target": str(target), **arguments}


def tied_names(model: nn.Module) -> dict[str, str]:
    """Name of a parameter that is stored under another name already -> that name."""
    first: dict[int, str] = {}
    tied = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if first.setdefault(id(parameter), name) != name:
            tied[name] = first[id(parameter)]
    return tied


def _function_name(target: Any) -> str:
    """The name of a function, if a file may name it."""
    names = [name for name, function in _OPERATORS.items() if function is target]
    name = names[0] if names else str(target)
    try:
        known = _function(name) is target
    except LayerCollapseError:
        known = False
    if not known:
        raise LayerCollapseError(f"model: expected operations that a file may name, got {name}, which cannot be loaded")
    return name


def _function(name: Any) -> Any:
    """The function of that name, if a file may name it."""
    if name in _OPERATORS:
        return _OPERATORS[name]
    parts = name.split(".") if isinstance(name, str) else []
    if len(parts) == 3 and parts[0] == "aten" and parts[1] not in _FORBIDDEN:
        packet = getattr(torch.ops.aten, parts[1], None)
        overload = getattr(packet, parts[2], None) if packet is not None else None
        if isinstance(overload, torch._ops.OpOverload) and not overload._schema.is_mutable:
            return overload
    raise LayerCollapseError(f"it calls {name!r}, which is no operation of a collapsed model")


def _encode(value: Any) -> Any:
    """Arguments as JSON; what JSON does not have becomes a dict with one key that says what it is."""
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, tuple):
        return {"tuple": [_encode(v) for v in value]}
    if isinstance(value, list):
        return [_encode(v) for v in value]
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value):
            return {"dict": {str(k): _encode(v) for k, v in value.items()}}
        return {"items": [[_encode(k), _encode(v)] for k, v in value.items()]}
    if isinstance(value, slice):
        return {"slice": [_encode(v) for v in (value.start, value.stop, value.step)]}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    for kind, members in _ENUMS.items():
        for name, member in members.items():
            if type(member) is type(value) and member == value:
                return {kind: name}
    raise LayerCollapseError(f"model: an argument of type {type(value).__name__} cannot be saved")


def _decode(value: Any, nodes: dict[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return [_decode(v, nodes) for v in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise LayerCollapseError(f"an argument has {len(value)} kinds")
    kind, inner = next(iter(value.items()))
    if kind == "node":
        return nodes[inner]
    if kind == "float":
        return float(inner)
    if kind == "tuple":
        return tuple(_decode(v, nodes) for v in inner)
    if kind == "dict":
        return {str(k): _decode(v, nodes) for k, v in inner.items()}
    if kind == "items":
        return {_decode_key(k): _decode(v, nodes) for k, v in inner}
    if kind == "slice":
        return slice(*(_decode(v, nodes) for v in inner))
    if kind == "device":
        return torch.device(inner)
    return _ENUMS[kind][inner]


def _decode_key(value: Any) -> Any:
    """A key of a dict: what is written of it into source text is a literal."""
    key = _decode(value, {})
    parts = [key]
    while parts:
        part = parts.pop()
        if isinstance(part, tuple):
            parts += part
        elif part is not None and type(part) not in (bool, int, float, str):
            raise LayerCollapseError(f"it has a dict with a key {part!r}")
    return key


def rebuild(described: dict[str, Any], tensors: dict[str, Tensor], classes: Sequence[type] = ()) -> fx.GraphModule:
    """The model that `describe` described, with its tensors by name; raises anything for a damaged description.

    `classes` are those that its outputs may be of, beside what `containers` permits.
    """
    tied: dict[str, str] = described["tied"]
    # Files written before complex parameters could be saved do not say that they have none.
    # Cloned: a file's tensors lie where they fit, and torch reads complex numbers from whole multiples of their size.
    complex_ = {name: torch.view_as_complex(tensors[name].clone()) for name in described.get("complex", ())}
    tensors = {**tensors, **complex_}
    tensors = {**tensors, **{name: tensors[other] for name, other in tied.items()}}
    parameters = set(described["parameters"])
    modules: dict[str, Any] = {}
    for target, record in described["modules"].items():
        _path(target)
        arguments = dict(record)
        name = arguments.pop("type")
        if name == "Outputs":
            modules[target] = Outputs(containers.rebuild(arguments["containers"], _decode_key, classes))
            continue
        if name not in _MODULES:
            raise LayerCollapseError(f"it has a module {name!r}, which is no part of a collapsed model")
        with torch.device("meta"):  # the tensors come from the file; a size that lies allocates nothing
            modules[target] = _MODULES[name][0](**arguments)
        for tensor in [tensor for tensor, _ in modules[target].named_parameters(recurse=False)]:
            if f"{target}.{tensor}" not in parameters:
                to_buffer(modules[target], tensor)
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for entry in described["nodes"]:
        name, op, target = entry["name"], entry["op"], entry["target"]
        if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name) or name in nodes:
            raise LayerCollapseError(f"it has a node {name!r}")
        args = _decode(entry["args"], nodes)
        kwargs = _decode(entry["kwargs"], nodes)
        if not isinstance(args, tuple) or not isinstance(kwargs, dict):
            raise LayerCollapseError(f"its node {name!r} has arguments that are no tuple and dict")
        # They become part of the source text of a function, as they are.
        if bad := [k for k in kwargs if not isinstance(k, str) or not k.isidentifier() or keyword.iskeyword(k)]:
            raise LayerCollapseError(f"its node {name!r} has an argument named {bad[0]!r}")
        if op == "placeholder":
            if not target.isidentifier() or keyword.iskeyword(target):
                raise LayerCollapseError(f"it has an input {target!r}")
        elif op == "get_attr":
            _path(target)
            value = tensors[target]
            is_parameter = target in parameters
            grad = value.is_floating_point() or value.is_complex()
            modules[target] = nn.Parameter(value, grad) if is_parameter else value
        elif op == "call_module":
            if target not in modules or not isinstance(modules[target], nn.Module):
                raise LayerCollapseError(f"it calls a module {target!r} that it does not have")
        elif op == "call_function":
            target = _function(target)
        elif op != "output":
            raise LayerCollapseError(f"it has a node of type {op!r}")
        nodes[name] = graph.create_node(op, target, args, kwargs, name)
    graph.lint()
    model = fx.GraphModule(modules, graph, class_name="Collapsed")
    model.load_state_dict(tensors, strict=True, assign=True)
    for name, other in tied.items():
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, model.get_parameter(other))
    for name in described["frozen"]:
        model.get_parameter(name).requires_grad_(False)
    return model.eval()


def _path(path: Any) -> None:
    """Raise unless a name is a dotted path of ordinary attribute names."""
    parts = path.split(".") if isinstance(path, str) else [""]
    for part in parts:
        if not part.replace("_", "a").isalnum() or part.startswith("__") or keyword.iskeyword(part):
            raise LayerCollapseError(f"it has a path {path!r}")
