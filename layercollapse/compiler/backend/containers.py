"""Containers of outputs in a file: which classes a file may name, and what stands for the others.

A file from a stranger can import nothing but the output classes of an installed transformers, and calls nothing but the
constructors of these, of the standard containers below, and of the classes that its reader passes.
"""

from __future__ import annotations

import importlib
import re
import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree

from layercollapse.errors import LayerCollapseError

# Modules of transformers that have output classes; others, converters of checkpoints, say, are never imported.
_TRANSFORMERS = re.compile(r"transformers\.(modeling_outputs|models\.\w+\.modeling_\w+)", re.ASCII)
_FACTORIES = {kind.__name__: kind for kind in (list, dict, set, tuple, int, float, str)}
_LEAF = "leaf"


class _Leaf:
    """In the place of an output."""


def is_plain(spec: Any) -> bool:
    """Whether outputs are a tensor, or tuples, lists and dicts of them, whose keys source text has as they are."""
    if spec.is_leaf():
        return True
    if spec.type is dict and not all(map(_literal, spec.context)):
        return False
    return spec.type in (tuple, list, dict) and all(map(is_plain, children(spec)))


def children(spec: Any) -> list[Any]:
    """The specs of what a container holds."""
    return list(spec.children() if callable(getattr(spec, "children", None)) else spec.children_specs)


def _literal(key: Any) -> bool:
    return all(map(_literal, key)) if type(key) is tuple else key is None or type(key) in (bool, int, float, str)


def plain(spec: Any, leaves: Sequence[Any]) -> Any:
    """Outputs in tuples, lists and dicts, whose keys are texts and numbers: what torch's own format has.

    Classes with named fields are dicts of those that are not None, named tuples are tuples.
    """

    def made(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {_key(key): made(part) for key, part in value.items()}
        if is_dataclass(value) and not isinstance(value, type):
            return {key: made(part) for key, part in _fields(value) if part is not None}
        if isinstance(value, list | tuple):
            return [made(part) for part in value] if type(value) is list else tuple(map(made, value))
        return value

    return made(pytree.tree_unflatten(list(leaves), spec))


def _key(key: Any) -> Any:
    """A key as torch's own format has it."""
    key = _number(key)
    return key if key is None or type(key) in (bool, int, float, str) else str(key)


def _number(key: Any) -> Any:
    """A key, of an enumeration's member the equal number or text."""
    if type(key) is tuple:
        return tuple(map(_number, key))
    if not isinstance(key, bool | int | str) or type(key) in (bool, int, str):
        return key
    plain = int(key) if isinstance(key, int) else str.__str__(key)
    return plain if plain == key and hash(plain) == hash(key) else key


def _written(key: Any, encode: Callable[[Any], Any]) -> Any:
    plain = _number(key)
    if not _literal(plain):
        raise LayerCollapseError(
            "model: expected outputs in dicts whose keys are texts, numbers, None, or tuples of these, got a key of "
            f"type {type(key).__name__}, which no file can hold: {key!r}"
        )
    return encode(plain)


def _fields(value: Any) -> list[tuple[str, Any]]:
    return [(field.name, getattr(value, field.name)) for field in fields(value) if field.init]


def describe(spec: Any, encode: Callable[[Any], Any]) -> Any:
    """Containers as JSON.

    Args:
        spec: how outputs are packed.
        encode: a dict's key as JSON.

    Raises:
        LayerCollapseError: a key is no text, number or None, and no tuple of these; or a container is of a class that
            no call with its parts makes.
    """

    def told(value: Any) -> Any:
        if isinstance(value, _Leaf):
            return _LEAF
        if value is None:
            return None
        kind = type(value)
        name = f"{kind.__module__}.{kind.__qualname__}"
        if kind in (dict, OrderedDict):
            return {name: [[_written(k, encode), told(part)] for k, part in value.items()]}
        if kind is defaultdict:
            factory = next((n for n, made in _FACTORIES.items() if made is value.default_factory), None)
            return {name: [[_written(k, encode), told(part)] for k, part in value.items()], "factory": factory}
        if kind in (list, tuple):
            return {name: [told(part) for part in value]}
        if isinstance(value, Mapping):
            return {name: {str(k): told(part) for k, part in value.items()}, "as": "dict"}
        if is_dataclass(value):
            return {name: {k: told(part) for k, part in _fields(value)}, "as": "dict"}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return {name: {k: told(v) for k, v in zip(value._fields, value, strict=True)}, "as": "tuple"}
        if isinstance(value, tuple) and kind.__module__ == "torch.return_types":
            return {name: [told(part) for part in value]}
        raise LayerCollapseError(
            "model: expected outputs in containers that a file may name (tuples, lists, dicts, named tuples, "
            f"dataclasses, output classes of transformers), got {name}"
        )

    return told(pytree.tree_unflatten([_Leaf() for _ in range(spec.num_leaves)], spec))


def rebuild(described: Any, decode: Callable[[Any], Any], classes: Sequence[type]) -> Any:
    """The spec that `describe` described; raises anything for a damaged description.

    A class that is none of `classes`, nor an output class of an installed transformers, is a plain dict, or a named
    tuple a plain tuple, and a warning says so.
    """
    count = 0

    def made(value: Any) -> Any:
        nonlocal count
        if value is None:
            return None
        if value == _LEAF:
            count += 1
            return count
        others = dict(value)
        form, factory = others.pop("as", None), others.pop("factory", None)
        ((name, inner),) = others.items()
        if name in ("builtins.list", "builtins.tuple"):
            parts = list(map(made, inner))
            return parts if name == "builtins.list" else tuple(parts)
        if name in ("builtins.dict", "collections.OrderedDict", "collections.defaultdict"):
            pairs = [(decode(k), made(part)) for k, part in inner]
            if name == "collections.defaultdict":
                return defaultdict(None if factory is None else _FACTORIES[factory], pairs)
            return dict(pairs) if name == "builtins.dict" else OrderedDict(pairs)
        if isinstance(inner, list):
            kind = vars(torch.return_types)[name.removeprefix("torch.return_types.")]
            if not (isinstance(kind, type) and issubclass(kind, tuple)):
                raise LayerCollapseError(f"its outputs are of {name!r}, which is no class of outputs")
            return kind(tuple(map(made, inner)))
        named = {str(k): made(part) for k, part in inner.items()}
        own: Any = _class(name, classes)
        if own is not None:
            return own(**named)
        warnings.warn(
            f"the outputs of this model were {name}, which is not at hand: they are a plain {form}; pass the class in "
            "`classes`, or install the package that it is from",
            stacklevel=2,
        )
        return {k: v for k, v in named.items() if v is not None} if form == "dict" else tuple(named.values())

    leaves, spec = pytree.tree_flatten(made(described))
    if leaves != list(range(1, count + 1)):
        raise LayerCollapseError("its outputs are in containers that do not hold them in order")
    return spec


def _class(name: str, classes: Sequence[type]) -> Any:
    """The class of that name, if a file may name it and it is there."""
    for own in classes:
        if f"{own.__module__}.{own.__qualname__}" == name:
            return own
    module, _, attribute = name.rpartition(".")
    if not _TRANSFORMERS.fullmatch(module):
        return None
    try:
        kind = getattr(importlib.import_module(module), attribute, None)
        base = importlib.import_module("transformers.utils").ModelOutput
    except ImportError:
        return None
    named = isinstance(kind, type) and issubclass(kind, base) and kind.__module__ == module
    return kind if named and is_dataclass(kind) else None
