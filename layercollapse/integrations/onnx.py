"""ONNX in: a file as a module that can be measured, pruned and collapsed; out: `CollapseResult.save(..., onnx=True)`.

from layercollapse.integrations import onnx

model = onnx.load("model.onnx")
result = lc.collapse(model, onnx.example_inputs("model.onnx"))
result.save("small", onnx=True)
"""

from __future__ import annotations

import importlib
import importlib.machinery
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from layercollapse.compiler.driver import api as driver
from layercollapse.compiler.driver.result import CollapseResult
from layercollapse.errors import LayerCollapseError, require
from layercollapse.pipeline.batches import measure_entropy

# Sets of operations that onnx2torch 1.5 reads at least in part.
_OPSETS = (18, 17, 16, 15, 14, 13)


def load(path: str | os.PathLike[str], sizes: Mapping[str, int] | None = None) -> nn.Module:
    """A model from an ONNX file, in evaluation mode, with its weights as parameters; needs ``layercollapse[onnx]``.

    Args:
        path: of the file, or an ``onnx.ModelProto``.
        sizes: as for `example_inputs`.

    Raises:
        LayerCollapseError: onnx2torch is not installed, the file is none of ONNX, or has an operation that onnx2torch
            does not read.
    """
    given = read(path)
    onnx = require("onnx", "onnx")
    with _without_torchvision():
        onnx2torch = require("onnx2torch", "onnx")
    reasons = []
    for proto in _asread(onnx, given):
        try:
            model = onnx2torch.convert(proto).eval()
            break
        except Exception as error:  # it raises what it likes
            reasons.append(str(error).strip().partition("\n")[0] or type(error).__name__)
    else:
        raise LayerCollapseError(f"path: expected operations that onnx2torch reads, got: {reasons[0]}")
    _fold_sizes(model)
    _with_plain_reshapes(model, given, sizes)
    return model


def example_inputs(path: str | os.PathLike[str], sizes: Mapping[str, int] | None = None) -> tuple[Tensor, ...]:
    """Inputs of the shapes that an ONNX file declares: random numbers, zeros for integers.

    Args:
        path: as for `load`.
        sizes: name of a dynamic dimension -> its size. A dynamic first dimension is 2 without.

    Raises:
        LayerCollapseError: the file is none of ONNX, or the size of another dimension is not known.
    """
    return _examples(read(path), sizes, 2)


def _examples(proto: Any, sizes: Mapping[str, int] | None, batch: int) -> tuple[Tensor, ...]:
    """Inputs; a first dimension without a size is `batch`."""
    onnx, sizes = require("onnx", "onnx"), dict(sizes or {})
    weights = {weight.name for weight in proto.graph.initializer}
    generator = torch.Generator().manual_seed(0)
    found = []
    for given in proto.graph.input:
        if given.name in weights:
            continue
        shape = []
        for at, dim in enumerate(given.type.tensor_type.shape.dim):
            size = dim.dim_value or sizes.get(dim.dim_param) or (batch if at == 0 else 0)
            if not size:
                raise LayerCollapseError(
                    f"sizes: expected a size for dimension {dim.dim_param or at!r} of input {given.name!r}, got "
                    f"{sizes or 'none'}"
                )
            shape.append(size)
        kind = onnx.helper.tensor_dtype_to_np_dtype(given.type.tensor_type.elem_type)
        dtype = getattr(torch, str(kind))
        value = torch.randn(shape, generator=generator).to(dtype) if dtype.is_floating_point else torch.zeros(shape)
        found.append(value.to(dtype))
    return tuple(found)


def _asread(onnx: Any, proto: Any) -> Iterator[Any]:
    """The model with its own set of operations, and with older ones.

    onnx2torch reads some operations as they were some sets ago alone. Most differ since in the types that they take:
    where the checker takes the model for one of the older set, it is one.
    """
    for opset in (None, *_OPSETS):
        same = onnx.ModelProto()
        same.CopyFrom(proto)
        _without_empty_sizes(onnx, same)
        if opset is not None:
            for one in same.opset_import:
                one.version = opset if one.domain in ("", "ai.onnx") else one.version
            try:
                onnx.checker.check_model(same, full_check=True)
            except Exception:
                continue
        yield same


