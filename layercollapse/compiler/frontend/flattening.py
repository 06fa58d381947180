"""The ways to write a flatten from dimension 1: ``x.view(x.size(0), -1)``, ``x.reshape(-1, 128 * 6 * 6)``, ..."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from layercollapse.graph.aten import does, packet, rectifier_of, row
from layercollapse.graph.meta import VALUE
from layercollapse.graph.operations import Does

aten = torch.ops.aten


def flattened(node: fx.Node) -> fx.Node | None:
    """The tensor that a call flattens from dimension 1 on, through other reshapes if there are any between; or None.

    Where a size is a number (the features, or a batch that the capture fixed) a flatten is the same for the captured
    sizes only. For others the call fails or makes other rows of the same values, and a flatten makes rows of another
    length: what reads them must be a layer, which refuses these.

    Args:
        node: of a captured graph.

    Returns:
        The tensor, of two dimensions if the call leaves it as it is.
    """
    source, numbered = node, False
    while (step := _reshaped(source)) is not None:
        source, number = step
        numbered = numbered or number
    if source is node or _rank(node) != 2 or (numbered and not _read_by_layers(node)):
        return None
    return source


def _reshaped(node: fx.Node) -> tuple[fx.Node, bool] | None:
    """What a call reshapes without moving values between samples, and whether it names a size by a number; or None."""
    arguments: Any = node.args
    if does(node) not in (Does.RESHAPE, Does.FLATTEN) or node.kwargs or not isinstance(arguments[0], fx.Node):
        return None
    source: fx.Node = arguments[0]
    if min(_rank(source), _rank(node)) < 2 or str(_shape(source)[0]) != str(_shape(node)[0]):
        return None
    if packet(node) is aten.flatten:
        return (source, False) if len(arguments) > 1 and arguments[1] % _rank(source) > 0 else None
    sizes = arguments[1]
    if not isinstance(sizes, list | tuple):
        return None  # a view of the same bits as another dtype
    if sizes[0] == -1 and _rank(source) > 2 and sizes[1:] == [_shape(source)[-1]]:
        return None  # a row for every position, of which the example has one
    return source, any(isinstance(size, int) and size != -1 for size in sizes)


def _read_by_layers(node: fx.Node) -> bool:
    """Whether all that reads a tensor, behind what works on each value alone, are layers with a number of features."""
    waiting, seen = [node], {node}
    while waiting:
        users = waiting.pop().users
        through = [user for user in users if row(user).dim is None]
        alone = (does(user) in (Does.SAME, Does.DROPOUT) or rectifier_of(user) is not None for user in through)
        if not users or not all(alone):
            return False
        waiting += [user for user in through if user not in seen]
        seen.update(through)
    return True


def _shape(node: fx.Node) -> Any:
    return VALUE[node].shape


def _rank(node: fx.Node) -> int:
    value = VALUE.get(node)
    return value.ndim if isinstance(value, Tensor) else 0
