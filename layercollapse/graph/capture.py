"""Capture a model as one uniform graph of aten operations, and find in it the rectifier sites, the layers that
feed each, and which layers the output cannot do without.

    capture = layercollapse.capture(model, example_inputs)
    capture.sites[0].name        # "layer1.0.relu"
    capture.sites[0].feeding     # ("layer1.0.conv1.weight",)

`torch.export` gives the same graph for module, functional, shared and in-place rectifiers; the module path of
every call survives in the nodes' metadata, which is where the names of the sites come from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from layercollapse._util.modes import evaluating
from layercollapse._util.sharded import flattened, plain_type
from layercollapse._util.tensors import check_values, undense
from layercollapse.errors import LayerCollapseError
from layercollapse.graph import calls, written
from layercollapse.graph.aten import (
    bends,
    computed,
    does,
    example_shape,
    example_size,
    module_path,
    rectifier_call,
    rectifier_of,
    row,
    weight_of,
)
from layercollapse.graph.channel_dims import Move
from layercollapse.graph.export import (
    call_arguments,
    describe,
    drop_idle,
    export_reading,
    functionalize,
    reason,
    scripted,
    unwarned,
)
from layercollapse.graph.feeding import feeding, reaching
from layercollapse.graph.memory import Memory, output_memory
from layercollapse.graph.meta import VALUE
from layercollapse.graph.operations import MOVES, RESIZES
from layercollapse.graph.watch import RectifierCall, numbered, unwrapped

aten = torch.ops.aten


@dataclass(frozen=True)
class Site:
    """One call of a rectifier in the forward pass.

    Attributes:
        name: ``module.path`` of the module whose forward makes the call, ``module.path#2`` for its second call;
            ``forward`` stands for the model itself.
        kind: the rectifier, for example ``"relu"`` (see `layercollapse.graph.rectifiers`).
        channels: number of neurons.
        channel_dim: dimension of the neurons in the site's tensor: 1 for (N, C, *spatial), -1 for (N, *, C), another
            where the model has moved them between its positions.
        lower: the bend at which a neuron changes piece; 0 but for a hardtanh.
        upper: the upper bend (6 for ReLU6), or None.
        feeding: names of the weights that decide what it reads; see `layercollapse.graph.feeding`.
        node: name of the call's node in the graph.
        unfed: what lies before it instead of weights, where there are none; else empty.
    """

    name: str
    kind: str
    channels: int
    channel_dim: int
    lower: float
    upper: float | None
    feeding: tuple[str, ...]
    node: str
    unfed: str = ""


@dataclass(frozen=True)
class Capture:
    """A model as a functional graph of aten operations.

    Attributes:
        graph: the graph; placeholders are the model's tensors (see `tensors`), then its inputs.
        tensors: name of a placeholder -> name of the parameter, buffer or constant in the model.
        constants: tensors that the graph needs and the model's state dict does not have, by name.
        inputs: names of the placeholders that are the model's inputs, in call order.
        out_spec: how the outputs are packed (a pytree spec).
        sites: the rectifier calls in execution order.
        weights: names of the weights of all affine layers, in execution order.
        output_weights: the weights with no rectifier behind them: the output layers.
        stateful: names of the buffers that a forward pass changes and that the outputs depend on.
        unread: names of the rectifier calls that the model makes and the outputs do not need, which the graph does not
            have; and of those that cannot be told from them. Counts of these say nothing about the graph.
        memory: whose memory each output is, for the example inputs.
        modules: path and class of every module of the model.
        arguments: what the model was called with, in words: shapes, dtypes and devices of tensors, the other values.
    """

    graph: fx.Graph
    tensors: Mapping[str, str]
    constants: Mapping[str, Tensor]
    inputs: tuple[str, ...]
    out_spec: Any
    sites: tuple[Site, ...]
    weights: tuple[str, ...]
    output_weights: tuple[str, ...]
    stateful: tuple[str, ...] = ()
    unread: frozenset[str] = frozenset()
    memory: tuple[Memory, ...] = ()
    modules: tuple[tuple[str, type], ...] = ()
    arguments: tuple[str, ...] = ()

    def misfit(self, model: nn.Module, example_inputs: Any) -> str | None:
        """Why this is no capture of a model with such inputs, in words; None if nothing says so.

        Weights may have other values. What the model's Python does now, and did then, is not compared: a stride that
        was changed since, say.
        """
        if (arguments := _arguments(*call_arguments(example_inputs))) != self.arguments:
            return f"one with {', '.join(self.arguments)} where example_inputs are {', '.join(arguments)}"
        if _modules(model) != self.modules:
            return "one of other modules"
        now: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
        now |= dict(model.named_buffers(remove_duplicate=False))
        for node in self.graph.nodes:
            name, then = self.tensors.get(node.name), VALUE.get(node)
            if name is None or name in self.constants or not isinstance(then, Tensor):
                continue
            if name not in now or _tensor(now[name]) != _tensor(then):
                got = _tensor(now[name]) if name in now else "missing"
                return f"one in which {name!r} is {_tensor(then)}, and now it is {got}"
        return None

    def call_of(self, site: Site) -> fx.Node:
        """The node of a site's call."""
        return next(node for node in self.graph.nodes if node.name == site.node)

    def site(self, name: str) -> Site:
        """The site of that name.

        Raises:
            LayerCollapseError: there is none; the message lists those there are.
        """
        for site in self.sites:
            if site.name == name:
                return site
        raise LayerCollapseError(
            f"site: {name!r} is not a rectifier site of the model; it has "
            f"{', '.join(site.name for site in self.sites) or 'none'}"
        )


