"""The walk that analyses share: which transfer function a node has, and what it sees."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from layercollapse.compiler.analysis.dataflow import Channels, ChannelTransfer, Facts, along, by_kind, forward
from layercollapse.compiler.ir.graph import Net
from layercollapse.compiler.ir.records import Activation, Affine
from layercollapse.graph.operations import Does
from networks import Model, lowered

aten = torch.ops.aten


def net() -> Net:
    def function(m, x: Tensor) -> Tensor:
        return torch.minimum(torch.relu(m.layer(x)).flip(1).roll(1, 0).exp(), m.token)

    model = Model(function, layer=nn.Linear(3, 2))
    model.token = nn.Parameter(torch.zeros(2))
    return lowered(model, torch.zeros(4, 3))


def test_the_nearest_kind_of_a_node_decides() -> None:
    kinds = (Affine, aten.flip, Does.TURN, Does.FUNCTION, "placeholder", "get_attr")

    def named(kind: object):
        return lambda node, facts: kind

    facts = forward(net(), by_kind({kind: named(kind) for kind in kinds}))
    # The record of the rectifier has none, and neither has the minimum; a flip is a turn, too.
    assert list(facts.values()) == ["placeholder", Affine, aten.flip, Does.TURN, Does.FUNCTION, "get_attr"]


def test_a_fact_follows_from_those_before_and_none_is_kept_of_what_has_none() -> None:
    def depth(node: fx.Node, facts: Facts[int]) -> int | None:
        if isinstance(facts.net.op(node), Activation):
            return None
        return 1 + max((facts.get(read, 0) for read in node.all_input_nodes), default=0)

    facts = forward(net(), depth)
    # Behind the rectifier it begins anew: input, layer; flip, roll, exp, the token, the minimum, the output.
    assert list(facts.values()) == [1, 2, 1, 2, 3, 1, 4, 5]


class Counts(ChannelTransfer):
    """Numbers of channels, in order of the layer that made them; sums add them, products multiply them."""

    def record(self, node, op, read):
        return torch.arange(1, op.outputs + 1) if isinstance(op, Affine) else None if read is None else read.values

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b

    def multiply(self, a: Tensor | None, b: Tensor | None) -> Tensor | None:
        return None if a is None or b is None else a * b

    def unknown(self, channels: int) -> Tensor:
        return torch.zeros(channels, dtype=torch.int64)


def last(function, *size: int, transfer: ChannelTransfer | None = None) -> Channels | None:
    """The fact of what a function makes of layers `a` and `b`."""
    kind = nn.Linear if len(size) < 4 else lambda i, o: nn.Conv2d(i, o, 1)
    channels = size[1] if len(size) == 4 else size[-1]
    net = lowered(Model(function, a=kind(channels, 3), b=kind(channels, 3)), torch.randn(size))
    (output,) = (node for node in net.graph.nodes if node.op == "output")
    return forward(net, transfer or Counts()).get(output.all_input_nodes[0])


def values(fact: Channels | None) -> tuple[int | None, list[int]] | None:
    return None if fact is None else (fact.dim, fact.values.tolist())


def test_where_values_of_channels_go() -> None:
    maps, rows = (2, 5, 4, 4), (2, 5)
    assert values(last(lambda m, x: m.a(x).relu(), *rows)) == (-1, [1, 2, 3])
    assert values(last(lambda m, x: m.a(x) + m.b(x), *rows)) == (-1, [2, 4, 6])
    assert values(last(lambda m, x: m.a(x) * m.b(x), *rows)) == (-1, [1, 4, 9])
    assert values(last(lambda m, x: m.a(x) * m.b(x).mean((2, 3), keepdim=True), *maps)) == (1, [1, 4, 9])
    assert values(last(lambda m, x: torch.cat([m.a(x), m.b(x)], 1), *maps)) == (1, [1, 2, 3, 1, 2, 3])
    assert values(last(lambda m, x: torch.cat([x, m.b(x)], -1), *rows)) == (-1, [0, 0, 0, 0, 0, 1, 2, 3])
    assert values(last(lambda m, x: m.a(x).permute(0, 2, 3, 1), *maps)) == (-1, [1, 2, 3])
    assert values(last(lambda m, x: m.a(x).flatten(1), 2, 5, 2, 1)) == (-1, [1, 1, 2, 2, 3, 3])
    assert values(last(lambda m, x: m.a(x).tanh().exp(), *rows)) == (-1, [1, 2, 3])


def test_what_is_not_followed_is_not_known() -> None:
    assert last(lambda m, x: m.a(x).softmax(-1), 2, 5) is None
    assert last(lambda m, x: m.a(x) + x[..., :3].cumsum(-1), 2, 5) is None
    assert last(lambda m, x: m.a(x) * x[..., :3], 2, 5) is None

    class Certain(Counts):
        def unknown(self, channels: int) -> None:
            return None

    assert last(lambda m, x: torch.cat([x, m.b(x)], -1), 2, 5, transfer=Certain()) is None


def test_facts_lie_along_a_dimension() -> None:
    fact = Channels(1, torch.ones(2))
    assert along(fact, 1) is fact.values
    assert along(fact, -1) is along(None, 1) is along(Channels(None, torch.ones(1)), 1) is None
