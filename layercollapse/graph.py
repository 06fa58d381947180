"""Capture a model as one uniform graph of aten operations, and find in it the rectifier sites, the layers that
feed each, and which layers the output cannot do without.

    capture = layercollapse.capture(model, example_inputs)
    capture.sites[0].name        # "layer1.0.relu"
    capture.sites[0].feeding     # ("layer1.0.conv1.weight",)

`torch.export` gives the same graph for module, functional, shared and in-place rectifiers; the module path of
every call survives in the nodes' metadata, which is where the names of the sites come from.
"""

from __future__ import annotations

import inspect
import operator
import os
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from layercollapse.errors import LayerCollapseError
from layercollapse.nodes import (
    AFFINE,
    ANY_SIZE,
    FIRST_DIM,
    LAST_DIM,
    RESIZING,
    SHAPE_ONLY,
    VIEWS,
    WEIGHTED,
    functional,
    module_path,
    mutates,
    packet,
    rectifier_call,
    rectifier_of,
    weight_of,
)
from layercollapse.watch import unwrapped

aten = torch.ops.aten


@dataclass(frozen=True)
class Site:
    """One call of a rectifier in the forward pass.

    Attributes:
        name: ``module.path`` of the module whose forward makes the call, ``module.path#2`` for its second call;
            ``forward`` stands for the model itself.
        kind: the rectifier, for example ``"relu"`` (see `layercollapse.rectifiers`).
        channels: number of neurons.
        channel_dim: dimension of the neurons in the site's tensor: 1 for (N, C, *spatial), -1 for (N, *, C).
        lower: the bend at which a neuron changes piece; 0 but for a hardtanh.
        upper: the upper bend (6 for ReLU6), or None.
        feeding: names of the weights that reach the site through affine operations alone.
        node: name of the call's node in the graph.
    """

    name: str
    kind: str
    channels: int
    channel_dim: int
    lower: float
    upper: float | None
    feeding: tuple[str, ...]
    node: str


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
    """

    graph: fx.Graph
    tensors: Mapping[str, str]
    constants: Mapping[str, Tensor]
    inputs: tuple[str, ...]
    out_spec: Any
    sites: tuple[Site, ...]
    weights: tuple[str, ...]
    output_weights: tuple[str, ...]

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

    def depends(self, dead: Collection[str]) -> bool:
        """Whether the output still depends on the input when every weight named in `dead` is zero."""
        dead = set(dead)
        alive = set(self.inputs)
        for node in self.graph.nodes:
            if node.op == "call_function" and packet(node) not in SHAPE_ONLY:
                weight = weight_of(node, self.tensors)
                if weight is None:
                    carriers: Iterable[fx.Node] = node.all_input_nodes
                else:
                    carriers = () if weight in dead else (node.args[WEIGHTED[packet(node)][0]],)
                if any(carrier.name in alive for carrier in carriers):
                    alive.add(node.name)
            elif node.op == "output":
                return any(value.name in alive for value in node.all_input_nodes)
        raise AssertionError("a graph ends with its output")


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
    with evaluating(model), torch.no_grad():
        try:
            model(*copied(args), **copied(kwargs))
        except Exception as error:
            raise LayerCollapseError(
                f"example_inputs: the model must run on them; {describe(args, kwargs)} came, and it stopped with "
                f"{_reason(error)}"
            ) from error
        try:
            exported = export(model, args, kwargs)
        except Exception as error:
            raise LayerCollapseError(
                f"model: torch.export must be able to capture {type(model).__name__}; it stopped at {_reason(error)}"
            ) from error
        _drop_idle(exported.graph)
        # A block under autocast is a graph within the graph, which decomposition writes out with its casts.
        if any(node.op == "get_attr" for node in exported.graph.nodes) or not _functionalize(exported.graph):
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
    weights = tuple(dict.fromkeys(name for node in graph.nodes if (name := weight_of(node, tensors)) is not None))
    output = next(node for node in graph.nodes if node.op == "output")
    return Capture(
        graph=graph,
        tensors=tensors,
        constants={name: value for name, value in constants.items() if isinstance(value, Tensor)},
        inputs=inputs,
        out_spec=exported.call_spec.out_spec,
        sites=tuple(_sites(graph, tensors, model)),
        weights=weights,
        output_weights=tuple(_reaching(output, tensors, through=lambda node: rectifier_of(node) is None)),
    )


def call_arguments(example_inputs: Any) -> tuple[tuple, dict[str, Any]]:
    """Positional and keyword arguments from a tensor, a tuple or list of arguments, or a dict of keywords."""
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, tuple | list):
        return tuple(example_inputs), {}
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    raise LayerCollapseError(
        "example_inputs: expected a tensor, a tuple of arguments or a dict of keyword arguments, got "
        f"{type(example_inputs).__name__}"
    )


def copied(values: Any) -> Any:
    """Nested values with copies of the tensors, for a model that may work in place on what it is given."""
    return pytree.tree_map_only(Tensor, torch.clone, values)


def describe(*values: Any) -> str:
    """The shapes and dtypes of all tensors in nested values, for a message."""
    tensors = [value for value in pytree.tree_leaves(values) if isinstance(value, Tensor)]
    return ", ".join(f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in tensors) or "no tensor"


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for the block; modes and buffers are afterwards what they were, also after an error."""
    modes = {module: module.training for module in model.modules()}
    buffers = {module: dict(module._buffers) for module in modes if module._buffers}
    # A forward pass may count its calls, or fill a cache.
    values = [(b, b.clone()) for b in dict.fromkeys(model.buffers())]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        for module, tensors in buffers.items():
            module._buffers.update(tensors)
        with torch.no_grad():
            for buffer, value in values:
                if not _identical(buffer, value):
                    buffer.copy_(value)