def checked_capture(model: nn.Module, example_inputs: Any, captured: Capture | None) -> Capture:
    """The capture that there is, if it is still one of this model with these example inputs; without one, a new one.

    Raises:
        LayerCollapseError: it is of something else; or as for `capture`.
    """
    if captured is None:
        return capture(model, example_inputs)
    if why := captured.misfit(model, example_inputs):
        raise LayerCollapseError(f"captured: expected a capture of this model with these example inputs, got {why}")
    return captured


def capture(model: nn.Module, example_inputs: Any) -> Capture:
    """Capture a model in evaluation mode; the model is left as it was.

    Args:
        model: any module that `torch.export` can trace.
        example_inputs: what the model is called with: a tensor, a tuple of arguments, or a dict of keyword
            arguments. Only shapes and dtypes matter. The first dimension is the batch and stays dynamic.

    Raises:
        LayerCollapseError: the model does not run on the inputs, or cannot be exported; the message gives the
            line or the operation that stops it.
    """
    args, kwargs = call_arguments(example_inputs)
    model = unwrapped(model)
    if (path := flattened(model)) is not None:
        raise LayerCollapseError(
            f"model: expected weights as tensors of their own, whole or sharded by fully_shard (FSDP2), got those that "
            f"FullyShardedDataParallel has flattened at {path}"
        )
    check_values(model, args, kwargs)
    with evaluating(model), unwarned(), torch.no_grad():
        try:
            recorded, given, outputs = calls.run(model, args, kwargs)
        except Exception as error:
            raise LayerCollapseError(
                f"example_inputs: the model must run on them; {describe(args, kwargs)} came, and it stopped with "
                f"{reason(error)}"
            ) from error
        memory = output_memory(model, given, outputs)
        del given, outputs  # they may be large, and export takes long
        try:
            exported = export_reading(model, args, kwargs)
        except Exception as error:
            if (path := scripted(model)) is not None:
                raise LayerCollapseError(
                    f"model: expected modules in Python, got a scripted one at {path}; torch.export cannot capture it"
                ) from error
            if (what := undense(model)) is not None:
                raise LayerCollapseError(
                    f"model: expected dense tensors that torch.export can capture, got {what}"
                ) from error
            raise LayerCollapseError(
                f"model: torch.export must be able to capture {type(model).__name__}; it stopped at {reason(error)}"
            ) from error
        drop_idle(exported.graph)
        # A block under autocast is a graph within the graph, which decomposition writes out with its casts.
        # So does it a function under vmap, which is calls in other dimensions between two marks.
        nested = any(node.op == "get_attr" or _marks(node) for node in exported.graph.nodes)
        if nested or not functionalize(exported.graph):
            exported.graph_module.recompile()
            exported = exported.run_decompositions({})
    inner = next((n for n in exported.graph.nodes if n.op == "get_attr"), None)
    if inner is not None:
        user = next(iter(inner.users), inner)
        raise LayerCollapseError(
            f"model: expected a forward pass that is one graph, got a part of its own for {user.target} "
            "(control flow, or a block of enable_grad inside forward)"
        )
    signature = exported.graph_signature
    constants = dict(exported.constants)
    tensors: dict[str, str] = {}
    for spec in signature.input_specs:
        if spec.target is not None and isinstance(getattr(spec.arg, "name", None), str):
            tensors[spec.arg.name] = spec.target
    inputs = tuple(node.name for node in exported.graph.nodes if node.op == "placeholder" and node.name not in tensors)
    graph = exported.graph
    _drop_mutations(graph, len(signature.output_specs) - len(signature.user_outputs))
    written.rewrite(graph, _numbers(tensors, constants))
    graph.eliminate_dead_code()
    weights = tuple(dict.fromkeys(name for node in graph.nodes if (name := weight_of(node, tensors)) is not None))
    output = next(node for node in graph.nodes if node.op == "output")
    parameters = set(signature.parameters)
    sites, unread = _named(list(_sites(graph, tensors, parameters, model)), recorded or {})
    return Capture(
        graph=graph,
        tensors=tensors,
        constants={name: value for name, value in constants.items() if isinstance(value, Tensor)},
        inputs=inputs,
        out_spec=exported.call_spec.out_spec,
        sites=sites,
        weights=weights,
        output_weights=reaching(output, tensors, parameters, lambda x: [] if bends(x) else x.all_input_nodes),
        # `_drop_mutations` has left the buffers that only count, say, without a reader.
        stateful=tuple(
            tensors[node.name]
            for node in graph.nodes
            if node.users and tensors.get(node.name) in signature.buffers_to_mutate.values()
        ),
        unread=unread,
        memory=memory,
        modules=_modules(model),
        arguments=_arguments(args, kwargs),
    )


