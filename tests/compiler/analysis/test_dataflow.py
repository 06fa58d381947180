"""The walk that analyses share: which transfer function a node has, and what it sees."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from layercollapse.compiler.analysis.dataflow import Facts, by_kind, forward
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