def _identical(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same values, NaN for NaN."""
    return bool(torch.where(a.isnan() & b.isnan(), True, a.eq(b)).all())


def export(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> torch.export.ExportedProgram:
    """Export with every size dynamic that the model leaves open, else the batch alone, else with the shapes given.

    Images keep their height and width, unless the model is a graph of operations that take any: what torch.export
    infers of them took 50 s for two blocks of a Swin, which pads them to whole windows, and 1.2 s without.
    """
    leaves = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if leaves and leaves[0].ndim > 0:
        batch, auto = leaves[0].shape[0], torch.export.Dim.AUTO

        def batched(leaf: Any) -> bool:
            return isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == batch

        def every(leaf: Any) -> dict[int, Any] | None:
            return dict.fromkeys(range(leaf.ndim), auto) if isinstance(leaf, Tensor) else None

        def first(leaf: Any) -> dict[int, Any] | None:
            return {0: auto} if batched(leaf) else None

        # torch.export treats a dimension of size 1 as constant: a batch of one is shown as a batch of two.
        two = pytree.tree_map(lambda x: torch.cat([x, x]) if batch == 1 and batched(x) else x, (args, kwargs))
        images = any(leaf.is_floating_point() and leaf.ndim > 3 for leaf in leaves)
        for dynamic in (first,) if images and not _takes_any_size(model) else (every, first):
            shapes = _by_name(model, *pytree.tree_map(dynamic, (args, kwargs)))
            try:
                return torch.export.export(model, two[0], two[1], dynamic_shapes=shapes, strict=False)
            except Exception:
                pass  # sizes that the model fixes; the last line says what is wrong if it is something else
    return torch.export.export(model, args, kwargs, strict=False)


def _takes_any_size(model: nn.Module) -> bool:
    """Whether a model is a graph in which no call depends on the size of the maps."""
    return isinstance(model, fx.GraphModule) and all(
        packet(node) in ANY_SIZE for node in model.graph.nodes if node.op == "call_function"
    )


def _by_name(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Dynamic shapes in the form that torch.export wants: positional ones as a tuple, else by argument name."""
    parameters = inspect.signature(model.forward).parameters.values()
    if not kwargs and all(p.kind is not inspect.Parameter.VAR_POSITIONAL for p in parameters):
        return args
    if not args:
        return kwargs
    return dict(inspect.signature(model.forward).bind(*args, **kwargs).arguments)


def _reason(error: BaseException) -> str:
    """The user's line that an error came from, and the first line of its message."""
    torch_folder = os.path.dirname(torch.__file__)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(torch_folder)]
    frame = frames[-1] if frames else None
    message = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if frame is None or os.path.dirname(frame.filename) == os.path.dirname(__file__):
        return f"{type(error).__name__}: {message}"
    return f"`{frame.line}` ({os.path.basename(frame.filename)}:{frame.lineno}): {type(error).__name__}: {message}"


def _functionalize(graph: fx.Graph) -> bool:
    """Replace in-place operations by their functional twins; False if something else sees the change.

    `run_decompositions` does this for every graph, but breaks flatten and batch norm into smaller pieces; it is
    the fallback.
    """
    order = {node: index for index, node in enumerate(graph.nodes)}
    mutating = [n for n in graph.nodes if n.op == "call_function" and mutates(n)]
    for node in mutating:
        base = node.args[0]
        if not isinstance(base, fx.Node) or functional(node) is None:
            return False
        root, family = _family(base)
        if root.op == "placeholder":
            return False
        if any(order[user] > order[node] for alias in family - {base} for user in alias.users):
            return False
    for node in mutating:
        base = node.args[0]
        node.target = functional(node)
        later = [user for user in base.users if order[user] > order[node]]
        for user in later:
            user.replace_input_with(base, node)
    return True