def _marks(node: fx.Node) -> bool:
    """Whether a node is one of the marks that `torch.export` puts around a transform of torch.func."""
    return getattr(node.target, "__module__", "") == "torch._functorch.predispatch"


def _modules(model: nn.Module) -> tuple[tuple[str, type], ...]:
    return tuple((path, plain_type(module)) for path, module in model.named_modules(remove_duplicate=False))


def _arguments(args: tuple, kwargs: dict[str, Any]) -> tuple[str, ...]:
    leaves = [*pytree.tree_flatten_with_path(args)[0], *pytree.tree_flatten_with_path(kwargs)[0]]
    said = (_tensor(x) if isinstance(x, Tensor) else f"{type(x).__name__} {x!r}" for _, x in leaves)
    return tuple(f"{pytree.keystr(path)}: {text}" for (path, _), text in zip(leaves, said, strict=True))


def _tensor(x: Tensor) -> str:
    return f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')} on {x.device}"


def _named(sites: list[Site], recorded: calls.Calls) -> tuple[tuple[Site, ...], frozenset[str]]:
    """The sites with the numbers that their calls have among all that the model makes; and see `Capture.unread`."""
    by_path: dict[str, list[Site]] = {path: [] for path in recorded}
    for site in sites:
        by_path.setdefault(site.name.partition("#")[0], []).append(site)
    names, unread = {}, set[str]()
    for path, own in by_path.items():
        if len(own) == len(recorded.get(path, own)):
            continue
        read = [RectifierCall(site.kind, site.channels, site.lower, site.upper) for site in own]
        positions, only = calls.places(recorded[path], read)
        names.update({site.node: numbered(path, place) for site, place in zip(own, positions, strict=True)})
        unread |= {numbered(path, place) for place in range(len(recorded[path])) if not only or place not in positions}
    return tuple(replace(site, name=names.get(site.node, site.name)) for site in sites), frozenset(unread)


