"""Programs that `torch.export.save` wrote, `FILE.pt2`: they train on as they are; reading one runs no code."""

from __future__ import annotations

import inspect
import json
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.utils._sympy import functions as symbolic

from layercollapse.errors import LayerCollapseError
from layercollapse.graph.export import reason
from layercollapse.graph.meta import VALUE
from layercollapse.zoo.models.wanted import Built, Wanted

SUFFIX = ".pt2"
# torch reads expressions of sizes by `sympy.sympify`, which evaluates them as Python: names of these functions alone.
_FUNCTIONS = {
    "Abs",
    "Add",
    "And",
    "Eq",
    "Ge",
    "Gt",
    "Integer",
    "Le",
    "Lt",
    "Max",
    "Min",
    "Mul",
    "Ne",
    "Not",
    "Or",
    "Pow",
}
_FUNCTIONS |= {"Symbol"}

_EXPRESSION = re.compile(r"[\w\s+\-*/(),<>=&|~%.]*")
_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def module_of(program: torch.export.ExportedProgram) -> nn.Module:
    """An exported program as a module with parameters that train; its batch norms and dropouts are as exported.

    It is a graph without the names that its calls had in the modules they came from: a call of a rectifier is found in
    the graph itself while it runs, and must be called the same where it is exported again.
    """
    module = program.module()
    assert isinstance(module, fx.GraphModule)
    for node in module.graph.nodes:
        node.meta.pop("nn_module_stack", None)
    return fx.GraphModule(module, module.graph)


def read(path: str) -> torch.export.ExportedProgram:
    """The program in a file.

    Raises:
        LayerCollapseError: there is none, or reading it would run code: pickled objects, or expressions of other
            functions than sizes need.
    """
    try:
        _check(path)
        with _weights_only():
            return torch.export.load(path)
    except LayerCollapseError:
        raise
    except Exception as error:
        raise LayerCollapseError(
            f"model: expected a program of torch.export in {path}, got: {reason(error)}"
        ) from error


def build(path: str, wanted: Wanted) -> Built:
    """The program in a file, as a model.

    Raises:
        LayerCollapseError: as for `read`.
    """
    wanted.without_width(path)
    if wanted.args:
        raise LayerCollapseError(f"model_args: expected none for an exported program, got {', '.join(wanted.args)}")
    return Built(module_of(read(path)), pretrained=True)


def example_inputs(
    program: torch.export.ExportedProgram, shape: tuple[int, int, int] | None = None
) -> tuple[Any, ...] | dict[str, Any]:
    """What a program is called with: the example that it keeps, or zeros of the shapes that its graph has.

    Args:
        program: as `read` gives it.
        shape: (channels, height, width) of images, in the place of those in the example, and for sizes that are open; a
            batch left open is 2.

    Raises:
        LayerCollapseError: a size other than the batch is open.
    """
    if program.example_inputs is not None:
        args, kwargs = pytree.tree_map_only(Tensor, lambda x: _of_shape(x, shape), program.example_inputs)
    else:
        values = {node.name: VALUE.get(node) for node in program.graph.nodes if node.op == "placeholder"}
        leaves = [_zeros(name, values.get(name), shape) for name in program.graph_signature.user_inputs]
        args, kwargs = pytree.tree_unflatten(leaves, program.call_spec.in_spec)
    if args and kwargs:
        return dict(inspect.signature(program.module().forward).bind(*args, **kwargs).arguments)
    return dict(kwargs) if kwargs else tuple(args)


def _of_shape(x: Tensor, shape: tuple[int, int, int] | None) -> Tensor:
    return x if shape is None or x.ndim != 4 else x.new_zeros(len(x), *shape)


def _zeros(name: Any, value: Any, shape: tuple[int, int, int] | None) -> Any:
    if not isinstance(value, Tensor):
        return value  # a number, a text or None, which has its own value in the graph
    sizes = list(value.shape)
    if shape is not None and len(sizes) == 4:
        sizes[1:] = shape
    sizes = [2 if at == 0 and not isinstance(size, int) else size for at, size in enumerate(sizes)]
    if any(not isinstance(size, int) for size in sizes):
        raise LayerCollapseError(
            f"input: expected the size of an image, as --input 3x224x224, for an exported program that takes any, got "
            f"none for {name!r}"
        )
    return torch.zeros(sizes, dtype=value.dtype)


def _check(path: str) -> None:
    """Refuse a file of which torch would unpickle a part, or evaluate an expression that is none of sizes."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if "custom_obj" in name or (name.endswith(("_custom_objs", ".pkl")) and "/data/" in name):
                raise LayerCollapseError(f"model: expected a file without pickled objects, got {name} in {path}")
            if name.endswith(".json"):
                _check_value(json.loads(archive.read(name)), path)


def _check_value(value: Any, path: str) -> None:
    if isinstance(value, dict):
        if value.get("use_pickle"):
            raise LayerCollapseError(f"model: expected a file without pickled tensors, got {value.get('path_name')}")
        for key, entry in value.items():
            if key == "expr_str" and not _harmless(str(entry)):
                raise LayerCollapseError(f"model: expected expressions of sizes in {path}, got {entry!r}")
            _check_value(entry, path)
    elif isinstance(value, list):
        for entry in value:
            _check_value(entry, path)


def _harmless(expression: str) -> bool:
    expression = re.sub(r"\bSymbol\('\w+'", "Symbol(0", expression)
    called = set(re.findall(r"(\w+)\s*\(", expression))
    known = all(name in _FUNCTIONS or hasattr(symbolic, name) for name in called)
    plain = (
        _EXPRESSION.fullmatch(expression) and "__" not in expression and not re.search(r"\.\s*[A-Za-z_]", expression)
    )
    return bool(plain) and known


@contextmanager
def _weights_only() -> Iterator[None]:
    """The block in which `torch.load` reads tensors alone, also where torch's own code asks for more."""
    before = os.environ.get(_FORCE)
    os.environ[_FORCE] = "1"
    try:
        yield
    finally:
        os.environ.pop(_FORCE) if before is None else os.environ.update({_FORCE: before})
