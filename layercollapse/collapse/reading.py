"""What the readers of single operations share: the model's tensors, and the arguments of a call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from layercollapse.graph import Site


@dataclass(frozen=True)
class Model:
    """What a reader may look at.

    Attributes:
        values: placeholder -> the model's tensor.
        names: placeholder -> its name in the model.
        sites: node -> rectifier site.
        dims: node -> channel dimension, where it is known.
    """

    values: Mapping[str, Tensor]
    names: Mapping[str, str]
    sites: Mapping[str, Site]
    dims: Mapping[fx.Node, int]

    def tensor(self, argument: Any) -> Tensor | None:
        """The model's tensor that an argument is, or None."""
        return self.values.get(argument.name) if isinstance(argument, fx.Node) else None


def argument(node: fx.Node, position: int, default: Any = None) -> Any:
    """A positional argument of a call, or the default."""
    return node.args[position] if len(node.args) > position else default


def rank(node: Any) -> int:
    """Number of dimensions of a node's tensor."""
    return node.meta["val"].ndim if isinstance(node, fx.Node) else 0


def float64(value: Tensor) -> Tensor:
    """The algebra runs on the CPU: it is small, and not every accelerator has float64."""
    return value.detach().cpu().double()
