"""What the converters of single operations share: the model's tensors, and the arguments of a call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from layercollapse._util.sharded import whole
from layercollapse.compiler.ir.records import Origin
from layercollapse.graph.aten import computed
from layercollapse.graph.capture import Site


@dataclass(frozen=True)
class Model:
    """What a reader may look at.

    Attributes:
        values: placeholder -> the model's tensor; and what `tensor` made of them.
        names: placeholder -> its name in the model.
        sites: node -> rectifier site.
        dims: node -> channel dimension, where it is known.
        origins: placeholder of a tensor of the model -> what it is.
    """

    values: dict[str, Tensor]
    names: Mapping[str, str]
    sites: Mapping[str, Site]
    dims: Mapping[fx.Node, int]
    origins: Mapping[str, Origin]
    _known: dict[fx.Graph, set[fx.Node]] = field(default_factory=dict)

    def tensor(self, argument: Any) -> Tensor | None:
        """The model's tensor that an argument is, or that is made of tensors which nothing else reads; or None.

        Weight norm and the masks of `torch.nn.utils.prune` make a weight anew in every forward pass. What something
        else reads too (a tied embedding, transposed) stays one tensor.
        """
        if not isinstance(argument, fx.Node):
            return None
        if argument.name not in self.values and argument in self._computed(argument.graph):
            parts = _made_of(argument)
            if all(user in parts for node in parts - {argument} for user in node.users):
                self.values[argument.name] = self._value(argument, parts)
        return self.values.get(argument.name)

    def origin(self, *arguments: Any) -> Origin:
        """What numbers and tensors of the model are made of; see `Origin`."""
        waiting = [argument for argument in arguments if isinstance(argument, fx.Node)]
        seen, origin = set(waiting), Origin.BUFFER
        while waiting:
            node = waiting.pop()
            origin = max(origin, self.origins.get(node.name, Origin.BUFFER))
            waiting += [x for x in node.all_input_nodes if x not in seen]
            seen.update(waiting)
        return origin

    def name(self, node: fx.Node, default: str) -> str:
        """The name of a tensor in the model, or for one that `tensor` made a name that no other has.

        Without a module of their own, layers whose weights are computed would all go by one default.
        """
        return self.names.get(node.name, f"{default} of {node.name}")

    def _computed(self, graph: fx.Graph) -> set[fx.Node]:
        if graph not in self._known:
            self._known[graph] = computed(graph, self.values)
        return self._known[graph]

    def _value(self, node: fx.Node, parts: set[fx.Node]) -> Any:
        """The value of a node, given all that it is made of."""
        values: dict[fx.Node, Any] = {}
        with torch.no_grad():
            for part in sorted(parts):
                if part.name in self.values:
                    values[part] = whole(self.values[part.name])
                else:
                    args, kwargs = fx.map_arg((part.args, part.kwargs), values.__getitem__)
                    values[part] = part.target(*args, **kwargs)  # type: ignore[operator]
        return values[node]


def _made_of(node: fx.Node) -> set[fx.Node]:
    """A node and all that it is computed from."""
    parts, waiting = {node}, [node]
    while waiting:
        new = set(waiting.pop().all_input_nodes) - parts
        parts |= new
        waiting += new
    return parts
