"""The arguments of a call of an aten operation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from layercollapse._util.sharded import whole
from layercollapse.graph.aten import packet
from layercollapse.graph.meta import VALUE

aten = torch.ops.aten


def argument(node: fx.Node, position: int, default: Any = None) -> Any:
    """A positional argument of a call, or the default."""
    return node.args[position] if len(node.args) > position else default


def named(node: fx.Node, name: str, default: Any = None) -> Any:
    """An argument of a call of an aten operation by its name in the schema: as given, or else the schema's default; the
    other default where the operation has none of that name.
    """
    for place, one in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if one.name == name:
            return node.args[place] if place < len(node.args) else node.kwargs.get(name, one.default_value)
    return default


def rank(node: Any) -> int:
    """Number of dimensions of a node's tensor."""
    return VALUE[node].ndim if isinstance(node, fx.Node) else 0


def fixed(size: int | torch.SymInt) -> int | None:
    """A size as a number, or None if it is open."""
    if isinstance(size, int):
        return size
    return int(size) if size.node.expr.is_number else None


def float64(value: Tensor) -> Tensor:
    """The algebra runs on the CPU: it is small, and not every accelerator has float64."""
    return whole(value.detach()).cpu().double()


def border_value(node: fx.Node) -> Any:
    """The number that a padding puts around a tensor, or a node if that is computed; None where it repeats entries."""
    if packet(node) is not aten.constant_pad_nd and named(node, "mode") != "constant":
        return None
    value = named(node, "value")
    return 0 if value is None else value