def collapse(
    path: str | os.PathLike[str], samples: str | os.PathLike[str] | None = None, **options: Any
) -> CollapseResult:
    """Collapse the model of an ONNX file.

    Args:
        path: as for `load`.
        samples: a ``.npy`` file of inputs (N, ...) to measure sign entropies on and to compare with, for a model of one
            input; None: what algebra proves collapses alone.
        options: of `layercollapse.collapse`, such as ``mode="repad"``.

    Raises:
        LayerCollapseError: as for `load`, `example_inputs` and `layercollapse.collapse`; or no such samples.
    """
    model, example = load(path), example_inputs(path)
    if samples is None:
        return driver.collapse(model, example, **options)
    try:
        array = np.load(samples, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise LayerCollapseError(f"samples: expected a .npy file, got {os.fspath(samples)!r} ({error})") from error
    if len(example) != 1 or not isinstance(array, np.ndarray) or array.shape[1:] != example[0].shape[1:]:
        shapes = " and ".join(str(("N", *one.shape[1:])) for one in example)
        raise LayerCollapseError(f"samples: expected an array of one input {shapes}, got {getattr(array, 'shape', ())}")
    step = len(example[0])  # the batch may be a number of the file's
    rows = torch.from_numpy(array).to(example[0].dtype)
    batches = [rows[at : at + step] for at in range(0, len(rows) - step + 1, step)]
    return driver.collapse(model, example, measure_entropy(model, batches), data=batches, **options)


class Reshape(nn.Module):
    """A reshape to sizes that are numbers, or those of the input.

    Args:
        sizes: of the result; 0 for the input's size of that dimension, -1 for what is left.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = list(sizes)

    def forward(self, x: Tensor) -> Tensor:
        """Any tensor of as many entries -> a tensor of the sizes."""
        return x.reshape([x.shape[at] if size == 0 else size for at, size in enumerate(self.sizes)])

    def extra_repr(self) -> str:
        return repr(self.sizes)


def _fold_sizes(model: torch.fx.GraphModule) -> None:
    """Compute what is made of constants alone and gives integers: sizes, which are numbers then."""
    values: dict[torch.fx.Node, Tensor] = {}
    for node in list(model.graph.nodes):
        if node.op == "get_attr":
            value = _attribute(model, str(node.target))
        elif node.op == "call_module" and all(one in values for one in node.all_input_nodes) and not node.kwargs:
            with torch.no_grad():
                value = model.get_submodule(node.target)(*torch.fx.map_arg(node.args, values.__getitem__))
        else:
            continue
        if not isinstance(value, Tensor):
            continue
        values[node] = value
        if node.op == "call_module" and not value.is_floating_point() and node.users:
            name = f"folded_{node.name}"
            model.register_buffer(name, value)
            with model.graph.inserting_before(node):
                constant = model.graph.get_attr(name)
            node.replace_all_uses_with(constant)
            values[constant] = value
    model.graph.eliminate_dead_code()
    model.recompile()


def _attribute(model: nn.Module, path: str) -> Any:
    parent, _, name = path.rpartition(".")
    return getattr(model.get_submodule(parent), name)


def _with_plain_reshapes(model: torch.fx.GraphModule, proto: Any, sizes: Mapping[str, int] | None) -> None:
    """Replace reshapes to sizes that the graph computes, which torch.export cannot follow.

    What they are is seen in two passes of other batches: numbers, the input's own sizes, or what is left.
    """
    calls = [n for n in model.graph.nodes if n.op == "call_module" and len(n.args) == 2 and n.args[1].op != "get_attr"]
    calls = [node for node in calls if type(model.get_submodule(node.target)).__name__ == "OnnxReshape"]
    if not calls:
        return
    seen: dict[str, list[tuple[list[int], list[int]]]] = {node.target: [] for node in calls}
    handles = []
    for name, pairs in seen.items():

        def see(_: nn.Module, args: Any, pairs: list[Any] = pairs) -> None:
            pairs.append((list(args[0].shape), args[1].tolist()))

        handles.append(model.get_submodule(name).register_forward_pre_hook(see))
    try:
        with torch.no_grad():
            for batch in (2, 3):
                model(*_examples(proto, sizes, batch))
    except Exception:
        return  # of no such batch, or of sizes that are not given: the capture says what stops it
    finally:
        for handle in handles:
            handle.remove()
    for node in calls:
        (before, first), (after, second) = seen[node.target]
        found = [
            size if size == other else 0 if at < len(before) and (before[at], after[at]) == (size, other) else -1
            for at, (size, other) in enumerate(zip(first, second, strict=True))
        ]
        if found.count(-1) < 2:
            model.set_submodule(node.target, Reshape(found))
            node.args = (node.args[0],)
    model.graph.eliminate_dead_code()
    model.recompile()


def read(path: Any) -> Any:
    """The ``onnx.ModelProto`` of a file, checked; raises as `load` does."""
    onnx = require("onnx", "onnx")
    if isinstance(path, onnx.ModelProto):
        return path
    try:
        proto = onnx.load(os.fspath(path))
        onnx.checker.check_model(proto)
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise LayerCollapseError(f"path: expected an ONNX file, got {os.fspath(path)!r} ({reason[0]})") from error
    return proto


def _without_empty_sizes(onnx: Any, proto: Any) -> None:
    """Take ``allowzero`` from reshapes, which onnx2torch refuses: it means something for a size of 0 alone."""
    values = {weight.name: weight for weight in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type != "Reshape":
            continue
        shape = values.get(node.input[1])
        if shape is None or (onnx.numpy_helper.to_array(shape) != 0).all():
            for attribute in [one for one in node.attribute if one.name == "allowzero"]:
                node.attribute.remove(attribute)


@contextmanager
def _without_torchvision() -> Iterator[None]:
    """The block with empty modules for a torchvision that is not there, or not built for this torch.

    onnx2torch imports it for the detection operations alone; a wheel for CUDA does not import beside a torch for CPUs.
    """
    if "onnx2torch" in sys.modules:
        yield
        return
    try:
        importlib.import_module("torchvision")
        missing = False
    except Exception:
        missing = True
    before = {name for name in sys.modules if name.partition(".")[0] == "torchvision"}
    if missing:
        for name in before:
            del sys.modules[name]
        root, ops = (ModuleType(name) for name in ("torchvision", "torchvision.ops"))
        for module in (root, ops):
            module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
        root.ops, ops.roi_align = ops, None  # type: ignore[attr-defined]
        sys.modules |= {"torchvision": root, "torchvision.ops": ops}
    try:
        yield
    finally:
        if missing:
            for name in ("torchvision", "torchvision.ops"):
                del sys.modules[name]
