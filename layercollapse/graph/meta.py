"""What is known of a node of a graph beside its call: typed keys of `torch.fx.Node.meta`."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import torch
from torch import fx

T = TypeVar("T")


class Key(Generic[T]):
    """One key of the metadata of nodes: ``KEY[node]`` for what must be there, ``KEY.get(node)`` for what may be.

    Args:
        name: the key.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __getitem__(self, node: Any) -> T:
        return node.meta[self.name]

    def __setitem__(self, node: fx.Node, value: T | None) -> None:
        node.meta[self.name] = value

    def __contains__(self, node: Any) -> bool:
        return self.name in node.meta

    def get(self, node: Any) -> T | None:
        """The value, or None."""
        return node.meta.get(self.name)


def inherit(node: fx.Node, other: fx.Node, *keys: Key[Any]) -> None:
    """Let all that is known of a node be what is known of another; with keys, of these what is known."""
    if not keys:
        node.meta = dict(other.meta)
    node.meta.update({key.name: key[other] for key in keys if other in key})


# Of captured graphs. A fake tensor, a number, or a list of such; sizes may be symbolic.
VALUE = Key[Any]("val")
# Path -> name and class of the modules whose forward makes a call, the innermost last.
MODULES = Key[dict[str, Any]]("nn_module_stack")
# Whether a rectifier's call is a part of another rectifier (see `written`).
ABSORBED = Key[bool]("absorbed")
# Whether a rectifier's call stands for several operations, which the model writes out.
COMPOSED = Key[bool]("composed")
# The calls that a rectifier stands for that is to stay written out.
WRITTEN = Key[list[tuple[Any, ...]]]("written")

# Of the graphs that passes rewrite. Shape of the tensor for the example inputs; channels may have been dropped since.
SHAPE = Key[tuple[int, ...]]("shape")
# Its dtype in the captured graph.
DTYPE = Key[torch.dtype]("dtype")
# Its dimensions whose size the model leaves open.
OPEN = Key[set[int]]("open")
# Name of the captured node that it comes from.
ORIGIN = Key[str]("origin")
# Height and width of the maps that it flattens, where no others will do.
MAPS = Key[tuple[int, ...]]("maps")
