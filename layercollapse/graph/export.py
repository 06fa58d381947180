"""Call a model as its users do, and export it: arguments, evaluation mode, open sizes, a graph without mutation."""

from __future__ import annotations

import inspect
import io
import logging
import os
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from layercollapse._util.sharded import hollow, plain
from layercollapse.errors import LayerCollapseError
from layercollapse.graph.arguments import needed_and_refused
from layercollapse.graph.aten import ANY_SIZE, does, functional, mutates, packet, shares_memory
from layercollapse.graph.constants import ReadBuffers
from layercollapse.graph.operations import Does
from layercollapse.graph.watch import unwrapped

aten = torch.ops.aten
_PACKAGE = str(Path(__file__).parent.parent) + os.sep

_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


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


def arguments_in(batch: Mapping[str, Any], model: nn.Module, example_inputs: Any = None) -> dict[str, Any]:
    """What of a batch the model is called with: the one rule for all dicts of a data loader.

    With example inputs these are the arguments that they give. Without, they are what the signature of the model's
    ``forward`` has, or everything where it has ``**kwargs``; of these, ``labels`` only if the model must have them:
    an argument of that name that may be missing turns outputs into a loss, in the models of transformers.

    Args:
        batch: values by name.
        model: what is called.
        example_inputs: what it is called with elsewhere, see `call_arguments`; None if that is not known.
    """
    model = unwrapped(model)
    parameters = inspect.signature(model.forward).parameters
    if example_inputs is not None:
        args, kwargs = call_arguments(example_inputs)
        given = {*list(parameters)[: len(args)], *kwargs}
        return {key: value for key, value in batch.items() if key in given}
    needed, refused = needed_and_refused(model)
    kinds = {name: parameter.kind for name, parameter in parameters.items()}
    every = inspect.Parameter.VAR_KEYWORD in kinds.values()
    named = {name for name, kind in kinds.items() if kind in _BY_NAME} - refused
    must = {name for name in named if parameters[name].default is inspect.Parameter.empty} | needed
    if "labels" in batch and "labels" not in must:
        batch = {key: value for key, value in batch.items() if key != "labels"}
    return {key: value for key, value in batch.items() if every or key in named}


def copied(values: Any) -> Any:
    """Nested values with copies of the tensors, for a model that may work in place on what it is given."""
    return pytree.tree_map_only(Tensor, torch.clone, values)


def describe(*values: Any) -> str:
    """The shapes and dtypes of all tensors in nested values, for a message."""
    tensors = [value for value in pytree.tree_leaves(values) if isinstance(value, Tensor)]
    return ", ".join(f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in tensors) or "no tensor"


@contextmanager
def unwarned() -> Iterator[None]:
    """The block without what torch.export says that asks nothing of whoever collapses a model."""
    # They print the traceback of every shape that does not fit, which `export` tries, or the graph so far where it
    # depends on data; the error says it in a line. The exporter of ONNX tells that there is no torchvision.
    logs = [
        logging.getLogger(f"torch.{name}") for name in ("_subclasses.fake_tensor", "fx.experimental", "export", "onnx")
    ]
    logs.append(logging.getLogger("torch.fx.experimental.symbolic_shapes"))
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        # torch.nn.utils.prune and weight_norm assign a weight in every forward pass, and the next one does so again.
        warnings.filterwarnings("ignore", r"The tensor attributes? .* assigned during export", UserWarning)
        # Of torch about itself, where it copies an exported program.
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        try:
            yield
        finally:
            for log, level in zip(logs, levels, strict=True):
                log.setLevel(level)


def export(
    model: nn.Module, args: tuple, kwargs: dict[str, Any], sizes: bool | None = None
) -> torch.export.ExportedProgram:
    """Export with every size dynamic that the model leaves open, else the batch alone, else with the shapes given.

    Args:
        model: in evaluation mode.
        args: what it is called with.
        kwargs: the same by name.
        sizes: whether to try sizes other than the batch; None decides by the model:

            images keep their height and width, unless the model is a graph of operations that take any, or pools to a
            size that the example's would be taken for: what torch.export infers of sizes took 50 s for two blocks of a
            Swin, which pads them to whole windows, and 1.2 s without.
    """
    leaves = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if leaves and leaves[0].ndim > 0:
        batch, auto = leaves[0].shape[0], torch.export.Dim.AUTO

        def batched(leaf: Any) -> bool:
            return isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == batch

        def every(leaf: Any) -> dict[int, Any] | None:
            if not isinstance(leaf, Tensor):
                return None
            # A size of 1 is fixed, and torch.export would say so on the console.
            return {dim: auto for dim, size in enumerate(leaf.shape) if size > 1 or (dim == 0 and batched(leaf))}

        def first(leaf: Any) -> dict[int, Any] | None:
            return {0: auto} if batched(leaf) else None

        # torch.export treats a dimension of size 1 as constant: a batch of one is shown as a batch of two.
        two = pytree.tree_map(lambda x: torch.cat([x, x]) if batch == 1 and batched(x) else x, (args, kwargs))
        images = any(leaf.is_floating_point() and leaf.ndim > 3 for leaf in leaves)
        if sizes is None:
            sizes = not images or _takes_any_size(model) or _keeps_sizes(model, args, kwargs)
        for dynamic in (every, first) if sizes else (first,):
            shapes = _by_name(model, *pytree.tree_map(dynamic, (args, kwargs)))
            try:
                return _traced(model, two[0], two[1], shapes)
            except Exception:
                pass  # sizes that the model fixes; the last line says what is wrong if it is something else
    return _traced(model, args, kwargs, None)


