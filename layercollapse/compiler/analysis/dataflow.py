"""One forward walk over a net for every analysis: a fact for each node, by a transfer function from those before it.

A transfer function belongs to a type of record, to what an aten operation does (`graph.operations`), or to a single
operation. Analyses of channels have one value for each channel: `ChannelTransfer` knows where channels go, and asks
only what becomes of the values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, fx

from layercollapse.compiler.ir.channel_map import carry, factors, function_of, parts
from layercollapse.compiler.ir.graph import Net, operands, shape, source
from layercollapse.compiler.ir.records import Op
from layercollapse.graph.aten import does, packet

Fact = TypeVar("Fact")


class Facts(dict[fx.Node, Fact]):
    """The facts of the nodes of a net; none of a node of which nothing is known."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net


Transfer = Callable[[fx.Node, Facts[Fact]], Fact | None]


def forward(net: Net, transfer: Transfer[Fact]) -> Facts[Fact]:
    """The facts of a net's nodes, each by the transfer function from the facts of those before it."""
    facts: Facts[Fact] = Facts(net)
    for node in net.graph.nodes:
        if (fact := transfer(node, facts)) is not None:
            facts[node] = fact
    return facts


def by_kind(transfers: Mapping[Any, Transfer[Fact]]) -> Transfer[Fact]:
    """One transfer function of several: by the type of a node's record, the operation that it calls (`aten.add`), what
    that does (`Does.SUM`), or the kind of node (``"get_attr"``), in this order. Nothing is known of what has none.
    """

    def transfer(node: fx.Node, facts: Facts[Fact]) -> Fact | None:
        kinds = (type(facts.net.op(node)), packet(node), does(node), node.op)
        chosen = next((transfers[kind] for kind in kinds if kind in transfers), None)
        return None if chosen is None else chosen(node, facts)

    return transfer


class Channels(NamedTuple):
    """A fact of every channel.

    Attributes:
        dim: the dimension of the channels, 1 or -1; None if the fact is one for the whole tensor.
        values: (C,), or (1,).
    """

    dim: int | None
    values: Tensor


def along(fact: Channels | None, dim: int | None) -> Tensor | None:
    """The values of a fact along a dimension; None if there is none, or it is along another."""
    return None if fact is None or fact.dim != dim else fact.values


class ChannelTransfer(ABC):
    """The transfer function of an analysis with a value for each channel: what it does with the values.

    What `carry`, `parts` and their like do not follow is for `other`.
    """

    def __call__(self, node: fx.Node, facts: Facts[Channels]) -> Channels | None:
        """The fact of a node."""
        return self._followed(node, facts) or self.other(node, facts)

    @abstractmethod
    def record(self, node: fx.Node, op: Op, read: Channels | None) -> Tensor | None:
        """The values of a record's output, along its channel dimension."""

    @abstractmethod
    def add(self, a: Tensor, b: Tensor) -> Tensor | None:
        """The values of a sum of two tensors of one shape."""

    @abstractmethod
    def multiply(self, a: Tensor | None, b: Tensor | None) -> Tensor | None:
        """The values of a product; one of the factors may have none."""

    def apply(self, node: fx.Node, values: Tensor) -> Tensor:
        """The values of a function of every entry."""
        return values

    def unknown(self, channels: int) -> Tensor | None:
        """The values of a part of a concatenation of which nothing is known; None: then nothing is of the whole."""
        return None

    def place(self, node: fx.Node, dim: int) -> tuple[int, int] | None:
        """Where an operation puts the channels, see `carry`."""
        return carry(node, dim)

    def other(self, node: fx.Node, facts: Facts[Channels]) -> Channels | None:
        """The fact of a node that nothing above knows."""
        return None

    def _followed(self, node: fx.Node, facts: Facts[Channels]) -> Channels | None:
        op, first = facts.net.op(node), node.args[0] if node.args else None
        origins: list[tuple[int | None, Tensor | None]] = []
        if op is not None:
            origins = [(op.channel_dim, self.record(node, op, facts.get(source(node))))]
        elif (pair := operands(node)) is not None:
            one, two = map(facts.get, pair)
            if one is not None and two is not None and one.dim == two.dim:
                origins = [(one.dim, self.add(one.values, two.values))]
        elif (pair := factors(node)) is not None:
            both = [facts.get(x) for x in pair]
            for dim in dict.fromkeys(fact.dim for fact in both if fact is not None):
                a, b = (along(fact, dim) for fact in both)
                origins.append((dim, self.multiply(a, b)))
        elif (read := function_of(node)) is not None:
            if (fact := facts.get(read)) is not None:
                origins = [(fact.dim, self.apply(node, fact.values))]
        elif (joined := parts(node)) is not None:
            origins = [(joined[0], self._joined(*joined, facts))]
        elif node.op == "call_function" and isinstance(first, fx.Node) and (fact := facts.get(first)) is not None:
            place = None if fact.dim is None else self.place(node, fact.dim)
            origins = [] if place is None else [(place[0], fact.values.repeat_interleave(place[1]))]
        return next((Channels(dim, values) for dim, values in origins if values is not None), None)

    def _joined(self, dim: int, joined: list[fx.Node], facts: Facts[Channels]) -> Tensor | None:
        known = [along(facts.get(x), dim) for x in joined]
        if all(values is None for values in known):
            return None
        filled = [self.unknown(shape(x)[dim]) if v is None else v for x, v in zip(joined, known, strict=True)]
        some = [values for values in filled if values is not None]
        return torch.cat(some) if len(some) == len(joined) else None