def _family(node: fx.Node) -> tuple[fx.Node, set[fx.Node]]:
    """The tensor whose memory a node's tensor is, and all nodes that are views of it, that one included."""
    root = node
    while _shares_memory(root) and isinstance(root.args[0], fx.Node):
        root = root.args[0]
    family, stack = {root}, [root]
    while stack:
        for user in stack.pop().users:
            if _shares_memory(user) and user not in family:
                family.add(user)
                stack.append(user)
    return root, family


def _shares_memory(node: fx.Node) -> bool:
    """Whether a node's tensor may be a view of its first argument, or an item of a list of such views."""
    if packet(node) in VIEWS or node.target is operator.getitem:
        return True
    schema = getattr(node.target, "_schema", None)
    return schema is not None and not schema.is_mutable and any(a.alias_info is not None for a in schema.arguments)


def _drop_idle(graph: fx.Graph) -> None:
    """Remove calls that do nothing: checks of a dtype, which torch.export adds to casts, and dropouts, which return
    their argument itself, as `run_decompositions` forgets.
    """
    for node in list(graph.nodes):
        if packet(node) is aten._assert_tensor_metadata and not node.users:
            graph.erase_node(node)
        elif packet(node) in (aten.dropout, aten.feature_dropout) and len(node.args) > 2 and not node.args[2]:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _drop_mutations(graph: fx.Graph, count: int) -> None:
    """Remove the leading outputs of a functionalized graph that stand for mutated buffers."""
    output = next(node for node in graph.nodes if node.op == "output")
    if count:
        output.args = (tuple(output.args[0][count:]),)
    graph.eliminate_dead_code()


def _shape(node: Any) -> tuple[str, ...] | None:
    """A tensor node's shape as text: symbolic sizes compare equal by name, without adding guards."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return tuple(str(size) for size in value.shape) if isinstance(value, Tensor) else None


def channel_dims(graph: fx.Graph) -> dict[fx.Node, int]:
    """Channel dimension of every tensor, by the operation that last decided it."""
    dims: dict[fx.Node, int] = {}
    for node in graph.nodes:
        called = packet(node)
        if called in WEIGHTED:
            dims[node] = WEIGHTED[called][2]
        elif called in LAST_DIM:
            dims[node] = -1
        elif called in FIRST_DIM:
            dims[node] = 1
        elif node.op == "call_function":
            # getitem takes the first of a native norm's results, which has the norm's shape.
            for source in node.all_input_nodes:
                same = called in RESIZING or _shape(source) is None or _shape(source) == _shape(node)
                if source in dims and same:
                    dims[node] = dims[source]
                    break
    return dims


def _sites(graph: fx.Graph, tensors: Mapping[str, str], model: nn.Module) -> Iterator[Site]:
    dims = channel_dims(graph)
    # A module with several names goes by its first one, however it was called.
    first: dict[int, str] = {}
    names = {path: first.setdefault(id(m), path) for path, m in model.named_modules(remove_duplicate=False)}
    calls: Counter[str] = Counter()
    for node in graph.nodes:
        rectifier = rectifier_of(node)
        if rectifier is None:
            continue
        source = node.args[0]
        value = source.meta["val"]
        path = names.get(module_path(node), module_path(node)) or "forward"
        calls[path] += 1
        dim = dims.get(source, -1 if value.ndim == 3 else 1)
        if rectifier.kind == "prelu" and node.args[1].meta["val"].numel() > 1:
            dim = 1  # where its slopes lie
        call = rectifier_call(node, rectifier)
        assert call is not None
        kind, lower, upper = call
        yield Site(
            name=path if calls[path] == 1 else f"{path}#{calls[path]}",
            kind=kind,
            channels=int(value.shape[dim]) if value.ndim > 1 else 1,
            channel_dim=dim,
            lower=lower,
            upper=upper,
            feeding=tuple(_reaching(node, tensors, through=lambda n: packet(n) in AFFINE)),
            node=node.name,
        )


def _reaching(node: fx.Node, tensors: Mapping[str, str], through: Callable[[fx.Node], bool]) -> list[str]:
    """Names of the weights met first when walking up from a node's inputs through the nodes that `through` lets."""
    found: dict[str, None] = {}
    seen: set[fx.Node] = set()
    stack = list(reversed(node.all_input_nodes))
    while stack:
        source = stack.pop()
        if source in seen or source.op != "call_function":
            continue
        seen.add(source)
        weight = weight_of(source, tensors)
        if weight is not None:
            found[weight] = None
        elif through(source) or source.target is operator.getitem:
            stack.extend(reversed(source.all_input_nodes))
    return list(found)
