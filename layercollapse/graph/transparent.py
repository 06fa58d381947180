"""Models whose rectifiers are all calls of torch's rectifier modules, which their source code shows.

Where a model's own code can call no other rectifier, and write none out, it need not be watched call by call.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import math
import textwrap
from functools import lru_cache
from types import FunctionType
from typing import Any

import torch
from torch import nn

from layercollapse.graph.operations import BY_NAME, Does
from layercollapse.graph.patterns import SMOOTH
from layercollapse.graph.terms import NAMES, READINGS

# One rectifier call each, of the module's input, with bends that nothing changes.
RECTIFIERS = {
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.ELU, nn.CELU, nn.SELU),
}
# Modules whose own forward calls no rectifier and none of the functions that one is written out of.
WITHOUT = {
    *(nn.Sequential, nn.Identity, nn.Flatten, nn.Unflatten, nn.Linear, nn.Embedding, nn.LayerNorm, nn.GroupNorm),
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool2d),
}
_CONTAINERS = {nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict}

_UNFOLLOWED = (Does.FUNCTION, Does.GATE, Does.COMBINE, Does.REDUCE, Does.OTHER)
_SPOKEN = {name for name, row in BY_NAME.items() if row.does not in _UNFOLLOWED and name not in NAMES}
_SPOKEN |= {name for name, (operation, _) in READINGS.items() if operation in SMOOTH}
# Attributes of anything but the module itself that no rectifier is made with.
_HARMLESS = {
    *(_SPOKEN | {f"{name}_" for name in _SPOKEN}),
    *("nn", "functional", "shape", "ndim", "dim", "size", "numel", "dtype", "device", "T", "weight", "bias"),
    *("append", "items", "values", "keys"),
}
_BUILTINS = {len, range, enumerate, zip, reversed, int, float, tuple, list, slice}
_NODES = (
    *(ast.Import, ast.ImportFrom, ast.With, ast.AsyncWith, ast.AsyncFor, ast.Await, ast.Yield, ast.YieldFrom),
    *(ast.ClassDef, ast.Global, ast.Nonlocal, ast.Match, ast.AsyncFunctionDef),
)
_EQUAL = (ast.Is, ast.IsNot, ast.Eq, ast.NotEq, ast.In, ast.NotIn)


def calls_none(module: nn.Module) -> bool:
    """Whether no rectifier can be called in a module's own forward, which is torch's."""
    return type(module) in WITHOUT and not _changed(module)


def calls_modules_only(model: nn.Module) -> bool:
    """Whether every rectifier that the model can call is the call of a module of `RECTIFIERS`.

    What a module's forward computes is read off its source code: whatever is not known there, such as a comparison, a
    function or a value of the module that could be one, is taken for a rectifier.
    """
    hooks = torch.nn.modules.module
    if hooks._global_forward_hooks or hooks._global_forward_pre_hooks:
        return False
    return all(
        not _changed(module)
        and (type(module) in RECTIFIERS or type(module) in WITHOUT or type(module) in _CONTAINERS or _reads(module))
        and all(_own(module, name, set()) for name in _HARMLESS & _given(module))
        for module in model.modules()
    )


def _given(module: nn.Module) -> set[str]:
    """The names that a module's author has given to attributes: other modules may call them."""
    classes = [vars(kind) for kind in type(module).__mro__ if not kind.__module__.startswith(("torch.", "builtins"))]
    return set().union(vars(module), *classes)


def _changed(module: nn.Module) -> bool:
    """Whether somebody has put code of their own into one module."""
    return bool(module._forward_pre_hooks or module._forward_hooks or "forward" in vars(module))


def _reads(module: nn.Module) -> bool:
    own = type(module)
    if own.__module__.startswith("torch.") or own.__call__ is not nn.Module.__call__:
        return False
    return own.__getattr__ is nn.Module.__getattr__ and _plain(own.forward, module, set())


def _plain(function: Any, module: nn.Module | None, seen: set[Any]) -> bool:
    """Whether a function, or a method of the module, calls nothing that may be a rectifier or a part of one."""
    if function in seen:
        return True
    seen.add(function)
    tree = _source(function) if isinstance(function, FunctionType) else None
    if tree is None or not all(
        map(_value, (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()))
    ):
        return False
    nodes = [node for statement in tree.body for node in ast.walk(statement)]
    arguments = [*tree.args.posonlyargs, *tree.args.args, *tree.args.kwonlyargs, tree.args.vararg, tree.args.kwarg]
    own = arguments[0].arg if module is not None and arguments and arguments[0] is not None else None
    local = {argument.arg for argument in arguments if argument is not None}
    local |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    local |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    for node in nodes:
        if isinstance(node, _NODES) or (isinstance(node, ast.FunctionDef) and node.decorator_list):
            return False
        if isinstance(node, ast.FunctionDef):
            local.add(node.name)
        if isinstance(node, ast.Compare) and not all(isinstance(operator, _EQUAL) for operator in node.ops):
            return False
        if isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Name) and node.value.id == own:
                if not isinstance(node.ctx, ast.Load) or not _own(module, node.attr, seen):  # type: ignore[arg-type]
                    return False
            elif node.attr not in _HARMLESS:
                return False
    names = {node.id for node in nodes if isinstance(node, ast.Name)} - local
    return all(_global(function, name, seen) for name in names)


@lru_cache(maxsize=1024)
def _source(function: FunctionType) -> ast.FunctionDef | None:
    """The source code of a function; None where there is none, or where it is part of a longer story."""
    if hasattr(function, "__wrapped__"):
        return None
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    except (OSError, TypeError, SyntaxError, IndexError):
        return None
    whole = isinstance(tree, ast.FunctionDef) and tree.name == function.__name__ and not tree.decorator_list
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
    return tree if whole else None  # type: ignore[return-value]


def _own(module: nn.Module, name: str, seen: set[Any]) -> bool:
    """Whether an attribute of the module is a module, a tensor, a number or a method that is plain."""
    if name in module._modules or name in module._parameters or name in module._buffers:
        return True
    if name in vars(module):
        return _value(vars(module)[name])
    value = inspect.getattr_static(type(module), name, None)
    return _plain(value, module, seen) if isinstance(value, FunctionType) else value is not None and _value(value)


def _global(function: FunctionType, name: str, seen: set[Any]) -> bool:
    """Whether a name from outside a function is torch, a value, or a function that is plain."""
    missing = object()
    value = function.__globals__.get(name, getattr(builtins, name, missing))
    if name in function.__code__.co_freevars or value is missing:
        return False
    if value in (torch, nn, nn.functional, math) or (isinstance(value, type) and issubclass(value, Exception)):
        return True
    if isinstance(value, FunctionType) and not value.__module__.startswith("torch."):
        return _plain(value, None, seen)
    return _value(value) or any(value is builtin for builtin in _BUILTINS)


def _value(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_value, value))
    return value is None or isinstance(value, bool | int | float | str | torch.dtype | torch.device)