def _drop_mutations(graph: fx.Graph, count: int) -> None:
    """Remove the leading outputs of a functionalized graph that stand for mutated buffers."""
    output = next(node for node in graph.nodes if node.op == "output")
    if count:
        output.args = (tuple(output.args[0][count:]),)
    graph.eliminate_dead_code()


def _numbers(tensors: Mapping[str, str], constants: Mapping[str, Any]) -> dict[str, Tensor]:
    """The placeholders of ``torch.tensor(0.0)`` in a forward pass, which torch.export names so, and their values."""
    lifted = {name: at for name, at in tensors.items() if at.rpartition(".")[2].startswith("lifted_tensor")}
    values = {name: constants.get(at) for name, at in lifted.items()}
    return {name: x for name, x in values.items() if isinstance(x, Tensor) and x.numel() == 1 and not x.is_complex()}


def channel_dims(graph: fx.Graph) -> dict[fx.Node, int]:
    """Channel dimension of every tensor, by the operation that last decided it."""
    dims: dict[fx.Node, int] = {}
    for node in graph.nodes:
        dim = row(node).dim
        if dim is None and node.op == "call_function":
            dim = _carried(node, dims) if does(node) in MOVES else _kept(node, dims)
        if dim is not None:
            dims[node] = dim
    return dims


def _carried(node: fx.Node, dims: Mapping[fx.Node, int]) -> int | None:
    """Channel dimension of what an operation makes that moves, joins or drops dimensions; of the first of its parts."""
    source, value = node.args[0], VALUE.get(node)
    after = example_shape(value[0] if isinstance(value, list | tuple) and value else value)
    before = example_shape(VALUE.get(source)) if isinstance(source, fx.Node) else None
    if before is None or after is None or source not in dims:
        return None
    args, kwargs = fx.map_arg((node.args[1:], dict(node.kwargs)), lambda n: example_size(VALUE.get(n)))
    return Move(node.target, args, kwargs, before, after).channel_dim(dims[source])  # type: ignore[arg-type,index]


def _kept(node: fx.Node, dims: Mapping[fx.Node, int]) -> int | None:
    # getitem takes the first of a native norm's results, which has the norm's shape.
    for source in node.all_input_nodes:
        before, after = example_shape(VALUE.get(source)), example_shape(VALUE.get(node))
        same = does(node) in RESIZES or before is None or before == after
        if source in dims and same:
            return dims[source]
    return None


def _sites(
    graph: fx.Graph, tensors: Mapping[str, str], parameters: Collection[str], model: nn.Module
) -> Iterator[Site]:
    dims, constant = channel_dims(graph), computed(graph, tensors)
    # A module with several names goes by its first one, however it was called.
    first: dict[int, str] = {}
    names = {path: first.setdefault(id(m), path) for path, m in model.named_modules(remove_duplicate=False)}
    count: Counter[str] = Counter()
    for node in graph.nodes:
        rectifier = rectifier_of(node)
        if rectifier is None:
            continue
        source = node.args[0]
        value = VALUE[source]
        path = names.get(module_path(node), module_path(node)) or "forward"
        count[path] += 1
        dim = dims.get(source, -1 if value.ndim == 3 else 1)
        if rectifier.kind == "prelu" and VALUE[node.args[1]].numel() > 1:
            dim = 1  # where its slopes lie
        call = rectifier_call(node, rectifier)
        assert call is not None
        kind, lower, upper = call
        weights, unfed = ((), "") if kind == "linear" else feeding(node, tensors, parameters, constant)
        yield Site(
            name=numbered(path, count[path] - 1),
            kind=kind,
            channels=int(value.shape[dim]) if value.ndim > 1 else 1,
            channel_dim=dim,
            lower=lower,
            upper=upper,
            feeding=weights,
            node=node.name,
            unfed=unfed,
        )