def _traced(model: nn.Module, args: tuple, kwargs: dict[str, Any], shapes: Any) -> torch.export.ExportedProgram:
    """What torch.export makes of a model, without the graph so far that it prints where it stops."""
    if isinstance(model, fx.GraphModule) and kwargs:
        names = list(inspect.signature(model.forward).parameters)[len(args) :]
        if names[: len(kwargs)] != list(kwargs):
            # It runs the nodes of a GraphModule with the values of keyword arguments by position.
            module: Any = object.__new__(type(type(model).__name__, (nn.Module,), {"forward": type(model).forward}))
            vars(module).update(vars(model))
            model = module
    # Nothing is computed: of sharded parameters, the shapes are enough.
    with plain(model, hollow), redirect_stderr(io.StringIO()):
        return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)


def export_reading(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> torch.export.ExportedProgram:
    """Export, also where the model's Python reads values from buffers that never change, which are numbers then."""
    try:
        exported = export(model, args, kwargs)
    except Exception:
        if (again := _reading(model, args, kwargs)) is None:
            raise
        return again
    reads = any(packet(node) in (aten.item, aten._local_scalar_dense) for node in exported.graph.nodes)
    return (_reading(model, args, kwargs) if reads else None) or exported


def _reading(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> torch.export.ExportedProgram | None:
    with ReadBuffers(model) as buffers:
        try:
            exported = export(model, args, kwargs)
        except Exception:
            return None
    # What forward reads and changes is another number at the next call.
    return exported if buffers.read and not exported.graph_signature.buffers_to_mutate else None


def _takes_any_size(model: nn.Module) -> bool:
    """Whether a model is a graph in which no call depends on the size of the maps."""
    return isinstance(model, fx.GraphModule) and all(
        packet(node) in ANY_SIZE for node in model.graph.nodes if node.op == "call_function"
    )


def _keeps_sizes(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether a model calls an adaptive pooling that keeps a size, which it is given as None."""

    class Watch(TorchFunctionMode):
        keeps = False

        def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
            kwargs = kwargs or {}
            if "adaptive" in getattr(func, "__name__", ""):
                size = args[1] if len(args) > 1 else kwargs.get("output_size", ())
                self.keeps = self.keeps or size is None or (isinstance(size, list | tuple) and None in size)
            return func(*args, **kwargs)

    with Watch() as watch, torch.no_grad():
        model(*copied(args), **copied(kwargs))
    return watch.keeps


def _by_name(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Dynamic shapes in the form that torch.export wants: positional ones as a tuple, else by argument name."""
    parameters = inspect.signature(model.forward).parameters.values()
    if not kwargs and all(p.kind is not inspect.Parameter.VAR_POSITIONAL for p in parameters):
        return args
    if not args:
        return kwargs
    return dict(inspect.signature(model.forward).bind(*args, **kwargs).arguments)


def scripted(model: nn.Module) -> str | None:
    """Path of the first scripted or traced module, ``the root`` for the model itself, or None."""
    paths = (path for path, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule))
    path = next(paths, None)
    return path if path is None else path or "the root"


def reason(error: BaseException) -> str:
    """The user's line that an error came from, and the first line of its message."""
    torch_folder = os.path.dirname(torch.__file__)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(torch_folder)]
    frame = frames[-1] if frames else None
    message = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if frame is None or frame.filename.startswith(_PACKAGE):
        return f"{type(error).__name__}: {message}"
    return f"`{frame.line}` ({os.path.basename(frame.filename)}:{frame.lineno}): {type(error).__name__}: {message}"


def functionalize(graph: fx.Graph) -> bool:
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
    while shares_memory(root) and isinstance(root.args[0], fx.Node):
        root = root.args[0]
    family, stack = {root}, [root]
    while stack:
        for user in stack.pop().users:
            if shares_memory(user) and user not in family:
                family.add(user)
                stack.append(user)
    return root, family


def drop_idle(graph: fx.Graph) -> None:
    """Remove calls that do nothing: checks of a dtype, which torch.export adds to casts, and dropouts, which return
    their argument itself, as `run_decompositions` forgets.
    """
    for node in list(graph.nodes):
        if packet(node) is aten._assert_tensor_metadata and not node.users:
            graph.erase_node(node)
        elif does(node) is Does.DROPOUT and len(node.args) > 2 and not node.args[2]:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
